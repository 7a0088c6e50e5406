//! The event loop as a whole, on its own file.

use std::{fs, net::IpAddr};

use lb_core::abi::{
    backend::FLAG_UP,
    flow::{FlowState, Record},
};

use super::loop_scene::{Scene, all_up, input, scrape, secrets, slots, until};
use super::{overrides, reload};
use crate::{
    api::{
        AdminChange, ApplyOutcome, ApplyRequest, DiffRequest, DrainPhase, FlowQuery, FlushRequest, ReloadOutcome,
        ServiceAction, ServiceChange, client::ClientError,
    },
    dataplane::{Dataplane as _, fake::FakeDataplane},
    model::{AdminState, Incremental},
    plan::MapSizes,
};

#[tokio::test(flavor = "current_thread")]
async fn a_good_save_is_applied_and_a_bad_one_changes_nothing() {
    let scene = Scene::new().await;
    scene.write(&scene.text(&[(2, 1), (3, 1)]));
    scene
        .run(None, async |client, metrics| {
            all_up(&client).await;
            let first = client.status().await.unwrap();
            assert_eq!((first.revision, first.counts.backends_up), (1, 2));
            // A save is picked up.
            scene.write(&scene.text(&[(2, 1), (3, 3)]));
            let status = until("revision 2", async || client.status().await.unwrap(), |s| s.revision == 2).await;
            assert_eq!(status.last_reload.outcome, ReloadOutcome::Applied);
            let now = slots(&client).await;
            assert!(now[1] > now[0] * 2, "{now:?}");
            // A bad one changes nothing and says so.
            scene.write("[node\n");
            let refused = |s: &crate::api::Status| s.last_reload.outcome == ReloadOutcome::Refused;
            let status = until("the refusal", async || client.status().await.unwrap(), refused).await;
            assert_eq!(status.revision, 2);
            assert!(!status.last_reload.diagnostics.is_empty());
            assert_eq!(slots(&client).await, now);
            assert!(scrape(&metrics, "/metrics").await.contains("weir_config_last_reload_successful 0\n"));
            // So does one that asks for what cannot change.
            scene.write(&scene.text(&[(2, 1), (3, 3)]).replace("services_max = 8", "services_max = 9"));
            let fixed = |s: &crate::api::Status| s.last_reload.message.contains("limits.services_max (8 to 9)");
            until("the second refusal", async || client.status().await.unwrap(), fixed).await;
            // The old text again makes good.
            scene.write(&scene.text(&[(2, 1), (3, 3)]));
            let good = |s: &crate::api::Status| s.last_reload.outcome == ReloadOutcome::Unchanged;
            assert_eq!(until("good again", async || client.status().await.unwrap(), good).await.revision, 2);
            let text = scrape(&metrics, "/metrics").await;
            assert!(text.contains("weir_config_last_reload_successful 1\n") && text.ends_with("# EOF\n"));
            assert!(text.contains("weir_config_reloads_total{outcome=\"refused\"} 2\n"));
            assert!(scrape(&metrics, "/ready").await.contains("ok, revision 2"));
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn health_moves_traffic_and_fails_open_at_zero() {
    let scene = Scene::new().await;
    scene.write(&scene.text(&[(2, 1), (3, 1)]));
    scene
        .run(None, async |client, metrics| {
            all_up(&client).await;
            scene.one.answer(503);
            let moved = until("the ring without one", async || slots(&client).await, |s| s[0] == 0).await;
            assert_eq!(moved, [0, 251]);
            let backends = client.backends().await.unwrap();
            assert_eq!(backends[0].health_reason.as_deref(), Some("L7STS"));
            assert_eq!(client.status().await.unwrap().revision, 1, "health is no configuration");
            scene.two.answer(503);
            let open = until("fail open", async || client.services().await.unwrap(), |s| s[0].fail_open).await;
            assert_eq!(open[0].backends_up, 0);
            until("both in the ring", async || slots(&client).await, |s| s.iter().all(|n| *n > 0)).await;
            assert!(scrape(&metrics, "/metrics").await.contains("weir_service_fail_open{service=\"web\"} 1\n"));
            scene.two.answer(200);
            until("recovered", async || slots(&client).await, |s| *s == [0, 251]).await;
            assert!(!client.services().await.unwrap()[0].fail_open);
        })
        .await;
}

/// Changes that were written to the maps.
async fn applied(metrics: &str) -> u64 {
    let text = scrape(metrics, "/metrics").await;
    let count = text.lines().find_map(|line| line.strip_prefix("weir_apply_duration_seconds_count "));
    count.and_then(|count| count.parse().ok()).expect("a count")
}

#[tokio::test(flavor = "current_thread")]
async fn good_first_results_of_a_service_move_no_slot_and_a_later_backend_waits_for_its_own() {
    let scene = Scene::new().await;
    scene.write(&scene.text(&[(2, 1), (3, 1)]));
    scene.silence(3);
    scene
        .run(None, async |client, metrics| {
            let at_first = slots(&client).await;
            assert!(at_first.iter().all(|n| *n > 0), "{at_first:?}");
            for judged in [1, 2] {
                let up = |s: &crate::api::Status| s.counts.backends_up == judged;
                until("health", async || client.status().await.unwrap(), up).await;
                // The first change is the configuration, and then each result is one.
                until("the maps follow", async || applied(&metrics).await, |n| *n > u64::from(judged)).await;
                assert_eq!(slots(&client).await, at_first, "{judged} judged");
                let service = &client.services().await.unwrap()[0];
                assert_eq!((service.slots.settled, service.window_ends_in_s), (251, None), "{judged} judged");
                scene.silence(0);
            }
            // Who comes later takes nothing before it is judged, and nothing after it is found down.
            scene.silence(4);
            scene.write(&scene.text(&[(2, 1), (3, 1), (4, 1)]));
            until("revision 2", async || client.status().await.unwrap(), |s| s.revision == 2).await;
            assert_eq!(slots(&client).await, [at_first[0], at_first[1], 0]);
            scene.silence(0);
            let down = |b: &Vec<crate::api::Backend>| b[2].health == crate::api::HealthState::Down;
            until("down", async || client.backends().await.unwrap(), down).await;
            assert_eq!(client.services().await.unwrap()[0].slots.settled, 251);
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_override_holds_over_restarts_until_the_file_says_otherwise() {
    let scene = Scene::new().await;
    scene.write(&scene.text(&[(2, 1), (3, 1)]));
    let name = crate::api::backend_name([10, 0, 0, 2].into(), scene.one.port);
    let drain = AdminChange { admin_state: Some(AdminState::Drain), ..AdminChange::default() };
    scene
        .run(None, async |client, _| {
            all_up(&client).await;
            let drained = client.admin("web", &name, drain).await.unwrap();
            assert_eq!((drained.share.slots, drained.admin_state_override), (0, Some(AdminState::Drain)));
            assert_eq!(client.status().await.unwrap().revision, 2);
            let too_heavy = AdminChange { weight: Some(1001), ..AdminChange::default() };
            assert!(client.admin("web", &name, too_heavy).await.is_err());
            assert!(client.admin("web", "10.9.9.9:1", drain).await.is_err());
        })
        .await;
    // Another agent finds it.
    scene
        .run(None, async |client, _| {
            let backends = client.backends().await.unwrap();
            assert_eq!(backends[0].admin_state_override, Some(AdminState::Drain));
            let heavier = AdminChange { weight: Some(9), ..AdminChange::default() };
            client.admin("web", &name, heavier).await.unwrap();
            // The file changes the weight: that override goes, the other stays.
            scene.write(&scene.text(&[(2, 2), (3, 1)]));
            let weight = |b: &Vec<crate::api::Backend>| b[0].weight_configured == 2;
            let now = until("the new weight", async || client.backends().await.unwrap(), weight).await;
            assert_eq!((now[0].weight_override, now[0].admin_state_override), (None, Some(AdminState::Drain)));
            let ready = AdminChange { admin_state: Some(AdminState::Ready), ..AdminChange::default() };
            assert_eq!(client.admin("web", &name, ready).await.unwrap().admin_state_override, None);
            assert!(overrides::load(&scene.path("overrides.json")).unwrap().is_empty());
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_apply_replaces_the_file_or_nothing() {
    let scene = Scene::new().await;
    scene.write(&scene.text(&[(2, 1)]));
    scene
        .run(None, async |client, _| {
            let text = scene.text(&[(2, 1), (3, 4)]);
            let diff = client.config_diff(&DiffRequest { text: Some(text.clone()), file: None }).await.unwrap();
            assert!(diff.changed && diff.unified.contains("+weight = 4"), "{}", diff.unified);
            assert_eq!(client.status().await.unwrap().revision, 1, "a diff changes nothing");
            let request = ApplyRequest { text: Some(text.clone()), file: Some("new.toml".into()) };
            let applied = client.config_apply(&request).await.unwrap();
            assert_eq!((applied.outcome, applied.revision), (ApplyOutcome::Applied, 2));
            assert_eq!(fs::read_to_string(scene.path("weir.toml")).unwrap(), text);
            assert_eq!(client.config_apply(&request).await.unwrap().outcome, ApplyOutcome::Unchanged);
            let bad = ApplyRequest { text: Some("x = 1\n".into()), file: Some("bad.toml".into()) };
            match client.config_apply(&bad).await {
                Err(ClientError::Refused { status: 422, error }) => {
                    assert_eq!(error.diagnostics[0].file, "bad.toml");
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(fs::read_to_string(scene.path("weir.toml")).unwrap(), text);
            assert_eq!(client.status().await.unwrap().last_reload.outcome, ReloadOutcome::Unchanged);
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_restart_inherits_health() {
    let scene = Scene::new().await;
    scene.write(&scene.text(&[(2, 1), (3, 1)]));
    // Maps as an agent left them that had judged one backend down.
    let (config, _) =
        reload::check(&mut Incremental::default(), input(&fs::read_to_string(scene.path("weir.toml")).unwrap()), "n")
            .expect("good");
    let mut left = FakeDataplane::new(MapSizes::of(&config.node.limits), secrets()).unwrap();
    let wanted = crate::plan::wanted(&config, &|_, b| Some(b.address != IpAddr::from([10, 0, 0, 2])), &|_| None);
    let plan = left.plan(&wanted, 41).unwrap();
    left.apply(plan).unwrap();
    let up: Vec<bool> =
        left.present().services().flat_map(|(_, s)| &s.backends).map(|b| b.entry.flags & FLAG_UP != 0).collect();
    assert_eq!(up, [false, true]);
    scene.one.answer(503);
    scene
        .run(Some(left.heap().clone()), async |client, _| {
            let status = client.status().await.unwrap();
            assert!(status.adopted);
            assert!(status.revision >= 41);
            assert_eq!(slots(&client).await, [0, 251], "down before the first probe");
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_plan_says_what_an_apply_would_touch_and_touches_nothing() {
    let scene = Scene::new().await;
    scene.write(&scene.text(&[(2, 1), (3, 1)]));
    scene
        .run(None, async |client, _| {
            all_up(&client).await;
            let before = (client.status().await.unwrap().revision, slots(&client).await);
            let states = client.services().await.unwrap()[0].slots;
            let ids: Vec<u32> = client.backends().await.unwrap().iter().map(|b| b.id).collect();
            // One record of the second backend on every slot, and an expired one.
            let record =
                |slot, left| Record { backend: ids[1], slot, state: FlowState::Established, expires_s: left }.pack();
            scene.words.lock().unwrap().extend((0..251).map(|slot| record(slot, 100)).chain([record(1, 0)]));
            let ask = async |text: String| client.plan(&DiffRequest { text: Some(text), file: None }).await;
            let same = ask(scene.text(&[(2, 1), (3, 1)])).await.unwrap();
            assert_eq!((same.changed, same.services.len()), (false, 0));
            let heavier = ask(scene.text(&[(2, 1), (3, 3)])).await.unwrap();
            let [service] = &heavier.services[..] else { panic!("{heavier:?}") };
            assert_eq!((service.action, service.slots, service.whole), (ServiceAction::Changed, 251, false));
            assert!((30..=100).contains(&service.slots_moved), "a quarter of the ring: {service:?}");
            assert_eq!(u64::from(service.slots_moved), service.flows_on_moved_slots);
            assert_eq!((service.flows_recorded, service.announce_for_s, service.window_s), (251, 4, 7440));
            assert!(service.flows[0].starts_with(&format!("{} of 251 slots move after 4s", service.slots_moved)));
            // It is exactly what an apply does.
            let gone = ask(scene.text(&[(2, 1)])).await.unwrap();
            let [service] = &gone.services[..] else { panic!("{gone:?}") };
            assert_eq!(service.slots_moved, before.1[1]);
            assert_eq!((service.backends[0].flows_recorded, service.backends[0].drain_s), (251, 300));
            let other = ask(scene.text(&[(2, 1), (3, 1)]).replace("ring_size = 251", "ring_size = 509")).await.unwrap();
            assert_eq!((other.services[0].whole, other.services[0].slots_moved), (true, 509));
            assert_eq!(other.services[0].flows_on_moved_slots, 251);
            match ask(scene.text(&[(2, 1)]).replace("services_max = 8", "services_max = 9")).await {
                Err(ClientError::Refused { status: 409, error }) => assert!(error.error.contains("services_max")),
                other => panic!("{other:?}"),
            }
            assert!(matches!(ask("x".into()).await, Err(ClientError::Refused { status: 422, .. })));
            assert_eq!((client.status().await.unwrap().revision, slots(&client).await), before);
            assert_eq!(client.services().await.unwrap()[0].slots, states);
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn recorded_flows_are_listed_and_flushed_by_name() {
    let scene = Scene::new().await;
    scene.write(&scene.text(&[(2, 1), (3, 1)]));
    scene
        .run(None, async |client, _| {
            all_up(&client).await;
            let backends = client.backends().await.unwrap();
            let record = |at: usize, state| Record { backend: backends[at].id, slot: 7, state, expires_s: 60 }.pack();
            let stranger = Record { backend: 60, slot: 9, state: FlowState::Once, expires_s: 60 }.pack();
            let table = [
                record(0, FlowState::Established),
                record(0, FlowState::HalfOpen),
                record(1, FlowState::Established),
                stranger,
            ];
            scene.words.lock().unwrap().extend(table);
            let web = || Some("web".to_owned());
            let query = FlowQuery { limit: 10, ..FlowQuery::default() };
            let all = client.flows(&query).await.unwrap();
            assert_eq!((all.records, all.matched, all.left_out, all.flows.len()), (4, 4, 0, 4));
            assert_eq!((all.flows[0].slot, all.flows[0].left_s, all.flows[1].state.as_str()), (7, 60, "half_open"));
            assert_eq!((all.flows[3].service.as_deref(), all.flows[3].backend_id), (None, 60));
            let some = client.flows(&FlowQuery { service: web(), limit: 2, ..FlowQuery::default() }).await.unwrap();
            assert_eq!((some.records, some.matched, some.left_out, some.flows.len()), (4, 3, 1, 2));
            let backend = Some(backends[1].name.clone());
            let one =
                FlowQuery { service: web(), backend: backend.clone(), state: Some("established".into()), limit: 9 };
            let one = client.flows(&one).await.unwrap();
            assert_eq!((one.matched, one.flows[0].backend.clone()), (1, backend.clone()));
            for (query, status) in [
                (FlowQuery { service: Some("nope".into()), ..FlowQuery::default() }, 404),
                (FlowQuery { service: web(), backend: Some("10.9.9.9:1".into()), ..FlowQuery::default() }, 404),
                (FlowQuery { backend: backend.clone(), ..FlowQuery::default() }, 400),
                (FlowQuery { state: Some("open".into()), ..FlowQuery::default() }, 400),
            ] {
                match client.flows(&query).await {
                    Err(ClientError::Refused { status: refused, .. }) => assert_eq!(refused, status, "{query:?}"),
                    other => panic!("{other:?}"),
                }
            }
            let flush = FlushRequest { service: web(), backend };
            assert_eq!(client.flush(&flush).await.unwrap().removed, 1);
            assert_eq!(client.flush(&FlushRequest { service: web(), backend: None }).await.unwrap().removed, 2);
            assert_eq!(client.flows(&query).await.unwrap().records, 1, "what belongs to nobody stays");
            assert_eq!(client.flush(&FlushRequest::default()).await.unwrap().removed, 1);
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_drain_is_shown_until_its_backend_is_gone() {
    let scene = Scene::new().await;
    scene.write(&scene.text(&[(2, 1), (3, 1)]));
    scene
        .run(None, async |client, metrics| {
            all_up(&client).await;
            let backends = client.backends().await.unwrap();
            assert!(backends.iter().all(|b| b.drain.is_none() && !b.leaving));
            let drain = AdminChange { admin_state: Some(AdminState::Drain), ..AdminChange::default() };
            let drained = client.admin("web", &backends[0].name, drain).await.unwrap();
            let shown = drained.drain.expect("a drain");
            assert_eq!((shown.phase, shown.connections), (DrainPhase::Announced, None), "not every flow is recorded");
            assert_eq!((shown.announced_for_s, shown.ends_in_s), (4, 300));
            let service = &client.services().await.unwrap()[0];
            let (announced, settled) = (service.slots.announced, service.slots.settled);
            assert_eq!((announced, settled), (backends[0].share.slots, backends[1].share.slots));
            assert_eq!(service.window_ends_in_s, Some(7444));
            // It leaves the configuration: still there, and said to leave.
            scene.write(&scene.text(&[(3, 1)]));
            let left =
                until("leaving", async || client.backends().await.unwrap(), |b| b.iter().any(|b| b.leaving)).await;
            assert_eq!(
                left.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(),
                [&*backends[1].name, &*backends[0].name]
            );
            assert_eq!((left[1].id, left[1].drain.map(|d| d.ends_in_s)), (backends[0].id, Some(300)));
            let status = client.status().await.unwrap();
            assert_eq!((status.flows.backends_leaving, status.counts.services_in_window), (1, 1));
            let text = scrape(&metrics, "/metrics").await;
            let labels = format!("service=\"web\",backend=\"{}\"", backends[0].name);
            assert!(text.contains(&format!("weir_backend_state{{{labels},state=\"leaving\"}} 1\n")), "{text}");
            assert!(text.contains("weir_backends_leaving 1\n"));
            // Configured again, it leaves no more.
            scene.write(&scene.text(&[(2, 1), (3, 1)]));
            until("back", async || client.backends().await.unwrap(), |b| b.len() == 2 && !b.iter().any(|b| b.leaving))
                .await;
        })
        .await;
}

#[tokio::test(flavor = "current_thread")]
async fn settings_of_a_service_hold_over_restarts_until_the_file_says_otherwise() {
    let scene = Scene::new().await;
    scene.write(&scene.text(&[(2, 1), (3, 1)]));
    let set = |settings: &str| ServiceChange { set: Some(settings.into()), reset: false };
    scene
        .run(None, async |client, _| {
            all_up(&client).await;
            let now = client.set("web", &set("algo=least_connections window=10m")).await.unwrap().service;
            assert_eq!((now.algo.as_str(), now.track.as_str()), ("least_connections", "all"));
            assert_eq!(now.overrides, ["algo=least_connections", "window=10m"]);
            assert_eq!(client.status().await.unwrap().revision, 2);
            let more = client.set("web", &set("window=20m flow_timeout=30m")).await.unwrap().service;
            assert_eq!(more.overrides, ["algo=least_connections", "window=20m", "flow_timeout=30m"]);
            // What contradicts what is set is refused, and nothing changes.
            match client.set("web", &set("track=moved")).await {
                Err(ClientError::Refused { status: 422, error }) => assert!(error.error.contains("track"), "{error:?}"),
                other => panic!("{other:?}"),
            }
            assert!(matches!(
                client.set("nope", &set("window=1m")).await,
                Err(ClientError::Refused { status: 404, .. })
            ));
            assert_eq!(client.services().await.unwrap()[0].overrides, more.overrides);
            let config = client.config().await.unwrap().text;
            assert!(config.contains("algo = \"maglev\""), "the configuration is the file's");
        })
        .await;
    // Another agent finds them; a file that changes one of them takes that one back.
    scene
        .run(None, async |client, _| {
            let now = &client.services().await.unwrap()[0];
            assert_eq!(now.overrides, ["algo=least_connections", "window=20m", "flow_timeout=30m"]);
            let text = scene.text(&[(2, 1), (3, 1)]).replace("forward =", "window = \"5m\"\nforward =");
            scene.write(&text);
            let fewer = |s: &Vec<crate::api::Service>| s[0].overrides == ["algo=least_connections", "flow_timeout=30m"];
            until("the later word", async || client.services().await.unwrap(), fewer).await;
            // A plan of another file keeps them in mind.
            let plan = DiffRequest { text: Some(text.replace("weight = 1", "weight = 2")), file: None };
            assert!(client.plan(&plan).await.unwrap().changed);
            let reset = ServiceChange { set: None, reset: true };
            let now = client.set("web", &reset).await.unwrap().service;
            assert_eq!((now.algo.as_str(), now.overrides.len()), ("maglev", 0));
            assert!(overrides::load(&scene.path("overrides.json")).unwrap().is_empty());
        })
        .await;
}
