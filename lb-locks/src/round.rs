//! The protocol of the client: one acquisition, and one round of anything else, as pure state machines.
//!
//! Owns: when a majority is won, when it cannot be won any more, which fencing token is chosen and when it may be handed
//! out, and until when the lock is valid. Refuses to know sockets and clocks: replies and `now` are given, so the same
//! code runs against real nodes and in the simulation. Invariants: a lock is won only with a majority of distinct
//! servers and validity left; a token is handed out only after a majority that still holds the lock has stored it; a
//! verdict is given once and never changes.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::{BootTime, drift, ms},
    command::{Refusal, Reply},
    error::{LockError, NodeError, NodeOutcome, Report},
};

/// How tokens are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fencing {
    /// No token.
    #[default]
    None,
    /// The largest counter of a majority, written back before it is handed out to those of a majority that are behind it.
    TwoRounds,
    /// Without the second round, which is wrong: two grants in sequence can get tokens in the wrong order. The simulation
    /// shows it.
    OneRound,
}

/// More than half of `nodes`.
pub const fn majority(nodes: usize) -> usize {
    nodes / 2 + 1
}

/// What does not change during one acquisition.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The lock.
    pub name: Arc<str>,
    /// Names of the nodes.
    pub nodes: Arc<[String]>,
    /// Votes that win: [`majority`], except where a test breaks it.
    pub quorum: usize,
    /// Lifetime asked for.
    pub ttl: Duration,
    /// How tokens are made.
    pub fencing: Fencing,
    /// Before the first request was sent.
    pub started: BootTime,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait for more answers.
    Wait,
    /// Send the second round with this token to these nodes, whose counters are behind it, then wait.
    Confirm {
        /// The chosen token.
        fence: u64,
        /// Indices of nodes.
        nodes: Vec<usize>,
    },
    /// The lock is held.
    Won {
        /// Until then.
        valid_until: BootTime,
        /// The token, if one was asked for.
        fence: Option<u64>,
    },
    /// It is not; release everywhere.
    Failed(LockError),
}

/// One acquisition. Feed it every answer, and then do what the step says.
#[derive(Clone, Debug)]
pub struct Acquisition {
    plan: Plan,
    votes: Vec<NodeOutcome>,
    runs: Vec<Option<String>>,
    /// What each node had counted when it voted.
    counters: Vec<u64>,
    /// The chosen token and the second round, once a majority has voted.
    second: Option<(u64, Vec<NodeOutcome>)>,
    done: bool,
}

impl Acquisition {
    /// An acquisition of which nothing has been heard.
    pub fn new(plan: Plan) -> Self {
        let nodes = plan.nodes.len();
        Self {
            plan,
            votes: vec![NodeOutcome::Pending; nodes],
            runs: vec![None; nodes],
            counters: vec![0; nodes],
            second: None,
            done: false,
        }
    }

    /// The answer of `node` to the first round.
    pub fn on_vote(&mut self, node: usize, answer: Result<Reply, NodeError>, now: BootTime) -> Step {
        if self.done || self.votes.get(node) != Some(&NodeOutcome::Pending) {
            return Step::Wait;
        }
        if let Ok(Reply::Granted { run_id, .. }) = &answer
            && let Some(other) = self.runs.iter().position(|run| run.as_ref() == Some(run_id))
        {
            let other = self.plan.nodes[other].clone();
            let text = format!("lock nodes {other} and {} are one server: list it once", self.plan.nodes[node]);
            self.votes[node] = NodeOutcome::SameServer { other };
            return self.fail(LockError::Config(text));
        }
        if let Ok(Reply::Granted { fence, run_id }) = &answer {
            self.counters[node] = *fence;
            self.runs[node] = Some(run_id.clone());
        }
        self.votes[node] = outcome(answer);
        let voted = self.votes[node] == NodeOutcome::Ok;
        match &mut self.second {
            // A late vote can stand in for a node that fails in the second round.
            Some((fence, outcomes)) if voted && self.counters[node] >= *fence => {
                outcomes[node] = NodeOutcome::Ok;
                self.stored(now)
            }
            Some((fence, _)) if voted => Step::Confirm { fence: *fence, nodes: vec![node] },
            Some(_) => self.judge(now),
            None if count(&self.votes, &NodeOutcome::Ok) >= self.plan.quorum => self.elected(now),
            None => self.judge(now),
        }
    }

    /// The answer of `node` to the second round.
    pub fn on_confirmed(&mut self, node: usize, answer: Result<Reply, NodeError>, now: BootTime) -> Step {
        let Some((_, outcomes)) = &mut self.second else { return Step::Wait };
        if self.done || outcomes.get(node) != Some(&NodeOutcome::Pending) {
            return Step::Wait;
        }
        outcomes[node] = outcome(answer);
        self.stored(now)
    }

