//! Which backend a new flow gets. Refuses to know records.
//!
//! Every loop has a bound. Where all that are looked at are down or full, the ring's backend takes the flow: a packet too many is
//! better than none.
//!
//! The fewest connections are found without asking every member: each CPU remembers a few that had the fewest, looks at one more in turn for
//! each new flow, and at a backend that lost a connection; whoever has fewer takes the place of the one with the most. (Mitzenmacher,
//! Prabhakar, Shah: "Load Balancing with Memory", FOCS 2002, with turns instead of draws.) So a flow costs the same among ten
//! members and among four thousand, a newcomer is known after as many flows as there are members, and what churn takes away is filled
//! again from where it was taken.

use super::{Request, flags_of, word_at};
use crate::{
    abi::{
        backend::{FLAG_DOWN, FLAG_DRAINING, FLAG_VALID},
        ring::{Extent, Slot},
        service::{Algo, Service},
        stats::FlowEvent,
        turns::Turns,
    },
    tables::Tables,
};

/// Slots of the ring that are tried when the flow's own has a backend that is down or full.
const RING_TRIES: u32 = 16;
/// Turns that are tried.
const TURN_TRIES: u32 = 8;
/// Members that are looked at in turn while none of those that are remembered takes the flow.
const LOOKS_MAX: u32 = 8;

/// What [`member`] says of a backend that takes no new flow: no weight.
pub const TAKES_NONE: u64 = 0;

/// Connections of a backend, half-open ones included.
#[inline(always)]
fn connections<T: Tables>(tables: &T, id: u32) -> u32 {
    let word = tables.active(id).map_or(0, |word| tables.load(word));
    (word as u32).wrapping_add((word >> 32) as u32)
}

/// Whether a backend has as many connections as it may have. [`member`] asks more: one that drains still takes new flows while that is
/// announced, if it is not full.
#[inline(always)]
pub fn is_full<T: Tables>(tables: &T, id: u32) -> bool {
    let limit = tables.backend(id).map_or(0, |backend| backend.max_connections);
    limit != 0 && connections(tables, id) >= limit
}

/// Connections of a backend in the low half, its weight in the high half; [`TAKES_NONE`] if it is down, draining, full or of another
/// service. Half-open connections count: they would otherwise all go to one backend until the first is answered.
#[inline(always)]
pub fn member<T: Tables>(tables: &T, service: u32, id: u32) -> u64 {
    let Some(backend) = tables.backend(id).filter(|backend| backend.service == service) else { return TAKES_NONE };
    let flags = tables.load_u32(&backend.flags);
    let connections = connections(tables, id);
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
        Algo::LeastConnections => least_of(tables, request.service, members),
        Algo::RandomTwo => two(tables, request.service, request.hash, members),
    }
}

