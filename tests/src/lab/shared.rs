//! Three nodes on one Redis: what is written reaches all of them, whatever happens to the store, the network and the agents meanwhile.
//!
//! `WEIR_CHANGES` asks for more changes than the tier makes; `WEIR_SEED` plays the ones of an earlier run.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use xtask::{
    capability,
    lab::fleet::{
        Fleet,
        redis::Keep,
        topology::{HTTP_PORT, Host, POOL_V4, REDIS_PORT},
    },
};

use super::programs;

/// Name of the lab.
const NAME: &str = "weir-fleet";
/// Nodes of this scenario.
const NODES: [Host; 3] = [Host::Node(1), Host::Node(2), Host::Node(3)];
/// Changes that the tier makes.
const CHANGES: u64 = 40;
/// Longest time without an answer through any VIP: a change or a fault of the control plane must not show here. A machine that runs everything
/// at once takes some of it.
const GAP_MAX: Duration = Duration::from_millis(500);
/// How long quiet may take until every node has the last revision: the reader's slow look and its longest pause.
const QUIET: Duration = Duration::from_secs(30);

/// Takes the lab down, also when the scenario fails.
struct Scene(Fleet);

impl Drop for Scene {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in NODES {
                let log = fs::read_to_string(self.0.ground.log_of(&Fleet::agent_of(node))).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(20).collect();
                eprintln!(
                    "the log of {} ends:\n{}",
                    node.name(),
                    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                );
            }
        }
        if let Err(error) = Fleet::down(NAME) {
            eprintln!("the lab stays behind: {error:#}");
        }
    }
}

/// Splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn services() -> String {
    let mut text = format!(
        "[[pool]]\nname = \"front\"\nprefix = \"{POOL_V4}\"\n\n[[service]]\nname = \"web\"\nvip = \"pool:front\"\n"
    );
    text += "port = 80\nprotocol = \"tcp\"\nforward = \"ipip\"\nannounce_for = \"1s\"\nwindow = \"3s\"\n";
    text += "[service.health_check]\ntype = \"http\"\npath = \"/health\"\ninterval = \"1s\"\ntimeout = \"900ms\"\n";
    for n in 1..=4 {
        text += &format!("[[service.backends]]\naddress = \"{}\"\nweight = 1\n", Host::Backend(n).address(false));
    }
    text
}

/// One request over a new connection; the name of the backend that answered.
fn get(to: SocketAddr) -> Result<String> {
    let patience = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&to, patience).context("connecting")?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.trim().to_owned())
}

/// What a client saw through one VIP.
#[derive(Debug, Default)]
struct Seen {
    answers: u64,
    failures: Vec<String>,
    gap: Duration,
}

