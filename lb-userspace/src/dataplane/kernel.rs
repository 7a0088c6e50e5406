//! The pinned maps as memory, and the data plane of the running kernel.
//!
//! Owns: the mapping of every array that the agent writes, waiting for packets in flight, reading counters. Refuses to know:
//! attaching (`load` does it before) and what the words mean (`engine`).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::{Map as AyaMap, MapData, PerCpuArray};
use lb_core::abi::{
    backend::{self, Backend, BackendKey},
    flow,
    lookup::{self, Bucket},
    node::{self, Node},
    ring::{self, Line},
    service::{self, Service},
    stats::{self, Counter, FlowEvent, FlowTotals, REASONS_MAX},
};

use super::{
    Applied, Counters, Dataplane, Error, Flush, FlushJob, LookJob, Scan,
    apply::{Map, Memory},
    clock,
    engine::{Clock, Engine, GRACE},
    memory::Mapped,
    pin::Pins,
    resize::Beside,
    sweep::Sweeper,
};
use crate::plan::{Look, MapSizes, Plan, PlanError, Present, Secrets, Wanted};

fn failed<E: std::error::Error + Send + Sync + 'static>(action: impl Into<String>) -> impl FnOnce(E) -> Error {
    let action = action.into();
    move |source| Error::Kernel { action, source: Box::new(source) }
}

/// The pinned arrays, mapped into memory.
pub struct Maps {
    node: Mapped<Node>,
    lookup: Mapped<Bucket>,
    services: Mapped<Service>,
    rings: Mapped<Line>,
    owners: Mapped<Line>,
    backends: Mapped<Backend>,
    keys: Mapped<BackendKey>,
    flows: Arc<FlowMaps>,
}

fn map<T: bytemuck::Pod>(pins: &Pins, name: &str, access: Access) -> Result<Mapped<T>, Error> {
    let map = MapData::from_pin(pins.map(name)).map_err(failed(format!("open the pinned map {name}")))?;
    let info = map.info().map_err(failed(format!("read the shape of the map {name}")))?;
    if info.value_size() as usize != size_of::<T>() {
        let found = format!("{} bytes a value instead of {}", info.value_size(), size_of::<T>());
        return Err(failed(format!("use the pinned map {name}"))(std::io::Error::other(found)));
    }
    let entries = info.max_entries();
    let fd = map.fd().as_fd();
    let mapped = match access {
        Access::Write => Mapped::writable(fd, entries),
        Access::Read => Mapped::read_only(fd, entries),
    };
    mapped.map_err(failed(format!("map {name} into memory")))
}

/// What may be done with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading and writing: the one agent.
    Write,
    /// Reading only: commands.
    Read,
}

impl Maps {
    /// Maps what is pinned below `pins`, in the sizes that the kernel gives.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map is missing or cannot be mapped.
    pub fn open(pins: &Pins, access: Access) -> Result<Self, Error> {
        Ok(Self {
            node: map(pins, node::SHAPE.name, access)?,
            lookup: map(pins, lookup::SHAPE.name, access)?,
            services: map(pins, service::SHAPE.name, access)?,
            rings: map(pins, ring::SHAPE.name, access)?,
            owners: map(pins, ring::OWNERS_SHAPE.name, access)?,
            backends: map(pins, backend::SHAPE.name, access)?,
            keys: map(pins, backend::KEYS_SHAPE.name, access)?,
            flows: Arc::new(FlowMaps::open(pins)?),
        })
    }
}

/// Every word of the flow table, and of one before it. A record that moves meanwhile can come twice, but not be missed.
fn words(flows: &FlowMaps) -> impl Iterator<Item = u64> {
    flows.before.iter().chain([&flows.buckets]).flat_map(|table| {
        let places = (0..table.len()).flat_map(|index| (flow::WAYS..2 * flow::WAYS).map(move |word| (index, word)));
        places.filter_map(|(index, word)| table.load_word(index, word))
    })
}

