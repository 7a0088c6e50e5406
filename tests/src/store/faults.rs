//! Redis killed, emptied, restarted from its file, paused and cut off, and a message dropped: followers agree in the end,
//! nothing that does not chain is ever taken, no replicated write is lost, and each loss of history raises its alarm.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use lb_locks::torture::{
    proxy::{Proxy, Way},
    server::{RedisServer, ServerOptions},
};
use lb_userspace::store::{
    Objects, Outcome, Snapshot, Store, StoreError,
    access::Put,
    feed::Feed,
    follow::{Counters, Event, Loss, Resync, Times},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::watch;

use super::rig::{config, intent, key, redis, run, set, store, texts, until, write};

/// Shorter than in production, so that a test sees many.
pub const TIMES: Times = Times { look_ms: 1_000, retry_min_ms: 20, retry_max_ms: 200 };

/// A reader in a task, and what it holds and was told.
pub struct Follower {
    pub copy: watch::Receiver<Option<Snapshot>>,
    pub told: watch::Receiver<Told>,
    task: tokio::task::JoinHandle<()>,
}

/// What a follower was told so far.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub losses: Vec<(Loss, bool)>,
    pub downs: u32,
    pub up: bool,
    pub counters: Counters,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    /// Follows `store`; panics in its task, and so never agrees with anybody, where something is told that does not chain.
    pub fn start(store: Arc<dyn Store>, seed: u64) -> Self {
        let (copy_sender, copy) = watch::channel(None::<Snapshot>);
        let (told_sender, told) = watch::channel(Told::default());
        let task = tokio::spawn(async move {
            let mut feed = Feed::new(store, None, TIMES, seed);
            let mut seen: Option<Snapshot> = None;
            let mut alarmed = false;
            loop {
                let event = feed.next().await;
                match &event {
                    Event::Delta(change) => {
                        let seen = seen.as_mut().expect("a delta follows something");
                        assert!(change.follows(&seen.revision), "{} after {}", change.revision, seen.revision);
                        change.apply(&mut seen.objects);
                        seen.revision = change.revision;
                    }
                    Event::Snapshot { snapshot, cause } => {
                        let chains = seen.as_ref().is_none_or(|seen| {
                            seen.origin == snapshot.origin && seen.revision.number < snapshot.revision.number
                        });
                        assert!(alarmed || (chains && matches!(cause, Resync::Start | Resync::Trimmed)), "{event:?}");
                        seen = Some(snapshot.clone());
                    }
                    _ => {}
                }
                alarmed = matches!(event, Event::HistoryLost { taken: true, .. });
                let number = |snapshot: Option<&Snapshot>| snapshot.map(|snapshot| snapshot.revision.number);
                assert!(number(seen.as_ref()) <= number(feed.copy()) || alarmed, "what was told is held");
                told_sender.send_modify(|told| {
                    told.counters = feed.counters();
                    match &event {
                        Event::HistoryLost { loss, taken, .. } => told.losses.push((*loss, *taken)),
                        Event::Down(_) => (told.downs, told.up) = (told.downs + 1, false),
                        Event::Up => told.up = true,
                        _ => {}
                    }
                });
                copy_sender.send_replace(seen.clone());
            }
        });
        Self { copy, told, task }
    }

    pub fn holds(&self, snapshot: &Option<Snapshot>) -> bool {
        assert!(!self.task.is_finished(), "the follower took something that does not chain");
        *self.copy.borrow() == *snapshot
    }

    /// Waits until it holds what `store` has.
    pub async fn agrees(&self, store: &Arc<dyn Store>) {
        until("the follower agrees with the store", async || match store.snapshot().await {
            Ok(snapshot) => self.holds(&snapshot),
            Err(_) => false,
        })
        .await;
    }
}

fn durable() -> RedisServer {
    RedisServer::start(ServerOptions { aof: true, ..ServerOptions::default() }).expect("redis-server")
}

