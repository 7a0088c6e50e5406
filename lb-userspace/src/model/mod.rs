//! The nouns: node, service, backend, and a configuration that has been validated.
//!
//! Pure: no clock, no file, no socket. A [`Config`] exists only as the output of validation, so everything behind it may
//! rely on the rules of the configuration reference (families match, names are unique, limits hold).

pub mod algo;
pub mod code;
pub mod diagnostic;
pub mod diff;
pub mod dns;
pub mod duration;
pub mod emit;
#[cfg(test)]
mod example;
pub mod flows;
mod foreign;
#[cfg(test)]
mod golden;
pub mod import;
pub mod limits;
#[cfg(test)]
pub(crate) mod needs_tests;
pub mod orchestrator;
pub mod parse;
pub mod prime;
mod reference;
#[cfg(test)]
mod sample;
pub mod schema;
pub mod seed;
pub mod set;
pub mod store;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use algo::Algo;
pub use diff::{ConfigDiff, diff};
pub use emit::emit;
pub use flows::{Flows, OnMarkedDown, Track, UdpFlows, on_marked_down_word};
pub use lb_core::abi::service::Forward;
pub use limits::{BACKENDS_MAX_RANGE, FLOWS_MAX_RANGE, Limits, RING_SLOTS_MAX_RANGE, SERVICES_MAX_RANGE};
pub use parse::{Checked, Document, Incremental, check};
pub use reference::{BackendRef, BackendRefError, NAME_BYTES_MAX, is_name};
#[cfg(test)]
pub(crate) use sample::config as sample_config;
pub use store::{Pool, StoreConfig};

/// A validated configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[node]`.
    pub node: Node,
    /// `[store]`.
    pub store: StoreConfig,
    /// `[[pool]]`; names are unique, and no two have an address in common.
    pub pools: Vec<Pool>,
    /// `[[service]]`, in file order; (vip, port, protocol) is unique, and so is the name.
    pub services: Vec<Service>,
}

impl Config {
    /// The same with `host_name` as the name of the node, unless the file gave one. A host name that no node could have
    /// is cut to what one can.
    #[must_use]
    pub fn named(mut self, host_name: &str) -> Self {
        if self.node.name.is_empty() {
            let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            self.node.name = host_name.chars().filter(allowed).take(NAME_BYTES_MAX).collect();
        }
        self
    }

    /// The same as this node serves it: with the address that it leased (`leases`, by name of the pool) in place of each pool, and without
    /// the services of pools from which it has none yet. Their names are the second part.
    #[must_use]
    pub fn leased(mut self, leases: &BTreeMap<String, IpAddr>) -> (Self, Vec<String>) {
        let mut waiting = Vec::new();
        self.services.retain_mut(|service| {
            let Some(pool) = &service.pool else { return true };
            match leases.get(pool) {
                Some(address) => service.key.vip = *address,
                None => waiting.push(service.name.clone()),
            }
            leases.contains_key(pool)
        });
        (self, waiting)
    }
}

/// `[node]`: what is true for this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name of the node; empty where the file gives none, until [`Config::named`] fills in the host name.
    pub name: String,
    /// Names of the interfaces that carry XDP, at most [`lb_core::abi::stats::INTERFACES_MAX`].
    pub interfaces: Vec<String>,
    /// Whether generic XDP is acceptable.
    pub xdp_mode: XdpMode,
    /// Who answers for the VIPs.
    pub announce: Announce,
    /// /16 from which IPv4 outer sources are taken; default 198.18.0.0/16 (RFC 2544).
    pub outer_source_v4: Ipv4Net,
    /// /64 from which IPv6 outer sources are taken; default 100::/64 (RFC 6666).
    pub outer_source_v6: Ipv6Net,
    /// Sizes of the maps, fixed while the data plane is loaded.
    pub limits: Limits,
    /// Where `/metrics` is served; `None` switches it off. Default 127.0.0.1:9650.
    pub metrics_listen: Option<SocketAddr>,
    /// The API's Unix socket; default `/run/weir/api.sock`.
    pub api_socket: PathBuf,
    /// Group that may use the socket besides the owner.
    pub api_group: Option<String>,
    /// Folder of pins below a bpf file system; default `/sys/fs/bpf/weir`.
    pub pin_dir: PathBuf,
    /// Folder for what must survive a restart of the machine; default `/var/lib/weir`.
    pub state_dir: PathBuf,
    /// Shared secret of a fleet, 32 bytes as 64 hex digits in a file; without it the node draws its own and keeps it.
    pub seed_file: Option<PathBuf>,
}

/// `xdp_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Driver XDP or nothing.
    Native,
    /// Driver XDP if there is any, else generic.
    Generic,
}

