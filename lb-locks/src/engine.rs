//! The shell around the protocol: sends to all nodes at once, waits with one time-out, tries again, cleans up.
//!
//! Owns: the present list of nodes, and every effect between a [`Request`] and a [`Guard`]. Decisions are
//! [`crate::round`]'s. Invariants: an attempt that fails or is dropped is released wherever it may hold; each attempt has
//! its own value; every loop ends with the request's time or attempts.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::stream::StreamExt;
use tokio::{sync::watch, time::sleep};

use crate::{
    attempt::{Answer, Leftover},
    claim::Claim,
    clock::{self, BootTime, ms},
    command::{Command, List, ListId, Refusal, Reply, Terms, Ticket},
    error::{LockError, NodeError, NodeOutcome, Report},
    guard::Guard,
    held::Held,
    lock::{Holding, Inspections, Options, Request, Statuses},
    members,
    node::{BoxFuture, Node},
    nodes::Nodes,
    repair,
    round::{Acquisition, Tally},
    value::{Owner, Value},
};

/// Makes a node out of a member of an announced list.
pub type Connect = dyn Fn(&members::Member) -> Result<Arc<dyn Node>, LockError> + Send + Sync;

/// Locks over a list of nodes.
pub struct Engine {
    pub options: Options,
    nodes: watch::Sender<Arc<Nodes>>,
    connect: Option<Box<Connect>>,
    repairing: AtomicBool,
    /// Whether the nodes of this list were asked if they are different servers.
    distinct: AtomicBool,
    /// The list that was last complained about.
    said: Mutex<Option<ListId>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("nodes", &self.nodes().names).finish_non_exhaustive()
    }
}

impl Engine {
    pub fn new(nodes: Nodes, options: Options) -> Result<Arc<Self>, LockError> {
        Self::with_connect(nodes, options, None)
    }

    pub fn with_connect(nodes: Nodes, options: Options, connect: Option<Box<Connect>>) -> Result<Arc<Self>, LockError> {
        options.check()?;
        Ok(Arc::new(Self {
            options,
            nodes: watch::Sender::new(Arc::new(nodes)),
            connect,
            repairing: AtomicBool::new(false),
            distinct: AtomicBool::new(false),
            said: Mutex::default(),
        }))
    }

    pub fn connect(&self) -> Option<&Connect> {
        self.connect.as_deref()
    }

    /// The present list.
    pub fn nodes(&self) -> Arc<Nodes> {
        Arc::clone(&self.nodes.borrow())
    }

    /// Tells when the list changes.
    pub fn watch_nodes(&self) -> watch::Receiver<Arc<Nodes>> {
        self.nodes.subscribe()
    }

    /// Takes `nodes` for the present list, unless a newer one is there already.
    pub fn set_nodes(&self, nodes: Nodes) {
        self.nodes.send_if_modified(|present| {
            let newer = nodes.list.id.epoch > present.list.id.epoch;
            if newer {
                self.distinct.store(false, Ordering::Release);
                *present = Arc::new(nodes);
            }
            newer
        });
    }

    pub fn terms(&self, nodes: &Nodes) -> Terms {
        Terms { list: nodes.list.id.clone(), max_ttl_ms: ms(self.options.max_ttl), quarantine: self.options.quarantine }
    }

    /// Takes a lock, trying again while the request allows.
    pub async fn acquire(self: &Arc<Self>, request: Request) -> Result<Guard, LockError> {
        request.check(&self.options)?;
        if !self.distinct.swap(true, Ordering::AcqRel)
            && let Err(error) = self.check_distinct(&self.nodes()).await
        {
            self.distinct.store(false, Ordering::Release);
            return Err(error);
        }
        let started = BootTime::now();
        let ticket = if request.first_come { Some(self.ticket()?) } else { None };
        let mut place = ticket.as_ref().map(|ticket| Claim::of_ticket(self, &request.name, ticket));
        let mut pause_max = self.options.retry_base;
        let mut attempt = 0;
        loop {
            let (error, acquisition) = match self.attempt(&request, ticket.as_ref()).await {
                Ok(guard) => {
                    // The guard gives the place up together with the lock, on the nodes that it asked. An earlier attempt may
                    // have asked others, and there the place must not stand before others until it is given up for lost.
                    if let Some(place) = &mut place
                        && attempt == 0
                    {
                        place.disarm();
                    }
                    return Ok(guard);
                }
                Err(failed) => *failed,
            };
            attempt += 1;
            let elapsed = BootTime::now().since(started);
            if !error.is_passing() || attempt >= request.attempts_max || elapsed >= request.wait {
                return Err(error);
            }
            self.learn(&acquisition).await;
            let pause = self.pause(&acquisition, pause_max, request.first_come);
            sleep(pause.min(request.wait.saturating_sub(elapsed))).await;
            pause_max = (pause_max * 2).min(self.options.retry_max);
        }
    }

