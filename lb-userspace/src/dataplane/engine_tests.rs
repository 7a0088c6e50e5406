//! Plans carried out store by store: what a packet sees at every point, and what an agent finds that comes after a crash at
//! every point.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use lb_core::abi::{
    backend::{Backend, FLAG_DOWN, FLAG_NEXT_HOP, FLAG_UP, FLAG_VALID},
    flow::{FlowState, Record},
    lookup::{Bucket, Key, Kind},
    node::{self, Node},
    ring::{Extent, Inputs, Slot},
    service::{FLAG_TRACKED_SINCE, Forward, Service},
};
use proptest::prelude::*;

use super::{
    Error,
    apply::{self, Map, Memory},
    engine::{Clock, Engine, GRACE},
    fake::Heap,
};
use crate::{
    model::{Limits, NextHop, Protocol, ServiceKey},
    plan::{
        Look, MapSizes, Op, Plan, PlanError, Policy, Present, Secrets, Wanted, WantedBackend, WantedService,
        lookup::Table,
        op::SERVICE_WORD_FLAGS,
        wanted::{backend_key, octets},
        window::GRACE_S,
    },
};

/// Slots and backends change at once; windows have tests of their own.
const AT_ONCE: Policy = Policy { windows: false, ..Policy::DEFAULT };
const CLOCK: Clock = Clock { hz: 250, now_s: 0 };
const SECRETS: Secrets = Secrets { hash_key: [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], ring_seed: 42 };

fn sizes() -> MapSizes {
    MapSizes::of(&Limits { services_max: 6, backends_max: 24, ring_slots_max: 2048, flows_max: 1024 })
}

fn vip(n: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, n).into()
}

fn key(vip_number: u8, port: u16) -> ServiceKey {
    ServiceKey { vip: vip(vip_number), port, protocol: Protocol::Tcp }
}

fn hop(n: u8) -> Option<NextHop> {
    (n > 0).then(|| NextHop {
        ifindex: u32::from(n % 3) + 1,
        mtu: 1500,
        src_mac: [2, 0, 0, 0, 1, n % 3],
        dst_mac: [2, 0, 0, 0, 2, n],
    })
}

fn backend(service: &ServiceKey, n: u8, weight: u32, hop_number: u8) -> WantedBackend {
    let address = Ipv4Addr::new(10, 0, service.port as u8, n).into();
    let up = weight > 0;
    WantedBackend {
        key: backend_key(service, address, service.port),
        weight,
        up,
        down: !up,
        max_connections: 0,
        next_hop: hop(hop_number),
    }
}

/// A service of `(backend, weight, next hop)`.
fn service(key: ServiceKey, forward: Forward, ring_size: u32, backends: &[(u8, u32, u8)]) -> WantedService {
    let mut backends: Vec<WantedBackend> = backends.iter().map(|&(n, w, h)| backend(&key, n, w, h)).collect();
    backends.sort_by_key(|b| b.key);
    WantedService {
        name: format!("s{}", key.port),
        key,
        forward,
        ring_size,
        policy: AT_ONCE,
        fail_open: false,
        backends,
        dismissed: Vec::new(),
    }
}

fn wanted(services: impl IntoIterator<Item = WantedService>) -> Wanted {
    let mut services: Vec<_> = services.into_iter().collect();
    services.sort_by_key(|s| s.key);
    Wanted { services, outer_source_v4: [198, 18, 0, 0], outer_source_v6: octets(vip(9)), leaving: BTreeMap::new() }
}

fn engine() -> Engine<Heap> {
    Engine::start(Heap::new(&sizes()), sizes(), SECRETS, CLOCK).expect("an empty heap")
}

fn plan(engine: &Engine<Heap>, wanted: &Wanted, revision: u64) -> Result<Plan, PlanError> {
    engine.plan(wanted, revision, 0, &|_| 0)
}

/// The maps as a packet meets them.
struct View<'a>(&'a Heap);

