//! Plays a sequence: clients, servers and an agent, against what decides, and a reference that remembers every flow's rightful server.
//!
//! The rightful server of a flow is the one whose SYN-ACK its client acknowledged first. A moved flow is a packet of an open flow that
//! does not reach its rightful server although that lives and the flow was not silent for as long as its window. Owns: steps and
//! time. Refuses to know: how packets are decided.

mod agent;
mod clients;
mod hosted;
mod limits;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_core::abi::ring::Extent;
use lb_userspace::{
    dataplane::engine::Engine,
    plan::{Present, Times},
};

use self::{
    clients::{Event, Flow, Life},
    hosted::{Hosted, Promise},
};
use super::{
    packet::frame,
    place::{Place, Sent, records},
    played::Played,
    setup::Setup,
    step::Step,
    weaken::Rule,
};

/// The times of services in sequences: short, so that a sequence passes through many windows.
pub const TIMES: Times = Times { announce_s: 4, window_s: 40 };

/// A sequence being played.
pub struct Play<'p, P: Place> {
    place: &'p mut P,
    broken: Option<Rule>,
    engine: Option<Engine<P::Memory>>,
    services: Vec<Hosted>,
    /// Flows for which the next agent wants a table.
    flows_max: u32,
    /// A change waits for a plan, for want of room or of an agent.
    waiting: bool,
    revision: u64,
    now_ms: u64,
    /// When the agent's clock began, by its own seconds.
    clock_s: u64,
    began: Instant,
    look_s: u64,
    flows: Vec<Flow>,
    /// The last flow of each tuple.
    by_tuple: HashMap<u16, usize>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    number: u64,
    played: Played,
}

impl<'p, P: Place> Play<'p, P> {
    /// Empties the place and configures services, numbered as they come; `broken` says which rule is not to hold.
    pub fn new(place: &'p mut P, setups: Vec<Setup>, broken: Option<Rule>) -> Result<Self> {
        place.clear()?;
        place.set_clock(0);
        let mut play = Self {
            flows_max: place.sizes().flows_max,
            place,
            broken,
            engine: None,
            services: setups.into_iter().map(Hosted::new).collect(),
            waiting: true,
            revision: 0,
            now_ms: 0,
            clock_s: 0,
            began: Instant::now(),
            look_s: 0,
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
            Step::Change(service, change, how) => self.change(service, change, how),
            Step::Stop => {
                self.engine = None;
                Ok(())
            }
            Step::Start(clock_s) => self.start(u64::from(clock_s)),
            Step::Resize(flows_max, most) => {
                self.engine = None;
                self.flows_max = flows_max;
                self.resize(most.into()).map(drop)
            }
        }
    }

    /// After the last step: every flow is kept through the end of all windows, then all end, and nothing is left behind.
    pub fn finish(&mut self) -> Result<Played> {
        if self.engine.is_none() {
            self.start(77)?;
        }
        let setups = || self.services.iter().map(|service| &service.setup);
        let window_ms = setups().map(|s| (s.times.announce_s + s.times.window_s) * 1000).max().unwrap_or(0);
        let expiry_ms = setups().map(|s| u64::from(s.established_s) * 1000).max().unwrap_or(0) + 30_000;
        for _ in 0..8 {
            self.talk_all()?;
            self.wait(window_ms / 4)?;
        }
        self.talk_all()?;
        let open = |flow: &Flow| matches!(flow.life, Life::Open(_));
        while self.flows.iter().any(open) {
            self.end(0, false)?;
        }
        self.wait(expiry_ms)?;
        let left = records(self.place);
        ensure!(left == 0, "{left} records are left after the last flow ended");
        let present = self.engine.as_ref().context("an agent runs")?.present();
        for (_, service) in present.services() {
            let counts = service.window.counts(Extent::unpack(service.entry.ring).slots);
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
    fn send(&mut self, service: u8, src: [u8; 4], port: u16, flags: u8) -> Result<Sent> {
        self.played.packets += 1;
        let Some(hosted) = self.services.get(usize::from(service)) else { bail!("there is no service {service}") };
        self.played.met_open += u64::from(hosted.setup.fails_open());
        let sent = self.place.run(&frame(&hosted.setup.key, src, port, flags))?;
        if let Sent::To(n) = sent {
            let [of, n] = n.to_be_bytes();
            ensure!(of == service, "a packet to service {service} went to a server of service {of}");
            if !self.waiting {
                hosted.check_up(n, flags)?;
            }
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
