//! The flow table: finding, recording and letting go of records. Refuses to know why a flow is recorded.
//!
//! Invariants: whoever exchanges a record's word adjusts `ACTIVE` for it, nobody else does; a record is visible only when its
//! tag and word are whole; nothing live makes room but what [`Record`]s allow: expired ones, then half-open ones older than
//! [`HALF_OPEN_KEPT_S`], then flows that were learned and seen once.
//!
//! Whoever reads a record reads its tag, its word and its tag again: a writer claims the word before it changes the tag, so that a word
//! between two equal tags is that tag's, and not its successor's. Loads of one CPU happen in their order where memory is strongly
//! ordered, as its stores do.
//!
//! While one table takes another's place there are two ([`Tables::pair`]): new records go to `FLOWS`, those of both are found, and
//! [`move_way`] brings them over from the one beside it, one after another.

use crate::{
    abi::{
        flow::{self, BUSY, Bucket, FlowState, HALF_OPEN_KEPT_S, HALF_OPEN_S, Record, WAYS},
        stats::FlowEvent,
    },
    hash::flow_buckets,
    tables::{Pair, Tables},
};

/// Tries to keep the count beside a tag while that tag is written.
const TAG_TRIES: usize = 4;
/// Free ways with which a flow's first bucket takes it without regard to the second.
const FIRST_FREE: u32 = WAYS as u32 - 1;
/// Most flows of a bucket that live in their second: what the count can hold.
const OVERFLOW_MAX: u64 = 255;
/// Tries to follow a record that packets change while it is moved. Only packets that looked for it before its copy was there can.
const MOVE_TRIES: usize = 8;

/// One of the tables, with its mask.
#[derive(Clone, Copy)]
struct Table {
    mask: u32,
    beside: bool,
}

impl Table {
    /// `FLOWS`; `mask` is the node entry's.
    #[inline(always)]
    fn flows<T: Tables>(tables: &T, mask: u32) -> Self {
        let mask = match tables.pair() {
            Some(pair) => pair.mask,
            None => mask,
        };
        Self { mask, beside: false }
    }

    #[inline(always)]
    const fn beside(pair: Pair) -> Self {
        Self { mask: pair.beside, beside: true }
    }

    #[inline(always)]
    fn bucket<T: Tables>(self, tables: &T, index: u32) -> Option<&Bucket> {
        if self.beside { tables.flows_beside(index) } else { tables.flows(index) }
    }

    /// The table in which the bucket with this number lies, and its index there: those of the table beside follow on those of `FLOWS`.
    #[inline(always)]
    fn of_number<T: Tables>(tables: &T, mask: u32, number: u32) -> (Self, u32) {
        match tables.pair() {
            Some(pair) if number > pair.mask => (Self::beside(pair), number - pair.mask - 1),
            _ => (Self::flows(tables, mask), number),
        }
    }
}

/// Looks for the live record of a flow hash: its word, [`BUSY`] if another CPU is writing it (a miss, but nothing is to be
/// recorded), 0 without one.
#[inline(always)]
pub fn find<T: Tables>(tables: &T, hash: u64, mask: u32, now_s: u32) -> u64 {
    let flows = Table::flows(tables, mask);
    let held = find_at(tables, flows, hash, now_s);
    let Some(pair) = tables.pair() else { return held };
    if flow::is_record(held) {
        return held;
    }
    let before = find_at(tables, Table::beside(pair), hash, now_s);
    if flow::is_record(before) {
        return before;
    }
    // What was moved between the two looks is here now.
    match find_at(tables, flows, hash, now_s) {
        0 => before,
        held => held,
    }
}

/// Reads the second bucket of a flow that most likely has no record and gets one. Its miss of the cache is then over together with
/// that of the first, which [`find`] meets, and not only begun by [`insert`]; BPF has no prefetch.
#[inline(always)]
pub fn fetch<T: Tables>(tables: &T, hash: u64, mask: u32) {
    let flows = Table::flows(tables, mask);
    let (_, _, second) = flow_buckets(hash, flows.mask);
    if let Some(Bucket { tags: [head, ..], .. }) = flows.bucket(tables, second) {
        tables.load(head);
    }
}

