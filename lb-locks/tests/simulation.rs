//! A virtual clock and a seeded network around the very code that runs against real nodes: [`Acquisition`] and [`Asking`] on
//! the clients, [`NodeModel`] and [`repair::plan`] for the nodes.
//!
//! Inside the assumptions (clock rates within the drift, no wall-clock steps, quarantine, durable counters) 100,000
//! schedules show no two holders and no token out of order. Each protection taken away makes the same schedules fail.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, time::Duration};

use lb_locks::{
    asking::{ASK_ALL_AFTER, Asking, is_voteless},
    clock::BootTime,
    command::{Command, ListId, Mode, Refusal, Reply, Status, Terms},
    fenced::FencedResource,
    model::NodeModel,
    repair,
    round::{Acquisition, Fencing, Plan, Step, majority},
    value::{Owner, Value},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::SliceRandom as _};

const NODES: usize = 5;
const CLIENTS: usize = 3;
const TTL_MS: u64 = 400;
const END_US: u64 = 2_000_000;
/// How often a client looks whether something is to be repaired.
const REPAIR_US: u64 = 90_000;
const NODE_TIMEOUT_US: u64 = 50_000;

/// What the schedule may do, and which protections stand.
#[derive(Clone, Copy)]
struct World {
    fencing: Fencing,
    quarantine: bool,
    /// Counters of wiped nodes are raised before they vote.
    counter_repair: bool,
    quorum: usize,
    /// Probability of a wall-clock step, of up to a lifetime, per fault.
    steps: f64,
    /// Nodes that come back without their data, instead of with it.
    wipes: bool,
}

const SOUND: World = World {
    fencing: Fencing::TwoRounds,
    quarantine: true,
    counter_repair: true,
    quorum: majority(NODES),
    steps: 0.0,
    wipes: true,
};

enum Event {
    /// A client begins an attempt.
    Begin(usize),
    /// A request arrives at a node; the answer is for that attempt of a client.
    Arrive {
        node: usize,
        client: usize,
        attempt: u64,
        second: bool,
        command: Arc<Command>,
    },
    Answer {
        node: usize,
        client: usize,
        attempt: u64,
        second: bool,
        reply: Reply,
    },
    TimeUp {
        client: usize,
        attempt: u64,
    },
    /// Nodes that were not asked are, whether the lock is held or not.
    AskAll {
        client: usize,
        attempt: u64,
    },
    /// The holder gives the lock back.
    Finish {
        client: usize,
        attempt: u64,
    },
    Fault,
    Repair,
}

struct Client {
    attempt: u64,
    acquisition: Option<Acquisition>,
    asking: Asking,
    /// Requests without an answer.
    on_way: usize,
    acquire: Arc<Command>,
    value: Value,
    /// How much the client's clock runs faster, in millionths.
    rate_ppm: i64,
}

struct Node {
    model: NodeModel,
    rate_ppm: i64,
    step_ms: i64,
    /// Down until then.
    down_until_us: u64,
    runs: u64,
    /// Wiped, and not repaired since.
    wiped: bool,
}

struct Grant {
    client: usize,
    from_us: u64,
    until_us: u64,
    fence: Option<u64>,
}

#[derive(Default, Debug, PartialEq)]
struct Verdict {
    grants: usize,
    overlaps: usize,
    inversions: usize,
    /// Late writes of an overlapped holder that a fenced resource let through, after a newer token had come.
    unfenced: usize,
}

struct Simulation {
    world: World,
    random: SmallRng,
    now_us: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    /// Places in `events` that are empty.
    free: Vec<usize>,
    clients: Vec<Client>,
    nodes: Vec<Node>,
    grants: Vec<Grant>,
    names: Arc<[String]>,
    loss: f64,
    late: f64,
}

/// A clock that runs `ppm` millionths faster.
fn skewed(us: u64, ppm: i64) -> u64 {
    us.saturating_add_signed(us as i64 / 1_000_000 * ppm + us as i64 % 1_000_000 * ppm / 1_000_000)
}

