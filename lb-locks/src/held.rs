//! A lock that outlives its guard: what another process needs to prolong it or to give it back.
//!
//! Owns: the form in which a held lock is handed on, and what of it still counts. Invariant: validity is never longer than
//! the guard's was; after a reboot it is over, for the boot-time clock began anew.

use std::{fmt, time::Duration};

use crate::{clock::BootTime, command::Mode, lock::Request, round::Fencing};

/// What a guard leaves behind ([`crate::Guard::leave`]). Whoever has it can release the lock: it is a secret.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    /// The lock.
    pub name: String,
    /// The value on the nodes.
    pub value: String,
    /// Exclusive or shared.
    pub mode: Mode,
    /// Lifetime that an extension begins anew, in milliseconds.
    pub ttl_ms: u64,
    /// The fencing token, if one was asked for.
    pub fence: Option<u64>,
    /// End of the validity on CLOCK_BOOTTIME, in milliseconds, rounded down.
    pub valid_until_ms: u64,
    /// Id of the boot that this clock belongs to.
    pub boot: String,
    /// How often it was extended.
    pub extensions: u32,
}

impl Held {
    /// The end of its validity: the beginning of time where the clock is another boot's.
    pub fn valid_until(&self) -> BootTime {
        if self.boot == boot_id() { BootTime(Duration::from_millis(self.valid_until_ms)) } else { BootTime::default() }
    }

    pub(crate) fn request(&self) -> Request {
        Request {
            mode: self.mode,
            fencing: if self.fence.is_some() { Fencing::TwoRounds } else { Fencing::None },
            ..Request::new(&self.name, Duration::from_millis(self.ttl_ms))
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("name", &self.name).field("fence", &self.fence).finish_non_exhaustive()
    }
}

/// The kernel's id of this boot; empty where it does not tell.
pub(crate) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Lock, LockError, Options, Single, node::memory::MemoryNode};

    async fn left() -> (Single, Held) {
        let lock = Single::new(Arc::new(MemoryNode::new("a")), Options::default()).unwrap();
        lock.bootstrap(0).await.unwrap();
        let guard = lock.acquire(Request::new("n", Duration::from_secs(5)).fenced()).await.unwrap();
        (lock, guard.leave())
    }

    #[tokio::test]
    async fn what_a_guard_left_is_extended_and_released_elsewhere() {
        let (lock, held) = left().await;
        let text = serde_json::to_string(&held).unwrap();
        let again: Held = serde_json::from_str(&text).unwrap();
        assert!(again == held && !format!("{again:?}").contains(&held.value[..8]));
        let guard = lock.resume(&again).unwrap();
        assert!(guard.is_valid() && guard.fence() == Some(1));
        guard.extend().await.unwrap();
        let extended = guard.leave();
        assert!(extended.extensions == 1 && extended.valid_until_ms >= held.valid_until_ms);
        assert!(lock.resume(&extended).unwrap().release().await.confirmed);
        let error = lock.resume(&extended).unwrap().extend().await.unwrap_err();
        assert!(matches!(error, LockError::Lost { .. }), "{error}");
    }

    #[tokio::test]
    async fn another_boots_validity_is_over_and_nonsense_is_refused() {
        let (lock, held) = left().await;
        let other = Held { boot: "another".into(), ..held.clone() };
        let guard = lock.resume(&other).unwrap();
        assert!(!guard.is_valid() && matches!(guard.extend().await, Err(LockError::Lost { .. })));
        guard.leave();
        for wrong in [
            Held { ttl_ms: u64::MAX, ..held.clone() },
            Held { name: "\n".into(), ..held.clone() },
            Held { value: String::new(), ..held.clone() },
        ] {
            assert!(matches!(lock.resume(&wrong), Err(LockError::Config(_))), "{wrong:?}");
        }
    }
}
