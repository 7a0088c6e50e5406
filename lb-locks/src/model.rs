//! What one lock node does, as a pure value: commands and the node's time in, replies out.
//!
//! It is the definition of the protocol's server side. The memory store and the simulated nodes are made of it, and the
//! Lua functions and the SQL of the other stores are held to it by tests that play the same commands to both. Refuses to
//! know clocks, sockets and majorities. Invariants: at most one exclusive holder, and none beside readers; a counter
//! never goes back except by [`NodeModel::flush`]; nothing that expired comes back.

use std::collections::BTreeMap;

use crate::{
    clock::drift_ms,
    command::{Command, Inspection, List, ListId, Mode, Refusal, Reply, Status, Terms, Ticket},
    value::Value,
};

/// How long a writer that met readers keeps new readers out, in milliseconds after its last attempt.
pub const INTENT_MS: u64 = 500;
/// Most waiters of one lock on one node; further ones get no place.
pub const QUEUE_MAX: usize = 1_000;

/// One node.
#[derive(Clone, Debug, Default)]
pub struct NodeModel {
    run_id: String,
    ready: Option<String>,
    /// Run and start of the quarantine.
    quarantine: Option<(String, u64)>,
    fence: u64,
    max_ttl_ms: Option<u64>,
    list: List,
    list_since_ms: u64,
    locks: BTreeMap<String, Lock>,
}

/// Who holds and waits for one lock.
#[derive(Clone, Debug, Default)]
struct Lock {
    writer: Option<(Value, u64)>,
    readers: BTreeMap<Value, u64>,
    intent_ms: Option<u64>,
    waiters: BTreeMap<String, Waiter>,
}

#[derive(Clone, Debug)]
struct Waiter {
    order: u64,
    deadline_ms: u64,
}

impl Lock {
    /// Forgets what has expired: something is alive up to and including its last millisecond.
    fn expire(&mut self, now_ms: u64) {
        self.writer.take_if(|(_, expires)| *expires < now_ms);
        self.readers.retain(|_, expires| *expires >= now_ms);
        self.intent_ms.take_if(|expires| *expires < now_ms);
        self.waiters.retain(|_, waiter| waiter.deadline_ms >= now_ms);
    }

    fn is_empty(&self) -> bool {
        self.writer.is_none() && self.readers.is_empty() && self.intent_ms.is_none() && self.waiters.is_empty()
    }

    fn lease(&mut self, value: &Value) -> Option<&mut u64> {
        match &mut self.writer {
            Some((held, expires)) if held == value => Some(expires),
            _ => self.readers.get_mut(value),
        }
    }

    /// How many go before `ticket`, which is enqueued if it is new; all of them without a ticket.
    fn ahead(&mut self, ticket: Option<&Ticket>, now_ms: u64) -> u64 {
        let Some(ticket) = ticket else { return self.waiters.len() as u64 };
        if self.waiters.len() >= QUEUE_MAX && !self.waiters.contains_key(&ticket.id) {
            return self.waiters.len() as u64;
        }
        let next = self.waiters.values().map(|waiter| waiter.order).max().unwrap_or(0).saturating_add(1);
        let waiter = self
            .waiters
            .entry(ticket.id.clone())
            .or_insert(Waiter { order: ticket.order.unwrap_or(next), deadline_ms: 0 });
        waiter.deadline_ms = now_ms.saturating_add(ticket.patience_ms);
        let mine = (waiter.order, &ticket.id);
        self.waiters.iter().filter(|(id, waiter)| (waiter.order, *id) < mine).count() as u64
    }
}

/// After so long no lock of `max_ttl_ms` is held any more, whatever the clocks differ by.
fn wait_ms(max_ttl_ms: u64) -> u64 {
    max_ttl_ms.saturating_add(drift_ms(max_ttl_ms))
}

impl NodeModel {
    /// An empty node in its run `run_id`.
    pub fn new(run_id: &str) -> Self {
        Self { run_id: run_id.to_owned(), ..Self::default() }
    }

    /// Stops and starts again as `run_id`; without `keep` nothing survived.
    pub fn restart(&mut self, run_id: &str, keep: bool) {
        if keep {
            self.run_id = run_id.to_owned();
        } else {
            *self = Self::new(run_id);
        }
    }

    /// Forgets everything but its run, as FLUSHALL does.
    pub fn flush(&mut self) {
        *self = Self::new(&self.run_id);
    }

    /// Forgets locks that expired; returns how many were given up.
    pub fn reap(&mut self, now_ms: u64) -> usize {
        let before = self.locks.len();
        self.locks.values_mut().for_each(|lock| lock.expire(now_ms));
        self.locks.retain(|_, lock| !lock.is_empty());
        before - self.locks.len()
    }

