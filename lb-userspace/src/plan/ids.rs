//! A pool of ids 1 to `end - 1`.
//!
//! Allocation goes round, so that an id that became free is the last to be used again. Refuses to know what an id means.
//! Invariant: id 0 is never given.

/// The pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPool {
    /// One bit per id, set while it is in use or in quarantine.
    used: Vec<u64>,
    end: u32,
    next: u32,
    count: u32,
}

impl IdPool {
    /// A pool in which ids 1 to `end - 1` are free.
    pub fn new(end: u32) -> Self {
        Self { used: vec![0; end.div_ceil(64) as usize], end, next: 1, count: 0 }
    }

    /// Ids in use.
    pub fn used(&self) -> u32 {
        self.count
    }

    /// Whether `id` is in use.
    pub fn is_used(&self, id: u32) -> bool {
        self.used.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    /// Takes a certain id; false if it is taken or out of range.
    pub fn claim(&mut self, id: u32) -> bool {
        if id == 0 || id >= self.end || self.is_used(id) {
            return false;
        }
        if let Some(word) = self.used.get_mut(id as usize / 64) {
            *word |= 1 << (id % 64);
            self.count += 1;
            self.next = if id + 1 < self.end { id + 1 } else { 1 };
        }
        true
    }

    /// Takes the next free id.
    pub fn take(&mut self) -> Option<u32> {
        if self.count + 1 >= self.end {
            return None;
        }
        let mut id = self.next;
        for _ in 0..self.end {
            if id >= self.end || id == 0 {
                id = 1;
            }
            // Skip 64 ids at once where they are all in use.
            if id.is_multiple_of(64) && self.used.get(id as usize / 64) == Some(&u64::MAX) {
                id += 64;
                continue;
            }
            if self.claim(id) {
                return Some(id);
            }
            id += 1;
        }
        None
    }

    /// Gives `id` back.
    pub fn free(&mut self, id: u32) {
        if self.is_used(id)
            && let Some(word) = self.used.get_mut(id as usize / 64)
        {
            *word &= !(1 << (id % 64));
            self.count -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_once_and_never_zero() {
        let mut pool = IdPool::new(200);
        let mut seen: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (1..200).collect::<Vec<_>>());
        assert_eq!(pool.used(), 199);
    }

    #[test]
    fn a_freed_id_is_reused_last() {
        let mut pool = IdPool::new(4);
        assert_eq!(pool.take(), Some(1));
        pool.free(1);
        assert_eq!([pool.take(), pool.take(), pool.take(), pool.take()], [Some(2), Some(3), Some(1), None]);
    }

    #[test]
    fn claims() {
        let mut pool = IdPool::new(4);
        assert!(pool.claim(3));
        assert!(!pool.claim(3) && !pool.claim(0) && !pool.claim(4));
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(1), Some(2), None]);
        pool.free(0);
        pool.free(9);
        assert_eq!(pool.used(), 3);
    }
}
