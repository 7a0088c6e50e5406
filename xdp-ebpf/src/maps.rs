//! Every map of the load balancer on one screen, and what a loaded program knows of their sizes; layouts and who writes what stand in `lb_core::abi`.
//!
//! The sizes here are the smallest that load: the agent sets `max_entries` from its configuration.

use core::ptr;

use aya_ebpf::{
    btf_maps::{Array, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use lb_core::{
    abi::{
        backend::{Backend, BackendKey},
        fragment::{Fragment, FragmentKey},
        lookup::Bucket,
        node::Node,
        ring::Line,
        service::Service,
        stats::{Counter, FlowEvent, FlowTotals, INTERFACES_MAX, REASONS_MAX},
        turns::Turns,
    },
    flow::Request,
    parse::Packet,
    select::Verdict,
    tables::Pair,
};

/// `BPF_F_MMAPABLE`: the agent writes the values through memory.
const MMAPABLE: usize = 1 << 10;

/// What is true for the whole node.
#[btf_map]
pub static NODE: Array<Node, 1, MMAPABLE> = Array::new();
/// (address, port, protocol) to service, VIP or reply.
#[btf_map]
pub static LOOKUP: Array<Bucket, 16, MMAPABLE> = Array::new();
/// Services by id.
#[btf_map]
pub static SERVICES: Array<Service, 16, MMAPABLE> = Array::new();
/// The arena of rings.
#[btf_map]
pub static RINGS: Array<Line, 16, MMAPABLE> = Array::new();
/// Who has the flows of slots in a window.
#[btf_map]
pub static OWNERS: Array<Line, 16, MMAPABLE> = Array::new();
/// The flow table, each value a `flow::Bucket`.
#[btf_map]
pub static FLOWS: Array<[u64; 8], 16, MMAPABLE> = Array::new();
/// A second flow table, while one takes the other's place (see [`FLOW_MASK`]); else the object's own, not used.
#[btf_map]
pub static FLOWS_BESIDE: Array<[u64; 8], 16, MMAPABLE> = Array::new();
/// Recorded flows by backend id.
#[btf_map]
pub static ACTIVE: Array<u64, 16, MMAPABLE> = Array::new();
/// Flows by backend id, in all.
#[btf_map]
pub static BACKEND_FLOWS: PerCpuArray<FlowTotals, 16> = PerCpuArray::new();
/// What the flow table did.
#[btf_map]
pub static FLOW_STATS: PerCpuArray<u64, { FlowEvent::ALL.len() }> = PerCpuArray::new();
/// Where each CPU stands among the members of a service, by service id.
#[btf_map]
pub static TURNS: PerCpuArray<Turns, 16> = PerCpuArray::new();
/// Backends by id.
#[btf_map]
pub static BACKENDS: Array<Backend, 16, MMAPABLE> = Array::new();
/// Who a backend id is; for agents, not read here.
#[btf_map]
pub static BACKEND_KEYS: Array<BackendKey, 16, MMAPABLE> = Array::new();
/// Where first fragments went.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Fragment, 1024> = LruHashMap::new();
/// Packets and bytes by backend.
#[btf_map]
pub static BACKEND_STATS: PerCpuArray<Counter, 16> = PerCpuArray::new();
/// Packets and bytes by interface slot and reason.
#[btf_map]
pub static REASON_STATS: PerCpuArray<Counter, { (INTERFACES_MAX * REASONS_MAX) as usize }> = PerCpuArray::new();

/// Buckets of [`FLOWS`] minus one, where there is a table beside it: then the node entry's mask does not count.
///
/// Both masks are constants of a loaded program, as interfaces are, so that a program with one table does not contain what two need.
#[unsafe(no_mangle)]
static FLOW_MASK: u32 = 0;
/// Buckets of [`FLOWS_BESIDE`] minus one; 0 for a program with one table.
#[unsafe(no_mangle)]
static BESIDE_MASK: u32 = 0;

/// The masks of both flow tables, if there are two.
#[inline(always)]
pub fn pair() -> Option<Pair> {
    // SAFETY: aligned statics; volatile, as their values are not the ones that the compiler sees.
    let pair = unsafe {
        Pair { mask: ptr::read_volatile(&raw const FLOW_MASK), beside: ptr::read_volatile(&raw const BESIDE_MASK) }
    };
    if pair.beside == 0 { None } else { Some(pair) }
}

/// What the long way knows of the packet in hand; the object's own, not shared.
///
/// VERIFIER: "BPF program is too large". On the stack every combination of parsed values is followed through everything
/// after it; from a map they come back as plain numbers, so that the ways through the parser meet again.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The request in hand; the object's own, not shared.
///
/// VERIFIER: "combined stack size of 6 calls is 528. Too large": what is passed down lies in a map instead.
#[btf_map]
pub static REQUEST: PerCpuArray<Request, 1> = PerCpuArray::new();

/// See [`SCRATCH`].
#[repr(C, align(8))]
pub struct Scratch {
    /// What was parsed.
    pub packet: Packet,
    /// What was decided.
    pub verdict: Verdict,
}
