//! Next hops and announcements against the real kernel, in network namespaces of this test's own.
//!
//! Each test makes a node and a peer joined by a veth pair, and works in a thread that entered the node's namespace. Needs
//! root; without it the tests say so and pass, except in CI (`CI` set), where a missing capability is a failure.

use std::{
    collections::BTreeSet,
    fs::File,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lb_userspace::net::{Announcer, Cause, Resolution, Resolver, interface::Links, offload};
use nix::sched::{CloneFlags, setns};

const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Longest wait for anything that is expected to happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a command in words; its failure is the test's.
fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("a command"))
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether network namespaces can be made here.
fn may_run() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "root is required in CI");
    println!("skipped: network namespaces need root");
    false
}

/// A node (`eth0`, 10.77.0.1, fd77::1) and a peer (`eth0`, 10.77.0.2, fd77::2), removed on drop.
struct Pair {
    node: String,
    peer: String,
}

impl Pair {
    fn new(name: &str) -> Self {
        let pair = Self { node: format!("wnh-{name}-n"), peer: format!("wnh-{name}-p") };
        pair.remove();
        for namespace in [&pair.node, &pair.peer] {
            run(&format!("ip netns add {namespace}"));
            run(&format!("ip -n {namespace} link set lo up"));
        }
        run(&format!("ip -n {} link add eth0 type veth peer name eth0 netns {}", pair.node, pair.peer));
        for (namespace, mac, host) in [(&pair.node, NODE_MAC, 1), (&pair.peer, PEER_MAC, 2)] {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            run(&format!("ip -n {namespace} link set eth0 address {mac} up"));
            run(&format!("ip -n {namespace} address add 10.77.0.{host}/24 dev eth0"));
            run(&format!("ip -n {namespace} address add fd77::{host}/64 dev eth0 nodad"));
        }
        pair
    }

    fn node(&self, ip: &str) {
        run(&format!("ip -n {} {ip}", self.node));
    }

    fn peer(&self, ip: &str) {
        run(&format!("ip -n {} {ip}", self.peer));
    }

    fn remove(&self) {
        for namespace in [&self.node, &self.peer] {
            // Not there is what the first run expects.
            let _ = Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status();
        }
    }

