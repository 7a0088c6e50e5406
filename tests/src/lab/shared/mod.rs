//! Three nodes on one Redis: what is written reaches all of them, whatever happens to the store, the network, agents and writers meanwhile.
//!
//! `WEIR_CHANGES` asks for more changes than the tier makes; `WEIR_SEED` plays the ones of an earlier run (what happens between them
//! is up to the machine).

mod fault;
mod places;
mod propagation;

mod record;
mod rings;
mod traffic;
mod writer;

use std::{
    fs, thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::{
    capability,
    lab::fleet::{
        Fleet,
        redis::Keep,
        topology::{Host, POOL_V4, REDIS_PORT},
    },
};

use self::{fault::Fault, record::Record, traffic::Traffic, writer::Random};
use super::programs;

/// Name of the lab.
const NAME: &str = "weir-fleet";
/// Nodes of these scenarios.
const NODES: [Host; 3] = [Host::Node(1), Host::Node(2), Host::Node(3)];
/// Port of the Sentinel.
const SENTINEL_PORT: u16 = 26379;
/// Changes that the tier makes.
const CHANGES: u64 = 40;
/// Changes between two faults, in runs that make more.
const BETWEEN: u64 = 100;
/// Faults between two in which the server comes back empty.
const EMPTIED_EVERY: u64 = 12;
/// Longest time without an answer through a VIP, beyond what the machine itself did to a client that goes past the load balancer.
const GAP_MAX: Duration = Duration::from_millis(200);
/// Time for the lab, the first health, quiet and the verdict.
const AROUND: Duration = Duration::from_secs(240);
/// Time for each fault with the changes that are made meanwhile; a run that takes longer than all of them together is stuck.
const EACH: Duration = Duration::from_secs(20);
/// How long quiet may take until every node has the last revision: the reader's slow look and its longest pause.
const QUIET: Duration = Duration::from_secs(30);

/// Takes the lab down, also when the scenario fails.
struct Scene(Fleet);

impl Drop for Scene {
    fn drop(&mut self) {
        if thread::panicking() {
            for node in NODES {
                let log = fs::read_to_string(self.0.ground.log_of(&Fleet::agent_of(node))).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(30).collect();
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

/// The text of a service.
fn service(name: &str, vip: &str) -> String {
    let mut text = format!("[[service]]\nname = \"{name}\"\nvip = \"{vip}\"\nport = 80\nprotocol = \"tcp\"\n");
    text += "forward = \"ipip\"\nannounce_for = \"1s\"\nwindow = \"3s\"\nalgo_config = { ring_size = 1021 }\n\n";
    text += "[service.health_check]\ntype = \"http\"\npath = \"/health\"\ninterval = \"2s\"\ntimeout = \"1900ms\"\n";
    for n in 1..=4 {
        text += &format!("\n[[service.backends]]\naddress = \"{}\"\nweight = 1\n", Host::Backend(n).address(false));
    }
    text
}

fn services() -> String {
    format!("[[pool]]\nname = \"front\"\nprefix = \"{POOL_V4}\"\n\n{}", service("web", "pool:front"))
}

/// `weir ARGUMENTS --config FILE` of a node; writes go to the store.
fn write(fleet: &Fleet, node: Host, arguments: &[&str]) -> Result<String> {
    let file = fleet.config_file(node).display().to_string();
    let all: Vec<&str> = arguments.iter().copied().chain(["--config", &file]).collect();
    fleet.weir(node, &all)
}

/// Three nodes that serve what `services` says, on a store that runs already and that `store` names.
fn begin(fleet: &mut Fleet, store: &str, services: &str) -> Result<()> {
    for node in NODES {
        fleet.write_node(node, store)?;
    }
    let file = fleet.ground.folder().join("services.toml");
    fs::write(&file, services)?;
    write(fleet, NODES[0], &["config", "apply", &file.display().to_string()])?;
    for node in NODES {
        fleet.start_agent(node)?;
    }
    Ok(())
}

/// Waits until every node serves with all backends up.
fn ready(fleet: &Fleet) -> Result<()> {
    let ready = |status: &Value| {
        let counts = &status["counts"];
        counts["backends_up"] == counts["backends"] && counts["backends_unresolved"] == 0
    };
    NODES.iter().try_for_each(|node| fleet.wait_status(*node, "ready", ready).map(drop))
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = from_env("WEIR_SEED").unwrap_or(u64::from(std::process::id()) << 20 ^ now.as_millis() as u64);
    println!("WEIR_SEED={seed}");
    seed
}

/// What `[store]` says where one server is the store.
fn one_redis() -> String {
    let address = Host::Control.address(false);
    format!("[store]\nkind = \"redis\"\nurl = \"redis://{address}:{REDIS_PORT}\"\ninsecure = true\n")
}

#[test]
fn three_nodes_hold_what_the_store_holds_through_faults_of_everything() {
    scenario("three_nodes_hold_what_the_store_holds_through_faults_of_everything", |fleet, random| {
        fleet.start_redis(REDIS_PORT, Keep::Everything, &[])?;
        play(fleet, &one_redis(), &fault::STANDALONE, true, random)
    });
}

#[test]
fn three_nodes_hold_what_the_store_holds_through_fail_overs() {
    scenario("three_nodes_hold_what_the_store_holds_through_fail_overs", |fleet, random| {
        fault::start_group(fleet)?;
        let url = format!("redis://{}:{SENTINEL_PORT}", Host::Control.address(false));
        let store =
            format!("[store]\nkind = \"redis\"\nsentinels = [\"{url}\"]\nmaster_name = \"weir\"\ninsecure = true\n");
        play(fleet, &store, &fault::SENTINEL, false, random)
    });
}

fn scenario(name: &str, play: impl FnOnce(&mut Fleet, Random) -> Result<()>) {
    if !capability::available(&capability::LAB, &format!("lab::shared::{name}")) {
        return;
    }
    let _turn = super::scene::turn();
    let seed = seed();
    let fleet = Fleet::up(NAME, &programs().weir).unwrap_or_else(|error| panic!("{error:#}"));
    let mut scene = Scene(fleet);
    play(&mut scene.0, Random(seed)).unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
}

/// Changes under faults, then quiet, then the verdict.
fn play(fleet: &mut Fleet, store: &str, faults: &[Fault], emptied: bool, mut random: Random) -> Result<()> {
    begin(fleet, store, &services())?;
    ready(fleet)?;
    let local = fs::read_to_string(fleet.config_file(NODES[0]))?;
    let vips = NODES.map(|node| rings::leases(fleet, node).map(|leases| leases["front"]));
    let vips = vips.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(vips[0] != vips[1] && vips[1] != vips[2] && vips[0] != vips[2], "{vips:?}");
    let traffic = Traffic::start(fleet, &vips)?;

    let changes = from_env("WEIR_CHANGES").unwrap_or(CHANGES);
    let count = (changes / BETWEEN).max(faults.len() as u64);
    let (mut record, mut order, mut losses) = (Record::default(), Vec::new(), 0);
    let (began, limit) = (Instant::now(), AROUND + EACH * count as u32);
    println!("{changes} changes under {count} faults within {} s", limit.as_secs());
    for step in 0..count {
        ensure!(began.elapsed() < limit, "only {step} of {count} faults after {} s", began.elapsed().as_secs());
        print!("{:4} s, {step:3}: ", began.elapsed().as_secs());
        if order.is_empty() {
            // Each kind once before any comes again.
            order = faults.to_vec();
            (1..order.len()).for_each(|at| order.swap(at, random.below(at as u64 + 1) as usize));
        }
        let writing = writer::start(fleet, local.clone(), changes / count, Random(random.below(u64::MAX)))?;
        fault::happen(fleet, order.pop().context("a fault")?, &mut random)?;
        record.did(writing.join().ok().context("the writer panicked")??);
        let (snapshot, history) = writer::look(fleet, &local)?;
        record.saw(&snapshot, &history)?;
        if emptied && step % EMPTIED_EVERY == count.min(EMPTIED_EVERY) / 2 {
            lose(fleet, &local, &mut random)?;
            losses += 1;
        }
    }

    // Quiet: every node has the store's revision, and the ring that follows from it, every slot settled.
    let (mut snapshot, history) = writer::look(fleet, &local)?;
    record.saw(&snapshot, &history)?;
    if snapshot.objects.keys().any(|key| key.name() == "broken") {
        write(fleet, NODES[0], &["service", "delete", "broken"])?;
        let (now, history) = writer::look(fleet, &local)?;
        record.saw(&now, &history)?;
        snapshot = now;
    }
    for node in NODES {
        let revision = snapshot.revision.to_string();
        let current = |status: &Value| status["store"]["applied"] == revision.as_str() && status["store"]["up"] == true;
        ensure!(fleet.wait_status(node, &format!("at {revision}"), current)? < QUIET);
    }
    ready(fleet)?;
    let (through, straight) = traffic.stop()?;
    for node in NODES {
        let settled = rings::agree(fleet, node, &snapshot.objects)?;
        println!("{}: the ring of {}, settled after {} ms", node.name(), snapshot.revision, settled.as_millis());
    }
    let leases = NODES.map(|node| rings::leases(fleet, node).map(|leases| leases["front"]));
    ensure!(leases.into_iter().collect::<Result<Vec<_>>>()? == vips, "leases moved");
    record.judge()?;
    let mut refusals = 0;
    for node in NODES {
        let (applied, refused, alarms) = record.agent(fleet, node)?;
        println!("{}: {applied} states in force, {refused} refused, {alarms} alarms", node.name());
        ensure!(alarms >= losses, "{}: {alarms} alarms, the store was lost {losses} times", node.name());
        refusals += refused;
    }
    ensure!(refusals > 0 || changes < 1_000, "no state that is no configuration was met");
    println!("past the load balancer: {} answers, longest gap {} ms", straight.answers, straight.gap.as_millis());
    for seen in &through {
        println!("through a VIP: {} answers, longest gap {} ms", seen.answers, seen.gap.as_millis());
    }
    for seen in through.iter().chain([&straight]) {
        ensure!(seen.failures.is_empty(), "{:?}", seen.failures.iter().take(5).collect::<Vec<_>>());
        ensure!(seen.answers > 100 && seen.gap < GAP_MAX + straight.gap, "a gap of {:?}", seen.gap);
    }
    let tries = record.failures;
    println!("{changes} changes under {count} faults, {tries} attempts failed, {} on three nodes", snapshot.revision);
    Ok(())
}

/// The store comes back empty: every node raises its alarm and goes on, until the store is put back from a node's copy.
fn lose(fleet: &mut Fleet, local: &str, random: &mut Random) -> Result<()> {
    let (head, _) = writer::look(fleet, local)?;
    let node = NODES[random.below(3) as usize];
    // What no node has kept is lost with the store: an invalid state is never kept, so the last one must be good.
    if head.objects.keys().any(|key| key.name() == "broken") {
        write(fleet, node, &["service", "delete", "broken"])?;
    }
    let (head, _) = writer::look(fleet, local)?;
    let copy = fleet.state_dir(node).join(lb_userspace::store::copy::COPY_FILE);
    fault::until("a copy of the newest state", || {
        Ok(lb_userspace::store::copy::read(&copy)?.revision == head.revision)
    })?;
    for node in NODES {
        fleet
            .wait_status(node, "in step", |status| status["store"]["applied"] == head.revision.to_string().as_str())?;
    }
    fault::empty(fleet)?;
    for node in NODES {
        fleet.wait_status(node, "alarmed", |status| status["store"]["history_lost"].is_string())?;
    }
    write(fleet, node, &["config", "restore"])?;
    for node in NODES {
        let back = |status: &Value| status["store"]["history_lost"].is_null() && status["store"]["up"] == true;
        fleet.wait_status(node, "on the store that was put back", back)?;
    }
    Ok(())
}
