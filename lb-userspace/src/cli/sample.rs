//! Fixed answers of the API for the golden tests of rendering.

use crate::{
    api::{
        Backend, Connections, Drain, DrainPhase, Forward, HealthCheckSettings, HealthState, NextHop, Service, Share,
        SlotStates, backend_name,
    },
    model::{
        self, AdminState, Algo, Announce, Config, Flows, Limits, Node, Protocol, ServiceKey, StoreConfig, XdpMode,
        algo::Kind,
    },
};

/// The time at which the samples were taken.
pub const NOW: u64 = 1_800_000_000;

/// A service of three backends, one of them down.
pub fn service(name: &str) -> Service {
    Service {
        name: name.into(),
        id: 1,
        vip: [203, 0, 113, 1].into(),
        port: 80,
        protocol: Protocol::Tcp,
        forward: Forward::Ipip,
        algo: "maglev".into(),
        ring_size: 65537,
        track: "moved".into(),
        udp_flows: None,
        slots: SlotStates { settled: 65537, ..SlotStates::default() },
        window_ends_in_s: None,
        connections: Connections { active_estimate: Some(240), syns: 900, fins: 660, ..Connections::default() },
        overrides: Vec::new(),
        backends: 3,
        backends_up: 2,
        backends_taking: 2,
        fail_open: false,
        health_check: Some(HealthCheckSettings {
            kind: "http".into(),
            path: Some("/health".into()),
            host: None,
            port: None,
            interval_ms: 2000,
            timeout_ms: 1000,
            rise: 2,
            fall: 3,
        }),
        packets: 123_456,
        bytes: 64 << 20,
    }
}

/// A backend of `web` that takes a third of the traffic.
pub fn backend(last: u8) -> Backend {
    let address = [10, 0, 0, last].into();
    Backend {
        service: "web".into(),
        name: backend_name(address, 80),
        address,
        port: 80,
        id: u32::from(last),
        weight_configured: 1,
        weight_override: None,
        weight_effective: 1,
        admin_state_configured: AdminState::Ready,
        admin_state_override: None,
        health: HealthState::Up,
        health_reason: Some("L7OK".into()),
        health_since_unix_s: Some(NOW - 312),
        leaving: false,
        drain: None,
        connections: Connections { active_estimate: Some(120), syns: 450, fins: 330, ..Connections::default() },
        max_connections: 0,
        next_hop: NextHop {
            resolved: true,
            interface: Some("eth1".into()),
            gateway: None,
            mac: Some("02:00:00:00:00:0b".into()),
            source_mac: Some("02:00:00:00:00:01".into()),
            mtu: Some(1500),
            cause: None,
        },
        share: Share { slots: 32768, actual: 0.5, expected: 0.5 },
        packets: 61_728,
        bytes: 32 << 20,
    }
}

/// The backends of [`service`]: one that is well, one overridden and unresolved, one down.
pub fn backends() -> Vec<Backend> {
    let (well, mut odd, mut down) = (backend(11), backend(12), backend(13));
    odd.weight_override = Some(5);
    odd.weight_effective = 0;
    odd.admin_state_override = Some(AdminState::Drain);
    odd.drain = Some(Drain { phase: DrainPhase::Draining, connections: None, announced_for_s: 0, ends_in_s: 250 });
    odd.next_hop =
        NextHop { interface: Some("eth1".into()), cause: Some("neighbour FAILED".into()), ..NextHop::default() };
    odd.share = Share::default();
    down.weight_effective = 0;
    down.health = HealthState::Down;
    down.health_reason = Some("L4CON".into());
    down.share = Share::default();
    vec![well, odd, down]
}

/// A configuration of one interface and one service of one backend.
pub fn config(forward: model::Forward) -> Config {
    Config {
        node: Node {
            name: "lb1".into(),
            interfaces: vec!["eth0".into()],
            xdp_mode: XdpMode::Native,
            announce: Announce::Address,
            outer_source_v4: "198.18.0.0/16".parse().unwrap(),
            outer_source_v6: "100::/64".parse().unwrap(),
            limits: Limits::default(),
            metrics_listen: None,
            api_socket: "/run/weir/api.sock".into(),
            api_group: None,
            pin_dir: "/sys/fs/bpf/weir".into(),
            state_dir: "/var/lib/weir".into(),
            seed_file: None,
        },
        store: StoreConfig::File,
        pools: Vec::new(),
        services: vec![model::Service {
            name: "web".into(),
            pool: None,
            key: ServiceKey { vip: [203, 0, 113, 1].into(), port: 80, protocol: Protocol::Tcp },
            forward,
            algo: Algo::Maglev { ring_size: 65537 },
            flows: Flows::defaults(Protocol::Tcp, Kind::Maglev),
            health_check: None,
            backends: vec![model::Backend {
                address: [10, 0, 0, 11].into(),
                port: 80,
                weight: 1,
                max_connections: 0,
                admin_state: AdminState::Ready,
            }],
        }],
    }
}
