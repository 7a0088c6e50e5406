//! Nodes that restart, with their data and without.

use std::time::Duration;

use lb_locks::{Lock, NodeError, Options, Redlock, Request, node::redis::RedisOptions, torture::server::RedisServer};

use super::{options, servers};

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
