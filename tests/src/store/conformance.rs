//! What every place must do, whatever it is made of.

use std::sync::Arc;

use lb_userspace::store::{
    DrainOrder, Key, NodeReport, Notice, Outcome, Revision, Store, StoreError,
    access::{Claim, Commit, Expect, Fence, Put},
    feed::{Feed, RecordFeed, RecordNews},
    follow::{Event, Loss, Times},
    node,
    object::{Change, Digest, Edit, OBJECT_BYTES_MAX},
    write::{Intent, NewText},
};

use super::rig::{SOON, intent, key, set, texts, until, write};

/// Changes that the stores of the factory keep.
pub const HISTORY_MAX: usize = 6;

/// Makes empty stores that keep [`HISTORY_MAX`] changes.
pub trait Factory {
    async fn make(&mut self) -> Arc<dyn Store>;

    /// Whether filling a whole store is worth its time here.
    fn fills(&self) -> bool {
        true
    }
}

/// Runs everything.
pub async fn all(mut factory: impl Factory) {
    macro_rules! check {
        ($($name:ident),* $(,)?) => {
            $(
                eprintln!("  {}", stringify!($name));
                $name(factory.make().await).await;
            )*
        };
    }
    check!(
        nothing_is_there_at_first,
        a_write_is_read_back,
        compare_and_set,
        writers_at_once_lose_nothing,
        the_writer_sees_all_objects_and_may_refuse,
        history_is_bounded,
        any_text_survives,
        limits_change_nothing,
        what_does_not_follow_is_refused,
        a_change_sent_twice_is_made_once,
        news,
        records,
        records_expire,
        record_pages,
        fences,
        fenced_changes,
        nodes_report,
        a_feed_follows,
        a_lost_store_is_put_back,
    );
    if factory.fills() {
        check!(a_full_store_takes_no_more);
    }
}

async fn next(feed: &mut Feed) -> Event {
    tokio::time::timeout(SOON, feed.next()).await.expect("an event")
}

async fn nothing_is_there_at_first(store: Arc<dyn Store>) {
    assert_eq!(store.snapshot().await, Ok(None));
    let since = store.since(Revision::origin(Digest::default())).await.unwrap();
    assert_eq!((since.head, since.changes.len()), (None, 0));
    assert_eq!(store.history(10).await, Ok(Vec::new()));
    assert_eq!(store.record_get(key("a/b")).await, Ok(None));
    assert_eq!(store.record_list(String::new(), None, 10).await, Ok(Vec::new()));
    assert_eq!(store.nodes().await, Ok(Vec::new()));
    assert!(!store.describe().is_empty());
}

async fn a_write_is_read_back(store: Arc<dyn Store>) {
    let Outcome::Changed(written, change) =
        write(&store, &[set("service/a", "1"), set("service/b", "2")]).await.unwrap()
    else {
        panic!("nothing was written")
    };
    assert_eq!((written.revision.number, written.replicated), (1, true));
    let snapshot = store.snapshot().await.unwrap().unwrap();
    assert_eq!((snapshot.revision, snapshot.objects.len()), (written.revision, 2));
    assert!(change.follows(&Revision::origin(snapshot.origin)));
    let second = write(&store, &[(key("service/a"), None)]).await.unwrap().revision().unwrap();
    assert_eq!(second.number, 2);
    assert_eq!(texts(&store).await.into_iter().collect::<Vec<_>>(), [("service/b".into(), "2".into())]);
    let since = store.since(written.revision).await.unwrap();
    assert_eq!(since.head.map(|head| head.revision), Some(second));
    assert!(since.changes.len() == 1 && since.changes[0].follows(&written.revision));
    assert_eq!(since.changes[0].edits, [Edit { key: key("service/a"), before: Some("1".into()), after: None }]);
    let history = store.history(10).await.unwrap();
    assert_eq!(history.iter().map(|change| change.revision.number).collect::<Vec<_>>(), [2, 1], "newest first");
    assert_eq!((&*history[0].author, history.len()), ("test@here", 2));
    assert_eq!(store.history(1).await.unwrap().len(), 1);
    // What is so already is no change.
    let same = write(&store, &[set("service/b", "2"), (key("service/a"), None)]).await.unwrap();
    assert_eq!(same, Outcome::Unchanged(Some(second)));
}

