//! The free lines of the ring arena.
//!
//! First fit over a list ordered by address; neighbours join when they become free. Refuses to know what lies in a line.

use std::collections::BTreeMap;

use lb_core::abi::ring::Extent;

/// Free lines as (first line, count).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arena {
    free: BTreeMap<u32, u32>,
    lines: u32,
    free_lines: u32,
}

impl Arena {
    /// An arena of `lines` free lines.
    pub fn new(lines: u32) -> Self {
        let free = if lines == 0 { BTreeMap::new() } else { BTreeMap::from([(0, lines)]) };
        Self { free, lines, free_lines: lines }
    }

    /// Lines in all.
    pub fn lines(&self) -> u32 {
        self.lines
    }

    /// Lines that are free, perhaps in pieces.
    pub fn free_lines(&self) -> u32 {
        self.free_lines
    }

    /// Takes lines for a ring of `slots` slots, or says that no piece is large enough.
    pub fn take(&mut self, slots: u32) -> Option<Extent> {
        let lines = Extent { line: 0, slots }.lines();
        let (&line, &count) = self.free.iter().find(|&(_, &count)| count >= lines)?;
        self.cut(line, count, line, lines);
        Some(Extent { line, slots })
    }

    /// Whether every line of an extent is free.
    pub fn is_free(&self, extent: Extent) -> bool {
        self.piece(extent).is_some()
    }

    /// The free piece that holds all lines of an extent.
    fn piece(&self, extent: Extent) -> Option<(u32, u32)> {
        let (&line, &count) = self.free.range(..=extent.line).next_back()?;
        let end = u64::from(extent.line) + u64::from(extent.lines());
        (end <= u64::from(line) + u64::from(count)).then_some((line, count))
    }

    /// Takes a certain extent; false if a line of it is taken or outside.
    pub fn claim(&mut self, extent: Extent) -> bool {
        let lines = extent.lines();
        if lines == 0 {
            return true;
        }
        let Some((line, count)) = self.piece(extent) else { return false };
        self.cut(line, count, extent.line, lines);
        true
    }

    /// Gives an extent back.
    pub fn free(&mut self, extent: Extent) {
        let (mut line, mut count) = (extent.line, extent.lines());
        if count == 0 {
            return;
        }
        self.free_lines += count;
        if let Some((&before, &before_count)) = self.free.range(..line).next_back()
            && before + before_count == line
        {
            self.free.remove(&before);
            line = before;
            count += before_count;
        }
        if let Some(after_count) = self.free.remove(&(line + count)) {
            count += after_count;
        }
        self.free.insert(line, count);
    }

    /// Takes `lines` at `at` out of the free piece (`line`, `count`).
    fn cut(&mut self, line: u32, count: u32, at: u32, lines: u32) {
        self.free.remove(&line);
        if at > line {
            self.free.insert(line, at - line);
        }
        if at + lines < line + count {
            self.free.insert(at + lines, line + count - at - lines);
        }
        self.free_lines -= lines;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_fit_and_joining() {
        let mut arena = Arena::new(10);
        let [a, b, c] = [33, 16, 100].map(|slots| arena.take(slots));
        assert_eq!(a, Some(Extent { line: 0, slots: 33 }));
        assert_eq!(b, Some(Extent { line: 3, slots: 16 }));
        assert_eq!(c, None);
        assert_eq!(arena.free_lines(), 6);
        a.into_iter().chain(b).for_each(|e| arena.free(e));
        assert_eq!(arena, Arena::new(10));
    }

    #[test]
    fn claims_lines_that_are_free() {
        let mut arena = Arena::new(10);
        assert!(arena.claim(Extent { line: 4, slots: 32 }));
        assert!(!arena.claim(Extent { line: 5, slots: 1 }));
        assert!(!arena.claim(Extent { line: 9, slots: 17 }));
        assert!(!arena.claim(Extent { line: u32::MAX, slots: u32::MAX }));
        assert!(arena.claim(Extent { line: 6, slots: 64 }));
        assert_eq!(arena.free_lines(), 4);
    }

    proptest! {
        #[test]
        fn no_two_extents_share_a_line(steps in prop::collection::vec((1u32..200, any::<bool>()), 1..100)) {
            let mut arena = Arena::new(64);
            let mut held: Vec<Extent> = Vec::new();
            for (slots, give_back) in steps {
                if give_back && !held.is_empty() {
                    arena.free(held.swap_remove(slots as usize % held.len()));
                } else if let Some(extent) = arena.take(slots) {
                    held.push(extent);
                }
                let mut lines: Vec<u32> = held.iter().flat_map(|e| e.line..e.line + e.lines()).collect();
                let taken = lines.len();
                lines.sort_unstable();
                lines.dedup();
                prop_assert_eq!(lines.len(), taken);
                prop_assert_eq!(arena.free_lines() as usize + taken, 64);
            }
            held.into_iter().for_each(|e| arena.free(e));
            prop_assert_eq!(arena, Arena::new(64));
        }
    }
}
