//! `BACKENDS` and `BACKEND_KEYS`: where a backend is, and who it is.
//!
//! One entry per (service, backend address, backend port), index = backend id. Ids are 24 bits wide, 0 is never valid,
//! and an id is reused only when no ring slot and no unexpired record names it.
//!
//! `BACKENDS` is the hot half, one cache line: written by the agent, read by the program once per forwarded packet. What
//! changes while it is in use lies in single words: the destination MAC within one aligned 64-bit word, interface with
//! MTU in another. `BACKEND_KEYS` is the cold half: written by the agent before the id is used, read by an adopting
//! agent, so that it needs no memory of its own.

use bytemuck::{Pod, Zeroable};

use super::{MapShape, array};

/// Shape of `BACKENDS`.
pub const SHAPE: MapShape = array::<Backend>("BACKENDS");
/// Shape of `BACKEND_KEYS`.
pub const KEYS_SHAPE: MapShape = array::<BackendKey>("BACKEND_KEYS");

/// The entry is in use.
pub const FLAG_VALID: u32 = 1 << 0;
/// Health judged it up; inherited by an adopting agent. Rings are built from it; the program reads `FLAG_DOWN`.
pub const FLAG_UP: u32 = 1 << 1;
/// The next hop is known: MAC addresses, interface and MTU hold.
pub const FLAG_NEXT_HOP: u32 = 1 << 2;
/// Health judged it down and its service does not fail open: flows leave it as the service's `on_marked_down` says, before any
/// ring is rebuilt.
pub const FLAG_DOWN: u32 = 1 << 3;
/// It takes no new flows (drain, weight 0, removed from the configuration) and keeps those that it has.
pub const FLAG_DRAINING: u32 = 1 << 4;
/// It is no longer configured: kept until its drain is over. Only adopting agents read this.
pub const FLAG_REMOVED: u32 = 1 << 5;

/// A backend of a service, as packets meet it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// `FLAG_*`.
    pub flags: u32,
    /// Id of its service.
    pub service: u32,
    /// Address, 16-byte form.
    pub addr: [u8; 16],
    /// Interface that leads to it.
    pub ifindex: u32,
    /// MTU of that interface, or of the route, in bytes of IP packet.
    pub mtu: u16,
    /// Port that `nat` writes, host order; 0 keeps the packet's.
    pub port: u16,
    /// MAC of the next hop.
    pub dst_mac: [u8; 6],
    /// MAC of the interface that leads there.
    pub src_mac: [u8; 6],
    /// [`super::service::Forward`] as a number.
    pub forward: u8,
    /// IP protocol number of its service, 6 or 17.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 2],
    /// Active connections that it takes at most (`track = all`); 0 is no limit.
    pub max_connections: u32,
    /// Weight among the members of a chosen algorithm.
    pub weight: u32,
    /// Zero.
    pub reserved: u64,
}

const _: () = assert!(size_of::<Backend>() == 64);
const _: () = assert!(core::mem::offset_of!(Backend, ifindex) == 24);
const _: () = assert!(core::mem::offset_of!(Backend, dst_mac) == 32);

impl Backend {
    /// The key under which `LOOKUP` finds the backend of a reply (`nat`).
    #[inline(always)]
    pub const fn reply_key(&self) -> super::lookup::Key {
        super::lookup::Key {
            addr: self.addr,
            port: self.port,
            proto: self.proto,
            kind: super::lookup::Kind::Reply as u8,
        }
    }
}

/// The stable identity of a backend id.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct BackendKey {
    /// VIP of the service, 16-byte form.
    pub vip: [u8; 16],
    /// Address of the backend, 16-byte form.
    pub addr: [u8; 16],
    /// Port of the service, host order; 0 for all.
    pub vip_port: u16,
    /// Port of the backend, host order; 0 for all.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

const _: () = assert!(size_of::<BackendKey>() == 40);
