//! The conformance suite of a place that is read as a store and written past it: a file.
//!
//! What readers need must be as anywhere else ([`super::conformance`]); the rest is refused, and each refusal is asked for here.

use std::{path::PathBuf, sync::Arc};

use lb_userspace::store::{
    FileStore, Notice, Revision, Store, StoreError,
    access::{Commit, Put},
    feed::Feed,
    follow::{Event, Times},
    object::{Change, Digest, Edit},
    watched::WatchedFile,
};
use tempfile::TempDir;

use super::rig::{SOON, intent, key, run, set, texts};

const NODE: &str = "[node]\ninterfaces = [\"eth0\"]\n\n";

/// A file that somebody edits.
struct File {
    folder: TempDir,
    store: Arc<dyn Store>,
}

impl File {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(WatchedFile::new(folder.path().join("weir.toml")).unwrap());
        Self { folder, store }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("weir.toml")
    }

    /// Saves a file with these services, each with its port.
    fn save(&self, services: &[(&str, u16)]) {
        let text = services.iter().map(|(name, port)| service(name, *port)).collect::<Vec<_>>().join("\n");
        self.replace(&format!("{NODE}{text}"));
    }

    /// As editors do: the old text or the new one is there, never a part.
    fn replace(&self, text: &str) {
        FileStore::new(self.path()).replace(text).unwrap();
    }
}

fn service(name: &str, port: u16) -> String {
    format!("[[service]]\nname = \"{name}\"\nport = {port}\n")
}

async fn next(feed: &mut Feed) -> Event {
    tokio::time::timeout(SOON, feed.next()).await.expect("an event")
}

#[test]
fn what_is_saved_is_read_under_a_revision_that_follows() {
    run(async {
        let file = File::new();
        let store = &file.store;
        assert_eq!(store.snapshot().await, Ok(None), "there is no file yet");
        let since = store.since(Revision::origin(Digest::default())).await.unwrap();
        assert_eq!((since.head, since.changes.len()), (None, 0));
        assert!(store.describe().contains("weir.toml"));
        file.save(&[("a", 1), ("b", 2)]);
        let first = store.snapshot().await.unwrap().unwrap();
        assert_eq!((first.revision.number, texts(store).await["service/b"].as_str()), (1, &*service("b", 2)));
        file.save(&[("b", 2), ("a", 1)]);
        assert_eq!(store.snapshot().await.unwrap().unwrap(), first, "the same services are the same revision");
        file.save(&[("b", 3)]);
        let second = store.snapshot().await.unwrap().unwrap();
        assert_eq!((second.revision.number, second.origin, second.objects.len()), (2, first.origin, 1));
        let since = store.since(first.revision).await.unwrap();
        assert_eq!(since.head.map(|head| head.revision), Some(second.revision));
        assert!(since.changes.len() == 1 && since.changes[0].follows(&first.revision));
        let edits = [
            Edit { key: key("service/a"), before: Some(service("a", 1).into()), after: None },
            Edit { key: key("service/b"), before: Some(service("b", 2).into()), after: Some(service("b", 3).into()) },
        ];
        assert_eq!(since.changes[0].edits, edits);
        // Another process that opens it counts for itself, and says so by its origin.
        let other = WatchedFile::new(file.path()).unwrap().snapshot().await.unwrap().unwrap();
        assert!(other.origin != second.origin && other.objects == second.objects);
    });
}

#[test]
fn news_of_each_save() {
    run(async {
        let file = File::new();
        file.save(&[("a", 1)]);
        let first = file.store.snapshot().await.unwrap().unwrap();
        let mut subscription = file.store.subscribe().await.unwrap();
        let mut heard = async || tokio::time::timeout(SOON, subscription.next()).await.expect("a notice").unwrap();
        file.save(&[("a", 2)]);
        let Notice::Changed { revision, change: Some(change) } = heard().await else { panic!() };
        assert!(change.revision == revision && change.follows(&first.revision));
        // Saved as it was, it is no news; the next one is.
        file.save(&[("a", 2)]);
        file.save(&[("a", 3)]);
        assert!(matches!(heard().await, Notice::Changed { revision, .. } if revision.number == 3));
        file.replace("[[service]\n");
        assert_eq!(heard().await, Notice::Missed, "whoever asks is told what is wrong");
        assert!(matches!(file.store.snapshot().await, Err(StoreError::Broken(why)) if why.contains("weir.toml")));
    });
}

#[test]
fn a_feed_follows_and_stays_with_what_it_has() {
    run(async {
        let file = File::new();
        let mut feed = Feed::new(Arc::clone(&file.store), None, Times::default(), 1);
        assert_eq!(next(&mut feed).await, Event::Vacant);
        assert_eq!(next(&mut feed).await, Event::Up);
        file.save(&[("a", 1)]);
        assert!(matches!(next(&mut feed).await, Event::Snapshot { snapshot, .. } if snapshot.revision.number == 1));
        file.save(&[("a", 2), ("b", 1)]);
        assert!(matches!(next(&mut feed).await, Event::Delta(change) if change.revision.number == 2));
        let held = feed.copy().cloned();
        assert_eq!(held, file.store.snapshot().await.unwrap());
        // A file that is none, or is away, takes nothing down.
        file.replace("nonsense");
        assert!(matches!(next(&mut feed).await, Event::Down(why) if why.contains("weir.toml")));
        assert_eq!(feed.copy(), held.as_ref());
        file.save(&[("b", 1)]);
        let deltas = async {
            loop {
                if matches!(feed.next().await, Event::Delta(change) if change.revision.number == 3) {
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, deltas).await.expect("the change after the repair");
    });
}

#[test]
fn what_a_file_cannot_do_is_refused() {
    run(async {
        let file = File::new();
        file.save(&[("a", 1)]);
        let store = &file.store;
        let snapshot = store.snapshot().await.unwrap().unwrap();
        let unsupported = |error: StoreError| matches!(error, StoreError::Unsupported(_)) && !error.is_passing();
        // No compare-and-set, not even on the revision that is there.
        let edits = vec![Edit { key: key("service/b"), before: None, after: Some(service("b", 1).into()) }];
        let change = Change::new(snapshot.revision, "x", 0, "", edits);
        let (expect, origin) = (Some(snapshot.revision), snapshot.origin);
        let commit = Commit { expect, origin, change, reseed: None, fence: None };
        assert!(unsupported(store.commit(commit).await.unwrap_err()));
        let written = store.write(&intent(), &[set("service/b", "x")], |_| Ok::<_, String>(())).await;
        assert!(written.unwrap_err().to_string().contains("a file is written by editors"));
        assert_eq!(store.snapshot().await.unwrap(), Some(snapshot), "nothing happened");
        // No history, and no records: no leases, reports or health.
        assert!(unsupported(store.history(1).await.unwrap_err()));
        assert!(unsupported(store.record_get(key("a/b")).await.unwrap_err()));
        assert!(unsupported(store.record_put(Put::new(key("a/b"), "1")).await.unwrap_err()));
        assert!(unsupported(store.record_list(String::new(), None, 1).await.unwrap_err()));
        assert!(unsupported(store.nodes().await.unwrap_err()));
    });
}
