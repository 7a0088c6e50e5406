//! What a user of locks sees: the trait, what to ask for, and the lock over one store.

use std::{sync::Arc, time::Duration};

use crate::{
    command::{Inspection, ListId, Mode, Status},
    engine::Engine,
    error::{LockError, NodeError, Report},
    guard::Guard,
    held::Held,
    node::{BoxFuture, Node},
    nodes::Nodes,
    round::Fencing,
    value::Owner,
};

/// Longest name of a lock, in bytes.
pub const NAME_MAX: usize = 512;
/// Bounds of a lifetime.
pub const TTL_MIN: Duration = Duration::from_millis(10);

/// How locks are taken in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long one node may take for one answer, connecting included; 5-50 ms in one data centre.
    pub node_timeout: Duration,
    /// The longest lock of all clients: so long a node that restarted keeps out of votes.
    pub max_ttl: Duration,
    /// Full-jitter retry: the first pause is at most this, each further one at most twice the one before.
    pub retry_base: Duration,
    /// No pause is longer.
    pub retry_max: Duration,
    /// Nodes that restarted or were emptied keep out of votes. Off only to show what happens then.
    pub quarantine: bool,
    /// What `inspect` shows about the holder, beside host and process.
    pub label: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_timeout: Duration::from_millis(50),
            max_ttl: Duration::from_secs(60),
            retry_base: Duration::from_millis(10),
            retry_max: Duration::from_millis(250),
            quarantine: true,
            label: String::new(),
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), LockError> {
        let wrong = |text: &str| Err(LockError::Config(text.to_owned()));
        if self.node_timeout < Duration::from_millis(1) || self.node_timeout > Duration::from_secs(10) {
            return wrong("the node time-out must be from 1 ms to 10 s");
        }
        if self.max_ttl < TTL_MIN || self.max_ttl > Duration::from_secs(86_400) {
            return wrong("the longest lifetime must be from 10 ms to 1 day");
        }
        if self.retry_base < Duration::from_millis(1) || self.retry_max < self.retry_base {
            return wrong("pauses between attempts must be at least 1 ms, and the longest not below the first");
        }
        Ok(())
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The lock.
    pub name: String,
    /// Lifetime without an extension, at most [`Options::max_ttl`].
    pub ttl: Duration,
    /// Exclusive, or shared with other readers.
    pub mode: Mode,
    /// How long to try; zero tries once.
    pub wait: Duration,
    /// Most attempts in that time.
    pub attempts_max: u32,
    /// Whether the guard carries a fencing token.
    pub fencing: Fencing,
    /// Whether waiters are served in the order in which they came.
    pub first_come: bool,
    /// Whether all nodes are asked at once. Else a majority is asked first, and the others a moment later unless the
    /// lock was given back meanwhile.
    pub everywhere: bool,
    /// Most extensions of the guard.
    pub extensions_max: u32,
    /// How long before the end of validity [`Guard::lost`] fires.
    pub lost_margin: Duration,
}

impl Request {
    /// An exclusive lock for `ttl`, tried once, without a token.
    pub fn new(name: &str, ttl: Duration) -> Self {
        Self {
            name: name.to_owned(),
            ttl,
            mode: Mode::Exclusive,
            wait: Duration::ZERO,
            attempts_max: 100_000,
            fencing: Fencing::None,
            first_come: false,
            everywhere: false,
            extensions_max: 1_000,
            lost_margin: (ttl / 20).min(Duration::from_secs(1)),
        }
    }

    /// Tries for so long.
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// With a fencing token.
    #[must_use]
    pub fn fenced(self) -> Self {
        Self { fencing: Fencing::TwoRounds, ..self }
    }

    /// Shared with other readers.
    #[must_use]
    pub fn shared(self) -> Self {
        Self { mode: Mode::Shared, ..self }
    }

    /// Asks all nodes at once: for a lock that outlives this process, which has no later.
    #[must_use]
    pub fn everywhere(self) -> Self {
        Self { everywhere: true, ..self }
    }

    /// In first-come order: exact over one store, best effort over several.
    #[must_use]
    pub fn first_come(self) -> Self {
        Self { first_come: true, ..self }
    }

    pub(crate) fn check(&self, options: &Options) -> Result<(), LockError> {
        let wrong = |text: String| Err(LockError::Config(text));
        if self.name.is_empty() || self.name.len() > NAME_MAX || self.name.chars().any(char::is_control) {
            return wrong(format!("a lock's name has 1 to {NAME_MAX} bytes and no control characters"));
        }
        if self.ttl < TTL_MIN || self.ttl > options.max_ttl {
            return wrong(format!(
                "{:?}: the lifetime must be from {TTL_MIN:?} to the longest of {:?}, not {:?}",
                self.name, options.max_ttl, self.ttl
            ));
        }
        if self.attempts_max == 0 {
            return wrong(format!("{:?}: at least one attempt", self.name));
        }
        Ok(())
    }
}

/// Who holds a lock, over all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Holding {
    /// Holders, those on most nodes first.
    pub holders: Vec<Holder>,
    /// Waiters in first-come order, by the first node that has any.
    pub waiters: Vec<Owner>,
    /// Nodes that answered.
    pub answered: usize,
    /// Nodes that were asked.
    pub nodes: usize,
}

/// One holder.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Holder {
    /// Exclusive or shared.
    pub mode: Mode,
    /// Who it says it is.
    pub owner: Option<Owner>,
    /// On how many nodes its value is.
    pub on_nodes: usize,
    /// Whether these are a majority.
    pub is_majority: bool,
    /// Longest rest of the lifetime on any node, in milliseconds.
    pub remaining_ms: u64,
}

