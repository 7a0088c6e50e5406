//! Which backend a new flow gets. Refuses to know records.
//!
//! Every loop has a bound: a service with more members than are looked at is served by as many of them as are, beginning
//! at a place that the flow's hash draws. Where all that are looked at are down or full, the ring's backend takes the flow: a
//! packet too many is better than none.

use super::{Request, flags_of, word_at};
use crate::{
    abi::{
        backend::{FLAG_DOWN, FLAG_DRAINING, FLAG_VALID},
        ring::{Extent, Inputs, Slot},
        service::Algo,
        stats::FlowEvent,
    },
    tables::Tables,
};

/// Slots of the ring that are tried when the flow's own has a backend that is down or full.
const RING_TRIES: u32 = 16;
/// Turns that are tried.
const TURN_TRIES: u32 = 8;
/// Members whose connections are compared.
const COMPARED_MAX: u32 = 64;

/// What [`member`] says of a backend that takes no new flow.
pub const TAKES_NONE: u64 = u64::MAX;

/// Connections of a backend in the low half, its weight in the high half; [`TAKES_NONE`] if it is down, draining, full or of another
/// service. Half-open connections count: they would otherwise all go to one backend until the first is answered.
#[inline(always)]
pub fn member<T: Tables>(tables: &T, service: u32, id: u32) -> u64 {
    let Some(backend) = tables.backend(id).filter(|backend| backend.service == service) else { return TAKES_NONE };
    let flags = tables.load_u32(&backend.flags);
    let word = tables.active(id).map_or(0, |word| tables.load(word));
    let connections = (word as u32).wrapping_add((word >> 32) as u32);
    if flags & (FLAG_VALID | FLAG_DOWN | FLAG_DRAINING) != FLAG_VALID
        || (backend.max_connections != 0 && connections >= backend.max_connections)
    {
        return TAKES_NONE;
    }
    let weight = if backend.weight == 0 { 1 } else { backend.weight };
    (weight as u64) << 32 | connections as u64
}

/// The ring's backend for the flow, or the next one along the ring if that is down (or, where `limits` hold, full).
#[inline(always)]
pub fn current<T: Tables>(tables: &T, request: &Request, limits: bool) -> u32 {
    let own = Slot(request.word).current();
    if fits(tables, request.service, own, limits) {
        return own;
    }
    let ring = Extent::unpack(request.ring);
    for tries in 1..=RING_TRIES {
        let id = word_at(tables, ring, place(request.slot, tries, ring.slots), false).current();
        if id != own && fits(tables, request.service, id, limits) {
            tables.count(FlowEvent::Spilled);
            return id;
        }
    }
    own
}

#[inline(always)]
fn fits<T: Tables>(tables: &T, service: u32, id: u32, limits: bool) -> bool {
    if limits {
        tables.flow_member(service, id) != TAKES_NONE
    } else {
        flags_of(tables, service, id) & (FLAG_VALID | FLAG_DOWN) == FLAG_VALID
    }
}

/// The backend of a new flow by the service's algorithm; 0 where that is the ring, or no member takes the flow.
#[inline(always)]
pub fn new<T: Tables>(tables: &T, request: &Request) -> u32 {
    let Some(service) = tables.service(request.service) else { return 0 };
    let members = Extent::unpack(tables.load_u64(&service.members));
    match service.algo() {
        _ if members.slots == 0 => 0,
        Algo::Hashed => 0,
        Algo::Turns => turn(tables, request.service, members),
        Algo::LeastConnections => tables.flow_least(request.service, request.hash, members.pack(Inputs::Tuple)),
        Algo::RandomTwo => two(tables, request.service, request.hash, members),
    }
}

#[inline(always)]
fn turn<T: Tables>(tables: &T, service: u32, members: Extent) -> u32 {
    for _ in 0..TURN_TRIES {
        let turn = tables.turn(service) % members.slots;
        let id = word_at(tables, members, turn, false).current();
        if tables.flow_member(service, id) != TAKES_NONE {
            return id;
        }
    }
    0
}

/// A place among the members that a flow's hash draws; `half` gives another one.
#[inline(always)]
fn drawn(hash: u64, members: Extent, half: u32) -> u32 {
    // The high half of the hash chose the slot; these bits are multiplied anew to be independent of it.
    members.slot_of((hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (half * 16 + 16)) as u32)
}

/// The place `steps` behind `first`, round the end.
///
/// VERIFIER: "BPF program is too large". A place that is carried from turn to turn is known after each time it starts from 0 again,
/// and every way through the loop becomes one of its own.
#[inline(always)]
fn place(first: u32, steps: u32, slots: u32) -> u32 {
    let at = first.wrapping_add(steps);
    if at < slots { at } else { at.wrapping_sub(slots) }
}

/// Whether one connection more is a smaller share of its weight for `a` than for `b`, both as [`member`] gives them.
#[inline(always)]
fn is_less(a: u64, b: u64) -> bool {
    ((a as u32) as u64 + 1) * (b >> 32) < ((b as u32) as u64 + 1) * (a >> 32)
}

/// The member with the fewest connections for its weight, among at most [`COMPARED_MAX`].
#[inline(always)]
pub fn least<T: Tables>(tables: &T, service: u32, hash: u64, members: u64) -> u32 {
    let members = Extent::unpack(members);
    let (mut best, mut best_load) = (0, TAKES_NONE);
    let first = drawn(hash, members, 0);
    for tries in 0..COMPARED_MAX {
        if tries >= members.slots {
            break;
        }
        let id = word_at(tables, members, place(first, tries, members.slots), false).current();
        let load = tables.flow_member(service, id);
        if load != TAKES_NONE && (best_load == TAKES_NONE || is_less(load, best_load)) {
            (best, best_load) = (id, load);
        }
    }
    best
}

#[inline(always)]
fn two<T: Tables>(tables: &T, service: u32, hash: u64, members: Extent) -> u32 {
    let first = drawn(hash, members, 0);
    let mut second = drawn(hash, members, 1);
    if second == first {
        second = if first + 1 < members.slots { first + 1 } else { 0 };
    }
    let (a, b) = (word_at(tables, members, first, false).current(), word_at(tables, members, second, false).current());
    let (load_a, load_b) = (tables.flow_member(service, a), tables.flow_member(service, b));
    if load_a == TAKES_NONE && load_b == TAKES_NONE {
        0
    } else if load_b == TAKES_NONE || (load_a != TAKES_NONE && !is_less(load_b, load_a)) {
        a
    } else {
        b
    }
}
