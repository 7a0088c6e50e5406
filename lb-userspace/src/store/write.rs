//! How a writer changes a store: read, decide, compare and set, and again if somebody else was faster.
//!
//! Owns: retries, authorship, and finding out what became of a write whose answer was lost. Refuses to know: what the
//! edits mean; the caller's step sees all objects and validates them.
//!
//! Invariants: a change is made at most once, however often it is sent, because its revision names it; what the caller's
//! step saw is what the change replaces.

use std::{sync::Arc, time::Duration};

use super::{
    access::{Commit, Fence, Snapshot, Store, StoreError, Written},
    memory::now_ms,
    object::{Change, Digest, Edit, Key, Objects, Revision, RevisionName},
};

/// Attempts of one write, against other writers and against a store that does not answer.
const ATTEMPTS_MAX: u32 = 12;
/// First pause between attempts; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What is said about a change, and on which revision it insists.
#[derive(Clone, Debug, Default)]
pub struct Intent {
    /// The revision at which the store must stand; else any.
    pub expect: Option<RevisionName>,
    /// Who must hold which record at the moment of the write; else nobody.
    pub fence: Option<Fence>,
    /// Who.
    pub author: String,
    /// Why; may be empty.
    pub message: String,
}

impl Intent {
    /// Whether a store that stands at `have` is the one that is insisted on. Number 0 names one in which nothing was ever written.
    pub fn meets(&self, have: Option<&Revision>) -> bool {
        match (&self.expect, have) {
            (None, _) => true,
            (Some(name), Some(have)) => name.names(have),
            (Some(name), None) => name.number == 0 && name.digest.is_empty(),
        }
    }
}

/// One edit as a writer gives it: the new text, or `None` to remove the object.
pub type NewText = (Key, Option<Arc<str>>);

/// What came of a write.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The store holds the change.
    Changed(Written, Box<Change>),
    /// The objects were so already; the store stands here.
    Unchanged(Option<Revision>),
}

impl Outcome {
    /// The revision that holds what was to be written; `None` if nothing was ever written.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Changed(written, _) => Some(written.revision),
            Self::Unchanged(revision) => *revision,
        }
    }
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError<E> {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller's step.
    #[error("{0}")]
    Refused(E),
}

impl dyn Store {
    /// Writes `edits` if `validate` accepts all objects as they would be then.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if `intent` insists on another revision than the store's; the store's; the step's own.
    pub async fn write<E>(
        &self,
        intent: &Intent,
        edits: &[NewText],
        mut validate: impl FnMut(&Objects) -> Result<(), E>,
    ) -> Result<Outcome, WriteError<E>> {
        self.update(intent, |objects| {
            let mut after = objects.clone();
            for (key, text) in edits {
                match text {
                    Some(text) => after.insert(key.clone(), Arc::clone(text)),
                    None => after.remove(key),
                };
            }
            validate(&after).map(|()| edits.to_vec())
        })
        .await
    }

    /// Changes the store by what `decide` makes of the objects that it holds. Where another writer is faster, `decide` is
    /// asked again, unless `intent` insists on a revision. It validates what it decides.
    ///
    /// # Errors
    /// As [`Self::write`]. [`StoreError::Uncertain`] if it is not known whether the change was made.
    pub async fn update<E>(
        &self,
        intent: &Intent,
        mut decide: impl FnMut(&Objects) -> Result<Vec<NewText>, E>,
    ) -> Result<Outcome, WriteError<E>> {
        let mut pause = PAUSE_MIN;
        let mut conflict = None;
        for _ in 0..ATTEMPTS_MAX {
            let (have, origin, objects) = match self.snapshot().await? {
                Some(Snapshot { origin, revision, objects }) => (Some(revision), origin, objects),
                None => (None, random_digest()?, Objects::new()),
            };
            if !intent.meets(have.as_ref()) {
                return Err(StoreError::Conflict { have }.into());
            }
            let edits: Vec<Edit> = decide(&objects)
                .map_err(WriteError::Refused)?
                .into_iter()
                .map(|(key, after)| Edit { before: objects.get(&key).cloned(), key, after })
                .filter(|edit| edit.before != edit.after)
                .collect();
            if edits.is_empty() {
                return Ok(Outcome::Unchanged(have));
            }
            let previous = have.unwrap_or(Revision::origin(origin));
            let change = Change::new(previous, &intent.author, now_ms(), &intent.message, edits);
            let commit =
                Commit { expect: have, origin, change: change.clone(), reseed: None, fence: intent.fence.clone() };
            match self.commit_surely(commit).await {
                Ok(written) => return Ok(Outcome::Changed(written, Box::new(change))),
                Err(error @ StoreError::Conflict { .. }) if intent.expect.is_none() => conflict = Some(error),
                Err(error) => return Err(error.into()),
            }
            pause = sleep(pause).await;
        }
        Err(conflict.unwrap_or_else(|| StoreError::Unavailable("too many writers".into())).into())
    }

