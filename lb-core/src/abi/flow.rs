//! `FLOWS`: which backend has a flow, for the flows that a change could move (or all, with `track = all`), and `ACTIVE`: how
//! many of them each backend has.
//!
//! A bucket is one cache line of four entries; an entry is a tag and a word. A flow has two candidate buckets (two-choice
//! hashing, as in [`super::lookup`]); the second is read only where the first counts flows that live in their second.
//! The tag is 56 bits of the keyed hash of the 5-tuple: entries hold no address. The word names the backend (which names
//! the service), the slot, the state and when the record expires.
//!
//! Written by the program alone, also the removal of what expired (`weir_sweep`, which the agent runs); read by the agent.
//! A record's word is the record: 0 is free, [`BUSY`] is being written; whoever exchanges it owns the change, and the one
//! adjustment of `ACTIVE` that goes with it.

use core::cell::Cell;

use super::MapShape;

/// Shape of `FLOWS`.
pub const SHAPE: MapShape =
    MapShape { name: "FLOWS", key_size: 4, value_size: size_of::<Bucket>() as u32, mmapable: true };
/// Shape of `ACTIVE`, index = backend id: recorded flows, established ones in bits 0..32, half-open ones in bits 32..64.
pub const ACTIVE_SHAPE: MapShape = MapShape { name: "ACTIVE", key_size: 4, value_size: 8, mmapable: true };

/// Entries of a bucket.
pub const WAYS: usize = 4;
/// Word of an entry that is being written: a miss that does not insert. No record has it, as backend id 0 is invalid.
pub const BUSY: u64 = 1;
/// One flow more that is established, in `ACTIVE`.
pub const ACTIVE_ONE: u64 = 1;
/// One flow more that is half-open, in `ACTIVE`.
pub const PENDING_ONE: u64 = 1 << 32;

/// Seconds after which a half-open flow expires.
pub const HALF_OPEN_S: u32 = 10;
/// Seconds of silence after which a closing flow expires.
pub const CLOSING_S: u32 = 10;
/// Seconds within which a SYN is taken for a duplicate of a live flow's.
pub const DUPLICATE_S: u32 = 60;
/// Seconds for which a half-open flow makes room for nobody.
pub const HALF_OPEN_KEPT_S: u32 = 3;
/// Longest time-out of a record: half of what its 17 bits of time can tell apart.
pub const TIMEOUT_MAX_S: u32 = (1 << 16) - 1;

/// Bits of an expiry.
const EXPIRY: u32 = (1 << 17) - 1;

/// A 64-bit word that several CPUs change by atomic operations of [`crate::tables::Tables`].
#[repr(transparent)]
#[derive(Clone, Debug, Default)]
pub struct Word(Cell<u64>);

impl Word {
    /// A word.
    pub const fn new(value: u64) -> Self {
        Self(Cell::new(value))
    }

    /// The cell, for implementations of [`crate::tables::Tables`].
    #[inline(always)]
    pub const fn cell(&self) -> &Cell<u64> {
        &self.0
    }
}

/// One cache line of the flow table.
#[repr(C, align(64))]
#[derive(Clone, Debug, Default)]
pub struct Bucket {
    /// Bits 8..64: tags. Bits 0..8 of the first: how many flows whose first choice is this bucket live in their second.
    pub tags: [Word; WAYS],
    /// Packed [`Record`]s.
    pub words: [Word; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// Where a flow stands.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowState {
    /// A SYN was seen and nothing that answers its SYN-ACK.
    HalfOpen = 0,
    /// Anything but a SYN was seen twice, or once after a SYN.
    Established = 1,
    /// FIN or RST was seen.
    Closing = 2,
    /// One packet was seen, and it was no SYN.
    Once = 3,
}

impl FlowState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::HalfOpen, Self::Established, Self::Closing, Self::Once];

    /// Name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HalfOpen => "half_open",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Once => "once",
        }
    }

    /// What a record in this state adds to `ACTIVE`.
    #[inline(always)]
    pub const fn weight(self) -> u64 {
        match self {
            Self::HalfOpen => PENDING_ONE,
            Self::Established => ACTIVE_ONE,
            Self::Closing | Self::Once => 0,
        }
    }

    /// Seconds of silence after which it expires; `established_s` is the service's.
    #[inline(always)]
    pub const fn timeout_s(self, established_s: u32) -> u32 {
        match self {
            Self::HalfOpen => HALF_OPEN_S,
            Self::Closing => CLOSING_S,
            Self::Established | Self::Once => established_s,
        }
    }
}

/// An unpacked record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Backend id, 24 bits, never 0.
    pub backend: u32,
    /// Slot of its service's ring when it was recorded, 20 bits (M is at most 655,373).
    pub slot: u32,
    /// Where the flow stands.
    pub state: FlowState,
    /// Second at which it expires, modulo 2^17.
    pub expires_s: u32,
}

impl Record {
    /// The word that is stored: backend in bits 40..64, slot in 20..40, state in 17..20, expiry in 0..17.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        ((self.backend & 0xff_ffff) as u64) << 40
            | ((self.slot & 0xf_ffff) as u64) << 20
            | (self.state as u64) << 17
            | (self.expires_s & EXPIRY) as u64
    }

    /// The record in a stored word that is neither free nor [`BUSY`].
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            backend: (word >> 40) as u32,
            slot: (word >> 20) as u32 & 0xf_ffff,
            state: match word >> 17 & 3 {
                0 => FlowState::HalfOpen,
                1 => FlowState::Established,
                2 => FlowState::Closing,
                _ => FlowState::Once,
            },
            expires_s: word as u32 & EXPIRY,
        }
    }

    /// Seconds until it expires; 0 once it has. A record that nobody swept for 18 h after it expired reads as live again.
    #[inline(always)]
    pub const fn left_s(self, now_s: u32) -> u32 {
        let left = self.expires_s.wrapping_sub(now_s) & EXPIRY;
        if left > TIMEOUT_MAX_S { 0 } else { left }
    }
}

/// Whether a stored word is a record, expired or not.
#[inline(always)]
pub const fn is_record(word: u64) -> bool {
    word >> 40 != 0
}

/// Whether two records are of the same backend, slot and state.
#[inline(always)]
pub const fn differ_in_expiry_at_most(a: u64, b: u64) -> bool {
    (a ^ b) & !(EXPIRY as u64) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packing_round_trips(backend in 1u32..1 << 24, slot in 0u32..1 << 20, state in 0usize..4, at in 0u32..1 << 17) {
            let record = Record { backend, slot, state: FlowState::ALL[state], expires_s: at };
            prop_assert_eq!(Record::unpack(record.pack()), record);
            prop_assert!(is_record(record.pack()) && !is_record(BUSY) && !is_record(0));
        }

        #[test]
        fn expiry_holds_over_the_wrap(now in any::<u32>(), timeout in 0..=TIMEOUT_MAX_S, later in 0u32..TIMEOUT_MAX_S) {
            let record = Record { backend: 1, slot: 0, state: FlowState::Established, expires_s: now.wrapping_add(timeout) };
            let stored = Record::unpack(record.pack());
            prop_assert_eq!(stored.left_s(now.wrapping_add(later)), timeout.saturating_sub(later));
        }
    }
}