impl Simulation {
    fn new(world: World, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut nodes = Vec::new();
        for at in 0..NODES {
            let mut model = NodeModel::new(&format!("{at}.0"));
            let ready = Command::Ready {
                run_id: format!("{at}.0"),
                fence: 0,
                max_ttl_ms: TTL_MS,
                list: Default::default(),
                force: true,
            };
            assert_eq!(model.apply(&ready, 1_000_000), Reply::Done);
            // The drift allows for 1 %: rates differ by at most half of that in each direction.
            let rate_ppm = random.random_range(-4_000..=4_000);
            nodes.push(Node { model, rate_ppm, step_ms: 0, down_until_us: 0, runs: 0, wiped: false });
        }
        let clients = (0..CLIENTS).map(|_| Client {
            attempt: 0,
            acquisition: None,
            asking: Asking::default(),
            on_way: 0,
            acquire: Arc::new(Command::Status),
            value: Value::from_token(&[0; 20], &owner()),
            rate_ppm: random.random_range(-4_000..=4_000),
        });
        let clients = clients.collect();
        let (loss, late) = (random.random_range(0.0..0.15), random.random_range(0.0..0.1));
        let mut this = Self {
            world,
            random,
            now_us: 1_000_000_000,
            order: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            clients,
            nodes,
            grants: Vec::new(),
            names: (0..NODES).map(|n| n.to_string()).collect(),
            loss,
            late,
        };
        for client in 0..CLIENTS {
            let delay = this.random.random_range(0..100_000);
            this.after(delay, Event::Begin(client));
        }
        let first = this.random.random_range(20_000..300_000);
        this.after(first, Event::Fault);
        this.after(REPAIR_US, Event::Repair);
        this
    }

    fn after(&mut self, delay_us: u64, event: Event) {
        self.order += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.queue.push(Reverse((self.now_us + delay_us, self.order, place)));
    }

    /// A way over the network: lost, late by up to two lifetimes, or quick.
    fn travel(&mut self) -> Option<u64> {
        if self.random.random_bool(self.loss) {
            None
        } else if self.random.random_bool(self.late) {
            Some(self.random.random_range(0..TTL_MS * 2_000))
        } else {
            Some(self.random.random_range(100..20_000))
        }
    }

    fn client_now(&self, client: usize) -> BootTime {
        BootTime(Duration::from_micros(skewed(self.now_us, self.clients[client].rate_ppm)))
    }

    fn node_now_ms(&self, node: usize) -> u64 {
        (skewed(self.now_us, self.nodes[node].rate_ppm) / 1_000).saturating_add_signed(self.nodes[node].step_ms)
    }

    fn send(&mut self, node: usize, client: usize, second: bool, command: &Arc<Command>) {
        let attempt = self.clients[client].attempt;
        if let Some(delay) = self.travel() {
            self.after(delay, Event::Arrive { node, client, attempt, second, command: Arc::clone(command) });
        }
    }

