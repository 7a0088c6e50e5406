//! What an orchestrator tells about itself and the fleet: the types of its API, and the routes.
//!
//! Refuses to know: how it is served. Two routers: one for administrators (status, decisions, stepping down), which belongs on a
//! Unix socket, and one that anybody may scrape (health, metrics, service discovery).

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::{
    clock::UnixMs,
    decision::{self, Decision},
    discovery,
    intent::Intent,
    process::Process,
    record::View,
};

/// Path of [`Status`].
pub const PATH_STATUS: &str = "/v1/status";
/// Path of the decisions.
pub const PATH_DECISIONS: &str = "/v1/decisions";
/// Path that makes the master step down.
pub const PATH_STEP_DOWN: &str = "/v1/step-down";
/// Where the socket is unless another place is given.
pub const SOCKET_DEFAULT: &str = "/run/weir/orchestrator.sock";

/// The fleet as one orchestrator sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Who answers.
    pub me: String,
    /// Epoch in which it may act now; `None`: it is not the master.
    pub acting: Option<u64>,
    /// When it read the store last; `None`: never.
    pub read_at: Option<UnixMs>,
    /// Why the last look failed, if it did.
    pub store_error: Option<String>,
    /// The master by the record.
    pub master: Option<Master>,
    /// Generation of the assignment.
    pub generation: u64,
    /// Orchestrators.
    pub workers: Vec<Worker>,
    /// Targets that this one checks, and all.
    pub targets: (usize, usize),
    /// Targets that are down.
    pub down: Vec<String>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Revision of the configuration.
    pub revision: u64,
    /// Serial of the zone.
    pub serial: Option<u32>,
    /// What is being done, and what was lately.
    pub intents: Vec<Intent>,
    /// Decides and does nothing.
    pub dry_run: bool,
    /// Records that could not be read.
    pub unreadable: Vec<String>,
}

/// The master by the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Master {
    /// Holder.
    pub holder: String,
    /// Epoch.
    pub epoch: u64,
    /// Gave it back.
    pub released: bool,
}

/// One orchestrator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// Generation that it works by.
    pub generation: u64,
    /// Whether checks are assigned to it.
    pub assigned: bool,
    /// Where its metrics are.
    pub address: Option<String>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether DNS gives it out.
    pub in_dns: bool,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Revision that it applied.
    pub revision: u64,
    /// Says that it forwards.
    pub ready: bool,
    /// Says that it drains.
    pub draining: bool,
}

/// The status of `process`.
pub fn status(process: &Process, acting: Option<u64>, dry_run: bool) -> Status {
    let view = process.view();
    let assignment = view.assignment.as_ref().map(|at| &at.value);
    let in_dns = |node: &super::watch::Node| {
        let zone = view.zone.iter().flat_map(|zone| zone.value.records.values().flatten());
        zone.into_iter().any(|address| node.addresses.contains(address))
    };
    Status {
        me: process.holder().to_owned(),
        acting,
        read_at: None,
        store_error: None,
        master: view.lease.as_ref().map(|at| Master {
            holder: at.value.holder.clone(),
            epoch: at.value.epoch,
            released: at.value.released,
        }),
        generation: assignment.map_or(0, |one| one.epoch),
        workers: view
            .workers
            .iter()
            .map(|(name, at)| Worker {
                name: name.clone(),
                generation: at.value.generation,
                assigned: assignment.is_some_and(|one| one.workers.contains(name)),
                address: at.value.address.clone(),
            })
            .collect(),
        targets: (process.share().len(), view.targets.len()),
        down: view
            .health
            .iter()
            .filter(|(name, at)| !at.value.up && view.targets.contains(*name))
            .map(|(name, _)| name.clone())
            .collect(),
        nodes: view
            .nodes
            .iter()
            .map(|(name, node)| Node {
                name: name.clone(),
                in_dns: in_dns(node),
                addresses: node.addresses.iter().map(ToString::to_string).collect(),
                revision: node.revision,
                ready: node.ready,
                draining: node.draining,
            })
            .collect(),
        revision: view.revision,
        serial: view.zone.as_ref().map(|at| at.value.serial),
        intents: view.intents.values().map(|at| at.value.clone()).collect(),
        dry_run,
        unreadable: view.unreadable.iter().map(ToString::to_string).collect(),
    }
}

/// What the loop is told from outside.
#[derive(Debug)]
pub enum Command {
    /// Give the mastership back.
    StepDown,
    /// Read the ring of decisions.
    Decisions(tokio::sync::oneshot::Sender<Result<Vec<Decision>, String>>),
}

/// What the routes need.
#[derive(Clone, Debug)]
pub struct Doors {
    /// The present status.
    pub status: watch::Receiver<Arc<(Status, View)>>,
    /// The loop.
    pub commands: mpsc::Sender<Command>,
    /// Metrics of the DNS servers, by name.
    pub dns: Arc<BTreeMap<String, String>>,
}

/// An error in the form of weir's APIs.
fn refusal(status: StatusCode, error: &str) -> Response {
    (status, Json(serde_json::json!({ "error": error }))).into_response()
}

