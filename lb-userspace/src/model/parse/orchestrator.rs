//! From the text of `orchestrator.toml` to a validated [`OrchestratorConfig`], with the same reader and the same findings as the
//! agent's file.
//!
//! Pure, and total: no text makes it panic. Refuses to know: whether expressions are right, which only Prometheus can tell.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use toml::de::{DeTable, DeValue};

use super::{
    super::{
        StoreConfig,
        dns::host_name,
        is_name,
        orchestrator::{
            EXPR_BYTES_MAX, OrchestratorConfig, RULES_MAX, ReplaceRule, RuleExecutor, RuleTarget, ScalingRule,
            ZoneConfig,
        },
        schema::{self, Table},
    },
    At, Checked, Code, Diagnostic, Findings, Section, Span, checked, diagnostic,
    node::{name, path},
    reader,
    reader::shown,
    store,
};

/// Longest path, in bytes, and longest of a socket.
const PATH_BYTES_MAX: usize = 4095;
const SOCKET_BYTES_MAX: usize = 107;
/// Default of `listen`.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9651);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const MONTH: Duration = Duration::from_secs(30 * 86_400);
const VANTAGE_POINTS: RangeInclusive<u32> = 1..=16;
const COUNT: RangeInclusive<u32> = 1..=1000;

/// Checks the text of an `orchestrator.toml`. `file_name` only names it in findings.
pub fn check(file_name: &str, text: &str) -> Checked<OrchestratorConfig> {
    let mut findings = Findings::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    let config = if errors.is_empty() {
        let end = text.trim_end().len();
        let root = Section::open(Table::Orchestrator, document.get_ref(), end..end, &mut findings);
        read(&root, &mut findings)
    } else {
        reader::syntax(text, &diagnostic::Lines::new(text), &errors, &mut findings);
        None
    };
    checked(file_name, config, findings)
}

/// What was read; where something was refused, `findings` says so and the value, if any, is void.
fn read(root: &Section<'_>, findings: &mut Findings) -> Option<OrchestratorConfig> {
    let duration = |name: &str, range, default, findings: &mut Findings| {
        root.duration(name, range, findings).map_or(default, |at: At<Duration>| at.value)
    };
    let prefix = root.string("prefix", findings).map_or("weir", |at| {
        if !is_name(at.value) || at.value.len() > 32 {
            findings.push(bad_value("prefix", &at, Table::Orchestrator));
        }
        at.value
    });
    let prometheus = root.string("prometheus", findings).map(|at| {
        url(&at, "prometheus", findings);
        at.value.to_owned()
    });
    let store = shared_store(root, findings);
    let config = OrchestratorConfig {
        name: name(root, findings).filter(|_| root.get("name").is_some()).map(|at| at.value),
        listen: listen(root, findings),
        address: root.string("address", findings).map(|at| at.value.to_owned()),
        socket: path(root, "socket", SOCKET_BYTES_MAX, findings)
            .unwrap_or_else(|| PathBuf::from("/run/weir/orchestrator.sock")),
        prometheus,
        vantage_points: root.integer("vantage_points", VANTAGE_POINTS, findings).map_or(1, |at| at.value),
        prefix: prefix.to_owned(),
        dead_after: duration("dead_after", 10 * SECOND..=DAY, 300 * SECOND, findings),
        ready_timeout: duration("ready_timeout", SECOND..=DAY, 600 * SECOND, findings),
        drain_timeout: duration("drain_timeout", Duration::ZERO..=DAY, 300 * SECOND, findings),
        // Void without one, which `findings` tell by then.
        store: store.clone().unwrap_or(StoreConfig::File),
        zone: root.table("zone", Table::OrchestratorZone, findings).map(|section| zone(&section, findings)),
        scaling: scaling(root, findings),
        replace: replace(root, findings),
        dns_servers: dns_servers(root, findings),
    };
    if config.prometheus.is_none() && (!config.scaling.is_empty() || !config.replace.is_empty()) {
        root.require(&["prometheus"], findings);
    }
    store.is_some().then_some(config)
}

/// `[store]`, which nodes must be able to share.
fn shared_store(root: &Section<'_>, findings: &mut Findings) -> Option<StoreConfig> {
    root.require(&["store"], findings);
    let At { value, span } = store::used(root, true, findings)?;
    if !value.is_file() {
        return Some(value);
    }
    let finding = Diagnostic::new(Code::BadValue, span, "an orchestrator needs a store that the nodes share")
        .hint("write `[store]` as in the nodes' weir.toml, of kind \"redis\" or \"embedded\"");
    findings.push(finding);
    None
}