async fn compare_and_set(store: Arc<dyn Store>) {
    let first = write(&store, &[set("service/a", "1")]).await.unwrap().revision().unwrap();
    let second = write(&store, &[set("service/a", "2")]).await.unwrap().revision().unwrap();
    let insist = async |name: String, text: &str| {
        let intent = Intent { expect: Some(name.parse().unwrap()), ..intent() };
        let edits = [set("service/a", text)];
        store.write(&intent, &edits, |_| Ok::<_, String>(())).await.map_err(|error| error.to_string())
    };
    let refused = insist(first.to_string(), "3").await.unwrap_err();
    assert!(refused.contains(&second.to_string()), "says where it stands: {refused}");
    let forked = format!("2-{}", if second.digest.to_string().starts_with('0') { "1" } else { "0" });
    assert!(insist(forked, "3").await.is_err(), "the same number of another history");
    assert_eq!(texts(&store).await["service/a"], "2");
    assert!(insist(second.to_string(), "3").await.is_ok());
    assert!(insist("3".into(), "4").await.is_ok(), "a number alone will do");
}

async fn writers_at_once_lose_nothing(store: Arc<dyn Store>) {
    let (writers, each) = (4, 8);
    let tasks: Vec<_> = (0..writers)
        .map(|_| {
            let store = Arc::clone(&store);
            async move {
                for _ in 0..each {
                    let add = |objects: &lb_userspace::store::Objects| {
                        let count: u32 = objects.get(&key("service/n")).map_or(0, |text| text.parse().unwrap());
                        Ok::<_, String>(vec![set("service/n", &(count + 1).to_string())])
                    };
                    // Under much contention a writer may give up; then nothing was written.
                    while store.update(&intent(), add).await.is_err() {}
                }
            }
        })
        .collect();
    futures_util::future::join_all(tasks).await;
    assert_eq!(texts(&store).await["service/n"], (writers * each).to_string());
    assert_eq!(store.snapshot().await.unwrap().unwrap().revision.number, writers * each);
}

async fn the_writer_sees_all_objects_and_may_refuse(store: Arc<dyn Store>) {
    write(&store, &[set("service/a", "1")]).await.unwrap();
    let refused = store
        .write(&intent(), &[set("service/b", "2")], |objects| {
            assert_eq!(objects.len(), 2);
            Err("two are too many")
        })
        .await;
    assert_eq!(refused.unwrap_err().to_string(), "two are too many");
    assert_eq!(store.snapshot().await.unwrap().unwrap().revision.number, 1);
}

async fn history_is_bounded(store: Arc<dyn Store>) {
    let mut revisions = Vec::new();
    for at in 0..HISTORY_MAX + 3 {
        revisions.push(write(&store, &[set("service/a", &at.to_string())]).await.unwrap().revision().unwrap());
    }
    let history = store.history(1_000).await.unwrap();
    assert_eq!(history.len(), HISTORY_MAX);
    assert!(history.windows(2).all(|pair| pair[0].follows(&pair[1].revision)));
    // What was trimmed is seen to be: the first kept change does not follow.
    let since = store.since(revisions[0]).await.unwrap();
    assert_eq!(since.changes.len(), HISTORY_MAX);
    assert!(since.changes[0].previous.number > revisions[0].number);
    let at = revisions.len() - 3;
    assert!(store.since(revisions[at]).await.unwrap().changes[0].follows(&revisions[at]));
}

async fn any_text_survives(store: Arc<dyn Store>) {
    let odd = "name = \"ä\"\n\t'\\\"\u{0}\u{1f980} %s $1 ]]>\r\n";
    let large = "x".repeat(OBJECT_BYTES_MAX);
    write(&store, &[set("service/odd", odd), set("service/empty", ""), set("service/large", &large)]).await.unwrap();
    let texts = texts(&store).await;
    assert_eq!((&*texts["service/odd"], &*texts["service/empty"]), (odd, ""));
    assert_eq!(texts["service/large"].len(), OBJECT_BYTES_MAX);
    let change = &store.history(1).await.unwrap()[0];
    assert!(change.follows(&change.previous), "its digest survives too");
    store.record_put(Put::new(key("a/odd"), odd)).await.unwrap();
    assert_eq!(&*store.record_get(key("a/odd")).await.unwrap().unwrap().value, odd);
}

