//! The flow table: finding, recording and letting go of records. Refuses to know why a flow is recorded.
//!
//! Invariants: whoever exchanges a record's word adjusts `ACTIVE` for it, nobody else does; a record is visible only when its
//! tag and word are whole; nothing live makes room but what [`Record`]s allow: expired ones, then half-open ones older than
//! [`HALF_OPEN_KEPT_S`], then flows that were learned and seen once.

use crate::{
    abi::{
        flow::{self, BUSY, Bucket, FlowState, HALF_OPEN_KEPT_S, HALF_OPEN_S, Record, WAYS},
        stats::FlowEvent,
    },
    hash::flow_buckets,
    tables::Tables,
};

/// Tries to keep the count beside a tag while that tag is written.
const TAG_TRIES: usize = 4;
/// Free ways with which a flow's first bucket takes it without regard to the second.
const FIRST_FREE: u32 = WAYS as u32 - 1;
/// Most flows of a bucket that live in their second: what the count can hold.
const OVERFLOW_MAX: u64 = 255;

/// Looks for the live record of a flow hash: its word, [`BUSY`] if another CPU is writing it (a miss, but nothing is to be
/// recorded), 0 without one.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, hash: u64, mask: u32, now_s: u32) -> u64 {
    let (tag, first, second) = flow_buckets(hash, mask);
    let Some(bucket) = tables.flows(first) else { return 0 };
    let word = find_in(tables, bucket, tag, now_s);
    let [head, ..] = &bucket.tags;
    if word != 0 || tables.load(head) & OVERFLOW_MAX == 0 {
        return word;
    }
    tables.flows(second).map_or(0, |bucket| find_in(tables, bucket, tag, now_s))
}

#[inline(always)]
fn find_in<T: Tables>(tables: &T, bucket: &Bucket, tag: u64, now_s: u32) -> u64 {
    for (held, word) in bucket.tags.iter().zip(&bucket.words) {
        // The tag before the word: a writer claims the word before it changes the tag.
        if tables.load(held) & !OVERFLOW_MAX != tag {
            continue;
        }
        let word = tables.load(word);
        if word == BUSY || (flow::is_record(word) && Record::unpack(word).left_s(now_s) > 0) {
            return word;
        }
    }
    0
}

/// [`find`] for a packet that leaves its record as it is but for the expiry, which is moved on: gives the record's word if its slot,
/// state and expiry become those of `same`, [`BUSY`] if there is a record of which that is not true, 0 without one.
#[inline(always)]
pub fn touch<T: Tables>(tables: &T, hash: u64, mask: u32, now_s: u32, same: Record) -> u64 {
    let (tag, first, second) = flow_buckets(hash, mask);
    let Some(bucket) = tables.flows(first) else { return 0 };
    let word = touch_in(tables, bucket, tag, now_s, same);
    let [head, ..] = &bucket.tags;
    if word != 0 || tables.load(head) & OVERFLOW_MAX == 0 {
        return word;
    }
    tables.flows(second).map_or(0, |bucket| touch_in(tables, bucket, tag, now_s, same))
}

/// VERIFIER: only numbers leave a turn of the loop, so that all ways through it meet again behind it.
#[inline(always)]
fn touch_in<T: Tables>(tables: &T, bucket: &Bucket, tag: u64, now_s: u32, same: Record) -> u64 {
    for (held, place) in bucket.tags.iter().zip(&bucket.words) {
        if tables.load(held) & !OVERFLOW_MAX != tag {
            continue;
        }
        let old = tables.load(place);
        if old == 0 || (old != BUSY && Record::unpack(old).left_s(now_s) == 0) {
            continue;
        }
        let new = Record { backend: (old >> 40) as u32, ..same }.pack();
        let is_same = flow::is_record(old) && flow::differ_in_expiry_at_most(old, new);
        // Another CPU's change is looked at closely, not lost.
        return if is_same && (old == new || tables.exchange(place, old, new)) { new } else { BUSY };
    }
    0
}

