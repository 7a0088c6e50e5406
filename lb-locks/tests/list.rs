//! The list of nodes changes at runtime: one step at a time, announced, and refused to those who missed it.

use std::time::Duration;

use lb_locks::{
    Lock, LockError, Options, Redlock, Request,
    members::{Change, Member},
    node::redis::RedisOptions,
    torture::server::{RedisServer, ServerOptions},
};

const TTL: Duration = Duration::from_millis(400);

#[tokio::test]
async fn a_node_is_added_and_one_removed() {
    let servers: Vec<_> = (0..4).map(|_| RedisServer::start(ServerOptions::default()).unwrap()).collect();
    let urls: Vec<String> = servers[..3].iter().map(RedisServer::url).collect();
    let options = Options { node_timeout: Duration::from_millis(200), max_ttl: TTL, ..Options::default() };
    let client = || Redlock::redis(&urls, &RedisOptions::default(), options.clone()).unwrap();
    let (admin, follower, stale) = (client(), client(), client());
    admin.bootstrap(0).await.unwrap();
    follower.acquire(Request::new("a", TTL)).await.unwrap().release().await;
    let follow = {
        let follower = follower.clone();
        tokio::spawn(async move { follower.follow().await })
    };
    // Until it listens: what is announced before is only met by the slow look.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let address = servers[3].address().to_string();
    let joins = Change::Add(Member { name: address.clone(), address });
    let list = admin.change(&joins).await.unwrap();
    assert_eq!((list.id.epoch, list.members.split(' ').count()), (2, 4));
    let leaves = Change::Remove(servers[0].address().to_string());
    let error = admin.change(&leaves).await.unwrap_err();
    assert!(matches!(&error, LockError::Config(text) if text.contains("try again in")), "{error}");

    // An announcement is a wake-up that may be lost. Who has not heard of it is refused, learns, and gets its lock.
    tokio::time::sleep(TTL).await;
    assert_eq!(stale.list().id.epoch, 1);
    stale.acquire(Request::new("a", TTL).wait(TTL * 5)).await.unwrap().release().await;
    assert_eq!(stale.list().id.epoch, 2);

    let list = admin.change(&leaves).await.unwrap();
    assert_eq!((list.id.epoch, list.members.split(' ').count()), (3, 3));
    assert!(admin.change(&leaves).await.is_err(), "it is not there any more");
    admin.acquire(Request::new("a", TTL).wait(TTL * 10)).await.unwrap().release().await;
    follow.abort();
}
