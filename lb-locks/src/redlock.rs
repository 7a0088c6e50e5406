//! Redlock: locks over a majority of independent nodes, with a list of nodes that can change while locks are in use.
//!
//! Owns: how a list comes about and changes. Invariants: one step at a time, agreed by majorities of the lists before and
//! after; a node that joins votes only after a quarantine and a repair; an announcement is a hint, never a proof.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};

use crate::{
    command::{Command, List, Refusal, Reply},
    engine::{Connect, Engine},
    error::{LockError, NodeOutcome, Report},
    guard::Guard,
    lock::{Engined, Options, Request},
    members::{self, Change, Member},
    node::{
        Node,
        redis::{RedisNode, RedisOptions},
    },
    nodes::Nodes,
};

/// The lock that serialises changes of the list.
const ADMIN_LOCK: &str = "weir/list";
/// Lifetime of that lock, unless the nodes allow less.
const ADMIN_TTL: Duration = Duration::from_secs(10);
/// How often the list is compared without any hint, to within half of it.
const LIST_LOOK: Duration = Duration::from_secs(30);
/// The first pause between two looks for a list that was announced; each further one is twice as long.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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

    /// Keeps the list new: looks whenever a node announces one, as soon as it listens to a node (what was announced before
    /// that it did not hear), and on a slow timer anyway. Never ends; drop it to stop.
    pub async fn follow(&self) {
        let (announced, mut heard) = watch::channel(0);
        let announced = Arc::new(announced);
        let mut present = self.engine.watch_nodes();
        loop {
            let nodes = Arc::clone(&present.borrow_and_update());
            // A listener goes on while the list is looked at: nodes announce it one after the other, and the first is
            // heard before a majority has it.
            let listeners = nodes.nodes.iter().map(|node| node.listen(Arc::clone(&announced)));
            tokio::select! {
                _ = futures_util::future::join_all(listeners) => {}
                () = self.look(&nodes, &mut heard) => {}
                // Another way than this one brought a new list.
                _ = present.changed() => {}
            }
        }
    }

    /// Looks for a newer list than that of `nodes` until there is one.
    async fn look(&self, nodes: &Nodes, heard: &mut watch::Receiver<u64>) {
        let epoch = nodes.list.id.epoch;
        let mut pause = LOOK_AGAIN;
        while self.engine.nodes().list.id.epoch == epoch {
            // What was announced and is not agreed yet, or was asked for in vain, is looked at again soon.
            let is_behind = *heard.borrow_and_update() > epoch;
            let wait = if is_behind { pause } else { LIST_LOOK.mul_f64(0.5 + rand::random::<f64>() / 2.0) };
            pause = if is_behind { (pause * 2).min(LIST_LOOK) } else { LOOK_AGAIN };
            // Either way it is time to look.
            let _ = tokio::time::timeout(wait, heard.changed()).await;
            if let Err(error) = self.refresh().await {
                tracing::warn!("the list of lock nodes cannot be renewed: {error}");
            }
            // A node that announces without end must not keep a core busy.
            sleep(LOOK_AGAIN).await;
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
        let list = members::list(old.list.id.epoch.saturating_add(1), &new_members)?;
        let connect = self.engine.connect().ok_or_else(|| LockError::Config("this list of nodes is fixed".into()))?;
        let new = self.engine.connected(&old, &list, connect)?;
        // The union: who leaves has to refuse older lists too.
        let mut all: Vec<Arc<dyn Node>> = new.nodes.clone();
        all.extend(old.nodes.iter().filter(|node| !new.names.contains(&node.name().to_owned())).cloned());
        let all = Arc::new(Nodes::of(list.clone(), all));
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
            .round(&all, commands, |at, answer| {
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

impl Engined for Redlock {
    fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}
