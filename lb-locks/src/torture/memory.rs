//! The torture without processes: nodes in memory that can be stopped, killed, emptied and cut off, and workers as tasks that
//! can be stopped and left for dead.
//!
//! Clients run the protocol of the real thing; requests travel by function call. Time is the boot-time clock. Invariants: what
//! reached a stopped node is carried out when it goes on, in order; a worker that is stopped does nothing at all until it goes
//! on, and one that was killed never again. Unlike a process, it leaves what it had begun to its runtime: a request that is
//! under way is not taken back, and nodes that were to be asked a moment later are.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    task::{Context, Poll},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    conductor::{LOOK_EVERY, Seen, Stage, Torture, TortureError},
    history::Entry,
    proxy::Way,
    schedule::Action,
    worker::{Orders, Record, Resource, WorkerError, fight},
};
use crate::{
    clock::{BootTime, ms},
    command::{Command, Reply, Status},
    error::NodeError,
    fenced::FencedResource,
    lock::Lock as _,
    model::NodeModel,
    node::{BoxFuture, FenceGap, Node},
    redlock::Redlock,
};

/// Most requests that wait in front of a node that is stopped; further ones are refused.
const WAITING_MAX: usize = 10_000;

/// Nodes and workers of one run.
pub struct Memory<'a> {
    torture: &'a Torture,
    nodes: Vec<Arc<Server>>,
    /// Nodes that were emptied and not repaired since.
    wiped: BTreeSet<usize>,
    resource: Arc<Ledger>,
    workers: BTreeMap<u32, Worker>,
    next: u32,
    paused: Option<u32>,
    stop: Arc<AtomicBool>,
    events: (Sender<Heard>, Receiver<Heard>),
    seen: Seen,
    runtime: Runtime,
}

/// What a worker has to say.
enum Heard {
    Saw(Entry),
    /// It ended, by itself or because it was told to.
    Ended(u32, Result<(), String>),
}

struct Worker {
    leash: Arc<Leash>,
    task: tokio::task::AbortHandle,
}

impl<'a> Memory<'a> {
    /// Starts them.
    pub fn start(torture: &'a Torture) -> Result<Self, TortureError> {
        let nodes: Vec<_> = (0..torture.nodes).map(|at| Arc::new(Server::new(at))).collect();
        let mut memory = Self {
            torture,
            nodes,
            wiped: BTreeSet::new(),
            resource: Arc::default(),
            workers: BTreeMap::new(),
            next: 0,
            paused: None,
            stop: Arc::default(),
            events: channel(),
            seen: Seen::default(),
            runtime: Runtime::start()?,
        };
        let locks = memory.locks(&memory.orders(0))?;
        memory.runtime.handle.block_on(locks.bootstrap(0))?;
        for _ in 0..torture.clients {
            memory.start_worker()?;
        }
        Ok(memory)
    }

    fn orders(&self, worker: u32) -> Orders {
        let Torture { seed, ttl, node_timeout, quarantine, fencing, .. } = *self.torture;
        Orders { worker, seed, nodes: Vec::new(), resource: String::new(), ttl, node_timeout, quarantine, fencing }
    }

    /// A client of its own, as every process has.
    fn locks(&self, orders: &Orders) -> Result<Redlock, TortureError> {
        let side = orders.worker as usize % 2;
        let view = |server: &Arc<Server>| Arc::new(View { server: Arc::clone(server), side }) as Arc<dyn Node>;
        Ok(Redlock::fixed(self.nodes.iter().map(view).collect(), orders.options())?)
    }

    fn start_worker(&mut self) -> Result<(), TortureError> {
        let number = self.next;
        self.next += 1;
        let orders = self.orders(number);
        let locks = self.locks(&orders)?;
        let (stop, events) = (Arc::clone(&self.stop), self.events.0.clone());
        let mut resource = Arc::clone(&self.resource);
        let mut record = ToConductor(events.clone());
        let leash = Arc::new(Leash::default());
        let work = async move {
            let ended = fight(&orders, &locks, &mut resource, &stop, &mut record).await;
            // Whoever listened may be gone; then there is nobody to tell.
            let _ = events.send(Heard::Ended(number, ended.map_err(|error| error.to_string())));
        };
        let leashed = Leashed { leash: Arc::clone(&leash), work: Box::pin(work) };
        let task = self.runtime.handle.spawn(leashed).abort_handle();
        self.workers.insert(number, Worker { leash, task });
        Ok(())
    }

