//! From plans to memory, with the grace that lies between taking something out of use and using it again.
//!
//! Owns: what is present, when a removal's grace is over, adopting. Refuses to know: whether the memory is the kernel's.
//!
//! Grace: two things must hold before an id or a line is reused. A second has passed since the change was applied, which
//! exceeds the run of any XDP program by far, and [`Memory::synchronize`] has seen every packet in flight leave. The second
//! rests on the kernel's word, the first holds where the kernel has none to give.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytemuck::bytes_of;
use lb_core::abi::node::Node;

use super::{
    Applied, Error,
    apply::{self, Map, Memory},
};
use crate::plan::{self, Look, MapSizes, Plan, PlanError, Present, Records, Secrets, Seen, Wanted, rebuild::Contents};

/// Time between applying a change and reusing what it took out of use.
pub const GRACE: Duration = Duration::from_secs(1);

/// The clocks of the program and of plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Ticks of the kernel in a second.
    pub hz: u32,
    /// Now, in seconds of a clock that only grows.
    pub now_s: u64,
}

/// Memory, and what it holds.
#[derive(Debug)]
pub struct Engine<M> {
    memory: M,
    sizes: MapSizes,
    present: Present,
    /// Plans whose removals wait, with the time when each was applied.
    graces: VecDeque<(u64, Instant)>,
    adopted: bool,
    /// The last look at the flow table.
    look: Option<Look>,
}

impl<M: Memory> Engine<M> {
    /// Takes over what `memory` holds, or fills in a node entry with `secrets` where nothing is yet.
    ///
    /// # Errors
    /// [`Error::Contents`] where the contents cannot be relied on; nothing was written then.
    pub fn start(mut memory: M, sizes: MapSizes, secrets: Secrets, clock: Clock) -> Result<Self, Error> {
        let node: Node = memory.read(Map::Node, 0).unwrap_or_else(bytemuck::Zeroable::zeroed);
        if node.abi_version == 0 {
            let present = Present::empty(sizes, secrets, clock.hz);
            let words: Vec<&[u8]> = bytes_of(present.node()).chunks_exact(8).collect();
            // The version lies in the first word and is stored last: an agent that dies before starts anew.
            for (word, bytes) in words.iter().enumerate().rev() {
                memory.store(Map::Node, 0, word, (*bytes).try_into().map_or(0, u64::from_ne_bytes));
            }
            return Ok(Self { memory, sizes, present, graces: VecDeque::new(), adopted: false, look: None });
        }
        // What an agent that just died took out of use may still be in flight; nothing here knows when it did.
        memory.synchronize();
        let plan::Adopted { present, repairs } = contents(&memory, sizes, clock.now_s)?;
        apply::check(&memory, &present, &repairs)?;
        apply::write(&mut memory, &repairs)?;
        Ok(Self { memory, sizes, present, graces: VecDeque::new(), adopted: true, look: None })
    }

    /// Whether the maps held something when this agent came.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// What the maps hold.
    pub fn present(&self) -> &Present {
        &self.present
    }

    /// The memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// For tests that play another writer.
    #[cfg(test)]
    pub(super) fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    /// As [`super::Dataplane::plan`], at `now_s`; `flows` says how many recorded flows a backend has.
    ///
    /// # Errors
    /// As [`super::Dataplane::plan`].
    pub fn plan(
        &self,
        wanted: &Wanted,
        revision: u64,
        now_s: u64,
        flows: &dyn Fn(u32) -> u64,
    ) -> Result<Plan, PlanError> {
        let ring = |extent| self.memory.ring(extent);
        let records = self.look.as_ref().map(|look| look as &dyn Records);
        plan::diff(&self.present, wanted, revision, Seen { now_s, ring: &ring, records, flows })
    }

    /// As [`super::Dataplane::looked`].
    pub fn looked(&mut self, look: Look) {
        self.look = Some(look);
    }

    /// As [`super::Dataplane::last_look`].
    pub fn last_look(&self) -> Option<&Look> {
        self.look.as_ref()
    }

    /// As [`super::Dataplane::apply`]; `now` begins the grace of what the plan removes.
    ///
    /// # Errors
    /// As [`super::Dataplane::apply`]. After a mismatch the present state is read from the maps again.
    pub fn apply(&mut self, plan: Plan, now: Instant, now_s: u64) -> Result<Applied, Error> {
        if plan.base != self.present.version() {
            return Err(Error::Stale { base: plan.base, present: self.present.version() });
        }
        apply::check(&self.memory, &self.present, &plan.ops)?;
        let written = apply::write(&mut self.memory, &plan.ops).and_then(|()| apply::verify(&self.memory, &plan.ops));
        if let Err(error) = written {
            if let Ok(found) = contents(&self.memory, self.sizes, now_s) {
                self.present = found.present;
                self.graces.clear();
            }
            return Err(error);
        }
        self.present = plan.next;
        if self.present.quarantined().is_some() {
            self.graces.push_back((self.present.generation(), now));
        }
        Ok(Applied { revision: self.present.revision(), ops: plan.ops.len() })
    }

    /// As [`super::Dataplane::settle`].
    ///
    /// # Errors
    /// As [`super::Dataplane::settle`].
    pub fn settle(&mut self, now: Instant) -> Result<usize, Error> {
        let due = self.graces.iter().take_while(|(_, applied)| now.duration_since(*applied) >= GRACE).count();
        let Some(&(generation, _)) = due.checked_sub(1).and_then(|last| self.graces.get(last)) else { return Ok(0) };
        self.graces.drain(..due);
        if self.present.quarantined().is_none_or(|oldest| oldest > generation) {
            return Ok(0);
        }
        self.memory.synchronize();
        let ops = self.present.release(generation);
        apply::check(&self.memory, &self.present, &ops)?;
        apply::write(&mut self.memory, &ops)?;
        Ok(due)
    }

    /// When the next grace is over.
    pub fn grace_until(&self) -> Option<Instant> {
        self.graces.front().map(|(_, applied)| *applied + GRACE)
    }
}

/// Reads everything and makes out what it means.
fn contents(memory: &impl Memory, sizes: MapSizes, now_s: u64) -> Result<plan::Adopted, Error> {
    let node = memory.read(Map::Node, 0).unwrap_or_else(bytemuck::Zeroable::zeroed);
    fn all<T: bytemuck::Pod>(memory: &impl Memory, map: Map) -> Vec<T> {
        (0..memory.entries(map)).map_while(|index| memory.read(map, index)).collect()
    }
    let (services, backends, keys) =
        (all(memory, Map::Services), all(memory, Map::Backends), all(memory, Map::BackendKeys));
    let contents = Contents {
        node,
        lookup: all(memory, Map::Lookup),
        services: &services,
        backends: &backends,
        keys: &keys,
        ring: &|extent| memory.ring(extent),
        owners: &|extent| memory.owners(extent),
        recorded: memory.recorded(),
        now_s,
    };
    Ok(plan::rebuild(sizes, contents)?)
}
