//! `FRAGMENTS`: which backend took the first fragment of a datagram, so that later ones follow it.
//!
//! An LRU hash that only fragments touch. Written and read by the program; the agent only counts it.

use bytemuck::{Pod, Zeroable};

use super::MapShape;

/// Shape of `FRAGMENTS`.
pub const SHAPE: MapShape = MapShape {
    name: "FRAGMENTS",
    key_size: size_of::<FragmentKey>() as u32,
    value_size: size_of::<Fragment>() as u32,
    mmapable: false,
};

/// What all fragments of a datagram share (RFC 791 section 3.2, RFC 8200 section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source, 16-byte form.
    pub src: [u8; 16],
    /// Destination, 16-byte form.
    pub dst: [u8; 16],
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// IP protocol number.
    pub proto: u32,
}

const _: () = assert!(size_of::<FragmentKey>() == 40);

/// Where the first fragment went.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Fragment {
    /// Backend id that took it, or whose reply it is.
    pub backend: u32,
    /// [`super::lookup::Kind`] of the lookup that matched: `Service` towards the backend, `Reply` from it.
    pub kind: u32,
}
