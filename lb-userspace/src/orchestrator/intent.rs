//! What is being done: an intent names what it will create, and is recorded, before anything is created.
//!
//! Pure. One record per intent, moved on by the master through phases; whoever is the master next reads it and goes on where
//! it stands. Rules:
//!
//! - An order is given only for an intent whose present record *this* master wrote, with a replica's word for it. So no order
//!   exists whose intent could be forgotten.
//! - An order carries the id, the name and the epoch. Executors do nothing twice for one id.
//! - Replacing is creating, waiting until the new one serves, adding, draining the old and removing it, in this order. What
//!   fails before the new one serves is taken back and leaves the old one alone.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{clock::UnixMs, scale::Subject};

/// How far an intent has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The executor is to create it.
    Create,
    /// It was created, and does not serve yet.
    Await,
    /// It serves by itself, and is to be put where clients are.
    Add,
    /// The old one gets no new connections.
    Drain,
    /// The executor is to remove the old one.
    Remove,
    /// The executor is to remove what was created in vain.
    Abandon,
    /// All is done.
    Done,
    /// It was given up.
    Failed,
}

impl Phase {
    /// Nothing follows.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }

    /// The word of the records.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Await => "await",
            Self::Add => "add",
            Self::Drain => "drain",
            Self::Remove => "remove",
            Self::Abandon => "abandon",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// One thing that is being done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Unique for ever: epoch, a word of the master's start, a number.
    pub id: String,
    /// The rule that asked for it.
    pub rule: String,
    /// What it is about.
    pub subject: Subject,
    /// Name of what it creates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creates: Option<String>,
    /// What it removes: a node's name, a backend's `ADDRESS:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removes: Option<String>,
    /// How far it has come.
    pub phase: Phase,
    /// Since when.
    pub since: UnixMs,
    /// Epoch of the master that wrote this.
    pub epoch: u64,
    /// Holder that wrote this.
    pub holder: String,
    /// What the executor said where the new one is: `ADDRESS:PORT` of a backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Orders of this phase that failed.
    #[serde(default)]
    pub failures: u32,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Intent {
    /// Something is to come that is not in service yet.
    pub fn is_pending(&self) -> bool {
        self.creates.is_some() && matches!(self.phase, Phase::Create | Phase::Await | Phase::Add)
    }

    /// What is on its way out, from the moment on in which it must get no new connections.
    pub fn leaving(&self) -> Option<&str> {
        matches!(self.phase, Phase::Drain | Phase::Remove).then_some(self.removes.as_deref()).flatten()
    }

    /// The phase after the present one, for an intent of this kind.
    fn after(&self) -> Phase {
        match self.phase {
            Phase::Create => Phase::Await,
            Phase::Await => Phase::Add,
            Phase::Add if self.removes.is_some() => Phase::Drain,
            Phase::Drain => Phase::Remove,
            Phase::Add | Phase::Remove | Phase::Done => Phase::Done,
            Phase::Abandon | Phase::Failed => Phase::Failed,
        }
    }
}

/// What an executor is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Make it exist.
    Create,
    /// Make it not exist.
    Remove,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Remove => "remove",
        })
    }
}

/// An order to an executor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Order {
    /// Id of the intent; the executor does nothing twice for one (id, action).
    pub id: String,
    /// What to do.
    pub action: Action,
    /// With what: the name of what is created, or what is removed.
    pub name: String,
    /// What it is about.
    pub subject: Subject,
    /// The rule that asked for it.
    pub rule: String,
    /// Epoch of the master; an executor that remembers the highest may refuse lower ones.
    pub epoch: u64,
}

/// What became of an order: what the executor printed, or why it failed.
pub type Executed = Result<Option<String>, String>;

/// A change of a service's backends in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Add a backend.
    Add {
        /// The service.
        service: String,
        /// `ADDRESS:PORT`.
        backend: String,
    },
    /// Set a backend to drain.
    Drain {
        /// The service.
        service: String,
        /// `ADDRESS:PORT`.
        backend: String,
    },
    /// Take a backend out.
    Remove {
        /// The service.
        service: String,
        /// `ADDRESS:PORT`.
        backend: String,
    },
}

impl Edit {
    /// The service that is changed.
    pub fn service(&self) -> &str {
        match self {
            Self::Add { service, .. } | Self::Drain { service, .. } | Self::Remove { service, .. } => service,
        }
    }
}

