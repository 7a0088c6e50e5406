//! Queries and answers over UDP.
//!
//! Invariants: an answer leaves from the address that was asked, also on a socket that is bound to every address; one query
//! costs at most one answer, which is never waited for; a flood does not keep the thread from other work.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket as StdSocket},
    os::fd::AsRawFd as _,
    sync::Arc,
};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::Shared;
use crate::dns::{
    answer::{self, Outcome, Transport},
    limit::Verdict,
};

/// Longest query that is read, in bytes; questions are short, and what is cut off is malformed.
const QUERY_BYTES_MAX: usize = 4096;
/// Queries that are answered before other tasks have a turn.
const BATCH: usize = 64;
/// Bytes that the kernel may hold for queries that were not read yet: about a tenth of a second of a flood.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A socket bound to `address`.
pub(super) fn bind(address: SocketAddr) -> io::Result<StdSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The kernel gives what its limit allows; less is no reason not to serve.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A socket that knows which of this machine's addresses a query was sent to.
pub(super) struct Datagrams {
    socket: UdpSocket,
}

/// A query's two ends.
struct Ends {
    client: SocketAddr,
    asked: Option<IpAddr>,
}

impl Datagrams {
    pub(super) fn new(socket: StdSocket) -> io::Result<Self> {
        if socket.local_addr()?.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        Ok(Self { socket: UdpSocket::from_std(socket)? })
    }

    /// The next query, if one is there.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Option<Ends>)> {
        self.socket.try_io(Interest::READABLE, || {
            let mut control = nix::cmsg_space!(libc::in6_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            )?;
            let asked = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes())),
                ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
                _ => None,
            });
            let client = message.address.as_ref().and_then(address);
            Ok((message.bytes, client.map(|client| Ends { client, asked })))
        })
    }

    fn send(&self, bytes: &[u8], ends: &Ends) -> io::Result<usize> {
        let target = SockaddrStorage::from(ends.client);
        let parts = [IoSlice::new(bytes)];
        let fd = self.socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        self.socket.try_io(Interest::WRITABLE, || {
            let sent = match ends.asked {
                Some(IpAddr::V4(asked)) => {
                    let source = libc::in_addr { s_addr: u32::from_ne_bytes(asked.octets()) };
                    let nowhere = libc::in_addr { s_addr: 0 };
                    let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: nowhere };
                    sendmsg(fd, &parts, &[ControlMessage::Ipv4PacketInfo(&info)], flags, Some(&target))
                }
                Some(IpAddr::V6(asked)) => {
                    let source = libc::in6_addr { s6_addr: asked.octets() };
                    let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
                    sendmsg(fd, &parts, &[ControlMessage::Ipv6PacketInfo(&info)], flags, Some(&target))
                }
                None => sendmsg(fd, &parts, &[], flags, Some(&target)),
            };
            Ok(sent?)
        })
    }
}

fn address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    // The scope of a link-local client must go back with the answer.
    address
        .as_sockaddr_in6()
        .map(|v6| std::net::SocketAddrV6::new(v6.ip(), v6.port(), v6.flowinfo(), v6.scope_id()).into())
}

/// Answers until the task is dropped.
pub(super) async fn serve(socket: Datagrams, shared: Arc<Shared>) {
    let mut buffer = vec![0; QUERY_BYTES_MAX];
    loop {
        if let Err(error) = socket.socket.readable().await {
            tracing::error!(%error, "cannot wait for queries");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            continue;
        }
        for _ in 0..BATCH {
            match socket.receive(&mut buffer) {
                Ok((length, Some(ends))) => reply(&socket, buffer.get(..length).unwrap_or_default(), &ends, &shared),
                Ok((_, None)) => shared.metrics.dropped("unanswerable"),
                // An error that belongs to an earlier answer (its client's port is closed) ends here too.
                Err(_) => break,
            }
        }
        tokio::task::yield_now().await;
    }
}

fn reply(socket: &Datagrams, query: &[u8], ends: &Ends, shared: &Shared) {
    let client = ends.client.ip();
    // Port 0 cannot be answered; the rest of such queries is reflection.
    if ends.client.port() == 0 {
        return shared.metrics.dropped("unanswerable");
    }
    let answer = match shared.answer(query, client, Transport::Udp) {
        Outcome::Silence => return shared.metrics.dropped("unanswerable"),
        Outcome::Answer(answer) => answer,
    };
    let Some(message) = answer.messages.first() else { return };
    let bytes = match shared.limit(client, answer.kind) {
        Verdict::Send => None,
        Verdict::Truncate => match answer::truncated(message) {
            Some(bytes) => Some(bytes),
            None => return shared.metrics.dropped("limit"),
        },
        Verdict::Drop => return shared.metrics.dropped("limit"),
    };
    match socket.send(bytes.as_ref().unwrap_or(message), ends) {
        Ok(_) => shared.metrics.answered("udp", &answer.rcode.to_string()),
        Err(error) => {
            tracing::debug!(%error, client = %ends.client, "an answer could not be sent");
            shared.metrics.dropped("send");
        }
    }
}
