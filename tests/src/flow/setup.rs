//! The one service that sequences change: its servers and its settings, and what they ask of the maps.
//!
//! Pure. Refuses to know flows and time.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
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

use super::place::mac;

/// Secrets of every sequence.
pub const SECRETS: Secrets = Secrets { hash_key: [11, 22, 33, 44, 55, 66, 77, 88, 99, 111, 122, 133], ring_seed: 5 };
/// The service's address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The service's port.
pub const PORT: u16 = 80;
/// Interface of every next hop.
const IFINDEX: u32 = 1;

/// Sizes of the maps for sequences.
pub fn sizes() -> MapSizes {
    MapSizes::of(&Limits { services_max: 4, backends_max: 64, ring_slots_max: 16_384, flows_max: 1024 })
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
}

impl Server {
    /// Whether it would take new flows.
    pub fn is_eligible(&self) -> bool {
        self.listed && !self.maint && self.up && self.weight > 0
    }
}

/// The service as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// By number.
    pub servers: Vec<Server>,
    /// How new flows are placed.
    pub algo: Algo,
    /// What chooses a slot.
    pub inputs: Inputs,
    /// Slots of the ring, a prime number.
    pub ring_size: u32,
    /// Every flow is recorded; chosen algorithms do so anyway.
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

impl Setup {
    /// A hashed service of `listed` servers of `all`, each with weight 1.
    pub fn new(all: usize, listed: usize, ring_size: u32, times: Times) -> Self {
        let server = |n| Server { listed: n < listed, weight: 1, maint: false, up: true };
        Self {
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

    /// Whether every flow is recorded.
    pub fn tracks_all(&self) -> bool {
        self.track_all || self.algo != Algo::Hashed
    }

    /// What the maps shall hold.
    pub fn wanted(&self) -> Wanted {
        let key = ServiceKey { vip: VIP.into(), port: PORT, protocol: Protocol::Tcp };
        let id = |n: usize| {
            let [high, low] = (n as u16).to_be_bytes();
            backend_key(&key, IpAddr::from(Ipv4Addr::new(10, 0, high, low)), PORT)
        };
        let present = || self.servers.iter().enumerate().filter(|(_, server)| server.listed);
        // As the agent judges it: where nobody takes new flows at all, nobody fails.
        let candidate = |server: &Server| server.listed && !server.maint && server.weight > 0;
        let fail_open = self.servers.iter().any(candidate) && !self.servers.iter().any(Server::is_eligible);
        let mut backends: Vec<WantedBackend> = present()
            .filter(|(_, server)| !server.maint)
            .map(|(n, server)| WantedBackend {
                key: id(n),
                weight: if server.up || fail_open { server.weight } else { 0 },
                up: server.up,
                down: !server.up,
                max_connections: 0,
                next_hop: Some(NextHop {
                    ifindex: IFINDEX,
                    mtu: 1500,
                    src_mac: [2, 0, 0, 0, 0, 1],
                    dst_mac: mac(n as u16),
                }),
            })
            .collect();
        backends.sort_unstable_by_key(|backend| backend.key);
        let mut dismissed: Vec<_> = present().filter(|(_, server)| server.maint).map(|(n, _)| id(n)).collect();
        dismissed.sort_unstable();
        let service = WantedService {
            name: "web".into(),
            key,
            forward: Forward::Dsr,
            ring_size: self.ring_size,
            policy: Policy {
                algo: self.algo,
                inputs: self.inputs,
                track_all: self.tracks_all(),
                on_marked_down: self.on_marked_down,
                windows: true,
                times: self.times,
                established_s: self.established_s,
                drain_s: self.drain_s,
            },
            fail_open,
            backends,
            dismissed,
        };
        Wanted {
            services: vec![service],
            outer_source_v4: [198, 18, 0, 0],
            outer_source_v6: mapped([0; 4]),
            leaving: BTreeMap::new(),
        }
    }
}
