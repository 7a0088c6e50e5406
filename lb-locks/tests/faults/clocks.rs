//! Wall clocks of real servers are moved: outside the assumptions, so exclusion goes, and the fence holds at the resource.

use std::{sync::Arc, time::Duration};

use lb_locks::{
    FencedResource, Guard, Lock, LockError, NodeError, Options, Redlock, Request,
    clock::BootTime,
    command::{Command, Reply},
    fenced::fenced_script,
    node::{
        Node,
        redis::{RedisNode, RedisOptions},
    },
    torture::server::{RedisServer, ServerOptions},
};

use super::redlock_with;

/// So long that no busy machine lets it run out by itself.
const LONG: Duration = Duration::from_secs(60);
/// The step: more than a lifetime.
const STEP_MS: i64 = 90_000;

async fn movable(count: usize) -> (Vec<RedisServer>, [Redlock; 2]) {
    let start = || RedisServer::start(ServerOptions { aof: true, movable_clock: true, ..Default::default() }).unwrap();
    let servers: Vec<_> = (0..count).map(|_| start()).collect();
    let options = || Options { node_timeout: Duration::from_secs(1), max_ttl: LONG, ..Options::default() };
    let clients = [redlock_with(&servers, options()), redlock_with(&servers, options())];
    clients[0].bootstrap(0).await.unwrap();
    (servers, clients)
}

/// Takes a lock on all nodes, and returns when all have it: a node that was asked and is late would count by the clock after its
/// step.
async fn taken_on_all(lock: &Redlock, request: Request, nodes: usize) -> Guard {
    let name = request.name.clone();
    let guard = lock.acquire(request.everywhere()).await.unwrap();
    while lock.inspect(&name).await.unwrap().holders.iter().all(|holder| holder.on_nodes < nodes) {
        assert!(guard.is_valid(), "a node never had it");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    guard
}

#[tokio::test]
async fn a_majority_stepped_forward_lets_two_hold_and_the_fence_refuses_the_first() {
    let (servers, [one, other]) = movable(3).await;
    let first = taken_on_all(&one, Request::new("stepped", LONG).fenced(), 3).await;
    servers[..2].iter().for_each(|server| server.move_clock(STEP_MS).unwrap());
    let second = other.acquire(Request::new("stepped", LONG).fenced()).await.unwrap();
    assert!(first.is_valid() && second.is_valid(), "two believe that they hold it");
    let (old, new) = (first.fence().unwrap(), second.fence().unwrap());
    assert!(old < new, "{old} and {new}");

    let resource = FencedResource::new(Vec::new());
    resource.access(new, |log| log.push("second")).unwrap();
    assert_eq!(resource.access(old, |log| log.push("first, late")).unwrap_err().newest, new);
    // The same for a resource in Redis.
    let mut redis = redis::Client::open(servers[2].url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let script = redis::Script::new(&fenced_script("return redis.call('SET', KEYS[2], ARGV[2])"));
    let mut write = async |fence: u64, text: &str| -> redis::RedisResult<()> {
        script.key("fence").key("resource").arg(fence).arg(text).invoke_async(&mut redis).await
    };
    write(new, "second").await.unwrap();
    let refused = write(old, "first").await.unwrap_err();
    assert_eq!(refused.code(), Some("STALE"), "{refused}");
    write(new, "second again").await.unwrap();
}

#[tokio::test]
async fn one_stepped_forward_is_no_majority() {
    let (servers, [one, other]) = movable(3).await;
    let first = taken_on_all(&one, Request::new("stepped", LONG), 3).await;
    servers[0].move_clock(STEP_MS).unwrap();
    let refused = other.acquire(Request::new("stepped", LONG)).await.unwrap_err();
    assert!(matches!(refused, LockError::Contended { .. }), "{refused}");
    assert!(first.is_valid());
}

/// The harmless direction: the lock stays longer than its lifetime, and no holder is cheated.
#[tokio::test]
async fn a_majority_stepped_back_keeps_the_lock_for_longer() {
    let (servers, [one, other]) = movable(3).await;
    let short = Duration::from_secs(1);
    let first = taken_on_all(&one, Request::new("stepped", short), 3).await;
    servers[..2].iter().for_each(|server| server.move_clock(-STEP_MS).unwrap());
    first.lost().await;
    let over = first.valid_until() + short;
    first.leave();
    while BootTime::now() < over {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = other.acquire(Request::new("stepped", short)).await.unwrap_err();
    assert!(matches!(refused, LockError::Contended { .. }), "{refused}");
    servers[..2].iter().for_each(|server| server.move_clock(0).unwrap());
    other.acquire(Request::new("stepped", short).wait(LONG)).await.unwrap();
}

/// What the assumptions exclude with reason: a step ends a quarantine early, as it ends a lock.
#[tokio::test]
async fn a_step_ends_a_quarantine() {
    let server = RedisServer::start(ServerOptions { movable_clock: true, ..Default::default() }).unwrap();
    let node = RedisNode::new(&server.url(), None, &RedisOptions::default()).unwrap();
    let status = async || match node.call(Arc::new(Command::Status)).await {
        Ok(Reply::Status(status)) => Ok(status),
        Ok(other) => Err(NodeError::Protocol(format!("{other:?}"))),
        Err(error) => Err(error),
    };
    let max_ttl = LONG.as_millis();
    let run = status().await.unwrap().run_id;
    let since = server.command("TIME").unwrap();
    let since_s: u64 = since.lines().nth(2).unwrap().trim().parse().unwrap();
    server.command(&format!("HSET weir:node max_ttl {max_ttl} q_run {run} q_since {}", since_s * 1_000)).unwrap();
    let before = status().await.unwrap();
    assert!(!before.ready && before.quarantine_ms > 0, "{before:?}");
    server.move_clock(STEP_MS).unwrap();
    let after = status().await.unwrap();
    assert!(!after.ready && after.quarantine_ms == 0, "{after:?}");
}
