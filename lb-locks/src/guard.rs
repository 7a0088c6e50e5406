//! A lock that is held: how long still, its token, prolonging it, giving it back.
//!
//! Invariants: [`Guard::is_valid`] never says yes after the validity that the protocol computed; an extension is asked
//! for only while the lock is valid, and a failed one changes nothing but for the worse; dropping a guard releases in the
//! background, wherever it may be held.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use tokio::{sync::watch, time::sleep};

use crate::{
    claim::Claim,
    clock::{BootTime, drift, ms},
    command::Command,
    error::{LockError, NodeOutcome, Report},
    held::{self, Held},
    lock::Request,
    round::Tally,
};

/// Longest sleep between two looks at the boot-time clock: timers stand still while the machine sleeps.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A held lock.
#[derive(Debug)]
pub struct Guard {
    claim: Claim,
    request: Request,
    fence: Option<u64>,
    valid_until: watch::Sender<BootTime>,
    extensions: Mutex<u32>,
}

/// What became of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// Whether a majority is free of it, nodes that were never asked for it included. Else it had expired, or expires where nodes could not be told.
    pub confirmed: bool,
    /// Whether the lock was still valid when the release began.
    pub in_time: bool,
    /// What each node said until that was certain.
    pub report: Report,
}

impl Guard {
    pub(crate) fn new(claim: Claim, request: &Request, valid_until: BootTime, fence: Option<u64>) -> Self {
        let (valid_until, _) = watch::channel(valid_until);
        Self { claim, request: request.clone(), fence, valid_until, extensions: Mutex::new(0) }
    }

    /// The guard of a lock that another one left.
    pub(crate) fn resumed(claim: Claim, request: &Request, held: &Held) -> Self {
        let guard = Self::new(claim, request, held.valid_until(), held.fence);
        Self { extensions: Mutex::new(held.extensions), ..guard }
    }

    /// The lock's name.
    pub fn name(&self) -> &str {
        &self.claim.name
    }

    /// The random token that nodes know the holder by, in hexadecimal digits.
    pub fn token(&self) -> &str {
        self.claim.value.as_ref().map_or("", |value| value.token())
    }

    /// The value on the nodes, with which another process can extend or release.
    pub fn value(&self) -> &str {
        self.claim.value.as_ref().map_or("", |value| value.as_str())
    }

    /// The fencing token, if one was asked for: larger than those of all grants that ended before this one began.
    pub fn fence(&self) -> Option<u64> {
        self.fence
    }

    /// Until when the lock is held for certain.
    pub fn valid_until(&self) -> BootTime {
        *self.valid_until.borrow()
    }

    /// How long it is still held for certain.
    pub fn remaining(&self) -> Duration {
        self.valid_until().since(BootTime::now())
    }

    /// Whether it is held for certain now.
    pub fn is_valid(&self) -> bool {
        self.remaining() > Duration::ZERO
    }

