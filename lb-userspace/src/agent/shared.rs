//! The event loop's side of a store that many nodes share.
//!
//! Owns: what became of a revision on this node, and what is told about it. Refuses to know: how the store is read
//! ([`super::follow`]) and how a configuration is put in force ([`super::event_loop`]).
//!
//! Invariants: a revision that is refused leaves the one in force; it is tried again only with the next one, or when the node's own file
//! changes; what is kept as the last good copy was applied here.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::http::StatusCode;

use super::{
    api::{Call, Refusal},
    event_loop::{EventLoop, Parts, ReloadError},
    follow::{self, Following, News, health::Observations, report::Standing},
    state::Judged,
    systemd,
};
use crate::{
    api,
    model::{
        Document,
        diagnostic::{Severity, Sources},
        parse::document::services,
    },
    store::{
        Revision,
        document::{after, document, replace, split},
        follow::Resync,
        node::{DRAINS_MAX, NodeDrain},
    },
    telemetry::metrics::Stage,
};

/// What the store tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Another state of the objects.
    News,
    /// Other judgements of health.
    Judgements,
}

/// A store that is followed.
#[derive(Debug)]
pub struct Shared {
    /// The tasks' ends.
    pub following: Following,
    /// The newest state that was considered.
    pub news: Arc<News>,
    /// What is told to the store.
    pub standing: Standing,
}

impl Shared {
    /// A store whose first state is `news`; nothing of it was applied yet.
    pub fn new(following: Following, news: Arc<News>) -> Self {
        Self { following, news, standing: Standing::default() }
    }

    /// Waits for what the store tells next.
    pub async fn told(&mut self) -> Told {
        let (changed, told) = tokio::select! {
            changed = self.following.news.changed() => (changed, Told::News),
            changed = self.following.judged.changed() => (changed, Told::Judgements),
        };
        if changed.is_err() {
            // The task has ended, which it does only with this end: what is in force stays.
            std::future::pending::<()>().await;
        }
        told
    }

    /// The configuration of a node whose own file says `text`, with the addresses that it leases.
    pub fn document(&self, file_name: &str, text: &str) -> (Document, BTreeMap<String, IpAddr>) {
        (document(file_name, text, &self.news.snapshot.objects), self.news.leases.clone())
    }

    /// The configuration of the node if the store held the services and pools of `text` and no others; of what it holds without one.
    ///
    /// # Errors
    /// A refusal with every error of `text` at its line.
    pub fn planned(
        &self,
        (own_file, own_text): (&str, &str),
        file: &str,
        text: Option<&str>,
    ) -> Result<(Document, BTreeMap<String, IpAddr>), Refusal> {
        let Some(text) = text else { return Ok(self.document(own_file, own_text)) };
        let refusal = |message: String| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, message);
        let checked = services(file, text);
        if checked.count(Severity::Error) > 0 {
            let diagnostics = api::diagnostics_in(&checked, &Sources::one(file, text));
            return Err(refusal(format!("{file}: {}", checked.summary())).diagnostics(diagnostics));
        }
        let wanted = split(file, text).map_err(|error| refusal(error.to_string()))?;
        let held = &self.news.snapshot.objects;
        let objects = after(held, &replace(held, &wanted, true));
        Ok((document(own_file, own_text, &objects), self.news.leases.clone()))
    }

    /// How it stands, in the words of the API.
    pub fn status(&self) -> api::StoreStatus {
        let view = self.following.view.borrow();
        let number = |revision: Option<Revision>| revision.map_or(0, |revision| revision.number);
        let unix_s = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let counted =
            |cause: &Resync| api::Resyncs { cause: cause.word().to_owned(), count: view.counters.resyncs(*cause) };
        let lease = |pool: &String, address| api::PoolLease { pool: pool.clone(), address };
        api::StoreStatus {
            store: view.store.clone(),
            up: view.up,
            why: view.why.clone(),
            since_unix_s: view.since.map(unix_s),
            newest: view.newest.map(|revision| revision.to_string()),
            applied: self.standing.applied.map(|revision| revision.to_string()),
            lag: number(view.newest).saturating_sub(number(self.standing.applied)),
            history_lost: view.refused.map(|loss| loss.words().to_owned()),
            losses: view.counters.losses,
            health_from_store: 0,
            health_own: 0,
            resyncs: Resync::ALL.iter().map(counted).collect(),
            pools: (view.leases.iter().map(|(pool, address)| lease(pool, Some(*address))))
                .chain(view.without.iter().map(|pool| lease(pool, None)))
                .collect(),
        }
    }
}

