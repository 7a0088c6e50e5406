//! Where the configuration lives: a file on the node, watched; or a store that many nodes share.
//!
//! Owns: bytes, their revisions and the news that they changed. Refuses to know: what the texts mean; who writes brings the
//! step that validates.
//!
//! A store holds *objects* (the configuration, under one revision) and *records* (health, leases, reports: small values
//! outside the revision). `object` says what is stored, `access` what can be asked of any store, `follow` how a reader
//! stays true to it although news get lost, `write` how a writer changes it. `state` is a store's content as data; the
//! places are `memory`, `embedded` with `http` in front of it, `redis`, and for readers alone the node's own file (`watched`).

pub mod access;
pub mod batch;
pub mod copy;
pub mod document;
pub mod edit;
pub mod embedded;
pub mod feed;
pub mod file;
pub mod follow;
pub mod http;
pub mod memory;
pub mod node;
pub mod object;
mod open;
pub mod past;
pub mod redis;
pub mod secret;
pub mod state;
pub mod tls;
pub mod watched;
pub mod write;

pub use access::{Notice, Recorded, Snapshot, Store, StoreError, Written};
pub use file::{FileError, FileStore, Text, Watch};
pub use node::{DrainOrder, NodeReport, NodeStatus};
pub use object::{Change, Edit, Key, Objects, Revision};
pub use open::{open, outer_door, redis_config, socket_path};
pub use write::{Outcome, WriteError};
