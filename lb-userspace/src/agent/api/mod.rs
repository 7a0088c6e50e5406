//! The agent's doors: the API on a Unix socket and the metrics on TCP.
//!
//! Owns: transport, limits and the translation of HTTP into [`Call`]s. Refuses to know: the answers; each call goes to the
//! event loop, which owns all state.
//!
//! Invariants: at most [`serve::CONNECTIONS_MAX`] connections at a time, each for one request and a bounded time; a body is
//! at most [`crate::api::BODY_BYTES_MAX`]; the socket is for its owner and one group.

pub mod call;
pub mod metrics;
pub mod routes;
pub mod serve;
pub mod socket;

pub use call::{Call, Refusal};
