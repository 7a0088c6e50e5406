//! What is broken, in which way, and how it is mended.
//!
//! Refuses to know: what must follow from it.

use std::fmt;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use xtask::lab::fleet::{Fleet, control::PROMETHEUS, topology::Host};

/// The node that is hit.
pub const NODE: Host = Host::Node(1);
/// The backend that is hit.
pub const BACKEND: Host = Host::Backend(3);
/// The DNS server that is hit.
pub const DNS: u8 = 1;

/// A part of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The agent of a node; cut off, the whole node.
    Agent,
    /// The orchestrator that decides.
    Master,
    /// The orchestrator that only checks.
    Worker,
    /// A DNS server.
    Dns,
    /// The Redis server that takes writes.
    Redis,
    /// Prometheus.
    Prometheus,
    /// The web server of a backend; cut off, the whole backend.
    Backend,
}

/// All of them.
pub const PARTS: [Part; 7] =
    [Part::Agent, Part::Master, Part::Worker, Part::Dns, Part::Redis, Part::Prometheus, Part::Backend];

/// How it is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The process is killed, and started again.
    Kill,
    /// The process stands still, and goes on.
    Pause,
    /// Its host is cut off from all others, and joined again.
    Cut,
}

/// All of them.
pub const WAYS: [Way; 3] = [Way::Kill, Way::Pause, Way::Cut];

/// One of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub part: Part,
    /// How.
    pub way: Way,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Master => "master",
            Self::Worker => "worker",
            Self::Dns => "dns",
            Self::Redis => "redis",
            Self::Prometheus => "prometheus",
            Self::Backend => "backend",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::Kill => "kill",
            Way::Pause => "pause",
            Way::Cut => "cut",
        };
        write!(f, "{way} {}", self.part)
    }
}

/// Faults as a user names them: `kill master+cut dns, pause agent`.
pub fn named(text: &str) -> Result<Vec<Vec<Fault>>> {
    let all = || PARTS.into_iter().flat_map(|part| WAYS.map(|way| Fault { part, way }));
    let one = |name: &str| {
        all().find(|fault| fault.to_string() == name.trim()).with_context(|| format!("`{name}` is no fault"))
    };
    text.split(',').map(|faults| faults.split('+').map(one).collect()).collect()
}

/// A fault that has happened, with the process or host that it hit.
pub struct Hit {
    /// Which fault.
    pub fault: Fault,
    host: Host,
    process: String,
}

/// Who plays the parts that move.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// Number of the master.
    pub master: u8,
    /// Number of the store's primary.
    pub primary: u8,
}

impl Fault {
    /// Lets it happen.
    pub fn happen(self, fleet: &Fleet, cast: Cast) -> Result<Hit> {
        let (host, process) = match self.part {
            Part::Agent => (NODE, Fleet::agent_of(NODE)),
            Part::Master => (Host::Orchestrator(cast.master), Fleet::orchestrator_of(cast.master)),
            Part::Worker => (Host::Orchestrator(3 - cast.master), Fleet::orchestrator_of(3 - cast.master)),
            Part::Dns => (Host::Dns(DNS), Fleet::dns_of(DNS)),
            Part::Redis => (Host::Store(cast.primary), Fleet::store_of(cast.primary)),
            Part::Prometheus => (Host::Prometheus, PROMETHEUS.to_owned()),
            Part::Backend => (BACKEND, Fleet::web_of(BACKEND)),
        };
        let hit = Hit { fault: self, host, process };
        match self.way {
            Way::Kill => fleet.ground.process(&hit.process)?.signal(Signal::SIGKILL)?,
            Way::Pause => fleet.ground.process(&hit.process)?.signal(Signal::SIGSTOP)?,
            Way::Cut => fleet.isolate(hit.host)?,
        }
        Ok(hit)
    }
}

impl Hit {
    /// Mends it.
    pub fn mend(&self, fleet: &mut Fleet) -> Result<()> {
        match self.fault.way {
            Way::Pause => fleet.ground.process(&self.process)?.signal(Signal::SIGCONT),
            Way::Cut => fleet.rejoin(self.host),
            Way::Kill => match self.host {
                Host::Node(_) => fleet.start_agent(self.host).map(drop),
                Host::Orchestrator(n) => fleet.start_orchestrator(n).map(drop),
                Host::Dns(n) => fleet.start_dns(n).map(drop),
                // It comes back as what it was, and the Sentinels make a replica of it.
                Host::Store(n) => fleet.start_store_server(n, &[]).map(drop),
                Host::Prometheus => fleet.start_prometheus().map(drop),
                _ => fleet.start_web(self.host),
            },
        }
    }
}
