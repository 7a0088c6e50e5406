//! `--wait`: until all live nodes have a revision.
//!
//! [`judge`] is pure. Invariant: a node that was alive when the waiting began is accounted for at its end: it has applied the
//! revision, refused it, fallen out of its lease, or is late.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::time::Instant;

use super::{super::exit::Exit, failed};
use crate::{
    agent::follow::report::BEAT,
    store::{
        Revision, Store,
        node::{NodeStatus, Outcome},
    },
};

/// Time between questions.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long it may be that nobody is alive: a store that lost what it held has lost who is, and each node reports anew within a beat.
const NOBODY: Duration = BEAT.saturating_mul(2);

/// How the nodes stand to a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Waited {
    /// Live nodes that have it.
    pub applied: Vec<String>,
    /// Live nodes that refused it, and why.
    pub refused: Vec<NodeRefusal>,
    /// Live nodes of which neither is known yet.
    pub late: Vec<String>,
    /// Nodes that fell out of their lease since the waiting began.
    pub lost: Vec<String>,
}

/// A node that refused a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeRefusal {
    /// Its name.
    pub node: String,
    /// Its words.
    pub why: String,
}

impl Waited {
    /// Whether no node is alive, nor was.
    pub fn is_nobody(&self) -> bool {
        *self == Self::default()
    }

    /// Whether there is nobody left to wait for.
    pub fn is_over(&self) -> bool {
        self.late.is_empty()
    }

    /// How the command ends.
    pub fn exit(&self) -> Exit {
        if !self.refused.is_empty() {
            Exit::Refused
        } else if !self.late.is_empty() || !self.lost.is_empty() || self.applied.is_empty() {
            Exit::TimedOut
        } else {
            Exit::Ok
        }
    }

    /// A line for each thing to know.
    pub fn words(&self, revision: Revision) -> String {
        let mut out = match self.applied.len() {
            _ if self.is_nobody() => {
                format!("no node is alive: nobody has applied {revision}, and nobody was waited for\n")
            }
            0 => format!("no node has applied {revision}\n"),
            1 => format!("1 node has applied {revision}: {}\n", self.applied.join(", ")),
            n => format!("{n} nodes have applied {revision}\n"),
        };
        for NodeRefusal { node, why } in &self.refused {
            out.push_str(&format!("{node} refused it: {why}\n"));
        }
        if !self.late.is_empty() {
            out.push_str(&format!("not yet applied: {}\n", self.late.join(", ")));
        }
        if !self.lost.is_empty() {
            out.push_str(&format!("fell out of their lease meanwhile: {}\n", self.lost.join(", ")));
        }
        out
    }
}

/// How `nodes` stand to `revision`; `first` were alive when the waiting began.
pub fn judge(first: &BTreeSet<String>, nodes: &[NodeStatus], revision: Revision) -> Waited {
    let mut waited = Waited::default();
    // A later revision holds the earlier one.
    let has = |other: &Revision| other.number > revision.number || *other == revision;
    for node in nodes.iter().filter(|node| node.live) {
        let (name, report) = (node.report.node.clone(), &node.report);
        match &report.outcome {
            _ if report.applied.as_ref().is_some_and(has) => waited.applied.push(name),
            Outcome::Refused(why) if report.revision.as_ref().is_some_and(has) => {
                waited.refused.push(NodeRefusal { node: name, why: why.clone() });
            }
            _ => waited.late.push(name),
        }
    }
    let live: BTreeSet<&str> = nodes.iter().filter(|node| node.live).map(|node| &*node.report.node).collect();
    waited.lost = first.iter().filter(|name| !live.contains(&***name)).cloned().collect();
    waited
}

/// The names of the nodes that are alive.
pub async fn live(store: &Arc<dyn Store>) -> anyhow::Result<BTreeSet<String>> {
    let nodes = store.nodes().await.map_err(failed)?;
    Ok(nodes.into_iter().filter(|node| node.live).map(|node| node.report.node).collect())
}

/// Waits for `revision`, at most `timeout`.
pub async fn wait(
    store: &Arc<dyn Store>,
    first: &BTreeSet<String>,
    revision: Revision,
    timeout: Duration,
) -> anyhow::Result<Waited> {
    let began = Instant::now();
    loop {
        // A store that is away for a moment is no reason to forget the nodes.
        match store.nodes().await {
            Ok(nodes) => {
                let waited = judge(first, &nodes, revision);
                let over = if waited.is_nobody() { began.elapsed() >= NOBODY } else { waited.is_over() };
                if over || began.elapsed() >= timeout {
                    return Ok(waited);
                }
            }
            Err(error) if error.is_passing() && began.elapsed() < timeout => {}
            Err(error) => return Err(failed(error).into()),
        }
        tokio::time::sleep(INTERVAL.min(timeout)).await;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::store::{node::NodeReport, object::Digest};

    fn revision(number: u64, digest: u8) -> Revision {
        Revision { number, digest: Digest::new([digest; 32]) }
    }

    pub(crate) fn node(name: &str, applied: Option<Revision>, outcome: Outcome, live: bool) -> NodeStatus {
        let report = NodeReport {
            node: name.into(),
            lease_ms: 10_000,
            revision: match outcome {
                Outcome::Refused(_) => Some(revision(7, 1)),
                Outcome::Applied => applied,
            },
            outcome,
            applied,
            version: "0".into(),
            addresses: Vec::new(),
            ready: true,
            draining: false,
            metrics: None,
            drains: Vec::new(),
        };
        NodeStatus { report, age_ms: 5, live }
    }

    #[test]
    fn everybody_is_accounted_for() {
        let first: BTreeSet<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).into();
        let nodes = [
            node("a", Some(revision(7, 1)), Outcome::Applied, true),
            node("b", Some(revision(6, 1)), Outcome::Applied, true),
            node("c", Some(revision(6, 1)), Outcome::Refused("limit".into()), true),
            node("d", Some(revision(7, 1)), Outcome::Applied, false),
            node("f", Some(revision(9, 1)), Outcome::Applied, true),
            // The number alone repeats after a loss.
            node("g", Some(revision(7, 2)), Outcome::Applied, true),
        ];
        let waited = judge(&first, &nodes, revision(7, 1));
        assert_eq!(waited.applied, ["a", "f"]);
        assert_eq!(waited.refused, [NodeRefusal { node: "c".into(), why: "limit".into() }]);
        assert_eq!(waited.late, ["b", "g"]);
        assert_eq!(waited.lost, ["d", "e"]);
        assert!(!waited.is_over());
        assert_eq!(waited.exit(), Exit::Refused);
        let words = waited.words(revision(7, 1));
        assert!(words.contains("c refused it: limit\n") && words.contains("lease meanwhile: d, e\n"), "{words}");
    }

    #[test]
    fn the_end_has_its_code() {
        let first: BTreeSet<String> = ["a"].map(str::to_owned).into();
        let exit = |nodes: &[NodeStatus]| judge(&first, nodes, revision(7, 1)).exit();
        let applied = |name| node(name, Some(revision(7, 1)), Outcome::Applied, true);
        assert_eq!(exit(&[applied("a")]), Exit::Ok);
        assert_eq!(exit(&[applied("b")]), Exit::TimedOut, "a is lost");
        assert_eq!(exit(&[applied("a"), node("b", None, Outcome::Applied, true)]), Exit::TimedOut, "b is late");
        assert_eq!(judge(&BTreeSet::new(), &[], revision(7, 1)).exit(), Exit::TimedOut, "nobody has it");
    }
}
