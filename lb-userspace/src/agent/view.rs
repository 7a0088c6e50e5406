//! The node in the words of the API.
//!
//! Owns: the translation. Refuses to know: how an answer travels. Reads only.

use std::{collections::HashMap, time::SystemTime};

use axum::http::StatusCode;
use lb_core::abi::{
    self, MapShape,
    stats::{Counter, FlowTotals},
};

use super::{
    api::Refusal,
    mode,
    node::{Counted, Node},
    reason,
    state::{Observed, target},
};
use crate::{
    api::{self, backend_name},
    health,
    model::{self, AdminState, Backend, BackendRef, NextHop, Probe, Service, ServiceKey},
    net::{Interface, Resolution},
    plan::{WantedService, wanted::address},
    telemetry::metrics::{BackendState, Snapshot},
};

/// What is true for the process rather than for the node.
#[derive(Clone, Debug)]
pub struct Process {
    /// When the agent started.
    pub started: std::time::Instant,
    /// Whether it took over a data plane.
    pub adopted: bool,
    /// The configuration file.
    pub config_file: String,
}

fn unix_s(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

pub(super) fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read the counters: {error}"))
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

fn resolved(hop: NextHop, interface: Option<String>, gateway: Option<std::net::IpAddr>) -> api::NextHop {
    api::NextHop {
        resolved: true,
        interface,
        gateway,
        mac: Some(mac(hop.dst_mac)),
        source_mac: Some(mac(hop.src_mac)),
        mtu: Some(u32::from(hop.mtu)),
        cause: None,
    }
}

fn unresolved(cause: String) -> api::NextHop {
    api::NextHop { cause: Some(cause), ..api::NextHop::default() }
}

pub(super) fn next_hop(resolution: Option<&Resolution>) -> api::NextHop {
    match resolution {
        Some(Resolution::Resolved { next_hop, gateway, interface }) => {
            resolved(*next_hop, Some(interface.clone()), *gateway)
        }
        Some(Resolution::Unresolved(cause)) => unresolved(cause.to_string()),
        None => unresolved("not looked up yet".into()),
    }
}

/// Reason word of what is judged: the store's where that speaks, else of the last result.
fn reason(observed: Option<&Observed>) -> Option<String> {
    let observed = observed?;
    observed.spoken.clone().or_else(|| Some(observed.last.as_ref()?.outcome.word().into()))
}

fn health_state(observed: Option<&Observed>) -> api::HealthState {
    match observed.map(|o| o.state) {
        None => api::HealthState::Unchecked,
        Some(health::State::Unknown) => api::HealthState::Unknown,
        Some(health::State::Up) => api::HealthState::Up,
        Some(health::State::Down) => api::HealthState::Down,
    }
}

fn algo(algo: &model::Algo) -> (String, u32) {
    (algo.word().into(), algo.ring_size())
}

/// The counters and rings that several answers need.
pub(super) struct Figures {
    pub(super) read: Counted,
    pub(super) services: HashMap<ServiceKey, Counter>,
    pub(super) flows: HashMap<ServiceKey, FlowTotals>,
}

impl Node {
    fn figures(&mut self) -> Result<Figures, Refusal> {
        let read = self.counters().map_err(failed)?;
        let (services, flows) = (self.tally().services(&read.packets), self.flow_tally().services(&read.flows));
        Ok(Figures { read, services, flows })
    }

    pub(super) fn wanted_service(&self, key: &ServiceKey) -> Option<&WantedService> {
        let at = self.wanted().services.binary_search_by_key(key, |s| s.key).ok()?;
        self.wanted().services.get(at)
    }

    fn backend_view(&self, service: &Service, backend: &Backend, slots: &[u32], figures: &Figures) -> api::Backend {
        let key = crate::plan::wanted::backend_key(&service.key, backend.address, backend.port);
        let wanted = self.wanted_service(&service.key);
        let at = wanted.and_then(|w| w.backends.binary_search_by_key(&key, |b| b.key).ok());
        let weight = at.and_then(|at| wanted?.backends.get(at)).map_or(0, |b| b.weight);
        let total: u32 = wanted.map_or(0, |w| w.backends.iter().map(|b| b.weight).sum());
        let held = at.and_then(|at| slots.get(at)).copied().unwrap_or(0);
        let (_, ring_size) = algo(&service.algo);
        let present = self.data().present().backend(&service.key, backend.address, backend.port);
        let id = present.map_or(0, |b| b.id);
        let counter = self.tally().backend(id, &figures.read.packets);
        let observed = self.state.observed(service, backend);
        let configured = self.state.config().backend(&service.backend_ref(backend)).map_or(backend, |(_, b)| b);
        let o = self.state.overrides().get(&super::overrides::BackendId::new(service.key, backend));
        api::Backend {
            service: service.name.clone(),
            name: backend_name(backend.address, backend.port),
            address: backend.address,
            port: backend.port,
            id,
            weight_configured: configured.weight,
            weight_override: o.and_then(|o| o.weight).map(|s| s.value),
            weight_effective: weight.min(u32::from(u16::MAX)) as u16,
            admin_state_configured: configured.admin_state,
            admin_state_override: o.and_then(|o| o.admin_state).map(|s| s.value),
            health: health_state(observed),
            health_reason: reason(observed),
            health_since_unix_s: observed.and_then(|o| o.since).map(unix_s),
            leaving: false,
            drain: present.and_then(|b| self.drain(service, b)),
            connections: self.connections(service, id, figures),
            max_connections: backend.max_connections,
            next_hop: next_hop(self.state.next_hop(backend.address)),
            share: api::Share {
                slots: held,
                actual: f64::from(held) / f64::from(ring_size.max(1)),
                expected: if total == 0 { 0.0 } else { f64::from(weight) / f64::from(total) },
            },
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }

    fn service_view(&self, service: &Service, slots: &[u32], figures: &Figures) -> api::Service {
        let (algo, ring_size) = algo(&service.algo);
        let counter = figures.services.get(&service.key).copied().unwrap_or_default();
        api::Service {
            name: service.name.clone(),
            id: self.data().present().service(&service.key).map_or(0, |s| s.id),
            vip: service.key.vip,
            port: service.key.port,
            protocol: service.key.protocol,
            forward: service.forward.into(),
            algo,
            ring_size,
            track: service.flows.track.to_string(),
            udp_flows: service.udp_flows().map(|word| word.to_string()),
            slots: self.slot_states(&service.key),
            window_ends_in_s: self.window_ends_in_s(&service.key),
            connections: self.service_connections(service, figures),
            overrides: self.state.overrides().service(&service.key),
            backends: service.backends.len() as u32,
            backends_up: service.backends.iter().filter(|b| self.state.up(service, b)).count() as u32,
            backends_taking: slots.iter().filter(|n| **n > 0).count() as u32,
            fail_open: self.state.fail_open(service),
            health_check: service.health_check.as_ref().map(Into::into),
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }

    /// All services.
    pub fn services(&mut self) -> Result<Vec<api::Service>, Refusal> {
        let figures = self.figures()?;
        let services = self.state.effective().services.clone();
        Ok(services
            .iter()
            .map(|s| {
                let slots = self.slots(&s.key);
                self.service_view(s, &slots, &figures)
            })
            .collect())
    }

    /// One service.
    pub fn service(&mut self, name: &str) -> Result<api::ServiceDetail, Refusal> {
        let service = self.state.effective().service(name).cloned().ok_or_else(|| no_service(name))?;
        let figures = self.figures()?;
        let slots = self.slots(&service.key);
        let configured = service.backends.iter().map(|b| self.backend_view(&service, b, &slots, &figures));
        let leaving = self.leaving(&service.key).map(|b| self.leaving_view(&service, b, &figures));
        Ok(api::ServiceDetail {
            service: self.service_view(&service, &slots, &figures),
            backends: configured.chain(leaving).collect(),
        })
    }

    /// All backends.
    pub fn backends(&mut self) -> Result<Vec<api::Backend>, Refusal> {
        let figures = self.figures()?;
        let services = self.state.effective().services.clone();
        let mut all = Vec::new();
        for service in &services {
            let slots = self.slots(&service.key);
            all.extend(service.backends.iter().map(|b| self.backend_view(service, b, &slots, &figures)));
            all.extend(self.leaving(&service.key).map(|b| self.leaving_view(service, b, &figures)));
        }
        Ok(all)
    }

    /// One backend.
    pub fn backend(&mut self, name: &BackendRef) -> Result<api::Backend, Refusal> {
        let found = self.state.effective().backend(name).map(|(s, b)| (s.clone(), b.clone()));
        let (service, backend) = found.ok_or_else(|| no_backend(&name.to_string()))?;
        let figures = self.figures()?;
        let slots = self.slots(&service.key);
        Ok(self.backend_view(&service, &backend, &slots, &figures))
    }

    /// Health of every backend.
    pub fn health(&self) -> Vec<api::HealthTarget> {
        let view = |(service, backend): (&Service, &Backend)| {
            let observed = self.state.observed(service, backend);
            let last = observed.and_then(|o| o.last.as_ref());
            let probe = target(service, backend).map(|t| match &t.check.probe {
                Probe::Http { path, .. } => format!("http {}{path}", t.address),
                Probe::Tcp => format!("tcp {}", t.address),
            });
            api::HealthTarget {
                service: service.name.clone(),
                backend: backend_name(backend.address, backend.port),
                probe: probe.unwrap_or_default(),
                state: health_state(observed),
                reason: reason(observed),
                detail: last.map(|l| l.outcome.to_string()),
                since_unix_s: observed.and_then(|o| o.since).map(unix_s),
                checked_unix_s: last.map(|l| unix_s(l.at)),
                latency_us: last.map(|l| u64::try_from(l.latency.as_micros()).unwrap_or(u64::MAX)),
                against: observed.map_or(0, |o| o.against),
                against_max: observed.map_or(0, |o| o.against_max),
                transitions: observed.map_or(0, |o| o.transitions),
                from_store: observed.is_some_and(|o| o.spoken.is_some()),
            }
        };
        self.state.backends().map(view).collect()
    }

    /// Next hop of every backend address.
    pub fn next_hops(&self) -> Vec<api::NextHopEntry> {
        let mut users: std::collections::BTreeMap<std::net::IpAddr, u32> = std::collections::BTreeMap::new();
        for (_, backend) in self.state.backends() {
            *users.entry(backend.address).or_default() += 1;
        }
        let view = |(address, backends)| api::NextHopEntry {
            address,
            next_hop: next_hop(self.state.next_hop(address)),
            backends,
        };
        users.into_iter().map(view).collect()
    }

    /// All counters.
    pub fn stats(&mut self, interfaces: &[Interface]) -> Result<api::Stats, Refusal> {
        let figures = self.figures()?;
        let losses = self.losses();
        let mut by_interface = Vec::with_capacity(self.carriers.len());
        for carrier in &self.carriers {
            let counters = self.reasons(carrier.slot).map_err(failed)?;
            let interface = interfaces.iter().find(|i| i.ifindex == carrier.ifindex);
            by_interface.push(api::InterfaceStats {
                interface: carrier.name.clone(),
                reasons: reason::reasons(&counters),
                losses: reason::losses(carrier.ifindex, &losses, interface),
            });
        }
        let service = |s: &Service| {
            let counter = figures.services.get(&s.key).copied().unwrap_or_default();
            api::ServiceStats {
                service: s.name.clone(),
                packets: counter.packets,
                bytes: counter.bytes,
                slots: self.slot_states(&s.key),
                connections: self.service_connections(s, &figures),
            }
        };
        let one = |s: &Service, backend: String, id: u32| {
            let counter = self.tally().backend(id, &figures.read.packets);
            let connections = self.connections(s, id, &figures);
            let (packets, bytes) = (counter.packets, counter.bytes);
            api::BackendStats { service: s.name.clone(), backend, packets, bytes, connections }
        };
        let backend = |(s, b): (&Service, &Backend)| {
            let id = self.data().present().backend(&s.key, b.address, b.port).map_or(0, |b| b.id);
            one(s, backend_name(b.address, b.port), id)
        };
        let services = &self.state.effective().services;
        let leaving = services.iter().flat_map(|s| self.leaving(&s.key).map(move |b| (s, b)));
        let leaving = leaving.map(|(s, b)| one(s, backend_name(address(b.key.addr), b.key.port), b.id));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(api::Stats {
            at_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            interfaces: by_interface,
            services: services.iter().map(service).collect(),
            backends: self.state.backends().map(backend).chain(leaving).collect(),
            flows: self.flow_table()?,
        })
    }

    /// The interfaces that carry the program.
    pub fn interfaces(&self, interfaces: &[Interface]) -> Vec<api::Interface> {
        let view = |carrier: &super::node::Carrier| {
            let seen = interfaces.iter().find(|i| i.ifindex == carrier.ifindex);
            let mode = mode::in_force(seen, carrier.program_id);
            api::Interface {
                name: carrier.name.clone(),
                ifindex: seen.map_or(0, |i| i.ifindex),
                mode,
                program_id: carrier.program_id,
                attached: mode != api::XdpModeInForce::Detached,
                mtu: seen.map_or(0, |i| i.mtu),
                up: seen.is_some_and(|i| i.up),
            }
        };
        self.carriers.iter().map(view).collect()
    }

    /// Fill of the maps.
    pub fn maps(&self) -> Vec<api::MapFill> {
        let fill = self.data().present().fill();
        let sizes = self.data().present().sizes();
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let view = |shape: &MapShape| {
            let entries = sizes.entries(shape.name).map_or(1, u64::from);
            let copies = if shape.mmapable || shape.name == abi::fragment::SHAPE.name { 1 } else { cpus };
            let lines = abi::ring::LINE_SLOTS as u64;
            let (used, max) = if shape.name == abi::service::SHAPE.name {
                (u64::from(fill.services), u64::from(fill.services_max))
            } else if shape.name == abi::ring::SHAPE.name {
                (fill.ring_slots / lines, fill.ring_slots_max / lines)
            } else if shape.name == abi::lookup::SHAPE.name {
                (u64::from(fill.lookup_entries), u64::from(fill.lookup_entries_max))
            } else if [abi::backend::SHAPE.name, abi::backend::KEYS_SHAPE.name, abi::stats::BACKENDS_SHAPE.name]
                .contains(&shape.name)
            {
                (u64::from(fill.backends), u64::from(fill.backends_max))
            } else if shape.name == abi::flow::SHAPE.name {
                // Full at the number of records that it is made for; up to twice as many fit.
                (self.data().last_look().map_or(0, crate::plan::Look::records), u64::from(sizes.flows_max))
            } else {
                (entries, entries)
            };
            let memory_bytes = entries * copies * u64::from(shape.key_size.max(4) - 4 + shape.value_size);
            api::MapFill { name: shape.name.into(), used, max, memory_bytes }
        };
        // The program alone fills the table of fragments, and counting it would mean walking it.
        abi::MAPS.iter().filter(|shape| shape.name != abi::fragment::SHAPE.name).map(view).collect()
    }

    fn counts(&self) -> api::Counts {
        let state = &self.state;
        let effective = state.effective();
        let down = |s: &Service, b: &Backend| state.observed(s, b).is_some_and(|o| o.state == health::State::Down);
        let taking = |w: &WantedService| w.backends.iter().any(|b| b.weight > 0);
        let count =
            |what: &dyn Fn(&Service, &Backend) -> bool| state.backends().filter(|(s, b)| what(s, b)).count() as u32;
        let wanted = self.wanted();
        let slots: Vec<api::SlotStates> = effective.services.iter().map(|s| self.slot_states(&s.key)).collect();
        api::Counts {
            services: effective.services.len() as u32,
            services_fail_open: effective.services.iter().filter(|s| state.fail_open(s)).count() as u32,
            services_without_backend: wanted.services.iter().filter(|w| !taking(w)).count() as u32,
            backends: count(&|_, _| true),
            backends_up: count(&|s, b| state.up(s, b)),
            backends_down: count(&down),
            backends_not_ready: count(&|_, b| b.admin_state != AdminState::Ready),
            backends_unresolved: wanted
                .services
                .iter()
                .flat_map(|w| &w.backends)
                .filter(|b| b.weight > 0 && b.next_hop.is_none())
                .count() as u32,
            slots: slots.iter().fold(api::SlotStates::default(), |sum, one| api::SlotStates {
                settled: sum.settled + one.settled,
                announced: sum.announced + one.announced,
                moving: sum.moving + one.moving,
                residual: sum.residual + one.residual,
            }),
            services_in_window: slots.iter().filter(|one| one.unsettled() > 0).count() as u32,
        }
    }

    /// State of the node.
    pub fn status(&self, process: &Process, interfaces: &[Interface]) -> api::Status {
        let node = &self.state.config().node;
        api::Status {
            node: node.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_s: process.started.elapsed().as_secs(),
            adopted: process.adopted,
            revision: self.revision(),
            config_file: process.config_file.clone(),
            pin_dir: node.pin_dir.display().to_string(),
            abi_version: abi::ABI_VERSION,
            last_reload: self.reload.clone(),
            interfaces: self.interfaces(interfaces),
            maps: self.maps(),
            counts: self.counts(),
            // A table of counters that cannot be read is no reason to hide everything else.
            flows: self.flow_table().unwrap_or_default(),
            store: self.store.clone(),
        }
    }

    /// Everything that a scrape shows.
    pub fn snapshot(&mut self, interfaces: &[Interface]) -> Result<Snapshot, Refusal> {
        let stats = self.stats(interfaces)?;
        let state = |(s, b): (&Service, &Backend)| match b.admin_state {
            AdminState::Maint => BackendState::Maint,
            AdminState::Drain => BackendState::Drain,
            AdminState::Ready if !self.state.up(s, b) => BackendState::Down,
            AdminState::Ready if !next_hop(self.state.next_hop(b.address)).resolved => BackendState::Unresolved,
            AdminState::Ready => BackendState::Up,
        };
        Ok(Snapshot {
            revision: self.revision(),
            states: (self.state.backends().map(state))
                .chain(
                    self.state
                        .effective()
                        .services
                        .iter()
                        .flat_map(|s| self.leaving(&s.key))
                        .map(|_| BackendState::Leaving),
                )
                .collect(),
            fail_open: self.state.effective().services.iter().map(|s| self.state.fail_open(s)).collect(),
            interfaces: self.interfaces(interfaces),
            maps: self.maps(),
            next_hops_unresolved: self.state.unresolved() as u64,
            store: self.store.clone(),
            stats,
        })
    }
}

/// There is no such service.
pub fn no_service(name: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no service {name}")).hint("`weir service list` shows them")
}

/// There is no such backend.
pub fn no_backend(name: &str) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no backend {name}")).hint("`weir backend list` shows them")
}
