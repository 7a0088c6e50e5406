//! Reading, comparing and applying the configuration.

use serde::{Deserialize, Serialize};

use super::Diagnostic;

/// `GET /v1/config`: the configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigText {
    /// Its revision.
    pub revision: u64,
    /// The file that it came from.
    pub file: String,
    /// Canonical TOML: every key, defaults included, in a fixed order. Overrides of backends are not in it.
    pub text: String,
}

/// `POST /v1/config/diff`: what would an apply of this change?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffRequest {
    /// The text; without one the agent reads its own file anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The name that diagnostics give the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// The difference between the configuration in force and another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDiff {
    /// Revision that it was compared with.
    pub revision: u64,
    /// Whether an apply would change anything.
    pub changed: bool,
    /// What would change, a sentence each: `service web: backend 10.0.0.14:80 added, weight 2`.
    pub changes: Vec<String>,
    /// Canonical texts compared, in unified form; empty if equal.
    pub unified: String,
    /// Warnings about the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

/// `POST /v1/config/apply`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// The text. It is validated, then replaces the agent's file as a whole, then is applied: file and data plane do not
    /// part ways. Without one the agent reads its file anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The name that diagnostics give the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// What came of an accepted apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApplyOutcome {
    /// The maps hold it.
    Applied,
    /// It says what the maps held already.
    Unchanged,
}

/// Answer to an accepted [`ApplyRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// What came of it.
    pub outcome: ApplyOutcome,
    /// Revision in force now.
    pub revision: u64,
    /// What changed, as in [`ConfigDiff::changes`].
    pub changes: Vec<String>,
    /// Time from the request to the last map written.
    pub duration_ms: u64,
    /// Warnings about the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}
