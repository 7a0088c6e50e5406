//! The loop around [`Process`]: carries out what it asks, and hands the answers back.
//!
//! Owns: tasks, time-outs, the health checker of the share, executors. Refuses to know: why anything is done.
//! Invariants: every request is answered in the end, if only by its time-out; what executors do is stopped as soon as this
//! process is the master no more; each queue has a limit.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
};

use super::{
    clock::{BootTime, Periods, UnixMs},
    execute::Executor,
    http,
    intent::{Action, Executed},
    master::{Answer, Policy, Query},
    place::{self, Place},
    placement::Vote,
    process::{Ask, Process},
    prometheus::{self, Prometheus},
    record::{Outcome, View},
    report::{self, Command, Status},
    scale::Missing,
};
use crate::health::{Checker, Event, State, Target};

/// Commands that wait, at most.
pub const COMMANDS_MAX: usize = 16;
/// How long the mastership may take to be given back at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// What an orchestrator is made of.
#[derive(Debug)]
pub struct Parts {
    /// Its name among the others.
    pub name: String,
    /// Where its metrics are, for service discovery.
    pub address: Option<String>,
    /// What it is told to do.
    pub policy: Arc<Policy>,
    /// How often and how long.
    pub periods: Periods,
    /// The store.
    pub place: Arc<dyn Place>,
    /// Prometheus; without one every metric is missing.
    pub prometheus: Option<Prometheus>,
    /// Executors by rule (`scaling/NAME`, `replace/NAME`).
    pub executors: BTreeMap<String, Executor>,
}

/// What the store holds, and the targets by name; or why it cannot be read.
type Looked = Result<(View, BTreeMap<String, Target>), String>;

/// What a task came to.
enum Done {
    Looked(Box<Looked>),
    Written(Outcome),
    Executed(String, Action, Executed),
    Answered(String, Answer),
    Probed(String, bool),
}

/// A running orchestrator.
struct Loop {
    parts: Parts,
    process: Process,
    tasks: JoinSet<Done>,
    executing: Vec<AbortHandle>,
    checker: Checker,
    targets: BTreeMap<String, Target>,
    names: BTreeMap<Target, String>,
    status: watch::Sender<Arc<(Status, View)>>,
    read_at: Option<UnixMs>,
    store_error: Option<String>,
    was_acting: Option<u64>,
}

/// Handles of a running orchestrator.
pub struct Handles {
    /// The present status.
    pub status: watch::Receiver<Arc<(Status, View)>>,
    /// Commands to it.
    pub commands: mpsc::Sender<Command>,
}

/// Prepares an orchestrator; the future runs it until `stop` resolves, and then gives the mastership back.
///
/// # Errors
/// There is no random source.
pub fn orchestrate(
    parts: Parts,
    stop: impl Future<Output = ()>,
) -> Result<(Handles, impl Future<Output = ()>), getrandom::Error> {
    let word = format!("{:08x}", getrandom::u32()?);
    let process = Process::new(&parts.name, &word, parts.address.clone(), Arc::clone(&parts.policy), parts.periods);
    let (status, statuses) = watch::channel(Arc::new((Status::default(), View::default())));
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let run = async move {
        let (checker, events) = Checker::start(Default::default());
        let mut run = Loop {
            parts,
            process,
            tasks: JoinSet::new(),
            executing: Vec::new(),
            checker,
            targets: BTreeMap::new(),
            names: BTreeMap::new(),
            status,
            read_at: None,
            store_error: None,
            was_acting: None,
        };
        run.run(inbox, events, stop).await;
    };
    Ok((Handles { status: statuses, commands }, run))
}