fn takes(table: Table, key: &str) -> String {
    format!("`{key}` takes {}", schema::find(table, key).map_or("another value", |key| key.takes))
}

fn bad_value(key: &str, at: &At<&str>, table: Table) -> Diagnostic {
    let message = format!("`{key}` cannot be \"{}\"", shown(at.value));
    Diagnostic::new(Code::BadValue, at.span.clone(), message).hint(takes(table, key))
}

fn listen(root: &Section<'_>, findings: &mut Findings) -> Option<SocketAddr> {
    if root.get("listen").is_none() {
        return Some(LISTEN);
    }
    let At { value, span } = root.string("listen", findings)?;
    if value == "none" {
        return None;
    }
    let parsed = value.parse();
    if parsed.is_err() {
        let message = format!("`listen` is not an address with a port: \"{}\"", shown(value));
        let hint = "write \"127.0.0.1:9651\", \"[::1]:9651\", or \"none\" for no metrics";
        findings.push(Diagnostic::new(Code::BadListen, span, message).hint(hint));
    }
    parsed.ok()
}

/// Reports a URL that cannot be asked.
fn url(at: &At<&str>, key: &str, findings: &mut Findings) {
    let rest = at.value.strip_prefix("http://");
    let host = rest.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let wrong = match host {
        _ if at.value.starts_with("https://") => {
            "weir speaks plain HTTP here: put a proxy that speaks TLS on this machine"
        }
        None => "a URL begins with `http://`",
        Some("") => "it names no host",
        Some(host) if host.contains('@') => "a user name or password would be seen in logs",
        Some(_) if at.value.chars().any(|c| c.is_whitespace() || c.is_control()) => "it has blanks",
        Some(_) => return,
    };
    // What stands before the `@` may be a password, and findings are logged.
    let place = at.value.rsplit_once('@').map_or(at.value, |(_, place)| place);
    let message = format!("`{key}` cannot be asked: \"{}\"", shown(place));
    findings.push(Diagnostic::new(Code::BadValue, at.span.clone(), message).hint(wrong));
}

fn host(at: &At<&str>, key: &str, findings: &mut Findings) {
    if let Err(why) = host_name(at.value) {
        let message = format!("`{key}` is no host name: \"{}\"", shown(at.value));
        findings.push(Diagnostic::new(Code::BadName, at.span.clone(), message).hint(why));
    }
}

fn hosts(section: &Section<'_>, key: &str, findings: &mut Findings) -> Vec<String> {
    let list = section.strings(key, findings).map_or_else(Vec::new, |at| at.value);
    for at in &list {
        if at.value != "@" || key != "names" {
            host(at, key, findings);
        }
    }
    list.iter().map(|at| at.value.to_owned()).collect()
}

fn zone(section: &Section<'_>, findings: &mut Findings) -> ZoneConfig {
    section.require(&["origin", "names", "ns", "contact"], findings);
    let mut text = |key: &str| {
        let at = section.string(key, findings)?;
        host(&at, key, findings);
        Some(at.value.to_owned())
    };
    let (origin, contact) = (text("origin").unwrap_or_default(), text("contact").unwrap_or_default());
    for key in ["names", "ns"] {
        if section.get(key).is_some() && section.is_empty(key) {
            let span = section.key_span(key).unwrap_or_else(|| section.span.clone());
            let finding = Diagnostic::new(Code::MissingKey, span, format!("`{key}` is empty"));
            findings.push(finding.hint(takes(Table::OrchestratorZone, key)));
        }
    }
    let mut fixed: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for entry in section.tables("fixed", Table::ZoneFixed, findings) {
        entry.require(&["name", "addresses"], findings);
        let Some(name) = entry.string("name", findings) else { continue };
        host(&name, "name", findings);
        let list = entry.strings("addresses", findings).map_or_else(Vec::new, |at| at.value);
        let addresses = list.iter().filter_map(|at| match at.value.parse() {
            Ok(address) => Some(address),
            Err(_) => {
                let message = format!("`addresses` has no IP address: \"{}\"", shown(at.value));
                findings.push(Diagnostic::new(Code::BadAddress, at.span.clone(), message));
                None
            }
        });
        let addresses: Vec<IpAddr> = addresses.collect();
        if fixed.insert(name.value.to_owned(), addresses).is_some() {
            let message = format!("two entries are called \"{}\"", shown(name.value));
            findings.push(Diagnostic::new(Code::DuplicateName, name.span, message));
        }
    }
    let ttl = section.duration("ttl", SECOND..=HOUR, findings).map_or(10 * SECOND, |at| at.value);
    ZoneConfig {
        origin,
        names: hosts(section, "names", findings).into_iter().collect(),
        // Within an hour, so it fits.
        ttl_s: ttl.as_secs() as u32,
        ns: hosts(section, "ns", findings),
        contact,
        fixed,
    }
}