    fn take(&mut self, heard: Heard) -> Result<(), TortureError> {
        match heard {
            Heard::Saw(entry) => self.seen.take(entry),
            Heard::Ended(number, ended) => {
                self.workers.remove(&number);
                ended.map_err(|error| TortureError::Worker(format!("worker {number}: {error}")))?;
            }
        }
        Ok(())
    }

    fn resume(&mut self) {
        if let Some(worker) = self.paused.take().and_then(|worker| self.workers.get(&worker)) {
            worker.leash.set(Leash::FREE);
        }
    }

    /// Empties a node, unless too few would keep their counters.
    fn empty(&mut self, node: usize, flush: bool) -> bool {
        let nodes = &self.nodes;
        self.wiped.retain(|&wiped| !nodes[wiped].is_ready());
        let wiped = self.wiped.len() + usize::from(!self.wiped.contains(&node));
        // Without the quarantine no node ever says that it was repaired.
        if self.torture.quarantine && wiped > self.torture.nodes.saturating_sub(1) / 2 {
            return false;
        }
        self.wiped.insert(node);
        if flush {
            self.nodes[node].with(|inner| inner.model.flush())
        } else {
            self.nodes[node].restart(false)
        }
        true
    }
}

impl Stage for Memory<'_> {
    fn collect(&mut self) -> Result<&Seen, TortureError> {
        while let Ok(heard) = self.events.1.try_recv() {
            if let Heard::Ended(number, Ok(())) = heard {
                return Err(TortureError::Worker(format!("worker {number} ended")));
            }
            self.take(heard)?;
        }
        Ok(&self.seen)
    }

    fn perform(&mut self, action: Action) -> Result<bool, TortureError> {
        // The holder, for whom it is worst; whoever comes first if there is none.
        let holder = self.seen.holder.filter(|worker| self.workers.contains_key(worker));
        let victim = holder.or_else(|| self.workers.keys().next().copied());
        match action {
            Action::Stop(node) => self.nodes[node].with(|inner| inner.is_stopped = true),
            Action::Go(node) => self.nodes[node].go(),
            Action::Kill(node) => self.nodes[node].kill(),
            Action::Start(node) => self.nodes[node].restart(true),
            Action::Empty { node, flush } => return Ok(self.empty(node, flush)),
            Action::Way { node, side, way } => self.nodes[node].with(|inner| inner.ways[side] = way),
            Action::Clock { node, by_ms } => self.nodes[node].with(|inner| inner.ahead_ms += by_ms),
            Action::Pause => {
                if let Some(worker) = victim {
                    self.workers[&worker].leash.set(Leash::STOPPED);
                    self.paused = Some(worker);
                }
            }
            Action::Resume => self.resume(),
            Action::Crash => {
                // Its task is kept and never polled again: a guard that is dropped would give its lock back.
                if let Some(worker) = victim.and_then(|victim| self.workers.remove(&victim)) {
                    worker.leash.set(Leash::STOPPED);
                }
                self.start_worker()?;
            }
            Action::Begin(_) | Action::AwaitGrant => {}
        }
        Ok(true)
    }

    fn finish(mut self, patience: Duration, at_once: bool) -> Result<Vec<Entry>, TortureError> {
        self.nodes.iter().for_each(|node| node.go());
        self.nodes.iter().for_each(|node| node.with(|inner| inner.ways = [Way::Open; 2]));
        self.resume();
        self.stop.store(true, Ordering::Release);
        let started = Instant::now();
        while !at_once && !self.workers.is_empty() && started.elapsed() < patience {
            if let Ok(heard) = self.events.1.recv_timeout(LOOK_EVERY) {
                self.take(heard)?;
            }
        }
        self.workers.values().for_each(|worker| worker.task.abort());
        self.runtime.end();
        while let Ok(heard) = self.events.1.try_recv() {
            self.take(heard)?;
        }
        Ok(std::mem::take(&mut self.seen.history))
    }
}

/// A runtime on a thread of its own: the conductor waits without one, and may be called within another.
struct Runtime {
    handle: Handle,
    over: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (over, is_over) = oneshot::channel();
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name("torture".into()).spawn(move || {
            // An error is the other end's being gone, which is as good.
            let _ = runtime.block_on(is_over);
        })?;
        Ok(Self { handle, over: Some(over), thread: Some(thread) })
    }

    /// Drops all tasks.
    fn end(&mut self) {
        drop(self.over.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there was one of a worker's task, which its silence has told already.
            let _ = thread.join();
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.end();
    }
}

struct ToConductor(Sender<Heard>);

