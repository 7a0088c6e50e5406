//! Prime numbers in the range of ring sizes, by trial division: at most 400 steps for the largest.

/// Smallest and largest ring size; both are prime.
pub const RING_SIZES: std::ops::RangeInclusive<u32> = 251..=655_373;

/// Whether `n` is prime.
pub const fn is_prime(n: u32) -> bool {
    if n < 4 {
        return n >= 2;
    }
    if n.is_multiple_of(2) {
        return false;
    }
    let mut divisor: u32 = 3;
    while (divisor as u64) * (divisor as u64) <= n as u64 {
        if n.is_multiple_of(divisor) {
            return false;
        }
        divisor += 2;
    }
    true
}

/// The largest ring size below `n` and the smallest above it; a side on which there is none is `None`.
pub fn neighbours(n: u64) -> (Option<u32>, Option<u32>) {
    let (first, last) = (*RING_SIZES.start(), *RING_SIZES.end());
    let clamped = u32::try_from(n).unwrap_or(u32::MAX);
    let below = (clamped > first).then(|| (first..clamped.min(last + 1)).rev().find(|m| is_prime(*m))).flatten();
    let above =
        (clamped < last).then(|| (clamped.saturating_add(1).max(first)..=last).find(|m| is_prime(*m))).flatten();
    (below, above)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_agree_with_the_sieve() {
        let mut composite = vec![false; 655_374];
        for n in 2..composite.len() {
            if !composite[n] {
                (n * n..composite.len()).step_by(n).for_each(|m| composite[m] = true);
            }
            assert_eq!(is_prime(n as u32), !composite[n], "{n}");
        }
        assert!(!is_prime(0) && !is_prime(1));
    }

    #[test]
    fn neighbours_stay_in_range() {
        assert_eq!(neighbours(65_536), (Some(65_521), Some(65_537)));
        assert_eq!(neighbours(65_537), (Some(65_521), Some(65_539)));
        assert_eq!(neighbours(0), (None, Some(251)));
        assert_eq!(neighbours(250), (None, Some(251)));
        assert_eq!(neighbours(251), (None, Some(257)));
        assert_eq!(neighbours(655_373), (Some(655_363).filter(|n| is_prime(*n)).or(neighbours(655_373).0), None));
        assert_eq!(neighbours(700_000), (Some(655_373), None));
        assert_eq!(neighbours(u64::MAX), (Some(655_373), None));
    }
}
