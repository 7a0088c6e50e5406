//! `LOOKUP`: from (address, port, protocol) to a service, a VIP or a reply's backend.
//!
//! An array of 64-byte buckets, each one cache line: seven words and an overflow mark. A key has two candidate
//! buckets (two-choice hashing, Azar et al., "Balanced Allocations", 1994); the second is read only where the first
//! says that something overflowed. A word names an id and 32 bits of the key's hash; the full key stands in the entry that
//! the id names and is compared there, so a wrong match is impossible and a word is published by one 64-bit store.
//!
//! Written by the agent; read by the program.

use bytemuck::{Pod, Zeroable};

use super::{MapShape, array};

/// Shape of `LOOKUP`.
pub const SHAPE: MapShape = array::<Bucket>("LOOKUP");
/// Entries of a bucket.
pub const WAYS: usize = 7;

/// One cache line of the lookup table.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Bucket {
    /// Packed [`Entry`] words; 0 is free.
    pub entries: [u64; WAYS],
    /// How many keys whose first choice is this bucket live in their second.
    pub overflowed: u64,
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// What a key means. Part of the hashed key as well.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// (VIP, port or 0 for all, protocol) to a service id.
    Service = 1,
    /// (VIP, 0, 0) to the id of one service of that VIP: the address is ours.
    Vip = 2,
    /// (backend address, backend port or 0 for all, protocol) to the backend id whose replies these are (`nat`).
    Reply = 3,
}

/// A key of the table, in the form that is hashed and compared.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Key {
    /// 16-byte form, see [`super::mapped`].
    pub addr: [u8; 16],
    /// Host order; 0 for all ports.
    pub port: u16,
    /// IP protocol number; 0 for [`Kind::Vip`].
    pub proto: u8,
    /// [`Kind`] as a number.
    pub kind: u8,
}

const _: () = assert!(size_of::<Key>() == 20);

/// Unpacked word of a bucket: tag in bits 32..64, kind in 24..32, id in 0..24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// High half of the key's hash.
    pub tag: u32,
    /// [`Kind`] as a number.
    pub kind: u8,
    /// Service or backend id, 24 bits, never 0.
    pub id: u32,
}

impl Entry {
    /// The word that is stored.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.tag as u64) << 32 | (self.kind as u64) << 24 | (self.id & 0xff_ffff) as u64
    }

    /// The entry in a stored word; a free word gives kind 0.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self { tag: (word >> 32) as u32, kind: (word >> 24) as u8, id: (word & 0xff_ffff) as u32 }
    }
}