impl Loop {
    async fn run(
        &mut self,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<Event>,
        stop: impl Future<Output = ()>,
    ) {
        let mut stop = std::pin::pin!(stop);
        let mut end: Option<tokio::time::Instant> = None;
        loop {
            for ask in self.process.poll(BootTime::now()) {
                self.carry_out(ask);
            }
            self.tell();
            let now = BootTime::now();
            let held = self.process.holds();
            if end.is_some_and(|end| !held || tokio::time::Instant::now() >= end) {
                return;
            }
            let wait = self.process.wake_at(now).since(now).max(Duration::from_millis(1));
            tokio::select! {
                Some(done) = self.tasks.join_next() => {
                    // A task that was aborted says nothing.
                    if let Ok(done) = done {
                        self.take(done);
                    }
                }
                Some(event) = events.recv() => self.probe(&event),
                Some(command) = commands.recv() => self.command(command).await,
                () = &mut stop, if end.is_none() => {
                    tracing::info!("stopping; the mastership is given back");
                    self.process.retire();
                    end = Some(tokio::time::Instant::now() + FAREWELL);
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn carry_out(&mut self, ask: Ask) {
        let timeout = self.parts.periods.timeout;
        let place = Arc::clone(&self.parts.place);
        match ask {
            Ask::Read { decisions } => {
                self.tasks.spawn(async move {
                    let looked = tokio::time::timeout(timeout, place.look(decisions)).await;
                    let looked = looked.unwrap_or_else(|_| {
                        Err(place::PlaceError(format!("no answer within {} ms", timeout.as_millis())))
                    });
                    Done::Looked(Box::new(looked.map(|look| place::view(&look)).map_err(|error| error.to_string())))
                });
            }
            Ask::Write(write) => {
                self.tasks.spawn(async move {
                    let written = tokio::time::timeout(timeout, place.write(write)).await;
                    Done::Written(written.unwrap_or(Outcome::Unknown))
                });
            }
            Ask::Execute(order) => {
                tracing::info!(
                    id = order.id,
                    rule = order.rule,
                    epoch = order.epoch,
                    "{} {}",
                    order.action,
                    order.name
                );
                let executor = self.parts.executors.get(&order.rule).cloned();
                let handle = self.tasks.spawn(async move {
                    let executed = match executor {
                        Some(executor) => executor.execute(&order).await,
                        None => Err(format!("{} has no executor", order.rule)),
                    };
                    Done::Executed(order.id, order.action, executed)
                });
                self.executing.retain(|handle| !handle.is_finished());
                self.executing.push(handle);
            }
            Ask::Query(Query { rule, expr, label }) => {
                let prometheus = self.parts.prometheus.clone();
                self.tasks.spawn(async move {
                    let answer = match &prometheus {
                        Some(prometheus) => prometheus.query(&expr).await.map_err(|error| error.to_string()),
                        None => Err("no Prometheus is configured".to_owned()),
                    };
                    let answer = answer.map_err(Missing::NoAnswer);
                    let answer = match label {
                        None => Answer::Value(answer.and_then(|series| prometheus::one_value(&series))),
                        Some(label) => Answer::Instances(answer.map(|series| prometheus::instances(series, &label))),
                    };
                    Done::Answered(rule, answer)
                });
            }
            Ask::Probe(node, address) => {
                self.tasks.spawn(async move { Done::Probed(node, http::is_ready(address, timeout).await) });
            }
            Ask::Check(share) => self.check(&share),
            Ask::Halt => {
                for handle in self.executing.drain(..) {
                    handle.abort();
                }
            }
        }
    }

    /// Checks exactly `share` from now on; what the store says of a target's health is what its check begins with.
    fn check(&mut self, share: &std::collections::BTreeSet<String>) {
        let mut wanted = BTreeMap::new();
        self.names.clear();
        for name in share {
            if let Some(target) = self.targets.get(name) {
                let health = self.process.view().health.get(name);
                wanted.insert(target.clone(), health.map(|at| at.value.up));
                self.names.insert(target.clone(), name.clone());
            }
        }
        self.checker.set_targets(wanted);
    }

    fn probe(&mut self, event: &Event) {
        let Some(name) = self.names.get(&*event.target) else { return };
        if event.state != State::Unknown {
            let reason = event.outcome.word().to_owned();
            self.process.vote(name, Vote { up: event.state == State::Up, reason, at: UnixMs::now() });
        }
    }

    fn take(&mut self, done: Done) {
        let now = BootTime::now();
        match done {
            Done::Looked(looked) => match *looked {
                Ok((view, targets)) => {
                    if self.store_error.take().is_some() {
                        tracing::info!("the store answers again");
                    }
                    for error in &view.unreadable {
                        tracing::warn!(%error, "a record cannot be read and is left out");
                    }
                    self.read_at = Some(UnixMs::now());
                    self.targets = targets;
                    if let Some(ask) = self.process.looked(Some(view), now, UnixMs::now()) {
                        self.carry_out(ask);
                    }
                }
                Err(error) => {
                    if self.store_error.as_ref() != Some(&error) {
                        tracing::warn!(error, "the store cannot be read");
                    }
                    self.store_error = Some(error);
                    self.process.looked(None, now, UnixMs::now());
                }
            },
            Done::Written(outcome) => self.process.written(outcome, now),
            Done::Executed(id, action, executed) => {
                match &executed {
                    Ok(said) => tracing::info!(id, address = said, "{action}: done"),
                    Err(error) => tracing::warn!(id, error, "{action}: failed"),
                }
                self.process.executed(&id, action, executed, now);
            }
            Done::Answered(rule, answer) => self.process.answered(&rule, answer),
            Done::Probed(node, ready) => self.process.probed(&node, ready, now),
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::StepDown => {
                tracing::info!("asked to step down");
                self.process.step_down(BootTime::now());
            }
            Command::Decisions(reply) => {
                let looked = tokio::time::timeout(self.parts.periods.timeout, self.parts.place.look(true)).await;
                let answer = match looked {
                    Ok(Ok(look)) => Ok(report::ring(&place::view(&look).0)),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("the store does not answer".to_owned()),
                };
                // Who asked may have gone away.
                let _ = reply.send(answer);
            }
        }
    }

    /// Publishes the status, and logs a change of mastership.
    fn tell(&mut self) {
        let acting = self.process.may_act(BootTime::now());
        if acting != self.was_acting {
            match acting {
                Some(epoch) => tracing::info!(epoch, "this process is the master"),
                None => tracing::info!("this process is the master no more"),
            }
            self.was_acting = acting;
        }
        let mut status = report::status(&self.process, acting, self.parts.policy.dry_run);
        status.read_at = self.read_at;
        status.store_error.clone_from(&self.store_error);
        self.status.send_if_modified(|present| {
            let same = present.0 == status;
            if !same {
                *present = Arc::new((status, self.process.view().clone()));
            }
            !same
        });
    }
}