impl View<'_> {
    fn table(&self) -> Table {
        let buckets = (0..self.0.entries(Map::Lookup)).map(|b| self.0.read::<Bucket>(Map::Lookup, b).expect("bucket"));
        Table::from_buckets(SECRETS.hash_key, buckets.collect())
    }

    fn service(&self, id: u32) -> Service {
        self.0.read(Map::Services, id).expect("service")
    }

    fn backend(&self, id: u32) -> Backend {
        self.0.read(Map::Backends, id).expect("backend")
    }

    fn find_service(&self, table: &Table, key: &ServiceKey) -> Option<u32> {
        let key =
            Key { addr: octets(key.vip), port: key.port, proto: key.protocol.number(), kind: Kind::Service as u8 };
        table.find(&key, |id| self.service(id).key() == key)
    }

    /// Every slot of every service names a valid backend of that service in the service's own mode.
    fn no_packet_meets_an_invalid_id(&self) {
        let table = self.table();
        for entry in table.iter().filter(|e| e.kind == Kind::Service as u8) {
            let service = self.service(entry.id);
            let extent = Extent::unpack(service.ring);
            for slot in self.0.ring(extent).expect("within the arena") {
                let backend = self.backend(Slot(slot).current());
                assert_ne!(Slot(slot).current(), 0);
                assert_ne!(backend.flags & FLAG_VALID, 0, "slot {slot} of service {}", entry.id);
                assert_eq!((backend.service, backend.forward), (entry.id, service.forward));
                if backend.forward == Forward::Nat as u8 {
                    let key = backend.reply_key();
                    assert!(table.find(&key, |id| self.backend(id).reply_key() == key).is_some(), "reply of {slot}");
                }
            }
        }
    }

    /// The maps hold `wanted`, all of it and nothing else.
    fn holds(&self, present: &Present, wanted: &Wanted, revision: u64) {
        let table = self.table();
        let mut words = BTreeSet::new();
        let (mut words_wanted, mut flags) = (0, 0);
        for w in &wanted.services {
            let id = self.find_service(&table, &w.key).unwrap_or_else(|| panic!("{} is not found", w.name));
            let service = self.service(id);
            assert_eq!(service.forward, w.forward as u8);
            let vip_key = Key { addr: octets(w.key.vip), port: 0, proto: 0, kind: Kind::Vip as u8 };
            assert!(table.find(&vip_key, |id| self.service(id).addr == vip_key.addr).is_some());
            words.insert(w.key.vip);
            words_wanted += 1;
            flags |= if w.key.port == 0 { node::FLAG_ALL_PORTS } else { 0 };
            if w.forward == Forward::Nat {
                flags |= node::FLAG_NAT | if w.key.port == 0 { node::FLAG_NAT_ALL_PORTS } else { 0 };
            }
            let slots = self.0.ring(Extent::unpack(service.ring)).expect("ring");
            let mut shares: BTreeMap<[u8; 16], u32> = BTreeMap::new();
            for slot in &slots {
                *shares.entry(self.backend(Slot(*slot).current()).addr).or_default() += 1;
            }
            let weighted: BTreeSet<_> = w.backends.iter().filter(|b| b.weight > 0).map(|b| b.key.addr).collect();
            assert_eq!(shares.keys().copied().collect::<BTreeSet<_>>(), weighted, "{}", w.name);
            assert_eq!(slots.len() as u32, if weighted.is_empty() { 0 } else { w.ring_size });
            for b in &w.backends {
                // A backend that went and came back has two valid entries for a while; one of them is named.
                let address = crate::plan::wanted::address(b.key.addr);
                let named = present.backend(&w.key, address, b.key.port).expect("a backend that is wanted");
                let entry = &self.backend(named.id);
                assert_eq!(*entry, named.entry);
                assert_eq!(self.0.read(Map::BackendKeys, named.id), Some(b.key));
                assert_eq!((entry.service, entry.addr), (id, b.key.addr));
                assert_ne!(entry.flags & FLAG_VALID, 0);
                assert_eq!(entry.flags & FLAG_UP != 0, b.up);
                assert_eq!(entry.flags & FLAG_NEXT_HOP != 0, b.next_hop.is_some());
                if let Some(hop) = b.next_hop {
                    assert_eq!(
                        (entry.ifindex, entry.mtu, entry.src_mac, entry.dst_mac),
                        (hop.ifindex, hop.mtu, hop.src_mac, hop.dst_mac)
                    );
                }
                if w.forward == Forward::Nat {
                    words_wanted += 1;
                    let key = entry.reply_key();
                    assert!(table.find(&key, |id| self.backend(id) == *entry).is_some());
                }
            }
        }
        assert_eq!(table.entries() as usize, words_wanted + words.len(), "words that nothing wants");
        let node: Node = self.0.read(Map::Node, 0).expect("node");
        assert_eq!((node.revision, node.flags), (revision, flags));
        assert_eq!(node.outer_source_v4, wanted.outer_source_v4);
    }
}

