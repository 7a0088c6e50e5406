//! The content of a store as data, and what each question and write comes to.
//!
//! [pure] `now_ms` comes in: milliseconds since 1970 by the clock of whoever owns the data. Writes are two steps, so that
//! an owner with a disk can write in between: a check that changes nothing and returns what is to be done, and the doing,
//! which cannot fail. Scripts of other places do the same in their language; the conformance suite holds them together.
//!
//! Invariants: the kept changes chain without a gap and end at the head; sums (bytes) agree with what they sum.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use super::{
    access::{
        Claim, Commit, Expect, Fence, Head, LIST_MAX, Put, RECORDS_BYTES_MAX, RECORDS_MAX, Record, SINCE_BYTES_MAX,
        SINCE_MAX, Since, Snapshot, StoreError,
    },
    object::{Change, FormError, HISTORY_BYTES_MAX, Key, Objects, Revision, check_totals, total_bytes},
};

/// A record as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    /// Its value.
    pub value: Arc<str>,
    /// Who holds it.
    pub claim: Option<Claim>,
    /// Its version.
    pub version: u64,
    /// When it was written.
    pub written_at_ms: u64,
    /// When it vanishes.
    pub expires_at_ms: Option<u64>,
}

impl Kept {
    fn lives(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_none_or(|at| now_ms < at)
    }

    fn record(&self, key: &Key, now_ms: u64) -> Record {
        Record {
            key: key.clone(),
            value: Arc::clone(&self.value),
            claim: self.claim.clone(),
            version: self.version,
            age_ms: now_ms.saturating_sub(self.written_at_ms),
            ttl_ms: self.expires_at_ms.map(|at| at.saturating_sub(now_ms)),
        }
    }
}

/// What a checked [`Put`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordStep {
    /// The record.
    pub key: Key,
    /// What it is from now on.
    pub kept: Option<Kept>,
    /// The store's count of record writes after it.
    pub version: u64,
    /// Records whose time is over, which go with it.
    pub expired: Vec<Key>,
}

/// A store's content.
#[derive(Clone, Debug)]
pub struct State {
    head: Option<Head>,
    objects: Objects,
    objects_bytes: usize,
    changes: VecDeque<Change>,
    changes_bytes: usize,
    history_max: usize,
    records: BTreeMap<Key, Kept>,
    records_bytes: usize,
    version: u64,
}

impl State {
    /// A store in which nothing was ever written, that will keep `history_max` changes (at least 1).
    pub fn new(history_max: usize) -> Self {
        Self {
            head: None,
            objects: Objects::new(),
            objects_bytes: 0,
            changes: VecDeque::new(),
            changes_bytes: 0,
            history_max: history_max.max(1),
            records: BTreeMap::new(),
            records_bytes: 0,
            version: 0,
        }
    }

    /// A store as it was kept. `changes` oldest first; those that do not chain up to the head are left out.
    pub fn restored(
        history_max: usize,
        snapshot: Option<Snapshot>,
        changes: Vec<Change>,
        records: BTreeMap<Key, Kept>,
        version: u64,
    ) -> Self {
        let mut state = Self::new(history_max);
        state.records_bytes = records.iter().map(|(key, kept)| record_bytes(key, &kept.value)).sum();
        state.version = records.values().map(|kept| kept.version).fold(version, u64::max);
        state.records = records;
        let Some(snapshot) = snapshot else { return state };
        let mut at = snapshot.revision;
        for change in changes.into_iter().rev() {
            if change.revision != at {
                break;
            }
            at = change.previous;
            state.changes_bytes += change.bytes();
            state.changes.push_front(change);
        }
        state.head = Some(snapshot.head());
        state.objects_bytes = total_bytes(&snapshot.objects);
        state.objects = snapshot.objects;
        state.trim();
        state
    }

    /// Where it stands.
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// See [`super::Store::snapshot`].
    pub fn snapshot(&self) -> Option<Snapshot> {
        let head = self.head?;
        Some(Snapshot { origin: head.origin, revision: head.revision, objects: self.objects.clone() })
    }