#[inline(always)]
fn find_at<T: Tables>(tables: &T, table: Table, hash: u64, now_s: u32) -> u64 {
    let (tag, first, second) = flow_buckets(hash, table.mask);
    let Some(bucket) = table.bucket(tables, first) else { return 0 };
    let word = find_in(tables, bucket, tag, now_s);
    let [head, ..] = &bucket.tags;
    if word != 0 || tables.load(head) & OVERFLOW_MAX == 0 {
        return word;
    }
    table.bucket(tables, second).map_or(0, |bucket| find_in(tables, bucket, tag, now_s))
}

/// The tag of a way, without the count that may stand beside it.
#[inline(always)]
fn tag_of<T: Tables>(tables: &T, held: &flow::Word) -> u64 {
    tables.load(held) & !OVERFLOW_MAX
}

#[inline(always)]
fn find_in<T: Tables>(tables: &T, bucket: &Bucket, tag: u64, now_s: u32) -> u64 {
    for (held, word) in bucket.tags.iter().zip(&bucket.words) {
        if tag_of(tables, held) != tag {
            continue;
        }
        let word = tables.load(word);
        let lives = word == BUSY || (flow::is_record(word) && Record::unpack(word).left_s(now_s) > 0);
        // What has another tag by now had made room: the flow has no record here.
        if lives && tag_of(tables, held) == tag {
            return word;
        }
    }
    0
}

/// [`find`] for a packet that leaves its record as it is but for the expiry, which is moved on: gives the record's word if its slot,
/// state and expiry become those of `same`, [`BUSY`] if there is a record of which that is not true, 0 without one. Not while there are
/// two tables.
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
        if tag_of(tables, held) != tag {
            continue;
        }
        let old = tables.load(place);
        let dead = old == 0 || (old != BUSY && Record::unpack(old).left_s(now_s) == 0);
        // As in `find_in`. A successor that comes after this and has the very same word has its expiry moved on, and no more.
        if dead || tag_of(tables, held) != tag {
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
    let flows = Table::flows(tables, mask);
    if replace_at(tables, flows, hash, old, new, true) {
        return true;
    }
    // Between the two tries it may have been moved here.
    tables.pair().is_some_and(|pair| {
        replace_at(tables, Table::beside(pair), hash, old, new, true) || replace_at(tables, flows, hash, old, new, true)
    })
}

/// [`replace`] in one table; the totals count it, or a move, which is no news, is not counted.
#[inline(always)]
fn replace_at<T: Tables>(tables: &T, table: Table, hash: u64, old: u64, new: u64, counted: bool) -> bool {
    let (tag, first, second) = flow_buckets(hash, table.mask);
    replace_in(tables, table, first, tag, old, new, counted)
        || replace_in(tables, table, second, tag, old, new, counted)
}

#[inline(always)]
fn replace_in<T: Tables>(tables: &T, table: Table, index: u32, tag: u64, old: u64, new: u64, counted: bool) -> bool {
    let Some(bucket) = table.bucket(tables, index) else { return false };
    for (held, place) in bucket.tags.iter().zip(&bucket.words) {
        // To be removed it is claimed. To be changed it is not: packets of a live flow would not find it meanwhile.
        let claim = if new == 0 { BUSY } else { new };
        if tag_of(tables, held) != tag || !tables.exchange(place, old, claim) {
            continue;
        }
        // A successor with the same word gets it back.
        let ours = tag_of(tables, held) == tag;
        if !ours && tables.exchange(place, claim, old) {
            return false;
        }
        if new == 0 {
            came_home(tables, table, tag, index);
            tables.store(place, 0);
        }
        account(tables, old, new, counted);
        return ours;
    }
    false
}

#[inline(always)]
fn remove_way<T: Tables>(tables: &T, table: Table, index: u32, way: usize, word: u64, counted: bool) -> bool {
    let Some(bucket) = table.bucket(tables, index) else { return false };
    let (Some(held), Some(place)) = (bucket.tags.get(way), bucket.words.get(way)) else { return false };
    // Claimed first: the tag that stands beside a record is its own for certain only while nobody can take its place.
    if !tables.exchange(place, word, BUSY) {
        return false;
    }
    came_home(tables, table, tag_of(tables, held), index);
    tables.store(place, 0);
    account(tables, word, 0, counted);
    true
}