/// The maps that only the program writes, mapped for reading.
pub struct FlowMaps {
    /// `FLOWS`: tags, then words.
    pub buckets: Mapped<[u64; 8]>,
    /// The table before it, where a change of size has left one.
    pub before: Option<Mapped<[u64; 8]>>,
    /// `ACTIVE`.
    pub active: Mapped<u64>,
}

impl FlowMaps {
    /// As [`Maps::open`].
    ///
    /// # Errors
    /// As [`Maps::open`].
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            buckets: map(pins, flow::SHAPE.name, Access::Read)?,
            before: Beside::at_rest(pins).pin().map(|name| map(pins, name, Access::Read)).transpose()?,
            active: map(pins, flow::ACTIVE_SHAPE.name, Access::Read)?,
        })
    }
}

impl Memory for Maps {
    fn entries(&self, map: Map) -> u32 {
        match map {
            Map::Node => self.node.len(),
            Map::Lookup => self.lookup.len(),
            Map::Services => self.services.len(),
            Map::Rings => self.rings.len(),
            Map::Owners => self.owners.len(),
            Map::Backends => self.backends.len(),
            Map::BackendKeys => self.keys.len(),
        }
    }

    fn load(&self, map: Map, index: u32, word: usize) -> Option<u64> {
        match map {
            Map::Node => self.node.load_word(index, word),
            Map::Lookup => self.lookup.load_word(index, word),
            Map::Services => self.services.load_word(index, word),
            Map::Rings => self.rings.load_word(index, word),
            Map::Owners => self.owners.load_word(index, word),
            Map::Backends => self.backends.load_word(index, word),
            Map::BackendKeys => self.keys.load_word(index, word),
        }
    }

    fn store(&mut self, map: Map, index: u32, word: usize, value: u64) -> bool {
        match map {
            Map::Node => self.node.store_word(index, word, value),
            Map::Lookup => self.lookup.store_word(index, word, value),
            Map::Services => self.services.store_word(index, word, value),
            Map::Rings => self.rings.store_word(index, word, value),
            Map::Owners => self.owners.store_word(index, word, value),
            Map::Backends => self.backends.store_word(index, word, value),
            Map::BackendKeys => self.keys.store_word(index, word, value),
        }
    }

    fn recorded(&self) -> HashSet<u32> {
        words(&self.flows)
            .filter(|word| flow::is_record(*word))
            .map(|word| flow::Record::unpack(word).backend)
            .collect()
    }

    fn synchronize(&self) {
        synchronize();
    }
}

/// Waits until every packet has left that met maps or programs before this call.
///
/// An XDP program runs within an RCU read-side section, and membarrier's global command returns after a grace period
/// (membarrier(2)). Where the kernel refuses it (nohz_full), the time of [`GRACE`] passes, which exceeds the run of any program by far.
pub fn synchronize() {
    let command = libc::MEMBARRIER_CMD_GLOBAL;
    // SAFETY: membarrier takes two integers and a CPU number that this command ignores, and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    if result != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "no membarrier, relying on the grace time alone");
        std::thread::sleep(GRACE);
    }
}

/// The data plane of the running kernel.
pub struct KernelDataplane {
    engine: Engine<Maps>,
    counters: KernelCounters,
    flows: Arc<FlowMaps>,
    sweeper: Arc<Sweeper>,
}

impl KernelDataplane {
    /// Takes over the maps that [`super::load::load`] has made or checked; fresh ones get `secrets`.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be used, [`Error::Contents`] if what is in them cannot be relied on. Forwarding goes
    /// on untouched in both cases.
    pub fn open(pins: &Pins, sizes: MapSizes, secrets: Secrets) -> Result<Self, Error> {
        let counters = KernelCounters::open(pins)?;
        let sweeper = Arc::new(Sweeper::load(pins, &sizes)?);
        let maps = Maps::open(pins, Access::Write)?;
        let flows = Arc::clone(&maps.flows);
        Ok(Self {
            engine: Engine::start(maps, sizes, secrets, Clock { hz: clock::hz(), now_s: clock::now_s() })?,
            counters,
            flows,
            sweeper,
        })
    }

