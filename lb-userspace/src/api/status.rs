//! `GET /v1/status`: what runs, what it runs, and how its last reload went.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{
    Diagnostic,
    flows::{FlowTable, SlotStates},
};

/// State of the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the node.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Time since the agent started.
    pub uptime_s: u64,
    /// Whether the agent found a pinned data plane and took it over, rather than loading one.
    pub adopted: bool,
    /// Revision of the configuration that the maps hold; counts up by one with every change applied.
    pub revision: u64,
    /// The configuration file.
    pub config_file: String,
    /// Folder of the pinned program, links and maps.
    pub pin_dir: String,
    /// Version of the map layouts.
    pub abi_version: u32,
    /// The last time that a configuration was read, whatever came of it.
    pub last_reload: Reload,
    /// Interfaces that carry the program, in the order of the configuration.
    pub interfaces: Vec<Interface>,
    /// Fill of each map, in the order of [`lb_core::abi::MAPS`].
    pub maps: Vec<MapFill>,
    /// How many of what.
    pub counts: Counts,
    /// The flow table.
    #[serde(default)]
    pub flows: FlowTable,
    /// The store that the services come from; `None` where they stand in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreStatus>,
}

/// How it stands with the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Kind and address, without secrets.
    pub store: String,
    /// Whether it is read; if not, what is in force stays.
    pub up: bool,
    /// Why it is not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Since when that is so, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_s: Option<u64>,
    /// Newest revision that was read: `42-1a2b3c4d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<String>,
    /// Revision in force on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<String>,
    /// Changes by which this node is behind what was read.
    pub lag: u64,
    /// The loss of history because of which the store's state is refused, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history_lost: Option<String>,
    /// Losses of history since the agent started.
    pub losses: u64,
    /// How often the node had to ask anew, by cause.
    #[serde(default)]
    pub resyncs: Vec<Resyncs>,
    /// Health targets that are judged by the orchestrators, through the store.
    #[serde(default)]
    pub health_from_store: u32,
    /// Health targets that this node checks for itself, as it does without an orchestrator or if that is silent.
    #[serde(default)]
    pub health_own: u32,
    /// Addresses that this node leases, by pool.
    #[serde(default)]
    pub pools: Vec<PoolLease>,
}

/// How often the node had to ask the store anew for one cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resyncs {
    /// The cause.
    pub cause: String,
    /// How often.
    pub count: u64,
}

/// A pool with the address that this node has of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolLease {
    /// Name of the pool.
    pub pool: String,
    /// The address; `None` while none could be had, and the pool's services are not served here.
    pub address: Option<IpAddr>,
}

/// How reading a configuration ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    /// When, seconds since 1970.
    pub at_unix_s: u64,
    /// What came of it.
    pub outcome: ReloadOutcome,
    /// Why it was refused; what changed otherwise. One sentence.
    pub message: String,
    /// Errors and warnings about the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

/// Outcome of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadOutcome {
    /// The maps hold it.
    Applied,
    /// It says what the maps held already.
    Unchanged,
    /// It was refused whole; the one before is in force.
    Refused,
}

/// XDP mode read back from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpModeInForce {
    /// In the driver.
    Native,
    /// In the stack, after the packet buffer was allocated: slow.
    Generic,
    /// In the card.
    Offload,
    /// No program of ours is there.
    Detached,
}

/// An interface that carries the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Index; 0 while the interface does not exist.
    pub ifindex: u32,
    /// The mode in force.
    pub mode: XdpModeInForce,
    /// Kernel's id of the attached program; 0 if none.
    pub program_id: u32,
    /// Whether the attached program is this agent's.
    pub attached: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether the link has carrier.
    pub up: bool,
}

/// Fill of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapFill {
    /// Name, as bpftool shows it.
    pub name: String,
    /// Entries in use.
    pub used: u64,
    /// Entries that fit.
    pub max: u64,
    /// Memory that the map takes.
    pub memory_bytes: u64,
}

/// How many of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Services.
    pub services: u32,
    /// Services that forward to all their backends because health left none.
    pub services_fail_open: u32,
    /// Services whose ring is empty: every backend has effective weight 0.
    pub services_without_backend: u32,
    /// Backends over all services.
    pub backends: u32,
    /// Backends that health judged up, or that have no check.
    pub backends_up: u32,
    /// Backends that health judged down.
    pub backends_down: u32,
    /// Backends whose administrative state is not `ready`.
    pub backends_not_ready: u32,
    /// Backends with positive effective weight whose next hop is unknown.
    pub backends_unresolved: u32,
    /// Slots of all rings by state.
    #[serde(default)]
    pub slots: SlotStates,
    /// Services of which a slot is not settled.
    #[serde(default)]
    pub services_in_window: u32,
}
