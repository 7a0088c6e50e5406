//! One orchestrator process: candidate, worker, and master while elected, as one state machine that owns no clock and no
//! connection.
//!
//! The shell calls [`Process::poll`], carries out what it is asked, and hands the answers back; the simulation does the
//! same with a network of its own. Invariants:
//!
//! - One request to the store is under way at a time, so answers and looks are in order.
//! - What only a master may ask for is asked for while [`Election::may_act`] says so, checked at that very moment, and
//!   carries the fence besides: a message that was delayed on its way is refused at the store.
//! - A write that was refused or lost voids the writes after it; the next look decides anew. Nothing is retried blindly.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use super::{
    clock::{BootTime, Periods, UnixMs},
    election::{Election, Want},
    intent::{Action, Executed, Order},
    master::{Answer, Master, Policy, Query},
    placement::{self, Beat, Liveness, Vote},
    record::{Expect, Fence, Outcome, Put, Record, View, Write},
    watch::Watch,
};

/// Seconds for which the heartbeat of a process that is gone can still be read.
const BEAT_TTL_S: u64 = 60;

/// What the shell is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Read everything, and the ring of decisions if it says so; answer with [`Process::looked`].
    Read {
        /// With the ring.
        decisions: bool,
    },
    /// Write; answer with [`Process::written`].
    Write(Write),
    /// Give an order to an executor; answer with [`Process::executed`].
    Execute(Order),
    /// Ask Prometheus; answer with [`Process::answered`].
    Query(Query),
    /// Ask the ready endpoint of a node; answer with [`Process::probed`].
    Probe(String, SocketAddr),
    /// Check exactly these targets from now on; each change of a target's state is told by [`Process::vote`].
    Check(BTreeSet<String>),
    /// Stop what executors are doing: this process is the master no more.
    Halt,
}

/// The request to the store that is under way.
#[derive(Clone, Debug)]
enum Pending {
    Read,
    Election,
    Beat,
    Write(Box<Write>),
    Vote,
}

/// One process.
#[derive(Clone, Debug)]
pub struct Process {
    name: String,
    periods: Periods,
    policy: Arc<Policy>,
    election: Election,
    watch: Watch,
    workers: Liveness,
    master: Option<Master>,
    view: View,
    /// Writes of the last decision that are still to be sent, and the epoch they belong to.
    writes: VecDeque<Write>,
    orders: VecDeque<Order>,
    votes: BTreeMap<String, Vote>,
    /// Targets whose vote may not be in the store yet.
    unsaid: BTreeSet<String>,
    share: BTreeSet<String>,
    generation: u64,
    beat: u64,
    address: Option<String>,
    pending: Option<Pending>,
    read_due: BootTime,
    beat_due: BootTime,
    looked_at: BootTime,
    halt: bool,
    /// Epoch of the last mastership and the highest number among its ids.
    ids: (u64, u64),
}

impl Process {
    /// A process that knows nothing yet. `name` is its name among the others, `word` is new at each start, `address` is where
    /// its metrics are.
    pub fn new(name: &str, word: &str, address: Option<String>, policy: Arc<Policy>, periods: Periods) -> Self {
        Self {
            name: name.to_owned(),
            periods,
            policy,
            election: Election::new(format!("{name}/{word}"), periods),
            watch: Watch::new(periods),
            workers: Liveness::new(periods.read * 2),
            master: None,
            view: View::default(),
            writes: VecDeque::new(),
            orders: VecDeque::new(),
            votes: BTreeMap::new(),
            unsaid: BTreeSet::new(),
            share: BTreeSet::new(),
            generation: 0,
            beat: 0,
            address,
            pending: None,
            read_due: BootTime::default(),
            beat_due: BootTime::default(),
            looked_at: BootTime::default(),
            halt: false,
            ids: (0, 0),
        }
    }

    /// Name and word of this start.
    pub fn holder(&self) -> &str {
        self.election.me()
    }

    /// The epoch in which it may act at `now`.
    pub fn may_act(&self, now: BootTime) -> Option<u64> {
        self.election.may_act(now)
    }

    /// Whether the master record is its own as far as it knows.
    pub fn holds(&self) -> bool {
        self.election.epoch_held().is_some()
    }

    /// The last look at the store.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// What it checks.
    pub fn share(&self) -> &BTreeSet<String> {
        &self.share
    }

    /// Generation of the assignment that it works by.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Gives the mastership back, and leaves it to others for two leases.
    pub fn step_down(&mut self, now: BootTime) {
        self.election.step_down(now);
    }

