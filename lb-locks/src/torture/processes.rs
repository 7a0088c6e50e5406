//! The torture's real thing: redis-server processes behind proxies, and workers that are processes of this program.
//!
//! Owns: every process of the run; all of them are ended when the run is, however it ends. Invariant: what a worker wrote
//! before it was killed counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    conductor::{LOOK_EVERY, Seen, Stage, Torture, TortureError},
    history::Entry,
    proxy::{Proxy, Way},
    schedule::{Action, Fault},
    server::{RedisServer, ServerOptions},
    worker::Orders,
};
use crate::{lock::Lock as _, node::redis::RedisOptions, redlock::Redlock};

/// Makes a worker's process out of its orders.
pub type MakeWorker<'a> = dyn Fn(&Orders) -> Command + 'a;

/// Servers and workers of one run.
pub struct Processes<'a> {
    torture: &'a Torture,
    command: &'a MakeWorker<'a>,
    // Workers end first: they are told to while the servers still answer.
    workers: Workers,
    lab: Lab,
}

impl<'a> Processes<'a> {
    /// Starts all of them.
    pub fn start(torture: &'a Torture, command: &'a MakeWorker<'a>, stop: &AtomicBool) -> Result<Self, TortureError> {
        let lab = Lab::start(torture, stop)?;
        let mut workers = Workers::new();
        for _ in 0..torture.clients {
            workers.start(torture, &lab, command)?;
        }
        Ok(Self { torture, command, workers, lab })
    }
}

impl Stage for Processes<'_> {
    fn collect(&mut self) -> Result<&Seen, TortureError> {
        self.workers.collect()?;
        Ok(&self.workers.seen)
    }

    fn perform(&mut self, action: Action) -> Result<bool, TortureError> {
        let done = self.lab.perform(action, self.torture)?;
        self.workers.perform(action, self.torture, &self.lab, self.command)?;
        Ok(done)
    }

    fn finish(self, patience: Duration, at_once: bool) -> Result<Vec<Entry>, TortureError> {
        self.lab.mend();
        self.workers.finish(patience, at_once)
    }
}

/// What worker `worker` is told; workers of one half reach the nodes through proxies of their own.
fn orders(torture: &Torture, worker: u32, lab: &Lab) -> Orders {
    let side = worker as usize % 2;
    let proxied = lab.proxies.iter().enumerate().map(|(at, sides)| url(at, sides[side].address()));
    Orders {
        worker,
        seed: torture.seed,
        nodes: proxied.collect(),
        resource: lab.resource.url(),
        ttl: torture.ttl,
        node_timeout: torture.node_timeout,
        quarantine: torture.quarantine,
        fencing: torture.fencing,
    }
}

fn url(node: usize, address: SocketAddr) -> String {
    format!("n{}=redis://{address}", node + 1)
}

/// The servers.
struct Lab {
    nodes: Vec<RedisServer>,
    proxies: Vec<[Proxy; 2]>,
    resource: RedisServer,
    offsets_ms: Vec<u64>,
    /// Nodes that were emptied and not repaired since.
    wiped: BTreeSet<usize>,
}

impl Lab {
    fn start(torture: &Torture, stop: &AtomicBool) -> Result<Self, TortureError> {
        let movable_clock = torture.faults.contains(&Fault::Clock);
        let mut nodes = Vec::with_capacity(torture.nodes);
        for _ in 0..torture.nodes {
            if stop.load(Ordering::Acquire) {
                return Err(TortureError::Config("interrupted before it began".into()));
            }
            nodes.push(RedisServer::start(ServerOptions { aof: true, movable_clock, ..ServerOptions::default() })?);
        }
        let proxies = nodes.iter().map(|node| Ok([Proxy::start(node.address())?, Proxy::start(node.address())?]));
        let proxies = proxies.collect::<std::io::Result<Vec<_>>>()?;
        let resource = RedisServer::start(ServerOptions::default())?;
        let urls: Vec<String> = nodes.iter().enumerate().map(|(at, node)| url(at, node.address())).collect();
        let offsets_ms = vec![0; nodes.len()];
        let lab = Self { nodes, proxies, resource, offsets_ms, wiped: BTreeSet::new() };
        // Connecting for the first time may take longer than a fight allows.
        let orders = Orders { node_timeout: Duration::from_secs(2), ..orders(torture, 0, &lab) };
        let locks = Redlock::redis(&urls, &RedisOptions::default(), orders.options())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(locks.bootstrap(0))?;
        Ok(lab)
    }

    /// Does what concerns servers; false if a node was spared.
    fn perform(&mut self, action: Action, torture: &Torture) -> std::io::Result<bool> {
        match action {
            Action::Stop(node) => self.nodes[node].pause(),
            Action::Go(node) => self.nodes[node].resume(),
            Action::Kill(node) => self.nodes[node].kill(),
            Action::Start(node) => self.nodes[node].restart(true)?,
            Action::Empty { node, flush } => {
                let repaired: Vec<usize> = self.wiped.iter().copied().filter(|node| self.is_ready(*node)).collect();
                self.wiped.retain(|node| !repaired.contains(node));
                let wiped = self.wiped.len() + usize::from(!self.wiped.contains(&node));
                // Without the quarantine no node ever says that it was repaired.
                if torture.quarantine && wiped > torture.nodes.saturating_sub(1) / 2 {
                    return Ok(false);
                }
                self.wiped.insert(node);
                if flush {
                    self.nodes[node].command("FLUSHALL")?;
                } else {
                    self.nodes[node].restart(false)?;
                }
            }
            Action::Way { node, side, way } => self.proxies[node][side].set(way),
            Action::Clock { node, by_ms } => {
                self.offsets_ms[node] += by_ms;
                self.nodes[node].move_clock(i64::try_from(self.offsets_ms[node]).unwrap_or(i64::MAX))?;
            }
            Action::Begin(_) | Action::AwaitGrant | Action::Pause | Action::Resume | Action::Crash => {}
        }
        Ok(true)
    }

