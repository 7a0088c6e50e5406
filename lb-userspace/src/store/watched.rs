//! The watched file of one node as a store that is read: its services and pools as objects.
//!
//! Owns: the revisions that the file went through while this process looked at it. Refuses to know: what the texts mean, and what else
//! stands in the file.
//!
//! What a file cannot do is refused as [`StoreError::Unsupported`]: it takes no compare-and-set, because an editor that saves it takes
//! part in none; it does not know who changed it, when and why; and it has no place for records.
//!
//! Invariants: two looks at the same services are one revision, and each revision follows the one before, so a reader of a file is a reader
//! like any other; a file that cannot be read, or is none, is an error, and what was read before stays. A file that is written in place,
//! rather than replaced, may be seen half-written by whoever looks in that moment.

use std::{
    io::ErrorKind,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::{BoxFuture, ready};

use super::{
    access::{
        Commit, NOTICE_BYTES_MAX, Notice, Put, Record, Recorded, Since, Snapshot, Store, StoreError, Subscription,
        Written,
    },
    document::split,
    file::{FileError, FileStore, Watch},
    memory::now_ms,
    object::{Change, Digest, Edit, HISTORY_MAX, Key, Objects, Revision},
    state::State,
    write::random_digest,
};

/// A file as a store. Clones share it.
#[derive(Clone, Debug)]
pub struct WatchedFile {
    file: FileStore,
    /// Another process counts other revisions.
    origin: Digest,
    seen: Arc<Mutex<State>>,
}

impl WatchedFile {
    /// The services and pools of the file at `path`, which need not exist yet.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where there is no randomness for an origin.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let seen = Arc::new(Mutex::new(State::new(HISTORY_MAX)));
        Ok(Self { file: FileStore::new(path.as_ref()), origin: random_digest()?, seen })
    }

    /// What there is, once the file was looked at.
    fn look(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        // A revision is checked before it is added, so a panic elsewhere leaves the content whole.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match self.file.read() {
            Ok(text) => text.text,
            Err(FileError::Read { cause, .. }) if cause.kind() == ErrorKind::NotFound && seen.head().is_none() => {
                return Ok(seen);
            }
            // An editor may have moved it away for a moment.
            Err(error) => return Err(StoreError::Unavailable(error.to_string())),
        };
        let name = self.file.path().display().to_string();
        let objects = split(&name, &text).map_err(|error| StoreError::Broken(error.to_string()))?;
        let before = seen.snapshot().map(|snapshot| snapshot.objects).unwrap_or_default();
        let edits = between(&before, &objects.into_iter().collect());
        if !edits.is_empty() {
            let expect = seen.head().map(|head| head.revision);
            let change = Change::new(expect.unwrap_or(Revision::origin(self.origin)), "", now_ms(), "", edits);
            let commit = Commit { expect, origin: self.origin, change, reseed: None, fence: None };
            seen.check(&commit, now_ms())?;
            seen.commit(commit);
        }
        Ok(seen)
    }
}

/// What leads from one state to another.
fn between(before: &Objects, after: &Objects) -> Vec<Edit> {
    let edit = |key: &Key| Edit { key: key.clone(), before: before.get(key).cloned(), after: after.get(key).cloned() };
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    gone.chain(after.keys()).map(edit).filter(|edit| edit.before != edit.after).collect()
}

/// Refuses what a file cannot do.
fn refused<'a, T: Send + 'a>(what: &str) -> BoxFuture<'a, Result<T, StoreError>> {
    Box::pin(ready(Err(StoreError::Unsupported(format!("a file {what}")))))
}

const NO_RECORDS: &str = "has no place for what nodes tell each other";

impl Store for WatchedFile {
    fn describe(&self) -> String {
        format!("file {}", self.file.path().display())
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        Box::pin(ready(self.look().map(|seen| seen.snapshot())))
    }

    fn since(&self, from: Revision) -> BoxFuture<'_, Result<Since, StoreError>> {
        Box::pin(ready(self.look().map(|seen| seen.since(from))))
    }

    fn commit(&self, _: Commit) -> BoxFuture<'_, Result<Written, StoreError>> {
        refused("is written by editors, which ask for no revision: save it, and `weir config apply` checks it first")
    }

    fn history(&self, _: usize) -> BoxFuture<'_, Result<Vec<Change>, StoreError>> {
        refused("does not know who changed it, when and why")
    }

    fn record_get(&self, _: Key) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        refused(NO_RECORDS)
    }

    fn record_put(&self, _: Put) -> BoxFuture<'_, Result<Recorded, StoreError>> {
        refused(NO_RECORDS)
    }

    fn record_list(&self, _: String, _: Option<Key>, _: usize) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        refused(NO_RECORDS)
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        let subscribed = || {
            // Watched before it is looked at: what is saved in between is told twice rather than never.
            let watch = self.file.watch().map_err(|error| StoreError::Unavailable(error.to_string()))?;
            let told = self.look().ok().and_then(|seen| seen.head()).map(|head| head.revision);
            Ok(Box::new(Saves { watch, file: self.clone(), told }) as Box<dyn Subscription>)
        };
        Box::pin(ready(subscribed()))
    }
}

struct Saves {
    watch: Watch,
    file: WatchedFile,
    /// The last revision that was told.
    told: Option<Revision>,
}

impl Saves {
    /// What a look at the file has to tell.
    fn news(&mut self) -> Option<Notice> {
        // Whoever asks now is told what is wrong with it.
        let Ok(seen) = self.file.look() else { return Some(Notice::Missed) };
        let revision = seen.head()?.revision;
        if self.told.replace(revision) == Some(revision) {
            return None;
        }
        let change = seen.history(1).pop().filter(|change| change.bytes() <= NOTICE_BYTES_MAX).map(Box::new);
        Some(Notice::Changed { revision, change })
    }
}

impl Subscription for Saves {
    fn next(&mut self) -> BoxFuture<'_, Result<Notice, StoreError>> {
        Box::pin(async {
            loop {
                self.watch.changed().await;
                if let Some(notice) = self.news() {
                    return Ok(notice);
                }
            }
        })
    }
}
