//! The loop that probes all targets and tells what it found.
//!
//! Owns the schedule of every target, the tasks of running probes and the states. Refuses to know services and backends.
//! Invariants: one task holds the whole schedule, so that 65,536 targets cost a queue entry each and not a task each; at most
//! [`Options::concurrency_max`] probes run at a time, later ones start late and say so ([`Event::late`]); if nobody takes
//! events, probing pauses instead of queueing without limit; a target that is removed is forgotten with its running probe.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, Id, JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    outcome::Outcome,
    probe::{self, Report},
    schedule::{self, Random},
    state::{Machine, Rules, State, Transition},
};
use crate::model::HealthCheck;

/// What is probed: one probe serves all backends, of whatever service, that agree on address and check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Address and port that are asked.
    pub address: SocketAddr,
    /// How. Its `port` is not looked at: `address` has it already.
    pub check: HealthCheck,
}

impl Target {
    fn rules(&self) -> Rules {
        Rules { rise: self.check.rise, fall: self.check.fall, interval: self.check.interval }
    }
}

/// One result, in the order in which they came.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose.
    pub target: Arc<Target>,
    /// What the probe found.
    pub outcome: Outcome,
    /// How long the probe took until then.
    pub latency: Duration,
    /// How much later than due it started, because too many ran.
    pub late: Duration,
    /// State after the result; [`State::Unknown`] only as long as every result was inconclusive.
    pub state: State,
    /// Set if the result changed the state.
    pub transition: Option<Transition>,
    /// Results in a row that speak against `state`.
    pub against: u32,
    /// How many of those change it.
    pub against_max: u32,
    /// When the result came.
    pub at: SystemTime,
}

/// Limits of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Probes at a time, at least 1. Each takes a file descriptor.
    pub concurrency_max: usize,
    /// Events that wait for the receiver, at least 1.
    pub events_max: usize,
    /// Seed of the jitter.
    pub seed: u64,
}

impl Default for Options {
    /// 512 probes (below the usual soft limit of 1,024 file descriptors), 1,024 events, a random seed.
    fn default() -> Self {
        // Without a random seed all nodes would probe in the same rhythm; that is no reason to refuse to start.
        Self { concurrency_max: 512, events_max: 1024, seed: getrandom::u64().unwrap_or(0) }
    }
}

type Wanted = BTreeMap<Target, Option<bool>>;

/// Handle of the loop; dropping it ends the loop and all probes.
#[derive(Debug)]
pub struct Checker {
    wanted: watch::Sender<Wanted>,
    task: JoinHandle<()>,
}

impl Checker {
    /// Starts the loop on the current tokio runtime, without targets.
    pub fn start(options: Options) -> (Self, mpsc::Receiver<Event>) {
        Self::start_with(options, |target: Arc<Target>| async move {
            probe::run(target.address, &target.check.probe, target.check.timeout).await
        })
    }

    /// Starts the loop around another way to ask: tests play thousands of backends with it.
    fn start_with<P, F>(options: Options, probe: P) -> (Self, mpsc::Receiver<Event>)
    where
        P: Fn(Arc<Target>) -> F + Send + 'static,
        F: Future<Output = Report> + Send + 'static,
    {
        let (events, receiver) = mpsc::channel(options.events_max.max(1));
        let (wanted, changes) = watch::channel(Wanted::new());
        let task = tokio::spawn(Loop::new(options, probe, changes, events).run());
        (Self { wanted, task }, receiver)
    }

