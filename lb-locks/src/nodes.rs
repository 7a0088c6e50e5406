//! The nodes of one list, and which of them to ask first.
//!
//! Invariants: a list never changes, a new one takes its place; the order is a guess about speed and decides nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    clock::{BootTime, ms},
    command::{List, ListId, Refusal, Reply},
    error::NodeError,
    node::Node,
};

/// A node that was late or could not vote is asked after the others for so long.
const LATE_FOR: Duration = Duration::from_secs(1);

/// The nodes of one list.
#[derive(Debug)]
pub struct Nodes {
    pub list: List,
    pub nodes: Vec<Arc<dyn Node>>,
    pub names: Arc<[String]>,
    /// Until when each is asked last, in milliseconds of the boot-time clock.
    late_until_ms: Box<[AtomicU64]>,
}

impl Nodes {
    pub fn new(id: ListId, nodes: Vec<Arc<dyn Node>>) -> Self {
        Self::of(List { id, members: String::new() }, nodes)
    }

    pub fn of(list: List, nodes: Vec<Arc<dyn Node>>) -> Self {
        let names = nodes.iter().map(|node| node.name().to_owned()).collect();
        let late_until_ms = nodes.iter().map(|_| AtomicU64::new(0)).collect();
        Self { list, nodes, names, late_until_ms }
    }

    /// All nodes, those that were late a short while ago at the end. Else it is the order of the list for every client:
    /// clients that fight for a lock meet at the same nodes first, and share the votes less often.
    pub fn order(&self, now: BootTime) -> Vec<usize> {
        let now_ms = ms(now.0);
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        // The sort is stable.
        order.sort_by_key(|&at| self.late_until_ms[at].load(Ordering::Relaxed) > now_ms);
        order
    }

    /// Notes that a node has not answered when the others had.
    pub fn note_late(&self, at: usize, now: BootTime) {
        if let Some(until_ms) = self.late_until_ms.get(at) {
            until_ms.store(ms((now + LATE_FOR).0), Ordering::Relaxed);
        }
    }

    /// Notes how a node answered to a request for its vote.
    pub fn note(&self, at: usize, answer: &Result<Reply, NodeError>, now: BootTime) {
        let voteless = match answer {
            Err(_) => true,
            Ok(Reply::Refused(refusal)) => {
                matches!(refusal, Refusal::Quarantined { .. } | Refusal::NeedsRepair { .. } | Refusal::OtherList { .. })
            }
            Ok(_) => false,
        };
        if voteless {
            self.note_late(at, now);
        } else if let Some(until_ms) = self.late_until_ms.get(at) {
            until_ms.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::memory::MemoryNode;

    #[test]
    fn late_nodes_are_asked_last_and_for_a_while_only() {
        let nodes = (0..4).map(|n| Arc::new(MemoryNode::new(&n.to_string())) as Arc<dyn Node>);
        let nodes = Nodes::new(ListId::default(), nodes.collect());
        let at = |ms| BootTime(Duration::from_millis(ms));
        assert_eq!(nodes.order(at(5)), [0, 1, 2, 3]);
        nodes.note_late(0, at(5));
        nodes.note(2, &Err(NodeError::Timeout), at(5));
        assert_eq!(nodes.order(at(6)), [1, 3, 0, 2]);
        // Contention says nothing about the node.
        nodes.note(1, &Ok(Reply::Refused(Refusal::Held { remaining_ms: 1 })), at(6));
        nodes.note(3, &Ok(Reply::Refused(Refusal::Quarantined { remaining_ms: 1 })), at(6));
        nodes.note(2, &Ok(Reply::Done), at(7));
        assert_eq!(nodes.order(at(7)), [1, 2, 0, 3]);
        assert_eq!(nodes.order(at(1_006)), [0, 1, 2, 3]);
    }
}
