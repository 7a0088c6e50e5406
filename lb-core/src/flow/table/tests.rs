//! The flow table on the host: what is recorded is found until it expires or made room, and every count is a recount.

extern crate std;
use std::{cell::Cell, collections::BTreeMap, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{
    abi::{
        backend::Backend,
        flow::Word,
        fragment::{Fragment, FragmentKey},
        lookup,
        node::Node,
        ring::Line,
        service::Service,
        turns::Turns,
    },
    host::Snapshot,
    tables::{NextHop, Route},
};

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
    let both = tables.flows.iter().chain(&tables.beside);
    for word in both.flat_map(|bucket| &bucket.words).map(|word| tables.load(word)) {
        if flow::is_record(word) {
            let record = Record::unpack(word);
            active[record.backend as usize] += record.state.weight();
        }
    }
    active
}

/// Every bucket counts exactly the flows that would be in it and are in their second.
fn overflow_is_counted(tables: &Snapshot, buckets: &[Bucket]) {
    let mask = buckets.len() as u32 - 1;
    let mut away: BTreeMap<u32, u64> = BTreeMap::new();
    for (index, bucket) in (0..).zip(buckets) {
        for (tag, word) in bucket.tags.iter().zip(&bucket.words) {
            let (tag, word) = (tables.load(tag), tables.load(word));
            let (_, first, _) = flow_buckets(tag, mask);
            if flow::is_record(word) && first != index {
                *away.entry(first).or_default() += 1;
            }
        }
    }
    for (index, bucket) in (0..).zip(buckets) {
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
        [FlowEvent::EvictedOnce, FlowEvent::EvictedHalfOpen, FlowEvent::Expired, FlowEvent::InsertFailed].map(count),
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
    // Half of 2^17 places, as `flows_max` allows.
    let (tables, mask) = tables(1 << 15);
    let mut hash = 0x1234_5678_9abc_def0_u64;
    let mut failed = 0;
    for _ in 0..1 << 16 {
        hash = hash.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        failed += u32::from(!insert(&tables, hash ^ hash >> 29, mask, 0, word(1, FlowState::Established, 100)));
    }
    // 0.01 %.
    assert!(failed <= 6, "{failed} of 65536");
    overflow_is_counted(&tables, &tables.flows);
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
            overflow_is_counted(&tables, &tables.flows);
        }
    }

    /// While another table takes its place, nothing that was recorded is lost, not for a packet between two moves, and all counts hold.
    #[test]
    fn nothing_is_lost_while_a_table_takes_the_others_place(
        (from, to) in (0u32..4, 1u32..5),
        recorded in prop::collection::vec((0u64..40, 0usize..4), 1..24),
        steps in prop::collection::vec((0u64..40, 0u8..8, 0usize..4, 0u32..16), 1..200),
    ) {
        let (mut tables, mask) = tables(1 << from);
        let hash = |flow: u64| flow.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut held: BTreeMap<u64, u64> = BTreeMap::new();
        for (flow, state) in recorded {
            let new = word(1, FlowState::ALL[state], 60);
            if !held.contains_key(&flow) && insert(&tables, hash(flow), mask, 0, new) {
                held.insert(flow, new);
            }
        }
        held.retain(|flow, word| find(&tables, hash(*flow), mask, 0) == *word);
        tables.beside = core::mem::replace(&mut tables.flows, (0..1 << to).map(|_| Bucket::default()).collect());
        let events = |tables: &Snapshot| {
            let events = tables.events.borrow();
            let count = |event| events.get(&event).copied().unwrap_or(0);
            (count(FlowEvent::EvictedHalfOpen) + count(FlowEvent::EvictedOnce), count(FlowEvent::Expired))
        };
        let (evicted, _) = events(&tables);
        for (flow, action, state, at) in steps {
            let new = word(1 + flow as u32 % 3, FlowState::ALL[state], 70);
            let now = find(&tables, hash(flow), mask, 0);
            match action {
                0 if now == 0 => {
                    if insert(&tables, hash(flow), mask, 0, new) {
                        held.insert(flow, new);
                    }
                }
                1..=2 if now != 0 => {
                    prop_assert!(replace(&tables, hash(flow), mask, now, new));
                    held.insert(flow, new);
                }
                3 if now != 0 => {
                    prop_assert!(replace(&tables, hash(flow), mask, now, 0));
                    held.remove(&flow);
                }
                _ => {
                    let counted = tables.totals.borrow().clone();
                    move_way(&tables, at % (mask + 1), state, 0);
                    if events(&tables).0 == evicted {
                        prop_assert_eq!(&counted, &*tables.totals.borrow(), "a move is no news");
                    }
                }
            }
            if events(&tables).0 == evicted {
                for (flow, word) in &held {
                    prop_assert_eq!(find(&tables, hash(*flow), mask, 0), *word);
                }
            }
            let active: Vec<u64> = tables.active.iter().map(|word| tables.load(word)).collect();
            prop_assert_eq!(active, recount(&tables));
            overflow_is_counted(&tables, &tables.flows);
            overflow_is_counted(&tables, &tables.beside);
        }
        for number in 0..=mask {
            (0..WAYS).for_each(|way| { move_way(&tables, number, way, 0); });
        }
        let left = tables.beside.iter().flat_map(|bucket| &bucket.words).filter(|word| tables.load(word) != 0).count();
        prop_assert!(left == 0 || to < 4, "{left} are left beside a table with room");
        // What expired goes, wherever it is.
        (0..=mask + (1 << to)).for_each(|number| { sweep(&tables, number, mask, 80); });
        prop_assert_eq!(recount(&tables), vec![0; 64]);
    }
}

