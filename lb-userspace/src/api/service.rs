//! Services, backends, their health and their next hops.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::flows::{Connections, Drain, SlotStates};
use crate::model::{self, AdminState, Protocol};

/// Forwarding mode, as the configuration writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// Direct server return.
    Dsr,
    /// IP in IP.
    Ipip,
    /// Destination rewritten.
    Nat,
}

impl From<model::Forward> for Forward {
    fn from(forward: model::Forward) -> Self {
        match forward {
            model::Forward::Dsr => Self::Dsr,
            model::Forward::Ipip => Self::Ipip,
            model::Forward::Nat => Self::Nat,
        }
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Name.
    pub name: String,
    /// Id in the maps.
    pub id: u32,
    /// Address that clients connect to.
    pub vip: IpAddr,
    /// Port; 0 for all.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Forwarding mode.
    pub forward: Forward,
    /// How a backend is chosen, the configuration's word: `maglev`.
    pub algo: String,
    /// Slots of the ring.
    pub ring_size: u32,
    /// Which flows are recorded, the configuration's word: `moved` or `all`.
    #[serde(default)]
    pub track: String,
    /// What a UDP service promises: `stateless` or `sticky`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_flows: Option<String>,
    /// Slots of the ring in the maps by state.
    #[serde(default)]
    pub slots: SlotStates,
    /// Time until the last slot stops recording at the latest, if no change comes; `None` where none records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ends_in_s: Option<u64>,
    /// Connections of its backends, leaving ones included, and totals also of those that are gone.
    #[serde(default)]
    pub connections: Connections,
    /// Settings that were made at run time, `KEY=VALUE` each, until reset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<String>,
    /// Backends configured.
    pub backends: u32,
    /// Backends that health judged up, or that have no check.
    pub backends_up: u32,
    /// Backends with at least one ring slot.
    pub backends_taking: u32,
    /// Whether health left no backend and all ready ones take traffic therefore.
    pub fail_open: bool,
    /// The health check, if there is one.
    pub health_check: Option<HealthCheckSettings>,
    /// Packets forwarded since the maps were loaded, the sum over backends.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
}

/// `GET /v1/services/{name}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceDetail {
    /// The service.
    pub service: Service,
    /// Its backends, ordered as in the configuration, then those that leave.
    pub backends: Vec<Backend>,
}

/// A health check as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheckSettings {
    /// `http` or `tcp`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path of an `http` check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `Host` header of an `http` check, if one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port that is asked, if it is not the backend's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Time between probes.
    pub interval_ms: u64,
    /// Time that a probe may take.
    pub timeout_ms: u64,
    /// Successes in a row until up.
    pub rise: u32,
    /// Failures in a row until down.
    pub fall: u32,
}

impl From<&model::HealthCheck> for HealthCheckSettings {
    fn from(check: &model::HealthCheck) -> Self {
        let (kind, path, host) = match &check.probe {
            model::Probe::Http { path, host } => ("http", Some(path.clone()), host.clone()),
            model::Probe::Tcp => ("tcp", None, None),
        };
        Self {
            kind: kind.into(),
            path,
            host,
            port: check.port,
            interval_ms: check.interval.as_millis() as u64,
            timeout_ms: check.timeout.as_millis() as u64,
            rise: check.rise,
            fall: check.fall,
        }
    }
}