    /// Refuses one server under two names. Once per list, before the first lock: later, votes tell their run.
    pub async fn check_distinct(self: &Arc<Self>, nodes: &Arc<Nodes>) -> Result<(), LockError> {
        if nodes.nodes.len() < 2 {
            return Ok(());
        }
        let answers = self.ask_all(nodes, Command::Status).await;
        let mut runs: Vec<(String, &str)> = Vec::new();
        for (name, answer) in nodes.names.iter().zip(answers) {
            let Ok(Reply::Status(status)) = answer else { continue };
            if let Some((_, other)) = runs.iter().find(|(run, _)| *run == status.run_id) {
                return Err(LockError::Config(format!("lock nodes {other} and {name} are one server: list it once")));
            }
            runs.push((status.run_id, name));
        }
        Ok(())
    }

    pub fn value(&self) -> Result<Value, LockError> {
        let owner = Owner::this_process(&self.options.label);
        Value::random(&owner).map_err(|e| LockError::Config(format!("the kernel gives no random numbers: {e}")))
    }

    fn ticket(&self) -> Result<Ticket, LockError> {
        // One store has its own order of arrival; several agree on the waiters' clocks.
        let order = (self.nodes().nodes.len() > 1).then(clock::unix_ms);
        // A waiter asks again within the longest pause and one time-out.
        let patience = self.options.retry_max * 3 + self.options.node_timeout * 2;
        Ok(Ticket { id: self.value()?.as_str().to_owned(), order, patience_ms: ms(patience) })
    }

    /// Full jitter: any time up to the limit. Waiters in order pause for as long as those before them may need.
    fn pause(&self, acquisition: &Acquisition, pause_max: Duration, first_come: bool) -> Duration {
        let base = self.options.retry_base;
        if !first_come {
            return pause_max.mul_f64(rand::random::<f64>());
        }
        let ahead = u32::try_from(acquisition.ahead().unwrap_or(0)).unwrap_or(u32::MAX);
        let waiting = base.saturating_mul(ahead).min(self.options.retry_max);
        waiting.mul_f64(0.5) + base.mul_f64(rand::random::<f64>())
    }