/// Writes until it is in, through whatever stands in the way.
pub async fn insist(store: &Arc<dyn Store>, name: &str, text: &str) -> Outcome {
    for _ in 0..600 {
        match write(store, &[set(name, text)]).await {
            Ok(outcome) => return outcome,
            Err(error) if error.is_passing() => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no write got in");
}

#[test]
fn a_server_that_is_killed_and_comes_back_with_its_file_has_lost_nothing() {
    run(async {
        let mut server = durable();
        let store = store(config(server.address(), "weir"));
        let follower = Follower::start(Arc::clone(&store), 1);
        insist(&store, "service/a", "1").await;
        follower.agrees(&store).await;
        server.kill();
        until("the follower is down", async || follower.told.borrow().downs > 0).await;
        assert!(matches!(store.snapshot().await, Err(StoreError::Unavailable(_))));
        let held = follower.copy.borrow().clone();
        assert!(held.is_some(), "forwarding stays");
        server.restart(true).unwrap();
        insist(&store, "service/a", "2").await;
        follower.agrees(&store).await;
        until("the follower is up", async || follower.told.borrow().up).await;
        assert_eq!(follower.told.borrow().losses, []);
        assert_eq!(texts(&store).await["service/a"], "2");
    });
}

#[test]
fn a_server_that_comes_back_empty_is_refused_until_it_is_put_back() {
    run(async {
        let mut server = redis();
        let store = store(config(server.address(), "weir"));
        let followers: Vec<_> = (0..3).map(|seed| Follower::start(Arc::clone(&store), seed)).collect();
        for at in 0..20 {
            insist(&store, &format!("service/{at}"), "1").await;
        }
        for follower in &followers {
            follower.agrees(&store).await;
        }
        let held = followers[0].copy.borrow().clone().unwrap();
        server.restart(false).unwrap();
        let lost = |loss| (loss, false);
        for follower in &followers {
            until("the alarm", async || follower.told.borrow().losses == [lost(Loss::Vacant)]).await;
        }
        // One careless write into the empty store takes nothing down.
        insist(&store, "service/only", "1").await;
        for follower in &followers {
            until("the alarm", async || follower.told.borrow().losses == [lost(Loss::Vacant), lost(Loss::Origin)])
                .await;
            assert!(follower.holds(&Some(held.clone())), "forwarding stays");
        }
        let written = store.restore(&held, &intent()).await.unwrap();
        for follower in &followers {
            follower.agrees(&store).await;
            let copy = follower.copy.borrow().clone().unwrap();
            assert_eq!((copy.revision, &copy.objects), (written.revision, &held.objects));
        }
    });
}

#[test]
fn a_paused_server_delays_and_a_cut_one_is_noticed() {
    run(async {
        let server = redis();
        let proxy = Proxy::start(server.address()).unwrap();
        let (near, far) = (store(config(server.address(), "weir")), store(config(proxy.address(), "weir")));
        let follower = Follower::start(far, 1);
        insist(&near, "service/a", "1").await;
        follower.agrees(&near).await;
        server.pause();
        let writer = Arc::clone(&near);
        let written = tokio::spawn(async move { insist(&writer, "service/a", "2").await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!written.is_finished(), "a paused server answers nobody");
        server.resume();
        written.await.unwrap();
        follower.agrees(&near).await;
        // Nobody closes a connection whose way is cut: silence has to be noticed.
        proxy.set(Way::Cut);
        until("the follower is down", async || follower.told.borrow().downs > 0 && !follower.told.borrow().up).await;
        insist(&near, "service/a", "3").await;
        proxy.set(Way::Open);
        follower.agrees(&near).await;
        assert_eq!(follower.told.borrow().losses, []);
        assert_eq!(near.history(100).await.unwrap().len(), 3, "each change was made once");
    });
}

#[test]
fn a_write_whose_answer_is_lost_is_made_once() {
    run(async {
        let server = redis();
        let proxy = Proxy::start(server.address()).unwrap();
        let (near, far) = (store(config(server.address(), "weir")), store(config(proxy.address(), "weir")));
        insist(&far, "service/a", "1").await;
        let snapshot = near.snapshot().await.unwrap().unwrap();
        let way = Arc::new(proxy);
        let later = Arc::clone(&way);
        let open = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            later.set(Way::Open);
        });
        // What is decided was read; what is sent then arrives, and its answer does not.
        let decide = |_: &Objects| {
            way.set(Way::NoReplies);
            Ok::<_, Infallible>(vec![set("service/a", "2")])
        };
        let written = far.update(&intent(), decide).await;
        assert!(matches!(written, Ok(Outcome::Changed(..))), "{written:?}");
        open.await.unwrap();
        let history = near.history(100).await.unwrap();
        assert_eq!(history.len(), 2, "made once");
        assert!(history[0].follows(&snapshot.revision));
    });
}

#[test]
fn who_gives_up_on_an_answer_leaves_no_connection_that_owes_it() {
    run(async {
        let server = redis();
        let proxy = Proxy::start(server.address()).unwrap();
        let far = store(config(proxy.address(), "weir"));
        insist(&far, "service/a", "1").await;
        proxy.set(Way::NoReplies);
        // Less than the connection's own time.
        let patience = Duration::from_secs(1);
        assert!(tokio::time::timeout(patience, far.snapshot()).await.is_err(), "nothing comes back");
        proxy.set(Way::Open);
        // On the connection of before, the next answer would be taken for the one that was lost.
        let read = tokio::time::timeout(patience, far.snapshot()).await;
        assert!(matches!(read, Ok(Ok(Some(_)))), "{read:?}");
    });
}

#[test]
fn a_dropped_message_is_repaired_by_the_next_change_or_the_timer() {
    run(async {
        let server = redis();
        let writer = store(config(server.address(), "weir"));
        // Through this proxy only published messages are lost: it swallows what the server sends unasked.
        let deaf = super::deaf::Deaf::start(server.address()).unwrap();
        let follower = Follower::start(store(config(deaf.address(), "weir")), 1);
        insist(&writer, "service/a", "1").await;
        follower.agrees(&writer).await;
        // The next change shows the gap.
        deaf.drop_messages(true);
        insist(&writer, "service/a", "2").await;
        until("the message is dropped", async || deaf.dropped() >= 1).await;
        deaf.drop_messages(false);
        insist(&writer, "service/a", "3").await;
        follower.agrees(&writer).await;
        let counters = follower.told.borrow().counters;
        assert!(counters.resyncs(Resync::Gap) + counters.resyncs(Resync::Timer) >= 1, "{counters:?}");
        // Without a next change the timer does.
        deaf.drop_messages(true);
        let before = follower.told.borrow().counters.resyncs(Resync::Timer);
        insist(&writer, "service/a", "4").await;
        follower.agrees(&writer).await;
        assert_eq!(follower.told.borrow().counters.resyncs(Resync::Timer), before + 1);
        assert_eq!(follower.told.borrow().downs, 0, "and the connection never broke");
    });
}

#[test]
fn a_newer_schema_is_refused_and_what_is_held_stays() {
    run(async {
        let server = redis();
        let store = store(config(server.address(), "weir"));
        let follower = Follower::start(Arc::clone(&store), 1);
        insist(&store, "service/a", "1").await;
        follower.agrees(&store).await;
        let held = follower.copy.borrow().clone();
        server.command("HSET weir:meta schema 2").unwrap();
        let error = store.snapshot().await.unwrap_err();
        assert_eq!(error, StoreError::Schema { found: "2".into() });
        assert!(error.to_string().contains("upgrade weir"), "{error}");
        assert!(matches!(write(&store, &[set("service/a", "2")]).await, Err(StoreError::Schema { .. })));
        // Records, too, on a connection that was made before.
        let put = store.record_put(Put::new(key("a/b"), "1")).await;
        assert!(matches!(put, Err(StoreError::Schema { .. })), "{put:?}");
        assert!(matches!(store.record_get(key("a/b")).await, Err(StoreError::Schema { .. })));
        assert!(matches!(store.record_list(String::new(), None, 9).await, Err(StoreError::Schema { .. })));
        assert!(matches!(store.history(9).await, Err(StoreError::Schema { .. })));
        let fresh = super::rig::store(config(server.address(), "weir"));
        assert!(matches!(fresh.record_get(key("a/b")).await, Err(StoreError::Schema { .. })), "before anything else");
        until("the follower is down", async || follower.told.borrow().downs > 0).await;
        assert!(follower.holds(&held), "forwarding stays");
        server.command("HSET weir:meta schema 1").unwrap();
        insist(&store, "service/a", "2").await;
        follower.agrees(&store).await;
    });
}

/// A server that takes connections and says nothing costs each caller one opening, however many callers there are.
#[test]
fn callers_that_come_together_share_one_opening() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = config(listener.local_addr().unwrap(), "weir");
        (config.connect_timeout, config.answer_timeout) = (Duration::from_millis(300), Duration::from_millis(300));
        let accepted = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&accepted);
        let silent = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::AcqRel);
                held.push(stream);
            }
        });
        let store = store(config);
        let calls = (0..16).map(|_| store.record_get(key("a/b")));
        for answer in futures_util::future::join_all(calls).await {
            assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
        }
        assert_eq!(accepted.load(Ordering::Acquire), 1);
        // Who gives up leaves the opening to whoever comes next; after its end there is another.
        drop(tokio::time::timeout(Duration::from_millis(50), store.record_get(key("a/b"))).await);
        for opened in [2, 3] {
            assert!(matches!(store.record_get(key("a/b")).await, Err(StoreError::Unavailable(_))));
            assert_eq!(accepted.load(Ordering::Acquire), opened);
        }
        silent.abort();
    });
}

