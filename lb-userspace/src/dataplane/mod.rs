//! The kernel's side of the data plane: the only part of weir that names aya, beside `decap`.
//!
//! Owns: loading, attaching, pinning, adopting, carrying out [`Plan`]s, reading counters, unloading. Refuses to know:
//! configuration files, health, routes. Invariants: forwarding goes on without this process; what is pinned is compared in
//! shape and version before it is trusted; a ring is never written while a service names it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use lb_core::abi::{loss::LossKind, stats::Counter};

use crate::{
    model::{Limits, XdpMode},
    plan::{MapSizes, Plan, Present, RebuildError, Secrets},
};

pub mod btf;
pub mod load;
pub mod loss;
pub mod maps;
pub mod memory;
pub mod pin;

use load::{Attached, LoadError};
use loss::{LossError, Losses};
use maps::{Maps, StatsMaps};
use pin::Pins;

/// How long what a plan took out of use stays untouched, beside the RCU grace that is waited for: longer than any
/// program runs, so that the wait itself is nearly always over when it is asked for.
const GRACE: Duration = Duration::from_secs(1);

/// What can go wrong between the agent and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Loading or adopting failed.
    #[error(transparent)]
    Load(#[from] LoadError),
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
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The maps' contents cannot be relied on.
    #[error("{0}: run `weir agent --unload` (forwarding stops), then start again")]
    Contents(#[from] RebuildError),
}

impl Error {
    /// Wraps a failed call to the kernel.
    pub(crate) fn kernel<E: std::error::Error + Send + Sync + 'static>(
        action: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Kernel { action, source: Box::new(source) }
    }
}

/// What `apply` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Revision that the maps hold.
    pub revision: u64,
    /// Operations carried out and read back.
    pub ops: usize,
}

/// Counters summed over CPUs. Values only grow until the data plane is unloaded.
pub type Counters = BTreeMap<u32, Counter>;

/// What a data plane is made of; fixed until it is unloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Folder of pins.
    pub pins: Pins,
    /// Interfaces that carry XDP.
    pub interfaces: Vec<String>,
    /// Whether generic XDP is acceptable.
    pub xdp_mode: XdpMode,
    /// Sizes of the maps.
    pub limits: Limits,
}

/// A loaded data plane: the maps, what they hold, and the interfaces that carry the program.
pub struct Dataplane {
    maps: Maps,
    stats: Option<StatsMaps>,
    losses: Option<Losses>,
    present: Present,
    attached: Vec<Attached>,
    graces: VecDeque<(u64, Instant)>,
}

/// How a data plane was opened.
#[derive(Debug)]
pub struct Opened {
    /// Whether pinned maps were taken over; false for fresh ones.
    pub adopted: bool,
    /// Why losses after the verdict are not counted, if they are not.
    pub without_losses: Option<LossError>,
}

impl Dataplane {
    /// Loads the program or takes over what is pinned. `secrets` are for fresh maps; adopted ones keep theirs.
    ///
    /// # Errors
    /// [`Error::Load`], [`Error::Contents`] or [`Error::Kernel`]; whatever forwarded before goes on.
    pub fn open(options: &Options, secrets: Secrets) -> Result<(Self, Opened), Error> {
        let sizes = MapSizes::of(&options.limits);
        let attached = load::load(&options.pins, &options.interfaces, options.xdp_mode, &sizes)?;
        let maps = Maps::pinned(&options.pins, &sizes)?;
        let stats = Some(StatsMaps::pinned(&options.pins)?);
        let (losses, without_losses) = match Losses::attach(&options.pins) {
            Ok(losses) => (Some(losses), None),
            Err(error) => (None, Some(error)),
        };
        let (present, adopted) = maps.present(sizes, secrets)?;
        let dataplane = Self { maps, stats, losses, present, attached, graces: VecDeque::new() };
        Ok((dataplane, Opened { adopted, without_losses }))
    }

