//! No connection moves: a thousand real ones that talk all the time, while everything about their service changes.
//!
//! Owns: connections that know which backend they began with, and the list of changes. A reset, a connection that is closed, or an
//! answer from another backend is a failure, whatever was changed at that moment.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use xtask::lab::{
    agent::Node,
    client::{self, Ports},
    command::service,
    topology::{HTTP_PORT, Host},
};

use super::scene::{Scene, at};

/// Connections that stay open over all changes.
pub const CONNECTIONS: usize = 1000;
/// Time between two requests on a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an answer may take on a machine that does everything at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between changes: shorter than a window, so that changes meet the windows of earlier ones.
const BETWEEN: Duration = Duration::from_millis(1500);
/// How the service keeps its flows; nothing that drains is cut off within the test.
const KEPT: &str = "announce_for = \"1s\"\nwindow = \"5s\"\ndrain_timeout = \"10m\"";

/// One request on an open connection; the name of the backend that answered.
async fn ask(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n").await.context("sending")?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        let read = timeout(ANSWER_TIMEOUT, stream.read(&mut buffer)).await.context("no answer in time")?;
        let read = read.context("reading")?;
        ensure!(read > 0, "the connection was closed");
        answer.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        ensure!(head.starts_with("HTTP/1.1 200"), "{}", head.lines().next().unwrap_or_default());
        if let Some(name) = body.strip_suffix('\n') {
            return Ok(name.to_owned());
        }
    }
}

/// Who answered on a connection, and how often; or what went wrong.
type Answered = Result<(String, u32)>;

/// Keeps asking over one connection, and says who answered, and how often.
async fn hold(from: SocketAddr, to: SocketAddr, open: Arc<AtomicUsize>, stop: Arc<AtomicBool>) -> Answered {
    let mut stream = client::connect(Some(from), to).await?;
    stream.set_nodelay(true)?;
    let name = ask(&mut stream).await.context("at first")?;
    open.fetch_add(1, Ordering::Relaxed);
    let mut answers = 1;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(PAUSE).await;
        let now = ask(&mut stream).await.with_context(|| format!("{from}, after {answers} answers of {name}"))?;
        if now != name {
            bail!("{from} began with {name} and was answered by {now}");
        }
        answers += 1;
    }
    Ok((name, answers))
}

/// Connections that are held open, from their own thread in the client's namespace.
pub struct Held {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Answered>>>,
}