    /// See [`super::Store::since`].
    pub fn since(&self, from: Revision) -> Since {
        let mut bytes = 0;
        let later = self.changes.iter().filter(|change| change.revision.number > from.number).take(SINCE_MAX);
        let room = |change: &&Change| {
            let fits = bytes < SINCE_BYTES_MAX;
            bytes += change.bytes();
            fits
        };
        Since { head: self.head, changes: later.take_while(room).cloned().collect() }
    }

    /// See [`super::Store::history`].
    pub fn history(&self, limit: usize) -> Vec<Change> {
        self.changes.iter().rev().take(limit).cloned().collect()
    }

    /// The revisions that the kept changes lead to, oldest first.
    pub fn kept(&self) -> impl Iterator<Item = Revision> {
        self.changes.iter().map(|change| change.revision)
    }

    /// Whether the record that `fence` names is held as it claims.
    fn check_fence(&self, fence: Option<&Fence>, now_ms: u64) -> Result<(), StoreError> {
        let Some(fence) = fence else { return Ok(()) };
        let held = self.records.get(&fence.key).filter(|kept| kept.lives(now_ms));
        if held.and_then(|kept| kept.claim.as_ref()) == Some(&fence.claim) { Ok(()) } else { Err(StoreError::Fenced) }
    }

    /// Whether `commit` can be made. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Fenced`], [`StoreError::Conflict`], [`StoreError::Form`], [`StoreError::Refused`].
    pub fn check(&self, commit: &Commit, now_ms: u64) -> Result<(), StoreError> {
        self.check_fence(commit.fence.as_ref(), now_ms)?;
        let have = self.head.map(|head| head.revision);
        if commit.expect != have {
            return Err(StoreError::Conflict { have });
        }
        commit_check(commit)?;
        if let Some(objects) = &commit.reseed {
            return Ok(check_totals(objects.len(), total_bytes(objects))?);
        }
        if self.head.is_some_and(|head| head.origin != commit.origin) {
            return Err(StoreError::Refused("the change is for a store of another origin".into()));
        }
        let (mut objects, mut bytes) = (self.objects.len(), self.objects_bytes);
        for edit in &commit.change.edits {
            let size = |text: &Option<Arc<str>>| text.as_ref().map(|text| edit.key.as_str().len() + text.len());
            if self.objects.get(&edit.key) != edit.before.as_ref() {
                return Err(StoreError::Refused(format!("{} is not what the change says it was", edit.key)));
            }
            objects = (objects + usize::from(edit.after.is_some())).saturating_sub(usize::from(edit.before.is_some()));
            bytes = (bytes + size(&edit.after).unwrap_or(0)).saturating_sub(size(&edit.before).unwrap_or(0));
        }
        Ok(check_totals(objects, bytes)?)
    }

    /// Makes a commit that was checked.
    pub fn commit(&mut self, commit: Commit) {
        let Commit { origin, change, reseed, .. } = commit;
        match reseed {
            Some(objects) => {
                self.objects = objects;
                self.changes.clear();
                self.changes_bytes = 0;
            }
            None => change.apply(&mut self.objects),
        }
        self.objects_bytes = total_bytes(&self.objects);
        self.head = Some(Head { origin, revision: change.revision });
        self.changes_bytes += change.bytes();
        self.changes.push_back(change);
        self.trim();
    }

    fn trim(&mut self) {
        while self.changes.len() > 1
            && (self.changes.len() > self.history_max || self.changes_bytes > HISTORY_BYTES_MAX)
        {
            let Some(oldest) = self.changes.pop_front() else { return };
            self.changes_bytes = self.changes_bytes.saturating_sub(oldest.bytes());
        }
    }

    /// See [`super::Store::record_get`].
    pub fn record(&self, key: &Key, now_ms: u64) -> Option<Record> {
        self.records.get(key).filter(|kept| kept.lives(now_ms)).map(|kept| kept.record(key, now_ms))
    }

