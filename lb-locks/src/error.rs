//! What can go wrong, per node and for a whole request.
//!
//! Invariants: no error shows a password, for errors carry node names, never URLs; every failure of a majority lists what
//! each node said.

use std::{fmt, time::Duration};

use crate::{clock::ms, command::Refusal};

/// Why one node gave no answer that counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Nothing was heard in time; it may still carry the request out.
    #[error("no answer within the node time-out")]
    Timeout,
    /// There is no connection.
    #[error("not reachable: {0}")]
    Unreachable(String),
    /// Too many requests are unanswered already.
    #[error("too many unanswered requests")]
    Overloaded,
    /// It reads its data from disk.
    #[error("still loading its data (LOADING)")]
    Loading,
    /// It is a replica, or lost its replicas.
    #[error("does not take writes ({0})")]
    ReadOnly(String),
    /// Its memory is full.
    #[error("out of memory (OOM)")]
    OutOfMemory,
    /// It refuses user, password, or command.
    #[error("refuses the credentials ({0})")]
    Auth(String),
    /// The script failed.
    #[error("script error: {0}")]
    Script(String),
    /// Its counter does not survive what the node survives.
    #[error("cannot count fencing tokens: {0}")]
    NoFence(String),
    /// An answer that means nothing here.
    #[error("answered what was not understood: {0}")]
    Protocol(String),
    /// Anything else that the store said.
    #[error("{0}")]
    Store(String),
}

/// What came of a request at one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeOutcome {
    /// No answer yet when the whole was decided.
    Pending,
    /// Granted, confirmed, extended or released.
    Ok,
    /// Nothing is held there with this value.
    Gone,
    /// The node said no.
    Refused(Refusal),
    /// The node could not say anything that counts.
    Failed(NodeError),
    /// It is the server that also answers as another node of the list.
    SameServer {
        /// The other name.
        other: String,
    },
}

impl fmt::Display for NodeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("no answer yet"),
            Self::Ok => f.write_str("yes"),
            Self::Gone => f.write_str("not held there"),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Failed(error) => error.fmt(f),
            Self::SameServer { other } => write!(f, "is the same server as {other}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { remaining_ms } => write!(f, "held by another, for at most {remaining_ms} ms"),
            Self::Queued { ahead } => write!(f, "{ahead} came first"),
            Self::Quarantined { remaining_ms } => {
                write!(f, "restarted or emptied, in quarantine for {remaining_ms} ms")
            }
            Self::NeedsRepair { .. } => f.write_str("its counter has to be repaired before it votes"),
            Self::OtherList { list } => write!(f, "belongs to list {} of nodes ({})", list.id.epoch, list.members),
            Self::TtlTooLong { max_ttl_ms } => write!(f, "allows at most {max_ttl_ms} ms"),
            Self::OtherRun { .. } => f.write_str("restarted meanwhile"),
            Self::TooSoon { remaining_ms } => write!(f, "its list changed lately, wait {remaining_ms} ms"),
        }
    }
}

/// What each node said, in the order of the list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report(pub Vec<(String, NodeOutcome)>);

impl Report {
    /// How many nodes said yes.
    pub fn yes(&self) -> usize {
        self.0.iter().filter(|(_, outcome)| *outcome == NodeOutcome::Ok).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (node, outcome)) in self.0.iter().enumerate() {
            write!(f, "{}{node}: {outcome}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Why there is no lock, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Someone else has it.
    #[error("{name:?} is held by another ({report})")]
    Contended {
        /// The lock.
        name: String,
        /// What the nodes said at the last attempt.
        report: Report,
    },
    /// Too few nodes could vote.
    #[error("{name:?}: no majority of lock nodes ({report})")]
    NoQuorum {
        /// The lock.
        name: String,
        /// What the nodes said at the last attempt.
        report: Report,
    },
    /// A majority agreed, but so late that nothing of the lifetime was left.
    #[error("{name:?}: a majority agreed after {elapsed_ms} ms, too late for a lifetime of {ttl_ms} ms ({report})")]
    Expired {
        /// The lock.
        name: String,
        /// The lifetime asked for.
        ttl_ms: u64,
        /// How long it took.
        elapsed_ms: u64,
        /// What the nodes said.
        report: Report,
    },
    /// The lock was held and is not any more.
    #[error("{name:?} is lost: {why} ({report})")]
    Lost {
        /// The lock.
        name: String,
        /// How it was noticed.
        why: &'static str,
        /// What the nodes said, if they were asked.
        report: Report,
    },
    /// Fencing tokens are wanted and cannot be promised.
    #[error("no fencing tokens: {why}")]
    FenceUnavailable {
        /// Which node lacks what.
        why: String,
    },
    /// The request or the set-up is wrong.
    #[error("{0}")]
    Config(String),
}

impl LockError {
    /// What each node said, where nodes were asked.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::Contended { report, .. }
            | Self::NoQuorum { report, .. }
            | Self::Expired { report, .. }
            | Self::Lost { report, .. } => Some(report),
            Self::FenceUnavailable { .. } | Self::Config(_) => None,
        }
    }

    /// Whether another attempt can end otherwise.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Contended { .. } | Self::NoQuorum { .. } | Self::Expired { .. })
    }

    pub(crate) fn expired(name: &str, ttl: Duration, elapsed: Duration, report: Report) -> Self {
        Self::Expired { name: name.to_owned(), ttl_ms: ms(ttl), elapsed_ms: ms(elapsed), report }
    }
}