impl Record for ToConductor {
    fn record(&mut self, entry: Entry) -> std::io::Result<()> {
        self.0.send(Heard::Saw(entry)).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}

/// The resource: places are given out in order, to tokens that are not older than any before.
#[derive(Debug, Default)]
struct Ledger {
    newest: FencedResource<()>,
    places: AtomicU64,
}

impl Resource for Arc<Ledger> {
    async fn write(&mut self, fence: Option<u64>, _text: &str) -> Result<Option<u64>, WorkerError> {
        let place = || self.places.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(match fence {
            Some(token) => self.newest.access(token, |()| place()).ok(),
            None => Some(place()),
        })
    }
}

/// Holds a worker back.
#[derive(Debug, Default)]
struct Leash {
    state: AtomicU8,
    waker: AtomicWaker,
}

impl Leash {
    const FREE: u8 = 0;
    const STOPPED: u8 = 1;

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.waker.wake();
    }
}

/// A worker's task on its leash.
struct Leashed {
    leash: Arc<Leash>,
    work: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for Leashed {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.leash.waker.register(cx.waker());
        if self.leash.state.load(Ordering::Acquire) == Leash::STOPPED {
            return Poll::Pending;
        }
        self.work.as_mut().poll(cx)
    }
}

/// A node in memory, and what became of it.
#[derive(Debug)]
struct Server {
    name: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    model: NodeModel,
    runs: u64,
    is_dead: bool,
    is_stopped: bool,
    /// What each half of the clients reaches.
    ways: [Way; 2],
    /// How far its clock is ahead.
    ahead_ms: u64,
    /// Requests that came while it was stopped.
    waiting: VecDeque<(Arc<Command>, oneshot::Sender<Reply>)>,
}

impl Inner {
    fn apply(&mut self, command: &Command) -> Reply {
        self.model.apply(command, ms(BootTime::now().0) + self.ahead_ms)
    }
}

impl Server {
    fn new(at: usize) -> Self {
        let name = format!("n{}", at + 1);
        let model = NodeModel::new(&format!("{name}.0"));
        let inner = Inner {
            model,
            runs: 0,
            is_dead: false,
            is_stopped: false,
            ways: [Way::Open; 2],
            ahead_ms: 0,
            waiting: VecDeque::new(),
        };
        Self { name, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one call of the model or one assignment.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.lock())
    }

    fn go(&self) {
        let mut inner = self.lock();
        inner.is_stopped = false;
        while let Some((command, answer)) = inner.waiting.pop_front() {
            let reply = inner.apply(&command);
            // Who asked may have given up.
            let _ = answer.send(reply);
        }
    }

    fn kill(&self) {
        let mut inner = self.lock();
        (inner.is_dead, inner.is_stopped) = (true, false);
        inner.waiting.clear();
    }

    fn restart(&self, keep: bool) {
        self.kill();
        let mut inner = self.lock();
        inner.runs += 1;
        let run_id = format!("{}.{}", self.name, inner.runs);
        inner.model.restart(&run_id, keep);
        inner.is_dead = false;
    }

    /// Whether its quarantine is over and its counter repaired.
    fn is_ready(&self) -> bool {
        matches!(self.with(|inner| inner.apply(&Command::Status)), Reply::Status(Status { ready: true, .. }))
    }
}

/// A node as one half of the clients reaches it.
#[derive(Debug)]
struct View {
    server: Arc<Server>,
    side: usize,
}

impl Node for View {
    fn name(&self) -> &str {
        &self.server.name
    }

    fn call(&self, command: Arc<Command>) -> BoxFuture<'static, Result<Reply, NodeError>> {
        let unreachable = |why: &str| -> BoxFuture<'static, _> {
            Box::pin(std::future::ready(Err(NodeError::Unreachable(why.to_owned()))))
        };
        let mut inner = self.server.lock();
        let way = inner.ways[self.side];
        if inner.is_dead || way == Way::Closed {
            return unreachable("connection refused");
        }
        if way == Way::Cut {
            return Box::pin(std::future::pending());
        }
        if inner.is_stopped {
            if inner.waiting.len() >= WAITING_MAX {
                return Box::pin(std::future::ready(Err(NodeError::Overloaded)));
            }
            let (answer, answered) = oneshot::channel();
            inner.waiting.push_back((command, answer));
            let is_heard = way == Way::Open;
            return Box::pin(async move {
                match answered.await {
                    Ok(reply) if is_heard => Ok(reply),
                    Ok(_) => std::future::pending().await,
                    Err(_) => Err(NodeError::Unreachable("connection closed".into())),
                }
            });
        }
        let reply = inner.apply(&command);
        if way == Way::Open { Box::pin(std::future::ready(Ok(reply))) } else { Box::pin(std::future::pending()) }
    }

    fn fence_support(&self) -> BoxFuture<'static, Result<(), FenceGap>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
