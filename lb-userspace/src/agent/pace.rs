//! When to plan: the first cause at once, later ones of a burst together.
//!
//! Pure. Invariants: a cause waits at most [`WINDOW`]; between two runs lies at least [`WINDOW`]; no cause is lost.

use std::time::{Duration, Instant};

/// How long the causes of a burst are collected.
pub const WINDOW: Duration = Duration::from_millis(50);

/// Collects causes into runs.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    ran: Option<Instant>,
    due: Option<Instant>,
}

impl Pace {
    /// Something changed at `now`.
    pub fn request(&mut self, now: Instant) {
        let earliest = self.ran.map_or(now, |ran| now.max(ran + WINDOW));
        self.due.get_or_insert(earliest);
    }

    /// When the next run is due; `None` if nothing changed.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A run ended at `now` and saw everything that was requested before.
    pub fn ran(&mut self, now: Instant) {
        self.ran = Some(now);
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_at_once_then_batches() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::default();
        assert_eq!(pace.due(), None);
        pace.request(at(10));
        assert_eq!(pace.due(), Some(at(10)), "nothing ran yet: at once");
        pace.ran(at(12));
        assert_eq!(pace.due(), None);
        pace.request(at(13));
        pace.request(at(40));
        assert_eq!(pace.due(), Some(at(62)), "one run for both, a window after the last run");
        pace.ran(at(63));
        pace.request(at(500));
        assert_eq!(pace.due(), Some(at(500)), "after a pause: at once");
        pace.request(at(510));
        assert_eq!(pace.due(), Some(at(500)), "a later cause does not delay an earlier one");
    }
}
