//! A store in a database file (`redb`) of the process that owns it; others reach it through `http`.
//!
//! Owns: the file. The content is also held as data ([`State`]), which answers every question; the file makes it survive.
//!
//! Invariants: a write is on disk before anybody sees it; a write that began ends, whoever waits for it; one process has
//! the file at a time, which the database's own lock on it sees to; a file of a newer schema is not touched.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
};

use futures_util::future::{BoxFuture, ready};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};

use super::{
    access::{Commit, Notice, Put, Record, Recorded, Since, Snapshot, Store, StoreError, Subscription, Written},
    memory::{News, now_ms},
    object::{Change, Key, Objects, Revision, SCHEMA_VERSION},
    state::{Kept, State},
};

const META: TableDefinition<&str, &str> = TableDefinition::new("meta");
const OBJECTS: TableDefinition<&str, &str> = TableDefinition::new("objects");
const CHANGES: TableDefinition<u64, &str> = TableDefinition::new("changes");
const RECORDS: TableDefinition<&str, &str> = TableDefinition::new("records");

/// A store in a file. Clones share it.
#[derive(Clone)]
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    database: Database,
    /// Held from the check of a write until it is seen.
    writer: Mutex<()>,
    state: RwLock<State>,
    news: News,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the file, or makes it. It will keep `history_max` changes.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if another process has it or it cannot be opened, [`StoreError::Schema`],
    /// [`StoreError::Broken`] if its content is damaged.
    pub fn open(path: impl AsRef<Path>, history_max: usize) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let cannot = |e: &dyn fmt::Display| StoreError::Unavailable(format!("cannot open {}: {e}", path.display()));
        let database = Database::create(&path).map_err(|e| cannot(&e))?;
        let state = read(&database, history_max)?;
        let (writer, state, news) = (Mutex::new(()), RwLock::new(state), News::default());
        Ok(Self { inner: Arc::new(Inner { path, database, writer, state, news }) })
    }

    /// Runs a write to its end on a thread that may wait for the disk.
    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::task::spawn_blocking(move || {
            // The lock guards no data: what a panic left is on disk or is not.
            let _writer = inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
            work(&inner)
        });
        Box::pin(async { task.await.unwrap_or_else(|e| Err(StoreError::Uncertain(e.to_string()))) })
    }
}

impl Inner {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        // Changes are made by steps that cannot fail, so a panic elsewhere leaves the content whole.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn commit(&self, commit: Commit) -> Result<Written, StoreError> {
        // What will be there afterwards says what is to be written.
        let mut after = self.state().clone();
        after.check(&commit, now_ms())?;
        let (change, reseed) = (commit.change.clone(), commit.reseed.clone());
        after.commit(commit);
        let text = json(&change)?;
        let transaction = self.database.begin_write().map_err(failed)?;
        {
            let mut objects = transaction.open_table(OBJECTS).map_err(failed)?;
            let mut changes = transaction.open_table(CHANGES).map_err(failed)?;
            match &reseed {
                Some(all) => {
                    objects.retain(|_, _| false).map_err(failed)?;
                    changes.retain(|_, _| false).map_err(failed)?;
                    for (key, text) in all {
                        objects.insert(key.as_str(), &**text).map_err(failed)?;
                    }
                }
                None => {
                    for edit in &change.edits {
                        match &edit.after {
                            Some(text) => objects.insert(edit.key.as_str(), &**text).map_err(failed)?,
                            None => objects.remove(edit.key.as_str()).map_err(failed)?,
                        };
                    }
                }
            }
            changes.insert(change.revision.number, &*text).map_err(failed)?;
            let oldest = after.kept().next().map_or(0, |revision| revision.number);
            changes.retain_in(..oldest, |_, _| false).map_err(failed)?;
            let mut meta = transaction.open_table(META).map_err(failed)?;
            let head = after.head().ok_or_else(|| StoreError::Broken("a commit without a head".into()))?;
            for (name, value) in [
                ("schema", SCHEMA_VERSION.to_string()),
                ("origin", head.origin.to_string()),
                ("number", head.revision.number.to_string()),
                ("digest", head.revision.digest.to_string()),
            ] {
                meta.insert(name, &*value).map_err(failed)?;
            }
        }
        seal(transaction)?;
        self.change(|state| *state = after);
        self.news.changed(&change);
        Ok(Written { revision: change.revision, replicated: true })
    }

    fn put(&self, put: &Put) -> Result<Recorded, StoreError> {
        let step = self.state().check_record(put, now_ms())?;
        let transaction = self.database.begin_write().map_err(failed)?;
        {
            let mut records = transaction.open_table(RECORDS).map_err(failed)?;
            for key in &step.expired {
                records.remove(key.as_str()).map_err(failed)?;
            }
            match &step.kept {
                Some(kept) => records.insert(step.key.as_str(), &*json(kept)?).map_err(failed)?,
                None => records.remove(step.key.as_str()).map_err(failed)?,
            };
            let mut meta = transaction.open_table(META).map_err(failed)?;
            meta.insert("schema", &*SCHEMA_VERSION.to_string()).map_err(failed)?;
            meta.insert("version", &*step.version.to_string()).map_err(failed)?;
        }
        seal(transaction)?;
        let (key, version) = (step.key.clone(), step.version);
        self.change(|state| state.put_record(step));
        self.news.send(Notice::Record(key));
        Ok(Recorded { version, replicated: true })
    }
}

