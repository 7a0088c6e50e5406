//! One change of the store: decide, check like a file, write, tell.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde::Serialize;

use super::{
    super::{
        config::{changes, coloured, diagnostics},
        exit::{Exit, Failure},
        shell::{Shell, block_on},
    },
    Shared, WriteArgs, failed, refused,
    wait::{self, Waited},
};
use crate::{
    agent::unified::unified,
    api,
    model::{self, Config, Incremental},
    store::{
        Objects, Revision, StoreError,
        document::{after, document},
        edit::EditError,
        write::{Intent, NewText, Outcome, WriteError},
    },
};

/// What came of a change: what `-o json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// `applied`, `unchanged` or `dry-run`.
    pub outcome: &'static str,
    /// Revision that holds it; with `dry-run` the one that it was compared with. `null` for a store that was never written.
    pub revision: Option<Revision>,
    /// `false`: stored, but a fail-over at this moment would lose it.
    pub replicated: bool,
    /// What changes for nodes, a sentence each.
    pub changes: Vec<String>,
    /// With `dry-run`: objects before and after, in unified form.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub unified: String,
    /// Warnings about the result.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<api::Diagnostic>,
    /// With `--wait`: how the nodes stand to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Waited>,
}

/// The last decision.
struct Seen {
    /// What it was made on.
    objects: Objects,
    edits: Vec<NewText>,
    /// What changes for nodes.
    sentences: Vec<String>,
    warnings: Vec<api::Diagnostic>,
}

/// Why a change is not made.
#[derive(Debug)]
enum Reject {
    Edit(EditError),
    /// The result is no configuration.
    Invalid(Failure),
}

/// Makes the change that `decide` makes of the objects, and says what came of it. `subject` is the message where none was given.
pub fn change(
    shell: &Shell,
    shared: &Shared,
    args: &WriteArgs,
    subject: &str,
    decide: impl FnMut(&Objects) -> Result<Vec<NewText>, EditError>,
) -> anyhow::Result<Exit> {
    let done = block_on(make(shared, args, subject, decide))?;
    shell.show(&done, |done| words(done, shell.colour))?;
    Ok(done.nodes.as_ref().map_or(Exit::Ok, Waited::exit))
}

/// Checks what nodes would run.
struct Checker<'s> {
    shared: &'s Shared,
    incremental: Incremental,
}

impl Checker<'_> {
    /// The configuration that `objects` are, with warnings.
    fn check(&mut self, objects: &Objects) -> Result<(Config, Vec<api::Diagnostic>), Failure> {
        let document = document(&self.shared.file_name, Arc::clone(&self.shared.local), objects);
        let mut checked = self.incremental.document(&document);
        let diagnostics = api::diagnostics_in(&checked, &document.sources());
        checked.config.take().map(|config| (config, diagnostics.clone())).ok_or_else(|| Failure {
            diagnostics,
            ..Failure::new(
                Exit::ConfigInvalid,
                format!("nothing was changed, the result would be invalid: {}", checked.summary()),
            )
        })
    }
}

