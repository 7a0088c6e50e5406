//! The maps as memory: carrying out operations, reading them back, and copying out what an adopting agent needs.
//!
//! Owns: from [`Op`] to stores. Refuses to know: why. Invariants: an operation is checked before the first of its plan is
//! written; single words are stored with release order after what they publish.

use std::os::fd::AsFd;

use aya::maps::{Map, MapData, PerCpuArray};
use bytemuck::Pod;
use lb_core::abi::{
    backend::{self, Backend, BackendKey, FLAG_VALID},
    lookup::{self, Bucket, WAYS},
    node::{self, Node},
    ring::{self, Extent, LINE_SLOTS, Line},
    service::{self, Service},
    stats::{self, Counter, INTERFACES_MAX, REASONS_MAX},
};

use super::{Counters, Error, memory::Mapped, pin::Pins};
use crate::plan::{
    MapSizes, Op, Present, Secrets,
    op::{BACKEND_WORD_FLAGS, BACKEND_WORDS, NODE_WORD_FLAGS, SERVICE_WORD_RING},
    rebuild::{Adopted, Contents, rebuild},
};

/// The maps that the agent writes.
pub struct Maps {
    /// `NODE`.
    pub node: Mapped<Node>,
    /// `LOOKUP`.
    pub lookup: Mapped<Bucket>,
    /// `SERVICES`.
    pub services: Mapped<Service>,
    /// `RINGS`.
    pub rings: Mapped<Line>,
    /// `BACKENDS`.
    pub backends: Mapped<Backend>,
    /// `BACKEND_KEYS`.
    pub keys: Mapped<BackendKey>,
}

impl Maps {
    /// The pinned maps, for writing.
    pub fn pinned(pins: &Pins, sizes: &MapSizes) -> Result<Self, Error> {
        fn open<T: Pod>(pins: &Pins, name: &'static str, entries: u32) -> Result<Mapped<T>, Error> {
            let map =
                MapData::from_pin(pins.map(name)).map_err(Error::kernel(format!("open the pinned map {name}")))?;
            Mapped::writable(map.fd().as_fd(), entries).map_err(Error::kernel(format!("map {name} into memory")))
        }
        Ok(Self {
            node: open(pins, node::SHAPE.name, 1)?,
            lookup: open(pins, lookup::SHAPE.name, sizes.lookup_buckets)?,
            services: open(pins, service::SHAPE.name, sizes.services)?,
            rings: open(pins, ring::SHAPE.name, sizes.ring_lines)?,
            backends: open(pins, backend::SHAPE.name, sizes.backends)?,
            keys: open(pins, backend::KEYS_SHAPE.name, sizes.backends)?,
        })
    }

    /// Maps of the same shapes in memory of this process.
    pub fn in_memory(sizes: &MapSizes) -> Result<Self, Error> {
        fn make<T: Pod>(name: &'static str, entries: u32) -> Result<Mapped<T>, Error> {
            let make = || -> std::io::Result<Mapped<T>> {
                let file = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
                nix::unistd::ftruncate(&file, entries as i64 * size_of::<T>() as i64)?;
                Mapped::writable(file.as_fd(), entries)
            };
            make().map_err(Error::kernel(format!("make {name} in memory")))
        }
        Ok(Self {
            node: make(node::SHAPE.name, 1)?,
            lookup: make(lookup::SHAPE.name, sizes.lookup_buckets)?,
            services: make(service::SHAPE.name, sizes.services)?,
            rings: make(ring::SHAPE.name, sizes.ring_lines)?,
            backends: make(backend::SHAPE.name, sizes.backends)?,
            keys: make(backend::KEYS_SHAPE.name, sizes.backends)?,
        })
    }