    /// A data plane on memory of this process, with no program and no counters: for tests of what writes to it.
    ///
    /// # Errors
    /// [`Error::Kernel`] where the memory is not to be had.
    pub fn in_memory(limits: &Limits, secrets: Secrets) -> Result<Self, Error> {
        let sizes = MapSizes::of(limits);
        let maps = Maps::in_memory(&sizes)?;
        let (present, _) = maps.present(sizes, secrets)?;
        Ok(Self { maps, stats: None, losses: None, present, attached: Vec::new(), graces: VecDeque::new() })
    }

    /// The same maps as a new agent would find them: nothing is known but what they hold. For tests of adoption.
    ///
    /// # Errors
    /// [`Error::Contents`] where they contradict themselves.
    pub fn reopened(self) -> Result<Self, Error> {
        let secrets = Secrets { hash_key: Default::default(), ring_seed: 0 };
        let (present, _) = self.maps.present(*self.present.sizes(), secrets)?;
        Ok(Self { present, graces: VecDeque::new(), ..self })
    }

    /// What the maps hold.
    pub fn present(&self) -> &Present {
        &self.present
    }

    /// The maps themselves.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The interfaces that carry the program.
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// Carries out a plan that was made from [`Dataplane::present`], reads back what was written, and makes `plan.next` the
    /// present state.
    ///
    /// # Errors
    /// [`Error::Stale`] if the plan was made from another state; [`Error::Op`] if an operation breaks a rule of the maps
    /// (nothing was written then); [`Error::Mismatch`] if the maps do not hold what was written.
    pub fn apply(&mut self, plan: Plan, now: Instant) -> Result<Applied, Error> {
        if plan.base != self.present.version() {
            return Err(Error::Stale { base: plan.base, present: self.present.version() });
        }
        for op in &plan.ops {
            self.maps.check(op)?;
        }
        for op in &plan.ops {
            self.maps.write(op);
        }
        self.maps.read_back(&plan.ops)?;
        if plan.next.quarantined().is_some() {
            self.graces.push_back((plan.next.generation(), now + GRACE));
        }
        self.present = plan.next;
        Ok(Applied { revision: self.present.revision(), ops: plan.ops.len() })
    }

    /// Makes reusable what earlier plans took out of use, once their grace is over. Cheap when there is nothing to do, else it
    /// waits for an RCU grace period (tens of milliseconds). Returns the number of plans released.
    pub fn settle(&mut self, now: Instant) -> usize {
        let due = self.graces.iter().take_while(|(_, until)| *until <= now).count();
        if due == 0 {
            return 0;
        }
        rcu_grace();
        for (generation, _) in self.graces.drain(..due).collect::<Vec<_>>() {
            for op in self.present.release(generation) {
                self.maps.write(&op);
            }
        }
        due
    }

    /// When [`Dataplane::settle`] has something to do next.
    pub fn grace_until(&self) -> Option<Instant> {
        self.graces.front().map(|(_, until)| *until)
    }

    /// Counters of backends by id; ids that are out of range are left out.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the map cannot be read.
    pub fn backend_counters(&self, ids: &[u32]) -> Result<Counters, Error> {
        self.stats.as_ref().map_or_else(|| Ok(Counters::new()), |stats| stats.backends(ids))
    }

    /// Counters of all reasons of an interface slot, by reason number.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the map cannot be read.
    pub fn reason_counters(&self, slot: u32) -> Result<Counters, Error> {
        self.stats.as_ref().map_or_else(|| Ok(Counters::new()), |stats| stats.reasons(slot))
    }

    /// Frames lost after the verdict, by interface index and kind; empty where they are not counted.
    pub fn losses(&self) -> BTreeMap<(u32, LossKind), u64> {
        self.losses.as_ref().map(Losses::read).unwrap_or_default()
    }
}

/// Waits until every program run that began before has ended: membarrier(2) with its global command is an RCU grace period.
/// Where the kernel refuses it (nohz_full), the time that has passed since is the grace.
fn rcu_grace() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: membarrier takes three integers and touches no memory of the caller.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}
