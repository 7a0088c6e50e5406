//! Verdict to the bytes that change, and the way out.
//!
//! Refuses to know how a verdict came about. Every check that can fail stands before the first byte that changes, so a
//! packet that is passed or refused is passed or refused as it came.

pub mod answer;
pub mod encap;
pub mod nat;

use crate::{
    abi::{backend::Backend, service::Forward},
    packet::PacketEdit,
    parse::Packet,
    reason::{Class, Reason},
    select::{Choice, Reply, Verdict},
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

impl Exit {
    /// Passes or drops a packet unchanged, as the reason's class says.
    #[inline(always)]
    pub const fn leave(reason: Reason) -> Self {
        match reason.class() {
            Class::Pass => Self::Pass(reason),
            Class::Drop | Class::Transmit | Class::Forward => Self::Drop(reason),
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
    let mtu = backend.mtu.saturating_sub(overhead);
    (packet.len > mtu).then_some(mtu)
}

/// Sends a packet that fits ([`exceeded_mtu`]) to its backend.
#[inline(always)]
pub fn forward<P: PacketEdit>(p: &mut P, packet: &Packet, choice: &Choice<'_>) -> Exit {
    let backend = choice.backend;
    let sent = match Forward::from_u8(backend.forward) {
        Some(Forward::Dsr) => {
            p.put(eth::MACS, macs(backend)).map(|()| Reason::ForwardedDsr).ok_or(Reason::RewriteFailed)
        }
        Some(Forward::Ipip) => encap::ipip(p, packet, choice).map(|()| Reason::ForwardedIpip),
        Some(Forward::Nat) => nat::to_backend(p, packet, backend).map(|()| Reason::ForwardedNat),
        None => Err(Reason::BackendInvalid),
    };
    match sent {
        Ok(reason) => Exit::Forward { reason, ifindex: backend.ifindex, backend: choice.id },
        Err(reason) => Exit::Drop(reason),
    }
}

/// Carries out any verdict.
#[inline(always)]
pub fn apply<P: PacketEdit, T: Tables>(p: &mut P, packet: &Packet, verdict: &Verdict<'_>, tables: &T) -> Exit {
    match verdict {
        Verdict::Leave(reason) => Exit::leave(*reason),
        Verdict::Echo => answer::echo(p, packet),
        Verdict::Forward(choice) => match exceeded_mtu(packet, choice.backend) {
            Some(mtu) => answer::too_big(p, packet, mtu),
            None => forward(p, packet, choice),
        },
        Verdict::Reply(reply) => send_reply(p, packet, reply, tables),
    }
}

/// Sends a backend's reply to the client, by the kernel's routes.
#[inline(always)]
fn send_reply<P: PacketEdit, T: Tables>(p: &mut P, packet: &Packet, reply: &Reply<'_>, tables: &T) -> Exit {
    let dst = packet.addresses.dst();
    if is_v4(&reply.service.addr) != is_v4(&dst) {
        return Exit::Drop(Reason::BackendFamily);
    }
    let route = Route { src: reply.service.addr, dst, tos: packet.tos, proto: packet.proto, len: packet.len };
    let (ifindex, macs) = match tables.next_hop(&route) {
        NextHop::Resolved { ifindex, macs } => (ifindex, Some(macs)),
        NextHop::NoNeighbour => (0, None),
        NextHop::TooBig { mtu } => return answer::too_big(p, packet, mtu),
        NextHop::NoRoute => return Exit::Drop(Reason::NatReplyNoRoute),
        NextHop::ForwardingDisabled => return Exit::Drop(Reason::NatReplyForwardingDisabled),
        NextHop::Unsupported => return Exit::Drop(Reason::NatReplyRouteUnsupported),
    };
    if let Err(reason) = nat::from_backend(p, packet, reply) {
        return Exit::Drop(reason);
    }
    match macs {
        Some(macs) => match p.put(eth::MACS, macs) {
            Some(()) => Exit::Forward { reason: Reason::NatReply, ifindex, backend: 0 },
            None => Exit::Drop(Reason::RewriteFailed),
        },
        None => Exit::Pass(Reason::NatReplyToKernel),
    }
}