/// What each node said about one lock, in the order of the list.
pub type Inspections = Vec<(String, Result<Inspection, NodeError>)>;

/// What each node said about itself, in the order of the list.
pub type Statuses = Vec<(String, Result<Status, NodeError>)>;

/// A place where locks are taken: one store, or several by majority.
pub trait Lock: std::fmt::Debug + Send + Sync {
    /// Takes a lock, trying again as the request allows.
    ///
    /// # Errors
    /// [`LockError`]; the last attempt's reasons are in its report. Nothing is held then, but what a node could not be
    /// told to release expires there by itself.
    fn acquire(&self, request: Request) -> BoxFuture<'_, Result<Guard, LockError>>;

    /// Goes on with a lock that another guard left, perhaps in another process. Nothing is asked of the nodes.
    ///
    /// # Errors
    /// What was left makes no sense here.
    fn resume(&self, held: &Held) -> Result<Guard, LockError>;

    /// Who holds and who waits, node by node.
    fn inspect_each(&self, name: &str) -> BoxFuture<'_, Inspections>;

    /// Who holds and who waits.
    ///
    /// # Errors
    /// No node answered.
    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<Holding, LockError>>;

    /// Names of locks that are held or waited for, on any node, at most `limit`.
    ///
    /// # Errors
    /// No node answered.
    fn names(&self, limit: usize) -> BoxFuture<'_, Result<Vec<String>, LockError>>;

    /// What the nodes say about themselves.
    fn statuses(&self) -> BoxFuture<'_, Statuses>;

    /// First set-up: lets nodes vote that never did, by the caller's word that nothing is held. Their counters begin at
    /// `fence` or at the largest of all nodes.
    ///
    /// # Errors
    /// Too few nodes answered.
    fn bootstrap(&self, fence: u64) -> BoxFuture<'_, Result<Report, LockError>>;
}

/// Locks over one store. First-come order and shared locks are exact here.
#[derive(Clone, Debug)]
pub struct Single {
    engine: Arc<Engine>,
}

impl Single {
    /// Locks over `node`.
    ///
    /// # Errors
    /// The options contradict themselves.
    pub fn new(node: Arc<dyn Node>, options: Options) -> Result<Self, LockError> {
        Ok(Self { engine: Engine::new(Nodes::new(ListId::default(), vec![node]), options)? })
    }
}

impl Engined for Single {
    fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

/// A place of this crate: all of them lock through one engine.
pub(crate) trait Engined: std::fmt::Debug + Send + Sync {
    fn engine(&self) -> &Arc<Engine>;
}

impl<T: Engined> Lock for T {
    fn acquire(&self, request: Request) -> BoxFuture<'_, Result<Guard, LockError>> {
        Box::pin(self.engine().acquire(request))
    }

    fn resume(&self, held: &Held) -> Result<Guard, LockError> {
        self.engine().resume(held)
    }

    fn inspect_each(&self, name: &str) -> BoxFuture<'_, Inspections> {
        let name = name.to_owned();
        Box::pin(async move { self.engine().inspect_each(&name).await })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<Holding, LockError>> {
        let name = name.to_owned();
        Box::pin(async move { self.engine().inspect(&name).await })
    }

    fn names(&self, limit: usize) -> BoxFuture<'_, Result<Vec<String>, LockError>> {
        Box::pin(self.engine().names(limit))
    }

    fn statuses(&self) -> BoxFuture<'_, Statuses> {
        Box::pin(self.engine().statuses())
    }

    fn bootstrap(&self, fence: u64) -> BoxFuture<'_, Result<Report, LockError>> {
        Box::pin(self.engine().bootstrap(fence))
    }
}

impl Holding {
    /// Puts what the nodes said about one lock together.
    pub fn of(answers: &Inspections) -> Self {
        let found: Vec<_> = answers.iter().filter_map(|(_, answer)| answer.as_ref().ok()).collect();
        merge(&found, answers.len())
    }
}

fn merge(answers: &[&Inspection], nodes: usize) -> Holding {
    let mut found: Vec<(Mode, &crate::value::Value, usize, u64)> = Vec::new();
    for (mode, value, remaining_ms) in answers.iter().flat_map(|answer| &answer.holders) {
        match found.iter_mut().find(|(_, seen, ..)| *seen == value) {
            Some((_, _, count, longest)) => (*count, *longest) = (*count + 1, (*longest).max(*remaining_ms)),
            None => found.push((*mode, value, 1, *remaining_ms)),
        }
    }
    found.sort_by_key(|(_, value, count, _)| (usize::MAX - count, value.as_str().to_owned()));
    let holder = |(mode, value, on_nodes, remaining_ms): (Mode, &crate::value::Value, usize, u64)| Holder {
        mode,
        owner: value.owner(),
        on_nodes,
        is_majority: on_nodes >= crate::round::majority(nodes),
        remaining_ms,
    };
    let waiters = answers.iter().map(|answer| &answer.waiters).find(|waiters| !waiters.is_empty());
    let owner = |ticket: &String| crate::value::Value::from_stored(ticket.clone()).owner();
    Holding {
        holders: found.into_iter().map(holder).collect(),
        waiters: waiters.into_iter().flatten().filter_map(owner).collect(),
        answered: answers.len(),
        nodes,
    }
}
