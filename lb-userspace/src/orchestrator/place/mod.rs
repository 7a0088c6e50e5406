//! Where the orchestrators' records and the configuration are: what the loop asks of a store, and what it makes of the answer.
//!
//! Owns: the trait, and turning records and services into a [`View`]. Refuses to know: which store it is.
//! [`fleet`] is the fleet's store, [`memory`] one for tests.

pub mod fleet;
pub mod memory;

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;

use super::{
    intent::Phase,
    record::{Backend, Outcome, Record, Service, Version, View, Write},
    scale::Subject,
    watch::Node,
};
use crate::{
    health::{Target, shared},
    model::{self, AdminState, HealthCheck},
};

/// The store cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlaceError(pub String);

/// What one look found.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Records by key.
    pub records: Vec<(String, Version, Arc<str>)>,
    /// Nodes as they reported.
    pub nodes: BTreeMap<String, Node>,
    /// Revision of the configuration.
    pub revision: u64,
    /// Services of the configuration.
    pub services: Arc<Vec<model::Service>>,
}

/// A store, as the orchestrator needs one. Each call ends within a bounded time.
pub trait Place: Send + Sync + fmt::Debug {
    /// Everything, at one moment or nearly so; the ring of decisions only if asked for.
    fn look(&self, decisions: bool) -> BoxFuture<'_, Result<Look, PlaceError>>;

    /// Writes, if what the write expects and its fence hold.
    fn write(&self, write: Write) -> BoxFuture<'_, Outcome>;
}

/// What is to be asked for a backend's health, with the name that it has among all orchestrators.
pub fn target(check: &HealthCheck, backend: SocketAddr) -> (String, Target) {
    let address = SocketAddr::new(backend.ip(), check.port.unwrap_or(backend.port()));
    let target = Target { address, check: check.clone() };
    (shared::name(&target), target)
}

/// What a look means, and the targets by their names.
pub fn view(look: &Look) -> (View, BTreeMap<String, Target>) {
    let mut view = View { revision: look.revision, nodes: look.nodes.clone(), ..View::default() };
    for (key, version, text) in &look.records {
        match Record::decode(key, text) {
            Ok(Some(record)) => view.add(*version, record),
            Ok(None) => {}
            Err(error) => view.unreadable.push(error),
        }
    }
    let mut targets = BTreeMap::new();
    for service in look.services.iter() {
        let mut named = |backend: SocketAddr| {
            let (name, target) = target(service.health_check.as_ref()?, backend);
            targets.insert(name.clone(), target);
            Some(name)
        };
        let mut seen = Service::default();
        for backend in &service.backends {
            let address = SocketAddr::new(backend.address, backend.port);
            let drained = backend.admin_state != AdminState::Ready || backend.weight == 0;
            // What is in maintenance is not checked.
            let target = if backend.admin_state == AdminState::Maint { None } else { named(address) };
            seen.backends.insert(address.to_string(), Backend { drained, target });
        }
        let subject = Subject::Backends(service.name.clone());
        let created = view
            .intents
            .values()
            .map(|at| &at.value)
            .filter(|intent| intent.subject == subject && matches!(intent.phase, Phase::Await | Phase::Add));
        for address in created.filter_map(|intent| intent.address.as_ref()) {
            if let Ok(backend) = address.parse::<SocketAddr>()
                && !seen.backends.contains_key(address)
            {
                seen.awaited.insert(address.clone(), named(backend));
            }
        }
        view.services.insert(service.name.clone(), seen);
    }
    view.targets = targets.keys().cloned().collect();
    (view, targets)
}
