//! What a worker saw and did, one line each: the only thing that the checker knows.
//!
//! Invariants: times are CLOCK_BOOTTIME in microseconds, which all processes of one machine share; a hold begins in the
//! history after it began, and ends in it before it ended, so what overlaps there overlapped.

use crate::clock::BootTime;

/// One event of one worker.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    /// The worker's number; a worker that was killed is followed by one with a number of its own.
    pub worker: u32,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened. `grant` counts the grants of one worker from 1.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The lock was granted.
    Acquired {
        /// Number.
        grant: u64,
        /// When the worker had it.
        at_us: u64,
        /// Before the first request of the attempt that won was sent.
        started_us: u64,
        /// End of the validity.
        valid_until_us: u64,
        /// Since it was first asked for.
        waited_us: u64,
        /// The token.
        fence: Option<u64>,
    },
    /// Its validity was extended.
    Extended {
        /// Number.
        grant: u64,
        /// End of the validity now.
        valid_until_us: u64,
    },
    /// A write reached the resource.
    Written {
        /// Number.
        grant: u64,
        /// The place among all writes that the resource accepted, from 1; `None` if it refused.
        place: Option<u64>,
    },
    /// The worker gave it back.
    Released {
        /// Number.
        grant: u64,
        /// Before it told anyone.
        at_us: u64,
    },
    /// The worker noticed that it lost it.
    Lost {
        /// Number.
        grant: u64,
        /// When.
        at_us: u64,
    },
    /// It was not granted.
    Failed {
        /// How long it tried.
        waited_us: u64,
        /// The error's name.
        why: String,
    },
}

/// `at` in microseconds.
pub fn us(at: BootTime) -> u64 {
    u64::try_from(at.0.as_micros()).unwrap_or(u64::MAX)
}
