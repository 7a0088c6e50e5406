//! `virtual_server` and `virtual_server_group` of keepalived as drafts of services (keepalived.conf(5), "LVS CONFIGURATION").
//!
//! Refuses to know: what weir allows ([`super::fit`]). Checks are in [`check`], addresses in [`address`].

mod address;
mod check;

use std::{collections::HashMap, net::IpAddr};

use self::check::Taken;
use super::{
    super::{Forward, Protocol, algo::Kind, parse::shown, reference::is_name},
    BACKENDS_MAX, BackendDraft, Draft, Found, ImportError, Note, SERVICES_MAX, algo,
    tree::{self, Statement},
};

/// Reads a `keepalived.conf`.
pub(super) fn read(text: &str) -> Result<Found, ImportError> {
    let mut found = Found::default();
    let file = tree::read(text, &mut found)?;
    let groups = file.iter().filter(|statement| statement.name() == "virtual_server_group");
    let groups: HashMap<&str, &Statement> = groups.filter_map(|group| Some((group.value()?, group))).collect();
    let mut backends = 0;
    for statement in &file {
        match statement.name() {
            "virtual_server_group" => {}
            "virtual_server" => virtual_server(statement, &groups, &mut backends, &mut found),
            "global_defs" => global(statement, &mut found),
            "vrrp_instance" => vrrp(statement, &mut found),
            "include" | "includer" | "includem" | "includew" | "includeb" | "includea" => {
                found.note(statement.line, "files are not included: import each, or put them into one first");
            }
            name => {
                let text = format!("`{}` has no counterpart and was left out", shown(name));
                found.note(statement.line, text);
            }
        }
    }
    if !file.iter().any(|statement| statement.name() == "virtual_server") {
        found.note(1, "the file has no `virtual_server`: there is nothing to balance in it");
    }
    Ok(found)
}

fn global(block: &Statement, found: &mut Found) {
    let (mut named, mut others) = (false, 0);
    for statement in block.block() {
        match (statement.name(), statement.value()) {
            ("router_id" | "lvs_id", Some(name)) if is_name(name) => {
                found.name = Some(name.to_owned());
                named = true;
            }
            _ => others += 1,
        }
    }
    if others > 0 {
        let taken = if named { "its `router_id` became `name` in `[node]`, all else" } else { "it" };
        found.note(block.line, format!("`global_defs` is about keepalived itself: {taken} was left out"));
    }
}

fn vrrp(block: &Statement, found: &mut Found) {
    let names = block.block().iter().filter(|statement| statement.name() == "interface");
    for interface in names.filter_map(Statement::value) {
        if !found.interfaces.iter().any(|known| known == interface) {
            found.interfaces.push(interface.to_owned());
        }
    }
    let text = format!(
        "VRRP (`vrrp_instance {}`) has no counterpart: `announce` in `[node]` says who answers for the VIPs; keepalived can \
         go on to move them, with `announce = \"none\"`",
        shown(block.value().unwrap_or(""))
    );
    found.note(block.line, text);
}

/// Which addresses a virtual server has: addresses with their ports, and a name for them.
struct Vips {
    name: Option<String>,
    at: Vec<(IpAddr, u16)>,
}

fn vips(server: &Statement, groups: &HashMap<&str, &Statement>, found: &mut Found) -> Option<Vips> {
    let left_out = |why: &str| format!("the virtual server was left out: {why}");
    match (server.value(), server.words.get(2).map(String::as_str)) {
        (Some("fwmark"), _) => {
            let text =
                left_out("weir knows no firewall marks; name address, port and protocol of what the mark selects");
            found.note(server.line, text);
            None
        }
        (Some("group"), Some(name)) => {
            let Some(group) = groups.get(name) else {
                found.note(server.line, left_out(&format!("there is no group `{}`", shown(name))));
                return None;
            };
            let mut at = Vec::new();
            for member in group.block() {
                if member.name() == "fwmark" {
                    found.note(member.line, "a firewall mark has no counterpart and was left out of its group");
                    continue;
                }
                let room = SERVICES_MAX.saturating_sub(found.services.len() + at.len());
                match address::range(member.name(), room).zip(address::port(member.value())) {
                    Some((addresses, port)) => at.extend(addresses.into_iter().map(|address| (address, port))),
                    None => {
                        let text = format!(
                            "`{}` was left out of its group: it is no address with a port, or there are more than {SERVICES_MAX} \
                             addresses in all",
                            shown(&member.words.join(" "))
                        );
                        found.note(member.line, text);
                    }
                }
            }
            Some(Vips { name: Some(name.to_owned()).filter(|name| is_name(name)), at })
        }
        (Some(text), port) => match (text.parse(), address::port(port)) {
            (Ok(address), Some(port)) if found.services.len() < SERVICES_MAX => {
                Some(Vips { name: None, at: vec![(address, port)] })
            }
            (Ok(_), Some(_)) => {
                found.note(server.line, left_out(&format!("more than {SERVICES_MAX} are not taken over at once")));
                None
            }
            _ => {
                let shown = shown(&server.words.join(" "));
                found.note(
                    server.line,
                    left_out(&format!("`{shown}` is no address with a port; names are not resolved")),
                );
                None
            }
        },
        (None, _) => {
            found.note(server.line, left_out("it says no address"));
            None
        }
    }
}