    /// Whether the maps held something when this agent came.
    pub fn adopted(&self) -> bool {
        self.engine.adopted()
    }
}

impl Dataplane for KernelDataplane {
    fn present(&self) -> &Present {
        self.engine.present()
    }

    fn plan(&self, wanted: &Wanted, revision: u64) -> Result<Plan, PlanError> {
        let flows = |id: u32| self.flows.active.get(id).unwrap_or(0);
        self.engine.plan(wanted, revision, clock::now_s(), &flows)
    }

    fn now_s(&self) -> u64 {
        clock::now_s()
    }

    fn due_in(&self) -> Option<Duration> {
        self.present().due_s().map(|due_s| Duration::from_secs(due_s.saturating_sub(clock::now_s())))
    }

    fn look(&self) -> LookJob {
        let (flows, sweeper) = (Arc::clone(&self.flows), Arc::clone(&self.sweeper));
        let mut owners: HashMap<u32, u32> = HashMap::new();
        let mut residual = HashSet::new();
        for (_, service) in self.present().services() {
            owners.extend(service.backends.iter().map(|b| (b.id, service.id)));
            if service.window.waits_for_records() {
                residual.insert(service.id);
            }
        }
        owners.extend(self.present().former().iter().map(|f| (f.id, f.service)));
        Box::new(move || {
            let (started, mut look) = (Instant::now(), Look::new(clock::now_s()));
            look.swept = sweeper.sweep()?;
            // What a change of size found no room for may find it now.
            look.no_room = sweeper.move_records()?.no_room;
            let counts = || (0..flows.active.len()).map(|id| flows.active.get(id).unwrap_or(0)).collect::<Vec<u64>>();
            let before = counts();
            for word in words(&flows) {
                look.take(word, |id| owners.get(&id).copied().unwrap_or(0), &residual);
            }
            look.compare(&before, &counts());
            look.took = started.elapsed();
            Ok(look)
        })
    }

    fn looked(&mut self, look: Look) {
        self.engine.looked(look);
    }

    fn last_look(&self) -> Option<&Look> {
        self.engine.last_look()
    }

    fn scan(&self) -> Scan {
        let flows = Arc::clone(&self.flows);
        Box::new(move |take| words(&flows).for_each(take))
    }

    fn flush(&self, flush: Flush) -> FlushJob {
        let sweeper = Arc::clone(&self.sweeper);
        Box::new(move || sweeper.flush(flush))
    }

    fn record_now_s(&self) -> u32 {
        (clock::jiffies() / u64::from(self.present().node().hz.max(1))) as u32
    }

    fn flows(&self, id: u32) -> (u32, u32) {
        let word = self.flows.active.get(id).unwrap_or(0);
        (word as u32, (word >> 32) as u32)
    }

    fn flow_events(&self) -> Result<BTreeMap<FlowEvent, u64>, Error> {
        self.counters.flow_events()
    }

    fn flow_totals(&self, ids: &[u32]) -> Result<BTreeMap<u32, FlowTotals>, Error> {
        self.counters.flow_totals(ids)
    }

    fn apply(&mut self, plan: Plan) -> Result<Applied, Error> {
        self.engine.apply(plan, Instant::now(), clock::now_s())
    }

    fn settle(&mut self, now: Instant) -> Result<usize, Error> {
        self.engine.settle(now)
    }

    fn grace_until(&self) -> Option<Instant> {
        self.engine.grace_until()
    }

    fn backend_counters(&self, ids: &[u32]) -> Result<Counters<u32>, Error> {
        self.counters.backends(ids)
    }

    fn reason_counters(&self, slot: u32) -> Result<Counters<u32>, Error> {
        self.counters.reasons(slot)
    }
}