/// Something that happens on another CPU.
enum Other {
    /// A packet gives a record beside another word, when its copy is there and it is about to go.
    Packet(u64),
    /// Everything beside is moved, when that table is about to be looked at.
    Mover,
    /// A flow is recorded with a word, when the way that this one will take is about to be read or exchanged.
    Newcomer { bucket: usize, way: usize, hash: u64, word: u64, now_s: u32 },
}

/// Tables in which it happens once.
struct Meanwhile<'a> {
    tables: &'a Snapshot,
    other: Cell<Option<Other>>,
}

impl Meanwhile<'_> {
    fn packet(&self) {
        let new = match self.other.take() {
            Some(Other::Packet(new)) => new,
            other => return self.other.set(other),
        };
        let mut beside = self.tables.beside.iter().flat_map(|bucket| &bucket.words);
        let place = beside.find(|word| self.tables.load(word) != 0).expect("it is beside");
        let old = self.tables.load(place);
        assert!(self.tables.exchange(place, old, new));
        account(self.tables, old, new, true);
    }

    fn mover(&self) {
        match self.other.take() {
            Some(Other::Mover) => move_all(self.tables),
            other => self.other.set(other),
        }
    }

    fn newcomer(&self, place: &Word) {
        match self.other.take() {
            Some(Other::Newcomer { bucket, way, hash, word, now_s })
                if core::ptr::eq(place, &self.tables.flows[bucket].words[way]) =>
            {
                assert!(insert(self.tables, hash, self.tables.flows.len() as u32 - 1, now_s, word), "there is room");
                assert_eq!(self.tables.load(place), word, "it takes this way");
            }
            other => self.other.set(other),
        }
    }
}

