//! What was decided and why: every decision with the values that led to it, in a ring of records.
//!
//! Pure. Owns the form of a decision and which place of the ring it takes. A rule that holds is told once, when the reason
//! changes, not at each evaluation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{clock::UnixMs, record::View};

/// Decisions that are kept.
pub const RING: u64 = 256;

/// One decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Counts up over all masters; its place in the ring is this modulo [`RING`].
    pub number: u64,
    /// When.
    pub at: UnixMs,
    /// Epoch of the master that decided.
    pub epoch: u64,
    /// What decided: `scaling/NAME`, `replace/NAME`, `placement`, `dns`, `intent`.
    pub by: String,
    /// What was decided, in words.
    pub outcome: String,
    /// The values that led to it.
    pub values: BTreeMap<String, String>,
    /// Intents that it made, or is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intents: Vec<String>,
}

impl Decision {
    /// Its place in the ring.
    pub fn slot(&self) -> u64 {
        self.number % RING
    }
}

/// The number that follows the ones that were read.
pub fn next_number(view: &View) -> u64 {
    view.decisions.values().map(|at| at.value.number).max().map_or(1, |last| last.saturating_add(1))
}

/// The decisions that were read, newest first.
pub fn newest_first(view: &View) -> Vec<&Decision> {
    let mut all: Vec<&Decision> = view.decisions.values().map(|at| &at.value).collect();
    all.sort_unstable_by_key(|decision| std::cmp::Reverse(decision.number));
    all
}