    /// The nodes' time is up: whoever has not answered does not count.
    pub fn on_timeout(&mut self, now: BootTime) -> Step {
        if self.done {
            return Step::Wait;
        }
        let second = self.second.as_mut().map(|(_, outcomes)| outcomes);
        for outcome in self.votes.iter_mut().chain(second.into_iter().flatten()) {
            if *outcome == NodeOutcome::Pending {
                *outcome = NodeOutcome::Failed(NodeError::Timeout);
            }
        }
        self.judge(now)
    }

    /// What each node said: in the second round, if it got that far.
    pub fn report(&self) -> Report {
        let said = self.votes.iter().enumerate().map(|(node, vote)| match &self.second {
            Some((_, outcomes)) if *vote == NodeOutcome::Ok => outcomes[node].clone(),
            _ => vote.clone(),
        });
        Report(self.plan.nodes.iter().cloned().zip(said).collect())
    }

    /// Whether `node` has not voted.
    pub fn is_pending(&self, node: usize) -> bool {
        self.votes.get(node) == Some(&NodeOutcome::Pending)
    }

    /// Nodes that may hold the lock for this attempt, now or when a late request arrives: where to release it.
    pub fn may_hold(&self) -> impl Iterator<Item = usize> {
        let refused = |vote: &NodeOutcome| matches!(vote, NodeOutcome::Refused(_));
        self.votes.iter().enumerate().filter(move |(_, vote)| !refused(vote)).map(|(node, _)| node)
    }

    /// The longest that nodes said the present holder may keep it.
    pub fn held_for(&self) -> Option<Duration> {
        let held = self.votes.iter().filter_map(|vote| match vote {
            NodeOutcome::Refused(Refusal::Held { remaining_ms }) => Some(*remaining_ms),
            _ => None,
        });
        held.max().map(Duration::from_millis)
    }

    /// How many come before this waiter, by the median of the nodes that queue it.
    pub fn ahead(&self) -> Option<u64> {
        let mut ahead: Vec<u64> = self
            .votes
            .iter()
            .filter_map(|vote| match vote {
                NodeOutcome::Refused(Refusal::Queued { ahead }) => Some(*ahead),
                _ => None,
            })
            .collect();
        ahead.sort_unstable();
        ahead.get(ahead.len() / 2).copied()
    }

    /// Whether a node said that its quarantine is over and its counter has to be repaired.
    pub fn wants_repair(&self) -> bool {
        let wants = |vote: &NodeOutcome| matches!(vote, NodeOutcome::Refused(Refusal::NeedsRepair { .. }));
        self.votes.iter().any(wants)
    }

    fn elected(&mut self, now: BootTime) -> Step {
        let votes = self.votes.iter().enumerate().filter(|(_, vote)| **vote == NodeOutcome::Ok).map(|(node, _)| node);
        let fence = votes.clone().map(|node| self.counters[node]).max().unwrap_or(0);
        match self.plan.fencing {
            Fencing::None => self.won(None, now),
            Fencing::OneRound => self.won(Some(fence), now),
            Fencing::TwoRounds if self.valid_until() <= now => self.expired(now),
            Fencing::TwoRounds => {
                // Who counted that far when it gave its vote has stored the token while it held the lock for us: to write
                // it there again would change nothing (as a read of ABD, Attiya, Bar-Noy and Dolev 1995, need not write
                // back what a majority agrees on). Mostly all counters are equal, and the round is empty.
                let (has, behind): (Vec<_>, Vec<_>) = votes.partition(|&node| self.counters[node] >= fence);
                let mut outcomes = vec![NodeOutcome::Pending; self.votes.len()];
                has.into_iter().for_each(|node| outcomes[node] = NodeOutcome::Ok);
                self.second = Some((fence, outcomes));
                match self.stored(now) {
                    Step::Wait => Step::Confirm { fence, nodes: behind },
                    verdict => verdict,
                }
            }
        }
    }

    /// Won, if a majority has stored the token.
    fn stored(&mut self, now: BootTime) -> Step {
        match &self.second {
            Some((fence, outcomes)) if count(outcomes, &NodeOutcome::Ok) >= self.plan.quorum => {
                self.won(Some(*fence), now)
            }
            _ => self.judge(now),
        }
    }

    fn valid_until(&self) -> BootTime {
        self.plan.started + self.plan.ttl.saturating_sub(drift(self.plan.ttl))
    }

    fn won(&mut self, fence: Option<u64>, now: BootTime) -> Step {
        let valid_until = self.valid_until();
        if valid_until <= now {
            return self.expired(now);
        }
        self.done = true;
        Step::Won { valid_until, fence }
    }

    fn expired(&mut self, now: BootTime) -> Step {
        let elapsed = now.since(self.plan.started);
        self.fail(LockError::expired(&self.plan.name, self.plan.ttl, elapsed, self.report()))
    }

    fn fail(&mut self, error: LockError) -> Step {
        self.done = true;
        Step::Failed(error)
    }