async fn limits_change_nothing(store: Arc<dyn Store>) {
    write(&store, &[set("service/a", "1")]).await.unwrap();
    let large = "x".repeat(OBJECT_BYTES_MAX + 1);
    assert!(matches!(write(&store, &[set("service/b", &large)]).await, Err(StoreError::Form(_))));
    assert_eq!(store.snapshot().await.unwrap().unwrap().objects.len(), 1);
    let put = Put::new(key("a/b"), "x".repeat((1 << 20) + 1));
    assert!(matches!(store.record_put(put).await, Err(StoreError::Form(_))));
    assert!(store.record_put(Put::new(key("a/b"), "x").ttl_ms(0)).await.is_err());
    assert_eq!(store.record_get(key("a/b")).await, Ok(None));
}

async fn a_full_store_takes_no_more(store: Arc<dyn Store>) {
    let almost = "x".repeat(OBJECT_BYTES_MAX);
    // 15 of them fit, and a 16th does not with their keys.
    let many: Vec<_> = (0..15).map(|at| set(&format!("service/l{at}"), &almost)).collect();
    write(&store, &many).await.unwrap();
    let full = write(&store, &[set("service/l15", &almost)]).await.unwrap_err();
    assert!(matches!(full, StoreError::Form(_)), "{full}");
    assert_eq!(store.snapshot().await.unwrap().unwrap().objects.len(), 15);
}

async fn what_does_not_follow_is_refused(store: Arc<dyn Store>) {
    write(&store, &[set("service/a", "1")]).await.unwrap();
    let snapshot = store.snapshot().await.unwrap().unwrap();
    let edits = vec![Edit { key: key("service/b"), before: None, after: Some("2".into()) }];
    let change = Change::new(snapshot.revision, "x", 0, "", edits.clone());
    let commit = Commit { expect: Some(snapshot.revision), origin: snapshot.origin, change, reseed: None, fence: None };
    let mut forged = commit.clone();
    forged.change.author = "y".into();
    assert!(matches!(store.commit(forged).await, Err(StoreError::Refused(_))), "another digest");
    let mut elsewhere = commit.clone();
    elsewhere.change = Change::new(Revision::origin(snapshot.origin), "x", 0, "", edits);
    assert!(matches!(store.commit(elsewhere).await, Err(StoreError::Refused(_))), "another place");
    let mut foreign = commit.clone();
    foreign.origin = Digest::new([9; 32]);
    assert!(matches!(store.commit(foreign).await, Err(StoreError::Refused(_))), "another origin");
    let mut empty = commit.clone();
    empty.change = Change::new(snapshot.revision, "x", 0, "", Vec::new());
    assert!(matches!(store.commit(empty).await, Err(StoreError::Refused(_))), "nothing in it");
    let late = Commit {
        expect: None,
        change: Change::new(Revision::origin(snapshot.origin), "x", 0, "", commit.change.edits.clone()),
        ..commit.clone()
    };
    assert_eq!(store.commit(late).await, Err(StoreError::Conflict { have: Some(snapshot.revision) }));
    assert_eq!(store.snapshot().await.unwrap().unwrap(), snapshot, "nothing happened");
    assert!(store.commit(commit).await.is_ok(), "and the right one is taken");
}

async fn a_change_sent_twice_is_made_once(store: Arc<dyn Store>) {
    write(&store, &[set("service/a", "1")]).await.unwrap();
    let snapshot = store.snapshot().await.unwrap().unwrap();
    let edits = vec![Edit { key: key("service/b"), before: None, after: Some("2".into()) }];
    let change = Change::new(snapshot.revision, "x", 0, "", edits);
    let commit = Commit { expect: Some(snapshot.revision), origin: snapshot.origin, change, reseed: None, fence: None };
    let written = store.commit(commit.clone()).await.unwrap();
    assert_eq!(store.commit(commit).await, Err(StoreError::Conflict { have: Some(written.revision) }));
    assert_eq!(store.history(10).await.unwrap().len(), 2);
}

