//! A service in the maps of a place, what an agent does for it, and packets of flows.
//!
//! Owns: planning and writing, whole or up to some store, and time. Refuses to know: what a flow is promised ([`super::play`] does, for
//! sequences; here each test says it).

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_userspace::{
    dataplane::{
        apply,
        engine::{Clock, Engine},
    },
    plan::{Look, Op, Plan, Present, Wanted},
};

use super::{
    dying::Dying,
    packet::{flag, frame},
    place::{Place, Sent},
    setup::{SECRETS, WEB},
};

/// Addresses of clients; flows that differ by as many have the same.
const CLIENTS: u16 = 32;

/// A flow whose client was answered: its tuple, and the server.
pub type Flow = (u16, u16);

/// See above.
pub struct Rig<'p, P: Place> {
    /// Maps, and what decides over them.
    pub place: &'p mut P,
    engine: Option<Engine<P::Memory>>,
    revision: u64,
    now_s: u64,
    began: Instant,
}

impl<'p, P: Place> Rig<'p, P> {
    /// Empties the place and makes its maps hold what is wanted.
    pub fn new(place: &'p mut P, wanted: &Wanted) -> Result<Self> {
        place.clear()?;
        place.set_clock(0);
        let mut rig = Self { place, engine: None, revision: 0, now_s: 0, began: Instant::now() };
        rig.adopt(wanted)?;
        Ok(rig)
    }

    /// An agent comes, takes over what it finds, and makes the maps hold what is wanted.
    pub fn adopt(&mut self, wanted: &Wanted) -> Result<()> {
        self.engine = None;
        let clock = Clock { hz: self.place.hz(), now_s: self.now_s };
        let engine = Engine::start(self.place.memory()?, self.place.sizes(), SECRETS, clock);
        self.engine = Some(engine.map_err(|error| anyhow!("an agent cannot adopt the maps: {error}"))?);
        self.change(wanted)
    }

    fn engine(&self) -> Result<&Engine<P::Memory>> {
        self.engine.as_ref().context("an agent runs")
    }

    /// What the agent knows that the maps hold.
    pub fn present(&self) -> Result<&Present> {
        Ok(self.engine()?.present())
    }

    /// The memory that the agent writes.
    pub fn memory(&self) -> Result<&P::Memory> {
        Ok(self.engine()?.memory())
    }

    /// The way to what is wanted.
    pub fn plan(&self, wanted: &Wanted) -> Result<Plan> {
        let active = |id| self.place.active(id);
        self.engine()?.plan(wanted, self.revision + 1, self.now_s, &active).map_err(|error| anyhow!("no plan: {error}"))
    }

    /// Carries out a plan.
    pub fn apply(&mut self, plan: Plan) -> Result<()> {
        let now = self.began + Duration::from_secs(self.now_s);
        let engine = self.engine.as_mut().context("an agent runs")?;
        engine.apply(plan, now, self.now_s).map_err(|error| anyhow!("apply: {error}"))?;
        self.revision += 1;
        Ok(())
    }

    /// Makes the maps hold what is wanted.
    pub fn change(&mut self, wanted: &Wanted) -> Result<()> {
        let plan = self.plan(wanted)?;
        self.apply(plan)
    }

    /// Carries out operations without remembering that.
    pub fn write(&self, ops: &[Op]) -> Result<()> {
        apply::write(&mut self.place.memory()?, ops).map_err(|error| anyhow!("write: {error}"))
    }

    /// The agent begins what leads to what is wanted, and dies after so many stores. Says whether it did, or all was stored before.
    pub fn die(&mut self, wanted: &Wanted, stores: u32) -> Result<bool> {
        let plan = self.plan(wanted)?;
        let mut memory = self.place.memory()?;
        let died = apply::write(&mut Dying { memory: &mut memory, stores }, &plan.ops).is_err();
        self.engine = None;
        Ok(died)
    }

    /// Seconds pass; then the agent looks at the flow table and does what is due.
    pub fn pass(&mut self, seconds: u64, wanted: &Wanted) -> Result<()> {
        self.now_s += seconds;
        self.place.set_clock(self.now_s * 1000);
        self.place.sweep()?;
        let mut look = Look::new(self.now_s);
        let of = |id| {
            self.present().ok()?.services().find(|(_, s)| s.backends.iter().any(|b| b.id == id)).map(|(_, s)| s.id)
        };
        let residual: HashSet<u32> = self.present()?.services().map(|(_, service)| service.id).collect();
        self.place.words().into_iter().for_each(|word| look.take(word, |id| of(id).unwrap_or(0), &residual));
        let now = self.began + Duration::from_secs(self.now_s);
        let engine = self.engine.as_mut().context("an agent runs")?;
        engine.settle(now).map_err(|error| anyhow!("settle: {error}"))?;
        engine.looked(look);
        self.change(wanted)
    }

    /// Sends a segment.
    pub fn send(&self, tuple: u16, flags: u8) -> Result<Sent> {
        self.place.run(&frame(&WEB, [198, 51, 100, (tuple % CLIENTS) as u8], 1024 + tuple / CLIENTS, flags))
    }

    /// A SYN, and the ACK of its answer, at the same server.
    pub fn open(&self, tuple: u16) -> Result<Flow> {
        let Sent::To(server) = self.send(tuple, flag::SYN)? else { bail!("the SYN of {tuple} went nowhere") };
        self.talk(&[(tuple, server)])?;
        Ok((tuple, server))
    }

    /// As many flows.
    pub fn open_all(&self, tuples: std::ops::Range<u16>) -> Result<Vec<Flow>> {
        tuples.map(|tuple| self.open(tuple)).collect()
    }

    /// Each flow sends, and its server gets that.
    pub fn talk(&self, flows: &[Flow]) -> Result<()> {
        for &(tuple, server) in flows {
            let sent = self.send(tuple, flag::ACK)?;
            ensure!(sent == Sent::To(server), "moved: flow {tuple} of server {server}: {sent:?}");
        }
        Ok(())
    }
}