impl Tables for Meanwhile<'_> {
    fn load(&self, word: &Word) -> u64 {
        self.newcomer(word);
        self.tables.load(word)
    }

    fn exchange(&self, word: &Word, old: u64, new: u64) -> bool {
        // A record is claimed before it goes.
        if new == BUSY && flow::is_record(old) {
            self.packet();
        }
        self.newcomer(word);
        self.tables.exchange(word, old, new)
    }

    fn flows_beside(&self, index: u32) -> Option<&Bucket> {
        self.mover();
        self.tables.flows_beside(index)
    }

    fn node(&self) -> Option<&Node> {
        self.tables.node()
    }

    fn bucket(&self, index: u32) -> Option<&lookup::Bucket> {
        self.tables.bucket(index)
    }

    fn service(&self, id: u32) -> Option<&Service> {
        self.tables.service(id)
    }

    fn line(&self, index: u32) -> Option<&Line> {
        self.tables.line(index)
    }

    fn owners(&self, index: u32) -> Option<&Line> {
        self.tables.owners(index)
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.tables.backend(id)
    }

    fn flows(&self, index: u32) -> Option<&Bucket> {
        self.tables.flows(index)
    }

    fn pair(&self) -> Option<Pair> {
        self.tables.pair()
    }

    fn active(&self, id: u32) -> Option<&Word> {
        self.tables.active(id)
    }

    fn count(&self, event: FlowEvent) {
        self.tables.count(event);
    }

    fn count_flows(&self, backend: u32, flows: [u32; 4]) {
        self.tables.count_flows(backend, flows);
    }

    fn turns(&self, service: u32) -> Turns {
        self.tables.turns(service)
    }

    fn set_turns(&self, service: u32, turns: Turns) {
        self.tables.set_turns(service, turns);
    }

    fn jiffies(&self) -> u64 {
        self.tables.jiffies()
    }

    fn load_u64(&self, word: &u64) -> u64 {
        *word
    }

    fn load_u32(&self, word: &u32) -> u32 {
        *word
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.tables.fragment(key)
    }

    fn remember_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.tables.remember_fragment(key, fragment);
    }

    fn next_hop(&self, route: &Route) -> NextHop {
        self.tables.next_hop(route)
    }
}

fn move_all<T: Tables>(tables: &T) {
    let Some(pair) = tables.pair() else { return };
    for index in 0..=pair.beside {
        (0..WAYS).for_each(|way| {
            move_way(tables, index, way, 0);
        });
    }
}

/// One recorded flow, beside a larger table.
fn beside(held: u64) -> Snapshot {
    let (mut tables, mask) = tables(1);
    assert!(insert(&tables, 7 << 8, mask, 0, held));
    tables.beside = core::mem::replace(&mut tables.flows, vec![Bucket::default(); 4]);
    tables
}

/// A packet that looked before the copy was there changes the record while it is moved, or ends it.
#[test]
fn a_change_during_a_move_is_carried_over() {
    for change in [word(2, FlowState::Closing, 10), 0] {
        let tables = beside(word(1, FlowState::Established, 100));
        let moving = Meanwhile { tables: &tables, other: Cell::new(Some(Other::Packet(change))) };
        move_all(&moving);
        assert!(moving.other.take().is_none(), "the packet came");
        assert_eq!(find(&tables, 7 << 8, 0, 0), change);
        assert!(tables.beside.iter().flat_map(|bucket| &bucket.words).all(|word| tables.load(word) == 0));
        let active: Vec<u64> = tables.active.iter().map(|word| tables.load(word)).collect();
        assert_eq!(active, recount(&tables));
    }
}

#[test]
fn what_is_moved_during_a_look_is_found_and_changed() {
    let (held, closing) = (word(1, FlowState::Established, 100), word(1, FlowState::Closing, 10));
    let looks = |look: &dyn Fn(&Meanwhile<'_>)| {
        let tables = beside(held);
        let moving = Meanwhile { tables: &tables, other: Cell::new(Some(Other::Mover)) };
        look(&moving);
        assert!(moving.other.take().is_none(), "it was moved");
        find(&tables, 7 << 8, 0, 0)
    };
    assert_eq!(looks(&|tables| assert_eq!(find(tables, 7 << 8, 0, 0), held)), held);
    assert_eq!(looks(&|tables| assert!(replace(tables, 7 << 8, 0, held, closing))), closing);
}