impl Held {
    /// Opens them, and returns once all are open.
    pub fn open(scene: &Scene, to: SocketAddr) -> Self {
        let (stop, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (flag, counted) = (Arc::clone(&stop), Arc::clone(&open));
        let source = Host::Client.address(to.is_ipv6());
        let run = move || {
            let ports = Ports::starting_at(0);
            client::runtime()?.block_on(async {
                let mut held = JoinSet::new();
                for n in 0..CONNECTIONS {
                    let from = SocketAddr::new(source, ports.next());
                    held.spawn(hold(from, to, Arc::clone(&counted), Arc::clone(&flag)));
                    // Not all at once: the backends' queues are finite.
                    if n % 20 == 0 {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                let mut ended = Vec::new();
                while let Some(one) = held.join_next().await {
                    ended.push(one?);
                }
                Ok(ended)
            })
        };
        let thread = scene.lab.namespace(Host::Client).spawn(run).expect("the client");
        let start = Instant::now();
        while open.load(Ordering::Relaxed) < CONNECTIONS {
            assert!(start.elapsed() < Duration::from_secs(60), "only {} are open", open.load(Ordering::Relaxed));
            assert!(!thread.is_finished(), "the client ended");
            thread::sleep(Duration::from_millis(50));
        }
        Self { stop, thread }
    }

    /// Closes them; every one has to have stayed with its backend. Gives how many each backend had.
    pub fn close(self) -> BTreeMap<String, usize> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join().expect("the client's thread").expect("the client");
        assert_eq!(ended.len(), CONNECTIONS);
        let failures: Vec<String> = ended.iter().filter_map(|e| e.as_ref().err()).map(|e| format!("{e:#}")).collect();
        assert!(
            failures.is_empty(),
            "{} of {CONNECTIONS} connections moved or broke, among them:\n{}",
            failures.len(),
            failures.iter().take(10).cloned().collect::<Vec<_>>().join("\n")
        );
        let (mut by_backend, mut answers) = (BTreeMap::new(), 0);
        for (name, n) in ended.into_iter().flatten() {
            *by_backend.entry(name).or_default() += 1;
            answers += n;
        }
        println!("{answers} answers over {CONNECTIONS} connections, by backend {by_backend:?}");
        assert!(answers as usize > 10 * CONNECTIONS, "hardly any exchange: {answers}");
        by_backend
    }
}

/// The service with an algorithm and backends; `more` are further keys of it.
pub fn web(algo: &str, more: &str, to: &[(Host, u16)]) -> String {
    let text = service("web", 0, false, "tcp", HTTP_PORT, "ipip", to);
    text.replacen("forward = ", &format!("algo = \"{algo}\"\n{KEPT}\n{more}\nforward = "), 1)
}

/// Changes the configuration, and waits until that is in force and some time has passed.
pub fn change(scene: &Scene, what: &str, text: &str) {
    let before = scene.lab.status().expect("status")["revision"].as_u64().expect("revision");
    scene.lab.write_config(&Node::default(), text).expect("configuration");
    scene.wait_status(what, |status| status["revision"].as_u64() > Some(before));
    println!("{what}");
    thread::sleep(BETWEEN);
}

fn restart_agent(scene: &mut Scene) {
    scene.lab.kill_agent().expect("kill");
    thread::sleep(Duration::from_millis(300));
    let agent = scene.lab.start_agent().expect("agent");
    scene.lab.wait_ready(&agent).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(scene.lab.status().expect("status")["adopted"], true);
    println!("the agent was killed and restarted");
    thread::sleep(BETWEEN);
}

/// Three backends of the same weight.
pub const B123: [(Host, u16); 3] = [(Host::B1, 1), (Host::B2, 1), (Host::B3, 1)];

#[test]
fn backends_come_and_go_and_no_connection_moves() {
    let first = web("maglev", "", &B123);
    let Some(mut scene) = Scene::new("backends_come_and_go_and_no_connection_moves", &Node::default(), &first) else {
        return;
    };
    let held = Held::open(&scene, at(0, false, HTTP_PORT));
    let mut four = B123.to_vec();
    four.push((Host::B4, 1));
    change(&scene, "b4 is added", &web("maglev", "", &four));
    change(&scene, "b2 is removed", &web("maglev", "", &[four[0], four[2], four[3]]));
    change(&scene, "weights change", &web("maglev", "", &[(Host::B1, 3), (Host::B3, 1), (Host::B4, 2)]));
    restart_agent(&mut scene);
    change(&scene, "b2 comes back", &web("maglev", "", &four));
    scene.lab.weir(Host::Lb, &["backend", "drain", "web/10.77.0.13:80"].map(str::to_owned)).expect("drain");
    thread::sleep(BETWEEN);
    let five = [(Host::B1, 1), (Host::B4, 1), (Host::B5, 1)];
    change(&scene, "b2 and b3 are replaced by b5", &web("maglev", "", &five));
    restart_agent(&mut scene);
    change(&scene, "everything is back", &web("maglev", "", &B123));
    // Windows close while connections of former owners go on.
    thread::sleep(Duration::from_secs(8));
    let by_backend = held.close();
    assert_eq!(by_backend.keys().collect::<Vec<_>>(), ["b1", "b2", "b3"]);
}

#[test]
fn algorithms_change_and_no_connection_moves() {
    let first = web("maglev", "", &B123);
    let Some(mut scene) = Scene::new("algorithms_change_and_no_connection_moves", &Node::default(), &first) else {
        return;
    };
    let held = Held::open(&scene, at(0, false, HTTP_PORT));
    change(&scene, "the ring is smaller", &web("maglev", "algo_config = { ring_size = 4099 }", &B123));
    change(&scene, "the client's address decides", &web("source_hash", "", &B123));
    change(&scene, "the fewest connections decide", &web("least_connections", "", &B123));
    restart_agent(&mut scene);
    let mut four = B123.to_vec();
    four.push((Host::B4, 1));
    change(&scene, "b4 is added", &web("round_robin", "", &four));
    change(&scene, "the better of two", &web("random_two", "", &four[1..]));
    change(&scene, "back to the ring", &web("maglev", "", &B123));
    restart_agent(&mut scene);
    thread::sleep(Duration::from_secs(8));
    held.close();
}
