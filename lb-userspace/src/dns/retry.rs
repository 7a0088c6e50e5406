//! When to try again what a peer has to be told: one serial number, until it says that it knows.
//!
//! Pure: `now` comes in. Used for NOTIFY (RFC 1996, section 3.6) and for updates. Invariants: a newer serial number replaces an
//! older one and starts anew; pauses double up to a limit; after so many tries it waits for the next serial number, or the
//! slow repetition.

use std::time::Duration;

/// First pause after a try without an answer.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause: also how often a peer that never answers is tried for ever after.
const LONGEST: Duration = Duration::from_secs(60);

/// What one peer knows and when it is told again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retry {
    wanted: Option<u32>,
    known: Option<u32>,
    tries: u32,
    next: Option<Duration>,
}

impl Retry {
    /// The peer shall know `serial` from `now` on.
    pub fn want(&mut self, serial: u32, now: Duration) {
        if self.wanted != Some(serial) {
            *self = Self { wanted: Some(serial), known: self.known, tries: 0, next: Some(now) };
        }
    }

    /// When the next try is due; `None` while the peer knows everything.
    pub fn due(&self) -> Option<Duration> {
        self.next
    }

    /// What a try at `now` shall say, if one is due. Counts as made: the next one comes a pause later.
    pub fn take(&mut self, now: Duration) -> Option<u32> {
        if self.next.is_none_or(|next| next > now) {
            return None;
        }
        let pause = FIRST.saturating_mul(1u32.checked_shl(self.tries.min(16)).unwrap_or(u32::MAX)).min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        self.next = Some(now + pause);
        self.wanted
    }

    /// The peer knows `serial`.
    pub fn known(&mut self, serial: u32) {
        self.known = Some(serial);
        if self.wanted == Some(serial) {
            self.next = None;
        }
    }

    /// Tries since the serial number that is wanted came up.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Whether the peer knows the serial number that is wanted.
    pub fn is_settled(&self) -> bool {
        self.wanted.is_none() || self.wanted == self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn pauses_double_until_the_peer_knows() {
        let mut retry = Retry::default();
        assert_eq!((retry.due(), retry.is_settled()), (None, true));
        retry.want(7, s(100));
        let mut at = Vec::new();
        for now in 100..=300 {
            if retry.take(s(now)) == Some(7) {
                at.push(now - 100);
            }
        }
        assert_eq!(at, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
        assert!(!retry.is_settled());
        retry.known(7);
        assert_eq!((retry.due(), retry.is_settled(), retry.take(s(10_000))), (None, true, None));
    }

    #[test]
    fn a_newer_serial_starts_anew_and_a_late_answer_about_an_older_one_settles_nothing() {
        let mut retry = Retry::default();
        retry.want(7, s(0));
        assert_eq!(retry.take(s(0)), Some(7));
        retry.want(7, s(0));
        assert_eq!(retry.take(s(0)), None, "the same wish again is no new one");
        retry.want(8, s(0));
        retry.known(7);
        assert_eq!(retry.take(s(0)), Some(8));
        retry.known(8);
        assert!(retry.is_settled());
    }
}
