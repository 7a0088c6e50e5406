//! Who is in the fleet's lab, with which addresses. Pure: data out, nothing is made here.
//!
//! ```text
//!   one segment 10.78.0.0/24, fd78::/64
//!     n1-n4 .1-.4      nodes
//!     client .10
//!     b1-b6 .11-.16    backends
//!     b7 .17           a spare host for a backend, as the control plane has its own
//!     ctl .20          whoever looks at the fleet; the store, where a lab has no hosts of its own for it
//!     d1-d3 .21-.23    DNS servers
//!     o1-o2 .31-.32    orchestrators
//!     s1-s3 .41-.43    a Redis server and a Sentinel each
//!     prom .50         Prometheus
//!     pool .128-.159   addresses that nodes lease; backends accept all of them
//! ```
//! d, o, s, prom and the spare one are [`control_plane`], which only labs that run all of it have. All of it is one bridge. Each lab has the same
//! addresses: its namespaces keep it apart from others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Nodes that there is room for.
pub const NODES: u8 = 4;
/// Backends.
pub const BACKENDS: u8 = 6;
/// Hosts on which the executor may start a backend.
pub const SPARE_BACKENDS: u8 = 1;
/// DNS servers.
pub const DNS_SERVERS: u8 = 3;
/// Orchestrators.
pub const ORCHESTRATORS: u8 = 2;
/// Servers of the store.
pub const STORES: u8 = 3;
/// Addresses that nodes lease.
pub const POOL_V4: &str = "10.78.0.128/27";
/// The same in IPv6.
pub const POOL_V6: &str = "fd78::8000/123";
/// A VIP that every node serves alike.
pub const SHARED: u8 = 100;
/// Port of the backends' web servers.
pub const HTTP_PORT: u16 = 80;
/// Port of the store.
pub const REDIS_PORT: u16 = 6379;

/// A machine of the fleet's lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// The bridge.
    Switch,
    /// Where requests come from.
    Client,
    /// Whoever looks at the fleet; also its store, in labs without a control plane of its own.
    Control,
    /// A node, from 1 to [`NODES`].
    Node(u8),
    /// A backend, from 1 to [`BACKENDS`]; those after it are spare.
    Backend(u8),
    /// A DNS server, from 1 to [`DNS_SERVERS`].
    Dns(u8),
    /// An orchestrator, from 1 to [`ORCHESTRATORS`].
    Orchestrator(u8),
    /// A server of the store, from 1 to [`STORES`].
    Store(u8),
    /// Prometheus.
    Prometheus,
}

/// The hosts of every lab.
pub fn hosts() -> Vec<Host> {
    let mut all = vec![Host::Switch, Host::Client, Host::Control];
    all.extend((1..=NODES).map(Host::Node));
    all.extend((1..=BACKENDS).map(Host::Backend));
    all
}

/// The hosts of those labs that run a control plane.
pub fn control_plane() -> Vec<Host> {
    let dns = (1..=DNS_SERVERS).map(Host::Dns);
    let orchestrators = (1..=ORCHESTRATORS).map(Host::Orchestrator);
    let spare = (BACKENDS + 1..=BACKENDS + SPARE_BACKENDS).map(Host::Backend);
    dns.chain(orchestrators).chain(spare).chain((1..=STORES).map(Host::Store)).chain([Host::Prometheus]).collect()
}

impl Host {
    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Switch => "switch".into(),
            Self::Client => "client".into(),
            Self::Control => "ctl".into(),
            Self::Node(n) => format!("n{n}"),
            Self::Backend(n) => format!("b{n}"),
            Self::Dns(n) => format!("d{n}"),
            Self::Orchestrator(n) => format!("o{n}"),
            Self::Store(n) => format!("s{n}"),
            Self::Prometheus => "prom".into(),
        }
    }

    /// Its address.
    pub fn address(self, v6: bool) -> IpAddr {
        address(
            match self {
                Self::Switch => 0,
                Self::Client => 10,
                Self::Control => 20,
                Self::Node(n) => n,
                Self::Backend(n) => 10 + n,
                Self::Dns(n) => 20 + n,
                Self::Orchestrator(n) => 30 + n,
                Self::Store(n) => 40 + n,
                Self::Prometheus => 50,
            },
            v6,
        )
    }
}

/// Address `number` of the segment.
pub fn address(number: u8, v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, number.into()))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 78, 0, number))
    }
}

/// Name of the bridge's port for a host.
pub fn port(host: Host) -> String {
    format!("p-{}", host.name())
}

/// `ip -batch` lines that make the bridge and the links of `hosts`, run in the switch.
pub fn links(hosts: &[Host], namespace: impl Fn(Host) -> String) -> Vec<String> {
    let mut lines = vec![
        "link add br-f type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
        "link set br-f up".to_owned(),
    ];
    for host in hosts.iter().copied().filter(|host| *host != Host::Switch) {
        let port = port(host);
        lines.push(format!("link add {port} type veth peer name eth0 netns {}", namespace(host)));
        lines.push(format!("link set {port} master br-f up"));
    }
    lines
}

/// What has to be set before there are addresses: (path below /proc/sys/net, value).
pub fn sysctls(host: Host) -> Vec<(&'static str, &'static str)> {
    let mut all = vec![
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
    ];
    match host {
        Host::Switch => all.push(("ipv6/conf/default/disable_ipv6", "1")),
        Host::Backend(_) => {
            // The VIPs on `lo` are nobody's business on the wire.
            all.push(("ipv4/conf/all/arp_ignore", "1"));
            all.push(("ipv4/conf/all/arp_announce", "2"));
        }
        _ => {}
    }
    all
}

/// `ip -batch` lines that give a host its addresses and routes, run in that host.
pub fn addresses(host: Host) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    if host == Host::Switch {
        return lines;
    }
    lines.push("link set eth0 up".into());
    lines.push(format!("addr add {}/24 dev eth0", host.address(false)));
    lines.push(format!("addr add {}/64 dev eth0 nodad", host.address(true)));
    if matches!(host, Host::Backend(_)) {
        lines.push(format!("addr add {}/32 dev lo", address(SHARED, false)));
        lines.push(format!("addr add {}/128 dev lo nodad", address(SHARED, true)));
        lines.push(format!("route add local {POOL_V4} dev lo"));
        lines.push(format!("-6 route add local {POOL_V6} dev lo"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_address_is_given_twice() {
        for v6 in [false, true] {
            let mut all: Vec<_> = hosts().into_iter().chain(control_plane()).map(|host| host.address(v6)).collect();
            all.push(address(SHARED, v6));
            if !v6 {
                let (first, length) = POOL_V4.split_once('/').unwrap();
                let first = u32::from(first.parse::<Ipv4Addr>().unwrap());
                let pool: Vec<_> = (0..1 << (32 - length.parse::<u32>().unwrap()))
                    .map(|offset| IpAddr::from(Ipv4Addr::from(first + offset)))
                    .collect();
                assert!(!all.iter().any(|address| pool.contains(address)));
            }
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        }
    }
}
