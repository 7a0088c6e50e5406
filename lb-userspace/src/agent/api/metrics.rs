//! `/metrics`, `/ready` and `/health` over TCP.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::call::{Call, Calls, Refusal};
use crate::telemetry::metrics::{CONTENT_TYPE, Metrics};

#[derive(Clone)]
struct Doors {
    calls: Calls,
    metrics: Arc<Metrics>,
}

/// The router of the metrics' listener. `/health`: the event loop answers. `/ready`: and the maps hold a configuration.
pub fn router(calls: Calls, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/health", get(health))
        .route("/ready", get(health))
        .fallback(async || (StatusCode::NOT_FOUND, "see /metrics, /ready and /health\n"))
        .with_state(Doors { calls, metrics })
}

async fn scrape(State(doors): State<Doors>) -> Result<Response, Refusal> {
    let snapshot = doors.calls.ask(Call::Snapshot).await?;
    // Many thousands of series take milliseconds to write: not on the thread that also runs health checks.
    let text = tokio::task::spawn_blocking(move || doors.metrics.render(&snapshot))
        .await
        .map_err(|e| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics cannot be written: {e}")))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// The listener opens after the first publication, so an answer of the loop says both.
async fn health(State(doors): State<Doors>) -> Response {
    match doors.calls.ask(Call::Alive).await {
        Ok(revision) => (StatusCode::OK, format!("ok, revision {revision}\n")).into_response(),
        Err(refusal) => (refusal.status, format!("{}\n", refusal.error.error)).into_response(),
    }
}