/// The number under `key`, within `range`.
fn number(
    section: &Section<'_>,
    table: Table,
    key: &str,
    range: RangeInclusive<f64>,
    findings: &mut Findings,
) -> Option<f64> {
    let value = section.get(key)?;
    let parsed = match value.get_ref() {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n as f64),
        DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
        other => {
            let message = format!("`{key}` cannot be a {}", other.type_str());
            findings.push(Diagnostic::new(Code::WrongType, value.span(), message).hint(takes(table, key)));
            return None;
        }
    };
    let good = parsed.filter(|number| range.contains(number));
    if good.is_none() {
        let message = format!("`{key}` is out of range");
        findings.push(Diagnostic::new(Code::OutOfRange, value.span(), message).hint(takes(table, key)));
    }
    good
}

/// What all rules have: name, what they are about, expression.
struct Head {
    name: At<String>,
    of: At<RuleTarget>,
    expr: String,
    executor: Option<RuleExecutor>,
}

fn head(section: &Section<'_>, table: Table, findings: &mut Findings) -> Option<Head> {
    let name = name(section, findings);
    let of = section.string("of", findings).and_then(|at| {
        let of = match at.value.strip_prefix("service/") {
            Some(service) if is_name(service) => Some(RuleTarget::Service(service.to_owned())),
            _ if at.value == "nodes" => Some(RuleTarget::Nodes),
            _ => None,
        };
        if of.is_none() {
            findings.push(bad_value("of", &at, table));
        }
        Some(At { value: of?, span: at.span })
    });
    let expr = section.string("expr", findings);
    if let Some(at) = &expr
        && (at.value.trim().is_empty() || at.value.len() > EXPR_BYTES_MAX)
    {
        let message = format!("`expr` has {} bytes", at.value.len());
        findings.push(Diagnostic::new(Code::OutOfRange, at.span.clone(), message).hint(takes(table, "expr")));
    }
    let executor = executor(section, findings);
    Some(Head { name: name?, of: of?, expr: expr?.value.to_owned(), executor })
}

fn executor(section: &Section<'_>, findings: &mut Findings) -> Option<RuleExecutor> {
    if let (Some(_), Some(span)) = (section.get("exec"), section.key_span("webhook")) {
        let message = "`exec` and `webhook` exclude each other".to_owned();
        findings.push(Diagnostic::new(Code::ConflictingKeys, span, message).hint("keep the one that is to be used"));
    }
    if let Some(exec) = section.table("exec", Table::RuleExec, findings) {
        exec.require(&["program"], findings);
        let program = path(&exec, "program", PATH_BYTES_MAX, findings)?;
        let arguments = exec.strings("arguments", findings).map_or_else(Vec::new, |at| at.value);
        let timeout = exec.duration("timeout", SECOND..=HOUR, findings).map_or(300 * SECOND, |at| at.value);
        let arguments = arguments.iter().map(|at| at.value.to_owned()).collect();
        return Some(RuleExecutor::Exec { program, arguments, timeout });
    }
    let webhook = section.table("webhook", Table::RuleWebhook, findings)?;
    webhook.require(&["url"], findings);
    let at = webhook.string("url", findings)?;
    url(&at, "url", findings);
    let timeout = webhook.duration("timeout", SECOND..=HOUR, findings).map_or(30 * SECOND, |at| at.value);
    Some(RuleExecutor::Webhook { url: at.value.to_owned(), timeout })
}

/// Reports a name, or something that must be unique like one, that stands twice.
fn unique<T: Ord + Clone>(seen: &mut BTreeMap<T, Span>, at: &At<T>, what: &str, findings: &mut Findings) {
    match seen.get(&at.value) {
        Some(first) => {
            let finding = Diagnostic::new(Code::DuplicateName, at.span.clone(), what);
            findings.push(finding.related(first.clone(), "first here"));
        }
        None => drop(seen.insert(at.value.clone(), at.span.clone())),
    }
}

fn few(root: &Section<'_>, key: &str, count: usize, findings: &mut Findings) {
    if count > RULES_MAX {
        let span = root.key_span(key).unwrap_or_else(|| root.span.clone());
        let message = format!("{count} rules, at most {RULES_MAX} are possible");
        findings.push(Diagnostic::new(Code::OutOfRange, span, message));
    }
}

