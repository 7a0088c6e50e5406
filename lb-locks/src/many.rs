//! Several locks at once, without deadlock.
//!
//! Invariants: names are taken in one fixed order, each once; with one of them not taken, none is kept.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    clock::BootTime,
    error::LockError,
    guard::{Guard, Released},
    lock::{Lock, Request},
};

/// Most locks at once.
pub const MANY_MAX: usize = 64;

/// Locks that are held together.
#[derive(Debug)]
pub struct Many {
    /// In the order of names.
    pub guards: Vec<Guard>,
}

/// Takes `names`, each as `request` says, in the order of names. The time of the request is for all of them together.
///
/// # Errors
/// What the first lock that was not taken said; the others are released. `Expired` if the first ran out meanwhile.
pub async fn acquire_many(lock: &dyn Lock, names: &[&str], request: &Request) -> Result<Many, LockError> {
    let names: BTreeSet<&str> = names.iter().copied().collect();
    if names.is_empty() || names.len() > MANY_MAX {
        return Err(LockError::Config(format!("{} locks at once: between 1 and {MANY_MAX}", names.len())));
    }
    let started = BootTime::now();
    let mut guards: Vec<Guard> = Vec::with_capacity(names.len());
    for name in names {
        let wait = request.wait.saturating_sub(BootTime::now().since(started));
        match lock.acquire(Request { name: name.to_owned(), wait, ..request.clone() }).await {
            Ok(guard) => guards.push(guard),
            Err(error) => {
                release_all(guards).await;
                return Err(error);
            }
        }
    }
    let many = Many { guards };
    if many.remaining() == Duration::ZERO {
        let name = many.guards.first().map_or("", |guard| guard.name()).to_owned();
        let elapsed = BootTime::now().since(started);
        let report = crate::error::Report::default();
        release_all(many.guards).await;
        return Err(LockError::expired(&name, request.ttl, elapsed, report));
    }
    Ok(many)
}

impl Many {
    /// How long all of them are still held.
    pub fn remaining(&self) -> Duration {
        self.guards.iter().map(Guard::remaining).min().unwrap_or_default()
    }

    /// Gives all of them back, the last first.
    pub async fn release(self) -> Vec<Released> {
        release_all(self.guards).await
    }
}

async fn release_all(guards: Vec<Guard>) -> Vec<Released> {
    let mut released = Vec::with_capacity(guards.len());
    for guard in guards.into_iter().rev() {
        released.push(guard.release().await);
    }
    released
}