/// Keeps asking through a VIP until it is stopped.
fn load(fleet: &Fleet, to: SocketAddr, stop: Arc<AtomicBool>) -> JoinHandle<Result<Seen>> {
    let ask = move || {
        let (mut seen, mut last) = (Seen::default(), Instant::now());
        while !stop.load(Ordering::Relaxed) {
            match get(to) {
                Ok(_) => {
                    seen.answers += 1;
                    seen.gap = seen.gap.max(last.elapsed());
                    last = Instant::now();
                }
                Err(error) => seen.failures.push(format!("{to}: {error:#}")),
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(seen)
    };
    fleet.ground.namespace(&Host::Client.name()).spawn(ask).expect("the client")
}

/// The address that a node leases.
fn leased(fleet: &Fleet, node: Host) -> IpAddr {
    let status = fleet.weir_json(node, &["status"]).expect("status");
    status["store"]["pools"][0]["address"].as_str().expect("a lease").parse().expect("an address")
}

/// `weir ARGUMENTS --config FILE` of a node; writes go to the store.
fn write(fleet: &Fleet, node: Host, arguments: &[&str]) -> Result<String> {
    let file = fleet.config_file(node).display().to_string();
    let all: Vec<&str> = arguments.iter().copied().chain(["--config", &file]).collect();
    fleet.weir(node, &all)
}

/// Slots of each backend on a node, and its configured weight.
fn shares(fleet: &Fleet, node: Host) -> BTreeMap<String, (u64, u64)> {
    let list = fleet.weir_json(node, &["backend", "list"]).expect("backends");
    let backends = list.as_array().expect("a list").iter().filter(|backend| backend["leaving"] != true);
    let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX);
    backends
        .map(|b| {
            let name = b["name"].as_str().unwrap_or_default().to_owned();
            (name, (number(&b["share"]["slots"]), number(&b["weight_configured"])))
        })
        .collect()
}

#[test]
fn three_nodes_hold_what_the_store_holds_through_faults_of_everything() {
    const TEST: &str = "lab::three_nodes_hold_what_the_store_holds_through_faults_of_everything";
    if !capability::available(&capability::LAB, TEST) {
        return;
    }
    let _turn = super::scene::turn();
    let from_env = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = from_env("WEIR_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 ^ unix_ms());
    let changes = from_env("WEIR_CHANGES").unwrap_or(CHANGES);
    println!("WEIR_SEED={seed}");
    let mut random = Random(seed);

    let fleet = Fleet::up(NAME, &programs().weir).unwrap_or_else(|error| panic!("{error:#}"));
    let mut scene = Scene(fleet);
    let fleet = &mut scene.0;
    fleet.start_redis(REDIS_PORT, Keep::Everything, &[]).expect("redis");
    let store = format!(
        "[store]\nkind = \"redis\"\nurl = \"redis://{}:{REDIS_PORT}\"\ninsecure = true\n",
        Host::Control.address(false)
    );
    for node in NODES {
        fleet.write_node(node, &store).expect("configuration");
    }
    let file = fleet.ground.folder().join("services.toml");
    fs::write(&file, services()).expect("services");
    write(fleet, NODES[0], &["config", "apply", &file.display().to_string()]).unwrap_or_else(|e| panic!("{e:#}"));
    for node in NODES {
        fleet.start_agent(node).expect("agent");
    }
    let ready = |status: &Value| status["counts"]["backends_up"] == 4 && status["counts"]["backends_unresolved"] == 0;
    for node in NODES {
        fleet.wait_status(node, "ready", ready).unwrap_or_else(|error| panic!("{error:#}"));
    }
    let vips = NODES.map(|node| leased(fleet, node));
    assert!(vips[0] != vips[1] && vips[1] != vips[2] && vips[0] != vips[2], "{vips:?}");

    let stop = Arc::new(AtomicBool::new(false));
    let loads = vips.map(|vip| load(fleet, SocketAddr::new(vip, HTTP_PORT), Arc::clone(&stop)));
    let mut weights: BTreeMap<u8, u64> = (1..=4).map(|n| (n, 1)).collect();
    let mut refused = 0;
    for change in 0..changes {
        if change % 5 == 4 {
            fault(fleet, &mut random);
        }
        let (backend, weight) = (1 + random.below(4) as u8, 1 + random.below(9));
        let (name, text) = (format!("web/{}:80", Host::Backend(backend).address(false)), weight.to_string());
        match write(fleet, NODES[random.below(3) as usize], &["backend", "weight", &name, &text]) {
            Ok(_) => _ = weights.insert(backend, weight),
            Err(error) => {
                // Whether it was made is not known: it is made again until the answer is heard.
                refused += 1;
                let start = Instant::now();
                while let Err(again) = write(fleet, NODES[0], &["backend", "weight", &name, &text]) {
                    assert!(start.elapsed() < QUIET, "the store takes no change: {error:#}, then {again:#}");
                    thread::sleep(Duration::from_millis(200));
                }
                weights.insert(backend, weight);
            }
        }
        thread::sleep(Duration::from_millis(random.below(150)));
    }

    // Quiet: every node has the store's revision, its weights, and the same ring.
    let head = write(fleet, NODES[0], &["config", "history", "-o", "json"]).expect("history");
    let head: Value = serde_json::from_str(&head).expect("JSON");
    let (number, digest) = (&head[0]["revision"]["number"], head[0]["revision"]["digest"].as_str().expect("a digest"));
    let revision = format!("{number}-{}", &digest[..8]);
    for node in NODES {
        let current = |status: &Value| status["store"]["applied"] == revision.as_str() && status["store"]["up"] == true;
        let took = fleet.wait_status(node, &format!("at {revision}"), current).unwrap_or_else(|e| panic!("{e:#}"));
        assert!(took < QUIET);
    }
    thread::sleep(Duration::from_secs(2));
    let first = shares(fleet, NODES[0]);
    for (backend, weight) in &weights {
        let name = format!("{}:80", Host::Backend(*backend).address(false));
        assert_eq!(first[&name].1, *weight, "{name}: {first:?}, seed {seed}");
    }
    for node in NODES {
        assert_eq!(shares(fleet, node), first, "{} has another ring, seed {seed}", node.name());
        let status = fleet.weir_json(node, &["status"]).expect("status");
        assert_eq!(status["store"]["losses"], 0, "{}: {}", node.name(), status["store"]);
    }
    assert_eq!(NODES.map(|node| leased(fleet, node)), vips, "leases stay");
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        let seen = load.join().expect("the client's thread").expect("the client");
        println!("{} answers, longest gap {} ms", seen.answers, seen.gap.as_millis());
        assert!(seen.failures.is_empty(), "{:?}, seed {seed}", seen.failures.iter().take(5).collect::<Vec<_>>());
        assert!(seen.answers > 100 && seen.gap < GAP_MAX, "a gap of {:?}, seed {seed}", seen.gap);
    }
    println!("{changes} changes, {refused} of them not at the first try, revision {revision} on three nodes");
}

/// Something goes wrong for a moment.
fn fault(fleet: &mut Fleet, random: &mut Random) {
    let redis = Fleet::redis_of(REDIS_PORT);
    let node = NODES[random.below(3) as usize];
    match random.below(5) {
        0 => {
            println!("redis is killed, and restarted from its file");
            let process = fleet.ground.process(&redis).expect("redis").clone();
            process.end().expect("end");
            fleet.start_redis(REDIS_PORT, Keep::Everything, &[]).expect("redis");
        }
        1 => {
            println!("redis is paused for a second");
            let process = fleet.ground.process(&redis).expect("redis").clone();
            process.signal(Signal::SIGSTOP).expect("stop");
            thread::sleep(Duration::from_secs(1));
            process.signal(Signal::SIGCONT).expect("continue");
        }
        2 => {
            println!("{} is cut off from the store for a second", node.name());
            fleet.cut(node, Host::Control).expect("cut");
            thread::sleep(Duration::from_secs(1));
            fleet.join(node, Host::Control).expect("join");
        }
        3 => {
            println!("the agent of {} is killed and restarted", node.name());
            fleet.kill_agent(node).expect("kill");
            fleet.start_agent(node).expect("agent");
        }
        _ => {
            println!("the agent of {} starts while redis is away", node.name());
            let process = fleet.ground.process(&redis).expect("redis").clone();
            process.end().expect("end");
            fleet.kill_agent(node).expect("kill");
            fleet.start_agent(node).expect("agent");
            thread::sleep(Duration::from_secs(2));
            fleet.start_redis(REDIS_PORT, Keep::Everything, &[]).expect("redis");
        }
    }
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}
