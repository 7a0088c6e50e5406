//! The event loop: one task that owns all state and takes one cause at a time.
//!
//! Owns: the order of causes, pacing, reloads, answers to calls. Refuses to know: how a change reaches the maps ([`Node`]).
//!
//! Invariants: nothing here waits for anything but the next cause, the grace of an earlier change, or the disk; every queue that it reads is
//! bounded; a failure of one cause never ends the loop.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};

use super::{
    api::{Call, Refusal},
    network::{Network, Views},
    node::{Node, PublishError, Published},
    overrides,
    pace::Pace,
    reload::{self, Candidate},
    shared::{Shared, Told},
    systemd,
    view::Process,
};
use crate::{
    api, dataplane,
    health::{self, Checker},
    model::{self, Announce, Config, Incremental},
    net::{forwarding::Unmet, sysctl},
    plan,
    store::{FileError, FileStore, Text, Watch},
    telemetry::metrics::{Metrics, ReloadOutcome, Snapshot, Stage},
};
use axum::http::StatusCode;

/// Pause between the news of a change and reading the file, so that one save, which may be a rename and a close, is one
/// reload. News are of complete files only, so nothing is gained by waiting longer.
const FILE_PAUSE: Duration = Duration::from_millis(5);
/// Events of the checker that are taken at once.
const EVENTS_AT_ONCE: usize = 512;
/// Time between looks at the flow table, which also sweep it: what is active is right within this and the time-outs of records.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before a change that the maps refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the loop is made of.
pub struct Parts {
    /// The node.
    pub node: Node,
    /// About the process.
    pub process: Process,
    /// The configuration file.
    pub store: FileStore,
    /// The text that is in force.
    pub text: Text,
    /// Remembers it in parts, so that the next one costs what differs.
    pub incremental: Incremental,
    /// News of the file; without it, signals and the API still reload.
    pub watch: Option<Watch>,
    /// The store that the services come from, where they do not stand in the file.
    pub shared: Option<Shared>,
    /// Where overrides are kept.
    pub overrides_file: PathBuf,
    /// Name of the machine, for nodes that do not name themselves.
    pub host_name: String,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Requests to the network.
    pub network: Box<dyn Network>,
    /// What the network tells.
    pub views: Views,
    /// Health checks.
    pub checker: Checker,
    /// Their results.
    pub events: mpsc::Receiver<health::Event>,
    /// Calls from the API.
    pub calls: mpsc::Receiver<Call>,
}

/// The loop.
pub struct EventLoop {
    pub(super) parts: Parts,
    pub(super) pace: Pace,
    read_at: Option<Instant>,
    look_at: Instant,
    look: Option<JoinHandle<Result<plan::Look, dataplane::Error>>>,
    pub(super) snapshot: Option<(Instant, Arc<Snapshot>)>,
    /// When the first judgement of the store came that the maps do not hold yet.
    pub(super) judged_at: Option<Instant>,
    /// Services that failed open when that was last looked at.
    open: Vec<String>,
    /// Addresses whose next hops the network was last asked for.
    destinations: BTreeSet<IpAddr>,
}

/// Who asked for a reload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Saved,
    Signal,
}

/// Why a reload or an apply did not happen.
pub(super) enum ReloadError {
    Store(FileError),
    Refused(reload::Refused),
    Publish(PublishError),
}

impl From<PublishError> for ReloadError {
    fn from(error: PublishError) -> Self {
        Self::Publish(error)
    }
}

impl From<FileError> for ReloadError {
    fn from(error: FileError) -> Self {
        Self::Store(error)
    }
}

impl ReloadError {
    pub(super) fn message(&self) -> String {
        match self {
            Self::Store(error) => error.to_string(),
            Self::Refused(refused) => refused.message().to_owned(),
            Self::Publish(error) => error.to_string(),
        }
    }

    fn diagnostics(&self) -> Vec<api::Diagnostic> {
        match self {
            Self::Refused(refused) => refused.diagnostics().to_vec(),
            _ => Vec::new(),
        }
    }
}

