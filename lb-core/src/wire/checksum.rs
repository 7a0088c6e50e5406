//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept as plain `u64` of big-endian 16-bit and 32-bit words, in any mix: 2^32 and 2^16 are both 1 modulo
//! 2^16 - 1, so carries fold at the end.

/// Folds a sum to 16 bits, end-around carries included.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// The checksum for a sum over everything that it covers.
#[inline(always)]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// What the replacement of a 32-bit word adds to a sum: its complement and the new word.
#[inline(always)]
pub const fn change32(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// What the replacement of a 16-bit word adds to a sum.
#[inline(always)]
pub const fn change16(old: u16, new: u16) -> u64 {
    !old as u64 + new as u64
}

/// The checksum after changes (RFC 1624 equation 3).
#[inline(always)]
pub const fn update(checksum: u16, changes: u64) -> u16 {
    finish(!checksum as u64 + changes)
}

/// As [`update`] for UDP: 0 means that there is none and stays, and a result of 0 is sent as all ones (RFC 768).
#[inline(always)]
pub const fn update_udp(checksum: u16, changes: u64) -> u16 {
    if checksum == 0 {
        return 0;
    }
    match update(checksum, changes) {
        0 => 0xffff,
        other => other,
    }
}

/// Sum of four words, such as an IPv6 address.
#[inline(always)]
pub const fn sum_words(words: [u32; 4]) -> u64 {
    words[0] as u64 + words[1] as u64 + words[2] as u64 + words[3] as u64
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    fn full(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        finish(sum)
    }

    #[test]
    fn rfc_1071_section_3_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(full(&bytes), !0xddf2);
    }

    #[test]
    fn rfc_1624_section_4_example() {
        assert_eq!(update(0xdd2f, change16(0x5555, 0x3285)), 0x0000);
    }

    #[test]
    fn udp_zero_stays_and_is_never_made() {
        assert_eq!(update_udp(0, change16(1, 2)), 0);
        assert_eq!(update_udp(0xdd2f, change16(0x5555, 0x3285)), 0xffff);
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut bytes in prop::collection::vec(any::<u8>(), 4..200usize), at in any::<prop::sample::Index>(), new in any::<u32>()) {
            bytes.truncate(bytes.len() / 4 * 4);
            bytes[0] |= 1; // a checksum over zeroes alone has two representations
            let at = 4 * at.index(bytes.len() / 4);
            prop_assume!(at != 0 || new != 0);
            let before = full(&bytes);
            let old = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            bytes[at..at + 4].copy_from_slice(&new.to_be_bytes());
            prop_assume!(bytes.iter().any(|b| *b != 0));
            prop_assert_eq!(update(before, change32(old, new)), full(&bytes));
        }

        #[test]
        fn words_of_any_width_sum_alike(bytes in prop::collection::vec(any::<u8>(), 4..100usize)) {
            let bytes = &bytes[..bytes.len() / 4 * 4];
            let by32: u64 = bytes.chunks(4).map(|c| u64::from(u32::from_be_bytes(c.try_into().unwrap()))).sum();
            let by16: Vec<u64> = bytes.chunks(2).map(|c| u64::from(u16::from_be_bytes(c.try_into().unwrap()))).collect();
            prop_assert_eq!(fold(by32), fold(by16.into_iter().sum()));
        }
    }
}
