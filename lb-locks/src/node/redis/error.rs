//! What the `redis` crate reports, in this crate's words.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::error::NodeError;

/// The error of one request. Details come from the server; addresses and passwords do not appear in them.
pub fn node_error(error: &RedisError) -> NodeError {
    let code = error.code().unwrap_or_default();
    let detail = || error.detail().unwrap_or(code).to_owned();
    match code {
        "LOADING" => return NodeError::Loading,
        "OOM" => return NodeError::OutOfMemory,
        "READONLY" | "MISCONF" | "NOREPLICAS" | "MASTERDOWN" => return NodeError::ReadOnly(code.to_owned()),
        "NOAUTH" | "WRONGPASS" | "NOPERM" => return NodeError::Auth(code.to_owned()),
        _ => {}
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => NodeError::Auth("authentication failed".into()),
        ErrorKind::Server(ServerErrorKind::BusyLoading) => NodeError::Loading,
        ErrorKind::Server(ServerErrorKind::ReadOnly) => NodeError::ReadOnly("READONLY".into()),
        ErrorKind::Server(ServerErrorKind::ResponseError) if detail().contains("maxmemory") => NodeError::OutOfMemory,
        ErrorKind::Server(ServerErrorKind::ResponseError) => NodeError::Script(detail()),
        ErrorKind::Server(_) => NodeError::Store(format!("{code} {}", error.detail().unwrap_or_default())),
        ErrorKind::Io if error.is_timeout() => NodeError::Timeout,
        ErrorKind::Io => NodeError::Unreachable(error.to_string()),
        _ if error.is_connection_dropped() => NodeError::Unreachable("connection closed".into()),
        _ => NodeError::Store(error.to_string()),
    }
}

/// Whether the server does not know the library of functions yet.
pub fn is_no_function(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("Function not found"))
}

/// Whether the server has the library that it was to load: another client was quicker.
pub fn is_loaded(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("already exists"))
}