/// Times of an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// What was created must serve within.
    pub ready: Duration,
    /// The old one is drained for.
    pub drain: Duration,
    /// Orders of one phase that may fail before it is given up.
    pub attempts: u32,
    /// Pause after the first failure; doubled with each further one.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            ready: Duration::from_secs(600),
            drain: Duration::from_secs(300),
            attempts: 5,
            pause: Duration::from_secs(5),
        }
    }
}

/// Longest pause between orders.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What the master knows that decides about the next step.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What became of the order of this phase, if it was given by this master and has ended.
    pub executed: Option<Executed>,
    /// An order of this phase is under way.
    pub under_way: bool,
    /// The new one answers its health check or ready endpoint.
    pub serves: bool,
    /// The new one is where clients are: in DNS, in the service.
    pub added: bool,
    /// The old one is still where clients are.
    pub present: bool,
    /// The old one is set to drain, where that is a setting.
    pub drained: bool,
    /// Without the old one there are still enough in service.
    pub spare: bool,
    /// The old one is dead: there is nothing to drain.
    pub dead: bool,
}

/// What to do next about an intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing now.
    Wait,
    /// Give an order.
    Order(Action),
    /// Change the configuration.
    Edit(Edit),
    /// Write the intent like this.
    Write(Box<Intent>),
}

/// The next step of `intent`.
pub fn step(intent: &Intent, facts: &Facts, patience: &Patience, now: UnixMs) -> Step {
    let waited = now.since(intent.since);
    match intent.phase {
        Phase::Done | Phase::Failed => Step::Wait,
        Phase::Create => order(intent, facts, patience, Action::Create, now),
        Phase::Abandon => order(intent, facts, patience, Action::Remove, now),
        Phase::Await if facts.serves => moved(intent, intent.after(), now),
        Phase::Await if waited >= patience.ready => {
            let error = format!("it did not serve within {} s", patience.ready.as_secs());
            Step::Write(Box::new(Intent { error: Some(error), ..with_phase(intent, Phase::Abandon, now) }))
        }
        Phase::Await => Step::Wait,
        Phase::Add if facts.added => {
            // The old one is touched only when the new one counts.
            if intent.removes.is_some() && !facts.spare { Step::Wait } else { moved(intent, intent.after(), now) }
        }
        // An edit that is refused again and again must not hold up everything behind it.
        Phase::Add if waited >= patience.ready && matches!(intent.subject, Subject::Backends(_)) => {
            let error = format!("it did not come into service within {} s", patience.ready.as_secs());
            Step::Write(Box::new(Intent { error: Some(error), ..with_phase(intent, Phase::Abandon, now) }))
        }
        Phase::Add => match (&intent.subject, &intent.address) {
            (Subject::Backends(service), Some(backend)) => {
                Step::Edit(Edit::Add { service: service.clone(), backend: backend.clone() })
            }
            _ => Step::Wait,
        },
        Phase::Drain if !facts.spare && !facts.dead => {
            let error = "given up: without it there would be fewer than `min` in service".to_owned();
            Step::Write(Box::new(Intent { error: Some(error), ..with_phase(intent, Phase::Failed, now) }))
        }
        Phase::Drain => match (&intent.subject, &intent.removes) {
            (Subject::Backends(service), Some(backend)) if facts.present && !facts.drained => {
                Step::Edit(Edit::Drain { service: service.clone(), backend: backend.clone() })
            }
            _ if waited >= patience.drain || facts.dead => moved(intent, Phase::Remove, now),
            _ => Step::Wait,
        },
        Phase::Remove => match (&intent.subject, &intent.removes) {
            (Subject::Backends(service), Some(backend)) if facts.present => {
                Step::Edit(Edit::Remove { service: service.clone(), backend: backend.clone() })
            }
            _ => order(intent, facts, patience, Action::Remove, now),
        },
    }
}

fn with_phase(intent: &Intent, phase: Phase, now: UnixMs) -> Intent {
    Intent { phase, since: now, failures: 0, ..intent.clone() }
}

fn moved(intent: &Intent, phase: Phase, now: UnixMs) -> Step {
    Step::Write(Box::new(with_phase(intent, phase, now)))
}

