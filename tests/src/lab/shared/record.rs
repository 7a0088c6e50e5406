//! What happened, against what may happen: the chain of revisions that the store went through, and what each agent said of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::store::{Change, Revision, Snapshot};
use xtask::lab::fleet::{Fleet, topology::Host};

use super::writer::{Done, breaks};

/// The store's history, collected while it lasts, and what writers were told.
#[derive(Debug, Default)]
pub struct Record {
    /// Revisions by number, as they are shown.
    chain: BTreeMap<u64, Revision>,
    /// Revisions that are no configuration.
    invalid: BTreeSet<String>,
    /// Revisions that writers were told are safe.
    safe: Vec<Revision>,
    /// Revisions that were stored without a replica.
    unsafe_: Vec<Revision>,
    /// Attempts that failed.
    pub failures: u32,
}

impl Record {
    /// Adds what a writer did.
    pub fn did(&mut self, done: Done) {
        self.invalid.extend(done.invalid);
        self.safe.extend(done.safe);
        self.unsafe_.extend(done.unsafe_);
        self.failures += done.failures;
    }

    /// Adds the store's history, newest first. What was collected before and is contradicted now was lost by a fail-over; it may not have
    /// been safe.
    pub fn saw(&mut self, snapshot: &Snapshot, history: &[Change]) -> Result<()> {
        for pair in history.windows(2) {
            ensure!(pair[0].follows(&pair[1].revision), "{} does not follow {}", pair[0].revision, pair[1].revision);
        }
        let head = history.first().context("no history")?;
        ensure!(head.revision == snapshot.revision, "{} is the newest change of {}", head.revision, snapshot.revision);
        self.chain.retain(|number, _| *number <= snapshot.revision.number);
        let oldest = history.last().context("no history")?;
        let joins = self.chain.get(&oldest.previous.number).is_none_or(|before| *before == oldest.previous);
        ensure!(joins, "the history does not go back to {}", oldest.previous);
        let broken = history.iter().filter(|change| breaks(change));
        self.invalid.extend(broken.map(|change| change.revision.to_string()));
        self.chain.extend(history.iter().map(|change| (change.revision.number, change.revision)));
        self.chain.entry(oldest.previous.number).or_insert(oldest.previous);
        Ok(())
    }

    /// No safe write was lost, and nothing is missing between the first and the last revision.
    pub fn judge(&self) -> Result<()> {
        let numbers: Vec<u64> = self.chain.keys().copied().collect();
        ensure!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "the collected history has a hole");
        for revision in &self.safe {
            ensure!(self.chain.get(&revision.number) == Some(revision), "{revision} was safe, and is lost");
        }
        Ok(())
    }

    fn holds(&self, shown: &str) -> bool {
        let number = shown.split('-').next().and_then(|number| number.parse().ok());
        number.and_then(|number: u64| self.chain.get(&number)).is_some_and(|revision| revision.to_string() == shown)
    }

    /// What an agent said in its log, over all of its lives: nothing but good revisions of the chain, each later than the one before, in
    /// force; where not so, an alarm. Gives how many were in force, how many refused, and how many alarms there were.
    pub fn agent(&self, fleet: &Fleet, node: Host) -> Result<(u32, u32, u32)> {
        let log = fs::read_to_string(fleet.ground.log_of(&Fleet::agent_of(node)))?;
        let (mut applied, mut refused, mut alarms, mut strangers) = (0, 0, 0, 0);
        let mut last = 0;
        for line in log.lines() {
            if line.contains("history lost") {
                (alarms, last) = (alarms + 1, 0);
            }
            // A life begins with the last good copy, which may be a second old.
            if line.contains("data plane taken over") {
                last = 0;
            }
            let Some(shown) = line.split("store=").nth(1).and_then(|rest| rest.split_whitespace().next()) else {
                continue;
            };
            if line.contains("the store's revision is refused") {
                ensure!(self.invalid.contains(shown), "{} refused {shown}, a good revision", node.name());
                refused += 1;
            }
            if !line.contains("the store's revision is in force") {
                continue;
            }
            ensure!(!self.invalid.contains(shown), "{} put {shown} in force, which is no configuration", node.name());
            let number: u64 = shown.split('-').next().unwrap_or_default().parse()?;
            ensure!(number >= last, "{} put {shown} in force after revision {last}", node.name());
            (applied, last) = (applied + 1, number);
            if !self.holds(shown) {
                let known = self.unsafe_.iter().any(|revision| revision.to_string() == shown);
                ensure!(known, "{} put {shown} in force, which the store never held safely", node.name());
                strangers += 1;
            }
        }
        ensure!(strangers == 0 || alarms > 0, "{}: {strangers} lost revisions, and no alarm", node.name());
        Ok((applied, refused, alarms))
    }
}