/// What a virtual server says that its real servers share.
struct Server {
    draft: Draft,
    scheduler: Option<(usize, String)>,
    /// Whether hashing schedulers take the port as well.
    with_port: bool,
    /// Where failed servers are to stay.
    inhibit: Option<usize>,
    /// Where persistence is asked for.
    persistence: Option<usize>,
    /// `lvs_method` of the virtual server, then of real servers that have their own.
    methods: Vec<(usize, Forward)>,
    /// How real servers are checked unless they say it.
    check: check::Timers,
    /// `weight`: of a real server that says none.
    weight: u32,
}

fn virtual_server(block: &Statement, groups: &HashMap<&str, &Statement>, backends: &mut usize, found: &mut Found) {
    let Some(Vips { name, at }) = vips(block, groups, found) else { return };
    let Some(&(vip, port)) = at.first() else {
        found.note(block.line, "the virtual server was left out: its group has no address that could be taken over");
        return;
    };
    let draft = Draft {
        line: block.line,
        name,
        vip,
        port,
        protocol: Protocol::Tcp,
        forward: Forward::Nat,
        algo: Kind::WeightedLeastConnections,
        one_packet: false,
        keep: false,
        check: None,
        backends: Vec::new(),
        notes: Vec::new(),
    };
    let check = check::Timers::default();
    let mut server = Server {
        draft,
        scheduler: None,
        with_port: false,
        inhibit: None,
        persistence: None,
        methods: Vec::new(),
        check,
        weight: 1,
    };
    let mut sctp = false;
    for statement in block.block() {
        match (statement.name(), statement.value()) {
            ("protocol", Some("SCTP" | "sctp")) => sctp = true,
            ("real_server", _) => {}
            _ => setting(statement, &mut server),
        }
    }
    if sctp {
        found.note(block.line, "the virtual server was left out: weir balances TCP and UDP, not SCTP");
        return;
    }
    let mut checks = check::Checks::default();
    for statement in block.block().iter().filter(|statement| statement.name() == "real_server") {
        if *backends + at.len() > BACKENDS_MAX {
            let text =
                format!("more than {BACKENDS_MAX} backends in all are not taken over: from here on they were left out");
            server.draft.note(statement.line, text);
            break;
        }
        if real_server(statement, &mut server, &mut checks) {
            *backends += at.len();
        }
    }
    finish(&mut server, checks);
    // What is to be said is said once, not for each address of a group.
    let alone = at.len() == 1;
    let first_name = server.draft.name.clone();
    for (n, (vip, port)) in at.into_iter().enumerate() {
        let mut draft = server.draft.clone();
        (draft.vip, draft.port) = (vip, port);
        if !alone {
            draft.name = first_name.as_ref().map(|name| format!("{name}-{}", n + 1)).filter(|name| is_name(name));
        }
        if n > 0 {
            draft.notes.clear();
        }
        found.services.push(draft);
    }
}

/// A statement of `virtual_server`.
fn setting(statement: &Statement, server: &mut Server) {
    let (line, name, value) = (statement.line, statement.name(), statement.value());
    let draft = &mut server.draft;
    let mut lost = |why: &str| draft.note(line, format!("`{}` {why}", shown(name)));
    match server.check.setting(statement) {
        Taken::Not => {}
        Taken::Whole => return,
        Taken::Lost(why) => return lost(why),
    }
    match name {
        "lb_algo" | "lvs_sched" => server.scheduler = value.map(|value| (line, value.to_owned())),
        "lb_kind" | "lvs_method" => match method(statement) {
            Ok(forward) => server.methods.insert(0, (line, forward)),
            Err(why) => draft.note(line, why),
        },
        "protocol" => match value.map(str::to_ascii_uppercase).as_deref() {
            Some("TCP") => draft.protocol = Protocol::Tcp,
            Some("UDP") => draft.protocol = Protocol::Udp,
            _ => lost("says no protocol that is known; TCP was taken"),
        },
        "persistence_timeout" => server.persistence = Some(line),
        "persistence_granularity" => lost("has no counterpart: `algo = \"source_hash\"` hashes the whole address"),
        "persistence_engine" => lost("has no counterpart: weir looks at addresses and ports only"),
        "ops" => draft.one_packet = true,
        "inhibit_on_failure" => server.inhibit = bool_of(value).then_some(line),
        "weight" => match value.and_then(|value| value.parse().ok()) {
            Some(weight) => server.weight = weight,
            None => lost("says no number; the weight is 1"),
        },
        "sorry_server" => lost(
            "has no counterpart: with no healthy backend a service uses all of them (fail open); it was left out of the backends",
        ),
        "quorum" | "hysteresis" => {
            lost("has no counterpart: with no healthy backend a service uses all of them (fail open)");
        }
        // For both schedulers the second flag is the one about ports.
        "mh-port" | "sh-port" | "flag-2" => server.with_port = true,
        "mh-fallback" | "sh-fallback" | "flag-1" => lost("has no counterpart: what is down leaves the ring anyway"),
        "omega" => lost(check::ALPHA),
        _ => lost("has no counterpart and was left out"),
    }
}

