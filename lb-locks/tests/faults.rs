//! Real redis-server processes, and what happens to them while locks are held.

use std::{sync::Arc, time::Duration};

use lb_locks::{
    Lock, LockError, NodeError, NodeOutcome, Options, Redlock, Request, Single,
    node::redis::{RedisNode, RedisOptions},
    torture::{
        proxy::{Proxy, Way},
        server::{RedisServer, ServerOptions},
    },
};

const TTL: Duration = Duration::from_millis(2_500);

fn servers(count: usize, aof: bool) -> Vec<RedisServer> {
    (0..count).map(|_| RedisServer::start(ServerOptions { aof, ..Default::default() }).unwrap()).collect()
}

fn options(quarantine: bool) -> Options {
    Options { node_timeout: Duration::from_millis(150), max_ttl: TTL, quarantine, ..Options::default() }
}

fn redlock(servers: &[RedisServer], quarantine: bool) -> Redlock {
    let urls: Vec<String> = servers.iter().map(RedisServer::url).collect();
    Redlock::redis(&urls, &RedisOptions::default(), options(quarantine)).unwrap()
}

/// The seed's question: a holder of three of five (the other two were paused), and then something happens to two or one
/// of the three. Returns whether a second client got the lock while the first was valid.
async fn holder_of_three(quarantine: bool, happens: impl FnOnce(&mut [RedisServer])) -> bool {
    let mut servers = servers(5, false);
    let (first, second) = (redlock(&servers, quarantine), redlock(&servers, quarantine));
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

#[tokio::test]
async fn after_the_quarantine_a_node_is_repaired_and_votes() {
    let mut servers = servers(3, true);
    let locks = Redlock::redis(
        &servers.iter().map(RedisServer::url).collect::<Vec<_>>(),
        &RedisOptions::default(),
        Options { max_ttl: Duration::from_millis(500), ..options(true) },
    )
    .unwrap();
    locks.bootstrap(40).await.unwrap();
    let request = || Request::new("r", Duration::from_millis(400)).fenced().wait(Duration::from_secs(3));
    let first = locks.acquire(request()).await.unwrap();
    assert_eq!(first.fence(), Some(41));
    first.release().await;
    servers[0].restart(false).unwrap();
    let status = |statuses: Vec<(String, Result<_, NodeError>)>| statuses.into_iter().next().unwrap().1;
    for _ in 0..60 {
        locks.acquire(request()).await.unwrap().release().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let repaired = status(locks.statuses().await).unwrap();
    assert!(repaired.ready && repaired.fence > 41, "{repaired:?}");
}

#[tokio::test]
async fn a_stopped_node_costs_nothing_and_a_lost_reply_is_released() {
    let servers = servers(3, false);
    let proxy = Proxy::start(servers[0].address()).unwrap();
    let urls = vec![format!("p=redis://{}", proxy.address()), servers[1].url(), servers[2].url()];
    let locks = Redlock::redis(&urls, &RedisOptions::default(), options(true)).unwrap();
    locks.bootstrap(0).await.unwrap();
    servers[1].pause();
    locks.acquire(Request::new("a", TTL).wait(TTL)).await.unwrap().release().await;
    // The request arrives, the answer does not: no majority, and the error says which node was silent.
    proxy.set(Way::NoReplies);
    let error = locks.acquire(Request::new("a", TTL)).await.unwrap_err();
    let LockError::NoQuorum { report, .. } = &error else { panic!("{error}") };
    assert!(report.0[..2].iter().all(|(_, outcome)| matches!(outcome, NodeOutcome::Failed(_))), "{report}");
    servers[1].resume();
    proxy.set(Way::Open);
    locks.acquire(Request::new("a", TTL).wait(TTL * 2)).await.unwrap().release().await;
}

#[tokio::test]
async fn the_same_server_twice_is_refused() {
    let servers = servers(2, false);
    let port = servers[0].address().port();
    let urls = vec![servers[0].url(), format!("redis://localhost:{port}"), servers[1].url()];
    let locks = Redlock::redis(&urls, &RedisOptions::default(), options(false)).unwrap();
    let error = locks.acquire(Request::new("a", TTL)).await.unwrap_err();
    assert!(matches!(&error, LockError::Config(text) if text.contains("one server")), "{error}");
}

#[tokio::test]
async fn errors_of_the_server_are_no_votes_and_show_no_password() {
    let server = RedisServer::start(ServerOptions {
        arguments: vec!["--requirepass".into(), "hunter2".into()],
        ..Default::default()
    })
    .unwrap();
    let single = |url: &str| {
        Single::new(Arc::new(RedisNode::new(url, None, &RedisOptions::default()).unwrap()), options(true)).unwrap()
    };
    let wrong = single(&format!("redis://:sesame@{}", server.address()));
    let error = wrong.acquire(Request::new("a", TTL)).await.unwrap_err();
    let LockError::NoQuorum { report, .. } = &error else { panic!("{error}") };
    assert!(matches!(report.0[0].1, NodeOutcome::Failed(NodeError::Auth(_))), "{report}");
    assert!(!error.to_string().contains("sesame") && !format!("{error:?}").contains("sesame"));
    let right = single(&format!("redis://:hunter2@{}", server.address()));
    right.bootstrap(0).await.unwrap();
    // Without an append-only file there are no tokens.
    let error = right.acquire(Request::new("a", TTL).fenced()).await.unwrap_err();
    assert!(matches!(&error, LockError::FenceUnavailable { why } if why.contains("appendonly")), "{error}");
    let url = RedisNode::new("http://:hunter2@x", None, &RedisOptions::default()).unwrap_err();
    assert!(!url.to_string().contains("hunter2"));
}

#[tokio::test]
async fn a_replica_and_a_full_server_do_not_vote() {
    let servers = servers(2, false);
    let single = |at: usize| {
        let node = RedisNode::new(&servers[at].url(), None, &RedisOptions::default()).unwrap();
        Single::new(Arc::new(node), options(true)).unwrap()
    };
    for at in 0..2 {
        single(at).bootstrap(0).await.unwrap();
    }
    servers[0].command("CONFIG SET replica-serve-stale-data yes").unwrap();
    servers[0].command("REPLICAOF 127.0.0.1 1").unwrap();
    servers[1].command("CONFIG SET maxmemory 1").unwrap();
    let outcome = async |at: usize| {
        let error = single(at).acquire(Request::new("a", TTL)).await.unwrap_err();
        error.report().unwrap().0[0].1.clone()
    };
    let replica = outcome(0).await;
    assert!(matches!(replica, NodeOutcome::Failed(NodeError::ReadOnly(_))), "{replica:?}");
    let full = outcome(1).await;
    assert_eq!(full, NodeOutcome::Failed(NodeError::OutOfMemory));
}
