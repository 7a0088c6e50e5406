//! One attempt to take a lock: sends to whom [`crate::asking`] says, and sees what becomes of answers that nobody waits for.
//!
//! Invariants: what may be held anywhere is in a claim from before the first request; a release follows the request that it
//! undoes on every connection.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    stream::{FuturesUnordered, StreamExt},
};
use tokio::{runtime::Handle, time::sleep};

use crate::{
    asking::{ASK_ALL_AFTER, Asking, is_voteless},
    claim::Claim,
    clock::{BootTime, ms},
    command::{Command, Refusal, Reply, Ticket},
    engine::Engine,
    error::{LockError, NodeError},
    guard::Guard,
    lock::Request,
    node::{BoxFuture, FenceGap, Node},
    nodes::Nodes,
    round::{Acquisition, Fencing, Plan, Step, majority},
};

/// One answer of one node: its index, whether it is about the second round, what it said.
pub type Answer = (usize, bool, Result<Reply, NodeError>);
/// Requests on their way.
pub type Calls = FuturesUnordered<BoxFuture<'static, Answer>>;

/// Whom an attempt has asked. Whoever asks others, or wants to know where the lock may be, holds the lock meanwhile.
#[derive(Debug, Default)]
pub struct Asked(Mutex<Asking>);

impl Asked {
    fn lock(&self) -> MutexGuard<'_, Asking> {
        // Two numbers and a list are whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that were not asked; from now on nobody asks them.
    pub fn end(&self) -> Vec<usize> {
        self.lock().end()
    }
}

impl Engine {
    pub async fn attempt(
        self: &Arc<Self>,
        request: &Request,
        ticket: Option<&Ticket>,
    ) -> Result<Guard, Box<(LockError, Acquisition)>> {
        let nodes = self.nodes();
        let started = BootTime::now();
        let quorum = majority(nodes.nodes.len());
        let mut acquisition = Acquisition::new(Plan {
            name: request.name.as_str().into(),
            nodes: Arc::clone(&nodes.names),
            quorum,
            ttl: request.ttl,
            fencing: request.fencing,
            started,
        });
        let value = match self.value() {
            Ok(value) => value,
            Err(error) => return Err(Box::new((error, acquisition))),
        };
        let acquire = Arc::new(Command::Acquire {
            name: request.name.clone(),
            value: value.clone(),
            mode: request.mode,
            ttl_ms: ms(request.ttl),
            fence: request.fencing != Fencing::None,
            ticket: ticket.cloned(),
            terms: self.terms(&nodes),
        });
        let asked = Arc::new(Asked(Mutex::new(Asking::new(nodes.order(started)))));
        // Dropped without a lock, this releases on every node that may hold it.
        let mut claim = Claim::new(self, &nodes, &request.name, &value, None);
        claim.asked = Arc::clone(&asked);
        let mut asker = Asker { calls: Leftover::new(Calls::new(), self, &nodes), acquire, asked };
        let mut is_early = !asker.ask(|asking| asking.next(if request.everywhere { usize::MAX } else { quorum }));
        let mut ask_all = pin!(sleep(ASK_ALL_AFTER));
        let mut time_is_up = pin!(sleep(self.options.node_timeout));
        loop {
            let step = tokio::select! {
                biased;
                Some((node, second, answer)) = asker.calls.calls.next() => {
                    let now = BootTime::now();
                    if second {
                        acquisition.on_confirmed(node, answer, now)
                    } else {
                        nodes.note(node, &answer, now);
                        let is_voteless = is_voteless(&answer);
                        let step = acquisition.on_vote(node, answer, now);
                        if step == Step::Wait {
                            let on_way = asker.calls.calls.len();
                            asker.ask(|asking| asking.after(is_voteless, on_way));
                        }
                        step
                    }
                }
                () = &mut ask_all, if is_early => {
                    is_early = false;
                    asker.note_late(quorum, |at| acquisition.is_pending(at));
                    asker.ask(|asking| asking.next(usize::MAX));
                    Step::Wait
                }
                () = &mut time_is_up => acquisition.on_timeout(BootTime::now()),
            };
            match step {
                Step::Wait => {}
                Step::Confirm { fence, nodes: voters } => {
                    time_is_up.as_mut().reset(tokio::time::Instant::now() + self.options.node_timeout);
                    let confirm =
                        Arc::new(Command::Confirm { name: request.name.clone(), value: value.clone(), fence });
                    for at in voters {
                        let call = nodes.nodes[at].call(Arc::clone(&confirm));
                        asker.calls.calls.push(Box::pin(async move { (at, true, call.await) }));
                    }
                }
                Step::Won { valid_until, fence } => {
                    if acquisition.wants_repair() {
                        let engine = Arc::clone(self);
                        tokio::spawn(async move { engine.repair().await });
                    }
                    if is_early {
                        tokio::spawn(asker.ask_later());
                    }
                    claim.ticket = ticket.map(|ticket| ticket.id.clone());
                    return Ok(Guard::new(claim, request, valid_until, fence));
                }
                Step::Failed(error) => {
                    claim.holding = Some(acquisition.may_hold().collect());
                    return Err(Box::new((error, acquisition)));
                }
            }
        }
    }
}