    fn run(mut self) -> Verdict {
        let end = self.now_us + END_US;
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            if at > end {
                break;
            }
            self.now_us = at;
            self.free.push(event);
            let event = self.events[event].take().unwrap();
            self.handle(event);
        }
        self.verdict()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Begin(client) => self.begin(client),
            Event::Arrive { node, client, attempt, second, command } => {
                if self.nodes[node].down_until_us > self.now_us {
                    return;
                }
                let now_ms = self.node_now_ms(node);
                let reply = self.nodes[node].model.apply(&command, now_ms);
                if let Some(delay) = self.travel() {
                    self.after(delay, Event::Answer { node, client, attempt, second, reply });
                }
            }
            Event::Answer { node, client, attempt, second, reply } => {
                if self.clients[client].attempt != attempt {
                    return;
                }
                let now = self.client_now(client);
                let current = &mut self.clients[client];
                current.on_way -= 1;
                let Some(acquisition) = &mut current.acquisition else { return };
                if second {
                    let step = acquisition.on_confirmed(node, Ok(reply), now);
                    return self.act(client, step);
                }
                let reply = Ok(reply);
                let is_voteless = is_voteless(&reply);
                let step = acquisition.on_vote(node, reply, now);
                if step == Step::Wait {
                    let on_way = current.on_way;
                    self.ask(client, |asking| asking.after(is_voteless, on_way));
                }
                self.act(client, step);
            }
            Event::TimeUp { client, attempt } => {
                let now = self.client_now(client);
                let current = &mut self.clients[client];
                let Some(acquisition) = current.acquisition.as_mut().filter(|_| current.attempt == attempt) else {
                    return;
                };
                let step = acquisition.on_timeout(now);
                self.act(client, step);
            }
            Event::AskAll { client, attempt } => {
                if self.clients[client].attempt == attempt {
                    self.ask(client, |asking| asking.next(usize::MAX));
                }
            }
            Event::Finish { client, attempt } => {
                if self.clients[client].attempt == attempt {
                    self.release(client);
                    let pause = self.random.random_range(0..60_000);
                    self.after(pause, Event::Begin(client));
                }
            }
            Event::Fault => self.fault(),
            Event::Repair => self.repair(),
        }
    }

    fn begin(&mut self, client: usize) {
        let mut token = [0; 20];
        self.random.fill(&mut token);
        let value = Value::from_token(&token, &owner());
        let started = self.client_now(client);
        let acquisition = Acquisition::new(Plan {
            name: "lock".into(),
            nodes: Arc::clone(&self.names),
            quorum: self.world.quorum,
            ttl: Duration::from_millis(TTL_MS),
            fencing: self.world.fencing,
            started,
        });
        let acquire = Arc::new(Command::Acquire {
            name: "lock".into(),
            value: value.clone(),
            mode: Mode::Exclusive,
            ttl_ms: TTL_MS,
            fence: true,
            ticket: None,
            terms: Terms { list: ListId::default(), max_ttl_ms: TTL_MS, quarantine: self.world.quarantine },
        });
        // Which nodes are asked first is a guess about their speed, and may be any.
        let mut order: Vec<usize> = (0..NODES).collect();
        if self.random.random_bool(0.5) {
            order.shuffle(&mut self.random);
        }
        let state = &mut self.clients[client];
        (state.attempt, state.acquisition, state.value) = (state.attempt + 1, Some(acquisition), value);
        (state.asking, state.on_way, state.acquire) = (Asking::new(order), 0, acquire);
        let attempt = state.attempt;
        let first = if self.random.random_bool(0.2) { NODES } else { self.world.quorum };
        self.ask(client, |asking| asking.next(first));
        // The way there takes longer than between real nodes, and so does the patience sometimes: early and late is played.
        let times = if self.random.random_bool(0.2) { self.random.random_range(1..40) } else { 1 };
        let ask_all_us = u64::try_from(ASK_ALL_AFTER.as_micros()).unwrap() * times;
        self.after(ask_all_us, Event::AskAll { client, attempt });
        self.after(NODE_TIMEOUT_US, Event::TimeUp { client, attempt });
    }

    fn ask(&mut self, client: usize, choose: impl FnOnce(&mut Asking) -> &[usize]) {
        let nodes = choose(&mut self.clients[client].asking).to_vec();
        let acquire = Arc::clone(&self.clients[client].acquire);
        for node in nodes {
            self.clients[client].on_way += 1;
            self.send(node, client, false, &acquire);
        }
    }

    fn act(&mut self, client: usize, step: Step) {
        match step {
            Step::Wait => {}
            Step::Confirm { fence, nodes } => {
                let value = self.clients[client].value.clone();
                let confirm = Arc::new(Command::Confirm { name: "lock".into(), value, fence });
                for node in nodes {
                    self.clients[client].on_way += 1;
                    self.send(node, client, true, &confirm);
                }
            }
            Step::Won { valid_until, fence } => {
                self.clients[client].acquisition = None;
                let valid_us = u64::try_from(valid_until.since(self.client_now(client)).as_micros()).unwrap();
                // Held for certain that long by the client's clock, which may run slow.
                let valid_us = skewed(valid_us, -self.clients[client].rate_ppm);
                // A client releases early, at the end, or never (it died: the lock runs out).
                let held_us = match self.random.random_range(0..4) {
                    0 => valid_us,
                    _ => self.random.random_range(0..=valid_us),
                };
                self.grants.push(Grant { client, from_us: self.now_us, until_us: self.now_us + held_us, fence });
                let attempt = self.clients[client].attempt;
                if held_us == valid_us && self.random.random_bool(0.5) {
                    let pause = held_us + self.random.random_range(0..100_000);
                    self.after(pause, Event::Begin(client));
                } else {
                    self.after(held_us, Event::Finish { client, attempt });
                }
            }
            Step::Failed(_) => {
                self.clients[client].acquisition = None;
                self.release(client);
                let pause = self.random.random_range(1_000..80_000);
                self.after(pause, Event::Begin(client));
            }
        }
    }

    fn release(&mut self, client: usize) {
        let value = self.clients[client].value.clone();
        let release = Arc::new(Command::Release { name: "lock".into(), value, ticket: None });
        self.clients[client].asking.end();
        for node in self.clients[client].asking.asked().to_vec() {
            self.send(node, client, false, &release);
        }
        // Answers to releases must not reach the next acquisition.
        self.clients[client].attempt += 1;
    }

    /// Stops nodes, restarts them with or without their data; at most two are wiped and not repaired at one time, so
    /// that a majority of counters is always there.
    fn fault(&mut self) {
        let node = self.random.random_range(0..NODES);
        let down_us = match self.random.random_range(0..3) {
            0 => 0,
            1 => self.random.random_range(0..50_000),
            _ => self.random.random_range(0..2 * TTL_MS * 1_000),
        };
        let now_us = self.now_us;
        for at in 0..NODES {
            let now_ms = self.node_now_ms(at);
            let ready = matches!(
                self.nodes[at].model.apply(&Command::Status, now_ms),
                Reply::Status(Status { ready: true, .. })
            );
            self.nodes[at].wiped &= !ready;
        }
        let may_wipe = self.nodes.iter().enumerate().filter(|(at, state)| *at != node && state.wiped).count() < 2;
        let state = &mut self.nodes[node];
        state.down_until_us = state.down_until_us.max(now_us + down_us);
        state.runs += 1;
        let run = format!("{node}.{}", state.runs);
        match self.random.random_range(0..3) {
            // Unreachable, not restarted.
            0 => state.runs -= 1,
            1 if self.world.wipes && may_wipe => {
                state.model.restart(&run, false);
                state.wiped = true;
            }
            2 if self.world.wipes && may_wipe => {
                state.model.flush();
                state.wiped = true;
            }
            _ => state.model.restart(&run, true),
        }
        if self.random.random_bool(self.world.steps) {
            self.nodes[node].step_ms += self.random.random_range(0..=TTL_MS as i64);
        }
        let next = self.random.random_range(20_000..400_000);
        self.after(next, Event::Fault);
    }

    /// One client's repair: statuses now, the commands later, as far as the network lets them.
    fn repair(&mut self) {
        let mut statuses = Vec::new();
        for node in 0..NODES {
            let now_ms = self.node_now_ms(node);
            let state = &mut self.nodes[node];
            let status = match state.model.apply(&Command::Status, now_ms) {
                Reply::Status(status) if state.down_until_us <= self.now_us => Some(status),
                _ => None,
            };
            statuses.push(status.filter(|_| !self.random.random_bool(self.loss)));
        }
        for (node, mut command) in repair::plan(&statuses, &Default::default(), TTL_MS) {
            if let (false, Command::Ready { fence, .. }) = (self.world.counter_repair, &mut command) {
                *fence = 0;
            }
            // The answer is for nobody: attempt 0 is never current.
            if let Some(delay) = self.travel() {
                let command = Arc::new(command);
                self.after(delay, Event::Arrive { node, client: 0, attempt: 0, second: false, command });
            }
        }
        self.after(REPAIR_US, Event::Repair);
    }

    fn verdict(&self) -> Verdict {
        let mut verdict = Verdict { grants: self.grants.len(), ..Verdict::default() };
        let resource = FencedResource::new(());
        for (at, later) in self.grants.iter().enumerate() {
            // Every later holder writes at once; an earlier one that is still inside writes after it.
            let accepted = later.fence.map(|token| resource.access(token, |()| ()).is_ok());
            for earlier in &self.grants[..at] {
                if earlier.until_us > later.from_us {
                    assert_ne!(earlier.client, later.client);
                    verdict.overlaps += 1;
                    let late = earlier.fence.map(|token| resource.access(token, |()| ()).is_ok());
                    if accepted == Some(true) && late == Some(true) {
                        verdict.unfenced += 1;
                    }
                } else if earlier.fence >= later.fence {
                    verdict.inversions += 1;
                }
            }
        }
        verdict
    }
}

