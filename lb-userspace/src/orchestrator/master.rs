//! What the master decides at one look at the store: the assignment, the zone, the next step of each intent, and what rules
//! make of their metrics.
//!
//! Pure: a view, answers that came meanwhile and `now` in; writes, orders, queries and probes out. What it must not forget is
//! in records; what is only in memory here (windows, values, probes) is such that a new master that lacks it does less.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{
    clock::{BootTime, UnixMs},
    decision::{self, Decision},
    intent::{self, Action, Executed, Facts, Intent, Order, Patience, Phase, Step},
    placement,
    record::{Expect, Fence, Put, Record, Version, View, Write},
    replace,
    scale::{self, Inputs, Memory, Missing, Subject, Verdict},
    watch::{self, Node, Reason, Watch},
};

/// What the orchestrator is told to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Names under which DNS gives out the nodes.
    pub names: BTreeSet<String>,
    /// Workers that must agree before a target is down; at least 1.
    pub vantage_points: u32,
    /// Scaling rules; at most one for each subject.
    pub scaling: Vec<scale::Rule>,
    /// Replacement rules.
    pub replace: Vec<replace::Rule>,
    /// Times of executors.
    pub patience: Patience,
    /// What names of created things begin with.
    pub prefix: String,
    /// A created node without heartbeat for so long is removed.
    pub dead_after: Duration,
    /// Decide and record, but do nothing about scaling and replacing.
    pub dry_run: bool,
}

/// What follows from one look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Writes, in the order in which they are to be sent. After one that is refused or lost the rest is void.
    pub writes: Vec<Write>,
    /// Orders to executors.
    pub orders: Vec<Order>,
}

/// A question to Prometheus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// `scaling/NAME` or `replace/NAME`.
    pub rule: String,
    /// PromQL.
    pub expr: String,
    /// Label whose values are wanted; `None`: the one value is.
    pub label: Option<String>,
}

/// What Prometheus said.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The one value, or why there is none.
    Value(Result<f64, Missing>),
    /// Instances that the series name.
    Instances(Result<BTreeSet<String>, Missing>),
}

/// Everything that only a master keeps.
#[derive(Clone, Debug)]
pub struct Master {
    policy: Arc<Policy>,
    holder: String,
    /// The word of this start, for ids.
    word: String,
    epoch: u64,
    memories: BTreeMap<String, Memory>,
    /// When each rule is asked next.
    due: BTreeMap<String, BootTime>,
    answers: BTreeMap<String, Answer>,
    /// Intents whose present record is known to be this master's and replicated.
    durable: BTreeMap<String, Version>,
    /// Orders that were given, by intent and action, with the version of the record that they rest on.
    under_way: BTreeMap<(String, Action), Version>,
    /// What became of them.
    executed: BTreeMap<(String, Action), (Version, Executed)>,
    /// What each rule said last, so that the same is told once.
    told: BTreeMap<String, String>,
    /// Number of the next decision, once the ring was read.
    number: Option<u64>,
    /// Highest number of an id of this start and epoch that is known to be in use.
    ids: u64,
}

/// Nodes as the master sees them at one look.
struct Standings {
    inside: BTreeSet<String>,
    coming: BTreeSet<String>,
    addresses: BTreeSet<IpAddr>,
}

/// One look, and what it has led to so far.
struct Look<'v> {
    view: &'v View,
    watch: &'v Watch,
    standings: Standings,
    now: BootTime,
    unix: UnixMs,
    /// Number of the last id that was given at this look.
    ids: u64,
    plan: Plan,
}

impl Master {
    /// A master that begins in `epoch` at `now`. `holder` is NAME/WORD.
    pub fn new(policy: Arc<Policy>, holder: &str, epoch: u64, now: BootTime) -> Self {
        let word = holder.rsplit_once('/').map_or(holder, |(_, word)| word);
        let scaling = policy.scaling.iter().map(|rule| (scaling_key(rule), now + rule.every));
        let replace = policy.replace.iter().map(|rule| (replace_key(rule), now + rule.every));
        Self {
            due: scaling.chain(replace).collect(),
            holder: holder.to_owned(),
            word: word.to_owned(),
            epoch,
            memories: BTreeMap::new(),
            answers: BTreeMap::new(),
            durable: BTreeMap::new(),
            under_way: BTreeMap::new(),
            executed: BTreeMap::new(),
            told: BTreeMap::new(),
            number: None,
            ids: 0,
            policy,
        }
    }

    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it still has to read the ring of decisions.
    pub fn wants_decisions(&self) -> bool {
        self.number.is_none()
    }