    /// Carries `command` out at `now_ms` by the node's clock.
    pub fn apply(&mut self, command: &Command, now_ms: u64) -> Reply {
        let reply = match command {
            // A counter at its end has no further token: no vote, as a server's script fails there.
            Command::Acquire { fence: true, .. } if self.fence == u64::MAX => Reply::Gone,
            Command::Acquire { name, value, mode, ttl_ms, fence, ticket, terms } => {
                match self.vote(name, value, *mode, *ttl_ms, ticket.as_ref(), terms, now_ms) {
                    Ok(()) => {
                        self.fence += u64::from(*fence);
                        Reply::Granted { fence: if *fence { self.fence } else { 0 }, run_id: self.run_id.clone() }
                    }
                    Err(refusal) => Reply::Refused(refusal),
                }
            }
            Command::Confirm { name, value, fence } => match self.lock(name, now_ms).lease(value) {
                Some(_) => {
                    self.fence = self.fence.max(*fence);
                    Reply::Done
                }
                None => Reply::Gone,
            },
            Command::Extend { name, value, ttl_ms, terms } => match self.admit(*ttl_ms, terms, now_ms) {
                Err(refusal) => Reply::Refused(refusal),
                Ok(()) => match self.lock(name, now_ms).lease(value) {
                    Some(expires) => {
                        *expires = now_ms.saturating_add(*ttl_ms);
                        Reply::Done
                    }
                    None => Reply::Gone,
                },
            },
            Command::Release { name, value, ticket } => self.release(name, value, ticket.as_deref(), now_ms),
            Command::Status => Reply::Status(self.status(now_ms)),
            Command::Ready { run_id, fence, max_ttl_ms, list, force } => {
                match self.make_ready(run_id, *fence, *max_ttl_ms, list, *force, now_ms) {
                    Ok(()) => Reply::Done,
                    Err(refusal) => Reply::Refused(refusal),
                }
            }
            Command::SetList { from, list, join } => self.set_list(from, list, *join, now_ms),
            Command::Inspect { name } => Reply::Inspection(self.inspect(name, now_ms)),
            Command::Names { limit } => {
                self.locks.values_mut().for_each(|lock| lock.expire(now_ms));
                let live = self
                    .locks
                    .iter()
                    .filter(|(_, lock)| lock.writer.is_some() || !lock.readers.is_empty() || !lock.waiters.is_empty());
                Reply::Names(live.map(|(name, _)| name.clone()).take(*limit).collect())
            }
        };
        self.locks.retain(|_, lock| !lock.is_empty());
        reply
    }

