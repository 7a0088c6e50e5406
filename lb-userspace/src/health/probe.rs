//! One probe: a TCP connection, and an HTTP request on it if the check asks for one.
//!
//! Refuses to know when to ask and what the answer means for a backend. Invariants: the time-out covers the whole probe from
//! the first SYN to the status line; a connection serves one probe; closing is a normal FIN in both directions wherever the
//! backend plays along within [`LINGER`], so that backends do not log resets.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    pin::Pin,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{timeout, timeout_at},
};

use super::outcome::{Outcome, ResponseError};
use crate::model;

/// Bytes of a response's header, at most.
pub const HEADER_BYTES_MAX: usize = 16 << 10;
/// Bytes that are read after the verdict (rest of a body, a banner) before the connection is closed regardless.
pub const DRAIN_BYTES_MAX: usize = 64 << 10;
/// How long that may take.
pub const LINGER: Duration = Duration::from_millis(200);

/// What one probe found and how long that took, closing not included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it found.
    pub outcome: Outcome,
    /// From the first SYN to the verdict.
    pub latency: Duration,
}

/// Asks `address`. Takes `timeout` plus [`LINGER`] at most.
pub async fn run(address: SocketAddr, probe: &model::Probe, limit: Duration) -> Report {
    let start = Instant::now();
    let deadline = tokio::time::Instant::now() + limit;
    let report = |outcome| Report { outcome, latency: start.elapsed() };
    let request = match probe {
        model::Probe::Tcp => None,
        model::Probe::Http { path, host } => match request(address, path, host.as_deref()) {
            Ok(request) => Some(request),
            Err(error) => return report(Outcome::SockErr(format!("path or host cannot be asked for: {error}"))),
        },
    };
    let stream = match timeout_at(deadline, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return report(Outcome::from_connect_error(&error)),
        Err(_) => return report(Outcome::L4Tout),
    };
    let Some(request) = request else {
        let report = report(Outcome::L4Ok);
        close(stream).await;
        return report;
    };
    let (outcome, rest) = match timeout_at(deadline, http(stream, request)).await {
        Ok(found) => found,
        Err(_) => (Outcome::L7Tout, None),
    };
    let report = report(outcome);
    if let Some(rest) = rest {
        rest.finish().await;
    }
    report
}

type Connection = http1::Connection<TokioIo<TcpStream>, Empty<Bytes>>;

/// What is left of an HTTP exchange once the status is known.
struct Rest {
    sender: http1::SendRequest<Empty<Bytes>>,
    connection: Pin<Box<Connection>>,
    body: Incoming,
}

impl Rest {
    /// Reads the rest of the body within the limits, then closes.
    async fn finish(self) {
        let Self { sender, connection, mut body } = self;
        let read = async move {
            let mut bytes = 0;
            while bytes < DRAIN_BYTES_MAX
                && let Some(Ok(frame)) = body.frame().await
            {
                bytes += frame.data_ref().map_or(0, Bytes::len);
            }
            drop(sender);
        };
        // Either way the socket is closed when this returns: past the limits a reset is the backend's own doing.
        let _ = timeout(LINGER, async { tokio::join!(read, connection) }).await;
    }
}

/// Sends the request and waits for the header of the response.
async fn http(stream: TcpStream, request: Request<Empty<Bytes>>) -> (Outcome, Option<Rest>) {
    let handshake = http1::Builder::new().max_buf_size(HEADER_BYTES_MAX).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = match handshake {
        Ok(parts) => parts,
        Err(error) => return (from_hyper(&error), None),
    };
    let mut connection = Box::pin(connection);
    let answer = {
        let mut answer = std::pin::pin!(sender.send_request(request));
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = &mut connection => return (match (answer.await, ended) {
                // The whole response came before the connection ended: there is nothing left to close.
                (Ok(response), _) => from_status(response.status().as_u16()),
                (Err(error), Ok(())) => from_hyper(&error),
                (Err(error), Err(_)) if !error.is_canceled() => from_hyper(&error),
                (Err(_), Err(error)) => from_hyper(&error),
            }, None),
        }
    };
    match answer {
        Ok(response) => {
            let outcome = from_status(response.status().as_u16());
            (outcome, Some(Rest { sender, connection, body: response.into_body() }))
        }
        Err(error) => (from_hyper(&error), None),
    }
}

