//! The loop with real tasks, sockets and processes, over the store in memory.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::StatusCode,
    routing::{get, post},
};
use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    clock::Periods,
    execute::Executor,
    intent::Patience,
    master::{Policy, ZonePolicy},
    place::memory::Memory,
    prometheus::Prometheus,
    record::Record,
    report::Command,
    run::{Handles, Parts, orchestrate},
    scale::{Rule, Subject},
    watch::Node,
};
use crate::{
    dns::{publish::ZoneSpec, zone::SoaObject},
    model::{self, AdminState, HealthCheck, Probe},
};

const MS: Duration = Duration::from_millis(1);

/// A tenth of what runs in production.
fn periods() -> Periods {
    Periods {
        lease: 1_000 * MS,
        renew: 200 * MS,
        act: 700 * MS,
        read: 100 * MS,
        beat: 100 * MS,
        worker_timeout: 500 * MS,
        probe: 200 * MS,
        timeout: 200 * MS,
    }
}

fn policy(scaling: Vec<Rule>) -> Policy {
    let spec = ZoneSpec {
        origin: "lb.example".into(),
        ttl_s: 5,
        soa: SoaObject::new("ns.example", "h.example"),
        ns: vec!["ns.example".into()],
        fixed: BTreeMap::new(),
    };
    Policy {
        zone: Some(ZonePolicy { spec, names: ["www".to_owned()].into() }),
        vantage_points: 1,
        scaling,
        patience: Patience { ready: 20_000 * MS, drain: 300 * MS, attempts: 3, pause: 100 * MS },
        prefix: "weir".into(),
        dead_after: 60_000 * MS,
        ..Policy::default()
    }
}

