//! What is promised, and how a schedule notices that a promise is broken.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use lb_userspace::orchestrator::{intent::Intent, process::Process, record::Record};

use super::{
    run::{Event, Run},
    world::{MAX, MIN, Orchestrator, TARGET},
};

/// What the master cannot know about a node that just died.
const BLIND_US: u64 = 16_000_000;

impl Run {
    /// Somebody was elected: nobody else may still act, nor have anything under way.
    pub(super) fn taken_over(&mut self, at: usize) {
        let sent_us = self.now_us.saturating_sub(2_000_000);
        let late = self.orchestrators.iter().enumerate().find(|(other, one)| {
            let acts = |process: &Process| process.may_act(one.clock(sent_us)).is_some();
            *other != at && one.process.as_ref().is_some_and(acts)
        });
        if let Some((other, _)) = late {
            self.broken(format!("o{other} could act until its successor o{at} was elected"));
        }
    }

    /// A node begins to drain because the load is low.
    pub(super) fn removal(&mut self, intent: &Intent) {
        let victim = intent.removes.clone().unwrap_or_default();
        let zone = self.zone();
        let others = self.machines.iter().filter(|(name, one)| {
            // What died a moment ago nobody can know.
            let known = one.up_since_us.is_some() || self.now_us < one.died_us + BLIND_US;
            **name != victim && known && !one.removed && zone.contains(&one.address)
        });
        let others = others.count();
        if others < MIN as usize {
            self.broken(format!("{victim} drains, which leaves {others} in service, below min"));
        }
        let needed = self.loads.iter().rev().take(12).copied().fold(f64::INFINITY, f64::min) / TARGET / 1.25;
        if needed.ceil() as usize > others {
            self.broken(format!("{victim} drains, which leaves {others} for a load of {:.0}", self.load));
        }
        self.way(-1);
    }

    pub(super) fn way(&mut self, way: i32) {
        if way > 0 {
            self.report.ups += 1;
        } else {
            self.report.downs += 1;
        }
        self.report.turns += usize::from(self.last_way != 0 && self.last_way != way);
        self.last_way = way;
    }

    /// Looks once a second at what has to be so all the time.
    pub(super) fn second(&mut self) {
        self.at(1_000_000, Event::Second);
        self.loads.push(self.load);
        if self.zone_was && self.zone().is_empty() && self.now_us > self.disturbed_us + 30_000_000 {
            self.broken("the zone is empty");
        }
        let generation = match self.store.get("orchestrator/assignment") {
            Some(Record::Assignment(assignment)) => assignment.epoch,
            _ => 0,
        };
        let well: Vec<&Orchestrator> = self.orchestrators.iter().filter(|one| one.is_well(self.now_us)).collect();
        let store_up =
            self.now_us >= self.store_down_until_us && self.now_us >= self.loss_until_us && !self.store.is_lagging();
        if well.is_empty() || !store_up {
            self.disturbed_us = self.now_us;
        }
        let mut late = None;
        for target in &self.targets {
            let checked = well.iter().any(|one| {
                one.share.contains(target)
                    && one.process.as_ref().is_some_and(|process| process.generation() == generation)
            });
            let last = self.checked_us.entry(target.clone()).or_insert(0);
            if checked {
                *last = self.now_us;
            }
            let unchecked_s = self.now_us.saturating_sub((*last).max(self.disturbed_us)) / 1_000_000;
            self.report.unchecked_s = self.report.unchecked_s.max(unchecked_s);
            if unchecked_s > 20 {
                late = Some(target.clone());
            }
        }
        if let Some(target) = late {
            self.broken(format!("{target} went unchecked for more than two leases"));
        }
    }

    /// The faults are long over: everything must be as it should.
    pub(super) fn last_look(&mut self) {
        let now_us = self.now_us;
        let acting = self.orchestrators.iter().filter(|one| {
            let now = one.clock(now_us);
            one.process.as_ref().is_some_and(|process| process.may_act(now).is_some())
        });
        let acting = acting.count();
        if acting != 1 {
            self.broken(format!("{acting} masters at the end"));
        }
        let zone = self.zone();
        let up: BTreeSet<IpAddr> = self
            .machines
            .values()
            .filter(|one| one.up_since_us.is_some_and(|since| now_us > since + 30_000_000))
            .map(|one| one.address)
            .collect();
        let leaving: Vec<String> = self
            .store
            .all()
            .filter_map(|record| match record {
                Record::Intent(intent) => intent.leaving().map(str::to_owned),
                _ => None,
            })
            .collect();
        let missing = self
            .machines
            .iter()
            .find(|(name, one)| up.contains(&one.address) && !zone.contains(&one.address) && !leaving.contains(name));
        if let Some((name, _)) = missing {
            self.broken(format!("{name} runs and is not in DNS at the end"));
        }
        let dead = self.machines.iter().find(|(_, one)| {
            one.up_since_us.is_none() && zone.contains(&one.address) && now_us > one.died_us + 20_000_000
        });
        if let Some((name, _)) = dead {
            self.broken(format!("{name} is dead and in DNS at the end"));
        }
        let count = u32::try_from(zone.len()).unwrap_or(u32::MAX);
        if !(MIN..=MAX).contains(&count) {
            self.broken(format!("{count} nodes in DNS at the end"));
        }
        let stale = self.store.all().find_map(|record| match record {
            Record::Intent(intent) if !intent.phase.is_over() => {
                let age = self.unix().since(intent.since);
                // A torn order arrives up to 90 s late.
                let most_s = if self.world.torn { 240 } else { 75 };
                (age > Duration::from_secs(most_s)).then(|| format!("{} is stuck in {:?}", intent.id, intent.phase))
            }
            _ => None,
        });
        if let Some(stale) = stale {
            self.broken(stale);
        }
    }
}
