//! IPv4 (RFC 791).

use network_types::ip::{IpProto, Ipv4Hdr};

use super::{be16, be32};

/// Bytes of a header without options.
pub const LEN: usize = Ipv4Hdr::LEN;
/// Offset of the checksum.
pub const CHECKSUM: usize = core::mem::offset_of!(Ipv4Hdr, check);
/// Offset of time to live and protocol.
pub const TTL: usize = core::mem::offset_of!(Ipv4Hdr, ttl);
/// Offset of the source.
pub const SRC: usize = core::mem::offset_of!(Ipv4Hdr, src_addr);
/// Offset of the destination.
pub const DST: usize = core::mem::offset_of!(Ipv4Hdr, dst_addr);
/// Time to live of packets that the program makes.
pub const TTL_OWN: u8 = 64;
/// Don't fragment, in the 16-bit fragment field.
pub const DF: u16 = 0x4000;
/// More fragments.
pub const MF: u16 = 0x2000;
/// Fragment offset in units of 8 bytes.
pub const OFFSET: u16 = 0x1fff;
/// Protocol number of IPv4 in IP.
pub const PROTO_IPV4: u8 = IpProto::Ipv4 as u8;
/// Protocol number of IPv6 in IP.
pub const PROTO_IPV6: u8 = IpProto::Ipv6 as u8;
/// Protocol number of ICMP.
pub const PROTO_ICMP: u8 = IpProto::Icmp as u8;
/// Protocol number of TCP.
pub const PROTO_TCP: u8 = IpProto::Tcp as u8;
/// Protocol number of UDP.
pub const PROTO_UDP: u8 = IpProto::Udp as u8;

/// The fixed part of a header, numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version in the high, header length in 4-byte words in the low half.
    pub version_ihl: u8,
    /// Type of service.
    pub tos: u8,
    /// Total length, header included.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Flags and offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol number.
    pub proto: u8,
    /// Source.
    pub src: u32,
    /// Destination.
    pub dst: u32,
}

impl Header {
    /// Reads a header that starts at a constant offset of `bytes`.
    #[inline(always)]
    pub const fn parse<const L: usize>(bytes: &[u8; L], at: usize) -> Self {
        let [version_ihl, tos] = super::take::<2, L>(bytes, at);
        let [ttl, proto] = super::take::<2, L>(bytes, at + TTL);
        Self {
            version_ihl,
            tos,
            total_len: be16(bytes, at + core::mem::offset_of!(Ipv4Hdr, tot_len)),
            id: be16(bytes, at + core::mem::offset_of!(Ipv4Hdr, id)),
            fragment: be16(bytes, at + core::mem::offset_of!(Ipv4Hdr, frags)),
            ttl,
            proto,
            src: be32(bytes, at + SRC),
            dst: be32(bytes, at + DST),
        }
    }

    /// Header length in bytes as the packet claims it.
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        (self.version_ihl & 0xf) as usize * 4
    }

    /// The bytes of the header, checksum computed.
    #[inline(always)]
    pub fn emit(&self) -> [u8; LEN] {
        let words = [
            (self.version_ihl as u32) << 24 | (self.tos as u32) << 16 | self.total_len as u32,
            (self.id as u32) << 16 | self.fragment as u32,
            (self.ttl as u32) << 24 | (self.proto as u32) << 16,
            self.src,
            self.dst,
        ];
        // Halves of words in 32 bits: cheaper to fold than words in 64.
        let halves = |word: u32| (word >> 16) + (word & 0xffff);
        let sum = halves(words[0]) + halves(words[1]) + halves(words[2]) + halves(words[3]) + halves(words[4]);
        let sum = (sum >> 16) + (sum & 0xffff);
        let check = !((sum >> 16) + sum) as u16;
        let (a, b) = (words[0].to_be_bytes(), words[1].to_be_bytes());
        let c = (words[2] | check as u32).to_be_bytes();
        let (d, e) = (self.src.to_be_bytes(), self.dst.to_be_bytes());
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3], e[0], e[1],
            e[2], e[3],
        ]
    }
}

/// Whether an answer may go to this source (RFC 1122 section 3.2.2): neither zero, loopback, multicast, reserved nor broadcast.
#[inline(always)]
pub const fn is_unicast(addr: u32) -> bool {
    let first = addr >> 24;
    first != 0 && first != 127 && first < 224
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parse_reads_what_emit_wrote(
            (tos, total_len, id, fragment) in any::<(u8, u16, u16, u16)>(),
            (ttl, proto, src, dst) in any::<(u8, u8, u32, u32)>(),
        ) {
            let header = Header { version_ihl: 0x45, tos, total_len, id, fragment, ttl, proto, src, dst };
            let bytes = header.emit();
            prop_assert_eq!(Header::parse(&bytes, 0), header);
            let sum: u64 = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum();
            prop_assert_eq!(crate::wire::checksum::fold(sum), 0xffff);
        }
    }

    #[test]
    fn only_unicast_sources_are_answered() {
        for (addr, expected) in [
            ([192, 0, 2, 1], true),
            ([10, 0, 0, 1], true),
            ([0, 0, 0, 0], false),
            ([127, 0, 0, 1], false),
            ([224, 0, 0, 1], false),
            ([255, 255, 255, 255], false),
        ] {
            assert_eq!(is_unicast(u32::from_be_bytes(addr)), expected, "{addr:?}");
        }
    }
}
