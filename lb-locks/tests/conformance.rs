//! One suite over every place where locks can be taken: memory, SQLite, one Redis node, Redlock in memory, Redlock over
//! five Redis nodes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use lb_locks::{
    Lock, LockError, Options, Redlock, Request, Single,
    clock::BootTime,
    command::Mode,
    many::acquire_many,
    node::{
        Node,
        memory::MemoryNode,
        redis::{RedisNode, RedisOptions},
        sqlite::SqliteNode,
    },
    round::Fencing,
    torture::server::{RedisServer, ServerOptions},
};

const TTL: Duration = Duration::from_millis(2_000);

/// Every place.
const KINDS: [&str; 5] = ["memory", "sqlite", "redis", "redlock-memory", "redlock-redis"];

/// A place, and what has to live as long as it. `again` makes another client of the same place.
struct Place {
    exact: bool,
    again: Box<dyn Fn() -> Arc<dyn Lock>>,
    _servers: Vec<RedisServer>,
    _folder: Option<tempfile::TempDir>,
}

fn options() -> Options {
    // Time-outs that a busy machine keeps: their length is no subject here.
    Options {
        node_timeout: Duration::from_millis(1_500),
        max_ttl: Duration::from_secs(10),
        retry_max: Duration::from_millis(50),
        label: "conformance".into(),
        ..Options::default()
    }
}

async fn places(kind: &str) -> Place {
    let servers = |count| -> Vec<RedisServer> {
        (0..count).map(|_| RedisServer::start(ServerOptions { aof: true, ..Default::default() }).unwrap()).collect()
    };
    let place = match kind {
        "memory" => {
            let node = MemoryNode::new("memory");
            let again = move || Arc::new(Single::new(Arc::new(node.clone()), options()).unwrap()) as Arc<dyn Lock>;
            Place { exact: true, again: Box::new(again), _servers: vec![], _folder: None }
        }
        "sqlite" => {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("locks.db");
            let again = move || {
                let node = SqliteNode::open(&path).unwrap();
                Arc::new(Single::new(Arc::new(node), options()).unwrap()) as Arc<dyn Lock>
            };
            Place { exact: true, again: Box::new(again), _servers: vec![], _folder: Some(folder) }
        }
        "redis" => {
            let servers = servers(1);
            let url = servers[0].url();
            let again = move || {
                let node = RedisNode::new(&url, None, &RedisOptions::default()).unwrap();
                Arc::new(Single::new(Arc::new(node), options()).unwrap()) as Arc<dyn Lock>
            };
            Place { exact: true, again: Box::new(again), _servers: servers, _folder: None }
        }
        "redlock-memory" => {
            let nodes: Vec<MemoryNode> = (0..5).map(|n| MemoryNode::new(&format!("m{n}"))).collect();
            let again = move || {
                let nodes = nodes.iter().map(|node| Arc::new(node.clone()) as Arc<dyn Node>).collect();
                Arc::new(Redlock::fixed(nodes, options()).unwrap()) as Arc<dyn Lock>
            };
            Place { exact: false, again: Box::new(again), _servers: vec![], _folder: None }
        }
        _ => {
            let servers = servers(5);
            let urls: Vec<String> = servers.iter().map(RedisServer::url).collect();
            let again =
                move || Arc::new(Redlock::redis(&urls, &RedisOptions::default(), options()).unwrap()) as Arc<dyn Lock>;
            Place { exact: false, again: Box::new(again), _servers: servers, _folder: None }
        }
    };
    (place.again)().bootstrap(0).await.unwrap();
    place
}

async fn suite(kind: &str) {
    let place = places(kind).await;
    let (a, b) = ((place.again)(), (place.again)());
    exclusion(&*a, &*b).await;
    tokens(&*a, &*b).await;
    shared(&*a, &*b).await;
    dropping(&a, &*b).await;
    inspection(&*a, &*b).await;
    many(&*a, &*b).await;
    mistakes(&*a).await;
    order(&place).await;
    contention(&place).await;
}

