//! A look at the flow table: which backends its records name, and on which slots.
//!
//! Pure: words in, answers out. Refuses to know: where the table lies.

use std::collections::{HashMap, HashSet};

use lb_core::abi::flow::{FlowState, Record, is_record};

use super::window::Records;

/// What one pass over the flow table found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    at_s: u64,
    /// Records by state, expired ones included until they are swept.
    pub states: [u64; 4],
    /// Records of each backend.
    backends: HashMap<u32, u64>,
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
        *self.backends.entry(record.backend).or_default() += 1;
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
        self.backends.get(&backend).copied().unwrap_or(0)
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