/// Makes the change.
pub async fn make(
    shared: &Shared,
    args: &WriteArgs,
    subject: &str,
    mut decide: impl FnMut(&Objects) -> Result<Vec<NewText>, EditError>,
) -> anyhow::Result<Change> {
    let mut checker = Checker { shared, incremental: Incremental::default() };
    let mut seen: Option<Seen> = None;
    let mut step = |objects: &Objects| -> Result<Vec<NewText>, Reject> {
        let mut edits = decide(objects).map_err(Reject::Edit)?;
        edits.retain(|(key, text)| objects.get(key) != text.as_ref());
        // What stands in the store may be wrong already: then there is nothing to compare with, and it can still be repaired.
        let before = checker.check(objects).ok().map(|(config, _)| config);
        let (config, warnings) = checker.check(&after(objects, &edits)).map_err(Reject::Invalid)?;
        let sentences = match before {
            Some(before) => model::diff(&before, &config).sentences(),
            None => edits
                .iter()
                .map(|(key, text)| format!("{key}: {}", if text.is_some() { "written" } else { "removed" }))
                .collect(),
        };
        seen = Some(Seen { objects: objects.clone(), edits: edits.clone(), sentences, warnings });
        Ok(edits)
    };
    let first = if args.wait.is_some() { wait::live(&shared.store).await? } else { BTreeSet::new() };
    let intent = intent(args, subject);
    let mut change = Change {
        outcome: "dry-run",
        revision: None,
        replicated: true,
        changes: Vec::new(),
        unified: String::new(),
        diagnostics: Vec::new(),
        nodes: None,
    };
    if args.dry_run {
        let snapshot = shared.store.snapshot().await.map_err(failed)?;
        change.revision = snapshot.as_ref().map(|snapshot| snapshot.revision);
        if !intent.meets(change.revision.as_ref()) {
            return Err(failed(StoreError::Conflict { have: change.revision }).into());
        }
        step(&snapshot.map(|snapshot| snapshot.objects).unwrap_or_default()).map_err(rejected)?;
    } else {
        let outcome = shared.store.update(&intent, &mut step).await.map_err(|error| match error {
            WriteError::Store(error) => failed(error),
            WriteError::Refused(reject) => rejected(reject),
        })?;
        change.revision = outcome.revision();
        match outcome {
            Outcome::Changed(written, _) => (change.outcome, change.replicated) = ("applied", written.replicated),
            Outcome::Unchanged(_) => change.outcome = "unchanged",
        }
    }
    if let Some(Seen { objects, edits, sentences, warnings }) = seen {
        (change.changes, change.diagnostics) = (sentences, warnings);
        if args.dry_run {
            change.unified = compared(&objects, &edits);
        }
    }
    if let (Some(seconds), Some(revision), false) = (args.wait, change.revision, args.dry_run) {
        let timeout = Duration::from_secs(seconds.into());
        change.nodes = Some(wait::wait(&shared.store, &first, revision, timeout).await?);
    }
    Ok(change)
}

fn rejected(reject: Reject) -> Failure {
    match reject {
        Reject::Edit(error) => refused(error),
        Reject::Invalid(failure) => failure,
    }
}

/// Objects before and after, one after the other.
pub fn compared(objects: &Objects, edits: &[NewText]) -> String {
    let one = |(key, text): &NewText| {
        let before = objects.get(key).map_or("", |text| text);
        format!("--- {key}\n+++ {key}\n{}", unified(before, text.as_deref().unwrap_or("")))
    };
    edits.iter().map(one).collect()
}

/// What is said about a change, and on which revision it insists. `subject` is the message where none was given.
pub fn intent(args: &WriteArgs, subject: &str) -> Intent {
    Intent {
        expect: args.expect_rev.clone(),
        fence: None,
        author: args.author.clone().unwrap_or_else(author),
        message: args.message.clone().unwrap_or_else(|| subject.to_owned()),
    }
}

/// Who sits here: `USER@HOST`, with the user who called sudo.
pub fn author() -> String {
    let uid = nix::unistd::getuid();
    let sudo = std::env::var("SUDO_USER")
        .ok()
        .filter(|user| uid.is_root() && !user.is_empty() && !user.contains(char::is_control));
    let user = sudo.or_else(|| Some(nix::unistd::User::from_uid(uid).ok()??.name)).unwrap_or_else(|| uid.to_string());
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    format!("{user}@{host}").chars().take(200).collect()
}

fn words(change: &Change, colour: bool) -> String {
    let mut out = diagnostics(&change.diagnostics);
    let revision =
        change.revision.map_or_else(|| "an empty store".to_owned(), |revision| format!("revision {revision}"));
    match change.outcome {
        "applied" => out.push_str(&format!("stored as {revision}\n")),
        "unchanged" => out.push_str(&format!("nothing changed: {revision} says the same\n")),
        _ if change.unified.is_empty() => out.push_str(&format!("nothing would change: {revision} says the same\n")),
        _ => {
            out.push_str(&coloured(&change.unified, colour));
            out.push('\n');
        }
    }
    out.push_str(&changes(&change.changes));
    if !change.replicated {
        out.push_str("stored, not replicated: if the store's server is lost now, so is the change\n");
    }
    if let (Some(nodes), Some(revision)) = (&change.nodes, change.revision) {
        out.push_str(&nodes.words(revision));
    }
    out
}

#[cfg(test)]
mod tests;
