//! What the maps shall hold: the configuration, with administrative state, observed health and next hops folded in.
//!
//! Owns: the effective weight, computed here and nowhere else. `maint` is absent; `drain`, weight 0 and down take no slot of
//! the ring; a service in which nothing ready and weighted is up fails open: all of its ready backends count as up.
//! Invariant: services and their backends are in the order of their stable keys, the same on every node.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use lb_core::abi::{
    self,
    backend::BackendKey,
    ring::Inputs,
    service::{Algo as AbiAlgo, Forward, OnMarkedDown},
};

use super::window::Times;
use crate::model::{AdminState, Backend, Config, NextHop, Service, ServiceKey, Track, UdpFlows, algo};

/// What health says of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Standing up, or nothing is asked of it.
    Up,
    /// Standing down: flows leave it.
    Down,
    /// Not judged yet, as nobody of its service was when its check began: it takes flows until its first result, so that good first
    /// results of a service change nothing.
    Starting,
    /// Not judged yet: it takes no new flow before its first result, and keeps those that it has.
    Unknown,
}

impl From<Option<bool>> for Standing {
    /// `None` is [`Self::Unknown`].
    fn from(up: Option<bool>) -> Self {
        match up {
            Some(true) => Self::Up,
            Some(false) => Self::Down,
            None => Self::Unknown,
        }
    }
}

/// What the maps shall hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// In the order of their keys.
    pub services: Vec<WantedService>,
    /// /16 of outer IPv4 sources.
    pub outer_source_v4: [u8; 4],
    /// /64 of outer IPv6 sources.
    pub outer_source_v6: [u8; 16],
    /// Next hops of backends that are no longer configured and still have flows, as far as anything is known of them; `None` where it
    /// is known that there is none.
    pub leaving: BTreeMap<IpAddr, Option<NextHop>>,
}

/// A service as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedService {
    /// Name, for messages.
    pub name: String,
    /// VIP, port and protocol.
    pub key: ServiceKey,
    /// Forwarding mode.
    pub forward: Forward,
    /// Prime number of ring entries.
    pub ring_size: u32,
    /// How flows are kept.
    pub policy: Policy,
    /// No ready backend with a weight is up: the ring holds all of them.
    pub fail_open: bool,
    /// In the order of their keys.
    pub backends: Vec<WantedBackend>,
    /// Backends in maintenance, in the order of their keys: they leave at once, without a drain.
    pub dismissed: Vec<BackendKey>,
}

/// How a service keeps its flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How the backend of a new flow is chosen.
    pub algo: AbiAlgo,
    /// Which part of a flow chooses its slot.
    pub inputs: Inputs,
    /// Whether every flow is recorded.
    pub track_all: bool,
    /// What becomes of the flows of a backend that is down.
    pub on_marked_down: OnMarkedDown,
    /// Whether slots that change go through a window: not for datagrams that are no flows.
    pub windows: bool,
    /// How long the states of a window last.
    pub times: Times,
    /// Seconds that an established flow may be silent.
    pub established_s: u32,
    /// Seconds that a backend keeps its flows after it left the configuration.
    pub drain_s: u64,
}

impl Policy {
    /// A hashed TCP service with the default times; tests vary it.
    pub const DEFAULT: Self = Self {
        algo: AbiAlgo::Hashed,
        inputs: Inputs::Tuple,
        track_all: false,
        on_marked_down: OnMarkedDown::Rehash,
        windows: true,
        times: Times { announce_s: 4, window_s: 7440 },
        established_s: 7440,
        drain_s: 300,
    };
}

/// A backend as it shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedBackend {
    /// Stable identity.
    pub key: BackendKey,
    /// Effective weight; 0 takes no new flows.
    pub weight: u32,
    /// Health judged it up.
    pub up: bool,
    /// Health judged it down: flows leave it.
    pub down: bool,
    /// Active connections at most; 0 is no limit.
    pub max_connections: u32,
    /// Where its frames go.
    pub next_hop: Option<NextHop>,
}

/// Computes what the maps shall hold. `judged` is the observed health; `next_hop` is what netlink knows about an address.
pub fn wanted<J: Into<Standing>>(
    config: &Config,
    judged: &dyn Fn(&Service, &Backend) -> J,
    next_hop: &dyn Fn(IpAddr) -> Option<NextHop>,
) -> Wanted {
    let judged = |service: &Service, backend: &Backend| judged(service, backend).into();
    let mut services: Vec<WantedService> = config.services.iter().map(|s| service(s, &judged, next_hop)).collect();
    services.sort_unstable_by_key(|s| s.key);
    Wanted {
        services,
        outer_source_v4: config.node.outer_source_v4.network().octets(),
        outer_source_v6: config.node.outer_source_v6.network().octets(),
        leaving: BTreeMap::new(),
    }
}

