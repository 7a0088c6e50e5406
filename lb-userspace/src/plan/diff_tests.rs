//! Plans carried out on maps in memory: what lies in the maps afterwards is what was wanted, also for an agent that adopts
//! them, and rings never change under the service that names them.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use lb_core::{
    abi::{
        backend::{FLAG_NEXT_HOP, FLAG_UP},
        lookup::{Entry, Key, Kind},
        ring::{Extent, Slot},
        service::Forward,
    },
    hash,
};
use proptest::prelude::*;

use super::{Op, PlanError, Secrets, Wanted, WantedBackend, WantedService, diff, wanted::backend_key};
use crate::{
    dataplane::Dataplane,
    model::{Limits, NextHop, Protocol, ServiceKey},
};

const SECRETS: Secrets = Secrets { hash_key: [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], ring_seed: 97 };

fn limits() -> Limits {
    Limits { services_max: 16, backends_max: 64, ring_slots_max: 32 * 512 }
}

fn hop(last: u8) -> NextHop {
    NextHop { ifindex: 2 + u32::from(last), mtu: 1500, src_mac: [2; 6], dst_mac: [4, 0, 0, 0, 0, last] }
}

/// (backend number, weight, up, next hop) of a service.
type Backends = Vec<(u8, u32, bool, Option<u8>)>;

fn service(number: u8, forward: Forward, backends: &Backends) -> WantedService {
    let vip: IpAddr =
        if number.is_multiple_of(2) { [203, 0, 113, 1].into() } else { [0xfd, 0, 0, 0, 0, 0, 0, 1].into() };
    let key = ServiceKey { vip, port: u16::from(number) * 10, protocol: Protocol::Tcp };
    let mut backends: Vec<WantedBackend> = backends
        .iter()
        .map(|&(b, weight, up, next_hop)| {
            // One address per service: `nat` refuses a backend that two services share.
            let address: IpAddr = if vip.is_ipv4() {
                [10, 0, number, b].into()
            } else {
                [0xfd, 1, 0, 0, 0, 0, u16::from(number), u16::from(b)].into()
            };
            WantedBackend { key: backend_key(&key, address, key.port), weight, up, next_hop: next_hop.map(hop) }
        })
        .collect();
    backends.sort_unstable_by_key(|b| b.key);
    backends.dedup_by_key(|b| b.key);
    WantedService { name: format!("s{number}"), key, forward, ring_size: 251, fail_open: false, backends }
}

fn wanted(mut services: Vec<WantedService>) -> Wanted {
    services.sort_unstable_by_key(|s| s.key);
    services.dedup_by_key(|s| s.key);
    Wanted { services, outer_source_v4: [198, 18, 0, 0], outer_source_v6: [1; 16] }
}

/// What a packet would find for a key: the reading side of `LOOKUP`, as the program does it.
fn found(dataplane: &Dataplane, key: &Key) -> Vec<u32> {
    let maps = dataplane.maps();
    let node = maps.node.get(0).expect("node");
    let (first, second, tag) = hash::lookup_buckets(hash::lookup(&node.hash_key, key), node.lookup_mask);
    let in_bucket = |index: u32| {
        let bucket = maps.lookup.get(index).expect("bucket");
        let ids = bucket.entries.into_iter().map(Entry::unpack).filter(|e| (e.tag, e.kind) == (tag, key.kind));
        (ids.map(|e| e.id).collect::<Vec<_>>(), bucket.overflowed != 0)
    };
    let (mut ids, overflowed) = in_bucket(first);
    if overflowed && first != second {
        ids.extend(in_bucket(second).0);
    }
    ids
}

/// Everything that packets can reach equals what is wanted.
fn assert_holds(dataplane: &Dataplane, wanted: &Wanted, revision: u64) {
    let maps = dataplane.maps();
    assert_eq!(maps.node.get(0).expect("node").revision, revision);
    for service in &wanted.services {
        let key = dataplane.present().service(&service.key).expect("service").entry.key();
        let ids: Vec<u32> = found(dataplane, &key)
            .into_iter()
            .filter(|id| maps.services.get(*id).is_some_and(|entry| entry.key() == key))
            .collect();
        let [id] = ids[..] else { panic!("{} is found {} times", service.name, ids.len()) };
        let entry = maps.services.get(id).expect("entry");
        assert_eq!(entry.forward, service.forward as u8);
        assert_eq!(found(dataplane, &Key { addr: key.addr, port: 0, proto: 0, kind: Kind::Vip as u8 }).len(), 1);

        let slots = maps.slots(Extent::unpack(entry.ring)).expect("ring");
        let total: u32 = service.backends.iter().map(|b| b.weight).sum();
        assert_eq!(slots.len(), if total == 0 { 0 } else { 251 });
        let mut counts: HashMap<u32, u32> = HashMap::new();
        slots.iter().for_each(|slot| *counts.entry(Slot(*slot).current()).or_default() += 1);
        for backend in &service.backends {
            let of = dataplane.present().service(&service.key).expect("service");
            let id = of.backends.iter().find(|b| b.key == backend.key).expect("backend").id;
            let held = maps.backends.get(id).expect("backend entry");
            assert_eq!(maps.keys.get(id), Some(backend.key));
            assert_eq!(
                (held.addr, held.port, held.forward),
                (backend.key.addr, backend.key.port, service.forward as u8)
            );
            assert_eq!(held.flags & FLAG_UP != 0, backend.up);
            assert_eq!(held.flags & FLAG_NEXT_HOP != 0, backend.next_hop.is_some());
            if let Some(hop) = backend.next_hop {
                assert_eq!((held.ifindex, held.dst_mac), (hop.ifindex, hop.dst_mac));
            }
            assert_eq!(counts.remove(&id).is_some(), backend.weight > 0, "{} {id}", service.name);
            let replies = found(dataplane, &held.reply_key());
            assert_eq!(replies.contains(&id), service.forward == Forward::Nat);
        }
        assert!(counts.is_empty(), "the ring of {} names strangers: {counts:?}", service.name);
    }
}

