//! Answers that the program makes itself: echo replies, "fragmentation needed", "packet too big".
//!
//! They leave by the port that the question came in by, MAC and IP addresses exchanged. Nobody is answered whose source
//! is no unicast address, no ICMP error is answered, and no later IPv4 fragment (RFC 1122 section 3.2.2, RFC 4443
//! section 2.4).

use crate::{
    packet::PacketEdit,
    parse::{Addresses, Family, Packet, Part, Transport},
    reason::Reason,
    wire::{
        be16, be32,
        checksum::{change16, finish, sum_words, update},
        eth, icmp, ipv4, ipv6,
    },
};

/// Bytes of the packet that "fragmentation needed" quotes: the longest header and 8 bytes behind it (RFC 792). Shorter
/// packets are never too big for a real link.
pub const QUOTE_V4: usize = 68;
/// Bytes of the packet that "packet too big" quotes. RFC 4443 asks for as many as fit into 1280; senders need the header,
/// the extension headers and the ports.
pub const QUOTE_V6: usize = 128;
/// Precedence "internetwork control" (RFC 1812 section 4.3.2.5).
const TOS_CONTROL: u8 = 0xc0;
const PTB_V4: usize = ipv4::LEN + icmp::LEN;
const PTB_V6: usize = ipv6::LEN + icmp::LEN;

#[inline(always)]
pub(super) fn is_unicast(addresses: &Addresses) -> bool {
    match addresses.family {
        Family::V4 => ipv4::is_unicast(addresses.src[3]),
        Family::V6 => ipv6::is_unicast(addresses.src),
    }
}

/// Answers an echo request. One with IPv4 options is left to the kernel, which knows what to do with them.
#[inline(never)]
pub fn echo<P: PacketEdit>(p: &mut P, packet: &Packet) -> Reason {
    if !is_unicast(&packet.addresses) {
        return Reason::SourceInvalid;
    }
    let Addresses { family, src, dst } = packet.addresses;
    let done = match family {
        Family::V4 if packet.l4 != eth::LEN + ipv4::LEN => return Reason::VipOther,
        Family::V4 => echo_v4(p, src[3], dst[3]),
        Family::V6 => echo_v6(p, packet.l4, src, dst),
    };
    match done {
        Some(()) => Reason::EchoReply,
        None => Reason::RewriteFailed,
    }
}

#[inline(always)]
fn echo_v4<P: PacketEdit>(p: &mut P, src: u32, dst: u32) -> Option<()> {
    const L4: usize = eth::LEN + ipv4::LEN;
    let head = p.bytes::<{ L4 + icmp::LEN }>(0)?;
    let ttl_proto = be16(&head, eth::LEN + ipv4::TTL);
    let own_ttl = (ipv4::TTL_OWN as u16) << 8 | ttl_proto & 0xff;
    let ip_check = update(be16(&head, eth::LEN + ipv4::CHECKSUM), change16(ttl_proto, own_ttl));
    let type_code = be16(&head, L4);
    let reply = (icmp::V4_ECHO_REPLY as u16) << 8 | type_code & 0xff;
    let check = update(be16(&head, L4 + icmp::CHECKSUM), change16(type_code, reply));
    p.put(eth::MACS, eth::swap(crate::wire::take(&head, eth::MACS)))?;
    p.put(eth::LEN + ipv4::TTL, own_ttl.to_be_bytes())?;
    p.put(eth::LEN + ipv4::CHECKSUM, ip_check.to_be_bytes())?;
    p.put(eth::LEN + ipv4::SRC, dst.to_be_bytes())?;
    p.put(eth::LEN + ipv4::DST, src.to_be_bytes())?;
    p.put(L4, reply.to_be_bytes())?;
    p.put(L4 + icmp::CHECKSUM, check.to_be_bytes())
}

#[inline(always)]
fn echo_v6<P: PacketEdit>(p: &mut P, l4: usize, src: ipv6::Words, dst: ipv6::Words) -> Option<()> {
    let macs = p.bytes::<12>(eth::MACS)?;
    let head = p.bytes_at::<4>(l4)?;
    let type_code = be16(&head, 0);
    let reply = (icmp::V6_ECHO_REPLY as u16) << 8 | type_code & 0xff;
    let check = update(be16(&head, icmp::CHECKSUM), change16(type_code, reply));
    p.put(eth::MACS, eth::swap(macs))?;
    p.put(eth::LEN + ipv6::NEXT_HEADER + 1, [ipv4::TTL_OWN])?;
    p.put(eth::LEN + ipv6::SRC, ipv6::octets(dst))?;
    p.put(eth::LEN + ipv6::DST, ipv6::octets(src))?;
    p.put_at(l4, reply.to_be_bytes())?;
    p.put_at(l4 + icmp::CHECKSUM, check.to_be_bytes())
}

