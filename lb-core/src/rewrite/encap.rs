//! `ipip`: an outer IP header in front (RFC 2003, RFC 2473, RFC 4213), all four combinations of families.
//!
//! The outer source carries bits of the flow hash, so that the backend's receive queues share the load. ToS or traffic
//! class is copied. An outer IPv4 header says "don't fragment" and has identification 0 (RFC 6864 section 4.1: atomic
//! datagrams need none): whether the packet fits was decided against the route's MTU before.

use crate::{
    packet::PacketEdit,
    parse::{Family, Packet},
    reason::Reason,
    select::Target,
    wire::{be32, eth, ipv4, ipv6, take},
};

/// Hop limit of outer IPv6 headers.
const HOP_LIMIT: u8 = 64;

/// Puts the outer header and the next hop's MAC addresses in front.
///
/// # Errors
/// [`Reason::NoHeadroom`] where the driver leaves no room.
#[inline(always)]
pub fn ipip<P: PacketEdit>(p: &mut P, packet: &Packet, hash: u64, target: &Target<'_>) -> Result<(), Reason> {
    let proto = match packet.addresses.family {
        Family::V4 => ipv4::PROTO_IPV4,
        Family::V6 => ipv4::PROTO_IPV6,
    };
    match super::is_v4(&target.backend.addr) {
        true => outer_v4(p, packet, hash, target, proto),
        false => outer_v6(p, packet, hash, target, proto),
    }
}

#[inline(always)]
fn outer_v4<P: PacketEdit>(
    p: &mut P,
    packet: &Packet,
    hash: u64,
    target: &Target<'_>,
    proto: u8,
) -> Result<(), Reason> {
    let spread = u32::from_be_bytes(target.node.outer_source_v4) & 0xffff_0000 | hash as u32 & 0xffff;
    let header = ipv4::Header {
        version_ihl: 0x45,
        tos: packet.tos,
        total_len: packet.len.wrapping_add(ipv4::LEN) as u16,
        id: 0,
        fragment: ipv4::DF,
        ttl: ipv4::TTL_OWN,
        proto,
        src: spread,
        dst: be32(&target.backend.addr, 12),
    };
    let macs = super::macs(target.backend);
    p.grow_head(ipv4::LEN).ok_or(Reason::NoHeadroom)?;
    let mut put = || {
        p.put(eth::LEN, header.emit())?;
        p.put(eth::MACS, macs)?;
        p.put(eth::TYPE, eth::IPV4.to_be_bytes())
    };
    put().ok_or(Reason::RewriteFailed)
}

#[inline(always)]
fn outer_v6<P: PacketEdit>(
    p: &mut P,
    packet: &Packet,
    hash: u64,
    target: &Target<'_>,
    proto: u8,
) -> Result<(), Reason> {
    let prefix = &target.node.outer_source_v6;
    let header = ipv6::Header {
        first: ipv6::first_word(packet.tos, (hash >> 12) as u32),
        payload_len: packet.len as u16,
        next: proto,
        hop_limit: HOP_LIMIT,
        src: [0; 4],
        dst: [0; 4],
    };
    let macs = super::macs(target.backend);
    p.grow_head(ipv6::LEN).ok_or(Reason::NoHeadroom)?;
    let mut put = || {
        p.put(eth::LEN + ipv6::DST, target.backend.addr)?;
        p.put(eth::MACS, macs)?;
        p.put(eth::TYPE, eth::IPV6.to_be_bytes())?;
        p.put(eth::LEN, header.emit_first())?;
        p.put(eth::LEN + ipv6::SRC, take::<12, 16>(prefix, 0))?;
        p.put(eth::LEN + ipv6::SRC + 12, (hash as u32).to_be_bytes())
    };
    put().ok_or(Reason::RewriteFailed)
}