fn open() -> Dataplane {
    Dataplane::in_memory(&limits(), SECRETS).expect("maps in memory")
}

#[test]
fn what_does_not_change_costs_the_revision_alone() {
    let mut dataplane = open();
    let now = Instant::now();
    let state = wanted(vec![service(1, Forward::Ipip, &vec![(1, 1, true, Some(1)), (2, 3, true, None)])]);
    let first = diff(dataplane.present(), &state, 1).expect("plan");
    dataplane.apply(first, now).expect("apply");
    let again = diff(dataplane.present(), &state, 2).expect("plan");
    assert!(matches!(again.ops[..], [Op::NodeWord { .. }]), "{:?}", again.ops);
}

#[test]
fn a_new_mac_is_one_store() {
    let mut dataplane = open();
    let backends = |mac: u8| {
        let mut s = service(2, Forward::Dsr, &vec![(1, 1, true, Some(1))]);
        s.backends[0].next_hop = Some(NextHop { dst_mac: [mac; 6], ..hop(1) });
        wanted(vec![s])
    };
    let plan = diff(dataplane.present(), &backends(1), 1).expect("plan");
    dataplane.apply(plan, Instant::now()).expect("apply");
    let plan = diff(dataplane.present(), &backends(9), 2).expect("plan");
    assert!(matches!(plan.ops[..], [Op::BackendWord { .. }, Op::NodeWord { .. }]), "{:?}", plan.ops);
}

#[test]
fn limits_are_refused_before_anything_changes() {
    let dataplane = open();
    let many = |n: u8| wanted((0..n).map(|i| service(i, Forward::Dsr, &vec![(1, 1, true, None)])).collect());
    assert!(matches!(diff(dataplane.present(), &many(17), 1), Err(PlanError::Services { wanted: 17, limit: 16 })));
    let big = wanted(vec![service(0, Forward::Dsr, &(0..65).map(|b| (b, 1, true, None)).collect())]);
    assert!(matches!(diff(dataplane.present(), &big, 1), Err(PlanError::Backends { wanted: 65, limit: 64 })));
    let mut ring = many(1);
    ring.services[0].ring_size = 655_373;
    assert!(matches!(diff(dataplane.present(), &ring, 1), Err(PlanError::Arena { .. })));
    assert!(dataplane.present().revision() == 0);
}

#[test]
fn a_plan_from_an_older_state_is_refused() {
    let mut dataplane = open();
    let state = wanted(vec![service(0, Forward::Dsr, &vec![(1, 1, true, None)])]);
    let stale = diff(dataplane.present(), &state, 1).expect("plan");
    let fresh = stale.clone();
    dataplane.apply(fresh, Instant::now()).expect("apply");
    assert!(matches!(dataplane.apply(stale, Instant::now()), Err(crate::dataplane::Error::Stale { .. })));
}

fn backends() -> impl Strategy<Value = Backends> {
    prop::collection::vec((1u8..8, 0u32..4, any::<bool>(), prop::option::of(0u8..3)), 0..6)
}

fn states() -> impl Strategy<Value = Vec<Vec<(u8, u8, Backends)>>> {
    prop::collection::vec(prop::collection::vec((0u8..6, 1u8..4, backends()), 0..5), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Random configurations one after another, with an agent that is stopped and adopted between some of them.
    #[test]
    fn the_maps_follow(states in states(), adopt in any::<u8>()) {
        let mut dataplane = open();
        let mut now = Instant::now();
        for (step, state) in states.iter().enumerate() {
            let revision = step as u64 + 1;
            let services = state.iter().map(|(n, forward, backends)| {
                service(*n, Forward::from_u8(*forward).expect("a mode"), backends)
            });
            let state = wanted(services.collect());
            let before: Vec<(u64, Vec<u32>)> = dataplane
                .present()
                .services()
                .map(|(_, s)| (s.entry.ring, dataplane.maps().slots(Extent::unpack(s.entry.ring)).expect("ring")))
                .collect();
            let plan = diff(dataplane.present(), &state, revision).expect("plan");
            dataplane.apply(plan, now).expect("apply");
            // Packets that read a service's ring word before the change still find their ring whole.
            for (ring, slots) in before {
                prop_assert_eq!(dataplane.maps().slots(Extent::unpack(ring)).expect("ring"), slots);
            }
            assert_holds(&dataplane, &state, revision);
            if adopt >> (step % 8) & 1 == 1 {
                dataplane = dataplane.reopened().expect("adopt");
                assert_holds(&dataplane, &state, revision);
                let same = diff(dataplane.present(), &state, revision).expect("plan");
                prop_assert!(same.summary.rings_built == 0, "adoption built a ring anew");
            }
            now += Duration::from_secs(2);
            dataplane.settle(now);
        }
    }
}
