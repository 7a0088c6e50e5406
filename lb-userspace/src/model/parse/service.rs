//! `[[service]]` with its backends, each by itself.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use toml::de::DeValue;

use super::{
    super::{
        AdminState, Backend, Flows, MAX_CONNECTIONS_MAX, Service, ServiceKey, WEIGHT_MAX, diagnostic::shift,
        store::POOL_PREFIX,
    },
    At, Code, Diagnostic, Findings, Forward, Protocol, Span, Table, address, algo, flows, health,
    node::name,
    reader::Section,
};

/// A service as far as it could be read. A field that was refused is `None`.
pub(super) struct Draft {
    /// Where the table starts.
    pub span: Span,
    pub name: Option<At<String>>,
    pub vip: Option<At<IpAddr>>,
    /// Name of the pool that the VIP comes from, instead of `vip`.
    pub pool: Option<At<String>>,
    /// 0 for all.
    pub port: Option<At<u16>>,
    pub protocol: Option<Protocol>,
    pub forward: Option<At<Forward>>,
    pub algo: algo::Draft,
    pub flows: Option<Flows>,
    /// Outer `None`: no check.
    pub health: Option<health::Draft>,
    pub backends: Vec<BackendDraft>,
    /// Whether the file gives none, well-formed or not.
    pub no_backends: bool,
}

/// A backend as far as it could be read.
pub(super) struct BackendDraft {
    /// Where the table starts.
    pub span: Span,
    pub address: Option<At<IpAddr>>,
    /// `None` unless the file says one.
    pub port: Option<At<u16>>,
    /// Whether `port` stands in the table but was refused.
    pub port_refused: bool,
    pub weight: Weight,
    /// `None` unless the file says one.
    pub max_connections: Option<At<u32>>,
    pub admin_state: AdminState,
}

/// A weight and where it is set, if it is.
pub(super) struct Weight {
    pub value: u16,
    pub span: Option<Span>,
}

impl Draft {
    /// VIP, port and protocol, if all three could be read. A pool is stood for by its first address.
    pub fn key(&self, pools: &HashMap<String, At<IpNet>>) -> Option<ServiceKey> {
        let (vip, port) = (self.vip(pools)?.value, self.port.as_ref()?.value);
        Some(ServiceKey { vip, port, protocol: self.protocol? })
    }

    /// The VIP, or the first address of its pool, and where it is set.
    pub fn vip(&self, pools: &HashMap<String, At<IpNet>>) -> Option<At<IpAddr>> {
        match (&self.vip, &self.pool) {
            (Some(vip), _) => Some(vip.clone()),
            (None, Some(pool)) => {
                let prefix = pools.get(&pool.value)?;
                Some(At { value: prefix.value.network(), span: pool.span.clone() })
            }
            (None, None) => None,
        }
    }

    /// How findings call it.
    pub fn shown(&self) -> String {
        match &self.name {
            Some(name) => format!("service `{}`", name.value),
            None => "a service".to_owned(),
        }
    }

    /// Port of a backend: its own, else the service's.
    pub fn backend_port(&self, backend: &BackendDraft) -> Option<u16> {
        match &backend.port {
            Some(port) => Some(port.value),
            None if backend.port_refused => None,
            None => self.port.as_ref().map(|port| port.value),
        }
    }

    /// The service, if nothing in it was refused.
    pub fn service(&self, pools: &HashMap<String, At<IpNet>>) -> Option<Service> {
        let mut backends = Vec::with_capacity(self.backends.len());
        for backend in &self.backends {
            backends.push(Backend {
                address: backend.address.as_ref()?.value,
                port: self.backend_port(backend)?,
                weight: backend.weight.value,
                max_connections: backend.max_connections.as_ref().map_or(0, |limit| limit.value),
                admin_state: backend.admin_state,
            });
        }
        Some(Service {
            key: self.key(pools)?,
            pool: self.pool.as_ref().map(|pool| pool.value.clone()),
            name: self.name.as_ref()?.value.clone(),
            forward: self.forward.as_ref()?.value,
            algo: self.algo.algo()?,
            flows: self.flows?,
            health_check: match &self.health {
                None => None,
                Some(draft) => Some(draft.check.clone()?),
            },
            backends,
        })
    }

