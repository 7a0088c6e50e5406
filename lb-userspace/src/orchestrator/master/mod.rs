//! What the master decides at one look at the store: the assignment, the zone, the next step of each intent, and what rules
//! make of their metrics.
//!
//! Pure: a view, answers that came meanwhile and `now` in; writes, orders, queries and probes out. What it must not forget is
//! in records; what is only in memory here (windows, values, probes) is such that a new master that lacks it does less.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

mod look;
mod rules;

use look::Look;

use super::{
    clock::{BootTime, UnixMs},
    decision::{self, Decision},
    intent::{self, Action, Executed, Intent, Order, Patience, Phase, Step},
    placement,
    record::{Expect, Fence, Put, Record, Version, View, Write},
    replace,
    scale::{self, Memory, Missing, Subject},
    watch::{Reason, Watch},
};
use crate::dns::publish::{self, Candidate, Held, ZoneSpec};

/// The zone of the fleet.
#[derive(Clone, Debug, PartialEq)]
pub struct ZonePolicy {
    /// What is in it besides the nodes.
    pub spec: ZoneSpec,
    /// Names, relative to the origin, under which it gives out the nodes.
    pub names: BTreeSet<String>,
}

/// What the orchestrator is told to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// The zone of the fleet; `None`: DNS is somebody else's.
    pub zone: Option<ZonePolicy>,
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
    pub fn decide(
        &mut self,
        view: &View,
        watch: &Watch,
        workers: &BTreeSet<String>,
        now: BootTime,
        unix: UnixMs,
    ) -> Plan {
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
        let policy = Arc::clone(&self.policy);
        let Some(zone) = &policy.zone else { return };
        let last = look.view.zone.as_ref().map(|at| &at.value);
        let candidates: Vec<Candidate> = look
            .standings
            .reasons
            .iter()
            .filter_map(|(name, reason)| Some((look.view.nodes.get(name)?, *reason)))
            .flat_map(|(node, reason)| {
                let (ready, draining) = (reason == Reason::InService, reason == Reason::Draining);
                // Draining nodes still forward: better than none at all.
                let ready = ready || (draining && node.ready);
                node.addresses.iter().map(move |address| Candidate { address: *address, ready, draining })
            })
            .collect();
        let names = zone.names.iter().map(|name| (name.clone(), candidates.clone())).collect();
        let published = publish::publish(&zone.spec, &names, last, look.unix.0 / 1000);
        let kept: Vec<String> = published
            .held
            .iter()
            .filter(|(_, _, held)| *held != Held::Absent)
            .map(|(name, family, held)| format!("{name} {family:?} {held:?}"))
            .collect();
        if kept.is_empty() {
            self.told.remove("dns");
        } else if self.is_news("dns", &kept.join(", ")) {
            let values = node_values(look).with("held", kept.join(", "));
            self.decide_that(look, "dns", "no node is in service: addresses stay".to_owned(), values, Vec::new());
        }
        let known = |name: &String| published.zone.records.contains_key(name);
        // A zone without any node would tell resolvers that there is no such name.
        if published.changed && (last.is_some() || zone.names.iter().any(known)) {
            let outcome = format!("serial {}", published.zone.serial);
            let values = zone.names.iter().fold(node_values(look), |values, name| {
                let list = published.zone.records.get(name).into_iter().flatten();
                values.with(name, list.map(IpAddr::to_string).collect::<Vec<_>>().join(" "))
            });
            self.decide_that(look, "dns", outcome, values, Vec::new());
            self.put(look, Record::Zone(published.zone));
        }
    }

    /// Takes each intent its next step.
    fn proceed(&mut self, look: &mut Look<'_>) {
        if self.policy.dry_run {
            return;
        }
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

    /// Whether `words` are others than those that were told last about `key`; they count as told.
    fn is_news(&mut self, key: &str, words: &str) -> bool {
        if self.told.get(key).is_some_and(|last| last == words) {
            return false;
        }
        self.told.insert(key.to_owned(), words.to_owned());
        true
    }
}

fn node_values(look: &Look<'_>) -> Values {
    look.standings.reasons.iter().fold(Values::default(), |values, (name, reason)| values.with(name, reason.words()))
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
