//! Bursts: the first change is passed on at once, what follows within a window is passed on together at its end.
//!
//! [pure] `now_ms` comes in, any monotonic clock.
//!
//! Invariants: order is kept and nothing is lost; nothing waits longer than the window; after a quiet window the next
//! item is immediate again.

/// Window of a reader, in milliseconds.
pub const WINDOW_MS: u64 = 50;

/// Items on their way to somebody who had rather take many at once.
#[derive(Debug)]
pub struct Batch<T> {
    window_ms: u64,
    waiting: Vec<T>,
    /// End of the window that the last delivery opened.
    until_ms: u64,
}

impl<T> Batch<T> {
    /// Nothing waits, and the first item is immediate.
    pub const fn new(window_ms: u64) -> Self {
        Self { window_ms, waiting: Vec::new(), until_ms: 0 }
    }

    /// Takes one item.
    pub fn push(&mut self, item: T) {
        self.waiting.push(item);
    }

    /// What is to be passed on now; empty if nothing is.
    pub fn take(&mut self, now_ms: u64) -> Vec<T> {
        if self.waiting.is_empty() || now_ms < self.until_ms {
            return Vec::new();
        }
        self.until_ms = now_ms.saturating_add(self.window_ms);
        std::mem::take(&mut self.waiting)
    }

    /// When [`Self::take`] will have something.
    pub fn deadline_ms(&self) -> Option<u64> {
        (!self.waiting.is_empty()).then_some(self.until_ms)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Items as (time, item); what is passed on when.
    fn run(items: &[(u64, u32)], until_ms: u64) -> Vec<(u64, Vec<u32>)> {
        let mut batch = Batch::new(WINDOW_MS);
        let mut passed = Vec::new();
        for now_ms in 0..until_ms {
            for (_, item) in items.iter().filter(|(at, _)| *at == now_ms) {
                batch.push(*item);
            }
            let taken = batch.take(now_ms);
            if !taken.is_empty() {
                passed.push((now_ms, taken));
            }
        }
        assert!(batch.is_empty());
        passed
    }

    #[test]
    fn the_first_is_immediate_and_a_burst_is_one() {
        assert_eq!(run(&[(7, 1)], 100), [(7, vec![1])]);
        let burst = [(7, 1), (8, 2), (20, 3), (56, 4)];
        assert_eq!(run(&burst, 200), [(7, vec![1]), (57, vec![2, 3, 4])]);
        // The window of the second delivery holds too, and after a quiet one the next is immediate.
        let two = [(7, 1), (8, 2), (60, 3), (158, 4)];
        assert_eq!(run(&two, 300), [(7, vec![1]), (57, vec![2]), (107, vec![3]), (158, vec![4])]);
    }

    #[test]
    fn a_steady_stream_comes_every_window() {
        let steady: Vec<_> = (0..500).map(|at| (at, at as u32)).collect();
        let passed = run(&steady, 600);
        assert_eq!(passed.len(), 11);
        let items: Vec<_> = passed.iter().flat_map(|(_, items)| items.clone()).collect();
        assert_eq!(items, (0..500).collect::<Vec<_>>());
        for (now_ms, items) in &passed {
            assert!(items.iter().all(|at| now_ms - u64::from(*at) <= WINDOW_MS));
        }
    }

    #[test]
    fn the_deadline_is_when_something_comes() {
        let mut batch = Batch::new(WINDOW_MS);
        assert_eq!(batch.deadline_ms(), None);
        batch.push(1);
        assert_eq!((batch.deadline_ms(), batch.len()), (Some(0), 1));
        assert_eq!(batch.take(10), [1]);
        batch.push(2);
        assert_eq!(batch.deadline_ms(), Some(60));
        assert!(batch.take(59).is_empty());
        assert_eq!(batch.take(60), [2]);
    }
}
