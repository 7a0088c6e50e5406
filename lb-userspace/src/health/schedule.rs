//! When the next probe of a target is due.
//!
//! Pure: random numbers come in as data. Rules:
//!
//! - The first probe starts at a random point of the interval, so that a configuration with thousands of backends does not
//!   ask them all at once.
//! - Then one probe per interval, counted from start to start, each off by up to 10 % either way.
//! - While a target is in transition the interval is halved, down to [`INTERVAL_MIN`] at the least: three failures then span
//!   one interval. It is not divided further, because a check must not become a load exactly when a backend suffers.

use std::time::Duration;

/// Shortest time between two probes of a target.
pub const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Delay until the first probe; `random` is uniform over all of `u64`.
pub fn first(interval: Duration, random: u64) -> Duration {
    interval.mul_f64(unit(random))
}

/// Delay from the start of one probe to the start of the next; `random` is uniform over all of `u64`.
pub fn next(interval: Duration, in_transition: bool, random: u64) -> Duration {
    let base = if in_transition { (interval / 2).max(INTERVAL_MIN.min(interval)) } else { interval };
    base.mul_f64(0.9 + 0.2 * unit(random))
}

/// 53 random bits as a number in [0, 1).
fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

/// Source of the random numbers: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), enough to spread probes, no secret.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A source that starts at `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);

    #[test]
    fn delays_at_the_ends_of_the_random_range() {
        assert_eq!(first(INTERVAL, 0), Duration::ZERO);
        assert!(first(INTERVAL, u64::MAX) <= INTERVAL);
        assert_eq!(next(INTERVAL, false, 0), Duration::from_millis(1800));
        assert!(next(INTERVAL, false, u64::MAX) <= Duration::from_millis(2200));
        assert_eq!(next(INTERVAL, true, 0), Duration::from_millis(900));
        assert_eq!(next(INTERVAL, false, 1 << 63), INTERVAL);
        assert_eq!(next(Duration::from_millis(120), true, 1 << 63), INTERVAL_MIN, "halving stops at the minimum");
        assert_eq!(next(Duration::from_millis(50), true, 1 << 63), Duration::from_millis(50));
    }

    #[test]
    fn first_probes_spread_over_the_interval() {
        let mut random = Random::new(1);
        let mut tenths = [0_u32; 10];
        for _ in 0..10_000 {
            let at = first(INTERVAL, random.draw());
            tenths[(at.as_millis() / 200) as usize] += 1;
        }
        // Binomial with mean 1000 and deviation 30.
        assert!(tenths.iter().all(|&n| (850..1150).contains(&n)), "{tenths:?}");
    }

    #[test]
    fn random_matches_the_published_sequence() {
        // First outputs for seed 1234567, from the reference implementation in C.
        let mut random = Random::new(1_234_567);
        assert_eq!([random.draw(), random.draw()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}
