//! `NODE`: one entry, what is true for the whole node.
//!
//! Written by the agent when it loads the program (`flags` and the outer sources also while it runs, by single-word
//! stores); read by the program on every packet.

use bytemuck::{Pod, Zeroable};

use super::{MapShape, array};

/// Shape of `NODE`.
pub const SHAPE: MapShape = array::<Node>("NODE");

/// At least one service answers on all ports: a lookup that misses is repeated with port 0.
pub const FLAG_ALL_PORTS: u32 = 1 << 0;
/// At least one service forwards by `nat`: packets that are for no VIP are looked up as replies.
pub const FLAG_NAT: u32 = 1 << 1;
/// At least one `nat` service answers on all ports: the reply lookup is repeated with port 0.
pub const FLAG_NAT_ALL_PORTS: u32 = 1 << 2;
/// Words of the secret hash key: ten for an IPv6 tuple and two for the finalizer.
pub const HASH_KEY_WORDS: usize = 12;

/// Configuration of the node.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Node {
    /// [`super::ABI_VERSION`] of the agent that wrote the maps.
    pub abi_version: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Secret key of the flow hash and of the lookup hash. Never constant, never logged.
    pub hash_key: [u32; HASH_KEY_WORDS],
    /// Secret seed of ring construction. The program does not read it; an adopting agent does.
    pub ring_seed: u64,
    /// Buckets of `LOOKUP` minus one; the number of buckets is a power of two.
    pub lookup_mask: u32,
    /// IPv4 /16 from which outer sources are taken: the low 16 bits are replaced by the flow hash.
    pub outer_source_v4: [u8; 4],
    /// IPv6 /64 from which outer sources are taken: the low 32 bits are replaced by the flow hash.
    pub outer_source_v6: [u8; 16],
    /// Revision of the configuration that the maps hold; the agent's last store of every change.
    pub revision: u64,
    /// Buckets of `FLOWS` minus one; the number of buckets is a power of two.
    pub flow_mask: u32,
    /// Ticks of the kernel's jiffies in a second (`CONFIG_HZ`), by which the program reads its clock.
    pub hz: u32,
    /// Zero; room for later fields.
    pub reserved: [u64; 3],
}

const _: () = assert!(size_of::<Node>() == 128);
