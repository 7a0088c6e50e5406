//! An agent that dies between two stores. Refuses to know what is stored.

use std::collections::HashSet;

use lb_userspace::dataplane::apply::{Map, Memory};

/// Memory that fails after a number of stores: the agent died there.
pub struct Dying<'m, M> {
    /// What is stored to.
    pub memory: &'m mut M,
    /// Stores that are left.
    pub stores: u32,
}

impl<M: Memory> Memory for Dying<'_, M> {
    fn entries(&self, map: Map) -> u32 {
        self.memory.entries(map)
    }

    fn load(&self, map: Map, index: u32, word: usize) -> Option<u64> {
        self.memory.load(map, index, word)
    }

    fn store(&mut self, map: Map, index: u32, word: usize, value: u64) -> bool {
        match self.stores.checked_sub(1) {
            Some(left) => {
                self.stores = left;
                self.memory.store(map, index, word, value)
            }
            None => false,
        }
    }

    fn recorded(&self) -> HashSet<u32> {
        self.memory.recorded()
    }

    fn synchronize(&self) {
        self.memory.synchronize();
    }
}
