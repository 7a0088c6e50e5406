//! Whom one attempt asks next. Pure: the shell and the simulation share it.
//!
//! A majority is asked first. Another node follows for each that cannot vote, all of them where nobody is left to answer, and
//! [`ASK_ALL_AFTER`] has passed, also where the lock is held by then: then every node that can has it, and the lock survives
//! the loss of as many nodes as Redlock says. A lock that is given back sooner has cost no message to them. Invariants: each
//! node is asked at most once; after [`Asking::end`] none is.

use std::time::Duration;

use crate::{
    command::{Refusal, Reply},
    error::NodeError,
};

/// After so long, nodes that were not asked are: longer than healthy nodes in one data centre take to answer.
pub const ASK_ALL_AFTER: Duration = Duration::from_millis(1);

/// The nodes of one attempt, those that were asked before the others.
#[derive(Clone, Debug, Default)]
pub struct Asking {
    order: Vec<usize>,
    asked: usize,
}

impl Asking {
    /// Nobody was asked; the first of `order` will be the first.
    pub fn new(order: Vec<usize>) -> Self {
        Self { order, asked: 0 }
    }

    /// The next `count`, or as many as there are.
    pub fn next(&mut self, count: usize) -> &[usize] {
        let from = self.asked;
        self.asked = from.saturating_add(count).min(self.order.len());
        &self.order[from..self.asked]
    }

    /// Whom to ask after an answer that decided nothing, while `on_way` requests are not answered. Who is refused by the first
    /// because another holds the lock is mostly refused by all, and to take the others from the holder for a moment would
    /// help nobody: they are asked only where nothing else can come.
    pub fn after(&mut self, is_voteless: bool, on_way: usize) -> &[usize] {
        self.next(if on_way == 0 { usize::MAX } else { usize::from(is_voteless) })
    }

    /// Those that were asked.
    pub fn asked(&self) -> &[usize] {
        &self.order[..self.asked]
    }

    /// Whether all were.
    pub fn is_complete(&self) -> bool {
        self.asked == self.order.len()
    }

    /// Those that were not asked; they are not any more.
    pub fn end(&mut self) -> Vec<usize> {
        self.order.split_off(self.asked)
    }
}

/// Whether a node that answers this has no vote to give, neither for nor against.
pub fn is_voteless(answer: &Result<Reply, NodeError>) -> bool {
    !matches!(answer, Ok(Reply::Granted { .. } | Reply::Refused(Refusal::Held { .. } | Refusal::Queued { .. })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_asked_for_lost_votes_and_where_nothing_else_can_come() {
        let begun = || {
            let mut asking = Asking::new(vec![4, 2, 0, 1, 3]);
            assert_eq!(asking.next(3), [4, 2, 0]);
            asking
        };
        let mut asking = begun();
        assert_eq!(asking.after(false, 2), [0; 0], "a refusal of one that another holds");
        assert_eq!(asking.after(true, 1), [1]);
        assert_eq!(asking.after(false, 0), [3]);
        assert!(asking.is_complete() && asking.next(usize::MAX).is_empty());
        let mut asking = begun();
        assert_eq!(asking.after(true, 0), [1, 3], "the last answer, and not enough votes");
        let mut asking = begun();
        assert_eq!(asking.end(), [1, 3]);
        assert!(asking.next(usize::MAX).is_empty() && asking.asked() == [4, 2, 0]);
    }

    #[test]
    fn whoever_grants_or_is_held_has_voted() {
        let granted = Ok(Reply::Granted { fence: 0, run_id: String::new() });
        for (answer, voteless) in [
            (granted, false),
            (Ok(Reply::Refused(Refusal::Held { remaining_ms: 1 })), false),
            (Ok(Reply::Refused(Refusal::Queued { ahead: 1 })), false),
            (Ok(Reply::Refused(Refusal::Quarantined { remaining_ms: 1 })), true),
            (Ok(Reply::Done), true),
            (Err(NodeError::Timeout), true),
        ] {
            assert_eq!(is_voteless(&answer), voteless, "{answer:?}");
        }
    }
}
