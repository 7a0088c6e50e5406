//! From the text of `dns.toml` to a validated [`DnsConfig`], with the same reader and the same findings as the agent's file.
//!
//! Pure, and total: no text makes it panic. Refuses to know: whether files exist and addresses can be bound.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use domain::tsig::Algorithm;
use ipnet::IpNet;
use toml::de::DeTable;

use super::{
    super::{
        StoreConfig,
        dns::{DnsConfig, DnsLimits, KeyFile, LISTEN_MAX, Name, PEERS_MAX, Secondary, UpdateTarget, host_name},
        schema::Table,
    },
    At, Checked, Code, Diagnostic, Findings, Section, Span, checked, diagnostic,
    node::path,
    reader,
    reader::shown,
    store,
};

/// Longest path, in bytes.
const PATH_BYTES_MAX: usize = 4095;
/// Default of `[metrics] listen`.
const METRICS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9652);
const UDP_PAYLOAD: RangeInclusive<u32> = 512..=4096;
const RESPONSES: RangeInclusive<u32> = 0..=1_000_000;
const CONNECTIONS: RangeInclusive<u32> = 4..=10_000;
const IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(120);
const ALGORITHMS: &[(&str, Algorithm)] =
    &[("hmac-sha256", Algorithm::Sha256), ("hmac-sha384", Algorithm::Sha384), ("hmac-sha512", Algorithm::Sha512)];

/// Checks the text of a `dns.toml`. `file_name` only names it in findings.
pub fn check(file_name: &str, text: &str) -> Checked<DnsConfig> {
    let mut findings = Findings::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    let config = if errors.is_empty() {
        let end = text.trim_end().len();
        let root = Section::open(Table::Dns, document.get_ref(), end..end, &mut findings);
        read(&root, &mut findings)
    } else {
        reader::syntax(text, &diagnostic::Lines::new(text), &errors, &mut findings);
        None
    };
    checked(file_name, config, findings)
}

fn read(root: &Section<'_>, findings: &mut Findings) -> Option<DnsConfig> {
    root.require(&["origin"], findings);
    let origin = name(root, "origin", findings);
    let listen = listen(root, findings);
    let mut paths = |name: &str, default: &str| {
        path(root, name, PATH_BYTES_MAX, findings).unwrap_or_else(|| PathBuf::from(default))
    };
    let (zone_file, state_dir) =
        (paths("zone_file", "/var/lib/weir/zone.json"), paths("state_dir", "/var/lib/weir-dns"));
    let store = zone_store(root, findings);
    let limits =
        root.table("limits", Table::DnsLimits, findings).map_or_else(DnsLimits::default, |s| limits(&s, findings));
    let metrics_listen = match root.table("metrics", Table::DnsMetrics, findings) {
        Some(section) => metrics(&section, findings),
        None => Some(METRICS_LISTEN),
    };
    let keys = keys(root, findings);
    let secondaries = secondaries(root, &keys, findings);
    let updates = updates(root, &keys, origin.as_ref().map(|at| &at.value), findings);
    Some(DnsConfig {
        origin: origin?.value,
        listen: listen?,
        zone_file,
        store: store?,
        state_dir,
        limits,
        metrics_listen,
        keys: keys.into_iter().map(|at| at.value).collect(),
        secondaries,
        updates,
    })
}

/// `[store]`; without one the zone is in a file. `None` if something in it was refused.
fn zone_store(root: &Section<'_>, findings: &mut Findings) -> Option<StoreConfig> {
    if root.get("store").is_none() {
        return Some(StoreConfig::File);
    }
    let At { value, span } = store::used(root, false, findings)?;
    if let (false, Some(zone_file)) = (value.is_file(), root.key_span("zone_file")) {
        let finding =
            Diagnostic::new(Code::ConflictingKeys, zone_file, "the zone comes from the store, not from a file")
                .related(span, "the store")
                .hint("keep `zone_file` or `[store]`");
        findings.push(finding);
    }
    Some(value)
}

/// The host name under `key`.
fn name(section: &Section<'_>, key: &str, findings: &mut Findings) -> Option<At<Name>> {
    let At { value, span } = section.string(key, findings)?;
    match host_name(value) {
        Ok(name) => Some(At { value: name, span }),
        Err(why) => {
            let message = format!("`{key}` is no host name: \"{}\"", shown(value));
            findings.push(Diagnostic::new(Code::BadName, span, message).hint(why));
            None
        }
    }
}

