//! From links, routes and neighbours to where frames go, or why they cannot.
//!
//! Pure: facts in, [`Resolution`] out; the loop that gathers the facts is [`super::resolver`]. Rules:
//!
//! - The neighbour is the gateway, else the destination itself. Its MAC is used in every state in which the kernel would
//!   use it too (reachable, stale, delay, probe, permanent, noarp).
//! - A neighbour that was resolved and is being asked for anew (its entry was flushed) keeps its MAC until the kernel gives
//!   up on it; once it has failed it is unresolved until it answers.
//! - The MTU is the lower one of interface and route.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use crate::model::NextHop;

/// Where frames for an address go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Known.
    Resolved {
        /// For the backend map.
        next_hop: NextHop,
        /// Gateway, if the address is not on the interface's own segment.
        gateway: Option<IpAddr>,
        /// Name of the interface.
        interface: String,
    },
    /// Not known.
    Unresolved(Cause),
}

impl Resolution {
    /// The next hop, if it is known.
    pub fn next_hop(&self) -> Option<NextHop> {
        match self {
            Self::Resolved { next_hop, .. } => Some(*next_hop),
            Self::Unresolved(_) => None,
        }
    }

    /// Whether the answer is still under way.
    pub fn is_underway(&self) -> bool {
        matches!(self, Self::Unresolved(Cause::Pending | Cause::NeighbourIncomplete { .. }))
    }
}

/// Why an address has no next hop. `Display` is for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Not looked up yet.
    Pending,
    /// The routing table has no route.
    NoRoute,
    /// An `unreachable` route.
    Unreachable,
    /// A `blackhole` route.
    Blackhole,
    /// A `prohibit` route.
    Prohibited,
    /// The address belongs to this host.
    Local,
    /// A broadcast, multicast or anycast address.
    NotUnicast,
    /// The route's interface is gone.
    InterfaceGone {
        /// Index in the route.
        ifindex: u32,
    },
    /// The route's interface is down or has no carrier.
    InterfaceDown {
        /// Its name.
        interface: String,
    },
    /// The route's interface does not carry Ethernet frames.
    NotEthernet {
        /// Its name.
        interface: String,
    },
    /// The neighbour was asked for its MAC and has not answered yet.
    NeighbourIncomplete {
        /// Gateway or destination.
        neighbour: IpAddr,
        /// Name of the interface.
        interface: String,
    },
    /// The neighbour does not answer ARP or neighbour discovery.
    NeighbourFailed {
        /// Gateway or destination.
        neighbour: IpAddr,
        /// Name of the interface.
        interface: String,
    },
    /// The kernel refused the look-up.
    LookupFailed {
        /// Error number.
        errno: i32,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("not looked up yet"),
            Self::NoRoute => f.write_str("no route"),
            Self::Unreachable => f.write_str("route says unreachable"),
            Self::Blackhole => f.write_str("route says blackhole"),
            Self::Prohibited => f.write_str("route says prohibit"),
            Self::Local => f.write_str("address is local to this node"),
            Self::NotUnicast => f.write_str("not a unicast address"),
            Self::InterfaceGone { ifindex } => write!(f, "interface with index {ifindex} is gone"),
            Self::InterfaceDown { interface } => write!(f, "interface {interface} is down"),
            Self::NotEthernet { interface } => write!(f, "interface {interface} is not Ethernet"),
            Self::NeighbourIncomplete { neighbour, interface } => {
                write!(f, "neighbour {neighbour} on {interface} INCOMPLETE: asked, no answer yet")
            }
            Self::NeighbourFailed { neighbour, interface } => {
                write!(f, "neighbour {neighbour} on {interface} FAILED: does not answer")
            }
            Self::LookupFailed { errno } => {
                write!(f, "route look-up failed: {}", std::io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

/// The kernel's answer to "how would you route to this address".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Out of an interface.
    Via {
        /// Interface.
        ifindex: u32,
        /// Gateway; of the other family if it is an IPv4 route over an IPv6 next hop (RFC 5549).
        gateway: Option<IpAddr>,
        /// MTU of the route (configured or learned), if there is one.
        mtu: Option<u32>,
    },
    /// Not at all.
    Not(Cause),
}

/// An interface as far as next hops need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Name.
    pub name: String,
    /// MAC; `None` if it is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes of IP packet.
    pub mtu: u32,
    /// Frames can leave.
    pub up: bool,
}

/// A neighbour's entry, reduced to what matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// Usable, and the kernel need not be asked to confirm it (reachable, permanent, noarp).
    Fresh([u8; 6]),
    /// Usable, being confirmed right now (delay, probe).
    Confirming([u8; 6]),
    /// Usable, but nobody has confirmed it lately (stale).
    Stale([u8; 6]),
    /// Being asked for (incomplete), or an empty entry.
    Incomplete,
    /// Asked for in vain.
    Failed,
}