fn step(engine: &mut Engine<Heap>, wanted: &Wanted, revision: u64, now: Instant) -> Vec<Op> {
    let plan = plan(engine, wanted, revision).expect("plan");
    let ops = plan.ops.clone();
    engine.apply(plan, now, 0).expect("apply");
    View(engine.memory()).holds(engine.present(), wanted, revision);
    ops
}

#[test]
fn what_did_not_change_costs_nothing_but_the_revision() {
    let mut engine = engine();
    let now = Instant::now();
    let w = wanted([
        service(key(1, 80), Forward::Ipip, 251, &[(1, 1, 1), (2, 3, 2)]),
        service(key(1, 0), Forward::Nat, 251, &[(1, 1, 1)]),
    ]);
    step(&mut engine, &w, 1, now);
    assert_eq!(step(&mut engine, &w, 2, now).len(), 1);
    // Weights with a common factor ask for the same shares.
    let scaled = wanted([service(key(1, 80), Forward::Ipip, 251, &[(1, 10, 1), (2, 30, 2)]), w.services[0].clone()]);
    assert_eq!(step(&mut engine, &scaled, 3, now).len(), 1);
}

#[test]
fn a_neighbour_that_changes_is_one_store_and_an_interface_hides_the_hop_meanwhile() {
    let mut engine = engine();
    let now = Instant::now();
    let at = |hop| wanted([service(key(1, 80), Forward::Dsr, 251, &[(1, 1, hop)])]);
    step(&mut engine, &at(1), 1, now);
    let ops = step(&mut engine, &at(4), 2, now);
    assert!(matches!(ops[..], [Op::BackendWord { word: 4, .. }, Op::NodeWord { .. }]), "{ops:?}");
    let ops = step(&mut engine, &at(5), 3, now);
    assert!(
        matches!(ops.first(), Some(Op::BackendWord { word: 0, value, .. }) if *value as u32 & FLAG_NEXT_HOP == 0),
        "{ops:?}"
    );
    assert!(
        matches!(ops.iter().rev().nth(1), Some(Op::BackendWord { word: 0, value, .. }) if *value as u32 & FLAG_NEXT_HOP != 0),
        "{ops:?}"
    );
    // Lost and found again: one store each, for the words stay.
    assert_eq!(step(&mut engine, &at(0), 4, now).len(), 2);
    assert_eq!(step(&mut engine, &at(5), 5, now).len(), 2);
}

