//! What tables must agree on: unique names and keys, families, ports, replies that belong to one service, and the limits.

use std::{collections::HashMap, net::IpAddr};

use super::{
    super::{Limits, SERVICE_BACKENDS_MAX, limits::bytes_shown, prime},
    Code, Diagnostic, Findings, Forward, Protocol, Span, node,
    service::{BackendDraft, Draft},
};

/// Checks the services against each other and against the node's limits.
pub(super) fn check(node: Option<&node::Draft>, services: &[Draft], findings: &mut Findings) {
    unique(services, findings);
    let vips = vips(services);
    for service in services {
        backends(service, &vips, findings);
        ring(service, findings);
        health(service, findings);
    }
    replies(services, findings);
    if let Some(node) = node {
        limits(&node.limits, &node.limit_spans, services, findings);
    }
}

/// Names and (VIP, port, protocol) are unique.
fn unique(services: &[Draft], findings: &mut Findings) {
    let mut names: HashMap<&str, &Span> = HashMap::new();
    let mut keys = HashMap::new();
    for service in services {
        if let Some(name) = &service.name {
            match names.get(&*name.value) {
                Some(first) => {
                    let message = format!("two services are called `{}`", name.value);
                    let finding = Diagnostic::new(Code::DuplicateName, name.span.clone(), message)
                        .related((*first).clone(), "first here")
                        .hint("`weir backend drain NAME/ADDRESS:PORT` must mean one backend: choose another name");
                    findings.push(finding);
                }
                None => {
                    names.insert(&name.value, &name.span);
                }
            }
        }
        let (Some(key), Some(vip)) = (service.key(), &service.vip) else { continue };
        match keys.get(&key) {
            Some(first) => {
                let message = format!("two services answer on {key}");
                let finding = Diagnostic::new(Code::DuplicateService, vip.span.clone(), message)
                    .related(Span::clone(first), "first here")
                    .hint("put the backends into one service, or give one another VIP, port or protocol");
                findings.push(finding);
            }
            None => {
                keys.insert(key, vip.span.clone());
            }
        }
    }
}

/// Every VIP with the first place that names it.
fn vips(services: &[Draft]) -> HashMap<IpAddr, &Span> {
    let mut vips = HashMap::new();
    for vip in services.iter().filter_map(|service| service.vip.as_ref()) {
        vips.entry(vip.value).or_insert(&vip.span);
    }
    vips
}

/// What the backends of one service must hold.
fn backends(service: &Draft, vips: &HashMap<IpAddr, &Span>, findings: &mut Findings) {
    if service.no_backends {
        let message = format!("{} has no backend", service.shown());
        let finding = Diagnostic::new(Code::NoBackends, service.span.clone(), message)
            .hint("its packets are dropped and counted; a backend starts with `[[service.backends]]`");
        findings.push(finding);
    }
    if let Some(first_beyond) = service.backends.get(SERVICE_BACKENDS_MAX) {
        let n = service.backends.len();
        let message = format!("{} has {n} backends, a service has at most {SERVICE_BACKENDS_MAX}", service.shown());
        let hint = "spread them over several VIPs, which DNS can hand out";
        findings.push(Diagnostic::new(Code::ServiceBackends, first_beyond.span.clone(), message).hint(hint));
    }
    let mut seen: HashMap<(IpAddr, u16), &Span> = HashMap::new();
    for backend in &service.backends {
        port(service, backend, findings);
        let Some(address) = &backend.address else { continue };
        if let Some(vip) = vips.get(&address.value) {
            let message = format!("the backend {} is a VIP of this node", address.value);
            let finding = Diagnostic::new(Code::VipIsBackend, address.span.clone(), message)
                .related(Span::clone(vip), "the VIP")
                .hint("packets would come back to the node for ever: write the backend's own address");
            findings.push(finding);
        }
        family(service, backend, findings);
        let Some(port) = service.backend_port(backend) else { continue };
        match seen.get(&(address.value, port)) {
            Some(first) => {
                let shown = at(address.value, port);
                let message = format!("{} lists the backend {shown} twice", service.shown());
                let finding = Diagnostic::new(Code::DuplicateBackend, address.span.clone(), message)
                    .related(Span::clone(first), "first here")
                    .hint("for a larger share set `weight`");
                findings.push(finding);
            }
            None => {
                seen.insert((address.value, port), &address.span);
            }
        }
    }
}

