//! `[[service]]` with its backends, each by itself.

use std::net::IpAddr;

use toml::de::DeValue;

use super::{
    super::{AdminState, Backend, Service, ServiceKey, WEIGHT_MAX, diagnostic::shift, prime},
    Algo, At, Code, Diagnostic, Findings, Forward, Protocol, Span, Table, address, health,
    node::name,
    reader::Section,
};

/// A service as far as it could be read. A field that was refused is `None`.
pub(super) struct Draft {
    /// Where the table starts.
    pub span: Span,
    pub name: Option<At<String>>,
    pub vip: Option<At<IpAddr>>,
    /// 0 for all.
    pub port: Option<At<u16>>,
    pub protocol: Option<Protocol>,
    pub forward: Option<At<Forward>>,
    /// Ring size and where it is set, if it is.
    pub ring_size: Option<(u32, Option<Span>)>,
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
    pub weight: u16,
    pub admin_state: AdminState,
}

impl Draft {
    /// VIP, port and protocol, if all three could be read.
    pub fn key(&self) -> Option<ServiceKey> {
        let (vip, port) = (self.vip.as_ref()?.value, self.port.as_ref()?.value);
        Some(ServiceKey { vip, port, protocol: self.protocol? })
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
    pub fn service(&self) -> Option<Service> {
        let mut backends = Vec::with_capacity(self.backends.len());
        for backend in &self.backends {
            backends.push(Backend {
                address: backend.address.as_ref()?.value,
                port: self.backend_port(backend)?,
                weight: backend.weight,
                admin_state: backend.admin_state,
            });
        }
        Some(Service {
            key: self.key()?,
            name: self.name.as_ref()?.value.clone(),
            forward: self.forward.as_ref()?.value,
            algo: Algo::Maglev { ring_size: self.ring_size.as_ref()?.0 },
            health_check: match &self.health {
                None => None,
                Some(draft) => Some(draft.check.clone()?),
            },
            backends,
        })
    }

    /// Moves every place by `by` bytes, which wrap around.
    pub fn shift(&mut self, by: usize) {
        let Self { span, name, vip, port, protocol: _, forward, ring_size, health, backends, no_backends: _ } = self;
        let own = [
            Some(span),
            name.as_mut().map(|at| &mut at.span),
            vip.as_mut().map(|at| &mut at.span),
            port.as_mut().map(|at| &mut at.span),
            forward.as_mut().map(|at| &mut at.span),
            ring_size.as_mut().and_then(|(_, span)| span.as_mut()),
            health.as_mut().map(|check| &mut check.span),
        ];
        own.into_iter().flatten().for_each(|span| shift(span, by));
        for backend in backends {
            let BackendDraft { span, address, port, port_refused: _, weight: _, admin_state: _ } = backend;
            let own = [Some(span), address.as_mut().map(|at| &mut at.span), port.as_mut().map(|at| &mut at.span)];
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
    Draft {
        span: section.span.clone(),
        name: name(section, findings),
        vip: address::read(section, "vip", findings),
        port: service_port(section, findings),
        protocol,
        forward: section.word("forward", &modes, findings),
        ring_size: ring_size(section, findings),
        health: health.map(|section| health::read(&section, findings)),
        no_backends: section.is_empty("backends"),
        backends: backends.iter().map(|section| backend(section, findings)).collect(),
    }
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

/// The ring size that `algo` and `algo_config` ask for.
fn ring_size(section: &Section<'_>, findings: &mut Findings) -> Option<(u32, Option<Span>)> {
    if section.get("algo").is_some() {
        // The one algorithm so far; its parameters mean nothing under a name that weir does not know.
        section.word("algo", &[("maglev", ())], findings)?;
    }
    if section.get("algo_config").is_none() {
        return Some((Algo::RING_SIZE, None));
    }
    let section = section.table("algo_config", Table::Maglev, findings)?;
    if section.get("ring_size").is_none() {
        return Some((Algo::RING_SIZE, None));
    }
    let At { value, span } = section.integer("ring_size", 0..=u32::MAX, findings)?;
    let wrong = if !prime::RING_SIZES.contains(&value) {
        format!("`ring_size` is out of range: {value}")
    } else if !prime::is_prime(value) {
        format!("`ring_size` is not prime: {value}")
    } else {
        return Some((value, Some(span)));
    };
    let hint = match prime::neighbours(value.into()) {
        (Some(below), Some(above)) => format!("the nearest primes are {below} and {above}"),
        (Some(prime), None) => format!("the largest ring has {prime} slots"),
        (None, Some(prime)) => format!("the smallest ring has {prime} slots"),
        (None, None) => String::new(),
    };
    findings.push(Diagnostic::new(Code::RingSize, span, wrong).hint(hint));
    None
}

/// Reads `[[service.backends]]`.
fn backend(section: &Section<'_>, findings: &mut Findings) -> BackendDraft {
    section.require(&["address"], findings);
    let port = number_port(section, findings);
    let states = [("ready", AdminState::Ready), ("drain", AdminState::Drain), ("maint", AdminState::Maint)];
    BackendDraft {
        span: section.span.clone(),
        address: address::read(section, "address", findings),
        port_refused: port.is_none() && section.get("port").is_some(),
        port,
        weight: section
            .integer("weight", 0..=WEIGHT_MAX.into(), findings)
            .and_then(|weight| u16::try_from(weight.value).ok())
            .unwrap_or(1),
        admin_state: section.word("admin_state", &states, findings).map_or(AdminState::Ready, |state| state.value),
    }
}