/// The forwarding mode of `lvs_method` or `lb_kind`.
fn method(statement: &Statement) -> Result<Forward, String> {
    let word = statement.value().unwrap_or("");
    match (word.to_ascii_uppercase().as_str(), statement.words.get(3).map(String::as_str)) {
        ("DR", _) => Ok(Forward::Dsr),
        ("NAT", _) => Ok(Forward::Nat),
        ("TUN", None | Some("ipip")) => Ok(Forward::Ipip),
        ("TUN", Some(kind)) => {
            Err(format!("a tunnel of type `{}` has no counterpart yet: \"ipip\" tunnels", shown(kind)))
        }
        _ => Err(format!("`{}` is no forwarding method: DR, NAT or TUN", shown(word))),
    }
}

/// Reads a `real_server`; whether it became a backend.
fn real_server(block: &Statement, server: &mut Server, checks: &mut check::Checks) -> bool {
    let words = &block.words;
    let address = block.value().and_then(|text| text.parse::<IpAddr>().ok());
    let (Some(address), Some(port)) = (address, address::port(words.get(2).map(String::as_str))) else {
        let text =
            format!("`{}` was left out: it is no address with a port; names are not resolved", shown(&words.join(" ")));
        server.draft.note(block.line, text);
        return false;
    };
    let mut backend = BackendDraft { line: block.line, address, port, weight: server.weight, max_connections: 0 };
    let mut timers = server.check.clone();
    for statement in block.block() {
        let (line, name, value) = (statement.line, statement.name(), statement.value());
        let number = || value.and_then(|value| value.parse::<u32>().ok());
        let mut lost = |why: &str| server.draft.note(line, format!("`{}` {why}", shown(name)));
        match timers.setting(statement) {
            Taken::Not => {}
            Taken::Whole => continue,
            Taken::Lost(why) => {
                lost(why);
                continue;
            }
        }
        match name {
            "weight" => match number() {
                Some(weight) => backend.weight = weight,
                None => lost("says no number; the weight is 1"),
            },
            "uthreshold" => match number() {
                Some(limit) => backend.max_connections = limit,
                None => lost("says no number and was left out"),
            },
            "lthreshold" => {
                lost("has no counterpart: a backend takes new flows again once it is below `max_connections`");
            }
            "inhibit_on_failure" if bool_of(value) => _ = server.inhibit.get_or_insert(line),
            "inhibit_on_failure" => {}
            "lvs_method" | "lb_kind" => match method(statement) {
                Ok(forward) => server.methods.push((line, forward)),
                Err(why) => server.draft.note(line, why),
            },
            _ if check::is_check(name) => {}
            "omega" => lost(check::ALPHA),
            "notify_up" | "notify_down" => lost("has no counterpart: `weir health list` and metrics tell of changes"),
            _ => lost("has no counterpart and was left out"),
        }
    }
    checks.read(block, port, &timers, &mut server.draft);
    server.draft.backends.push(backend);
    true
}

/// A flag of keepalived: on where it is named.
fn bool_of(value: Option<&str>) -> bool {
    !value.is_some_and(|value| matches!(value, "no" | "off" | "false"))
}

/// What only all statements together say.
fn finish(server: &mut Server, checks: check::Checks) {
    let line = server.draft.line;
    let draft = &mut server.draft;
    match server.methods.split_first() {
        None => draft.note(line, "no `lb_kind` is set: NAT, as in keepalived"),
        Some((&(_, first), others)) => {
            draft.forward = first;
            for (line, _) in others.iter().filter(|(_, other)| *other != first) {
                draft.note(*line, "a service has one forwarding mode: that of the others was taken for this backend");
            }
        }
    }
    match &server.scheduler {
        None => draft.note(line, "no `lb_algo` is set: wlc, as in IPVS"),
        Some((line, scheduler)) => {
            let (kind, differs) = algo(scheduler, server.with_port);
            draft.algo = kind;
            draft.notes.extend(differs.map(|text| Note { line: *line, text }));
        }
    }
    if let Some(line) = server.inhibit {
        draft.keep = true;
        draft.note(
            line,
            "`inhibit_on_failure` became `on_marked_down = \"keep\"` of the whole service: a backend that fails gets no new flows, \
             and keeps those that it has",
        );
    }
    if let Some(line) = server.persistence {
        draft.note(
            line,
            "persistence became `algo = \"source_hash\"`: a client stays with its backend for as long as that is there, and the \
             scheduler means nothing any more",
        );
        draft.algo = Kind::SourceHash;
    }
    checks.finish(draft);
}