/// Gives the order of this phase, or moves on after it.
fn order(intent: &Intent, facts: &Facts, patience: &Patience, action: Action, now: UnixMs) -> Step {
    match &facts.executed {
        Some(Ok(said)) => {
            let next = with_phase(intent, intent.after(), now);
            let address = said.clone().filter(|_| action == Action::Create).or(intent.address.clone());
            let needs_address = action == Action::Create && matches!(intent.subject, Subject::Backends(_));
            if needs_address && address.is_none() {
                let error = "the executor did not print ADDRESS:PORT of what it created".to_owned();
                return Step::Write(Box::new(Intent { error: Some(error), ..with_phase(intent, Phase::Abandon, now) }));
            }
            Step::Write(Box::new(Intent { address, ..next }))
        }
        Some(Err(error)) => {
            let failures = intent.failures.saturating_add(1);
            if failures < patience.attempts.max(1) {
                let next = Intent { failures, error: Some(error.clone()), since: now, ..intent.clone() };
                return Step::Write(Box::new(next));
            }
            // A creation that failed may have created half of it.
            let phase = if intent.phase == Phase::Create { Phase::Abandon } else { Phase::Failed };
            Step::Write(Box::new(Intent { error: Some(error.clone()), ..with_phase(intent, phase, now) }))
        }
        None if facts.under_way => Step::Wait,
        None => {
            let pause = match intent.failures {
                0 => Duration::ZERO,
                n => patience.pause.saturating_mul(1 << (n - 1).min(10)).min(PAUSE_MAX),
            };
            // A wall clock that went back must not delay it for ever: time is then zero at worst for one pause.
            if now.since(intent.since) < pause && now.0 >= intent.since.0 { Step::Wait } else { Step::Order(action) }
        }
    }
}

