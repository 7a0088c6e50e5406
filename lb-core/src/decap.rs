//! Decapsulation as a decision: which packets lose their outer header, and what the inner one must then say.
//!
//! Owns the rules of `weir decap` for XDP and tc alike. Refuses to know maps and packet pointers: both come through traits.
//! Invariants: a packet that is not decapsulated is not changed; nothing is read beyond what the packet holds.

use crate::abi::{decap::Reason, mapped};

/// Bytes of an Ethernet header; the outer IP header follows.
pub const ETH_LEN: usize = 14;
/// Ethertype of IPv4.
pub const ETHERTYPE_V4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const ETHERTYPE_V6: u16 = 0x86dd;
/// Bytes of an IPv4 header without options.
pub const V4_LEN: usize = 20;
/// Bytes of an IPv6 header.
pub const V6_LEN: usize = 40;
/// IP protocol number of IPv4 in IP (RFC 2003).
const PROTO_V4: u8 = 4;
/// IP protocol number of IPv6 in IP (RFC 2473).
const PROTO_V6: u8 = 41;

/// A packet from its Ethernet header on. Numbers are read big-endian.
pub trait Packet {
    /// Bytes of the whole frame.
    fn len(&self) -> usize;
    /// The byte at `offset`, if the packet holds it.
    fn u8(&self, offset: usize) -> Option<u8>;
    /// The number at `offset`, if the packet holds all its bytes.
    fn u16(&self, offset: usize) -> Option<u16>;
    /// The four bytes at `offset`, if the packet holds them.
    fn v4(&self, offset: usize) -> Option<[u8; 4]>;
    /// The sixteen bytes at `offset`, if the packet holds them.
    fn v6(&self, offset: usize) -> Option<[u8; 16]>;
}

/// What the command was told. Addresses in the 16-byte form.
pub trait Rules {
    /// The address belongs to the interface.
    fn is_local(&self, addr: &[u8; 16]) -> bool;
    /// The address may send tunnel packets.
    fn is_source(&self, addr: &[u8; 16]) -> bool;
    /// The address is a VIP.
    fn is_vip(&self, addr: &[u8; 16]) -> bool;
}

/// IP version of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Its ethertype.
    pub const fn ethertype(self) -> u16 {
        match self {
            Self::V4 => ETHERTYPE_V4,
            Self::V6 => ETHERTYPE_V6,
        }
    }
}

/// New congestion bits of the inner header, as the words to store at these offsets of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Bytes 0 and 1: version and traffic class.
    pub first: u16,
    /// Bytes 10 and 11, the checksum, where there is one (IPv4).
    pub checksum: Option<u16>,
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it alone, count it.
    Pass(Reason),
    /// Drop it, count it.
    Drop(Reason),
    /// Remove `outer_len` bytes behind the Ethernet header.
    Strip {
        /// [`V4_LEN`] or [`V6_LEN`].
        outer_len: usize,
        /// Family of the outer header.
        outer: Family,
        /// Family of the header that comes out.
        inner: Family,
        /// What the inner header must say, if its congestion bits change.
        mark: Option<Mark>,
    },
}

/// Judges one packet.
#[inline(always)]
pub fn decide<P: Packet, R: Rules>(packet: &P, rules: &R) -> Verdict {
    // The protocol first: everything that is no tunnel leaves here.
    let verdict = match packet.u16(12) {
        Some(ETHERTYPE_V4) => match packet.u8(ETH_LEN + 9).and_then(tunnel) {
            Some(inner) => outer_v4(packet, rules, inner),
            None => return Verdict::Pass(Reason::Passed),
        },
        Some(ETHERTYPE_V6) => match packet.u8(ETH_LEN + 6).and_then(tunnel) {
            Some(inner) => outer_v6(packet, rules, inner),
            None => return Verdict::Pass(Reason::Passed),
        },
        _ => return Verdict::Pass(Reason::Passed),
    };
    verdict.unwrap_or(Verdict::Pass(Reason::Malformed))
}

// VERIFIER: below, one read at a time and `?` after each. Several reads tested together are compiled into one test, and
// what a failed read never wrote is spilled before it ("R5 !read_ok").

