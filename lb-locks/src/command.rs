//! What is asked of one lock node, and what it answers: the vocabulary of every store.
//!
//! Owns: commands, replies and refusals, without a word about how a store carries them out ([`crate::model`] defines
//! that). Invariants: all times here are milliseconds; a reply that is not a grant says why.

use crate::value::Value;

/// Exclusive, or shared with other readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One holder.
    #[default]
    Exclusive,
    /// Any number of readers, and no exclusive holder.
    Shared,
}

/// Which list of nodes a client believes in: the number grows by one with each change, the digest tells two lists of one
/// number apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub struct ListId {
    /// Number of the list, from 1; 0 for a store that has no list.
    pub epoch: u64,
    /// Digest over the names of its nodes.
    pub digest: String,
}

/// What a node checks before it votes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The client's list.
    pub list: ListId,
    /// Longest lock, in milliseconds; a node that has no such limit yet takes this one.
    pub max_ttl_ms: u64,
    /// Whether a node that restarted or was emptied keeps out of votes. Off only to show what happens then.
    pub quarantine: bool,
}

/// A place in first-come order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Names the waiter; the same over all its attempts.
    pub id: String,
    /// Smaller goes first; without one the node's own order of arrival counts.
    pub order: Option<u64>,
    /// The place is lost when nothing was heard of the waiter for so many milliseconds.
    pub patience_ms: u64,
}

/// One request to one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Take the lock.
    Acquire {
        /// The lock.
        name: String,
        /// The holder's value.
        value: Value,
        /// Exclusive or shared.
        mode: Mode,
        /// Lifetime.
        ttl_ms: u64,
        /// Raise the node's counter and return it.
        fence: bool,
        /// First-come order.
        ticket: Option<Ticket>,
        /// What to check first.
        terms: Terms,
    },
    /// Second fencing round: raise the counter to `fence`, if the lock is still held with this value.
    Confirm {
        /// The lock.
        name: String,
        /// The holder's value.
        value: Value,
        /// The chosen token.
        fence: u64,
    },
    /// Prolong a lock that is still held with this value.
    Extend {
        /// The lock.
        name: String,
        /// The holder's value.
        value: Value,
        /// New lifetime, from now.
        ttl_ms: u64,
        /// What to check first.
        terms: Terms,
    },
    /// Give the lock back, if it is held with this value, and the place in the queue.
    Release {
        /// The lock.
        name: String,
        /// The holder's value.
        value: Value,
        /// The place to give up.
        ticket: Option<String>,
    },
    /// Tell about the node.
    Status,
    /// End the quarantine of the node's run `run_id`, with a counter of at least `fence`.
    Ready {
        /// The run that was repaired; another one is refused.
        run_id: String,
        /// What a majority of nodes has counted.
        fence: u64,
        /// The longest lock that any node allows.
        max_ttl_ms: u64,
        /// The list that a majority has.
        list: List,
        /// Do not wait for the end of the quarantine: first set-up, by the operator's word that nothing is held.
        force: bool,
    },
    /// Change the list from `from` to `list`.
    SetList {
        /// The list that must be there now.
        from: ListId,
        /// The new one.
        list: List,
        /// The node is new in the list: whatever it was before, it is repaired before it votes.
        join: bool,
    },
    /// Who holds and who waits for a lock.
    Inspect {
        /// The lock.
        name: String,
    },
    /// Names of locks that are held or waited for, at most `limit`.
    Names {
        /// Most names to return.
        limit: usize,
    },
}

/// A list of nodes with its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Number and digest.
    pub id: ListId,
    /// The nodes, in the text form of [`crate::members`].
    pub members: String,
}

/// What a node answers to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The lock is yours here.
    Granted {
        /// The node's counter after it was raised, or 0 if none was asked for.
        fence: u64,
        /// The node's run, which tells when one server is listed twice.
        run_id: String,
    },
    /// Done: confirmed, extended, released, ready, or changed.
    Done,
    /// Nothing is held with this value here.
    Gone,
    /// No.
    Refused(Refusal),
    /// See [`Status`].
    Status(Status),
    /// See [`Inspection`].
    Inspection(Inspection),
    /// Names of locks, in order.
    Names(Vec<String>),
}

/// Why a node does not vote, or does not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Someone else holds the lock.
    Held {
        /// Until it expires at the latest.
        remaining_ms: u64,
    },
    /// Others came first.
    Queued {
        /// How many.
        ahead: u64,
    },
    /// The node restarted or was emptied, and waits until every lock that it may have forgotten has expired.
    Quarantined {
        /// The rest of the wait.
        remaining_ms: u64,
    },
    /// The quarantine is over, and the node's counter has to be raised before it may vote.
    NeedsRepair {
        /// The run to repair.
        run_id: String,
    },
    /// The node knows another list.
    OtherList {
        /// That list.
        list: List,
    },
    /// The lock would live longer than the node allows.
    TtlTooLong {
        /// What it allows.
        max_ttl_ms: u64,
    },
    /// The run that was named has ended.
    OtherRun {
        /// The present one.
        run_id: String,
    },
    /// The list was changed a short while ago; locks of the list before may still be held.
    TooSoon {
        /// When to try again.
        remaining_ms: u64,
    },
}

/// What a node says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Changes with every start.
    pub run_id: String,
    /// Whether it votes.
    pub ready: bool,
    /// The rest of its quarantine.
    pub quarantine_ms: u64,
    /// Its fencing counter.
    pub fence: u64,
    /// The longest lock that it allows, 0 while unknown.
    pub max_ttl_ms: u64,
    /// Its list, with epoch 0 while it has none.
    pub list: List,
    /// The wait before its list may change again.
    pub list_wait_ms: u64,
}

/// Who holds a lock on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Holders: one exclusive or any number of readers, with the rest of their lifetime in milliseconds.
    pub holders: Vec<(Mode, Value, u64)>,
    /// Tickets in order.
    pub waiters: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_exclusive_unless_said_otherwise() {
        assert_eq!(Mode::default(), Mode::Exclusive);
    }
}
