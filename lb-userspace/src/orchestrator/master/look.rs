//! What the master sees: which nodes are in service, how many of what there are, and what is known about an intent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{Master, Plan};
use crate::orchestrator::{
    clock::{BootTime, UnixMs},
    intent::{Action, Facts, Intent, Phase},
    record::{Backend, Version, View},
    replace,
    scale::Subject,
    watch::{Node, Reason, Watch},
};

/// Nodes as the master sees them at one look.
pub(super) struct Standings {
    pub inside: BTreeSet<String>,
    pub coming: BTreeSet<String>,
    /// Where each node stands.
    pub reasons: BTreeMap<String, Reason>,
}

/// One look, and what it has led to so far.
pub(super) struct Look<'v> {
    pub view: &'v View,
    pub watch: &'v Watch,
    pub standings: Standings,
    pub now: BootTime,
    pub unix: UnixMs,
    /// Number of the last id that was given at this look.
    pub ids: u64,
    pub plan: Plan,
}

impl Master {
    pub(super) fn standings(&self, view: &View, watch: &Watch, now: BootTime, unix: UnixMs) -> Standings {
        let nodes = || view.intents.values().map(|at| &at.value).filter(|one| one.subject == Subject::Nodes);
        // A node that was removed may look alive for as long as its last heartbeat does.
        let removed = nodes()
            .filter(|one| one.phase == Phase::Done && unix.since(one.since) < self.policy.dead_after)
            .filter_map(|one| one.removes.as_deref());
        let leaving: BTreeSet<&str> = nodes().filter_map(Intent::leaving).chain(removed).collect();
        let mut found = Standings { inside: BTreeSet::new(), coming: BTreeSet::new(), reasons: BTreeMap::new() };
        for (name, node) in &view.nodes {
            let inside = in_zone(view, node);
            let reason = watch.standing(name, node, inside, leaving.contains(name.as_str()), view.revision);
            found.reasons.insert(name.clone(), reason);
            if reason == Reason::InService && !node.addresses.is_empty() {
                found.inside.insert(name.clone());
            } else if watch.is_coming(name, reason, self.policy.patience.ready, now) {
                found.coming.insert(name.clone());
            }
        }
        found
    }

    pub(super) fn facts(&self, look: &Look<'_>, intent: &Intent, version: Version) -> Facts {
        let action = if intent.phase == Phase::Create { Action::Create } else { Action::Remove };
        let key = (intent.id.clone(), action);
        let mut facts = Facts {
            // What became of an order belongs to the record on which it rested.
            executed: self.executed.get(&key).filter(|(at, _)| *at == version).map(|(_, result)| result.clone()),
            under_way: self.under_way.contains_key(&key),
            ..Facts::default()
        };
        let min = self.min(&intent.subject);
        let old = intent.removes.as_deref();
        match &intent.subject {
            Subject::Nodes => {
                let standings = &look.standings;
                let node = |name: Option<&str>| name.and_then(|name| look.view.nodes.get(name));
                facts.serves = intent.creates.as_ref().is_some_and(|name| standings.inside.contains(name));
                // Where DNS is somebody else's, a node that serves is where it should be.
                let found = |one: &Node| self.policy.zone.is_none() || in_zone(look.view, one);
                facts.added = facts.serves && node(intent.creates.as_deref()).is_some_and(found);
                facts.present = node(old).is_some_and(|one| in_zone(look.view, one));
                facts.dead = old.is_none_or(|name| look.watch.is_dead(name, self.policy.dead_after));
                let others = standings.inside.iter().filter(|name| Some(name.as_str()) != old).count();
                facts.spare = others >= min;
            }
            Subject::Backends(name) => {
                let Some(service) = look.view.services.get(name) else { return facts };
                let of = |address: Option<&str>| address.and_then(|address| service.backends.get(address));
                let new = intent.address.as_ref();
                let awaited = new.and_then(|address| service.awaited.get(address));
                let checked = of(new.map(String::as_str)).map(|one| &one.target).or(awaited);
                facts.serves = checked.is_some_and(|target| look.view.is_up(target.as_ref(), false));
                facts.added = of(new.map(String::as_str)).is_some();
                facts.present = of(old).is_some();
                facts.drained = of(old).is_some_and(|one| one.drained);
                facts.dead = !facts.present;
                let up = |(address, one): &(&String, &Backend)| {
                    Some(address.as_str()) != old && !one.drained && look.view.is_up(one.target.as_ref(), true)
                };
                facts.spare = service.backends.iter().filter(up).count() >= min;
            }
        }
        facts
    }