/// The order that `action` means for `intent`, under `epoch`.
pub fn order_of(intent: &Intent, action: Action, epoch: u64) -> Option<Order> {
    let name = match (intent.phase, action) {
        (Phase::Create, Action::Create) | (Phase::Abandon, Action::Remove) => intent.creates.clone()?,
        (Phase::Remove, Action::Remove) => intent.removes.clone()?,
        _ => return None,
    };
    let (id, subject, rule) = (intent.id.clone(), intent.subject.clone(), intent.rule.clone());
    Some(Order { id, action, name, subject, rule, epoch })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(phase: Phase, subject: Subject, creates: Option<&str>, removes: Option<&str>) -> Intent {
        Intent {
            id: "7-ab-1".into(),
            rule: "r".into(),
            subject,
            creates: creates.map(Into::into),
            removes: removes.map(Into::into),
            phase,
            since: UnixMs(1_000_000),
            epoch: 7,
            holder: "a/ab".into(),
            address: None,
            failures: 0,
            error: None,
        }
    }

    fn web() -> Subject {
        Subject::Backends("web".into())
    }

    /// `wait`, `create`, `remove`, an edit's first word, or the phase and error that are written.
    fn next(intent: &Intent, facts: Facts, after_s: u64) -> String {
        match step(intent, &facts, &Patience::default(), UnixMs(intent.since.0 + after_s * 1000)) {
            Step::Wait => "wait".into(),
            Step::Order(action) => action.to_string(),
            Step::Edit(Edit::Add { .. }) => "edit add".into(),
            Step::Edit(Edit::Drain { .. }) => "edit drain".into(),
            Step::Edit(Edit::Remove { .. }) => "edit remove".into(),
            Step::Write(next) => format!("-> {} {}", next.phase.word(), next.failures),
        }
    }

    #[test]
    fn steps() {
        let facts = Facts::default;
        let said = |text: &str| Facts { executed: Some(Ok(Some(text.into()))), ..facts() };
        let failed = || Facts { executed: Some(Err("exit 1".into())), ..facts() };
        let spare = || Facts { spare: true, present: true, ..facts() };
        let nodes = |phase| intent(phase, Subject::Nodes, Some("n9"), Some("n1"));
        let backend = |phase| intent(phase, web(), Some("b9"), Some("10.0.0.1:80"));
        let placed = |phase| Intent { address: Some("10.0.0.9:80".into()), ..backend(phase) };
        for (what, intent, facts, after_s, want) in [
            ("an order", nodes(Phase::Create), facts(), 0, "create"),
            ("one at a time", nodes(Phase::Create), Facts { under_way: true, ..facts() }, 0, "wait"),
            ("created", nodes(Phase::Create), said(""), 0, "-> await 0"),
            (
                "a backend needs an address",
                backend(Phase::Create),
                Facts { executed: Some(Ok(None)), ..facts() },
                0,
                "-> abandon 0",
            ),
            ("and has one", backend(Phase::Create), said("10.0.0.9:80"), 0, "-> await 0"),
            ("a failure is repeated", nodes(Phase::Create), failed(), 0, "-> create 1"),
            ("after a pause", Intent { failures: 2, ..nodes(Phase::Create) }, facts(), 9, "wait"),
            ("that ends", Intent { failures: 2, ..nodes(Phase::Create) }, facts(), 10, "create"),
            ("and then given up", Intent { failures: 4, ..nodes(Phase::Create) }, failed(), 0, "-> abandon 0"),
            ("it does not serve yet", nodes(Phase::Await), facts(), 599, "wait"),
            ("it never does", nodes(Phase::Await), facts(), 600, "-> abandon 0"),
            ("it does", nodes(Phase::Await), Facts { serves: true, ..facts() }, 600, "-> add 0"),
            ("nodes add themselves", nodes(Phase::Add), facts(), 0, "wait"),
            ("backends are added", placed(Phase::Add), facts(), 0, "edit add"),
            ("the old one waits for a spare", nodes(Phase::Add), Facts { added: true, ..facts() }, 0, "wait"),
            ("then drains", nodes(Phase::Add), Facts { added: true, ..spare() }, 0, "-> drain 0"),
            (
                "nothing to remove",
                intent(Phase::Add, web(), Some("b9"), None),
                Facts { added: true, ..facts() },
                0,
                "-> done 0",
            ),
            ("a backend is set to drain", backend(Phase::Drain), spare(), 0, "edit drain"),
            ("and drains", backend(Phase::Drain), Facts { drained: true, ..spare() }, 299, "wait"),
            ("long enough", backend(Phase::Drain), Facts { drained: true, ..spare() }, 300, "-> remove 0"),
            ("a dead one needs no drain", nodes(Phase::Drain), Facts { dead: true, ..facts() }, 0, "-> remove 0"),
            ("others died meanwhile", nodes(Phase::Drain), Facts { present: true, ..facts() }, 10, "-> failed 0"),
            ("out of the service first", backend(Phase::Remove), spare(), 0, "edit remove"),
            ("then removed", backend(Phase::Remove), facts(), 0, "remove"),
            ("done", backend(Phase::Remove), said(""), 0, "-> done 0"),
            ("taken back", nodes(Phase::Abandon), facts(), 0, "remove"),
            ("and over", nodes(Phase::Abandon), said(""), 0, "-> failed 0"),
            ("over is over", nodes(Phase::Failed), said(""), 0, "wait"),
        ] {
            assert_eq!(next(&intent, facts, after_s), want, "{what}");
        }
    }

    #[test]
    fn orders_name_what_they_are_about() {
        let replace = intent(Phase::Create, web(), Some("b9"), Some("10.0.0.1:80"));
        let order = order_of(&replace, Action::Create, 8).unwrap();
        assert_eq!((order.id.as_str(), order.name.as_str(), order.epoch), ("7-ab-1", "b9", 8));
        assert_eq!(order_of(&replace, Action::Remove, 8), None);
        let replace = Intent { phase: Phase::Remove, ..replace };
        assert_eq!(order_of(&replace, Action::Remove, 8).unwrap().name, "10.0.0.1:80");
        let replace = Intent { phase: Phase::Abandon, ..replace };
        assert_eq!(order_of(&replace, Action::Remove, 8).unwrap().name, "b9");
    }

    #[test]
    fn what_is_pending_and_what_is_leaving() {
        let of = |phase| intent(phase, Subject::Nodes, Some("n9"), Some("n1"));
        assert!(of(Phase::Await).is_pending() && of(Phase::Await).leaving().is_none());
        assert!(!of(Phase::Drain).is_pending());
        assert_eq!(of(Phase::Remove).leaving(), Some("n1"));
        assert!(Phase::Done.is_over() && !Phase::Abandon.is_over());
    }
}
