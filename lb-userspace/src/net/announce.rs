//! VIPs on an interface: put there, announced, and taken away again.
//!
//! Owns the addresses that carry [`PROTOCOL`] on one interface and a packet socket. Refuses to know services. Invariants:
//! only addresses that weir added are ever removed (they carry a mark in `IFA_PROTO`; kernels before 5.18 keep none, there
//! the caller's list and this process's memory stand in); an address that was there before is announced and left alone; IPv6
//! addresses skip duplicate detection and are deprecated, so that the node never picks a VIP as its own source address.
//!
//! Announcements are sent at once and after [`REPEATS`], because frames get lost, and again whenever the interface comes back
//! or its MAC changes. Needs CAP_NET_RAW to start and CAP_NET_ADMIN throughout.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, CacheInfo},
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use rtnetlink::{Handle, MulticastGroup};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    frame,
    interface::{self, Interface},
    netlink::{Connection, Error, Notice, errno},
};

/// Mark of our addresses (`IFA_PROTO`), shown by `ip -d address` as `proto 0x77`.
pub const PROTOCOL: u8 = 0x77;
/// When announcements are sent after the first one.
pub const REPEATS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// Time between two looks at whether all addresses are still there.
const CHECK: Duration = Duration::from_secs(30);
/// Time from a change of the interface's addresses to the look at them.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Pause before a lost connection is opened again.
const RECONNECT: Duration = Duration::from_secs(1);
/// Lifetime of an address without end.
const FOREVER: u32 = u32::MAX;

/// What [`Announcer::set`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Addresses added.
    pub added: Vec<IpAddr>,
    /// Addresses removed.
    pub removed: Vec<IpAddr>,
    /// Addresses that could not be added or removed, and why. Adding is tried again every 30 s.
    pub failed: Vec<(IpAddr, String)>,
}

struct Request {
    wanted: BTreeSet<IpAddr>,
    done: oneshot::Sender<Result<Changes, Error>>,
}

/// Handle of the loop; dropping it ends the loop and leaves the addresses where they are.
#[derive(Debug)]
pub struct Announcer {
    requests: mpsc::Sender<Request>,
    task: JoinHandle<()>,
}

impl Announcer {
    /// Starts on `interface`, in the network namespace of the calling thread, without changing anything yet: call
    /// [`Announcer::set`] next. `previous` are VIPs that an earlier agent may have added, for kernels without `IFA_PROTO`;
    /// give what the pinned maps say, or nothing.
    ///
    /// # Errors
    /// [`Error::Socket`] (CAP_NET_RAW is missing), [`Error::NoInterface`], [`Error::NotEthernet`].
    pub async fn start(interface: &str, previous: BTreeSet<IpAddr>) -> Result<Self, Error> {
        let packets =
            socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
                .map_err(|errno| Error::Socket { what: "packet", source: errno.into() })?;
        let connection = open()?;
        let found = interface::by_name(&connection.handle, interface).await?;
        if found.mac.is_none() {
            return Err(Error::NotEthernet(interface.into()));
        }
        let (requests, inbox) = mpsc::channel(1);
        let state = Loop {
            interface: interface.into(),
            packets,
            inbox,
            wanted: BTreeSet::new(),
            ours: previous,
            set_once: false,
            last: Some((found.ifindex, found.mac, found.up)),
            said: BTreeSet::new(),
            due: BTreeMap::new(),
        };
        Ok(Self { requests, task: tokio::spawn(state.run(connection)) })
    }

    /// Makes `vips` the set of addresses that weir holds on the interface: adds and announces those that are missing,
    /// removes those of ours that are not in it. Idempotent.
    ///
    /// # Errors
    /// [`Error::Ended`], or that the interface's addresses could not be read. Single addresses fail in
    /// [`Changes::failed`].
    pub async fn set(&self, vips: BTreeSet<IpAddr>) -> Result<Changes, Error> {
        let (done, answer) = oneshot::channel();
        self.requests.send(Request { wanted: vips, done }).await.map_err(|_| Error::Ended)?;
        answer.await.map_err(|_| Error::Ended)?
    }

    /// Removes every address that weir added; the same as setting none.
    ///
    /// # Errors
    /// As [`Announcer::set`].
    pub async fn withdraw(&self) -> Result<Changes, Error> {
        self.set(BTreeSet::new()).await
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn open() -> Result<Connection, Error> {
    Connection::open(&[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr])
}

/// An address on the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Present {
    address: IpAddr,
    prefix_len: u8,
    /// Carries our mark.
    marked: bool,
}

impl Present {
    /// Whether weir may remove it.
    fn is_ours(&self, ours: &BTreeSet<IpAddr>) -> bool {
        let host = if self.address.is_ipv4() { 32 } else { 128 };
        self.prefix_len == host && (self.marked || ours.contains(&self.address))
    }
}

/// What is to be added and removed.
fn difference(wanted: &BTreeSet<IpAddr>, present: &[Present], ours: &BTreeSet<IpAddr>) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let there: BTreeSet<IpAddr> = present.iter().map(|present| present.address).collect();
    let add = wanted.difference(&there).copied().collect();
    let remove = present
        .iter()
        .filter(|present| present.is_ours(ours) && !wanted.contains(&present.address))
        .map(|present| present.address)
        .collect();
    (add, remove)
}

