//! The others' side: a connection for each call, and one for the news.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    http::{Method, Request, StatusCode, header},
};
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

use super::{
    Answer, BODY_BYTES_MAX, CALL, Call, LINE_BYTES_MAX, NEWS, Outcome, SILENCE_MAX,
    server::{certificates, roots},
};
use crate::store::{
    access::{Commit, Notice, Put, Record, Recorded, Since, Snapshot, Store, StoreError, Subscription, Written},
    object::{Change, Key, Revision},
    redis::is_loopback,
    secret::Secret,
    tls,
};

/// Time for a connection with its handshakes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for an answer; the server's own limit is shorter than two of these.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(65);

/// Where a store is served.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host (name or address, without brackets) and a port.
    Tcp(String, u16),
    /// The same with TLS.
    Tls(String, u16, ClientTls),
}

/// TLS as a client.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls(..)")
    }
}

impl ClientTls {
    /// Trusts the authorities `ca` (PEM), or those of the system, and shows the certificate chain and key (PEM), if any.
    ///
    /// # Errors
    /// [`StoreError::Refused`] with what is wrong; nothing of the key.
    pub fn new(ca: Option<&[u8]>, identity: Option<(&[u8], &Secret)>) -> Result<Self, StoreError> {
        tls::provide();
        let trusted = match ca {
            Some(ca) => roots(ca)?,
            None => {
                let mut trusted = RootCertStore::empty();
                // One that is not understood vouches for nobody.
                trusted.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                trusted
            }
        };
        let builder = ClientConfig::builder().with_root_certificates(trusted);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
                    .map_err(|_| StoreError::Refused("TLS: the key is no PEM private key".into()))?;
                builder
                    .with_client_auth_cert(certificates(chain)?, key)
                    .map_err(|e| StoreError::Refused(format!("TLS: certificate and key: {e}")))?
            }
        };
        Ok(Self(Arc::new(config)))
    }
}

/// A store that another process serves.
#[derive(Clone, Debug)]
pub struct HttpStore {
    endpoint: Endpoint,
    token: Option<Secret>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A task that ends with its owner.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl HttpStore {
    /// The store at `endpoint`, shown `token`.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a token that would go unencrypted to another machine, unless `insecure`.
    pub fn new(endpoint: Endpoint, token: Option<Secret>, insecure: bool) -> Result<Self, StoreError> {
        match &endpoint {
            Endpoint::Tcp(host, _) if token.is_some() && !insecure && !is_loopback(host) => Err(StoreError::Refused(
                "a token is not sent to another machine without TLS; `insecure = true` if that is what you want".into(),
            )),
            _ => Ok(Self { endpoint, token }),
        }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, StoreError> {
        let cannot = |e: std::io::Error| StoreError::Unavailable(format!("{}: {e}", self.describe()));
        let tcp = async |host: &str, port: u16| {
            let stream = TcpStream::connect((host, port)).await.map_err(cannot)?;
            stream.set_nodelay(true).map_err(cannot)?;
            Ok::<_, StoreError>(stream)
        };
        let connecting = async {
            Ok(match &self.endpoint {
                Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(cannot)?) as Box<dyn Stream>,
                Endpoint::Tcp(host, port) => Box::new(tcp(host, *port).await?),
                Endpoint::Tls(host, port, tls) => {
                    let name = ServerName::try_from(host.clone())
                        .map_err(|_| StoreError::Refused(format!("{host} is no name that a certificate could have")))?;
                    let stream = tcp(host, *port).await?;
                    Box::new(TlsConnector::from(Arc::clone(&tls.0)).connect(name, stream).await.map_err(cannot)?)
                }
            })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .unwrap_or_else(|_| Err(StoreError::Unavailable(format!("{}: connecting took too long", self.describe()))))
    }

    /// Sends one request; the connection lives as long as the driver.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Incoming, Driver), StoreError> {
        let broken = |e: &dyn fmt::Display| StoreError::Unavailable(format!("{}: {e}", self.describe()));
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        let driver = Driver(tokio::spawn(async {
            // Whoever waits for an answer is told that it broke.
            let _ = connection.await;
        }));
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "weir");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| StoreError::Refused("the token has characters that no header may have".into()))?;
        // Nothing is known of a request once it may be out.
        let uncertain = |why: String| StoreError::Uncertain(format!("{}: {why}", self.describe()));
        let response = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request))
            .await
            .map_err(|_| uncertain("no answer".into()))?
            .map_err(|e| uncertain(e.to_string()))?;
        let (parts, body) = response.into_parts();
        Ok((parts.status, body, driver))
    }

    async fn call(&self, call: Call) -> Outcome {
        let body = serde_json::to_vec(&call).map_err(|e| StoreError::Broken(e.to_string()))?;
        let answered = async {
            let (status, body, _driver) = self.send(Method::POST, CALL, body).await?;
            let body = tokio::time::timeout(ANSWER_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
            let body = body
                .map_err(|_| StoreError::Uncertain("the answer takes too long".into()))?
                .map_err(|e| StoreError::Uncertain(format!("the answer broke off: {e}")))?;
            serde_json::from_slice::<Outcome>(&body.to_bytes())
                .map_err(|_| StoreError::Broken(format!("{}: HTTP status {status}", self.describe())))
        };
        match answered.await {
            Ok(outcome) => outcome,
            // A question that was not answered can be asked again.
            Err(StoreError::Uncertain(why)) if !call.writes() => Err(StoreError::Unavailable(why)),
            Err(error) => Err(error),
        }
    }

    async fn listen(&self) -> Result<Box<dyn Subscription>, StoreError> {
        let (status, body, driver) = self.send(Method::GET, NEWS, Vec::new()).await.map_err(|error| match error {
            StoreError::Uncertain(why) => StoreError::Unavailable(why),
            error => error,
        })?;
        if status == StatusCode::OK {
            return Ok(Box::new(News { body, line: Vec::new(), _driver: driver }));
        }
        if status == StatusCode::UNAUTHORIZED {
            return Err(StoreError::Denied("no valid token was shown".into()));
        }
        Err(StoreError::Unavailable(format!("{}: HTTP status {status}", self.describe())))
    }
}

