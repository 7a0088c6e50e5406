//! Changes against a store in memory.

use super::{super::*, *};
use crate::store::{
    Key,
    edit::{self, BackendChange, NewBackend, Setting, Target},
    memory::MemoryStore,
    node::{NodeReport, Outcome as NodeOutcome},
};

const LOCAL: &str = "[node]\ninterface = \"eth0\"\n[node.limits]\nservices_max = 2\n[store]\nkind = \"redis\"\n\
                     url = \"redis://127.0.0.1:6379\"\n";

fn shared() -> Shared {
    Shared { store: Arc::new(MemoryStore::default()), local: LOCAL.into(), file_name: "weir.toml".into() }
}

fn settings(words: &str) -> Vec<Setting> {
    words.split(' ').map(|word| word.parse().unwrap()).collect()
}

async fn create(shared: &Shared, args: &WriteArgs, name: &str, vip: &str) -> anyhow::Result<Change> {
    let settings = settings(&format!("vip={vip} port=80 forward=dsr"));
    let backends: Vec<NewBackend> = vec!["10.0.0.11".parse().unwrap()];
    make(shared, args, "create", |objects| edit::create_service(objects, name, &settings, &backends)).await
}

fn failure(result: anyhow::Result<Change>) -> Failure {
    result.unwrap_err().downcast().unwrap()
}

fn target() -> Target {
    Target { service: "web".into(), address: [10, 0, 0, 11].into(), port: None }
}

#[tokio::test]
async fn a_change_is_checked_stored_and_told() {
    let shared = shared();
    let args = WriteArgs { author: Some("op@lb1".into()), ..WriteArgs::default() };
    let made = create(&shared, &args, "web", "192.0.2.1").await.unwrap();
    assert_eq!((made.outcome, made.revision.unwrap().number), ("applied", 1));
    assert_eq!(made.changes, ["service web: added, 192.0.2.1:80/tcp, dsr, maglev(65537), 1 backend"]);

    let weight = BackendChange { weight: Some(7), ..BackendChange::default() };
    let change = async |args: &WriteArgs| {
        make(&shared, args, "weight", |objects| edit::change_backend(objects, &target(), weight)).await
    };
    let dry = change(&WriteArgs { dry_run: true, ..args.clone() }).await.unwrap();
    assert_eq!((dry.outcome, dry.revision.unwrap().number), ("dry-run", 1));
    assert!(
        dry.unified.starts_with("--- service/web\n+++ service/web\n@@ ") && dry.unified.ends_with("\n+weight = 7\n"),
        "{}",
        dry.unified
    );
    assert_eq!(shared.store.history(9).await.unwrap().len(), 1, "nothing was written");
    let made = change(&args).await.unwrap();
    assert_eq!(made.changes, ["service web: backend 10.0.0.11:80 weight 1 -> 7"]);
    let again = change(&args).await.unwrap();
    assert_eq!((again.outcome, again.revision, again.changes.len()), ("unchanged", made.revision, 0));
    let history = shared.store.history(9).await.unwrap();
    assert_eq!((&*history[0].author, &*history[0].message), ("op@lb1", "weight"));
    assert!(words(&made, false).starts_with("stored as revision 2-"), "{}", words(&made, false));
}

