//! Resets of TCP flows whose backend is down (`on_marked_down = "reset"`), sent to the client in the backend's name.
//!
//! The reset answers a packet as a host without the connection would (RFC 9293 section 3.10.7.1), so that the client finds it in
//! its window (RFC 5961). It leaves by the port that the packet came in by. No reset is answered, and nobody whose source
//! is no unicast address.

use super::answer::is_unicast;
use crate::{
    packet::PacketEdit,
    parse::{Addresses, Family, Packet, Part},
    reason::Reason,
    wire::{
        be32,
        checksum::{finish, sum_words},
        eth, ipv4, ipv6, transport,
    },
};

/// The words of a TCP header that resets a connection, without the last one, which holds the checksum.
#[inline(always)]
fn tcp_words(packet: &Packet, head: &[u8; transport::TCP_LEN], header_len: usize) -> [u32; 4] {
    let acked = packet.tcp_flags & transport::ACK != 0;
    let ip_len = packet.l4.wrapping_sub(eth::LEN) as u32;
    let payload = (packet.len as u32).wrapping_sub(ip_len).wrapping_sub(header_len as u32);
    let ends = (packet.tcp_flags & transport::SYN != 0) as u32 + (packet.tcp_flags & transport::FIN != 0) as u32;
    let (sequence, acknowledgement, flags) = if acked {
        (be32(head, transport::TCP_ACKNOWLEDGEMENT), 0, transport::RST)
    } else {
        let next = be32(head, transport::TCP_SEQUENCE).wrapping_add(payload).wrapping_add(ends);
        (0, next, transport::RST | transport::ACK)
    };
    let ports = packet.ports.rotate_left(16);
    [ports, sequence, acknowledgement, (transport::TCP_LEN as u32 / 4) << 28 | flags << 16]
}

#[inline(always)]
fn emit(words: [u32; 4], check: u16) -> [u8; transport::TCP_LEN] {
    let [a, b, c, d, e] = [words[0], words[1], words[2], words[3], (check as u32) << 16].map(u32::to_be_bytes);
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3], e[0], e[1],
        e[2], e[3],
    ]
}

/// Turns the packet into a reset of its connection.
#[inline(never)]
pub fn reset<P: PacketEdit>(p: &mut P, packet: &Packet) -> Reason {
    if !is_unicast(&packet.addresses) || packet.part != Part::Whole || packet.tcp_flags & transport::RST != 0 {
        return Reason::ResetUnanswered;
    }
    match write(p, packet) {
        Some(()) => Reason::FlowReset,
        None => Reason::RewriteFailed,
    }
}

#[inline(always)]
fn write<P: PacketEdit>(p: &mut P, packet: &Packet) -> Option<()> {
    let macs = p.bytes::<12>(eth::MACS)?;
    let head = p.bytes_at::<{ transport::TCP_LEN }>(packet.l4)?;
    let [offset] = crate::wire::take(&head, transport::TCP_DATA_OFFSET);
    let words = tcp_words(packet, &head, (offset >> 4) as usize * 4);
    let Addresses { family, src, dst } = packet.addresses;
    let sum = words[0] as u64 + words[1] as u64 + words[2] as u64 + words[3] as u64;
    let pseudo = ipv4::PROTO_TCP as u64 + transport::TCP_LEN as u64;
    match family {
        Family::V4 => {
            const LEN: usize = ipv4::LEN + transport::TCP_LEN;
            let check = finish(sum + pseudo + src[3] as u64 + dst[3] as u64);
            let header = ipv4::Header {
                version_ihl: 0x45,
                tos: 0,
                total_len: LEN as u16,
                id: 0,
                fragment: ipv4::DF,
                ttl: ipv4::TTL_OWN,
                proto: ipv4::PROTO_TCP,
                src: dst[3],
                dst: src[3],
            };
            p.put(eth::MACS, eth::swap(macs))?;
            p.put(eth::LEN, header.emit())?;
            p.put(eth::LEN + ipv4::LEN, emit(words, check))?;
            p.truncate(eth::LEN + LEN)
        }
        Family::V6 => {
            const LEN: usize = ipv6::LEN + transport::TCP_LEN;
            let check = finish(sum + pseudo + sum_words(src) + sum_words(dst));
            let header = ipv6::Header {
                first: ipv6::first_word(0, 0),
                payload_len: transport::TCP_LEN as u16,
                next: ipv4::PROTO_TCP,
                hop_limit: ipv4::TTL_OWN,
                src: dst,
                dst: src,
            };
            p.put(eth::MACS, eth::swap(macs))?;
            p.put(eth::LEN, header.emit_first())?;
            p.put(eth::LEN + ipv6::SRC, ipv6::octets(header.src))?;
            p.put(eth::LEN + ipv6::DST, ipv6::octets(header.dst))?;
            p.put(eth::LEN + ipv6::LEN, emit(words, check))?;
            p.truncate(eth::LEN + LEN)
        }
    }
}
