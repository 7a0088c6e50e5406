//! Who is in the lab, with which addresses and links. Pure: data out, nothing is made here.
//!
//! ```text
//!   segment A 10.77.0.0/24, fd77::/64      client .10, lb .1, b1-b3 .11-.13, gw .254 (:254)
//!   segment B 10.77.1.0/24, fd77:1::/64    gw .254, b4 .14
//!   segment C 10.77.2.0/24, fd77:2::/64    lb .1, client .10, b5 .15
//! ```
//! Segments A and C are bridges in a namespace of their own, B is one veth pair. Each lab has the same addresses: its
//! namespaces keep it apart from others. VIPs lie in segment A, so that a client finds them by ARP and neighbour discovery.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A machine of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// The bridges.
    Switch,
    /// Where requests come from.
    Client,
    /// The node that runs weir.
    Lb,
    /// First backend.
    B1,
    /// Second backend.
    B2,
    /// Third backend.
    B3,
    /// Router to segment B.
    Gateway,
    /// Backend behind the router.
    B4,
    /// Backend at the node's second interface.
    B5,
}

/// All hosts.
pub const HOSTS: [Host; 9] =
    [Host::Switch, Host::Client, Host::Lb, Host::B1, Host::B2, Host::B3, Host::Gateway, Host::B4, Host::B5];
/// Hosts that run servers.
pub const BACKENDS: [Host; 5] = [Host::B1, Host::B2, Host::B3, Host::B4, Host::B5];
/// Ports of the switch that the node's interfaces are plugged into.
pub const NODE_PORTS: [&str; 2] = ["p-lb", "p-lb2"];
/// VIPs per family.
pub const VIPS: u8 = 8;
/// Port of the HTTP servers.
pub const HTTP_PORT: u16 = 80;
/// A second port of the HTTP servers, for services that map ports.
pub const HTTP_PORT_ALT: u16 = 8080;
/// Port of the UDP servers.
pub const ECHO_PORT: u16 = 5353;
/// A second port of the UDP servers.
pub const ECHO_PORT_ALT: u16 = 5454;
/// Smallest MTU of every interface.
pub const MTU: u16 = 1500;

impl Host {
    /// Its name, as in `lab shell NAME`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Client => "client",
            Self::Lb => "lb",
            Self::B1 => "b1",
            Self::B2 => "b2",
            Self::B3 => "b3",
            Self::Gateway => "gw",
            Self::B4 => "b4",
            Self::B5 => "b5",
        }
    }

    /// The host of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        HOSTS.into_iter().find(|host| host.name() == name)
    }

    /// The address on its first interface, the one that a configuration names.
    pub fn address(self, v6: bool) -> IpAddr {
        match self {
            Self::Switch => address(0, 0, v6),
            Self::Client => address(0, 10, v6),
            Self::Lb => address(0, 1, v6),
            Self::B1 => address(0, 11, v6),
            Self::B2 => address(0, 12, v6),
            Self::B3 => address(0, 13, v6),
            Self::Gateway => address(0, 254, v6),
            Self::B4 => address(1, 14, v6),
            Self::B5 => address(2, 15, v6),
        }
    }
}

/// Address `number` of a segment; in IPv6 the same decimal digits are written as hexadecimal ones.
pub fn address(segment: u8, number: u8, v6: bool) -> IpAddr {
    if v6 {
        let digits = u16::from(number / 100) << 8 | u16::from(number / 10 % 10) << 4 | u16::from(number % 10);
        IpAddr::V6(Ipv6Addr::new(0xfd77, segment.into(), 0, 0, 0, 0, 0, digits))
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 77, segment, number))
    }
}

/// VIP `number`, below [`VIPS`].
pub fn vip(number: u8, v6: bool) -> IpAddr {
    address(0, 100 + number, v6)
}

/// All VIPs that the backends accept.
pub fn vips() -> Vec<IpAddr> {
    (0..VIPS).flat_map(|number| [vip(number, false), vip(number, true)]).collect()
}

/// Interfaces of a host besides `lo`.
pub fn interfaces(host: Host) -> &'static [&'static str] {
    match host {
        Host::Switch => &[],
        Host::Lb | Host::Client | Host::Gateway => &["eth0", "eth1"],
        _ => &["eth0"],
    }
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
        // A bridge needs no addresses of its own, and its ports no link-local ones.
        Host::Switch => all.push(("ipv6/conf/default/disable_ipv6", "1")),
        Host::Lb | Host::Gateway => {
            all.push(("ipv4/ip_forward", "1"));
            all.push(("ipv4/conf/all/send_redirects", "0"));
            all.push(("ipv4/conf/default/send_redirects", "0"));
            all.push(("ipv6/conf/all/forwarding", "1"));
        }
        Host::Client => {}
        _ => {
            // The VIPs on `lo` are nobody's business on the wire.
            all.push(("ipv4/conf/all/arp_ignore", "1"));
            all.push(("ipv4/conf/all/arp_announce", "2"));
        }
    }
    all
}