    /// Runs `work` on a tokio runtime in a thread that lives in the node's namespace.
    fn in_node<F: Future<Output = ()>>(&self, work: impl FnOnce() -> F + Send) {
        std::thread::scope(|scope| {
            let thread =
                scope.spawn(|| {
                    enter(&self.node);
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(
                        async { tokio::time::timeout(Duration::from_secs(60), work()).await.expect("in time") },
                    );
                });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// Opens a packet socket on the peer's interface.
    fn sniffer(&self) -> socket2::Socket {
        let namespace = self.peer.clone();
        std::thread::spawn(move || {
            enter(&namespace);
            let all = i32::from((libc::ETH_P_ALL as u16).to_be());
            let kind = socket2::Type::RAW;
            let socket = socket2::Socket::new(socket2::Domain::PACKET, kind, Some(all.into())).expect("packet socket");
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
            socket
        })
        .join()
        .expect("thread")
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.remove();
    }
}

fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).expect("namespace");
    setns(&file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| panic!("setns {}: {error}", file.as_raw_fd()));
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

/// Waits until the resolution of `address` is as wanted.
async fn until(resolver: &Resolver, address: &str, what: &str, wanted: impl Fn(&Resolution) -> bool) -> Resolution {
    let mut table = resolver.table();
    let found = tokio::time::timeout(PATIENCE, table.wait_for(|table| table.get(&ip(address)).is_some_and(&wanted)));
    match found.await {
        Ok(Ok(table)) => table.get(&ip(address)).cloned().expect("just seen"),
        _ => panic!("{what}: {address} is {:?}", resolver.table().borrow().get(&ip(address))),
    }
}

fn goes_to(mac: [u8; 6]) -> impl Fn(&Resolution) -> bool {
    move |resolution| resolution.next_hop().is_some_and(|hop| hop.dst_mac == mac && hop.src_mac == NODE_MAC)
}

#[test]
fn next_hops_follow_the_kernel() {
    if !may_run() {
        return;
    }
    let pair = Pair::new("hops");
    pair.node("route add 10.88.0.0/16 via 10.77.0.2");
    pair.node("route add fd88::/16 via fd77::2");
    pair.node("route add 10.89.0.0/16 via 10.77.0.2 mtu 1400");
    pair.node("route add blackhole 10.90.0.0/16");
    pair.node("route add unreachable fd90::/16");
    pair.in_node(|| async {
        let resolver = Resolver::start().expect("start");
        resolver.set_destinations(ips(&[
            "10.77.0.2",
            "fd77::2",
            "10.88.0.9",
            "fd88::9",
            "10.89.0.9",
            "10.90.0.9",
            "fd90::9",
            "10.91.0.9",
            "10.77.0.1",
            "10.77.0.66",
            "10.77.0.255",
        ]));
        for (address, gateway, mtu) in [
            ("10.77.0.2", None, 1500),
            ("fd77::2", None, 1500),
            ("10.88.0.9", Some("10.77.0.2"), 1500),
            ("fd88::9", Some("fd77::2"), 1500),
            ("10.89.0.9", Some("10.77.0.2"), 1400),
        ] {
            let got = until(&resolver, address, "resolved without any traffic", goes_to(PEER_MAC)).await;
            let Resolution::Resolved { next_hop, gateway: via, interface } = got else { unreachable!() };
            assert_eq!((via, next_hop.mtu, interface.as_str()), (gateway.map(ip), mtu, "eth0"), "{address}");
        }
        for (address, cause) in [
            ("10.90.0.9", Cause::Blackhole),
            ("fd90::9", Cause::Unreachable),
            ("10.91.0.9", Cause::NoRoute),
            ("10.77.0.1", Cause::Local),
            ("10.77.0.255", Cause::NotUnicast),
        ] {
            until(&resolver, address, "a typed cause", |got| *got == Resolution::Unresolved(cause.clone())).await;
        }
        let silent = Cause::NeighbourFailed { neighbour: ip("10.77.0.66"), interface: "eth0".into() };
        until(&resolver, "10.77.0.66", "nobody answers", |got| *got == Resolution::Unresolved(silent.clone())).await;

        // The silent one comes to life, the peer gets another MAC, a route appears, the link goes and comes.
        pair.peer("address add 10.77.0.66/24 dev eth0");
        until(&resolver, "10.77.0.66", "a failed neighbour that answers at last", goes_to(PEER_MAC)).await;
        pair.peer("link set eth0 address 02:00:00:00:00:03");
        pair.node("neighbour flush dev eth0");
        for address in ["10.77.0.2", "fd77::2", "10.88.0.9", "fd88::9"] {
            until(&resolver, address, "the new MAC", goes_to([2, 0, 0, 0, 0, 3])).await;
        }
        pair.node("route add 10.91.0.0/16 via 10.77.0.2");
        until(&resolver, "10.91.0.9", "the new route", goes_to([2, 0, 0, 0, 0, 3])).await;
        pair.node("route del 10.91.0.0/16");
        until(&resolver, "10.91.0.9", "the route is gone", |got| *got == Resolution::Unresolved(Cause::NoRoute)).await;
        pair.node("link set eth0 mtu 1300");
        until(&resolver, "10.88.0.9", "the new MTU", |got| got.next_hop().is_some_and(|hop| hop.mtu == 1300)).await;
        pair.peer("link set eth0 down");
        until(&resolver, "10.77.0.2", "no carrier", |got| got.next_hop().is_none()).await;
        pair.peer("link set eth0 up");
        until(&resolver, "10.77.0.2", "the carrier is back", goes_to([2, 0, 0, 0, 0, 3])).await;

        resolver.set_destinations(ips(&["10.77.0.2"]));
        let mut table = resolver.table();
        let alone = tokio::time::timeout(PATIENCE, table.wait_for(|table| table.len() == 1)).await;
        assert!(alone.expect("in time").expect("alive").contains_key(&ip("10.77.0.2")));
    });
}

#[test]
fn a_moved_mac_is_followed_without_a_flush() {
    if !may_run() {
        return;
    }
    let pair = Pair::new("mac");
    pair.in_node(|| async {
        let resolver = Resolver::start().expect("start");
        resolver.set_destinations(ips(&["10.77.0.2"]));
        until(&resolver, "10.77.0.2", "first", goes_to(PEER_MAC)).await;
        // What a machine that takes an address over does: announce it.
        pair.peer("link set eth0 address 02:00:00:00:00:04");
        let announcer = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(&pair.peer);
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
                    runtime.block_on(async {
                        let announcer = Announcer::start("eth0", BTreeSet::new()).await.expect("start");
                        announcer.set(ips(&["10.77.0.2"])).await.expect("set");
                        tokio::time::sleep(Duration::from_millis(1500)).await;
                    });
                })
                .join()
        });
        announcer.expect("peer");
        until(&resolver, "10.77.0.2", "the announced MAC", goes_to([2, 0, 0, 0, 0, 4])).await;
    });
}

/// Reads frames until one announces `vip`; its source MAC.
fn wait_for_announcement(socket: &socket2::Socket, vip: IpAddr) -> [u8; 6] {
    let end = Instant::now() + PATIENCE;
    let mut buffer = [0_u8; 2048];
    while Instant::now() < end {
        let Ok(n) = std::io::Read::read(&mut &*socket, &mut buffer) else { continue };
        let frame = &buffer[..n];
        let announced = match vip {
            IpAddr::V4(vip) => {
                n >= 42 && frame[12..14] == [8, 6] && frame[28..32] == vip.octets() && frame[38..42] == vip.octets()
            }
            IpAddr::V6(vip) => {
                n >= 86
                    && frame[12..14] == [0x86, 0xdd]
                    && frame[20..22] == [58, 255]
                    && frame[54] == 136
                    && frame[62..78] == vip.octets()
            }
        };
        if announced {
            return frame[6..12].try_into().expect("six bytes");
        }
    }
    panic!("{vip} was not announced");
}