fn bad_listen(key: &str, text: &str, span: Span, port: u16) -> Diagnostic {
    let message = format!("`{key}` is not an address with a port: \"{}\"", shown(text));
    Diagnostic::new(Code::BadListen, span, message)
        .hint(format!("write \"192.0.2.1:{port}\" or \"[2001:db8::1]:{port}\""))
}

/// The address with a port under `key`, one of another machine.
fn peer(section: &Section<'_>, key: &str, findings: &mut Findings) -> Option<SocketAddr> {
    let At { value, span } = section.string(key, findings)?;
    match value.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast() => {
            Some(address)
        }
        _ => {
            findings.push(bad_listen(key, value, span, 53));
            None
        }
    }
}

fn listen(root: &Section<'_>, findings: &mut Findings) -> Option<Vec<SocketAddr>> {
    if root.get("listen").is_none() {
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        return Some(any.map(|ip| SocketAddr::new(ip, 53)).to_vec());
    }
    let list = root.strings("listen", findings)?;
    if list.value.is_empty() || list.value.len() > LISTEN_MAX {
        let message = format!("`listen` has {} addresses", list.value.len());
        let hint = format!("`listen` takes 1 to {LISTEN_MAX} addresses");
        findings.push(Diagnostic::new(Code::OutOfRange, list.span, message).hint(hint));
        return None;
    }
    let mut out: Vec<SocketAddr> = Vec::new();
    let mut good = true;
    for At { value, span } in list.value {
        match value.parse() {
            Ok(address) if out.contains(&address) => {
                let message = format!("`listen` has {address} twice");
                findings.push(Diagnostic::new(Code::BadListen, span, message));
                good = false;
            }
            Ok(address) => out.push(address),
            Err(_) => {
                findings.push(bad_listen("listen", value, span, 53));
                good = false;
            }
        }
    }
    good.then_some(out)
}

fn metrics(section: &Section<'_>, findings: &mut Findings) -> Option<SocketAddr> {
    if section.get("listen").is_none() {
        return Some(METRICS_LISTEN);
    }
    let At { value, span } = section.string("listen", findings)?;
    if value == "none" {
        return None;
    }
    let parsed = value.parse();
    if parsed.is_err() {
        findings.push(bad_listen("listen", value, span, METRICS_LISTEN.port()));
    }
    parsed.ok()
}

fn limits(section: &Section<'_>, findings: &mut Findings) -> DnsLimits {
    let default = DnsLimits::default();
    let mut number = |name: &str, range: RangeInclusive<u32>, default: u32| {
        section.integer(name, range, findings).map_or(default, |at| at.value)
    };
    // In range, so it fits.
    let udp_payload_max = number("udp_payload_max", UDP_PAYLOAD, default.udp_payload_max.into()) as u16;
    let responses_per_s = number("responses_per_s", RESPONSES, default.responses_per_s);
    let tcp_connections_max = number("tcp_connections_max", CONNECTIONS, default.tcp_connections_max);
    let tcp_idle_timeout =
        section.duration("tcp_idle_timeout", IDLE, findings).map_or(default.tcp_idle_timeout, |at| at.value);
    DnsLimits { udp_payload_max, responses_per_s, tcp_connections_max, tcp_idle_timeout }
}

fn keys(root: &Section<'_>, findings: &mut Findings) -> Vec<At<KeyFile>> {
    let mut keys: Vec<At<KeyFile>> = Vec::new();
    for section in root.tables("key", Table::DnsKey, findings) {
        section.require(&["name", "secret_file"], findings);
        let name = name(&section, "name", findings);
        let algorithm = section.word("algorithm", ALGORITHMS, findings).map_or(Algorithm::Sha256, |at| at.value);
        let secret_file = path(&section, "secret_file", PATH_BYTES_MAX, findings);
        let (Some(At { value: name, span }), Some(secret_file)) = (name, secret_file) else { continue };
        if let Some(first) = keys.iter().find(|key| key.value.name == name) {
            let finding = Diagnostic::new(Code::DuplicateName, span, format!("two keys are called `{name}`"))
                .related(first.span.clone(), "first here");
            findings.push(finding);
            continue;
        }
        keys.push(At { value: KeyFile { name, algorithm, secret_file }, span });
    }
    keys
}

