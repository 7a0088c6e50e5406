//! The kernel's side of the data plane: the only part of weir that names aya, beside `decap`.
//!
//! Owns: loading, pinning, adopting, memory of maps, carrying out [`Plan`]s, counters. Refuses to know: configuration files,
//! health, netlink. Invariants: forwarding goes on without this process; what is pinned is compared in shape and version
//! before it is trusted; a ring is never written while a service names it.

pub mod apply;
pub mod btf;
pub mod clock;
pub mod engine;
pub mod fake;
pub mod kernel;
pub mod link;
pub mod live;
pub mod load;
pub mod loss;
pub mod memory;
pub mod pin;
pub mod resize;
pub mod sweep;

#[cfg(test)]
mod engine_tests;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use lb_core::abi::stats::{Counter, FlowEvent, FlowTotals};

use crate::plan::{Fill, Look, Plan, PlanError, Present, Wanted};

/// A look at the flow table, to be run.
pub type LookJob = Box<dyn FnOnce() -> Result<Look, Error> + Send>;

/// A walk over the words of the flow table, to be run.
pub type Scan = Box<dyn FnOnce(&mut dyn FnMut(u64)) + Send>;

/// The removal of records, to be run; gives how many were removed.
pub type FlushJob = Box<dyn FnOnce() -> Result<u64, Error> + Send>;

/// Which records to remove: those of a service id and of a backend id, 0 is any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flush {
    /// Service id.
    pub service: u32,
    /// Backend id.
    pub backend: u32,
}

/// What `apply` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Revision that the maps hold.
    pub revision: u64,
    /// Operations carried out and read back.
    pub ops: usize,
}

/// Counters, summed over CPUs. Values only grow until the data plane is unloaded.
pub type Counters<K> = BTreeMap<K, Counter>;

/// What the agent needs of a data plane.
pub trait Dataplane: Send {
    /// What the maps hold.
    fn present(&self) -> &Present;

    /// Plans the way from [`Dataplane::present`] to `wanted`, which carries the number `revision`, at this moment and with what the last
    /// look at the flow table found.
    ///
    /// # Errors
    /// As [`crate::plan::diff`].
    fn plan(&self, wanted: &Wanted, revision: u64) -> Result<Plan, PlanError>;

    /// Now, in seconds of the clock of plans, which only grows.
    fn now_s(&self) -> u64;

    /// When a plan has something to do that only time brings about, as from now.
    fn due_in(&self) -> Option<Duration>;

    /// A look at the flow table that also sweeps out what expired: takes its time, so it is to be run on a thread of its own.
    fn look(&self) -> LookJob;

    /// Takes what a look found, for plans from now on.
    fn looked(&mut self, look: Look);

    /// What the last look found.
    fn last_look(&self) -> Option<&Look>;

    /// A walk over every word of the flow table, [`lb_core::abi::flow::is_record`] or not: takes its time, as a look does.
    fn scan(&self) -> Scan;

    /// The removal of records: takes its time, as a look does.
    fn flush(&self, flush: Flush) -> FlushJob;

    /// Now, in seconds of the program's clock, by which records expire; modulo 2^32.
    fn record_now_s(&self) -> u32;

    /// Recorded flows of a backend: established and half-open ones.
    fn flows(&self, id: u32) -> (u32, u32);

    /// What the flow table did, summed over CPUs.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    fn flow_events(&self) -> Result<BTreeMap<FlowEvent, u64>, Error>;

    /// Totals of flows of backends by id, summed over CPUs; ids that are out of range are left out.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    fn flow_totals(&self, ids: &[u32]) -> Result<BTreeMap<u32, FlowTotals>, Error>;

    /// Carries out a plan that was made from [`Dataplane::present`], reads back what was written, and makes
    /// `plan.next` the present state.
    ///
    /// # Errors
    /// [`Error::Stale`] if the plan was made from another state; [`Error::Op`] if an operation breaks a rule of the maps
    /// (nothing was written then); [`Error::Mismatch`] if the maps do not hold what was written.
    fn apply(&mut self, plan: Plan) -> Result<Applied, Error>;

    /// Makes reusable what earlier plans took out of use, once their grace is over. To be called about once a second, and
    /// after [`crate::plan::PlanError::is_transient`] with [`Dataplane::grace_until`] waited for. Cheap when there is
    /// nothing to do, else it waits for an RCU grace period (tens of milliseconds). Returns the number of plans released.
    ///
    /// # Errors
    /// As [`Dataplane::apply`].
    fn settle(&mut self, now: Instant) -> Result<usize, Error>;

    /// When [`Dataplane::settle`] has something to do next.
    fn grace_until(&self) -> Option<Instant>;

    /// Counters of backends by id; ids that are out of range are left out.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    fn backend_counters(&self, ids: &[u32]) -> Result<Counters<u32>, Error>;

    /// Counters of all reasons of an interface slot, by reason number.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be read.
    fn reason_counters(&self, slot: u32) -> Result<Counters<u32>, Error>;

    /// How full the maps are.
    fn fill(&self) -> Fill {
        self.present().fill()
    }
}

/// What can go wrong while a loaded data plane is used. Loading has its own [`load::LoadError`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan was made from a state that is no longer present.
    #[error("the plan was made from version {base} of the maps' state, which is now {present}: plan again")]
    Stale {
        /// Version that the plan was made from.
        base: u64,
        /// Version now.
        present: u64,
    },
    /// An operation that would break a rule of the maps. Nothing was written.
    #[error("{op} breaks a rule of the maps: {rule}")]
    Op {
        /// The operation.
        op: String,
        /// The rule.
        rule: &'static str,
    },
    /// The maps do not hold what was written: somebody else writes to them.
    #[error("{op} was written but the map holds something else: is another process writing to the pinned maps?")]
    Mismatch {
        /// The operation.
        op: String,
    },
    /// A map could not be used.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was attempted.
        action: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The maps' contents cannot be relied on.
    #[error(
        "{0}; forwarding goes on untouched. To start anew: weir agent --unload (stops forwarding), then start the agent"
    )]
    Contents(#[from] crate::plan::RebuildError),
}
