//! A run of the torture: starts servers and workers, breaks them by the schedule, and judges what the workers saw.
//!
//! Owns: every process of the run; all of them are ended when the run is, however it ends. Invariants: a node is emptied only
//! while a majority keeps its counters, for more is not promised; what a worker wrote before it was killed counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
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
    check::{Verdict, check},
    history::{Entry, Event},
    proxy::{Proxy, Way},
    schedule::{Action, Fault, Setting, schedule},
    server::{RedisServer, ServerOptions},
    worker::Orders,
};
use crate::{error::LockError, lock::Lock as _, node::redis::RedisOptions, redlock::Redlock, round::Fencing};

/// Most nodes.
pub const NODES_MAX: usize = 15;
/// Most workers.
pub const CLIENTS_MAX: usize = 64;
/// Most entries that a run keeps; it ends early with them.
const ENTRIES_MAX: usize = 5_000_000;
/// How often the conductor looks around.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Torture {
    /// Seed of schedule and workers.
    pub seed: u64,
    /// How long faults and fights go on.
    pub duration: Duration,
    /// Workers at one time.
    pub clients: usize,
    /// Lock nodes.
    pub nodes: usize,
    /// Kinds of faults.
    pub faults: Vec<Fault>,
    /// Lifetime of the lock.
    pub ttl: Duration,
    /// How long one node may take.
    pub node_timeout: Duration,
    /// Whether nodes that restarted keep out of votes.
    pub quarantine: bool,
    /// How tokens are made; without them the resource takes every write.
    pub fencing: Fencing,
}

/// How far a run is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Since the first fight.
    pub elapsed: Duration,
    /// Grants.
    pub acquisitions: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Scenes that began.
    pub scenes: u64,
    /// The last of them.
    pub fault: Option<Fault>,
}

/// What a run came to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Outcome {
    /// The seed that gives the same schedule again.
    pub seed: u64,
    /// Scenes by kind.
    pub scenes: BTreeMap<&'static str, u64>,
    /// Nodes that were not emptied because too few would have kept their counters.
    pub spared: u64,
    /// Whether it was ended before its time.
    pub interrupted: bool,
    /// The verdict.
    pub verdict: Verdict,
    /// What all workers wrote.
    #[serde(skip)]
    pub history: Vec<Entry>,
}