/// Tells the sender of a packet that at most `mtu` bytes reach the receiver; also one that allows fragmenting, as nothing
/// here fragments.
#[inline(never)]
pub fn too_big<P: PacketEdit>(p: &mut P, packet: &Packet, mtu: u16) -> Reason {
    if matches!(packet.transport, Transport::Error | Transport::ErrorWithoutFlow) || !is_unicast(&packet.addresses) {
        return Reason::TooBigUnanswered;
    }
    let Addresses { family, src, dst } = packet.addresses;
    let len = packet.len;
    let (done, reason) = match family {
        Family::V4 if packet.part == Part::Later || len < QUOTE_V4 => return Reason::TooBigUnanswered,
        Family::V6 if len < QUOTE_V6 => return Reason::TooBigUnanswered,
        Family::V4 => (fragmentation_needed(p, src[3], dst[3], mtu), Reason::FragmentationNeeded),
        Family::V6 => (packet_too_big(p, src, dst, mtu), Reason::PacketTooBig),
    };
    match done {
        Ok(()) => reason,
        Err(failure) => failure,
    }
}

/// Sum over `len` bytes of the IP packet, a multiple of 4; 0 if it has fewer (no header sums to 0).
///
/// VERIFIER: the stack is short, and the compiler would load all words before it adds them, but for a call and offsets
/// that it does not know.
#[inline(never)]
fn quote<P: PacketEdit>(p: &P, len: usize) -> u64 {
    let mut sum = 0;
    for word in 0..QUOTE_V6 / 4 {
        if word * 4 >= len {
            break;
        }
        let Some(bytes) = p.bytes_at::<4>(eth::LEN + word * 4) else { return 0 };
        sum += be32(&bytes, 0) as u64;
    }
    sum
}

#[inline(always)]
fn fragmentation_needed<P: PacketEdit>(p: &mut P, src: u32, dst: u32, mtu: u16) -> Result<(), Reason> {
    let macs = p.bytes::<12>(eth::MACS).ok_or(Reason::RewriteFailed)?;
    let quoted = quote(p, QUOTE_V4);
    if quoted == 0 {
        return Err(Reason::RewriteFailed);
    }
    let header = ipv4::Header {
        version_ihl: 0x45,
        tos: TOS_CONTROL,
        total_len: (PTB_V4 + QUOTE_V4) as u16,
        id: 0,
        fragment: ipv4::DF,
        ttl: ipv4::TTL_OWN,
        proto: ipv4::PROTO_ICMP,
        src: dst,
        dst: src,
    };
    // RFC 1191 section 4: the next hop's MTU in the low half of the second word.
    let first = u32::from_be_bytes([icmp::V4_UNREACHABLE, icmp::V4_FRAGMENTATION_NEEDED, 0, 0]);
    let check = finish(quoted + first as u64 + mtu as u64);
    let message = ((first | check as u32) as u64) << 32 | mtu as u64;
    p.grow_head(PTB_V4).ok_or(Reason::NoHeadroom)?;
    let mut put = || {
        p.put(eth::MACS, eth::swap(macs))?;
        p.put(eth::TYPE, eth::IPV4.to_be_bytes())?;
        p.put(eth::LEN, header.emit())?;
        p.put(eth::LEN + ipv4::LEN, message.to_be_bytes())?;
        p.truncate(eth::LEN + PTB_V4 + QUOTE_V4)
    };
    put().ok_or(Reason::RewriteFailed)
}

#[inline(always)]
fn packet_too_big<P: PacketEdit>(p: &mut P, src: ipv6::Words, dst: ipv6::Words, mtu: u16) -> Result<(), Reason> {
    let macs = p.bytes::<12>(eth::MACS).ok_or(Reason::RewriteFailed)?;
    let quoted = quote(p, QUOTE_V6);
    if quoted == 0 {
        return Err(Reason::RewriteFailed);
    }
    const LENGTH: u16 = (icmp::LEN + QUOTE_V6) as u16;
    let header = ipv6::Header {
        first: ipv6::first_word(TOS_CONTROL, 0),
        payload_len: LENGTH,
        next: ipv6::PROTO_ICMPV6,
        hop_limit: ipv4::TTL_OWN,
        src: dst,
        dst: src,
    };
    // No link may have less, and a sender takes less for 1280 (RFC 8200 section 5, RFC 8201 section 4).
    let mtu = mtu.max(ipv6::MTU_MIN) as u32;
    let first = u32::from_be_bytes([icmp::V6_PACKET_TOO_BIG, 0, 0, 0]);
    let pseudo = sum_words(src) + sum_words(dst) + LENGTH as u64 + ipv6::PROTO_ICMPV6 as u64;
    let check = finish(pseudo + quoted + first as u64 + mtu as u64);
    let message = ((first | check as u32) as u64) << 32 | mtu as u64;
    p.grow_head(PTB_V6).ok_or(Reason::NoHeadroom)?;
    let mut put = || {
        p.put(eth::MACS, eth::swap(macs))?;
        p.put(eth::TYPE, eth::IPV6.to_be_bytes())?;
        p.put(eth::LEN, header.emit_first())?;
        p.put(eth::LEN + ipv6::SRC, ipv6::octets(header.src))?;
        p.put(eth::LEN + ipv6::DST, ipv6::octets(header.dst))?;
        p.put(eth::LEN + ipv6::LEN, message.to_be_bytes())?;
        p.truncate(eth::LEN + PTB_V6 + QUOTE_V6)
    };
    put().ok_or(Reason::RewriteFailed)
}
