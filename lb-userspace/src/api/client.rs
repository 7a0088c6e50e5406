//! A client of the agent's API: one connection per request, every step under a time-out.
//!
//! Owns: the transport and its errors, in words for the user. Refuses to know: what an answer means.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{
    AdminChange, ApiError, Applied, ApplyRequest, Backend, ConfigDiff, ConfigText, DiffRequest, FlowList, FlowQuery,
    FlushRequest, Flushed, HealthTarget, NextHopEntry, PlanReport, Service, ServiceChange, ServiceDetail, Stats,
    Status,
};

/// Largest answer that is read: 65,536 backends with all their fields take about 40 MiB.
pub const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Time for the connection to be accepted.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time from the request to the end of the answer. An apply builds every ring, so it may take its time.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("agent not running? cannot connect to {}: {cause}", .socket.display())]
    NotReachable {
        /// The socket.
        socket: PathBuf,
        /// What `connect` said; part of the sentence, so not a source that is printed again.
        cause: io::Error,
    },
    /// The socket is for its owner and group.
    #[error("no permission to use {}: run as root or as a member of the socket's group", .socket.display())]
    NoPermission {
        /// The socket.
        socket: PathBuf,
    },
    /// The agent does not answer.
    #[error("the agent at {} did not answer {what} within {} s", .socket.display(), .limit.as_secs())]
    TimedOut {
        /// The socket.
        socket: PathBuf,
        /// The request: method and path.
        what: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The agent went away, or what listens there does not speak HTTP.
    #[error("the connection to {} broke during {what}: {cause}", .socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// The request: method and path.
        what: String,
        /// What hyper said.
        cause: String,
    },
    /// The answer is not what this version of the API says.
    #[error("the answer to {what} cannot be read ({cause}): agent and command line of different versions?")]
    Unreadable {
        /// The request: method and path.
        what: String,
        /// What the reader said.
        cause: String,
    },
    /// The agent answered with an error.
    #[error("{}", .error.error)]
    Refused {
        /// HTTP status.
        status: u16,
        /// What the agent said.
        error: ApiError,
    },
}

/// The agent's API at a socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    connect_timeout: Duration,
    answer_timeout: Duration,
}