fn owner() -> Owner {
    Owner { host: "sim".into(), pid: 1, since_unix_ms: 0, label: String::new() }
}

/// All schedules from `seeds`, on two threads; the sum, and a seed that went wrong.
fn run(world: World, seeds: std::ops::Range<u64>) -> (Verdict, Option<u64>) {
    let middle = seeds.start + (seeds.end - seeds.start) / 2;
    let halves = [seeds.start..middle, middle..seeds.end].map(|seeds| {
        std::thread::spawn(move || {
            let (mut sum, mut wrong) = (Verdict::default(), None);
            for seed in seeds {
                let verdict = Simulation::new(world, seed).run();
                if wrong.is_none() && verdict.overlaps + verdict.inversions > 0 {
                    wrong = Some(seed);
                }
                sum.grants += verdict.grants;
                sum.overlaps += verdict.overlaps;
                sum.inversions += verdict.inversions;
                sum.unfenced += verdict.unfenced;
            }
            (sum, wrong)
        })
    });
    let mut all = (Verdict::default(), None);
    for half in halves {
        let (sum, wrong) = half.join().unwrap();
        all.0.grants += sum.grants;
        all.0.overlaps += sum.overlaps;
        all.0.inversions += sum.inversions;
        all.0.unfenced += sum.unfenced;
        all.1 = all.1.or(wrong);
    }
    println!("{:?}, first wrong seed {:?}", all.0, all.1);
    all
}

