//! The running server: sockets, connections, and the tasks that tell peers.
//!
//! Owns: everything that waits. Refuses to know: what an answer says. Invariants: every socket is bound before anything is
//! promised; connections, their time and the work for one datagram are bounded; a peer that hangs delays nobody else.

mod admit;
mod datagram;
mod peers;
mod stream;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{sync::watch, task::JoinSet};

use super::{
    answer::{self, Facts, Outcome, Transport},
    history::Serving,
    key::{KeyRing, Peer},
    limit::{Limiter, Verdict},
    source::{self, Accepted, Keeper, News, Refused},
    store,
    zone::Name,
};
use crate::{
    model::dns::{DnsConfig, DnsLimits},
    store::Store,
    telemetry::{dns::DnsMetrics, metrics::CONTENT_TYPE},
};

/// Connections that wait to be accepted, at most.
const BACKLOG: i32 = 128;

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("cannot listen on {address} ({transport}): {cause}{}", hint(.cause, .address))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        transport: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// The state folder cannot be used.
    #[error("cannot use the state folder {}: {cause}", .path.display())]
    State {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A peer names a key that is not there, which the check of the configuration excludes.
    #[error("there is no key `{0}`")]
    NoKey(Name),
}

fn hint(cause: &io::Error, address: &SocketAddr) -> String {
    match cause.kind() {
        io::ErrorKind::PermissionDenied if address.port() < 1024 => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE, which the systemd unit gives".to_owned()
        }
        io::ErrorKind::AddrInUse => format!("; `ss -lnp sport = {}` shows who has it", address.port()),
        _ => String::new(),
    }
}

/// Sockets that are bound, so that privileges can go before anything is read from them.
#[derive(Debug)]
pub struct Bound {
    udp: Vec<(SocketAddr, std::net::UdpSocket)>,
    tcp: Vec<(SocketAddr, std::net::TcpListener)>,
}

/// Binds every address of `listen`.
///
/// # Errors
/// [`StartError::Bind`] for the first one that cannot be had.
pub fn bind(listen: &[SocketAddr]) -> Result<Bound, StartError> {
    let mut bound = Bound { udp: Vec::new(), tcp: Vec::new() };
    for &address in listen {
        let failed = |transport| move |cause| StartError::Bind { address, transport, cause };
        bound.udp.push((address, datagram::bind(address).map_err(failed("UDP"))?));
        bound.tcp.push((address, listener(address).map_err(failed("TCP"))?));
    }
    Ok(bound)
}

fn listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Each family has its own socket, else [::] would take what 0.0.0.0 wants.
        socket.set_only_v6(true)?;
    }
    // Connections of the process before may still be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What every task shares.
struct Shared {
    origin: Name,
    keys: KeyRing,
    peers: Vec<Peer>,
    limits: DnsLimits,
    serving: watch::Receiver<Serving>,
    limiter: Mutex<Limiter>,
    start: Instant,
    metrics: Arc<DnsMetrics>,
}

impl Shared {
    fn answer(&self, request: &[u8], client: IpAddr, transport: Transport) -> Outcome {
        let serving = self.serving.borrow();
        let facts = Facts {
            origin: &self.origin,
            serving: &serving,
            keys: &self.keys,
            peers: &self.peers,
            payload_max: self.limits.udp_payload_max,
            now_unix_s: unix_s(),
            shuffle: rand::random(),
        };
        answer::answer(request, client, transport, &facts)
    }

    fn limit(&self, client: IpAddr, kind: answer::Kind) -> Verdict {
        let now_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner).check(client, kind, now_ms)
    }
}

/// Seconds since 1970: what signatures are dated with.
fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    keeper: Arc<Keeper>,
    metrics: Arc<DnsMetrics>,
    tasks: JoinSet<()>,
}

/// Where the zone comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A watched file.
    File(PathBuf),
    /// The record that the orchestrator's master writes.
    Store(Arc<dyn Store>),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Store(store) => f.write_str(&store.describe()),
        }
    }
}