async fn exclusion(a: &dyn Lock, b: &dyn Lock) {
    let before = BootTime::now();
    let guard = a.acquire(Request::new("x", TTL)).await.unwrap();
    // 2,000 ms less 20 and 2, counted from before the first request.
    assert!(guard.valid_until() >= before + Duration::from_millis(1_978));
    assert!(guard.valid_until() <= BootTime::now() + Duration::from_millis(1_978));
    assert!(guard.is_valid() && guard.token().len() == 40 && guard.fence().is_none());
    let refused = b.acquire(Request::new("x", TTL)).await.unwrap_err();
    assert!(matches!(refused, LockError::Contended { .. }), "{refused}");
    b.acquire(Request::new("y", TTL)).await.unwrap().release().await;
    let released = guard.release().await;
    assert!(released.confirmed && released.in_time, "{released:?}");
    assert!(b.acquire(Request::new("x", TTL)).await.unwrap().release().await.confirmed);
}

async fn tokens(a: &dyn Lock, b: &dyn Lock) {
    let mut last = 0;
    for round in 0..6 {
        let lock = if round % 2 == 0 { a } else { b };
        let guard = lock.acquire(Request::new("fenced", TTL).fenced().wait(TTL)).await.unwrap();
        let fence = guard.fence().unwrap();
        assert!(fence > last, "{fence} after {last}");
        last = fence;
        guard.release().await;
    }
}

async fn expiry_and_extension(kind: &str, a: &dyn Lock, b: &dyn Lock) {
    // A second is left at each step: a busy machine takes its time.
    let (short, pause) = (Duration::from_millis(2_200), Duration::from_millis(1_200));
    let lost_margin = Duration::from_secs(1);
    let guard = a.acquire(Request { extensions_max: 2, lost_margin, ..Request::new("e", short) }).await.unwrap();
    tokio::time::sleep(pause).await;
    let first = guard.valid_until();
    assert!(guard.extend().await.unwrap() > first + Duration::from_secs(1), "{kind}");
    tokio::time::sleep(pause).await;
    assert!(b.acquire(Request::new("e", short)).await.is_err(), "{kind}: it was extended");
    guard.extend().await.unwrap();
    assert!(matches!(guard.extend().await, Err(LockError::Config(text)) if text.contains("limit")));
    let lost = guard.lost();
    lost.await;
    assert!(guard.is_valid(), "{kind}: lost() fires before validity ends");
    tokio::time::sleep(lost_margin + Duration::from_millis(50)).await;
    assert!(!guard.is_valid(), "{kind}");
    // Expired, and free for another; the late owner cannot bring it back, nor take it from the new one.
    let other = b.acquire(Request::new("e", TTL).wait(TTL)).await.unwrap();
    assert!(matches!(guard.extend().await, Err(LockError::Lost { .. } | LockError::Config(_))));
    let released = guard.release().await;
    assert!(!released.confirmed && !released.in_time, "{kind}: {released:?}");
    assert!(a.acquire(Request::new("e", TTL)).await.is_err(), "{kind}: the late owner took it from the new one");
    assert!(other.extend().await.is_ok(), "{kind}");
    other.release().await;
}

async fn shared(a: &dyn Lock, b: &dyn Lock) {
    let request = || Request::new("rw", TTL);
    let (one, two) = (a.acquire(request().shared()).await.unwrap(), b.acquire(request().shared()).await.unwrap());
    assert!(b.acquire(request()).await.is_err(), "readers keep the writer out");
    // A writer that waits keeps new readers out, or it would wait forever.
    assert!(a.acquire(request().shared()).await.is_err());
    assert!(one.extend().await.is_ok());
    assert!(one.release().await.confirmed && two.release().await.confirmed);
    let writer = b.acquire(request().wait(TTL)).await.unwrap();
    assert!(a.acquire(request().shared()).await.is_err(), "the writer keeps readers out");
    writer.release().await;
    a.acquire(request().shared().wait(TTL)).await.unwrap().release().await;
}

async fn dropping(a: &Arc<dyn Lock>, b: &dyn Lock) {
    drop(a.acquire(Request::new("d", TTL)).await.unwrap());
    b.acquire(Request::new("d", TTL).wait(TTL / 2)).await.unwrap().release().await;
    // A waiter that gives up half way leaves nothing behind, neither lock nor place.
    let guard = b.acquire(Request::new("d", TTL)).await.unwrap();
    let waiting = a.acquire(Request::new("d", TTL).wait(TTL).first_come());
    assert!(tokio::time::timeout(Duration::from_millis(100), waiting).await.is_err());
    guard.release().await;
    b.acquire(Request::new("d", TTL).wait(TTL / 2)).await.unwrap().release().await;
}

