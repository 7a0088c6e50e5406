//! The owner's side.

use std::{fmt, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures_util::stream;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;

use super::{Answer, BEAT, BODY_BYTES_MAX, CALL, Call, NEWS, Outcome, stall::Stall};
use crate::store::{
    access::{Store, StoreError, Subscription},
    secret::Secret,
    tls,
};

/// Connections at a time: a stream and a call of a few hundred nodes. The next one waits in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 1_024;
/// Time for a TLS handshake and for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a call, its body included.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an answer may get nowhere because its reader takes nothing.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Pause after an accept that failed, as when descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where callers come in.
pub enum Door {
    /// A Unix socket; who may open it may do everything.
    Unix(UnixListener),
    /// TCP.
    Tcp(TcpListener),
    /// TLS over TCP.
    Tls(TcpListener, ServerTls),
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(listener) => f.debug_tuple("Unix").field(listener).finish(),
            Self::Tcp(listener) => f.debug_tuple("Tcp").field(listener).finish(),
            Self::Tls(listener, _) => f.debug_tuple("Tls").field(listener).finish_non_exhaustive(),
        }
    }
}

/// TLS as a server.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// Callers show a certificate.
    mutual: bool,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("mutual", &self.mutual).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// From certificate chain and key (PEM), and the authorities (PEM) whose certificates callers must show, if any.
    ///
    /// # Errors
    /// [`StoreError::Refused`] with what is wrong; nothing of the key.
    pub fn new(chain: &[u8], key: &Secret, callers: Option<&[u8]>) -> Result<Self, StoreError> {
        tls::provide();
        let wrong = |what: &str, e: &dyn fmt::Display| StoreError::Refused(format!("TLS: {what}: {e}"));
        let chain = certificates(chain)?;
        // The parser's error may quote what it read.
        let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
            .map_err(|_| StoreError::Refused("TLS: the key is no PEM private key".into()))?;
        let builder = match callers {
            None => ServerConfig::builder().with_no_client_auth(),
            Some(callers) => {
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots(callers)?)).build();
                ServerConfig::builder()
                    .with_client_cert_verifier(verifier.map_err(|e| wrong("the callers' authorities", &e))?)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(|e| wrong("certificate and key", &e))?;
        Ok(Self { config: Arc::new(config), mutual: callers.is_some() })
    }
}

/// Certificates in PEM.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let wrong = |why: String| StoreError::Refused(format!("TLS: the certificates: {why}"));
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| wrong(e.to_string()))?;
    if found.is_empty() { Err(wrong("there are none".into())) } else { Ok(found) }
}

/// Authorities in PEM.
pub(super) fn roots(pem: &[u8]) -> Result<RootCertStore, StoreError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|e| StoreError::Refused(format!("TLS: an authority: {e}")))?;
    }
    Ok(roots)
}

/// Who may call.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Who shows one of these may do everything. Without any, nobody is asked for one.
    pub tokens: Vec<Secret>,
    /// Neither tokens nor certificates for callers on other machines is what somebody wants.
    pub insecure: bool,
}

impl Access {
    fn check(&self, door: &Door) -> Result<(), StoreError> {
        let listener = match door {
            Door::Unix(_) => return Ok(()),
            Door::Tls(_, tls) if tls.mutual => return Ok(()),
            Door::Tls(listener, _) | Door::Tcp(listener) => listener,
        };
        let local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let plain = matches!(door, Door::Tcp(_));
        if local || self.insecure || (!self.tokens.is_empty() && !plain) {
            return Ok(());
        }
        Err(StoreError::Refused(
            "the store is not served to other machines without TLS and a token, or certificates of callers; \
             `insecure = true` if that is what you want"
                .into(),
        ))
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        if self.tokens.is_empty() {
            return true;
        }
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(shown) = shown.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
        // Digests are compared, so the time says nothing about the token.
        let digest = |text: &str| Sha256::digest(text.as_bytes());
        let shown = digest(shown.trim());
        self.tokens.iter().any(|token| digest(token.expose()) == shown)
    }
}

#[derive(Clone)]
struct Served {
    store: Arc<dyn Store>,
    access: Arc<Access>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Serves `store` until the task is dropped.
///
/// # Errors
/// [`StoreError::Refused`] if callers on other machines would need neither token nor certificate.
pub async fn serve(door: Door, store: Arc<dyn Store>, access: Access) -> Result<(), StoreError> {
    access.check(&door)?;
    let router = router(Served { store, access: Arc::new(access) });
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropping the set ends what it holds, so no connection outlives its server.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // The semaphore is never closed, so the permit is always there in the end.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return Ok(()) };
        let accepted: io::Result<(Box<dyn Stream>, Option<TlsAcceptor>)> = match &door {
            Door::Unix(listener) => listener.accept().await.map(|(stream, _)| (Box::new(stream) as _, None)),
            Door::Tcp(listener) => listener.accept().await.map(|(stream, _)| (no_delay(stream), None)),
            Door::Tls(listener, tls) => {
                let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
                listener.accept().await.map(|(stream, _)| (no_delay(stream), Some(acceptor)))
            }
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, acceptor)) => {
                let service = TowerToHyperService::new(router.clone());
                connections.spawn(async move {
                    connection(stream, acceptor, service).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the store");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn no_delay(stream: tokio::net::TcpStream) -> Box<dyn Stream> {
    // A notice is small and must not wait for the next one; without the option it is only later.
    let _ = stream.set_nodelay(true);
    Box::new(stream)
}

async fn connection(stream: Box<dyn Stream>, acceptor: Option<TlsAcceptor>, service: TowerToHyperService<Router>) {
    let stream: Box<dyn Stream> = match acceptor {
        None => stream,
        Some(acceptor) => match tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(error)) => return tracing::debug!(%error, "no TLS with a caller of the store"),
            Err(_) => return tracing::debug!("a caller of the store did not finish its TLS handshake"),
        },
    };
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(Stall::new(stream, STALL_MAX)), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the store broke");
    }
}