async fn news(store: Arc<dyn Store>) {
    let mut subscription = store.subscribe().await.unwrap();
    let mut heard = async || tokio::time::timeout(SOON, subscription.next()).await.expect("a notice").unwrap();
    let Outcome::Changed(written, change) = write(&store, &[set("service/a", "1")]).await.unwrap() else { panic!() };
    assert_eq!(heard().await, Notice::Changed { revision: written.revision, change: Some(change) });
    store.record_put(Put::new(key("health/a"), "up")).await.unwrap();
    assert_eq!(heard().await, Notice::Record(key("health/a")));
    // A large change is announced without its text.
    let large = write(&store, &[set("service/b", &"x".repeat(200_000))]).await.unwrap().revision().unwrap();
    assert_eq!(heard().await, Notice::Changed { revision: large, change: None });
    let mut records = RecordFeed::new(Arc::clone(&store));
    assert_eq!(records.next().await, RecordNews::Any, "a new subscription has missed everything");
    write(&store, &[set("service/a", "2")]).await.unwrap();
    store.record_put(Put::remove(key("health/a"))).await.unwrap();
    assert_eq!(records.next().await, RecordNews::Key(key("health/a")));
}

/// Writes a record; its version.
async fn put_version(store: &Arc<dyn Store>, put: Put) -> u64 {
    let recorded = store.record_put(put).await.unwrap();
    assert!(recorded.replicated, "places without replicas say so, too");
    recorded.version
}

async fn records(store: Arc<dyn Store>) {
    let put = |text: &str| Put::new(key("lease/a"), text);
    let first = put_version(&store, put("1").expecting(Expect::Absent).claim("node-a", 3)).await;
    let record = store.record_get(key("lease/a")).await.unwrap().unwrap();
    assert_eq!((&*record.value, record.version, record.ttl_ms), ("1", first, None));
    assert_eq!(record.claim.map(|claim| (claim.holder, claim.epoch)), Some(("node-a".into(), 3)));
    assert!(record.age_ms < 60_000);
    let absent = store.record_put(put("2").expecting(Expect::Absent)).await;
    assert_eq!(absent, Err(StoreError::RecordConflict { have: Some(first) }));
    let second = put_version(&store, put("2").expecting(Expect::Version(first))).await;
    assert!(second > first);
    let old = store.record_put(put("3").expecting(Expect::Version(first))).await;
    assert_eq!(old, Err(StoreError::RecordConflict { have: Some(second) }));
    let gone = store.record_put(Put::new(key("lease/none"), "x").expecting(Expect::Version(1))).await;
    assert_eq!(gone, Err(StoreError::RecordConflict { have: None }));
    let record = store.record_get(key("lease/a")).await.unwrap().unwrap();
    assert_eq!((&*record.value, record.claim), ("2", None), "a write replaces all of it");
    store.record_put(Put::remove(key("lease/a")).expecting(Expect::Version(second))).await.unwrap();
    assert_eq!(store.record_get(key("lease/a")).await, Ok(None));
    let again = put_version(&store, put("4").expecting(Expect::Absent)).await;
    assert!(again > second, "a version does not come back with the record");
    // Records leave the revision alone.
    assert_eq!(store.snapshot().await, Ok(None));
}

async fn records_expire(store: Arc<dyn Store>) {
    store.record_put(Put::new(key("lease/short"), "1").ttl_ms(300)).await.unwrap();
    store.record_put(Put::new(key("lease/long"), "1").ttl_ms(600_000)).await.unwrap();
    let ttl_ms = store.record_get(key("lease/long")).await.unwrap().unwrap().ttl_ms.unwrap();
    assert!((500_000..=600_000).contains(&ttl_ms), "{ttl_ms}");
    until("the record expires", async || store.record_get(key("lease/short")).await == Ok(None)).await;
    let left = store.record_list("lease/".into(), None, 10).await.unwrap();
    assert_eq!(left.iter().map(|record| record.key.as_str()).collect::<Vec<_>>(), ["lease/long"]);
    let put = Put::new(key("lease/short"), "2").expecting(Expect::Absent).ttl_ms(600_000);
    assert!(store.record_put(put).await.is_ok(), "what expired is absent");
    // Writing without a time to live takes it away.
    store.record_put(Put::new(key("lease/long"), "2")).await.unwrap();
    assert_eq!(store.record_get(key("lease/long")).await.unwrap().unwrap().ttl_ms, None);
}

