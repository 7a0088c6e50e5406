//! From configuration text to a validated [`Config`], or to every finding about it in one run.
//!
//! Passes: TOML with recovery (`toml`), each table by itself ([`node`], [`service`]), what the tables of one service must agree
//! on ([`within`]), then what services must ([`cross`]). A field that one pass refused is absent in the next, so one mistake gives
//! one finding. A text that differs little from the one before is read in parts ([`incremental`]).
//!
//! Pure, and total: no text makes it panic. Refuses to know: files, the machine's interfaces, the running configuration.

mod address;
mod algo;
mod cross;
pub mod dns;
pub mod document;
mod flows;
mod health;
mod incremental;
mod node;
pub mod orchestrator;
mod reader;
mod service;
mod store;
mod within;

use std::collections::HashMap;

use toml::de::DeTable;

use super::{
    Config, Forward, HealthCheck, Limits, Node, Protocol, Service,
    diagnostic::{self, Code, DIAGNOSTICS_MAX, Diagnostic, Entry, Severity, Span},
    foreign,
    schema::Table,
};
pub(super) use address::unusable;
pub use document::{Document, Object, ObjectKind};
pub(super) use health::{host_refused, path_refused};
pub use incremental::Incremental;
pub(super) use node::interface_refused;
use reader::Section;
pub(super) use reader::shown;

/// What a check found about a file of the agent, or one that holds a `C`.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked<C = Config> {
    /// The configuration, unless there are errors.
    pub config: Option<C>,
    /// Errors and warnings in file order, at most [`DIAGNOSTICS_MAX`].
    pub diagnostics: Vec<Diagnostic>,
    /// Findings beyond that number.
    pub omitted: usize,
    /// Name of the file, as given.
    pub file_name: String,
}

impl<C> Checked<C> {
    /// The findings for people; see [`diagnostic::render`]. `text` is the text that was checked.
    pub fn render(&self, text: &str, colour: bool) -> String {
        diagnostic::render(&self.diagnostics, &self.file_name, text, colour)
    }

    /// The findings with positions, for JSON.
    pub fn entries(&self, text: &str) -> Vec<Entry> {
        diagnostic::entries(&self.diagnostics, &self.file_name, text)
    }

    /// Number of findings of a severity among [`Checked::diagnostics`].
    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|d| d.severity() == severity).count()
    }

    /// `weir.toml: 3 errors, 1 warning`, for the last line of a report.
    pub fn summary(&self) -> String {
        let plural = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
        let mut parts = Vec::new();
        for (severity, what) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
            match self.count(severity) {
                0 => {}
                n => parts.push(plural(n, what)),
            }
        }
        if self.omitted > 0 {
            parts.push(format!("{} more not shown", self.omitted));
        }
        let found = if parts.is_empty() { "no errors".to_owned() } else { parts.join(", ") };
        format!("{}: {found}", self.file_name)
    }
}

/// Checks the text of a configuration file. `file_name` only names it in findings.
///
/// Without `name` in `[node]` the node's name is empty: the caller fills in the host name ([`Config::named`]).
pub fn check(file_name: &str, text: &str) -> Checked {
    Incremental::default().check(file_name, text)
}

/// [`check`] of a text that is read as one document.
fn whole(file_name: &str, text: &str) -> Checked {
    let mut findings = Findings::default();
    let config = configuration(text, &mut findings);
    checked(file_name, config, findings)
}

fn checked<C>(file_name: &str, config: Option<C>, findings: Findings) -> Checked<C> {
    let Findings { mut list, errors, omitted } = findings;
    list.sort_by_key(|d| (d.span.start, d.span.end));
    Checked { config: config.filter(|_| errors == 0), diagnostics: list, omitted, file_name: file_name.to_owned() }
}

fn configuration(text: &str, findings: &mut Findings) -> Option<Config> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        broken(&document, &errors, text, findings);
        return None;
    }
    document_of(&document, text, findings)
}

/// Reports what is wrong with a text that is not TOML.
fn broken(document: &toml::Spanned<DeTable<'_>>, errors: &[toml::de::Error], text: &str, findings: &mut Findings) {
    if let Some((program, line)) = foreign::recognise(text) {
        let message = format!("this looks like a configuration of {program}, weir reads TOML");
        let hint = match program {
            "keepalived" => "`weir config import --from keepalived FILE` makes one for weir of it",
            "ipvsadm" => "`weir config import --from ipvsadm FILE` makes one for weir of it",
            _ => {
                "start from the commented example that ships with weir, and run `weir config check` on it: it knows the names \
                     of keepalived, HAProxy and ipvsadm and says what they are called here"
            }
        };
        findings.push(Diagnostic::new(Code::ForeignFormat, line, message).hint(hint));
        return;
    }
    let lines = diagnostic::Lines::new(text);
    let broken = reader::syntax(text, &lines, errors, findings);
    let mut further = Findings::default();
    document_of(document, text, &mut further);
    // The recovered tree is a guess around the broken lines: keep what is certain elsewhere.
    let line = |at: usize| lines.position(at).0;
    let certain = |d: &Diagnostic| {
        !matches!(d.code, Code::MissingKey | Code::NoServices | Code::NoBackends)
            && !(line(d.span.start)..=line(d.span.end)).any(|line| broken.contains(&line))
    };
    further.list.into_iter().filter(certain).for_each(|d| findings.push(d));
}

