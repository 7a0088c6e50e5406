//! IPv6 (RFC 8200) and its extension headers.

use network_types::ip::Ipv6Hdr;

use super::{be16, be32};

/// Bytes of the fixed header.
pub const LEN: usize = Ipv6Hdr::LEN;
/// Offset of next header and hop limit.
pub const NEXT_HEADER: usize = 6;
/// Offset of the source.
pub const SRC: usize = core::mem::offset_of!(Ipv6Hdr, src_addr);
/// Offset of the destination.
pub const DST: usize = core::mem::offset_of!(Ipv6Hdr, dst_addr);
/// Smallest MTU of a link (RFC 8200 section 5).
pub const MTU_MIN: u16 = 1280;
/// Extension headers that are followed.
pub const EXTENSIONS_MAX: usize = 8;
/// Hop-by-hop options.
pub const EXT_HOP_BY_HOP: u8 = 0;
/// Routing header.
pub const EXT_ROUTING: u8 = 43;
/// Fragment header, 8 bytes.
pub const EXT_FRAGMENT: u8 = 44;
/// Authentication header, whose length counts 4-byte words.
pub const EXT_AUTHENTICATION: u8 = 51;
/// Destination options.
pub const EXT_DESTINATION: u8 = 60;
/// Next header of ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;

/// An address as four numbers in host order, in order of the wire.
pub type Words = [u32; 4];

/// The fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version, traffic class, flow label.
    pub first: u32,
    /// Bytes behind this header.
    pub payload_len: u16,
    /// Next header.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: Words,
    /// Destination.
    pub dst: Words,
}

/// The address at a constant offset of `bytes`.
#[inline(always)]
pub const fn words<const L: usize>(bytes: &[u8; L], at: usize) -> Words {
    [be32(bytes, at), be32(bytes, at + 4), be32(bytes, at + 8), be32(bytes, at + 12)]
}

/// The bytes of an address.
#[inline(always)]
pub const fn octets(words: Words) -> [u8; 16] {
    let [a, b, c, d] = words;
    ((a as u128) << 96 | (b as u128) << 64 | (c as u128) << 32 | d as u128).to_be_bytes()
}

impl Header {
    /// Reads a header that starts at a constant offset of `bytes`.
    #[inline(always)]
    pub const fn parse<const L: usize>(bytes: &[u8; L], at: usize) -> Self {
        let [next, hop_limit] = super::take::<2, L>(bytes, at + NEXT_HEADER);
        Self {
            first: be32(bytes, at),
            payload_len: be16(bytes, at + core::mem::offset_of!(Ipv6Hdr, payload_len)),
            next,
            hop_limit,
            src: words(bytes, at + SRC),
            dst: words(bytes, at + DST),
        }
    }

    /// Version field.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        (self.first >> 28) as u8
    }

    /// Traffic class.
    #[inline(always)]
    pub const fn traffic_class(&self) -> u8 {
        (self.first >> 20) as u8
    }

    /// The first eight bytes of the header; the addresses follow them.
    #[inline(always)]
    pub const fn emit_first(&self) -> [u8; 8] {
        let word = (self.first as u64) << 32
            | (self.payload_len as u64) << 16
            | (self.next as u64) << 8
            | self.hop_limit as u64;
        word.to_be_bytes()
    }
}

/// Version, traffic class and flow label as the first word.
#[inline(always)]
pub const fn first_word(traffic_class: u8, flow_label: u32) -> u32 {
    6 << 28 | (traffic_class as u32) << 20 | flow_label & 0xf_ffff
}

/// Whether an answer may go to this source (RFC 4443 section 2.4): neither unspecified, loopback nor multicast.
#[inline(always)]
pub const fn is_unicast(addr: Words) -> bool {
    addr[0] >> 24 != 0xff && !(addr[0] == 0 && addr[1] == 0 && addr[2] == 0 && addr[3] <= 1)
}

/// What the walk over extension headers does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Skip this many bytes.
    Skip(usize),
    /// A fragment header: 8 bytes.
    Fragment,
    /// Not an extension header: the transport starts here.
    Transport,
}

/// Judges header number `next`; `len` is the second byte of that header.
#[inline(always)]
pub const fn extension(next: u8, len: u8) -> Extension {
    match next {
        EXT_HOP_BY_HOP | EXT_ROUTING | EXT_DESTINATION => Extension::Skip((len as usize + 1) * 8),
        EXT_AUTHENTICATION => Extension::Skip((len as usize + 2) * 4),
        EXT_FRAGMENT => Extension::Fragment,
        _ => Extension::Transport,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parse_reads_what_emit_wrote(
            (class, label, payload_len, next) in any::<(u8, u32, u16, u8)>(),
            (hop_limit, src, dst) in any::<(u8, Words, Words)>(),
        ) {
            let header = Header { first: first_word(class, label), payload_len, next, hop_limit, src, dst };
            let mut bytes = [0; LEN];
            bytes[..8].copy_from_slice(&header.emit_first());
            bytes[SRC..DST].copy_from_slice(&octets(src));
            bytes[DST..].copy_from_slice(&octets(dst));
            let parsed = Header::parse(&bytes, 0);
            prop_assert_eq!(parsed, header);
            prop_assert_eq!((parsed.version(), parsed.traffic_class()), (6, class));
        }
    }

    #[test]
    fn extension_lengths_follow_their_rfcs() {
        assert_eq!(extension(EXT_HOP_BY_HOP, 0), Extension::Skip(8));
        assert_eq!(extension(EXT_DESTINATION, 255), Extension::Skip(2048));
        // RFC 4302 section 2.2: 32-bit words minus two.
        assert_eq!(extension(EXT_AUTHENTICATION, 4), Extension::Skip(24));
        assert_eq!(extension(EXT_FRAGMENT, 0), Extension::Fragment);
        assert_eq!(extension(6, 0), Extension::Transport);
    }

    #[test]
    fn only_unicast_sources_are_answered() {
        assert!(is_unicast([0x2001_0db8, 0, 0, 1]));
        assert!(!is_unicast([0, 0, 0, 0]) && !is_unicast([0, 0, 0, 1]) && !is_unicast([0xff02_0000, 0, 0, 1]));
    }
}