async fn record_pages(store: Arc<dyn Store>) {
    for name in ["b/1", "a/2", "a/1", "a/10", "ab/1", "b/2"] {
        store.record_put(Put::new(key(name), name)).await.unwrap();
    }
    let list = async |prefix: &str, after: Option<Key>, limit: usize| -> Vec<String> {
        let records = store.record_list(prefix.into(), after, limit).await.unwrap();
        records.iter().map(|record| record.key.to_string()).collect()
    };
    assert_eq!(list("a/", None, 10).await, ["a/1", "a/10", "a/2"]);
    assert_eq!(list("a/", None, 2).await, ["a/1", "a/10"]);
    assert_eq!(list("a/", Some(key("a/10")), 2).await, ["a/2"]);
    assert_eq!(list("", None, 10).await.len(), 6);
    assert_eq!(list("b/", Some(key("a/1")), 10).await, ["b/1", "b/2"]);
    assert!(list("c", None, 10).await.is_empty());
    let all = store.record_all("").await.unwrap();
    assert!(all.windows(2).all(|pair| pair[0].key < pair[1].key));
}

async fn fences(store: Arc<dyn Store>) {
    let master = || key("orchestrator/master");
    let act = |holder: &str, epoch: u64| Put::new(key("dns/zone"), "1").fence(master(), holder, epoch);
    assert_eq!(store.record_put(act("a", 1)).await, Err(StoreError::Fenced), "nobody holds it");
    store.record_put(Put::new(master(), "").claim("a", 1)).await.unwrap();
    assert!(store.record_put(act("a", 1)).await.is_ok());
    for (holder, epoch) in [("a", 2), ("b", 1), ("", 1), ("a", 0)] {
        assert_eq!(store.record_put(act(holder, epoch)).await, Err(StoreError::Fenced), "{holder} {epoch}");
    }
    store.record_put(Put::new(master(), "").claim("b", 2).ttl_ms(300)).await.unwrap();
    assert_eq!(store.record_put(act("a", 1)).await, Err(StoreError::Fenced), "a new master");
    until("the master's lease ends", async || store.record_put(act("b", 2)).await == Err(StoreError::Fenced)).await;
}

async fn fenced_changes(store: Arc<dyn Store>) {
    let master = || key("orchestrator/master");
    let act = async |holder: &str, epoch, text: &str| {
        let claim = Claim { holder: holder.into(), epoch };
        let intent = Intent { fence: Some(Fence { key: master(), claim }), ..intent() };
        let edits = [set("service/a", text)];
        store.write(&intent, &edits, |_| Ok::<_, String>(())).await.map_err(|error| error.to_string())
    };
    let fenced = StoreError::Fenced.to_string();
    assert_eq!(act("a", 1, "0").await.unwrap_err(), fenced, "nobody holds it");
    store.record_put(Put::new(master(), "").claim("a", 1)).await.unwrap();
    let first = act("a", 1, "1").await.unwrap().revision().unwrap();
    for (holder, epoch) in [("a", 2), ("b", 1)] {
        assert_eq!(act(holder, epoch, "2").await.unwrap_err(), fenced, "{holder} {epoch}");
    }
    // The revision is the one that the old master saw, and yet it is not its turn any more.
    store.record_put(Put::new(master(), "").claim("b", 2).ttl_ms(300)).await.unwrap();
    assert_eq!(act("a", 1, "2").await.unwrap_err(), fenced, "a new master");
    assert_eq!(store.snapshot().await.unwrap().unwrap().revision, first);
    let mut at = 1;
    until("the master's lease ends", async || {
        at += 1;
        act("b", 2, &at.to_string()).await.is_err_and(|error| error == fenced)
    })
    .await;
}

