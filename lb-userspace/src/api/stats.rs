//! `GET /v1/stats`: counters of the data plane, summed over CPUs. Rates are the reader's business.

use serde::{Deserialize, Serialize};

use super::flows::{Connections, FlowTable, SlotStates};

/// All counters, read one after the other within a few milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// When they were read, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Per interface, in the order of the configuration.
    pub interfaces: Vec<InterfaceStats>,
    /// Per service.
    pub services: Vec<ServiceStats>,
    /// Per backend, those that leave last.
    pub backends: Vec<BackendStats>,
    /// The flow table.
    #[serde(default)]
    pub flows: FlowTable,
}

/// What the program did on one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStats {
    /// Name.
    pub interface: String,
    /// Every reason, in the order of its number, also those with no packet.
    pub reasons: Vec<ReasonCount>,
    /// What was lost after the program's verdict.
    pub losses: Vec<LossCount>,
}

/// What the program did with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Given to the kernel's stack.
    Pass,
    /// Dropped.
    Drop,
    /// Sent back through the same interface.
    Tx,
    /// Sent through another interface.
    Redirect,
    /// Forwarded, by `tx` or by `redirect` as the next hop asks.
    Forward,
    /// The program failed.
    Aborted,
}

/// Counter of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// Name, `snake_case`, stable.
    pub reason: String,
    /// What happens to such packets.
    pub action: Action,
    /// One sentence: what it means and, where something is wrong, what to do.
    pub help: String,
    /// Packets.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
}

/// Counter of a loss after the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossCount {
    /// Name, `snake_case`: `redirect_error`, `xdp_exception`, `tx_dropped` ...
    pub loss: String,
    /// One sentence.
    pub help: String,
    /// Packets.
    pub packets: u64,
}

/// Counter of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStats {
    /// Name.
    pub service: String,
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
    /// Slots of its ring by state.
    #[serde(default)]
    pub slots: SlotStates,
    /// Its connections.
    #[serde(default)]
    pub connections: Connections,
}

/// Counter of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStats {
    /// Name of the service.
    pub service: String,
    /// Name of the backend within the service.
    pub backend: String,
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
    /// Its connections.
    #[serde(default)]
    pub connections: Connections,
}