    /// Waits while the majority is possible, else says why it is not.
    fn judge(&mut self, now: BootTime) -> Step {
        let pending = count(&self.votes, &NodeOutcome::Pending);
        let possible = match &self.second {
            None => count(&self.votes, &NodeOutcome::Ok) + pending,
            Some((_, outcomes)) => {
                let open = |(vote, outcome): &(&NodeOutcome, &NodeOutcome)| {
                    **vote == NodeOutcome::Ok && matches!(outcome, NodeOutcome::Ok | NodeOutcome::Pending)
                };
                self.votes.iter().zip(outcomes).filter(open).count() + pending
            }
        };
        if possible >= self.plan.quorum {
            return Step::Wait;
        }
        if self.second.is_some() && self.valid_until() <= now {
            return self.expired(now);
        }
        let (report, name) = (self.report(), self.plan.name.to_string());
        let refusals = || {
            report.0.iter().filter_map(|(_, outcome)| match outcome {
                NodeOutcome::Refused(refusal) => Some(refusal),
                _ => None,
            })
        };
        if let Some(Refusal::TtlTooLong { max_ttl_ms }) = refusals().find(|r| matches!(r, Refusal::TtlTooLong { .. })) {
            let ttl_ms = ms(self.plan.ttl);
            return self.fail(LockError::Config(format!(
                "{name:?}: a lifetime of {ttl_ms} ms is asked for and the nodes allow {max_ttl_ms} ms: ask for less"
            )));
        }
        let no_fence = report.0.iter().find_map(|(node, outcome)| match outcome {
            NodeOutcome::Failed(NodeError::NoFence(why)) => Some(format!("{node}: {why}")),
            _ => None,
        });
        if let Some(why) = no_fence {
            return self.fail(LockError::FenceUnavailable { why });
        }
        let contenders = refusals().filter(|r| matches!(r, Refusal::Held { .. } | Refusal::Queued { .. })).count();
        if contenders > 0 && contenders + report.yes() + pending >= self.plan.quorum {
            self.fail(LockError::Contended { name, report })
        } else {
            self.fail(LockError::NoQuorum { name, report })
        }
    }
}

/// One round of a command that needs a majority: extension, release, change of the list.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Answers that are needed.
    wanted: usize,
    outcomes: Vec<NodeOutcome>,
}

impl Tally {
    /// A round over `nodes` nodes of which nothing has been heard.
    pub fn new(nodes: usize) -> Self {
        Self { wanted: majority(nodes), outcomes: vec![NodeOutcome::Pending; nodes] }
    }

    /// A round over `nodes` nodes of which only those at `indices` are asked, for the others never held it. It is won when
    /// a majority of all nodes does not hold it, these among them, and at least one gave it back: from then on another can
    /// have it.
    pub fn release(nodes: usize, indices: &[usize]) -> Self {
        let outcome = |at| if indices.contains(&at) { NodeOutcome::Pending } else { NodeOutcome::Gone };
        let outcomes: Vec<_> = (0..nodes).map(outcome).collect();
        let free = count(&outcomes, &NodeOutcome::Gone);
        Self { wanted: majority(nodes).saturating_sub(free).max(1), outcomes }
    }

    /// The answer of `node`; whether the majority is won or lost with it.
    pub fn on_answer(&mut self, node: usize, answer: Result<Reply, NodeError>) -> Option<bool> {
        if let Some(slot @ NodeOutcome::Pending) = self.outcomes.get_mut(node) {
            *slot = outcome(answer);
        }
        self.verdict()
    }

    /// Whoever has not answered does not count.
    pub fn on_timeout(&mut self) -> bool {
        for outcome in &mut self.outcomes {
            if *outcome == NodeOutcome::Pending {
                *outcome = NodeOutcome::Failed(NodeError::Timeout);
            }
        }
        self.verdict() == Some(true)
    }

    fn verdict(&self) -> Option<bool> {
        let yes = count(&self.outcomes, &NodeOutcome::Ok);
        if yes >= self.wanted {
            return Some(true);
        }
        (yes + count(&self.outcomes, &NodeOutcome::Pending) < self.wanted).then_some(false)
    }

    /// Whether every node has answered.
    pub fn is_complete(&self) -> bool {
        !self.outcomes.contains(&NodeOutcome::Pending)
    }

    /// What each of `nodes` said.
    pub fn report(&self, nodes: &[String]) -> Report {
        Report(nodes.iter().cloned().zip(self.outcomes.iter().cloned()).collect())
    }
}

fn count(outcomes: &[NodeOutcome], wanted: &NodeOutcome) -> usize {
    outcomes.iter().filter(|outcome| *outcome == wanted).count()
}

fn outcome(answer: Result<Reply, NodeError>) -> NodeOutcome {
    match answer {
        Ok(Reply::Granted { .. } | Reply::Done) => NodeOutcome::Ok,
        Ok(Reply::Gone) => NodeOutcome::Gone,
        Ok(Reply::Refused(refusal)) => NodeOutcome::Refused(refusal),
        Ok(other) => NodeOutcome::Failed(NodeError::Protocol(format!("{other:?}"))),
        Err(error) => NodeOutcome::Failed(error),
    }
}

#[cfg(test)]
mod tests;
