//! `BACKEND_STATS` and `REASON_STATS`: per-CPU packet and byte counters.
//!
//! Written by the program; read by the agent, which sums over CPUs. A service's packets are the sum over its backends.
//! Bytes are those of the frame as it was received.

use bytemuck::{Pod, Zeroable};

use super::MapShape;

/// Interfaces that one node can attach to; each has its own block of [`REASONS_MAX`] counters in `REASON_STATS`.
pub const INTERFACES_MAX: u32 = 16;
/// Counters per interface in `REASON_STATS`; the index is `interface slot * REASONS_MAX + reason`.
pub const REASONS_MAX: u32 = 64;

/// Shape of `BACKEND_STATS`, index = backend id.
pub const BACKENDS_SHAPE: MapShape =
    MapShape { name: "BACKEND_STATS", key_size: 4, value_size: size_of::<Counter>() as u32, mmapable: false };
/// Shape of `REASON_STATS`.
pub const REASONS_SHAPE: MapShape =
    MapShape { name: "REASON_STATS", key_size: 4, value_size: size_of::<Counter>() as u32, mmapable: false };

/// Packets and bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of those packets, from the Ethernet header on.
    pub bytes: u64,
}

/// Shape of `BACKEND_FLOWS`, index = backend id: per-CPU totals.
pub const BACKEND_FLOWS_SHAPE: MapShape =
    MapShape { name: "BACKEND_FLOWS", key_size: 4, value_size: size_of::<FlowTotals>() as u32, mmapable: false };
/// Shape of `FLOW_STATS`, index = [`FlowEvent`]: per-CPU counters.
pub const FLOW_STATS_SHAPE: MapShape = MapShape { name: "FLOW_STATS", key_size: 4, value_size: 8, mmapable: false };

/// Flows of a backend since the data plane was loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowTotals {
    /// TCP packets with SYN and without ACK that were forwarded: at least one for each connection.
    pub syns: u64,
    /// TCP packets with FIN or RST that clients sent: about one for each connection.
    pub fins: u64,
    /// Recorded flows whose handshake the client completed.
    pub opened: u64,
    /// Recorded flows that ended or expired after that.
    pub closed: u64,
}

/// What the flow table counts; a number never changes its meaning.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowEvent {
    /// The table was read for a packet.
    Lookup = 0,
    /// A flow was recorded.
    Insert = 1,
    /// There was no room for a record.
    InsertFailed = 2,
    /// A half-open flow made room.
    EvictedHalfOpen = 3,
    /// A flow that was learned and seen once made room.
    EvictedOnce = 4,
    /// A record that had expired was reused or swept.
    Expired = 5,
    /// A packet of a flow without record was learned.
    Learned = 6,
    /// A backend was full or down and the flow went to the next one.
    Spilled = 7,
    /// A new connection was refused because it could not be recorded and its owner takes no new flows.
    SynRefused = 8,
    /// A record was removed because an operator asked for it.
    Flushed = 9,
}

impl FlowEvent {
    /// Every event, in the order of its number.
    pub const ALL: [Self; 10] = [
        Self::Lookup,
        Self::Insert,
        Self::InsertFailed,
        Self::EvictedHalfOpen,
        Self::EvictedOnce,
        Self::Expired,
        Self::Learned,
        Self::Spilled,
        Self::SynRefused,
        Self::Flushed,
    ];

    /// Stable name, the label of metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Insert => "insert",
            Self::InsertFailed => "insert_failed",
            Self::EvictedHalfOpen => "evicted_half_open",
            Self::EvictedOnce => "evicted_once",
            Self::Expired => "expired",
            Self::Learned => "learned",
            Self::Spilled => "spilled",
            Self::SynRefused => "syn_refused",
            Self::Flushed => "flushed",
        }
    }
}
