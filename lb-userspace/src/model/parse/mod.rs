//! From configuration text to a validated [`Config`], or to every finding about it in one run.
//!
//! Three passes: TOML with recovery (`toml`), each table by itself ([`node`], [`service`]), then what tables must agree on
//! ([`cross`]). A field that one pass refused is absent in the next, so one mistake gives one finding.
//!
//! Pure, and total: no text makes it panic. Refuses to know: files, the machine's interfaces, the running configuration.

mod address;
mod cross;
mod health;
mod node;
mod reader;
mod service;

use toml::de::DeTable;

use super::{
    Algo, Config, Forward, HealthCheck, Limits, Node, Protocol,
    diagnostic::{self, Code, DIAGNOSTICS_MAX, Diagnostic, Entry, Severity, Span},
    foreign,
    schema::Table,
};
use reader::Section;

/// What a check found.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The configuration, unless there are errors.
    pub config: Option<Config>,
    /// Errors and warnings in file order, at most [`DIAGNOSTICS_MAX`].
    pub diagnostics: Vec<Diagnostic>,
    /// Findings beyond that number.
    pub omitted: usize,
    /// Name of the file, as given.
    pub file_name: String,
}

impl Checked {
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
    let mut findings = Findings::default();
    let config = configuration(text, &mut findings);
    let Findings { mut list, errors, omitted } = findings;
    list.sort_by_key(|d| (d.span.start, d.span.end));
    Checked { config: config.filter(|_| errors == 0), diagnostics: list, omitted, file_name: file_name.to_owned() }
}

fn configuration(text: &str, findings: &mut Findings) -> Option<Config> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        if let Some((program, line)) = foreign::recognise(text) {
            let message = format!("this looks like a configuration of {program}, weir reads TOML");
            let hint = "start from the commented example that ships with weir, and run `weir config check` on it: it knows \
                        the names of keepalived, HAProxy and ipvsadm and says what they are called here";
            findings.push(Diagnostic::new(Code::ForeignFormat, line, message).hint(hint));
            return None;
        }
        let broken = reader::syntax(text, &errors, findings);
        let mut further = Findings::default();
        document_of(&document, text, &mut further);
        // The recovered tree is a guess around the broken lines: keep what is certain elsewhere.
        let lines = diagnostic::Lines::new(text);
        let line = |at: usize| lines.position(at).0;
        let certain = |d: &Diagnostic| {
            !matches!(d.code, Code::MissingKey | Code::NoServices | Code::NoBackends)
                && !broken.iter().any(|at| (line(d.span.start)..=line(d.span.end)).contains(&line(*at)))
        };
        further.list.into_iter().filter(certain).for_each(|d| findings.push(d));
        return None;
    }
    document_of(&document, text, findings)
}

fn document_of(document: &toml::Spanned<DeTable<'_>>, text: &str, findings: &mut Findings) -> Option<Config> {
    let end = text.trim_end().len();
    let root = Section::open(Table::Root, document.get_ref(), end..end, findings);
    root.require(&["node"], findings);
    let node = root.table("node", Table::Node, findings).and_then(|section| node::read(&section, findings));
    let mut services = Vec::new();
    for section in root.tables("service", Table::Service, findings) {
        services.push(service::read(&section, findings));
    }
    cross::check(node.as_ref(), &services, end, findings);
    let node = node?.into_node()?;
    Some(Config { node, services: services.into_iter().map(service::Draft::into_service).collect::<Option<_>>()? })
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
        } else {
            self.omitted += 1;
        }
    }
}
