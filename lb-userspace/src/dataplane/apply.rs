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
    ring::{Extent, LINE_SLOTS, Line, Slot},
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
    /// `OWNERS`.
    Owners,
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
            Self::Rings | Self::Owners => size_of::<Line>() / 8,
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

    /// Backend ids that flow records name.
    fn recorded(&self) -> HashSet<u32>;

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
        self.slots(Map::Rings, extent)
    }

    /// The owners of an extent; `None` if it reaches beyond the arena.
    fn owners(&self, extent: Extent) -> Option<Vec<u32>> {
        self.slots(Map::Owners, extent)
    }

    /// The slots of an extent of one of the arenas; `None` if it reaches beyond.
    fn slots(&self, map: Map, extent: Extent) -> Option<Vec<u32>> {
        let end = u64::from(extent.line) + u64::from(extent.lines());
        if end > u64::from(self.entries(map)) {
            return None;
        }
        let mut slots = Vec::with_capacity(extent.slots as usize);
        for at in (0..extent.slots as usize).step_by(WORD_SLOTS) {
            let (line, word) = place(extent, at);
            let pair: [u32; WORD_SLOTS] = bytemuck::cast(self.load(map, line, word)?);
            slots.extend_from_slice(&pair);
        }
        slots.truncate(extent.slots as usize);
        Some(slots)
    }
}

/// Whether each slot has the same backend in both.
fn same_backends(a: &[u32], b: &[u32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Slot(*a).current() == Slot(*b).current())
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
            Op::PutRing { extent, slots, .. } | Op::RingStates { extent, slots, .. }
                if slots.len() != extent.slots as usize =>
            {
                Some("a ring has all of its slots")
            }
            // Of a service whose backends all drain, slots settle on nobody one after another.
            Op::PutRing { slots, .. } | Op::RingStates { slots, .. }
                if slots.contains(&0) && slots.iter().any(|word| Slot(*word).current() != 0) =>
            {
                Some("a slot names a backend or is in a window")
            }
            Op::PutRing { extent, owners, .. } | Op::RingStates { extent, owners, .. }
                if !owners.is_empty() && owners.len() != extent.slots as usize =>
            {
                Some("every slot of a window has its owner")
            }
            Op::RingStates { extent, slots, .. } => match memory.ring(*extent) {
                _ if present.has_free(*extent) => Some("states are stored into a ring in use"),
                Some(held) if !same_backends(&held, slots) => Some("a slot in use keeps its backend"),
                Some(_) => None,
                None => Some("a ring lies in the arena"),
            },
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
            Op::ServiceRing { ring, .. }
                if Extent::unpack(*ring).slots != 0 && !written.contains(&Extent::unpack(*ring)) =>
            {
                Some("a ring is written before it is named")
            }
            Op::ServiceWord { id, word, .. }
                if *id == 0 || *word == SERVICE_WORD_RING || !inside(Map::Services, *id, *word) =>
            {
                Some("the word lies in the map, and is not the ring")
            }
            Op::LookupWord { bucket, word, .. } if !inside(Map::Lookup, *bucket, *word) => {
                Some("the word lies in the map")
            }
            Op::ClearBackend { id }
                if present.uses_backend_id(*id) && !present.former().iter().any(|f| f.id == *id) =>
            {
                Some("what is in use is not cleared")
            }
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
        Op::PutRing { extent, slots, owners } | Op::RingStates { extent, slots, owners } => {
            let mut put = |map: Map, slots: &[u32]| {
                slots.chunks(WORD_SLOTS).enumerate().all(|(at, pair)| {
                    let (line, word) = place(*extent, at * WORD_SLOTS);
                    let slot = |at: usize| pair.get(at).copied().unwrap_or(0);
                    store(map, line, word, bytemuck::cast([slot(0), slot(1)]))
                })
            };
            put(Map::Owners, owners) && put(Map::Rings, slots)
        }
        Op::PutService { id, entry } => put(Map::Services, *id, bytemuck::bytes_of(entry)),
        Op::ServiceRing { id, ring } => store(Map::Services, *id, SERVICE_WORD_RING, *ring),
        Op::ServiceWord { id, word, value } => store(Map::Services, *id, *word, *value),
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
        let single =
            matches!(op, Op::BackendWord { .. } | Op::ServiceWord { .. } | Op::LookupWord { .. } | Op::NodeWord { .. });
        let same = words(op, |map, index, word, value| {
            (single && !seen.insert((map, index, word))) || memory.load(map, index, word) == Some(value)
        });
        if !same {
            return Err(Error::Mismatch { op: format!("{op:?}") });
        }
    }
    Ok(())
}