/// An orchestrator that runs until it is told to stop or is aborted.
struct Running {
    handles: Handles,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

fn start(
    name: &str,
    memory: &Arc<Memory>,
    policy: Policy,
    prometheus: Option<Prometheus>,
    executor: Option<Executor>,
) -> Running {
    let (stop, stopped) = oneshot::channel();
    let executors = executor.into_iter().map(|one| ("scaling/web".to_owned(), one)).collect();
    let parts = Parts {
        name: name.into(),
        address: None,
        policy: Arc::new(policy),
        periods: periods(),
        place: Arc::<Memory>::clone(memory),
        prometheus,
        executors,
    };
    let stopped = async move { drop(stopped.await) };
    let (handles, run) = orchestrate(parts, stopped).unwrap();
    Running { handles, stop: Some(stop), task: tokio::spawn(run) }
}

impl Running {
    fn acts(&self) -> bool {
        self.handles.status.borrow().0.acting.is_some()
    }
}

/// Waits until `is` says yes.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not within 40 s");
        sleep(20 * MS).await;
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// A server whose /health and /ready answer as the switch says.
async fn backend(up: &Arc<AtomicBool>) -> SocketAddr {
    let answer = |up: Arc<AtomicBool>| async move {
        if up.load(Ordering::SeqCst) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    };
    let (first, second) = (Arc::clone(up), Arc::clone(up));
    let router = Router::new()
        .route("/health", get(move || answer(Arc::clone(&first))))
        .route("/ready", get(move || answer(Arc::clone(&second))));
    serve(router).await
}

fn service(backends: &[SocketAddr]) -> model::Service {
    let backend =
        |address: &SocketAddr| format!("[[service.backends]]\naddress = \"10.0.0.1\"\nport = {}\n", address.port());
    let text = format!(
        "[node]\ninterface = \"eth0\"\n[[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nport = 80\nforward = \"nat\"\n{}",
        backends.iter().map(backend).collect::<String>()
    );
    let mut service = model::check("t", &text).config.unwrap().services.remove(0);
    // Loopback is no address that can be balanced, which is all that these tests have.
    for (one, address) in service.backends.iter_mut().zip(backends) {
        one.address = address.ip();
    }
    service.health_check = Some(HealthCheck {
        probe: Probe::Http { path: "/health".into(), host: None },
        port: None,
        interval: 200 * MS,
        timeout: 200 * MS,
        rise: 2,
        fall: 2,
    });
    service
}

fn node(ready_at: SocketAddr, last: u8, beat: u64) -> Node {
    Node {
        beat,
        lease: 3_000 * MS,
        addresses: [IpAddr::from([192, 0, 2, last])].into(),
        ready_at: Some(ready_at),
        revision: 1_000,
        ready: true,
        draining: false,
    }
}

fn zone(memory: &Memory) -> Vec<IpAddr> {
    match memory.get("dns/zone") {
        Some(Record::Zone(zone)) => zone.records.into_values().flatten().collect(),
        _ => Vec::new(),
    }
}

fn healthy(memory: &Memory, running: &Running, up: bool) -> bool {
    let targets = running.handles.status.borrow().1.targets.clone();
    let is = |target: &String| matches!(memory.get(&format!("health/{target}")), Some(Record::Health(_, health)) if health.up == up);
    !targets.is_empty() && targets.iter().all(is)
}

#[tokio::test]
async fn one_master_checks_that_move_and_nodes_that_leave_dns() {
    let memory = Arc::new(Memory::default());
    let (up, ready) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let address = backend(&up).await;
    memory.set_services(vec![service(&[address])]);
    let (one, two) = (backend(&Arc::new(AtomicBool::new(true))).await, backend(&ready).await);
    let beats = {
        let memory = Arc::clone(&memory);
        tokio::spawn(async move {
            for beat in 0.. {
                memory.report("n1", Some(node(one, 11, beat)));
                memory.report("n2", Some(node(two, 12, beat)));
                sleep(100 * MS).await;
            }
        })
    };
    let start = |name: &str| start(name, &memory, policy(Vec::new()), None, None);
    let mut running = vec![start("o1"), start("o2")];
    until("a master", || running.iter().any(Running::acts)).await;
    assert!(!running.iter().all(Running::acts), "one master");
    until("both nodes in DNS", || zone(&memory).len() == 2).await;
    until("the backend is up", || healthy(&memory, &running[0], true)).await;
    up.store(false, Ordering::SeqCst);
    until("the backend is down", || healthy(&memory, &running[0], false)).await;
    ready.store(false, Ordering::SeqCst);
    until("the second node out of DNS", || zone(&memory) == [IpAddr::from([192, 0, 2, 11])]).await;

    // The master dies without a word.
    let master = running.iter().position(Running::acts).unwrap();
    let dead = running.remove(master);
    dead.task.abort();
    until("another master", || running[0].acts()).await;
    up.store(true, Ordering::SeqCst);
    until("checks were taken over", || healthy(&memory, &running[0], true)).await;
    ready.store(true, Ordering::SeqCst);
    until("the node is back", || zone(&memory).len() == 2).await;

    // One that ends in order leaves the record free: the next one need not wait for its lease.
    running.push(start("o3"));
    until("a third", || memory.get("orchestrator/worker/o3").is_some()).await;
    let mut first = running.remove(0);
    drop(first.stop.take());
    first.task.await.unwrap();
    assert!(
        matches!(memory.get("orchestrator/master"), Some(Record::Lease(lease)) if lease.released || lease.holder.starts_with("o3"))
    );
    until("the third is the master", || running[0].acts()).await;

    // A store that is silent makes nobody act, and nobody forget.
    memory.set_silent(true);
    until("nobody acts", || !running[0].acts()).await;
    until("it is said", || running[0].handles.status.borrow().0.store_error.is_some()).await;
    memory.set_silent(false);
    until("it acts again", || running[0].acts()).await;
    assert_eq!(zone(&memory).len(), 2);
    beats.abort();
}

#[tokio::test]
async fn a_service_grows_and_shrinks_by_what_prometheus_says() {
    let memory = Arc::new(Memory::default());
    let up = Arc::new(AtomicBool::new(true));
    let (first, second) = (backend(&up).await, backend(&up).await);
    memory.set_services(vec![service(&[first])]);
    let value = Arc::new(std::sync::Mutex::new("20".to_owned()));
    let shown = Arc::clone(&value);
    let query = move || {
        let value = shown.lock().unwrap().clone();
        let result =
            if value.is_empty() { String::new() } else { format!(r#"{{"metric":{{}},"value":[1,"{value}"]}}"#) };
        async move { format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{result}]}}}}"#) }
    };
    let server = serve(Router::new().route("/api/v1/query", post(query))).await;
    let prometheus = Prometheus::new(&format!("http://{server}"), 1_000 * MS).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let script =
        format!("echo $WEIR_ACTION $WEIR_NAME >> {}; [ $WEIR_ACTION = remove ] || echo {second}", log.display());
    let executor = Executor::Exec {
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), script],
        timeout: Duration::from_secs(20),
    };
    let rule = Rule {
        name: "web".into(),
        subject: Subject::Backends("web".into()),
        expr: "x".into(),
        target: 10.0,
        tolerance: 0.1,
        min: 1,
        max: 2,
        down_window: 1_000 * MS,
        settle: 300 * MS,
        every: 200 * MS,
    };
    let running = start("o1", &memory, policy(vec![rule]), Some(prometheus), Some(executor));
    until("the new backend is in the service", || memory.services()[0].backends.len() == 2).await;
    // A metric that is missing takes nothing away, however long.
    value.lock().unwrap().clear();
    sleep(2_500 * MS).await;
    assert_eq!(memory.services()[0].backends.len(), 2);
    "1".clone_into(&mut value.lock().unwrap());
    until("it is drained", || {
        let services = memory.services();
        services[0].backends.len() == 1 || services[0].backends.iter().any(|one| one.admin_state == AdminState::Drain)
    })
    .await;
    until("one of them is gone", || memory.services()[0].backends.len() == 1).await;
    until("it was removed", || std::fs::read_to_string(&log).is_ok_and(|text| text.lines().count() == 2)).await;
    let text = std::fs::read_to_string(&log).unwrap();
    let created = text.lines().next().unwrap();
    assert!(created.starts_with("create weir-1-") && created.ends_with("-1"), "{text}");
    // What was created last goes first.
    assert_eq!(text.lines().nth(1), Some(format!("remove {second}").as_str()));
    assert_eq!(memory.services()[0].backends[0].port, first.port());

    let (sender, receiver) = oneshot::channel();
    running.handles.commands.send(Command::Decisions(sender)).await.unwrap();
    let decisions = receiver.await.unwrap().unwrap();
    let up = decisions.iter().find(|one| one.by == "scaling/web" && one.outcome == "create 1").unwrap();
    assert_eq!((up.values["value"].as_str(), up.values["target"].as_str()), ("20", "10"));
    assert_eq!(up.intents.len(), 1);
    assert!(decisions.iter().any(|one| one.outcome.starts_with("hold: metric missing")), "{decisions:?}");
    running.handles.commands.send(Command::StepDown).await.unwrap();
    until(
        "it stepped down",
        || matches!(memory.get("orchestrator/master"), Some(Record::Lease(lease)) if lease.released),
    )
    .await;
    running.task.abort();
}
