//! Which nodes may leave their quarantine, and with which counter.
//!
//! Pure. A node that was wiped may have been one of the majority that stored a token. Every majority of nodes that were
//! not wiped shares a node with that one, so the largest counter of a majority of ready nodes is never behind. Invariants:
//! a node never becomes ready by its own word; without a majority of ready nodes only the whole list can be repaired.

use crate::{
    command::{Command, List, Status},
    round::majority,
};

/// What to send to whom, from what all nodes of `list` said; `None` for those that did not answer.
pub fn plan(statuses: &[Option<Status>], list: &List, max_ttl_ms: u64) -> Vec<(usize, Command)> {
    let known = || statuses.iter().flatten();
    let ready = known().filter(|status| status.ready).count();
    let too_few = ready < majority(statuses.len());
    let whole =
        too_few && known().count() == statuses.len() && known().all(|status| status.ready || status.quarantine_ms == 0);
    // All restarted at once: the counters of all of them include every token that any of them kept.
    if too_few && !whole {
        return Vec::new();
    }
    let sources = || known().filter(|status| status.ready || whole);
    let fence = sources().map(|status| status.fence).max().unwrap_or(0);
    let max_ttl_ms = known().map(|status| status.max_ttl_ms).max().unwrap_or(0).max(max_ttl_ms);
    let newest = sources().map(|status| &status.list).max_by_key(|list| list.id.epoch).filter(|l| l.id.epoch > 0);
    let list = newest.unwrap_or(list);
    let target = |status: &Status| !status.ready && status.quarantine_ms == 0;
    let targets = statuses.iter().enumerate().filter_map(|(node, status)| Some((node, status.as_ref()?)));
    targets
        .filter(|(_, status)| target(status))
        .map(|(node, status)| {
            let run_id = status.run_id.clone();
            (node, Command::Ready { run_id, fence, max_ttl_ms, list: list.clone(), force: false })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(ready: bool, quarantine_ms: u64, fence: u64) -> Option<Status> {
        Some(Status { run_id: "r".into(), ready, quarantine_ms, fence, max_ttl_ms: 500, ..Status::default() })
    }

    fn fences(statuses: &[Option<Status>]) -> Vec<(usize, u64)> {
        plan(statuses, &List::default(), 100)
            .into_iter()
            .map(|(node, command)| match command {
                Command::Ready { fence, max_ttl_ms, force, .. } => {
                    assert!(max_ttl_ms == 500 && !force);
                    (node, fence)
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_counter_comes_from_a_majority_of_ready_nodes() {
        let (ready, over) = (status(true, 0, 7), status(false, 0, 1));
        assert_eq!(fences(&[ready.clone(), ready.clone(), over.clone()]), [(2, 7)]);
        // One ready node of three is no majority, and the third did not answer.
        assert_eq!(fences(&[ready.clone(), None, over.clone()]), []);
        // Its own counter does not count towards itself while others are ready.
        assert_eq!(fences(&[ready.clone(), ready.clone(), status(false, 0, 99)]), [(2, 7)]);
        assert_eq!(fences(&[ready.clone(), ready, status(false, 5, 1)]), [], "the quarantine is not over");
    }

    #[test]
    fn without_ready_nodes_all_have_to_answer_after_their_quarantine() {
        let over = |fence| status(false, 0, fence);
        assert_eq!(fences(&[over(3), over(9), over(0)]), [(0, 9), (1, 9), (2, 9)]);
        assert_eq!(fences(&[over(3), over(9), None]), []);
        assert_eq!(fences(&[over(3), over(9), status(false, 1, 0)]), []);
    }
}
