//! What goes wrong for a moment while the store is written: servers, the network, agents, and writers that die half-way.

use std::{
    fs,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use xtask::lab::fleet::{
    Fleet,
    redis::Keep,
    topology::{Host, REDIS_PORT},
};

use super::{NODES, SENTINEL_PORT, writer::Random};

/// Ports of the servers under Sentinel.
pub const SERVERS: [u16; 3] = [REDIS_PORT, REDIS_PORT + 1, REDIS_PORT + 2];
/// Directives of a server that takes a write only with a replica.
const REPLICATED: [&str; 4] = ["--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0"];

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server is killed, and restarted from its file.
    Restart,
    /// The server stands still for a second.
    Pause,
    /// A node is cut off from the store for a second.
    Cut,
    /// An agent is killed and restarted.
    Agent,
    /// An agent starts while the server is away.
    Away,
    /// Processes that write are killed half-way.
    Writers,
    /// The master is killed, and comes back when another one is.
    FailOver,
    /// The master stands still until another one is.
    Stall,
}

/// Those of one server.
pub const STANDALONE: [Fault; 6] =
    [Fault::Restart, Fault::Pause, Fault::Cut, Fault::Agent, Fault::Away, Fault::Writers];
/// Those of a master with replicas.
pub const SENTINEL: [Fault; 5] = [Fault::FailOver, Fault::Cut, Fault::Stall, Fault::Agent, Fault::Writers];

/// Lets it happen, and ends when it is over.
pub fn happen(fleet: &mut Fleet, fault: Fault, random: &mut Random) -> Result<()> {
    let node = NODES[random.below(3) as usize];
    println!("{fault:?} ({})", node.name());
    let redis = Fleet::redis_of(REDIS_PORT);
    let second = Duration::from_secs(1);
    match fault {
        Fault::Restart => {
            fleet.ground.process(&redis)?.end()?;
            fleet.start_redis(REDIS_PORT, Keep::Everything, &[]).map(drop)
        }
        Fault::Pause => {
            let process = fleet.ground.process(&redis)?;
            process.signal(Signal::SIGSTOP)?;
            thread::sleep(second);
            process.signal(Signal::SIGCONT)
        }
        Fault::Cut => {
            fleet.cut(node, Host::Control)?;
            thread::sleep(second);
            fleet.join(node, Host::Control)
        }
        Fault::Agent => {
            fleet.kill_agent(node)?;
            fleet.start_agent(node).map(drop)
        }
        Fault::Away => {
            fleet.ground.process(&redis)?.end()?;
            fleet.kill_agent(node)?;
            fleet.start_agent(node)?;
            thread::sleep(second);
            fleet.start_redis(REDIS_PORT, Keep::Everything, &[]).map(drop)
        }
        Fault::Writers => writers(fleet, node, random),
        Fault::FailOver => {
            let port = master(fleet)?;
            fleet.ground.process(&Fleet::redis_of(port))?.end()?;
            another(fleet, port)?;
            // It comes back as the master that it was, and Sentinel makes a replica of it.
            fleet.start_redis(port, Keep::Everything, &REPLICATED)?;
            replicas(fleet)
        }
        Fault::Stall => {
            let port = master(fleet)?;
            let process = fleet.ground.process(&Fleet::redis_of(port))?;
            process.signal(Signal::SIGSTOP)?;
            another(fleet, port)?;
            process.signal(Signal::SIGCONT)?;
            replicas(fleet)
        }
    }
}

/// Command lines that write are killed, each at another moment of its work.
fn writers(fleet: &Fleet, node: Host, random: &mut Random) -> Result<()> {
    let file = fleet.config_file(node);
    for _ in 0..5 {
        let backend = format!("web/{}:80", Host::Backend(1).address(false));
        let weight = (1 + random.below(9)).to_string();
        let mut command = fleet.command(node, &fleet.ground.weir_binary().to_string_lossy())?;
        command.args(["backend", "weight", &backend, &weight, "--config"]).arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().context("starting a writer")?;
        thread::sleep(Duration::from_millis(random.below(60)));
        // One that is through already is no less a writer.
        let _ = child.kill();
        child.wait()?;
    }
    Ok(())
}

/// Starts a master, two replicas and a Sentinel, and waits until they know each other.
pub fn start_group(fleet: &mut Fleet) -> Result<()> {
    let address = Host::Control.address(false).to_string();
    for port in SERVERS {
        let first = SERVERS[0].to_string();
        let follow = ["--replicaof", &*address, &*first];
        let more = REPLICATED.iter().chain(follow.iter().filter(|_| port != SERVERS[0])).copied().collect::<Vec<_>>();
        fleet.start_redis(port, Keep::Everything, &more)?;
    }
    let master = fleet.redis_at(SERVERS[0]);
    fleet.start_sentinel(
        SENTINEL_PORT,
        "weir",
        master,
        &[("down-after-milliseconds", "1000"), ("failover-timeout", "3000")],
    )?;
    replicas(fleet)
}

/// Port of the server that Sentinel calls the master.
fn master(fleet: &Fleet) -> Result<u16> {
    let answer = fleet.redis(SENTINEL_PORT, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "weir"])?;
    answer.lines().nth(4).context("no master")?.trim().parse().with_context(|| answer.clone())
}

/// Waits until another server than that at `port` is the master.
fn another(fleet: &Fleet, port: u16) -> Result<()> {
    until("another master", || Ok(master(fleet)? != port))
}

/// Waits until the master has both replicas.
fn replicas(fleet: &Fleet) -> Result<()> {
    until("two replicas", || {
        let known = fleet.redis(SENTINEL_PORT, &["SENTINEL", "MASTER", "weir"])?;
        let told = fleet.redis(master(fleet)?, &["INFO", "replication"])?;
        Ok(known.contains("num-slaves\r\n$1\r\n2") && told.matches("state=online").count() == 2)
    })
}

/// Empties the server: it is killed, its file goes, and it comes back.
pub fn empty(fleet: &mut Fleet) -> Result<()> {
    println!("Empty");
    fleet.ground.process(&Fleet::redis_of(REDIS_PORT))?.end()?;
    let folder = fleet.ground.folder().join(Fleet::redis_of(REDIS_PORT));
    ensure!(folder.starts_with(Path::new("/run/weir-lab")), "{}", folder.display());
    fs::remove_dir_all(&folder)?;
    fleet.start_redis(REDIS_PORT, Keep::Everything, &[]).map(drop)
}

/// Waits until `check` holds; its errors are waited out like a no.
pub fn until(what: &str, mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        match check() {
            Ok(true) => return Ok(()),
            last if start.elapsed() > Duration::from_secs(40) => {
                last.map(drop)?;
                anyhow::bail!("{what}: not within {:?}", start.elapsed());
            }
            _ => thread::sleep(Duration::from_millis(50)),
        }
    }
}