async fn inspection(a: &dyn Lock, b: &dyn Lock) {
    let guard = a.acquire(Request::new("seen", TTL)).await.unwrap();
    let waiting = b.acquire(Request::new("seen", TTL).wait(Duration::from_millis(700)).first_come());
    let look = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        (a.inspect("seen").await.unwrap(), b.names(10).await.unwrap())
    };
    let (waited, (holding, names)) = tokio::join!(waiting, look);
    assert!(waited.is_err());
    let [holder] = &holding.holders[..] else { panic!("{holding:?}") };
    let owner = holder.owner.as_ref().unwrap();
    assert!(holder.is_majority && holder.mode == Mode::Exclusive && holder.remaining_ms > 500);
    assert_eq!((owner.pid, owner.label.as_str()), (std::process::id(), "conformance"));
    assert_eq!(holding.waiters.len(), 1, "{holding:?}");
    assert!(names.contains(&"seen".to_owned()), "{names:?}");
    guard.release().await;
}

async fn many(a: &dyn Lock, b: &dyn Lock) {
    let both = acquire_many(a, &["m2", "m1", "m2"], &Request::new("", TTL)).await.unwrap();
    assert_eq!(both.guards.iter().map(|guard| guard.name()).collect::<Vec<_>>(), ["m1", "m2"]);
    let refused = acquire_many(b, &["m0", "m2"], &Request::new("", TTL)).await.unwrap_err();
    assert!(matches!(refused, LockError::Contended { name, .. } if name == "m2"));
    // The first of them was given back.
    a.acquire(Request::new("m0", TTL)).await.unwrap().release().await;
    assert!(both.release().await.iter().all(|released| released.confirmed));
    acquire_many(b, &["m0", "m1", "m2"], &Request::new("", TTL)).await.unwrap().release().await;
}

async fn mistakes(a: &dyn Lock) {
    for request in [
        Request::new("", TTL),
        Request::new("a\nb", TTL),
        Request::new("long", Duration::from_secs(11)),
        Request::new("short", Duration::from_millis(1)),
        Request { attempts_max: 0, ..Request::new("never", TTL) },
    ] {
        let error = a.acquire(request).await.unwrap_err();
        assert!(matches!(error, LockError::Config(_)), "{error}");
    }
}

/// Waiters are served in the order in which they came.
async fn order(place: &Place) {
    let first = (place.again)();
    let guard = first.acquire(Request::new("fifo", TTL)).await.unwrap();
    let served = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut waiters = Vec::new();
    for number in 0..5 {
        let (lock, served) = ((place.again)(), Arc::clone(&served));
        waiters.push(tokio::spawn(async move {
            let guard = lock.acquire(Request::new("fifo", TTL).wait(TTL * 4).first_come()).await.unwrap();
            served.lock().unwrap().push(number);
            guard.release().await;
        }));
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    guard.release().await;
    for waiter in waiters {
        waiter.await.unwrap();
    }
    let served = served.lock().unwrap().clone();
    if place.exact {
        assert_eq!(served, [0, 1, 2, 3, 4]);
    } else {
        // Best effort: all are served; the order is wrong only where requests crossed.
        assert_eq!(served.len(), 5);
    }
}

/// Clients fight; the critical section is watched by itself.
async fn contention(place: &Place) {
    let (inside, done) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut clients = Vec::new();
    for _ in 0..4 {
        let (lock, inside, done) = ((place.again)(), Arc::clone(&inside), Arc::clone(&done));
        clients.push(tokio::spawn(async move {
            for _ in 0..5 {
                let request = Request { fencing: Fencing::None, ..Request::new("fight", TTL).wait(TTL * 5) };
                let guard = lock.acquire(request).await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                tokio::time::sleep(Duration::from_millis(1)).await;
                inside.fetch_sub(1, Ordering::SeqCst);
                assert!(guard.is_valid(), "too slow a machine to say anything");
                guard.release().await;
                done.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(done.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn memory() {
    suite("memory").await;
}

#[tokio::test]
async fn sqlite() {
    suite("sqlite").await;
}

#[tokio::test]
async fn redis_one_node() {
    suite("redis").await;
}

#[tokio::test]
async fn redlock_in_memory() {
    suite("redlock-memory").await;
}

#[tokio::test]
async fn redlock_over_five_redis_nodes() {
    suite("redlock-redis").await;
}

/// Side by side: nearly all of it is waiting.
#[tokio::test]
async fn everywhere_locks_expire_and_are_extended() {
    let each = KINDS.map(async |kind| {
        let place = places(kind).await;
        expiry_and_extension(kind, &*(place.again)(), &*(place.again)()).await;
    });
    join_all(each).await;
}
