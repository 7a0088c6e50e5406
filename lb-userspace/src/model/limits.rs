//! How large the maps are, and what they cost in memory.
//!
//! | map | entries | bytes an entry | at the defaults |
//! |---|---|---|---|
//! | `LOOKUP` | buckets of 7 places for 3 times the keys, as a power of two | 64 | 2 MiB |
//! | `SERVICES` | 2 x `services_max` + 1 | 64 | 513 KiB |
//! | `RINGS` | `ring_slots_max` / 16 lines | 64 | 64 MiB |
//! | `OWNERS` | as `RINGS` | 64 | 64 MiB |
//! | `FLOWS` | buckets of 4 places for twice `flows_max`, as a power of two | 64 | 32 MiB |
//! | `ACTIVE` | 2 x `backends_max` + 1 | 8 | 1 MiB |
//! | `BACKENDS` | 2 x `backends_max` + 1 | 64 | 8 MiB |
//! | `BACKEND_KEYS` | 2 x `backends_max` + 1 | 40 | 5 MiB |
//! | `BACKEND_STATS` | 2 x `backends_max` + 1, on each CPU | 16 | 2 MiB a CPU |
//! | `BACKEND_FLOWS` | 2 x `backends_max` + 1, on each CPU | 32 | 4 MiB a CPU |
//! | `TURNS` | 2 x `services_max` + 1, on each CPU | 16 | 128 KiB a CPU |
//! | `REASON_STATS` | 16 interfaces x 64 reasons, on each CPU | 16 | 16 KiB a CPU |
//! | `NODE` | 1 | 128 | 128 B |
//!
//! All of it is taken when the data plane is loaded and none later, but for the second `FLOWS` while that changes its size. `FRAGMENTS` (about 100 KiB) and the kernel's own
//! overhead of a few pages a map come on top.
//!
//! Invariants: the sizes depend on the limits alone; ids start at 1 and fit 24 bits; there are twice as many as limits
//! allow, so that a change of everything at once finds free ids while the old ones wait for their grace.

use std::ops::RangeInclusive;

use lb_core::abi::{
    backend, flow, lookup,
    node::Node,
    ring::{Extent, LINE_SLOTS, Line},
    service,
    stats::{Counter, FlowTotals, INTERFACES_MAX, REASONS_MAX},
};
use serde::{Deserialize, Serialize};

use super::algo::Kind;

/// What `services_max` can be.
pub const SERVICES_MAX_RANGE: RangeInclusive<u32> = 1..=65_535;
/// What `backends_max` can be; the id space of twice as many fits the 24 bits of an id.
pub const BACKENDS_MAX_RANGE: RangeInclusive<u32> = 1..=4 << 20;
/// What `ring_slots_max` can be: from two of the smallest rings to 2 GiB.
pub const RING_SLOTS_MAX_RANGE: RangeInclusive<u32> = 512..=512 << 20;

/// What `flows_max` can be: up to 2 GiB of `FLOWS`.
pub const FLOWS_MAX_RANGE: RangeInclusive<u32> = 1024..=64 << 20;

/// Bounds of the number of `LOOKUP` buckets.
const LOOKUP_BUCKETS_MIN: u32 = 64;
const LOOKUP_BUCKETS_MAX: u32 = 1 << 26;
const FLOW_BUCKETS_MIN: u32 = 64;
/// Turns of one round of `weighted_round_robin`; heavier weights are scaled to shares of it.
pub const TURNS_MAX: u32 = 65_536;
/// Ids are 24 bits wide.
const IDS_MAX: u32 = 1 << 24;

/// Entries of a map with twice `limit` ids and the invalid id 0.
const fn ids(limit: u32) -> u32 {
    let entries = limit.saturating_mul(2).saturating_add(1);
    if entries < 2 {
        2
    } else if entries > IDS_MAX {
        IDS_MAX
    } else {
        entries
    }
}

const _: () = assert!(2 * *BACKENDS_MAX_RANGE.end() as u64 + 1 < 1 << 24);
const _: () = assert!(*SERVICES_MAX_RANGE.end() < 1 << 24);

