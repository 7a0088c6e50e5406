//! What IPVS allows and weir does not, brought into form: each thing that is changed or left out is noted at its line.
//!
//! What remains for [`super::parse`] to refuse is what only the user can decide, such as a backend that two services reach by
//! `nat`.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::{
    super::{
        Forward, MAX_CONNECTIONS_MAX, Protocol, SERVICE_BACKENDS_MAX, ServiceKey, WEIGHT_MAX, forward_word, parse,
    },
    Draft, Found,
};

/// Changes what was found.
pub(super) fn fit(found: &mut Found) {
    let mut keys = HashSet::new();
    let mut vips = HashSet::new();
    let mut names: HashMap<String, usize> = HashMap::new();
    let drafts = std::mem::take(&mut found.services);
    for draft in drafts {
        let key = ServiceKey { vip: draft.vip, port: draft.port, protocol: draft.protocol };
        if let Some((kind, _)) = parse::unusable(draft.vip) {
            found.note(draft.line, format!("the service {key} was left out: its VIP is {kind}"));
        } else if keys.insert(key) {
            vips.insert(draft.vip);
            found.services.push(draft);
        } else {
            found.note(draft.line, format!("the service {key} was left out: there is one before it"));
        }
    }
    for draft in &mut found.services {
        name(draft, &mut names);
        weights(draft);
        backends(draft, &vips);
        flows(draft);
        check(draft);
    }
    let interfaces = std::mem::take(&mut found.interfaces);
    for name in interfaces {
        if parse::interface_refused(&name).is_none() {
            found.interfaces.push(name);
        } else {
            found.note(1, "the name of an interface was left out: no interface can be called so");
        }
    }
    found.interfaces.truncate(lb_core::abi::stats::INTERFACES_MAX as usize);
}

/// A unique name: that of the group, or one made of protocol, address and port.
fn name(draft: &mut Draft, names: &mut HashMap<String, usize>) {
    let base = draft.name.take().unwrap_or_else(|| {
        let address = draft.vip.to_string().replace(':', "-");
        let port = if draft.port == 0 { "all".to_owned() } else { draft.port.to_string() };
        format!("{}-{address}-{port}", draft.protocol)
    });
    let mut name = base.clone();
    // A group may be used by several virtual servers, and be called like what is made up here.
    while names.contains_key(&name) {
        let count = names.entry(base.clone()).or_default();
        *count += 1;
        // Long names keep room for the number.
        let room: String = base.chars().take(56).collect();
        name = format!("{room}-{}", *count + 1);
    }
    names.insert(name.clone(), 0);
    draft.name = Some(name);
}

/// Weights of the range that weir has, in the same proportions.
fn weights(draft: &mut Draft) {
    let max = u64::from(WEIGHT_MAX);
    let Some(largest) = draft.backends.iter().map(|b| u64::from(b.weight)).max().filter(|largest| *largest > max)
    else {
        return;
    };
    for backend in draft.backends.iter_mut().filter(|backend| backend.weight > 0) {
        let scaled = (u64::from(backend.weight) * max + largest / 2) / largest;
        backend.weight = u32::try_from(scaled).unwrap_or(u32::from(WEIGHT_MAX)).max(1);
    }
    draft.note(draft.line, format!("weights were scaled to at most {WEIGHT_MAX}, the largest one was {largest}"));
}

fn backends(draft: &mut Draft, vips: &HashSet<IpAddr>) {
    let mut seen = HashSet::new();
    let mode = forward_word(draft.forward);
    for mut backend in std::mem::take(&mut draft.backends) {
        let (line, address) = (backend.line, backend.address);
        let keeps_port = draft.forward != Forward::Nat || draft.port == 0;
        if backend.port == 0 || keeps_port {
            if backend.port != 0 && backend.port != draft.port {
                let why =
                    if draft.port == 0 { "a service on all ports keeps".to_owned() } else { format!("`{mode}` keeps") };
                draft.note(
                    line,
                    format!("{why} the port that the client chose, as in IPVS: port {} was left out", backend.port),
                );
            }
            backend.port = draft.port;
        }
        if backend.max_connections > MAX_CONNECTIONS_MAX {
            draft.note(line, format!("a limit of {} connections is none: it was left out", backend.max_connections));
            backend.max_connections = 0;
        }
        let across = draft.forward != Forward::Ipip && address.is_ipv4() != draft.vip.is_ipv4();
        let refused = if let Some((kind, _)) = parse::unusable(address) {
            Some(format!("it is {kind}"))
        } else if vips.contains(&address) {
            Some("it is a VIP: weir does not deliver to its own node".to_owned())
        } else if across {
            Some(format!("`{mode}` does not cross address families"))
        } else if draft.backends.len() >= SERVICE_BACKENDS_MAX {
            Some(format!("a service has at most {SERVICE_BACKENDS_MAX}"))
        } else if !seen.insert((address, backend.port)) {
            Some("the service has it already".to_owned())
        } else {
            None
        };
        match refused {
            Some(why) => draft.note(line, format!("the backend {address} was left out: {why}")),
            None => draft.backends.push(backend),
        }
    }
}

/// One-packet scheduling is what stateless UDP is; it goes with hashing only.
fn flows(draft: &mut Draft) {
    if !draft.one_packet {
        return;
    }
    let why = if draft.protocol == Protocol::Tcp {
        "one-packet scheduling is for UDP: it was left out"
    } else if !draft.algo.is_hashed() {
        "one-packet scheduling goes with \"maglev\" and \"source_hash\" only: flows are recorded, as the algorithm needs it"
    } else if draft.backends.iter().any(|backend| backend.max_connections > 0) {
        "one-packet scheduling does not go with `max_connections`: flows are recorded"
    } else {
        return;
    };
    draft.one_packet = false;
    draft.note(draft.line, why);
}

fn check(draft: &mut Draft) {
    if draft.port == 0 && draft.check.as_ref().is_some_and(|check| check.port.is_none()) {
        draft.check = None;
        draft.note(draft.line, "the check was left out: of a service on all ports it must say which port to ask");
    }
}