/// What a random run does to the server and the ways to it.
async fn trouble(server: &mut RedisServer, proxies: &[Proxy], random: &mut StdRng) {
    let pause = Duration::from_millis(random.random_range(20..400));
    match random.random_range(0..8) {
        0 => server.restart(true).unwrap(),
        1 => {
            server.kill();
            tokio::time::sleep(pause).await;
            server.restart(true).unwrap();
        }
        2 => {
            server.pause();
            tokio::time::sleep(pause).await;
            server.resume();
        }
        _ => {
            let proxy = &proxies[random.random_range(0..proxies.len())];
            proxy.set(if random.random() { Way::Cut } else { Way::NoReplies });
            tokio::time::sleep(pause).await;
            proxy.set(Way::Open);
        }
    }
}

#[test]
fn three_followers_agree_after_two_thousand_writes_with_faults() {
    let seed = std::env::var("WEIR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("WEIR_SEED={seed}");
    run(async move {
        let mut random = StdRng::seed_from_u64(seed);
        let mut server = durable();
        let proxies: Vec<_> = (0..3).map(|_| Proxy::start(server.address()).unwrap()).collect();
        let followers: Vec<_> = proxies
            .iter()
            .enumerate()
            .map(|(at, proxy)| Follower::start(store(config(proxy.address(), "weir")), at as u64))
            .collect();
        let writer = store(config(server.address(), "weir"));
        let done = Arc::new(AtomicBool::new(false));
        let (writes, mut choices) = (2_000u32, StdRng::seed_from_u64(seed ^ 1));
        let (writing, writing_done) = (Arc::clone(&writer), Arc::clone(&done));
        let task = tokio::spawn(async move {
            let mut wanted = std::collections::BTreeMap::new();
            for at in 0..writes {
                let name = format!("service/{}", choices.random_range(0..40));
                insist(&writing, &name, &at.to_string()).await;
                wanted.insert(name, at.to_string());
            }
            writing_done.store(true, Ordering::Release);
            wanted
        });
        let mut emptied = 0;
        let mut troubles = 0;
        while !done.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(random.random_range(50..500))).await;
            trouble(&mut server, &proxies, &mut random).await;
            troubles += 1;
            assert!(!task.is_finished() || done.load(Ordering::Acquire), "the writer failed");
        }
        let wanted = task.await.unwrap();
        // Every write that was confirmed is there: the server kept its file.
        assert_eq!(texts(&writer).await, wanted);
        for follower in &followers {
            follower.agrees(&writer).await;
            assert_eq!(follower.told.borrow().losses, [], "nothing was lost, so nobody says so");
        }
        // And three times the whole store is lost.
        while emptied < 3 {
            let held = followers[emptied].copy.borrow().clone().unwrap();
            server.restart(false).unwrap();
            insist(&writer, "service/careless", &emptied.to_string()).await;
            for follower in &followers {
                until("each loss raises its alarm", async || follower.told.borrow().losses.len() > emptied).await;
                assert!(follower.told.borrow().losses.iter().all(|(_, taken)| !taken));
            }
            writer.restore(&held, &intent()).await.unwrap();
            emptied += 1;
            for at in 0..50 {
                insist(&writer, &format!("service/{at}"), "after").await;
            }
            for follower in &followers {
                follower.agrees(&writer).await;
            }
        }
        let revisions: Vec<_> = followers.iter().map(|f| f.copy.borrow().as_ref().unwrap().revision).collect();
        assert!(revisions.iter().all(|revision| *revision == revisions[0]), "{revisions:?}");
        eprintln!("{writes} writes, {troubles} faults, {emptied} losses, at {}", revisions[0]);
        for follower in &followers {
            eprintln!("{:?}", follower.told.borrow().counters);
        }
    });
}
