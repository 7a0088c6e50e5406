//! Real datagrams: a host sends them in tunnels, another takes them out with `weir decap` and answers directly.

use std::{
    fs::File,
    io,
    net::{IpAddr, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use ipnet::IpNet;
use lb_userspace::decap::{self, DecapError, Mode, Request, Status};
use nix::sched::{CloneFlags, setns};

use crate::{
    frame::{MAC_A, MAC_B, datagram, tunnel},
    privileged,
};

/// Two network namespaces with a veth pair between them; gone when dropped.
struct Pair {
    names: [String; 2],
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn mac(octets: [u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

impl Pair {
    fn new(tag: &str) -> Self {
        let name = |side| format!("wdecap-{}-{tag}-{side}", std::process::id());
        let pair = Self { names: [name("a"), name("b")] };
        let [a, b] = &pair.names;
        for name in &pair.names {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        ip(&format!(
            "link add veth0 netns {a} address {} type veth peer name veth0 netns {b} address {}",
            mac(MAC_A),
            mac(MAC_B)
        ));
        for (name, host) in [(a, 1), (b, 2)] {
            ip(&format!("-n {name} link set veth0 up"));
            ip(&format!("-n {name} addr add 10.9.0.{host}/24 dev veth0"));
            ip(&format!("-n {name} addr add fd09::{host}/64 dev veth0 nodad"));
        }
        ip(&format!("-n {b} addr add 192.0.2.80/32 dev lo"));
        ip(&format!("-n {b} addr add 2001:db8::80/128 dev lo nodad"));
        ip(&format!("-n {a} route add 192.0.2.80/32 via 10.9.0.2"));
        ip(&format!("-n {a} route add 2001:db8::80/128 via fd09::2"));
        pair
    }

    /// Runs `f` on a thread inside one of the namespaces.
    fn inside<T: Send>(&self, side: usize, f: impl FnOnce() -> T + Send) -> T {
        let path = format!("/var/run/netns/{}", self.names[side]);
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(File::open(path).expect("the namespace exists"), CloneFlags::CLONE_NEWNET)
                    .expect("it can be entered");
                f()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn decap<T: Send>(&self, f: impl AsyncFnOnce() -> T + Send) -> T {
        self.inside(1, || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(f())
        })
    }

    fn attach(&self, mode: Option<Mode>, vips: &[&str]) -> Result<Status, DecapError> {
        let request = Request {
            interface: "veth0".into(),
            vips: vips.iter().map(|vip| vip.parse().expect("a prefix")).collect::<Vec<IpNet>>(),
            sources: decap::default_sources(),
            mode,
        };
        self.decap(async || decap::attach(&request).await)
    }

    fn status(&self) -> Result<Status, DecapError> {
        self.decap(async || decap::status("veth0").await)
    }

    fn detach(&self) -> Result<(), DecapError> {
        self.decap(async || decap::detach("veth0").await)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if thread::panicking() {
            let _not_attached = self.detach();
        }
        for name in &self.names {
            let _gone = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

/// Puts a frame on the wire of `veth0` in the current namespace.
fn transmit(frame: &[u8]) {
    // SAFETY: plain system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the name is a C string.
    let index = unsafe { libc::if_nametoindex(c"veth0".as_ptr()) };
    // SAFETY: all zeros is a valid address of this type.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: both pointers come with the lengths of what they point to.
    let sent = unsafe {
        libc::sendto(
            fd,
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    let error = io::Error::last_os_error();
    // SAFETY: the descriptor is ours and not used again.
    unsafe { libc::close(fd) };
    assert_eq!(sent, frame.len() as isize, "{error}");
}

const PAIRS: [[&str; 4]; 4] = [
    ["198.18.7.9", "10.9.0.2", "10.9.0.1", "192.0.2.80"],
    ["198.18.7.9", "10.9.0.2", "fd09::1", "2001:db8::80"],
    ["100::7:9", "fd09::2", "10.9.0.1", "192.0.2.80"],
    ["100::7:9", "fd09::2", "fd09::1", "2001:db8::80"],
];
const VIPS: [&str; 2] = ["192.0.2.80/32", "2001:db8::/64"];

/// Sends one datagram through the tunnel and says whether the answer came back from the VIP.
fn answered(pair: &Pair, [source, host, client, vip]: [&str; 4], wait: Duration) -> bool {
    let [source, host, client, vip]: [IpAddr; 4] = [source, host, client, vip].map(|a| a.parse().expect("an address"));
    let server = pair.inside(1, || UdpSocket::bind((vip, 8080)).expect("the VIP is local"));
    let socket = pair.inside(0, || UdpSocket::bind((client, 0)).expect("the address is local"));
    server.set_read_timeout(Some(wait)).expect("a time-out");
    socket.set_read_timeout(Some(wait)).expect("a time-out");
    let port = socket.local_addr().expect("bound").port();
    pair.inside(0, || transmit(&tunnel(source, host, &datagram((client, port), (vip, 8080), 0, b"ping"), 0)));
    let mut room = [0; 64];
    let Ok((len, peer)) = server.recv_from(&mut room) else { return false };
    assert_eq!((&room[..len], peer.ip(), peer.port()), (&b"ping"[..], client, port));
    server.send_to(b"pong", peer).expect("the answer leaves");
    let (len, from) = socket.recv_from(&mut room).expect("the answer arrives");
    assert_eq!((&room[..len], from.ip(), from.port()), (&b"pong"[..], vip, 8080));
    true
}

fn serves(mode: Mode, tag: &str) {
    if !privileged() {
        return;
    }
    let pair = Pair::new(tag);
    let long = Duration::from_secs(5);
    let short = Duration::from_millis(100);
    assert!(!answered(&pair, PAIRS[0], short), "the kernel itself decapsulates: nothing is tested");

    let status = pair.attach(Some(mode), &VIPS).expect("it attaches");
    assert_eq!((status.mode, status.vips.len()), (mode, 2));
    for addresses in PAIRS {
        assert!(answered(&pair, addresses, long), "{mode:?} {addresses:?}");
    }
    assert!(!answered(&pair, ["192.0.2.1", "10.9.0.2", "10.9.0.1", "192.0.2.80"], short), "a stranger is refused");

    let status = pair.status().expect("it is attached");
    assert_eq!(status.packets["decapsulated"], 4);
    assert_eq!(status.packets["refused_source"], 1);
    assert_eq!(status.packets["malformed"] + status.packets["failed"], 0);

    // Replaced in place by narrower rules, with counters of its own.
    let status = pair.attach(Some(mode), &["192.0.2.81/32"]).expect("it is replaced");
    assert_eq!(status.packets["decapsulated"], 0);
    assert!(!answered(&pair, PAIRS[0], short), "no longer a VIP");
    assert_eq!(pair.status().expect("it is attached").packets["refused_inner"], 1);

    pair.detach().expect("it detaches");
    assert!(matches!(pair.status(), Err(DecapError::NotAttached { .. })));
    assert!(matches!(pair.detach(), Err(DecapError::NotAttached { .. })));
}

#[test]
fn native_xdp_serves() {
    serves(Mode::Native, "n");
}

#[test]
fn generic_xdp_serves() {
    serves(Mode::Generic, "g");
}

#[test]
fn tc_serves() {
    serves(Mode::Tc, "t");
}

#[test]
fn auto_takes_native_and_other_modes_replace_it() {
    if !privileged() {
        return;
    }
    let pair = Pair::new("m");
    assert_eq!(pair.attach(None, &[]).expect("it attaches").mode, Mode::Native);
    for mode in [Mode::Tc, Mode::Generic, Mode::Native] {
        assert_eq!(pair.attach(Some(mode), &VIPS).expect("it changes hooks").mode, mode);
        assert!(answered(&pair, PAIRS[0], Duration::from_secs(5)), "{mode:?}");
    }
    // The interface is free the moment the old hook is gone: a device cannot carry native and generic XDP together.
    for round in 0..6 {
        for mode in [Mode::Generic, Mode::Native] {
            let status = pair.attach(Some(mode), &VIPS).unwrap_or_else(|e| panic!("round {round}, {mode:?}: {e}"));
            assert_eq!(status.mode, mode);
        }
    }
    pair.detach().expect("it detaches");
}

#[test]
fn mistakes_are_named() {
    if !privileged() {
        return;
    }
    let pair = Pair::new("e");
    let missing = pair.decap(async || decap::status("nothing0").await);
    assert!(matches!(missing, Err(DecapError::NoInterface { interface }) if interface == "nothing0"));
    ip(&format!("-n {} addr flush dev veth0", pair.names[1]));
    assert!(matches!(pair.attach(None, &VIPS), Err(DecapError::NoAddress { .. })));
    // What only passes needs no address.
    pair.attach(None, &[]).expect("it attaches");
    pair.detach().expect("it detaches");
}
