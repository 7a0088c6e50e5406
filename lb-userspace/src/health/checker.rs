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
    pub(crate) fn start_with<P, F>(options: Options, probe: P) -> (Self, mpsc::Receiver<Event>)
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

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use tokio::{net::TcpListener, time::timeout};

    use super::*;
    use crate::model::Probe;

    fn target(n: u32) -> Target {
        Target {
            address: SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + n), 80)),
            check: HealthCheck {
                probe: Probe::Tcp,
                port: None,
                interval: Duration::from_secs(2),
                timeout: Duration::from_secs(1),
                rise: 2,
                fall: 3,
            },
        }
    }

    fn targets(range: std::ops::Range<u32>) -> BTreeMap<Target, Option<bool>> {
        range.map(|n| (target(n), None)).collect()
    }

    const OPTIONS: Options = Options { concurrency_max: 100, events_max: 1024, seed: 7 };

    fn answer(outcome: Outcome) -> Report {
        Report { outcome, latency: Duration::from_millis(1) }
    }

    /// A backend that accepts until it is told to refuse.
    #[derive(Clone, Default)]
    struct Backend(Arc<Mutex<bool>>);

    impl Backend {
        fn set_down(&self, down: bool) {
            *self.0.lock().expect("lock") = down;
        }

        fn outcome(&self) -> Outcome {
            if *self.0.lock().expect("lock") {
                Outcome::L4Con(std::io::ErrorKind::ConnectionRefused)
            } else {
                Outcome::L4Ok
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_one_of_65536_targets_is_probed_once_per_interval_within_the_limit() {
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let (counter, peak) = (Arc::clone(&running), Arc::clone(&most));
        let (checker, mut events) = Checker::start_with(OPTIONS, move |_| {
            let (counter, peak) = (Arc::clone(&counter), Arc::clone(&peak));
            async move {
                peak.fetch_max(counter.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
                counter.fetch_sub(1, Ordering::Relaxed);
                answer(Outcome::L4Ok)
            }
        });
        checker.set_targets(targets(0..65_536));
        let start = Instant::now();
        let mut seen: HashMap<Arc<Target>, u32> = HashMap::new();
        while start.elapsed() < Duration::from_millis(6_200) {
            let event = timeout(Duration::from_secs(1), events.recv()).await.expect("probes go on").expect("open");
            assert_eq!(event.state, State::Up);
            *seen.entry(event.target).or_default() += 1;
        }
        assert_eq!(seen.len(), 65_536);
        // 6.2 s minus the random start: two to four probes each, if none waits longer than it should.
        assert!(seen.values().all(|&n| (2..=4).contains(&n)), "{:?}", seen.values().max());
        let most = most.load(Ordering::Relaxed);
        assert!(most > 30 && most <= OPTIONS.concurrency_max, "{most} at a time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_death_is_seen_within_two_intervals_and_recovery_follows() {
        let backend = Backend::default();
        let probed = backend.clone();
        let (checker, mut events) = Checker::start_with(OPTIONS, move |_| {
            let outcome = probed.outcome();
            async move { answer(outcome) }
        });
        checker.set_targets(targets(1..2));
        let first = events.recv().await.expect("open");
        let up = Transition { from: State::Unknown, to: State::Up };
        assert_eq!((first.transition, first.against_max), (Some(up), 3));

        backend.set_down(true);
        let died = Instant::now();
        let mut against = Vec::new();
        loop {
            let event = events.recv().await.expect("open");
            if let Some(transition) = event.transition {
                assert_eq!(transition, Transition { from: State::Up, to: State::Down });
                break;
            }
            against.push(event.against);
        }
        assert_eq!(against, [1, 2]);
        // At worst a whole interval until the first failure and two half ones, each a tenth late.
        assert!(died.elapsed() <= Duration::from_millis(4_400), "{:?}", died.elapsed());

        backend.set_down(false);
        while events.recv().await.expect("open").state != State::Up {}
    }

    #[tokio::test(start_paused = true)]
    async fn sets_differ_only_in_what_differs() {
        let backend = Backend::default();
        let probed = backend.clone();
        let (checker, mut events) = Checker::start_with(OPTIONS, move |_| {
            let outcome = probed.outcome();
            async move { answer(outcome) }
        });
        backend.set_down(true);
        checker.set_targets([(target(1), Some(true))].into());
        let event = events.recv().await.expect("open");
        assert_eq!((event.state, event.against), (State::Up, 1), "inherited up is not lost with the first failure");

        // The one that stays keeps its count, whatever is said of it; the new one starts on its own.
        checker.set_targets([(target(1), Some(false)), (target(2), None)].into());
        let mut down = BTreeSet::new();
        while down.len() < 2 {
            let event = events.recv().await.expect("open");
            if let Some(transition) = event.transition {
                assert_eq!(transition.to, State::Down);
                down.insert(event.target.address);
            }
        }

        checker.set_targets(targets(2..3));
        // What was under way when the set changed may still come.
        tokio::time::sleep(Duration::from_secs(1)).await;
        while events.try_recv().is_ok() {}
        for _ in 0..5 {
            assert_eq!(events.recv().await.expect("open").target.address, target(2).address);
        }
        drop(checker);
        assert!(timeout(Duration::from_secs(1), async { while events.recv().await.is_some() {} }).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_listening_pauses_the_probes() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let options = Options { events_max: 4, concurrency_max: 2, seed: 1 };
        let (checker, mut events) = Checker::start_with(options, move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            async { answer(Outcome::L4Ok) }
        });
        checker.set_targets(targets(0..100));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let stalled = asked.load(Ordering::Relaxed);
        assert!(stalled <= 4 + 2 * 2, "{stalled} probes without a listener");
        // The handle still works meanwhile, and probing resumes with the listener.
        checker.set_targets(targets(0..50));
        for _ in 0..200 {
            timeout(Duration::from_secs(5), events.recv()).await.expect("resumes").expect("open");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_is_dropped_with_its_target_and_one_that_panics_is_repeated() {
        struct Gone(Arc<AtomicUsize>);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (dropped, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (drops, asks) = (Arc::clone(&dropped), Arc::clone(&asked));
        let hangs = target(1).address;
        let (checker, mut events) = Checker::start_with(OPTIONS, move |target: Arc<Target>| {
            let (gone, asks) = (Gone(Arc::clone(&drops)), Arc::clone(&asks));
            async move {
                if target.address == hangs {
                    std::future::pending::<()>().await;
                }
                drop(gone);
                assert!(asks.fetch_add(1, Ordering::Relaxed) > 0, "the first one panics, as the test wants it to");
                answer(Outcome::L4Ok)
            }
        });
        checker.set_targets(targets(1..3));
        assert_eq!(events.recv().await.expect("open").target.address, target(2).address);
        assert!(asked.load(Ordering::Relaxed) >= 2, "probed again after the panic");
        let before = dropped.load(Ordering::Relaxed);
        checker.set_targets(BTreeMap::new());
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(dropped.load(Ordering::Relaxed) > before, "the hanging probe was aborted");
        while events.try_recv().is_ok() {}
        assert!(timeout(Duration::from_secs(10), events.recv()).await.is_err(), "nothing is probed any more");
    }

    /// The whole way, with real sockets and short intervals.
    #[tokio::test]
    async fn a_real_server_comes_and_goes() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let address = listener.local_addr().expect("address");
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream);
            }
        });
        let mut target = target(0);
        target.address = address;
        (target.check.interval, target.check.timeout) = (Duration::from_millis(100), Duration::from_millis(100));
        let (checker, mut events) = Checker::start(Options::default());
        checker.set_targets([(target, None)].into());
        let wait = Duration::from_secs(5);
        let event = timeout(wait, events.recv()).await.expect("in time").expect("open");
        assert_eq!((event.outcome.word(), event.state), ("L4OK", State::Up));
        server.abort();
        let down = async {
            loop {
                let event = events.recv().await.expect("open");
                if event.transition.is_some() {
                    return event;
                }
            }
        };
        let event = timeout(wait, down).await.expect("in time");
        assert_eq!((event.outcome.word(), event.state), ("L4CON", State::Down));
    }
}
