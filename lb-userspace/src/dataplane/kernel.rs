//! The pinned maps as memory, and the data plane of the running kernel.
//!
//! Owns: the mapping of every array that the agent writes, waiting for packets in flight, reading counters. Refuses to know:
//! attaching (`load` does it before) and what the words mean (`engine`).

use std::{os::fd::AsFd, time::Instant};

use aya::maps::{Map as AyaMap, MapData, PerCpuArray};
use lb_core::abi::{
    backend::{self, Backend, BackendKey},
    lookup::{self, Bucket},
    node::{self, Node},
    ring::{self, Line},
    service::{self, Service},
    stats::{self, Counter, REASONS_MAX},
};

use super::{
    Applied, Counters, Dataplane, Error,
    apply::{Map, Memory},
    engine::Engine,
    memory::Mapped,
    pin::Pins,
};
use crate::plan::{MapSizes, Plan, Present, Secrets};

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
    backends: Mapped<Backend>,
    keys: Mapped<BackendKey>,
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
        fn open<T: bytemuck::Pod>(pins: &Pins, name: &str, access: Access) -> Result<Mapped<T>, Error> {
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
        Ok(Self {
            node: open(pins, node::SHAPE.name, access)?,
            lookup: open(pins, lookup::SHAPE.name, access)?,
            services: open(pins, service::SHAPE.name, access)?,
            rings: open(pins, ring::SHAPE.name, access)?,
            backends: open(pins, backend::SHAPE.name, access)?,
            keys: open(pins, backend::KEYS_SHAPE.name, access)?,
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
            Map::Backends => self.backends.store_word(index, word, value),
            Map::BackendKeys => self.keys.store_word(index, word, value),
        }
    }

    /// An XDP program runs within an RCU read-side section, and membarrier's global command returns after a grace period
    /// (membarrier(2)). Kernels that refuse it (nohz_full) leave the second of [`super::engine::GRACE`], which suffices.
    fn synchronize(&self) {
        let command = libc::MEMBARRIER_CMD_GLOBAL;
        // SAFETY: membarrier takes two integers and a CPU number that this command ignores, and touches no memory.
        let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
        if result != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "no membarrier, relying on the grace time alone");
        }
    }
}

/// The data plane of the running kernel.
pub struct KernelDataplane {
    engine: Engine<Maps>,
    counters: KernelCounters,
}

impl KernelDataplane {
    /// Takes over the maps that [`super::load::load`] has made or checked; fresh ones get `secrets`.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map cannot be used, [`Error::Contents`] if what is in them cannot be relied on. Forwarding goes
    /// on untouched in both cases.
    pub fn open(pins: &Pins, sizes: MapSizes, secrets: Secrets) -> Result<Self, Error> {
        let counters = KernelCounters::open(pins)?;
        Ok(Self { engine: Engine::start(Maps::open(pins, Access::Write)?, sizes, secrets)?, counters })
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

    fn apply(&mut self, plan: Plan) -> Result<Applied, Error> {
        self.engine.apply(plan, Instant::now())
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
}

const _: () = assert!(size_of::<Counter>() == size_of::<[u64; 2]>());

impl KernelCounters {
    /// Opens what is pinned below `pins`.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map is missing or of another kind.
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        let open = |name: &str| {
            let map = MapData::from_pin(pins.map(name)).map_err(failed(format!("open the pinned map {name}")))?;
            PerCpuArray::try_from(AyaMap::PerCpuArray(map)).map_err(failed(format!("use the pinned map {name}")))
        };
        Ok(Self { backends: open(stats::BACKENDS_SHAPE.name)?, reasons: open(stats::REASONS_SHAPE.name)? })
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