/// Routes for administrators.
pub fn admin(doors: Doors) -> Router {
    Router::new()
        .route(PATH_STATUS, get(async |State(doors): State<Doors>| Json(doors.status.borrow().0.clone())))
        .route(PATH_DECISIONS, get(decisions))
        .route(PATH_STEP_DOWN, post(step_down))
        .fallback(async || refusal(StatusCode::NOT_FOUND, "no such path"))
        .with_state(doors)
}

#[derive(Deserialize)]
struct Limit {
    limit: Option<usize>,
}

async fn decisions(State(doors): State<Doors>, Query(Limit { limit }): Query<Limit>) -> Response {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    if doors.commands.try_send(Command::Decisions(sender)).is_err() {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "the orchestrator is busy");
    }
    match receiver.await {
        Ok(Ok(mut decisions)) => {
            decisions.truncate(limit.unwrap_or(usize::MAX));
            Json(decisions).into_response()
        }
        Ok(Err(error)) => refusal(StatusCode::BAD_GATEWAY, &error),
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "the orchestrator is stopping"),
    }
}

async fn step_down(State(doors): State<Doors>) -> Response {
    if doors.status.borrow().0.acting.is_none() {
        let master = doors.status.borrow().0.master.as_ref().map_or_else(String::new, |one| one.holder.clone());
        return refusal(
            StatusCode::CONFLICT,
            &format!("this orchestrator is not the master; the record names {master:?}"),
        );
    }
    match doors.commands.try_send(Command::StepDown) {
        Ok(()) => Json(serde_json::json!({})).into_response(),
        Err(_) => refusal(StatusCode::SERVICE_UNAVAILABLE, "the orchestrator is busy"),
    }
}

/// Routes that anybody may read: `/health`, `/ready`, `/metrics`, and `/sd` for Prometheus' `http_sd_configs`.
pub fn public(doors: Doors) -> Router {
    Router::new()
        .route("/health", get(async || "ok\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route(
            "/sd",
            get(async |State(doors): State<Doors>| Json(discovery::groups(&doors.status.borrow().1, &doors.dns))),
        )
        .fallback(async || (StatusCode::NOT_FOUND, "see /metrics, /sd, /ready and /health\n"))
        .with_state(doors)
}

async fn ready(State(doors): State<Doors>) -> Response {
    match &doors.status.borrow().0 {
        Status { read_at: None, .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, "the store was not read yet\n").into_response()
        }
        Status { store_error: Some(error), .. } => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("the store cannot be read: {error}\n")).into_response()
        }
        Status { .. } => "ok\n".into_response(),
    }
}

async fn metrics(State(doors): State<Doors>) -> Response {
    let text = render(&doors.status.borrow().0);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
}

/// The status as OpenMetrics text.
pub fn render(status: &Status) -> String {
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, samples: &[(String, f64)]| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP weir_{name} {help}\n# TYPE weir_{name} gauge");
        for (labels, value) in samples {
            let _ = writeln!(out, "weir_{name}{labels} {value}");
        }
    };
    let one = |value: f64| [(String::new(), value)];
    let yes = |is: bool| f64::from(u8::from(is));
    gauge("orchestrator_master", "Whether this process may act as the master.", &one(yes(status.acting.is_some())));
    let epoch = status.master.as_ref().map_or(0, |master| master.epoch);
    gauge("orchestrator_epoch", "Epoch of the master record.", &one(epoch as f64));
    gauge(
        "orchestrator_store_up",
        "Whether the last look at the store succeeded.",
        &one(yes(status.store_error.is_none() && status.read_at.is_some())),
    );
    gauge(
        "orchestrator_workers",
        "Orchestrators that health checks are assigned to.",
        &one(status.workers.iter().filter(|one| one.assigned).count() as f64),
    );
    gauge("orchestrator_generation", "Generation of the assignment.", &one(status.generation as f64));
    gauge("orchestrator_targets", "Health targets that this process checks.", &one(status.targets.0 as f64));
    gauge("orchestrator_targets_all", "Health targets of the fleet.", &one(status.targets.1 as f64));
    gauge("orchestrator_targets_down", "Health targets of the fleet that are down.", &one(status.down.len() as f64));
    gauge("fleet_revision", "Revision of the configuration in the store.", &one(status.revision as f64));
    gauge("fleet_zone_serial", "Serial of the zone.", &one(f64::from(status.serial.unwrap_or(0))));
    let node = |node: &Node| format!("{{node=\"{}\"}}", node.name);
    let nodes: Vec<_> = status.nodes.iter().map(|one| (node(one), yes(one.in_dns))).collect();
    gauge("fleet_node_in_dns", "Whether DNS gives the node out.", &nodes);
    let nodes: Vec<_> = status.nodes.iter().map(|one| (node(one), one.revision as f64)).collect();
    gauge("fleet_node_revision", "Revision that the node applied.", &nodes);
    let open = status.intents.iter().filter(|intent| !intent.phase.is_over()).count();
    gauge("orchestrator_intents_open", "Intents that are being carried out.", &one(open as f64));
    let failed = status.intents.iter().filter(|intent| intent.phase == super::intent::Phase::Failed).count();
    gauge("orchestrator_intents_failed", "Intents that were given up within the last day.", &one(failed as f64));
    out.push_str("# EOF\n");
    out
}

/// The ring of a view, newest first.
pub fn ring(view: &View) -> Vec<Decision> {
    decision::newest_first(view).into_iter().cloned().collect()
}
