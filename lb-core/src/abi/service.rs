//! `SERVICES`: one cache line per service, index = service id, id 0 never valid.
//!
//! Written by the agent: a new entry in full before `LOOKUP` names it; afterwards single words. Read by the program, which
//! reads `ring` once per packet through a volatile load.

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

/// Every flow is recorded (`track = all`).
pub const FLAG_TRACK_ALL: u32 = 1 << 0;
/// [`Service::tracked_since_s`] holds. Stored together with [`FLAG_TRACK_ALL`], so that an agent that does not know the field takes this
/// away with every change of flags. Only adopting agents read this.
pub const FLAG_TRACKED_SINCE: u32 = 1 << 16;

/// How the backend of a new flow is chosen.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algo {
    /// By the ring.
    Hashed = 0,
    /// In turn, each CPU with a turn of its own; weights stand in the order of the members.
    Turns = 1,
    /// The fewest connections for its weight.
    LeastConnections = 2,
    /// The better of two members that the flow's hash draws.
    RandomTwo = 3,
}

/// What becomes of the flows of a backend that health judged down.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OnMarkedDown {
    /// They go to another backend at once.
    Rehash = 0,
    /// They stay with it.
    Keep = 1,
    /// TCP clients are sent a reset; other flows are rehashed.
    Reset = 2,
}

/// The `flags` of a service.
#[inline(always)]
pub const fn flags(track_all: bool, algo: Algo, on_marked_down: OnMarkedDown) -> u32 {
    (if track_all { FLAG_TRACK_ALL | FLAG_TRACKED_SINCE } else { 0 })
        | (algo as u32) << 8
        | (on_marked_down as u32) << 12
}

/// A service.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Service {
    /// Packed [`super::ring::Extent`]; 0 is "no backend takes new flows".
    pub ring: u64,
    /// The ring that says who owned the flows before inputs, size or seed changed, kept whole with its owners; 0 outside such a window.
    /// Packed as `ring`; stored before the new ring and cleared after its window.
    pub previous_ring: u64,
    /// VIP, 16-byte form.
    pub addr: [u8; 16],
    /// Host order; 0 for all ports.
    pub port: u16,
    /// IP protocol number, 6 or 17.
    pub proto: u8,
    /// [`Forward`] as a number.
    pub forward: u8,
    /// `FLAG_*`, [`Algo`] in bits 8..12 and [`OnMarkedDown`] in bits 12..16.
    pub flags: u32,
    /// Zero.
    pub pad: u64,
    /// Packed extent of what a chosen algorithm picks from: backend ids in the order of turns ([`Algo::Turns`]), or each backend id
    /// once. 0 without one.
    pub members: u64,
    /// Seconds that an established flow (for UDP: any flow) may be silent before its record expires, 1 to
    /// [`super::flow::TIMEOUT_MAX_S`].
    pub established_s: u32,
    /// Since when every flow is recorded, where `flags` say that this holds: seconds of CLOCK_MONOTONIC, which jiffies64 follow. Lies in
    /// one word with `established_s`, which is stored before `flags`. The program does not read it; an adopting agent does.
    pub tracked_since_s: u32,
}

const _: () = assert!(size_of::<Service>() == 64);
const _: () =
    assert!(core::mem::offset_of!(Service, tracked_since_s) / 8 == core::mem::offset_of!(Service, established_s) / 8);

impl Service {
    /// How the backend of a new flow is chosen.
    #[inline(always)]
    pub const fn algo(&self) -> Algo {
        match self.flags >> 8 & 0xf {
            1 => Algo::Turns,
            2 => Algo::LeastConnections,
            3 => Algo::RandomTwo,
            _ => Algo::Hashed,
        }
    }

    /// What becomes of the flows of a dead backend.
    #[inline(always)]
    pub const fn on_marked_down(&self) -> OnMarkedDown {
        match self.flags >> 12 & 0xf {
            1 => OnMarkedDown::Keep,
            2 => OnMarkedDown::Reset,
            _ => OnMarkedDown::Rehash,
        }
    }

    /// Since when every flow is recorded; `None` where not every flow is, and where the agent that began it did not say.
    #[inline(always)]
    pub const fn tracked_since_s(&self) -> Option<u32> {
        const BOTH: u32 = FLAG_TRACK_ALL | FLAG_TRACKED_SINCE;
        if self.flags & BOTH == BOTH { Some(self.tracked_since_s) } else { None }
    }

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