/// Replaces the word of a flow's record by another, or removes the record with 0; says whether nobody else changed it since
/// [`find`].
#[inline(always)]
pub fn replace<T: Tables>(tables: &T, hash: u64, mask: u32, old: u64, new: u64) -> bool {
    let (tag, first, second) = flow_buckets(hash, mask);
    replace_in(tables, first, tag, mask, old, new) || replace_in(tables, second, tag, mask, old, new)
}

#[inline(always)]
fn replace_in<T: Tables>(tables: &T, index: u32, tag: u64, mask: u32, old: u64, new: u64) -> bool {
    let Some(bucket) = tables.flows(index) else { return false };
    for (held, place) in bucket.tags.iter().zip(&bucket.words) {
        if tables.load(held) & !OVERFLOW_MAX == tag && tables.exchange(place, old, new) {
            if new == 0 {
                came_home(tables, tag, index, mask);
            }
            account(tables, old, new);
            return true;
        }
    }
    false
}

#[inline(always)]
fn remove_way<T: Tables>(tables: &T, bucket: &Bucket, index: u32, way: usize, word: u64, mask: u32) -> bool {
    let (Some(held), Some(place)) = (bucket.tags.get(way), bucket.words.get(way)) else { return false };
    // The tag of a record that is not yet taken cannot change.
    let tag = tables.load(held);
    if !tables.exchange(place, word, 0) {
        return false;
    }
    came_home(tables, tag, index, mask);
    account(tables, word, 0);
    true
}

/// A flow with this tag left bucket `index`: if that was its second, its first counts one less.
#[inline(always)]
fn came_home<T: Tables>(tables: &T, tag: u64, index: u32, mask: u32) {
    let (_, first, _) = flow_buckets(tag, mask);
    if first != index
        && let Some(Bucket { tags: [head, ..], .. }) = tables.flows(first)
    {
        tables.add(head, u64::MAX);
    }
}

/// Adjusts `ACTIVE` and the totals for a word that gave way to another; 0 and [`BUSY`] stand for no record.
#[inline(always)]
fn account<T: Tables>(tables: &T, old: u64, new: u64) {
    let (was, is) = (weight(old), weight(new));
    let (from, to) = ((old >> 40) as u32, (new >> 40) as u32);
    if was == is && from == to {
        return;
    }
    if from != 0 && was != 0 {
        if let Some(word) = tables.active(from) {
            tables.add(word, was.wrapping_neg());
        }
        if was == flow::ACTIVE_ONE {
            tables.count_flows(from, [0, 0, 0, 1]);
        }
    }
    if to != 0 && is != 0 {
        if let Some(word) = tables.active(to) {
            tables.add(word, is);
        }
        if is == flow::ACTIVE_ONE {
            tables.count_flows(to, [0, 0, 1, 0]);
        }
    }
}

#[inline(always)]
const fn weight(word: u64) -> u64 {
    if flow::is_record(word) { Record::unpack(word).state.weight() } else { 0 }
}

/// How much room a bucket has.
#[derive(Clone, Copy)]
struct Room {
    /// Ways that are free or expired.
    free: u32,
    /// One of them.
    free_way: u32,
    /// Whose record could make room otherwise, if `rank` is not 0.
    victim_way: u32,
    /// 2: half-open for long enough; 1: seen once; 0: nobody.
    rank: u32,
}

impl Room {
    /// VERIFIER: a number instead of a structure keeps it in registers over the call.
    #[inline(always)]
    const fn pack(self) -> u64 {
        self.free as u64 | (self.free_way as u64) << 8 | (self.victim_way as u64) << 16 | (self.rank as u64) << 24
    }

    #[inline(always)]
    const fn unpack(word: u64) -> Self {
        Self {
            free: word as u32 & 0xff,
            free_way: (word >> 8) as u32 & 3,
            victim_way: (word >> 16) as u32 & 3,
            rank: (word >> 24) as u32 & 3,
        }
    }
}

