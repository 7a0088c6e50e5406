//! From netlink messages to facts.
//!
//! Pure. Owns what each message means for [`Facts`] and which routes must be asked for again after it. Refuses to know
//! sockets and time. Traps taken care of: bridges announce their ports as links and neighbours of family `bridge`; proxy
//! entries are no neighbours; IPv4 refuses a look-up by error number where IPv6 answers with a route type.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::LinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::{
    interface::Interface,
    next_hop::{Cause, Facts, Link, Neighbour, Route},
};

/// What must be looked at again after a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    Nothing,
    /// Decisions, with the routes as they are.
    Decisions,
    /// Routes to destinations in this prefix.
    Routes(IpNet),
    /// All routes.
    AllRoutes,
}

/// Takes a notification into the facts.
pub fn apply(facts: &mut Facts, message: &RouteNetlinkMessage) -> Effect {
    match message {
        RouteNetlinkMessage::NewLink(message) => match link(message) {
            Some((ifindex, link)) => {
                // Counters, programs and much else are announced too: routes depend on none of it.
                if facts.links.get(&ifindex) == Some(&link) {
                    return Effect::Nothing;
                }
                facts.links.insert(ifindex, link);
                Effect::AllRoutes
            }
            None => Effect::Nothing,
        },
        RouteNetlinkMessage::DelLink(message) => match link(message) {
            Some((ifindex, _)) => {
                facts.links.remove(&ifindex);
                facts.neighbours.retain(|(index, _), _| *index != ifindex);
                Effect::AllRoutes
            }
            None => Effect::Nothing,
        },
        RouteNetlinkMessage::NewNeighbour(message) => match neighbour(message) {
            Some((key, neighbour)) => match facts.neighbours.insert(key, neighbour) {
                Some(before) if before == neighbour => Effect::Nothing,
                _ => Effect::Decisions,
            },
            None => Effect::Nothing,
        },
        RouteNetlinkMessage::DelNeighbour(message) => match neighbour(message) {
            Some((key, _)) if facts.neighbours.remove(&key).is_some() => Effect::Decisions,
            _ => Effect::Nothing,
        },
        RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
            prefix(message).map_or(Effect::AllRoutes, Effect::Routes)
        }
        RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_)
        | RouteNetlinkMessage::NewRule(_)
        | RouteNetlinkMessage::DelRule(_) => Effect::AllRoutes,
        _ => Effect::Nothing,
    }
}

/// An interface, unless the message speaks of it only as the port of a bridge.
pub fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let Interface { name, ifindex, mac, mtu, up, .. } = Interface::from_message(message);
    Some((ifindex, Link { name, mac, mtu, up }))
}