    /// Fewest that may be in service.
    pub(super) fn min(&self, subject: &Subject) -> usize {
        let rule = self.policy.scaling.iter().find(|rule| rule.subject == *subject);
        rule.map_or(1, |rule| usize::try_from(rule.min).unwrap_or(usize::MAX))
    }

    /// Whether a name is one that intents give.
    pub(super) fn is_created(&self, name: &str) -> bool {
        name.strip_prefix(&*self.policy.prefix).is_some_and(|rest| rest.starts_with('-'))
    }

    /// How many are in service, on their way in and on their way out.
    pub(super) fn census(&self, look: &Look<'_>, subject: &Subject) -> (u32, u32, u32) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let ours = || active(look.view).filter(|one| one.subject == *subject);
        let leaving: BTreeSet<&str> = ours().filter_map(Intent::leaving).collect();
        match subject {
            Subject::Nodes => {
                let standings = &look.standings;
                let created = ours().filter(|one| one.is_pending()).filter_map(|one| one.creates.as_ref());
                let pending: BTreeSet<&String> =
                    created.chain(&standings.coming).filter(|name| !standings.inside.contains(*name)).collect();
                (count(standings.inside.len()), count(pending.len()), count(leaving.len()))
            }
            Subject::Backends(name) => {
                let Some(service) = look.view.services.get(name) else { return (0, 0, count(leaving.len())) };
                let up = |(address, one): &(&String, &Backend)| {
                    !leaving.contains(address.as_str()) && !one.drained && look.view.is_up(one.target.as_ref(), true)
                };
                let pending = ours()
                    .filter(|one| one.is_pending())
                    .filter(|one| one.address.as_ref().is_none_or(|address| !service.backends.contains_key(address)));
                (count(service.backends.iter().filter(up).count()), count(pending.count()), count(leaving.len()))
            }
        }
    }

    pub(super) fn is_busy(&self, view: &View, subject: &Subject) -> bool {
        active(view).any(|one| one.subject == *subject && (one.removes.is_some() || one.is_pending()))
    }

    /// Who goes first: what intents created, the youngest of them, then whoever is last by name.
    pub(super) fn victim(&self, look: &Look<'_>, subject: &Subject) -> Option<String> {
        let born = |intent: &Intent| (intent.since, intent.id.clone());
        let made: BTreeMap<&str, _> = look
            .view
            .intents
            .values()
            .filter(|at| at.value.subject == *subject && at.value.phase == Phase::Done)
            .filter_map(|at| {
                let name = match subject {
                    Subject::Nodes => at.value.creates.as_deref(),
                    Subject::Backends(_) => at.value.address.as_deref(),
                };
                Some((name?, born(&at.value)))
            })
            .collect();
        let rank = |name: &str| (made.get(name).cloned(), self.is_created(name), name.to_owned());
        match subject {
            Subject::Nodes => look.standings.inside.iter().max_by_key(|name| rank(name)).cloned(),
            Subject::Backends(service) => {
                let service = look.view.services.get(service)?;
                let up = service.backends.iter().filter(|(_, one)| !one.drained);
                up.map(|(address, _)| address).max_by_key(|address| rank(address)).cloned()
            }
        }
    }

    /// The node or backend that an instance label means.
    pub(super) fn named(&self, look: &Look<'_>, subject: &Subject, instance: &str) -> Option<String> {
        match subject {
            Subject::Nodes => {
                let is = |(name, node): &(&String, &Node)| {
                    replace::means(instance, name)
                        || node
                            .addresses
                            .iter()
                            .any(|ip| replace::means(instance, &SocketAddr::new(*ip, 0).to_string()))
                        || node.ready_at.is_some_and(|at| replace::means(instance, &at.to_string()))
                };
                look.view.nodes.iter().find(is).map(|(name, _)| name.clone())
            }
            Subject::Backends(service) => {
                let service = look.view.services.get(service)?;
                service.backends.keys().find(|address| replace::means(instance, address)).cloned()
            }
        }
    }
}

/// Intents that are not over.
pub(super) fn active(view: &View) -> impl Iterator<Item = &Intent> {
    view.intents.values().map(|at| &at.value).filter(|intent| !intent.phase.is_over())
}

pub(super) fn in_zone(view: &View, node: &Node) -> bool {
    let has = |list: &Vec<IpAddr>| list.iter().any(|address| node.addresses.contains(address));
    view.zone.as_ref().is_some_and(|zone| zone.value.records.values().any(has))
}