#[test]
fn removed_ids_and_lines_wait_for_their_grace() {
    let mut engine = engine();
    let now = Instant::now();
    let first = wanted([service(key(1, 80), Forward::Ipip, 251, &[(1, 1, 1), (2, 1, 1)])]);
    let second = wanted([service(key(1, 80), Forward::Ipip, 251, &[(1, 1, 1)])]);
    step(&mut engine, &first, 1, now);
    assert_eq!(engine.grace_until(), None);
    let used = engine.present().fill().ring_slots;
    step(&mut engine, &second, 2, now);
    assert_eq!(engine.present().fill().ring_slots, 2 * used);
    assert!(engine.present().uses_backend_id(2));
    assert_eq!(engine.grace_until(), Some(now + GRACE));
    assert_eq!(engine.settle(now + GRACE - Duration::from_millis(1)).expect("early"), 0);
    assert_ne!(View(engine.memory()).backend(2).flags & FLAG_VALID, 0, "a packet in flight still meets it");
    assert_eq!(engine.settle(now + GRACE).expect("settle"), 1);
    assert_eq!(engine.present().fill().ring_slots, used);
    assert_eq!(View(engine.memory()).backend(2).flags, 0);
    // Nobody gets the id before a look at the flow table has found no record of it.
    assert!(engine.present().uses_backend_id(2));
    engine.looked(Look::new(GRACE_S - 1));
    step(&mut engine, &second, 3, now);
    assert!(engine.present().uses_backend_id(2));
    engine.looked(Look::new(GRACE_S));
    step(&mut engine, &second, 4, now);
    assert!(!engine.present().uses_backend_id(2));
    assert_eq!(engine.settle(now + GRACE * 9).expect("nothing left"), 0);
}

#[test]
fn a_ring_of_another_size_is_adopted_wherever_its_plan_was_stopped() {
    let mut engine = engine();
    let now = Instant::now();
    let windows = |size| {
        let service = service(key(1, 80), Forward::Dsr, size, &[(1, 1, 1), (2, 1, 1)]);
        wanted([WantedService { policy: Policy::DEFAULT, ..service }])
    };
    step(&mut engine, &windows(251), 1, now);
    let change = plan(&engine, &windows(257), 2).expect("plan");
    let mut heap = engine.memory().clone();
    for op in &change.ops {
        apply::write(&mut heap, std::slice::from_ref(op)).expect("store");
        let mut after = Engine::start(heap.clone(), sizes(), SECRETS, CLOCK).expect("adopt");
        let goal = plan(&after, &windows(257), 2).expect("plan");
        after.apply(goal, now, 0).expect("apply");
        let service = View(after.memory()).service(1);
        let (ring, previous) = (Extent::unpack(service.ring), Extent::unpack(service.previous_ring));
        assert_eq!((ring.slots, previous.slots), (257, 251), "{op:?}");
    }
}

#[test]
fn a_drain_ends_early_only_when_every_flow_has_been_recorded_for_as_long_as_one_may_be_silent() {
    let now = Instant::now();
    let (announced, drain_s) = (Policy::DEFAULT.times.announce_s, 100_000);
    let at = |backends: &[(u8, u32, u8)], track_all| {
        let service = service(key(1, 80), Forward::Dsr, 251, backends);
        wanted([WantedService { policy: Policy { track_all, drain_s, ..Policy::DEFAULT }, ..service }])
    };
    let (both, one) = ([(1, 1, 1), (2, 1, 1)], [(1, 1, 1)]);
    /// What another agent finds before the drain begins.
    #[derive(Clone, Copy, PartialEq)]
    enum Restart {
        None,
        /// What this one left.
        Same,
        /// What one left that does not know since when flows are recorded: it writes flags without saying, and other words never.
        Older,
    }
    // Tracked from its first packet on, and since second 10.
    let starts = [(true, 0), (false, 10)].into_iter();
    let cases = starts.flat_map(|start| [Restart::None, Restart::Same, Restart::Older].map(|restart| (start, restart)));
    for ((from_start, since_s), restart) in cases {
        let mut engine = engine();
        let go = |engine: &mut Engine<Heap>, wanted: &Wanted, now_s, flows, table: Option<u64>| {
            let mut look = Look::new(now_s);
            table.into_iter().for_each(|word| look.take(word, |_| 1, &HashSet::new()));
            engine.looked(look);
            let plan = engine.plan(wanted, 1, now_s, &|_| flows).expect("plan");
            engine.apply(plan, now, now_s).expect("apply");
            engine.present().fill().backends
        };
        go(&mut engine, &at(&both, from_start), 0, 0, None);
        go(&mut engine, &at(&both, true), 10, 0, None);
        if restart != Restart::None {
            let mut heap = engine.memory().clone();
            let word = heap.load(Map::Services, 1, SERVICE_WORD_FLAGS).expect("a service");
            if restart == Restart::Older {
                heap.store(Map::Services, 1, SERVICE_WORD_FLAGS, word & !(u64::from(FLAG_TRACKED_SINCE) << 32));
            }
            engine = Engine::start(heap, sizes(), SECRETS, Clock { now_s: 15, ..CLOCK }).expect("adopt");
            go(&mut engine, &at(&both, true), 15, 0, None);
        }
        let since_s = if restart == Restart::Older { 15 } else { since_s };
        let told_s = since_s + Policy::DEFAULT.times.window_s;
        assert_eq!(go(&mut engine, &at(&one, true), 20, 0, None), 2);
        assert_eq!(go(&mut engine, &at(&one, true), 20 + announced - 1, 0, None), 2, "new flows may still come");
        if since_s > 0 {
            assert_eq!(go(&mut engine, &at(&one, true), told_s - 1, 0, None), 2, "a flow may have been silent");
        }
        let once = Record { backend: 2, slot: 3, state: FlowState::Once, expires_s: 1 << 16 }.pack();
        assert_eq!(go(&mut engine, &at(&one, true), told_s, 1, None), 2, "counted");
        assert_eq!(go(&mut engine, &at(&one, true), told_s, 0, Some(once)), 2, "seen once");
        assert_eq!(go(&mut engine, &at(&one, true), told_s, 0, None), 1);
        // Until its grace is over, records that still name it lead nobody there.
        assert_eq!(View(engine.memory()).backend(2).flags & (FLAG_VALID | FLAG_DOWN), FLAG_VALID | FLAG_DOWN);
    }
}