/// A backend of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// Name of its service.
    pub service: String,
    /// Name within the service, see [`super::backend_name`].
    pub name: String,
    /// Address.
    pub address: IpAddr,
    /// Port; 0 for a service on all ports.
    pub port: u16,
    /// Id in the maps.
    pub id: u32,
    /// Weight that the configuration gives.
    pub weight_configured: u16,
    /// Weight set by `weir backend weight`, until reset.
    pub weight_override: Option<u16>,
    /// Weight that the ring was built with: override or configured, 0 if not ready or down (fail-open disregards down).
    pub weight_effective: u16,
    /// Administrative state that the configuration gives.
    pub admin_state_configured: AdminState,
    /// Administrative state set by `weir backend drain|ready|maint`, until reset.
    pub admin_state_override: Option<AdminState>,
    /// Health as observed.
    pub health: HealthState,
    /// Reason word of the last result: `L7OK`, `L4CON`, `L4TOUT`, `L7STS` ...; `None` before the first result.
    pub health_reason: Option<String>,
    /// When `health` was last another state, seconds since 1970; `None` if never.
    pub health_since_unix_s: Option<u64>,
    /// Whether it is no longer configured and stays until its drain is over.
    #[serde(default)]
    pub leaving: bool,
    /// Its drain, while it takes no new flows and lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// Its connections.
    #[serde(default)]
    pub connections: Connections,
    /// Active connections that it takes at most; 0 is no limit.
    #[serde(default)]
    pub max_connections: u32,
    /// Where its packets go.
    pub next_hop: NextHop,
    /// Slots of the ring.
    pub share: Share,
    /// Packets forwarded to it since the maps were loaded.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
}

impl Backend {
    /// The administrative state in force.
    pub fn admin_state(&self) -> AdminState {
        self.admin_state_override.unwrap_or(self.admin_state_configured)
    }
}

/// A backend's part of the ring beside what its weight asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Slots that name it.
    pub slots: u32,
    /// `slots` over the ring's size, 0 to 1; 0 without a ring.
    pub actual: f64,
    /// Effective weight over the service's sum of effective weights, 0 to 1.
    pub expected: f64,
}

/// Health of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// Judged up.
    Up,
    /// Judged down.
    Down,
    /// Checked, but without a first result yet.
    Unknown,
    /// The service has no health check (counts as up), or the backend is in `maint` and is not asked.
    Unchecked,
}

/// `GET /v1/health`: one per backend of a service, also where several share a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthTarget {
    /// Name of the service.
    pub service: String,
    /// Name of the backend within the service.
    pub backend: String,
    /// What is asked, in words: `http 10.0.0.11:80/health`, `tcp [fd00::1]:53`; empty if nothing is.
    pub probe: String,
    /// Health as observed.
    pub state: HealthState,
    /// Reason word of the last result.
    pub reason: Option<String>,
    /// What the last result said in words: `HTTP status 503`, `connection refused`.
    pub detail: Option<String>,
    /// When `state` was last another one, seconds since 1970.
    pub since_unix_s: Option<u64>,
    /// When the last result came, seconds since 1970.
    pub checked_unix_s: Option<u64>,
    /// How long the last probe took.
    pub latency_us: Option<u64>,
    /// Results in a row that speak against `state`: towards `rise` when down, towards `fall` when up.
    pub against: u32,
    /// How many of those change the state.
    pub against_max: u32,
    /// Changes of state since the agent started.
    pub transitions: u64,
    /// Whether `state` is what the orchestrators judged, through the store; `false` where this node checks for itself.
    #[serde(default)]
    pub from_store: bool,
}

/// Where packets for an address leave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Whether MAC and interface are known.
    pub resolved: bool,
    /// Interface that leads there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Gateway, if the address is not on the interface's own segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// MAC of the gateway or of the address, `02:00:00:00:00:01`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// MAC of our interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_mac: Option<String>,
    /// MTU of interface or route in bytes of IP packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Why it is not resolved: `no route`, `neighbour FAILED`, `interface down` ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// `GET /v1/next-hops`: one per backend address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHopEntry {
    /// Address of the backend.
    pub address: IpAddr,
    /// Where its packets go.
    pub next_hop: NextHop,
    /// Backends, over all services, with this address.
    pub backends: u32,
}

/// `POST /v1/backends/{service}/{backend}/admin`. What is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminChange {
    /// Sets the override of the administrative state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_state: Option<AdminState>,
    /// Sets the override of the weight, 0 to [`model::WEIGHT_MAX`]; above: 400.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Forgets both overrides before the others are set.
    #[serde(default)]
    pub reset: bool,
}

/// `POST /v1/services/{name}/settings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceChange {
    /// Settings as `KEY=VALUE` with white space between, see [`model::set::KEYS`]; beside those that are set already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// Forgets all settings before.
    #[serde(default)]
    pub reset: bool,
}
