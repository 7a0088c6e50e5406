//! `RINGS`: one flat arena that holds every service's ring.
//!
//! A slot is 32 bits: 24 bits of backend id (`current`) and 8 bits of state. The arena's value is a cache line of 16
//! slots, because the kernel rounds array values up to 8 bytes. A ring is an extent (first line, number of slots) that its
//! service names in one word: the agent writes a whole new extent, then stores that word, and reuses the old extent
//! after an RCU grace. Nothing edits an extent while a service names it, so no packet meets a half-written ring.
//!
//! The owner of a slot that is not settled will stand at the same index of a second arena (`OWNERS`) that settled
//! packets never touch.
//!
//! Written by the agent through memory; read by the program.

use bytemuck::{Pod, Zeroable};

use super::{MapShape, array};

/// Shape of `RINGS`.
pub const SHAPE: MapShape = array::<Line>("RINGS");
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

/// What the program does with a packet that meets the slot. Numbers other than `Settled` belong to flow consistency.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `current` takes every packet, no table is read.
    Settled = 0,
    /// A change is announced: the owner still takes new flows.
    Announced = 1,
    /// New flows go to `current`, others are learned for the owner.
    Moving = 2,
    /// The window is over, records still speak for others.
    Residual = 3,
    /// Every flow has a record.
    Tracked = 4,
}

/// A ring slot: id in bits 0..24, state in bits 24..32. Word 0 is invalid because id 0 is.
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

    /// [`State`] as a number.
    #[inline(always)]
    pub const fn state(self) -> u8 {
        (self.0 >> 24) as u8
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
    /// The word that a service stores.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.line as u64) << 32 | self.slots as u64
    }

    /// The extent in a stored word.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self { line: (word >> 32) as u32, slots: word as u32 }
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