    /// Where a store stands that has lost something of `copy`; `None` where it holds nothing at all.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if it has lost nothing of `copy`; [`StoreError::Conflict`] if `intent` insists on another revision.
    pub async fn lost(&self, copy: &Snapshot, intent: &Intent) -> Result<Option<Revision>, StoreError> {
        let present = self.snapshot().await?;
        let have = present.as_ref().map(|present| present.revision);
        if !intent.meets(have.as_ref()) {
            return Err(StoreError::Conflict { have });
        }
        if let Some(present) = &present
            && present.origin == copy.origin
            && present.revision.number >= copy.revision.number
        {
            return Err(StoreError::Refused(format!(
                "it stands at {} and has lost nothing of {}; `weir config rollback` goes back to an earlier revision",
                present.revision, copy.revision
            )));
        }
        Ok(have)
    }

    /// Puts `copy`, a node's last good state, back into a store that lost it. Everything that the store holds now is
    /// replaced. Readers at `copy`'s revision go on without a gap.
    ///
    /// # Errors
    /// As [`Self::lost`]; [`StoreError::Conflict`] also if somebody writes at the same time.
    pub async fn restore(&self, copy: &Snapshot, intent: &Intent) -> Result<Written, StoreError> {
        let expect = self.lost(copy, intent).await?;
        let change = Change::new(copy.revision, &intent.author, now_ms(), &intent.message, Vec::new());
        let (reseed, fence) = (Some(copy.objects.clone()), intent.fence.clone());
        self.commit_surely(Commit { expect, origin: copy.origin, change, reseed, fence }).await
    }

    /// Commits, and where the answer is lost finds out: sent twice, a change is made once, because the second one does not
    /// meet the revision that it expects.
    async fn commit_surely(&self, commit: Commit) -> Result<Written, StoreError> {
        let revision = commit.change.revision;
        let mut pause = PAUSE_MIN;
        let mut uncertain: Option<StoreError> = None;
        for _ in 0..ATTEMPTS_MAX {
            match self.commit(commit.clone()).await {
                Err(StoreError::Conflict { have }) if uncertain.is_some() => {
                    if have == Some(revision) || self.holds(commit.change.previous, revision).await? {
                        // Whether a replica has it was in the answer that was lost.
                        return Ok(Written { revision, replicated: false });
                    }
                    return Err(StoreError::Conflict { have });
                }
                Err(error @ StoreError::Uncertain(_)) => uncertain = Some(error),
                // Once a request is out, one that could not be sent, or was refused, says nothing about it.
                Err(error) if uncertain.is_some() && error.is_passing() => {}
                Err(error) => return Err(uncertain.unwrap_or(error)),
                Ok(written) => return Ok(written),
            }
            pause = sleep(pause).await;
        }
        Err(uncertain.unwrap_or_else(|| StoreError::Unavailable("no answer".into())))
    }

    /// Whether the kept changes lead from `previous` to `revision`.
    async fn holds(&self, previous: Revision, revision: Revision) -> Result<bool, StoreError> {
        let since = self.since(previous).await.map_err(|error| StoreError::Uncertain(error.to_string()))?;
        Ok(since.changes.first().is_some_and(|change| change.revision == revision))
    }
}

async fn sleep(pause: Duration) -> Duration {
    // Between half and all of it, so that two writers do not meet again.
    let mut random = [0; 1];
    // Without randomness the pause is as long as it may be.
    let part = getrandom::fill(&mut random).map_or(255, |()| random.first().copied().unwrap_or(255));
    tokio::time::sleep(pause / 2 + pause.mul_f64(f64::from(part) / 510.0)).await;
    (pause * 2).min(PAUSE_MAX)
}

pub(super) fn random_digest() -> Result<Digest, StoreError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| StoreError::Refused(format!("no randomness for a new store: {e}")))?;
    Ok(Digest::new(bytes))
}