fn document_of(document: &toml::Spanned<DeTable<'_>>, text: &str, findings: &mut Findings) -> Option<Config> {
    let root = Section::root(document.get_ref(), text, findings);
    let node = node_of(&root, findings);
    let store = store_of(&root, findings);
    let pools = pools_of(&root, findings);
    let mut services = Vec::new();
    for section in root.tables("service", Table::Service, findings) {
        services.push(service_of(&section, findings));
    }
    in_store(&root, &store, findings);
    if services.is_empty() && root.is_empty("service") && store.is_file != Some(false) {
        let finding = Diagnostic::new(Code::NoServices, root.span.clone(), "the configuration has no service")
            .hint("every packet passes to the kernel; a service starts with `[[service]]`");
        findings.push(finding);
    }
    let parts = Parts { node, store, pools: pools.iter().collect(), services: services.iter().collect() };
    parts.finish(findings)
}

fn node_of(root: &Section<'_>, findings: &mut Findings) -> Option<node::Draft> {
    root.require(&["node"], findings);
    root.table("node", Table::Node, findings).and_then(|section| node::read(&section, findings))
}

fn store_of(root: &Section<'_>, findings: &mut Findings) -> store::Draft {
    if root.get("store").is_none() {
        return store::Draft::absent();
    }
    match root.table("store", Table::Store, findings) {
        Some(section) => store::read(&section, findings),
        None => store::Draft::refused(),
    }
}

fn pools_of(root: &Section<'_>, findings: &mut Findings) -> Vec<store::PoolDraft> {
    let sections = root.tables("pool", Table::Pool, findings);
    sections.iter().map(|section| store::pool(section, findings)).collect()
}

/// Services and pools stand in one place: in the file, or in the store.
fn in_store(root: &Section<'_>, store: &store::Draft, findings: &mut Findings) {
    if store.is_file != Some(false) {
        return;
    }
    for (key, what) in [("service", "services"), ("pool", "pools")] {
        let Some(span) = root.key_span(key).filter(|_| !root.is_empty(key)) else { continue };
        let finding =
            Diagnostic::new(Code::StoreServices, span, format!("{what} stand in the store, not in this file"))
                .related(store.span.clone(), "the store")
                .hint("`weir config apply FILE` writes those of a file into the store; then remove them here");
        findings.push(finding);
    }
}

fn service_of(section: &Section<'_>, findings: &mut Findings) -> service::Draft {
    let draft = service::read(section, findings);
    within::check(&draft, findings);
    draft
}

/// The tables of a configuration, each read by itself.
struct Parts<'p> {
    node: Option<node::Draft>,
    store: store::Draft,
    pools: Vec<&'p store::PoolDraft>,
    services: Vec<&'p service::Draft>,
}

impl Parts<'_> {
    /// Checks what they must agree on. The configuration, if nothing in it was refused.
    fn finish(self, findings: &mut Findings) -> Option<Config> {
        let pools = store::pools(&self.pools, findings);
        cross::check(self.node.as_ref(), &pools, &self.services, findings);
        cross::leases(&self.store, &self.services, findings);
        let services = self.services.iter().map(|draft| draft.service(&pools)).collect::<Option<_>>()?;
        let pools = self.pools.iter().map(|draft| draft.pool()).collect::<Option<_>>()?;
        Some(Config { node: self.node?.into_node()?, store: self.store.into_store()?, pools, services })
    }
}

/// Checks a text that holds one `[[service]]` and nothing else. Everything that was found, if there is an error in it.
pub(super) fn service(text: &str) -> Result<Service, Vec<Diagnostic>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut findings = Findings::default();
    reader::syntax(text, &diagnostic::Lines::new(text), &errors, &mut findings);
    let root = Section::open(Table::Root, document.get_ref(), 0..text.len(), &mut findings);
    let mut services = Vec::new();
    for section in root.tables("service", Table::Service, &mut findings) {
        services.push(service_of(&section, &mut findings));
    }
    let services: Vec<_> = services.iter().collect();
    let pools = HashMap::new();
    cross::check(None, &pools, &services, &mut findings);
    let service = services.last().and_then(|draft| draft.service(&pools));
    service.filter(|_| findings.errors == 0).ok_or(findings.list)
}

