//! Plays a sequence: clients, servers and an agent, against what decides, and a reference that remembers every flow's rightful server.
//!
//! The rightful server of a flow is the one whose SYN-ACK its client acknowledged first. A moved flow is a packet of an open flow that
//! does not reach its rightful server although that lives and the flow was not silent for as long as its window. Owns: steps and
//! time. Refuses to know: how packets are decided.

mod agent;
mod clients;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_core::abi::service::OnMarkedDown;
use lb_userspace::{
    dataplane::engine::Engine,
    plan::{Present, Times},
};

use self::clients::{Event, Flow, Life};
use super::{
    packet::{flag, frame},
    place::{Place, Sent, records},
    played::Played,
    setup::Setup,
    step::Step,
    weaken::Rule,
};

/// The times of the service in sequences: short, so that a sequence passes through many windows.
pub const TIMES: Times = Times { announce_s: 4, window_s: 40 };

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
}