impl Neighbour {
    /// The MAC, if it may be used.
    pub const fn mac(self) -> Option<[u8; 6]> {
        match self {
            Self::Fresh(mac) | Self::Confirming(mac) | Self::Stale(mac) => Some(mac),
            Self::Incomplete | Self::Failed => None,
        }
    }
}

/// Where frames for a destination leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    /// Index of the interface.
    pub ifindex: u32,
    /// Its name.
    pub interface: &'a str,
    /// Gateway, if the destination is not on the interface's own segment.
    pub gateway: Option<IpAddr>,
    /// MAC of the interface.
    pub src_mac: [u8; 6],
    /// MTU in bytes of IP packet: the lower one of interface and route.
    pub mtu: u32,
}

/// What netlink has told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Interfaces by index.
    pub links: BTreeMap<u32, Link>,
    /// Neighbours by interface and address.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// Routes by destination.
    pub routes: BTreeMap<IpAddr, Route>,
}

impl Facts {
    /// The neighbour through which `destination` is reached, as (interface, address), if a frame could leave for it.
    pub fn neighbour_of(&self, destination: IpAddr) -> Option<(u32, IpAddr)> {
        let Route::Via { ifindex, gateway, .. } = self.routes.get(&destination)? else { return None };
        self.links.get(ifindex).filter(|link| link.up && link.mac.is_some())?;
        Some((*ifindex, gateway.unwrap_or(destination)))
    }

    /// Decides for one destination; `before` is what was decided last.
    pub fn resolve(&self, destination: IpAddr, before: Option<&Resolution>) -> Resolution {
        self.try_resolve(destination, before).unwrap_or_else(Resolution::Unresolved)
    }