/// Starts serving on `bound`: first what the state folder has, then what `from` brings.
///
/// # Errors
/// [`StartError`].
pub fn start(config: &DnsConfig, keys: KeyRing, bound: Bound, from: Source) -> Result<Server, StartError> {
    let key_of = |name: &Name| keys.named(name).cloned().ok_or_else(|| StartError::NoKey(name.clone()));
    let failed = |cause| StartError::State { path: config.state_dir.clone(), cause };
    let keeper = Arc::new(Keeper::open(config.origin.clone(), &config.state_dir).map_err(failed)?);
    let metrics = Arc::new(DnsMetrics::new());
    let mut tasks = JoinSet::new();

    let mut peers = Vec::new();
    for secondary in &config.secondaries {
        let key = secondary.key.as_ref().map(key_of).transpose()?;
        if key.is_none() {
            tracing::warn!(secondary = %secondary.address, "has no key: its address alone is trusted");
        }
        peers.push(Peer { from: secondary.transfer_from.clone(), key: key.clone() });
        let peer = peers::Peer::Notify(secondary.address, key);
        tasks.spawn(peers::follow(peer, keeper.subscribe(), Arc::clone(&metrics)));
    }
    for target in &config.updates {
        let key = key_of(&target.key)?;
        let peer = peers::Peer::Update(target.clone(), key);
        tasks.spawn(peers::follow(peer, keeper.subscribe(), Arc::clone(&metrics)));
    }
    let shared = Arc::new(Shared {
        origin: config.origin.clone(),
        keys,
        peers,
        limits: config.limits,
        serving: keeper.subscribe(),
        limiter: Mutex::new(Limiter::new(config.limits.responses_per_s, rand::random())),
        start: Instant::now(),
        metrics: Arc::clone(&metrics),
    });
    for (address, socket) in bound.udp {
        let failed = |cause| StartError::Bind { address, transport: "UDP", cause };
        let socket = datagram::Datagrams::new(socket).map_err(failed)?;
        tasks.spawn(datagram::serve(socket, Arc::clone(&shared)));
    }
    let admission = admit::Admission::new(config.limits.tcp_connections_max as usize);
    for (address, listener) in bound.tcp {
        let failed = |cause| StartError::Bind { address, transport: "TCP", cause };
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        tasks.spawn(stream::serve(listener, admission.clone(), Arc::clone(&shared)));
    }
    tasks.spawn(count_zones(keeper.subscribe(), Arc::clone(&metrics)));
    tasks.spawn({
        let (keeper, metrics) = (Arc::clone(&keeper), Arc::clone(&metrics));
        async move {
            let name = from.to_string();
            let news = |news: News| tell(&news, &name, &metrics);
            match from {
                Source::File(path) => source::watch_file(&path, &keeper, news).await,
                Source::Store(store) => store::watch_store(store, &keeper, news).await,
            }
        }
    });
    Ok(Server { keeper, metrics, tasks })
}

/// Logs and counts what the source brought.
fn tell(news: &News, source: &str, metrics: &DnsMetrics) {
    match news {
        News::Offered(Ok(accepted)) => metrics.offered(match accepted {
            Accepted::New => "accepted",
            Accepted::Same => "unchanged",
        }),
        News::Offered(Err(refused)) => {
            metrics.offered(Refused::word(refused));
            tracing::error!("{source}: {refused}; the zone before stays");
        }
        News::Broken(error) => {
            metrics.offered("unreadable");
            tracing::error!("{error}; the zone before stays");
        }
    }
}

async fn count_zones(mut serving: watch::Receiver<Serving>, metrics: Arc<DnsMetrics>) {
    loop {
        if let Some(zone) = serving.borrow_and_update().current() {
            let names = zone.hosts().count();
            metrics.zone(zone.serial(), names, unix_s() as f64);
            tracing::info!(serial = zone.serial(), names, "serving {}", zone.origin());
        }
        if serving.changed().await.is_err() {
            return;
        }
    }
}

#[derive(Clone)]
struct Doors {
    keeper: Arc<Keeper>,
    metrics: Arc<DnsMetrics>,
    leaving: Arc<AtomicBool>,
}

impl Server {
    /// Where a source that is not the file brings its zones.
    pub fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// `/metrics`; `/health`: the process answers; `/ready`: and it has a zone, and `leaving` is not set.
    pub fn router(&self, leaving: Arc<AtomicBool>) -> Router {
        Router::new()
            .route(
                "/metrics",
                get(async |State(doors): State<Doors>| {
                    ([(header::CONTENT_TYPE, CONTENT_TYPE)], doors.metrics.render())
                }),
            )
            .route("/health", get(async || "ok\n"))
            .route("/ready", get(ready))
            .fallback(async || (StatusCode::NOT_FOUND, "see /metrics, /ready and /health\n"))
            .with_state(Doors { keeper: Arc::clone(&self.keeper), metrics: Arc::clone(&self.metrics), leaving })
    }

    /// Ends only if a task dies, which would be a mistake in this program.
    pub async fn failed(&mut self) -> String {
        match self.tasks.join_next().await {
            Some(Err(error)) => error.to_string(),
            _ => "a task of the DNS server ended".to_owned(),
        }
    }
}

async fn ready(State(doors): State<Doors>) -> Response {
    let serial = doors.keeper.subscribe().borrow().current().map(|zone| zone.serial());
    match serial {
        _ if doors.leaving.load(Ordering::Relaxed) => {
            (StatusCode::SERVICE_UNAVAILABLE, "this server is stopping\n").into_response()
        }
        Some(serial) => (StatusCode::OK, format!("ok, serial {serial}\n")).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no zone has come yet\n").into_response(),
    }
}

/// Time from the last look for a task that waits until `due`, on the clock that started with `start`.
fn until(due: Option<Duration>, start: Instant) -> Option<tokio::time::Instant> {
    due.map(|due| tokio::time::Instant::from_std(start + due))
}