#[tokio::test]
async fn what_would_be_invalid_changes_nothing() {
    let (shared, args) = (shared(), WriteArgs::default());
    create(&shared, &args, "web", "192.0.2.1").await.unwrap();
    let twice = failure(create(&shared, &args, "shop", "192.0.2.1").await);
    assert_eq!(twice.exit, Exit::ConfigInvalid);
    assert_eq!((&*twice.diagnostics[0].code, &*twice.diagnostics[0].file), ("duplicate-service", "service/web"));
    create(&shared, &args, "dns", "192.0.2.2").await.unwrap();
    let limit = failure(create(&shared, &args, "more", "192.0.2.3").await);
    assert_eq!(&*limit.diagnostics[0].code, "limit-services", "the node's own limits hold");
    let made = |result| failure(result).exit;
    assert_eq!(made(make(&shared, &args, "", |o| edit::delete_service(o, "nope")).await), Exit::NotFound);
    assert_eq!(made(create(&shared, &args, "web", "192.0.2.9").await), Exit::Refused);
    let expect = WriteArgs { expect_rev: Some("1".parse().unwrap()), ..args.clone() };
    assert_eq!(made(make(&shared, &expect, "", |o| edit::delete_service(o, "web")).await), Exit::Refused);
    let dry = WriteArgs { dry_run: true, ..expect };
    assert_eq!(made(make(&shared, &dry, "", |o| edit::delete_service(o, "web")).await), Exit::Refused);
    assert_eq!(shared.store.snapshot().await.unwrap().unwrap().revision.number, 2);
}

/// An object that was written past weir does not stand in the way of the command that repairs it.
#[tokio::test]
async fn what_is_broken_can_be_repaired() {
    let (shared, args) = (shared(), WriteArgs::default());
    let broken = (Key::new("service/web").unwrap(), Some("[[service]]\nname = 1\n".into()));
    shared.store.write(&Intent::default(), &[broken], |_| Ok::<(), ()>(())).await.unwrap();
    assert_eq!(failure(create(&shared, &args, "dns", "192.0.2.2").await).exit, Exit::ConfigInvalid);
    let made = make(&shared, &args, "", |objects| edit::delete_service(objects, "web")).await.unwrap();
    assert_eq!((made.outcome, made.changes), ("applied", vec!["service/web: removed".to_owned()]));
}

#[tokio::test]
async fn waiting_ends_when_the_nodes_have_it_and_names_those_that_do_not() {
    let shared = shared();
    let report = |node: &str, applied: Option<Revision>, outcome, lease_ms| NodeReport {
        lease_ms,
        revision: applied,
        ..wait::tests::node(node, applied, outcome, true).report
    };
    shared.store.report(&report("a", None, NodeOutcome::Applied, 60_000)).await.unwrap();
    shared.store.report(&report("b", None, NodeOutcome::Applied, 60_000)).await.unwrap();
    let agents = {
        let store = Arc::clone(&shared.store);
        tokio::spawn(async move {
            let head = loop {
                if let Some(snapshot) = store.snapshot().await.unwrap() {
                    break snapshot.revision;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            store.report(&report("a", Some(head), NodeOutcome::Applied, 60_000)).await.unwrap();
            // The other one dies: its lease ends.
            store.report(&report("b", None, NodeOutcome::Applied, 1)).await.unwrap();
        })
    };
    let args = WriteArgs { wait: Some(60), ..WriteArgs::default() };
    let made = create(&shared, &args, "web", "192.0.2.1").await.unwrap();
    agents.await.unwrap();
    let nodes = made.nodes.clone().unwrap();
    assert_eq!(
        (&*nodes.applied, &*nodes.lost, nodes.exit()),
        (&["a".to_owned()][..], &["b".to_owned()][..], Exit::TimedOut)
    );
    assert!(words(&made, false).contains("fell out of their lease meanwhile: b"), "{}", words(&made, false));

    let late = WriteArgs { wait: Some(0), ..args };
    let made = create(&shared, &late, "dns", "192.0.2.2").await.unwrap();
    assert_eq!(made.nodes.unwrap().late, ["a"], "nobody reports any more");
}

#[tokio::test(start_paused = true)]
async fn waiting_for_nobody_is_no_success() {
    let (shared, args) = (shared(), WriteArgs { wait: Some(60), ..WriteArgs::default() });
    let made = create(&shared, &args, "web", "192.0.2.1").await.unwrap();
    assert_eq!(made.nodes.as_ref().unwrap().exit(), Exit::TimedOut);
    assert!(words(&made, false).contains("no node is alive: nobody has applied 1-"), "{}", words(&made, false));
}

#[test]
fn the_author_is_known() {
    assert!(author().contains('@'));
}
