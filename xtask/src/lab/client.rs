//! Requests as a client of the lab makes them: HTTP over a new connection each, HTTP over long-lived ones, datagrams.
//!
//! Runs on the thread it is called on, which [`super::netns::Namespace::run`] has put into the client's namespace. Each
//! outcome is kept with the time at which it began, so that a judge can ask about any stretch of time afterwards.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

use super::echo::WHO;

/// How long a connection may take to be made, and an answer to arrive.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a datagram's answer may take.
const DATAGRAM_TIMEOUT: Duration = Duration::from_secs(2);
/// First source port of a client; the range lies below the kernel's own ephemeral ports and above servers.
const PORT_FIRST: u16 = 10_000;
/// Source ports in use.
const PORTS: u16 = 22_000;

/// What came of one request.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// When it began.
    pub began: Instant,
    /// When it was over.
    pub ended: Instant,
    /// Where it went.
    pub target: SocketAddr,
    /// The name of the backend that answered, or what went wrong.
    pub result: Result<String, String>,
}

/// Source ports one after the other, each once until the range is through: every connection has a tuple of its own.
#[derive(Debug)]
pub struct Ports(AtomicU32);

impl Ports {
    /// Starts `offset` ports into the range.
    pub fn starting_at(offset: u16) -> Self {
        Self(AtomicU32::new(offset.into()))
    }

    /// The next one.
    #[allow(clippy::should_implement_trait, reason = "it never ends, and takes `&self`")]
    pub fn next(&self) -> u16 {
        PORT_FIRST + (self.0.fetch_add(1, Ordering::Relaxed) % u32::from(PORTS)) as u16
    }
}

/// Sends `count` requests to `target`, at most `at_once` at the same time, each over a connection of its own.
pub fn http(
    source: IpAddr,
    target: SocketAddr,
    count: usize,
    at_once: usize,
    ports: &Arc<Ports>,
) -> Result<Vec<Outcome>> {
    let ports = ports.clone();
    many(count, at_once, target, move || {
        let from = SocketAddr::new(source, ports.next());
        async move { http_once(Some(from), target, "/").await }
    })
}

/// Sends `count` datagrams that ask for the server's name.
pub fn datagrams(
    source: IpAddr,
    target: SocketAddr,
    count: usize,
    at_once: usize,
    ports: &Arc<Ports>,
) -> Result<Vec<Outcome>> {
    let ports = ports.clone();
    many(count, at_once, target, move || {
        let from = SocketAddr::new(source, ports.next());
        async move { datagram_once(from, target).await }
    })
}

fn many<F>(count: usize, at_once: usize, target: SocketAddr, mut make: impl FnMut() -> F) -> Result<Vec<Outcome>>
where
    F: Future<Output = Result<String>> + Send + 'static,
{
    runtime()?.block_on(async {
        let mut running = JoinSet::new();
        let mut outcomes = Vec::with_capacity(count);
        for _ in 0..count {
            if running.len() >= at_once
                && let Some(ended) = running.join_next().await
            {
                outcomes.push(ended?);
            }
            running.spawn(observed(target, make()));
        }
        while let Some(ended) = running.join_next().await {
            outcomes.push(ended?);
        }
        Ok(outcomes)
    })
}

/// A runtime for this thread alone: its sockets belong to the thread's namespace.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")
}

async fn observed(target: SocketAddr, request: impl Future<Output = Result<String>>) -> Outcome {
    let began = Instant::now();
    let result = request.await.map_err(|error| format!("{error:#}"));
    Outcome { began, ended: Instant::now(), target, result }
}

/// Connects, from an address and port if they are given.
pub async fn connect(from: Option<SocketAddr>, to: SocketAddr) -> Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        // The server closes first and keeps the memory of the connection; this side may take the port again.
        socket.set_reuseaddr(true)?;
        socket.bind(from).with_context(|| format!("binding {from}"))?;
    }
    timeout(STEP_TIMEOUT, socket.connect(to)).await.context("connecting took too long")?.context("connecting")
}

/// One request over a connection of its own; the body of a 200.
pub async fn http_once(from: Option<SocketAddr>, to: SocketAddr, path: &str) -> Result<String> {
    let stream = connect(from, to).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("handshake")?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header("host", "lab").header("connection", "close").body(Empty::<Bytes>::new())?;
    let body = timeout(STEP_TIMEOUT, exchange(&mut sender, request)).await.context("no answer in time")??;
    driver.abort();
    Ok(body)
}

async fn exchange(sender: &mut http1::SendRequest<Empty<Bytes>>, request: Request<Empty<Bytes>>) -> Result<String> {
    let response = sender.send_request(request).await.context("sending")?;
    let status = response.status();
    let body = response.into_body().collect().await.context("reading")?.to_bytes();
    if status != 200 {
        bail!("status {status}");
    }
    Ok(String::from_utf8_lossy(&body).trim().to_owned())
}

