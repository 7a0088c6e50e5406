//! Keyed hashes of tuples, the same bits in the kernel and on the host.
//!
//! NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: "UMAC: Fast and Secure Message Authentication", CRYPTO 1999, section
//! 4): a sum of products of 32-bit words, each with a secret word added, so that for two different tuples the chance of a
//! collision over the key is at most 2^-32 and nobody without the key can aim at a slot. The products do not wait for each
//! other. A finalizer with full avalanche (the 64-bit one of MurmurHash3) then spreads the sum, as slots are taken from
//! the high bits and tags from the low ones.

use crate::abi::{lookup, node::HASH_KEY_WORDS};

/// The secret key; see [`crate::abi::node::Node::hash_key`].
pub type HashKey = [u32; HASH_KEY_WORDS];

#[inline(always)]
fn pair(a: u32, b: u32, key_a: u32, key_b: u32) -> u64 {
    (a.wrapping_add(key_a) as u64).wrapping_mul(b.wrapping_add(key_b) as u64)
}

#[inline(always)]
fn finish(sum: u64) -> u64 {
    let mut h = sum;
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// Hash of an IPv4 flow. Addresses and `ports` (source in the high half) as numbers in host order.
#[inline(always)]
pub fn flow_v4(key: &HashKey, src: u32, dst: u32, ports: u32, proto: u8) -> u64 {
    finish(pair(src, dst, key[0], key[1]).wrapping_add(pair(ports, proto as u32, key[2], key[3])))
}

/// Hash of an IPv6 flow. Address words in network order of words, each a number in host order; `ports` as in [`flow_v4`].
#[inline(always)]
pub fn flow_v6(key: &HashKey, src: [u32; 4], dst: [u32; 4], ports: u32, proto: u8) -> u64 {
    finish(
        pair(src[0], src[1], key[0], key[1])
            .wrapping_add(pair(src[2], src[3], key[2], key[3]))
            .wrapping_add(pair(dst[0], dst[1], key[4], key[5]))
            .wrapping_add(pair(dst[2], dst[3], key[6], key[7]))
            .wrapping_add(pair(ports, proto as u32, key[8], key[9])),
    )
}

/// Hash of a client's address, for services that send a client to one backend whatever its ports. Address words as in [`flow_v6`].
#[inline(always)]
pub fn source(key: &HashKey, src: [u32; 4]) -> u64 {
    finish(pair(src[0], src[1], key[0], key[1]).wrapping_add(pair(src[2], src[3], key[2], key[3])))
}

/// The tag of a flow and its two candidate buckets in `FLOWS`; `mask` is [`crate::abi::node::Node::flow_mask`]. The tag has the low
/// eight bits clear. Both buckets follow from the tag, so that a record's home can be told without its flow.
#[inline(always)]
pub fn flow_buckets(hash: u64, mask: u32) -> (u64, u32, u32) {
    let tag = hash & !0xff;
    // Slots come from the high half of the hash; buckets begin with the bits below it.
    let first = (tag >> 8) as u32 & mask;
    let second = (first ^ ((tag >> 32) as u32 | 1).wrapping_mul(0x9e37_79b1)) & mask;
    (tag, first, second)
}

/// Hash of a lookup key: bucket choice in the low half, tag in the high half.
#[inline(always)]
pub fn lookup(key: &HashKey, k: &lookup::Key) -> u64 {
    let word = |i: usize| match i {
        0 => u32::from_be_bytes([k.addr[0], k.addr[1], k.addr[2], k.addr[3]]),
        1 => u32::from_be_bytes([k.addr[4], k.addr[5], k.addr[6], k.addr[7]]),
        2 => u32::from_be_bytes([k.addr[8], k.addr[9], k.addr[10], k.addr[11]]),
        _ => u32::from_be_bytes([k.addr[12], k.addr[13], k.addr[14], k.addr[15]]),
    };
    let rest = (k.port as u32) << 16 | (k.proto as u32) << 8 | k.kind as u32;
    // The zeros in front of an IPv4 address would add the same product to every one of them.
    let head = match (word(0), word(1)) {
        (0, 0) => 0,
        (a, b) => pair(a, b, key[4], key[5]),
    };
    let sum = head.wrapping_add(pair(word(2), word(3), key[6], key[7])).wrapping_add(pair(rest, 0, key[10], key[11]));
    // One multiplication: few keys, none of them a stranger's choice, on the way that every packet waits for.
    let h = (sum ^ sum >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^ h >> 32
}

/// The two candidate buckets and the tag for a [`lookup`] hash; `mask` is [`crate::abi::node::Node::lookup_mask`].
#[inline(always)]
pub fn lookup_buckets(hash: u64, mask: u32) -> (u32, u32, u32) {
    let tag = (hash >> 32) as u32;
    let first = hash as u32 & mask;
    (first, (first ^ (tag | 1).wrapping_mul(0x9e37_79b1)) & mask, tag)
}

/// The 32 bits from which [`crate::abi::ring::Extent::slot_of`] takes a slot.
#[inline(always)]
pub fn slot_bits(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    const KEY: HashKey = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233];

    proptest! {
        #[test]
        fn every_input_counts(src in any::<u32>(), dst in any::<u32>(), ports in any::<u32>(), bit in 0..32u32) {
            let hash = flow_v4(&KEY, src, dst, ports, 6);
            prop_assert_ne!(hash, flow_v4(&KEY, src ^ 1 << bit, dst, ports, 6));
            prop_assert_ne!(hash, flow_v4(&KEY, src, dst ^ 1 << bit, ports, 6));
            prop_assert_ne!(hash, flow_v4(&KEY, src, dst, ports ^ 1 << bit, 6));
            prop_assert_ne!(hash, flow_v4(&KEY, src, dst, ports, 17));
        }

        #[test]
        fn the_second_bucket_is_another_one_or_the_table_is_tiny(hash in any::<u64>(), bits in 1..20u32) {
            let mask = (1 << bits) - 1;
            let (first, second, tag) = lookup_buckets(hash, mask);
            prop_assert!(first <= mask && second <= mask);
            prop_assert_ne!(first, second);
            prop_assert_eq!(tag, (hash >> 32) as u32);
        }
    }

    #[test]
    fn neighbouring_flows_spread_evenly() {
        // 100,000 ports of one client over 100 slots: chi-square with 99 degrees of freedom stays below 170 (p < 0.0001).
        let mut slots = vec![0u32; 100];
        for port in 0..100_000u32 {
            let hash = flow_v4(&KEY, 0xc000_0207, 0xcb00_7101, port, 6);
            slots[((slot_bits(hash) as u64 * 100) >> 32) as usize] += 1;
        }
        let chi: f64 = slots.iter().map(|n| (f64::from(*n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 170.0, "{chi}");
    }
}
