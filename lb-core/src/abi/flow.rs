//! The place of flow entries: the layout that flow consistency will put into `FLOWS`, fixed here so that rings and
//! backend ids need not change for it.
//!
//! A bucket is one cache line of four entries; an entry is a 64-bit tag and a 64-bit word. The word names the backend
//! (24 bits, which names the service), the slot (20 bits, enough for M = 655373), the state (4 bits) and the second it
//! was last seen (16 bits, compared modulo 2^16 s, about 18 h).

use bytemuck::{Pod, Zeroable};

/// Entries of a bucket.
pub const WAYS: usize = 4;

/// One cache line of the flow table: tags first, so that a lookup compares adjacent words.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Bucket {
    /// Keyed 64-bit hash of the tuple; 0 is free.
    pub tags: [u64; WAYS],
    /// Packed [`Flow`] words.
    pub flows: [u64; WAYS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// An unpacked flow word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Backend id, 24 bits.
    pub backend: u32,
    /// Ring slot, 20 bits.
    pub slot: u32,
    /// Half-open, established, closing, learned: 4 bits.
    pub state: u8,
    /// Seconds modulo 2^16.
    pub seen_s: u16,
}

impl Flow {
    /// The word that is stored: backend in bits 40..64, slot in 20..40, state in 16..20, seen in 0..16.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        ((self.backend & 0xff_ffff) as u64) << 40
            | ((self.slot & 0xf_ffff) as u64) << 20
            | ((self.state & 0xf) as u64) << 16
            | self.seen_s as u64
    }

    /// The flow in a stored word.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            backend: (word >> 40) as u32,
            slot: (word >> 20) as u32 & 0xf_ffff,
            state: (word >> 16) as u8 & 0xf,
            seen_s: word as u16,
        }
    }
}
