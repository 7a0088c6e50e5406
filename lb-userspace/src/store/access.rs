//! What can be asked of a store, wherever it is kept.
//!
//! Owns: the trait that every place implements, its questions, answers and errors. Refuses to know: how a reader follows
//! (`follow`), how a writer retries (`write`), what objects mean.
//!
//! Invariants: a commit is made whole or not at all, and only on the revision that its writer saw; records never touch the
//! revision; a notice is only a wake-up, which may be lost, and whoever needs to know asks.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::object::{Change, Digest, FormError, Key, Objects, Revision};

/// Changes in one answer to [`Store::since`], at most; who is further behind asks again.
pub const SINCE_MAX: usize = 256;
/// Bytes of changes in one answer to [`Store::since`], roughly: the change that exceeds them is the last one.
pub const SINCE_BYTES_MAX: usize = 8 << 20;
/// Largest change that travels inside its notice, in bytes.
pub const NOTICE_BYTES_MAX: usize = 64 << 10;
/// Notices that wait for a slow reader, at most; behind that it is told [`Notice::Missed`].
pub const NOTICES_MAX: usize = 256;
/// Largest value of a record, in bytes.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Most records in a store.
pub const RECORDS_MAX: usize = 200_000;
/// Bytes of all records together.
pub const RECORDS_BYTES_MAX: usize = 64 << 20;
/// Most records in one answer to [`Store::record_list`].
pub const LIST_MAX: usize = 1_000;
/// Longest time to live of a record, in milliseconds: 30 days.
pub const TTL_MS_MAX: u64 = 30 * 24 * 3_600_000;
/// Longest holder of a record, in bytes.
pub const HOLDER_BYTES_MAX: usize = 256;

/// Where a store stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// What its first change followed: another origin is another store under the same address.
    pub origin: Digest,
    /// The newest revision.
    pub revision: Revision,
}

/// All objects of one revision, read at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Origin of the store.
    pub origin: Digest,
    /// Revision of the objects.
    pub revision: Revision,
    /// The objects.
    pub objects: Objects,
}

impl Snapshot {
    /// Where the store stood.
    pub fn head(&self) -> Head {
        Head { origin: self.origin, revision: self.revision }
    }
}

/// What happened after a revision, read at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// Where the store stands; `None` if nothing was ever written.
    pub head: Option<Head>,
    /// The kept changes with higher numbers, oldest first, as many as one answer holds. That the first one follows the
    /// revision asked for is for the reader to see.
    pub changes: Vec<Change>,
}

/// A change on its way into the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Where the store must stand; `None` if nothing may ever have been written.
    pub expect: Option<Revision>,
    /// The store's origin: the one that it has, or a fresh one with its first change.
    pub origin: Digest,
    /// The change.
    pub change: Change,
    /// Replaces everything: objects, origin and history, which begins with `change`. For stores that lost theirs.
    pub reseed: Option<Objects>,
    /// What must hold elsewhere, looked at in the same moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
}

/// A change that the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its revision.
    pub revision: Revision,
    /// `false`: stored, but a fail-over at this moment would lose it. Places without replicas say `true`.
    pub replicated: bool,
}

/// A record that the store holds, or does not hold any more where it was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Its version.
    pub version: u64,
    /// As in [`Written::replicated`].
    pub replicated: bool,
}

/// Who holds a record, for writes that are only good while somebody does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The holder.
    pub holder: String,
    /// How often the record changed hands. An epoch alone can repeat after a fail-over that lost it.
    pub epoch: u64,
}

/// A small value outside the revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub key: Key,
    /// Its value.
    pub value: Arc<str>,
    /// Who holds it.
    pub claim: Option<Claim>,
    /// Differs after each write, also after the record was gone in between.
    pub version: u64,
    /// Time since it was written, by the store's clock.
    pub age_ms: u64,
    /// Time until it vanishes, by the store's clock.
    pub ttl_ms: Option<u64>,
}

/// What must be there for a record to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// Anything.
    Any,
    /// No such record.
    Absent,
    /// The record with this version.
    Version(u64),
}

/// A write that is good only while another record is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// That record.
    pub key: Key,
    /// Who must hold it, with the epoch that it must have.
    pub claim: Claim,
}

/// A record on its way into the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Its name.
    pub key: Key,
    /// Its value; `None` removes it.
    pub value: Option<Arc<str>>,
    /// Who holds it from now on.
    pub claim: Option<Claim>,
    /// What must be there now.
    pub expect: Expect,
    /// It vanishes after this time by itself.
    pub ttl_ms: Option<u64>,
    /// What must hold elsewhere.
    pub fence: Option<Fence>,
}

impl Put {
    /// Writes `value` whatever is there, for ever.
    pub fn new(key: Key, value: impl Into<Arc<str>>) -> Self {
        Self { key, value: Some(value.into()), claim: None, expect: Expect::Any, ttl_ms: None, fence: None }
    }

    /// Removes the record.
    pub fn remove(key: Key) -> Self {
        Self { key, value: None, claim: None, expect: Expect::Any, ttl_ms: None, fence: None }
    }

    /// The same where `expect` is there.
    #[must_use]
    pub fn expecting(mut self, expect: Expect) -> Self {
        self.expect = expect;
        self
    }

    /// The same held by `holder` in `epoch`.
    #[must_use]
    pub fn claim(mut self, holder: &str, epoch: u64) -> Self {
        self.claim = Some(Claim { holder: holder.to_owned(), epoch });
        self
    }