fn seal(transaction: WriteTransaction) -> Result<(), StoreError> {
    transaction.commit().map_err(|e| StoreError::Uncertain(e.to_string()))
}

fn failed(error: impl fmt::Display) -> StoreError {
    StoreError::ReadOnly(error.to_string())
}

fn broken(error: impl fmt::Display) -> StoreError {
    StoreError::Broken(error.to_string())
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(broken)
}

/// The content of the file.
fn read(database: &Database, history_max: usize) -> Result<State, StoreError> {
    // A file that is new has no tables yet.
    let transaction = database.begin_write().map_err(failed)?;
    let mut fields = BTreeMap::new();
    for entry in transaction.open_table(META).map_err(failed)?.iter().map_err(broken)? {
        let (name, value) = entry.map_err(broken)?;
        fields.insert(name.value().to_owned(), value.value().to_owned());
    }
    if let Some(found) = fields.get("schema").filter(|found| found.parse() != Ok(SCHEMA_VERSION)) {
        return Err(StoreError::Schema { found: found.clone() });
    }
    transaction.open_table(OBJECTS).map_err(failed)?;
    transaction.open_table(CHANGES).map_err(failed)?;
    transaction.open_table(RECORDS).map_err(failed)?;
    seal(transaction)?;
    let transaction = database.begin_read().map_err(failed)?;
    let mut objects = Objects::new();
    for entry in transaction.open_table(OBJECTS).map_err(broken)?.iter().map_err(broken)? {
        let (key, text) = entry.map_err(broken)?;
        objects.insert(Key::new(key.value())?, text.value().into());
    }
    let mut changes: Vec<Change> = Vec::new();
    for entry in transaction.open_table(CHANGES).map_err(broken)?.iter().map_err(broken)? {
        changes.push(serde_json::from_str(entry.map_err(broken)?.1.value()).map_err(broken)?);
    }
    let mut records = BTreeMap::new();
    let now_ms = now_ms();
    for entry in transaction.open_table(RECORDS).map_err(broken)?.iter().map_err(broken)? {
        let (key, text) = entry.map_err(broken)?;
        let mut kept: Kept = serde_json::from_str(text.value()).map_err(broken)?;
        // A clock that was set back meanwhile must not keep a record for longer than it was to live.
        let ttl_ms = kept.expires_at_ms.map(|at| at.saturating_sub(kept.written_at_ms));
        kept.expires_at_ms = kept.expires_at_ms.zip(ttl_ms).map(|(at, ttl_ms)| at.min(now_ms.saturating_add(ttl_ms)));
        kept.written_at_ms = kept.written_at_ms.min(now_ms);
        records.insert(Key::new(key.value())?, kept);
    }
    let number = |name: &str| fields.get(name).and_then(|text| text.parse::<u64>().ok());
    let digest = |name: &str| fields.get(name).and_then(|text| text.parse().ok());
    let snapshot = match number("number") {
        None => None,
        Some(number) => {
            let (origin, digest) = digest("origin").zip(digest("digest")).ok_or_else(|| broken("its revision"))?;
            Some(Snapshot { origin, revision: Revision { number, digest }, objects })
        }
    };
    Ok(State::restored(history_max, snapshot, changes, records, number("version").unwrap_or(0)))
}

impl Store for EmbeddedStore {
    fn describe(&self) -> String {
        format!("database {}", self.inner.path.display())
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        Box::pin(ready(Ok(self.inner.state().snapshot())))
    }

    fn since(&self, from: Revision) -> BoxFuture<'_, Result<Since, StoreError>> {
        Box::pin(ready(Ok(self.inner.state().since(from))))
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Written, StoreError>> {
        self.write(|inner| inner.commit(commit))
    }

    fn history(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Change>, StoreError>> {
        Box::pin(ready(Ok(self.inner.state().history(limit))))
    }

    fn record_get(&self, key: Key) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        Box::pin(ready(Ok(self.inner.state().record(&key, now_ms()))))
    }

    fn record_put(&self, put: Put) -> BoxFuture<'_, Result<Recorded, StoreError>> {
        self.write(move |inner| inner.put(&put))
    }

    fn record_list(
        &self,
        prefix: String,
        after: Option<Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        Box::pin(ready(Ok(self.inner.state().record_list(&prefix, after.as_ref(), limit, now_ms()))))
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        Box::pin(ready(Ok(self.inner.news.subscribe())))
    }
}

#[cfg(test)]
mod tests {
    use redb::ReadableTableMetadata as _;

    use super::*;
    use crate::store::access::Expect;

    /// A write that is refused forgets nothing, so the next one finds what is to be removed from the file.
    #[tokio::test]
    async fn what_expired_leaves_the_file_with_the_next_write() {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path().join("a.redb"), 10).unwrap();
        let put = |name: &str| Put::new(Key::new(name).unwrap(), "1");
        store.record_put(put("lease/short").ttl_ms(1)).await.unwrap();
        store.record_put(put("lease/long")).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let refused = store.record_put(put("lease/long").expecting(Expect::Absent)).await;
        assert!(matches!(refused, Err(StoreError::RecordConflict { .. })), "{refused:?}");
        store.record_put(put("lease/long")).await.unwrap();
        let transaction = store.inner.database.begin_read().unwrap();
        assert_eq!(transaction.open_table(RECORDS).unwrap().len().unwrap(), 1);
    }
}
