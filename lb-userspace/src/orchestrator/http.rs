//! A small HTTP client for what the orchestrator asks others: Prometheus, webhooks, ready endpoints.
//!
//! Owns: limits. One connection per request; a time-out over everything from the name's resolution to the last byte; so many
//! bytes and no more. Refuses to know: TLS (a sidecar or a local proxy speaks it), redirects, what the answer means.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Uri, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Bytes of an answer's header, at most.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The address is none that can be asked.
    #[error("{url}: {why}")]
    Url {
        /// The address.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No connection.
    #[error("cannot connect to {authority}: {why}")]
    Connect {
        /// Host and port.
        authority: String,
        /// What the system said.
        why: String,
    },
    /// The time was over.
    #[error("no answer from {authority} within {ms} ms")]
    TimedOut {
        /// Host and port.
        authority: String,
        /// The time.
        ms: u128,
    },
    /// The connection broke, or the answer was no HTTP.
    #[error("the answer of {authority} cannot be read: {why}")]
    Broken {
        /// Host and port.
        authority: String,
        /// What went wrong.
        why: String,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: Bytes,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// GET or POST.
    pub method: Method,
    /// `http://HOST[:PORT]/PATH`.
    pub url: &'a str,
    /// Further headers.
    pub headers: Vec<(header::HeaderName, header::HeaderValue)>,
    /// Body.
    pub body: Bytes,
    /// Time for everything.
    pub timeout: Duration,
    /// Bytes of the answer's body, at most.
    pub bytes_max: usize,
}

/// Checks that `url` can be asked.
///
/// # Errors
/// [`HttpError::Url`].
pub fn check(url: &str) -> Result<Uri, HttpError> {
    let wrong = |why| HttpError::Url { url: url.chars().take(120).collect(), why };
    let uri: Uri = url.parse().map_err(|_| wrong("is no URL"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(wrong("weir speaks plain HTTP here: put a proxy that speaks TLS on this machine")),
        _ => return Err(wrong("begins with `http://`")),
    }
    let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
    if authority.as_str().contains('@') {
        return Err(wrong("carries a user name or password, which would be seen in logs"));
    }
    if authority.host().is_empty() {
        return Err(wrong("names no host"));
    }
    Ok(uri)
}

/// Asks.
///
/// # Errors
/// [`HttpError`]; a status of whatever kind is an answer and no error.
pub async fn ask(ask: Ask<'_>) -> Result<Answer, HttpError> {
    let uri = check(ask.url)?;
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(80);
    let authority = uri.authority().map_or_else(String::new, ToString::to_string);
    let timed_out = HttpError::TimedOut { authority: authority.clone(), ms: ask.timeout.as_millis() };
    let exchange = async {
        let connect = |e: std::io::Error| HttpError::Connect { authority: authority.clone(), why: e.to_string() };
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(connect)?;
        exchange(stream, &uri, &authority, &ask).await
    };
    tokio::time::timeout(ask.timeout, exchange).await.unwrap_or(Err(timed_out))
}

async fn exchange(stream: TcpStream, uri: &Uri, authority: &str, ask: &Ask<'_>) -> Result<Answer, HttpError> {
    let broken = |why: String| HttpError::Broken { authority: authority.to_owned(), why };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder()
        .method(ask.method.clone())
        .uri(path)
        .header(header::HOST, authority)
        .header(header::USER_AGENT, concat!("weir/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close");
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(ask.body.clone())).map_err(|e| broken(e.to_string()))?;
    let handshake = http1::Builder::new().max_buf_size(HEADER_BYTES_MAX).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| broken(e.to_string()))?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|e| broken(e.to_string()))?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ask.bytes_max).collect().await;
        Ok(Answer { status, body: body.map_err(|e| broken(e.to_string()))?.to_bytes() })
    };
    // The connection lives as long as the answer is being read; that it ends first is told by the answer.
    tokio::pin!(answer);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}

/// Whether `GET /ready` at `address` is answered with 2xx in time.
pub async fn is_ready(address: SocketAddr, timeout: Duration) -> bool {
    let url = format!("http://{address}/ready");
    let get =
        Ask { method: Method::GET, url: &url, headers: Vec::new(), body: Bytes::new(), timeout, bytes_max: 16 << 10 };
    matches!(ask(get).await, Ok(Answer { status: 200..=299, .. }))
}

/// `text` as a form's value (RFC 3986 unreserved characters stay, all else is escaped).
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Serves one connection with `says`; the URL.
    async fn server(says: &'static str) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}/x?y=1", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 2048];
            let _ = stream.read(&mut buffer).await;
            stream.write_all(says.as_bytes()).await.unwrap();
            if says.is_empty() {
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
        });
        url
    }

    fn get(url: &str) -> Ask<'_> {
        let timeout = Duration::from_secs(5);
        Ask { method: Method::GET, url, headers: Vec::new(), body: Bytes::new(), timeout, bytes_max: 10 }
    }

    #[tokio::test]
    async fn answers_and_their_limits() {
        let url = server("HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(ask(get(&url)).await, Ok(Answer { status: 503, body: Bytes::from("ok") }));
        let url = server("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world").await;
        assert!(matches!(ask(get(&url)).await, Err(HttpError::Broken { .. })));
        let url = server("SSH-2.0\r\n\r\n").await;
        assert!(matches!(ask(get(&url)).await, Err(HttpError::Broken { .. })));
        let url = server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe").await;
        assert!(matches!(ask(get(&url)).await, Err(HttpError::Broken { .. })));
        let url = server("").await;
        let short = Ask { timeout: Duration::from_millis(100), ..get(&url) };
        assert!(matches!(ask(short).await, Err(HttpError::TimedOut { ms: 100, .. })));
    }

    #[tokio::test]
    async fn nobody_there_is_said() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let url = format!("http://{address}/");
        assert!(matches!(ask(get(&url)).await, Err(HttpError::Connect { .. })));
        assert!(!is_ready(address, Duration::from_secs(1)).await);
    }

    #[test]
    fn only_plain_urls_without_secrets() {
        for (url, good) in [
            ("http://127.0.0.1:9090", true),
            ("http://prometheus/prefix", true),
            ("http://[::1]:9090/", true),
            ("https://prometheus", false),
            ("prometheus:9090", false),
            ("/x", false),
            ("", false),
            ("http://u:p@prometheus", false),
        ] {
            assert_eq!(check(url).is_ok(), good, "{url}");
        }
        assert_eq!(escaped("sum(a{b=\"ü\"}) / 2"), "sum%28a%7Bb%3D%22%C3%BC%22%7D%29%20%2F%202");
    }
}
