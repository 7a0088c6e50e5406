//! The agent of a sequence: it plans, writes, looks at the flow table, dies, and adopts what it finds.
//!
//! Owns: what an agent does each second and when something changes. Refuses to know flows.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result, anyhow, ensure};
use lb_userspace::{
    dataplane::{
        apply,
        engine::{Clock, Engine},
        load::LoadError,
    },
    plan::{Look, Plan},
};

use super::{
    super::{
        dying::Dying,
        place::{Place, drift},
        setup::{SECRETS, Setup, wanted},
        step::{Change, How},
        weaken::Rule,
    },
    Play,
};

/// More steps than a change of the flow table's size takes, one that another agent left included.
const RESIZE_STEPS_MAX: usize = 16;
/// Seconds between two looks at the flow table, as the agent takes them.
const LOOK_EVERY_S: u64 = 5;

impl<P: Place> Play<'_, P> {
    /// What the agent does once a second.
    pub(super) fn tick(&mut self) -> Result<()> {
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
        let mut setups: Vec<Setup> = self.services.iter().map(|service| service.setup.clone()).collect();
        if self.broken == Some(Rule::D) {
            setups.iter_mut().for_each(|setup| setup.times.window_s /= 4);
        }
        let place = &*self.place;
        let planned = engine.plan(&wanted(&setups), self.revision + 1, self.now_s(), &|id| place.active(id));
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
    pub(super) fn start(&mut self, clock_s: u64) -> Result<()> {
        self.engine = None;
        ensure!(self.resize(RESIZE_STEPS_MAX)?, "a change of the flow table's size does not end");
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

    /// Takes steps towards the flow table that is wanted, at most so many, while flows talk; says whether it is there. Where the recorded
    /// flows are too many for it, the table that there is stays.
    pub(super) fn resize(&mut self, most: usize) -> Result<bool> {
        for step in 0..most {
            match self.place.resize(self.flows_max) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) if matches!(error.downcast_ref(), Some(LoadError::FlowsDoNotFit { .. })) => {
                    self.flows_max = self.place.sizes().flows_max;
                }
                Err(error) => return Err(error),
            }
            self.played.resizing += 1;
            self.talk(step as u16, 12)?;
        }
        Ok(false)
    }

    /// Changes a service, and has the agent know.
    pub(super) fn change(&mut self, service: u8, change: Change, how: How) -> Result<()> {
        // What is over now does not begin again because a server comes back.
        self.bury_all();
        let (at, now_ms) = (usize::from(service) % self.services.len(), self.now_ms);
        if !self.services[at].change(change, now_ms) {
            return Ok(());
        }
        self.bury_all();
        self.plan(how)
    }

    /// The maps hold what is configured.
    fn tell(&mut self, anew: bool) {
        let now_ms = self.now_ms;
        self.services.iter_mut().for_each(|service| service.tell(now_ms, anew));
    }
}
