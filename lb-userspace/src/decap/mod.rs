//! `weir decap`: the backend's side of an IP-in-IP tunnel where the kernel has none.
//!
//! Owns loading, attaching, pinning and reading the decapsulator, and the errors of all that. The decision about a packet
//! is [`lb_core::decap`]. Knows nothing of services or agents: a backend runs it without any other part of weir.
//!
//! Invariants: an interface has at most one decapsulator; a repeated [`attach`] replaces program and rules at once,
//! without a packet between them, and counters start at zero; what is attached outlives the process.

mod attach;
mod interface;
mod pin;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use thiserror::Error;

pub use attach::{attach, detach, status};

/// What to attach, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Name of the interface.
    pub interface: String,
    /// Inner destinations that are accepted. None at all attaches a program that passes every packet.
    pub vips: Vec<IpNet>,
    /// Outer sources that are accepted.
    pub sources: Vec<IpNet>,
    /// `None` tries native XDP, then tc.
    pub mode: Option<Mode>,
}

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// XDP in the driver.
    Native,
    /// XDP behind the driver, on socket buffers.
    Generic,
    /// tc ingress.
    Tc,
}

impl Mode {
    /// Name in messages and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        }
    }
}

/// A decapsulator that is attached, as read back from the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Name of the interface.
    pub interface: String,
    /// Where the program runs.
    pub mode: Mode,
    /// Kernel's id of the program.
    pub program_id: u32,
    /// Outer destinations that are accepted: the interface's addresses when it was attached.
    pub addresses: Vec<IpAddr>,
    /// Outer sources that are accepted.
    pub sources: Vec<IpNet>,
    /// Inner destinations that are accepted.
    pub vips: Vec<IpNet>,
    /// Packets by [`lb_core::abi::decap::Reason::name`].
    pub packets: BTreeMap<&'static str, u64>,
    /// Why `auto` did not choose native XDP; only from [`attach`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native_refused: Option<String>,
    /// What is attached may vanish with the process, as inside `ip netns exec`; only from [`attach`].
    #[serde(skip)]
    pub private_mount: bool,
}

/// The outer sources that weir writes unless configured otherwise: 198.18.0.0/16 and 100::/64.
pub fn default_sources() -> Vec<IpNet> {
    vec![
        IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 16)),
        IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64)),
    ]
}

/// What can go wrong.
#[derive(Debug, Error)]
pub enum DecapError {
    /// The name is not known in this network namespace.
    #[error("there is no interface {interface} in this network namespace")]
    NoInterface {
        /// The name.
        interface: String,
    },
    /// The interface has no address that a tunnel could end at.
    #[error("interface {interface} has no IP address: tunnel packets are recognised by it; add one first")]
    NoAddress {
        /// The name.
        interface: String,
    },
    /// More entries than a map holds.
    #[error("{given} {what}, at most {max} are possible")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        given: usize,
        /// How many there can be.
        max: usize,
    },
    /// Netlink cannot be opened.
    #[error("cannot open a netlink socket: {source}")]
    NetlinkSocket {
        /// Cause.
        source: io::Error,
    },
    /// Netlink refuses.
    #[error("cannot read interface {interface} from netlink: {source}")]
    Netlink {
        /// The interface.
        interface: String,
        /// Cause.
        source: rtnetlink::Error,
    },
    /// The bpf file system is missing and cannot be mounted.
    #[error("cannot mount the bpf file system on /sys/fs/bpf: {source} (root is needed)")]
    BpfFs {
        /// Cause.
        source: io::Error,
    },
    /// A file under the bpf file system.
    #[error("{}: {source}", path.display())]
    Pin {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A link or program cannot be pinned.
    #[error("cannot pin the decapsulator at {}: {source}", path.display())]
    PinObject {
        /// Where.
        path: PathBuf,
        /// Cause.
        source: PinError,
    },
    /// The kernel refuses the maps, or the object is damaged.
    #[error("cannot load the decapsulator: {0} (root, or CAP_BPF with CAP_NET_ADMIN, is needed)")]
    Load(#[from] EbpfError),
    /// The object lacks a part.
    #[error("the decapsulator's object has no {0}: weir was built wrongly")]
    Missing(&'static str),
    /// A map cannot be read or written.
    #[error("cannot access a map of the decapsulator: {0}")]
    Map(#[from] MapError),
    /// The kernel refuses the program.
    #[error("the kernel refuses the decapsulator: {0}")]
    Program(#[from] ProgramError),
    /// The verifier refuses the program.
    #[error("the kernel refuses the decapsulator: {source}; the verifier's last words:\n{log}")]
    Rejected {
        /// Cause.
        source: io::Error,
        /// End of the verifier's log.
        log: String,
    },
    /// A link cannot be opened.
    #[error("cannot open the decapsulator's link: {0}")]
    Link(#[from] LinkError),
    /// Another program holds the hook.
    #[error("interface {interface} already runs another XDP program; detach it first, or use --mode tc")]
    Busy {
        /// The interface.
        interface: String,
    },
    /// The hook refuses the program.
    #[error("cannot attach to {interface} in {} mode: {reason}", mode.name())]
    Attach {
        /// The interface.
        interface: String,
        /// The mode that was tried.
        mode: Mode,
        /// Cause, in the words of the kernel, with what to do where that is known.
        reason: String,
    },
    /// Nothing is attached.
    #[error("no decapsulator is attached to {interface}")]
    NotAttached {
        /// The interface.
        interface: String,
    },
}
