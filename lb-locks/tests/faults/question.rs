//! The seed's question in four variants: a client holds a lock on three of five nodes, and something happens to two or one
//! of the three.

use std::time::Duration;

use lb_locks::{Lock, Request, torture::server::RedisServer};

use super::{TTL, options, redlock_with, servers};

/// The seed's question: a holder of three of five (the other two were paused), and then something happens to two or one
/// of the three. Returns whether a second client got the lock while the first was valid.
async fn holder_of_three(quarantine: bool, happens: impl FnOnce(&mut [RedisServer])) -> bool {
    let mut servers = servers(5, false);
    let (first, second) = (redlock_with(&servers, options(quarantine)), redlock_with(&servers, options(quarantine)));
    first.bootstrap(0).await.unwrap();
    servers[3..].iter().for_each(RedisServer::pause);
    let guard = first.acquire(Request::new("question", TTL).wait(TTL / 4)).await.unwrap();
    // A late vote of the paused two would count for the first client: its requests have to be given up.
    tokio::time::sleep(Duration::from_millis(300)).await;
    // On the paused two the attempt waits in their sockets; what it does there is undone by its own end only, so they
    // are emptied of it: exactly three hold.
    for server in &mut servers[3..] {
        server.restart(false).unwrap();
        let run = server.command("INFO server").unwrap();
        let run = run.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap().trim().to_owned();
        // These two are sound nodes that never held it: their quarantine is waived, as the operator may.
        server.command(&format!("HSET weir:node ready {run} max_ttl {}", TTL.as_millis())).unwrap();
    }
    happens(&mut servers);
    let request = Request::new("question", TTL).wait(Duration::from_millis(400));
    let other = second.acquire(request).await;
    assert!(guard.is_valid(), "too slow a machine to say anything");
    other.is_ok()
}

#[tokio::test]
async fn two_of_three_die_and_stay_dead() {
    let two = holder_of_three(true, |servers| servers[..2].iter_mut().for_each(RedisServer::kill)).await;
    assert!(!two, "the third still holds it, and two are no majority");
}

#[tokio::test]
async fn two_of_three_come_back_empty_without_quarantine() {
    let two = holder_of_three(false, |servers| servers[..2].iter_mut().for_each(|s| s.restart(false).unwrap())).await;
    assert!(two, "this is what the quarantine is for");
}

#[tokio::test]
async fn one_of_three_comes_back_empty_without_quarantine() {
    let two = holder_of_three(false, |servers| servers[0].restart(false).unwrap()).await;
    assert!(two, "one is enough");
}

#[tokio::test]
async fn two_of_three_come_back_empty_with_quarantine() {
    let two = holder_of_three(true, |servers| servers[..2].iter_mut().for_each(|s| s.restart(false).unwrap())).await;
    assert!(!two, "exclusion holds");
}