/// The name of one of `keys` under `key`.
fn key_name(section: &Section<'_>, keys: &[At<KeyFile>], findings: &mut Findings) -> Option<Name> {
    let At { value: name, span } = name(section, "key", findings)?;
    if keys.iter().any(|key| key.value.name == name) {
        return Some(name);
    }
    let finding = Diagnostic::new(Code::BadValue, span, format!("no `[[key]]` is called `{name}`"))
        .hint("a key has its own table: `[[key]]` with `name` and `secret_file`");
    findings.push(finding);
    None
}

fn bounded<T>(root: &Section<'_>, name: &str, list: &mut Vec<T>, findings: &mut Findings) {
    if list.len() > PEERS_MAX {
        let span = root.key_span(name).unwrap_or(root.span.clone());
        let message = format!("{} tables `[[{name}]]`, at most {PEERS_MAX} are possible", list.len());
        findings.push(Diagnostic::new(Code::OutOfRange, span, message));
        list.truncate(PEERS_MAX);
    }
}

fn secondaries(root: &Section<'_>, keys: &[At<KeyFile>], findings: &mut Findings) -> Vec<Secondary> {
    let mut out = Vec::new();
    for section in root.tables("secondary", Table::DnsSecondary, findings) {
        section.require(&["address"], findings);
        let address = peer(&section, "address", findings);
        // A key that was refused is not the same as none: the file is refused then.
        let key = key_name(&section, keys, findings);
        let from = match section.get("transfer_from") {
            None => address.map(|address| vec![IpNet::from(address.ip())]),
            Some(_) => nets(&section, findings),
        };
        if let (Some(address), Some(transfer_from)) = (address, from) {
            out.push(Secondary { address, key, transfer_from });
        }
    }
    bounded(root, "secondary", &mut out, findings);
    out
}

fn nets(section: &Section<'_>, findings: &mut Findings) -> Option<Vec<IpNet>> {
    let list = section.strings("transfer_from", findings)?;
    let mut good = true;
    let mut out = Vec::new();
    for At { value, span } in list.value {
        match value.parse::<IpNet>().or_else(|_| value.parse::<IpAddr>().map(IpNet::from)) {
            Ok(net) => out.push(net),
            Err(_) => {
                let message = format!("`transfer_from` has \"{}\", which is no address or prefix", shown(value));
                let hint = "write \"192.0.2.53\" or \"192.0.2.0/28\"";
                findings.push(Diagnostic::new(Code::BadAddress, span, message).hint(hint));
                good = false;
            }
        }
    }
    good.then_some(out)
}

fn updates(
    root: &Section<'_>,
    keys: &[At<KeyFile>],
    origin: Option<&Name>,
    findings: &mut Findings,
) -> Vec<UpdateTarget> {
    let mut out = Vec::new();
    for section in root.tables("update", Table::DnsUpdate, findings) {
        section.require(&["server", "key"], findings);
        let server = peer(&section, "server", findings);
        let key = key_name(&section, keys, findings);
        let zone = match section.get("zone") {
            None => origin.cloned(),
            Some(_) => name(&section, "zone", findings).and_then(|zone| within(zone, origin, findings)),
        };
        if let (Some(server), Some(zone), Some(key)) = (server, zone, key) {
            out.push(UpdateTarget { server, zone, key });
        }
    }
    bounded(root, "update", &mut out, findings);
    out
}