    /// Gives the mastership back for good.
    pub fn retire(&mut self) {
        self.election.retire();
    }

    /// Takes another policy.
    pub fn set_policy(&mut self, policy: Arc<Policy>, now: BootTime) {
        if let Some(master) = &mut self.master {
            master.set_policy(Arc::clone(&policy), now);
        }
        self.policy = policy;
    }

    /// What is to be done now. Call it again after each answer, and at [`Process::wake_at`].
    pub fn poll(&mut self, now: BootTime) -> Vec<Ask> {
        let mut asks = Vec::new();
        self.change_of_master(now);
        if std::mem::take(&mut self.halt) {
            asks.push(Ask::Halt);
        }
        if let Some(master) = &mut self.master {
            asks.extend(self.orders.drain(..).map(Ask::Execute));
            asks.extend(master.queries(now).into_iter().map(Ask::Query));
            let probes = self.watch.due(&self.view.nodes, now);
            asks.extend(probes.into_iter().map(|(name, address)| Ask::Probe(name, address)));
        }
        if self.pending.is_none()
            && let Some(ask) = self.store(now)
        {
            asks.push(ask);
        }
        asks
    }

    /// Begins or ends being the master, as the election says at `now`.
    fn change_of_master(&mut self, now: BootTime) {
        let epoch = self.election.may_act(now);
        if self.master.as_ref().map(Master::epoch) == epoch {
            return;
        }
        if let Some(master) = self.master.take() {
            self.halt = true;
            self.ids = (master.epoch(), master.ids());
        }
        self.writes.clear();
        self.orders.clear();
        if let Some(epoch) = epoch {
            self.watch.forget_probes(now);
            let used = if self.ids.0 == epoch { self.ids.1 } else { 0 };
            let master = Master::new(Arc::clone(&self.policy), self.election.me(), epoch, now);
            self.master = Some(master.with_ids(used));
            // It decides on what is there now, not on what it saw as a candidate.
            self.read_due = now;
        }
    }

    /// The next request to the store.
    fn store(&mut self, now: BootTime) -> Option<Ask> {
        if let Some(want) = self.election.want(now) {
            let Want { lease, expect } = want.clone();
            self.election.sent(want, now);
            self.pending = Some(Pending::Election);
            let (record, expect) = (Record::Lease(lease), expect.into());
            return Some(Ask::Write(Write::Put(Put { record, expect, fence: None, ttl_s: None })));
        }
        if let Some(put) = self.vote_put() {
            self.pending = Some(Pending::Vote);
            return Some(Ask::Write(Write::Put(put)));
        }
        if let Some(write) = self.writes.pop_front() {
            self.pending = Some(Pending::Write(Box::new(write.clone())));
            return Some(Ask::Write(write));
        }
        if now >= self.beat_due {
            self.beat_due = now + self.periods.beat;
            self.beat = self.beat.wrapping_add(1);
            let (holder, address) = (self.election.me().to_owned(), self.address.clone());
            let beat = Beat { holder, beat: self.beat, generation: self.generation, address };
            let record = Record::Beat(self.name.clone(), beat);
            let expect: Expect = self.view.version(&record).into();
            self.pending = Some(Pending::Beat);
            return Some(Ask::Write(Write::Put(Put { record, expect, fence: None, ttl_s: Some(BEAT_TTL_S) })));
        }
        if now >= self.read_due {
            self.pending = Some(Pending::Read);
            let decisions = self.master.as_ref().is_some_and(Master::wants_decisions);
            return Some(Ask::Read { decisions });
        }
        None
    }

    /// The next vote that the store lacks.
    fn vote_put(&mut self) -> Option<Put> {
        let assignment = &self.view.assignment.as_ref()?.value;
        while let Some(target) = self.unsaid.pop_first() {
            let Some(vote) = self.votes.get(&target) else { continue };
            let present = self.view.health.get(&target);
            let health = present.map(|at| &at.value);
            let Some(next) = placement::vote(health, &target, &self.name, vote.clone(), assignment) else { continue };
            let fence = Fence::Assignment { holder: assignment.holder.clone(), generation: assignment.epoch };
            let expect = present.map(|at| at.version).into();
            return Some(Put { record: Record::Health(target, next), expect, fence: Some(fence), ttl_s: None });
        }
        None
    }

