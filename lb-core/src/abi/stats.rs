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
