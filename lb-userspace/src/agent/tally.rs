//! Counters of backends and services, steady while backends come and go.
//!
//! The maps count per backend id. A service's total must not fall when a backend goes, and a new backend must not start with
//! what its id counted for another: so the tally remembers what went, and where each new id started.
//!
//! Pure. Invariant: the total of a service never falls as long as the counters in the maps do not.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lb_core::abi::stats::Counter;

use crate::{model::ServiceKey, plan::Present};

/// Counters by backend id.
pub type ById = BTreeMap<u32, Counter>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Ids in use, with their service.
    live: HashMap<u32, ServiceKey>,
    /// What an id had counted when its present backend got it.
    base: HashMap<u32, Counter>,
    /// What backends that went had counted.
    gone: HashMap<ServiceKey, Counter>,
}

fn minus(a: Counter, b: Counter) -> Counter {
    // A counter below its base was cleared in between: everything in it is new.
    if a.packets < b.packets || a.bytes < b.bytes {
        return a;
    }
    Counter { packets: a.packets - b.packets, bytes: a.bytes - b.bytes }
}

fn plus(a: Counter, b: Counter) -> Counter {
    Counter { packets: a.packets.saturating_add(b.packets), bytes: a.bytes.saturating_add(b.bytes) }
}

fn ids(present: &Present) -> HashMap<u32, ServiceKey> {
    present.services().flat_map(|(key, s)| s.backends.iter().map(|b| (b.id, *key))).collect()
}

impl Tally {
    /// Starts from maps whose counters all belong to the backends that they hold.
    pub fn new(present: &Present) -> Self {
        Self { live: ids(present), ..Self::default() }
    }

    /// Ids that a change to `next` takes out of use: their counters are read before it is applied.
    pub fn leaving(&self, next: &Present) -> Vec<u32> {
        let next = ids(next);
        self.live.iter().filter(|(id, key)| next.get(id) != Some(key)).map(|(id, _)| *id).collect()
    }

    /// Ids that `next` takes into use.
    pub fn coming(&self, next: &Present) -> Vec<u32> {
        ids(next).into_iter().filter(|(id, key)| self.live.get(id) != Some(key)).map(|(id, _)| id).collect()
    }

    /// The maps hold `next` now. `read` has the counters of the leaving and the coming ids, from just before.
    pub fn changed(&mut self, next: &Present, read: &ById) {
        let now = ids(next);
        for id in self.leaving(next) {
            let base = self.base.remove(&id).unwrap_or_default();
            if let Some(key) = self.live.get(&id) {
                let counted = minus(read.get(&id).copied().unwrap_or_default(), base);
                let total = self.gone.entry(*key).or_default();
                *total = plus(*total, counted);
            }
        }
        for id in self.coming(next) {
            self.base.insert(id, read.get(&id).copied().unwrap_or_default());
        }
        let services: BTreeSet<ServiceKey> = next.services().map(|(key, _)| *key).collect();
        self.gone.retain(|key, _| services.contains(key));
        self.live = now;
    }

    /// All ids in use.
    pub fn ids(&self) -> Vec<u32> {
        self.live.keys().copied().collect()
    }

    /// What the backend with an id counted.
    pub fn backend(&self, id: u32, read: &ById) -> Counter {
        let base = self.base.get(&id).copied().unwrap_or_default();
        minus(read.get(&id).copied().unwrap_or_default(), base)
    }

    /// What each service counted, gone backends included.
    pub fn services(&self, read: &ById) -> HashMap<ServiceKey, Counter> {
        let mut totals = self.gone.clone();
        for (id, key) in &self.live {
            let total = totals.entry(*key).or_default();
            *total = plus(*total, self.backend(*id, read));
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    fn key() -> ServiceKey {
        ServiceKey { vip: [192, 0, 2, 1].into(), port: 80, protocol: Protocol::Tcp }
    }

    fn count(packets: u64) -> Counter {
        Counter { packets, bytes: packets * 100 }
    }

    #[test]
    fn totals_do_not_fall_and_ids_start_at_zero() {
        let mut tally = Tally { live: HashMap::from([(1, key()), (2, key())]), ..Tally::default() };
        let read = ById::from([(1, count(5)), (2, count(7))]);
        assert_eq!(tally.services(&read)[&key()], count(12));
        // Backend 2 went, with 9 counted in the end; id 3 came, which had counted 100 for somebody else.
        tally.gone.insert(key(), count(9));
        tally.live = HashMap::from([(1, key()), (3, key())]);
        tally.base.insert(3, count(100));
        let read = ById::from([(1, count(5)), (3, count(101))]);
        assert_eq!(tally.backend(3, &read), count(1));
        assert_eq!(tally.services(&read)[&key()], count(15));
        // The maps cleared the counter when the id was given out.
        assert_eq!(tally.backend(3, &ById::from([(3, count(4))])), count(4));
    }
}
