//! The services that sequences change: their servers and settings, and what they ask of the maps.
//!
//! Pure. Refuses to know flows and time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_core::abi::{
    mapped,
    ring::Inputs,
    service::{Algo, Forward, OnMarkedDown},
};
use lb_userspace::{
    model::{Limits, NextHop, Protocol, ServiceKey},
    plan::{MapSizes, Policy, Secrets, Times, Wanted, WantedBackend, WantedService, wanted::backend_key},
};

use super::{
    place::mac,
    step::{SERVERS, SERVICES},
};

/// Secrets of every sequence.
pub const SECRETS: Secrets = Secrets { hash_key: [11, 22, 33, 44, 55, 66, 77, 88, 99, 111, 122, 133], ring_seed: 5 };
/// Where the first service listens.
pub const WEB: ServiceKey =
    ServiceKey { vip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), port: 80, protocol: Protocol::Tcp };
/// An address of each family, of which a service may be the second at its port.
const VIP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1));
const OTHER_VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
/// Interface of every next hop.
const IFINDEX: u32 = 1;

/// Sizes of the maps for sequences.
pub fn sizes() -> MapSizes {
    MapSizes::of(&Limits { services_max: 8, backends_max: 128, ring_slots_max: 32_768, flows_max: 1024 })
}

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// It stands in the configuration.
    pub listed: bool,
    /// Configured weight; 0 takes no new flows.
    pub weight: u32,
    /// It is in maintenance.
    pub maint: bool,
    /// It answers.
    pub up: bool,
    /// Connections at most; 0 is no limit.
    pub limit: u32,
}

impl Server {
    /// Whether it would take new flows if it were up.
    fn is_candidate(&self) -> bool {
        self.listed && !self.maint && self.weight > 0
    }
}

/// A service as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Where it listens.
    pub key: ServiceKey,
    /// By number.
    pub servers: Vec<Server>,
    /// How new flows are placed.
    pub algo: Algo,
    /// What chooses a slot.
    pub inputs: Inputs,
    /// Slots of the ring, a prime number.
    pub ring_size: u32,
    /// Every flow is recorded; chosen algorithms and limits do so anyway. Flows of datagrams are sticky then, and else there are none.
    pub track_all: bool,
    /// What becomes of the flows of a server that is down.
    pub on_marked_down: OnMarkedDown,
    /// How long announced and moving slots are so.
    pub times: Times,
    /// Seconds that a flow may be silent.
    pub established_s: u32,
    /// Seconds that a server keeps its flows after it left.
    pub drain_s: u64,
}

/// What the maps shall hold of services. Backends say by their next hop which server of which service they are.
pub fn wanted<'a>(setups: impl IntoIterator<Item = &'a Setup>) -> Wanted {
    let mut services: Vec<WantedService> = (0..).zip(setups).map(|(number, setup)| setup.wanted(number)).collect();
    services.sort_unstable_by_key(|service| service.key);
    Wanted { services, outer_source_v4: [198, 18, 0, 0], outer_source_v6: mapped([0; 4]), leaving: BTreeMap::new() }
}

impl Setup {
    /// A hashed service of `listed` servers of `all`, each with weight 1.
    pub fn new(all: usize, listed: usize, ring_size: u32, times: Times) -> Self {
        let server = |n| Server { listed: n < listed, weight: 1, maint: false, up: true, limit: 0 };
        Self {
            key: WEB,
            servers: (0..all).map(server).collect(),
            algo: Algo::Hashed,
            inputs: Inputs::Tuple,
            ring_size,
            track_all: false,
            on_marked_down: OnMarkedDown::Rehash,
            times,
            established_s: times.window_s as u32 + 10,
            drain_s: 25,
        }
    }

    /// The services of a sequence, as they are at its beginning. Clients use the same addresses and ports towards each.
    pub fn several(times: Times) -> [Self; SERVICES as usize] {
        let setup = |key| Self { key, ..Self::new(SERVERS.into(), usize::from(SERVERS) / 2, 251, times) };
        [
            setup(WEB),
            Self { algo: Algo::LeastConnections, ..setup(ServiceKey { vip: VIP_V6, ..WEB }) },
            Self { inputs: Inputs::Source, ..setup(ServiceKey { vip: OTHER_VIP, ..WEB }) },
            setup(ServiceKey { protocol: Protocol::Udp, ..WEB }),
            Self { track_all: true, ..setup(ServiceKey { vip: VIP_V6, protocol: Protocol::Udp, ..WEB }) },
        ]
    }

    /// Whether every flow is recorded.
    pub fn tracks_all(&self) -> bool {
        self.track_all || self.algo != Algo::Hashed || self.is_limited()
    }

    /// Whether a server may be full.
    pub fn is_limited(&self) -> bool {
        self.servers.iter().any(|server| server.listed && server.limit > 0)
    }

    /// Whether all that would take new flows are down, and count as up for that: as the agent judges it.
    pub fn fails_open(&self) -> bool {
        let mut candidates = self.servers.iter().filter(|server| server.is_candidate()).peekable();
        candidates.peek().is_some() && !candidates.any(|server| server.up)
    }

    /// Whether a server takes new flows.
    pub fn takes_new(&self, server: &Server) -> bool {
        server.is_candidate() && (server.up || self.fails_open())
    }

    /// What the maps shall hold where there is no other service.
    pub fn alone(&self) -> Wanted {
        wanted([self])
    }

    fn wanted(&self, number: u8) -> WantedService {
        let id = |n: usize| {
            let [high, low] = (n as u16).to_be_bytes();
            let address = match self.key.vip {
                IpAddr::V4(_) => Ipv4Addr::new(10, 0, high, low).into(),
                IpAddr::V6(_) => Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, n as u16]).into(),
            };
            backend_key(&self.key, address, self.key.port)
        };
        let present = || self.servers.iter().enumerate().filter(|(_, server)| server.listed);
        let fail_open = self.fails_open();
        let mut backends: Vec<WantedBackend> = present()
            .filter(|(_, server)| !server.maint)
            .map(|(n, server)| WantedBackend {
                key: id(n),
                weight: if server.up || fail_open { server.weight } else { 0 },
                up: server.up,
                down: !server.up,
                max_connections: server.limit,
                next_hop: Some(NextHop {
                    ifindex: IFINDEX,
                    mtu: 1500,
                    src_mac: [2, 0, 0, 0, 0, 1],
                    dst_mac: mac(u16::from_be_bytes([number, n as u8])),
                }),
            })
            .collect();
        backends.sort_unstable_by_key(|backend| backend.key);
        let mut dismissed: Vec<_> = present().filter(|(_, server)| server.maint).map(|(n, _)| id(n)).collect();
        dismissed.sort_unstable();
        WantedService {
            name: format!("web{number}"),
            key: self.key,
            forward: Forward::Dsr,
            ring_size: self.ring_size,
            policy: Policy {
                algo: self.algo,
                inputs: self.inputs,
                track_all: self.tracks_all(),
                on_marked_down: self.on_marked_down,
                windows: self.key.protocol == Protocol::Tcp || self.tracks_all(),
                times: self.times,
                established_s: self.established_s,
                drain_s: self.drain_s,
            },
            fail_open,
            backends,
            dismissed,
        }
    }
}