const NOW_S: u32 = 100;

/// A table of two buckets that was full a second ago, in which one record can make room now, and it lives in its second bucket. Gives its hash, its place, and the
/// hash of a flow that can have that place and finds it in its first bucket.
fn one_gives_way(gives: u64) -> (Snapshot, u64, (usize, usize), u64) {
    let (tables, mask) = tables(2);
    // Two of the four fill the first bucket so far that the third goes to the second.
    let at_home = |first: u32| (1u64..).map(|n| n << 8).filter(move |hash| flow_buckets(*hash, mask).1 == first);
    let lives = word(7, FlowState::Established, NOW_S + 500);
    let mut of_first = at_home(0);
    for hash in of_first.by_ref().take(2) {
        assert!(insert(&tables, hash, mask, NOW_S - 1, lives));
    }
    let away = of_first.next().unwrap();
    assert!(insert(&tables, away, mask, NOW_S - 1, gives));
    let mut of_second = at_home(1);
    let full = |tables: &Snapshot| tables.flows.iter().flat_map(|b| &b.words).all(|word| tables.load(word) != 0);
    while !full(&tables) {
        assert!(insert(&tables, of_second.next().unwrap(), mask, NOW_S - 1, lives));
    }
    let way = tables.flows[1].words.iter().position(|word| tables.load(word) == gives).expect("in its second bucket");
    (tables, away, (1, way), of_second.next().unwrap())
}

/// Whoever is about to read the word of a record when another flow gets its place does not take that flow's word for it.
#[test]
fn a_record_that_makes_room_during_a_look_is_not_found() {
    let same = Record { backend: 0, slot: 0, state: FlowState::Established, expires_s: NOW_S + 500 };
    let half_open = word(1, FlowState::HalfOpen, NOW_S + HALF_OPEN_S - HALF_OPEN_KEPT_S);
    let expired = word(1, FlowState::Established, NOW_S);
    let comes = word(2, FlowState::Established, NOW_S + 400);
    type Look = fn(&Meanwhile<'_>, u64, Record) -> u64;
    let looks: [(u64, Look); 2] = [
        (half_open, |tables, hash, _| find(tables, hash, 1, NOW_S)),
        (expired, |tables, hash, same| touch(tables, hash, 1, NOW_S, same)),
    ];
    for (gives, look) in looks {
        let (tables, gone, (bucket, way), hash) = one_gives_way(gives);
        let newcomer = Other::Newcomer { bucket, way, hash, word: comes, now_s: NOW_S };
        let looking = Meanwhile { tables: &tables, other: Cell::new(Some(newcomer)) };
        assert_eq!(look(&looking, gone, same), 0);
        assert!(looking.other.take().is_none(), "the newcomer came");
        assert_eq!(find(&tables, hash, 1, NOW_S), comes, "its record is as it was");
    }
}

/// Nor does whoever changes or removes a record of which the successor happens to have the very same word.
#[test]
fn a_successor_with_the_same_word_is_neither_changed_nor_removed() {
    let gives = word(1, FlowState::HalfOpen, NOW_S + HALF_OPEN_S - HALF_OPEN_KEPT_S);
    for new in [word(3, FlowState::Closing, NOW_S + 10), 0] {
        let (tables, gone, (bucket, way), hash) = one_gives_way(gives);
        let newcomer = Other::Newcomer { bucket, way, hash, word: gives, now_s: NOW_S };
        let changing = Meanwhile { tables: &tables, other: Cell::new(Some(newcomer)) };
        assert!(!replace(&changing, gone, 1, gives, new), "its record is gone");
        assert!(changing.other.take().is_none(), "the newcomer came");
        assert_eq!(find(&tables, hash, 1, NOW_S), gives);
        let active: Vec<u64> = tables.active.iter().map(|word| tables.load(word)).collect();
        assert_eq!(active, recount(&tables));
        overflow_is_counted(&tables, &tables.flows);
    }
}