/// How much room a bucket has, as a packed [`Room`].
#[inline(always)]
pub fn room_in<T: Tables>(tables: &T, index: u32, now_s: u32) -> u64 {
    let Some(bucket) = tables.flows(index) else { return 0 };
    let mut room = Room { free: 0, free_way: 0, victim_way: 0, rank: 0 };
    let mut oldest = u32::MAX;
    for (way, word) in bucket.words.iter().enumerate() {
        let word = tables.load(word);
        if word == BUSY {
            continue;
        }
        let record = Record::unpack(word);
        let left = if flow::is_record(word) { record.left_s(now_s) } else { 0 };
        if left == 0 {
            room.free += 1;
            room.free_way = way as u32;
            continue;
        }
        let rank = match record.state {
            FlowState::HalfOpen if left + HALF_OPEN_KEPT_S <= HALF_OPEN_S => 2,
            FlowState::Once => 1,
            _ => 0,
        };
        if rank > room.rank || (rank == room.rank && rank > 0 && left < oldest) {
            (room.rank, room.victim_way, oldest) = (rank, way as u32, left);
        }
    }
    room.pack()
}

/// Records a flow that has no record. Says whether there was room.
#[inline(always)]
pub fn insert<T: Tables>(tables: &T, hash: u64, mask: u32, now_s: u32, word: u64) -> bool {
    let (tag, first, second) = flow_buckets(hash, mask);
    let (Some(a), Some(b)) = (tables.flows(first), tables.flows(second)) else { return false };
    let in_a = Room::unpack(tables.flow_room(first, now_s));
    // Two-choice: the emptier one, the first where both are alike or it is nearly empty: what lives in its second bucket costs a miss of
    // the cache more. So 19 % of flows do instead of 27 % at the rated load, and 0.003 % of inserts fail instead of 0.001 %. Nor does the insert
    // itself read the second line then, which in a table that is hardly filled is most of what it would cost.
    let in_b = if in_a.free < FIRST_FREE { Room::unpack(tables.flow_room(second, now_s)) } else { Room::unpack(0) };
    let evicts = in_a.free == 0 && in_b.free == 0;
    let to_b = if evicts { in_b.rank > in_a.rank } else { in_b.free > in_a.free };
    let (index, bucket, room) = if to_b { (second, b, in_b) } else { (first, a, in_a) };
    if evicts && room.rank == 0 {
        tables.count(FlowEvent::InsertFailed);
        return false;
    }
    let way = if evicts { room.victim_way } else { room.free_way } as usize % WAYS;
    let (Some(held), Some(place)) = (bucket.tags.get(way), bucket.words.get(way)) else { return false };
    let old = tables.load(place);
    // Somebody else may have taken the way since: one failure more, not a loop.
    let free = !flow::is_record(old) || Record::unpack(old).left_s(now_s) == 0;
    if old == BUSY || free == evicts || !tables.exchange(place, old, BUSY) {
        tables.count(FlowEvent::InsertFailed);
        return false;
    }
    if flow::is_record(old) {
        came_home(tables, tables.load(held), index, mask);
        account(tables, old, 0);
        tables.count(match (evicts, room.rank) {
            (false, _) => FlowEvent::Expired,
            (true, 2) => FlowEvent::EvictedHalfOpen,
            (true, _) => FlowEvent::EvictedOnce,
        });
    }
    if index != first
        && let [head, ..] = &a.tags
    {
        // Before the record shows, so that nobody who looks for it stops at its first bucket.
        tables.add(head, 1);
    }
    if !write_tag(tables, held, tag) {
        // The count beside this tag changed again and again; rarer than a full bucket, and treated like one.
        if index != first
            && let [head, ..] = &a.tags
        {
            tables.add(head, u64::MAX);
        }
        tables.store(place, 0);
        tables.count(FlowEvent::InsertFailed);
        return false;
    }
    tables.store(place, word);
    account(tables, 0, word);
    tables.count(FlowEvent::Insert);
    true
}

/// Writes a tag of an entry that this CPU owns, and keeps the count that may stand beside it.
#[inline(always)]
fn write_tag<T: Tables>(tables: &T, held: &flow::Word, tag: u64) -> bool {
    for _ in 0..TAG_TRIES {
        let old = tables.load(held);
        if tables.exchange(held, old, tag | old & OVERFLOW_MAX) {
            return true;
        }
    }
    false
}

