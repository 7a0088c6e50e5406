//! Plays a sequence: clients, servers and an agent, against what decides, and a reference that remembers every flow's rightful server.
//!
//! The rightful server of a flow is the one whose SYN-ACK its client acknowledged first. A moved flow is a packet of an open flow that
//! does not reach its rightful server although that lives and the flow was not silent for as long as its window. Owns: clients,
//! time, the reference. Refuses to know: how packets are decided.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_core::abi::service::OnMarkedDown;
use lb_userspace::{
    dataplane::{
        apply,
        engine::{Clock, Engine},
    },
    plan::{Look, Plan, Present, Times},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    dying::Dying,
    packet::{flag, frame},
    place::{Place, Sent, drift, records},
    played::Played,
    setup::{SECRETS, Setup},
    step::{ATTEMPTS, Answer, Change, Flood, How, Step},
    weaken::Rule,
};

/// The times of the service in sequences: short, so that a sequence passes through many windows.
pub const TIMES: Times = Times { announce_s: 4, window_s: 40 };
/// By how much the reference promises less than the times say, as clocks of seconds are read at different moments.
const MARGIN_MS: u64 = 4000;
/// When a client sends each of its SYNs.
const SYNS_MS: [u64; ATTEMPTS] = [0, 1000, 3000, 7000];
/// When a client that was not answered gives up.
const GIVES_UP_MS: u64 = 20_000;
/// Seconds between two looks at the flow table, as the agent takes them.
const LOOK_EVERY_S: u64 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// The client waits for an answer.
    Opening,
    /// It has a rightful server.
    Open(u16),
    /// Over, or nothing is promised to it any more.
    Over,
}

struct Flow {
    tuple: u16,
    /// Another flow had that tuple before.
    reused: bool,
    answer: Answer,
    life: Life,
    born_ms: u64,
    /// When it last sent.
    sent_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Syn(usize, usize),
    Duplicate(usize),
    Answered(usize, u16),
}

/// A sequence being played.
pub struct Play<'p, P: Place> {
    place: &'p mut P,
    broken: Option<Rule>,
    engine: Option<Engine<P::Memory>>,
    setup: Setup,
    /// What the maps were last made to hold: which servers were told to be down, under which setting.
    told: Option<Setup>,
    /// A change waits for a plan, for want of room or of an agent.
    waiting: bool,
    revision: u64,
    now_ms: u64,
    /// When the agent's clock began, by its own seconds.
    clock_s: u64,
    began: Instant,
    look_s: u64,
    /// When each server left the configuration.
    left_ms: Vec<Option<u64>>,
    /// Since when each server takes no new flows, as far as the running agent knows.
    drained_ms: Vec<Option<u64>>,
    flows: Vec<Flow>,
    /// The last flow of each tuple.
    by_tuple: HashMap<u16, usize>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    number: u64,
    played: Played,
}

impl<'p, P: Place> Play<'p, P> {
    /// Empties the place and configures the service; `broken` says which rule is not to hold.
    pub fn new(place: &'p mut P, setup: Setup, broken: Option<Rule>) -> Result<Self> {
        place.clear()?;
        place.set_clock(0);
        let servers = setup.servers.len();
        let mut play = Self {
            place,
            broken,
            engine: None,
            told: None,
            waiting: true,
            revision: 0,
            now_ms: 0,
            clock_s: 0,
            began: Instant::now(),
            look_s: 0,
            left_ms: setup.servers.iter().map(|s| (!s.listed).then_some(0)).collect(),
            drained_ms: vec![None; servers],
            setup,
            flows: Vec::new(),
            by_tuple: HashMap::new(),
            events: BinaryHeap::new(),
            number: 0,
            played: Played::default(),
        };
        play.start(1000)?;
        Ok(play)
    }