struct Loop {
    interface: String,
    packets: OwnedFd,
    inbox: mpsc::Receiver<Request>,
    wanted: BTreeSet<IpAddr>,
    /// Addresses that this process added, or that the caller says an earlier one did.
    ours: BTreeSet<IpAddr>,
    /// Before the first set nothing is removed or added.
    set_once: bool,
    /// Index, MAC and state of the interface when last seen.
    last: Option<(u32, Option<[u8; 6]>, bool)>,
    /// Addresses that have been announced since the interface last came up.
    said: BTreeSet<IpAddr>,
    /// Announcements to come.
    due: BTreeMap<Instant, BTreeSet<IpAddr>>,
}

impl Loop {
    async fn run(mut self, connection: Connection) {
        let mut connection = Some(connection);
        loop {
            let ended = match connection.take().map_or_else(open, Ok) {
                Ok(connection) => self.follow(connection).await,
                Err(error) => Err(error),
            };
            match ended {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "announcements: netlink connection lost, opening another"),
            }
            sleep(RECONNECT).await;
        }
    }

    /// Follows one connection; `Ok` when the handle is gone.
    async fn follow(&mut self, mut connection: Connection) -> Result<(), Error> {
        let mut check_at = Instant::now() + CHECK;
        loop {
            let announce_at = self.due.keys().next().copied();
            tokio::select! {
                request = self.inbox.recv() => {
                    let Some(Request { wanted, done }) = request else { return Ok(()) };
                    self.wanted = wanted;
                    self.set_once = true;
                    let changes = self.ensure(&connection.handle).await;
                    // Whoever asked may have gone; the work is done all the same.
                    let _ = done.send(changes);
                }
                notice = connection.notice() => match notice {
                    Some(Notice::Message(message)) if !self.concerns_us(&message) => {}
                    Some(_) => check_at = check_at.min(Instant::now() + DEBOUNCE),
                    None => return Err(Error::Ended),
                },
                () = sleep_until(check_at) => {
                    check_at = Instant::now() + CHECK;
                    if self.set_once && let Err(error) = self.ensure(&connection.handle).await {
                        tracing::warn!(interface = %self.interface, %error, "cannot keep the VIPs on the interface");
                    }
                }
                () = sleep_until(announce_at.unwrap_or_else(Instant::now)), if announce_at.is_some() => self.announce_due(),
            }
        }
    }

    /// Whether the addresses must be looked at after this message; remembers that the interface was down, however short.
    fn concerns_us(&mut self, message: &RouteNetlinkMessage) -> bool {
        let ifindex = self.last.map(|(ifindex, ..)| ifindex);
        match message {
            RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message) => {
                let link = Interface::from_message(message);
                let ours = link.name == self.interface || Some(link.ifindex) == ifindex;
                if ours && !link.up {
                    self.last = Some((link.ifindex, link.mac, false));
                }
                ours
            }
            RouteNetlinkMessage::DelAddress(message) => Some(message.header.index) == ifindex,
            _ => false,
        }
    }

    /// Brings the interface's addresses in line, and plans announcements for what is new or must be said again.
    async fn ensure(&mut self, handle: &Handle) -> Result<Changes, Error> {
        let link = interface::by_name(handle, &self.interface).await?;
        let seen = (link.ifindex, link.mac, link.up);
        let came_back = link.up && self.last != Some(seen);
        self.last = Some(seen);

        let present = read(handle, link.ifindex).await?;
        let (add, remove) = difference(&self.wanted, &present, &self.ours);
        let mut changes = Changes::default();
        for address in remove {
            let message = request(link.ifindex, address);
            match handle.address().del(message).execute().await {
                Ok(()) => {}
                Err(error) if errno(&error) == Some(libc::EADDRNOTAVAIL) => {}
                Err(error) => {
                    changes.failed.push((address, Error::from_rtnetlink("remove the address", &error).to_string()));
                    continue;
                }
            }
            self.ours.remove(&address);
            changes.removed.push(address);
        }
        for address in add {
            let mut add = handle.address().add(link.ifindex, address, 0);
            *add.message_mut() = request(link.ifindex, address);
            match add.execute().await {
                Ok(()) => {
                    self.ours.insert(address);
                    changes.added.push(address);
                }
                // Somebody was faster: it is there, and it is theirs.
                Err(error) if errno(&error) == Some(libc::EEXIST) => {}
                Err(error) => {
                    changes.failed.push((address, Error::from_rtnetlink("add the address", &error).to_string()));
                }
            }
        }
        for (address, error) in &changes.failed {
            tracing::warn!(%address, interface = %self.interface, %error, "VIP");
        }
        if came_back {
            self.said.clear();
        }
        self.said.retain(|address| self.wanted.contains(address) && !changes.added.contains(address));
        self.due.values_mut().for_each(|addresses| addresses.retain(|address| self.wanted.contains(address)));
        let failed: BTreeSet<IpAddr> = changes.failed.iter().map(|(address, _)| *address).collect();
        let say: BTreeSet<IpAddr> =
            self.wanted.difference(&self.said).filter(|address| !failed.contains(*address)).copied().collect();
        self.said.extend(say.iter().copied());
        self.plan(say);
        Ok(changes)
    }

    fn plan(&mut self, addresses: BTreeSet<IpAddr>) {
        if addresses.is_empty() {
            return;
        }
        let now = Instant::now();
        for after in [Duration::ZERO].into_iter().chain(REPEATS) {
            self.due.entry(now + after).or_default().extend(addresses.iter().copied());
        }
    }

    fn announce_due(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.due.first_entry().filter(|entry| *entry.key() <= now) {
            let addresses = entry.remove();
            let Some((ifindex, Some(mac), true)) = self.last else { continue };
            for address in addresses {
                if let Err(error) = send(&self.packets, ifindex, &frame::announcement(address, mac)) {
                    tracing::warn!(%address, interface = %self.interface, %error, "cannot announce the VIP");
                }
            }
        }
    }
}

