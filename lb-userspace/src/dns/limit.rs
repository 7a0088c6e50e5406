//! How much is answered to whom: response rate limiting, so that this server is no amplifier for forged sources, and a flood of
//! one kind of query does not take the answers of another.
//!
//! Pure: `now` comes in. Buckets belong to a client's network and a kind of answer, as in BIND's and Knot's limits. Invariant:
//! memory is fixed; a table that is full forgets the bucket that has been quiet for longest, which only lets more through.

use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use super::answer::Kind;

/// Sets of the table; each has [`WAYS`] buckets.
const SETS: usize = 1 << 14;
/// Buckets that compete for one set.
const WAYS: usize = 4;
/// Bits of a client's address that make its network.
const NET_BITS: (u8, u8) = (24, 56);
/// Every so many answers that are held back, one goes out truncated: a client that is real then comes over TCP.
const SLIP: u8 = 2;

/// What becomes of an answer over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is sent.
    Send,
    /// Only the advice to come over TCP is sent.
    Truncate,
    /// Nothing is sent.
    Drop,
}

/// Time, in thousandths of an answer.
const ONE: u32 = 1000;

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Who it belongs to; 0 is nobody.
    tag: u32,
    /// When it was last filled, in milliseconds.
    at_ms: u32,
    /// Thousandths of answers that are left.
    level: u32,
    held: u8,
}

/// The buckets.
#[derive(Debug)]
pub struct Limiter {
    buckets: Vec<Bucket>,
    rate_per_s: u32,
    secret: [u64; 2],
}

impl Limiter {
    /// A limiter of `rate_per_s` answers a second for each network and kind, with as much in store; 0 is no limit. `secret`
    /// keeps clients from aiming at each other's buckets.
    pub fn new(rate_per_s: u32, secret: [u64; 2]) -> Self {
        let buckets = if rate_per_s == 0 { 0 } else { SETS * WAYS };
        Self { buckets: vec![Bucket::default(); buckets], rate_per_s, secret }
    }

    /// What becomes of an answer of `kind` to `client`, where `now_ms` is any clock that only goes forward.
    pub fn check(&mut self, client: IpAddr, kind: Kind, now_ms: u64) -> Verdict {
        if self.rate_per_s == 0 || kind == Kind::Signed {
            return Verdict::Send;
        }
        let hash = self.hash(client, kind);
        // Zero is nobody; the clock wraps after 49 days, which at worst fills one bucket once.
        let (set, tag, now) = ((hash >> 32) as usize % SETS, (hash as u32).max(1), now_ms as u32);
        let full = self.rate_per_s.saturating_mul(ONE);
        let rate = self.rate_per_s;
        let Some(ways) = self.buckets.get_mut(set * WAYS..(set + 1) * WAYS) else { return Verdict::Send };
        let quiet = |bucket: &Bucket| if bucket.tag == 0 { u32::MAX } else { now.wrapping_sub(bucket.at_ms) };
        let known = ways.iter().position(|bucket| bucket.tag == tag);
        let at = known.or_else(|| (0..WAYS).max_by_key(|way| ways.get(*way).map_or(0, quiet)));
        let Some(bucket) = at.and_then(|at| ways.get_mut(at)) else { return Verdict::Send };
        if known.is_none() {
            *bucket = Bucket { tag, at_ms: now, level: full, held: 0 };
        }
        let gained = u64::from(now.wrapping_sub(bucket.at_ms)) * u64::from(rate) * u64::from(ONE) / 1000;
        // Time that is not yet worth a thousandth of an answer stays for the next look.
        if gained > 0 {
            bucket.level = full.min(bucket.level.saturating_add(u32::try_from(gained).unwrap_or(u32::MAX)));
            bucket.at_ms = now;
        }
        if bucket.level >= ONE {
            bucket.level -= ONE;
            return Verdict::Send;
        }
        bucket.held = (bucket.held + 1) % SLIP;
        if bucket.held == 0 { Verdict::Truncate } else { Verdict::Drop }
    }

