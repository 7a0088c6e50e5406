//! `POST /v1/plan`: what an apply would do to slots and flows.

use serde::{Deserialize, Serialize};

use super::Diagnostic;

/// What a change would touch. Asked for with a [`super::DiffRequest`]; backends without a result of their health check count as up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Revision that it starts from.
    pub revision: u64,
    /// Whether an apply would change anything.
    pub changed: bool,
    /// What would change in the configuration, a sentence each.
    pub changes: Vec<String>,
    /// What it does to services; those that are not touched are left out.
    pub services: Vec<ServicePlan>,
    /// Warnings about the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

/// What becomes of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceAction {
    /// It appears.
    Added,
    /// It goes, and its connections with it.
    Removed,
    /// Its forwarding mode changes: it is another service for the maps.
    Replaced,
    /// Its backends, their weights, or its settings change.
    Changed,
}

/// What a change does to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// Name.
    pub service: String,
    /// What becomes of it.
    pub action: ServiceAction,
    /// Slots of its ring after the change.
    pub slots: u32,
    /// Slots that give new flows to another backend than before.
    pub slots_moved: u32,
    /// Whether size or hash inputs of the ring change, so that every flow may have another slot.
    pub whole: bool,
    /// Live records of its flows now.
    pub flows_recorded: u64,
    /// Those of them on slots that move.
    pub flows_on_moved_slots: u64,
    /// How long the change is announced before new flows move.
    pub announce_for_s: u64,
    /// How long flows on moved slots are recorded after that.
    pub window_s: u64,
    /// Backends that it loses, or that no longer take new flows.
    pub backends: Vec<BackendPlan>,
    /// What becomes of its flows, a sentence each.
    pub flows: Vec<String>,
}

/// What becomes of a backend that takes no new flows after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendPlan {
    /// Name within the service.
    pub backend: String,
    /// Live records that name it now.
    pub flows_recorded: u64,
    /// How long it keeps its flows at most; 0 if it goes at once.
    pub drain_s: u64,
}