    /// Sends `commands` and collects what comes back in time.
    pub async fn round(
        self: &Arc<Self>,
        nodes: &Arc<Nodes>,
        commands: impl IntoIterator<Item = (usize, Arc<dyn Node>, Arc<Command>)>,
        mut decided: impl FnMut(usize, Result<Reply, NodeError>) -> bool,
    ) {
        let call = |(at, node, command): (usize, Arc<dyn Node>, Arc<Command>)| -> BoxFuture<'static, Answer> {
            let call = node.call(command);
            Box::pin(async move { (at, false, call.await) })
        };
        let mut calls = Leftover::new(commands.into_iter().map(call).collect(), self, nodes);
        let mut time_is_up = pin!(sleep(self.options.node_timeout));
        loop {
            tokio::select! {
                biased;
                answer = calls.calls.next() => match answer {
                    Some((at, _, answer)) => {
                        if decided(at, answer) {
                            return;
                        }
                    }
                    None => return,
                },
                () = &mut time_is_up => return,
            }
        }
    }

    /// The same command to the nodes at `indices`; ends when `tally` is won or lost.
    pub async fn tally(
        self: &Arc<Self>,
        nodes: &Arc<Nodes>,
        indices: &[usize],
        command: Command,
        mut tally: Tally,
    ) -> (bool, Report) {
        let command = Arc::new(command);
        let each = indices.iter().map(|&at| (at, Arc::clone(&nodes.nodes[at]), Arc::clone(&command)));
        let mut verdict = None;
        self.round(nodes, each, |at, answer| {
            verdict = tally.on_answer(at, answer);
            verdict.is_some()
        })
        .await;
        let won = verdict.unwrap_or_else(|| tally.on_timeout());
        (won, tally.report(&nodes.names))
    }

    /// Asks all nodes for the same thing; `None` from those that did not answer in time.
    pub async fn ask_all(self: &Arc<Self>, nodes: &Arc<Nodes>, command: Command) -> Vec<Result<Reply, NodeError>> {
        let command = Arc::new(command);
        let mut answers: Vec<Result<Reply, NodeError>> = nodes.nodes.iter().map(|_| Err(NodeError::Timeout)).collect();
        let all = nodes.nodes.iter().enumerate().map(|(at, node)| (at, Arc::clone(node), Arc::clone(&command)));
        self.round(nodes, all, |at, answer| {
            answers[at] = answer;
            false
        })
        .await;
        answers
    }

    pub async fn statuses(self: &Arc<Self>) -> Statuses {
        let nodes = self.nodes();
        let answers = self.ask_all(&nodes, Command::Status).await;
        let status = |answer| match answer {
            Ok(Reply::Status(status)) => Ok(status),
            Ok(other) => Err(NodeError::Protocol(format!("{other:?}"))),
            Err(error) => Err(error),
        };
        nodes.names.iter().cloned().zip(answers.into_iter().map(status)).collect()
    }

    /// Goes on with a lock that another guard left.
    pub fn resume(self: &Arc<Self>, held: &Held) -> Result<Guard, LockError> {
        let request = held.request();
        request.check(&self.options)?;
        if held.value.is_empty() {
            return Err(LockError::Config(format!("{:?}: without its value a lock cannot be resumed", held.name)));
        }
        let value = Value::from_stored(held.value.clone());
        Ok(Guard::resumed(Claim::new(self, &self.nodes(), &held.name, &value, None), &request, held))
    }

    pub async fn inspect_each(self: &Arc<Self>, name: &str) -> Inspections {
        let nodes = self.nodes();
        let answers = self.ask_all(&nodes, Command::Inspect { name: name.to_owned() }).await;
        let inspection = |answer| match answer {
            Ok(Reply::Inspection(found)) => Ok(found),
            Ok(other) => Err(NodeError::Protocol(format!("{other:?}"))),
            Err(error) => Err(error),
        };
        nodes.names.iter().cloned().zip(answers.into_iter().map(inspection)).collect()
    }

    pub async fn inspect(self: &Arc<Self>, name: &str) -> Result<Holding, LockError> {
        let answers = self.inspect_each(name).await;
        let holding = Holding::of(&answers);
        if holding.answered > 0 {
            return Ok(holding);
        }
        let failed = |(node, answer): (String, Result<_, NodeError>)| Some((node, NodeOutcome::Failed(answer.err()?)));
        let report = Report(answers.into_iter().filter_map(failed).collect());
        Err(LockError::NoQuorum { name: name.to_owned(), report })
    }

    pub async fn names(self: &Arc<Self>, limit: usize) -> Result<Vec<String>, LockError> {
        let nodes = self.nodes();
        let answers = self.ask_all(&nodes, Command::Names { limit }).await;
        if answers.iter().all(Result::is_err) {
            return Err(LockError::NoQuorum { name: "*".to_owned(), report: report_of(&nodes, &answers) });
        }
        let names = answers.into_iter().filter_map(|answer| match answer {
            Ok(Reply::Names(names)) => Some(names),
            _ => None,
        });
        let all: std::collections::BTreeSet<String> = names.flatten().collect();
        Ok(all.into_iter().take(limit).collect())
    }

    /// Sends each of the `commands`, and says what became of them.
    async fn send_each(self: &Arc<Self>, nodes: &Arc<Nodes>, commands: Vec<(usize, Command)>) -> Tally {
        let mut tally = Tally::new(nodes.nodes.len());
        let each = commands.into_iter().map(|(at, command)| (at, Arc::clone(&nodes.nodes[at]), Arc::new(command)));
        self.round(nodes, each, |at, answer| {
            tally.on_answer(at, answer);
            false
        })
        .await;
        tally
    }

    pub async fn bootstrap(self: &Arc<Self>, fence: u64) -> Result<Report, LockError> {
        let nodes = self.nodes();
        let statuses = self.statuses().await;
        let known = || statuses.iter().filter_map(|(_, status)| status.as_ref().ok());
        let fence = known().map(|status| status.fence).max().unwrap_or(0).max(fence);
        let command = |run_id: &str| Command::Ready {
            run_id: run_id.to_owned(),
            fence,
            max_ttl_ms: ms(self.options.max_ttl),
            list: nodes.list.clone(),
            force: true,
        };
        let commands = statuses
            .iter()
            .enumerate()
            .filter_map(|(at, (_, status))| Some((at, command(&status.as_ref().ok()?.run_id))));
        let mut tally = self.send_each(&nodes, commands.collect()).await;
        let enough = tally.on_timeout();
        let report = tally.report(&nodes.names);
        if enough { Ok(report) } else { Err(LockError::NoQuorum { name: "bootstrap".to_owned(), report }) }
    }

    /// Acts on what refusals teach: a newer list, a node to repair.
    async fn learn(self: &Arc<Self>, acquisition: &Acquisition) {
        let report = acquisition.report();
        let refusals = || {
            report.0.iter().filter_map(|(_, outcome)| match outcome {
                NodeOutcome::Refused(refusal) => Some(refusal),
                _ => None,
            })
        };
        if refusals().any(|refusal| matches!(refusal, Refusal::NeedsRepair { .. })) {
            self.repair().await;
        }
        let epoch = self.nodes().list.id.epoch;
        for refusal in refusals() {
            if let Refusal::OtherList { list } = refusal
                && list.id.epoch > epoch
                && let Err(error) = self.refresh(Some(list)).await
            {
                tracing::warn!("the list of lock nodes cannot be renewed: {error}");
            }
        }
    }

    /// Repairs what may be repaired; one repair at a time.
    pub async fn repair(self: &Arc<Self>) {
        if self.repairing.swap(true, Ordering::AcqRel) {
            return;
        }
        let done = Reset(&self.repairing);
        let nodes = self.nodes();
        let statuses: Vec<_> = self.statuses().await.into_iter().map(|(_, status)| status.ok()).collect();
        let commands = repair::plan(&statuses, &nodes.list, ms(self.options.max_ttl));
        let repaired: Vec<_> = commands.iter().map(|(at, _)| nodes.names[*at].clone()).collect();
        if !repaired.is_empty() {
            let tally = self.send_each(&nodes, commands).await;
            tracing::info!(
                "lock nodes leave their quarantine: {} ({})",
                repaired.join(", "),
                tally.report(&nodes.names)
            );
        }
        drop(done);
    }

    /// Adopts the newest list that a majority of its nodes has. `hint` is one node's word, which only tells whom to ask.
    pub async fn refresh(self: &Arc<Self>, hint: Option<&List>) -> Result<(), LockError> {
        let Some(connect) = &self.connect else { return Ok(()) };
        let current = self.nodes();
        let asked = match hint {
            Some(list) => Arc::new(self.connected(&current, list, connect)?),
            None => Arc::clone(&current),
        };
        let answers = self.ask_all(&asked, Command::Status).await;
        let reported: Vec<(String, List)> = asked
            .names
            .iter()
            .cloned()
            .zip(answers)
            .filter_map(|(name, answer)| match answer {
                Ok(Reply::Status(status)) => Some((name, status.list)),
                _ => None,
            })
            .collect();
        match members::newest(&reported) {
            Some(list) if list.id.epoch > current.list.id.epoch => {
                tracing::info!("lock nodes are now list {}: {}", list.id.epoch, list.members);
                self.set_nodes(self.connected(&asked, &list, connect)?);
                Ok(())
            }
            Some(_) => Ok(()),
            // Part of the list is new to us, and the rest of a majority is among nodes that we have not asked.
            None => {
                let newest = reported.iter().map(|(_, list)| list).max_by_key(|list| list.id.epoch);
                match newest {
                    Some(list) if hint.is_none() && list.id.epoch > current.list.id.epoch => {
                        Box::pin(self.refresh(Some(list))).await
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// The nodes of `list`, those of `known` that are in it with their connections.
    pub fn connected(&self, known: &Nodes, list: &List, connect: &Connect) -> Result<Nodes, LockError> {
        let unreadable =
            || LockError::Config(format!("a lock node announced a list that cannot be read: {:?}", list.members));
        let members = members::parse(&list.members).ok_or_else(unreadable)?;
        let nodes = members.iter().map(|member| {
            let old = known.nodes.iter().find(|node| node.name() == member.name);
            old.map_or_else(|| connect(member), |node| Ok(Arc::clone(node)))
        });
        Ok(Nodes::of(list.clone(), nodes.collect::<Result<_, _>>()?))
    }

    /// Says once per list that it is out of date in a way that only its user can mend.
    pub fn complain(&self, list: &ListId) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.as_ref() != Some(list) {
            tracing::warn!("lock nodes belong to list {} ({}), not to ours", list.epoch, list.digest);
            *said = Some(list.clone());
        }
    }
}

fn report_of(nodes: &Nodes, answers: &[Result<Reply, NodeError>]) -> Report {
    let outcome = |answer: &Result<Reply, NodeError>| match answer {
        Ok(_) => NodeOutcome::Ok,
        Err(error) => NodeOutcome::Failed(error.clone()),
    };
    Report(nodes.names.iter().cloned().zip(answers.iter().map(outcome)).collect())
}

struct Reset<'a>(&'a AtomicBool);

impl Drop for Reset<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
