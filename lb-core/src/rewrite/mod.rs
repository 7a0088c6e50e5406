//! Verdict to the bytes that change, and the way out.
//!
//! Refuses to know how a verdict came about. Every check that can fail stands before the first byte that changes, so a
//! packet that is passed or refused is passed or refused as it came.

pub mod answer;
pub mod encap;
pub mod nat;
pub mod reset;

use crate::{
    abi::{backend::Backend, service::Forward},
    packet::PacketEdit,
    parse::Packet,
    reason::{Class, Reason},
    select::{Choice, Target, Verdict},
    tables::{NextHop, Route, Tables},
    wire::{eth, ipv4, ipv6, take},
};

/// The way out of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// To the kernel's network stack.
    Pass(Reason),
    /// Nowhere.
    Drop(Reason),
    /// Out of the port it came in by.
    Transmit(Reason),
    /// Out of an interface, which may be the one it came in by.
    Forward {
        /// Why.
        reason: Reason,
        /// Interface index.
        ifindex: u32,
        /// Backend whose counters count it; 0 for replies, which count for no backend.
        backend: u32,
    },
}

/// Where a forwarded packet leaves and whom it counts for; zeroes for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// Interface index.
    pub ifindex: u32,
    /// Backend id, 0 for none.
    pub backend: u32,
}

impl Exit {
    /// The way out that a reason's class names.
    #[inline(always)]
    pub const fn new(reason: Reason, egress: Egress) -> Self {
        match reason.class() {
            Class::Pass => Self::Pass(reason),
            Class::Drop => Self::Drop(reason),
            Class::Transmit => Self::Transmit(reason),
            Class::Forward => Self::Forward { reason, ifindex: egress.ifindex, backend: egress.backend },
        }
    }

    /// Why.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match *self {
            Self::Pass(reason) | Self::Drop(reason) | Self::Transmit(reason) | Self::Forward { reason, .. } => reason,
        }
    }
}

/// Whether an address in 16-byte form is an IPv4 one.
#[inline(always)]
pub fn is_v4(addr: &[u8; 16]) -> bool {
    u64::from_ne_bytes(take(addr, 0)) == 0 && take::<4, 16>(addr, 8) == [0, 0, 0xff, 0xff]
}

/// Destination and source MAC towards a backend, as the Ethernet header has them.
#[inline(always)]
fn macs(backend: &Backend) -> [u8; 12] {
    take(bytemuck::cast_ref::<Backend, [u8; 64]>(backend), core::mem::offset_of!(Backend, dst_mac))
}

/// The largest packet that reaches the backend in its mode, or `None` if this one does.
#[inline(always)]
pub fn exceeded_mtu(packet: &Packet, backend: &Backend) -> Option<u16> {
    let overhead = match Forward::from_u8(backend.forward) {
        Some(Forward::Ipip) if is_v4(&backend.addr) => ipv4::LEN as u16,
        Some(Forward::Ipip) => ipv6::LEN as u16,
        Some(Forward::Dsr | Forward::Nat) | None => 0,
    };
    // A sum on the way that packets take, the difference only on the other one.
    let fits = packet.len + overhead as usize <= backend.mtu as usize;
    (!fits).then(|| backend.mtu.saturating_sub(overhead))
}

/// Sends a packet that fits ([`exceeded_mtu`]) to its backend.
///
/// # Errors
/// The reason for which it was not forwarded but dropped.
#[inline(always)]
pub fn forward<P: PacketEdit>(
    p: &mut P,
    packet: &Packet,
    choice: &Choice,
    target: &Target<'_>,
) -> Result<Reason, Reason> {
    let backend = target.backend;
    match Forward::from_u8(backend.forward) {
        Some(Forward::Dsr) => {
            p.put(eth::MACS, macs(backend)).map(|()| Reason::ForwardedDsr).ok_or(Reason::RewriteFailed)
        }
        Some(Forward::Ipip) => encap::ipip(p, packet, choice.hash, target).map(|()| Reason::ForwardedIpip),
        Some(Forward::Nat) => nat::to_backend(p, packet, backend).map(|()| Reason::ForwardedNat),
        None => Err(Reason::BackendInvalid),
    }
}

/// Carries out any verdict; says why, and where a forwarded packet leaves.
#[inline(always)]
pub fn apply<P: PacketEdit, T: Tables>(p: &mut P, packet: &Packet, verdict: &Verdict, tables: &T) -> Exit {
    let mut egress = Egress::default();
    let reason = match verdict {
        Verdict::Echo => answer::echo(p, packet),
        Verdict::Reset => reset::reset(p, packet),
        Verdict::Forward(choice) => send_to_backend(p, packet, choice, tables, &mut egress),
        Verdict::Reply { backend } => send_reply(p, packet, *backend, tables, &mut egress),
    };
    Exit::new(reason, egress)
}

#[inline(never)]
fn send_to_backend<P: PacketEdit, T: Tables>(
    p: &mut P,
    packet: &Packet,
    choice: &Choice,
    tables: &T,
    egress: &mut Egress,
) -> Reason {
    let (Some(node), Some(backend)) = (tables.node(), tables.backend(choice.backend)) else {
        return Reason::BackendInvalid;
    };
    *egress = Egress { ifindex: backend.ifindex, backend: choice.backend };
    match exceeded_mtu(packet, backend) {
        Some(mtu) => answer::too_big(p, packet, mtu),
        None => match forward(p, packet, choice, &Target { node, backend }) {
            Ok(reason) | Err(reason) => reason,
        },
    }
}

/// Sends a backend's reply to the client, by the kernel's routes.
#[inline(never)]
fn send_reply<P: PacketEdit, T: Tables>(
    p: &mut P,
    packet: &Packet,
    backend: u32,
    tables: &T,
    egress: &mut Egress,
) -> Reason {
    let Some(service) = tables.backend(backend).and_then(|backend| tables.service(backend.service)) else {
        return Reason::BackendInvalid;
    };
    let dst = packet.addresses.dst();
    if is_v4(&service.addr) != is_v4(&dst) {
        return Reason::BackendFamily;
    }
    let route = Route { src: service.addr, dst, tos: packet.tos, proto: packet.proto, len: packet.len as u16 };
    match tables.next_hop(&route) {
        NextHop::Resolved { ifindex, macs } => {
            egress.ifindex = ifindex;
            if p.put(eth::MACS, macs).is_none() {
                return Reason::RewriteFailed;
            }
            nat::from_backend(p, packet, service, Reason::NatReply)
        }
        NextHop::NoNeighbour => nat::from_backend(p, packet, service, Reason::NatReplyToKernel),
        NextHop::TooBig { mtu } => answer::too_big(p, packet, mtu),
        NextHop::NoRoute => Reason::NatReplyNoRoute,
        NextHop::ForwardingDisabled => Reason::NatReplyForwardingDisabled,
        NextHop::Unsupported => Reason::NatReplyRouteUnsupported,
    }
}
