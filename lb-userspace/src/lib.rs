//! weir's userspace: the agent that keeps the BPF maps true, the command line, and the pure decisions behind them.
//!
//! Imports point one way: `cli` -> `agent` -> `plan | health | net` -> `model` -> `lb_core`; only `agent` and the commands
//! that read live maps import `dataplane`.

pub mod agent;
pub mod api;
pub mod cli;
pub mod dataplane;
pub mod decap;
pub mod dns;
pub mod health;
pub mod model;
pub mod net;
pub mod object;
pub mod orchestrator;
pub mod plan;
pub mod store;
pub mod telemetry;