/// A value with the place where it stands.
#[derive(Clone, Debug)]
struct At<T> {
    value: T,
    span: Span,
}

/// Findings as they are collected.
#[derive(Default)]
struct Findings {
    list: Vec<Diagnostic>,
    errors: usize,
    omitted: usize,
}

impl Findings {
    fn push(&mut self, diagnostic: Diagnostic) {
        self.errors += usize::from(diagnostic.severity() == Severity::Error);
        if self.list.len() < DIAGNOSTICS_MAX {
            self.list.push(diagnostic);
            return;
        }
        self.omitted += 1;
        // An error is worth more than a warning that was kept before it.
        if diagnostic.severity() == Severity::Error
            && let Some(warning) = self.list.iter_mut().rev().find(|kept| kept.severity() == Severity::Warning)
        {
            *warning = diagnostic;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{
        super::{emit, sample},
        *,
    };

    /// What must hold for any text at all.
    fn total(text: &str) {
        let checked = check("any.toml", text);
        assert_eq!(checked.config.is_none(), checked.count(Severity::Error) > 0, "{text}");
        assert!(checked.diagnostics.len() <= DIAGNOSTICS_MAX);
        assert!(checked.diagnostics.is_sorted_by_key(|d| d.span.start));
        let shown = checked.render(text, false);
        assert_eq!(shown.is_empty(), checked.diagnostics.is_empty());
        for (entry, d) in checked.entries(text).iter().zip(&checked.diagnostics) {
            assert!((entry.line, entry.column) <= (entry.end_line, entry.end_column), "{d:?} {text}");
            assert!(shown.contains(&format!("any.toml:{}:{}", entry.line, entry.column)), "{entry:?}\n{shown}");
        }
        if let Some(config) = checked.config {
            assert_eq!(check("emitted.toml", &emit(&config)).config, Some(config));
        }
    }

    /// Pieces of configurations that tear a valid one apart in ways that random characters do not.
    const PIECES: &[&str] = &[
        "\n",
        "\"",
        "'",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ",",
        "#",
        ".",
        "0",
        "-1",
        "\\",
        "\r",
        "\u{0}",
        "ü",
        "\u{1f310}",
        "[node]\n",
        "[[service]]\n",
        "[[service.backends]]\n",
        "[service.health_check]\n",
        "\nport = \"all\"\n",
        "\nvip = \"::ffff:1.2.3.4\"\n",
        "\nforward = \"nat\"\n",
        "\nservice = 1\n",
        "\nnode.name = \"x\"\n",
        "\nring_size = 4\n",
        "\nalgo = \"round_robin\"\n",
        "\ntrack = \"moved\"\n",
        "\nudp_flows = \"sticky\"\n",
        "\nwindow = \"1h\"\n",
        "\nmax_connections = 1\n",
        "\"\"\"",
        "1e400",
        "nan",
        "0xffffffffffffffff",
        "2026-01-01",
        "= \u{feff}",
    ];

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![proptest::sample::select(PIECES).prop_map(str::to_owned), "\\PC{0,3}"]
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "(\\PC|\n){0,200}") {
            total(&text);
        }

        #[test]
        fn any_heap_of_pieces_is_answered(pieces in vec(piece(), 0..40)) {
            total(&pieces.concat());
        }

        #[test]
        fn a_torn_configuration_is_answered(
            config in sample::config(),
            cuts in vec((any::<proptest::sample::Index>(), 0usize..30, piece()), 1..6),
        ) {
            let mut text = emit(&config);
            for (at, length, piece) in cuts {
                let boundary = |text: &str, from: usize| (from..=text.len()).find(|at| text.is_char_boundary(*at));
                let start = boundary(&text, at.index(text.len() + 1)).unwrap_or(text.len());
                let end = boundary(&text, (start + length).min(text.len())).unwrap_or(text.len());
                text.replace_range(start..end, &piece);
            }
            total(&text);
        }
    }

    #[test]
    fn findings_beyond_the_limit_are_counted() {
        let mut text = String::from("[node]\ninterface = \"eth0\"\n");
        for n in 0..DIAGNOSTICS_MAX + 5 {
            text.push_str(&format!("key{n} = 1\n"));
        }
        let checked = check("many.toml", &text);
        assert_eq!((checked.diagnostics.len(), checked.omitted), (DIAGNOSTICS_MAX, 6));
        assert_eq!(checked.summary(), "many.toml: 1000 errors, 6 more not shown");
        assert!(checked.config.is_none());
    }

