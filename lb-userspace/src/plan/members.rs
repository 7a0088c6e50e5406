//! What a chosen algorithm picks from: backend ids in the order of turns, or each once.
//!
//! Pure. Refuses to know where the list is stored.

use lb_core::abi::service::Algo;

use crate::model::limits;

/// Turns of one round at most; heavier weights are scaled to shares of it.
const TURNS_MAX: u64 = limits::TURNS_MAX as u64;

/// The members of a service for `algo`: (backend id, weight above 0) in the order of keys. Empty where the ring decides.
pub fn members(algo: Algo, backends: &[(u32, u32)]) -> Vec<u32> {
    match algo {
        Algo::Hashed => Vec::new(),
        Algo::Turns => turns(backends),
        Algo::LeastConnections | Algo::RandomTwo => backends.iter().map(|(id, _)| *id).collect(),
    }
}

/// One round in which each backend has as many turns as its weight says, spread as evenly as they can be.
fn turns(backends: &[(u32, u32)]) -> Vec<u32> {
    let sum: u64 = backends.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let scaled = |weight: u32| {
        if sum <= TURNS_MAX { u64::from(weight) } else { (u64::from(weight) * TURNS_MAX / sum).max(1) }
    };
    let weights: Vec<i64> = backends.iter().map(|(_, weight)| scaled(*weight) as i64).collect();
    let first = weights.first().copied().unwrap_or(0);
    if weights.iter().all(|weight| *weight == first) {
        return backends.iter().map(|(id, _)| *id).collect();
    }
    let sum: i64 = weights.iter().sum();
    // A backend's n-th turn is due at (2 n + 1) / (2 weight) of the round: the order of those times is the smooth one, without a
    // pass over all backends for each turn.
    let mut due: Vec<(i64, usize)> = Vec::with_capacity(sum as usize);
    for (at, weight) in weights.iter().enumerate() {
        due.extend((0..*weight).map(|n| ((2 * n + 1) * (1 << 32) / (2 * weight), at)));
    }
    due.sort_unstable();
    due.into_iter().filter_map(|(_, at)| backends.get(at).map(|(id, _)| *id)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::algo::Kind;

    fn gcd(a: u32, b: u32) -> u32 {
        if b == 0 { a } else { gcd(b, a % b) }
    }

    #[test]
    fn equal_weights_take_turns_once_each() {
        assert_eq!(members(Algo::Turns, &[(7, 5), (3, 5), (9, 5)]), [7, 3, 9]);
        assert_eq!(members(Algo::LeastConnections, &[(7, 1), (3, 9)]), [7, 3]);
        assert!(members(Algo::Hashed, &[(7, 1)]).is_empty());
        assert!(members(Algo::Turns, &[]).is_empty());
    }

    #[test]
    fn turns_of_a_heavy_backend_are_spread() {
        assert_eq!(members(Algo::Turns, &[(1, 5), (2, 1), (3, 1)]), [1, 1, 1, 2, 3, 1, 1]);
    }

    proptest! {
        #[test]
        fn every_backend_has_its_share(weights in prop::collection::vec(1u32..=1000, 1..60)) {
            let backends: Vec<(u32, u32)> = (1..).zip(weights.iter().copied()).collect();
            let round = members(Algo::Turns, &backends);
            let sum: u32 = weights.iter().sum();
            // What the check of a configuration reserves suffices.
            let configured: Vec<u16> = weights.iter().map(|weight| *weight as u16).collect();
            let needs = limits::RingNeeds::new(Kind::WeightedRoundRobin, 251, &configured);
            let factor = weights.iter().fold(0, |a, b| gcd(a, *b));
            let reduced: Vec<(u32, u32)> = backends.iter().map(|(id, weight)| (*id, weight / factor)).collect();
            prop_assert!(members(Algo::Turns, &reduced).len() <= needs.members as usize);
            for (id, weight) in backends {
                let share = round.iter().filter(|turn| **turn == id).count() as f64 / round.len() as f64;
                let wanted = f64::from(weight) / f64::from(sum);
                prop_assert!((share - wanted).abs() <= 0.01 * wanted, "{id}: {share} instead of {wanted}");
            }
        }
    }
}
