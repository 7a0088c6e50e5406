//! Time: the boot-time clock that validity is measured on, and the drift that is taken off it.
//!
//! Invariants: [`BootTime`] counts while the machine sleeps and ignores steps of the wall clock; nothing in this crate
//! decides about validity by any other clock.

use std::{
    ops::{Add, Sub},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

/// A point on CLOCK_BOOTTIME, as time since boot. All processes of one machine share it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(pub Duration);

impl BootTime {
    /// Now.
    pub fn now() -> Self {
        // The clock exists since Linux 2.6.39; without it validity would be unknown, and zero never makes a lock valid
        // for longer than it is, for it is also what acquisitions start from.
        Self(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from))
    }

    /// Time since `earlier`, zero if that is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The point `by` earlier, not before boot.
    pub fn before(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

impl Sub for BootTime {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

/// What clocks may differ by while a lock of `ttl` lives: 1 % of it, rounded up to a millisecond, and 2 ms.
pub fn drift(ttl: Duration) -> Duration {
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(drift_ms(ttl_ms))
}

/// [`drift`] in milliseconds.
pub const fn drift_ms(ttl_ms: u64) -> u64 {
    ttl_ms.div_ceil(100).saturating_add(2)
}

/// Milliseconds since 1970. For people and for the order of waiters over several nodes, never for validity.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `duration` in whole milliseconds, rounded down.
pub(crate) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_a_percent_and_two_milliseconds() {
        for (ttl_ms, drift_wanted_ms) in [(0, 2), (1, 3), (100, 3), (101, 4), (400, 6), (10_000, 102)] {
            assert_eq!(drift(Duration::from_millis(ttl_ms)), Duration::from_millis(drift_wanted_ms), "{ttl_ms}");
        }
    }

    #[test]
    fn boot_time_goes_on() {
        let before = BootTime::now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(BootTime::now().since(before) >= Duration::from_millis(2));
        assert_eq!(before.since(before + Duration::from_secs(1)), Duration::ZERO);
    }
}
