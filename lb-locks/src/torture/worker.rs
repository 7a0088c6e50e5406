//! One process that fights for the lock, and writes down what it saw.
//!
//! It is as naive as programs are: it looks whether it still holds the lock, works, and writes without looking again. Only
//! the resource can stop a write that comes too late. Invariants: it never waits without a limit; a line is written after
//! what began a hold, and before what ends it.

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use redis::aio::MultiplexedConnection;

use super::history::{Entry, Event, us};
use crate::{
    clock::{BootTime, drift},
    error::LockError,
    fenced::fenced_script,
    guard::Guard,
    lock::{Lock, Options, Request},
    node::redis::RedisOptions,
    redlock::Redlock,
    round::Fencing,
};

/// The lock that all fight for.
pub const NAME: &str = "torture";
/// Time for an answer of the resource.
const RESOURCE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a worker is told.
#[derive(Clone, Debug)]
pub struct Orders {
    /// Its number.
    pub worker: u32,
    /// The seed of the run.
    pub seed: u64,
    /// Nodes, `NAME=redis://…`.
    pub nodes: Vec<String>,
    /// The server with the resource.
    pub resource: String,
    /// Lifetime of the lock.
    pub ttl: Duration,
    /// How long one node may take.
    pub node_timeout: Duration,
    /// Whether nodes that restarted keep out of votes.
    pub quarantine: bool,
    /// How tokens are made.
    pub fencing: Fencing,
}

impl Orders {
    /// The options that all clients of a run share.
    pub fn options(&self) -> Options {
        Options {
            node_timeout: self.node_timeout,
            max_ttl: self.ttl,
            retry_max: (self.ttl / 8).max(Options::default().retry_base),
            quarantine: self.quarantine,
            label: format!("torture worker {}", self.worker),
            ..Options::default()
        }
    }
}

/// Why a worker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The set-up of the locks is wrong.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The resource does not answer.
    #[error("the resource of the torture: {0}")]
    Resource(String),
    /// Nobody reads the history.
    #[error("the history cannot be written: {0}")]
    History(#[from] std::io::Error),
}

/// Fights over real servers until `stop`, and writes lines of history to `out`.
///
/// # Errors
/// [`WorkerError`]; that a lock is not granted is none.
pub async fn work(orders: &Orders, stop: &AtomicBool, out: &mut (impl Write + Send)) -> Result<(), WorkerError> {
    let locks = Redlock::redis(&orders.nodes, &RedisOptions::default(), orders.options())?;
    let mut resource = RedisResource::open(orders).await?;
    fight(orders, &locks, &mut resource, stop, &mut Lines(out)).await
}

/// Where a worker says what it saw, at once: it may be killed at any moment.
pub(super) trait Record: Send {
    fn record(&mut self, entry: Entry) -> std::io::Result<()>;
}

/// One JSON object a line.
struct Lines<'a, W>(&'a mut W);

impl<W: Write + Send> Record for Lines<'_, W> {
    fn record(&mut self, entry: Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_string(&entry)?;
        line.push('\n');
        self.0.write_all(line.as_bytes())?;
        self.0.flush()
    }
}

/// What the workers write to under the lock: a list that only grows, guarded by tokens if there are any.
pub(super) trait Resource: Send {
    /// The place of the write, `None` if it was refused.
    fn write(
        &mut self,
        fence: Option<u64>,
        text: &str,
    ) -> impl Future<Output = Result<Option<u64>, WorkerError>> + Send;
}

