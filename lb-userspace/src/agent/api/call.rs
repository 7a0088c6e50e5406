//! What can be asked of the event loop: a request with the place where its answer goes.

use std::sync::Arc;

use axum::http::StatusCode;
use tokio::sync::{mpsc, oneshot};

use crate::{api, telemetry::metrics::Snapshot};

/// Calls that wait for the event loop, at most; more are told to come back.
pub const CALLS_MAX: usize = 64;

/// Why there is no answer: a status and the words for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// HTTP status, 4xx or 5xx.
    pub status: StatusCode,
    /// What the client is told.
    pub error: api::ApiError,
}

impl Refusal {
    /// A refusal of one sentence.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: api::ApiError { error: error.into(), ..api::ApiError::default() } }
    }

    /// The same with a way out.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.error.hint = Some(hint.into());
        self
    }

    /// The same with findings about a configuration.
    #[must_use]
    pub fn diagnostics(mut self, diagnostics: Vec<api::Diagnostic>) -> Self {
        self.error.diagnostics = diagnostics;
        self
    }
}

/// Where an answer goes. A client that went away is no error.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// A request to the event loop.
#[derive(Debug)]
pub enum Call {
    /// State of the node.
    Status(Reply<api::Status>),
    /// All services.
    Services(Reply<Vec<api::Service>>),
    /// One service with its backends, by name.
    Service(String, Reply<api::ServiceDetail>),
    /// All backends.
    Backends(Reply<Vec<api::Backend>>),
    /// Change how a backend (service name, backend name) is administered.
    Admin(String, String, api::AdminChange, Reply<api::Backend>),
    /// Change settings of a service, by name.
    Set(String, api::ServiceChange, Reply<api::ServiceDetail>),
    /// Health of every backend.
    Health(Reply<Vec<api::HealthTarget>>),
    /// Next hop of every backend address.
    NextHops(Reply<Vec<api::NextHopEntry>>),
    /// All counters.
    Stats(Reply<api::Stats>),
    /// The configuration in force.
    Config(Reply<api::ConfigText>),
    /// What an apply would change.
    Diff(api::DiffRequest, Reply<api::ConfigDiff>),
    /// Apply a configuration.
    Apply(api::ApplyRequest, Reply<api::Applied>),
    /// What an apply would do to slots and flows.
    Plan(api::DiffRequest, Reply<api::PlanReport>),
    /// Recorded flows.
    Flows(api::FlowQuery, Reply<api::FlowList>),
    /// Remove recorded flows.
    Flush(api::FlushRequest, Reply<api::Flushed>),
    /// Everything that a scrape shows.
    Snapshot(Reply<Arc<Snapshot>>),
    /// Does the loop turn? Answered with the revision that the maps hold.
    Alive(Reply<u64>),
}

/// The way to the event loop.
#[derive(Clone, Debug)]
pub struct Calls(mpsc::Sender<Call>);

impl Calls {
    /// A way to the event loop, and the end at which the loop takes the calls.
    pub fn new() -> (Self, mpsc::Receiver<Call>) {
        let (sender, receiver) = mpsc::channel(CALLS_MAX);
        (Self(sender), receiver)
    }

    /// Sends a call and waits for its answer.
    ///
    /// # Errors
    /// The loop's own [`Refusal`]; 503 if the loop is overloaded or gone.
    pub async fn ask<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(call(reply)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => {
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is busy").hint("try again in a moment")
            }
            mpsc::error::TrySendError::Closed(_) => stopping(),
        })?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

fn stopping() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn too_many_and_too_late_are_told() {
        let (calls, mut inbox) = Calls::new();
        let mut waiting = Vec::new();
        for _ in 0..CALLS_MAX {
            let calls = calls.clone();
            waiting.push(tokio::spawn(async move { calls.ask(Call::Stats).await.map(|_| ()) }));
        }
        while calls.0.capacity() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = calls.ask(Call::Status).await.map(|_| ());
        assert_eq!(refused.map_err(|r| r.error.error), Err("the agent is busy".into()));
        inbox.close();
        while inbox.recv().await.is_some() {}
        for task in waiting {
            let answer = task.await.unwrap();
            assert_eq!(answer.map_err(|r| r.status), Err(StatusCode::SERVICE_UNAVAILABLE));
        }
    }
}
