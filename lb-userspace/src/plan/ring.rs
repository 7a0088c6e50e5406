//! Weighted Maglev rings.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4: each backend
//! walks its own permutation of the slots, (offset + j * skip) mod M, and the backends take turns at the next free slot of
//! theirs until the ring is full. Weights skip turns: with the largest weight W, a backend of weight w takes the rounds in
//! which w more units complete a multiple of W, starting with the first round, so that slots are in proportion to weights
//! to within a round.
//!
//! Owns: the permutation of a backend (from a keyed hash of its stable identity) and the order of turns. Refuses to know:
//! backend ids, health. Invariant: the same seed and the same set of (key, weight) give the same ring everywhere; the order
//! of the input does not matter, and neither does a common factor of the weights.

use std::hash::Hasher;

use bytemuck::bytes_of;
use lb_core::abi::backend::BackendKey;
use siphasher::sip::SipHasher24;

/// Second half of the permutation hash's key; the first is the secret seed.
const PERMUTATION_DOMAIN: u64 = u64::from_le_bytes(*b"weirring");

/// A backend's walk over the slots of a ring of M entries: offset below M, skip 1 to M - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permutation {
    /// First slot.
    pub offset: u32,
    /// Distance of steps.
    pub skip: u32,
}

impl Permutation {
    /// The walk of backend `key` over `slots` entries (at least 2).
    pub fn of(seed: u64, key: &BackendKey, slots: u32) -> Self {
        let mut hasher = SipHasher24::new_with_keys(seed, PERMUTATION_DOMAIN);
        hasher.write(bytes_of(key));
        let hash = hasher.finish();
        let below = |bits: u64, n: u32| (((bits & 0xffff_ffff) * u64::from(n)) >> 32) as u32;
        Self { offset: below(hash >> 32, slots), skip: below(hash, slots.saturating_sub(1)) + 1 }
    }
}

/// A backend that takes part in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Stable identity.
    pub key: BackendKey,
    /// Weight; members of weight 0 get no slot.
    pub weight: u32,
    /// What a slot that it wins holds.
    pub slot: u32,
}

/// The ring of `slots` entries (a prime) for `members`; empty if none has a weight.
pub fn build(seed: u64, slots: u32, members: &[Member]) -> Box<[u32]> {
    let mut sorted: Vec<&Member> = members.iter().filter(|m| m.weight > 0).collect();
    sorted.sort_unstable_by_key(|m| m.key);
    let turns: Vec<Turn> = sorted
        .iter()
        .map(|m| Turn { permutation: Permutation::of(seed, &m.key, slots), weight: m.weight, slot: m.slot })
        .collect();
    fill(slots, &turns)
}

/// A backend's walk with its weight and what its slots hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Its walk.
    pub permutation: Permutation,
    /// Its weight, at least 1.
    pub weight: u32,
    /// What a slot that it wins holds.
    pub slot: u32,
}

/// Fills a ring of `slots` entries (a prime) with `turns` in their order. Heavier ones go first within a round.
pub fn fill(slots: u32, turns: &[Turn]) -> Box<[u32]> {
    let mut order: Vec<&Turn> = turns.iter().filter(|t| t.weight > 0).collect();
    let Some(heaviest) = order.iter().map(|t| t.weight).max() else { return Box::default() };
    if slots == 0 {
        return Box::default();
    }
    // Backends of one weight take their turns in the same rounds: a round asks each weight once, not each backend.
    order.sort_by_key(|t| core::cmp::Reverse(t.weight));
    let mut walks: Vec<Walk> = order
        .iter()
        .map(|t| Walk { at: t.permutation.offset % slots, skip: (t.permutation.skip % slots).max(1), slot: t.slot })
        .collect();
    let mut groups: Vec<Group> = Vec::new();
    for (i, turn) in order.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if group.weight == turn.weight => group.end = i + 1,
            _ => groups.push(Group { weight: turn.weight, credit: heaviest - turn.weight, start: i, end: i + 1 }),
        }
    }

    let mut board = Board {
        ring: vec![0; slots as usize].into_boxed_slice(),
        taken: vec![0; slots.div_ceil(64) as usize],
        slots,
        free: slots,
    };
    loop {
        for group in &mut groups {
            group.credit += group.weight;
            if group.credit < heaviest {
                continue;
            }
            group.credit -= heaviest;
            for walk in walks.get_mut(group.start..group.end).into_iter().flatten() {
                board.next_free(walk);
                if board.free == 0 {
                    return board.ring;
                }
            }
        }
    }
}