/// A neighbour by interface and address, unless it is a proxy's or a bridge's entry.
pub fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let header = &message.header;
    if !matches!(header.family, AddressFamily::Inet | AddressFamily::Inet6)
        || header.flags.contains(NeighbourFlags::Proxy)
    {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::from(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    let neighbour = match (header.state, mac) {
        (NeighbourState::Failed, _) => Neighbour::Failed,
        (NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp, Some(mac)) => {
            Neighbour::Fresh(mac)
        }
        (NeighbourState::Delay | NeighbourState::Probe, Some(mac)) => Neighbour::Confirming(mac),
        (NeighbourState::Stale, Some(mac)) => Neighbour::Stale(mac),
        _ => Neighbour::Incomplete,
    };
    Some(((header.ifindex, address), neighbour))
}

/// The answer to a look-up.
pub fn route(message: &RouteMessage) -> Route {
    let not = match message.header.kind {
        RouteType::Unicast => None,
        RouteType::Local => Some(Cause::Local),
        RouteType::Unreachable => Some(Cause::Unreachable),
        RouteType::BlackHole => Some(Cause::Blackhole),
        RouteType::Prohibit => Some(Cause::Prohibited),
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => Some(Cause::NotUnicast),
        _ => Some(Cause::NoRoute),
    };
    if let Some(cause) = not {
        return Route::Not(cause);
    }
    let (mut oif, mut gateway, mut mtu) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Gateway(address) => gateway = address_of(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(IpAddr::from(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::from(*address)),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    oif.map_or(Route::Not(Cause::NoRoute), |ifindex| Route::Via { ifindex, gateway, mtu })
}

/// A look-up that was refused with this positive error number.
pub fn refused(errno: i32) -> Route {
    Route::Not(match errno {
        libc::ENETUNREACH | libc::ESRCH => Cause::NoRoute,
        libc::EHOSTUNREACH => Cause::Unreachable,
        libc::EINVAL => Cause::Blackhole,
        libc::EACCES | libc::EPERM => Cause::Prohibited,
        errno => Cause::LookupFailed { errno },
    })
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::from(*address)),
        _ => None,
    }
}

/// Destination of a route that came or went; the default route has length 0 and no address.
fn prefix(message: &RouteMessage) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => address_of(address),
        _ => None,
    });
    let address = match (address, message.header.address_family) {
        (Some(address), _) => address,
        (None, AddressFamily::Inet) => IpAddr::from([0; 4]),
        (None, AddressFamily::Inet6) => IpAddr::from([0; 16]),
        (None, _) => return None,
    };
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType};

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn link_message(family: AddressFamily, mtu: u32) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.interface_family = family;
        message.header.index = 3;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        message.attributes =
            vec![LinkAttribute::IfName("eth0".into()), LinkAttribute::Mtu(mtu), LinkAttribute::Address(MAC.to_vec())];
        message
    }

    fn neighbour_message(state: NeighbourState, mac: bool) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 3;
        message.header.state = state;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 9].into())));
        if mac {
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(MAC.to_vec()));
        }
        message
    }

    fn route_message(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.kind = kind;
        message.attributes = attributes;
        message
    }

    #[test]
    fn neighbour_states() {
        for (state, mac, want) in [
            (NeighbourState::Reachable, true, Neighbour::Fresh(MAC)),
            (NeighbourState::Permanent, true, Neighbour::Fresh(MAC)),
            (NeighbourState::Noarp, true, Neighbour::Fresh(MAC)),
            (NeighbourState::Delay, true, Neighbour::Confirming(MAC)),
            (NeighbourState::Probe, true, Neighbour::Confirming(MAC)),
            (NeighbourState::Stale, true, Neighbour::Stale(MAC)),
            (NeighbourState::Incomplete, false, Neighbour::Incomplete),
            (NeighbourState::None, false, Neighbour::Incomplete),
            (NeighbourState::Failed, true, Neighbour::Failed),
            (NeighbourState::Reachable, false, Neighbour::Incomplete),
        ] {
            let got = neighbour(&neighbour_message(state, mac)).map(|(_, neighbour)| neighbour);
            assert_eq!(got, Some(want), "{state}");
        }
        let mut proxy = neighbour_message(NeighbourState::Permanent, true);
        proxy.header.flags = NeighbourFlags::Proxy;
        assert_eq!(neighbour(&proxy), None);
        let mut bridge = neighbour_message(NeighbourState::Permanent, true);
        bridge.header.family = AddressFamily::Bridge;
        assert_eq!(neighbour(&bridge), None);
    }

    #[test]
    fn links_and_what_they_touch() {
        let mut facts = Facts::default();
        let up = |mtu| RouteNetlinkMessage::NewLink(link_message(AddressFamily::Unspec, mtu));
        assert_eq!(apply(&mut facts, &up(1500)), Effect::AllRoutes);
        assert_eq!(apply(&mut facts, &up(1500)), Effect::Nothing, "said again");
        assert_eq!(apply(&mut facts, &up(9000)), Effect::AllRoutes);
        let port = RouteNetlinkMessage::DelLink(link_message(AddressFamily::Bridge, 9000));
        assert_eq!(apply(&mut facts, &port), Effect::Nothing, "left a bridge, is not gone");
        assert_eq!(facts.links.get(&3).map(|link| link.mtu), Some(9000));

        let neighbour = |state| RouteNetlinkMessage::NewNeighbour(neighbour_message(state, true));
        assert_eq!(apply(&mut facts, &neighbour(NeighbourState::Stale)), Effect::Decisions);
        assert_eq!(apply(&mut facts, &neighbour(NeighbourState::Stale)), Effect::Nothing);
        let gone = RouteNetlinkMessage::DelLink(link_message(AddressFamily::Unspec, 9000));
        assert_eq!(apply(&mut facts, &gone), Effect::AllRoutes);
        assert_eq!(facts, Facts::default(), "its neighbours went with it");
    }

    #[test]
    fn routes_touch_their_prefix() {
        let mut facts = Facts::default();
        let mut message = route_message(
            RouteType::Unicast,
            vec![RouteAttribute::Destination(RouteAddress::Inet([10, 1, 0, 0].into()))],
        );
        message.header.destination_prefix_length = 16;
        let want: IpNet = "10.1.0.0/16".parse().expect("prefix");
        assert_eq!(apply(&mut facts, &RouteNetlinkMessage::NewRoute(message)), Effect::Routes(want));
        let default = route_message(RouteType::Unicast, vec![]);
        let want: IpNet = "0.0.0.0/0".parse().expect("prefix");
        assert_eq!(apply(&mut facts, &RouteNetlinkMessage::DelRoute(default)), Effect::Routes(want));
    }

    #[test]
    fn answers() {
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into()));
        let metrics = RouteAttribute::Metrics(vec![RouteMetric::Advmss(1300), RouteMetric::Mtu(1400)]);
        for (what, message, want) in [
            (
                "on-link",
                route_message(RouteType::Unicast, vec![RouteAttribute::Oif(3)]),
                Route::Via { ifindex: 3, gateway: None, mtu: None },
            ),
            (
                "gateway and MTU",
                route_message(RouteType::Unicast, vec![RouteAttribute::Oif(3), gateway, metrics]),
                Route::Via { ifindex: 3, gateway: Some(IpAddr::from([10, 0, 0, 1])), mtu: Some(1400) },
            ),
            ("local", route_message(RouteType::Local, vec![RouteAttribute::Oif(1)]), Route::Not(Cause::Local)),
            ("blackhole", route_message(RouteType::BlackHole, vec![]), Route::Not(Cause::Blackhole)),
            ("broadcast", route_message(RouteType::Broadcast, vec![]), Route::Not(Cause::NotUnicast)),
            ("no interface", route_message(RouteType::Unicast, vec![]), Route::Not(Cause::NoRoute)),
        ] {
            assert_eq!(route(&message), want, "{what}");
        }
        assert_eq!(refused(libc::ENETUNREACH), Route::Not(Cause::NoRoute));
        assert_eq!(refused(libc::EHOSTUNREACH), Route::Not(Cause::Unreachable));
        assert_eq!(refused(libc::EIO), Route::Not(Cause::LookupFailed { errno: libc::EIO }));
    }
}
