//! `SERVICES`: one cache line per service, index = service id, id 0 never valid.
//!
//! Written by the agent: a new entry in full before `LOOKUP` names it; afterwards only `ring` (one 64-bit store each)
//! and `flags`. Read by the program, which reads `ring` once per packet through a volatile load.

use bytemuck::{Pod, Zeroable};

use super::{MapShape, array};

/// Shape of `SERVICES`.
pub const SHAPE: MapShape = array::<Service>("SERVICES");

/// How packets reach the backend.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Forward {
    /// Direct server return: only MAC addresses change.
    Dsr = 1,
    /// An outer IP header is put in front (RFC 2003, RFC 2473).
    Ipip = 2,
    /// Destination address and port are rewritten, replies are rewritten back.
    Nat = 3,
}

impl Forward {
    /// The mode with number `n`.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Dsr),
            2 => Some(Self::Ipip),
            3 => Some(Self::Nat),
            _ => None,
        }
    }
}

/// A service.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Service {
    /// Packed [`super::ring::Extent`]; 0 is "no backend takes new flows".
    pub ring: u64,
    /// Extent that owned the flows before hash inputs, size or seed changed; 0 outside such a window (datapath rule f).
    pub previous_ring: u64,
    /// VIP, 16-byte form.
    pub addr: [u8; 16],
    /// Host order; 0 for all ports.
    pub port: u16,
    /// IP protocol number, 6 or 17.
    pub proto: u8,
    /// [`Forward`] as a number.
    pub forward: u8,
    /// `FLAG_*`.
    pub flags: u32,
    /// Hash inputs and salt of `ring` and of `previous_ring`; 0 is the 5-tuple without salt.
    pub hash: [u32; 2],
    /// Zero; room for track mode, windows and counters of chosen algorithms.
    pub reserved: [u64; 2],
}

const _: () = assert!(size_of::<Service>() == 64);

impl Service {
    /// The key under which `LOOKUP` names this service.
    #[inline(always)]
    pub const fn key(&self) -> super::lookup::Key {
        super::lookup::Key {
            addr: self.addr,
            port: self.port,
            proto: self.proto,
            kind: super::lookup::Kind::Service as u8,
        }
    }
}