    /// Takes a step. An error says which promise does not hold.
    pub fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Open(tuple, answer) => self.open(tuple, answer),
            Step::Talk(pick, count) => self.talk(pick, count),
            Step::End(pick, reset) => self.end(pick, reset),
            Step::Wait(ms) => self.wait(u64::from(ms)),
            Step::Flood(seed, flood, count) => self.flood(seed, flood, count),
            Step::Change(change, how) => self.change(change, how),
            Step::Stop => {
                self.engine = None;
                Ok(())
            }
            Step::Start(clock_s) => self.start(u64::from(clock_s)),
        }
    }

    /// After the last step: every flow is kept through the end of all windows, then all end, and nothing is left behind.
    pub fn finish(&mut self) -> Result<Played> {
        if self.engine.is_none() {
            self.start(77)?;
        }
        let window_ms = (self.setup.times.announce_s + self.setup.times.window_s) * 1000;
        for _ in 0..8 {
            self.talk_all()?;
            self.wait(window_ms / 4)?;
        }
        self.talk_all()?;
        let open = |flow: &Flow| matches!(flow.life, Life::Open(_));
        while self.flows.iter().any(open) {
            self.end(0, false)?;
        }
        self.wait(u64::from(self.setup.established_s) * 1000 + 30_000)?;
        let left = records(self.place);
        ensure!(left == 0, "{left} records are left after the last flow ended");
        let present = self.engine.as_ref().context("an agent runs")?.present();
        for (_, service) in present.services() {
            let counts = service.window.counts(self.setup.ring_size);
            ensure!(counts == [0; 3], "slots are not settled after the last flow ended: {counts:?}");
            ensure!(service.entry.previous_ring == 0, "a previous ring is left after its window");
        }
        ensure!(present.former().is_empty(), "ids are kept that nothing names: {:?}", present.former());
        Ok(self.played)
    }

    fn now_s(&self) -> u64 {
        self.clock_s + self.now_ms / 1000
    }

    fn now(&self) -> Instant {
        self.began + Duration::from_millis(self.now_ms)
    }

    fn at(&mut self, at_ms: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse((at_ms, self.number, event)));
    }

    /// Sends a packet; none goes to a server of which the maps know that it is dead.
    fn send(&mut self, src: [u8; 4], port: u16, flags: u8) -> Result<Sent> {
        self.played.packets += 1;
        let sent = self.place.run(&frame(src, port, flags))?;
        let Some(told) = self.told.as_ref().filter(|_| !self.waiting) else { return Ok(sent) };
        if let Sent::To(n) = sent {
            let server = told.servers.get(usize::from(n)).with_context(|| format!("there is no server {n}"))?;
            let stays = told.on_marked_down == OnMarkedDown::Keep && flags & flag::SYN == 0;
            ensure!(server.up || stays || !server.listed, "a packet went to server {n}, which is down");
        }
        Ok(sent)
    }

    fn address(tuple: u16) -> ([u8; 4], u16) {
        ([198, 51, 100, (tuple % 32) as u8], 1024 + tuple / 32)
    }

    fn send_of(&mut self, tuple: u16, flags: u8) -> Result<Sent> {
        let (src, port) = Self::address(tuple);
        self.send(src, port, flags)
    }

    /// Whether what a server has is promised to stay there.
    fn lives(&self, n: u16) -> bool {
        let (Some(server), Some(left)) = (self.setup.servers.get(usize::from(n)), self.left_ms.get(usize::from(n)))
        else {
            return false;
        };
        let drain_ms = self.setup.drain_s * 1000 - 1500;
        let there = left.is_none_or(|left_ms| self.now_ms < left_ms + drain_ms);
        there && !server.maint && (server.up || (server.listed && self.setup.on_marked_down == OnMarkedDown::Keep))
    }

    /// Takes note of a flow to which nothing is promised any more.
    fn bury(&mut self, flow: usize) {
        let Flow { life, born_ms, sent_ms, .. } = self.flows[flow];
        let silence_ms = self.setup.times.window_s * 1000 - MARGIN_MS;
        let over = match life {
            Life::Opening => self.now_ms >= born_ms + GIVES_UP_MS,
            Life::Open(n) => !self.lives(n) || self.now_ms >= sent_ms + silence_ms,
            Life::Over => false,
        };
        if over {
            self.flows[flow].life = Life::Over;
        }
    }

    fn bury_all(&mut self) {
        (0..self.flows.len()).for_each(|flow| self.bury(flow));
    }

    fn open(&mut self, tuple: u16, answer: Answer) -> Result<()> {
        let last = self.by_tuple.get(&tuple).copied();
        if let Some(last) = last {
            self.bury(last);
            if self.flows[last].life != Life::Over {
                return Ok(());
            }
        }
        let flow = self.flows.len();
        let (born_ms, sent_ms, reused) = (self.now_ms, self.now_ms, last.is_some());
        self.flows.push(Flow { tuple, reused, answer, life: Life::Opening, born_ms, sent_ms });
        self.by_tuple.insert(tuple, flow);
        if answer.duplicate_ms != 0 {
            self.at(self.now_ms + u64::from(answer.duplicate_ms), Event::Duplicate(flow));
        }
        self.syn(flow, 0)
    }

    fn syn(&mut self, flow: usize, attempt: usize) -> Result<()> {
        let Flow { tuple, answer, life: Life::Opening, born_ms, .. } = self.flows[flow] else { return Ok(()) };
        let sent = self.send_of(tuple, flag::SYN)?;
        if let Some(again) = SYNS_MS.get(attempt + 1) {
            self.at(born_ms + again, Event::Syn(flow, attempt + 1));
        }
        self.flows[flow].sent_ms = self.now_ms;
        let delay_ms = answer.delays_ms.get(attempt).copied().unwrap_or(0);
        self.answers(flow, sent, u64::from(delay_ms), attempt == 0)
    }

    /// A server that got a SYN answers after a while.
    fn answers(&mut self, flow: usize, sent: Sent, delay_ms: u64, first: bool) -> Result<()> {
        let Sent::To(n) = sent else {
            ensure!(sent != Sent::Reset, "a SYN was answered by a reset");
            return Ok(());
        };
        let at = usize::from(n);
        if let (true, Some(since_ms)) = (first, self.drained_ms.get(at).copied().flatten()) {
            let over_ms = since_ms + self.setup.times.announce_s * 1000 + 2000;
            ensure!(
                self.flows[flow].reused || self.now_ms < over_ms,
                "a new flow went to server {n}, which takes none any more"
            );
        }
        if delay_ms != 0 && self.setup.servers.get(at).is_some_and(|server| server.up) {
            self.at(self.now_ms + delay_ms, Event::Answered(flow, n));
        }
        Ok(())
    }

    fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Syn(flow, attempt) => self.syn(flow, attempt),
            Event::Duplicate(flow) => {
                let sent = self.send_of(self.flows[flow].tuple, flag::SYN)?;
                if self.flows[flow].life == Life::Opening { self.answers(flow, sent, 20, false) } else { Ok(()) }
            }
            Event::Answered(flow, n) => {
                if self.flows[flow].life != Life::Opening {
                    return Ok(());
                }
                if !self.lives(n) || !self.setup.servers[usize::from(n)].up {
                    self.flows[flow].life = Life::Over;
                    return Ok(());
                }
                self.flows[flow].life = Life::Open(n);
                self.flows[flow].sent_ms = self.now_ms;
                self.played.flows += 1;
                self.data(flow, flag::ACK)
            }
        }
    }

    /// A packet of an open flow: it reaches the rightful server.
    fn data(&mut self, flow: usize, flags: u8) -> Result<()> {
        let Flow { tuple, life: Life::Open(n), born_ms, sent_ms, .. } = self.flows[flow] else { return Ok(()) };
        let sent = self.send_of(tuple, flags)?;
        let ago_ms = self.now_ms - sent_ms;
        ensure!(
            sent == Sent::To(n),
            "moved: flow {flow} (tuple {tuple}) of server {n}, open for {} ms, silent for {ago_ms} ms: {sent:?} at {} ms",
            self.now_ms - born_ms,
            self.now_ms
        );
        self.flows[flow].sent_ms = self.now_ms;
        self.played.kept += 1;
        Ok(())
    }

    fn open_flows(&mut self) -> Vec<usize> {
        self.bury_all();
        let open = self.flows.iter().enumerate().filter(|(_, flow)| matches!(flow.life, Life::Open(_)));
        open.map(|(at, _)| at).collect()
    }

    fn talk(&mut self, pick: u16, count: u8) -> Result<()> {
        let open = self.open_flows();
        let first = if open.is_empty() { 0 } else { usize::from(pick) % open.len() };
        let chosen: Vec<usize> = open.iter().cycle().skip(first).take(open.len().min(count.into())).copied().collect();
        chosen.into_iter().try_for_each(|flow| self.data(flow, flag::ACK))
    }

    /// Every open flow sends.
    pub fn talk_all(&mut self) -> Result<()> {
        self.open_flows().into_iter().try_for_each(|flow| self.data(flow, flag::ACK))
    }

    /// The servers of the open flows, one for each flow.
    pub fn rightful(&mut self) -> Vec<u16> {
        let open = self.open_flows();
        open.into_iter()
            .filter_map(|flow| if let Life::Open(n) = self.flows[flow].life { Some(n) } else { None })
            .collect()
    }

    /// Ends an open flow of a server; says whether there was one.
    pub fn end_one_of(&mut self, server: u16) -> Result<bool> {
        let open = self.open_flows();
        let Some(&flow) = open.iter().find(|flow| self.flows[**flow].life == Life::Open(server)) else {
            return Ok(false);
        };
        self.data(flow, flag::FIN | flag::ACK)?;
        self.flows[flow].life = Life::Over;
        Ok(true)
    }

    /// What the agent knows that the maps hold.
    pub fn present(&self) -> Result<&Present> {
        Ok(self.engine.as_ref().context("an agent runs")?.present())
    }

    /// The maps, and what decides over them.
    pub fn place(&self) -> &P {
        self.place
    }

    /// As [`Self::place`], to be changed.
    pub fn place_mut(&mut self) -> &mut P {
        self.place
    }

    fn end(&mut self, pick: u16, reset: bool) -> Result<()> {
        let open = self.open_flows();
        let Some(&flow) = open.get(usize::from(pick) % open.len().max(1)) else { return Ok(()) };
        self.data(flow, if reset { flag::RST } else { flag::FIN | flag::ACK })?;
        self.flows[flow].life = Life::Over;
        Ok(())
    }

    fn flood(&mut self, seed: u64, flood: Flood, count: u16) -> Result<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..count {
            let syn = match flood {
                Flood::Syn => true,
                Flood::Ack => false,
                Flood::Mixed => rng.random(),
            };
            let (src, port) = ([203, 0, 113, rng.random()], rng.random());
            self.send(src, port, if syn { flag::SYN } else { flag::ACK })?;
        }
        Ok(())
    }

    fn wait(&mut self, ms: u64) -> Result<()> {
        let end_ms = self.now_ms + ms;
        loop {
            let second_ms = (self.now_ms / 1000 + 1) * 1000;
            let event_ms = self.events.peek().map_or(u64::MAX, |Reverse((at_ms, ..))| *at_ms);
            let next_ms = end_ms.min(second_ms).min(event_ms.max(self.now_ms));
            self.now_ms = next_ms;
            self.place.set_clock(self.now_ms);
            if event_ms <= next_ms {
                if let Some(Reverse((.., event))) = self.events.pop() {
                    let (Event::Syn(flow, _) | Event::Duplicate(flow) | Event::Answered(flow, _)) = event;
                    self.bury(flow);
                    self.event(event)?;
                }
                continue;
            }
            if next_ms == second_ms {
                self.bury_all();
                self.tick()?;
            }
            if next_ms == end_ms {
                return Ok(());
            }
        }
    }

    /// What the agent does once a second.
    fn tick(&mut self) -> Result<()> {
        let (now_s, now) = (self.now_s(), self.now());
        let Some(engine) = &mut self.engine else { return Ok(()) };
        engine.settle(now).map_err(|error| anyhow!("settle: {error}"))?;
        let mut due = self.waiting || engine.present().due_s().is_some_and(|due_s| now_s >= due_s);
        if now_s >= self.look_s + LOOK_EVERY_S {
            self.look_s = now_s;
            self.place.sweep()?;
            let mut look = Look::new(now_s);
            let present = engine.present();
            let mut of = HashMap::new();
            let mut residual = HashSet::new();
            for (_, service) in present.services() {
                of.extend(service.backends.iter().map(|backend| (backend.id, service.id)));
                if service.window.waits_for_records() {
                    residual.insert(service.id);
                }
            }
            of.extend(present.former().iter().map(|former| (former.id, former.service)));
            for word in self.place.words() {
                look.take(word, |id| of.get(&id).copied().unwrap_or(0), &residual);
            }
            due |= present.waits_for_records();
            let drifted = if self.place.is_quiet() { drift(self.place, present.sizes().backends) } else { None };
            engine.looked(look);
            ensure!(drifted.is_none(), "ACTIVE has drifted from the table (id, counted, found): {drifted:?}");
        }
        if due { self.plan(How::Whole) } else { Ok(()) }
    }

    /// Plans for the configuration as it is, and carries the plan out.
    fn plan(&mut self, how: How) -> Result<()> {
        let Some(engine) = &self.engine else {
            self.waiting = true;
            return Ok(());
        };
        let mut setup = self.setup.clone();
        if self.broken == Some(Rule::D) {
            setup.times.window_s /= 4;
        }
        let place = &*self.place;
        let planned = engine.plan(&setup.wanted(), self.revision + 1, self.now_s(), &|id| place.active(id));
        let mut plan = match planned {
            Ok(plan) => plan,
            Err(error) if error.is_transient() => {
                self.waiting = true;
                return Ok(());
            }
            Err(error) => return Err(anyhow!("no plan: {error}")),
        };
        if let Some(rule) = self.broken {
            rule.spoil(&mut plan.ops, engine.present(), engine.memory());
        }
        match how {
            How::Whole => {}
            How::Paused(ops, stores) => {
                self.waiting = true;
                self.write_part(&plan, ops, stores)?;
                self.talk(ops ^ stores, 12)?;
            }
            How::Crashed(ops, stores) => {
                self.waiting = true;
                self.write_part(&plan, ops, stores)?;
                self.engine = None;
                self.talk(ops ^ stores, 12)?;
                return self.start(self.now_s() + u64::from(stores));
            }
        }
        let (now, now_s) = (self.now(), self.now_s());
        let engine = self.engine.as_mut().context("the agent still runs")?;
        engine.apply(plan, now, now_s).map_err(|error| anyhow!("apply: {error}"))?;
        self.revision += 1;
        self.played.plans += 1;
        self.waiting = false;
        self.tell(false);
        Ok(())
    }

    /// Takes note of what the maps now know of servers. With `anew`, as by an agent that adopted them, drains are announced once more.
    fn tell(&mut self, anew: bool) {
        for (since, server) in self.drained_ms.iter_mut().zip(&self.setup.servers) {
            *since = match since {
                _ if server.is_eligible() => None,
                Some(since_ms) if !anew => Some(*since_ms),
                _ => Some(self.now_ms),
            };
        }
        self.told = Some(self.setup.clone());
    }

    /// Writes the first operations of a plan, and a part of the next one.
    fn write_part(&self, plan: &Plan, ops: u16, stores: u16) -> Result<()> {
        let whole = plan.ops.len() * usize::from(ops) / 65_536;
        let mut memory = self.place.memory()?;
        let (before, after) = plan.ops.split_at(whole);
        apply::write(&mut memory, before).map_err(|error| anyhow!("write: {error}"))?;
        let next = after.get(..1).unwrap_or_default();
        // That it fails is what it is for.
        apply::write(&mut Dying { memory: &mut memory, stores: stores.into() }, next).ok();
        Ok(())
    }

    /// An agent comes, and adopts what it finds.
    fn start(&mut self, clock_s: u64) -> Result<()> {
        self.engine = None;
        self.clock_s = clock_s;
        self.look_s = self.now_s();
        let mut memory = self.place.memory()?;
        if let Some(rule) = self.broken {
            rule.spoil_maps(&mut memory);
        }
        let clock = Clock { hz: self.place.hz(), now_s: self.now_s() };
        let engine = Engine::start(memory, self.place.sizes(), SECRETS, clock);
        self.engine = Some(engine.map_err(|error| anyhow!("an agent cannot adopt the maps: {error}"))?);
        self.played.adoptions += 1;
        self.waiting = true;
        self.plan(How::Whole)?;
        if !self.waiting {
            self.tell(true);
        }
        Ok(())
    }

    fn change(&mut self, change: Change, how: How) -> Result<()> {
        // What is over now does not begin again because a server comes back.
        self.bury_all();
        let before = self.setup.clone();
        let setup = &mut self.setup;
        let servers = setup.servers.len();
        let at = |n: u8| usize::from(n) % servers;
        let server = match change {
            Change::Add(n)
            | Change::Remove(n)
            | Change::Weight(n, _)
            | Change::Maint(n)
            | Change::Die(n)
            | Change::Recover(n) => &mut setup.servers[at(n)],
            _ => &mut setup.servers[0],
        };
        match change {
            Change::Add(_) => (server.listed, server.weight) = (true, server.weight.max(1)),
            Change::Remove(_) => (server.listed, server.maint) = (false, false),
            Change::Weight(_, weight) => server.weight = weight.into(),
            Change::Maint(_) => server.maint = server.listed && !server.maint,
            Change::Die(_) => server.up = false,
            Change::Recover(_) => server.up = true,
            Change::Algo(algo) => setup.algo = algo,
            Change::RingSize(slots) => setup.ring_size = slots,
            Change::Inputs(inputs) => setup.inputs = inputs,
            Change::TrackAll(all) => setup.track_all = all,
            Change::OnMarkedDown(what) => setup.on_marked_down = what,
        }
        // Somebody has to take new flows, else the service fails open and nobody is dead.
        if setup.servers.iter().filter(|server| server.is_eligible()).count() < 2 {
            self.setup = before;
            return Ok(());
        }
        let now_ms = self.now_ms;
        for (n, (server, old)) in self.setup.servers.iter().zip(&before.servers).enumerate() {
            match (server.listed, old.listed) {
                (true, _) => self.left_ms[n] = None,
                // A dead server leaves with all that it has.
                (false, true) => self.left_ms[n] = Some(if old.up && !old.maint { now_ms } else { 0 }),
                (false, false) => {}
            }
        }
        if self.setup.on_marked_down != before.on_marked_down || self.setup.servers != before.servers {
            self.bury_all();
        }
        if self.setup != before { self.plan(how) } else { Ok(()) }
    }
}