    /// What the maps hold, and whether an agent had written to them before. Fresh maps get their node entry; what an
    /// interrupted agent left unnamed is cleared.
    pub fn present(&self, sizes: MapSizes, secrets: Secrets) -> Result<(Present, bool), Error> {
        let Some(node) = self.node.get(0).filter(|node| node.abi_version != 0) else {
            let present = Present::empty(sizes, secrets);
            let words: [u64; size_of::<Node>() / 8] = bytemuck::cast(*present.node());
            // The first word holds the version, by which the program knows that the entry is complete.
            for (word, value) in words.into_iter().enumerate().rev() {
                self.node.store_word(0, word, value);
            }
            return Ok((present, false));
        };
        fn all<T: Pod>(map: &Mapped<T>) -> Vec<T> {
            (0..map.len()).filter_map(|index| map.get(index)).collect()
        }
        let Adopted { present, repairs } = rebuild(
            sizes,
            Contents {
                node,
                lookup: all(&self.lookup),
                services: &all(&self.services),
                backends: &all(&self.backends),
                keys: &all(&self.keys),
                ring: &|extent| self.slots(extent),
            },
        )?;
        for op in &repairs {
            self.check(op)?;
            self.write(op);
        }
        Ok((present, true))
    }

    /// The slots of an extent; `None` if it reaches beyond the arena.
    pub fn slots(&self, extent: Extent) -> Option<Vec<u32>> {
        let end = extent.line.checked_add(extent.lines())?;
        let mut slots = Vec::with_capacity(extent.slots as usize);
        for line in extent.line..end {
            slots.extend(self.rings.get(line)?.slots);
        }
        slots.truncate(extent.slots as usize);
        Some(slots)
    }

    /// Whether an operation keeps within the maps and their rules.
    pub fn check(&self, op: &Op) -> Result<(), Error> {
        let rule = match op {
            Op::PutBackend { id, .. } | Op::BackendWord { id, .. } | Op::ClearBackend { id }
                if *id == 0 || *id >= self.backends.len() =>
            {
                "backend ids begin at 1 and end with the map"
            }
            Op::PutService { id, .. } | Op::ServiceRing { id, .. } | Op::ClearService { id }
                if *id == 0 || *id >= self.services.len() =>
            {
                "service ids begin at 1 and end with the map"
            }
            Op::BackendWord { word, .. } if *word >= BACKEND_WORDS => "a backend has fewer words",
            Op::LookupWord { bucket, word, .. } if *bucket >= self.lookup.len() || *word > WAYS => {
                "a lookup word lies within the table"
            }
            Op::NodeWord { word, .. } if *word >= Mapped::<Node>::WORDS => "the node entry has fewer words",
            Op::PutRing { extent, slots }
                if slots.len() != extent.slots as usize
                    || extent.line.checked_add(extent.lines()).is_none_or(|end| end > self.rings.len()) =>
            {
                "a ring fills its extent within the arena"
            }
            _ => return Ok(()),
        };
        Err(Error::Op { op: format!("{op:?}"), rule })
    }

    /// Carries out a checked operation.
    pub fn write(&self, op: &Op) {
        match op {
            Op::PutBackend { id, key, entry } => {
                self.keys.put(*id, key);
                let words: [u64; BACKEND_WORDS] = bytemuck::cast(*entry);
                // The flags come last, so that an adopting agent never takes half an entry for a backend.
                for (word, value) in words.into_iter().enumerate().rev() {
                    self.backends.store_word(*id, word, value);
                }
            }
            Op::BackendWord { id, word, value } => {
                self.backends.store_word(*id, *word, *value);
            }
            Op::PutRing { extent, slots } => {
                for (line, slots) in (extent.line..).zip(slots.chunks(LINE_SLOTS)) {
                    self.rings.put(line, &line_of(slots));
                }
            }
            Op::PutService { id, entry } => {
                self.services.put(*id, entry);
            }
            Op::ServiceRing { id, extent } => {
                self.services.store_word(*id, SERVICE_WORD_RING, extent.pack());
            }
            Op::LookupWord { bucket, word, value } => {
                self.lookup.store_word(*bucket, *word, *value);
            }
            Op::ClearBackend { id } => {
                self.backends.store_word(*id, BACKEND_WORD_FLAGS, 0);
            }
            Op::ClearService { id } => {
                self.services.store_word(*id, SERVICE_WORD_RING, 0);
            }
            Op::NodeWord { word, value } => {
                self.node.store_word(0, *word, *value);
            }
        }
    }