/// `[node.limits]`: sizes of the maps. Changing `flows_max` takes a restart of the agent, another one `weir agent --unload` first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Services; default 4096, at most 65535.
    pub services_max: u32,
    /// Backends over all services; default 65536, at most 4 Mi. The id space is twice as large.
    pub backends_max: u32,
    /// Slots of the ring arena, 4 bytes each; default 16 Mi. A changed ring needs room beside the old one.
    pub ring_slots_max: u32,
    /// Flows that are recorded at the same time; default 1 Mi, 32 bytes each. Where more are recorded, insertions begin to fail.
    pub flows_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { services_max: 4096, backends_max: 65_536, ring_slots_max: 16 << 20, flows_max: 1 << 20 }
    }
}

impl Limits {
    /// Entries of `SERVICES`: twice `services_max` ids, and the invalid id 0.
    pub const fn service_entries(&self) -> u32 {
        ids(self.services_max)
    }

    /// Entries of `BACKENDS` and of what is indexed like it: twice `backends_max` ids, and the invalid id 0.
    pub const fn backend_entries(&self) -> u32 {
        ids(self.backends_max)
    }

    /// Lines of `RINGS`.
    pub const fn ring_lines(&self) -> u32 {
        let lines = self.ring_slots_max.div_ceil(LINE_SLOTS as u32);
        if lines == 0 { 1 } else { lines }
    }

    /// Buckets of `FLOWS`, a power of two: at `flows_max` at most half of the places are taken, where the emptier of two buckets of
    /// four lacks room for 0.003 % of insertions.
    pub const fn flow_buckets(&self) -> u32 {
        let buckets = (self.flows_max as u64 * 2).div_ceil(flow::WAYS as u64).next_power_of_two();
        if buckets < FLOW_BUCKETS_MIN as u64 { FLOW_BUCKETS_MIN } else { buckets as u32 }
    }

    /// Buckets of `LOOKUP`, a power of two: room for each service, each service's VIP and each backend's reply key. At
    /// most a third of the places is taken, where two-choice hashing into buckets of seven does not overflow.
    pub const fn lookup_buckets(&self) -> u32 {
        let keys = 2 * self.services_max as u64 + self.backends_max as u64;
        let buckets = (keys * 3).div_ceil(lookup::WAYS as u64).next_power_of_two();
        if buckets < LOOKUP_BUCKETS_MIN as u64 {
            LOOKUP_BUCKETS_MIN
        } else if buckets > LOOKUP_BUCKETS_MAX as u64 {
            LOOKUP_BUCKETS_MAX
        } else {
            buckets as u32
        }
    }

    /// Bytes of kernel memory that the maps take on a machine with `cpus` possible CPUs; the table above says of what.
    pub const fn memory_bytes(&self, cpus: u32) -> u64 {
        const fn array<T>(entries: u32) -> u64 {
            entries as u64 * size_of::<T>() as u64
        }
        let shared = array::<Node>(1)
            + array::<lookup::Bucket>(self.lookup_buckets())
            + array::<service::Service>(self.service_entries())
            + 2 * array::<Line>(self.ring_lines())
            + array::<flow::Bucket>(self.flow_buckets())
            + array::<u64>(self.backend_entries())
            + array::<backend::Backend>(self.backend_entries())
            + array::<backend::BackendKey>(self.backend_entries());
        let per_cpu = array::<Counter>(self.backend_entries())
            + array::<FlowTotals>(self.backend_entries())
            + array::<u64>(self.service_entries())
            + array::<Counter>(INTERFACES_MAX * REASONS_MAX);
        shared + per_cpu * cpus as u64
    }

    /// Slots that services with these rings need in the arena, in whole lines: a ring each and what its algorithm picks from, and room for
    /// one change at a time. That is the largest ring twice more, because a changed ring is built beside the one in use, and beside the one
    /// before that says who owns flows where its size or inputs changed; and the longest list once more.
    pub fn ring_slots_needed(services: impl IntoIterator<Item = RingNeeds>) -> u64 {
        let lines = |slots: u32| u64::from(Extent { line: 0, slots }.lines());
        let (mut sum, mut ring, mut list) = (0u64, 0u64, 0u64);
        for service in services {
            let own = (lines(service.ring), lines(service.members));
            sum += own.0 + own.1;
            (ring, list) = (ring.max(own.0), list.max(own.1));
        }
        (sum + 2 * ring + list) * LINE_SLOTS as u64
    }
}

/// What a service takes of the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingNeeds {
    /// Slots of its ring.
    pub ring: u32,
    /// Entries of the list that a chosen algorithm picks from, at most.
    pub members: u32,
}