    #[test]
    fn a_later_error_refuses_even_if_it_is_not_kept() {
        let service = |n: usize, name: usize| {
            let vip = format!("10.0.{}.{}", n / 256, n % 256);
            let algo = "algo_config = { ring_size = 251 }";
            format!("[[service]]\nname = \"s{name}\"\nvip = \"{vip}\"\nport = 1\nforward = \"dsr\"\n{algo}\n")
        };
        let mut text = String::from("[node]\ninterface = \"eth0\"\n");
        (0..DIAGNOSTICS_MAX).for_each(|n| text.push_str(&service(n, n)));
        let warned = check("warned.toml", &text);
        assert_eq!((warned.config.is_some(), warned.diagnostics.len()), (true, DIAGNOSTICS_MAX));
        text.push_str(&service(DIAGNOSTICS_MAX, 0));
        let refused = check("refused.toml", &text);
        assert!(refused.config.is_none() && refused.count(Severity::Error) > 0, "{}", refused.summary());
    }

    /// 1,000 services of 100 backends: what a large node has. Prints its time; `--nocapture` shows it.
    #[test]
    fn a_large_configuration_is_checked_in_one_go() {
        let mut text = String::from("[node]\ninterface = \"eth0\"\n");
        for n in 0..1000 {
            let (high, low) = (n / 256, n % 256);
            text.push_str(&format!(
                "[[service]]\nname = \"s{n}\"\nvip = \"192.0.{high}.{low}\"\nport = 80\nforward = \"nat\"\n"
            ));
            text.push_str("algo_config = { ring_size = 10007 }\n[service.health_check]\ntype = \"http\"\n");
            for b in 0..100 {
                text.push_str(&format!(
                    "[[service.backends]]\naddress = \"10.{high}.{low}.{b}\"\nport = 8080\nweight = 10\n"
                ));
            }
        }
        text.push_str("[node.limits]\nbackends_max = 100000\n");
        let begin = std::time::Instant::now();
        let checked = check("large.toml", &text);
        let elapsed = begin.elapsed();
        println!("{} bytes checked in {elapsed:?}", text.len());
        assert!(checked.diagnostics.is_empty(), "{}", checked.summary());
        let backends: usize = checked.config.iter().flat_map(|c| &c.services).map(|s| s.backends.len()).sum();
        assert_eq!(backends, 100_000);
    }

    #[test]
    fn entries_serialise_with_positions() {
        let text = "[node]\ninterface = \"eth0\"\nannounce = \"bgp\"\n";
        let checked = check("weir.toml", text);
        let json = serde_json::to_value(checked.entries(text)).unwrap_or_default();
        let expect = serde_json::json!({
            "file": "weir.toml", "line": 3, "column": 12, "end_line": 3, "end_column": 17,
            "code": "bad-value", "severity": "error", "message": "`announce` cannot be \"bgp\"",
            "hint": "`announce` takes \"address\" or \"none\"", "related": [],
        });
        assert_eq!(json[0], expect);
    }

    #[test]
    fn the_defaults_are_those_of_the_reference() {
        let text = "node.interface = \"eth0\"\n[[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nport = 80\nforward = \"ipip\"\n\
                    health_check.type = \"http\"\nbackends = [{ address = \"2001:db8::1\" }]\n";
        let config = check("weir.toml", text).config.map(|config| emit(&config.named("n1.example.com ")));
        let expect = r#"[node]
name = "n1.example.com"
interfaces = ["eth0"]
xdp_mode = "native"
announce = "address"
outer_source_v4 = "198.18.0.0/16"
outer_source_v6 = "100::/64"
pin_dir = "/sys/fs/bpf/weir"
state_dir = "/var/lib/weir"

[node.limits]
services_max = 4096
backends_max = 65536
ring_slots_max = 16777216
flows_max = 1048576

[node.metrics]
listen = "127.0.0.1:9650"

[node.api]
socket = "/run/weir/api.sock"

[[service]]
name = "web"
vip = "192.0.2.1"
port = 80
protocol = "tcp"
forward = "ipip"
algo = "maglev"
algo_config = { ring_size = 65537 }
track = "moved"
on_marked_down = "rehash"
window = "2h4m"
flow_timeout = "2h4m"
announce_for = "4s"
drain_timeout = "5m"

[service.health_check]
type = "http"
path = "/health"
interval = "2s"
timeout = "1s"
rise = 2
fall = 3

[[service.backends]]
address = "2001:db8::1"
port = 80
weight = 1
max_connections = 0
admin_state = "ready"
"#;
        assert_eq!(config.as_deref(), Some(expect));
    }
}
