//! Plays one schedule and looks, at each event, whether a promise is broken.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_userspace::orchestrator::{
    clock::{BootTime, UnixMs},
    intent::{Action, Executed, Order, Phase, order_of},
    master::{Answer, Policy},
    process::{Ask, Process},
    record::{Fence, Outcome, Record, Service, View, Write},
    scale::Missing,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::{
    store::Store,
    world::{END_US, Machine, Machines, NODES, ORDER_US_MAX, Orchestrator, PROCESSES, TARGETS, World, periods, policy},
};

/// Wall clock at the beginning.
const UNIX_MS: u64 = 1_800_000_000_000;

pub enum Event {
    Wake(usize),
    /// A request arrives at the store.
    Arrive {
        at: usize,
        ticket: u64,
        request: Request,
    },
    /// Its answer arrives.
    Answer {
        at: usize,
        ticket: u64,
        reply: Reply,
    },
    /// An order arrives at the executor.
    Order {
        at: usize,
        start: u32,
        order: Order,
    },
    /// What became of it arrives.
    Executed {
        at: usize,
        start: u32,
        id: String,
        action: Action,
        result: Executed,
    },
    Probed {
        at: usize,
        start: u32,
        node: String,
        ready: bool,
    },
    Queried {
        at: usize,
        start: u32,
        rule: String,
    },
    Boot(String),
    Beat(String),
    Second,
    Fault,
    Restart(usize),
    Healed,
}

pub enum Request {
    Read { decisions: bool },
    Write(Box<Write>),
}

pub enum Reply {
    View(Option<Box<View>>),
    Outcome(Outcome),
}

/// What a schedule came to.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    /// The first promise that was broken, and when.
    pub broken: Option<String>,
    /// Masters that were elected.
    pub elections: usize,
    /// Orders that had an effect.
    pub effects: usize,
    /// Decisions to scale, by direction: up, down.
    pub ups: usize,
    pub downs: usize,
    /// Times at which a decision to scale reversed the one before.
    pub turns: usize,
    /// Largest number of seconds for which a target was unchecked.
    pub unchecked_s: u64,
}

pub struct Run {
    pub world: World,
    pub policy: Arc<Policy>,
    pub random: SmallRng,
    pub now_us: u64,
    pub order: u64,
    pub queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    pub events: Vec<Option<Event>>,
    pub free: Vec<usize>,
    pub store: Store,
    pub store_down_until_us: u64,
    pub orchestrators: Vec<Orchestrator>,
    pub machines: Machines,
    pub targets: BTreeSet<String>,
    pub load: f64,
    /// The lowest load of each of the last seconds, newest last.
    pub loads: Vec<f64>,
    pub noise: f64,
    pub silent_until_us: u64,
    pub silence: Missing,
    pub loss: f64,
    pub loss_until_us: u64,
    pub faults_left: u32,
    /// (id, action) that had their effect.
    pub done: BTreeMap<(String, Action), Executed>,
    pub recorded: BTreeSet<String>,
    pub epochs: BTreeMap<u64, String>,
    pub checked_us: BTreeMap<String, u64>,
    pub disturbed_us: u64,
    pub zone_was: bool,
    pub serial: u32,
    pub last_way: i32,
    pub traced: bool,
    pub report: Report,
}

impl Run {
    pub fn new(world: World, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let policy = Arc::new(policy());
        let orchestrators = (0..PROCESSES)
            .map(|at| {
                let mut one = Orchestrator {
                    name: format!("o{at}"),
                    process: None,
                    starts: 0,
                    rate_ppm: random.random_range(-2_000..=2_000),
                    offset_us: random.random_range(1_000_000_000..90_000_000_000),
                    paused_until_us: 0,
                    cut_until_us: 0,
                    mute_until_us: 0,
                    ticket: 0,
                    wake_us: 0,
                    share: BTreeSet::new(),
                };
                one.start(&policy, periods(&world));
                one
            })
            .collect();
        let load = random.random_range(12.0..42.0);
        let noise = random.random_range(0.0..0.09);
        let mut run = Self {
            policy,
            now_us: 0,
            order: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            store: Store::new(world.fences),
            store_down_until_us: 0,
            orchestrators,
            machines: Machines::new(),
            targets: (0..TARGETS).map(|n| format!("10.0.0.{n}:80")).collect(),
            load,
            loads: vec![load],
            noise,
            silent_until_us: 0,
            silence: Missing::Empty,
            loss: 0.0,
            loss_until_us: 0,
            faults_left: random.random_range(0..=world.faults),
            done: BTreeMap::new(),
            recorded: BTreeSet::new(),
            epochs: BTreeMap::new(),
            checked_us: BTreeMap::new(),
            disturbed_us: 0,
            zone_was: false,
            serial: 0,
            last_way: 0,
            traced: std::env::var_os("WEIR_SEED").is_some(),
            report: Report::default(),
            world,
            random,
        };
        for at in 0..NODES {
            run.boot(&format!("n{at}"));
        }
        for at in 0..PROCESSES {
            let delay = run.random.random_range(0..3_000_000);
            run.at(delay, Event::Wake(at));
        }
        run.at(1_000_000, Event::Second);
        let first = run.random.random_range(5_000_000..60_000_000);
        run.at(first, Event::Fault);
        run
    }

