//! The nouns: node, service, backend, and a configuration that has been validated.
//!
//! Pure: no clock, no file, no socket. A [`Config`] exists only as the output of validation, so everything behind it may
//! rely on the rules of the configuration reference (families match, names are unique, limits hold).

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use lb_core::abi::service::Forward;

/// A validated configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[node]`.
    pub node: Node,
    /// `[[service]]`, in file order; (vip, port, protocol) is unique, and so is the name.
    pub services: Vec<Service>,
}

/// `[node]`: what is true for this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name of the node; the host name unless given.
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

/// `[node.limits]`: sizes of the maps. Changing one needs `weir agent --unload` first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Services; default 4096, at most 65535.
    pub services_max: u32,
    /// Backends over all services; default 65536, at most 4 Mi. The id space is twice as large.
    pub backends_max: u32,
    /// Slots of the ring arena, 4 bytes each; default 16 Mi. A changed ring needs room beside the old one.
    pub ring_slots_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { services_max: 4096, backends_max: 65_536, ring_slots_max: 16 << 20 }
    }
}

/// Backends of one service, at most.
pub const SERVICE_BACKENDS_MAX: usize = 4096;
/// Largest configured weight; 0 is "no new flows".
pub const WEIGHT_MAX: u16 = 1000;

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
    /// Forwarding mode.
    pub forward: Forward,
    /// How a backend is chosen.
    pub algo: Algo,
    /// Health check; without one every backend counts as up.
    pub health_check: Option<HealthCheck>,
    /// Backends in file order, unique by (address, port).
    pub backends: Vec<Backend>,
}

/// `algo` with its `algo_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algo {
    /// Maglev consistent hashing.
    Maglev {
        /// Prime number of ring entries, 251 to 655373; default 65537.
        ring_size: u32,
    },
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
