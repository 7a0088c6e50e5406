//! The event loop as a whole, to be tested: a data plane in memory, real files, real health checks on loopback, the real socket.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU16, Ordering},
    },
    time::{Duration, Instant},
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
    api::{HealthState, client::Client},
    dataplane::{
        Dataplane as _,
        fake::{FakeDataplane, Heap},
    },
    health::{self, Checker},
    model::{Incremental, NextHop, seed::Seed},
    net::{Resolution, Table},
    plan::{MapSizes, Secrets},
    store::{FileStore, Store, follow::Times},
    telemetry::metrics::Metrics,
};

/// How long those who judge health may be silent.
pub(super) const SILENCE: Duration = Duration::from_secs(3);
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

    pub(super) fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

pub(super) struct Scene {
    /// The flow table of whatever data plane runs.
    pub(super) words: Arc<Mutex<Vec<u64>>>,
    /// Last part of the address of the backend whose probes wait; 0 is none.
    silent: Arc<AtomicU8>,
    pub(super) folder: tempfile::TempDir,
    pub(super) one: Backend,
    pub(super) two: Backend,
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
        Self { words: Arc::default(), silent: Arc::default(), folder: tempfile::tempdir().unwrap(), one, two }
    }

    /// Lets the probes of one backend wait, and those of the one before go on; 0 is nobody.
    pub(super) fn silence(&self, last: u8) {
        self.silent.store(last, Ordering::Relaxed);
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
    pub(super) async fn run<F: Future<Output = ()>>(&self, heap: Option<Heap>, body: impl FnOnce(Client, String) -> F) {
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
                let leases_file = self.path("leases.json");
                let options = follow::Options { node: "n".into(), copy_file, leases_file, times, silence_max: SILENCE };
                let mut following = follow::start(from, copy, &options, Arc::clone(&metrics));
                following.news.changed().await.unwrap();
                following.judged.changed().await.unwrap();
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
        let silent = Arc::clone(&self.silent);
        let (checker, events) = Checker::start_with(Default::default(), move |target| {
            let silent = Arc::clone(&silent);
            async move {
                // The configuration refuses loopback backends, so 10.0.0.N is asked at 127.0.0.N.
                let mut address = target.address;
                if let IpAddr::V4(v4) = address.ip() {
                    let last = v4.octets()[3];
                    while silent.load(Ordering::Relaxed) == last {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    address.set_ip(Ipv4Addr::new(127, 0, 0, last).into());
                }
                health::probe::run(address, &target.check.probe, target.check.timeout).await
            }
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
