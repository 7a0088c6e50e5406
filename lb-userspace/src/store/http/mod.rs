//! A store through HTTP: the process that owns one serves it, any number of others use it.
//!
//! Owns: the form of calls (one path, a call and its answer as JSON), the stream of news (one JSON text a line, an empty
//! line where nothing happens), who may call. Refuses to know: what kind of store is behind it.
//!
//! Invariants: without a Unix socket, each caller shows a token or a certificate, unless the address is of this machine
//! only or somebody asked for it; bodies, connections, lines and the time in which an answer gets nowhere are bounded; a stream that is silent for [`SILENCE_MAX`]
//! is broken.

mod client;
mod server;
mod stall;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    access::{Commit, Put, Record, Recorded, Since, Snapshot, StoreError, Written},
    object::{Change, Key, Revision},
};
pub use client::{ClientTls, Endpoint, HttpStore};
pub use server::{Access, Door, ServerTls, serve};

/// Path of calls.
const CALL: &str = "/v1/store/call";
/// Path of news.
const NEWS: &str = "/v1/store/news";
/// Largest body: a change of everything, with everything before it, escaped.
const BODY_BYTES_MAX: usize = 128 << 20;
/// Longest line of news.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Between two lines of a stream without news.
const BEAT: Duration = Duration::from_secs(3);
/// A stream without a line for so long is broken.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A call.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Call {
    Snapshot,
    Since(Revision),
    Commit(Box<Commit>),
    History(usize),
    RecordGet(Key),
    RecordPut(Put),
    RecordList { prefix: String, after: Option<Key>, limit: usize },
}

impl Call {
    /// Whether it changes something.
    const fn writes(&self) -> bool {
        matches!(self, Self::Commit(_) | Self::RecordPut(_))
    }
}

/// What a call returned.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Snapshot(Option<Snapshot>),
    Since(Since),
    Written(Written),
    History(Vec<Change>),
    Record(Option<Record>),
    Recorded(Recorded),
    Records(Vec<Record>),
}

type Outcome = Result<Answer, StoreError>;
