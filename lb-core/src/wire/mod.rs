//! One file per header and the checksum: offsets and getters over bytes that were already read, no policy.
//!
//! Layouts come from `network-types`. Functions here take and return values, so they are the same for every view.

pub mod checksum;
pub mod eth;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod transport;

/// `N` bytes of `bytes` at a constant offset. Offsets beyond the end are a compile-time mistake that gives zeroes; the
/// checks fold away.
#[inline(always)]
pub const fn take<const N: usize, const L: usize>(bytes: &[u8; L], offset: usize) -> [u8; N] {
    if offset > L {
        return [0; N];
    }
    match bytes.split_at(offset).1.first_chunk::<N>() {
        Some(chunk) => *chunk,
        None => [0; N],
    }
}

/// Big-endian 16-bit number at a constant offset, see [`take`].
#[inline(always)]
pub const fn be16<const L: usize>(bytes: &[u8; L], offset: usize) -> u16 {
    u16::from_be_bytes(take(bytes, offset))
}

/// Big-endian 32-bit number at a constant offset, see [`take`].
#[inline(always)]
pub const fn be32<const L: usize>(bytes: &[u8; L], offset: usize) -> u32 {
    u32::from_be_bytes(take(bytes, offset))
}
