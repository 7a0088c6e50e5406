//! Nodes that restart, with their data and without.

use std::{sync::Arc, time::Duration};

use lb_locks::{
    Lock, LockError, NodeOutcome, Options, Redlock, Request, Single,
    command::{Command, Refusal, Reply, Status},
    node::{
        Node,
        redis::{RedisNode, RedisOptions},
    },
    torture::server::RedisServer,
};

use super::{options, redlock_with, servers};

/// The longest lifetime, and so the length of a quarantine; longer than an attempt takes at most, which is a node time-out.
const SHORT: Duration = Duration::from_millis(1_500);
/// Within this a quarantine is over and repaired on a busy machine.
const REPAIRED_WITHIN: Duration = Duration::from_secs(30);

fn locks_over(servers: &[RedisServer]) -> Redlock {
    redlock_with(servers, Options { node_timeout: Duration::from_secs(1), max_ttl: SHORT, ..options(true) })
}

async fn status(server: &RedisServer) -> Status {
    let node = RedisNode::new(&server.url(), None, &RedisOptions::default()).unwrap();
    match node.call(Arc::new(Command::Status)).await.unwrap() {
        Reply::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

/// Takes and gives back until `server` votes again.
async fn repaired(locks: &Redlock, server: &RedisServer) -> Status {
    let wait = async {
        loop {
            let request = Request::new("other", SHORT).fenced().wait(REPAIRED_WITHIN);
            locks.acquire(request).await.unwrap().release().await;
            let status = status(server).await;
            if status.ready {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(REPAIRED_WITHIN, wait).await.expect("the node was not repaired")
}

#[tokio::test]
async fn after_the_quarantine_an_emptied_node_is_repaired_and_votes() {
    let mut servers = servers(3, true);
    let locks = locks_over(&servers);
    locks.bootstrap(40).await.unwrap();
    let first = locks.acquire(Request::new("r", SHORT).fenced().wait(REPAIRED_WITHIN)).await.unwrap();
    assert_eq!(first.fence(), Some(41));
    first.release().await;
    servers[0].restart(false).unwrap();
    assert_eq!(status(&servers[0]).await.fence, 0);
    assert!(repaired(&locks, &servers[0]).await.fence > 41, "its counter is that of the others");
}

#[tokio::test]
async fn a_restart_with_its_data_is_quarantined_all_the_same() {
    let mut servers = servers(3, true);
    let locks = locks_over(&servers);
    locks.bootstrap(40).await.unwrap();
    // On all three, and not given back.
    let request = Request::new("kept", SHORT).fenced().everywhere().wait(REPAIRED_WITHIN);
    let first = locks.acquire(request).await.unwrap();
    let fence = first.fence().unwrap();
    first.leave();
    let before = status(&servers[0]).await;
    assert!(before.ready && before.fence >= fence, "{before:?}");
    servers[0].restart(true).unwrap();
    let after = status(&servers[0]).await;
    assert_ne!(after.run_id, before.run_id);
    assert_eq!((after.fence, after.max_ttl_ms), (before.fence, before.max_ttl_ms), "it kept its counter");
    assert!(!after.ready, "{after:?}");
    let node = RedisNode::new(&servers[0].url(), None, &RedisOptions::default()).unwrap();
    let single = Single::new(Arc::new(node), options(true)).unwrap();
    let refused = single.acquire(Request::new("free", Duration::from_millis(100))).await.unwrap_err();
    let LockError::NoQuorum { report, .. } = &refused else { panic!("{refused}") };
    assert!(matches!(report.0[0].1, NodeOutcome::Refused(Refusal::Quarantined { .. })), "{refused}");
    // The other two go on, and the counter of the third ends up where theirs are.
    let repaired = repaired(&locks, &servers[0]).await;
    let next = locks.acquire(Request::new("kept", SHORT).fenced().wait(REPAIRED_WITHIN)).await.unwrap();
    assert!(next.fence().unwrap() > fence && repaired.fence > fence, "{repaired:?}");
}

#[tokio::test]
async fn all_restarted_at_once_keep_their_counters_and_wait() {
    let mut servers = servers(3, true);
    let locks = locks_over(&servers);
    locks.bootstrap(7).await.unwrap();
    let first = locks.acquire(Request::new("all", SHORT).fenced().wait(REPAIRED_WITHIN)).await.unwrap();
    let fence = first.fence().unwrap();
    for server in &mut servers {
        server.restart(true).unwrap();
    }
    let refused = locks.acquire(Request::new("all", SHORT)).await.unwrap_err();
    assert!(matches!(refused, LockError::NoQuorum { .. }), "{refused}");
    let next = locks.acquire(Request::new("all", SHORT).fenced().wait(REPAIRED_WITHIN)).await.unwrap();
    assert!(next.fence().unwrap() > fence);
    assert!(!first.is_valid(), "nobody has the lock before the first has lost it");
}