fn scaling(root: &Section<'_>, findings: &mut Findings) -> Vec<ScalingRule> {
    let (mut names, mut subjects, mut rules) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let sections = root.tables("scaling", Table::Scaling, findings);
    few(root, "scaling", sections.len(), findings);
    for section in sections {
        section.require(&["name", "of", "expr", "target", "min", "max"], findings);
        let target = number(&section, Table::Scaling, "target", f64::MIN_POSITIVE..=f64::MAX, findings);
        let tolerance = number(&section, Table::Scaling, "tolerance", 0.0..=0.9, findings).unwrap_or(0.1);
        let (min, max) = (section.integer("min", COUNT, findings), section.integer("max", COUNT, findings));
        if let (Some(min), Some(max)) = (&min, &max)
            && min.value > max.value
        {
            let message = format!("`max` is less than `min`: {} < {}", max.value, min.value);
            let finding = Diagnostic::new(Code::OutOfRange, max.span.clone(), message);
            findings.push(finding.related(min.span.clone(), "`min` is here"));
        }
        let mut time = |key: &str, range, default| {
            section.duration(key, range, findings).map_or(default, |at: At<Duration>| at.value)
        };
        let down_window = time("down_window", SECOND..=DAY, 300 * SECOND);
        let settle = time("settle", Duration::ZERO..=HOUR, 30 * SECOND);
        let every = time("every", SECOND..=HOUR, 15 * SECOND);
        let Some(Head { name, of, expr, executor }) = head(&section, Table::Scaling, findings) else { continue };
        unique(&mut names, &name, "two scaling rules have one name", findings);
        unique(&mut subjects, &of, "two rules scale the same, and would undo each other's work", findings);
        let (Some(target), Some(min), Some(max)) = (target, min, max) else { continue };
        let (name, of, min, max) = (name.value, of.value, min.value, max.value);
        rules.push(ScalingRule { name, of, expr, target, tolerance, min, max, down_window, settle, every, executor });
    }
    rules
}

fn replace(root: &Section<'_>, findings: &mut Findings) -> Vec<ReplaceRule> {
    let (mut names, mut rules) = (BTreeMap::new(), Vec::new());
    let sections = root.tables("replace", Table::Replace, findings);
    few(root, "replace", sections.len(), findings);
    for section in sections {
        section.require(&["name", "of", "expr", "for"], findings);
        let after = section.duration("for", SECOND..=MONTH, findings);
        let every = section.duration("every", SECOND..=HOUR, findings).map_or(60 * SECOND, |at| at.value);
        let label = section.string("label", findings).map_or("instance", |at| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if at.value.is_empty() || !at.value.chars().all(plain) {
                findings.push(bad_value("label", &at, Table::Replace));
            }
            at.value
        });
        let Some(Head { name, of, expr, executor }) = head(&section, Table::Replace, findings) else { continue };
        unique(&mut names, &name, "two replacement rules have one name", findings);
        let Some(after) = after else { continue };
        let (name, of, after, label) = (name.value, of.value, after.value, label.to_owned());
        rules.push(ReplaceRule { name, of, expr, label, after, every, executor });
    }
    rules
}