/// `dsr` and `nat` keep the family of the packet.
fn family(service: &Draft, backend: &BackendDraft, findings: &mut Findings) {
    let (Some(vip), Some(forward), Some(address)) = (&service.vip, &service.forward, &backend.address) else { return };
    let mode = match forward.value {
        Forward::Dsr => "dsr",
        Forward::Nat => "nat",
        Forward::Ipip => return,
    };
    if vip.value.is_ipv4() == address.value.is_ipv4() {
        return;
    }
    let family = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let message = format!("an {} backend cannot serve an {} VIP by `{mode}`", family(address.value), family(vip.value));
    let finding = Diagnostic::new(Code::FamilyMismatch, address.span.clone(), message)
        .related(vip.span.clone(), "the VIP")
        .hint("`forward = \"ipip\"` carries either family in either, else use one family");
    findings.push(finding);
}

/// Only `nat` changes ports, and not where a service answers on all of them.
fn port(service: &Draft, backend: &BackendDraft, findings: &mut Findings) {
    let (Some(service_port), Some(forward), Some(port)) = (&service.port, &service.forward, &backend.port) else {
        return;
    };
    if service_port.value == port.value {
        return;
    }
    let (message, hint) = if service_port.value == 0 {
        (
            "a backend of a service on all ports has no port".to_owned(),
            "packets keep the port that the client chose: remove `port`; the check's port stands in `[service.health_check]`"
                .to_owned(),
        )
    } else {
        let mode = match forward.value {
            Forward::Dsr => "dsr",
            Forward::Ipip => "ipip",
            Forward::Nat => return,
        };
        (
            format!("`{mode}` cannot change the port from {} to {}", service_port.value, port.value),
            format!("let the backend listen on port {}, or use `forward = \"nat\"`", service_port.value),
        )
    };
    let finding = Diagnostic::new(Code::BackendPort, port.span.clone(), message)
        .related(service_port.span.clone(), "the service's port")
        .hint(hint);
    findings.push(finding);
}

/// A ring much larger than the number of backends is what makes shares even: with M > 100 N the difference is below 1 %
/// (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4).
fn ring(service: &Draft, findings: &mut Findings) {
    let Some((size, span)) = &service.ring_size else { return };
    let active = service.backends.iter().filter(|backend| backend.weight > 0).count();
    let wanted = active as u64 * 100;
    if u64::from(*size) >= wanted {
        return;
    }
    let message = format!(
        "{} has {active} backends on a ring of {size} slots: shares may differ by more than 1 %",
        service.shown()
    );
    // `wanted` itself is never prime, so the next prime above it is the smallest that will do.
    let hint = match prime::neighbours(wanted) {
        (_, Some(prime)) => {
            format!("a ring of 100 slots a backend is even enough: `algo_config = {{ ring_size = {prime} }}`")
        }
        (_, None) => format!("the largest ring is `algo_config = {{ ring_size = {} }}`", prime::RING_SIZES.end()),
    };
    let span = span.clone().unwrap_or_else(|| service.span.clone());
    findings.push(Diagnostic::new(Code::RingSmall, span, message).hint(hint));
}

/// A check needs a port to ask.
fn health(service: &Draft, findings: &mut Findings) {
    let (Some(health), Some(port)) = (&service.health, &service.port) else { return };
    if port.value != 0 || health.has_port {
        return;
    }
    let finding = Diagnostic::new(Code::HealthPort, health.span.clone(), "the check does not say which port to ask")
        .related(port.span.clone(), "all ports")
        .hint("add `port` to `[service.health_check]`");
    findings.push(finding);
}

/// Where a backend of a `nat` service is named: the service's index, its name and the address.
type Place<'s> = (usize, &'s Draft, &'s Span);

/// Who uses one (address, protocol) by `nat`.
#[derive(Default)]
struct Uses<'s> {
    first: Option<Place<'s>>,
    all_ports: Option<Place<'s>>,
    ports: HashMap<u16, Place<'s>>,
}

