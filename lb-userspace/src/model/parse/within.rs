//! What the tables of one service must agree on: families, ports, the size of the ring, the port of the check. Refuses to know
//! other services ([`super::cross`]), so that its findings stay true however those change.

use std::{collections::HashMap, net::IpAddr};

use super::{
    super::{SERVICE_BACKENDS_MAX, prime},
    At, Code, Diagnostic, Findings, Forward, Span,
    cross::at,
    service::{BackendDraft, Draft},
};

/// Checks a service by itself.
pub(super) fn check(service: &Draft, findings: &mut Findings) {
    backends(service, findings);
    ring(service, findings);
    health(service, findings);
}

/// The backends are some, not too many, and each is named once.
fn backends(service: &Draft, findings: &mut Findings) {
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

/// [`family_of`] for a VIP that the service itself names.
fn family(service: &Draft, backend: &BackendDraft, findings: &mut Findings) {
    if let Some(vip) = &service.vip {
        family_of(service, vip, backend, findings);
    }
}

/// `dsr` and `nat` keep the family of the packet.
pub(super) fn family_of(service: &Draft, vip: &At<IpAddr>, backend: &BackendDraft, findings: &mut Findings) {
    let (Some(forward), Some(address)) = (&service.forward, &backend.address) else { return };
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
    let Some((size, span)) = service.algo.ring_size.as_ref().filter(|_| !service.algo.is_chosen()) else { return };
    let active = service.backends.iter().filter(|backend| backend.weight.value > 0).count();
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
