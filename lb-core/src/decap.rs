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
    fn frame_len(&self) -> usize;
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
    if first >> 8 != 0x45 || total_len < V4_LEN || ETH_LEN + total_len > packet.frame_len() {
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
    if first >> 12 != 6 || ETH_LEN + V6_LEN + payload_len > packet.frame_len() {
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

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;

    const SOURCE: [u8; 4] = [198, 18, 1, 2];
    const HOST: [u8; 4] = [10, 9, 0, 2];
    const VIP: [u8; 4] = [192, 0, 2, 80];
    const CLIENT: [u8; 4] = [10, 9, 0, 1];

    struct Frame<'a>(&'a [u8]);

    impl Frame<'_> {
        fn at<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.get(offset..offset + N)?.try_into().ok()
        }
    }

    impl Packet for Frame<'_> {
        fn frame_len(&self) -> usize {
            self.0.len()
        }
        fn u8(&self, offset: usize) -> Option<u8> {
            self.at::<1>(offset).map(|[byte]| byte)
        }
        fn u16(&self, offset: usize) -> Option<u16> {
            self.at(offset).map(u16::from_be_bytes)
        }
        fn v4(&self, offset: usize) -> Option<[u8; 4]> {
            self.at(offset)
        }
        fn v6(&self, offset: usize) -> Option<[u8; 16]> {
            self.at(offset)
        }
    }

    /// Each address in both families: `six(a)` is the IPv6 twin of `a`.
    struct Twins;

    fn six(a: [u8; 4]) -> [u8; 16] {
        [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a[0], a[1], a[2], a[3]]
    }

    impl Rules for Twins {
        fn is_local(&self, addr: &[u8; 16]) -> bool {
            *addr == mapped(HOST) || *addr == six(HOST)
        }
        fn is_source(&self, addr: &[u8; 16]) -> bool {
            *addr == mapped(SOURCE) || *addr == six(SOURCE)
        }
        fn is_vip(&self, addr: &[u8; 16]) -> bool {
            *addr == mapped(VIP) || *addr == six(VIP)
        }
    }

    /// An IP header of `family` with the congestion bits `ecn` in front of `payload`.
    fn header(family: Family, src: [u8; 4], dst: [u8; 4], proto: u8, ecn: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match family {
            Family::V4 => {
                let len = (V4_LEN + payload.len()) as u16;
                out.extend([0x45, ecn]);
                out.extend(len.to_be_bytes());
                out.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
                out.extend(src);
                out.extend(dst);
                let sum = checksum(&out);
                out[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            Family::V6 => {
                out.extend([0x60, ecn << 4, 0, 0]);
                out.extend((payload.len() as u16).to_be_bytes());
                out.extend([proto, 64]);
                out.extend(six(src));
                out.extend(six(dst));
            }
        }
        out.extend(payload);
        out
    }

    /// RFC 1071, in full.
    fn checksum(header: &[u8]) -> u16 {
        let mut sum: u32 = header.chunks(2).map(|w| u16::from_be_bytes([w[0], w[1]]) as u32).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !sum as u16
    }

    fn frame(outer: Family, inner: Family, outer_ecn: u8, inner_ecn: u8) -> Vec<u8> {
        let proto = match inner {
            Family::V4 => PROTO_V4,
            Family::V6 => PROTO_V6,
        };
        let datagram = header(inner, CLIENT, VIP, 17, inner_ecn, b"12345678payload");
        let mut out = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        out.extend(outer.ethertype().to_be_bytes());
        out.extend(header(outer, SOURCE, HOST, proto, outer_ecn, &datagram));
        out
    }

    const PAIRS: [(Family, Family); 4] =
        [(Family::V4, Family::V4), (Family::V4, Family::V6), (Family::V6, Family::V4), (Family::V6, Family::V6)];

    fn outer_len(family: Family) -> usize {
        match family {
            Family::V4 => V4_LEN,
            Family::V6 => V6_LEN,
        }
    }

    #[test]
    fn every_pair_of_families_is_decapsulated() {
        for (outer, inner) in PAIRS {
            let verdict = decide(&Frame(&frame(outer, inner, 0, 0)), &Twins);
            assert_eq!(verdict, Verdict::Strip { outer_len: outer_len(outer), outer, inner, mark: None });
        }
    }

    #[test]
    fn no_truncation_is_decapsulated() {
        for (outer, inner) in PAIRS {
            let whole = frame(outer, inner, 0, 0);
            for len in 0..whole.len() {
                let verdict = decide(&Frame(&whole[..len]), &Twins);
                // Up to the protocol number nothing says that it is a tunnel.
                let protocol = ETH_LEN + if outer == Family::V4 { 9 } else { 6 };
                let expected = if len <= protocol { Reason::Passed } else { Reason::Malformed };
                assert_eq!(verdict, Verdict::Pass(expected), "{outer:?} {inner:?} {len}");
            }
        }
    }

    #[test]
    fn padding_behind_the_packet_does_not_matter() {
        let mut padded = frame(Family::V4, Family::V4, 0, 0);
        padded.extend([0; 18]);
        assert!(matches!(decide(&Frame(&padded), &Twins), Verdict::Strip { .. }));
    }

    #[test]
    fn one_wrong_byte_is_one_reason() {
        let v4 = frame(Family::V4, Family::V4, 0, 0);
        let v6 = frame(Family::V6, Family::V6, 0, 0);
        for (packet, offset, value, reason) in [
            (&v4, 12, 0x88, Reason::Passed),
            (&v4, ETH_LEN + 9, 47, Reason::Passed),
            (&v4, ETH_LEN + 16, 11, Reason::Passed),
            (&v4, ETH_LEN + 12, 199, Reason::RefusedSource),
            (&v4, ETH_LEN, 0x46, Reason::Malformed),
            (&v4, ETH_LEN, 0x65, Reason::Malformed),
            (&v4, ETH_LEN + 3, 19, Reason::Malformed),
            (&v4, ETH_LEN + 3, 200, Reason::Malformed),
            (&v4, ETH_LEN + 6, 0x20, Reason::Fragment),
            (&v4, ETH_LEN + 7, 1, Reason::Fragment),
            (&v4, ETH_LEN + 9, 41, Reason::Malformed),
            (&v4, ETH_LEN + V4_LEN, 0x44, Reason::Malformed),
            (&v4, ETH_LEN + V4_LEN + 3, 19, Reason::Malformed),
            (&v4, ETH_LEN + V4_LEN + 3, 200, Reason::Malformed),
            (&v4, ETH_LEN + V4_LEN + 19, 81, Reason::RefusedInner),
            (&v6, ETH_LEN + 6, 60, Reason::Passed),
            (&v6, ETH_LEN + 24, 1, Reason::Passed),
            (&v6, ETH_LEN + 8, 1, Reason::RefusedSource),
            (&v6, ETH_LEN, 0x40, Reason::Malformed),
            (&v6, ETH_LEN + 5, 200, Reason::Malformed),
            (&v6, ETH_LEN + V6_LEN, 0x40, Reason::Malformed),
            (&v6, ETH_LEN + V6_LEN + 5, 200, Reason::Malformed),
            (&v6, ETH_LEN + V6_LEN + 24, 1, Reason::RefusedInner),
        ] {
            let mut changed = packet.clone();
            changed[offset] = value;
            assert_eq!(decide(&Frame(&changed), &Twins), Verdict::Pass(reason), "byte {offset} = {value}");
        }
    }

    #[test]
    fn congestion_survives_the_tunnel() {
        // RFC 6040, figure 4: rows are the inner bits Not-ECT, ECT(0), ECT(1), CE; columns the outer ones in that order.
        let table = [
            (0, [Some(0), Some(0), Some(0), None]),
            (2, [Some(2), Some(2), Some(1), Some(3)]),
            (1, [Some(1), Some(1), Some(1), Some(3)]),
            (3, [Some(3), Some(3), Some(3), Some(3)]),
        ];
        for (family, other) in PAIRS {
            for (inner, row) in table {
                for (outer, expected) in [0, 2, 1, 3].into_iter().zip(row) {
                    let packet = frame(family, other, outer, inner);
                    let verdict = decide(&Frame(&packet), &Twins);
                    let Some(expected) = expected else {
                        assert_eq!(verdict, Verdict::Drop(Reason::DroppedCongestion));
                        continue;
                    };
                    let Verdict::Strip { outer_len, mark, .. } = verdict else { panic!("{verdict:?}") };
                    let mut bytes = packet[ETH_LEN + outer_len..].to_vec();
                    assert_eq!(mark.is_some(), expected != inner);
                    if let Some(mark) = mark {
                        bytes[..2].copy_from_slice(&mark.first.to_be_bytes());
                        if let Some(checksum) = mark.checksum {
                            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
                        }
                    }
                    assert_eq!(
                        bytes,
                        header(other, CLIENT, VIP, 17, expected, b"12345678payload"),
                        "{inner} in {outer}"
                    );
                }
            }
        }
    }
}
