//! `weir dns`: an authoritative DNS server for the one zone that says where the fleet's nodes are.
//!
//! Pure parts: the [`zone`], who is in it ([`publish`]), [`answer`]s, [`transfer`]s, [`limit`]s. Beside them the shells.
//! The zone is one object that the orchestrator's master writes; every instance serves it, keeps the last good one on disk,
//! and is a primary for the DNS servers that people already run.

pub mod answer;
#[cfg(test)]
mod answer_tests;
pub mod corefile;
pub mod exchange;
pub mod history;
pub mod key;
pub mod limit;
pub mod message;
pub mod notify;
pub mod publish;
pub mod retry;
#[cfg(test)]
mod sample;
pub mod server;
pub mod source;
pub mod store;
pub mod transfer;
pub mod update;
pub mod zone;
pub mod zonefile;