#[inline(always)]
fn turn<T: Tables>(tables: &T, service: u32, members: Extent) -> u32 {
    for _ in 0..TURN_TRIES {
        let turns = tables.turns(service);
        tables.set_turns(service, Turns { next: turns.next.wrapping_add(1), ..turns });
        let id = word_at(tables, members, turns.next % members.slots, false).current();
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

/// Whether one connection more is a smaller share of its weight for `a` than for `b`, both as [`member`] gives them. Who takes none
/// is never less.
#[inline(always)]
fn is_less(a: u64, b: u64) -> bool {
    ((a as u32) as u64 + 1) * (b >> 32) < ((b as u32) as u64 + 1) * (a >> 32)
}

/// Bits of a [`Seen`] that name the backend.
const SEEN_ID: u32 = 24;
/// The connections of a [`Seen`] are told apart up to here; more count as this many.
const SEEN_CONNECTIONS: u64 = (1 << 24) - 1;
/// The share of who takes no flow, above every other.
const SEEN_NONE: u64 = (1 << 39) - 1;

/// A backend and the share of its weight that its connections would take with one more, as one number: the share in bits 24..63, the id
/// below. So whoever has less is the smaller number, and the order of several is a matter of subtractions: nearly level backends are in
/// any order, which a CPU that had to guess the ways of comparisons would guess wrong half of the time, at 6 ns each.
#[derive(Clone, Copy)]
struct Seen(u64);

impl Seen {
    #[inline(always)]
    const fn id(self) -> u32 {
        self.0 as u32 & ((1 << SEEN_ID) - 1)
    }

    #[inline(always)]
    const fn takes_none(self) -> bool {
        self.0 >> SEEN_ID == SEEN_NONE
    }
}

/// The share of what [`member`] says, in 2^-15 of a connection for each weight.
#[inline(always)]
const fn share(member: u64) -> u64 {
    let (weight, connections) = (member >> 32, member & u32::MAX as u64);
    let connections = if connections < SEEN_CONNECTIONS { connections } else { SEEN_CONNECTIONS - 1 };
    let share = (connections + 1) << 15;
    match weight {
        TAKES_NONE => SEEN_NONE,
        1 => share,
        weight => share / weight,
    }
}

#[inline(always)]
fn see<T: Tables>(tables: &T, service: u32, id: u32) -> Seen {
    Seen(tables.forget(share(member(tables, service, id)) << SEEN_ID | id as u64))
}

/// The one that has less first.
#[inline(always)]
fn ordered<T: Tables>(tables: &T, a: Seen, b: Seen) -> (Seen, Seen) {
    // All ones where b is less: the numbers have 63 bits.
    let swap = tables.sign(b.0.wrapping_sub(a.0)) & (a.0 ^ b.0);
    (Seen(a.0 ^ swap), Seen(b.0 ^ swap))
}

/// Backends that are remembered for having few connections, the fewest first.
struct Fewest(Seen, Seen, Seen);

impl Fewest {
    /// Those of a CPU's turns, as they are now.
    #[inline(always)]
    fn now<T: Tables>(tables: &T, service: u32, turns: &Turns) -> Self {
        let [a, b, c] = turns.fewest;
        let (a, b, c) = (see(tables, service, a), see(tables, service, b), see(tables, service, c));
        let (a, b) = ordered(tables, a, b);
        let (b, c) = ordered(tables, b, c);
        let (a, b) = ordered(tables, a, b);
        Self(a, b, c)
    }

    /// Remembers another one if it has less than the last.
    #[inline(always)]
    fn offer<T: Tables>(&mut self, tables: &T, new: Seen) {
        let Self(a, b, c) = self;
        if new.id() == a.id() || new.id() == b.id() || new.id() == c.id() {
            return;
        }
        (*c, _) = ordered(tables, *c, new);
        (*b, *c) = ordered(tables, *b, *c);
        (*a, *b) = ordered(tables, *a, *b);
    }

    #[inline(always)]
    const fn ids(&self) -> [u32; 3] {
        let Self(a, b, c) = self;
        [a.id(), b.id(), c.id()]
    }
}

/// [`new`] for a service that takes the fewest connections. Inline where connections begin, other than [`new`]: floods begin many,
/// and a return costs 10 ns (see [`super::known`]).
#[inline(always)]
pub fn least<T: Tables>(tables: &T, request: &Request, service: &Service) -> u32 {
    let members = Extent::unpack(tables.load_u64(&service.members));
    if members.slots == 0 { 0 } else { least_of(tables, request.service, members) }
}

/// The member with the fewest connections for its weight, of those that are remembered and the next in turn; 0 if none takes the flow.
#[inline(always)]
fn least_of<T: Tables>(tables: &T, service: u32, members: Extent) -> u32 {
    let turns = tables.turns(service);
    let mut fewest = Fewest::now(tables, service, &turns);
    let first = if turns.next < members.slots { turns.next } else { 0 };
    let mut looks = 0;
    while looks < LOOKS_MAX && looks < members.slots {
        let id = word_at(tables, members, place(first, looks, members.slots), false).current();
        looks += 1;
        fewest.offer(tables, see(tables, service, id));
        if !fewest.0.takes_none() {
            break;
        }
    }
    tables.set_turns(service, Turns { next: place(first, looks, members.slots), fewest: fewest.ids() });
    if fewest.0.takes_none() { 0 } else { fewest.0.id() }
}

/// A backend of a service that takes the fewest connections has one less.
#[inline(always)]
pub fn closed<T: Tables>(tables: &T, service: u32, backend: u32) {
    let turns = tables.turns(service);
    let mut fewest = Fewest::now(tables, service, &turns);
    fewest.offer(tables, see(tables, service, backend));
    tables.set_turns(service, Turns { fewest: fewest.ids(), ..turns });
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
    if is_less(load_b, load_a) {
        b
    } else if load_a != TAKES_NONE {
        a
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use bytemuck::Zeroable as _;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        abi::{
            backend::Backend,
            flow::Word,
            ring::{Inputs, LINE_SLOTS, Line},
            service::{self, OnMarkedDown},
        },
        host::Snapshot,
    };

    /// A service with these weights: backend ids from 1, which are its members in this order.
    fn service(algo: Algo, weights: &[u32]) -> Snapshot {
        let mut service = Service::zeroed();
        service.flags = service::flags(true, algo, OnMarkedDown::Rehash);
        service.members = Extent { line: 0, slots: weights.len() as u32 }.pack(Inputs::Tuple);
        let backend = |weight| Backend { flags: FLAG_VALID, service: 1, weight, ..Backend::zeroed() };
        let ids: Vec<u32> = (1..=weights.len() as u32).collect();
        let line = |ids: &[u32]| {
            let mut line = Line::zeroed();
            line.slots.iter_mut().zip(ids).for_each(|(slot, id)| *slot = Slot::settled(*id).0);
            line
        };
        Snapshot {
            services: vec![Service::zeroed(), service],
            lines: ids.chunks(LINE_SLOTS).map(line).collect(),
            backends: [Backend::zeroed()].into_iter().chain(weights.iter().map(|weight| backend(*weight))).collect(),
            active: vec![Word::default(); weights.len() + 1],
            ..Snapshot::default()
        }
    }

    fn load(tables: &Snapshot, id: u32) -> u64 {
        tables.load(&tables.active[id as usize])
    }

    fn set(tables: &Snapshot, id: u32, connections: u64) {
        tables.store(&tables.active[id as usize], connections);
    }

    /// A new flow; 0 if no member takes it.
    fn open(tables: &Snapshot, hash: u64) -> u32 {
        let request = Request {
            hash,
            ring: 0,
            previous: 0,
            service: 1,
            slot: 0,
            word: 0,
            previous_bits: 0,
            tcp_flags: 2,
            proto: 6,
            about: 0,
            pad: 0,
        };
        let id = new(tables, &request);
        if id != 0 {
            set(tables, id, load(tables, id) + 1);
        }
        id
    }

    /// A generator of numbers below `below`.
    fn draw(state: &mut u64, below: u64) -> u64 {
        *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((*state >> 33) * below) >> 31
    }

    /// Flows of which nine of ten live for a moment and one a hundred times as long, about 84 a backend: how many samples of how many
    /// have every backend within max(2, 2 %) of the mean.
    fn churn(backends: u32) -> (u32, u32) {
        let tables = service(Algo::LeastConnections, &vec![1; backends as usize]);
        let scale = u64::from(backends) / 10;
        let mut ends: Vec<Vec<u32>> = vec![Vec::new(); 24_000 * scale as usize];
        let (mut random, mut within, mut samples) = (7, 0, 0);
        for at in 0..ends.len() {
            for id in core::mem::take(&mut ends[at]) {
                set(&tables, id, load(&tables, id) - 1);
                closed(&tables, 1, id);
            }
            let id = open(&tables, random);
            assert_ne!(id, 0, "every member takes flows");
            let lives = match draw(&mut random, 10) {
                0 => scale * (4000 + draw(&mut random, 8000)),
                _ => 1 + draw(&mut random, 79 * scale),
            };
            if let Some(end) = ends.get_mut(at + lives as usize) {
                end.push(id);
            }
            if at as u64 >= 8000 * scale && (at as u64).is_multiple_of(20 * scale) {
                let counts = (1..=backends).map(|id| load(&tables, id) as f64);
                let mean = counts.clone().sum::<f64>() / f64::from(backends);
                within += u32::from(counts.into_iter().all(|n| (n - mean).abs() <= (0.02 * mean).max(2.0)));
                samples += 1;
            }
        }
        (within, samples)
    }

    proptest! {
        #[test]
        fn shares_are_in_the_order_of_connections_for_their_weight(
            connections in (0..SEEN_CONNECTIONS - 1, 0..SEEN_CONNECTIONS - 1),
            weights in (1..=1000u64, 1..=1000u64),
        ) {
            let (a, b) = (weights.0 << 32 | connections.0, weights.1 << 32 | connections.1);
            prop_assert!(!is_less(a, b) || share(a) <= share(b));
            prop_assert!(share(a) < share(a + 1) && share(a + 1) < share(connections.0), "one more, and no weight");
        }

        #[test]
        fn the_one_with_less_comes_first(a in 0..1u64 << 63, b in 0..1u64 << 63) {
            let (first, second) = ordered(&Snapshot::default(), Seen(a), Seen(b));
            prop_assert_eq!((first.0, second.0), (a.min(b), a.max(b)));
        }
    }

    #[test]
    fn few_and_many_members_stay_level_under_churn() {
        for backends in [10, 30, 100] {
            let (within, samples) = churn(backends);
            assert!(within * 100 >= samples * 99, "{backends} backends: {within} of {samples} samples are level");
        }
    }

    #[test]
    fn a_newcomer_is_filled_as_soon_as_its_turn_comes() {
        let tables = service(Algo::LeastConnections, &[1; 100]);
        (1..=100).for_each(|id| set(&tables, id, 1000));
        set(&tables, 73, 0);
        let missed = (0..1000).filter(|hash| open(&tables, *hash) != 73).count();
        assert!(missed < 100, "{missed} flows went elsewhere");
    }

    #[test]
    fn weights_are_kept() {
        let weights: Vec<u32> = (0..10).map(|n| 1 + n * 3 % 7).collect();
        let tables = service(Algo::LeastConnections, &weights);
        const FLOWS: u32 = 100_000;
        (0..FLOWS).for_each(|hash| assert_ne!(open(&tables, hash.into()), 0));
        let sum: u32 = weights.iter().sum();
        for (id, weight) in (1..).zip(&weights) {
            let share = f64::from(FLOWS) * f64::from(*weight) / f64::from(sum);
            let off = (load(&tables, id) as f64 - share).abs() / share;
            assert!(off <= 0.01, "a weight of {weight} in {sum} is {off} off its share");
        }
    }

    #[test]
    fn who_takes_no_flow_gets_none_and_who_does_is_found() {
        for algo in [Algo::LeastConnections, Algo::RandomTwo, Algo::Turns] {
            let mut tables = service(algo, &[1; 100]);
            for id in 1..=100 {
                let backend = &mut tables.backends[id];
                match id % 4 {
                    0 => backend.flags |= FLAG_DOWN,
                    1 => backend.flags |= FLAG_DRAINING,
                    2 => backend.max_connections = 1,
                    _ => {}
                }
            }
            (1..=100).for_each(|id| set(&tables, id, 1));
            let opened: Vec<u32> = (0..2000u64).map(|n| open(&tables, n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
            assert!(opened.iter().all(|id| *id == 0 || *id % 4 == 3), "{algo:?}");
            let none = opened.iter().filter(|id| **id == 0).count();
            assert!(algo == Algo::RandomTwo || none == 0, "{algo:?}: {none} flows found nobody");
            (1..=100).for_each(|id| tables.backends[id].flags |= FLAG_DOWN);
            assert_eq!(open(&tables, 1), 0, "{algo:?}: all are down");
        }
    }

    /// Members that are full now and are looked at in turn must not hide the one that is not.
    #[test]
    fn among_full_members_the_last_one_is_found_within_a_few_flows() {
        let mut tables = service(Algo::LeastConnections, &[1; 100]);
        (1..=100).filter(|id| *id != 90).for_each(|id| tables.backends[id].max_connections = 1);
        (1..=100).for_each(|id| set(&tables, id, 1));
        let first = (0..100).position(|hash| open(&tables, hash) == 90);
        assert!(first.is_some_and(|flows| flows <= 100 / LOOKS_MAX as usize), "{first:?}");
    }
}