    /// Moves every place by `by` bytes, which wrap around.
    pub fn shift(&mut self, by: usize) {
        let Self {
            span,
            name,
            vip,
            pool,
            port,
            protocol: _,
            forward,
            algo,
            flows: _,
            health,
            backends,
            no_backends: _,
        } = self;
        algo.shift(by);
        let own = [
            Some(span),
            name.as_mut().map(|at| &mut at.span),
            vip.as_mut().map(|at| &mut at.span),
            pool.as_mut().map(|at| &mut at.span),
            port.as_mut().map(|at| &mut at.span),
            forward.as_mut().map(|at| &mut at.span),
            health.as_mut().map(|check| &mut check.span),
        ];
        own.into_iter().flatten().for_each(|span| shift(span, by));
        for backend in backends {
            let BackendDraft { span, address, port, port_refused: _, weight, max_connections, admin_state: _ } =
                backend;
            let own = [
                Some(span),
                address.as_mut().map(|at| &mut at.span),
                port.as_mut().map(|at| &mut at.span),
                weight.span.as_mut(),
                max_connections.as_mut().map(|at| &mut at.span),
            ];
            own.into_iter().flatten().for_each(|span| shift(span, by));
        }
    }
}

/// Reads `[[service]]`.
pub(super) fn read(section: &Section<'_>, findings: &mut Findings) -> Draft {
    section.require(&["name", "vip", "port", "forward"], findings);
    let protocol = match section.get("protocol") {
        None => Some(Protocol::Tcp),
        Some(_) => section
            .word("protocol", &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)], findings)
            .map(|protocol| protocol.value),
    };
    let modes = [("dsr", Forward::Dsr), ("ipip", Forward::Ipip), ("nat", Forward::Nat)];
    let health = section.table("health_check", Table::HealthCheck, findings);
    let backends = section.tables("backends", Table::Backend, findings);
    let algo = algo::read(section, findings);
    let backends: Vec<BackendDraft> = backends.iter().map(|section| backend(section, findings)).collect();
    algo::weights(&algo, &backends, findings);
    let pool = pool(section);
    Draft {
        span: section.span.clone(),
        name: name(section, findings),
        vip: if pool.is_none() { address::read(section, "vip", findings) } else { None },
        pool,
        port: service_port(section, findings),
        protocol,
        forward: section.word("forward", &modes, findings),
        flows: flows::read(section, protocol, &algo, &backends, findings),
        algo,
        health: health.map(|section| health::read(&section, findings)),
        no_backends: section.is_empty("backends"),
        backends,
    }
}

/// The pool that `vip` names, whether there is one or not.
fn pool(section: &Section<'_>) -> Option<At<String>> {
    let value = section.get("vip")?;
    let name = value.get_ref().as_str()?.strip_prefix(POOL_PREFIX)?;
    Some(At { value: name.to_owned(), span: value.span() })
}

/// `port` of a service: 0 for "all".
fn service_port(section: &Section<'_>, findings: &mut Findings) -> Option<At<u16>> {
    let value = section.get("port")?;
    match value.get_ref() {
        DeValue::String(text) if text == "all" => Some(At { value: 0, span: value.span() }),
        DeValue::String(text) if text.parse::<u16>().is_err() => {
            let near = ["any", "*", "ALL", "All", "0"].contains(&&**text);
            let hint =
                if near { "write \"all\" for all ports" } else { "`port` takes a number from 1 to 65535, or \"all\"" };
            let message = format!("`port` cannot be \"{}\"", super::reader::shown(text));
            findings.push(Diagnostic::new(Code::BadValue, value.span(), message).hint(hint));
            None
        }
        _ => number_port(section, findings),
    }
}

/// `port` as a number.
fn number_port(section: &Section<'_>, findings: &mut Findings) -> Option<At<u16>> {
    let port = section.integer("port", 1..=65_535, findings)?;
    u16::try_from(port.value).ok().map(|value| At { value, span: port.span })
}

/// Reads `[[service.backends]]`.
fn backend(section: &Section<'_>, findings: &mut Findings) -> BackendDraft {
    section.require(&["address"], findings);
    let port = number_port(section, findings);
    let weight = section.integer("weight", 0..=WEIGHT_MAX.into(), findings);
    let states = [("ready", AdminState::Ready), ("drain", AdminState::Drain), ("maint", AdminState::Maint)];
    BackendDraft {
        span: section.span.clone(),
        address: address::read(section, "address", findings),
        port_refused: port.is_none() && section.get("port").is_some(),
        port,
        weight: Weight {
            value: weight.as_ref().and_then(|weight| u16::try_from(weight.value).ok()).unwrap_or(1),
            span: weight.map(|weight| weight.span),
        },
        max_connections: section.integer("max_connections", 0..=MAX_CONNECTIONS_MAX, findings),
        admin_state: section.word("admin_state", &states, findings).map_or(AdminState::Ready, |state| state.value),
    }
}