    /// When [`Process::poll`] has something new to say, if no answer comes before.
    pub fn wake_at(&self, now: BootTime) -> BootTime {
        let mut at = now + self.periods.read;
        if self.pending.is_none() {
            at = at.min(self.read_due).min(self.beat_due);
            at = self.election.wake_at().map_or(at, |due| at.min(due));
            if !self.writes.is_empty() || !self.unsaid.is_empty() {
                at = now;
            }
        }
        if let Some(master) = &self.master {
            at = [master.wake_at(), self.watch.wake_at()].into_iter().flatten().fold(at, BootTime::min);
        }
        at.max(now)
    }

    /// Looks at the store again soon, but not without a pause: what fails at once must not be tried without end.
    fn look_soon(&mut self, now: BootTime) {
        self.read_due = self.read_due.min(now.max(self.looked_at + self.periods.read / 10));
    }

    /// The answer to [`Ask::Read`]; `None` where the store did not answer.
    pub fn looked(&mut self, view: Option<View>, now: BootTime, unix: UnixMs) -> Option<Ask> {
        if !matches!(self.pending.take(), Some(Pending::Read)) {
            return None;
        }
        self.read_due = now + self.periods.read;
        self.looked_at = now;
        let view = view?;
        let lease = view.lease.as_ref();
        self.election.observe(lease.map(|at| (at.version, &at.value)), now);
        self.workers.look(view.workers.iter().map(|(name, at)| (name.as_str(), at.value.beat)), now);
        self.watch.look(&view.nodes, now);
        self.view = view;
        let check = self.take_share();
        // What others wrote meanwhile may lack this worker's votes.
        self.unsaid = self.votes.keys().cloned().collect();
        self.change_of_master(now);
        if let Some(master) = &mut self.master {
            let live = self.workers.live(self.periods.worker_timeout);
            let plan = master.decide(&self.view, &self.watch, &live, now, unix);
            self.writes = plan.writes.into();
            self.orders = plan.orders.into();
        }
        check
    }

    /// Takes the share that the assignment gives; says what to check where that changed.
    fn take_share(&mut self) -> Option<Ask> {
        let Some(assignment) = self.view.assignment.as_ref().map(|at| &at.value) else {
            self.generation = 0;
            return None;
        };
        self.generation = assignment.epoch;
        let share = placement::share(&self.view.targets, &self.name, assignment);
        let share: BTreeSet<String> = share.into_iter().map(str::to_owned).collect();
        if share == self.share {
            return None;
        }
        self.votes.retain(|target, _| share.contains(target));
        self.share = share;
        Some(Ask::Check(self.share.clone()))
    }

    /// The answer to [`Ask::Write`].
    pub fn written(&mut self, outcome: Outcome, now: BootTime) {
        match self.pending.take() {
            None | Some(Pending::Read) => {}
            Some(Pending::Election) => {
                self.election.answered(&outcome, now);
                if !matches!(outcome, Outcome::Done { .. }) {
                    self.look_soon(now);
                }
            }
            Some(Pending::Beat) => {}
            Some(Pending::Vote) => {
                if !matches!(outcome, Outcome::Done { .. }) {
                    self.look_soon(now);
                }
            }
            Some(Pending::Write(write)) => match outcome {
                Outcome::Done { version, replicated } => {
                    if let (Write::Put(put), Some(master)) = (&*write, &mut self.master) {
                        master.stored(&put.record, version, replicated);
                    }
                    if self.writes.is_empty() && replicated {
                        // What was written is what the next step rests on.
                        self.look_soon(now);
                    }
                }
                Outcome::Refused | Outcome::Unknown => {
                    self.writes.clear();
                    self.look_soon(now);
                }
            },
        }
    }

    /// A target's state as this worker sees it.
    pub fn vote(&mut self, target: &str, vote: Vote) {
        if self.share.contains(target) {
            self.votes.insert(target.to_owned(), vote);
            self.unsaid.insert(target.to_owned());
        }
    }

    /// What became of an order.
    pub fn executed(&mut self, id: &str, action: Action, result: Executed, now: BootTime) {
        if let Some(master) = &mut self.master {
            master.executed(id, action, result);
            self.look_soon(now);
        }
    }

    /// What Prometheus said.
    pub fn answered(&mut self, rule: &str, answer: Answer) {
        if let Some(master) = &mut self.master {
            master.answered(rule, answer);
        }
    }

    /// What the probe of a node found.
    pub fn probed(&mut self, node: &str, ready: bool, now: BootTime) {
        self.watch.probed(node, ready, now);
        // A look right after it takes a dead node out without waiting for the next one.
        if self.master.is_some() && !ready {
            self.look_soon(now);
        }
    }
}
