//! The agent's API: HTTP/1.1 with JSON bodies over a Unix socket, version 1.
//!
//! Owns: the paths, the shapes of requests and answers (the agent serves them, the command line reads them) and the
//! [`client`]. Refuses to know: how the agent computes an answer and how the command line shows it.
//!
//! Invariants: a field is added, never renamed or given another meaning, within `/v1`; a reader ignores fields that it does
//! not know; units stand last in a name (`_s`, `_ms`, `_us`, `bytes`); no answer holds a secret (hash key, ring seed).
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/services` | | `[`[`Service`]`]` |
//! | `GET /v1/services/{name}` | | [`ServiceDetail`], 404 |
//! | `POST /v1/services/{name}/settings` | [`ServiceChange`] | [`ServiceDetail`] after the change, 404, 422 |
//! | `GET /v1/backends` | | `[`[`Backend`]`]` |
//! | `POST /v1/backends/{service}/{backend}/admin` | [`AdminChange`] | [`Backend`] after the change, 400, 404 |
//! | `GET /v1/health` | | `[`[`HealthTarget`]`]` |
//! | `GET /v1/next-hops` | | `[`[`NextHopEntry`]`]` |
//! | `GET /v1/stats` | | [`Stats`] |
//! | `POST /v1/flows` | [`FlowQuery`] | [`FlowList`], 400, 404 |
//! | `POST /v1/flows/flush` | [`FlushRequest`] | [`Flushed`], 404 |
//! | `POST /v1/plan` | [`DiffRequest`] | [`PlanReport`], 409, 422 |
//! | `GET /v1/config` | | [`ConfigText`] |
//! | `POST /v1/config/diff` | [`DiffRequest`] | [`ConfigDiff`], 422 |
//! | `POST /v1/config/apply` | [`ApplyRequest`] | [`Applied`], 409, 422 |
//!
//! Any other status than 2xx carries an [`ApiError`]. 400: the request itself is wrong (a weight out of range); 404: no such
//! service, backend or path; 409: right, but it cannot be done now (map limits that need `weir agent --unload`, a file
//! that cannot be written, the kernel refused); 413: body above [`BODY_BYTES_MAX`]; 422: the configuration is invalid, with
//! its diagnostics, or a setting is; 500: the agent's own failure.

pub mod client;
mod config;
mod flows;
mod plan;
mod service;
mod stats;
mod status;

use std::{
    net::{IpAddr, SocketAddr},
    slice,
};

use serde::{Deserialize, Serialize};

use crate::model::{
    Checked, code,
    diagnostic::{self, Sources},
};

pub use config::{Applied, ApplyOutcome, ApplyRequest, ConfigDiff, ConfigText, DiffRequest};
pub use flows::{
    Connections, Drain, DrainPhase, FlowEntry, FlowEventCount, FlowList, FlowLook, FlowQuery, FlowTable, FlushRequest,
    Flushed, SlotStates,
};
pub use plan::{BackendPlan, PlanReport, ServiceAction, ServicePlan};
pub use service::{
    AdminChange, Backend, Forward, HealthCheckSettings, HealthState, HealthTarget, NextHop, NextHopEntry, Service,
    ServiceChange, ServiceDetail, Share,
};
pub use stats::{Action, BackendStats, InterfaceStats, LossCount, ReasonCount, ServiceStats, Stats};
pub use status::{
    Counts, Interface, MapFill, PoolLease, Reload, ReloadOutcome, Resyncs, Status, StoreStatus, XdpModeInForce,
};

/// Where the agent listens unless the configuration's `api_socket` says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/weir/api.sock";
/// Largest request body that the agent accepts: a configuration of 65,536 backends takes about 8 MiB.
pub const BODY_BYTES_MAX: usize = 32 << 20;

/// Path of [`Status`].
pub const PATH_STATUS: &str = "/v1/status";
/// Path of the list of [`Service`]; `/{name}` below it gives one [`ServiceDetail`].
pub const PATH_SERVICES: &str = "/v1/services";
/// Path of the list of [`Backend`].
pub const PATH_BACKENDS: &str = "/v1/backends";
/// Path of the list of [`HealthTarget`].
pub const PATH_HEALTH: &str = "/v1/health";
/// Path of the list of [`NextHopEntry`].
pub const PATH_NEXT_HOPS: &str = "/v1/next-hops";
/// Path of [`Stats`].
pub const PATH_STATS: &str = "/v1/stats";
/// Path of [`ConfigText`].
pub const PATH_CONFIG: &str = "/v1/config";
/// Path that takes a [`DiffRequest`].
pub const PATH_CONFIG_DIFF: &str = "/v1/config/diff";
/// Path that takes an [`ApplyRequest`].
pub const PATH_CONFIG_APPLY: &str = "/v1/config/apply";

/// Path that takes a [`FlowQuery`].
pub const PATH_FLOWS: &str = "/v1/flows";
/// Path that takes a [`FlushRequest`].
pub const PATH_FLOWS_FLUSH: &str = "/v1/flows/flush";
/// Path that takes a [`DiffRequest`] and gives a [`PlanReport`].
pub const PATH_PLAN: &str = "/v1/plan";
/// Recorded flows that one answer lists at most.
pub const FLOWS_LISTED_MAX: u32 = 100_000;

/// What every answer other than 2xx holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ApiError {
    /// What failed and where, one sentence.
    pub error: String,
    /// What the user can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What is wrong with a configuration (status 422).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// The configuration is accepted, but probably not what was meant.
    Warning,
}

/// One finding about a configuration text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// Stable word of the kind of finding, see [`crate::model::code::Code`].
    #[serde(default)]
    pub code: String,
    /// What is wrong, one sentence.
    pub message: String,
    /// What to write instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// File, as the one who asked named it.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The finding as text for a terminal: source line and caret included, without colours, without a final newline.
    pub rendered: String,
}

/// The findings of a check; `text` is the text that was checked.
pub fn diagnostics<C>(checked: &Checked<C>, text: &str) -> Vec<Diagnostic> {
    // A large file without findings costs nothing.
    if checked.diagnostics.is_empty() {
        return Vec::new();
    }
    diagnostics_in(checked, &Sources::one(&checked.file_name, text))
}

/// The same for a check of several texts.
pub fn diagnostics_in<C>(checked: &Checked<C>, sources: &Sources<'_>) -> Vec<Diagnostic> {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    diagnostic::entries_in(&checked.diagnostics, sources)
        .into_iter()
        .zip(&checked.diagnostics)
        .map(|(entry, finding)| Diagnostic {
            severity: match entry.severity {
                code::Severity::Error => Severity::Error,
                code::Severity::Warning => Severity::Warning,
            },
            code: entry.code.as_str().to_owned(),
            message: entry.message,
            hint: entry.hint,
            line: number(entry.line),
            column: number(entry.column),
            rendered: diagnostic::render_in(slice::from_ref(finding), sources, false).trim_end().to_owned(),
            file: entry.file,
        })
        .collect()
}

/// The name of a backend within its service: `10.0.0.11:80`, `[fd00::11]:80`; where the service has all ports (port 0)
/// `10.0.0.11`, `[fd00::11]`. With the service's name and a `/` before it, it is the configuration's backend reference.
pub fn backend_name(address: IpAddr, port: u16) -> String {
    match (address, port) {
        (IpAddr::V4(v4), 0) => v4.to_string(),
        (IpAddr::V6(v6), 0) => format!("[{v6}]"),
        (address, port) => SocketAddr::new(address, port).to_string(),
    }
}

/// Path of one service's [`ServiceDetail`].
pub fn service_path(name: &str) -> String {
    format!("{PATH_SERVICES}/{}", encode_segment(name))
}

/// Path that takes a [`ServiceChange`].
pub fn settings_path(service: &str) -> String {
    format!("{}/settings", service_path(service))
}

/// Path that takes an [`AdminChange`] for the backend `name`, as [`backend_name`] writes it.
pub fn admin_path(service: &str, backend: &str) -> String {
    format!("{PATH_BACKENDS}/{}/{}/admin", encode_segment(service), encode_segment(backend))
}

/// Percent-encodes what RFC 3986 does not call unreserved, so that no name can leave its path segment.
fn encode_segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_segment() {
        assert_eq!(admin_path("web", "[fd00::1]:80"), "/v1/backends/web/%5Bfd00%3A%3A1%5D%3A80/admin");
        assert_eq!(service_path("../config?x"), "/v1/services/..%2Fconfig%3Fx");
    }

    #[test]
    fn a_backend_on_all_ports_has_no_port_in_its_name() {
        assert_eq!(backend_name([10, 0, 0, 11].into(), 80), "10.0.0.11:80");
        assert_eq!(backend_name([10, 0, 0, 11].into(), 0), "10.0.0.11");
        assert_eq!(backend_name("fd00::11".parse().unwrap(), 0), "[fd00::11]");
    }

    #[test]
    fn findings_keep_code_place_and_picture() {
        let text = "[node]\ninterfaces = [\"eth0\"]\nbanana = 1\n";
        let findings = diagnostics(&crate::model::check("weir.toml", text), text);
        let banana = findings.iter().find(|d| d.line == 3).expect("a finding on line 3");
        assert_eq!((banana.severity, banana.column, banana.file.as_str()), (Severity::Error, 1, "weir.toml"));
        assert!(!banana.code.is_empty());
        assert!(banana.rendered.contains("weir.toml:3:1") && banana.rendered.contains("^^^^^^"), "{}", banana.rendered);
    }

    #[test]
    fn an_error_needs_nothing_but_its_sentence() {
        let error: ApiError = serde_json::from_str(r#"{"error":"no","later":1}"#).unwrap();
        assert_eq!(error, ApiError { error: "no".into(), ..ApiError::default() });
        assert_eq!(serde_json::to_string(&error).unwrap(), r#"{"error":"no"}"#);
    }
}
