//! The configuration of `weir orchestrator`: nouns.
//!
//! Pure. An [`OrchestratorConfig`] exists only as the output of [`super::parse::orchestrator::check`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::StoreConfig;

/// Rules of each kind, at most.
pub const RULES_MAX: usize = 64;
/// Longest expression, in bytes.
pub const EXPR_BYTES_MAX: usize = 8192;

/// A validated configuration of `weir orchestrator`.
#[derive(Clone, Debug, PartialEq)]
pub struct OrchestratorConfig {
    /// Name among the orchestrators; `None`: the host name.
    pub name: Option<String>,
    /// Where `/metrics` and `/sd` are served; `None` switches that off. Default 127.0.0.1:9651.
    pub listen: Option<SocketAddr>,
    /// Where others reach `listen`, for service discovery.
    pub address: Option<String>,
    /// Socket for administrators; default `/run/weir/orchestrator.sock`.
    pub socket: PathBuf,
    /// Prometheus; without one every metric is missing.
    pub prometheus: Option<String>,
    /// Orchestrators that must agree before a backend is down; default 1.
    pub vantage_points: u32,
    /// What names of created nodes and backends begin with; default `weir`.
    pub prefix: String,
    /// A created node without heartbeat for so long is removed; default 5 min.
    pub dead_after: Duration,
    /// What was created must serve within; default 10 min.
    pub ready_timeout: Duration,
    /// What is removed is drained for so long; default 5 min.
    pub drain_timeout: Duration,
    /// `[store]`: the one that the nodes share; never a file.
    pub store: StoreConfig,
    /// `[zone]`.
    pub zone: Option<ZoneConfig>,
    /// `[[scaling]]`.
    pub scaling: Vec<ScalingRule>,
    /// `[[replace]]`.
    pub replace: Vec<ReplaceRule>,
    /// `[[dns_server]]`: metrics addresses by name.
    pub dns_servers: BTreeMap<String, String>,
}

/// `[zone]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneConfig {
    /// Name of the zone.
    pub origin: String,
    /// Names under which it gives out the nodes, relative to the origin; `@` is the origin itself.
    pub names: BTreeSet<String>,
    /// TTL in seconds; default 10.
    pub ttl_s: u32,
    /// Name servers.
    pub ns: Vec<String>,
    /// Mailbox of who is responsible, as a name.
    pub contact: String,
    /// Addresses that do not depend on nodes, by relative name.
    pub fixed: BTreeMap<String, Vec<IpAddr>>,
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleTarget {
    /// The nodes.
    Nodes,
    /// The backends of a service.
    Service(String),
}

/// Who carries out a rule's decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleExecutor {
    /// A command.
    Exec {
        /// Absolute path.
        program: PathBuf,
        /// Arguments.
        arguments: Vec<String>,
        /// Time for one order; default 5 min.
        timeout: Duration,
    },
    /// An HTTP endpoint.
    Webhook {
        /// Where to POST.
        url: String,
        /// Time for one order; default 30 s.
        timeout: Duration,
    },
}

/// `[[scaling]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalingRule {
    /// Name, unique among scaling rules.
    pub name: String,
    /// What it scales; at most one rule for each.
    pub of: RuleTarget,
    /// PromQL with one value: the average over those in service.
    pub expr: String,
    /// What the value should be, above 0.
    pub target: f64,
    /// Share by which it may be off; default 0.1.
    pub tolerance: f64,
    /// Fewest, at least 1.
    pub min: u32,
    /// Most.
    pub max: u32,
    /// Default 5 min.
    pub down_window: Duration,
    /// Default 30 s.
    pub settle: Duration,
    /// Default 15 s.
    pub every: Duration,
    /// Who carries it out.
    pub executor: Option<RuleExecutor>,
}

/// `[[replace]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplaceRule {
    /// Name, unique among replacement rules.
    pub name: String,
    /// What it replaces.
    pub of: RuleTarget,
    /// PromQL; each series names an instance that is bad.
    pub expr: String,
    /// Label that names the instance; default `instance`.
    pub label: String,
    /// How long it must have been bad.
    pub after: Duration,
    /// Default 1 min.
    pub every: Duration,
    /// Who carries it out.
    pub executor: Option<RuleExecutor>,
}