/// Fights for the lock in `locks` until `stop`.
pub(super) async fn fight(
    orders: &Orders,
    locks: &dyn Lock,
    resource: &mut impl Resource,
    stop: &AtomicBool,
    record: &mut impl Record,
) -> Result<(), WorkerError> {
    let mut random = SmallRng::seed_from_u64(orders.seed ^ u64::from(orders.worker) << 32);
    let mut history = History { worker: orders.worker, record };
    let mut grant = 0;
    while !stop.load(Ordering::Acquire) {
        let request = Request { fencing: orders.fencing, ..Request::new(NAME, orders.ttl).wait(orders.ttl * 4) };
        let asked = BootTime::now();
        match locks.acquire(request).await {
            Ok(guard) => {
                grant += 1;
                let at = BootTime::now();
                let until = guard.valid_until();
                history.write(Event::Acquired {
                    grant,
                    at_us: us(at),
                    // What the validity was computed from.
                    started_us: us(until.before(orders.ttl.saturating_sub(drift(orders.ttl)))),
                    valid_until_us: us(until),
                    waited_us: us(BootTime(at.since(asked))),
                    fence: guard.fence(),
                })?;
                hold(&guard, grant, orders.ttl, resource, &mut random, &mut history).await?;
                history.write(Event::Released { grant, at_us: us(BootTime::now()) })?;
                guard.release().await;
            }
            Err(error @ LockError::Config(_)) => return Err(error.into()),
            Err(error) => {
                let waited_us = us(BootTime(BootTime::now().since(asked)));
                history.write(Event::Failed { waited_us, why: word(&error).to_owned() })?;
            }
        }
        let rest = orders.ttl.mul_f64(random.random_range(0.0..0.1));
        tokio::time::sleep(rest).await;
    }
    Ok(())
}

/// Works under the lock: some writes, some extensions.
async fn hold(
    guard: &Guard,
    grant: u64,
    ttl: Duration,
    resource: &mut impl Resource,
    random: &mut SmallRng,
    history: &mut History<'_, impl Record>,
) -> Result<(), WorkerError> {
    for _ in 0..random.random_range(1..=4) {
        let rest = guard.remaining();
        if rest == Duration::ZERO {
            return Ok(history.write(Event::Lost { grant, at_us: us(BootTime::now()) })?);
        }
        let work = ttl.mul_f64(random.random_range(0.05..0.3)).min(rest / 2);
        tokio::time::sleep(work).await;
        let place = resource.write(guard.fence(), &format!("{}-{grant}", history.worker)).await?;
        history.write(Event::Written { grant, place })?;
        if random.random_bool(0.5) {
            match guard.extend().await {
                Ok(until) => history.write(Event::Extended { grant, valid_until_us: us(until) })?,
                Err(LockError::Lost { .. }) => {
                    return Ok(history.write(Event::Lost { grant, at_us: us(BootTime::now()) })?);
                }
                // Still held, until its validity ends.
                Err(_) => {}
            }
        }
    }
    Ok(())
}

fn word(error: &LockError) -> &'static str {
    match error {
        LockError::Contended { .. } => "contended",
        LockError::NoQuorum { .. } => "no_quorum",
        LockError::Expired { .. } => "expired",
        LockError::Lost { .. } => "lost",
        LockError::FenceUnavailable { .. } => "fence_unavailable",
        LockError::Config(_) => "config",
    }
}

struct History<'a, R> {
    worker: u32,
    record: &'a mut R,
}

impl<R: Record> History<'_, R> {
    fn write(&mut self, event: Event) -> std::io::Result<()> {
        self.record.record(Entry { worker: self.worker, event })
    }
}

/// The resource as a list in a Redis server.
struct RedisResource {
    connection: MultiplexedConnection,
    guarded: String,
    open: String,
}

impl RedisResource {
    async fn open(orders: &Orders) -> Result<Self, WorkerError> {
        let wrong = |error: redis::RedisError| WorkerError::Resource(error.to_string());
        let client = redis::Client::open(orders.resource.as_str()).map_err(wrong)?;
        let connection = client.get_multiplexed_async_connection().await.map_err(wrong)?;
        let append = "return redis.call('RPUSH', KEYS[2], ARGV[2])";
        Ok(Self { connection, guarded: fenced_script(append), open: append.to_owned() })
    }
}

impl Resource for RedisResource {
    async fn write(&mut self, fence: Option<u64>, text: &str) -> Result<Option<u64>, WorkerError> {
        let mut cmd = redis::cmd("EVAL");
        cmd.arg(if fence.is_some() { &self.guarded } else { &self.open });
        cmd.arg(2).arg("fence").arg("writes").arg(fence.unwrap_or(0)).arg(text);
        let answer = cmd.query_async::<u64>(&mut self.connection);
        match tokio::time::timeout(RESOURCE_TIMEOUT, answer).await {
            Ok(Ok(place)) => Ok(Some(place)),
            Ok(Err(error)) if error.code() == Some("STALE") => Ok(None),
            Ok(Err(error)) => Err(WorkerError::Resource(error.to_string())),
            Err(_) => Err(WorkerError::Resource("no answer".into())),
        }
    }
}
