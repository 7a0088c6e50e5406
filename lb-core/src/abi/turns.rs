//! `TURNS`: where each CPU stands among the members of a service, index = service id.
//!
//! Written and read by the program alone; a CPU's entry is touched by no other. What stands in it are places to look at, and
//! every use looks: an entry that is old, or of a service that had the id before, costs a worse choice and nothing else.

use bytemuck::{Pod, Zeroable};

use super::MapShape;

/// Shape of `TURNS`.
pub const SHAPE: MapShape =
    MapShape { name: "TURNS", key_size: 4, value_size: size_of::<Turns>() as u32, mmapable: false };

/// A CPU's entry of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Turns {
    /// Number of the next turn ([`super::service::Algo::Turns`]), or place of the member to be looked at next
    /// ([`super::service::Algo::LeastConnections`]).
    pub next: u32,
    /// Backend ids with few connections, the fewest first when they were last seen; 0 is none.
    pub fewest: [u32; 3],
}

const _: () = assert!(size_of::<Turns>() == 16);
