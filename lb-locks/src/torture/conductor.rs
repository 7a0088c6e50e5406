//! A run of the torture: breaks nodes and workers by the schedule, and judges what the workers saw.
//!
//! Owns: when which action is due. Refuses to know what nodes and workers are made of: that is the stage's. Invariant: a node
//! is emptied only while a majority keeps its counters, for more is not promised.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{
    check::{Verdict, check},
    history::{Entry, Event},
    memory::Memory,
    processes::{MakeWorker, Processes},
    schedule::{Action, Fault, Setting, schedule},
};
use crate::{error::LockError, round::Fencing};

/// Most nodes.
pub const NODES_MAX: usize = 15;
/// Most workers.
pub const CLIENTS_MAX: usize = 64;
/// Most entries that a run keeps; it ends early with them.
const ENTRIES_MAX: usize = 5_000_000;
/// How often the conductor looks around.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(10);

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
}

/// What a run is played on: nodes and workers of some kind.
pub(super) trait Stage: Sized {
    /// Takes what the workers have seen since, and looks whether one ended by itself.
    ///
    /// # Errors
    /// One did.
    fn collect(&mut self) -> Result<&Seen, TortureError>;

    /// Does it to whom it concerns; false if a node was spared.
    ///
    /// # Errors
    /// It cannot be done.
    fn perform(&mut self, action: Action) -> Result<bool, TortureError>;

    /// Mends everything, lets the workers end, ends those that do not, and returns all that was seen.
    ///
    /// # Errors
    /// A worker cannot be heard to its end.
    fn finish(self, patience: Duration, at_once: bool) -> Result<Vec<Entry>, TortureError>;
}

/// What the workers have seen until now.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// All of it.
    pub history: Vec<Entry>,
    /// Grants.
    pub acquisitions: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Who holds the lock, as far as is known.
    pub holder: Option<u32>,
}

impl Seen {
    /// Adds what one of them saw.
    pub fn take(&mut self, entry: Entry) {
        match &entry.event {
            Event::Acquired { .. } => {
                self.acquisitions += 1;
                self.holder = Some(entry.worker);
            }
            Event::Failed { .. } => self.failures += 1,
            Event::Released { .. } | Event::Lost { .. } if self.holder == Some(entry.worker) => self.holder = None,
            _ => {}
        }
        self.history.push(entry);
    }
}

/// Runs the torture over processes, to its end or to `stop`. `command` makes a worker's process out of its orders; it writes its
/// history to standard output and ends when its standard input does.
///
/// # Errors
/// [`TortureError`]: something that is no part of the torture went wrong. What was broken on purpose is in the outcome.
pub fn run(
    torture: &Torture,
    command: &MakeWorker<'_>,
    progress: &mut dyn FnMut(&Progress),
    stop: &AtomicBool,
) -> Result<Outcome, TortureError> {
    torture.check()?;
    play(torture, Processes::start(torture, command, stop)?, progress, stop)
}

/// Runs the torture inside this process: nodes in memory, workers as tasks of one thread. The same schedule, the same protocol
/// and the same verdict; no server is needed. It blocks, and is not called from asynchronous code.
///
/// # Errors
/// As [`run`].
pub fn run_in_memory(
    torture: &Torture,
    progress: &mut dyn FnMut(&Progress),
    stop: &AtomicBool,
) -> Result<Outcome, TortureError> {
    torture.check()?;
    play(torture, Memory::start(torture)?, progress, stop)
}

fn play(
    torture: &Torture,
    mut stage: impl Stage,
    progress: &mut dyn FnMut(&Progress),
    stop: &AtomicBool,
) -> Result<Outcome, TortureError> {
    let setting = Setting {
        duration_ms: u64::try_from(torture.duration.as_millis()).unwrap_or(u64::MAX),
        nodes: torture.nodes,
        ttl_ms: u64::try_from(torture.ttl.as_millis()).unwrap_or(u64::MAX),
        faults: torture.faults.clone(),
    };
    let mut actions = schedule(torture.seed, &setting).into_iter().peekable();
    let mut outcome = Outcome {
        seed: torture.seed,
        scenes: BTreeMap::new(),
        spared: 0,
        interrupted: false,
        verdict: Verdict::default(),
        history: Vec::new(),
    };
    let started = Instant::now();
    let (mut fault, mut shown) = (None, Duration::ZERO);
    let (mut awaiting, mut later) = (None, Duration::ZERO);
    while started.elapsed() < torture.duration {
        if stop.load(Ordering::Acquire) {
            outcome.interrupted = true;
            break;
        }
        let Seen { history, acquisitions, failures, .. } = stage.collect()?;
        if history.len() >= ENTRIES_MAX {
            break;
        }
        let (acquisitions, failures) = (*acquisitions, *failures);
        if let Some((since, before)) = awaiting {
            let waited = started.elapsed() - since;
            if acquisitions == before && waited < torture.ttl {
                std::thread::sleep(LOOK_EVERY / 2);
                continue;
            }
            (awaiting, later) = (None, later + waited);
        }
        let due = |(at_ms, _): &(u64, Action)| started.elapsed() >= later + Duration::from_millis(*at_ms);
        while let Some((_, action)) = actions.next_if(due) {
            if action == Action::AwaitGrant {
                awaiting = Some((started.elapsed(), acquisitions));
                break;
            }
            if let Action::Begin(kind) = action {
                fault = Some(kind);
                *outcome.scenes.entry(kind.name()).or_default() += 1;
            }
            outcome.spared += u64::from(!stage.perform(action)?);
        }
        if started.elapsed() - shown >= Duration::from_secs(1) {
            shown = started.elapsed();
            let scenes = outcome.scenes.values().sum();
            progress(&Progress { elapsed: shown, acquisitions, failures, scenes, fault });
        }
        std::thread::sleep(LOOK_EVERY);
    }
    outcome.history = stage.finish(torture.ttl * 5 + Duration::from_secs(5), outcome.interrupted)?;
    outcome.verdict = check(&outcome.history);
    Ok(outcome)
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
