//! Real sessions: TCP and UDP sockets of the kernel, made inside the namespaces of the lab.
//!
//! Owns: a server that says its name, sends and receives a known pattern, and clients for it. Refuses to know: services,
//! modes, who is in between. A socket stays in the namespace where it was made, so only opening happens there.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

/// How long any read, write or connect of a client may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How often a server looks whether it shall stop.
const TICK: Duration = Duration::from_millis(50);

/// Runs `body` on a thread inside the namespace whose file is `netns`.
pub fn within<T: Send>(netns: &str, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let file = File::open(netns).unwrap_or_else(|e| panic!("{netns}: {e}"));
            setns(file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|e| panic!("{netns}: {e}"));
            body()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Byte `at` of the pattern: no period that a segment boundary could hide in.
fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn chunk(from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(pattern).collect()
}

/// A TCP and UDP server in a namespace, on every address of one port.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves as `name` on `port`, IPv4 and IPv6.
    pub fn start(netns: &str, port: u16, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let addresses: [SocketAddr; 2] = [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
        let mut threads = Vec::new();
        for address in addresses {
            let (tcp, udp) = within(netns, || (listen(address), bind(address)));
            let (halt, name) = (stop.clone(), name.to_owned());
            threads.push(thread::spawn({
                let (halt, name) = (halt.clone(), name.clone());
                move || serve_tcp(&tcp, &name, &halt)
            }));
            threads.push(thread::spawn(move || serve_udp(&udp, &name, &halt)));
        }
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

/// Only its own family, so that both can be bound.
fn family_socket(address: SocketAddr, kind: i32) -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    let family = if address.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
    // SAFETY: socket(2) takes three integers and returns a new descriptor or -1.
    let fd = unsafe { nix::libc::socket(family, kind | nix::libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "socket: {}", io::Error::last_os_error());
    // SAFETY: `fd` was just returned by the kernel and is owned by nobody else.
    let socket = unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) };
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    if address.is_ipv6() {
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true).expect("IPV6_V6ONLY");
    }
    let storage = nix::sys::socket::SockaddrStorage::from(address);
    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &storage)
        .unwrap_or_else(|e| panic!("bind {address}: {e}"));
    socket
}

fn listen(address: SocketAddr) -> TcpListener {
    let socket = family_socket(address, nix::libc::SOCK_STREAM);
    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(1024).expect("backlog")).expect("listen");
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true).expect("nonblocking");
    listener
}

fn bind(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::from(family_socket(address, nix::libc::SOCK_DGRAM));
    socket.set_read_timeout(Some(TICK)).expect("read timeout");
    socket
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let (name, stop) = (name.to_owned(), stop.clone());
                thread::spawn(move || serve(stream, &name, &stop));
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Requests on one connection until the client closes it: `N` name, `D` and length: download, `U` and length: upload.
fn serve(mut stream: TcpStream, name: &str, stop: &AtomicBool) -> Option<()> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(TICK)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    stream.set_nodelay(true).ok()?;
    loop {
        let mut command = [0];
        match stream.read(&mut command) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if stop.load(Ordering::Relaxed) {
                    return None;
                }
                continue;
            }
            Err(_) => return None,
        }
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        match command {
            [b'N'] => stream.write_all(&[&[name.len() as u8], name.as_bytes()].concat()).ok()?,
            [b'D'] => {
                let len = length(&mut stream)?;
                let mut at = 0;
                while at < len {
                    let bytes = chunk(at, (len - at).min(1 << 16) as usize);
                    stream.write_all(&bytes).ok()?;
                    at += bytes.len() as u64;
                }
            }
            [b'U'] => {
                let len = length(&mut stream)?;
                let right = receive(&mut stream, len).is_ok();
                stream.write_all(&[u8::from(right)]).ok()?;
            }
            _ => return None,
        }
        stream.set_read_timeout(Some(TICK)).ok()?;
    }
}

fn length(stream: &mut TcpStream) -> Option<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).ok()?;
    Some(u64::from_be_bytes(bytes))
}

/// Reads `len` bytes and compares them with the pattern.
fn receive(stream: &mut TcpStream, len: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    while at < len {
        let room = buffer.len().min((len - at) as usize);
        let got = stream.read(&mut buffer[..room])?;
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the other end closed after {at} bytes")));
        }
        if buffer[..got] != chunk(at, got) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("wrong bytes after {at}")));
        }
        at += got as u64;
    }
    Ok(())
}

