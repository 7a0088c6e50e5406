//! A look at the flow table: which backends its records name, in which states, and on which slots.
//!
//! Pure: words in, answers out. Refuses to know: where the table lies, and what time it is.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use lb_core::abi::flow::{FlowState, Record, is_record};

use super::window::Records;

/// What one pass over the flow table found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    at_s: u64,
    /// Records by state, expired ones included until they are swept.
    pub states: [u64; 4],
    /// How long it took, sweeping included.
    pub took: Duration,
    /// Expired records that it removed.
    pub swept: u64,
    /// Records that a change of the table's size left in the table before, as they have no room in the one that took its place. They are
    /// found there.
    pub no_room: u64,
    /// See [`Look::compare`].
    pub drift: u64,
    /// Records of each backend by state.
    backends: HashMap<u32, [u64; 4]>,
    /// Services that have records.
    services: HashSet<u32>,
    /// Backends that records of a slot name, for the services whose slots were asked for.
    slots: HashMap<(u32, u32), Vec<u32>>,
}

impl Look {
    /// An empty look that begins at `at_s`.
    pub fn new(at_s: u64) -> Self {
        Self { at_s, ..Self::default() }
    }

    /// Takes a word of the table. `service` says whose a backend is (0 is nobody's); slots are noted for those in `residual`.
    pub fn take(&mut self, word: u64, service: impl Fn(u32) -> u32, residual: &HashSet<u32>) {
        if !is_record(word) {
            return;
        }
        let record = Record::unpack(word);
        let service = service(record.backend);
        if let Some(count) = self.states.get_mut(record.state as usize) {
            *count += 1;
        }
        if let Some(count) = self.backends.entry(record.backend).or_default().get_mut(record.state as usize) {
            *count += 1;
        }
        self.services.insert(service);
        if residual.contains(&service) {
            let named = self.slots.entry((service, record.slot)).or_default();
            if !named.contains(&record.backend) {
                named.push(record.backend);
            }
        }
    }

    /// Records in all.
    pub fn records(&self) -> u64 {
        self.states.iter().sum()
    }

    /// Records in a state.
    pub fn in_state(&self, state: FlowState) -> u64 {
        self.states.get(state as usize).copied().unwrap_or(0)
    }

    /// Records that name a backend.
    pub fn of_backend(&self, backend: u32) -> u64 {
        self.backends.get(&backend).map_or(0, |states| states.iter().sum())
    }

    /// Compares the counts of `ACTIVE`, as they stood before and after this look, with what it counted itself: the drift is by how much
    /// they are off, summed over backends. Between the two readings a count may have had any value in between; flows that come and go
    /// during a look can show as a drift that the next look does not have, an error in counting stays.
    pub fn compare(&mut self, before: &[u64], after: &[u64]) {
        let off = |counted: u64, a: u32, b: u32| {
            let (low, high) = (u64::from(a.min(b)), u64::from(a.max(b)));
            low.saturating_sub(counted) + counted.saturating_sub(high)
        };
        self.drift = (0..).zip(before.iter().zip(after)).fold(0, |drift, (id, (a, b))| {
            let [half_open, established, ..] = self.backends.get(&id).copied().unwrap_or_default();
            drift + off(established, *a as u32, *b as u32) + off(half_open, (a >> 32) as u32, (b >> 32) as u32)
        });
    }

    /// Every backend that a record names.
    pub fn backends(&self) -> impl Iterator<Item = u32> {
        self.backends.keys().copied()
    }
}

impl Records for Look {
    fn at_s(&self) -> u64 {
        self.at_s
    }

    fn others(&self, service: u32, slot: u32, current: u32) -> bool {
        self.slots.get(&(service, slot)).is_some_and(|named| named.iter().any(|id| *id != current))
    }

    fn any(&self, service: u32) -> bool {
        self.services.contains(&service)
    }

    fn names(&self, backend: u32) -> bool {
        self.backends.contains_key(&backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(backend: u32, slot: u32, state: FlowState) -> u64 {
        Record { backend, slot, state, expires_s: 9 }.pack()
    }

    #[test]
    fn records_are_counted_where_they_belong() {
        let mut look = Look::new(5);
        let words = [
            0,
            lb_core::abi::flow::BUSY,
            word(1, 3, FlowState::Established),
            word(1, 3, FlowState::HalfOpen),
            word(2, 3, FlowState::Once),
            word(7, 3, FlowState::Established),
        ];
        words.iter().for_each(|word| look.take(*word, |id| if id < 7 { 10 } else { 20 }, &HashSet::from([10])));
        assert_eq!((look.records(), look.states), (4, [1, 2, 0, 1]));
        assert_eq!((look.of_backend(1), look.of_backend(2), look.of_backend(3)), (2, 1, 0));
        assert!(
            look.others(10, 3, 1) && !look.others(10, 4, 1) && !look.others(20, 3, 1),
            "slots of residual services only"
        );
        assert!(look.any(20) && !look.any(30) && look.names(7) && !look.names(8));
    }

    #[test]
    fn drift_is_what_no_moment_of_the_look_explains() {
        let mut look = Look::new(0);
        let established = word(1, 0, FlowState::Established);
        [established, established, word(2, 0, FlowState::HalfOpen), word(2, 0, FlowState::Closing)]
            .iter()
            .for_each(|word| look.take(*word, |_| 1, &HashSet::new()));
        let half_open = |n: u64| n << 32;
        let table = [
            // (before, after, drift)
            ([0, 2, half_open(1)], [0, 2, half_open(1)], 0),
            ([0, 0, half_open(0)], [0, 5, half_open(3)], 0),
            ([0, 3, half_open(1)], [0, 3, half_open(1)], 1),
            ([0, 1, half_open(3)], [0, 0, half_open(4)], 1 + 2),
            ([1, 2, half_open(1)], [1, 2, half_open(1)], 1),
            ([0, 2, half_open(1) + 4], [0, 2, half_open(1) + 4], 4),
        ];
        for (before, after, drift) in table {
            look.compare(&before, &after);
            assert_eq!(look.drift, drift, "{before:?} {after:?}");
        }
    }
}