impl EventLoop {
    /// Takes the newest state of the store.
    pub(super) async fn follow(&mut self) {
        let Some(shared) = &mut self.parts.shared else { return };
        let Some(news) = shared.following.news.borrow_and_update().clone() else { return };
        shared.news = Arc::clone(&news);
        if let Some(written_ms) = news.written_unix_ms {
            // Clocks of two machines: where the writer's is ahead, nothing is told rather than nonsense.
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            if let Some(took) = (now - news.received.elapsed().min(now)).checked_sub(Duration::from_millis(written_ms))
            {
                self.parts.metrics.propagated(Stage::WrittenToReceived, took);
            }
        }
        let (text, file) = (self.parts.text.clone(), self.parts.process.config_file.clone());
        let applied = self.apply(text, &file, false).await;
        self.stand(&applied);
        match applied {
            Ok(_) => {
                self.parts.metrics.propagated(Stage::ReceivedToApplied, news.received.elapsed());
                tracing::info!(store = %news.snapshot.revision, "the store's revision is in force");
            }
            Err(error) => {
                tracing::error!(store = %news.snapshot.revision, "the store's revision is refused");
                self.refused(&error);
            }
        }
        systemd::status(&self.status_line());
    }

    /// Puts what the store says of health into the state; says what that changed.
    pub(super) fn judge(&mut self) -> Judged {
        let Parts { node, metrics, shared, .. } = &mut self.parts;
        let Some(shared) = shared else { return Judged::default() };
        let judgements = Arc::clone(&shared.following.judged.borrow_and_update());
        let before = node.state.sources();
        let judged = node.state.judge(&judgements);
        let (spoken, own) = node.state.sources();
        if judged.sources && (before.0 == 0) != (spoken == 0) {
            match spoken {
                0 => tracing::warn!(targets = own, "the store is silent about health: this node checks for itself"),
                _ => tracing::info!(targets = spoken, own, "health is taken from the store"),
            }
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for (target, health) in &judged.states {
            // As for revisions: where the worker's clock is ahead, nothing is told.
            if let Some(took) = now.checked_sub(Duration::from_millis(health.since.0)) {
                metrics.propagated(Stage::HealthJudgedToReceived, took);
            }
            for (service, backend) in node.state.users(target) {
                let name = api::backend_name(backend.address, backend.port);
                metrics.transition(&service.name, &name, health.up);
                let (service, reason) = (&service.name, &health.reason);
                if health.up {
                    tracing::info!(%service, backend = %name, reason, "backend is up, says the store");
                } else {
                    tracing::warn!(%service, backend = %name, reason, "backend is down, says the store");
                }
            }
        }
        judged
    }

    /// Takes what the store says of health now.
    pub(super) fn take_judgements(&mut self) {
        let now = Instant::now();
        let judged = self.judge();
        if !judged.states.is_empty() {
            self.judged_at.get_or_insert(now);
            self.pace.request(now);
            self.tell_health();
        }
        if judged.sources {
            self.parts.checker.set_targets(self.parts.node.state.own_targets());
        }
    }

    /// Tells the store what became of the newest state.
    pub(super) fn stand(&mut self, applied: &Result<api::Applied, ReloadError>) {
        let Some(shared) = &mut self.parts.shared else { return };
        let revision = shared.news.snapshot.revision;
        shared.standing.read = Some((revision, applied.as_ref().err().map(ReloadError::message)));
        if applied.is_ok() {
            shared.standing.applied = Some(revision);
            shared.following.good.send_replace(Some(Arc::clone(&shared.news.snapshot)));
        }
        self.tell_standing();
    }

    /// Tells the store about the first state, which was applied before the loop ran.
    pub fn stand_first(&mut self) {
        let Some(shared) = &mut self.parts.shared else { return };
        let revision = shared.news.snapshot.revision;
        // A store in which nothing was written has no revision to speak of.
        if revision.number > 0 {
            (shared.standing.read, shared.standing.applied) = (Some((revision, None)), Some(revision));
            shared.following.good.send_replace(Some(Arc::clone(&shared.news.snapshot)));
        }
        self.tell_standing();
        // What was inherited is known here, too.
        self.tell_health();
    }

    /// Drains that are not over, for the store.
    fn drains(&mut self) -> Vec<NodeDrain> {
        // Nothing is looked at where nothing drains.
        if self.parts.node.drains().is_empty() {
            return Vec::new();
        }
        let backends = self.parts.node.backends().unwrap_or_default();
        let one = |backend: api::Backend| {
            let drain = backend.drain.filter(|drain| drain.phase != api::DrainPhase::Ended)?;
            let name = format!("{}/{}", backend.service, backend.name);
            let timed_out = drain.phase == api::DrainPhase::TimedOut;
            Some(NodeDrain { backend: name, connections: drain.connections, timed_out })
        };
        backends.into_iter().filter_map(one).take(DRAINS_MAX).collect()
    }

    /// Tells the store how drains stand, if there are any or were.
    pub(super) fn tell_drains(&mut self) {
        let told = self.parts.shared.as_ref().is_some_and(|shared| !shared.standing.drains.is_empty());
        if told || (self.parts.shared.is_some() && !self.parts.node.drains().is_empty()) {
            self.tell_standing();
        }
    }

    fn tell_standing(&mut self) {
        let addresses = self.parts.node.state.vips().into_iter().collect();
        let drains = self.drains();
        let Some(shared) = &mut self.parts.shared else { return };
        shared.standing.addresses = addresses;
        shared.standing.drains = drains;
        shared.standing.ready = true;
        shared.following.standing.send_if_modified(|told| {
            let differs = *told != shared.standing;
            told.clone_from(&shared.standing);
            differs
        });
    }

    /// Shares what health observes.
    pub(super) fn tell_health(&self) {
        let Some(shared) = &self.parts.shared else { return };
        let mut all = BTreeMap::new();
        for (target, up) in self.parts.node.state.targets() {
            if let Some(up) = up {
                all.insert(follow::health::name(target.address, &target.check), up);
            }
        }
        shared.following.health.send_replace(Observations(all));
    }

    /// Looks how it stands with the store, for an answer.
    pub(super) fn see_store(&mut self) {
        let (health_from_store, health_own) = self.parts.node.state.sources();
        let status = |shared: &Shared| api::StoreStatus { health_from_store, health_own, ..shared.status() };
        self.parts.node.store = self.parts.shared.as_ref().map(status);
    }

    /// The call, unless it would change on this node what the store says; that is refused, and where to go is told.
    pub(super) fn elsewhere(&self, call: Call) -> Option<Call> {
        let Some(shared) = &self.parts.shared else { return Some(call) };
        const WRITE: &str =
            "the same command with `--config FILE` (the node's weir.toml) writes to the store, for all nodes at once";
        const DRY: &str = "`weir config apply SERVICES --config FILE --dry-run` shows what would change for all nodes";
        let refusal = |what: &str, hint: &str| {
            let store = shared.following.view.borrow().store.clone();
            Refusal::new(
                StatusCode::CONFLICT,
                format!("{what} of this node stand in the store {store}, not on the node"),
            )
            .hint(hint)
        };
        match call {
            Call::Admin(_, _, _, to) => _ = to.send(Err(refusal("backends", WRITE))),
            Call::Set(_, _, to) => _ = to.send(Err(refusal("services", WRITE))),
            Call::Apply(request, to) if request.text.is_some() => _ = to.send(Err(refusal("services", WRITE))),
            Call::Diff(request, to) if request.text.is_some() => _ = to.send(Err(refusal("services", DRY))),
            call => return Some(call),
        }
        None
    }
}
