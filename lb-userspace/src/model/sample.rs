//! Random valid configurations for property tests.

use std::{collections::HashSet, net::IpAddr, path::PathBuf, time::Duration};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    AdminState, Algo, Announce, Backend, Config, Flows, Forward, HealthCheck, Limits, MAX_CONNECTIONS_MAX, Node,
    OnMarkedDown, Pool, Probe, Protocol, Service, ServiceKey, StoreConfig, Track, XdpMode, algo,
    store::{EmbeddedStore, RedisServers, RedisStore, RemoteStore, Scheme, StoreUrl, TlsFiles},
};

/// A valid configuration with up to five services.
pub fn config() -> impl Strategy<Value = Config> {
    (node(), store(), vec(service(), 0..5)).prop_map(|(node, store, mut services)| {
        if !store.is_file() {
            services.clear();
        }
        let mut keys = HashSet::new();
        let mut replies = HashSet::new();
        services.retain(|service| keys.insert(service.key));
        for (i, service) in services.iter_mut().enumerate() {
            service.name = format!("{}-{i}", service.name);
            let mut places = HashSet::new();
            let nat = service.forward == Forward::Nat;
            service.backends.retain(|b| {
                // One service a `nat` address is stricter than the rule needs, and simple.
                places.insert((b.address, b.port)) && (!nat || replies.insert((b.address, service.key.protocol)))
            });
        }
        // Of a file without services; the pools' addresses are nobody else's.
        let pool =
            |n: u8| Pool { name: format!("pool-{n}"), prefix: IpNet::new_assert([203, 0, 113, n * 16].into(), 28) };
        let pools = if store.is_file() { (0..services.len() as u8).map(pool).collect() } else { Vec::new() };
        Config { node, store, pools, services }
    })
}

fn store() -> impl Strategy<Value = StoreConfig> {
    let file = || option::of(path().prop_map(PathBuf::from));
    let tls = (file(), option::of((path(), path()))).prop_map(|(ca_file, own)| {
        let (cert_file, key_file) = own.map(|(cert, key)| (cert.into(), key.into())).unzip();
        TlsFiles { ca_file, cert_file, key_file }
    });
    let url = |schemes: [Scheme; 2]| {
        let host = prop_oneof![Just("localhost".to_owned()), Just("2001:db8::1".to_owned()), "[a-z][a-z0-9.-]{0,20}"];
        (select(schemes.to_vec()), host, 1..=u16::MAX, 0u32..16).prop_map(|(scheme, host, port, database)| {
            let database = if scheme.is_redis() { database } else { 0 };
            StoreUrl::Tcp { scheme, host, port, database }
        })
    };
    let rest = (path(), file(), tls, url([Scheme::Http, Scheme::Https]), url([Scheme::Redis, Scheme::Rediss]));
    (0..5u8, rest).prop_map(|(kind, (path, file, tls, http, redis))| match kind {
        0 => StoreConfig::Embedded(EmbeddedStore {
            path: path.into(),
            listen: Some(([192, 0, 2, 1], 9653).into()),
            token_file: file,
            tls,
            insecure: true,
        }),
        1 => {
            let tls = TlsFiles { ca_file: tls.ca_file.or_else(|| Some(path.into())), ..tls };
            StoreConfig::Remote(RemoteStore { url: http, token_file: file, tls, insecure: true })
        }
        2 => {
            let servers = RedisServers::One(redis);
            StoreConfig::Redis(RedisStore { servers, user: None, password_file: file, tls, insecure: true })
        }
        3 => {
            let servers = RedisServers::Sentinels {
                urls: vec![redis.clone(), redis],
                master_name: "m".into(),
                server_tls: file.as_ref().map(|_| true),
                user: file.as_ref().map(|_| "s".to_owned()),
                password_file: file,
            };
            let (user, password_file) = (Some("weir".to_owned()), Some(path.into()));
            StoreConfig::Redis(RedisStore { servers, user, password_file, tls, insecure: true })
        }
        _ => StoreConfig::File,
    })
}

fn path() -> impl Strategy<Value = String> {
    "/[ -~äß]{0,20}[a-z]"
}

fn node() -> impl Strategy<Value = Node> {
    let names = ("[a-zA-Z0-9._-]{0,64}", vec("[a-z]{2}[a-z0-9.@-]{0,13}", 1..4));
    let sources = (any::<u16>(), 0x2000u64 << 48..0x3fff << 48);
    let limits = (10u32..=65_535, 1000u32..=4 << 20, 8u32 << 20..=512 << 20, 1024u32..=64 << 20);
    let paths = (path(), option::of("[a-z][a-z0-9_-]{0,10}"), path(), path(), option::of(path()));
    let rest = (any::<bool>(), any::<bool>(), option::of(any::<std::net::SocketAddr>()));
    (names, sources, limits, paths, rest).prop_map(|(names, sources, limits, paths, rest)| {
        let mut seen = HashSet::new();
        let (v4, v6) = (u32::from(sources.0 % 0x4000 + 0x8000) << 16, u128::from(sources.1) << 64);
        let metrics_listen = rest.2.map(|address| match address {
            std::net::SocketAddr::V4(v4) => v4.into(),
            // Flow labels and zones have no place in the file.
            std::net::SocketAddr::V6(v6) => std::net::SocketAddr::new((*v6.ip()).into(), v6.port()),
        });
        Node {
            name: names.0,
            interfaces: names.1.into_iter().filter(|name| seen.insert(name.clone())).collect(),
            xdp_mode: if rest.0 { XdpMode::Native } else { XdpMode::Generic },
            announce: if rest.1 { Announce::Address } else { Announce::None },
            outer_source_v4: Ipv4Net::new_assert(v4.into(), 16),
            outer_source_v6: Ipv6Net::new_assert(v6.into(), 64),
            limits: Limits {
                services_max: limits.0,
                backends_max: limits.1,
                ring_slots_max: limits.2,
                flows_max: limits.3,
            },
            metrics_listen,
            api_socket: paths.0.into(),
            api_group: paths.1,
            pin_dir: paths.2.into(),
            state_dir: paths.3.into(),
            seed_file: paths.4.map(Into::into),
        }
    })
}

