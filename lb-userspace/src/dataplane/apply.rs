//! Carries out operations on the maps' memory.
//!
//! Owns: the rules that every operation must keep, checked before the first store; the stores; reading back. Refuses to know:
//! where memory comes from (kernel or heap) and why an operation is wanted.

use std::collections::HashSet;

use bytemuck::Pod;
use lb_core::abi::{
    backend::{Backend, BackendKey},
    lookup::Bucket,
    node::Node,
    ring::{Extent, LINE_SLOTS, Line},
    service::Service,
};

use super::Error;
use crate::plan::{
    Op, Present,
    op::{BACKEND_WORD_FLAGS, BACKEND_WORDS, LOOKUP_WORD_OVERFLOWED, SERVICE_WORD_RING},
};

/// The maps that the agent writes through memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Map {
    /// `NODE`.
    Node,
    /// `LOOKUP`.
    Lookup,
    /// `SERVICES`.
    Services,
    /// `RINGS`.
    Rings,
    /// `BACKENDS`.
    Backends,
    /// `BACKEND_KEYS`.
    BackendKeys,
}

impl Map {
    /// 64-bit words of an entry.
    pub const fn words(self) -> usize {
        match self {
            Self::Node => size_of::<Node>() / 8,
            Self::Lookup => size_of::<Bucket>() / 8,
            Self::Services => size_of::<Service>() / 8,
            Self::Rings => size_of::<Line>() / 8,
            Self::Backends => size_of::<Backend>() / 8,
            Self::BackendKeys => size_of::<BackendKey>() / 8,
        }
    }
}

/// Slots of an 8-byte word of the arena.
const WORD_SLOTS: usize = 2;

/// The maps' entries as words. A store is one aligned 64-bit store that happens after all stores before it.
pub trait Memory {
    /// Entries of a map.
    fn entries(&self, map: Map) -> u32;

    /// One word; `None` outside the map.
    fn load(&self, map: Map, index: u32, word: usize) -> Option<u64>;

    /// Stores one word; false outside the map.
    fn store(&mut self, map: Map, index: u32, word: usize, value: u64) -> bool;

    /// Waits until every packet has left that met the maps before this call.
    fn synchronize(&self);

    /// A copy of an entry, `T` being its type.
    fn read<T: Pod>(&self, map: Map, index: u32) -> Option<T> {
        let mut value = T::zeroed();
        for (word, bytes) in bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.load(map, index, word)?.to_ne_bytes());
        }
        Some(value)
    }

    /// The slots of an extent of the arena; `None` if it reaches beyond.
    fn ring(&self, extent: Extent) -> Option<Vec<u32>> {
        let end = u64::from(extent.line) + u64::from(extent.lines());
        if end > u64::from(self.entries(Map::Rings)) {
            return None;
        }
        let mut slots = Vec::with_capacity(extent.slots as usize);
        for at in (0..extent.slots as usize).step_by(WORD_SLOTS) {
            let (line, word) = place(extent, at);
            let pair: [u32; WORD_SLOTS] = bytemuck::cast(self.load(Map::Rings, line, word)?);
            slots.extend_from_slice(&pair);
        }
        slots.truncate(extent.slots as usize);
        Some(slots)
    }
}

/// Line and word of the slot `at` of a ring.
fn place(extent: Extent, at: usize) -> (u32, usize) {
    (extent.line + (at / LINE_SLOTS) as u32, at % LINE_SLOTS / WORD_SLOTS)
}

