//! The event loop as a whole: a data plane in memory, real files, real health checks on loopback, the real socket.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use lb_core::abi::{
    backend::FLAG_UP,
    flow::{FlowState, Record},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
};

use super::{
    api::{
        call::Calls,
        metrics, routes,
        serve::{Listener, serve},
        socket,
    },
    event_loop::{EventLoop, Parts},
    follow,
    network::{Network, Views},
    node::{Carrier, Node},
    overrides::{self, BackendId},
    reload, secret,
    shared::Shared,
    state::State,
    view::Process,
};
use crate::{
    api::{
        AdminChange, ApplyOutcome, ApplyRequest, DiffRequest, DrainPhase, FlowQuery, FlushRequest, HealthState,
        ReloadOutcome, ServiceAction, ServiceChange,
        client::{Client, ClientError},
    },
    dataplane::{
        Dataplane as _,
        fake::{FakeDataplane, Heap},
    },
    health::{self, Checker},
    model::{AdminState, Incremental, NextHop, seed::Seed},
    net::{Resolution, Table},
    plan::{MapSizes, Secrets},
    store::{FileStore, Store, follow::Times},
    telemetry::metrics::Metrics,
};

/// Longest wait for anything that must happen.
pub(super) const SOON: Duration = Duration::from_secs(10);

struct Quiet;

impl Network for Quiet {
    fn set_destinations(&mut self, _: BTreeSet<IpAddr>) {}
    fn set_vips(&mut self, _: BTreeSet<IpAddr>) {}
}

/// An HTTP server on 127.0.0.`last` that answers with a status that the test chooses.
pub(super) struct Backend {
    pub(super) port: u16,
    status: Arc<AtomicU16>,
}