    /// Replaces the set of targets; returns at once. Targets that stay keep state and schedule.
    ///
    /// A new target starts with the state given beside it (`Some(true)`: up) or, with `None`, unknown, so that its first
    /// result is trusted. The value is not looked at for targets that are there already. A changed check makes another
    /// target: give it the old one's state.
    pub fn set_targets(&self, targets: BTreeMap<Target, Option<bool>>) {
        self.wanted.send_replace(targets);
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Watched {
    target: Arc<Target>,
    machine: Machine,
    rules: Rules,
    /// Key in the queue, or the time for which the running probe was due.
    due: Instant,
    running: Option<AbortHandle>,
}

struct Loop<P> {
    options: Options,
    probe: P,
    random: Random,
    wanted: watch::Receiver<Wanted>,
    events: mpsc::Sender<Event>,
    /// Results that wait for room in `events`; while there are any, no probe starts, which bounds it by the running ones.
    unsent: VecDeque<Event>,
    ids: BTreeMap<Arc<Target>, u64>,
    watched: HashMap<u64, Watched>,
    /// Targets that wait for their next probe.
    queue: BTreeSet<(Instant, u64)>,
    probes: JoinSet<(Instant, Report)>,
    /// Target of each running probe.
    owners: HashMap<Id, u64>,
    next_id: u64,
}

impl<P, F> Loop<P>
where
    P: Fn(Arc<Target>) -> F,
    F: Future<Output = Report> + Send + 'static,
{
    fn new(options: Options, probe: P, wanted: watch::Receiver<Wanted>, events: mpsc::Sender<Event>) -> Self {
        Self {
            options,
            probe,
            random: Random::new(options.seed),
            wanted,
            events,
            unsent: VecDeque::new(),
            ids: BTreeMap::new(),
            watched: HashMap::new(),
            queue: BTreeSet::new(),
            probes: JoinSet::new(),
            owners: HashMap::new(),
            next_id: 0,
        }
    }

    /// Runs until either end of the handle is gone.
    async fn run(mut self) {
        let events = self.events.clone();
        loop {
            self.start_due(Instant::now());
            let may_start = self.unsent.is_empty() && self.probes.len() < self.options.concurrency_max.max(1);
            let next = self.queue.first().map(|(due, _)| *due).filter(|_| may_start);
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let wanted = self.wanted.borrow_and_update().clone();
                    self.replace_targets(wanted, Instant::now());
                }
                permit = events.reserve(), if !self.unsent.is_empty() => match (permit, self.unsent.pop_front()) {
                    (Ok(permit), Some(event)) => permit.send(event),
                    (Ok(_), None) => {}
                    (Err(_), _) => return,
                },
                Some(ended) = self.probes.join_next_with_id(), if !self.probes.is_empty() => match ended {
                    Ok((id, (started, report))) => self.finish(id, started, Some(report)),
                    Err(error) => self.finish(error.id(), Instant::now(), None),
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    fn replace_targets(&mut self, wanted: Wanted, now: Instant) {
        let gone: Vec<Arc<Target>> = self.ids.keys().filter(|target| !wanted.contains_key(*target)).cloned().collect();
        for target in gone {
            let Some(watched) = self.ids.remove(&target).and_then(|id| {
                self.queue.remove(&(self.watched.get(&id)?.due, id));
                self.watched.remove(&id)
            }) else {
                continue;
            };
            if let Some(running) = watched.running {
                running.abort();
            }
        }
        for (target, inherited) in wanted {
            if self.ids.contains_key(&target) {
                continue;
            }
            let id = self.next_id;
            self.next_id += 1;
            let machine = inherited.map_or_else(Machine::new, |up| Machine::inherited(up, now.into_std()));
            let due = now + schedule::first(target.check.interval, self.random.draw());
            let target = Arc::new(target);
            let rules = target.rules();
            self.ids.insert(Arc::clone(&target), id);
            self.queue.insert((due, id));
            self.watched.insert(id, Watched { target, machine, rules, due, running: None });
        }
    }

    fn start_due(&mut self, now: Instant) {
        while self.unsent.is_empty()
            && self.probes.len() < self.options.concurrency_max.max(1)
            && let Some(&(due, id)) = self.queue.first()
            && due <= now
        {
            self.queue.pop_first();
            let Some(watched) = self.watched.get_mut(&id) else { continue };
            let asked = (self.probe)(Arc::clone(&watched.target));
            let running = self.probes.spawn(async move { (now, asked.await) });
            self.owners.insert(running.id(), id);
            watched.running = Some(running);
        }
    }

    /// Takes a finished probe; `None` if it was aborted or failed itself.
    fn finish(&mut self, task: Id, started: Instant, report: Option<Report>) {
        let Some(id) = self.owners.remove(&task) else { return };
        // Removed targets have no entry any more: their results are nobody's.
        let Some(watched) = self.watched.get_mut(&id) else { return };
        watched.running = None;
        let now = Instant::now();
        let late = started.saturating_duration_since(watched.due);
        if let Some(Report { outcome, latency }) = report {
            let transition = watched.machine.observe(&watched.rules, outcome.verdict(), now.into_std());
            self.unsent.push_back(Event {
                target: Arc::clone(&watched.target),
                outcome,
                latency,
                late,
                state: watched.machine.state(),
                transition,
                against: watched.machine.against(),
                against_max: watched.machine.against_max(&watched.rules),
                at: SystemTime::now(),
            });
        } else {
            tracing::error!(address = %watched.target.address, "a health probe ended without a result");
        }
        let in_transition = watched.machine.in_transition(&watched.rules);
        let delay = schedule::next(watched.rules.interval, in_transition, self.random.draw());
        watched.due = (started + delay).max(now);
        self.queue.insert((watched.due, id));
    }
}