    /// Resolves when the lock is about to be lost: [`Request::lost_margin`] before the end of its validity, or as soon as
    /// an extension found it gone. It does not borrow the guard, and resolves too when the guard is gone.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut valid_until = self.valid_until.subscribe();
        let margin = self.request.lost_margin;
        async move {
            loop {
                let end = valid_until.borrow_and_update().before(margin);
                let rest = end.since(BootTime::now());
                if rest == Duration::ZERO {
                    return;
                }
                tokio::select! {
                    () = sleep(rest.min(LOOK_EVERY)) => {}
                    changed = valid_until.changed() => if changed.is_err() { return },
                }
            }
        }
    }

    /// Prolongs the lock by its lifetime, from now. At most [`Request::extensions_max`] times.
    ///
    /// # Errors
    /// `Lost` if it is not held any more; it is never taken again this way. `NoQuorum` if too few nodes answered: it is
    /// still held until [`Self::valid_until`]. `Config` after the last extension that was allowed.
    pub async fn extend(&self) -> Result<BootTime, LockError> {
        let name = || self.claim.name.clone();
        let started = BootTime::now();
        if self.valid_until() <= started {
            return Err(LockError::Lost { name: name(), why: "its validity had ended", report: Report::default() });
        }
        {
            // The count is one number: a panic elsewhere cannot leave it half written.
            let mut extensions = self.extensions.lock().unwrap_or_else(PoisonError::into_inner);
            if *extensions >= self.request.extensions_max {
                return Err(LockError::Config(format!(
                    "{:?} was extended {extensions} times, which is the limit",
                    self.claim.name
                )));
            }
            *extensions += 1;
        }
        let engine = &self.claim.engine;
        let nodes = engine.nodes();
        let ttl = self.request.ttl;
        let command = Command::Extend {
            name: name(),
            value: self.claim.value.clone().unwrap_or_else(|| crate::value::Value::from_stored(String::new())),
            ttl_ms: ms(ttl),
            terms: engine.terms(&nodes),
        };
        let all: Vec<usize> = (0..nodes.nodes.len()).collect();
        let (won, report) = engine.tally(&nodes, &all, command, Tally::new(all.len())).await;
        let now = BootTime::now();
        let valid_until = started + ttl.saturating_sub(drift(ttl));
        if won && valid_until > now && self.valid_until() > now {
            self.valid_until.send_replace(valid_until);
            return Ok(valid_until);
        }
        if won {
            // The majority agreed after the old validity had ended: another may have held the lock in between.
            let why = "the extension came after its validity had ended";
            return Err(LockError::Lost { name: name(), why, report });
        }
        let gone = report.0.iter().filter(|(_, outcome)| *outcome == NodeOutcome::Gone).count();
        // Nodes that did not answer may hold it: it is lost where even all of them are no majority.
        if nodes.nodes.len() - gone < crate::round::majority(nodes.nodes.len()) {
            self.valid_until.send_modify(|end| *end = (*end).min(now));
            return Err(LockError::Lost { name: name(), why: "a majority does not hold it any more", report });
        }
        Err(LockError::NoQuorum { name: name(), report })
    }

    /// Extends again and again, whenever two thirds of the lifetime are left, until the lock is lost; returns why. Dropping the
    /// future stops it.
    pub async fn keep(&self) -> LockError {
        loop {
            let pause = self.remaining().saturating_sub(self.request.ttl * 2 / 3);
            sleep(pause.max(self.request.ttl / 20).min(LOOK_EVERY.max(self.request.ttl / 3))).await;
            if self.remaining() > self.request.ttl * 2 / 3 {
                continue;
            }
            match self.extend().await {
                Ok(_) => {}
                // Still held; there is time for another attempt.
                Err(error) if error.is_passing() && self.is_valid() => {}
                Err(error) => return error,
            }
        }
    }

    /// Gives the lock back on all nodes that were asked for it; returns once a majority of all nodes is free of it, those
    /// that were never asked included, or cannot be. The rest follows in the background.
    pub async fn release(mut self) -> Released {
        self.claim.disarm();
        let in_time = self.is_valid();
        let (holders, command) = (self.claim.holders(), self.claim.release());
        let tally = Tally::release(self.claim.nodes.nodes.len(), &holders);
        let (confirmed, report) = self.claim.engine.tally(&self.claim.nodes, &holders, command, tally).await;
        Released { confirmed, in_time, report }
    }

    /// Leaves the lock to whoever gets what this returns ([`crate::Lock::resume`]): it is neither released nor watched here
    /// any more. A process that ends right after this asks for the lock with [`Request::everywhere`].
    pub fn leave(mut self) -> Held {
        self.claim.disarm();
        // Who resumes it may give it back before the rest was asked, and nobody would undo that.
        self.claim.asked.end();
        Held {
            name: self.claim.name.clone(),
            value: self.value().to_owned(),
            mode: self.request.mode,
            ttl_ms: ms(self.request.ttl),
            fence: self.fence,
            valid_until_ms: ms(self.valid_until().0),
            boot: held::boot_id(),
            extensions: self.extensions(),
        }
    }

    /// How often it was extended.
    pub fn extensions(&self) -> u32 {
        *self.extensions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