/// `announce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Announce {
    /// The agent puts each VIP on the first interface and announces it.
    Address,
    /// The network routes the VIPs to the node.
    None,
}

/// Kind of the objects that hold a service each: `service/NAME`.
pub const SERVICE_OBJECT: &str = "service";
/// Kind of the objects that hold a pool each: `pool/NAME`.
pub const POOL_OBJECT: &str = "pool";

/// Backends of one service, at most.
pub const SERVICE_BACKENDS_MAX: usize = 4096;
/// Largest configured weight; 0 is "no new flows".
pub const WEIGHT_MAX: u16 = 1000;
/// Largest `max_connections`: as many flows as the largest flow table holds.
pub const MAX_CONNECTIONS_MAX: u32 = *FLOWS_MAX_RANGE.end();

/// `protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        })
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

impl fmt::Display for Announce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "address",
            Self::None => "none",
        })
    }
}

/// The word that the configuration uses for a forwarding mode.
pub const fn forward_word(forward: Forward) -> &'static str {
    match forward {
        Forward::Dsr => "dsr",
        Forward::Ipip => "ipip",
        Forward::Nat => "nat",
    }
}

/// What makes a service the same service: its VIP, port and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceKey {
    /// Address that clients connect to.
    pub vip: IpAddr,
    /// Port, or 0 for all.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// `[[service]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Name, unique; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// VIP, port and protocol.
    pub key: ServiceKey,
    /// Pool from which each node leases its VIP; the one in `key` is the pool's first address, until [`Config::leased`] put the
    /// node's own there.
    pub pool: Option<String>,
    /// Forwarding mode.
    pub forward: Forward,
    /// How a backend is chosen.
    pub algo: Algo,
    /// What becomes of its flows when backends change.
    pub flows: Flows,
    /// Health check; without one every backend counts as up.
    pub health_check: Option<HealthCheck>,
    /// Backends in file order, unique by (address, port).
    pub backends: Vec<Backend>,
}

impl Service {
    /// What a UDP service promises; `None` for TCP. A datagram's flow is sticky exactly where it is recorded.
    pub const fn udp_flows(&self) -> Option<UdpFlows> {
        match (self.key.protocol, self.flows.track) {
            (Protocol::Tcp, _) => None,
            (Protocol::Udp, Track::Moved) => Some(UdpFlows::Stateless),
            (Protocol::Udp, Track::All) => Some(UdpFlows::Sticky),
        }
    }
}

/// `[[service.backends]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Address of the backend.
    pub address: IpAddr,
    /// Port; 0 for a service on all ports. Equal to the service's port unless the mode is `nat`.
    pub port: u16,
    /// Configured weight, 0 to [`WEIGHT_MAX`]; default 1.
    pub weight: u16,
    /// Connections that it takes at most, up to [`MAX_CONNECTIONS_MAX`]; 0, the default, is no limit.
    pub max_connections: u32,
    /// Administrative state; default ready.
    pub admin_state: AdminState,
}

/// `admin_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    /// Takes traffic according to weight and health.
    Ready,
    /// Takes no new flows.
    Drain,
    /// Takes nothing and is not checked.
    Maint,
}

/// `[service.health_check]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Port that is asked; the backend's own unless given (a service on all ports must give one).
    pub port: Option<u16>,
    /// Time between probes; default 2 s, 100 ms to 1 h.
    pub interval: Duration,
    /// Time a probe may take; default 1 s, at most the interval.
    pub timeout: Duration,
    /// Consecutive successes until up; default 2.
    pub rise: u32,
    /// Consecutive failures until down; default 3.
    pub fall: u32,
}

impl HealthCheck {
    /// Default of `path`.
    pub const PATH: &'static str = "/health";
    /// Default of `interval`.
    pub const INTERVAL: Duration = Duration::from_secs(2);
    /// Default of `timeout`; the interval if that is less.
    pub const TIMEOUT: Duration = Duration::from_secs(1);
    /// Default of `rise`.
    pub const RISE: u32 = 2;
    /// Default of `fall`.
    pub const FALL: u32 = 3;
}

/// `type` of a health check with its own parameters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Probe {
    /// GET, success is 200 to 299.
    Http {
        /// Path; default `/health`.
        path: String,
        /// `Host` header; the address unless given.
        host: Option<String>,
    },
    /// A TCP connection that is accepted.
    Tcp,
}

/// Where frames for a backend go next, as netlink says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Interface that leads there.
    pub ifindex: u32,
    /// MTU of that interface, or of the route, in bytes of IP packet.
    pub mtu: u16,
    /// MAC of the interface.
    pub src_mac: [u8; 6],
    /// MAC of the neighbour: the backend itself or a gateway.
    pub dst_mac: [u8; 6],
}
