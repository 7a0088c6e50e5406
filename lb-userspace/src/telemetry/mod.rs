//! What the agent tells about itself: log lines ([`log`]) and metrics ([`metrics`]).
//!
//! Owns: formats, names and units. Refuses to know: where the figures come from; they arrive as plain data.

pub mod dns;
mod flows;
pub mod log;
pub mod metrics;
#[cfg(test)]
mod render_tests;
mod snapshot;
mod store;
