//! The contents of `LOOKUP`: which word lies in which bucket.
//!
//! Two-choice hashing with seven ways (see [`lb_core::abi::lookup`]): a key goes to the emptier of its two buckets, the first
//! one when both are equal. A key that lives in its second bucket is counted in the first's overflow mark, for a reader looks at the
//! second bucket only where that mark is not zero. Each change gives the words to store, in an order in which every reader
//! finds each key that was there before and after.
//!
//! Refuses to know: what ids mean, where the table lies. Invariant: each key once.

use std::fmt;

use lb_core::{
    abi::lookup::{Bucket, Entry, Key, WAYS},
    hash::{self, HashKey},
};

use super::op::{LOOKUP_WORD_OVERFLOWED, Op};

/// Both buckets of a key are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("both lookup buckets of a key are full ({entries} entries in {buckets} buckets)")]
pub struct Full {
    /// Entries of the table.
    pub entries: u32,
    /// Buckets of the table.
    pub buckets: u32,
}

/// The table.
#[derive(Clone, PartialEq, Eq)]
pub struct Table {
    buckets: Vec<Bucket>,
    key: HashKey,
    mask: u32,
    entries: u32,
}

impl fmt::Debug for Table {
    /// Without the key, which is secret, and the buckets, whose tags follow from it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("entries", &self.entries).field("buckets", &self.buckets.len()).finish()
    }
}

/// Where a key lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    bucket: u32,
    way: usize,
}

const EMPTY: Bucket = Bucket { entries: [0; WAYS], overflowed: 0 };

impl Table {
    /// An empty table of `buckets` buckets (a power of two).
    pub fn new(key: HashKey, buckets: u32) -> Self {
        Self::from_buckets(key, vec![EMPTY; buckets as usize])
    }

    /// The table that a map holds. The number of buckets is a power of two.
    pub fn from_buckets(key: HashKey, buckets: Vec<Bucket>) -> Self {
        let entries = buckets.iter().flat_map(|b| b.entries).filter(|&word| word != 0).count() as u32;
        let mask = (buckets.len() as u32).saturating_sub(1);
        Self { buckets, key, mask, entries }
    }