fn service(
    service: &Service,
    judged: &dyn Fn(&Service, &Backend) -> Standing,
    next_hop: &dyn Fn(IpAddr) -> Option<NextHop>,
) -> WantedService {
    let judged = |b: &Backend| if b.admin_state == AdminState::Maint { Standing::Unknown } else { judged(service, b) };
    let observed: Vec<(AdminState, u16, Standing)> =
        service.backends.iter().map(|b| (b.admin_state, b.weight, judged(b))).collect();
    let (weights, fail_open) = effective_weights(&observed);
    let mut backends = Vec::with_capacity(service.backends.len());
    backends.extend(service.backends.iter().zip(&observed).zip(weights).filter_map(|((b, (.., judged)), weight)| {
        let key = backend_key(&service.key, b.address, b.port);
        let weight = if service.algo.is_weighted() { weight? } else { weight?.min(1) };
        let (up, down) = (*judged == Standing::Up, *judged == Standing::Down);
        Some(WantedBackend { key, weight, up, down, max_connections: b.max_connections, next_hop: next_hop(b.address) })
    }));
    backends.sort_unstable_by_key(|b| b.key);
    let maint = service.backends.iter().filter(|b| b.admin_state == AdminState::Maint);
    let mut dismissed: Vec<BackendKey> = maint.map(|b| backend_key(&service.key, b.address, b.port)).collect();
    dismissed.sort_unstable();
    WantedService {
        name: service.name.clone(),
        key: service.key,
        forward: service.forward,
        ring_size: service.algo.ring_size(),
        policy: policy(service),
        fail_open,
        backends,
        dismissed,
    }
}

/// How a service keeps its flows.
fn policy(service: &Service) -> Policy {
    use algo::Kind;
    let flows = &service.flows;
    let kind = service.algo.kind();
    Policy {
        algo: match kind {
            Kind::Maglev | Kind::SourceHash => AbiAlgo::Hashed,
            Kind::RoundRobin | Kind::WeightedRoundRobin => AbiAlgo::Turns,
            Kind::LeastConnections | Kind::WeightedLeastConnections => AbiAlgo::LeastConnections,
            Kind::RandomTwo => AbiAlgo::RandomTwo,
        },
        inputs: if kind == Kind::SourceHash { Inputs::Source } else { Inputs::Tuple },
        track_all: flows.track == Track::All,
        on_marked_down: flows.on_marked_down,
        windows: service.udp_flows() != Some(UdpFlows::Stateless),
        times: Times { announce_s: seconds(flows.announce_for), window_s: seconds(flows.window) },
        established_s: seconds(flows.flow_timeout) as u32,
        drain_s: seconds(flows.drain_timeout),
    }
}

/// Whole seconds, rounded up: nothing ends before its time.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The effective weights of a service's backends of (administrative state, configured weight, health); `None` is absent. And whether
/// the service fails open.
pub(super) fn effective_weights(backends: &[(AdminState, u16, Standing)]) -> (Vec<Option<u32>>, bool) {
    let takes_flows = |state: AdminState, weight: u16| state == AdminState::Ready && weight > 0;
    let candidates = || backends.iter().filter(|&&(state, weight, _)| takes_flows(state, weight));
    let fail_open = candidates().next().is_some() && !candidates().any(|&(_, _, judged)| judged == Standing::Up);
    let weights = backends.iter().map(|&(state, weight, judged)| match state {
        AdminState::Maint => None,
        _ if takes_flows(state, weight) && (matches!(judged, Standing::Up | Standing::Starting) || fail_open) => {
            Some(u32::from(weight))
        }
        _ => Some(0),
    });
    (weights.collect(), fail_open)
}

/// The stable identity of a backend of the service `key`.
pub fn backend_key(key: &ServiceKey, addr: IpAddr, port: u16) -> BackendKey {
    BackendKey {
        vip: octets(key.vip),
        addr: octets(addr),
        vip_port: key.port,
        port,
        proto: key.protocol.number(),
        pad: [0; 3],
    }
}

/// The 16-byte form of an address.
pub fn octets(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => abi::mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address of a 16-byte form.
pub fn address(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}