    /// Whether the node's quarantine is over and its counter repaired.
    fn is_ready(&self, node: usize) -> bool {
        let ask = |command: &str| self.nodes[node].command(command).unwrap_or_default();
        let info = ask("INFO server");
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::trim);
        run.is_some_and(|run| ask("HGET weir:node ready").contains(run))
    }

    /// Lets everybody reach everything, so that workers can end in order.
    fn mend(&self) {
        self.nodes.iter().for_each(RedisServer::resume);
        self.proxies.iter().flatten().for_each(|proxy| proxy.set(Way::Open));
    }
}

/// The workers and what they wrote.
struct Workers {
    running: BTreeMap<u32, Child>,
    next: u32,
    /// How many came to the end of their output.
    ended: u32,
    lines: (Sender<Line>, Receiver<Line>),
    seen: Seen,
    paused: Option<u32>,
}

/// What a worker's output gave: a line, or its end.
enum Line {
    Entry(Entry),
    Unreadable(String),
    End,
}

impl Workers {
    fn new() -> Self {
        Self { running: BTreeMap::new(), next: 0, ended: 0, lines: channel(), seen: Seen::default(), paused: None }
    }

    fn start(&mut self, torture: &Torture, lab: &Lab, command: &MakeWorker<'_>) -> Result<(), TortureError> {
        let worker = self.next;
        self.next += 1;
        let mut command = command(&orders(torture, worker, lab));
        // Ctrl-C on a terminal is for the conductor: workers that died of it would be no end of the run, but a failure.
        let mut child = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let Some(stdout) = child.stdout.take() else {
            return Err(TortureError::Worker("it has no standard output".into()));
        };
        self.running.insert(worker, child);
        let lines = self.lines.0.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { break };
                let parsed = serde_json::from_str(&line);
                // Whoever listened may be gone; then there is nobody to tell.
                let _ = lines.send(parsed.map_or(Line::Unreadable(line), Line::Entry));
            }
            let _ = lines.send(Line::End);
        });
        Ok(())
    }

    fn take(&mut self, line: Line) -> Result<(), TortureError> {
        match line {
            Line::Entry(entry) => {
                self.seen.take(entry);
                Ok(())
            }
            // The last line of a worker that was killed may be cut.
            Line::Unreadable(line) if line.starts_with('{') => Ok(()),
            Line::Unreadable(line) => Err(TortureError::Worker(format!("it said {line:?}"))),
            Line::End => {
                self.ended += 1;
                Ok(())
            }
        }
    }

    /// Takes what has been written, and looks whether a worker ended by itself.
    fn collect(&mut self) -> Result<(), TortureError> {
        while let Ok(line) = self.lines.1.try_recv() {
            self.take(line)?;
        }
        for (worker, child) in &mut self.running {
            if let Some(status) = child.try_wait()? {
                return Err(TortureError::Worker(format!("worker {worker} ended with {status}")));
            }
        }
        Ok(())
    }

    fn perform(
        &mut self,
        action: Action,
        torture: &Torture,
        lab: &Lab,
        command: &MakeWorker<'_>,
    ) -> Result<(), TortureError> {
        // The holder, for whom it is worst; whoever comes first if there is none.
        let victim = self.seen.holder.filter(|worker| self.running.contains_key(worker));
        let victim = victim.or_else(|| self.running.keys().next().copied());
        match (action, victim) {
            (Action::Pause, Some(worker)) => {
                self.signal(worker, Signal::SIGSTOP);
                self.paused = Some(worker);
            }
            (Action::Resume, _) => {
                if let Some(worker) = self.paused.take() {
                    self.signal(worker, Signal::SIGCONT);
                }
            }
            (Action::Crash, Some(worker)) => {
                if let Some(mut child) = self.running.remove(&worker) {
                    child.kill()?;
                    child.wait()?;
                }
                self.start(torture, lab, command)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn signal(&self, worker: u32, signal: Signal) {
        if let Some(child) = self.running.get(&worker) {
            // It is not reaped yet, so the number is its own.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
    }

    /// Lets the workers end, kills those that do not, and returns everything that was written.
    fn finish(mut self, patience: Duration, at_once: bool) -> Result<Vec<Entry>, TortureError> {
        if let Some(worker) = self.paused.take() {
            self.signal(worker, Signal::SIGCONT);
        }
        for child in self.running.values_mut() {
            drop(child.stdin.take());
        }
        let started = Instant::now();
        while !at_once && started.elapsed() < patience {
            let mut ended = true;
            for child in self.running.values_mut() {
                ended &= child.try_wait()?.is_some();
            }
            if ended {
                break;
            }
            std::thread::sleep(LOOK_EVERY);
        }
        self.kill_all();
        // With all writers gone every reader comes to its end.
        while self.ended < self.next {
            match self.lines.1.recv_timeout(Duration::from_secs(10)) {
                Ok(line) => self.take(line)?,
                Err(_) => return Err(TortureError::Worker("its output does not end".into())),
            }
        }
        Ok(std::mem::take(&mut self.seen.history))
    }

    fn kill_all(&mut self) {
        for child in self.running.values_mut() {
            // Who has ended needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.running.clear();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.kill_all();
    }
}