/// Replies of a `nat` backend are recognised by (address, port, protocol) alone, so one service may claim each.
fn replies(services: &[Draft], findings: &mut Findings) {
    let mut uses: HashMap<(IpAddr, Protocol), Uses<'_>> = HashMap::new();
    for (index, service) in services.iter().enumerate() {
        let (Some(forward), Some(protocol)) = (&service.forward, service.protocol) else { continue };
        if forward.value != Forward::Nat {
            continue;
        }
        for backend in &service.backends {
            let (Some(address), Some(port)) = (&backend.address, service.backend_port(backend)) else { continue };
            let uses = uses.entry((address.value, protocol)).or_default();
            let rival = if port == 0 { uses.first } else { uses.ports.get(&port).copied().or(uses.all_ports) };
            let place = (index, service, &address.span);
            uses.first.get_or_insert(place);
            if port == 0 {
                uses.all_ports.get_or_insert(place);
            } else {
                uses.ports.entry(port).or_insert(place);
            }
            // Twice in one service is a duplicate, or two ports, and reported as such.
            let Some((_, other, span)) = rival.filter(|(other, ..)| *other != index) else { continue };
            let message = format!(
                "replies of {}/{protocol} would belong to {} and to {}",
                at(address.value, port),
                other.shown(),
                service.shown()
            );
            let finding = Diagnostic::new(Code::NatAmbiguous, address.span.clone(), message)
                .related(span.clone(), format!("{} has it by `nat`", other.shown()))
                .hint("by `nat` a backend's address, port and protocol belong to one service: let it listen on a second port \
                       or address, or use `ipip` or `dsr`");
            findings.push(finding);
        }
    }
}

/// Services, backends and rings fit the maps.
fn limits(limits: &Limits, spans: &[Option<Span>; 3], services: &[Draft], findings: &mut Findings) {
    let [services_span, backends_span, slots_span] = spans;
    if let Some(first_beyond) = services.get(limits.services_max as usize) {
        let n = services.len();
        let message = format!("{n} services, the limit is {}", limits.services_max);
        let finding = Diagnostic::new(Code::LimitServices, first_beyond.span.clone(), message);
        findings.push(with_limit(finding, services_span, &format!("raise `services_max` to at least {n}")));
    }
    let mut before: usize = 0;
    let backends: usize = services.iter().map(|service| service.backends.len()).sum();
    for service in services {
        let room = (limits.backends_max as usize).saturating_sub(before);
        if let Some(first_beyond) = service.backends.get(room) {
            let message = format!("{backends} backends, the limit is {}", limits.backends_max);
            let finding = Diagnostic::new(Code::LimitBackends, first_beyond.span.clone(), message);
            findings.push(with_limit(finding, backends_span, &format!("raise `backends_max` to at least {backends}")));
            break;
        }
        before += service.backends.len();
    }
    rings(limits, slots_span, services, findings);
}

/// The arena holds every ring and, while one is replaced, the largest a second time.
fn rings(limits: &Limits, span: &Option<Span>, services: &[Draft], findings: &mut Findings) {
    let sizes = || services.iter().filter_map(|service| Some(service.ring_size.as_ref()?.0));
    let needed = Limits::ring_slots_needed(sizes());
    if needed <= limits.ring_slots_max.into() {
        return;
    }
    let largest = services.iter().max_by_key(|service| service.ring_size.as_ref().map_or(0, |(size, _)| *size));
    let place = largest.and_then(|service| {
        let (_, span) = service.ring_size.as_ref()?;
        Some(span.clone().unwrap_or_else(|| service.span.clone()))
    });
    let place = span.clone().or(place).unwrap_or(0..0);
    let message = format!("{} rings need {needed} slots, the limit is {}", sizes().count(), limits.ring_slots_max);
    let hint = format!(
        "raise `ring_slots_max` to at least {needed} ({}), or choose smaller rings by `algo_config = {{ ring_size = ... }}`; \
         the figure holds the largest ring twice, because a changed ring is built beside the old one",
        bytes_shown(needed * 4)
    );
    findings.push(Diagnostic::new(Code::LimitRings, place, message).hint(hint));
}

/// The finding with the place of the limit, or the words where to set it.
fn with_limit(finding: Diagnostic, span: &Option<Span>, hint: &str) -> Diagnostic {
    match span {
        Some(span) => {
            finding.related(span.clone(), "the limit").hint(format!("{hint}, which takes `weir agent --unload` first"))
        }
        None => finding.hint(format!("{hint} in `[node.limits]`, which takes `weir agent --unload` first")),
    }
}

/// `10.0.0.1:80`, `[2001:db8::1]:80`; the address alone for all ports.
fn at(address: IpAddr, port: u16) -> String {
    match port {
        0 => address.to_string(),
        port => std::net::SocketAddr::new(address, port).to_string(),
    }
}
