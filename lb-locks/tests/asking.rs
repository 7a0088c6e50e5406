//! Whom a lock over several nodes asks, and when: a majority first, the others where one of it is lost or the lock is kept.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use lb_locks::{
    Lock, LockError, NodeError, Options, Redlock, Request,
    command::{Command, Reply},
    node::{BoxFuture, FenceGap, Node, memory::MemoryNode},
};

const TTL: Duration = Duration::from_secs(30);
/// Until something that takes a millisecond has happened on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// A node that counts what it is asked for, and can be silent.
#[derive(Clone, Debug)]
struct Watched {
    node: MemoryNode,
    asked: Arc<AtomicUsize>,
    silent: Arc<AtomicBool>,
}

impl Watched {
    fn new(name: &str) -> Self {
        Self { node: MemoryNode::new(name), asked: Arc::default(), silent: Arc::default() }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn is_held(&self, name: &str) -> bool {
        match self.node.call(Arc::new(Command::Inspect { name: name.into() })).await {
            Ok(Reply::Inspection(found)) => !found.holders.is_empty(),
            other => panic!("{other:?}"),
        }
    }
}

impl Node for Watched {
    fn name(&self) -> &str {
        self.node.name()
    }

    fn call(&self, command: Arc<Command>) -> BoxFuture<'static, Result<Reply, NodeError>> {
        if matches!(*command, Command::Acquire { .. }) {
            self.asked.fetch_add(1, Ordering::SeqCst);
        }
        if self.silent.load(Ordering::SeqCst) { Box::pin(std::future::pending()) } else { self.node.call(command) }
    }

    fn fence_support(&self) -> BoxFuture<'static, Result<(), FenceGap>> {
        self.node.fence_support()
    }
}

async fn five() -> (Vec<Watched>, Redlock, Redlock) {
    let nodes: Vec<Watched> = (0..5).map(|n| Watched::new(&n.to_string())).collect();
    let client = || {
        let nodes = nodes.iter().map(|node| Arc::new(node.clone()) as Arc<dyn Node>).collect();
        Redlock::fixed(nodes, Options { node_timeout: Duration::from_secs(2), ..Options::default() }).unwrap()
    };
    let (a, b) = (client(), client());
    a.bootstrap(0).await.unwrap();
    (nodes, a, b)
}

fn asked(nodes: &[Watched]) -> Vec<usize> {
    nodes.iter().map(Watched::asked).collect()
}

async fn soon(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn a_lock_that_is_given_back_at_once_costs_a_majority() {
    let (nodes, a, _) = five().await;
    assert!(a.acquire(Request::new("x", TTL)).await.unwrap().release().await.confirmed);
    // Nobody asks later either: there is nothing to spread.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(asked(&nodes), [1, 1, 1, 0, 0]);
}

#[tokio::test]
async fn a_lock_that_is_kept_is_soon_on_all_nodes_and_given_back_on_all() {
    let (nodes, a, b) = five().await;
    let guard = a.acquire(Request::new("x", TTL)).await.unwrap();
    soon("on all nodes", async || nodes[3].is_held("x").await && nodes[4].is_held("x").await).await;
    // It survives two of those that were asked first.
    nodes[..2].iter().for_each(|node| node.silent.store(true, Ordering::SeqCst));
    guard.extend().await.unwrap();
    nodes[..2].iter().for_each(|node| node.silent.store(false, Ordering::SeqCst));
    assert!(guard.release().await.confirmed);
    soon("free everywhere", async || {
        for node in &nodes {
            if node.is_held("x").await {
                return false;
            }
        }
        true
    })
    .await;
    b.acquire(Request::new("x", TTL)).await.unwrap();
}

#[tokio::test]
async fn all_are_asked_at_once_where_that_is_wanted() {
    let (nodes, a, _) = five().await;
    a.acquire(Request::new("x", TTL).everywhere()).await.unwrap().leave();
    assert_eq!(asked(&nodes), [1; 5]);
}

#[tokio::test]
async fn each_lost_vote_asks_another_node() {
    let (nodes, a, b) = five().await;
    // Emptied nodes are in quarantine: no votes.
    nodes[0].node.with_model(|model| model.flush());
    a.acquire(Request::new("x", TTL)).await.unwrap().leave();
    assert_eq!(asked(&nodes), [1, 1, 1, 1, 0]);
    // It is asked last for a while, by the client that knows.
    a.acquire(Request::new("y", TTL)).await.unwrap().leave();
    assert_eq!(asked(&nodes)[0], 1);
    let refused = b.acquire(Request::new("x", TTL)).await.unwrap_err();
    assert!(matches!(refused, LockError::Contended { .. }), "{refused}");
}

#[tokio::test]
async fn silence_asks_the_others_long_before_the_time_out() {
    let (nodes, a, _) = five().await;
    nodes[..2].iter().for_each(|node| node.silent.store(true, Ordering::SeqCst));
    // The first lock of a client asks all nodes who they are, and waits for the silent ones.
    assert!(a.acquire(Request::new("first", TTL)).await.is_ok());
    let before = lb_locks::clock::BootTime::now();
    a.acquire(Request::new("x", TTL)).await.unwrap();
    assert!(lb_locks::clock::BootTime::now().since(before) < Duration::from_secs(2), "a time-out was waited for");
    assert_eq!(asked(&nodes)[2..], [2, 2, 2]);
}

/// The one moment at which a release could overtake a request: while the others are being asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_stays_where_a_lock_was_given_back_while_the_others_were_asked() {
    let (nodes, a, _) = five().await;
    for round in 0..300_u64 {
        let guard = a.acquire(Request::new("x", TTL).wait(TTL)).await.unwrap();
        // Around the millisecond after which the others are asked.
        tokio::time::sleep(Duration::from_micros(round % 30 * 100)).await;
        if round % 2 == 0 { drop(guard) } else { drop(guard.release().await) }
    }
    soon("free everywhere", async || {
        for node in &nodes {
            if node.is_held("x").await {
                return false;
            }
        }
        true
    })
    .await;
    assert!(nodes[3].asked() > 0, "the others were never asked, so this shows nothing");
}