/// A limit of connections holds once no SYN is repeated that was sent before every flow was recorded; where that was so already, at once.
#[test]
fn a_limit_of_connections_waits_for_flows_that_began_unrecorded() {
    let now = Instant::now();
    let announced = Policy::DEFAULT.times.announce_s;
    let at = |track_all, max_connections| {
        let mut service = service(key(1, 80), Forward::Dsr, 251, &[(1, 1, 1), (2, 1, 1)]);
        service.policy = Policy { track_all, ..Policy::DEFAULT };
        service.backends.iter_mut().for_each(|backend| backend.max_connections = max_connections);
        wanted([service])
    };
    let go = |engine: &mut Engine<Heap>, wanted: &Wanted, now_s| {
        let plan = engine.plan(wanted, 1, now_s, &|_| 0).expect("plan");
        engine.apply(plan, now, now_s).expect("apply");
        View(engine.memory()).backend(1).max_connections
    };
    let mut engine = engine();
    assert_eq!(go(&mut engine, &at(false, 0), 0), 0);
    assert_eq!(go(&mut engine, &at(true, 5), 10), 0);
    assert_eq!(engine.present().due_s(), Some(10 + announced), "nothing but time has to bring it");
    assert_eq!(go(&mut engine, &at(true, 5), 9 + announced), 0);
    assert_eq!(go(&mut engine, &at(true, 5), 10 + announced), 5);
    assert_eq!(go(&mut engine, &at(true, 7), 11 + announced), 7, "another one");

    for first in [5, 0] {
        let mut engine = self::engine();
        assert_eq!(go(&mut engine, &at(true, first), 0), first, "every flow has been recorded from the first");
        assert_eq!(go(&mut engine, &at(true, 5), 1), 5);
    }
}