impl Backend {
    async fn start(last: u8, port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let status = Arc::new(AtomicU16::new(200));
        let answer = Arc::clone(&status);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let text = format!("HTTP/1.1 {} x\r\nContent-Length: 0\r\n\r\n", answer.load(Ordering::Relaxed));
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        Self { port, status }
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

pub(super) struct Scene {
    /// The flow table of whatever data plane runs.
    words: Arc<Mutex<Vec<u64>>>,
    folder: tempfile::TempDir,
    pub(super) one: Backend,
    two: Backend,
}

pub(super) fn secrets() -> Secrets {
    secret::derive(&Seed::from_bytes(std::array::from_fn(|i| i as u8)))
}

pub(super) fn input(text: &str) -> reload::Input<'_> {
    reload::Input::Text { file_name: "weir.toml", text }
}

impl Scene {
    pub(super) async fn new() -> Self {
        let one = Backend::start(2, 0).await;
        // All backends of a service share its port.
        let two = Backend::start(3, one.port).await;
        Self { words: Arc::default(), folder: tempfile::tempdir().unwrap(), one, two }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn text(&self, backends: &[(u8, u16)]) -> String {
        let port = self.one.port;
        let mut text = format!(
            "[node]\nname = \"n\"\ninterfaces = [\"eth0\"]\nannounce = \"none\"\npin_dir = \"/sys/fs/bpf/none\"\n\
             [node.limits]\nservices_max = 8\nbackends_max = 64\nring_slots_max = 20000\n\
             [[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nport = {port}\nforward = \"ipip\"\n\
             algo_config = {{ ring_size = 251 }}\n\
             [service.health_check]\ntype = \"http\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\nrise = 1\nfall = 1\n"
        );
        for (last, weight) in backends {
            text += &format!("[[service.backends]]\naddress = \"10.0.0.{last}\"\nweight = {weight}\n");
        }
        text
    }

    pub(super) fn write(&self, text: &str) {
        fs::write(self.path("weir.toml"), text).unwrap();
    }

    /// Runs the loop on `data` while `body` runs against its socket; gives back the data plane's memory through `kept`.
    async fn run<F: Future<Output = ()>>(&self, heap: Option<Heap>, body: impl FnOnce(Client, String) -> F) {
        self.run_with(heap, None, body).await;
    }

    /// As [`Scene::run`], with services from `shared` where there is such a store.
    pub(super) async fn run_with<F: Future<Output = ()>>(
        &self,
        heap: Option<Heap>,
        shared: Option<Arc<dyn Store>>,
        body: impl FnOnce(Client, String) -> F,
    ) {
        let store = FileStore::new(self.path("weir.toml"));
        let text = store.read().unwrap();
        let mut incremental = Incremental::default();
        let (config, _) = reload::check(&mut incremental, input(&text.text), "n").expect("a good configuration");
        let sizes = MapSizes::of(&config.node.limits);
        let adopted = heap.is_some();
        let mut data = match heap {
            Some(heap) => FakeDataplane::adopt(heap, sizes, secrets()),
            None => FakeDataplane::new(sizes, secrets()),
        }
        .unwrap();
        data.words = Arc::clone(&self.words);
        let overrides_file = self.path("overrides.json");
        let saved = overrides::load(&overrides_file).unwrap();
        let inherited = |id: &BackendId| data.present().inherited_up(&id.service, id.address, id.port);
        let metrics = Arc::new(Metrics::new());
        let (config, shared) = match shared {
            None => (config, None),
            Some(from) => {
                let copy_file = self.path("store.json");
                let copy = follow::keep::load(&copy_file).unwrap();
                let times = Times { look_ms: 300, ..Times::default() };
                let options = follow::Options { node: "n".into(), copy_file, times };
                let mut following = follow::start(from, copy, &options, Arc::clone(&metrics));
                following.news.changed().await.unwrap();
                let news = following.news.borrow_and_update().clone().unwrap();
                let shared = Shared::new(following, news);
                let (document, leases) = shared.document("weir.toml", &text.text);
                let input = reload::Input::Shared { document: &document, leases: &leases };
                (reload::check(&mut incremental, input, "n").expect("a good configuration").0, Some(shared))
            }
        };
        let state = State::new(config, saved, &inherited);
        let hop = |n: u8| {
            let next_hop = NextHop { ifindex: 2, mtu: 1500, src_mac: [2; 6], dst_mac: [n; 6] };
            let resolution = Resolution::Resolved { next_hop, gateway: None, interface: "eth0".into() };
            (IpAddr::from([10, 0, 0, n]), resolution)
        };
        let (table_sender, table) = watch::channel(Arc::new(Table::new()));
        let (_links, interfaces) = watch::channel(Vec::new());
        let (checker, events) = Checker::start_with(Default::default(), |target| async move {
            // The configuration refuses loopback backends, so 10.0.0.N is asked at 127.0.0.N.
            let mut address = target.address;
            if let IpAddr::V4(v4) = address.ip() {
                address.set_ip(Ipv4Addr::new(127, 0, 0, v4.octets()[3]).into());
            }
            health::probe::run(address, &target.check.probe, target.check.timeout).await
        });
        let (calls, inbox) = Calls::new();
        let carriers = vec![Carrier { name: "eth0".into(), ifindex: 2, slot: 0, program_id: 1 }];
        let mut event_loop = EventLoop::new(Parts {
            node: Node::new(state, Box::new(data), carriers, None),
            process: Process { started: Instant::now(), adopted, config_file: "weir.toml".into() },
            watch: Some(store.watch().unwrap()),
            store,
            shared,
            text,
            incremental,
            overrides_file,
            host_name: "n".into(),
            metrics: Arc::clone(&metrics),
            network: Box::new(Quiet),
            views: Views { table, interfaces },
            checker,
            events,
            calls: inbox,
        });
        event_loop.spread();
        table_sender.send_replace(Arc::new((2..10).map(hop).collect()));
        event_loop.first_resolution(SOON).await;
        event_loop.first_publication().await.unwrap();
        let path = self.path("api.sock");
        let listener = socket::listen(&path, None).unwrap();
        let api = tokio::spawn(serve(Listener::Unix(listener), routes::router(calls.clone()), SOON));
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        let scrapes = tokio::spawn(serve(Listener::Tcp(tcp), metrics::router(calls, metrics), SOON));
        tokio::select! {
            ended = event_loop.run() => panic!("the loop ended: {ended:?}"),
            () = body(Client::new(&path), address) => {}
            () = tokio::time::sleep(SOON * 3) => panic!("the test hangs"),
        }
        // The listener is closed only once its task has ended.
        api.abort();
        scrapes.abort();
        let _ = (api.await, scrapes.await);
    }
}

/// Asks until the answer pleases.
pub(super) async fn until<T, F: Future<Output = T>>(what: &str, ask: impl Fn() -> F, good: impl Fn(&T) -> bool) -> T {
    let started = Instant::now();
    loop {
        let answer = ask().await;
        if good(&answer) {
            return answer;
        }
        assert!(started.elapsed() < SOON, "{what} did not happen in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) async fn slots(client: &Client) -> Vec<u32> {
    client.backends().await.unwrap().iter().map(|b| b.share.slots).collect()
}

pub(super) async fn all_up(client: &Client) {
    let up = |s: &Vec<crate::api::HealthTarget>| s.iter().all(|t| t.state == HealthState::Up);
    until("all backends up", async || client.health().await.unwrap(), up).await;
    // The maps follow within the window in which causes are collected.
    until("all backends in the ring", async || slots(client).await, |s| s.iter().all(|n| *n > 0)).await;
}

pub(super) async fn scrape(address: &str, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

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
            // Where health judged one of the two before the other, the slots that went to and fro are residual.
            let still = service.slots.settled + service.slots.residual;
            assert_eq!((service.slots.announced, still), (backends[0].share.slots, backends[1].share.slots));
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
