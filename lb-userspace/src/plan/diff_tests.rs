//! What is wanted from a configuration, and the cost of one change among many. What plans do to the maps is tested where
//! they are carried out (`dataplane::engine_tests`).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use lb_core::abi::{backend::FLAG_NEXT_HOP, ring::Extent};

use super::{
    MapSizes, Op, Policy, Present, Secrets, Seen, Wanted, WantedBackend, WantedService, diff,
    wanted::{address, backend_key},
};
use crate::model::{Forward, Limits, NextHop, Protocol, ServiceKey};

const SECRETS: Secrets = Secrets { hash_key: [7; 12], ring_seed: 1 };

fn service(n: u16, backends: u16, ring_size: u32) -> WantedService {
    let [a, b] = n.to_be_bytes();
    let key = ServiceKey { vip: Ipv4Addr::new(192, 0, a, b).into(), port: 80, protocol: Protocol::Tcp };
    let address = |i: u16| IpAddr::from(Ipv4Addr::new(10, 0, (i >> 8) as u8, i as u8));
    let mut backends: Vec<WantedBackend> = (0..backends)
        .map(|i| WantedBackend {
            key: backend_key(&key, address(i), 80),
            weight: 1,
            up: true,
            down: false,
            max_connections: 0,
            next_hop: None,
        })
        .collect();
    backends.sort_by_key(|b| b.key);
    WantedService {
        name: format!("s{n}"),
        key,
        forward: Forward::Ipip,
        ring_size,
        policy: Policy { windows: false, ..Policy::DEFAULT },
        fail_open: false,
        backends,
        dismissed: Vec::new(),
    }
}

