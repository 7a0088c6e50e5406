//! The event loop on a store: what is written there reaches the maps, what is wrong does not, and a node that joins knows owners.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lb_core::abi::ring::State;

use super::{
    follow,
    loop_scene::{Scene, all_up, scrape, secrets, slots, until},
    reload,
};
use crate::{
    api::{
        AdminChange, ApplyRequest, ReloadOutcome, ServiceChange, Severity,
        client::{Client, ClientError},
    },
    dataplane::{Dataplane as _, fake::FakeDataplane},
    health::shared::{ASSIGNMENT, Assignment, BEATS, Beat, HEALTH, Health, UnixMs, name},
    model::{AdminState, Incremental},
    plan::MapSizes,
    store::{
        DrainOrder, Key, NodeStatus, Objects, Store,
        access::Put,
        document::document,
        memory::MemoryStore,
        node::Outcome,
        write::{Intent, NewText},
    },
};

const STORE: &str = "[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1:6379\"\n";

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

/// The file of a node without its services, which `scene.text` begins with.
fn local(scene: &Scene) -> String {
    let text = scene.text(&[]);
    let (node, _) = text.split_once("[[service]]").unwrap();
    format!("{node}{STORE}")
}

/// The service of `scene.text` as an object.
fn service(scene: &Scene, backends: &[(u8, u16)]) -> String {
    let text = scene.text(backends);
    let (_, service) = text.split_once("[[service]]").unwrap();
    format!("[[service]]{service}")
}

async fn put(store: &Arc<dyn Store>, edits: &[(&str, Option<String>)]) {
    let edits: Vec<NewText> = edits.iter().map(|(name, text)| (key(name), text.as_deref().map(Into::into))).collect();
    store.write(&Intent::default(), &edits, |_| Ok::<(), String>(())).await.unwrap();
}

/// A scene whose agent follows a store, which holds its service of two backends.
async fn staged() -> (Scene, Arc<dyn Store>) {
    let scene = Scene::new().await;
    scene.write(&local(&scene));
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    put(&store, &[("service/web", Some(service(&scene, &[(2, 1), (3, 1)])))]).await;
    (scene, store)
}