    /// Compares the maps with what a plan wrote; of words that it wrote more than once, with the last.
    pub fn read_back(&self, ops: &[Op]) -> Result<(), Error> {
        let mut words: std::collections::HashMap<(u8, u32, usize), (u64, &Op)> = std::collections::HashMap::new();
        for op in ops {
            let holds = match op {
                Op::PutBackend { id, key, entry } => {
                    self.keys.get(*id) == Some(*key)
                        && self.backends.get(*id).is_some_and(|b| b.flags & FLAG_VALID != 0 && b.addr == entry.addr)
                }
                Op::PutRing { extent, slots } => (extent.line..)
                    .zip(slots.chunks(LINE_SLOTS))
                    .all(|(line, slots)| self.rings.get(line) == Some(line_of(slots))),
                Op::PutService { id, entry } => self.services.get(*id).is_some_and(|s| s.key() == entry.key()),
                Op::BackendWord { id, word, value } => {
                    words.insert((0, *id, *word), (*value, op));
                    true
                }
                Op::ServiceRing { id, extent } => {
                    words.insert((1, *id, SERVICE_WORD_RING), (extent.pack(), op));
                    true
                }
                Op::LookupWord { bucket, word, value } => {
                    words.insert((2, *bucket, *word), (*value, op));
                    true
                }
                Op::NodeWord { word, value } => {
                    words.insert((3, 0, *word), (*value, op));
                    true
                }
                Op::ClearBackend { .. } | Op::ClearService { .. } => true,
            };
            if !holds {
                return Err(Error::Mismatch { op: format!("{op:?}") });
            }
        }
        for ((map, index, word), (value, op)) in words {
            let found = match map {
                0 => self.backends.load_word(index, word),
                1 => self.services.load_word(index, word),
                2 => self.lookup.load_word(index, word),
                _ => self.node.load_word(index, word),
            };
            if found != Some(value) {
                return Err(Error::Mismatch { op: format!("{op:?}") });
            }
        }
        Ok(())
    }
}

const _: () = assert!(NODE_WORD_FLAGS == 0);

/// Slots as a line of the arena; what lies behind the last is zero.
fn line_of(slots: &[u32]) -> Line {
    let mut line = Line { slots: [0; LINE_SLOTS] };
    line.slots.iter_mut().zip(slots).for_each(|(to, from)| *to = *from);
    line
}

/// The per-CPU counters.
pub struct StatsMaps {
    backends: PerCpuArray<MapData, [u64; 2]>,
    reasons: PerCpuArray<MapData, [u64; 2]>,
}

impl StatsMaps {
    /// The pinned counters.
    pub fn pinned(pins: &Pins) -> Result<Self, Error> {
        let open = |name: &'static str| {
            let action = || format!("open the pinned map {name}");
            let map = MapData::from_pin(pins.map(name)).map_err(Error::kernel(action()))?;
            PerCpuArray::try_from(Map::PerCpuArray(map)).map_err(Error::kernel(action()))
        };
        Ok(Self { backends: open(stats::BACKENDS_SHAPE.name)?, reasons: open(stats::REASONS_SHAPE.name)? })
    }

    /// Counters of backends by id.
    pub fn backends(&self, ids: &[u32]) -> Result<Counters, Error> {
        ids.iter().filter(|id| **id < self.backends.len()).map(|id| Ok((*id, sum(&self.backends, *id)?))).collect()
    }

    /// Counters of an interface slot by reason number.
    pub fn reasons(&self, slot: u32) -> Result<Counters, Error> {
        if slot >= INTERFACES_MAX {
            return Ok(Counters::new());
        }
        (0..REASONS_MAX).map(|reason| Ok((reason, sum(&self.reasons, slot * REASONS_MAX + reason)?))).collect()
    }
}

fn sum(map: &PerCpuArray<MapData, [u64; 2]>, index: u32) -> Result<Counter, Error> {
    let values = map.get(&index, 0).map_err(Error::kernel("read a counter"))?;
    Ok(values.iter().fold(Counter::default(), |sum, [packets, bytes]| Counter {
        packets: sum.packets.wrapping_add(*packets),
        bytes: sum.bytes.wrapping_add(*bytes),
    }))
}
