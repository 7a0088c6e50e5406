//! Each forwarding mode and family, by real sessions in both directions: 10 MB down and up, full-size segments and datagrams,
//! every frame checked on the wire, over MTUs of 1500 that nobody raised.

use std::net::IpAddr;

use xtask::lab::{
    agent::Node,
    topology::{Host, vip},
};

use super::{
    scene::{PORT, PORT_MAPPED, Scene, TRANSFER, at, both_protocols},
    wire::Capture,
};

/// Ethernet header and MTU.
const FULL_FRAME: usize = 14 + 1500;

struct Mode {
    name: &'static str,
    forward: &'static str,
    vip_v6: bool,
    backend_v6: bool,
    mapped: bool,
    node: Node,
    backends: &'static [Host],
}

impl Mode {
    const fn overhead(&self) -> usize {
        match (self.forward.as_bytes(), self.backend_v6) {
            (b"ipip", false) => 20,
            (b"ipip", true) => 40,
            _ => 0,
        }
    }
}

/// Whether a frame carries the VIP or one of the backends' addresses: the sessions and their tunnels.
fn of_interest(addresses: Vec<IpAddr>) -> impl Fn(&[u8]) -> bool + Send + 'static {
    let needles: Vec<Vec<u8>> = addresses
        .into_iter()
        .map(|address| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        })
        .collect();
    move |frame| match frame.get(12..14) {
        Some([0x08, 0x00]) => needles.iter().any(|n| frame.get(26..30) == Some(n) || frame.get(30..34) == Some(n)),
        Some([0x86, 0xdd]) => needles.iter().any(|n| frame.get(22..38) == Some(n) || frame.get(38..54) == Some(n)),
        _ => false,
    }
}

fn carries(mode: &Mode) {
    const NUMBER: u8 = 1;
    let port = if mode.mapped { PORT_MAPPED } else { PORT };
    let backends: Vec<_> = mode.backends.iter().map(|host| (host.address(mode.backend_v6), port)).collect();
    let services = both_protocols(mode.name, vip(NUMBER, mode.vip_v6), mode.forward, &backends);
    let Some(scene) = Scene::new(mode.name, &mode.node, &services) else { return };
    let target = at(NUMBER, mode.vip_v6, PORT);
    let expected: Vec<_> = mode
        .backends
        .iter()
        .map(|host| if mode.mapped { format!("{}-mapped", host.name()) } else { host.name().to_owned() })
        .collect();

    // What the first backend receives, seen where it leaves the switch, and what the client receives.
    let first = mode.backends[0];
    let (host, interface) = match first {
        Host::B4 => (Host::Gateway, "eth1".to_owned()),
        first => (Host::Switch, format!("p-{}", first.name())),
    };
    let backend_wire = Capture::start(
        &scene.netns(host),
        &interface,
        of_interest(backends.iter().map(|b| b.0).chain([target.ip()]).collect()),
    );
    let client_wire = Capture::start(&scene.netns(Host::Client), "eth0", of_interest(vec![target.ip()]));

    // Enough connections that each backend gets at least one: a miss of three has a chance of 1 in 10 million.
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..40 {
        names.insert(scene.connect(target).name().expect("name"));
    }
    assert_eq!(names.into_iter().collect::<Vec<_>>(), expected, "who answered over TCP");
    let mut first_done = false;
    for _ in 0..60 {
        let mut connection = scene.connect(target);
        if connection.name().expect("name") == expected[0] {
            connection.download(TRANSFER).unwrap_or_else(|error| panic!("10 MB down: {error}"));
            connection.upload(TRANSFER).unwrap_or_else(|error| panic!("10 MB up: {error}"));
            first_done = true;
            break;
        }
    }
    assert!(first_done, "no connection reached {}", first.name());

    let headers = if mode.vip_v6 { 48 } else { 28 };
    let largest = 1500 - mode.overhead() - headers;
    let mut names = std::collections::BTreeSet::new();
    for round in 0..120 {
        names.insert(scene.datagram(target, if round % 2 == 0 { largest } else { 40 + round }));
    }
    assert_eq!(names.into_iter().collect::<Vec<_>>(), expected, "who answered over UDP");

    for (side, seen) in [("the backend's side", backend_wire.finish()), ("the client's side", client_wire.finish())] {
        assert_eq!(seen.wrong, Vec::<String>::new(), "on {side}");
        assert!(seen.frames > 2 * TRANSFER / 1500 / 2, "only {} frames on {side}", seen.frames);
        assert_eq!(seen.largest, FULL_FRAME, "largest frame on {side}");
        if side.starts_with("the backend") && mode.forward == "ipip" {
            assert!(seen.sources.len() > 10, "tunnels come from {} addresses: no spread for RSS", seen.sources.len());
        }
    }
    if mode.overhead() > 0 {
        // The client learned the path's MTU from the node, which is why the upload completed.
        let path =
            scene.lab.run(Host::Client, "ip", &["route", "get", &target.ip().to_string()]).expect("ip route get");
        let wanted = format!("mtu {}", 1500 - mode.overhead());
        assert!(path.contains(&wanted), "the client's route has no `{wanted}`: {path}");
    }
}

const B123: &[Host] = &[Host::B1, Host::B2, Host::B3];

fn mode(name: &'static str, forward: &'static str, vip_v6: bool, backend_v6: bool) -> Mode {
    Mode { name, forward, vip_v6, backend_v6, mapped: false, node: Node::default(), backends: B123 }
}

#[test]
fn dsr_over_ipv4() {
    carries(&mode("dsr_over_ipv4", "dsr", false, false));
}

#[test]
fn dsr_over_ipv6() {
    carries(&mode("dsr_over_ipv6", "dsr", true, true));
}

#[test]
fn ipip_4_in_4() {
    carries(&mode("ipip_4_in_4", "ipip", false, false));
}

#[test]
fn ipip_6_in_6() {
    carries(&mode("ipip_6_in_6", "ipip", true, true));
}

#[test]
fn ipip_4_in_6() {
    carries(&mode("ipip_4_in_6", "ipip", false, true));
}

#[test]
fn ipip_6_in_4() {
    carries(&mode("ipip_6_in_4", "ipip", true, false));
}

#[test]
fn nat_over_ipv4() {
    carries(&mode("nat_over_ipv4", "nat", false, false));
}

#[test]
fn nat_over_ipv6() {
    carries(&mode("nat_over_ipv6", "nat", true, true));
}

#[test]
fn nat_maps_ports_over_ipv4() {
    carries(&Mode { mapped: true, ..mode("nat_maps_ports_over_ipv4", "nat", false, false) });
}

#[test]
fn nat_maps_ports_over_ipv6() {
    carries(&Mode { mapped: true, ..mode("nat_maps_ports_over_ipv6", "nat", true, true) });
}

#[test]
fn a_backend_behind_a_gateway() {
    for v6 in [false, true] {
        carries(&Mode { backends: &[Host::B4], ..mode("a_backend_behind_a_gateway", "ipip", v6, v6) });
    }
}

#[test]
fn a_backend_at_another_interface() {
    for (forward, v6) in [("ipip", false), ("dsr", true), ("nat", false)] {
        let node = Node { interfaces: vec!["eth0", "eth1"], ..Node::default() };
        carries(&Mode { backends: &[Host::B5], node, ..mode("a_backend_at_another_interface", forward, v6, v6) });
    }
}
