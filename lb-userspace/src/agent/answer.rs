//! Answers to calls: what the API asks, the event loop's state says, or changes.
//!
//! Owns: operators' changes of backends, comparisons, the snapshot of a scrape. Refuses to know: HTTP ([`super::api`]) and how a
//! configuration is put in force ([`super::event_loop`]).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::StatusCode;

use super::{
    api::{Call, Refusal, call::Reply},
    event_loop::{EventLoop, ReloadError},
    flows::{Listing, Names},
    overrides::{self, BackendId, Change, Overrides},
    preview::{self, Known, Touched},
    reload, systemd,
    view::{no_backend, no_service},
};
use crate::{
    api,
    model::{self, WEIGHT_MAX},
    store::Text,
    telemetry::metrics::Snapshot,
};

/// How long a scrape's figures serve the next one.
const SNAPSHOT_AGE: Duration = Duration::from_millis(200);

impl EventLoop {
    /// Carries out an operator's change of a backend.
    async fn admin(&mut self, service: &str, backend: &str, change: api::AdminChange) -> Result<api::Backend, Refusal> {
        if change.weight.is_some_and(|w| w > WEIGHT_MAX) {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("a weight is 0 to {WEIGHT_MAX}")));
        }
        let state = &self.parts.node.state;
        let found = state.config().service(service).ok_or_else(|| no_service(service))?;
        let configured = found
            .backends
            .iter()
            .find(|b| api::backend_name(b.address, b.port) == backend)
            .ok_or_else(|| no_backend(&format!("{service}/{backend}")))?;
        let name = found.backend_ref(configured);
        let id = BackendId::new(found.key, configured);
        let mut overrides = state.overrides().clone();
        let change = Change { reset: change.reset, admin_state: change.admin_state, weight: change.weight };
        if overrides.change(id, configured, change) {
            self.put(overrides, &format!("{name} {}", said(change))).await?;
        }
        self.parts.node.backend(&name)
    }

    /// Carries out an operator's change of a service.
    async fn set(&mut self, name: &str, change: &api::ServiceChange) -> Result<api::ServiceDetail, Refusal> {
        let state = &self.parts.node.state;
        let configured = state.config().service(name).ok_or_else(|| no_service(name))?;
        let mut overrides = state.overrides().clone();
        let mut changed = change.reset && overrides.reset(&configured.key);
        if let Some(settings) = &change.set {
            let set = overrides.set(configured, settings);
            changed |= set.map_err(|e| Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, e.to_string()))?;
        }
        if changed {
            let settings = overrides.service(&configured.key).join(" ");
            let words = if settings.is_empty() { "as configured".into() } else { format!("with {settings}") };
            self.put(overrides, &format!("{name} {words}")).await?;
        }
        self.parts.node.service(name)
    }

    /// Puts other overrides in force; `what` is said of them in the log.
    async fn put(&mut self, overrides: Overrides, what: &str) -> Result<(), Refusal> {
        let mut next = self.parts.node.state.clone();
        next.set_overrides(overrides.clone());
        // What the operator asked for is kept before it takes effect, so that a crash does not undo it.
        overrides::save(&self.parts.overrides_file, &overrides).map_err(|e| {
            let file = self.parts.overrides_file.display();
            Refusal::new(StatusCode::CONFLICT, format!("cannot keep the change in {file}: {e}"))
        })?;
        match self.parts.node.publish(next, true).await {
            Ok(published) => {
                self.parts.metrics.applied(published.took);
                tracing::info!("revision {} applied: {what}: {}", published.revision, published.words());
                self.pace.ran(Instant::now());
                self.snapshot = None;
                self.spread();
                Ok(())
            }
            Err(error) => {
                self.keep_overrides();
                Err(ReloadError::from(error).into())
            }
        }
    }

    fn diff(&mut self, request: api::DiffRequest) -> Result<api::ConfigDiff, Refusal> {
        let (text, file) = self.asked(request.text, request.file)?;
        let parts = &mut self.parts;
        let in_force = parts.node.state.config();
        // With a store, the services are the store's: a text with some of its own never comes here.
        let shared = parts.shared.as_ref().map(|shared| shared.document(&file, &text.text));
        let input = match &shared {
            Some((document, leases)) => reload::Input::Shared { document, leases },
            None => input(&file, &text),
        };
        let (config, diagnostics) = reload::check(&mut parts.incremental, input, &parts.host_name)?;
        let diff = model::diff(in_force, &config);
        Ok(api::ConfigDiff {
            revision: parts.node.revision(),
            changed: !diff.is_empty(),
            changes: diff.sentences(),
            unified: super::unified::unified(&model::emit(in_force), &model::emit(&config)),
            diagnostics,
        })
    }

    /// What an apply would do to slots and flows.
    async fn plan(&mut self, request: api::DiffRequest) -> Result<api::PlanReport, Refusal> {
        let own = self.parts.process.config_file.clone();
        // With a store, services and pools are the request's and everything else is the node's own.
        let shared = match &self.parts.shared {
            Some(shared) => {
                let text = self.parts.store.read().map_err(ReloadError::from)?;
                let file = request.file.as_deref().unwrap_or("the services");
                Some(shared.planned((&own, &text.text), file, request.text.as_deref())?)
            }
            None => None,
        };
        let (text, file) = self.asked(request.text, request.file)?;
        let parts = &mut self.parts;
        let in_force = parts.node.state.config();
        let input = match &shared {
            Some((document, leases)) => reload::Input::Shared { document, leases },
            None => input(&file, &text),
        };
        let candidate = reload::consider(in_force, &mut parts.incremental, input, &parts.host_name)?;
        let node = &parts.node;
        let mut report = api::PlanReport {
            revision: node.revision(),
            changed: !candidate.diff.is_empty(),
            changes: candidate.diff.sentences(),
            services: Vec::new(),
            diagnostics: candidate.warnings,
        };
        if report.changed {
            let mut state = node.state.clone();
            state.set_config(candidate.config);
            let plan = node.preview(&state).map_err(ReloadError::from)?;
            let present = node.data().present();
            let (mut touched, now_s) = (Touched::new(present, &plan), node.data().record_now_s());
            let scan = node.data().scan();
            let counted = tokio::task::spawn_blocking(move || {
                scan(&mut |word| touched.take(word, now_s));
                touched
            });
            let touched = counted.await.map_err(|e| {
                Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot count recorded flows: {e}"))
            })?;
            let known = |key: &model::ServiceKey| {
                let service = state.service(key).or_else(|| node.state.service(key))?;
                Some(Known {
                    name: service.name.clone(),
                    track: service.flows.track,
                    udp_flows: service.udp_flows(),
                    drain_s: service.flows.drain_timeout.as_secs(),
                })
            };
            report.services = preview::services(present, &plan, &touched, &known);
        }
        Ok(report)
    }

    /// Lists recorded flows, beside the loop.
    fn flows(&self, query: api::FlowQuery, to: Reply<api::FlowList>) {
        let data = self.parts.node.data();
        let names = Names::new(data.present(), self.parts.node.state.effective());
        match Listing::new(names, query, data.record_now_s()) {
            Err(refusal) => _ = to.send(Err(refusal)),
            Ok(mut listing) => {
                let scan = data.scan();
                drop(tokio::task::spawn_blocking(move || {
                    scan(&mut |word| listing.take(word));
                    to.send(Ok(listing.finish()))
                }));
            }
        }
    }

    /// Removes recorded flows, beside the loop.
    fn flush(&self, request: &api::FlushRequest, to: Reply<api::Flushed>) {
        let data = self.parts.node.data();
        match Names::new(data.present(), self.parts.node.state.effective()).flush(request) {
            Err(refusal) => _ = to.send(Err(refusal)),
            Ok(flush) => {
                let service = request.service.clone().unwrap_or_else(|| "any".into());
                let backend = request.backend.clone().unwrap_or_else(|| "any".into());
                let job = data.flush(flush);
                drop(tokio::task::spawn_blocking(move || {
                    let removed = job().map_err(|e| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()));
                    if let Ok(removed) = &removed {
                        tracing::warn!(removed, %service, %backend, "recorded flows were removed on request: they may move");
                    }
                    to.send(removed.map(|removed| api::Flushed { removed }))
                }));
            }
        }
    }

    /// The text of a request, or the file's.
    fn asked(&self, text: Option<String>, file: Option<String>) -> Result<(Text, String), Refusal> {
        let own = || self.parts.process.config_file.clone();
        match text {
            Some(text) => Ok((Text::new(text), file.unwrap_or_else(own))),
            None => {
                let text = self.parts.store.read().map_err(ReloadError::from)?;
                Ok((text, own()))
            }
        }
    }

    async fn answer_apply(&mut self, request: api::ApplyRequest) -> Result<api::Applied, Refusal> {
        let replace = request.text.is_some();
        let (text, file) = self.asked(request.text, request.file)?;
        let applied = self.apply(text, &file, replace).await;
        if !replace {
            self.stand(&applied);
        }
        systemd::status(&self.status_line());
        applied.map_err(|error| {
            if replace {
                // What was handed in is refused to who handed it in; the file, and how it was read, stay as they were.
                tracing::warn!("a configuration was refused to the API: {}", error.message());
            } else {
                self.refused(&error);
            }
            error.into()
        })
    }

    fn snapshot(&mut self) -> Result<Arc<Snapshot>, Refusal> {
        if let Some((at, snapshot)) = &self.snapshot
            && at.elapsed() < SNAPSHOT_AGE
        {
            return Ok(Arc::clone(snapshot));
        }
        let interfaces = self.parts.views.interfaces.borrow().clone();
        let snapshot = Arc::new(self.parts.node.snapshot(&interfaces)?);
        self.snapshot = Some((Instant::now(), Arc::clone(&snapshot)));
        Ok(snapshot)
    }

    /// Answers one call.
    pub(super) async fn answer(&mut self, call: Call) {
        let call = match self.elsewhere(call) {
            Some(call) => call,
            None => return,
        };
        self.see_store();
        // Whoever reads that a backend is down may rely on the maps: what was observed is published before it is told.
        if self.pace.due().is_some_and(|due| due <= Instant::now() + super::pace::WINDOW) {
            self.publish_observed().await;
        }
        let interfaces = self.parts.views.interfaces.borrow().clone();
        let node = &mut self.parts.node;
        // Whoever asked may have gone: then nobody takes the answer, which is fine.
        match call {
            Call::Status(to) => _ = to.send(Ok(node.status(&self.parts.process, &interfaces))),
            Call::Services(to) => _ = to.send(node.services()),
            Call::Service(name, to) => _ = to.send(node.service(&name)),
            Call::Backends(to) => _ = to.send(node.backends()),
            Call::Health(to) => _ = to.send(Ok(node.health())),
            Call::NextHops(to) => _ = to.send(Ok(node.next_hops())),
            Call::Stats(to) => _ = to.send(node.stats(&interfaces)),
            Call::Config(to) => {
                let text = api::ConfigText {
                    revision: node.revision(),
                    file: self.parts.process.config_file.clone(),
                    text: model::emit(node.state.config()),
                };
                _ = to.send(Ok(text));
            }
            Call::Alive(to) => _ = to.send(Ok(node.revision())),
            Call::Admin(service, backend, change, to) => _ = to.send(self.admin(&service, &backend, change).await),
            Call::Set(service, change, to) => _ = to.send(self.set(&service, &change).await),
            Call::Diff(request, to) => _ = to.send(self.diff(request)),
            Call::Apply(request, to) => _ = to.send(self.answer_apply(request).await),
            Call::Plan(request, to) => _ = to.send(self.plan(request).await),
            Call::Flows(query, to) => self.flows(query, to),
            Call::Flush(request, to) => self.flush(&request, to),
            Call::Snapshot(to) => _ = to.send(self.snapshot()),
        }
    }
}

fn input<'a>(file_name: &'a str, text: &'a Text) -> reload::Input<'a> {
    reload::Input::Text { file_name, text: &text.text }
}

fn said(change: Change) -> String {
    let mut parts = Vec::new();
    if change.reset {
        parts.push("reset".to_owned());
    }
    if let Some(state) = change.admin_state {
        parts.push(format!("admin_state {state}"));
    }
    if let Some(weight) = change.weight {
        parts.push(format!("weight {weight}"));
    }
    parts.join(", ")
}