    fn hash(&self, client: IpAddr, kind: Kind) -> u64 {
        let net = match client.to_canonical() {
            IpAddr::V4(v4) => u64::from(v4.to_bits() >> (32 - NET_BITS.0)),
            // The family is part of it: the top bits of an IPv6 network are never as small as an IPv4 one.
            IpAddr::V6(v6) => (v6.to_bits() >> (128 - u32::from(NET_BITS.1))) as u64 | 1 << 63,
        };
        let kind = match kind {
            Kind::Positive(name) => name | 3,
            Kind::Negative => 1,
            Kind::Error | Kind::Signed => 2,
        };
        let mut bytes = [0; 16];
        let (low, high) = bytes.split_at_mut(8);
        low.copy_from_slice(&net.to_le_bytes());
        high.copy_from_slice(&kind.to_le_bytes());
        SipHasher13::new_with_keys(self.secret[0], self.secret[1]).hash(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "192.0.2.1";

    fn sent(limiter: &mut Limiter, client: &str, kind: Kind, count: u32, now_ms: u64) -> u32 {
        let client = client.parse().unwrap();
        (0..count).map(|_| u32::from(limiter.check(client, kind, now_ms) == Verdict::Send)).sum()
    }

    #[test]
    fn a_flood_meets_the_rate_and_others_do_not() {
        let mut limiter = Limiter::new(100, [1, 2]);
        assert_eq!(sent(&mut limiter, A, Kind::Negative, 10_000, 5), 100);
        // The same network, but other kinds and names; another network.
        assert_eq!(sent(&mut limiter, A, Kind::Positive(8), 100, 5), 100);
        assert_eq!(sent(&mut limiter, A, Kind::Positive(16), 100, 5), 100);
        assert_eq!(sent(&mut limiter, "192.0.3.1", Kind::Negative, 100, 5), 100);
        assert_eq!(sent(&mut limiter, "192.0.2.255", Kind::Negative, 100, 5), 0);
        assert_eq!(sent(&mut limiter, A, Kind::Signed, 1000, 5), 1000);
        // A tenth of a second later, a tenth.
        assert_eq!(sent(&mut limiter, A, Kind::Negative, 1000, 105), 10);
        assert_eq!(sent(&mut limiter, A, Kind::Negative, 1000, 100_000), 100);
    }

    #[test]
    fn small_steps_of_time_add_up() {
        let mut limiter = Limiter::new(1, [1, 2]);
        assert_eq!(sent(&mut limiter, A, Kind::Error, 5, 0), 1);
        let got: u32 = (1..=10_000).map(|ms| sent(&mut limiter, A, Kind::Error, 1, ms)).sum();
        assert_eq!(got, 10);
    }

    #[test]
    fn half_of_what_is_held_back_says_come_over_tcp() {
        let mut limiter = Limiter::new(1, [1, 2]);
        let client = "2001:db8::1".parse().unwrap();
        let verdicts: Vec<_> = (0..5).map(|_| limiter.check(client, Kind::Negative, 0)).collect();
        assert_eq!(verdicts, [Verdict::Send, Verdict::Drop, Verdict::Truncate, Verdict::Drop, Verdict::Truncate]);
        assert_eq!(limiter.check("2001:db8:0:ff::9".parse().unwrap(), Kind::Negative, 0), Verdict::Drop, "one /56");
    }

    #[test]
    fn forged_sources_by_the_million_cost_no_memory_and_zero_is_no_limit() {
        let mut limiter = Limiter::new(10, [1, 2]);
        let before = limiter.buckets.len();
        for i in 0..500_000u32 {
            limiter.check(IpAddr::V4((i << 8).into()), Kind::Error, 0);
        }
        assert_eq!(limiter.buckets.len(), before);
        assert_eq!(sent(&mut Limiter::new(0, [1, 2]), A, Kind::Error, 100_000, 0), 100_000);
    }
}