/// The requests of one attempt.
struct Asker {
    calls: Leftover,
    acquire: Arc<Command>,
    asked: Arc<Asked>,
}

impl Asker {
    /// Asks those that `choose` says; whether all were asked then.
    fn ask(&mut self, choose: impl FnOnce(&mut Asking) -> &[usize]) -> bool {
        let mut asking = self.asked.lock();
        for &at in choose(&mut asking) {
            let mut call = first_round(at, &self.calls.nodes.nodes[at], &self.acquire);
            // A request begins with its first poll: all of them while nobody can look where the lock may be, so that no
            // release overtakes one.
            let answered = (&mut call).now_or_never();
            self.calls.calls.push(answered.map_or(call, |answer| Box::pin(std::future::ready(answer))));
        }
        asking.is_complete()
    }

    /// Notes which of the `first` have not answered when others would have.
    fn note_late(&self, first: usize, is_pending: impl Fn(usize) -> bool) {
        let now = BootTime::now();
        let asked = self.asked.lock();
        let late = asked.asked().iter().take(first).filter(|&&at| is_pending(at));
        late.for_each(|&at| self.calls.nodes.note_late(at, now));
    }

    /// The lock is won: the others get it too, unless it is given back before.
    async fn ask_later(mut self) {
        sleep(ASK_ALL_AFTER).await;
        self.ask(|asking| asking.next(usize::MAX));
        // Dropping it waits for the answers.
    }
}

/// One node's part of the first round. A node whose counter cannot be trusted has no vote on tokens.
fn first_round(at: usize, node: &Arc<dyn Node>, acquire: &Arc<Command>) -> BoxFuture<'static, Answer> {
    let fenced = matches!(&**acquire, Command::Acquire { fence: true, .. });
    if !fenced {
        let call = node.call(Arc::clone(acquire));
        return Box::pin(async move { (at, false, call.await) });
    }
    let (node, acquire) = (Arc::clone(node), Arc::clone(acquire));
    Box::pin(async move {
        let answer = match node.fence_support().await {
            Ok(()) => node.call(acquire).await,
            Err(FenceGap::Setup(why)) => Err(NodeError::NoFence(why)),
            Err(FenceGap::Unknown(error)) => Err(error),
        };
        (at, false, answer)
    })
}

/// Requests whose answers nobody waits for any more. They are still carried through for one time-out: an answer may say
/// that a node needs repair, and a connection that is never listened to would look silent.
pub struct Leftover {
    pub calls: Calls,
    engine: Arc<Engine>,
    nodes: Arc<Nodes>,
}

impl Leftover {
    pub fn new(calls: Calls, engine: &Arc<Engine>, nodes: &Arc<Nodes>) -> Self {
        Self { calls, engine: Arc::clone(engine), nodes: Arc::clone(nodes) }
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let mut calls = std::mem::take(&mut self.calls);
        let (Ok(runtime), false) = (Handle::try_current(), calls.is_empty()) else { return };
        let (engine, nodes) = (Arc::clone(&self.engine), Arc::clone(&self.nodes));
        runtime.spawn(async move {
            let mut to_repair = false;
            let drain = async {
                while let Some((at, second, answer)) = calls.next().await {
                    if !second {
                        nodes.note(at, &answer, BootTime::now());
                    }
                    match answer {
                        Ok(Reply::Refused(Refusal::NeedsRepair { .. })) => to_repair = true,
                        Ok(Reply::Refused(Refusal::OtherList { list })) => engine.complain(&list.id),
                        _ => {}
                    }
                }
            };
            // Late is as good as never here.
            let _ = tokio::time::timeout(engine.options.node_timeout, drain).await;
            if to_repair {
                engine.repair().await;
            }
        });
    }
}