    /// Plays it to its end, or to the first broken promise.
    pub fn play(mut self) -> Report {
        while let Some(Reverse((at_us, _, slot))) = self.queue.pop() {
            if at_us > END_US || self.report.broken.is_some() {
                break;
            }
            self.now_us = at_us;
            let Some(event) = self.events.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            self.handle(event);
        }
        if self.report.broken.is_none() {
            self.last_look();
        }
        self.report
    }

    pub(super) fn at(&mut self, delay_us: u64, event: Event) {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.events.push(None);
                self.events.len() - 1
            }
        };
        self.events[slot] = Some(event);
        self.order += 1;
        self.queue.push(Reverse((self.now_us + delay_us, self.order, slot)));
    }

    pub(super) fn broken(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.report.broken.get_or_insert_with(|| format!("{:.3} s: {what}", self.now_us as f64 / 1e6));
    }

    /// Tells what happens, while one seed is looked at.
    pub(super) fn trace(&self, what: impl FnOnce(&Self) -> Option<String>) {
        if self.traced
            && let Some(what) = what(self)
        {
            println!("{:10.3} {what}", self.now_us as f64 / 1e6);
        }
    }

    pub(super) fn unix(&self) -> UnixMs {
        UnixMs(UNIX_MS + self.now_us / 1000)
    }

    /// Time that a message takes.
    fn delay(&mut self) -> u64 {
        match self.random.random_range(0..100) {
            // A process that is paused between its last look at the clock and sending is a message that takes so long.
            0 if self.world.torn => self.random.random_range(500_000..60_000_000),
            0 => self.random.random_range(500_000..6_000_000),
            1..=5 => self.random.random_range(20_000..400_000),
            _ => self.random.random_range(200..8_000),
        }
    }

    fn is_lost(&mut self) -> bool {
        self.now_us < self.loss_until_us && self.random.random_bool(self.loss)
    }

    fn handle(&mut self, event: Event) {
        // What concerns a process that is paused waits for it.
        let whose = match &event {
            Event::Wake(at)
            | Event::Answer { at, .. }
            | Event::Executed { at, .. }
            | Event::Probed { at, .. }
            | Event::Queried { at, .. } => Some(*at),
            _ => None,
        };
        let until_us = whose.map_or(0, |at| self.orchestrators[at].paused_until_us);
        if until_us > self.now_us {
            return self.at(until_us - self.now_us, event);
        }
        match event {
            Event::Wake(at) => {
                if self.orchestrators[at].wake_us <= self.now_us {
                    self.pump(at);
                }
            }
            Event::Arrive { at, ticket, request } => self.arrive(at, ticket, &request),
            Event::Answer { at, ticket, reply } => {
                if self.orchestrators[at].ticket != ticket || self.orchestrators[at].process.is_none() {
                    return;
                }
                let (now, unix) = (self.orchestrators[at].clock(self.now_us), self.unix());
                let one = &mut self.orchestrators[at];
                one.ticket += 1;
                let Some(process) = &mut one.process else { return };
                match reply {
                    Reply::View(view) => {
                        if let Some(Ask::Check(share)) = process.looked(view.map(|view| *view), now, unix) {
                            one.share = share;
                        }
                    }
                    Reply::Outcome(outcome) => process.written(outcome, now),
                }
                self.pump(at);
            }
            Event::Order { at, start, order } => self.execute(at, start, order),
            Event::Executed { at, start, id, action, result } => {
                self.tell(at, start, |process, now| process.executed(&id, action, result, now));
            }
            Event::Probed { at, start, node, ready } => {
                self.tell(at, start, |process, now| process.probed(&node, ready, now));
            }
            Event::Queried { at, start, rule } => {
                let value = self.metric();
                self.tell(at, start, |process, _| process.answered(&rule, Answer::Value(value)));
            }
            Event::Boot(name) => self.boot(&name),
            Event::Beat(name) => {
                let revision = self.store.revision;
                if let Some(machine) = self.machines.get_mut(&name)
                    && machine.up_since_us.is_some()
                {
                    machine.beat += 1;
                    machine.revision = revision;
                    self.at(3_000_000, Event::Beat(name));
                }
            }
            Event::Second => self.second(),
            Event::Fault => self.fault(),
            Event::Restart(at) => {
                if self.orchestrators[at].process.is_none() {
                    let (policy, periods) = (Arc::clone(&self.policy), periods(&self.world));
                    self.orchestrators[at].start(&policy, periods);
                    self.disturbed_us = self.now_us;
                    self.pump(at);
                }
            }
            Event::Healed => self.disturbed_us = self.now_us,
        }
    }

    /// Hands an answer to the process, if it is still the one that asked.
    fn tell(&mut self, at: usize, start: u32, tell: impl FnOnce(&mut Process, BootTime)) {
        let one = &mut self.orchestrators[at];
        if one.starts != start {
            return;
        }
        let now = one.clock(self.now_us);
        if let Some(process) = &mut one.process {
            tell(process, now);
            self.pump(at);
        }
    }

    /// Lets a process say what it wants.
    pub(super) fn pump(&mut self, at: usize) {
        let one = &mut self.orchestrators[at];
        let now = one.clock(self.now_us);
        let start = one.starts;
        let Some(process) = &mut one.process else { return };
        let asks = process.poll(now);
        let wake = process.wake_at(now);
        for ask in asks {
            self.carry_out(at, start, ask);
        }
        // Its clock may run slow: a wake-up a little too early is repeated.
        let delay_us = u64::try_from(wake.since(now).as_micros()).unwrap_or(1_000_000).max(1_000);
        self.orchestrators[at].wake_us = self.now_us + delay_us;
        self.at(delay_us, Event::Wake(at));
    }

    fn carry_out(&mut self, at: usize, start: u32, ask: Ask) {
        match ask {
            Ask::Read { decisions } => self.send(at, Request::Read { decisions }),
            Ask::Write(write) => {
                if !self.world.record_first
                    && let Write::Put(put) = &write
                    && let (Record::Intent(intent), Some(Fence::Master { epoch, .. })) = (&put.record, &put.fence)
                    && intent.phase == Phase::Create
                    && let Some(order) = order_of(intent, Action::Create, *epoch)
                {
                    self.at(1_000, Event::Order { at, start, order });
                }
                self.send(at, Request::Write(Box::new(write)));
            }
            Ask::Execute(order) => {
                let torn = self.world.torn && self.random.random_bool(0.2);
                let most = if torn { 90_000_000 } else { ORDER_US_MAX };
                let delay = self.random.random_range(1_000..most);
                self.at(delay, Event::Order { at, start, order });
            }
            Ask::Query(query) => {
                let delay = self.random.random_range(1_000..200_000);
                self.at(delay, Event::Queried { at, start, rule: query.rule });
            }
            Ask::Probe(node, address) => {
                let ready = self.is_up(address);
                let delay = if ready { self.random.random_range(500..50_000) } else { 1_000_000 };
                self.at(delay, Event::Probed { at, start, node, ready });
            }
            Ask::Check(share) => self.orchestrators[at].share = share,
            Ask::Halt => {}
        }
    }

    fn is_up(&self, address: SocketAddr) -> bool {
        self.machines.values().any(|one| one.address == address.ip() && one.up_since_us.is_some())
    }

    fn send(&mut self, at: usize, request: Request) {
        let ticket = self.orchestrators[at].ticket;
        let timeout = match &request {
            Request::Read { .. } => Reply::View(None),
            Request::Write(_) => Reply::Outcome(Outcome::Unknown),
        };
        self.at(1_000_000, Event::Answer { at, ticket, reply: timeout });
        let one = &self.orchestrators[at];
        let cut =
            one.cut_until_us > self.now_us || (one.mute_until_us > self.now_us && matches!(request, Request::Write(_)));
        if cut || self.is_lost() {
            return;
        }
        let delay = self.delay();
        self.at(delay, Event::Arrive { at, ticket, request });
    }

    fn arrive(&mut self, at: usize, ticket: u64, request: &Request) {
        if self.now_us < self.store_down_until_us {
            return;
        }
        let reply = match request {
            Request::Read { decisions } => Reply::View(Some(Box::new(self.look(*decisions)))),
            Request::Write(write) => Reply::Outcome(self.write(at, write)),
        };
        if self.is_lost() {
            return;
        }
        let delay = self.delay();
        self.at(delay, Event::Answer { at, ticket, reply });
    }

    fn look(&self, decisions: bool) -> View {
        let mut view = self.store.view(decisions);
        view.nodes = self
            .machines
            .iter()
            .filter(|(_, one)| one.beat > 0 && !(one.removed && self.now_us > one.died_us + 60_000_000))
            .map(|(name, one)| (name.clone(), one.report()))
            .collect();
        view.services = BTreeMap::from([("web".to_owned(), Service::default())]);
        view.targets.clone_from(&self.targets);
        view
    }

    /// A write arrives: what becomes of it, and whether it may.
    fn write(&mut self, at: usize, write: &Write) -> Outcome {
        let held = write.fence().is_none_or(|fence| self.store.holds(fence));
        let before = self.store.get("orchestrator/master").cloned();
        let outcome = self.store.write(write);
        self.trace(|run| match write {
            Write::Put(put) if matches!(put.record, Record::Beat(..) | Record::Decision(..)) => None,
            Write::Put(put) => Some(format!("o{at} {:?} {outcome:?} {}", put.record, run.store.is_lagging())),
            Write::Edit { .. } => None,
        });
        let (Outcome::Done { replicated, .. }, Write::Put(put)) = (&outcome, write) else { return outcome };
        if !held {
            self.broken(format!("a write of {} was accepted from one who is not entitled", put.record.key()));
        }
        if let Some(Fence::Master { holder, epoch }) = &put.fence
            && self.epochs.entry(*epoch).or_insert_with(|| holder.clone()) != holder
        {
            self.broken(format!("two masters act in epoch {epoch}"));
        }
        match &put.record {
            Record::Lease(lease) => {
                let same = matches!(&before, Some(Record::Lease(old)) if old.holder == lease.holder);
                let taken = !same && !lease.holder.is_empty();
                if taken && *replicated {
                    self.report.elections += 1;
                    self.taken_over(at);
                }
            }
            Record::Zone(zone) => {
                if zone.records.values().any(Vec::is_empty) || zone.records.is_empty() {
                    self.broken("an empty zone");
                }
                if self.serial != 0 && zone.serial.wrapping_sub(self.serial) >= 1 << 31 {
                    self.broken(format!("serial {} after {}", zone.serial, self.serial));
                }
                self.serial = zone.serial;
                self.zone_was = true;
            }
            Record::Intent(intent) => {
                let new = !self.recorded.contains(&intent.id);
                if *replicated {
                    self.recorded.insert(intent.id.clone());
                }
                if intent.phase == Phase::Drain && new {
                    self.removal(intent);
                } else if new && intent.phase == Phase::Create {
                    self.way(1);
                }
            }
            _ => {}
        }
        outcome
    }

    pub(super) fn zone(&self) -> BTreeSet<IpAddr> {
        match self.store.get("dns/zone") {
            Some(Record::Zone(zone)) => zone.records.values().flatten().copied().collect(),
            _ => BTreeSet::new(),
        }
    }

    /// The executor gets an order. It does nothing twice for one id.
    fn execute(&mut self, at: usize, start: u32, order: Order) {
        let key = (order.id.clone(), order.action);
        let result = match self.done.get(&key) {
            Some(result) => result.clone(),
            None if self.random.random_bool(0.15) => Err("exit status 1".to_owned()),
            None => {
                self.report.effects += 1;
                if !self.recorded.contains(&order.id) {
                    self.broken(format!("{} {} without a recorded intent", order.action, order.name));
                }
                match order.action {
                    Action::Create => {
                        let delay = self.random.random_range(1_000_000..12_000_000);
                        self.at(delay, Event::Boot(order.name.clone()));
                    }
                    Action::Remove => {
                        let now_us = self.now_us;
                        if let Some(machine) = self.machines.get_mut(&order.name) {
                            machine.removed = true;
                            machine.up_since_us = None;
                            machine.died_us = now_us;
                        }
                    }
                }
                self.done.insert(key.clone(), Ok(None));
                Ok(None)
            }
        };
        let delay = self.random.random_range(1_000..3_000_000);
        self.at(delay, Event::Executed { at, start, id: key.0, action: key.1, result });
    }

    fn boot(&mut self, name: &str) {
        let number = u8::try_from(self.machines.len() + 1).unwrap_or(u8::MAX);
        let (now_us, revision) = (self.now_us, self.store.revision);
        let removed = self.done.contains_key(&(name.to_owned(), Action::Remove));
        let machine = self.machines.entry(name.to_owned()).or_insert_with(|| Machine {
            address: IpAddr::from([192, 0, 2, number]),
            up_since_us: None,
            died_us: 0,
            beat: 0,
            revision,
            removed,
        });
        if machine.removed || machine.up_since_us.is_some() {
            return;
        }
        machine.up_since_us = Some(now_us);
        let delay = self.random.random_range(0..1_000_000);
        self.at(delay, Event::Beat(name.to_owned()));
    }

    /// Connections per node that clients can reach, as a scrape shows them.
    fn metric(&mut self) -> Result<f64, Missing> {
        if self.now_us < self.silent_until_us {
            return if self.world.missing_is_missing { Err(self.silence.clone()) } else { Ok(0.0) };
        }
        let zone = self.zone();
        let serving = self.machines.values().filter(|one| one.up_since_us.is_some() && zone.contains(&one.address));
        match serving.count() {
            0 => Err(Missing::Empty),
            count => Ok(self.load / count as f64 * self.random.random_range(1.0 - self.noise..=1.0 + self.noise)),
        }
    }
}