    /// See [`super::Store::record_list`].
    pub fn record_list(&self, prefix: &str, after: Option<&Key>, limit: usize, now_ms: u64) -> Vec<Record> {
        let after_prefix = |key: &&Key| key.as_str() >= prefix;
        let from = match after {
            Some(key) => (Bound::Excluded(key.clone()), Bound::Unbounded),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        self.records
            .range(from)
            .skip_while(|(key, _)| !after_prefix(key))
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .filter(|(_, kept)| kept.lives(now_ms))
            .take(limit.min(LIST_MAX))
            .map(|(key, kept)| kept.record(key, now_ms))
            .collect()
    }

    /// What `put` does. Changes nothing.
    ///
    /// # Errors
    /// [`StoreError::RecordConflict`], [`StoreError::Fenced`], [`StoreError::Form`], [`StoreError::Full`].
    pub fn check_record(&self, put: &Put, now_ms: u64) -> Result<RecordStep, StoreError> {
        put.check()?;
        self.check_fence(put.fence.as_ref(), now_ms)?;
        let have = self.records.get(&put.key).filter(|kept| kept.lives(now_ms)).map(|kept| kept.version);
        let fits = match put.expect {
            Expect::Any => true,
            Expect::Absent => have.is_none(),
            Expect::Version(version) => have == Some(version),
        };
        if !fits {
            return Err(StoreError::RecordConflict { have });
        }
        let version = self.version + 1;
        let expired = |(key, kept): &(&Key, &Kept)| !kept.lives(now_ms) && **key != put.key;
        let expired: Vec<(&Key, &Kept)> = self.records.iter().filter(expired).collect();
        let kept = put.value.clone().map(|value| Kept {
            value,
            claim: put.claim.clone(),
            version,
            written_at_ms: now_ms,
            expires_at_ms: put.ttl_ms.map(|ttl_ms| now_ms.saturating_add(ttl_ms)),
        });
        if let Some(kept) = &kept {
            let old = self.records.get(&put.key).map_or(0, |old| record_bytes(&put.key, &old.value));
            let gone: usize = expired.iter().map(|(key, kept)| record_bytes(key, &kept.value)).sum();
            let bytes = self.records_bytes.saturating_sub(old + gone) + record_bytes(&put.key, &kept.value);
            if bytes > RECORDS_BYTES_MAX {
                return Err(StoreError::Full(format!("{bytes} bytes of records, at most {RECORDS_BYTES_MAX}")));
            }
            if old == 0 && self.records.len() - expired.len() >= RECORDS_MAX {
                return Err(StoreError::Full(format!("{RECORDS_MAX} records")));
            }
        }
        let expired = expired.into_iter().map(|(key, _)| key.clone()).collect();
        Ok(RecordStep { key: put.key.clone(), kept, version, expired })
    }

    /// Does what [`Self::check_record`] found.
    pub fn put_record(&mut self, step: RecordStep) {
        let RecordStep { key, kept, version, expired } = step;
        self.version = version;
        for key in expired.iter().chain([&key]) {
            let removed = self.records.remove(key).map_or(0, |old| record_bytes(key, &old.value));
            self.records_bytes = self.records_bytes.saturating_sub(removed);
        }
        if let Some(kept) = kept {
            self.records_bytes += record_bytes(&key, &kept.value);
            self.records.insert(key, kept);
        }
    }
}

fn record_bytes(key: &Key, value: &Arc<str>) -> usize {
    key.as_str().len() + value.len()
}

/// What is wrong with a commit whatever the store holds.
///
/// # Errors
/// [`StoreError::Form`], [`StoreError::Refused`].
pub fn commit_check(commit: &Commit) -> Result<(), StoreError> {
    let change = &commit.change;
    change.check()?;
    let previous = if commit.reseed.is_some() {
        change.previous
    } else {
        commit.expect.unwrap_or(Revision::origin(commit.origin))
    };
    if !change.follows(&previous) {
        return Err(StoreError::Refused("the change does not follow the revision that it expects".into()));
    }
    if commit.reseed.is_none() && change.edits.is_empty() {
        return Err(StoreError::Refused("the change changes nothing".into()));
    }
    if let Some(objects) = &commit.reseed {
        for (key, text) in objects {
            let (found, max) = (text.len(), super::object::OBJECT_BYTES_MAX);
            if found > max {
                return Err(FormError::TooLarge { what: format!("{key} has"), found, max }.into());
            }
        }
    }
    Ok(())
}
