//! Redlock: locks over a majority of independent nodes, with a list of nodes that can change while locks are in use.
//!
//! Owns: how a list comes about and changes. Invariants: one step at a time, agreed by majorities of the lists before and
//! after; a node that joins votes only after a quarantine and a repair; an announcement is a hint, never a proof.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    command::{Command, List, Refusal, Reply},
    engine::{Connect, Engine, Nodes},
    error::{LockError, NodeOutcome, Report},
    guard::Guard,
    held::Held,
    lock::{Holding, Inspections, Lock, Options, Request, Statuses},
    members::{self, Change, Member},
    node::{
        BoxFuture, Node,
        redis::{RedisNode, RedisOptions},
    },
};

/// The lock that serialises changes of the list.
const ADMIN_LOCK: &str = "weir/list";
/// Lifetime of that lock, unless the nodes allow less.
const ADMIN_TTL: Duration = Duration::from_secs(10);
/// How often the list is compared without any hint, to within half of it.
const LIST_LOOK: Duration = Duration::from_secs(30);

/// Locks over several nodes.
#[derive(Clone, Debug)]
pub struct Redlock {
    engine: Arc<Engine>,
}

impl Redlock {
    /// Locks over `nodes`, each with the address that other clients are to reach it by if the list changes.
    ///
    /// # Errors
    /// No node, one twice, or options that contradict themselves.
    pub fn new(
        nodes: Vec<(Arc<dyn Node>, String)>,
        connect: Option<Box<Connect>>,
        options: Options,
    ) -> Result<Self, LockError> {
        let member = |(node, address): &(Arc<dyn Node>, String)| Member {
            name: node.name().to_owned(),
            address: address.clone(),
        };
        let members: Vec<Member> = nodes.iter().map(member).collect();
        let list = members::list(1, &members)?;
        let nodes = Nodes::of(list, nodes.into_iter().map(|(node, _)| node).collect());
        Ok(Self { engine: Engine::with_connect(nodes, options, connect)? })
    }