    /// Entries in the table.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// The buckets.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The words of the table that are in use, unpacked.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.buckets.iter().flat_map(|b| b.entries).filter(|&word| word != 0).map(Entry::unpack)
    }

    /// The id under `key`, found as the program finds it. `is_key` compares the full key of an id whose tag matches.
    pub fn find(&self, key: &Key, is_key: impl Fn(u32) -> bool) -> Option<u32> {
        let (first, second, tag) = self.places(key);
        let matching = |bucket: u32| {
            self.bucket(bucket)
                .entries
                .into_iter()
                .map(Entry::unpack)
                .find_map(|e| (e.tag == tag && e.kind == key.kind && e.id != 0 && is_key(e.id)).then_some(e.id))
        };
        matching(first).or_else(|| if self.bucket(first).overflowed != 0 { matching(second) } else { None })
    }

    /// Puts `key` in, which must not be there yet, and appends the words to store to `ops`.
    pub fn insert(&mut self, key: &Key, id: u32, ops: &mut Vec<Op>) -> Result<(), Full> {
        let (first, second, tag) = self.places(key);
        let room = |bucket: u32| self.bucket(bucket).entries.iter().filter(|&&word| word == 0).count();
        let bucket = if second != first && room(second) > room(first) { second } else { first };
        let Some(way) = self.bucket(bucket).entries.iter().position(|&word| word == 0) else {
            return Err(Full { entries: self.entries, buckets: self.buckets.len() as u32 });
        };
        self.entries += 1;
        self.store(bucket, way, Entry { tag, kind: key.kind, id }.pack(), ops);
        if bucket != first {
            // After the entry: the mark makes readers look at the second bucket, where the entry now is.
            let overflowed = self.bucket(first).overflowed + 1;
            self.store(first, LOOKUP_WORD_OVERFLOWED, overflowed, ops);
        }
        Ok(())
    }

    /// Whether `key` names `id`.
    pub fn holds(&self, key: &Key, id: u32) -> bool {
        self.place(key, id).is_some()
    }

    /// Lets the word of `key` name `new` instead of `old`, in one store; false if it is not there.
    pub fn replace(&mut self, key: &Key, old: u32, new: u32, ops: &mut Vec<Op>) -> bool {
        let tag = self.places(key).2;
        let Some(place) = self.place(key, old) else { return false };
        self.store(place.bucket, place.way, Entry { tag, kind: key.kind, id: new }.pack(), ops);
        true
    }

    /// Takes `key`, which names `id`, out; false if it is not there.
    pub fn remove(&mut self, key: &Key, id: u32, ops: &mut Vec<Op>) -> bool {
        let first = self.places(key).0;
        let Some(place) = self.place(key, id) else { return false };
        self.store(place.bucket, place.way, 0, ops);
        if place.bucket != first {
            let overflowed = self.bucket(first).overflowed.saturating_sub(1);
            self.store(first, LOOKUP_WORD_OVERFLOWED, overflowed, ops);
        }
        self.entries -= 1;
        true
    }

    /// Corrects the overflow marks, which a writer that was stopped between two stores may have left wrong. `keys` are all
    /// keys of the table with their ids. False if the table does not hold exactly those.
    pub fn correct_marks(&mut self, keys: &[(Key, u32)], ops: &mut Vec<Op>) -> bool {
        let mut marks = vec![0u64; self.buckets.len()];
        for (key, id) in keys {
            let first = self.places(key).0;
            let Some(place) = self.place(key, *id) else { return false };
            if place.bucket != first
                && let Some(mark) = marks.get_mut(first as usize)
            {
                *mark += 1;
            }
        }
        for (bucket, mark) in (0..).zip(marks) {
            if self.bucket(bucket).overflowed != mark {
                self.store(bucket, LOOKUP_WORD_OVERFLOWED, mark, ops);
            }
        }
        keys.len() == self.entries as usize
    }

    fn places(&self, key: &Key) -> (u32, u32, u32) {
        hash::lookup_buckets(hash::lookup(&self.key, key), self.mask)
    }

    fn bucket(&self, bucket: u32) -> &Bucket {
        self.buckets.get(bucket as usize).unwrap_or(&EMPTY)
    }

    fn place(&self, key: &Key, id: u32) -> Option<Place> {
        let (first, second, tag) = self.places(key);
        let word = Entry { tag, kind: key.kind, id }.pack();
        [first, second].into_iter().find_map(|bucket| {
            let way = self.bucket(bucket).entries.iter().position(|&w| w == word)?;
            Some(Place { bucket, way })
        })
    }

    fn store(&mut self, bucket: u32, word: usize, value: u64, ops: &mut Vec<Op>) {
        if let Some(b) = self.buckets.get_mut(bucket as usize) {
            match b.entries.get_mut(word) {
                Some(entry) => *entry = value,
                None => b.overflowed = value,
            }
            ops.push(Op::LookupWord { bucket, word, value });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_core::abi::lookup::Kind;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    fn key(n: u32, kind: Kind) -> Key {
        Key { addr: lb_core::abi::mapped(n.to_be_bytes()), port: n as u16, proto: 6, kind: kind as u8 }
    }

    fn hash_key(seed: u64) -> HashKey {
        let mut rng = StdRng::seed_from_u64(seed);
        std::array::from_fn(|_| rng.random())
    }

    /// Every key of `held` is found, and the stores in `ops`, replayed on `copy`, give the same table.
    fn check(table: &Table, held: &BTreeMap<Key, u32>) {
        for (key, &id) in held {
            assert_eq!(table.find(key, |candidate| candidate == id), Some(id), "{key:?}");
        }
        assert_eq!(table.entries() as usize, held.len());
        assert_eq!(table.iter().count(), held.len());
    }

    fn replay(copy: &mut [Bucket], ops: &[Op]) {
        for op in ops {
            let Op::LookupWord { bucket, word, value } = *op else { panic!("{op:?}") };
            match copy[bucket as usize].entries.get_mut(word) {
                Some(entry) => *entry = value,
                None => copy[bucket as usize].overflowed = value,
            }
        }
    }

    #[test]
    fn the_rated_load_never_fails() {
        for seed in 0..4 {
            let mut table = Table::new(hash_key(seed), 32_768);
            let mut ops = Vec::new();
            for n in 1..=4096 {
                table.insert(&key(n, Kind::Service), n, &mut ops).unwrap();
                table.insert(&key(n, Kind::Vip), n, &mut ops).unwrap();
            }
            for n in 1..=65_536 {
                table
                    .insert(&key(n, Kind::Reply), n, &mut ops)
                    .unwrap_or_else(|e| panic!("seed {seed}, reply {n}: {e}"));
            }
            assert_eq!(table.entries(), 2 * 4096 + 65_536);
            for n in 1..=65_536 {
                assert_eq!(table.find(&key(n, Kind::Reply), |id| id == n), Some(n));
            }
            assert_eq!(table.find(&key(70_000, Kind::Reply), |_| true), None);
        }
    }

    #[test]
    fn a_full_pair_of_buckets_is_an_error_and_changes_nothing() {
        let mut table = Table::new(hash_key(1), 1);
        let mut ops = Vec::new();
        for n in 1..=7 {
            table.insert(&key(n, Kind::Service), n, &mut ops).unwrap();
        }
        let before = table.clone();
        assert_eq!(table.insert(&key(8, Kind::Service), 8, &mut ops), Err(Full { entries: 7, buckets: 1 }));
        assert_eq!(table, before);
    }

    #[test]
    fn replacing_is_one_store() {
        let mut table = Table::new(hash_key(1), 64);
        let k = key(1, Kind::Vip);
        table.insert(&k, 5, &mut Vec::new()).unwrap();
        let mut ops = Vec::new();
        assert!(table.replace(&k, 5, 6, &mut ops));
        assert_eq!(ops.len(), 1);
        assert_eq!(table.find(&k, |_| true), Some(6));
        assert!(!table.replace(&k, 5, 7, &mut ops) && !table.remove(&k, 5, &mut ops));
        assert!(table.remove(&k, 6, &mut ops));
        assert_eq!(table, Table::new(hash_key(1), 64));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// At up to 5 entries per bucket, after each of many insertions and removals.
        #[test]
        fn what_is_in_is_found(seed: u64, steps in prop::collection::vec((0u32..80, any::<bool>()), 1..400)) {
            let mut table = Table::new(hash_key(seed), 16);
            let mut copy = table.buckets().to_vec();
            let mut held = BTreeMap::new();
            for (n, remove) in steps {
                let mut ops = Vec::new();
                let k = key(n, if n % 2 == 0 { Kind::Service } else { Kind::Reply });
                if remove {
                    prop_assert_eq!(table.remove(&k, n + 1, &mut ops), held.remove(&k).is_some());
                } else if !held.contains_key(&k) && table.insert(&k, n + 1, &mut ops).is_ok() {
                    held.insert(k, n + 1);
                }
                replay(&mut copy, &ops);
                prop_assert_eq!(&copy, table.buckets());
                check(&table, &held);
            }
            let again = Table::from_buckets(hash_key(seed), copy);
            check(&again, &held);
            // The marks return to zero with the last key: no reader looks twice for nothing.
            for (k, id) in held {
                prop_assert!(table.remove(&k, id, &mut Vec::new()));
            }
            prop_assert!(table.buckets().iter().all(|b| *b == EMPTY));
        }
    }
}