/// The per-CPU counters; usable without the rest, by commands.
pub struct KernelCounters {
    backends: PerCpuArray<MapData, [u64; 2]>,
    reasons: PerCpuArray<MapData, [u64; 2]>,
    flows: PerCpuArray<MapData, [u64; 4]>,
    events: PerCpuArray<MapData, u64>,
}

const _: () = assert!(size_of::<Counter>() == size_of::<[u64; 2]>());

impl KernelCounters {
    /// Opens what is pinned below `pins`.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map is missing or of another kind.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        fn open<T: aya::Pod>(pins: &Pins, name: &str) -> Result<PerCpuArray<MapData, T>, Error> {
            let map = MapData::from_pin(pins.map(name)).map_err(failed(format!("open the pinned map {name}")))?;
            PerCpuArray::try_from(AyaMap::PerCpuArray(map)).map_err(failed(format!("use the pinned map {name}")))
        }
        Ok(Self {
            backends: open(pins, stats::BACKENDS_SHAPE.name)?,
            reasons: open(pins, stats::REASONS_SHAPE.name)?,
            flows: open(pins, stats::BACKEND_FLOWS_SHAPE.name)?,
            events: open(pins, stats::FLOW_STATS_SHAPE.name)?,
        })
    }

    /// What the flow table did, summed over CPUs.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the map cannot be read.
    pub fn flow_events(&self) -> Result<BTreeMap<FlowEvent, u64>, Error> {
        let count = |event: FlowEvent| {
            let name = stats::FLOW_STATS_SHAPE.name;
            let values = self.events.get(&(event as u32), 0).map_err(failed(format!("read {name}")))?;
            Ok((event, values.iter().fold(0u64, |sum, value| sum.wrapping_add(*value))))
        };
        FlowEvent::ALL.into_iter().map(count).collect()
    }

    /// Totals of flows of backends by id, summed over CPUs; ids outside the map are left out.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the map cannot be read.
    pub fn flow_totals(&self, ids: &[u32]) -> Result<BTreeMap<u32, FlowTotals>, Error> {
        let total = |id: u32| {
            let name = stats::BACKEND_FLOWS_SHAPE.name;
            let values = self.flows.get(&id, 0).map_err(failed(format!("read {name} at {id}")))?;
            let mut sum = [0u64; 4];
            for value in values.iter() {
                sum.iter_mut().zip(value).for_each(|(sum, n)| *sum = sum.wrapping_add(*n));
            }
            Ok((id, bytemuck::cast(sum)))
        };
        ids.iter().filter(|id| **id < self.flows.len()).map(|id| total(*id)).collect()
    }

    /// Counters of backends by id, summed over CPUs; ids outside the map are left out.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the map cannot be read.
    pub fn backends(&self, ids: &[u32]) -> Result<Counters<u32>, Error> {
        let inside = ids.iter().filter(|id| **id < self.backends.len());
        inside.map(|id| Ok((*id, sum(&self.backends, *id, stats::BACKENDS_SHAPE.name)?))).collect()
    }

    /// Counters of an interface slot by reason number, summed over CPUs; empty for a slot that does not exist.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the map cannot be read.
    pub fn reasons(&self, slot: u32) -> Result<Counters<u32>, Error> {
        if slot >= stats::INTERFACES_MAX {
            return Ok(Counters::new());
        }
        let first = slot * REASONS_MAX;
        (0..REASONS_MAX)
            .map(|reason| Ok((reason, sum(&self.reasons, first + reason, stats::REASONS_SHAPE.name)?)))
            .collect()
    }
}

fn sum(map: &PerCpuArray<MapData, [u64; 2]>, index: u32, name: &str) -> Result<Counter, Error> {
    let values = map.get(&index, 0).map_err(failed(format!("read {name} at {index}")))?;
    Ok(values.iter().fold(Counter::default(), |sum, [packets, bytes]| Counter {
        packets: sum.packets.wrapping_add(*packets),
        bytes: sum.bytes.wrapping_add(*bytes),
    }))
}