/// The addresses of the node's interface as `ip` prints them.
fn addresses(pair: &Pair) -> String {
    let output =
        Command::new("ip").args(["-n", &pair.node, "-d", "address", "show", "dev", "eth0"]).output().expect("ip");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn vips_come_are_announced_and_go() {
    if !may_run() {
        return;
    }
    let pair = Pair::new("vip");
    let heard = pair.sniffer();
    let (v4, v6) = ("192.0.2.10", "2001:db8::10");
    pair.in_node(|| async {
        let announcer = Announcer::start("eth0", BTreeSet::new()).await.expect("start");
        assert!(!addresses(&pair).contains(v4), "starting changes nothing");
        let changes = announcer.set(ips(&[v4, v6, "10.77.0.1"])).await.expect("set");
        assert_eq!(changes.added, [ip(v4), ip(v6)], "{changes:?}");
        assert_eq!(changes.failed, []);
        for vip in [v4, v6, "10.77.0.1"] {
            let vip = ip(vip);
            let socket = heard.try_clone().expect("clone");
            let mac = tokio::task::spawn_blocking(move || wait_for_announcement(&socket, vip)).await.expect("heard");
            assert_eq!(mac, NODE_MAC);
        }
        let shown = addresses(&pair);
        assert!(shown.contains("192.0.2.10/32") && shown.contains("2001:db8::10/128"), "{shown}");
        let line = shown.lines().find(|line| line.contains("2001:db8::10/128")).expect("just seen");
        assert!(!line.contains("tentative"), "usable at once: {line}");
        assert!(line.contains("deprecated"), "a VIP must not become a source address: {line}");
        assert_eq!(announcer.set(ips(&[v4, v6, "10.77.0.1"])).await.expect("again"), Default::default());

        // Taken away by somebody else: put back and said again.
        pair.node("address del 192.0.2.10/32 dev eth0");
        let socket = heard.try_clone().expect("clone");
        let back = tokio::task::spawn_blocking(move || {
            let mut buffer = [0; 2048];
            while std::io::Read::read(&mut &socket, &mut buffer).is_ok() {}
            wait_for_announcement(&socket, ip(v4))
        });
        back.await.expect("announced again");
        assert!(addresses(&pair).contains("192.0.2.10/32"));

        // The interface goes down, which costs it its IPv6 addresses, and comes back.
        pair.node("link set eth0 down");
        tokio::time::sleep(Duration::from_millis(300)).await;
        pair.node("link set eth0 up");
        let end = Instant::now() + PATIENCE;
        while !addresses(&pair).contains("2001:db8::10/128") {
            assert!(Instant::now() < end, "the IPv6 VIP did not come back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let socket = heard.try_clone().expect("clone");
        tokio::task::spawn_blocking(move || wait_for_announcement(&socket, ip(v6)))
            .await
            .expect("announced after link up");

        // Another agent finds them by their mark and takes them away, but not the operator's own.
        drop(announcer);
        let next = Announcer::start("eth0", BTreeSet::new()).await.expect("start");
        let changes = next.set(ips(&[v6])).await.expect("set");
        assert_eq!((changes.added, changes.removed), (vec![], vec![ip(v4)]));
        assert_eq!(next.withdraw().await.expect("withdraw").removed, [ip(v6)]);
        let shown = addresses(&pair);
        assert!(!shown.contains("192.0.2.10") && !shown.contains("2001:db8::10"), "{shown}");
        assert!(shown.contains("10.77.0.1/24"), "{shown}");
    });
}

#[test]
fn interfaces_of_this_namespace_are_seen() {
    if !may_run() {
        return;
    }
    let pair = Pair::new("link");
    pair.in_node(|| async {
        let links = Links::open().expect("open");
        let eth0 = links.by_name("eth0").await.expect("eth0");
        assert_eq!((eth0.mac, eth0.mtu, eth0.up, eth0.kind.as_deref()), (Some(NODE_MAC), 1500, true, Some("veth")));
        assert!(eth0.xdp.is_empty());
        // A datagram to the peer moves the counters.
        let socket = std::net::UdpSocket::bind("10.77.0.1:0").expect("bind");
        socket.send_to(b"x", SocketAddr::from(([10, 77, 0, 2], 9))).expect("send");
        let end = Instant::now() + PATIENCE;
        while links.by_name("eth0").await.expect("eth0").counters.tx_packets <= eth0.counters.tx_packets {
            assert!(Instant::now() < end, "counters do not move");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The kernel's bits are told apart by their names: one changes, its neighbours do not.
        let before = offload::read("eth0").expect("offloads");
        assert_eq!((before.rx_vlan, before.gro_hw, before.lro), (Some(true), Some(false), Some(false)));
        let off = Command::new("ethtool").args(["-K", "eth0", "rxvlan", "off"]).status().expect("ethtool");
        assert!(off.success());
        let after = offload::read("eth0").expect("offloads");
        assert_eq!(after, offload::Offloads { rx_vlan: Some(false), ..before });
        let missing = Announcer::start("eth9", BTreeSet::new()).await.map(drop);
        assert_eq!(missing.map_err(|error| error.to_string().contains("`eth9` does not exist")), Err(true));
    });
}
