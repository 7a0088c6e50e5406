//! `RINGS`: one flat arena that holds every service's ring.
//!
//! A slot is 32 bits: 24 bits of backend id (`current`) and 8 bits of state. The arena's value is a cache line of 16
//! slots, because the kernel rounds array values up to 8 bytes. A ring is an extent (first line, number of slots) that its
//! service names in one word: the agent writes a whole new extent, then stores that word, and reuses the old extent
//! after an RCU grace. Nothing edits an extent while a service names it, so no packet meets a half-written ring.
//!
//! The owner of a slot that is announced or moving stands at the same index of a second arena, `OWNERS`, which settled
//! packets never touch. It is written with the ring, before a service names the extent.
//!
//! An extent of `RINGS` can also hold the members that a chosen algorithm picks from ([`super::service::Service::members`]).
//!
//! Both are written by the agent through memory and read by the program.

use bytemuck::{Pod, Zeroable};

use super::{MapShape, array};

/// Shape of `RINGS`.
pub const SHAPE: MapShape = array::<Line>("RINGS");
/// Shape of `OWNERS`.
pub const OWNERS_SHAPE: MapShape = array::<Line>("OWNERS");
/// Slots of one arena value.
pub const LINE_SLOTS: usize = 16;

/// One cache line of slots.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Line {
    /// Packed [`Slot`]s.
    pub slots: [u32; LINE_SLOTS],
}

const _: () = assert!(size_of::<Line>() == 64);

/// What the program does with a packet that meets the slot.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// `current` takes every packet, no table is read.
    Settled = 0,
    /// A change is announced: the owner still takes new flows, and they are recorded.
    Announced = 1,
    /// New flows go to `current` and are recorded; packets of flows that nobody recorded are the owner's, and learned.
    Moving = 2,
    /// The window is over: nothing is recorded any more, but records still speak for others.
    Residual = 3,
}

/// Bit of a slot's state byte: the service records every flow (`track = all`).
const TRACKED: u32 = 1 << 31;

/// A ring slot: id in bits 0..24, state in bits 24..26, tracked in bit 31, the others zero. Word 0 is invalid because id 0 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub u32);

impl Slot {
    /// A slot whose packets all go to backend `id` (24 bits).
    #[inline(always)]
    pub const fn settled(id: u32) -> Self {
        Self(id & 0xff_ffff)
    }

    /// Where new flows go; 0 is nowhere.
    #[inline(always)]
    pub const fn current(self) -> u32 {
        self.0 & 0xff_ffff
    }

    /// A slot in any state; with `tracked`, no packet passes it without the flow table.
    #[inline(always)]
    pub const fn new(id: u32, state: State, tracked: bool) -> Self {
        Self(id & 0xff_ffff | (state as u32) << 24 | if tracked { TRACKED } else { 0 })
    }

    /// How packets without a record are treated.
    #[inline(always)]
    pub const fn state(self) -> State {
        match self.0 >> 24 & 3 {
            0 => State::Settled,
            1 => State::Announced,
            2 => State::Moving,
            _ => State::Residual,
        }
    }

    /// Whether every flow is recorded.
    #[inline(always)]
    pub const fn tracked(self) -> bool {
        self.0 & TRACKED != 0
    }

    /// Whether packets pass without the flow table.
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        self.0 >> 24 == 0
    }
}

/// Bits of a ring word that count slots.
pub const SLOTS_MASK: u32 = (1 << 24) - 1;

/// Which part of a flow chooses its slot. It stands beside the extent, so that both change in one store.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Inputs {
    /// The 5-tuple.
    #[default]
    Tuple = 0,
    /// The client's address alone.
    Source = 1,
}

impl Inputs {
    /// The inputs in a stored word.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        match word >> 24 & 0xff {
            1 => Self::Source,
            _ => Self::Tuple,
        }
    }
}

/// Where a ring lies: first line of the arena and number of slots (not lines).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Index of the first [`Line`].
    pub line: u32,
    /// Slots, the ring's prime size M. 0 is "no ring".
    pub slots: u32,
}

impl Extent {
    /// The word that a service stores: first line in bits 32..64, [`Inputs`] in bits 24..32, slots in 0..24.
    #[inline(always)]
    pub const fn pack(self, inputs: Inputs) -> u64 {
        (self.line as u64) << 32 | (inputs as u64) << 24 | (self.slots & SLOTS_MASK) as u64
    }

    /// The extent in a stored word.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self { line: (word >> 32) as u32, slots: word as u32 & SLOTS_MASK }
    }

    /// Lines that `slots` slots occupy.
    #[inline(always)]
    pub const fn lines(self) -> u32 {
        self.slots.div_ceil(LINE_SLOTS as u32)
    }

    /// Slot number for a 32-bit flow hash: multiply-shift, so that no packet pays a division.
    #[inline(always)]
    pub const fn slot_of(self, hash: u32) -> u32 {
        ((hash as u64 * self.slots as u64) >> 32) as u32
    }
}