/// An address of a family: VIPs and backends come from ranges of their own.
fn address(v4: bool, vip: bool, n: u8) -> IpAddr {
    match (v4, vip) {
        (true, true) => [192, 0, 2, n].into(),
        (true, false) => [10, 0, 0, n].into(),
        (false, true) => [0x2001, 0xdb8, 0, 0, 0, 0, 1, u16::from(n)].into(),
        (false, false) => [0x2001, 0xdb8, 0, 0, 0, 0, 2, u16::from(n)].into(),
    }
}

fn service() -> impl Strategy<Value = Service> {
    let key = (any::<bool>(), any::<u8>(), prop_oneof![Just(0u16), 1..=u16::MAX], any::<bool>());
    let forward = select(vec![Forward::Dsr, Forward::Ipip, Forward::Nat]);
    let ring_size = select(vec![251u32, 65_537, 655_373]);
    let states = select(vec![AdminState::Ready, AdminState::Drain, AdminState::Maint]);
    let limit = prop_oneof![4 => Just(0), 1 => 1..=MAX_CONNECTIONS_MAX];
    let backend = (any::<bool>(), any::<u8>(), 1..=u16::MAX, 0..=1000u16, limit, states);
    let algo = (select(algo::Kind::ALL.as_slice()), ring_size).prop_map(|(kind, ring_size)| Algo::new(kind, ring_size));
    let parts = ("[a-zA-Z0-9._-]{1,20}", key, forward, algo, flows(), option::of(health_check()), vec(backend, 0..6));
    parts.prop_map(|(name, key, forward, algo, mut flows, health_check, backends)| {
        let port = key.2;
        let protocol = if key.3 { Protocol::Tcp } else { Protocol::Udp };
        if !algo.is_hashed() || backends.iter().any(|(.., limit, _)| *limit > 0) {
            flows.track = Track::All;
        }
        if protocol == Protocol::Udp && flows.on_marked_down == OnMarkedDown::Reset {
            flows.on_marked_down = OnMarkedDown::Keep;
        }
        let backends = backends.into_iter().map(|(v4, n, own_port, weight, max_connections, admin_state)| Backend {
            address: address(if forward == Forward::Ipip { v4 } else { key.0 }, false, n),
            port: if forward == Forward::Nat && port != 0 { own_port } else { port },
            weight,
            max_connections,
            admin_state,
        });
        Service {
            name,
            key: ServiceKey { vip: address(key.0, true, key.1), port, protocol },
            pool: None,
            forward,
            algo,
            flows,
            health_check: health_check.map(|mut check: HealthCheck| {
                if port == 0 {
                    check.port.get_or_insert(1);
                }
                check
            }),
            backends: backends.collect(),
        }
    })
}

fn flows() -> impl Strategy<Value = Flows> {
    let ends = select(vec![OnMarkedDown::Rehash, OnMarkedDown::Keep, OnMarkedDown::Reset]);
    let silences = (1000u64..=64_800_000, 1000u64..=64_800_000);
    (any::<bool>(), ends, silences, 0u64..=60_000, 0u64..=86_400_000).prop_map(
        |(all, on_marked_down, (a, b), announce_for, drain_timeout)| Flows {
            track: if all { Track::All } else { Track::Moved },
            on_marked_down,
            window: Duration::from_millis(a.min(b)),
            flow_timeout: Duration::from_millis(a.max(b)),
            announce_for: Duration::from_millis(announce_for),
            drain_timeout: Duration::from_millis(drain_timeout),
        },
    )
}

fn health_check() -> impl Strategy<Value = HealthCheck> {
    let http = ("/[a-z0-9/?&=%~]{0,20}", option::of("[a-z0-9.-]{1,20}(:[0-9]{1,4})?"))
        .prop_map(|(path, host)| Probe::Http { path, host });
    let probe = prop_oneof![http, Just(Probe::Tcp)];
    (probe, option::of(1..=u16::MAX), 100u64..=3_600_000, 1u64..=3_600_000, 1u32..=100, 1u32..=100).prop_map(
        |(probe, port, interval, timeout, rise, fall)| HealthCheck {
            probe,
            port,
            interval: Duration::from_millis(interval),
            timeout: Duration::from_millis(timeout.min(interval)),
            rise,
            fall,
        },
    )
}
