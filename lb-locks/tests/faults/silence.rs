//! Nodes that say nothing, lose answers, or say what is no vote.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use lb_locks::{
    Lock, LockError, NodeError, NodeOutcome, Redlock, Request, Single,
    command::{Command, Reply},
    node::{
        Node,
        redis::{RedisNode, RedisOptions},
    },
    torture::{
        proxy::{Proxy, Way},
        server::{RedisServer, ServerOptions},
    },
};

use super::{
    TTL,
    fake::{FakeServer, array},
    options, servers,
};

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

/// Requests of one connection wait for each other's answers; the one that looked last must not take the news with it.
#[tokio::test]
async fn who_gives_up_does_not_stop_those_who_wait_on_the_same_connection() {
    let server = FakeServer::start(|words| {
        if words[0] == "FCALL" {
            std::thread::sleep(Duration::from_millis(50));
        }
        array(&["gone"])
    });
    let node = RedisNode::new(&server.url(), None, &RedisOptions::default()).unwrap();
    for _ in 0..4 {
        let waits = tokio::spawn(node.call(Arc::new(Command::Status)));
        tokio::task::yield_now().await;
        let mut gives_up = node.call(Arc::new(Command::Status));
        assert!((&mut gives_up).now_or_never().is_none());
        drop(gives_up);
        let answer = tokio::time::timeout(TTL, waits).await.expect("nobody moved the connection").unwrap();
        assert_eq!(answer, Ok(Reply::Gone));
    }
}