    fn lock(&mut self, name: &str, now_ms: u64) -> &mut Lock {
        let lock = self.locks.entry(name.to_owned()).or_default();
        lock.expire(now_ms);
        lock
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one command")]
    fn vote(
        &mut self,
        name: &str,
        value: &Value,
        mode: Mode,
        ttl_ms: u64,
        ticket: Option<&Ticket>,
        terms: &Terms,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        self.admit(ttl_ms, terms, now_ms)?;
        let lock = self.lock(name, now_ms);
        let ahead = lock.ahead(ticket, now_ms);
        if ahead > 0 {
            return Err(Refusal::Queued { ahead });
        }
        if let Some((_, expires)) = &lock.writer {
            return Err(Refusal::Held { remaining_ms: expires - now_ms });
        }
        let expires = now_ms.saturating_add(ttl_ms);
        match mode {
            Mode::Exclusive => {
                if let Some(last) = lock.readers.values().max() {
                    let remaining_ms = last - now_ms;
                    lock.intent_ms = Some(now_ms.saturating_add(INTENT_MS));
                    return Err(Refusal::Held { remaining_ms });
                }
                lock.intent_ms = None;
                lock.writer = Some((value.clone(), expires));
            }
            Mode::Shared => {
                if let Some(intent) = lock.intent_ms {
                    return Err(Refusal::Held { remaining_ms: intent - now_ms });
                }
                lock.readers.insert(value.clone(), expires);
            }
        }
        if let Some(ticket) = ticket {
            lock.waiters.remove(&ticket.id);
        }
        Ok(())
    }

    /// What is checked before every vote: quarantine, list, lifetime.
    fn admit(&mut self, ttl_ms: u64, terms: &Terms, now_ms: u64) -> Result<(), Refusal> {
        if terms.quarantine && self.ready.as_ref() != Some(&self.run_id) {
            let remaining_ms = self.quarantine(Some(terms.max_ttl_ms), now_ms);
            return Err(match remaining_ms {
                0 => Refusal::NeedsRepair { run_id: self.run_id.clone() },
                _ => Refusal::Quarantined { remaining_ms },
            });
        }
        let (mine, theirs) = (&self.list.id, &terms.list);
        if mine.epoch > theirs.epoch || (mine.epoch == theirs.epoch && mine.digest != theirs.digest) {
            return Err(Refusal::OtherList { list: self.list.clone() });
        }
        let max_ttl_ms = self.max_ttl_ms.unwrap_or(terms.max_ttl_ms);
        if ttl_ms > max_ttl_ms { Err(Refusal::TtlTooLong { max_ttl_ms }) } else { Ok(()) }
    }

    /// Starts the quarantine of this run if it has none; the rest of it.
    fn quarantine(&mut self, max_ttl_ms: Option<u64>, now_ms: u64) -> u64 {
        let since_ms = match &self.quarantine {
            Some((run, since)) if *run == self.run_id => *since,
            _ => {
                self.quarantine = Some((self.run_id.clone(), now_ms));
                now_ms
            }
        };
        if self.max_ttl_ms.is_none() {
            self.max_ttl_ms = max_ttl_ms;
        }
        let max_ttl_ms = self.max_ttl_ms.unwrap_or(0);
        since_ms.saturating_add(wait_ms(max_ttl_ms)).saturating_sub(now_ms)
    }

    fn release(&mut self, name: &str, value: &Value, ticket: Option<&str>, now_ms: u64) -> Reply {
        let lock = self.lock(name, now_ms);
        if let Some(ticket) = ticket {
            lock.waiters.remove(ticket);
        }
        if lock.writer.take_if(|(held, _)| held == value).is_some() || lock.readers.remove(value).is_some() {
            Reply::Done
        } else {
            Reply::Gone
        }
    }

    fn status(&self, now_ms: u64) -> Status {
        let ready = self.ready.as_ref() == Some(&self.run_id);
        let max_ttl_ms = self.max_ttl_ms.unwrap_or(0);
        let wait = wait_ms(max_ttl_ms);
        let since_ms = match &self.quarantine {
            Some((run, since)) if *run == self.run_id => *since,
            _ => now_ms,
        };
        Status {
            run_id: self.run_id.clone(),
            ready,
            quarantine_ms: if ready { 0 } else { since_ms.saturating_add(wait).saturating_sub(now_ms) },
            fence: self.fence,
            max_ttl_ms,
            list: self.list.clone(),
            list_wait_ms: if self.list_since_ms == 0 {
                0
            } else {
                self.list_since_ms.saturating_add(wait).saturating_sub(now_ms)
            },
        }
    }

    fn make_ready(
        &mut self,
        run_id: &str,
        fence: u64,
        max_ttl_ms: u64,
        list: &List,
        force: bool,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        if run_id != self.run_id {
            return Err(Refusal::OtherRun { run_id: self.run_id.clone() });
        }
        self.max_ttl_ms = Some(self.max_ttl_ms.unwrap_or(0).max(max_ttl_ms));
        if self.ready.as_ref() != Some(&self.run_id) && !force {
            let remaining_ms = self.quarantine(None, now_ms);
            if remaining_ms > 0 {
                return Err(Refusal::Quarantined { remaining_ms });
            }
        }
        self.fence = self.fence.max(fence);
        if list.id.epoch > self.list.id.epoch {
            self.list = list.clone();
            self.list_since_ms = if force { 0 } else { now_ms };
        }
        self.ready = Some(self.run_id.clone());
        self.quarantine = None;
        Ok(())
    }

    fn set_list(&mut self, from: &ListId, list: &List, join: bool, now_ms: u64) -> Reply {
        if self.list.id == list.id {
            return Reply::Done;
        }
        let fits = if join { self.list.id.epoch < list.id.epoch } else { self.list.id == *from };
        if self.list.id.epoch != 0 && !fits {
            return Reply::Refused(Refusal::OtherList { list: self.list.clone() });
        }
        let remaining_ms = self.status(now_ms).list_wait_ms;
        if remaining_ms > 0 && !join {
            return Reply::Refused(Refusal::TooSoon { remaining_ms });
        }
        self.list = list.clone();
        self.list_since_ms = now_ms;
        if join {
            (self.ready, self.quarantine) = (None, None);
        }
        Reply::Done
    }

    fn inspect(&mut self, name: &str, now_ms: u64) -> Inspection {
        let lock = self.lock(name, now_ms);
        let writer = lock.writer.iter().map(|(value, expires)| (Mode::Exclusive, value.clone(), expires - now_ms));
        let readers = lock.readers.iter().map(|(value, expires)| (Mode::Shared, value.clone(), expires - now_ms));
        let mut waiters: Vec<_> = lock.waiters.iter().map(|(id, waiter)| (waiter.order, id.clone())).collect();
        waiters.sort();
        Inspection {
            holders: writer.chain(readers).collect(),
            waiters: waiters.into_iter().map(|(_, id)| id).collect(),
        }
    }
}