fn router(served: Served) -> Router {
    Router::new()
        .route(CALL, post(call))
        .route(NEWS, get(news))
        .fallback(async || StatusCode::NOT_FOUND)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        // Outermost: a body is read only for those who may send one.
        .layer(middleware::from_fn_with_state(served.clone(), admit))
        .with_state(served)
}

async fn admit(State(served): State<Served>, request: Request, next: Next) -> Response {
    if !served.access.admits(request.headers()) {
        let refused: Outcome = Err(StoreError::Denied("no valid token was shown".into()));
        return json(StatusCode::UNAUTHORIZED, &refused);
    }
    next.run(request).await
}

async fn call(State(served): State<Served>, request: Request) -> Response {
    let answer = tokio::time::timeout(CALL_TIMEOUT, async {
        let body = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX)
            .await
            .map_err(|e| StoreError::Refused(format!("the call cannot be read: {e}")))?;
        let call: Call = serde_json::from_slice(&body)
            .map_err(|e| StoreError::Refused(format!("the call is not understood: {e}")))?;
        make(&*served.store, call).await
    });
    let outcome = answer.await.unwrap_or_else(|_| Err(StoreError::Uncertain("it took too long".into())));
    let status = match &outcome {
        Ok(_) => StatusCode::OK,
        Err(StoreError::Conflict { .. } | StoreError::RecordConflict { .. } | StoreError::Fenced) => {
            StatusCode::CONFLICT
        }
        Err(StoreError::Form(_) | StoreError::Refused(_) | StoreError::Unsupported(_)) => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    json(status, &outcome)
}

async fn make(store: &dyn Store, call: Call) -> Outcome {
    Ok(match call {
        Call::Snapshot => Answer::Snapshot(store.snapshot().await?),
        Call::Since(from) => Answer::Since(store.since(from).await?),
        Call::Commit(commit) => Answer::Written(store.commit(*commit).await?),
        Call::History(limit) => Answer::History(store.history(limit).await?),
        Call::RecordGet(key) => Answer::Record(store.record_get(key).await?),
        Call::RecordPut(put) => Answer::Recorded(store.record_put(put).await?),
        Call::RecordList { prefix, after, limit } => Answer::Records(store.record_list(prefix, after, limit).await?),
    })
}

/// The answer's head says that the subscription stands.
async fn news(State(served): State<Served>) -> Response {
    match served.store.subscribe().await {
        Ok(subscription) => Body::from_stream(stream::unfold(Some(subscription), line)).into_response(),
        Err(error) => json(StatusCode::SERVICE_UNAVAILABLE, &Outcome::Err(error)),
    }
}

type Lines = Option<Box<dyn Subscription>>;

async fn line(lines: Lines) -> Option<(io::Result<Bytes>, Lines)> {
    let mut subscription = lines?;
    match tokio::time::timeout(BEAT, subscription.next()).await {
        Err(_) => Some((Ok(Bytes::from_static(b"\n")), Some(subscription))),
        Ok(Ok(notice)) => match serde_json::to_vec(&notice) {
            Ok(mut line) => {
                line.push(b'\n');
                Some((Ok(line.into()), Some(subscription)))
            }
            Err(error) => Some((Err(io::Error::other(error)), None)),
        },
        // The end of the stream says it.
        Ok(Err(_)) => None,
    }
}

fn json(status: StatusCode, outcome: &Outcome) -> Response {
    match serde_json::to_vec(outcome) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixStream,
    };

    use super::*;
    use crate::store::{Key, memory::MemoryStore, write::Intent};

    /// Bytes of the object that is asked for: more than any socket's buffer holds.
    const LARGE: usize = 2 << 20;

    /// What of the answer to a question for everything arrives at a reader that pauses before it takes anything.
    async fn arrives(pause: Duration) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("store.sock");
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let large = (Key::new("service/a").unwrap(), Some("x".repeat(LARGE).into()));
        store.write(&Intent::default(), &[large], |_| Ok::<(), ()>(())).await.unwrap();
        let door = Door::Unix(UnixListener::bind(&socket).unwrap());
        let server = tokio::spawn(serve(door, store, Access::default()));
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let body = serde_json::to_string(&Call::Snapshot).unwrap();
        let request = format!("POST {CALL} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(pause).await;
        let mut answer = Vec::new();
        // A connection that was given up may end in an error.
        let _ = stream.read_to_end(&mut answer).await;
        server.abort();
        answer.len()
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_an_answer_loses_the_connection() {
        assert!(arrives(STALL_MAX / 2).await > LARGE, "a slow reader gets all of it");
        let arrived = arrives(STALL_MAX * 2).await;
        assert!(arrived < LARGE, "{arrived} bytes");
    }
}
