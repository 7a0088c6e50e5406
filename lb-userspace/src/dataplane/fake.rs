//! A data plane on the heap, for tests of what stands above: the same rules, the same stores, no kernel.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lb_core::abi::{
    flow::Record,
    stats::{Counter, FlowEvent, FlowTotals},
};

use super::{
    Applied, Counters, Dataplane, Error, Flush, FlushJob, LookJob, Scan,
    apply::{Map, Memory},
    engine::{Clock, Engine},
};
use crate::plan::{Look, MapSizes, Plan, PlanError, Present, Secrets, Wanted};

/// The maps as vectors of words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heap {
    node: Vec<u64>,
    lookup: Vec<u64>,
    services: Vec<u64>,
    rings: Vec<u64>,
    owners: Vec<u64>,
    backends: Vec<u64>,
    backend_keys: Vec<u64>,
}

impl Heap {
    /// Zeroed maps.
    pub fn new(sizes: &MapSizes) -> Self {
        let words = |map: Map, entries: u32| vec![0; entries as usize * map.words()];
        Self {
            node: words(Map::Node, 1),
            lookup: words(Map::Lookup, sizes.lookup_buckets),
            services: words(Map::Services, sizes.services),
            rings: words(Map::Rings, sizes.ring_lines),
            owners: words(Map::Owners, sizes.ring_lines),
            backends: words(Map::Backends, sizes.backends),
            backend_keys: words(Map::BackendKeys, sizes.backends),
        }
    }

    fn words(&self, map: Map) -> &Vec<u64> {
        match map {
            Map::Node => &self.node,
            Map::Lookup => &self.lookup,
            Map::Services => &self.services,
            Map::Rings => &self.rings,
            Map::Owners => &self.owners,
            Map::Backends => &self.backends,
            Map::BackendKeys => &self.backend_keys,
        }
    }
}

impl Memory for Heap {
    fn entries(&self, map: Map) -> u32 {
        (self.words(map).len() / map.words()) as u32
    }

    fn load(&self, map: Map, index: u32, word: usize) -> Option<u64> {
        if word >= map.words() {
            return None;
        }
        self.words(map).get(index as usize * map.words() + word).copied()
    }

    fn store(&mut self, map: Map, index: u32, word: usize, value: u64) -> bool {
        let words = match map {
            Map::Node => &mut self.node,
            Map::Lookup => &mut self.lookup,
            Map::Services => &mut self.services,
            Map::Rings => &mut self.rings,
            Map::Owners => &mut self.owners,
            Map::Backends => &mut self.backends,
            Map::BackendKeys => &mut self.backend_keys,
        };
        match words.get_mut(index as usize * map.words() + word) {
            Some(at) if word < map.words() => {
                *at = value;
                true
            }
            _ => false,
        }
    }

    fn recorded(&self) -> HashSet<u32> {
        HashSet::new()
    }

    fn synchronize(&self) {}
}

/// A data plane whose packets never come; tests set the counters.
#[derive(Debug)]
pub struct FakeDataplane {
    engine: Engine<Heap>,
    /// What [`Dataplane::backend_counters`] gives.
    pub backends: Counters<u32>,
    /// What [`Dataplane::reason_counters`] gives, by (slot, reason).
    pub reasons: Counters<(u32, u32)>,
    /// What [`Dataplane::flows`] gives: established and half-open ones.
    pub flows: BTreeMap<u32, (u32, u32)>,
    /// What [`Dataplane::flow_totals`] gives.
    pub totals: BTreeMap<u32, FlowTotals>,
    /// What [`Dataplane::flow_events`] gives; events that are missing did not happen.
    pub events: BTreeMap<FlowEvent, u64>,
    /// What a look finds.
    pub table: Look,
    /// The flow table.
    pub words: Arc<Mutex<Vec<u64>>>,
    /// Seconds of the clock of plans.
    pub now_s: u64,
    /// An error that the next `apply` gives instead of doing anything.
    pub fail_next: Option<Error>,
}

impl FakeDataplane {
    /// A data plane in which nothing is.
    ///
    /// # Errors
    /// None that a fresh heap can cause.
    pub fn new(sizes: MapSizes, secrets: Secrets) -> Result<Self, Error> {
        Self::adopt(Heap::new(&sizes), sizes, secrets)
    }