struct News {
    body: Incoming,
    /// What has come without its end.
    line: Vec<u8>,
    _driver: Driver,
}

impl News {
    /// The next complete line that says something.
    fn notice(&mut self) -> Result<Option<Notice>, StoreError> {
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let rest = self.line.split_off(end + 1);
            let line = std::mem::replace(&mut self.line, rest);
            if line.len() > 1 {
                let notice =
                    serde_json::from_slice(&line).map_err(|e| StoreError::Unavailable(format!("news: {e}")))?;
                return Ok(Some(notice));
            }
        }
        if self.line.len() > LINE_BYTES_MAX {
            return Err(StoreError::Unavailable("a line of news is too long".into()));
        }
        Ok(None)
    }
}

impl Subscription for News {
    fn next(&mut self) -> BoxFuture<'_, Result<Notice, StoreError>> {
        Box::pin(async {
            loop {
                if let Some(notice) = self.notice()? {
                    return Ok(notice);
                }
                // A frame is either taken whole or left where it is.
                let frame = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await;
                let closed = || StoreError::Unavailable("the connection was closed".into());
                let frame = frame.map_err(|_| StoreError::Unavailable("the store has fallen silent".into()))?;
                let frame = frame.ok_or_else(closed)?.map_err(|_| closed())?;
                if let Ok(data) = frame.into_data() {
                    self.line.extend_from_slice(&data);
                }
            }
        })
    }
}

fn other<T>(_: Answer) -> Result<T, StoreError> {
    Err(StoreError::Broken("the answer to another call".into()))
}

impl Store for HttpStore {
    fn describe(&self) -> String {
        match &self.endpoint {
            Endpoint::Unix(path) => format!("store at {}", path.display()),
            Endpoint::Tcp(host, port) => format!("store at http://{host}:{port}"),
            Endpoint::Tls(host, port, _) => format!("store at https://{host}:{port}"),
        }
    }

    fn snapshot(&self) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        Box::pin(async {
            match self.call(Call::Snapshot).await? {
                Answer::Snapshot(snapshot) => Ok(snapshot),
                answer => other(answer),
            }
        })
    }

    fn since(&self, from: Revision) -> BoxFuture<'_, Result<Since, StoreError>> {
        Box::pin(async move {
            match self.call(Call::Since(from)).await? {
                Answer::Since(since) => Ok(since),
                answer => other(answer),
            }
        })
    }

    fn commit(&self, commit: Commit) -> BoxFuture<'_, Result<Written, StoreError>> {
        Box::pin(async {
            match self.call(Call::Commit(Box::new(commit))).await? {
                Answer::Written(written) => Ok(written),
                answer => other(answer),
            }
        })
    }

    fn history(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Change>, StoreError>> {
        Box::pin(async move {
            match self.call(Call::History(limit)).await? {
                Answer::History(changes) => Ok(changes),
                answer => other(answer),
            }
        })
    }

    fn record_get(&self, key: Key) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        Box::pin(async {
            match self.call(Call::RecordGet(key)).await? {
                Answer::Record(record) => Ok(record),
                answer => other(answer),
            }
        })
    }

    fn record_put(&self, put: Put) -> BoxFuture<'_, Result<Recorded, StoreError>> {
        Box::pin(async {
            match self.call(Call::RecordPut(put)).await? {
                Answer::Recorded(recorded) => Ok(recorded),
                answer => other(answer),
            }
        })
    }

    fn record_list(
        &self,
        prefix: String,
        after: Option<Key>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        Box::pin(async move {
            match self.call(Call::RecordList { prefix, after, limit }).await? {
                Answer::Records(records) => Ok(records),
                answer => other(answer),
            }
        })
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        Box::pin(self.listen())
    }
}