/// Answers come from the address that was asked: a VIP, in modes that keep it.
fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    use std::{
        io::{IoSlice, IoSliceMut},
        os::fd::AsRawFd,
    };

    use nix::{
        libc::{in_pktinfo, in6_pktinfo},
        sys::socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
        },
    };
    if socket.local_addr().is_ok_and(|address| address.is_ipv4()) {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true).expect("IP_PKTINFO");
    } else {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true).expect("IPV6_RECVPKTINFO");
    }
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        let mut control = nix::cmsg_space!(in6_pktinfo, in_pktinfo);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty());
        let Ok(message) = got else { continue };
        let (len, from) = (message.bytes, message.address);
        let asked = message.cmsgs().ok().and_then(|mut messages| {
            messages
                .find(|m| matches!(m, ControlMessageOwned::Ipv4PacketInfo(_) | ControlMessageOwned::Ipv6PacketInfo(_)))
        });
        // The answer is as long as the question: name, then the question's bytes behind it.
        let mut answer = name.as_bytes().to_vec();
        answer.push(0);
        answer.extend(&buffer[..len]);
        answer.truncate(len.max(name.len() + 1));
        let slices = [IoSlice::new(&answer)];
        let send = |control: &[ControlMessage<'_>]| {
            sendmsg(socket.as_raw_fd(), &slices, control, MsgFlags::empty(), from.as_ref()).ok();
        };
        match asked {
            Some(ControlMessageOwned::Ipv4PacketInfo(info)) => {
                let source = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: info.ipi_addr, ipi_addr: info.ipi_addr };
                send(&[ControlMessage::Ipv4PacketInfo(&source)]);
            }
            Some(ControlMessageOwned::Ipv6PacketInfo(info)) => {
                let source = in6_pktinfo { ipi6_addr: info.ipi6_addr, ipi6_ifindex: 0 };
                send(&[ControlMessage::Ipv6PacketInfo(&source)]);
            }
            _ => send(&[]),
        }
    }
}

/// A client's connection.
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects from inside `netns`.
    pub fn open(netns: &str, to: SocketAddr) -> io::Result<Self> {
        let stream = within(netns, || TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Its own end.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Asks the server for its name.
    pub fn name(&mut self) -> io::Result<String> {
        self.stream.write_all(b"N")?;
        let mut len = [0];
        self.stream.read_exact(&mut len)?;
        let mut name = vec![0; usize::from(len[0])];
        self.stream.read_exact(&mut name)?;
        String::from_utf8(name).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Downloads `len` bytes and compares them.
    pub fn download(&mut self, len: u64) -> io::Result<()> {
        self.stream.write_all(&[&b"D"[..], &len.to_be_bytes()].concat())?;
        receive(&mut self.stream, len)
    }

    /// Uploads `len` bytes; fails unless the server confirms them.
    pub fn upload(&mut self, len: u64) -> io::Result<()> {
        self.stream.write_all(&[&b"U"[..], &len.to_be_bytes()].concat())?;
        let mut at = 0;
        while at < len {
            let bytes = chunk(at, (len - at).min(1 << 16) as usize);
            self.stream.write_all(&bytes)?;
            at += bytes.len() as u64;
        }
        let mut right = [0];
        self.stream.read_exact(&mut right)?;
        if right == [1] {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the server saw wrong bytes"))
        }
    }
}

/// Sends one datagram of `len` bytes from inside `netns` and returns the name of the server that answered with the same
/// bytes. Repeats nothing: a lost datagram is an error.
pub fn datagram(netns: &str, to: SocketAddr, len: usize) -> io::Result<String> {
    let from: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = within(netns, || UdpSocket::bind(from))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(to)?;
    let question = chunk(0, len);
    socket.send(&question)?;
    let mut answer = vec![0; 1 << 16];
    let got = socket.recv(&mut answer)?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "the answer holds other bytes than the question");
    let end = answer[..got].iter().position(|byte| *byte == 0).ok_or_else(wrong)?;
    if answer[end + 1..got] != question[..got - end - 1] {
        return Err(wrong());
    }
    String::from_utf8(answer[..end].to_vec()).map_err(|_| wrong())
}

#[test]
fn sessions_carry_what_they_should() {
    let server = Server::start("/proc/self/ns/net", 47_123, "here");
    for address in ["127.0.0.1:47123", "[::1]:47123"] {
        let to: SocketAddr = address.parse().expect("address");
        let mut connection = Connection::open("/proc/self/ns/net", to).expect("connect");
        assert_eq!(connection.name().expect("name"), "here");
        connection.download(300_000).expect("download");
        connection.upload(300_000).expect("upload");
        assert_eq!(datagram("/proc/self/ns/net", to, 900).expect("datagram"), "here");
    }
    drop(server);
    assert!(Connection::open("/proc/self/ns/net", "127.0.0.1:47123".parse().expect("address")).is_err());
}