/// Backends of one weight, `start..end` of the walks. They take a turn whenever `credit` reaches the heaviest weight.
struct Group {
    weight: u32,
    credit: u32,
    start: usize,
    end: usize,
}

/// Where a backend stands on its permutation.
struct Walk {
    at: u32,
    skip: u32,
    slot: u32,
}

/// A ring being filled.
struct Board {
    ring: Box<[u32]>,
    /// One bit per slot: 8 KiB for 65537, which stays in the first-level cache where the ring would not.
    taken: Vec<u64>,
    slots: u32,
    free: u32,
}

impl Board {
    /// Gives the next free slot of the walk to its backend. There must be one: M is prime, so the walk meets every slot.
    #[inline(always)]
    fn next_free(&mut self, walk: &mut Walk) {
        loop {
            let at = walk.at;
            // No division: both terms are below M, so the sum is below 2 M.
            let next = at + walk.skip;
            walk.at = if next >= self.slots { next - self.slots } else { next };
            let Some(word) = self.taken.get_mut(at as usize / 64) else { return };
            let bit = 1 << (at % 64);
            if *word & bit == 0 {
                *word |= bit;
                if let Some(slot) = self.ring.get_mut(at as usize) {
                    *slot = walk.slot;
                }
                self.free -= 1;
                return;
            }
        }
    }
}

