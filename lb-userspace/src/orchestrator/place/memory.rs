//! A store in memory, for tests: versions, compare-and-set, fences, as the fleet's store has them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;

use super::{Look, Place, PlaceError};
use crate::{
    model::{self, AdminState},
    orchestrator::{
        intent::Edit,
        record::{DECISIONS, Expect, Fence, Outcome, Put, Record, Version, Write},
        watch::Node,
    },
};

#[derive(Debug, Default)]
struct Inner {
    records: BTreeMap<String, (Version, Arc<str>)>,
    versions: u64,
    nodes: BTreeMap<String, Node>,
    revision: u64,
    services: Arc<Vec<model::Service>>,
    silent: bool,
}

/// The store.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Inner>);

impl Memory {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No step leaves it half changed, so a panic elsewhere in between spoils nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the configuration.
    pub fn set_services(&self, services: Vec<model::Service>) {
        let mut inner = self.inner();
        inner.revision += 1;
        inner.services = Arc::new(services);
    }

    /// The configuration.
    pub fn services(&self) -> Arc<Vec<model::Service>> {
        Arc::clone(&self.inner().services)
    }

    /// A node reports, or is forgotten.
    pub fn report(&self, name: &str, node: Option<Node>) {
        let mut inner = self.inner();
        match node {
            Some(node) => drop(inner.nodes.insert(name.to_owned(), node)),
            None => drop(inner.nodes.remove(name)),
        }
    }

    /// From now on it does not answer, or does again.
    pub fn set_silent(&self, silent: bool) {
        self.inner().silent = silent;
    }

    /// The record under `key`.
    pub fn get(&self, key: &str) -> Option<Record> {
        let inner = self.inner();
        let (_, text) = inner.records.get(key)?;
        Record::decode(key, text).ok().flatten()
    }
}

impl Inner {
    fn holds(&self, fence: &Fence) -> bool {
        let (key, holder, epoch) = fence.parts();
        let record = self.records.get(key).and_then(|(_, text)| Record::decode(key, text).ok().flatten());
        match record {
            Some(Record::Lease(lease)) => lease.holder == holder && lease.epoch == epoch && !lease.released,
            Some(Record::Assignment(assignment)) => assignment.holder == holder && assignment.epoch == epoch,
            _ => false,
        }
    }

    fn write(&mut self, write: &Write) -> Outcome {
        if write.fence().is_some_and(|fence| !self.holds(fence)) {
            return Outcome::Refused;
        }
        match write {
            Write::Put(put) => self.put(put),
            Write::Edit { revision, .. } if *revision != self.revision => Outcome::Refused,
            Write::Edit { edit, .. } => self.edit(edit),
        }
    }

    fn put(&mut self, Put { record, expect, .. }: &Put) -> Outcome {
        let key = record.key();
        let there = self.records.get(&key).map(|(version, _)| *version);
        let good = match expect {
            Expect::Any => true,
            Expect::Absent => there.is_none(),
            Expect::Version(version) => there == Some(*version),
        };
        let (true, Ok(text)) = (good, record.encode()) else { return Outcome::Refused };
        self.versions += 1;
        let version = Version(self.versions);
        self.records.insert(key, (version, text.into()));
        Outcome::Done { version, replicated: true }
    }

    fn edit(&mut self, edit: &Edit) -> Outcome {
        let mut services = (*self.services).clone();
        let Some(service) = services.iter_mut().find(|service| service.name == edit.service()) else {
            return Outcome::Refused;
        };
        let (Edit::Add { backend, .. } | Edit::Drain { backend, .. } | Edit::Remove { backend, .. }) = edit;
        let Ok(address) = backend.parse::<std::net::SocketAddr>() else { return Outcome::Refused };
        let is = |one: &model::Backend| (one.address, one.port) == (address.ip(), address.port());
        match edit {
            Edit::Add { .. } if service.backends.iter().any(is) => return Outcome::Refused,
            Edit::Add { .. } => service.backends.push(model::Backend {
                address: address.ip(),
                port: address.port(),
                weight: 1,
                max_connections: 0,
                admin_state: AdminState::Ready,
            }),
            Edit::Drain { .. } => {
                service.backends.iter_mut().filter(|one| is(one)).for_each(|one| one.admin_state = AdminState::Drain);
            }
            Edit::Remove { .. } => service.backends.retain(|one| !is(one)),
        }
        self.services = Arc::new(services);
        self.revision += 1;
        Outcome::Done { version: Version(self.revision), replicated: true }
    }
}

impl Place for Memory {
    fn look(&self, decisions: bool) -> BoxFuture<'_, Result<Look, PlaceError>> {
        Box::pin(async move {
            let inner = self.inner();
            if inner.silent {
                return Err(PlaceError("it is silent".to_owned()));
            }
            let wanted = |key: &&String| decisions || !key.starts_with(DECISIONS);
            let records = inner.records.iter().filter(|(key, _)| wanted(key));
            Ok(Look {
                records: records.map(|(key, (version, text))| (key.clone(), *version, Arc::clone(text))).collect(),
                nodes: inner.nodes.clone(),
                revision: inner.revision,
                services: Arc::clone(&inner.services),
            })
        })
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let mut inner = self.inner();
            if inner.silent { Outcome::Unknown } else { inner.write(&write) }
        })
    }
}