/// `ip -batch` lines that make bridges and links, run in the switch; `namespace` gives the namespace of a host.
pub fn links(namespace: impl Fn(Host) -> String) -> Vec<String> {
    let mut lines = Vec::new();
    for bridge in ["br-a", "br-c"] {
        lines.push(format!("link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"));
        lines.push(format!("link set {bridge} up"));
    }
    let ports = [
        ("br-a", "p-client", Host::Client, "eth0"),
        ("br-a", "p-lb", Host::Lb, "eth0"),
        ("br-a", "p-b1", Host::B1, "eth0"),
        ("br-a", "p-b2", Host::B2, "eth0"),
        ("br-a", "p-b3", Host::B3, "eth0"),
        ("br-a", "p-gw", Host::Gateway, "eth0"),
        ("br-c", "p-client2", Host::Client, "eth1"),
        ("br-c", "p-lb2", Host::Lb, "eth1"),
        ("br-c", "p-b5", Host::B5, "eth0"),
    ];
    for (bridge, port, host, interface) in ports {
        lines.push(format!(
            "link add {port} mtu {MTU} type veth peer name {interface} mtu {MTU} netns {}",
            namespace(host)
        ));
        lines.push(format!("link set {port} master {bridge} up"));
    }
    // Segment B has no switch: the pair is made here and both ends move.
    lines.push(format!("link add p-b4 mtu {MTU} type veth peer name eth0 mtu {MTU} netns {}", namespace(Host::B4)));
    lines.push(format!("link set p-b4 netns {} name eth1", namespace(Host::Gateway)));
    lines
}

/// `ip -batch` lines that give a host its addresses and routes, run in that host.
pub fn addresses(host: Host) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(interfaces(host).iter().map(|interface| format!("link set {interface} up")));
    for v6 in [false, true] {
        let (length, tail, family) = if v6 { (64, " nodad", "-6 ") } else { (24, "", "") };
        let host_length = if v6 { 128 } else { 32 };
        let mut put =
            |interface: &str, address: IpAddr| lines.push(format!("addr add {address}/{length} dev {interface}{tail}"));
        let prefix = |segment: u8| if v6 { format!("fd77:{segment}::/64") } else { format!("10.77.{segment}.0/24") };
        match host {
            Host::Switch => continue,
            Host::Client => {
                put("eth0", host.address(v6));
                put("eth1", address(2, 10, v6));
                lines.push(format!("{family}route add {} via {}", prefix(1), Host::Gateway.address(v6)));
            }
            Host::Lb => {
                put("eth0", host.address(v6));
                put("eth1", address(2, 1, v6));
                lines.push(format!("{family}route add {} via {}", prefix(1), Host::Gateway.address(v6)));
            }
            Host::Gateway => {
                put("eth0", host.address(v6));
                put("eth1", address(1, 254, v6));
            }
            Host::B1 | Host::B2 | Host::B3 => {
                put("eth0", host.address(v6));
                lines.push(format!("{family}route add {} via {}", prefix(1), Host::Gateway.address(v6)));
                // Replies from the own address go back through the node (`nat`); those from a VIP go directly.
                lines.push(format!(
                    "{family}rule add from {} to {} lookup 77",
                    host.address(v6),
                    Host::Client.address(v6)
                ));
                lines.push(format!(
                    "{family}route add {}/{host_length} via {} dev eth0 table 77",
                    Host::Client.address(v6),
                    Host::Lb.address(v6)
                ));
            }
            Host::B4 => {
                put("eth0", host.address(v6));
                lines.push(format!("{family}route add default via {}", address(1, 254, v6)));
            }
            Host::B5 => {
                put("eth0", host.address(v6));
                lines.push(format!("{family}route add default via {}", address(2, 1, v6)));
                // Direct server return must not pass through the node, which holds the VIP itself.
                for number in 0..VIPS {
                    lines.push(format!("{family}rule add from {} lookup 78", vip(number, v6)));
                }
                lines.push(format!("{family}route add default via {} dev eth0 table 78", address(2, 10, v6)));
            }
        }
        if BACKENDS.contains(&host) {
            lines.extend((0..VIPS).map(|number| format!("addr add {}/{host_length} dev lo{tail}", vip(number, v6))));
        }
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
            let mut all: Vec<_> =
                HOSTS.iter().filter(|host| **host != Host::Switch).map(|host| host.address(v6)).collect();
            all.extend((0..VIPS).map(|number| vip(number, v6)));
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        }
        assert_eq!(vip(1, true).to_string(), "fd77::101");
        assert_eq!(Host::Gateway.address(true).to_string(), "fd77::254");
    }

    #[test]
    fn every_interface_of_every_host_is_plugged_in_once() {
        let lines = links(|host| format!("x-{}", host.name()));
        for host in HOSTS {
            for interface in interfaces(host) {
                let plugged = lines
                    .iter()
                    .filter(|line| {
                        line.contains(&format!("name {interface}"))
                            && line.contains(&format!("netns x-{} ", host.name()))
                            || line.ends_with(&format!("netns x-{}", host.name()))
                                && line.contains(&format!("name {interface} "))
                            || line.ends_with(&format!("netns x-{} name {interface}", host.name()))
                    })
                    .count();
                assert_eq!(plugged, 1, "{} {interface}: {lines:#?}", host.name());
            }
        }
    }

    #[test]
    fn every_host_has_its_address_in_both_families() {
        for host in HOSTS.into_iter().filter(|host| *host != Host::Switch) {
            for v6 in [false, true] {
                let wanted = format!("addr add {}/", host.address(v6));
                assert!(addresses(host).iter().any(|line| line.starts_with(&wanted)), "{}", host.name());
            }
        }
    }
}