#[test]
fn inside_the_assumptions_there_is_one_holder_and_tokens_are_in_order() {
    let (verdict, wrong) = run(SOUND, 0..100_000);
    assert_eq!((verdict.overlaps, verdict.inversions), (0, 0), "seed {wrong:?}");
    assert!(verdict.grants > 50_000, "schedules in which nothing happens prove nothing: {verdict:?}");
}

#[test]
fn one_fencing_round_fails() {
    let (verdict, _) = run(World { fencing: Fencing::OneRound, ..SOUND }, 0..2_000);
    assert!(verdict.inversions > 0 && verdict.overlaps == 0, "{verdict:?}");
}

#[test]
fn no_quarantine_fails() {
    let (verdict, _) = run(World { quarantine: false, ..SOUND }, 0..4_000);
    assert!(verdict.overlaps > 0, "{verdict:?}");
}

#[test]
fn no_counter_repair_fails() {
    let (verdict, _) = run(World { counter_repair: false, ..SOUND }, 0..10_000);
    assert!(verdict.inversions > 0 && verdict.overlaps == 0, "{verdict:?}");
}

#[test]
fn less_than_a_majority_fails() {
    let (verdict, _) = run(World { quorum: 2, ..SOUND }, 0..2_000);
    assert!(verdict.overlaps > 0, "{verdict:?}");
}

/// Outside the assumptions: clocks that are stepped forward let two hold one lock. With durable counters the tokens are
/// still in order, so the resource refuses the older holder.
#[test]
fn clock_steps_overlap_and_the_fence_holds() {
    let (verdict, _) = run(World { steps: 0.7, wipes: false, ..SOUND }, 0..4_000);
    assert!(verdict.overlaps > 0, "{verdict:?}");
    assert_eq!((verdict.inversions, verdict.unfenced), (0, 0), "{verdict:?}");
}

/// A refusal is what quarantine looks like from outside.
#[test]
fn a_wiped_node_says_that_it_is_in_quarantine() {
    let mut simulation = Simulation::new(SOUND, 1);
    simulation.nodes[0].model.flush();
    let terms = Terms { list: ListId::default(), max_ttl_ms: TTL_MS, quarantine: true };
    let acquire = Command::Acquire {
        name: "lock".into(),
        value: simulation.clients[0].value.clone(),
        mode: Mode::Exclusive,
        ttl_ms: TTL_MS,
        fence: true,
        ticket: None,
        terms,
    };
    let reply = simulation.nodes[0].model.apply(&acquire, 5);
    assert_eq!(reply, Reply::Refused(Refusal::Quarantined { remaining_ms: TTL_MS + 6 }));
}
