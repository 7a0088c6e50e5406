//! Paths of the API: each becomes one [`Call`] and its answer JSON.

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State, rejection::BytesRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Serialize, de::DeserializeOwned};

use super::call::{Call, Calls, Refusal};
use crate::api;

/// The API's router.
pub fn router(calls: Calls) -> Router {
    Router::new()
        .route(api::PATH_STATUS, get(async |s| answer(s, Call::Status).await))
        .route(api::PATH_SERVICES, get(async |s| answer(s, Call::Services).await))
        .route(&format!("{}/{{name}}", api::PATH_SERVICES), get(service))
        .route(&format!("{}/{{name}}/settings", api::PATH_SERVICES), post(set))
        .route(api::PATH_BACKENDS, get(async |s| answer(s, Call::Backends).await))
        .route(&format!("{}/{{service}}/{{backend}}/admin", api::PATH_BACKENDS), post(admin))
        .route(api::PATH_HEALTH, get(async |s| answer(s, Call::Health).await))
        .route(api::PATH_NEXT_HOPS, get(async |s| answer(s, Call::NextHops).await))
        .route(api::PATH_STATS, get(async |s| answer(s, Call::Stats).await))
        .route(api::PATH_CONFIG, get(async |s| answer(s, Call::Config).await))
        .route(api::PATH_CONFIG_DIFF, post(diff))
        .route(api::PATH_CONFIG_APPLY, post(apply))
        .route(api::PATH_PLAN, post(plan))
        .route(api::PATH_FLOWS, post(flows))
        .route(api::PATH_FLOWS_FLUSH, post(flush))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "no such path"))
        .method_not_allowed_fallback(async || Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "no such method here"))
        .layer(DefaultBodyLimit::max(api::BODY_BYTES_MAX))
        .with_state(calls)
}

type Answer<T> = Result<Json<T>, Refusal>;

async fn answer<T: Serialize>(
    State(calls): State<Calls>,
    call: impl FnOnce(super::call::Reply<T>) -> Call,
) -> Answer<T> {
    calls.ask(call).await.map(Json)
}

async fn service(state: State<Calls>, Path(name): Path<String>) -> Answer<api::ServiceDetail> {
    answer(state, |reply| Call::Service(name, reply)).await
}

async fn set(
    state: State<Calls>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<api::ServiceDetail> {
    let change = read(body)?;
    answer(state, |reply| Call::Set(name, change, reply)).await
}

async fn admin(
    state: State<Calls>,
    Path((service, backend)): Path<(String, String)>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<api::Backend> {
    let change = read(body)?;
    answer(state, |reply| Call::Admin(service, backend, change, reply)).await
}

async fn diff(state: State<Calls>, body: Result<Bytes, BytesRejection>) -> Answer<api::ConfigDiff> {
    let request = read(body)?;
    answer(state, |reply| Call::Diff(request, reply)).await
}

async fn apply(state: State<Calls>, body: Result<Bytes, BytesRejection>) -> Answer<api::Applied> {
    let request = read(body)?;
    answer(state, |reply| Call::Apply(request, reply)).await
}

async fn plan(state: State<Calls>, body: Result<Bytes, BytesRejection>) -> Answer<api::PlanReport> {
    let request = read(body)?;
    answer(state, |reply| Call::Plan(request, reply)).await
}

async fn flows(state: State<Calls>, body: Result<Bytes, BytesRejection>) -> Answer<api::FlowList> {
    let query = read(body)?;
    answer(state, |reply| Call::Flows(query, reply)).await
}

async fn flush(state: State<Calls>, body: Result<Bytes, BytesRejection>) -> Answer<api::Flushed> {
    let request = read(body)?;
    answer(state, |reply| Call::Flush(request, reply)).await
}

/// A JSON body, or why it is none.
fn read<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Refusal> {
    let body = body.map_err(|e| Refusal::new(e.status(), e.body_text()))?;
    serde_json::from_slice(&body)
        .map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, format!("the request cannot be read: {e}")))
}

/// An answer as JSON.
struct Json<T>(T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Err(e) => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer cannot be written: {e}"))
                .into_response(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // The error type holds strings and lists only, which always can be written.
        let body = serde_json::to_vec(&self.error).unwrap_or_default();
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}