fn dns_servers(root: &Section<'_>, findings: &mut Findings) -> BTreeMap<String, String> {
    let (mut names, mut servers) = (BTreeMap::new(), BTreeMap::new());
    for section in root.tables("dns_server", Table::DnsServer, findings) {
        section.require(&["name", "metrics"], findings);
        let (name, metrics) = (name(&section, findings), section.string("metrics", findings));
        let (Some(name), Some(metrics)) = (name, metrics) else { continue };
        let port = metrics.value.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        if port.is_none_or(|(host, port)| host.is_empty() || port == 0) {
            findings.push(bad_value("metrics", &metrics, Table::DnsServer));
        }
        unique(&mut names, &name, "two DNS servers have one name", findings);
        servers.insert(name.value, metrics.value.to_owned());
    }
    servers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = include_str!("../../../assets/orchestrator.toml");
    const STORE: &str = "[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1\"\n";

    #[test]
    fn the_example_is_clean_and_shows_every_key() {
        let checked = check("orchestrator.toml", EXAMPLE);
        assert!(checked.diagnostics.is_empty(), "{}", checked.render(EXAMPLE, false));
        let config = checked.config.unwrap();
        assert_eq!((config.scaling.len(), config.replace.len()), (2, 1));
        for key in schema::ORCHESTRATOR_KEYS {
            let shown = |line: &str| {
                let line = line.trim_start_matches("# ");
                let table = line.split('#').next().unwrap_or_default().trim().trim_matches(['[', ']']);
                let header = table.rsplit('.').next() == Some(key.name);
                line.starts_with(&format!("{} = ", key.name))
                    || header
                    || line.contains(&format!("{{ {} = ", key.name))
                    || line.contains(&format!(", {} = ", key.name))
            };
            assert!(EXAMPLE.lines().any(shown), "the example does not show `{}` of {}", key.name, key.table);
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_reference() {
        let config = check("o", STORE).config.unwrap();
        assert_eq!(config.listen, Some(LISTEN));
        assert_eq!((config.vantage_points, config.prefix.as_str(), config.name), (1, "weir", None));
        let text = "prometheus = \"http://p:9090\"\n[[scaling]]\nname = \"n\"\nof = \"nodes\"\nexpr = \"x\"\ntarget = 8\nmin = 2\nmax = 4\n";
        let rule = check("o", &format!("{text}{STORE}")).config.unwrap().scaling.remove(0);
        assert_eq!((rule.tolerance, rule.target, rule.down_window), (0.1, 8.0, 300 * SECOND));
        assert_eq!((rule.settle, rule.every, rule.executor), (30 * SECOND, 15 * SECOND, None));
    }

    #[test]
    fn every_mistake_is_found_at_its_line() {
        let text = r#"vantage_points = 0
prometheus = "https://p"
listen = ":9651"
colour = 1
dead_after = 5
[zone]
origin = "a b"
names = []
ns = ["*"]
contact = "h.example.com"
[[zone.fixed]]
name = "ns1"
addresses = ["1.2.3"]
[[scaling]]
name = "n"
of = "node"
expr = ""
target = 0
min = 5
max = 4
[[scaling]]
name = "n"
of = "nodes"
expr = "x"
target = "8"
min = 1
max = 4
exec = { arguments = [] }
webhook = { url = "ftp://x" }
[[scaling]]
name = "n"
of = "nodes"
expr = "x"
target = nan
tolerance = 2.5
min = 1
max = 4
[[replace]]
name = "r"
of = "service/"
expr = "x"
label = "a-b"
[[dns_server]]
name = "d"
metrics = "9652"
[store]
kind = "file"
"#;
        let checked = check("orchestrator.toml", text);
        assert!(checked.config.is_none());
        let found: Vec<_> = checked.entries(text).iter().map(|e| (e.line, e.code)).collect();
        let want = [
            (1, Code::OutOfRange),
            (2, Code::BadValue),
            (3, Code::BadListen),
            (4, Code::UnknownKey),
            (5, Code::BadDuration),
            (7, Code::BadName),
            (8, Code::MissingKey),
            (9, Code::BadName),
            (13, Code::BadAddress),
            (16, Code::BadValue),
            (17, Code::OutOfRange),
            (18, Code::OutOfRange),
            (20, Code::OutOfRange),
            (25, Code::WrongType),
            (28, Code::MissingKey),
            (29, Code::ConflictingKeys),
            (31, Code::DuplicateName),
            (32, Code::DuplicateName),
            (34, Code::OutOfRange),
            (35, Code::OutOfRange),
            (38, Code::MissingKey),
            (40, Code::BadValue),
            (42, Code::BadValue),
            (45, Code::BadValue),
            (47, Code::BadValue),
        ];
        assert_eq!(found, want, "{}", checked.render(text, false));
    }

    #[test]
    fn the_store_is_one_that_nodes_share() {
        let code = |text: &str| check("o", text).entries(text).first().map(|entry| (entry.line, entry.code));
        assert_eq!(code(""), Some((1, Code::MissingKey)));
        assert_eq!(code("[store]\nkind = \"redis\"\n"), Some((1, Code::MissingKey)));
        let embedded = "[store]\nkind = \"embedded\"\nlisten = \"127.0.0.1:9651\"\n";
        assert_eq!(code(embedded), None, "an orchestrator may own a database and serve it");
        assert_eq!(check("o", STORE).config.unwrap().store.kind(), "redis");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(
            text in "(\\PC|\n|name = |target = |\\[\\[scaling\\]\\]\n|\\[zone\\]\n|\"){0,60}",
        ) {
            let checked = check("any", &text);
            prop_assert_eq!(checked.config.is_none(), !checked.diagnostics.is_empty());
        }
    }

    #[test]
    fn names_are_a_set() {
        let text = "[zone]\norigin = \"lb.example\"\nnames = [\"www\", \"www\", \"@\"]\nns = [\"ns.example\"]\ncontact = \"h.example\"\n";
        let names: std::collections::BTreeSet<String> =
            check("o", &format!("{text}{STORE}")).config.unwrap().zone.unwrap().names;
        assert_eq!(names.len(), 2);
    }
}