    /// Locks over nodes that are only in this process or need no addresses.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn fixed(nodes: Vec<Arc<dyn Node>>, options: Options) -> Result<Self, LockError> {
        let named = nodes.into_iter().map(|node| {
            let name = node.name().to_owned();
            (node, name)
        });
        Self::new(named.collect(), None, options)
    }

    /// Locks over the Redis nodes at `urls`, each `redis://…` or `NAME=redis://…`. Nodes that join later are reached with
    /// the credentials of the first.
    ///
    /// # Errors
    /// A URL is wrong (it is not shown: it may hold a password), and as [`Self::new`].
    pub fn redis(urls: &[String], redis: &RedisOptions, options: Options) -> Result<Self, LockError> {
        let nodes = urls.iter().map(|text| {
            let (name, url) = split_name(text);
            let node = RedisNode::new(url, name, redis)?;
            let address = node.address();
            Ok((Arc::new(node) as Arc<dyn Node>, address))
        });
        let nodes = nodes.collect::<Result<Vec<_>, LockError>>()?;
        let template = urls.first().map(|text| split_name(text).1.to_owned()).unwrap_or_default();
        let redis = redis.clone();
        let connect = move |member: &Member| {
            let node = RedisNode::at(&template, &member.address, &member.name, &redis)?;
            Ok(Arc::new(node) as Arc<dyn Node>)
        };
        Self::new(nodes, Some(Box::new(connect)), options)
    }

    /// The present list.
    pub fn list(&self) -> List {
        self.engine.nodes().list.clone()
    }

    /// Looks whether a majority has a newer list, and adopts it.
    ///
    /// # Errors
    /// The new list cannot be read.
    pub async fn refresh(&self) -> Result<(), LockError> {
        self.engine.refresh(None).await
    }

    /// Keeps the list new: on every hint of a node, and on a slow timer anyway. Never ends; drop it to stop.
    pub async fn follow(&self) {
        loop {
            let nodes = self.engine.nodes();
            let hints: Vec<_> = nodes.nodes.iter().map(|node| node.list_hint()).collect();
            let slow = LIST_LOOK.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! {
                _ = futures_util::future::select_all(hints) => {}
                () = sleep(slow) => {}
            }
            if let Err(error) = self.refresh().await {
                tracing::warn!("the list of lock nodes cannot be renewed: {error}");
            }
            // A node that hints without end must not keep a core busy.
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Changes the list by one step.
    ///
    /// # Errors
    /// `Config` for a change that makes no sense or comes too soon after the one before; `Contended` or `NoQuorum` if it
    /// was not agreed. A step that was not agreed is safe to try again.
    pub async fn change(&self, change: &Change) -> Result<List, LockError> {
        let Some(old_members) = members::parse(&self.list().members) else {
            return Err(LockError::Config("this list of lock nodes has no addresses".into()));
        };
        let ttl = ADMIN_TTL.min(self.engine.options.max_ttl);
        let admin = self.engine.acquire(Request::new(ADMIN_LOCK, ttl).wait(ttl)).await?;
        let result = self.step(&old_members, change, &admin).await;
        admin.release().await;
        result
    }

    async fn step(&self, old_members: &[Member], change: &Change, admin: &Guard) -> Result<List, LockError> {
        let old = self.engine.nodes();
        let new_members = members::changed(old_members, change)?;
        let list = members::list(old.list.id.epoch + 1, &new_members)?;
        let connect = self.engine.connect().ok_or_else(|| LockError::Config("this list of nodes is fixed".into()))?;
        let new = self.engine.connected(&old, &list, connect)?;
        // The union: who leaves has to refuse older lists too.
        let mut all: Vec<Arc<dyn Node>> = new.nodes.clone();
        all.extend(old.nodes.iter().filter(|node| !new.names.contains(&node.name().to_owned())).cloned());
        let all = Nodes::of(list.clone(), all);
        self.engine.check_distinct(&all).await?;
        if !admin.is_valid() {
            return Err(LockError::NoQuorum { name: ADMIN_LOCK.into(), report: Report::default() });
        }
        let command = |node: &Arc<dyn Node>| Command::SetList {
            from: old.list.id.clone(),
            list: list.clone(),
            join: !old.names.contains(&node.name().to_owned()),
        };
        let commands = all.nodes.iter().enumerate().map(|(at, node)| (at, Arc::clone(node), Arc::new(command(node))));
        let mut said: Vec<(String, NodeOutcome)> =
            all.names.iter().map(|name| (name.clone(), NodeOutcome::Pending)).collect();
        let (mut agreed, mut too_soon) = (BTreeSet::new(), None);
        self.engine
            .round(commands, |at, answer| {
                said[at].1 = match answer {
                    Ok(Reply::Done) => {
                        agreed.insert(all.names[at].clone());
                        NodeOutcome::Ok
                    }
                    Ok(Reply::Refused(refusal)) => {
                        if let Refusal::TooSoon { remaining_ms } = refusal {
                            too_soon = too_soon.max(Some(remaining_ms));
                        }
                        NodeOutcome::Refused(refusal)
                    }
                    Ok(_) => NodeOutcome::Gone,
                    Err(error) => NodeOutcome::Failed(error),
                };
                false
            })
            .await;
        if members::is_agreed(old_members, &new_members, &agreed) {
            self.engine.set_nodes(new);
            return Ok(list);
        }
        if let Some(remaining_ms) = too_soon {
            return Err(LockError::Config(format!(
                "the list of lock nodes changed a short while ago: locks of the list before may still be held; \
                 try again in {remaining_ms} ms"
            )));
        }
        Err(LockError::NoQuorum { name: ADMIN_LOCK.into(), report: Report(said) })
    }
}

/// `NAME=URL`, or a URL alone.
fn split_name(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, url)) if url.contains("://") && !name.contains("://") => (Some(name), url),
        _ => (None, text),
    }
}

impl Lock for Redlock {
    fn acquire(&self, request: Request) -> BoxFuture<'_, Result<Guard, LockError>> {
        Box::pin(self.engine.acquire(request))
    }

    fn resume(&self, held: &Held) -> Result<Guard, LockError> {
        self.engine.resume(held)
    }

    fn inspect_each(&self, name: &str) -> BoxFuture<'_, Inspections> {
        let name = name.to_owned();
        Box::pin(async move { self.engine.inspect_each(&name).await })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<Holding, LockError>> {
        let name = name.to_owned();
        Box::pin(async move { self.engine.inspect(&name).await })
    }

    fn names(&self, limit: usize) -> BoxFuture<'_, Result<Vec<String>, LockError>> {
        Box::pin(self.engine.names(limit))
    }

    fn statuses(&self) -> BoxFuture<'_, Statuses> {
        Box::pin(self.engine.statuses())
    }

    fn bootstrap(&self, fence: u64) -> BoxFuture<'_, Result<Report, LockError>> {
        Box::pin(self.engine.bootstrap(fence))
    }
}