/// A flow with this tag left bucket `index`: if that was its second, its first counts one less.
#[inline(always)]
fn came_home<T: Tables>(tables: &T, table: Table, tag: u64, index: u32) {
    let (_, first, _) = flow_buckets(tag, table.mask);
    if first != index
        && let Some(Bucket { tags: [head, ..], .. }) = table.bucket(tables, first)
    {
        tables.add(head, u64::MAX);
    }
}

/// Adjusts `ACTIVE`, and if it is `counted` the totals, for a word that gave way to another; 0 and [`BUSY`] stand for no record.
#[inline(always)]
fn account<T: Tables>(tables: &T, old: u64, new: u64, counted: bool) {
    let (was, is) = (weight(old), weight(new));
    let (from, to) = ((old >> 40) as u32, (new >> 40) as u32);
    if was == is && from == to {
        return;
    }
    if from != 0 && was != 0 {
        if let Some(word) = tables.active(from) {
            tables.add(word, was.wrapping_neg());
        }
        if counted && was == flow::ACTIVE_ONE {
            tables.count_flows(from, [0, 0, 0, 1]);
        }
    }
    if to != 0 && is != 0 {
        if let Some(word) = tables.active(to) {
            tables.add(word, is);
        }
        if counted && is == flow::ACTIVE_ONE {
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
    const NONE: Self = Self { free: 0, free_way: 0, victim_way: 0, rank: 0 };

    /// VERIFIER: "BPF program is too large". As one number it can be forgotten ([`Tables::forget`]), so that the ways through a bucket meet again.
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

/// How much room a bucket has.
#[inline(always)]
fn room_in<T: Tables>(tables: &T, index: u32, now_s: u32) -> Room {
    let Some(bucket) = tables.flows(index) else { return Room::NONE };
    let mut room = Room::NONE;
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
    Room::unpack(tables.forget(room.pack()))
}

/// Records a flow that has no record. Says whether there was room.
#[inline(always)]
pub fn insert<T: Tables>(tables: &T, hash: u64, mask: u32, now_s: u32, word: u64) -> bool {
    let recorded = place(tables, Table::flows(tables, mask), hash, now_s, word, true);
    tables.count(if recorded { FlowEvent::Insert } else { FlowEvent::InsertFailed });
    recorded
}

/// [`insert`] into `FLOWS`, with `table` its mask; a record that is moved there is not `counted`.
#[inline(always)]
fn place<T: Tables>(tables: &T, table: Table, hash: u64, now_s: u32, word: u64, counted: bool) -> bool {
    let (tag, first, second) = flow_buckets(hash, table.mask);
    let (Some(a), Some(b)) = (tables.flows(first), tables.flows(second)) else { return false };
    let in_a = room_in(tables, first, now_s);
    // Two-choice: the emptier one, the first where both are alike or it is nearly empty: what lives in its second bucket costs a miss of
    // the cache more. So 19 % of flows do instead of 27 % at the rated load, and 0.003 % of inserts fail instead of 0.001 %. Nor does the insert
    // itself read the second line then, which in a table that is hardly filled is most of what it would cost.
    let in_b = if in_a.free < FIRST_FREE { room_in(tables, second, now_s) } else { Room::NONE };
    let evicts = in_a.free == 0 && in_b.free == 0;
    let to_b = if evicts { in_b.rank > in_a.rank } else { in_b.free > in_a.free };
    let (index, bucket, room) = if to_b { (second, b, in_b) } else { (first, a, in_a) };
    if evicts && room.rank == 0 {
        return false;
    }
    let way = if evicts { room.victim_way } else { room.free_way } as usize % WAYS;
    let (Some(held), Some(place)) = (bucket.tags.get(way), bucket.words.get(way)) else { return false };
    let old = tables.load(place);
    // Somebody else may have taken the way since: one failure more, not a loop.
    let free = !flow::is_record(old) || Record::unpack(old).left_s(now_s) == 0;
    if old == BUSY || free == evicts || !tables.exchange(place, old, BUSY) {
        return false;
    }
    if flow::is_record(old) {
        came_home(tables, table, tag_of(tables, held), index);
        account(tables, old, 0, true);
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
        return false;
    }
    tables.store(place, word);
    account(tables, 0, word, counted);
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

/// Removes what expired in a bucket; gives how many records that were. The buckets of a table beside follow on those of `FLOWS`.
#[inline(always)]
pub fn sweep<T: Tables>(tables: &T, number: u32, mask: u32, now_s: u32) -> u32 {
    let (table, index) = Table::of_number(tables, mask, number);
    let Some(bucket) = table.bucket(tables, index) else { return 0 };
    let mut removed = 0;
    for way in 0..WAYS {
        let Some(word) = bucket.words.get(way).map(|word| tables.load(word)) else { return removed };
        if flow::is_record(word)
            && Record::unpack(word).left_s(now_s) == 0
            && remove_way(tables, table, index, way, word, true)
        {
            tables.count(FlowEvent::Expired);
            removed += 1;
        }
    }
    removed
}

/// Removes the records of a bucket that name a backend of `service` (0 is any), and `backend` itself (0 is any); gives how many that
/// were. Buckets are numbered as for [`sweep`].
#[inline(always)]
pub fn flush<T: Tables>(tables: &T, number: u32, mask: u32, service: u32, backend: u32) -> u32 {
    let (table, index) = Table::of_number(tables, mask, number);
    let Some(bucket) = table.bucket(tables, index) else { return 0 };
    let mut removed = 0;
    for way in 0..WAYS {
        let Some(word) = bucket.words.get(way).map(|word| tables.load(word)) else { return removed };
        let id = Record::unpack(word).backend;
        if !flow::is_record(word) || (backend != 0 && id != backend) {
            continue;
        }
        let of_service = service == 0 || tables.backend(id).is_some_and(|entry| entry.service == service);
        if of_service && remove_way(tables, table, index, way, word, true) {
            tables.count(FlowEvent::Flushed);
            removed += 1;
        }
    }
    removed
}

/// What became of a way of the table beside `FLOWS`, see [`move_way`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// There is no live record in it.
    Nothing = 0,
    /// Its record is in `FLOWS` now.
    Moved = 1,
    /// `FLOWS` has no room for its record, which stays and is found.
    NoRoom = 2,
}

/// Moves the record of a way of the table beside into `FLOWS`; a record that expired is removed. For a time when nobody records anything
/// beside.
///
/// The copy comes first, so that the record is always in one of the tables. Packets that looked for it before the copy was there
/// may still change the one beside: their change is carried over.
#[inline(always)]
pub fn move_way<T: Tables>(tables: &T, index: u32, way: usize, now_s: u32) -> Moved {
    let Some(pair) = tables.pair() else { return Moved::Nothing };
    let (flows, beside) = (Table { mask: pair.mask, beside: false }, Table::beside(pair));
    let Some(bucket) = beside.bucket(tables, index) else { return Moved::Nothing };
    let (Some(held), Some(from)) = (bucket.tags.get(way), bucket.words.get(way)) else { return Moved::Nothing };
    let mut word = tables.load(from);
    if !flow::is_record(word) {
        return Moved::Nothing;
    }
    if Record::unpack(word).left_s(now_s) == 0 {
        if remove_way(tables, beside, index, way, word, true) {
            tables.count(FlowEvent::Expired);
        }
        return Moved::Nothing;
    }
    // After the word, and once: nobody records beside, so that no other tag comes here.
    let tag = tag_of(tables, held);
    // Two programs recorded the flow at the same moment, one in each table: packets follow the one in `FLOWS`.
    let twice = flow::is_record(find_at(tables, flows, tag, now_s));
    if !twice && !place(tables, flows, tag, now_s, word, false) {
        return Moved::NoRoom;
    }
    for _ in 0..MOVE_TRIES {
        if remove_way(tables, beside, index, way, word, twice) {
            return Moved::Moved;
        }
        let now = tables.load(from);
        let gone = !flow::is_record(now);
        if !twice {
            // Where a packet changed the copy as well, that change stands.
            replace_at(tables, flows, tag, word, if gone { 0 } else { now }, false);
        }
        if gone {
            return Moved::Moved;
        }
        word = now;
    }
    Moved::Moved
}

#[cfg(test)]
mod tests;
