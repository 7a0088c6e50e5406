//! A lab for one scenario: laid out, configured, with the agent running; taken down when the scenario ends, also when it fails.
//!
//! Owns: one lab at a time (scenarios share the machine's cores, and timing matters to them). Refuses to know: what is tested.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use xtask::{
    capability,
    lab::{
        Lab,
        agent::Node,
        topology::{Host, vip},
    },
};

use super::{
    programs,
    session::{self, Connection, Server},
};

/// Port that the sessions' servers listen on.
pub const PORT: u16 = 7000;
/// Port behind services that map ports.
pub const PORT_MAPPED: u16 = 7001;
/// Bytes of a transfer.
pub const TRANSFER: u64 = 10 << 20;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits until no other scenario has a lab.
pub fn turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lab of a running scenario.
pub struct Scene {
    /// The lab.
    pub lab: Lab,
    servers: Vec<Server>,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = std::fs::read_to_string(self.lab.log_of("agent")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(30).collect();
            eprintln!("the agent's log ends:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        self.servers.clear();
        if let Err(error) = Lab::down(self.lab.name()) {
            eprintln!("the lab stays behind: {error:#}");
        }
    }
}

impl Scene {
    /// A lab whose agent runs `services`, with session servers on both ports of every backend; `None` where no lab can be.
    pub fn new(test: &str, node: &Node, services: &str) -> Option<Self> {
        let mut scene = Self::without_agent(test)?;
        scene.lab.write_config(node, services).expect("configuration");
        let agent = scene.lab.start_agent().expect("agent");
        scene.lab.wait_ready(&agent).unwrap_or_else(|error| panic!("{error:#}"));
        Some(scene)
    }

    /// As [`Scene::new`], before the agent is started.
    pub fn without_agent(test: &str) -> Option<Self> {
        if !capability::available(&capability::LAB, &format!("lab::{test}")) {
            return None;
        }
        // A scenario that failed leaves nothing that the next one could trip over.
        let turn = turn();
        let lab = Lab::up("weir-test", &programs().weir).unwrap_or_else(|error| panic!("{error:#}"));
        let mut servers = Vec::new();
        for host in xtask::lab::topology::BACKENDS {
            let netns = lab.namespace(host).path().display().to_string();
            servers.push(Server::start(&netns, PORT, host.name()));
            servers.push(Server::start(&netns, PORT_MAPPED, &format!("{}-mapped", host.name())));
        }
        Some(Self { lab, servers, _turn: turn })
    }

    /// File of a host's namespace.
    pub fn netns(&self, host: Host) -> String {
        self.lab.namespace(host).path().display().to_string()
    }

    /// A connection from the client.
    pub fn connect(&self, to: SocketAddr) -> Connection {
        Connection::open(&self.netns(Host::Client), to).unwrap_or_else(|error| panic!("connecting to {to}: {error}"))
    }

    /// A datagram from the client and the name of who echoed it.
    pub fn datagram(&self, to: SocketAddr, len: usize) -> String {
        session::datagram(&self.netns(Host::Client), to, len)
            .unwrap_or_else(|error| panic!("a datagram of {len} bytes to {to}: {error}"))
    }

    /// Packets counted under a reason, over all interfaces.
    pub fn reason(&self, name: &str) -> u64 {
        let stats = self.lab.weir_json(&["stats"]).expect("stats");
        let interfaces = stats["interfaces"].as_array().expect("interfaces");
        let reasons = interfaces.iter().flat_map(|interface| interface["reasons"].as_array().into_iter().flatten());
        reasons.filter(|reason| reason["reason"] == name).filter_map(|reason| reason["packets"].as_u64()).sum()
    }

    /// Waits until the status satisfies `wanted`.
    pub fn wait_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let status = self.lab.status().expect("status");
            if wanted(&status) {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{what}: not within 10 s: {status:#}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// VIP `number` with a port.
pub fn at(number: u8, v6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(vip(number, v6), port)
}

/// A TCP and a UDP service on [`PORT`], health asked of the backends' web servers.
pub fn both_protocols(name: &str, vip: IpAddr, forward: &str, backends: &[(IpAddr, u16)]) -> String {
    let backends: Vec<_> = backends.iter().map(|(address, port)| (*address, *port, 1)).collect();
    ["tcp", "udp"]
        .map(|protocol| {
            let name = format!("{name}-{protocol}");
            xtask::lab::command::service_to(&name, (vip, PORT), protocol, forward, &backends)
        })
        .concat()
}