/// `None` is "malformed".
#[inline(always)]
fn outer_v4<P: Packet, R: Rules>(packet: &P, rules: &R, inner: Family) -> Option<Verdict> {
    let dst = packet.v4(ETH_LEN + 16)?;
    if !rules.is_local(&mapped(dst)) {
        return Some(Verdict::Pass(Reason::Passed));
    }
    let src = packet.v4(ETH_LEN + 12)?;
    if !rules.is_source(&mapped(src)) {
        return Some(Verdict::Pass(Reason::RefusedSource));
    }
    let first = packet.u16(ETH_LEN)?;
    let total_len = packet.u16(ETH_LEN + 2)? as usize;
    if first >> 8 != 0x45 || total_len < V4_LEN || ETH_LEN + total_len > packet.len() {
        return None;
    }
    // More fragments, or an offset.
    if packet.u16(ETH_LEN + 6)? & 0x3fff != 0 {
        return Some(Verdict::Pass(Reason::Fragment));
    }
    strip(
        packet,
        rules,
        Outer { family: Family::V4, len: V4_LEN, payload_len: total_len - V4_LEN, ecn: first & 3 },
        inner,
    )
}

/// `None` is "malformed".
#[inline(always)]
fn outer_v6<P: Packet, R: Rules>(packet: &P, rules: &R, inner: Family) -> Option<Verdict> {
    let dst = packet.v6(ETH_LEN + 24)?;
    if !rules.is_local(&dst) {
        return Some(Verdict::Pass(Reason::Passed));
    }
    let src = packet.v6(ETH_LEN + 8)?;
    if !rules.is_source(&src) {
        return Some(Verdict::Pass(Reason::RefusedSource));
    }
    let first = packet.u16(ETH_LEN)?;
    let payload_len = packet.u16(ETH_LEN + 4)? as usize;
    if first >> 12 != 6 || ETH_LEN + V6_LEN + payload_len > packet.len() {
        return None;
    }
    strip(packet, rules, Outer { family: Family::V6, len: V6_LEN, payload_len, ecn: first >> 4 & 3 }, inner)
}

/// The family that a tunnel's protocol number announces.
#[inline(always)]
fn tunnel(proto: u8) -> Option<Family> {
    match proto {
        PROTO_V4 => Some(Family::V4),
        PROTO_V6 => Some(Family::V6),
        _ => None,
    }
}

/// What an outer header says.
struct Outer {
    family: Family,
    /// Bytes of the header.
    len: usize,
    /// Bytes that follow it.
    payload_len: usize,
    /// Its two congestion bits.
    ecn: u16,
}

/// Judges the inner header. `None` is "malformed".
#[inline(always)]
fn strip<P: Packet, R: Rules>(packet: &P, rules: &R, outer: Outer, inner: Family) -> Option<Verdict> {
    let at = ETH_LEN + outer.len;
    let first = packet.u16(at)?;
    let (dst, ecn, len) = match inner {
        Family::V4 => {
            let total_len = packet.u16(at + 2)? as usize;
            let dst = packet.v4(at + 16)?;
            let header_len = (first >> 8 & 0xf) as usize * 4;
            if first >> 12 != 4 || header_len < V4_LEN || total_len < header_len {
                return None;
            }
            (mapped(dst), first & 3, total_len)
        }
        Family::V6 => {
            let payload_len = packet.u16(at + 4)? as usize;
            let dst = packet.v6(at + 24)?;
            if first >> 12 != 6 {
                return None;
            }
            (dst, first >> 4 & 3, V6_LEN + payload_len)
        }
    };
    if len > outer.payload_len {
        return None;
    }
    if !rules.is_vip(&dst) {
        return Some(Verdict::Pass(Reason::RefusedInner));
    }
    let Some(marked) = ecn_out(ecn, outer.ecn) else { return Some(Verdict::Drop(Reason::DroppedCongestion)) };
    let mark = match (marked == ecn, inner) {
        (true, _) => None,
        (false, Family::V4) => {
            let new = first & !3 | marked;
            Some(Mark { first: new, checksum: Some(checksum_after(packet.u16(at + 10)?, first, new)) })
        }
        (false, Family::V6) => Some(Mark { first: first & !(3 << 4) | marked << 4, checksum: None }),
    };
    Some(Verdict::Strip { outer_len: outer.len, outer: outer.family, inner, mark })
}

const NOT_ECT: u16 = 0;
const ECT_1: u16 = 1;
const ECT_0: u16 = 2;
const CE: u16 = 3;

/// Congestion bits of the packet that leaves a tunnel (RFC 6040, figure 4); `None` is "drop".
#[inline(always)]
fn ecn_out(inner: u16, outer: u16) -> Option<u16> {
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (ECT_0 | ECT_1, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        _ => Some(inner),
    }
}

/// The checksum after one of the words it covers changed (RFC 1624, equation 3).
#[inline(always)]
fn checksum_after(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = !checksum as u32 + !old as u32 + new as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