    /// Highest number among its ids.
    pub fn ids(&self) -> u64 {
        self.ids
    }

    /// The same for a master that goes on in an epoch in which this process acted before.
    #[must_use]
    pub fn with_ids(mut self, ids: u64) -> Self {
        self.ids = ids;
        self
    }

    /// Takes another policy; what rules remember stays where their names do.
    pub fn set_policy(&mut self, policy: Arc<Policy>, now: BootTime) {
        let mut due = BTreeMap::new();
        for key in policy.scaling.iter().map(scaling_key).chain(policy.replace.iter().map(replace_key)) {
            let at = self.due.get(&key).copied().unwrap_or(now);
            due.insert(key, at);
        }
        self.due = due;
        self.policy = policy;
    }

    /// Questions that are due at `now`; they count as asked.
    pub fn queries(&mut self, now: BootTime) -> Vec<Query> {
        let mut queries = Vec::new();
        let scaling = self.policy.scaling.iter().map(|rule| (scaling_key(rule), &rule.expr, None, rule.every));
        let replace = self
            .policy
            .replace
            .iter()
            .map(|rule| (replace_key(rule), &rule.expr, Some(rule.label.clone()), rule.every));
        for (rule, expr, label, every) in scaling.chain(replace) {
            let due = self.due.entry(rule.clone()).or_insert(now);
            if now >= *due {
                *due = now + every;
                queries.push(Query { rule, expr: expr.clone(), label });
            }
        }
        queries
    }

    /// When the next question is due.
    pub fn wake_at(&self) -> Option<BootTime> {
        self.due.values().min().copied()
    }

    /// What Prometheus said about a rule.
    pub fn answered(&mut self, rule: &str, answer: Answer) {
        self.answers.insert(rule.to_owned(), answer);
    }

    /// What became of an order.
    pub fn executed(&mut self, id: &str, action: Action, result: Executed) {
        let key = (id.to_owned(), action);
        if let Some(version) = self.under_way.remove(&key) {
            self.executed.insert(key, (version, result));
        }
    }

    /// A record was stored.
    pub fn stored(&mut self, record: &Record, version: Version, replicated: bool) {
        if let Record::Intent(intent) = record {
            let prefix = format!("{}-{}-", self.epoch, self.word);
            let number = intent.id.strip_prefix(&*prefix).and_then(|number| number.parse().ok());
            self.ids = self.ids.max(number.unwrap_or(0));
            if replicated {
                self.durable.insert(intent.id.clone(), version);
            } else {
                self.durable.remove(&intent.id);
            }
        }
    }

    /// Decides.
    pub fn decide(&mut self, view: &View, watch: &Watch, workers: &BTreeSet<String>, now: BootTime, unix: UnixMs) -> Plan {
        self.number.get_or_insert_with(|| decision::next_number(view));
        let (standings, ids) = (self.standings(view, watch, now, unix), self.ids_used(view));
        self.ids = ids;
        let mut look = Look { view, watch, standings, now, unix, ids, plan: Plan::default() };
        self.place(&mut look, workers);
        self.publish(&mut look);
        self.proceed(&mut look);
        self.sweep(&mut look);
        self.scale(&mut look);
        self.replace(&mut look);
        look.plan
    }

    fn fence(&self) -> Fence {
        Fence::Master { holder: self.holder.clone(), epoch: self.epoch }
    }

    fn put(&self, look: &mut Look<'_>, record: Record) {
        let ttl_s = match &record {
            // What is over is kept for a day, to be looked at.
            Record::Intent(intent) if intent.phase.is_over() => Some(86_400),
            _ => None,
        };
        let expect = match &record {
            Record::Decision(..) => Expect::Any,
            _ => look.view.version(&record).into(),
        };
        look.plan.writes.push(Write::Put(Put { record, expect, fence: Some(self.fence()), ttl_s }));
    }