/// Checks every operation of a plan against the rules of the maps.
///
/// # Errors
/// [`Error::Op`] naming the first one that breaks a rule.
pub fn check(memory: &impl Memory, present: &Present, ops: &[Op]) -> Result<(), Error> {
    let mut written: HashSet<Extent> = HashSet::new();
    for op in ops {
        let inside = |map: Map, index: u32, word: usize| index < memory.entries(map) && word < map.words();
        let rule = match op {
            Op::PutBackend { id, .. } if *id == 0 || !inside(Map::Backends, *id, 0) => Some("the id lies in the map"),
            Op::PutBackend { id, .. } if present.uses_backend_id(*id) => {
                Some("an id in use or in quarantine is not written whole")
            }
            Op::BackendWord { id, word, .. } if *id == 0 || !inside(Map::Backends, *id, *word) => {
                Some("the word lies in the map")
            }
            Op::PutRing { extent, slots } if slots.len() != extent.slots as usize => {
                Some("a ring has all of its slots")
            }
            Op::PutRing { slots, .. } if slots.contains(&0) => Some("a slot names a backend"),
            Op::PutRing { extent, .. } if !present.has_free(*extent) => {
                Some("a ring is written to lines that no service and no quarantine holds")
            }
            Op::PutRing { extent, .. } => {
                written.insert(*extent);
                None
            }
            Op::PutService { id, .. } if *id == 0 || !inside(Map::Services, *id, 0) => Some("the id lies in the map"),
            Op::PutService { id, .. } if present.uses_service_id(*id) => {
                Some("an id in use or in quarantine is not written whole")
            }
            Op::PutService { entry, .. } if entry.ring != 0 && !written.contains(&Extent::unpack(entry.ring)) => {
                Some("a ring is written before it is named")
            }
            Op::ServiceRing { id, .. } if *id == 0 || !inside(Map::Services, *id, SERVICE_WORD_RING) => {
                Some("the id lies in the map")
            }
            Op::ServiceRing { extent, .. } if extent.slots != 0 && !written.contains(extent) => {
                Some("a ring is written before it is named")
            }
            Op::LookupWord { bucket, word, .. } if !inside(Map::Lookup, *bucket, *word) => {
                Some("the word lies in the map")
            }
            Op::ClearBackend { id } if present.uses_backend_id(*id) => Some("what is in use is not cleared"),
            Op::ClearService { id } if present.uses_service_id(*id) => Some("what is in use is not cleared"),
            Op::NodeWord { word, .. } if !inside(Map::Node, 0, *word) => Some("the word lies in the map"),
            _ => None,
        };
        if let Some(rule) = rule {
            return Err(Error::Op { op: format!("{op:?}"), rule });
        }
    }
    Ok(())
}

const _: () = assert!(LOOKUP_WORD_OVERFLOWED < Map::Lookup.words() && BACKEND_WORDS == Map::Backends.words());

/// Calls `store` for every word of an operation, in the order in which they are to be stored.
fn words(op: &Op, mut store: impl FnMut(Map, u32, usize, u64) -> bool) -> bool {
    let mut put = |map: Map, index: u32, bytes: &[u8]| {
        bytes.chunks_exact(8).enumerate().all(|(word, bytes)| {
            let value = bytes.try_into().map_or(0, u64::from_ne_bytes);
            store(map, index, word, value)
        })
    };
    match op {
        Op::PutBackend { id, key, entry } => {
            // The key first: a valid entry always has one. Nothing names the id yet, the order of the rest is free.
            put(Map::BackendKeys, *id, bytemuck::bytes_of(key)) && put(Map::Backends, *id, bytemuck::bytes_of(entry))
        }
        Op::BackendWord { id, word, value } => store(Map::Backends, *id, *word, *value),
        Op::PutRing { extent, slots } => (0..extent.lines() as usize * LINE_SLOTS).step_by(WORD_SLOTS).all(|at| {
            let slot = |at: usize| slots.get(at).copied().unwrap_or(0);
            let (line, word) = place(*extent, at);
            store(Map::Rings, line, word, bytemuck::cast([slot(at), slot(at + 1)]))
        }),
        Op::PutService { id, entry } => put(Map::Services, *id, bytemuck::bytes_of(entry)),
        Op::ServiceRing { id, extent } => store(Map::Services, *id, SERVICE_WORD_RING, extent.pack()),
        Op::LookupWord { bucket, word, value } => store(Map::Lookup, *bucket, *word, *value),
        Op::ClearBackend { id } => store(Map::Backends, *id, BACKEND_WORD_FLAGS, 0),
        Op::ClearService { id } => put(Map::Services, *id, &[0; size_of::<Service>()]),
        Op::NodeWord { word, value } => store(Map::Node, 0, *word, *value),
    }
}

/// Carries out operations in their order.
///
/// # Errors
/// [`Error::Op`] for a word outside its map; what came before it is written then.
pub fn write(memory: &mut impl Memory, ops: &[Op]) -> Result<(), Error> {
    for op in ops {
        if !words(op, |map, index, word, value| memory.store(map, index, word, value)) {
            return Err(Error::Op { op: format!("{op:?}"), rule: "the word lies in the map" });
        }
    }
    Ok(())
}

/// Reads back what `ops` wrote. A word that a later operation wrote again is compared with that one's value.
///
/// # Errors
/// [`Error::Mismatch`] naming the first operation whose words are not there.
pub fn verify(memory: &impl Memory, ops: &[Op]) -> Result<(), Error> {
    let mut seen: HashSet<(Map, u32, usize)> = HashSet::new();
    for op in ops.iter().rev() {
        // Lines and new entries are written once; only single words can be written again later.
        let single = matches!(op, Op::BackendWord { .. } | Op::LookupWord { .. } | Op::NodeWord { .. });
        let same = words(op, |map, index, word, value| {
            (single && !seen.insert((map, index, word))) || memory.load(map, index, word) == Some(value)
        });
        if !same {
            return Err(Error::Mismatch { op: format!("{op:?}") });
        }
    }
    Ok(())
}