async fn nodes_report(store: Arc<dyn Store>) {
    let revision = write(&store, &[set("service/a", "1")]).await.unwrap().revision();
    let report = |node: &str, lease_ms: u64, outcome: node::Outcome| NodeReport {
        node: node.into(),
        lease_ms,
        revision,
        outcome,
        applied: revision,
        version: "0.1.0".into(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        ready: true,
        draining: false,
        metrics: None,
        drains: Vec::new(),
    };
    store.report(&report("b", 600_000, node::Outcome::Refused("no room".into()))).await.unwrap();
    store.report(&report("a", 300, node::Outcome::Applied)).await.unwrap();
    let nodes = store.nodes().await.unwrap();
    assert_eq!(nodes.iter().map(|node| &*node.report.node).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(nodes[1].report.outcome, node::Outcome::Refused("no room".into()));
    assert!(nodes[1].live);
    until("the silent node falls out of its lease", async || !store.nodes().await.unwrap()[0].live).await;
    assert!(store.nodes().await.unwrap()[1].live);
    assert!(store.report(&report("no name", 1, node::Outcome::Applied)).await.is_err());
    // One of them is taken out, and back in.
    let order = DrainOrder { author: "op@here".into(), message: "disk".into() };
    assert!(store.drain_node("a", Some(&order)).await.unwrap().is_some());
    assert!(store.is_drained("a").await.unwrap() && !store.is_drained("b").await.unwrap());
    assert_eq!(store.drain_orders().await.unwrap(), [("a".to_owned(), order)].into());
    assert!(store.drain_node("a", None).await.unwrap().is_some());
    assert_eq!(store.drain_node("a", None).await.unwrap(), None, "there is nothing to withdraw");
    assert!(store.drain_orders().await.unwrap().is_empty());
}

async fn a_feed_follows(store: Arc<dyn Store>) {
    let mut feed = Feed::new(Arc::clone(&store), None, Times::default(), 1);
    assert_eq!(next(&mut feed).await, Event::Vacant);
    assert_eq!(next(&mut feed).await, Event::Up);
    write(&store, &[set("service/a", "1")]).await.unwrap();
    assert!(matches!(next(&mut feed).await, Event::Snapshot { snapshot, .. } if snapshot.revision.number == 1));
    for number in 2..5 {
        write(&store, &[set("service/a", &number.to_string())]).await.unwrap();
        assert!(matches!(next(&mut feed).await, Event::Delta(change) if change.revision.number == number));
    }
    assert_eq!(feed.copy(), store.snapshot().await.unwrap().as_ref());
    // Another reader begins where this one stands, and one that held a copy goes on.
    write(&store, &[set("service/b", "1")]).await.unwrap();
    let mut other = Feed::new(Arc::clone(&store), feed.copy().cloned(), Times::default(), 2);
    assert!(matches!(next(&mut other).await, Event::Delta(change) if change.revision.number == 5));
    assert_eq!(next(&mut other).await, Event::Up);
}

async fn a_lost_store_is_put_back(store: Arc<dyn Store>) {
    let edits: [NewText; 2] = [set("service/a", "1"), set("service/b", "2")];
    write(&store, &edits).await.unwrap();
    let copy = store.snapshot().await.unwrap().unwrap();
    let not_lost = store.restore(&copy, &intent()).await;
    assert!(matches!(not_lost, Err(StoreError::Refused(_))), "{not_lost:?}");
    // A copy of another store stands for a store that was begun anew.
    let mut ours = copy.clone();
    ours.origin = Digest::new([7; 32]);
    ours.revision = Revision { number: 41, digest: Digest::new([8; 32]) };
    ours.objects = [(key("service/ours"), "3".into())].into();
    let mut feed = Feed::new(Arc::clone(&store), Some(ours.clone()), Times::default(), 1);
    let event = next(&mut feed).await;
    assert!(matches!(event, Event::HistoryLost { loss: Loss::Origin, taken: false, .. }), "{event:?}");
    assert_eq!((next(&mut feed).await, feed.copy()), (Event::Up, Some(&ours)), "forwarding stays");
    let written = store.restore(&ours, &intent()).await.unwrap();
    assert_eq!(written.revision.number, 42);
    assert!(matches!(next(&mut feed).await, Event::Delta(change) if change.revision == written.revision));
    assert!(feed.is_up());
    let snapshot = store.snapshot().await.unwrap().unwrap();
    assert_eq!((snapshot.origin, &snapshot.objects), (ours.origin, &ours.objects));
    assert_eq!(store.history(10).await.unwrap().len(), 1, "history begins with it");
    write(&store, &[set("service/new", "1")]).await.unwrap();
    assert!(matches!(next(&mut feed).await, Event::Delta(change) if change.revision.number == 43));
    assert_eq!(feed.copy(), store.snapshot().await.unwrap().as_ref());
}