    fn decide_that(&mut self, look: &mut Look<'_>, by: &str, outcome: String, values: Values, intents: Vec<String>) {
        let number = self.number.unwrap_or(1);
        self.number = Some(number.saturating_add(1));
        let decision = Decision {
            number,
            at: look.unix,
            epoch: self.epoch,
            by: by.to_owned(),
            outcome,
            values: values.0,
            intents,
        };
        self.put(look, Record::Decision(decision.slot(), decision));
    }

    /// The highest number of an id of this start and epoch that was used. One whose write was lost is used again, so that
    /// of two writes for one wish at most one is accepted.
    fn ids_used(&self, view: &View) -> u64 {
        let prefix = format!("{}-{}-", self.epoch, self.word);
        let numbers = view.intents.keys().filter_map(|id| id.strip_prefix(&*prefix)?.parse().ok());
        numbers.max().unwrap_or(0).max(self.ids)
    }

    fn standings(&self, view: &View, watch: &Watch, now: BootTime, unix: UnixMs) -> Standings {
        let nodes = || view.intents.values().map(|at| &at.value).filter(|one| one.subject == Subject::Nodes);
        // A node that was removed may look alive for as long as its last heartbeat does.
        let removed = nodes()
            .filter(|one| one.phase == Phase::Done && unix.since(one.since) < self.policy.dead_after)
            .filter_map(|one| one.removes.as_deref());
        let leaving: BTreeSet<&str> = nodes().filter_map(Intent::leaving).chain(removed).collect();
        let mut found =
            Standings { inside: BTreeSet::new(), coming: BTreeSet::new(), addresses: BTreeSet::new() };
        for (name, node) in &view.nodes {
            let inside = in_zone(view, node);
            let reason = watch.standing(name, node, inside, leaving.contains(name.as_str()), view.revision);
            if reason == Reason::InService && !node.addresses.is_empty() {
                found.inside.insert(name.clone());
                found.addresses.extend(&node.addresses);
            } else if watch.is_coming(name, reason, self.policy.patience.ready, now) {
                found.coming.insert(name.clone());
            }
        }
        found
    }

    /// Shares the health checks over the living.
    fn place(&mut self, look: &mut Look<'_>, workers: &BTreeSet<String>) {
        let present = look.view.assignment.as_ref().map(|at| &at.value);
        let vantage_points = self.policy.vantage_points.max(1);
        let Some(next) = placement::reassign(present, workers, vantage_points, &self.holder) else { return };
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        let values = Values::default()
            .with("workers_before", present.map_or(String::new(), |now| list(&now.workers)))
            .with("workers", list(&next.workers))
            .with("vantage_points", vantage_points);
        let outcome = format!("generation {}: checks are shared by {}", next.epoch, next.workers.len());
        self.decide_that(look, "placement", outcome, values, Vec::new());
        self.put(look, Record::Assignment(next));
    }

    /// Says in DNS which nodes are in service.
    fn publish(&mut self, look: &mut Look<'_>) {
        let last = look.view.zone.as_ref().map(|at| &at.value);
        if look.standings.addresses.is_empty() && last.is_some_and(|zone| !zone.records.is_empty()) {
            if self.is_news("dns", "kept") {
                let outcome = "no node is in service: the last addresses stay".to_owned();
                let values = node_values(look);
                self.decide_that(look, "dns", outcome, values, Vec::new());
            }
            return;
        }
        self.told.remove("dns");
        let unix_s = look.unix.0 / 1000;
        if let Some(zone) = watch::next_zone(&self.policy.names, &look.standings.addresses, last, unix_s) {
            let addresses = look.standings.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ");
            let outcome = format!("serial {}: {addresses}", zone.serial);
            let values = node_values(look);
            self.decide_that(look, "dns", outcome, values, Vec::new());
            self.put(look, Record::Zone(zone));
        }
    }