/// `zone`, if names of the origin can stand in it.
fn within(zone: At<Name>, origin: Option<&Name>, findings: &mut Findings) -> Option<Name> {
    match origin {
        Some(origin) if !origin.ends_with(&zone.value) => {
            let message = format!("`zone` is `{}`, which does not hold `{origin}`", zone.value);
            let hint = "`zone` is the origin itself or a zone above it";
            findings.push(Diagnostic::new(Code::BadValue, zone.span, message).hint(hint));
            None
        }
        _ => Some(zone.value),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::super::schema, *};

    const EXAMPLE: &str = include_str!("../../../assets/dns.toml");

    #[test]
    fn the_shipped_example_is_clean_complete_and_right_about_defaults() {
        let checked = check("dns.toml", EXAMPLE);
        assert!(checked.diagnostics.is_empty(), "{}", checked.render(EXAMPLE, false));
        let shipped = checked.config.unwrap();
        assert_eq!(shipped.limits, DnsLimits::default());
        for key in schema::DNS_KEYS {
            let shown = |line: &str| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{} = ", key.name))
                    || line.trim_matches(['[', ']']) == key.name && line.starts_with('[')
            };
            assert!(EXAMPLE.lines().any(shown), "{} has no `{}`", key.table, key.name);
            if key.default.starts_with(['"', '[']) || key.default.starts_with(|c: char| c.is_ascii_digit()) {
                let line = format!("{} = {}", key.name, key.default);
                assert!(EXAMPLE.contains(&line), "`{line}` is not shown");
            }
        }
        // What is commented out are defaults and examples: all of it together holds too.
        let all: String = EXAMPLE
            .lines()
            // The zone comes from one place, and the example shows both.
            .filter(|line| !line.starts_with("# zone_file = "))
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if rest.starts_with('[') || rest.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ')) =>
                {
                    format!("{rest}\n")
                }
                _ => format!("{line}\n"),
            })
            .collect();
        let checked = check("dns.toml", &all);
        assert!(checked.diagnostics.is_empty(), "{}", checked.render(&all, false));
        let all = checked.config.unwrap();
        assert_eq!((all.keys.len(), all.secondaries.len(), all.updates.len()), (1, 1, 1));
        assert_eq!((shipped.store, all.store.kind()), (StoreConfig::File, "redis"));
        assert_eq!(
            (all.listen, all.limits, all.metrics_listen),
            (shipped.listen, shipped.limits, shipped.metrics_listen)
        );
    }

    #[test]
    fn every_mistake_is_found_at_its_line() {
        let text = r#"
orign = "lb.example.com"
listen = ["53", "127.0.0.1:53", "127.0.0.1:53"]
zone_file = "zone.json"
[limits]
udp_payload_max = 65535
tcp_idle_timeout = 10
[metrics]
listen = ":9652"
[[key]]
name = "k y"
secret_file = "/k"
[[key]]
name = "k"
algorithm = "hmac-md5"
secret_file = "/k"
[[key]]
name = "K."
secret_file = "/k"
[[secondary]]
address = "192.0.2.1"
key = "k"
[[secondary]]
address = "192.0.2.1:53"
key = "other"
transfer_from = ["192.0.2.0/33"]
[[update]]
server = "0.0.0.0:53"
zone = "elsewhere.org"
"#;
        let checked = check("dns.toml", text);
        assert!(checked.config.is_none());
        let found: Vec<_> = checked.entries(text).iter().map(|e| (e.line, e.code)).collect();
        let expected = [
            (2, Code::UnknownKey),
            (3, Code::BadListen),
            (3, Code::BadListen),
            (4, Code::BadPath),
            (6, Code::OutOfRange),
            (7, Code::BadDuration),
            (9, Code::BadListen),
            (11, Code::BadName),
            (15, Code::BadValue),
            (18, Code::DuplicateName),
            (21, Code::BadListen),
            (25, Code::BadValue),
            (26, Code::BadAddress),
            (27, Code::MissingKey),
            (28, Code::BadListen),
            (29, Code::MissingKey),
        ];
        assert_eq!(found, expected, "{}", checked.render(text, false));
        let text = "origin = \"lb.example.com\"\n[[key]]\nname = \"k\"\nsecret_file = \"/k\"\n[[update]]\nserver = \
                    \"192.0.2.1:53\"\nkey = \"k\"\nzone = \"example.org\"\n";
        assert!(check("d", text).render(text, false).contains("does not hold"));
    }

    #[test]
    fn the_zone_comes_from_one_place() {
        let redis = "[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1\"\n";
        let code = |head: &str, store: &str| {
            let text = format!("origin = \"lb.example.com\"\n{head}{store}");
            check("d", &text).entries(&text).first().map(|entry| (entry.line, entry.code))
        };
        let zone_file = "zone_file = \"/z\"\n";
        assert_eq!((code("", redis), code(zone_file, "[store]\nkind = \"file\"\n")), (None, None));
        assert_eq!(code(zone_file, redis), Some((2, Code::ConflictingKeys)));
        assert_eq!(code("", "[store]\nkind = \"redis\"\n"), Some((2, Code::MissingKey)));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(\\PC|\n|origin = |listen = |\\[\\[key\\]\\]|\\[limits\\]|\"){0,60}") {
            let checked = check("any", &text);
            prop_assert_eq!(checked.config.is_none(), !checked.diagnostics.is_empty());
        }
    }
}