    /// The way to a destination as far as its route and interface decide it, whether its neighbour is known or not.
    ///
    /// # Errors
    /// Why no frame could leave for it.
    pub fn path(&self, destination: IpAddr) -> Result<Path<'_>, Cause> {
        let (ifindex, gateway, route_mtu) = match self.routes.get(&destination) {
            Some(Route::Via { ifindex, gateway, mtu }) => (*ifindex, *gateway, *mtu),
            Some(Route::Not(cause)) => return Err(cause.clone()),
            None => return Err(Cause::Pending),
        };
        let link = self.links.get(&ifindex).ok_or(Cause::InterfaceGone { ifindex })?;
        let interface = || link.name.clone();
        if !link.up {
            return Err(Cause::InterfaceDown { interface: interface() });
        }
        let src_mac = link.mac.ok_or_else(|| Cause::NotEthernet { interface: interface() })?;
        let mtu = route_mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
        Ok(Path { ifindex, interface: &link.name, gateway, src_mac, mtu })
    }

    fn try_resolve(&self, destination: IpAddr, before: Option<&Resolution>) -> Result<Resolution, Cause> {
        let Path { ifindex, interface, gateway, src_mac, mtu } = self.path(destination)?;
        let interface = interface.to_owned();
        let neighbour = gateway.unwrap_or(destination);
        let dst_mac = match self.neighbours.get(&(ifindex, neighbour)).copied().unwrap_or(Neighbour::Incomplete) {
            Neighbour::Fresh(mac) | Neighbour::Confirming(mac) | Neighbour::Stale(mac) => mac,
            Neighbour::Failed => return Err(Cause::NeighbourFailed { neighbour, interface }),
            Neighbour::Incomplete => match before {
                Some(Resolution::Resolved { next_hop, gateway: via, .. })
                    if next_hop.ifindex == ifindex && *via == gateway =>
                {
                    next_hop.dst_mac
                }
                // It goes to and fro between the two as long as it is asked for: one cause, not one a second.
                Some(Resolution::Unresolved(cause @ Cause::NeighbourFailed { neighbour: failed, .. }))
                    if *failed == neighbour =>
                {
                    return Err(cause.clone());
                }
                _ => return Err(Cause::NeighbourIncomplete { neighbour, interface }),
            },
        };
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        Ok(Resolution::Resolved { next_hop: NextHop { ifindex, mtu, src_mac, dst_mac }, gateway, interface })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 3];

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn facts(gateway: Option<&str>, mtu: Option<u32>, neighbour: Option<(&str, Neighbour)>) -> Facts {
        let eth = Link { name: "eth0".into(), mac: Some(OURS), mtu: 1500, up: true };
        let tun = Link { name: "tun0".into(), mac: None, mtu: 1400, up: true };
        let down = Link { up: false, name: "eth1".into(), ..eth.clone() };
        let via = |ifindex| Route::Via { ifindex, gateway: gateway.map(ip), mtu };
        Facts {
            links: [(3, eth), (4, tun), (5, down)].into(),
            neighbours: neighbour.map(|(address, state)| ((3, ip(address)), state)).into_iter().collect(),
            routes: [
                (ip("10.0.0.9"), via(3)),
                (ip("fd00::9"), via(3)),
                (ip("10.0.4.9"), via(4)),
                (ip("10.0.5.9"), via(5)),
                (ip("10.0.6.9"), via(6)),
                (ip("10.0.7.9"), Route::Not(Cause::Blackhole)),
            ]
            .into(),
        }
    }

    fn resolved(gateway: Option<&str>, mtu: u16, dst_mac: [u8; 6]) -> Resolution {
        Resolution::Resolved {
            next_hop: NextHop { ifindex: 3, mtu, src_mac: OURS, dst_mac },
            gateway: gateway.map(ip),
            interface: "eth0".into(),
        }
    }

    #[test]
    fn resolutions_without_history() {
        let fresh = |address| Some((address, Neighbour::Fresh(THEIRS)));
        let interface = || "eth0".to_owned();
        for (what, facts, destination, want) in [
            ("on-link", facts(None, None, fresh("10.0.0.9")), "10.0.0.9", Ok(resolved(None, 1500, THEIRS))),
            ("on-link v6", facts(None, None, fresh("fd00::9")), "fd00::9", Ok(resolved(None, 1500, THEIRS))),
            (
                "gateway",
                facts(Some("10.0.0.1"), None, fresh("10.0.0.1")),
                "10.0.0.9",
                Ok(resolved(Some("10.0.0.1"), 1500, THEIRS)),
            ),
            (
                "v4 over a v6 gateway",
                facts(Some("fe80::1"), None, fresh("fe80::1")),
                "10.0.0.9",
                Ok(resolved(Some("fe80::1"), 1500, THEIRS)),
            ),
            (
                "lower route MTU",
                facts(None, Some(1400), fresh("10.0.0.9")),
                "10.0.0.9",
                Ok(resolved(None, 1400, THEIRS)),
            ),
            (
                "higher route MTU",
                facts(None, Some(9000), fresh("10.0.0.9")),
                "10.0.0.9",
                Ok(resolved(None, 1500, THEIRS)),
            ),
            (
                "stale is usable",
                facts(None, None, Some(("10.0.0.9", Neighbour::Stale(THEIRS)))),
                "10.0.0.9",
                Ok(resolved(None, 1500, THEIRS)),
            ),
            (
                "no entry",
                facts(None, None, fresh("10.0.0.8")),
                "10.0.0.9",
                Err(Cause::NeighbourIncomplete { neighbour: ip("10.0.0.9"), interface: interface() }),
            ),
            (
                "failed",
                facts(Some("10.0.0.1"), None, Some(("10.0.0.1", Neighbour::Failed))),
                "10.0.0.9",
                Err(Cause::NeighbourFailed { neighbour: ip("10.0.0.1"), interface: interface() }),
            ),
            ("not Ethernet", facts(None, None, None), "10.0.4.9", Err(Cause::NotEthernet { interface: "tun0".into() })),
            ("down", facts(None, None, None), "10.0.5.9", Err(Cause::InterfaceDown { interface: "eth1".into() })),
            ("gone", facts(None, None, None), "10.0.6.9", Err(Cause::InterfaceGone { ifindex: 6 })),
            ("blackhole", facts(None, None, None), "10.0.7.9", Err(Cause::Blackhole)),
            ("unknown", facts(None, None, None), "10.0.8.9", Err(Cause::Pending)),
        ] {
            let want = want.unwrap_or_else(Resolution::Unresolved);
            assert_eq!(facts.resolve(ip(destination), None), want, "{what}");
        }
    }

    #[test]
    fn a_path_needs_no_neighbour() {
        let facts = facts(Some("10.0.0.1"), Some(1400), None);
        let want = Path { ifindex: 3, interface: "eth0", gateway: Some(ip("10.0.0.1")), src_mac: OURS, mtu: 1400 };
        assert_eq!(facts.path(ip("10.0.0.9")), Ok(want));
        assert_eq!(facts.path(ip("10.0.5.9")), Err(Cause::InterfaceDown { interface: "eth1".into() }));
        assert_eq!(facts.path(ip("10.0.7.9")), Err(Cause::Blackhole));
        assert_eq!(facts.path(ip("10.0.8.9")), Err(Cause::Pending));
    }

    #[test]
    fn history_counts_only_while_the_kernel_asks() {
        let failed =
            Resolution::Unresolved(Cause::NeighbourFailed { neighbour: ip("10.0.0.9"), interface: "eth0".into() });
        let asking = facts(None, None, None);
        let before = resolved(None, 1500, OTHER);
        let resolve = |facts: &Facts, before: &Resolution| facts.resolve(ip("10.0.0.9"), Some(before));
        assert_eq!(resolve(&asking, &before), before, "a flushed entry keeps its MAC");
        assert_eq!(resolve(&asking, &failed), failed, "failed until it answers");
        let gave_up = facts(None, None, Some(("10.0.0.9", Neighbour::Failed)));
        assert_eq!(resolve(&gave_up, &before), failed);
        let moved = facts(None, None, Some(("10.0.0.9", Neighbour::Fresh(THEIRS))));
        assert_eq!(resolve(&moved, &before), resolved(None, 1500, THEIRS), "a new MAC is followed");
        assert_eq!(resolve(&moved, &failed), resolved(None, 1500, THEIRS));
        let rerouted = facts(Some("10.0.0.1"), None, None);
        assert!(resolve(&rerouted, &before).next_hop().is_none(), "another gateway's MAC is of no use");
    }

    #[test]
    fn neighbours_are_asked_only_where_frames_could_leave() {
        let facts = facts(Some("10.0.0.1"), None, None);
        assert_eq!(facts.neighbour_of(ip("10.0.0.9")), Some((3, ip("10.0.0.1"))));
        for destination in ["10.0.4.9", "10.0.5.9", "10.0.6.9", "10.0.7.9", "10.0.8.9"] {
            assert_eq!(facts.neighbour_of(ip(destination)), None, "{destination}");
        }
    }
}
