//! What a schedule may do, and the things in it: orchestrators with their clocks, nodes, load, and what is switched off.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_userspace::{
    dns::{publish::ZoneSpec, zone::SoaObject},
    orchestrator::{
        clock::{BootTime, PERIODS, Periods},
        intent::Patience,
        master::{Policy, ZonePolicy},
        process::Process,
        scale::{Rule, Subject},
        watch::Node,
    },
};

/// What may happen, and which protections stand.
#[derive(Clone, Copy, Debug)]
pub struct World {
    /// Faults in the first part of the schedule, at most.
    pub faults: u32,
    /// Nodes may die.
    pub nodes_die: bool,
    /// The load changes.
    pub load_changes: bool,
    /// Orders may take very long to arrive, as from a process that was paused right before it sent them.
    pub torn: bool,
    /// The store looks at fences.
    pub fences: bool,
    /// A master acts for this long after a renewal was sent.
    pub act: Duration,
    /// Intents are recorded before anything is executed.
    pub record_first: bool,
    /// A missing metric is missing, not zero.
    pub missing_is_missing: bool,
}

/// Everything that can go wrong, all protections in place.
pub const SOUND: World = World {
    faults: 9,
    nodes_die: true,
    load_changes: true,
    torn: false,
    fences: true,
    act: PERIODS.act,
    record_first: true,
    missing_is_missing: true,
};

/// Orchestrators.
pub const PROCESSES: usize = 3;
/// Nodes that are there from the beginning.
pub const NODES: usize = 2;
/// Connections that a node takes.
pub const TARGET: f64 = 10.0;
pub const MIN: u32 = 2;
pub const MAX: u32 = 5;
/// Faults begin until then.
pub const FAULTS_END_US: u64 = 180_000_000;
/// The end of a schedule.
pub const END_US: u64 = 330_000_000;
/// Longest way of an order that was not torn.
pub const ORDER_US_MAX: u64 = 1_500_000;
/// The fleet begins with this many health targets.
pub const TARGETS: usize = 6;

/// The policy that all orchestrators have.
pub fn policy() -> Policy {
    Policy {
        zone: Some(ZonePolicy {
            spec: ZoneSpec {
                origin: "example".into(),
                ttl_s: 10,
                soa: SoaObject::new("ns1.example.net", "hostmaster.example.net"),
                ns: vec!["ns1.example.net".into()],
                fixed: BTreeMap::new(),
            },
            names: ["lb".to_owned()].into(),
        }),
        vantage_points: 1,
        scaling: vec![Rule {
            name: "nodes".into(),
            subject: Subject::Nodes,
            expr: "connections".into(),
            target: TARGET,
            tolerance: 0.1,
            min: MIN,
            max: MAX,
            down_window: Duration::from_secs(40),
            settle: Duration::from_secs(10),
            every: Duration::from_secs(5),
        }],
        replace: Vec::new(),
        patience: Patience {
            ready: Duration::from_secs(60),
            drain: Duration::from_secs(10),
            attempts: 5,
            pause: Duration::from_secs(3),
        },
        prefix: "lb".into(),
        dead_after: Duration::from_secs(25),
        dry_run: false,
    }
}

/// The periods, with what the world weakens.
pub fn periods(world: &World) -> Periods {
    Periods { act: world.act, ..PERIODS }
}

/// One orchestrator.
pub struct Orchestrator {
    pub name: String,
    /// `None` while it is down.
    pub process: Option<Process>,
    /// How often it was started.
    pub starts: u32,
    pub rate_ppm: i64,
    pub offset_us: u64,
    pub paused_until_us: u64,
    /// Its messages to the store are lost until then.
    pub cut_until_us: u64,
    /// Its writes alone are.
    pub mute_until_us: u64,
    /// The request under way.
    pub ticket: u64,
    pub wake_us: u64,
    /// What it checks, of which generation.
    pub share: BTreeSet<String>,
}

impl Orchestrator {
    /// Its own clock at `us`.
    pub fn clock(&self, us: u64) -> BootTime {
        let drifted = us.saturating_add_signed(us.cast_signed() / 1_000_000 * self.rate_ppm);
        BootTime(Duration::from_micros(drifted + self.offset_us))
    }

    pub fn start(&mut self, policy: &Arc<Policy>, periods: Periods) {
        self.starts += 1;
        let word = format!("s{}", self.starts);
        self.process = Some(Process::new(&self.name, &word, None, Arc::clone(policy), periods));
        self.share.clear();
        self.ticket += 1;
    }

    /// Whether it runs and reaches the store.
    pub fn is_well(&self, now_us: u64) -> bool {
        self.process.is_some() && now_us >= self.paused_until_us && now_us >= self.cut_until_us.max(self.mute_until_us)
    }
}

/// A load balancer node.
pub struct Machine {
    pub address: IpAddr,
    /// Since when it runs; `None` while it is dead.
    pub up_since_us: Option<u64>,
    pub died_us: u64,
    pub beat: u64,
    pub revision: u64,
    /// Removed for good.
    pub removed: bool,
}

impl Machine {
    pub fn report(&self) -> Node {
        Node {
            beat: self.beat,
            lease: Duration::from_secs(10),
            addresses: [self.address].into(),
            ready_at: Some((self.address, 9650).into()),
            revision: self.revision,
            ready: true,
            draining: false,
        }
    }
}

/// All machines by name.
pub type Machines = BTreeMap<String, Machine>;