impl RingNeeds {
    /// What a ring of `ring` slots under an algorithm needs, with backends of these weights. A list of turns has as many entries as the
    /// weights without their common factor, or about [`TURNS_MAX`]; other lists name each backend once.
    pub fn new(kind: Kind, ring: u32, weights: &[u16]) -> Self {
        let backends = weights.len() as u32;
        let members = match kind {
            kind if kind.is_hashed() => 0,
            Kind::WeightedRoundRobin => {
                let factor = weights.iter().fold(0, |factor, weight| gcd(factor, u32::from(*weight))).max(1);
                let turns: u32 = weights.iter().map(|weight| u32::from(*weight) / factor).sum();
                turns.min(TURNS_MAX + backends)
            }
            _ => backends,
        };
        Self { ring, members }
    }
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// `64 MiB`, `1.5 GiB`, `320 B`: a size for people, rounded up to a tenth.
pub fn bytes_shown(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        None => format!("{bytes} B"),
        Some((unit, name)) => {
            let tenths = (u128::from(bytes) * 10).div_ceil(u128::from(unit));
            if tenths.is_multiple_of(10) {
                format!("{} {name}", tenths / 10)
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_cost_what_the_table_says() {
        let limits = Limits::default();
        assert_eq!(limits.lookup_buckets(), 32_768);
        let shared = limits.memory_bytes(0);
        let table = 128 + 32_768 * 64 + 8193 * 64 + 2 * (64 << 20) + (32 << 20) + 131_073 * (64 + 40 + 8);
        assert_eq!(shared, table);
        assert_eq!(limits.memory_bytes(3) - shared, 3 * (131_073 * (16 + 32) + 8193 * 8 + 16 * 64 * 16));
        assert_eq!(bytes_shown(shared), "176.6 MiB");
    }

    #[test]
    fn the_largest_limits_do_not_overflow() {
        let limits = Limits {
            services_max: *SERVICES_MAX_RANGE.end(),
            backends_max: *BACKENDS_MAX_RANGE.end(),
            ring_slots_max: *RING_SLOTS_MAX_RANGE.end(),
            flows_max: *FLOWS_MAX_RANGE.end(),
        };
        assert!(limits.backend_entries() < 1 << 24);
        assert_eq!(limits.lookup_buckets(), 1 << 21);
        assert_eq!(bytes_shown(limits.memory_bytes(1024)), "392.1 GiB");
    }

    #[test]
    fn lookup_is_never_fuller_than_a_third() {
        for n in [1, 2, 100, 4096, 65_535] {
            let limits = Limits { services_max: n, backends_max: n * 16, ..Limits::default() };
            let keys = u64::from(2 * limits.services_max + limits.backends_max);
            assert!(keys * 3 <= u64::from(limits.lookup_buckets()) * 7, "{n}");
        }
    }

    #[test]
    fn rings_count_whole_lines_and_what_a_change_needs() {
        let rings = |rings: &[u32]| {
            Limits::ring_slots_needed(rings.iter().map(|ring| RingNeeds::new(Kind::Maglev, *ring, &[1, 2])))
        };
        assert_eq!(rings(&[]), 0);
        assert_eq!(rings(&[251]), 3 * 256);
        assert_eq!(rings(&[251, 65_537]), 256 + 3 * 65_552);
        let chosen = |kind, weights: &[u16]| RingNeeds::new(kind, 251, weights).members;
        assert_eq!(chosen(Kind::LeastConnections, &[1, 5, 9]), 3);
        assert_eq!(chosen(Kind::RoundRobin, &[1, 5, 9]), 3);
        assert_eq!(chosen(Kind::WeightedRoundRobin, &[4, 6, 2]), 6);
        assert_eq!(chosen(Kind::WeightedRoundRobin, &[1000; 100]), 100);
        let twenty = RingNeeds { ring: 251, members: 20 };
        assert_eq!(Limits::ring_slots_needed([twenty, RingNeeds::new(Kind::Maglev, 251, &[1])]), 4 * 256 + 2 * 32);
    }

    #[test]
    fn sizes_for_people() {
        let table = [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1025, "1.1 KiB"), (64 << 20, "64 MiB")];
        for (bytes, shown) in table {
            assert_eq!(bytes_shown(bytes), shown);
        }
        assert_eq!(bytes_shown(u64::MAX), "17179869184 GiB");
    }
}
