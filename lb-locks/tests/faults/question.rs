//! The seed's question in four variants: a client holds a lock on three of five nodes, and something happens to two or one
//! of the three.

use std::time::Duration;

use lb_locks::{
    Lock, LockError, NodeOutcome, Request, command::Refusal, fenced::fenced_script, torture::server::RedisServer,
};

use super::{TTL, options, redlock_with, servers};

/// A holder of three of five (the other two could not vote just then), and then something happens to two or one of the
/// three. What a second client gets while the first still holds.
async fn holder_of_three(quarantine: bool, happens: impl FnOnce(&mut [RedisServer])) -> Result<(), LockError> {
    let mut servers = servers(5, false);
    // The first client minds the quarantine in every variant: so two nodes are kept from it.
    let (first, second) = (redlock_with(&servers, options(true)), redlock_with(&servers, options(quarantine)));
    first.bootstrap(0).await.unwrap();
    let node = |server: &RedisServer, command: &str| server.command(command).unwrap();
    for server in &servers[3..] {
        node(server, "HDEL weir:node ready");
    }
    let guard = first.acquire(Request::new("question", TTL).wait(TTL)).await.unwrap();
    for server in &servers[3..] {
        // They are asked a moment after the majority, and say that they are in quarantine; nobody asks them again.
        let asked = async {
            while !node(server, "HEXISTS weir:node q_run").starts_with(":1") {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(TTL / 3, asked).await.expect("the other two were never asked");
        let run = node(server, "INFO server");
        let run = run.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap().trim().to_owned();
        // These two are sound nodes that never held it: their quarantine is waived, as the operator may.
        node(server, "HDEL weir:node q_run q_since");
        node(server, &format!("HSET weir:node ready {run}"));
    }
    let holding = second.inspect("question").await.unwrap();
    assert_eq!((holding.answered, holding.holders[0].on_nodes), (5, 3), "{holding:?}");
    happens(&mut servers);
    // Without a protection it may take a few attempts, on a busy machine some time; with it one is refused as well as ten.
    let wait = if quarantine { Duration::from_millis(500) } else { TTL / 3 };
    let other = second.acquire(Request::new("question", TTL).wait(wait)).await;
    assert!(guard.is_valid(), "too slow a machine to say anything");
    other.map(drop)
}

/// How many nodes said what `wanted` matches.
fn said(error: &LockError, wanted: impl Fn(&NodeOutcome) -> bool) -> usize {
    error.report().unwrap().0.iter().filter(|(_, outcome)| wanted(outcome)).count()
}

#[tokio::test]
async fn two_of_three_die_and_stay_dead() {
    let refused =
        holder_of_three(true, |servers| servers[..2].iter_mut().for_each(RedisServer::kill)).await.unwrap_err();
    // The third still holds it, and two are no majority.
    assert_eq!(said(&refused, |outcome| matches!(outcome, NodeOutcome::Refused(Refusal::Held { .. }))), 1, "{refused}");
    assert_eq!(said(&refused, |outcome| matches!(outcome, NodeOutcome::Failed(_))), 2, "{refused}");
}

#[tokio::test]
async fn two_of_three_come_back_empty_without_quarantine() {
    let two = holder_of_three(false, |servers| servers[..2].iter_mut().for_each(|s| s.restart(false).unwrap())).await;
    assert_eq!(two, Ok(()), "two holders: this is what the quarantine is for");
}

#[tokio::test]
async fn one_of_three_comes_back_empty_without_quarantine() {
    let two = holder_of_three(false, |servers| servers[0].restart(false).unwrap()).await;
    assert_eq!(two, Ok(()), "two holders: one emptied node is enough");
}

#[tokio::test]
async fn two_of_three_come_back_empty_with_quarantine() {
    let empty = |servers: &mut [RedisServer]| servers[..2].iter_mut().for_each(|s| s.restart(false).unwrap());
    let refused = holder_of_three(true, empty).await.unwrap_err();
    let quarantined = |outcome: &NodeOutcome| matches!(outcome, NodeOutcome::Refused(Refusal::Quarantined { .. }));
    assert_eq!(said(&refused, quarantined), 2, "{refused}");
}

/// Outside the assumptions: nodes are emptied and nothing keeps them out. Two hold the lock, and the resource takes the writes of
/// one of them only.
#[tokio::test]
async fn emptied_nodes_let_two_hold_and_the_resource_refuses_one() {
    let servers = servers(5, true);
    let (first, second) = (redlock_with(&servers, options(false)), redlock_with(&servers, options(false)));
    first.bootstrap(40).await.unwrap();
    let old = first.acquire(Request::new("question", TTL).fenced().everywhere().wait(TTL)).await.unwrap();
    for server in &servers[..3] {
        server.command("FLUSHALL").unwrap();
    }
    let new = second.acquire(Request::new("question", TTL).fenced().wait(TTL)).await.unwrap();
    assert!(old.is_valid() && new.is_valid(), "two holders");
    let (old, new) = (old.fence().unwrap(), new.fence().unwrap());
    assert!(old > new, "their counters are gone: {old}, {new}");
    // As it is used: each writes when it can, and the holder of the larger token was there before.
    let mut redis = redis::Client::open(servers[4].url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let script = redis::Script::new(&fenced_script("return redis.call('RPUSH', KEYS[2], ARGV[2])"));
    let mut write = async |fence: u64, text: &str| -> redis::RedisResult<u64> {
        script.key("fence").key("resource").arg(fence).arg(text).invoke_async(&mut redis).await
    };
    assert_eq!(write(old, "one").await.unwrap(), 1);
    let refused = write(new, "two").await.unwrap_err();
    assert_eq!(refused.code(), Some("STALE"), "{refused}");
    assert_eq!(write(old, "three").await.unwrap(), 2);
}