/// Prints the time: the target is 50 ms for plan and apply in a release build.
#[test]
fn one_change_among_1000_services_of_100_backends_touches_one_service() {
    let limits = Limits { services_max: 1000, backends_max: 100_000, ring_slots_max: 4 << 20, flows_max: 1024 };
    let present = Present::empty(MapSizes::of(&limits), SECRETS, 250);
    let mut wanted = Wanted {
        services: (0..1000).map(|n| service(n, 100, 1009)).collect(),
        outer_source_v4: [198, 18, 0, 0],
        outer_source_v6: [0; 16],
        leaving: BTreeMap::new(),
    };
    wanted.services[500].ring_size = 65_537;
    let first = diff(&present, &wanted, 1, Seen::rings(0, &|_| None)).expect("plan");
    assert_eq!((first.summary.services_added, first.summary.rings_built), (1000, 1000));

    wanted.services[500].backends[50].weight = 0;
    wanted.services[500].backends[50].up = false;
    let start = Instant::now();
    let second = diff(&first.next, &wanted, 2, Seen::rings(0, &|_| None)).expect("plan");
    let took = start.elapsed();
    println!("one change among 1,000 services of 100 backends: {took:?}");
    assert!(
        matches!(
            second.ops[..],
            [Op::BackendWord { word: 0, .. }, Op::PutRing { .. }, Op::ServiceRing { .. }, Op::NodeWord { .. }]
        ),
        "{:?}",
        second.ops
    );
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Frames of a backend that drains go where its next hop is now, not where that was when it left the configuration.
#[test]
fn the_next_hop_of_a_backend_that_leaves_stays_fresh() {
    let limits = Limits { services_max: 1, backends_max: 8, ring_slots_max: 4096, flows_max: 1024 };
    let present = Present::empty(MapSizes::of(&limits), SECRETS, 250);
    let policy = Policy { windows: true, ..Policy::DEFAULT };
    let services = vec![WantedService { policy, ..service(0, 3, 251) }];
    let (v4, v6) = ([198, 18, 0, 0], [0; 16]);
    let mut wanted = Wanted { services, outer_source_v4: v4, outer_source_v6: v6, leaving: BTreeMap::new() };
    let ring = |extent: Extent| Some(vec![1; extent.slots as usize]);
    let plan = |present: &Present, wanted: &Wanted| diff(present, wanted, 1, Seen::rings(100, &ring)).expect("plan");
    let first = plan(&present, &wanted).next;
    let gone = wanted.services[0].backends.remove(1);
    let second = plan(&first, &wanted);
    assert_eq!(second.summary.backends_leaving, 1);
    let at = |present: &Present| {
        let mut backends = present.services().flat_map(|(_, service)| service.backends.clone()).collect::<Vec<_>>();
        backends.retain(|b| b.key == gone.key);
        backends[0].entry
    };
    // Nothing is known: what was known stays.
    assert!(plan(&second.next, &wanted).ops.len() == 1, "the revision alone");
    let address = address(gone.key.addr);
    let moved = NextHop { ifindex: 2, mtu: 1500, src_mac: [2; 6], dst_mac: [2, 0, 0, 0, 0, 77] };
    wanted.leaving = BTreeMap::from([(address, Some(moved))]);
    let third = plan(&second.next, &wanted);
    assert_eq!((third.summary.backends_leaving, third.summary.backends_changed), (0, 1));
    assert!(third.ops.iter().any(|op| matches!(op, Op::BackendWord { .. })), "{:?}", third.ops);
    let flags = at(&second.next).flags | FLAG_NEXT_HOP;
    assert_eq!((at(&third.next).dst_mac, at(&third.next).flags), (moved.dst_mac, flags));
    wanted.leaving = BTreeMap::from([(address, None)]);
    assert_eq!(at(&plan(&third.next, &wanted).next).flags & FLAG_NEXT_HOP, 0, "it has none any more");
}

#[test]
fn secrets_are_not_shown() {
    let secrets = Secrets { hash_key: [0xdead_beef; 12], ring_seed: 0xfeed_f00d };
    let present = Present::empty(
        MapSizes::of(&Limits { services_max: 1, backends_max: 1, ring_slots_max: 16, flows_max: 1024 }),
        secrets,
        250,
    );
    let shown = format!("{secrets:?} {present:?}");
    for secret in ["deadbeef", "3735928559", "feedf00d", "4277004301"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

mod wanted_from_a_configuration {
    use proptest::prelude::*;

    use super::super::wanted::{
        Standing::{self, Down, Starting, Unknown, Up},
        effective_weights,
    };
    use crate::model::AdminState::{self, Drain, Maint, Ready};

    /// (state, configured weight, health) of each backend, the effective weights (None: absent), fail-open.
    type Row<'a> = (&'a [(AdminState, u16, Standing)], &'a [Option<u32>], bool);

    #[test]
    fn administrative_state_weight_and_health() {
        let rows: [Row<'_>; 14] = [
            (&[(Ready, 5, Up), (Ready, 3, Down)], &[Some(5), Some(0)], false),
            (&[(Ready, 5, Up), (Drain, 3, Up), (Maint, 2, Up)], &[Some(5), Some(0), None], false),
            (&[(Ready, 0, Up), (Ready, 3, Down)], &[Some(0), Some(3)], true),
            (&[(Ready, 5, Down), (Ready, 3, Down)], &[Some(5), Some(3)], true),
            (&[(Ready, 5, Down), (Drain, 3, Up)], &[Some(5), Some(0)], true),
            (&[(Drain, 5, Down), (Drain, 3, Up)], &[Some(0), Some(0)], false),
            (&[(Ready, 0, Down), (Maint, 3, Up)], &[Some(0), None], false),
            (&[], &[], false),
            // A service begins: nothing changes when the first results are good, and what is down goes as soon as one is up.
            (&[(Ready, 5, Starting), (Ready, 3, Starting)], &[Some(5), Some(3)], true),
            (&[(Ready, 5, Up), (Ready, 3, Starting)], &[Some(5), Some(3)], false),
            (&[(Ready, 5, Down), (Ready, 3, Starting)], &[Some(5), Some(3)], true),
            (&[(Ready, 5, Down), (Ready, 3, Starting), (Ready, 2, Up)], &[Some(0), Some(3), Some(2)], false),
            (&[(Ready, 0, Starting), (Drain, 3, Starting), (Ready, 2, Up)], &[Some(0), Some(0), Some(2)], false),
            // One that came later waits for its first result.
            (&[(Ready, 5, Up), (Ready, 3, Unknown)], &[Some(5), Some(0)], false),
        ];
        for (backends, weights, fail_open) in rows {
            assert_eq!(effective_weights(backends), (weights.to_vec(), fail_open), "{backends:?}");
        }
    }

    proptest! {
        #[test]
        fn a_service_with_a_ready_weight_always_takes_flows(backends in prop::collection::vec((prop::sample::select(vec![Ready, Drain, Maint]), 0u16..4, prop::sample::select(vec![Up, Down, Starting, Unknown])), 0..6)) {
            let (weights, fail_open) = effective_weights(&backends);
            let could = backends.iter().any(|b| b.0 == Ready && b.1 > 0);
            prop_assert_eq!(weights.iter().flatten().any(|w| *w > 0), could);
            prop_assert!(could || !fail_open);
        }
    }
}
