//! From a configuration text to the decision what becomes of it.
//!
//! Pure. Invariant: a text that is refused, for whatever reason, is refused whole.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use axum::http::StatusCode;

use super::api::Refusal;
use crate::{
    api,
    model::{
        self, BackendRef, Checked, Config, ConfigDiff, Document, Incremental, Service,
        diagnostic::{Sources, render_in},
        diff::Needs,
    },
};

/// A configuration that may take effect.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// It.
    pub config: Config,
    /// What differs from the one in force.
    pub diff: ConfigDiff,
    /// Warnings about the text.
    pub warnings: Vec<api::Diagnostic>,
}

/// Why a text does not take effect.
#[derive(Clone, Debug)]
pub enum Refused {
    /// It has errors.
    Invalid {
        /// One sentence with file and first error.
        message: String,
        /// Errors and warnings.
        diagnostics: Vec<api::Diagnostic>,
        /// The findings for people, with source lines.
        rendered: String,
    },
    /// It changes what cannot change while the agent, or the data plane, runs.
    Fixed {
        /// One sentence: which fields.
        message: String,
        /// What to do.
        remedy: String,
    },
}

impl Refused {
    /// One sentence.
    pub fn message(&self) -> &str {
        match self {
            Self::Invalid { message, .. } | Self::Fixed { message, .. } => message,
        }
    }

    /// The findings.
    pub fn diagnostics(&self) -> &[api::Diagnostic] {
        match self {
            Self::Invalid { diagnostics, .. } => diagnostics,
            Self::Fixed { .. } => &[],
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Invalid { message, diagnostics, .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, message).diagnostics(diagnostics)
            }
            Refused::Fixed { message, remedy } => Self::new(StatusCode::CONFLICT, message).hint(remedy),
        }
    }
}

/// What a configuration is read from.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// One text.
    Text {
        /// What findings call it.
        file_name: &'a str,
        /// It.
        text: &'a str,
    },
    /// A node's own file with the objects of its store.
    Shared {
        /// Both.
        document: &'a Document,
        /// Addresses that the node leases, by pool.
        leases: &'a BTreeMap<String, IpAddr>,
    },
}

/// Checks a configuration for a node called `host_name` unless it names itself. What `incremental` remembers costs no second reading.
///
/// # Errors
/// [`Refused::Invalid`].
pub fn check(
    incremental: &mut Incremental,
    input: Input<'_>,
    host_name: &str,
) -> Result<(Config, Vec<api::Diagnostic>), Refused> {
    let mut checked = match input {
        Input::Text { file_name, text } => incremental.check(file_name, text),
        Input::Shared { document, .. } => incremental.document(document),
    };
    // Finding the lines of all texts costs more than checking a small change, so only where there is something to point at.
    let (diagnostics, rendered) = if checked.diagnostics.is_empty() {
        (Vec::new(), String::new())
    } else {
        let sources = match input {
            Input::Text { file_name, text } => Sources::one(file_name, text),
            Input::Shared { document, .. } => document.sources(),
        };
        (api::diagnostics_in(&checked, &sources), render_in(&checked.diagnostics, &sources, false))
    };
    match (checked.config.take(), input) {
        (Some(config), Input::Text { .. }) => Ok((config.named(host_name), diagnostics)),
        (Some(config), Input::Shared { leases, .. }) => Ok((config.named(host_name).leased(leases).0, diagnostics)),
        (None, _) => Err(Refused::Invalid { message: first_error(&checked, &diagnostics), rendered, diagnostics }),
    }
}

/// Checks a configuration and compares it with the one `in_force`.
///
/// # Errors
/// [`Refused`].
pub fn consider(
    in_force: &Config,
    incremental: &mut Incremental,
    input: Input<'_>,
    host_name: &str,
) -> Result<Candidate, Refused> {
    let (config, warnings) = check(incremental, input, host_name)?;
    let diff = model::diff(in_force, &config);
    match fixed(&diff) {
        Some(refused) => Err(refused),
        None => Ok(Candidate { config, diff, warnings }),
    }
}

/// The refusal of changes that an apply cannot make.
fn fixed(diff: &ConfigDiff) -> Option<Refused> {
    let of = |table: &'static str| move |change| (table, change);
    let fields = diff.node.iter().map(of("node")).chain(diff.store.iter().map(of("store")));
    let fields: Vec<_> = fields.filter(|(_, change)| change.needs != Needs::Apply).collect();
    if fields.is_empty() {
        return None;
    }
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "unset".into());
    let list: Vec<String> = fields
        .iter()
        .map(|(table, f)| format!("{table}.{} ({} to {})", f.field, shown(&f.from), shown(&f.to)))
        .collect();
    let message = format!("cannot change while the agent runs: {}", list.join(", "));
    let remedy = match diff.needs() {
        Needs::Reload => {
            "nothing was changed; to change it: `weir agent --unload` with the old file (forwarding stops), then start \
             the agent with the new one"
        }
        Needs::AgentRestart | Needs::Apply => {
            "nothing was changed; to change it, restart the agent with the new file (forwarding goes on meanwhile)"
        }
    };
    Some(Refused::Fixed { message, remedy: remedy.into() })
}

fn first_error(checked: &Checked, diagnostics: &[api::Diagnostic]) -> String {
    let first = diagnostics.iter().find(|d| d.severity == api::Severity::Error);
    match first {
        Some(d) if d.file == checked.file_name => {
            format!("{} (first: line {}: {})", checked.summary(), d.line, d.message)
        }
        Some(d) => format!("{} (first: {}, line {}: {})", checked.summary(), d.file, d.line, d.message),
        None => checked.summary(),
    }
}

/// Names of backends that only `old` has.
pub(super) fn gone(old: &Config, new: &Config) -> Vec<BackendRef> {
    let names = |service: &Service| -> HashSet<BackendRef> {
        service.backends.iter().map(|backend| service.backend_ref(backend)).collect()
    };
    let kept: HashMap<&str, &Service> = new.services.iter().map(|service| (&*service.name, service)).collect();
    let mut gone = Vec::new();
    for service in &old.services {
        match kept.get(&*service.name) {
            Some(kept) if kept.backends == service.backends => {}
            Some(kept) => gone.extend(names(service).difference(&names(kept)).cloned()),
            None => gone.extend(names(service)),
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::needs_tests::changes;

    /// `weir config diff` and the running agent say the same about every key.
    #[test]
    fn an_apply_takes_what_needs_no_more_and_refuses_the_rest() {
        for (from, to, needs) in changes() {
            let mut incremental = Incremental::default();
            let old = Input::Text { file_name: "old.toml", text: &from };
            let new = Input::Text { file_name: "new.toml", text: &to };
            let (in_force, _) = check(&mut incremental, old, "host").expect("the old text is valid");
            match (consider(&in_force, &mut incremental, new, "host"), needs) {
                (Ok(candidate), Needs::Apply) => assert!(!candidate.diff.is_empty(), "{to}"),
                (Err(Refused::Fixed { remedy, .. }), Needs::AgentRestart) => {
                    assert!(remedy.contains("restart the agent"))
                }
                (Err(Refused::Fixed { remedy, .. }), Needs::Reload) => assert!(remedy.contains("weir agent --unload")),
                (outcome, needs) => panic!("{needs:?} is needed, and the agent says {outcome:?} to\n{to}"),
            }
        }
    }
}