/// The address as we put it there; also what identifies it for removal.
fn request(ifindex: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = ifindex;
    message.header.family = match address {
        IpAddr::V4(_) => netlink_packet_route::AddressFamily::Inet,
        IpAddr::V6(_) => netlink_packet_route::AddressFamily::Inet6,
    };
    message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)),
    ];
    if address.is_ipv6() {
        let mut lifetimes = CacheInfo::default();
        (lifetimes.ifa_preferred, lifetimes.ifa_valid) = (0, FOREVER);
        message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
    }
    message
}

async fn read(handle: &Handle, ifindex: u32) -> Result<Vec<Present>, Error> {
    let messages: Vec<AddressMessage> = handle
        .address()
        .get()
        .set_link_index_filter(ifindex)
        .execute()
        .try_collect()
        .await
        .map_err(|error| Error::from_rtnetlink("list the addresses", &error))?;
    Ok(messages.iter().filter(|message| message.header.index == ifindex).filter_map(present).collect())
}

fn present(message: &AddressMessage) -> Option<Present> {
    let (mut local, mut address, mut marked) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Protocol(protocol) => marked = u8::from(*protocol) == PROTOCOL,
            _ => {}
        }
    }
    // On point-to-point links `Address` is the peer; IPv6 gives only `Address` elsewhere.
    Some(Present { address: local.or(address)?, prefix_len: message.header.prefix_len, marked })
}

/// Sends one frame out of an interface. The socket never blocks: a full queue loses the frame, which the repeats make up for.
fn send(socket: &OwnedFd, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: all bytes zero is a valid `sockaddr_ll`: it holds only integers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(frame.get(..6).ok_or(io::ErrorKind::InvalidInput)?);
    // SAFETY: `frame` and `to` outlive the call and the lengths are theirs; the descriptor is open while `socket` lives.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().expect("address")).collect()
    }

    fn there(text: &str, marked: bool) -> Present {
        let (address, prefix_len) = text.split_once('/').expect("prefix");
        Present { address: address.parse().expect("address"), prefix_len: prefix_len.parse().expect("length"), marked }
    }

    #[test]
    fn differences() {
        for (what, wanted, present, ours, add, remove) in [
            ("first start", set(&["192.0.2.1", "fd00::1"]), vec![], set(&[]), set(&["192.0.2.1", "fd00::1"]), set(&[])),
            ("again", set(&["192.0.2.1"]), vec![there("192.0.2.1/32", true)], set(&[]), set(&[]), set(&[])),
            (
                "marked by an earlier agent, wanted no more",
                set(&[]),
                vec![there("192.0.2.1/32", true), there("fd00::1/128", true)],
                set(&[]),
                set(&[]),
                set(&["192.0.2.1", "fd00::1"]),
            ),
            (
                "an old kernel keeps no mark",
                set(&[]),
                vec![there("192.0.2.1/32", false), there("192.0.2.2/32", false)],
                set(&["192.0.2.1"]),
                set(&[]),
                set(&["192.0.2.1"]),
            ),
            (
                "the operator's own addresses stay",
                set(&["192.0.2.9"]),
                vec![there("192.0.2.9/24", false), there("192.0.2.10/24", false)],
                set(&["192.0.2.10"]),
                set(&[]),
                set(&[]),
            ),
        ] {
            let (got_add, got_remove) = difference(&wanted, &present, &ours);
            assert_eq!(got_add.into_iter().collect::<BTreeSet<_>>(), add, "{what}: add");
            assert_eq!(got_remove.into_iter().collect::<BTreeSet<_>>(), remove, "{what}: remove");
        }
    }

    #[test]
    fn requests_carry_the_mark_and_read_back_as_ours() {
        for address in set(&["192.0.2.1", "fd00::1"]) {
            let got = present(&request(3, address)).expect("an address");
            assert_eq!(got.address, address);
            assert!(got.is_ours(&BTreeSet::new()));
        }
    }
}