impl Client {
    /// A client for the agent that listens at `socket`. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), connect_timeout: CONNECT_TIMEOUT, answer_timeout: ANSWER_TIMEOUT }
    }

    /// The same with another limit for the answer.
    pub fn with_answer_timeout(self, answer_timeout: Duration) -> Self {
        Self { answer_timeout, ..self }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET /v1/status`.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get(super::PATH_STATUS).await
    }

    /// `GET /v1/services`.
    pub async fn services(&self) -> Result<Vec<Service>, ClientError> {
        self.get(super::PATH_SERVICES).await
    }

    /// `GET /v1/services/{name}`.
    pub async fn service(&self, name: &str) -> Result<ServiceDetail, ClientError> {
        self.get(&super::service_path(name)).await
    }

    /// `GET /v1/backends`.
    pub async fn backends(&self) -> Result<Vec<Backend>, ClientError> {
        self.get(super::PATH_BACKENDS).await
    }

    /// `POST /v1/backends/{service}/{backend}/admin`; `backend` as [`super::backend_name`] writes it.
    pub async fn admin(&self, service: &str, backend: &str, change: AdminChange) -> Result<Backend, ClientError> {
        self.post(&super::admin_path(service, backend), &change).await
    }

    /// `POST /v1/services/{name}/settings`.
    pub async fn set(&self, service: &str, change: &ServiceChange) -> Result<ServiceDetail, ClientError> {
        self.post(&super::settings_path(service), change).await
    }

    /// `GET /v1/health`.
    pub async fn health(&self) -> Result<Vec<HealthTarget>, ClientError> {
        self.get(super::PATH_HEALTH).await
    }

    /// `GET /v1/next-hops`.
    pub async fn next_hops(&self) -> Result<Vec<NextHopEntry>, ClientError> {
        self.get(super::PATH_NEXT_HOPS).await
    }

    /// `GET /v1/stats`.
    pub async fn stats(&self) -> Result<Stats, ClientError> {
        self.get(super::PATH_STATS).await
    }

    /// `GET /v1/config`.
    pub async fn config(&self) -> Result<ConfigText, ClientError> {
        self.get(super::PATH_CONFIG).await
    }

    /// `POST /v1/config/diff`.
    pub async fn config_diff(&self, request: &DiffRequest) -> Result<ConfigDiff, ClientError> {
        self.post(super::PATH_CONFIG_DIFF, request).await
    }

    /// `POST /v1/config/apply`.
    pub async fn config_apply(&self, request: &ApplyRequest) -> Result<Applied, ClientError> {
        self.post(super::PATH_CONFIG_APPLY, request).await
    }

    /// `POST /v1/plan`.
    pub async fn plan(&self, request: &DiffRequest) -> Result<PlanReport, ClientError> {
        self.post(super::PATH_PLAN, request).await
    }

    /// `POST /v1/flows`.
    pub async fn flows(&self, query: &FlowQuery) -> Result<FlowList, ClientError> {
        self.post(super::PATH_FLOWS, query).await
    }

    /// `POST /v1/flows/flush`.
    pub async fn flush(&self, request: &FlushRequest) -> Result<Flushed, ClientError> {
        self.post(super::PATH_FLOWS_FLUSH, request).await
    }

    /// GETs a path of whatever weir listens there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// POSTs to a path of whatever weir listens there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body)
            .map_err(|e| ClientError::Unreadable { what: format!("POST {path}"), cause: e.to_string() })?;
        self.request(Method::POST, path, body.into()).await
    }

    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        let what = format!("{method} {path}");
        let stream = self.connect(&what).await?;
        let (status, answer) = tokio::time::timeout(self.answer_timeout, self.exchange(stream, method, path, body))
            .await
            .map_err(|_| self.timed_out(&what, self.answer_timeout))??;
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(|e| ClientError::Unreadable { what, cause: e.to_string() });
        }
        // A reader of errors must not fail on an error that is no JSON: show what there is.
        let error = serde_json::from_slice(&answer).unwrap_or_else(|_| ApiError {
            error: format!("{what}: HTTP status {status}: {}", String::from_utf8_lossy(&answer).trim()),
            ..ApiError::default()
        });
        Err(ClientError::Refused { status: status.as_u16(), error })
    }

    async fn connect(&self, what: &str) -> Result<UnixStream, ClientError> {
        tokio::time::timeout(self.connect_timeout, UnixStream::connect(&self.socket))
            .await
            .map_err(|_| self.timed_out(what, self.connect_timeout))?
            .map_err(|cause| match cause.kind() {
                io::ErrorKind::PermissionDenied => ClientError::NoPermission { socket: self.socket.clone() },
                _ => ClientError::NotReachable { socket: self.socket.clone(), cause },
            })
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let what = format!("{method} {path}");
        let broken = |cause: String| ClientError::Broken { socket: self.socket.clone(), what: what.clone(), cause };
        let request = Request::builder()
            .method(&method)
            .uri(path)
            .header(header::HOST, "weir")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| broken(e.to_string()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(e.to_string()))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|e| broken(e.to_string()))?;
            let status = response.status();
            let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|e| broken(e.to_string()))?;
            Ok((status, answer.to_bytes()))
        };
        tokio::pin!(exchange);
        // The connection is driven here, not in a task: when the caller gives up, nothing stays behind.
        tokio::select! {
            answer = &mut exchange => answer,
            ended = connection => match ended {
                // The last bytes may have arrived with the end of the connection.
                Ok(()) => exchange.await,
                Err(e) => Err(broken(e.to_string())),
            },
        }
    }

    fn timed_out(&self, what: &str, limit: Duration) -> ClientError {
        ClientError::TimedOut { socket: self.socket.clone(), what: what.into(), limit }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
    };

    use super::*;

    /// What asking for the status gives when the server answers the first connection with `bytes` and then closes it,
    /// or keeps it open.
    async fn ask(bytes: &'static [u8], close: bool) -> ClientError {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let client = Client::new(&socket).with_answer_timeout(Duration::from_millis(200));
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /v1/status HTTP/1.1\r\n"));
            stream.write_all(bytes).await.unwrap();
            if !close {
                std::future::pending::<()>().await;
            }
            drop(stream);
            std::future::pending().await
        };
        tokio::select! {
            answer = client.status() => answer.unwrap_err(),
            () = server => unreachable!("the server does not end"),
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn silence_ends_and_nonsense_is_an_error() {
        runtime().block_on(async {
            assert!(matches!(ask(b"", false).await, ClientError::TimedOut { .. }));
            assert!(matches!(ask(b"HTTP/1.1 200 OK\r\n", false).await, ClientError::TimedOut { .. }));
            assert!(matches!(ask(b"", true).await, ClientError::Broken { .. }));
            assert!(matches!(ask(b"SSH-2.0-x\r\n\r\n", true).await, ClientError::Broken { .. }));
            let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}";
            assert!(matches!(ask(cut, true).await, ClientError::Broken { .. }));
            let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
            assert!(matches!(ask(whole, true).await, ClientError::Unreadable { .. }));
        });
    }

    #[test]
    fn a_stale_socket_is_not_reachable() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("api.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).unwrap();
        let error = runtime().block_on(Client::new(&socket).status()).unwrap_err();
        assert!(matches!(error, ClientError::NotReachable { .. }), "{error:?}");
    }
}