#[test]
fn limits_are_told_and_change_nothing() {
    let mut engine = engine();
    let now = Instant::now();
    let start = wanted([service(key(1, 80), Forward::Ipip, 1009, &[(1, 1, 1), (2, 1, 1)])]);
    step(&mut engine, &start, 1, now);
    let before = engine.memory().clone();
    let error = |engine: &Engine<Heap>, w: Wanted| plan(engine, &w, 2).expect_err("beyond a limit");

    let many = wanted((1..=7).map(|p| service(key(1, p), Forward::Dsr, 251, &[])));
    assert_eq!(error(&engine, many), PlanError::Services { wanted: 7, limit: 6 });
    let backends: Vec<(u8, u32, u8)> = (1..=25).map(|n| (n, 1, 1)).collect();
    let full = wanted([service(key(1, 80), Forward::Ipip, 1009, &backends)]);
    assert_eq!(error(&engine, full), PlanError::Backends { wanted: 25, limit: 24 });
    let even = wanted([service(key(1, 80), Forward::Ipip, 1008, &[(1, 1, 1)])]);
    assert!(matches!(error(&engine, even), PlanError::RingSize { size: 1008, .. }));
    // 2048 slots hold the ring of 1009 and no other of 1031.
    let larger = wanted([service(key(1, 80), Forward::Ipip, 1031, &[(1, 1, 1)])]);
    let e = error(&engine, larger);
    assert!(
        matches!(&e, PlanError::Arena { slots: 1031, limit: 2048, quarantined: 0, .. }) && !e.is_transient(),
        "{e}"
    );
    let same = |port| service(key(1, port), Forward::Nat, 251, &[]);
    let mut twins = [same(80), same(81)];
    for twin in &mut twins {
        let mut b = backend(&key(1, 90), 1, 1, 1);
        b.key.vip_port = twin.key.port;
        twin.backends.push(b);
    }
    assert!(matches!(error(&engine, wanted(twins)), PlanError::Twice { .. }));
    assert_eq!(*engine.memory(), before);

    // A ring that fits only once the old one's grace is over says so.
    let other = wanted([service(key(1, 80), Forward::Ipip, 1009, &[(1, 1, 1)])]);
    step(&mut engine, &other, 2, now);
    let e = plan(&engine, &start, 3).expect_err("both rings are held");
    assert!(e.is_transient(), "{e}");
    engine.settle(now + GRACE).expect("settle");
    step(&mut engine, &start, 3, now);
}

#[test]
fn stale_plans_and_broken_rules_are_refused_and_foreign_writes_noticed() {
    let mut engine = engine();
    let now = Instant::now();
    let w = wanted([service(key(1, 80), Forward::Ipip, 251, &[(1, 1, 1)])]);
    let stale = plan(&engine, &w, 1).expect("plan");
    step(&mut engine, &w, 1, now);
    assert!(matches!(engine.apply(stale, now, 0), Err(Error::Stale { base: 0, present: 1 })));

    let before = engine.memory().clone();
    let named = Extent::unpack(View(engine.memory()).service(1).ring);
    for op in [
        Op::PutRing { extent: named, slots: vec![1; 251].into(), owners: Box::default() },
        Op::PutRing { extent: Extent { line: 100, slots: 2 }, slots: vec![1, 0].into(), owners: Box::default() },
        Op::PutRing { extent: Extent { line: 100, slots: 2 }, slots: vec![1, 1].into(), owners: vec![1].into() },
        Op::RingStates { extent: named, slots: vec![2; 251].into(), owners: Box::default() },
        Op::RingStates { extent: Extent { line: 100, slots: 1 }, slots: vec![1].into(), owners: Box::default() },
        Op::ServiceRing { id: 1, ring: Extent { line: 50, slots: 251 }.pack(Inputs::Tuple) },
        Op::ServiceWord { id: 1, word: 0, value: 0 },
        Op::ClearBackend { id: 1 },
        Op::ClearService { id: 1 },
        Op::BackendWord { id: 0, word: 0, value: 1 },
        Op::LookupWord { bucket: u32::MAX, word: 0, value: 1 },
    ] {
        let mut plan = plan(&engine, &w, 2).expect("plan");
        plan.ops.insert(0, op.clone());
        assert!(matches!(engine.apply(plan, now, 0), Err(Error::Op { .. })), "{op:?}");
    }
    assert_eq!(*engine.memory(), before);

    // Another writer between store and read back cannot be played here; what reading back compares can.
    let plan = plan(&engine, &w, 3).expect("plan");
    assert!(matches!(apply::verify(engine.memory(), &plan.ops), Err(Error::Mismatch { .. })));
    engine.memory_mut().store(Map::Services, 1, 0, Extent { line: 900, slots: 251 }.pack(Inputs::Tuple));
    assert!(matches!(Engine::start(engine.memory().clone(), sizes(), SECRETS, CLOCK), Err(Error::Contents(_))));
}