    /// A data plane that takes over what an earlier one left.
    ///
    /// # Errors
    /// [`Error::Contents`] where the heap contradicts itself.
    pub fn adopt(heap: Heap, sizes: MapSizes, secrets: Secrets) -> Result<Self, Error> {
        Ok(Self {
            engine: Engine::start(heap, sizes, secrets, Clock { hz: 250, now_s: 0 })?,
            backends: Counters::new(),
            reasons: Counters::new(),
            flows: BTreeMap::new(),
            totals: BTreeMap::new(),
            events: BTreeMap::new(),
            table: Look::new(0),
            words: Arc::default(),
            now_s: 0,
            fail_next: None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What survives the agent.
    pub fn heap(&self) -> &Heap {
        self.engine.memory()
    }
}

impl Dataplane for FakeDataplane {
    fn present(&self) -> &Present {
        self.engine.present()
    }

    fn plan(&self, wanted: &Wanted, revision: u64) -> Result<Plan, PlanError> {
        let flows = |id: u32| self.flows(id);
        self.engine.plan(wanted, revision, self.now_s, &|id| u64::from(flows(id).0) + u64::from(flows(id).1))
    }

    fn now_s(&self) -> u64 {
        self.now_s
    }

    fn due_in(&self) -> Option<Duration> {
        self.present().due_s().map(|due_s| Duration::from_secs(due_s.saturating_sub(self.now_s)))
    }

    fn look(&self) -> LookJob {
        let table = self.table.clone();
        Box::new(|| Ok(table))
    }

    fn looked(&mut self, look: Look) {
        self.engine.looked(look);
    }

    fn last_look(&self) -> Option<&Look> {
        self.engine.last_look()
    }

    fn scan(&self) -> Scan {
        let words = self.lock().clone();
        Box::new(|take| words.into_iter().for_each(take))
    }

    fn flush(&self, flush: Flush) -> FlushJob {
        let services = self.present().services().flat_map(|(_, s)| s.backends.iter().map(|b| (b.id, s.id)));
        let services: BTreeMap<u32, u32> = services.collect();
        let words = Arc::clone(&self.words);
        Box::new(move || {
            let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
            let before = words.len();
            words.retain(|word| {
                let id = Record::unpack(*word).backend;
                let service = services.get(&id).copied().unwrap_or(0);
                (flush.backend != 0 && flush.backend != id) || (flush.service != 0 && flush.service != service)
            });
            Ok((before - words.len()) as u64)
        })
    }

    fn record_now_s(&self) -> u32 {
        self.now_s as u32
    }

    fn flows(&self, id: u32) -> (u32, u32) {
        self.flows.get(&id).copied().unwrap_or_default()
    }

    fn flow_events(&self) -> Result<BTreeMap<FlowEvent, u64>, Error> {
        Ok(FlowEvent::ALL.into_iter().map(|event| (event, self.events.get(&event).copied().unwrap_or(0))).collect())
    }

    fn flow_totals(&self, ids: &[u32]) -> Result<BTreeMap<u32, FlowTotals>, Error> {
        Ok(ids.iter().map(|id| (*id, self.totals.get(id).copied().unwrap_or_default())).collect())
    }

    fn apply(&mut self, plan: Plan) -> Result<Applied, Error> {
        match self.fail_next.take() {
            Some(error) => Err(error),
            None => self.engine.apply(plan, Instant::now(), self.now_s),
        }
    }

    fn settle(&mut self, now: Instant) -> Result<usize, Error> {
        self.engine.settle(now)
    }

    fn grace_until(&self) -> Option<Instant> {
        self.engine.grace_until()
    }

    fn backend_counters(&self, ids: &[u32]) -> Result<Counters<u32>, Error> {
        Ok(ids.iter().map(|id| (*id, self.backends.get(id).copied().unwrap_or_default())).collect())
    }

    fn reason_counters(&self, slot: u32) -> Result<Counters<u32>, Error> {
        let of_slot = self.reasons.iter().filter(|((s, _), _)| *s == slot);
        Ok(of_slot.map(|((_, reason), counter): (_, &Counter)| (*reason, *counter)).collect())
    }
}
