//! Drafts as TOML that people go on to edit: what differs from the defaults, and notes as comments where they belong.

use std::fmt::Write as _;

use super::{
    super::{
        Algo, Forward, HealthCheck, Limits, Probe, Protocol, RING_SLOTS_MAX_RANGE, algo::Kind, duration, emit::quoted,
        forward_word, limits::RingNeeds,
    },
    Draft, Found, Note,
};

/// The text of the configuration.
pub(super) fn write(file_name: &str, found: &Found) -> String {
    let mut out = format!("# Made by `weir config import` of {}.\n", printable(file_name));
    if !found.notes.is_empty() || found.services.iter().any(|service| !service.notes.is_empty()) {
        out.push_str("# What was changed or left out stands beside it, with its line over there.\n");
    }
    comments(&mut out, &found.notes);
    out.push_str("\n[node]\n");
    if let Some(name) = &found.name {
        set(&mut out, "name", &quoted(name));
    }
    if found.interfaces.is_empty() {
        out.push_str(
            "# The interfaces on which packets for the VIPs arrive have to be named; `ip -brief link` lists them.\n",
        );
        out.push_str("# interfaces = [\"eth0\"]\n");
    } else {
        let names: Vec<String> = found.interfaces.iter().map(|name| quoted(name)).collect();
        set(&mut out, "interfaces", &format!("[{}]", names.join(", ")));
    }
    limits(&mut out, found);
    for service in &found.services {
        self::service(&mut out, service);
    }
    out
}

/// Limits, where the defaults are too small.
fn limits(out: &mut String, found: &Found) {
    let default = Limits::default();
    let needs = |service: &Draft| {
        let weight = |weight: u32| u16::try_from(weight).unwrap_or(u16::MAX);
        let weights: Vec<u16> = service.backends.iter().map(|backend| weight(backend.weight)).collect();
        RingNeeds::new(service.algo, Algo::RING_SIZE, &weights)
    };
    let slots = Limits::ring_slots_needed(found.services.iter().map(needs)).min((*RING_SLOTS_MAX_RANGE.end()).into());
    let backends: usize = found.services.iter().map(|service| service.backends.len()).sum();
    let mut keys = Vec::new();
    if backends > default.backends_max as usize {
        keys.push(("backends_max", backends as u64));
    }
    if slots > default.ring_slots_max.into() {
        keys.push(("ring_slots_max", slots));
    }
    if keys.is_empty() {
        return;
    }
    out.push_str("\n[node.limits]\n");
    keys.into_iter().for_each(|(key, value)| set(out, key, &value.to_string()));
}

fn service(out: &mut String, service: &Draft) {
    out.push('\n');
    comments(out, &service.notes);
    out.push_str("[[service]]\n");
    set(out, "name", &quoted(service.name.as_deref().unwrap_or_default()));
    set(out, "vip", &quoted(&service.vip.to_string()));
    match service.port {
        0 => set(out, "port", "\"all\""),
        port => set(out, "port", &port.to_string()),
    }
    if service.protocol == Protocol::Udp {
        set(out, "protocol", "\"udp\"");
    }
    set(out, "forward", &quoted(forward_word(service.forward)));
    if service.algo != Kind::Maglev {
        set(out, "algo", &quoted(service.algo.word()));
    }
    // IPVS keeps the datagrams of a flow together unless it is told to forget them.
    if service.protocol == Protocol::Udp && service.algo.is_hashed() {
        set(out, "udp_flows", if service.one_packet { "\"stateless\"" } else { "\"sticky\"" });
    }
    if service.keep {
        set(out, "on_marked_down", "\"keep\"");
    }
    if let Some(check) = &service.check {
        self::check(out, check);
    }
    for backend in &service.backends {
        out.push_str("\n[[service.backends]]\n");
        set(out, "address", &quoted(&backend.address.to_string()));
        if service.forward == Forward::Nat && backend.port != service.port {
            set(out, "port", &backend.port.to_string());
        }
        if backend.weight != 1 {
            set(out, "weight", &backend.weight.to_string());
        }
        if backend.max_connections != 0 {
            set(out, "max_connections", &backend.max_connections.to_string());
        }
    }
}

fn check(out: &mut String, check: &HealthCheck) {
    out.push_str("\n[service.health_check]\n");
    match &check.probe {
        Probe::Http { path, host } => {
            set(out, "type", "\"http\"");
            set(out, "path", &quoted(path));
            if let Some(host) = host {
                set(out, "host", &quoted(host));
            }
        }
        Probe::Tcp => set(out, "type", "\"tcp\""),
    }
    if let Some(port) = check.port {
        set(out, "port", &port.to_string());
    }
    set(out, "interval", &quoted(&duration::format(check.interval)));
    set(out, "timeout", &quoted(&duration::format(check.timeout)));
    set(out, "rise", &check.rise.to_string());
    set(out, "fall", &check.fall.to_string());
}

fn comments(out: &mut String, notes: &[Note]) {
    for note in notes {
        let _ = writeln!(out, "# line {}: {}", note.line, printable(&note.text));
    }
}

/// On one line, without control characters: TOML allows none in comments.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn set(out: &mut String, key: &str, value: &str) {
    let _ = writeln!(out, "{key} = {value}");
}