/// One datagram `who` and its answer.
pub async fn datagram_once(from: SocketAddr, to: SocketAddr) -> Result<String> {
    let socket = UdpSocket::bind(from).await.with_context(|| format!("binding {from}"))?;
    // Connected: an answer from any other address than the VIP does not count.
    socket.connect(to).await?;
    socket.send(WHO).await.context("sending")?;
    let mut buffer = [0; 64];
    let length =
        timeout(DATAGRAM_TIMEOUT, socket.recv(&mut buffer)).await.context("no answer")?.context("receiving")?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}

/// How much a [`Load`] does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to, with the source address for each.
    pub targets: Vec<(IpAddr, SocketAddr)>,
    /// Connections begun per second, over all targets.
    pub rate: u32,
    /// Long-lived connections per target, each with a request every 50 ms.
    pub long_lived: usize,
    /// First source port, as an offset into the clients' range.
    pub port_offset: u16,
}

/// Load that goes on until it is stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Observed>>,
}

/// What a [`Load`] saw.
#[derive(Debug, Default)]
pub struct Observed {
    /// Requests over connections of their own.
    pub new: Vec<Outcome>,
    /// Requests over long-lived connections; a connection that broke appears once and is not made again.
    pub long_lived: Vec<Outcome>,
}

impl Load {
    /// Starts it in a namespace.
    pub fn start(namespace: &super::netns::Namespace, plan: Plan) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = namespace.spawn(move || runtime()?.block_on(load(plan, flag)))?;
        Ok(Self { stop, thread })
    }

    /// Stops it and gives what it saw.
    pub fn stop(self) -> Result<Observed> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the load's thread panicked"))?
    }
}

async fn load(plan: Plan, stop: Arc<AtomicBool>) -> Result<Observed> {
    let ports = Ports::starting_at(plan.port_offset);
    let mut long_lived = JoinSet::new();
    for &(source, target) in &plan.targets {
        for _ in 0..plan.long_lived {
            let from = SocketAddr::new(source, ports.next());
            long_lived.spawn(keep_asking(from, target, stop.clone()));
        }
    }
    let mut running = JoinSet::new();
    let mut observed = Observed::default();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / plan.rate.max(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut targets = plan.targets.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        while let Some(ended) = running.try_join_next() {
            observed.new.push(ended?);
        }
        let Some(&(source, target)) = targets.next() else { bail!("a load without targets") };
        let from = SocketAddr::new(source, ports.next());
        running.spawn(observed_http(from, target));
    }
    while let Some(ended) = running.join_next().await {
        observed.new.push(ended?);
    }
    while let Some(ended) = long_lived.join_next().await {
        observed.long_lived.extend(ended?);
    }
    Ok(observed)
}

async fn observed_http(from: SocketAddr, target: SocketAddr) -> Outcome {
    observed(target, http_once(Some(from), target, "/")).await
}

/// Asks over one connection until it is told to stop or the connection breaks.
async fn keep_asking(from: SocketAddr, target: SocketAddr, stop: Arc<AtomicBool>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let opening = async {
        let stream = connect(Some(from), target).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("handshake")?;
        tokio::spawn(connection);
        anyhow::Ok(sender)
    };
    let mut sender = match opening.await {
        Ok(sender) => sender,
        Err(error) => {
            outcomes.push(observed(target, async { Err(error) }).await);
            return outcomes;
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let outcome = observed(target, async {
            let request = Request::get("/").header("host", "lab").body(Empty::<Bytes>::new())?;
            timeout(STEP_TIMEOUT, exchange(&mut sender, request)).await.context("no answer in time")?
        })
        .await;
        let broken = outcome.result.is_err();
        outcomes.push(outcome);
        if broken {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    outcomes
}

/// Answers by backend.
pub fn by_backend(outcomes: &[Outcome]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()) {
        *counts.entry(name.clone()).or_default() += 1;
    }
    counts
}

/// Failures, each kind once with its number.
pub fn failures(outcomes: &[Outcome]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for error in outcomes.iter().filter_map(|outcome| outcome.result.as_ref().err()) {
        *counts.entry(error.clone()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_repeat_only_after_the_whole_range() {
        let ports = Ports::starting_at(100);
        let seen: std::collections::BTreeSet<_> = (0..PORTS).map(|_| ports.next()).collect();
        assert_eq!(seen.len(), usize::from(PORTS));
        assert_eq!(seen.first(), Some(&PORT_FIRST));
        assert_eq!(ports.next(), PORT_FIRST + 100);
    }

    #[test]
    fn nobody_listening_is_a_failure_with_its_reason() {
        let ports = Arc::new(Ports::starting_at(0));
        let home: IpAddr = [127, 0, 0, 1].into();
        let outcomes = http(home, (home, 1).into(), 3, 2, &ports).unwrap();
        assert_eq!(outcomes.len(), 3);
        assert!(by_backend(&outcomes).is_empty());
        assert!(failures(&outcomes).keys().all(|reason| reason.starts_with("connecting")));
    }
}
