//! The orchestrator: any number of processes of which one is the master; they share the health checks, watch the nodes, keep
//! DNS to those in service, and scale and replace by what Prometheus says.
//!
//! What decides is pure and owns no clock, connection or random source: [`process::Process`] with [`election`],
//! [`placement`], [`watch`], [`scale`], [`replace`], [`intent`], [`master`] and [`decision`]. The simulation in
//! `tests/control_plane` runs that very code over thousands of schedules of loss, delay, pauses and crashes. The rest is a
//! shell around it: [`run`], [`place`], [`http`], [`prometheus`], [`execute`], [`report`] and [`discovery`].

pub mod clock;
pub mod decision;
pub mod discovery;
pub mod election;
pub mod execute;
pub mod http;
pub mod intent;
pub mod master;
pub mod place;
pub mod placement;
pub mod policy;
pub mod process;
pub mod prometheus;
pub mod record;
pub mod replace;
pub mod report;
pub mod run;
#[cfg(test)]
mod run_tests;
pub mod scale;
pub mod watch;