    /// The same for `ttl_ms`.
    #[must_use]
    pub fn ttl_ms(mut self, ttl_ms: u64) -> Self {
        self.ttl_ms = Some(ttl_ms);
        self
    }

    /// The same while `holder` holds `key` in `epoch`.
    #[must_use]
    pub fn fence(mut self, key: Key, holder: &str, epoch: u64) -> Self {
        self.fence = Some(Fence { key, claim: Claim { holder: holder.to_owned(), epoch } });
        self
    }

    /// Checks the limits of one record.
    ///
    /// # Errors
    /// [`StoreError::Form`].
    pub fn check(&self) -> Result<(), StoreError> {
        let limit = |what: &str, found: usize, max: usize| {
            let what = format!("{what} of {} has", self.key);
            if found > max { Err(StoreError::Form(FormError::TooLarge { what, found, max })) } else { Ok(()) }
        };
        limit("the value", self.value.as_ref().map_or(0, |value| value.len()), RECORD_BYTES_MAX)?;
        for claim in [&self.claim, &self.fence.as_ref().map(|fence| fence.claim.clone())].into_iter().flatten() {
            limit("the holder", claim.holder.len(), HOLDER_BYTES_MAX)?;
        }
        match self.ttl_ms {
            Some(ttl_ms) if !(1..=TTL_MS_MAX).contains(&ttl_ms) => {
                Err(StoreError::Refused(format!("a record lives from 1 to {TTL_MS_MAX} ms, not {ttl_ms}")))
            }
            _ => Ok(()),
        }
    }
}

/// News from the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// The objects changed.
    Changed {
        /// The new revision.
        revision: Revision,
        /// The change, if it is small.
        change: Option<Box<Change>>,
    },
    /// A record was written or removed; one that expires is not told.
    Record(Key),
    /// News were lost between the last notice and the next.
    Missed,
}

/// A confirmed subscription. Dropping it ends it.
pub trait Subscription: Send {
    /// The next notice. Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] once it broke; it does not come back, and what happened meanwhile has to be asked for.
    fn next(&mut self) -> BoxFuture<'_, Result<Notice, StoreError>>;
}

/// A place in which objects and records are kept. Each call ends within a bounded time.
pub trait Store: Send + Sync + fmt::Debug {
    /// Its kind and address, without secrets.
    fn describe(&self) -> String;

    /// All objects; `None` if nothing was ever written.
    fn snapshot(&self) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>>;

    /// What happened after `from`.
    fn since(&self, from: Revision) -> BoxFuture<'_, Result<Since, StoreError>>;

    /// Makes a change. [`StoreError::Uncertain`] if it may or may not have been made, [`StoreError::Fenced`] if the record that its
    /// fence names is not held as claimed.
    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Written, StoreError>>;

    /// The newest kept changes, newest first, at most `limit`.
    fn history(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Change>, StoreError>>;

    /// One record.
    fn record_get(&self, key: Key) -> BoxFuture<'_, Result<Option<Record>, StoreError>>;

    /// Writes or removes a record: [`StoreError::RecordConflict`] if something else is there than expected,
    /// [`StoreError::Fenced`] if the other record is not held as claimed.
    fn record_put(&self, put: Put) -> BoxFuture<'_, Result<Recorded, StoreError>>;

    /// Records whose keys begin with `prefix` and come after `after`, in the order of keys, at most `limit` and
    /// [`LIST_MAX`].
    fn record_list(
        &self,
        prefix: String,
        after: Option<Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>>;

    /// Subscribes to both kinds of news, and returns once the store has confirmed it.
    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>>;
}

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreError {
    /// It cannot be reached, or does not answer in time.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// The connection broke in the middle of a write.
    #[error("the write may or may not have been made: {0}; look at `weir config history`")]
    Uncertain(String),
    /// Somebody else changed the objects.
    #[error("the store stands at {}, which is not the expected revision", .have.map_or("no revision".into(), |r| r.to_string()))]
    Conflict {
        /// Where it stands; `None` if nothing was ever written.
        have: Option<Revision>,
    },
    /// Something else is there than the writer of a record expected.
    #[error("the record has {}, which is not what was expected", .have.map_or("no version".into(), |v| format!("version {v}")))]
    RecordConflict {
        /// Its version; `None` if there is none.
        have: Option<u64>,
    },
    /// The fence's record is not held as claimed.
    #[error("the writer does not hold what it claims any more")]
    Fenced,
    /// A program newer than this one wrote it.
    #[error(
        "the store has schema {found}, this release of weir knows up to {}: upgrade weir on this node; forwarding goes on \
         with what it has",
        super::object::SCHEMA_VERSION
    )]
    Schema {
        /// What it says.
        found: String,
    },
    /// User, password, token, certificate or rights.
    #[error("the store refuses access: {0}")]
    Denied(String),
    /// It takes no writes now.
    #[error("the store takes no writes: {0}")]
    ReadOnly(String),
    /// Something is full.
    #[error("the store is full: {0}")]
    Full(String),
    /// A limit or a form.
    #[error(transparent)]
    Form(#[from] FormError),
    /// A place of this kind cannot do that at all.
    #[error("{0}; a store can: `[store]` in the node's configuration chooses one")]
    Unsupported(String),
    /// Anything else that it refuses.
    #[error("the store refuses: {0}")]
    Refused(String),
    /// What it holds or says is not understood.
    #[error("the store's answer is not understood: {0}")]
    Broken(String),
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::ReadOnly(_) | Self::Uncertain(_))
    }
}
