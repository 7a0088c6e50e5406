//! What the kernel program and the agent agree on: one file per BPF map, with its key, its value, who writes it and
//! who reads it.
//!
//! Owns: layouts, sizes and the packing of words that change under readers. Refuses to know: policy, parsing, aya.
//!
//! Invariants: every type is `repr(C)`, `Pod`, free of implicit padding and asserted in size; a change that an older
//! reader would misread raises [`ABI_VERSION`]; a word that changes while packets read it is one aligned `u64` (or
//! `u32`) and is published by one store, last.

pub mod backend;
pub mod decap;
pub mod flow;
pub mod fragment;
pub mod lookup;
pub mod loss;
pub mod node;
pub mod ring;
pub mod service;
pub mod stats;
pub mod turns;

/// Raised by every change of a layout below that an older program or agent would misread.
pub const ABI_VERSION: u32 = 2;

/// IPv4 address in the 16-byte form that all maps use: `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

/// The shape that an adopting agent demands of a pinned map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// The name that bpftool shows, at most 15 characters.
    pub name: &'static str,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Whether userspace maps the values into memory (`BPF_F_MMAPABLE`).
    pub mmapable: bool,
}

/// Every map of the load-balancing program.
pub const MAPS: [MapShape; 15] = [
    node::SHAPE,
    lookup::SHAPE,
    service::SHAPE,
    ring::SHAPE,
    ring::OWNERS_SHAPE,
    backend::SHAPE,
    backend::KEYS_SHAPE,
    fragment::SHAPE,
    stats::BACKENDS_SHAPE,
    stats::REASONS_SHAPE,
    flow::SHAPE,
    flow::ACTIVE_SHAPE,
    stats::BACKEND_FLOWS_SHAPE,
    stats::FLOW_STATS_SHAPE,
    turns::SHAPE,
];

/// [`MapShape`] of a memory-mapped array with values of type `T`.
const fn array<T>(name: &'static str) -> MapShape {
    MapShape { name, key_size: 4, value_size: size_of::<T>() as u32, mmapable: true }
}