/// Removes what expired in a bucket; gives how many records that were.
#[inline(always)]
pub fn sweep<T: Tables>(tables: &T, index: u32, mask: u32, now_s: u32) -> u32 {
    let Some(bucket) = tables.flows(index) else { return 0 };
    let mut removed = 0;
    for way in 0..WAYS {
        let Some(word) = bucket.words.get(way).map(|word| tables.load(word)) else { return removed };
        if flow::is_record(word)
            && Record::unpack(word).left_s(now_s) == 0
            && remove_way(tables, bucket, index, way, word, mask)
        {
            tables.count(FlowEvent::Expired);
            removed += 1;
        }
    }
    removed
}

/// Removes the records of a bucket that name a backend of `service` (0 is any), and `backend` itself (0 is any); gives how many that were.
#[inline(always)]
pub fn flush<T: Tables>(tables: &T, index: u32, mask: u32, service: u32, backend: u32) -> u32 {
    let Some(bucket) = tables.flows(index) else { return 0 };
    let mut removed = 0;
    for way in 0..WAYS {
        let Some(word) = bucket.words.get(way).map(|word| tables.load(word)) else { return removed };
        let id = Record::unpack(word).backend;
        if !flow::is_record(word) || (backend != 0 && id != backend) {
            continue;
        }
        let of_service = service == 0 || tables.backend(id).is_some_and(|entry| entry.service == service);
        if of_service && remove_way(tables, bucket, index, way, word, mask) {
            tables.count(FlowEvent::Flushed);
            removed += 1;
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{collections::BTreeMap, vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::{abi::flow::Word, host::Snapshot};

    fn tables(buckets: usize) -> (Snapshot, u32) {
        let snapshot = Snapshot {
            flows: (0..buckets).map(|_| Bucket::default()).collect(),
            active: vec![Word::default(); 64],
            ..Snapshot::default()
        };
        (snapshot, buckets as u32 - 1)
    }

    fn word(backend: u32, state: FlowState, expires_s: u32) -> u64 {
        Record { backend, slot: 0, state, expires_s }.pack()
    }

    /// What `ACTIVE` should be, by a recount.
    fn recount(tables: &Snapshot) -> Vec<u64> {
        let mut active = vec![0u64; 64];
        for word in tables.flows.iter().flat_map(|bucket| &bucket.words).map(|word| tables.load(word)) {
            if flow::is_record(word) {
                let record = Record::unpack(word);
                active[record.backend as usize] += record.state.weight();
            }
        }
        active
    }

    /// Every bucket counts exactly the flows that would be in it and are in their second.
    fn overflow_is_counted(tables: &Snapshot, mask: u32) {
        let mut away: BTreeMap<u32, u64> = BTreeMap::new();
        for (index, bucket) in (0..).zip(&tables.flows) {
            for (tag, word) in bucket.tags.iter().zip(&bucket.words) {
                let (tag, word) = (tables.load(tag), tables.load(word));
                let (_, first, _) = flow_buckets(tag, mask);
                if flow::is_record(word) && first != index {
                    *away.entry(first).or_default() += 1;
                }
            }
        }
        for (index, bucket) in (0..).zip(&tables.flows) {
            let [head, ..] = &bucket.tags;
            assert_eq!(tables.load(head) & OVERFLOW_MAX, away.get(&index).copied().unwrap_or(0), "bucket {index}");
        }
    }

    #[test]
    fn what_makes_room_and_in_which_order() {
        let (tables, mask) = tables(1);
        let now = 1000;
        let states = [(FlowState::Established, 500), (FlowState::HalfOpen, HALF_OPEN_S), (FlowState::Once, 500)];
        for (n, (state, left)) in (1u64..).zip(states) {
            assert!(insert(&tables, n << 8, mask, now, word(n as u32, state, now + left)));
        }
        assert!(insert(&tables, 4 << 8, mask, now, word(4, FlowState::Closing, now + 10)));
        // Nobody's half-open flow is older than three seconds: the one that was seen once goes.
        assert!(insert(&tables, 5 << 8, mask, now + 2, word(5, FlowState::Established, now + 500)));
        assert_eq!(find(&tables, 3 << 8, mask, now + 2), 0);
        assert!(insert(&tables, 6 << 8, mask, now + 3, word(6, FlowState::Established, now + 500)));
        assert_eq!(find(&tables, 2 << 8, mask, now + 3), 0, "the half-open one");
        assert!(!insert(&tables, 7 << 8, mask, now + 4, word(7, FlowState::Established, now + 500)), "all live");
        assert!(insert(&tables, 7 << 8, mask, now + 10, word(7, FlowState::Established, now + 500)), "one expired");
        for n in [1, 5, 6, 7] {
            assert_ne!(find(&tables, n << 8, mask, now + 10), 0, "{n} lives");
        }
        let events = tables.events.borrow();
        let count = |event| events.get(&event).copied().unwrap_or(0);
        assert_eq!(
            [FlowEvent::EvictedOnce, FlowEvent::EvictedHalfOpen, FlowEvent::Expired, FlowEvent::InsertFailed]
                .map(count),
            [1, 1, 1, 1]
        );
    }

    #[test]
    fn a_record_that_is_being_written_is_a_miss_that_inserts_nothing() {
        let (tables, mask) = tables(1);
        assert!(insert(&tables, 1 << 8, mask, 0, word(1, FlowState::Established, 100)));
        let held = find(&tables, 1 << 8, mask, 0);
        let place = tables.flows[0].words.iter().find(|word| tables.load(word) == held).unwrap();
        tables.store(place, BUSY);
        assert_eq!(find(&tables, 1 << 8, mask, 0), BUSY);
        assert!(!replace(&tables, 1 << 8, mask, held, 0), "somebody else owns it");
    }

    #[test]
    fn at_the_rated_load_hardly_an_insertion_fails() {
        // Half of 2^14 places, as `flows_max` allows.
        let (tables, mask) = tables(1 << 12);
        let mut hash = 0x1234_5678_9abc_def0_u64;
        let mut failed = 0;
        for _ in 0..1 << 13 {
            hash = hash.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            failed += u32::from(!insert(&tables, hash ^ hash >> 29, mask, 0, word(1, FlowState::Established, 100)));
        }
        assert!(failed <= 1, "{failed} of 8192");
        overflow_is_counted(&tables, mask);
    }

    proptest! {
        /// Whatever is inserted, replaced, removed and swept: a record is found until it expires or made room, `ACTIVE` is a
        /// recount, and second buckets are counted.
        #[test]
        fn the_table_keeps_its_counts(steps in prop::collection::vec((0u64..40, 0u8..6, 0usize..4, 1u32..8, 0u32..4), 1..300)) {
            let (tables, mask) = tables(4);
            let mut now = 0;
            for (flow, action, state, backend, later) in steps {
                now += later;
                let hash = flow.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let state = FlowState::ALL[state];
                let new = word(backend, state, now + state.timeout_s(30));
                let held = find(&tables, hash, mask, now);
                match action {
                    0..=2 if held == 0 => {
                        if insert(&tables, hash, mask, now, new) {
                            prop_assert_eq!(find(&tables, hash, mask, now), new);
                        }
                    }
                    0..=3 if held != 0 => {
                        prop_assert!(replace(&tables, hash, mask, held, new));
                        prop_assert_eq!(find(&tables, hash, mask, now), new);
                    }
                    4 if held != 0 => {
                        prop_assert!(replace(&tables, hash, mask, held, 0));
                        prop_assert_eq!(find(&tables, hash, mask, now), 0);
                    }
                    _ => (0..=mask).for_each(|index| { sweep(&tables, index, mask, now); }),
                }
                let active: Vec<u64> = tables.active.iter().map(|word| tables.load(word)).collect();
                prop_assert_eq!(active, recount(&tables));
                overflow_is_counted(&tables, mask);
            }
        }
    }
}