/// Whether `n` is a prime number, by trial division; ring sizes are below 2^20.
pub fn is_prime(n: u32) -> bool {
    n >= 2 && (2u32..).take_while(|d| d.checked_mul(*d).is_some_and(|square| square <= n)).all(|d| !n.is_multiple_of(d))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    const M: u32 = 65_537;

    fn key(n: u32) -> BackendKey {
        let addr = lb_core::abi::mapped(0x0a00_0000u32.wrapping_add(n).to_be_bytes());
        BackendKey { vip: lb_core::abi::mapped([192, 0, 2, 1]), addr, vip_port: 80, port: 80, proto: 6, pad: [0; 3] }
    }

    fn members(weights: impl IntoIterator<Item = u32>) -> Vec<Member> {
        (1..).zip(weights).map(|(n, weight)| Member { key: key(n), weight, slot: n }).collect()
    }

    fn counts(ring: &[u32], n: usize) -> Vec<usize> {
        let mut counts = vec![0; n + 1];
        ring.iter().for_each(|&slot| counts[slot as usize] += 1);
        counts
    }

    /// Table 1 of the paper.
    #[test]
    fn the_papers_vector() {
        let turns = [(3, 4), (0, 2), (3, 1)].iter().zip(0..).map(|(&(offset, skip), slot)| Turn {
            permutation: Permutation { offset, skip },
            weight: 1,
            slot,
        });
        let all: Vec<Turn> = turns.collect();
        assert_eq!(*fill(7, &all), [1, 0, 1, 0, 2, 2, 0]);
        assert_eq!(*fill(7, &[all[0], all[2]]), [0, 0, 0, 0, 2, 2, 2]);
    }

    /// A ring that no node may build otherwise: a change here breaks connections in a fleet of mixed versions.
    #[test]
    fn the_ring_of_a_known_seed_is_known() {
        let ring = build(42, 251, &members([1, 2, 3]));
        assert_eq!(counts(&ring, 3)[1..], [42, 83, 126]);
        let mut hasher = SipHasher24::new_with_keys(0, 0);
        ring.iter().for_each(|slot| hasher.write(&slot.to_le_bytes()));
        assert_eq!(hasher.finish(), 0xf0d0_6826_63ea_47cc);
    }

    #[test]
    fn nothing_weighted_gives_no_ring() {
        assert!(build(1, M, &[]).is_empty());
        assert!(build(1, M, &members([0, 0])).is_empty());
        assert!(fill(0, &[]).is_empty());
    }

    #[test]
    fn weights_ten_to_one_are_exact() {
        for m in [251, M, 655_373] {
            let count = counts(&build(7, m, &members([10, 1])), 2);
            let exact = f64::from(m) * 10.0 / 11.0;
            assert!((count[1] as f64 - exact).abs() <= 10.0, "{count:?} of {m}, exact {exact:.1}");
            assert!((count[2] as f64 - (f64::from(m) - exact)).abs() <= 10.0, "{count:?}");
        }
    }

    #[test]
    fn every_backend_has_a_slot_when_there_are_enough() {
        let weights = (0..251).map(|i| if i == 0 { 1000 } else { 1 });
        assert!(counts(&build(3, 251, &members(weights)), 251)[1..].iter().all(|&c| c == 1));
    }

    /// Mean over 100 draws of the slots that move although their backend stayed, as a share of M: at most 0.30 / 0.60 / 1.0 %
    /// for 10 / 100 / 400 backends, none above 1.5 %.
    #[test]
    fn removing_one_backend_moves_few_others() {
        for (n, mean_max) in [(10u32, 0.30), (100, 0.60), (400, 1.0)] {
            let mut sum = 0.0;
            for draw in 0..100u64 {
                let seed = 0x5eed_0000 + draw;
                let all = members((0..n).map(|_| 1));
                let before = build(seed, M, &all);
                let gone = draw as u32 % n + 1;
                let rest: Vec<Member> = all.into_iter().filter(|m| m.slot != gone).collect();
                let after = build(seed, M, &rest);
                let moved = before.iter().zip(&after).filter(|&(&b, &a)| b != gone && b != a).count();
                let percent = moved as f64 * 100.0 / f64::from(M);
                assert!(percent <= 1.5, "seed {seed:#x}, {n} backends: {percent:.2} %");
                sum += percent;
            }
            let mean = sum / 100.0;
            println!("removing 1 of {n}: mean {mean:.3} %");
            assert!(mean <= mean_max, "{n} backends: mean {mean:.3} % above {mean_max} %");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Each backend has its share to within the largest weight, plus the last unfinished round.
        #[test]
        fn balance(seed: u64, weights in prop::collection::vec(1u32..=1000, 1..40), m in prop::sample::select(vec![251u32, 4093, M])) {
            let ring = build(seed, m, &members(weights.iter().copied()));
            prop_assert_eq!(ring.len() as u32, m);
            prop_assert!(!ring.contains(&0));
            let total: u32 = weights.iter().sum();
            for (i, &count) in counts(&ring, weights.len())[1..].iter().enumerate() {
                let share = f64::from(m) * f64::from(weights[i]) / f64::from(total);
                // Each of the others may be ahead by a turn, and this one by two.
                let slack = 2.0 + weights.len() as f64 * f64::from(weights[i]) / f64::from(total);
                prop_assert!((count as f64 - share).abs() <= slack, "backend {} has {} of {:.1}", i, count, share);
            }
        }

        #[test]
        fn order_and_common_factors_do_not_matter(seed: u64, weights in prop::collection::vec(1u32..=50, 1..20), factor in 1u32..20) {
            let ring = build(seed, 1009, &members(weights.iter().copied()));
            let mut scaled = members(weights.iter().map(|w| w * factor));
            scaled.reverse();
            prop_assert_eq!(build(seed, 1009, &scaled), ring);
        }

        #[test]
        fn permutations_are_in_range(seed: u64, n: u32, m in 2u32..1_000_000) {
            let p = Permutation::of(seed, &key(n), m);
            prop_assert!(p.offset < m && p.skip >= 1 && (p.skip < m || m == 2));
        }
    }

    #[test]
    fn another_seed_gives_another_ring() {
        let all = members((0..10).map(|_| 1));
        let (a, b) = (build(1, M, &all), build(2, M, &all));
        let same = a.iter().zip(&b).filter(|(a, b)| a == b).count();
        assert!((5_000..8_200).contains(&same), "{same} of {M} slots agree, a tenth should");
    }

    #[test]
    fn primes() {
        let few: Vec<u32> = (0..30).filter(|&n| is_prime(n)).collect();
        assert_eq!(few, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65_537) && is_prime(655_373) && is_prime(251) && !is_prime(65_536) && !is_prime(655_371));
        assert!(is_prime(4_294_967_291) && !is_prime(u32::MAX));
    }

    /// Not a gate: prints the time. Target in a release build: 1.8 ms for 1,000 backends at M = 65537.
    #[test]
    fn build_time_is_shown() {
        let all = members((0..1000).map(|_| 1));
        let mut times: Vec<_> = (0..5)
            .map(|seed| {
                let start = Instant::now();
                assert_eq!(build(seed, M, &all).len(), M as usize);
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        println!("1,000 backends, M = {M}: median {:?}", times[2]);
    }
}
