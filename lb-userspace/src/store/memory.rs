//! A store in memory, for tests and for one process.
//!
//! Owns: the lock around the content and the queue of news. Invariant: a notice is sent after its write is visible.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::future::{BoxFuture, ready};
use tokio::sync::broadcast;

use super::{
    access::{
        Commit, NOTICE_BYTES_MAX, NOTICES_MAX, Notice, Put, Record, Recorded, Since, Snapshot, Store, StoreError,
        Subscription, Written,
    },
    object::{Change, HISTORY_MAX, Key, Revision},
    state::State,
};

/// A store in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    news: News,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(HISTORY_MAX)
    }
}

impl MemoryStore {
    /// An empty store that keeps `history_max` changes.
    pub fn new(history_max: usize) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(history_max))), news: News::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A write is checked before it changes anything, so a panic elsewhere leaves the content whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loses everything, as a server without a disk does when it is restarted. Subscriptions stay.
    pub fn wipe(&self) {
        *self.state() = State::new(HISTORY_MAX);
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    // A clock before 1970 counts as 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// News on their way to any number of subscriptions, a bounded number for each.
#[derive(Clone, Debug)]
pub(super) struct News(broadcast::Sender<Notice>);

impl Default for News {
    fn default() -> Self {
        Self(broadcast::Sender::new(NOTICES_MAX))
    }
}

impl News {
    pub(super) fn changed(&self, change: &Change) {
        let small = change.bytes() <= NOTICE_BYTES_MAX;
        let change_if_small = small.then(|| Box::new(change.clone()));
        self.send(Notice::Changed { revision: change.revision, change: change_if_small });
    }

    pub(super) fn send(&self, notice: Notice) {
        // Without a receiver nobody needs it.
        let _ = self.0.send(notice);
    }

    pub(super) fn subscribe(&self) -> Box<dyn Subscription> {
        Box::new(Listener(self.0.subscribe()))
    }
}

struct Listener(broadcast::Receiver<Notice>);

impl Subscription for Listener {
    fn next(&mut self) -> BoxFuture<'_, Result<Notice, StoreError>> {
        Box::pin(async {
            match self.0.recv().await {
                Ok(notice) => Ok(notice),
                Err(broadcast::error::RecvError::Lagged(_)) => Ok(Notice::Missed),
                Err(broadcast::error::RecvError::Closed) => Err(StoreError::Unavailable("the store was closed".into())),
            }
        })
    }
}

impl Store for MemoryStore {
    fn describe(&self) -> String {
        "memory".into()
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        Box::pin(ready(Ok(self.state().snapshot())))
    }

    fn since(&self, from: Revision) -> BoxFuture<'_, Result<Since, StoreError>> {
        Box::pin(ready(Ok(self.state().since(from))))
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Written, StoreError>> {
        let commit = || {
            let mut state = self.state();
            state.check(&commit, now_ms())?;
            let change = commit.change.clone();
            state.commit(commit);
            self.news.changed(&change);
            Ok(Written { revision: change.revision, replicated: true })
        };
        Box::pin(ready(commit()))
    }

    fn history(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Change>, StoreError>> {
        Box::pin(ready(Ok(self.state().history(limit))))
    }

    fn record_get(&self, key: Key) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        Box::pin(ready(Ok(self.state().record(&key, now_ms()))))
    }

    fn record_put(&self, put: Put) -> BoxFuture<'_, Result<Recorded, StoreError>> {
        let write = || {
            let (mut state, now_ms) = (self.state(), now_ms());
            let step = state.check_record(&put, now_ms)?;
            let (key, version) = (step.key.clone(), step.version);
            state.put_record(step);
            self.news.send(Notice::Record(key));
            Ok(Recorded { version, replicated: true })
        };
        Box::pin(ready(write()))
    }

    fn record_list(
        &self,
        prefix: String,
        after: Option<Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        Box::pin(ready(Ok(self.state().record_list(&prefix, after.as_ref(), limit, now_ms()))))
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        Box::pin(ready(Ok(self.news.subscribe())))
    }
}
