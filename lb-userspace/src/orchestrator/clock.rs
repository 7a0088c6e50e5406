//! Time as the orchestrator's decisions see it, and the periods of the control plane with the relations between them.
//!
//! Validity of a mastership is measured on CLOCK_BOOTTIME only: it counts while the machine sleeps and no step of the wall
//! clock moves it. The wall clock ([`UnixMs`]) serves people, and waits of minutes that must outlive a master.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use lb_locks::clock::BootTime;

pub use crate::health::shared::UnixMs;

impl UnixMs {
    /// Now.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// Time since `earlier`, zero if the clock went back meanwhile.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// How often and how long: the periods of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Periods {
    /// A master whose record has not changed for so long may be replaced.
    pub lease: Duration,
    /// The master renews so often.
    pub renew: Duration,
    /// After a renewal was *sent*, the master acts for so long at most.
    pub act: Duration,
    /// Each process reads the records so often.
    pub read: Duration,
    /// Each worker writes its heartbeat so often.
    pub beat: Duration,
    /// A worker whose heartbeat stands still for so long has its checks taken over.
    pub worker_timeout: Duration,
    /// Each node's ready endpoint is asked so often.
    pub probe: Duration,
    /// An answer of the store or of a ready endpoint takes so long at most.
    pub timeout: Duration,
}

/// The periods that run in production.
pub const PERIODS: Periods = Periods {
    lease: Duration::from_secs(10),
    renew: Duration::from_secs(3),
    act: Duration::from_secs(7),
    read: Duration::from_secs(1),
    beat: Duration::from_secs(1),
    worker_timeout: Duration::from_secs(5),
    probe: Duration::from_secs(2),
    timeout: Duration::from_secs(1),
};

// Two renewals may be lost before acting stops; between the end of acting and that of the lease there is room for what is
// under way and for clocks that differ. A dead worker is found out, replaced and replaced everywhere within one lease.
const _: () = {
    const fn ms(duration: Duration) -> u128 {
        duration.as_millis()
    }
    let p = PERIODS;
    assert!(ms(p.renew) * 2 + ms(p.timeout) <= ms(p.act));
    assert!(ms(p.act) + 2 * ms(p.timeout) < ms(p.lease));
    assert!(ms(p.beat) + ms(p.worker_timeout) + 3 * ms(p.read) <= ms(p.lease));
    assert!(ms(p.probe) + 2 * ms(p.timeout) < 5_000);
};