    /// Takes each intent its next step.
    fn proceed(&mut self, look: &mut Look<'_>) {
        let view = look.view;
        self.durable.retain(|id, _| view.intents.contains_key(id));
        self.executed.retain(|(id, _), _| view.intents.contains_key(id));
        for at in view.intents.values().filter(|at| !at.value.phase.is_over()) {
            let intent = &at.value;
            if self.durable.get(&intent.id) != Some(&at.version) {
                // Another master wrote it, or no replica confirmed it: it becomes one's own before anything is done about it.
                let claimed = Intent { epoch: self.epoch, holder: self.holder.clone(), ..intent.clone() };
                self.put(look, Record::Intent(claimed));
                continue;
            }
            let facts = self.facts(look, intent, at.version);
            match intent::step(intent, &facts, &self.policy.patience, look.unix) {
                Step::Wait => {}
                Step::Order(action) => {
                    if let Some(order) = intent::order_of(intent, action, self.epoch) {
                        self.under_way.insert((order.id.clone(), action), at.version);
                        look.plan.orders.push(order);
                    }
                }
                Step::Edit(edit) => {
                    let (revision, fence) = (view.revision, self.fence());
                    look.plan.writes.push(Write::Edit { edit, revision, fence });
                }
                Step::Write(next) => {
                    let values = Values::default()
                        .with("subject", &next.subject)
                        .with("creates", next.creates.clone().unwrap_or_default())
                        .with("removes", next.removes.clone().unwrap_or_default())
                        .with("failures", next.failures)
                        .with("error", next.error.clone().unwrap_or_default());
                    let outcome = format!("{}: {} -> {}", next.id, intent.phase.word(), next.phase.word());
                    self.decide_that(look, "intent", outcome, values, vec![next.id.clone()]);
                    let mine = Intent { epoch: self.epoch, holder: self.holder.clone(), ..*next };
                    self.put(look, Record::Intent(mine));
                }
            }
        }
    }