fn request(address: SocketAddr, path: &str, host: Option<&str>) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let host = match host {
        Some(host) => host.to_owned(),
        None if address.port() == 80 && address.is_ipv4() => address.ip().to_string(),
        None => address.to_string(),
    };
    Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("weir/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
}

fn from_status(status: u16) -> Outcome {
    if (200..300).contains(&status) { Outcome::L7Ok { status } } else { Outcome::L7Sts { status } }
}

fn from_hyper(error: &hyper::Error) -> Outcome {
    if error.is_parse_too_large() {
        return Outcome::L7Rsp(ResponseError::TooLarge);
    }
    if error.is_parse() {
        return Outcome::L7Rsp(ResponseError::Invalid);
    }
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(error) => Outcome::from_stream_error(error),
        None => Outcome::L7Rsp(ResponseError::Closed),
    }
}

/// Closes a connection that only had to be accepted: FIN, then whatever the backend still says (a banner left unread would
/// turn our close into a reset).
async fn close(mut stream: TcpStream) {
    let finish = async {
        stream.shutdown().await?;
        let mut buffer = [0; 2048];
        let mut bytes = 0;
        while bytes < DRAIN_BYTES_MAX {
            match stream.read(&mut buffer).await? {
                0 => break,
                n => bytes += n,
            }
        }
        io::Result::Ok(())
    };
    // The verdict is known; a backend that does not close in time, or resets, changes nothing about it.
    let _ = timeout(LINGER, finish).await;
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{net::TcpListener, task::JoinHandle};

    use super::*;

    /// What a test server does with its first connection.
    #[derive(Clone, Copy)]
    enum Act {
        Say(&'static str),
        Silence,
        CloseAtOnce,
        Reset,
        /// A header, then a body without end.
        Endless,
    }

    /// Serves one connection; resolves to what it read and how the client's side ended.
    async fn serve(act: Act) -> (SocketAddr, JoinHandle<(String, io::Result<usize>)>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let address = listener.local_addr().expect("address");
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut buffer = vec![0; 4096];
            if matches!(act, Act::CloseAtOnce) {
                drop(stream);
                return (String::new(), Ok(0));
            }
            let n = stream.read(&mut buffer).await.unwrap_or(0);
            let said = String::from_utf8_lossy(&buffer[..n]).into_owned();
            match act {
                Act::Say(text) => stream.write_all(text.as_bytes()).await.expect("write"),
                Act::Reset => {
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger");
                    drop(stream);
                    return (said, Ok(0));
                }
                Act::Endless => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("write");
                    while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
                    return (said, Ok(0));
                }
                Act::Silence | Act::CloseAtOnce => {}
            }
            if matches!(act, Act::Say(_)) {
                stream.shutdown().await.ok();
            }
            let end = timeout(Duration::from_secs(2), stream.read(&mut buffer)).await.unwrap_or(Ok(usize::MAX));
            (said, end)
        });
        (address, task)
    }

    fn http_probe() -> model::Probe {
        model::Probe::Http { path: "/health".into(), host: None }
    }

    const LIMIT: Duration = Duration::from_millis(400);

    #[tokio::test]
    async fn http_outcomes() {
        let huge: &'static str =
            Box::leak(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(40_000)).into_boxed_str());
        for (what, act, want) in [
            ("ok", Act::Say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), Outcome::L7Ok { status: 200 }),
            ("no content", Act::Say("HTTP/1.1 204 No Content\r\n\r\n"), Outcome::L7Ok { status: 204 }),
            ("old version", Act::Say("HTTP/1.0 200 OK\r\n\r\nbody until the end"), Outcome::L7Ok { status: 200 }),
            ("short body", Act::Say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"), Outcome::L7Ok { status: 200 }),
            (
                "server error",
                Act::Say("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"),
                Outcome::L7Sts { status: 500 },
            ),
            ("redirect", Act::Say("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), Outcome::L7Sts { status: 302 }),
            ("garbage", Act::Say("SSH-2.0-OpenSSH_9.2\r\n\r\n"), Outcome::L7Rsp(ResponseError::Invalid)),
            ("huge header", Act::Say(huge), Outcome::L7Rsp(ResponseError::TooLarge)),
            ("half a header", Act::Say("HTTP/1.1 200 OK\r\nConte"), Outcome::L7Rsp(ResponseError::Closed)),
            ("closes", Act::CloseAtOnce, Outcome::L7Rsp(ResponseError::Closed)),
            ("resets", Act::Reset, Outcome::L7Rsp(ResponseError::Reset)),
            ("silence", Act::Silence, Outcome::L7Tout),
        ] {
            let (address, server) = serve(act).await;
            let report = run(address, &http_probe(), LIMIT).await;
            // A server that closes with our request unread resets the connection: both words are right then.
            if what == "closes" && report.outcome == Outcome::L7Rsp(ResponseError::Reset) {
                continue;
            }
            assert_eq!(report.outcome, want, "{what}");
            server.await.expect("server").1.ok();
        }
    }

    #[tokio::test]
    async fn request_is_what_http_asks_for() {
        let (address, server) = serve(Act::Say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")).await;
        let probe = model::Probe::Http { path: "/live?x=1".into(), host: Some("example.org".into()) };
        assert_eq!(run(address, &probe, LIMIT).await.outcome, Outcome::L7Ok { status: 200 });
        let (said, end) = server.await.expect("server");
        assert!(said.starts_with("GET /live?x=1 HTTP/1.1\r\n"), "{said}");
        assert!(said.to_ascii_lowercase().contains("\r\nhost: example.org\r\n"), "{said}");
        assert!(said.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{said}");
        assert_eq!(end.expect("closed by FIN, not by a reset"), 0);
    }

    #[tokio::test]
    async fn a_body_without_end_costs_no_verdict_and_little_time() {
        let (address, _server) = serve(Act::Endless).await;
        let start = Instant::now();
        assert_eq!(run(address, &http_probe(), LIMIT).await.outcome, Outcome::L7Ok { status: 200 });
        assert!(start.elapsed() < LIMIT + LINGER + Duration::from_millis(300));
    }

    #[tokio::test]
    async fn tcp_outcomes() {
        let (address, server) = serve(Act::Silence).await;
        let report = run(address, &model::Probe::Tcp, LIMIT).await;
        assert_eq!(report.outcome, Outcome::L4Ok);
        assert!(report.latency < LINGER, "closing is not part of the latency");
        assert_eq!(server.await.expect("server").1.expect("closed by FIN, not by a reset"), 0);

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let closed = listener.local_addr().expect("address");
        drop(listener);
        let refused = Outcome::L4Con(io::ErrorKind::ConnectionRefused);
        assert_eq!(run(closed, &model::Probe::Tcp, LIMIT).await.outcome, refused);
        assert_eq!(run(closed, &http_probe(), LIMIT).await.outcome, refused);
    }

    /// A listener whose queue is full drops SYNs: the connection never comes about.
    #[tokio::test]
    async fn connect_times_out_as_l4() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("bind");
        socket.listen(0).expect("listen");
        let address = socket.local_addr().expect("address").as_socket().expect("inet");
        let _queued = TcpStream::connect(address).await.expect("first fills the queue");
        assert_eq!(run(address, &http_probe(), LIMIT).await.outcome, Outcome::L4Tout);
    }

    #[tokio::test]
    async fn a_path_that_no_request_can_carry_says_nothing_about_the_backend() {
        let probe = model::Probe::Http { path: "/a b".into(), host: None };
        let outcome = run(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)), &probe, LIMIT).await.outcome;
        assert_eq!(outcome.word(), "SOCKERR", "{outcome}");
    }
}
