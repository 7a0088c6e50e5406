//! Requests through VIPs and, beside them, straight to a backend: the longest time without an answer of either.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::lab::fleet::{
    Fleet,
    topology::{HTTP_PORT, Host},
};

/// Pause between two requests of one client.
const PAUSE: Duration = Duration::from_millis(20);

/// What a client saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Requests that were answered.
    pub answers: u64,
    /// What went wrong.
    pub failures: Vec<String>,
    /// Longest time from one answer to the next.
    pub gap: Duration,
}

/// Clients that keep asking until they are stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    through: Vec<JoinHandle<Result<Seen>>>,
    straight: JoinHandle<Result<Seen>>,
}

impl Traffic {
    /// One client for each VIP, and one that goes past the load balancer.
    pub fn start(fleet: &Fleet, vips: &[IpAddr]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |to: IpAddr| {
            let (to, stop) = (SocketAddr::new(to, HTTP_PORT), Arc::clone(&stop));
            fleet.ground.namespace(&Host::Client.name()).spawn(move || Ok(ask(to, &stop)))
        };
        let through = vips.iter().map(|vip| client(*vip)).collect::<Result<_>>()?;
        let straight = client(Host::Backend(1).address(false))?;
        Ok(Self { stop, through, straight })
    }

    /// Stops; what was seen through each VIP, and straight.
    pub fn stop(self) -> Result<(Vec<Seen>, Seen)> {
        self.stop.store(true, Ordering::Relaxed);
        let join = |client: JoinHandle<Result<Seen>>| client.join().ok().context("a client panicked")?;
        Ok((self.through.into_iter().map(join).collect::<Result<_>>()?, join(self.straight)?))
    }
}

fn ask(to: SocketAddr, stop: &AtomicBool) -> Seen {
    let (mut seen, mut last) = (Seen::default(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        match get(to) {
            Ok(()) => {
                seen.answers += 1;
                seen.gap = seen.gap.max(last.elapsed());
                last = Instant::now();
            }
            Err(error) => seen.failures.push(format!("{to}: {error:#}")),
        }
        thread::sleep(PAUSE);
    }
    seen
}

/// One request over a new connection.
fn get(to: SocketAddr) -> Result<()> {
    let patience = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&to, patience).context("connecting")?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading")?;
    let head = answer.split_once("\r\n\r\n").context("no answer")?.0;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(())
}
