//! A model of the store: versions, compare-and-set, fenced puts, and a fail-over that loses what no replica had.

use std::{collections::BTreeMap, sync::Arc};

use lb_userspace::orchestrator::record::{Expect, Fence, Outcome, Put, Record, Version, View, Write};

/// Records by key.
type Records = BTreeMap<String, (Version, Arc<Record>)>;

/// The store.
#[derive(Clone, Default)]
pub struct Store {
    /// By key.
    records: Records,
    versions: u64,
    /// Revision of the configuration.
    pub revision: u64,
    /// What the replicas have, while they lag.
    replica: Option<Box<Records>>,
    /// Whether fences are looked at.
    pub fences: bool,
}

impl Store {
    /// An empty store.
    pub fn new(fences: bool) -> Self {
        Self { revision: 1, fences, ..Self::default() }
    }

    /// Whether the record that a fence names is held as it says.
    pub fn holds(&self, fence: &Fence) -> bool {
        let (key, holder, epoch) = fence.parts();
        match self.records.get(key).map(|(_, record)| &**record) {
            Some(Record::Lease(lease)) => lease.holder == holder && lease.epoch == epoch && !lease.released,
            Some(Record::Assignment(assignment)) => assignment.holder == holder && assignment.epoch == epoch,
            _ => false,
        }
    }

    /// What becomes of a write that arrives now.
    pub fn write(&mut self, write: &Write) -> Outcome {
        if self.fences && write.fence().is_some_and(|fence| !self.holds(fence)) {
            return Outcome::Refused;
        }
        let Write::Put(Put { record, expect, .. }) = write else { return Outcome::Refused };
        let key = record.key();
        let there = self.records.get(&key).map(|(version, _)| *version);
        let good = match expect {
            Expect::Any => true,
            Expect::Absent => there.is_none(),
            Expect::Version(version) => there == Some(*version),
        };
        if !good {
            return Outcome::Refused;
        }
        self.versions += 1;
        let version = Version(self.versions);
        self.records.insert(key, (version, Arc::new(record.clone())));
        Outcome::Done { version, replicated: self.replica.is_none() }
    }

    /// Everything.
    pub fn view(&self, decisions: bool) -> View {
        let mut view = View { revision: self.revision, ..View::default() };
        for (version, record) in self.records.values() {
            if decisions || !matches!(**record, Record::Decision(..)) {
                view.add(*version, (**record).clone());
            }
        }
        view
    }

    /// The record under a key.
    pub fn get(&self, key: &str) -> Option<&Record> {
        self.records.get(key).map(|(_, record)| &**record)
    }

    /// All records.
    pub fn all(&self) -> impl Iterator<Item = &Record> {
        self.records.values().map(|(_, record)| &**record)
    }

    /// From now on no replica gets anything.
    pub fn lag(&mut self) {
        self.replica.get_or_insert_with(|| Box::new(self.records.clone()));
    }

    /// The replicas catch up.
    pub fn catch_up(&mut self) {
        self.replica = None;
    }

    /// A replica takes over with what it has.
    pub fn fail_over(&mut self) {
        if let Some(replica) = self.replica.take() {
            self.records = *replica;
        }
    }

    /// Whether the replicas lag.
    pub fn is_lagging(&self) -> bool {
        self.replica.is_some()
    }

    /// Everything is gone.
    pub fn wipe(&mut self) {
        self.records.clear();
        self.replica = None;
    }
}
