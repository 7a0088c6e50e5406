//! Clients of the fleet: each resolves the name, connects, asks for a few seconds, and begins anew.
//!
//! Owns: what became of each connection. Refuses to judge it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::{
    Fleet, resolve,
    topology::{HTTP_PORT, Host},
};
use crate::lab::client::{connect, runtime};

/// Clients at most.
const CLIENTS_MAX: usize = 100;
/// Pause between two requests over one connection, and between two looks at how many clients are wanted.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What became of a connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// When it was begun.
    pub began: Instant,
    /// When it was over.
    pub ended: Instant,
    /// The VIP that it went to; `None` where the name could not be resolved.
    pub to: Option<IpAddr>,
    /// The backend that answered; `None` where none did.
    pub backend: Option<String>,
    /// Why it was lost; `None` where the client closed it.
    pub lost: Option<String>,
}

#[derive(Debug, Default)]
struct Seen {
    open: BTreeMap<usize, (IpAddr, String)>,
    over: Vec<Connection>,
}

/// Clients that go on until they are stopped.
#[derive(Debug)]
pub struct Crowd {
    stop: Arc<AtomicBool>,
    wanted: Arc<AtomicUsize>,
    seen: Arc<Mutex<Seen>>,
    thread: JoinHandle<Result<()>>,
}

impl Crowd {
    /// Starts `count` clients of `name`.
    pub fn start(fleet: &Fleet, name: &str, count: usize) -> Result<Self> {
        let (stop, wanted) = (Arc::<AtomicBool>::default(), Arc::new(AtomicUsize::new(count)));
        let seen = Arc::<Mutex<Seen>>::default();
        let (flag, target, kept, name) = (Arc::clone(&stop), Arc::clone(&wanted), Arc::clone(&seen), name.to_owned());
        let thread = fleet.ground.namespace(&Host::Client.name()).spawn(move || {
            runtime()?.block_on(async {
                let mut clients = JoinSet::new();
                for number in 0..CLIENTS_MAX {
                    let (flag, target, kept) = (Arc::clone(&flag), Arc::clone(&target), Arc::clone(&kept));
                    let name = name.clone();
                    clients.spawn(async move { client(number, &name, &flag, &target, &kept).await });
                }
                while let Some(ended) = clients.join_next().await {
                    ended?;
                }
                Ok(())
            })
        })?;
        Ok(Self { stop, wanted, seen, thread })
    }

    /// So many clients from now on, at most 100.
    pub fn want(&self, count: usize) {
        self.wanted.store(count.min(CLIENTS_MAX), Ordering::Relaxed);
    }

    /// Connections that are open and answered, by VIP.
    pub fn open(&self) -> BTreeMap<IpAddr, usize> {
        let mut open = BTreeMap::new();
        for (vip, _) in self.seen.lock().unwrap_or_else(PoisonError::into_inner).open.values() {
            *open.entry(*vip).or_default() += 1;
        }
        open
    }

    /// Connections that are over.
    pub fn over(&self) -> Vec<Connection> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).over.clone()
    }

    /// Ends all; every connection there was.
    pub fn stop(self) -> Result<Vec<Connection>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the clients' thread panicked"))??;
        Ok(std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).over))
    }
}

async fn client(number: usize, name: &str, stop: &AtomicBool, wanted: &AtomicUsize, seen: &Mutex<Seen>) {
    let works = || !stop.load(Ordering::Relaxed) && number < wanted.load(Ordering::Relaxed);
    // They begin and end at different times.
    let lifetime = Duration::from_millis(2000 + (number as u64 * 370) % 2000);
    let mut turn = number;
    while !stop.load(Ordering::Relaxed) {
        if !works() {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        turn += 1;
        let began = Instant::now();
        let (mut to, mut backend) = (None, None);
        let outcome = async {
            let vip = *resolve::resolve(name, turn).await?.first().context("the name has no address")?;
            to = Some(vip);
            let mut stream = connect(None, SocketAddr::new(vip, HTTP_PORT)).await?;
            loop {
                let answer = timeout(PATIENCE, ask(&mut stream)).await.context("no answer in time")??;
                if backend.is_none() {
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.open.insert(number, (vip, answer.clone()));
                }
                backend = Some(answer);
                if !works() || began.elapsed() >= lifetime {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let lost = outcome.await.err().map(|error| format!("{error:#}"));
        if lost.is_some() {
            // Whoever is refused at once must not ask without pause.
            tokio::time::sleep(PAUSE / 4).await;
        }
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.open.remove(&number);
        seen.over.push(Connection { began, ended: Instant::now(), to, backend, lost });
    }
}

/// One request over a connection that stays; the name of who answers.
async fn ask(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n").await.context("asking")?;
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let read = stream.read(&mut buffer).await.context("reading")?;
        ensure!(read > 0, "the connection ended");
        text.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let said = String::from_utf8_lossy(&text);
        // The lab's backends answer with one line, which is their name.
        if let Some((head, body)) = said.split_once("\r\n\r\n")
            && let Some(name) = body.strip_suffix('\n')
        {
            ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
            return Ok(name.to_owned());
        }
    }
}