#[test]
fn other_versions_are_refused() {
    let mut heap = engine().memory().clone();
    let word = heap.load(Map::Node, 0, 0).expect("node");
    heap.store(Map::Node, 0, 0, word + 1);
    let error = Engine::start(heap, sizes(), SECRETS, CLOCK).expect_err("another version");
    assert!(error.to_string().contains("ABI version 3") && error.to_string().contains("--unload"), "{error}");
}

fn any_wanted() -> impl Strategy<Value = Wanted> {
    let backends = prop::collection::btree_map(1u8..6, (0u32..4, 0u8..7), 0..5);
    let forward = prop::sample::select(vec![Forward::Dsr, Forward::Ipip, Forward::Nat]);
    let service_of = (forward, prop::sample::select(vec![7u32, 13, 31]), backends);
    let keys = vec![(1u8, 80u16), (1, 81), (2, 80), (2, 0), (3, 82)];
    prop::collection::btree_map(prop::sample::select(keys), service_of, 0..5).prop_map(|services| {
        let mut seen = BTreeSet::new();
        wanted(services.into_iter().map(|((v, p), (forward, size, backends))| {
            // Two `nat` services must not share a backend; the port is part of the addresses here, so only 80 can clash.
            let forward = if forward == Forward::Nat && !seen.insert(p) { Forward::Ipip } else { forward };
            let backends: Vec<_> = backends.into_iter().map(|(n, (w, h))| (n, w, h)).collect();
            service(key(v, p), forward, size, &backends)
        }))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every state between two stores is one that packets can meet, and one that an agent can adopt and lead to the goal.
    #[test]
    fn any_change_at_any_store(steps in prop::collection::vec((any_wanted(), any::<prop::sample::Index>(), any::<bool>()), 1..8)) {
        let mut engine = engine();
        let mut now = Instant::now();
        for (revision, (w, crash, settle)) in (1u64..).zip(steps) {
            let plan = match plan(&engine, &w, revision) {
                Err(e) if e.is_transient() => {
                    now += GRACE;
                    engine.settle(now).expect("settle");
                    plan(&engine, &w, revision).expect("plan after the grace")
                }
                plan => plan.expect("plan"),
            };
            let mut heap = engine.memory().clone();
            let crash = crash.index(plan.ops.len() + 1);
            for (at, op) in plan.ops.iter().enumerate() {
                if at == crash {
                    let mut after = Engine::start(heap.clone(), sizes(), SECRETS, CLOCK).expect("adopt after a crash");
                    View(after.memory()).no_packet_meets_an_invalid_id();
                    step(&mut after, &w, revision, now);
                    // And once more from what that agent left.
                    let mut again = Engine::start(after.memory().clone(), sizes(), SECRETS, CLOCK).expect("adopt again");
                    step(&mut again, &w, revision + 1, now);
                }
                apply::write(&mut heap, std::slice::from_ref(op)).expect("store");
                View(&heap).no_packet_meets_an_invalid_id();
            }
            engine.apply(plan, now, 0).expect("apply");
            prop_assert_eq!(engine.memory(), &heap);
            View(engine.memory()).holds(engine.present(), &w, revision);
            if settle {
                now += GRACE;
                engine.settle(now).expect("settle");
                View(engine.memory()).holds(engine.present(), &w, revision);
            }
            // An agent that comes now finds nothing to do, least of all a ring to build.
            let adopted = Engine::start(engine.memory().clone(), sizes(), SECRETS, CLOCK).expect("adopt");
            prop_assert!(adopted.adopted());
            let idle = adopted.plan(&w, revision, 0, &|_| 0).expect("plan");
            prop_assert_eq!(idle.summary.rings_built, 0);
            // What waits for its grace may be found again, to be taken out of use again.
            if engine.present().quarantined().is_none() {
                prop_assert_eq!(idle.ops.len(), 1, "{:?}", idle.ops);
            }
        }
    }
}
