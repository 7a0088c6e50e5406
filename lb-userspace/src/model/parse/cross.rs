//! What services must agree on: unique names and keys, VIPs that are no backends, replies that belong to one service, and the
//! limits.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    super::{
        Announce, Limits,
        limits::{RingNeeds, bytes_shown},
    },
    At, Code, Diagnostic, Findings, Forward, Protocol, Span, node,
    service::Draft,
    store, within,
};

/// Pools by name.
type Pools = HashMap<String, At<IpNet>>;

/// Checks the services against each other, against the pools and against the node's limits.
pub(super) fn check(node: Option<&node::Draft>, pools: &Pools, services: &[&Draft], findings: &mut Findings) {
    unique(services, pools, findings);
    pooled(services, pools, findings);
    vips(services, findings);
    replies(services, findings);
    if let Some(node) = node {
        handover(node, services, findings);
        limits(&node.limits, &node.limit_spans, services, findings);
    }
}

/// Names and (VIP, port, protocol) are unique.
fn unique(services: &[&Draft], pools: &Pools, findings: &mut Findings) {
    let mut names: HashMap<&str, &Span> = HashMap::new();
    let mut keys = HashMap::new();
    for &service in services {
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
        let (Some(key), Some(vip)) = (service.key(pools), service.vip(pools)) else { continue };
        match keys.get(&key) {
            Some(first) => {
                let message = match &service.pool {
                    Some(pool) => {
                        let port = if key.port == 0 { "all ports".to_owned() } else { format!("port {}", key.port) };
                        format!("two services answer on {port}/{} of the pool `{}`", key.protocol, pool.value)
                    }
                    None => format!("two services answer on {key}"),
                };
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

/// VIPs come from pools that exist, and what a node may lease is nothing else.
fn pooled(services: &[&Draft], pools: &Pools, findings: &mut Findings) {
    for &service in services {
        if let Some(pool) = &service.pool {
            match pools.get(&pool.value) {
                Some(prefix) => {
                    let first = At { value: prefix.value.network(), span: pool.span.clone() };
                    service.backends.iter().for_each(|backend| within::family_of(service, &first, backend, findings));
                }
                None => {
                    let message = format!("there is no pool `{}`", super::shown(&pool.value));
                    let hint = match pools.len() {
                        0 => "a pool starts with `[[pool]]` and has `name` and `prefix`".to_owned(),
                        _ => {
                            let mut names: Vec<&str> = pools.keys().map(String::as_str).collect();
                            names.sort_unstable();
                            names.truncate(8);
                            format!("there are {}", super::super::schema::list(names))
                        }
                    };
                    findings.push(Diagnostic::new(Code::PoolUnknown, pool.span.clone(), message).hint(hint));
                }
            }
        }
        if pools.is_empty() {
            continue;
        }
        let backends = service.backends.iter().filter_map(|backend| backend.address.as_ref());
        for (address, what) in
            service.vip.iter().map(|vip| (vip, "the VIP")).chain(backends.map(|b| (b, "the backend")))
        {
            let Some((name, prefix)) = store::pool_of(pools, address.value) else { continue };
            let message = format!("{what} {} is an address of the pool `{name}`", address.value);
            let finding = Diagnostic::new(Code::PoolOverlap, address.span.clone(), message)
                .related(prefix.span.clone(), "the pool")
                .hint("a node may lease it at any time: give the pool addresses that nothing else has");
            findings.push(finding);
        }
    }
}

/// Addresses of pools are leased from the store that the nodes share.
pub(super) fn leases(store: &store::Draft, services: &[&Draft], findings: &mut Findings) {
    let Some(pool) = services.iter().find_map(|service| service.pool.as_ref()) else { return };
    if store.is_file == Some(true) {
        let finding = Diagnostic::new(Code::PoolStore, pool.span.clone(), "an address of a pool is leased from a store, and there is none")
            .hint("with `kind = \"redis\"` or `\"embedded\"` in `[store]` nodes lease one each; a single node has its VIP written out");
        findings.push(finding);
    }
}

/// No backend is a VIP.
fn vips(services: &[&Draft], findings: &mut Findings) {
    let mut vips = HashMap::new();
    for vip in services.iter().filter_map(|service| service.vip.as_ref()) {
        vips.entry(vip.value).or_insert(&vip.span);
    }
    for address in services.iter().flat_map(|service| &service.backends).filter_map(|backend| backend.address.as_ref())
    {
        let Some(vip) = vips.get(&address.value) else { continue };
        let message = format!("the backend {} is a VIP of this node", address.value);
        let finding = Diagnostic::new(Code::VipIsBackend, address.span.clone(), message)
            .related(Span::clone(vip), "the VIP")
            .hint("packets would come back to the node for ever: write the backend's own address");
        findings.push(finding);
    }
}

/// Records stay on their node: where the network may bring a flow to another one, a choice is lost.
fn handover(node: &node::Draft, services: &[&Draft], findings: &mut Findings) {
    let Some(announce) = node.announce.as_ref().filter(|at| at.value == Announce::None) else { return };
    for service in services.iter().filter(|service| service.algo.is_chosen()) {
        let (Some(kind), Some(span)) = (service.algo.kind, &service.algo.span) else { continue };
        let message = format!("flows that `{kind}` chose do not survive a change of node");
        let finding = Diagnostic::new(Code::ChosenHandover, span.clone(), message)
            .related(announce.span.clone(), "the network may route the VIP to several nodes")
            .hint("`maglev` gives a flow the same backend on every node; where one node alone has the VIP, nothing is lost");
        findings.push(finding);
    }
}

/// A backend that a service reaches by `nat`.
struct Use<'s> {
    address: IpAddr,
    protocol: Protocol,
    /// 0 for all.
    port: u16,
    service: &'s Draft,
    /// Where the address stands.
    span: &'s Span,
}

/// Replies of a `nat` backend are recognised by (address, port, protocol) alone, so one service may claim each.
fn replies(services: &[&Draft], findings: &mut Findings) {
    let mut uses = Vec::new();
    for &service in services {
        let (Some(forward), Some(protocol)) = (&service.forward, service.protocol) else { continue };
        if forward.value != Forward::Nat {
            continue;
        }
        for backend in &service.backends {
            let (Some(address), Some(port)) = (&backend.address, service.backend_port(backend)) else { continue };
            uses.push(Use { address: address.value, protocol, port, service, span: &address.span });
        }
    }
    // Stable: the uses of one backend stay in file order.
    uses.sort_by_key(|a| (a.address, a.protocol));
    for uses in uses.chunk_by(|a, b| (a.address, a.protocol) == (b.address, b.protocol)) {
        rivals(uses, findings);
    }
}

/// Reports each of `uses`, which are of one address and protocol, that an earlier one contradicts.
fn rivals(uses: &[Use<'_>], findings: &mut Findings) {
    let mut all_ports: Option<&Use<'_>> = None;
    let mut ports: HashMap<u16, &Use<'_>> = HashMap::new();
    for used in uses.iter().filter(|_| uses.len() > 1) {
        let rival = match used.port {
            0 => uses.first(),
            port => ports.get(&port).copied().or(all_ports),
        };
        match used.port {
            0 => _ = all_ports.get_or_insert(used),
            port => _ = ports.entry(port).or_insert(used),
        }
        // Twice in one service is a duplicate, or two ports, and reported as such.
        let Some(rival) = rival.filter(|rival| !std::ptr::eq(rival.service, used.service)) else { continue };
        let message = format!(
            "replies of {}/{} would belong to {} and to {}",
            at(used.address, used.port),
            used.protocol,
            rival.service.shown(),
            used.service.shown()
        );
        let finding = Diagnostic::new(Code::NatAmbiguous, used.span.clone(), message)
            .related(rival.span.clone(), format!("{} has it by `nat`", rival.service.shown()))
            .hint("by `nat` a backend's address, port and protocol belong to one service: let it listen on a second port or \
                   address, or use `ipip` or `dsr`");
        findings.push(finding);
    }
}

/// Services, backends and rings fit the maps.
fn limits(limits: &Limits, spans: &[Option<Span>; 3], services: &[&Draft], findings: &mut Findings) {
    let [services_span, backends_span, slots_span] = spans;
    if let Some(first_beyond) = services.get(limits.services_max as usize) {
        let n = services.len();
        let message = format!("{n} services, the limit is {}", limits.services_max);
        let finding = Diagnostic::new(Code::LimitServices, first_beyond.span.clone(), message);
        findings.push(with_limit(finding, services_span, &format!("raise `services_max` to at least {n}")));
    }
    let mut before: usize = 0;
    let backends: usize = services.iter().map(|service| service.backends.len()).sum();
    for &service in services {
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

/// The arena holds every ring and list of members, and what the change of one of them needs beside.
fn rings(limits: &Limits, span: &Option<Span>, services: &[&Draft], findings: &mut Findings) {
    let needs = |service: &&Draft| {
        let weights: Vec<u16> = service.backends.iter().map(|backend| backend.weight.value).collect();
        Some(RingNeeds::new(service.algo.kind?, service.algo.ring_size.as_ref()?.0, &weights))
    };
    let needed = Limits::ring_slots_needed(services.iter().filter_map(needs));
    if needed <= limits.ring_slots_max.into() {
        return;
    }
    let largest = services.iter().max_by_key(|service| service.algo.ring_size.as_ref().map_or(0, |(size, _)| *size));
    let place = largest.and_then(|service| {
        let (_, span) = service.algo.ring_size.as_ref()?;
        Some(span.clone().unwrap_or_else(|| service.span.clone()))
    });
    let place = span.clone().or(place).unwrap_or(0..0);
    let message = format!(
        "{} rings need {needed} slots, the limit is {}",
        services.iter().filter_map(needs).count(),
        limits.ring_slots_max
    );
    let hint = format!(
        "raise `ring_slots_max` to at least {needed} ({}), or choose smaller rings by `algo_config = {{ ring_size = ... }}`; \
         the figure holds the largest ring two times more, because a changed ring is built beside the one in use and the one before",
        bytes_shown(needed * 8)
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
pub(super) fn at(address: IpAddr, port: u16) -> String {
    match port {
        0 => address.to_string(),
        port => std::net::SocketAddr::new(address, port).to_string(),
    }
}