impl From<ReloadError> for Refusal {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::Refused(refused) => refused.into(),
            ReloadError::Store(_) | ReloadError::Publish(PublishError::Plan(_)) => {
                Self::new(StatusCode::CONFLICT, error.message()).hint("nothing was changed")
            }
            ReloadError::Publish(PublishError::Data(_)) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.message())
            }
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// The end of a look; the handle is gone then.
async fn finished(
    look: &mut Option<JoinHandle<Result<plan::Look, dataplane::Error>>>,
) -> Result<plan::Look, dataplane::Error> {
    let Some(handle) = look else { return std::future::pending().await };
    let ended = handle.await;
    *look = None;
    ended.unwrap_or_else(|error| {
        Err(dataplane::Error::Kernel { action: "look at the flow table".into(), source: Box::new(error) })
    })
}

async fn next(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending::<()>().await;
    }
}

async fn told(shared: &mut Option<Shared>) -> Told {
    match shared {
        Some(shared) => shared.told().await,
        None => std::future::pending().await,
    }
}

async fn news(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

impl EventLoop {
    /// A loop around its parts; [`EventLoop::spread`] was not called yet.
    pub fn new(parts: Parts) -> Self {
        let look_at = Instant::now();
        Self {
            parts,
            pace: Pace::default(),
            read_at: None,
            look_at,
            look: None,
            snapshot: None,
            judged_at: None,
            open: Vec::new(),
            destinations: BTreeSet::new(),
        }
    }

    /// Tells everybody outside what the state asks of them.
    pub fn spread(&mut self) {
        // What is new may be spoken for in the store already.
        self.judge();
        let parts = &mut self.parts;
        let state = &parts.node.state;
        parts.checker.set_targets(state.own_targets());
        self.destinations = state.destinations();
        parts.network.set_destinations(self.destinations.clone());
        if state.config().node.announce == Announce::Address {
            parts.network.set_vips(state.vips());
        }
    }

    /// Asks for the next hops of backends that leave, and no longer for those of backends that are gone.
    fn tell_destinations(&mut self) {
        let destinations = self.parts.node.state.destinations();
        if destinations != self.destinations {
            self.destinations = destinations.clone();
            self.parts.network.set_destinations(destinations);
        }
    }

    /// Waits until every address has a next hop, at most `limit`. Used before the first publication of a fresh data plane.
    pub async fn first_resolution(&mut self, limit: Duration) {
        let deadline = tokio::time::Instant::now() + limit;
        while !self.parts.node.state.all_answered() {
            match tokio::time::timeout_at(deadline, self.parts.views.table.changed()).await {
                Ok(Ok(())) => _ = self.take_table(),
                _ => return,
            }
        }
    }

    /// Publishes what was in force elsewhere when the windows began that are open now, so that the first publication finds the owners
    /// of their slots. A failure costs these owners and nothing else.
    pub async fn join(&mut self, before: Config) {
        let present = self.parts.node.state.clone();
        let mut then = present.clone();
        then.set_config(before);
        match self.parts.node.publish(then, false).await {
            Ok(published) => {
                tracing::info!("joining inside windows: the state before them is known, {}", published.words())
            }
            Err(error) => tracing::warn!(%error, "cannot take over the owners of slots that are in a window elsewhere"),
        }
        self.parts.node.state = present;
    }

    /// The first publication.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn first_publication(&mut self) -> Result<Published, PublishError> {
        let state = self.parts.node.state.clone();
        // A configuration that changed while no agent ran is a change like any other.
        let raise = self.parts.node.differs(&state);
        let published = self.parts.node.publish(state, raise).await?;
        self.parts.metrics.applied(published.took);
        self.tell_destinations();
        self.tell_fail_open();
        self.tell_settings();
        let message = format!("revision {}: {}", published.revision, published.words());
        self.record(api::ReloadOutcome::Applied, message, Vec::new());
        self.pace.ran(Instant::now());
        self.stand_first();
        Ok(published)
    }

    /// Runs until a signal says to stop; returns its name.
    ///
    /// # Errors
    /// Signals cannot be waited for.
    pub async fn run(mut self) -> std::io::Result<&'static str> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let watchdog = systemd::watchdog_interval();
        let mut alive_at = watchdog.map(|_| Instant::now());
        loop {
            let grace = self.parts.node.grace_until();
            // A plan that is asked for already will see what is due.
            let due =
                self.pace.due().is_none().then(|| self.parts.node.due_in()).flatten().map(|due| Instant::now() + due);
            let look_at = self.look.is_none().then_some(self.look_at);
            tokio::select! {
                biased;
                () = next(&mut terminate) => return Ok("SIGTERM"),
                () = next(&mut interrupt) => return Ok("SIGINT"),
                () = at(alive_at) => {
                    systemd::alive();
                    alive_at = watchdog.map(|interval| Instant::now() + interval);
                }
                () = next(&mut hangup) => {
                    systemd::reloading();
                    self.reload(Cause::Signal).await;
                    systemd::ready(&self.status_line());
                }
                () = at(self.pace.due()) => self.publish_observed().await,
                Some(event) = self.parts.events.recv() => self.take_events(event),
                changed = self.parts.views.table.changed() => match changed {
                    Ok(()) => if self.take_table() { self.pace.request(Instant::now()) },
                    // The resolver ended: what is known stays in force.
                    Err(_) => tokio::time::sleep(RETRY).await,
                },
                () = at(self.read_at) => {
                    self.read_at = None;
                    self.reload(Cause::Saved).await;
                }
                () = news(&mut self.parts.watch) => {
                    self.read_at.get_or_insert(Instant::now() + FILE_PAUSE);
                }
                told = told(&mut self.parts.shared) => match told {
                    Told::News => self.follow().await,
                    Told::Judgements => self.take_judgements(),
                },
                Some(call) = self.parts.calls.recv() => self.answer(call).await,
                () = at(due) => self.pace.request(Instant::now()),
                () = at(look_at) => self.look = Some(tokio::task::spawn_blocking(self.parts.node.look())),
                looked = finished(&mut self.look) => {
                    self.take_look(looked);
                    self.tell_drains();
                }
                () = at(grace) => {
                    if let Err(error) = self.parts.node.settle() {
                        tracing::error!(%error, "cannot give back what earlier changes took out of use");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }

    /// A look that failed is told and tried again: until then slots stay in their windows and ids out of use.
    fn take_look(&mut self, looked: Result<plan::Look, dataplane::Error>) {
        self.look_at = Instant::now() + LOOK_INTERVAL;
        match looked {
            Ok(look) => {
                if self.parts.node.looked(look) {
                    self.pace.request(Instant::now());
                }
            }
            Err(error) => tracing::error!(%error, "cannot look at the flow table"),
        }
    }

    pub(super) fn status_line(&self) -> String {
        let status = self.parts.node.status(&self.parts.process, &[]);
        let c = status.counts;
        format!(
            "revision {}, {} services, {} of {} backends up; last reload {:?}",
            status.revision, c.services, c.backends_up, c.backends, status.last_reload.outcome
        )
    }

    fn take_table(&mut self) -> bool {
        let table = Arc::clone(&self.parts.views.table.borrow_and_update());
        let before = self.parts.node.state.unresolved();
        let changed = self.parts.node.state.resolved(table);
        let now = self.parts.node.state.unresolved();
        if changed && now != before {
            tracing::info!(unresolved = now, "next hops changed");
        }
        changed
    }

    fn take_events(&mut self, first: health::Event) {
        let mut changed = self.take_event(&first);
        for _ in 1..EVENTS_AT_ONCE {
            let Ok(event) = self.parts.events.try_recv() else { break };
            changed |= self.take_event(&event);
        }
        if changed {
            self.pace.request(Instant::now());
            self.tell_health();
        }
    }

    fn take_event(&mut self, event: &health::Event) -> bool {
        let Parts { node, metrics, .. } = &mut self.parts;
        // A probe that was under way when the store began to speak for the target.
        if node.state.is_spoken_for(&event.target) {
            return false;
        }
        let kind = match event.target.check.probe {
            model::Probe::Http { .. } => "http",
            model::Probe::Tcp => "tcp",
        };
        metrics.probed(kind, event.latency);
        for (service, backend) in node.state.users(&event.target) {
            let name = api::backend_name(backend.address, backend.port);
            metrics.checked(&service.name, &name, event.outcome.word());
            if let Some(transition) = event.transition {
                let up = transition.to == health::State::Up;
                metrics.transition(&service.name, &name, up);
                let (service, reason) = (&service.name, event.outcome.word());
                if up {
                    tracing::info!(%service, backend = %name, reason, "backend is up: {}", event.outcome);
                } else {
                    tracing::warn!(%service, backend = %name, reason, "backend is down: {}", event.outcome);
                }
            }
        }
        node.state.observe(event)
    }

    /// Publishes what was observed: health and next hops. The revision stays, it belongs to the configuration.
    pub(super) async fn publish_observed(&mut self) {
        let state = self.parts.node.state.clone();
        match self.parts.node.publish(state, false).await {
            Ok(published) => {
                self.parts.metrics.applied(published.took);
                if let Some(received) = self.judged_at.take() {
                    self.parts.metrics.propagated(Stage::HealthReceivedToApplied, received.elapsed());
                }
                self.pace.ran(Instant::now());
                // The revision is stored anew in any case.
                if published.ops > 1 {
                    tracing::info!("maps follow what was observed and what is due: {}", published.words());
                }
                self.tell_destinations();
                self.tell_fail_open();
            }
            Err(error) => {
                tracing::error!(%error, "the maps cannot follow health and next hops; trying again");
                self.pace.ran(Instant::now());
                self.pace.request(Instant::now() + RETRY);
            }
        }
    }

    /// Says which services began or ended to fail open.
    fn tell_fail_open(&mut self) {
        let now = self.fail_open();
        for service in now.iter().filter(|s| !self.open.contains(s)) {
            tracing::warn!(%service, "no backend is up: the service fails open, all ready backends take traffic");
        }
        for service in self.open.iter().filter(|s| !now.contains(s)) {
            tracing::info!(%service, "the service does not fail open any more");
        }
        self.open = now;
    }

    /// Warns of kernel settings without which replies of `nat` services are lost.
    fn tell_settings(&self) {
        let unmet = Unmet::of(self.parts.node.state.config(), sysctl::read);
        if !unmet.is_empty() {
            tracing::warn!("{unmet}");
        }
    }

    fn fail_open(&self) -> Vec<String> {
        let state = &self.parts.node.state;
        state.effective().services.iter().filter(|s| state.fail_open(s)).map(|s| s.name.clone()).collect()
    }

    fn record(&mut self, outcome: api::ReloadOutcome, message: String, diagnostics: Vec<api::Diagnostic>) {
        let now = SystemTime::now();
        let metric = match outcome {
            api::ReloadOutcome::Applied => ReloadOutcome::Applied,
            api::ReloadOutcome::Unchanged => ReloadOutcome::Unchanged,
            api::ReloadOutcome::Refused => ReloadOutcome::Refused,
        };
        let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.parts.metrics.reloaded(metric, unix);
        self.parts.node.record_reload(outcome, message, diagnostics, now);
    }

    /// Reads the file anew because of a save or a signal.
    async fn reload(&mut self, cause: Cause) {
        let text = match self.parts.store.read() {
            Ok(text) => text,
            Err(error) => return self.refused(&error.into()),
        };
        let refused = self.parts.node.reload.outcome == api::ReloadOutcome::Refused;
        if cause == Cause::Saved && text == self.parts.text && !refused {
            return;
        }
        let file = self.parts.process.config_file.clone();
        let applied = self.apply(text, &file, false).await;
        self.stand(&applied);
        match applied {
            Ok(applied) if applied.outcome == api::ApplyOutcome::Unchanged => {
                tracing::info!("the configuration was read again: nothing changed");
            }
            Ok(_) => {}
            Err(error) => self.refused(&error),
        }
        systemd::status(&self.status_line());
    }

    /// Says loudly that a configuration was refused.
    pub(super) fn refused(&mut self, error: &ReloadError) {
        let message = error.message();
        let revision = self.parts.node.revision();
        tracing::error!("configuration refused, revision {revision} stays in force: {message}");
        match error {
            ReloadError::Refused(reload::Refused::Invalid { rendered, .. }) => {
                rendered.lines().for_each(|line| tracing::error!("{line}"));
            }
            ReloadError::Refused(reload::Refused::Fixed { remedy, .. }) => tracing::error!("{remedy}"),
            _ => {}
        }
        self.record(api::ReloadOutcome::Refused, message, error.diagnostics());
    }

    /// Puts `text` in force; with `replace` it becomes the file's text before the maps change.
    pub(super) async fn apply(
        &mut self,
        text: Text,
        file_name: &str,
        replace: bool,
    ) -> Result<api::Applied, ReloadError> {
        let started = Instant::now();
        let parts = &mut self.parts;
        let in_force = parts.node.state.config();
        let shared = parts.shared.as_ref().map(|shared| shared.document(file_name, &text.text));
        let input = match &shared {
            Some((document, leases)) => reload::Input::Shared { document, leases },
            None => reload::Input::Text { file_name, text: &text.text },
        };
        let candidate = reload::consider(in_force, &mut parts.incremental, input, &parts.host_name)
            .map_err(ReloadError::Refused)?;
        let Candidate { config, diff, warnings } = candidate;
        let changes = diff.sentences();
        let mut state = parts.node.state.clone();
        let dropped = state.set_config(config);
        let gone = reload::gone(parts.node.state.config(), state.config());
        let outcome = if diff.is_empty() {
            // Comments or the order changed: nothing for the maps, but the file is written where that was asked for.
            if replace {
                parts.store.replace(&text.text)?;
            }
            parts.node.state = state;
            self.record(api::ReloadOutcome::Unchanged, "nothing changed".into(), warnings.clone());
            api::ApplyOutcome::Unchanged
        } else {
            let (store, new_text) = (parts.store.clone(), text.text.clone());
            let commit = move || if replace { Ok(store.replace(&new_text)?) } else { Ok::<(), ReloadError>(()) };
            let published = parts.node.publish_with(state, true, commit).await?;
            parts.metrics.applied(published.took);
            for name in &gone {
                let backend = api::backend_name(name.address, name.port);
                parts.metrics.forget(&name.service, &backend, &health::Outcome::WORDS);
            }
            for d in &dropped {
                tracing::info!(of = %d, "override dropped: {}", d.why);
            }
            if !dropped.is_empty() {
                self.keep_overrides();
            }
            let words = published.words();
            tracing::info!("revision {} applied: {words}", published.revision);
            changes.iter().for_each(|change| tracing::info!("{change}"));
            let message = format!("revision {} applied: {words}", published.revision);
            self.record(api::ReloadOutcome::Applied, message, warnings.clone());
            self.pace.ran(Instant::now());
            self.spread();
            self.tell_settings();
            api::ApplyOutcome::Applied
        };
        self.snapshot = None;
        self.parts.text = text;
        Ok(api::Applied {
            outcome,
            revision: self.parts.node.revision(),
            changes,
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            diagnostics: warnings,
        })
    }

    pub(super) fn keep_overrides(&self) {
        let parts = &self.parts;
        if let Err(error) = overrides::save(&parts.overrides_file, parts.node.state.overrides()) {
            let file = parts.overrides_file.display();
            tracing::error!(%error, "cannot keep the overrides in {file}: a restart will forget them");
        }
    }
}