    fn facts(&self, look: &Look<'_>, intent: &Intent, version: Version) -> Facts {
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
                facts.added = facts.serves && node(intent.creates.as_deref()).is_some_and(|one| in_zone(look.view, one));
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
                let up = |(address, one): &(&String, &super::record::Backend)| {
                    Some(address.as_str()) != old && !one.drained && look.view.is_up(one.target.as_ref(), true)
                };
                facts.spare = service.backends.iter().filter(up).count() >= min;
            }
        }
        facts
    }

    /// Fewest that may be in service.
    fn min(&self, subject: &Subject) -> usize {
        let rule = self.policy.scaling.iter().find(|rule| rule.subject == *subject);
        rule.map_or(1, |rule| usize::try_from(rule.min).unwrap_or(usize::MAX))
    }

    /// Removes created nodes that are dead for good; they count for nothing any more, but still cost.
    fn sweep(&mut self, look: &mut Look<'_>) {
        let view = look.view;
        let Some(rule) = self.policy.scaling.iter().find(|rule| rule.subject == Subject::Nodes) else { return };
        let rule = scaling_key(rule);
        if self.policy.dry_run {
            return;
        }
        let nodes = || view.intents.values().map(|at| &at.value).filter(|one| one.subject == Subject::Nodes);
        let created = nodes().filter(|one| one.phase == Phase::Done).filter_map(|one| one.creates.as_ref());
        let gone: BTreeSet<&String> = nodes().filter_map(|one| one.removes.as_ref()).collect();
        let busy: BTreeSet<&String> =
            nodes().filter(|one| one.phase != Phase::Done).filter_map(|one| one.creates.as_ref()).collect();
        let dead: BTreeSet<String> = created
            .chain(view.nodes.keys().filter(|name| self.is_created(name)))
            .filter(|name| !gone.contains(name) && !busy.contains(name))
            .filter(|name| look.watch.is_dead(name, self.policy.dead_after))
            .cloned()
            .collect();
        for name in dead {
            let intent = self.intent(look, &rule, Subject::Nodes, None, Some(name.clone()), Phase::Remove);
            let values = Values::default().with("node", &name).with("dead_after_s", self.policy.dead_after.as_secs());
            let outcome = format!("{name} is dead for good: remove it");
            self.decide_that(look, &rule, outcome, values, vec![intent.id.clone()]);
            self.put(look, Record::Intent(intent));
        }
    }

    /// Whether a name is one that intents give.
    fn is_created(&self, name: &str) -> bool {
        name.strip_prefix(&*self.policy.prefix).is_some_and(|rest| rest.starts_with('-'))
    }

    fn intent(
        &self,
        look: &mut Look<'_>,
        rule: &str,
        subject: Subject,
        creates: Option<()>,
        removes: Option<String>,
        phase: Phase,
    ) -> Intent {
        look.ids = look.ids.saturating_add(1);
        let id = format!("{}-{}-{}", self.epoch, self.word, look.ids);
        Intent {
            creates: creates.map(|()| format!("{}-{id}", self.policy.prefix)),
            id,
            rule: rule.to_owned(),
            subject,
            removes,
            phase,
            since: look.unix,
            epoch: self.epoch,
            holder: self.holder.clone(),
            address: None,
            failures: 0,
            error: None,
        }
    }

    fn scale(&mut self, look: &mut Look<'_>) {
        let policy = Arc::clone(&self.policy);
        for rule in &policy.scaling {
            let key = scaling_key(rule);
            let Some(Answer::Value(value)) = self.answers.remove(&key) else { continue };
            let (current, pending, leaving) = self.census(look, &rule.subject);
            let inputs = Inputs { current, pending, leaving, value };
            let evaluation = rule.evaluate(self.memories.entry(key.clone()).or_default(), inputs, look.now);
            let verdict = match &evaluation.verdict {
                // What has to be removed must not already be on its way, by whatever rule.
                Verdict::Down(_) if self.is_busy(look.view, &rule.subject) => continue,
                verdict => verdict.clone(),
            };
            let words = verdict.to_string();
            if matches!(verdict, Verdict::Hold(_)) && !self.is_news(&key, &words) {
                continue;
            }
            self.told.insert(key.clone(), words.clone());
            let intents = match (&verdict, policy.dry_run) {
                (Verdict::Hold(_), _) | (_, true) => Vec::new(),
                (Verdict::Up(by), _) => (0..*by)
                    .map(|_| self.intent(look, &key, rule.subject.clone(), Some(()), None, Phase::Create))
                    .collect(),
                (Verdict::Down(_), _) => {
                    let Some(victim) = self.victim(look, &rule.subject) else { continue };
                    vec![self.intent(look, &key, rule.subject.clone(), None, Some(victim), Phase::Drain)]
                }
            };
            let outcome = if policy.dry_run { format!("dry run: {words}") } else { words };
            let ids = intents.iter().map(|intent| intent.id.clone()).collect();
            self.decide_that(look, &key, outcome, Values::of(rule, &evaluation), ids);
            intents.into_iter().for_each(|intent| self.put(look, Record::Intent(intent)));
        }
    }

    /// How many are in service, on their way in and on their way out.
    fn census(&self, look: &Look<'_>, subject: &Subject) -> (u32, u32, u32) {
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
                let up = |(address, one): &(&String, &super::record::Backend)| {
                    !leaving.contains(address.as_str())
                        && !one.drained
                        && look.view.is_up(one.target.as_ref(), true)
                };
                let pending = ours()
                    .filter(|one| one.is_pending())
                    .filter(|one| one.address.as_ref().is_none_or(|address| !service.backends.contains_key(address)));
                (count(service.backends.iter().filter(up).count()), count(pending.count()), count(leaving.len()))
            }
        }
    }

    fn is_busy(&self, view: &View, subject: &Subject) -> bool {
        active(view).any(|one| one.subject == *subject && (one.removes.is_some() || one.is_pending()))
    }

    /// Who goes first: what intents created, the youngest of them, then whoever is last by name.
    fn victim(&self, look: &Look<'_>, subject: &Subject) -> Option<String> {
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

    fn replace(&mut self, look: &mut Look<'_>) {
        let policy = Arc::clone(&self.policy);
        for rule in &policy.replace {
            let key = replace_key(rule);
            let named = match self.answers.remove(&key) {
                Some(Answer::Instances(Ok(named))) => named,
                // Nothing said is nothing known: the time neither grows nor is forgotten.
                Some(Answer::Instances(Err(why))) => {
                    let words = format!("hold: metric missing, {why}");
                    if self.is_news(&key, &words) {
                        self.decide_that(look, &key, words, Values::default(), Vec::new());
                    }
                    continue;
                }
                _ => continue,
            };
            let before = look.view.suspects.get(&rule.name).map(|at| at.value.clone()).unwrap_or_default();
            let after = replace::update(&before, &named, rule.every, look.unix);
            if after != before {
                self.put(look, Record::Suspects(rule.name.clone(), after.clone()));
            }
            let Some((instance, held)) = replace::ripest(&after, rule.after) else {
                self.told.remove(&key);
                continue;
            };
            let Some(old) = self.named(look, &rule.subject, instance) else {
                let words = format!("{instance} is no part of {}", rule.subject);
                if self.is_news(&key, &words) {
                    self.decide_that(look, &key, words, Values::default(), Vec::new());
                }
                continue;
            };
            let values = Values::default()
                .with("instance", instance)
                .with("held_s", held.as_secs())
                .with("for_s", rule.after.as_secs())
                .with("named", named.len());
            if self.is_busy(look.view, &rule.subject) {
                if self.is_news(&key, "busy") {
                    let words = format!("{old} is to be replaced, after what is being done is done");
                    self.decide_that(look, &key, words, values, Vec::new());
                }
                continue;
            }
            let words = format!("replace {old}");
            if policy.dry_run {
                if self.is_news(&key, &words) {
                    self.decide_that(look, &key, format!("dry run: {words}"), values, Vec::new());
                }
                continue;
            }
            let intent = self.intent(look, &key, rule.subject.clone(), Some(()), Some(old), Phase::Create);
            self.told.insert(key.clone(), words.clone());
            self.decide_that(look, &key, words, values, vec![intent.id.clone()]);
            self.put(look, Record::Intent(intent));
        }
    }

    /// The node or backend that an instance label means.
    fn named(&self, look: &Look<'_>, subject: &Subject, instance: &str) -> Option<String> {
        match subject {
            Subject::Nodes => {
                let is = |(name, node): &(&String, &Node)| {
                    replace::means(instance, name)
                        || node.addresses.iter().any(|ip| replace::means(instance, &SocketAddr::new(*ip, 0).to_string()))
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

    /// Whether `words` are others than those that were told last about `key`; they count as told.
    fn is_news(&mut self, key: &str, words: &str) -> bool {
        if self.told.get(key).is_some_and(|last| last == words) {
            return false;
        }
        self.told.insert(key.to_owned(), words.to_owned());
        true
    }
}

/// Intents that are not over.
fn active(view: &View) -> impl Iterator<Item = &Intent> {
    view.intents.values().map(|at| &at.value).filter(|intent| !intent.phase.is_over())
}

fn node_values(look: &Look<'_>) -> Values {
    let standing = |values: Values, (name, node): (&String, &Node)| {
        let reason = look.watch.standing(name, node, in_zone(look.view, node), false, look.view.revision);
        values.with(name, reason.words())
    };
    look.view.nodes.iter().fold(Values::default(), standing)
}

fn in_zone(view: &View, node: &Node) -> bool {
    view.zone.as_ref().is_some_and(|zone| zone.value.has(&node.addresses))
}

fn scaling_key(rule: &scale::Rule) -> String {
    format!("scaling/{}", rule.name)
}

fn replace_key(rule: &replace::Rule) -> String {
    format!("replace/{}", rule.name)
}

/// Values of a decision, in words.
#[derive(Clone, Debug, Default)]
struct Values(BTreeMap<String, String>);

impl Values {
    fn with(mut self, name: &str, value: impl ToString) -> Self {
        let value = value.to_string();
        if !value.is_empty() {
            self.0.insert(name.to_owned(), value);
        }
        self
    }

    fn of(rule: &scale::Rule, evaluation: &scale::Evaluation) -> Self {
        let or_dash = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let value = match &evaluation.inputs.value {
            Ok(value) => value.to_string(),
            Err(why) => why.to_string(),
        };
        Self::default()
            .with("subject", &rule.subject)
            .with("value", value)
            .with("target", rule.target)
            .with("tolerance", rule.tolerance)
            .with("current", evaluation.inputs.current)
            .with("pending", evaluation.inputs.pending)
            .with("leaving", evaluation.inputs.leaving)
            .with("desired", or_dash(evaluation.desired))
            .with("window_max", or_dash(evaluation.window_max))
            .with("min", rule.min)
            .with("max", rule.max)
    }
}