/// Why a run did not come about.
#[derive(Debug, thiserror::Error)]
pub enum TortureError {
    /// A setting makes no sense.
    #[error("{0}")]
    Config(String),
    /// A process does not start, or cannot be spoken to.
    #[error("the torture cannot go on: {0}")]
    Process(#[from] std::io::Error),
    /// The nodes cannot be set up.
    #[error("the torture's nodes cannot be set up: {0}")]
    Setup(#[from] LockError),
    /// A worker ended by itself.
    #[error("a worker of the torture ended: {0}")]
    Worker(String),
}

impl Torture {
    fn check(&self) -> Result<(), TortureError> {
        let wrong = |text: String| Err(TortureError::Config(text));
        if self.nodes == 0 || self.nodes > NODES_MAX {
            return wrong(format!("{} nodes: between 1 and {NODES_MAX}", self.nodes));
        }
        if self.clients == 0 || self.clients > CLIENTS_MAX {
            return wrong(format!("{} clients: between 1 and {CLIENTS_MAX}", self.clients));
        }
        if self.ttl < Duration::from_millis(100) || self.ttl > Duration::from_secs(60) {
            return wrong("the lifetime must be from 100 ms to 1 min".into());
        }
        if self.duration > Duration::from_secs(86_400) {
            return wrong("the duration is at most a day".into());
        }
        Ok(())
    }

    /// What worker `worker` is told; workers of one half reach the nodes through proxies of their own.
    fn orders(&self, worker: u32, lab: &Lab) -> Orders {
        let side = worker as usize % 2;
        let proxied = lab.proxies.iter().enumerate().map(|(at, sides)| url(at, sides[side].address()));
        Orders {
            worker,
            seed: self.seed,
            nodes: proxied.collect(),
            resource: lab.resource.url(),
            ttl: self.ttl,
            node_timeout: self.node_timeout,
            quarantine: self.quarantine,
            fencing: self.fencing,
        }
    }
}

fn url(node: usize, address: SocketAddr) -> String {
    format!("n{}=redis://{address}", node + 1)
}

/// Runs the torture to its end or to `stop`. `command` makes a worker's process out of its orders; it writes its history to
/// standard output and ends when its standard input does.
///
/// # Errors
/// [`TortureError`]: something that is no part of the torture went wrong. What was broken on purpose is in the outcome.
pub fn run(
    torture: &Torture,
    command: &dyn Fn(&Orders) -> Command,
    progress: &mut dyn FnMut(&Progress),
    stop: &AtomicBool,
) -> Result<Outcome, TortureError> {
    torture.check()?;
    let setting = Setting {
        duration_ms: u64::try_from(torture.duration.as_millis()).unwrap_or(u64::MAX),
        nodes: torture.nodes,
        ttl_ms: u64::try_from(torture.ttl.as_millis()).unwrap_or(u64::MAX),
        faults: torture.faults.clone(),
    };
    let mut actions = schedule(torture.seed, &setting).into_iter().peekable();
    let mut lab = Lab::start(torture, stop)?;
    let mut workers = Workers::new();
    let mut outcome = Outcome {
        seed: torture.seed,
        scenes: BTreeMap::new(),
        spared: 0,
        interrupted: false,
        verdict: Verdict::default(),
        history: Vec::new(),
    };
    for _ in 0..torture.clients {
        workers.start(torture, &lab, command)?;
    }
    let started = Instant::now();
    let (mut fault, mut shown) = (None, Duration::ZERO);
    let (mut awaiting, mut later) = (None, Duration::ZERO);
    while started.elapsed() < torture.duration && workers.history.len() < ENTRIES_MAX {
        if stop.load(Ordering::Acquire) {
            outcome.interrupted = true;
            break;
        }
        workers.collect()?;
        if let Some((since, acquisitions)) = awaiting {
            let waited = started.elapsed() - since;
            if workers.acquisitions == acquisitions && waited < torture.ttl {
                std::thread::sleep(LOOK_EVERY / 2);
                continue;
            }
            (awaiting, later) = (None, later + waited);
        }
        let due = |(at_ms, _): &(u64, Action)| started.elapsed() >= later + Duration::from_millis(*at_ms);
        while let Some((_, action)) = actions.next_if(due) {
            if action == Action::AwaitGrant {
                awaiting = Some((started.elapsed(), workers.acquisitions));
                break;
            }
            if let Action::Begin(kind) = action {
                fault = Some(kind);
                *outcome.scenes.entry(kind.name()).or_default() += 1;
            }
            outcome.spared += u64::from(!lab.perform(action, torture)?);
            workers.perform(action, torture, &lab, command)?;
        }
        if started.elapsed() - shown >= Duration::from_secs(1) {
            shown = started.elapsed();
            let scenes = outcome.scenes.values().sum();
            let (acquisitions, failures) = (workers.acquisitions, workers.failures);
            progress(&Progress { elapsed: shown, acquisitions, failures, scenes, fault });
        }
        std::thread::sleep(LOOK_EVERY);
    }
    lab.mend();
    outcome.history = workers.finish(torture.ttl * 5 + Duration::from_secs(5), outcome.interrupted)?;
    outcome.verdict = check(&outcome.history);
    Ok(outcome)
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
        let orders = Orders { node_timeout: Duration::from_secs(2), ..torture.orders(0, &lab) };
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
    history: Vec<Entry>,
    acquisitions: u64,
    failures: u64,
    holder: Option<u32>,
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
        Self {
            running: BTreeMap::new(),
            next: 0,
            ended: 0,
            lines: channel(),
            history: Vec::new(),
            acquisitions: 0,
            failures: 0,
            holder: None,
            paused: None,
        }
    }

    fn start(
        &mut self,
        torture: &Torture,
        lab: &Lab,
        command: &dyn Fn(&Orders) -> Command,
    ) -> Result<(), TortureError> {
        let worker = self.next;
        self.next += 1;
        let mut child = command(&torture.orders(worker, lab)).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
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
                match &entry.event {
                    Event::Acquired { .. } => {
                        self.acquisitions += 1;
                        self.holder = Some(entry.worker);
                    }
                    Event::Failed { .. } => self.failures += 1,
                    Event::Released { .. } | Event::Lost { .. } if self.holder == Some(entry.worker) => {
                        self.holder = None;
                    }
                    _ => {}
                }
                self.history.push(entry);
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
        command: &dyn Fn(&Orders) -> Command,
    ) -> Result<(), TortureError> {
        // The holder, for whom it is worst; whoever comes first if there is none.
        let victim = self.holder.filter(|worker| self.running.contains_key(worker));
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
        Ok(std::mem::take(&mut self.history))
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

/// Writes a history, one line for each entry.
///
/// # Errors
/// The file cannot be written.
pub fn write_history(path: &std::path::Path, history: &[Entry]) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for entry in history {
        serde_json::to_writer(&mut file, entry)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}
