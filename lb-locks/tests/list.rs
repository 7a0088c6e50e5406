//! The list of nodes changes at runtime: one step at a time, announced, and refused to those who missed it.

use std::{sync::Arc, time::Duration};

use lb_locks::{
    Lock, LockError, Options, Redlock, Request,
    command::{Command, Reply},
    members::{self, Change, Member},
    node::{
        Node,
        redis::{RedisNode, RedisOptions},
    },
    torture::server::{RedisServer, ServerOptions},
};

const TTL: Duration = Duration::from_millis(400);
/// The slow look comes after 15 s at the earliest.
const HEARD_WITHIN: Duration = Duration::from_secs(12);

async fn hears(follower: &Redlock, epoch: u64) {
    let heard = async {
        while follower.list().id.epoch < epoch {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(HEARD_WITHIN, heard).await.unwrap_or_else(|_| panic!("list {epoch} was not heard of"));
}

/// Announcements come from one node after the other: the first is heard before a majority has the list.
#[tokio::test]
async fn a_list_that_is_announced_before_it_is_agreed_is_adopted_when_it_is() {
    let servers: Vec<_> = (0..3).map(|_| RedisServer::start(ServerOptions::default()).unwrap()).collect();
    let urls: Vec<String> = servers.iter().map(RedisServer::url).collect();
    let options = Options { node_timeout: Duration::from_secs(1), max_ttl: TTL, ..Options::default() };
    let follower = Redlock::redis(&urls, &RedisOptions::default(), options).unwrap();
    follower.bootstrap(0).await.unwrap();
    let follow = {
        let follower = follower.clone();
        tokio::spawn(async move { follower.follow().await })
    };
    let members: Vec<Member> = servers[..2]
        .iter()
        .map(|server| server.address().to_string())
        .map(|address| Member { name: address.clone(), address })
        .collect();
    let list = members::list(2, &members).unwrap();
    let from = follower.list().id;
    for server in &servers[..2] {
        let node = RedisNode::new(&server.url(), None, &RedisOptions::default()).unwrap();
        let set = Command::SetList { from: from.clone(), list: list.clone(), join: false };
        assert_eq!(node.call(Arc::new(set)).await.unwrap(), Reply::Done);
        // Time enough to hear it, to look, and to find one node of two.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    hears(&follower, 2).await;
    follow.abort();
}

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
    let address = servers[3].address().to_string();
    let joins = Change::Add(Member { name: address.clone(), address });
    let list = admin.change(&joins).await.unwrap();
    assert_eq!((list.id.epoch, list.members.split(' ').count()), (2, 4));
    let leaves = Change::Remove(servers[0].address().to_string());
    let error = admin.change(&leaves).await.unwrap_err();
    assert!(matches!(&error, LockError::Config(text) if text.contains("try again in")), "{error}");

    // Who follows adopts the list without asking for a lock, long before its slow look.
    hears(&follower, 2).await;
    // Who has not heard of it is refused, learns, and gets its lock.
    tokio::time::sleep(TTL).await;
    assert_eq!(stale.list().id.epoch, 1);
    stale.acquire(Request::new("a", TTL).wait(TTL * 5)).await.unwrap().release().await;
    assert_eq!(stale.list().id.epoch, 2);

    let list = admin.change(&leaves).await.unwrap();
    assert_eq!((list.id.epoch, list.members.split(' ').count()), (3, 3));
    // Also over the node that joined.
    hears(&follower, 3).await;
    assert!(admin.change(&leaves).await.is_err(), "it is not there any more");
    admin.acquire(Request::new("a", TTL).wait(TTL * 10)).await.unwrap().release().await;
    follow.abort();
}