/// Backends that are configured, without those that leave.
async fn configured(client: &Client) -> usize {
    client.backends().await.unwrap().iter().filter(|b| !b.leaving).count()
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_written_reaches_the_maps_and_what_is_wrong_does_not() {
    let (scene, store) = staged().await;
    scene
        .run_with(None, Some(Arc::clone(&store)), async |client, metrics| {
            all_up(&client).await;
            put(&store, &[("service/web", Some(service(&scene, &[(2, 1), (3, 3)])))]).await;
            let heavier = |s: &Vec<u32>| s[1] > s[0] * 2;
            until("the new weight", async || slots(&client).await, heavier).await;
            let applied = |n: u64| {
                move |s: &crate::api::Status| {
                    s.store
                        .as_ref()
                        .is_some_and(|s| s.applied.as_ref().is_some_and(|a| a.starts_with(&format!("{n}-"))))
                }
            };
            until("revision 2", async || client.status().await.unwrap(), applied(2)).await;
            // A text that is none changes nothing, and both sides say so.
            put(&store, &[("service/web", Some("[[service]]\nname = 1\n".into()))]).await;
            let refused = |s: &crate::api::Status| s.last_reload.outcome == ReloadOutcome::Refused;
            let status = until("the refusal", async || client.status().await.unwrap(), refused).await;
            let errors = status.last_reload.diagnostics.iter().filter(|d| d.severity == Severity::Error);
            let places: Vec<(&str, u32)> = errors.map(|d| (d.file.as_str(), d.line)).collect();
            assert!(places.contains(&("service/web", 2)), "{places:?}");
            let shown = status.store.unwrap();
            assert!(shown.newest.unwrap().starts_with("3-") && shown.lag == 1 && shown.up);
            let reported = until(
                "the report",
                async || store.nodes().await.unwrap(),
                |nodes| nodes.iter().any(|n| n.report.revision.is_some_and(|r| r.number == 3)),
            )
            .await;
            let report = &reported[0].report;
            assert!(matches!(&report.outcome, Outcome::Refused(why) if why.contains("error")), "{report:?}");
            assert_eq!(report.applied.unwrap().number, 2);
            assert!(reported[0].live && report.ready);
            // The next one is taken.
            put(&store, &[("service/web", Some(service(&scene, &[(3, 1)])))]).await;
            until("one backend", async || configured(&client).await, |n| *n == 1).await;
            until("revision 4", async || client.status().await.unwrap(), applied(4)).await;
            let text = scrape(&metrics, "/metrics").await;
            for line in ["weir_store_up 1", "weir_store_lag 0", "weir_store_revision 4"] {
                assert!(text.contains(line), "{line} is missing");
            }
            assert!(text.contains("weir_store_propagation_seconds_count{stage=\"received_to_applied\"} 2"), "{text}");
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_node_that_is_taken_out_says_so_and_forwards_as_before() {
    let (scene, store) = staged().await;
    scene
        .run_with(None, Some(Arc::clone(&store)), async |client, _| {
            all_up(&client).await;
            let settled = slots(&client).await;
            let order = DrainOrder { author: "op".into(), message: String::new() };
            for (order, draining) in [(Some(&order), true), (None, false)] {
                store.drain_node("n", order).await.unwrap();
                let said = |nodes: &Vec<NodeStatus>| nodes.iter().any(|n| n.report.draining == draining && n.live);
                until("the report", async || store.nodes().await.unwrap(), said).await;
                assert_eq!(slots(&client).await, settled);
            }
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn what_the_store_holds_is_not_changed_on_a_node() {
    let scene = Scene::new().await;
    scene.write(&local(&scene));
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    put(&store, &[("service/web", Some(service(&scene, &[(2, 1)])))]).await;
    scene
        .run_with(None, Some(Arc::clone(&store)), async |client, _| {
            let name = format!("10.0.0.2:{}", scene.one.port);
            let drain = AdminChange { admin_state: Some(AdminState::Drain), ..AdminChange::default() };
            let set = ServiceChange { set: Some("algo=random_two".into()), ..ServiceChange::default() };
            let apply = ApplyRequest { text: Some(scene.text(&[(2, 1)])), file: None };
            let answers = [
                client.admin("web", &name, drain).await.map(drop),
                client.set("web", &set).await.map(drop),
                client.config_apply(&apply).await.map(drop),
            ];
            for answer in answers {
                match answer {
                    Err(ClientError::Refused { status: 409, error }) => {
                        assert!(error.hint.unwrap().contains("--config FILE"));
                    }
                    other => panic!("{other:?}"),
                }
            }
            // The node's own file is its own.
            client.config_apply(&ApplyRequest { text: None, file: None }).await.unwrap();
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_store_that_is_away_is_stood_in_for_by_the_last_good_copy() {
    let scene = Scene::new().await;
    scene.write(&local(&scene));
    let memory = MemoryStore::default();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    put(&store, &[("service/web", Some(service(&scene, &[(2, 1), (3, 1)])))]).await;
    scene
        .run_with(None, Some(Arc::clone(&store)), async |client, _| {
            all_up(&client).await;
            let kept = || follow::keep::load(&scene.path("store.json")).unwrap().map(|copy| copy.revision.number);
            until("the copy", async || kept(), |number| *number == Some(1)).await;
            // The store loses everything: the node stays with what it has, and says so.
            memory.wipe();
            let lost = |s: &crate::api::Status| s.store.as_ref().is_some_and(|s| s.history_lost.is_some());
            until("the alarm", async || client.status().await.unwrap(), lost).await;
            assert_eq!(configured(&client).await, 2);
        })
        .await;
    // A start with an empty store: the copy is in force.
    scene
        .run_with(None, Some(Arc::clone(&store)), async |client, _| {
            assert_eq!(configured(&client).await, 2);
            // Put back, it goes on where it was.
            let copy = follow::keep::load(&scene.path("store.json")).unwrap().unwrap();
            store.restore(&copy, &Intent::default()).await.unwrap();
            put(&store, &[("service/web", Some(service(&scene, &[(3, 1)])))]).await;
            until("the change", async || configured(&client).await, |n| *n == 1).await;
            let status = client.status().await.unwrap().store.unwrap();
            assert!(status.history_lost.is_none() && status.losses > 0, "{status:?}");
        })
        .await;
}

/// State of each slot of the only service, and its owner by address.
fn owners(data: &FakeDataplane) -> Vec<(State, Option<IpAddr>)> {
    let (_, service) = data.present().services().next().expect("a service");
    let name = |id: u32| {
        let found = service.backends.iter().find(|b| b.id == id);
        found.map(|b| crate::plan::wanted::address(b.key.addr))
    };
    let slot = |slot| {
        let (owner, state) = service.window.at(slot);
        (state, name(owner))
    };
    (0..251).map(slot).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn a_node_that_joins_inside_a_window_has_the_owners_of_one_that_lived_through_the_change() {
    let scene = Scene::new().await;
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let steps: [&[(u8, u16)]; 3] =
        [&[(2, 1), (3, 1), (4, 1)], &[(2, 1), (3, 1), (4, 1), (5, 1)], &[(2, 2), (3, 1), (5, 1)]];
    let texts = steps.map(|backends| {
        service(&scene, backends).replacen("[service.health_check]", "window = \"10m\"\n[service.health_check]", 1)
    });
    let (file, mut incremental) = (local(&scene), Incremental::default());
    let config = |incremental: &mut Incremental, objects: &Objects| {
        let document = document("weir.toml", file.as_str(), objects);
        let leases = Default::default();
        reload::check(incremental, reload::Input::Shared { document: &document, leases: &leases }, "n").expect("good").0
    };
    let sizes = |config: &crate::model::Config| MapSizes::of(&config.node.limits);
    let all_up = |config: &crate::model::Config| crate::plan::wanted(config, &|_, _| Some(true), &|_| None);

    // One node lives through every step.
    let mut lived: Option<FakeDataplane> = None;
    for text in &texts {
        put(&store, &[("service/web", Some(text.clone()))]).await;
        let now = config(&mut incremental, &store.snapshot().await.unwrap().unwrap().objects);
        let data = lived.get_or_insert_with(|| FakeDataplane::new(sizes(&now), secrets()).unwrap());
        let plan = data.plan(&all_up(&now), 1).unwrap();
        data.apply(plan).unwrap();
    }
    // Another one joins at the end.
    let snapshot = store.snapshot().await.unwrap().unwrap();
    let now = config(&mut incremental, &snapshot.objects);
    let history = store.history(100).await.unwrap();
    let then =
        follow::join::before(&history[..2], &snapshot.objects, &|_| Some(Duration::from_secs(600)), u64::MAX / 2);
    assert_eq!(then, snapshot.objects, "long after, nothing is in its window");
    let now_ms = history[0].at_unix_ms;
    let then = follow::join::before(&history[..2], &snapshot.objects, &|_| Some(Duration::from_secs(600)), now_ms);
    let mut joined = FakeDataplane::new(sizes(&now), secrets()).unwrap();
    for config in [config(&mut incremental, &then), now] {
        let plan = joined.plan(&all_up(&config), 1).unwrap();
        joined.apply(plan).unwrap();
    }
    let (lived, joined) = (owners(&lived.unwrap()), owners(&joined));
    assert!(lived.iter().filter(|(_, owner)| owner.is_some()).count() > 50, "hardly a slot is in its window");
    for (slot, (a, b)) in lived.iter().zip(&joined).enumerate() {
        // A slot that moved away and back is residual where that was seen; without records it behaves like a settled one.
        let same = a == b || (a.0, *b) == (State::Residual, (State::Settled, None));
        assert!(same, "slot {slot}: {a:?} where it was lived through, {b:?} where it was joined");
    }
}

/// What an orchestrator's worker writes: the assignment once, its heartbeat, and what it judges.
struct Worker {
    store: Arc<dyn Store>,
    beating: Arc<AtomicBool>,
}

impl Worker {
    async fn start(store: &Arc<dyn Store>) -> Self {
        let put = |key: &str, text: String| store.record_put(Put::new(self::key(key), text));
        let assignment =
            Assignment { holder: "o/1".into(), epoch: 1, workers: ["o".to_owned()].into(), vantage_points: 1 };
        put(ASSIGNMENT, serde_json::to_string(&assignment).unwrap()).await.unwrap();
        let worker = Self { store: Arc::clone(store), beating: Arc::new(AtomicBool::new(true)) };
        let (store, beating) = (Arc::clone(store), Arc::clone(&worker.beating));
        tokio::spawn(async move {
            for beat in 0.. {
                if beating.load(Ordering::Relaxed) {
                    let beat = Beat { holder: "o/1".into(), beat, generation: 1, address: None };
                    let text = serde_json::to_string(&beat).unwrap();
                    store.record_put(Put::new(key(&format!("{BEATS}o")), text)).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        worker
    }

    /// Judges every target of `scene.text`'s service by its last byte.
    async fn judge(&self, scene: &Scene, judgements: &[(u8, bool)]) {
        for (last, up) in judgements {
            let config = crate::model::check("f", &scene.text(&[(*last, 1)])).config.unwrap();
            let target = super::state::target(&config.services[0], &config.services[0].backends[0]).unwrap();
            let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
            let health = Health { up: *up, reason: "L7STS".into(), since: UnixMs(since), votes: Default::default() };
            let put = Put::new(key(&format!("{HEALTH}{}", name(&target))), serde_json::to_string(&health).unwrap());
            self.store.record_put(put).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn health_is_the_stores_while_workers_move_and_the_nodes_own_when_they_are_silent() {
    let (scene, store) = staged().await;
    scene
        .run_with(None, Some(Arc::clone(&store)), async |client, metrics| {
            all_up(&client).await;
            let settled = slots(&client).await;
            let sources = |store: u32, own: u32| {
                move |s: &crate::api::Status| {
                    s.store.as_ref().is_some_and(|s| (s.health_from_store, s.health_own) == (store, own))
                }
            };
            let status = async || client.status().await.unwrap();
            until("no orchestrator", status, sources(0, 2)).await;
            // The first results of two backends may have opened one, if they did not come together.
            let windows = async || client.status().await.unwrap().counts.services_in_window;
            let before = windows().await;
            // One is judged, the other is the node's own still; nothing moves.
            let worker = Worker::start(&store).await;
            worker.judge(&scene, &[(2, true)]).await;
            until("one from the store", status, sources(1, 1)).await;
            worker.judge(&scene, &[(3, true)]).await;
            until("both from the store", status, sources(2, 0)).await;
            assert_eq!(slots(&client).await, settled, "nothing changed but the source");
            assert!(windows().await <= before, "another source opened a window");
            // A backend that the node would find dead is up as long as the store says so.
            scene.one.answer(503);
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(slots(&client).await, settled);
            worker.judge(&scene, &[(2, false)]).await;
            until("the judgement in the maps", async || slots(&client).await, |s| s[0] == 0).await;
            let text = scrape(&metrics, "/metrics").await;
            for line in [
                "weir_health_targets{source=\"store\"} 2",
                "weir_store_propagation_seconds_count{stage=\"health_judged_to_received\"} 1",
                "weir_store_propagation_seconds_count{stage=\"health_received_to_applied\"} 1",
            ] {
                assert!(text.contains(line), "{line} is missing: {text}");
            }
            // It falls silent: what was judged stays, and the node finds out by itself that the backend is back.
            worker.beating.store(false, Ordering::Relaxed);
            let while_silent = async || (client.status().await.unwrap(), slots(&client).await);
            until("own checks", while_silent, |(status, slots)| {
                let own = sources(0, 2)(status);
                assert!(own || slots[0] == 0, "the backend took traffic before it was checked");
                own
            })
            .await;
            scene.one.answer(200);
            until("it is back", async || slots(&client).await, |s| s[0] > 0).await;
            // The other one dies while nobody else looks.
            scene.two.answer(503);
            until("its death", async || slots(&client).await, |s| s[1] == 0).await;
        })
        .await;
}

/// Judgements that are the opposite of what this node would find, so that it shows whose count.
#[tokio::test(flavor = "current_thread")]
async fn a_node_that_starts_has_what_workers_judged_from_its_first_publication_on() {
    let (scene, store) = staged().await;
    let worker = Worker::start(&store).await;
    worker.judge(&scene, &[(2, true), (3, false)]).await;
    scene.one.answer(503);
    let beat = async || store.record_get(key(&format!("{BEATS}o"))).await.unwrap();
    until("a heartbeat", beat, Option::is_some).await;
    scene
        .run_with(None, Some(Arc::clone(&store)), async |client, _| {
            let judged = |s: &Vec<u32>| s[0] > 0 && s[1] == 0;
            assert!(judged(&slots(&client).await), "the first publication");
            // Several intervals of an own check.
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(judged(&slots(&client).await), "and what follows");
        })
        .await;
}
