//! `weir config check|show|diff|apply`; `import` has its own file, and what concerns the past of a store is in `store/history`.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    exit::{Exit, Failure},
    import,
    shell::{Format, Shell, json},
    store::{self, Place, StoreArgs, WriteArgs},
    table::{Tone, printable, tinted},
};
use crate::{
    api::{self, Applied, ApplyOutcome, ApplyRequest, ConfigDiff, Diagnostic, DiffRequest},
    model::{self, Checked, Config, code::Severity, parse::document},
    store::{
        document::{replace, split},
        object::RevisionName,
    },
};

/// Bytes of a configuration that are read; the agent takes no more either.
const TEXT_BYTES_MAX: u64 = api::BODY_BYTES_MAX as u64 / 2;

/// `weir config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file and report every error and warning; needs no agent
    Check {
        /// The file, or `-` for standard input
        file: PathBuf,
    },
    /// Print the configuration in force in its canonical form; or, of a store, the change that led to a revision
    Show {
        /// A revision of the store: `42`, `42-1a2b3c4d`
        #[arg(value_name = "REV")]
        revision: Option<RevisionName>,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Show what `weir config apply` would change
    Diff(Text),
    /// Apply a configuration: it is validated whole, then replaces the agent's file, or the services of the store, then takes effect
    Apply(Apply),
    /// Print services and pools of the store as a file that `weir config apply` takes
    Export(StoreArgs),
    /// List the changes of the store, the newest first
    History {
        /// How many
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Bring the services of an earlier revision of the store back, as a new revision
    Rollback(store::Rollback),
    /// Put a node's last good copy back into a store that lost what it held
    Restore(store::Restore),
    /// Turn the configuration of another load balancer into one for weir, on standard output; needs no agent
    Import(import::Import),
}

/// Which configuration.
#[derive(Args, Clone, Debug)]
pub struct Text {
    /// A file, or `-` for standard input; without it the agent reads its own file again
    file: Option<PathBuf>,
}

/// `weir config apply`.
#[derive(Args, Clone, Debug)]
pub struct Apply {
    #[command(flatten)]
    text: Text,
    /// With a store: keep its services that the file does not have
    #[arg(long)]
    merge: bool,
    #[command(flatten)]
    write: WriteArgs,
}

/// Runs `weir config ...`.
pub fn run(shell: &Shell, command: &ConfigCommand) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Check { file } => return check(shell, file),
        ConfigCommand::Import(args) => return import::run(shell, args),
        ConfigCommand::Show { revision: Some(revision), store } => {
            store::show(shell, &store::place(store)?.store(OF_A_FILE)?, revision)?;
        }
        ConfigCommand::Export(args) => store::export(shell, &store::readable(args)?)?,
        ConfigCommand::History { limit, store } => {
            store::history(shell, &store::place(store)?.store(OF_A_FILE)?, *limit as usize)?;
        }
        ConfigCommand::Rollback(args) => {
            return store::rollback(shell, &store::place(&args.write.store)?.store(OF_A_FILE)?, args);
        }
        ConfigCommand::Restore(args) => {
            return store::restore(shell, &store::place(&args.write.store)?.store(OF_A_FILE)?, args);
        }
        ConfigCommand::Show { revision: None, .. } => {
            let config = shell.ask(async |client| client.config().await)?;
            shell.show(&config, |config| {
                format!("# revision {} of {}\n{}", config.revision, config.file, config.text)
            })?;
        }
        ConfigCommand::Diff(text) => {
            let (text, file) = text.read()?.unzip();
            let request = DiffRequest { text, file };
            let answer = shell.ask(async |client| client.config_diff(&request).await)?;
            shell.show(&answer, |answer| diff(answer, shell.colour))?;
        }
        ConfigCommand::Apply(args) => {
            if let Place::Store(shared) = store::place(&args.write.store)? {
                return apply(shell, &shared, args);
            }
            args.write.refuse_without_store("")?;
            let (text, file) = args.text.read()?.unzip();
            let request = ApplyRequest { text, file };
            let answer = shell.ask(async |client| client.config_apply(&request).await)?;
            shell.show(&answer, applied)?;
        }
    }
    Ok(Exit::Ok)
}

/// What there is instead of a store's commands where services stand in a file.
const OF_A_FILE: &str = "`weir config show`, `diff` and `apply` are about the file";

/// Makes the store hold the services and pools of a file.
fn apply(shell: &Shell, shared: &store::Shared, args: &Apply) -> anyhow::Result<Exit> {
    let Some((text, name)) = args.text.read()? else {
        return Err(Failure::new(Exit::Usage, "with a store, `weir config apply` needs a FILE with services")
            .hint("`weir config export` prints what the store holds; agents read it by themselves")
            .into());
    };
    let checked = document::services(&name, &text);
    if checked.count(Severity::Error) > 0 {
        return Err(invalid(&checked, &text).into());
    }
    let wanted = split(&name, &text).map_err(store::refused)?;
    store::change(shell, shared, &args.write, &format!("apply {name}"), |objects| {
        Ok(replace(objects, &wanted, !args.merge))
    })
}

/// What `weir config check -o json` prints.
#[derive(Serialize)]
struct CheckReport {
    file: String,
    valid: bool,
    errors: usize,
    warnings: usize,
    /// Findings beyond those listed.
    omitted: usize,
    diagnostics: Vec<Diagnostic>,
}

fn check(shell: &Shell, file: &Path) -> anyhow::Result<Exit> {
    let (text, name) = read(file)?;
    let checked = model::check(&name, &text);
    let valid = checked.config.is_some();
    match shell.format {
        Format::Table => {
            let mut out = checked.render(&text, shell.colour);
            if !out.is_empty() {
                out.push('\n');
            }
            shell.print(&format!("{out}{}\n", checked.summary()))?;
        }
        Format::Json => shell.print(&json(&CheckReport {
            valid,
            errors: checked.count(Severity::Error),
            warnings: checked.count(Severity::Warning),
            omitted: checked.omitted,
            diagnostics: api::diagnostics(&checked, &text),
            file: name,
        })?)?,
    }
    Ok(if valid { Exit::Ok } else { Exit::ConfigInvalid })
}

/// The configuration in the file at `path`, or every reason why it is none.
pub fn load(path: &Path) -> anyhow::Result<Config> {
    let (text, name) = read(path)?;
    parse(&text, &name)
}

/// The configuration in `text`, or every reason why it is none.
pub fn parse(text: &str, name: &str) -> anyhow::Result<Config> {
    let mut checked = model::check(name, text);
    checked.config.take().ok_or_else(|| invalid(&checked, text).into())
}

/// The failure of a text with these findings.
pub fn invalid(checked: &Checked, text: &str) -> Failure {
    let diagnostics = api::diagnostics(checked, text);
    Failure {
        diagnostics,
        ..Failure::new(Exit::ConfigInvalid, format!("invalid configuration, {}", checked.summary()))
    }
}

impl Text {
    /// Text and name; `None` if the agent's own file is meant.
    pub fn read(&self) -> anyhow::Result<Option<(String, String)>> {
        self.file.as_deref().map(read).transpose()
    }
}

/// Reads a configuration of limited size from a file or, for `-`, from standard input; gives its text and name.
pub fn read(path: &Path) -> anyhow::Result<(String, String)> {
    let (reader, name): (Box<dyn Read>, String) = if path.as_os_str() == "-" {
        (Box::new(std::io::stdin().lock()), "<stdin>".into())
    } else {
        let name = path.display().to_string();
        (Box::new(std::fs::File::open(path).with_context(|| format!("cannot open {name}"))?), name)
    };
    let mut text = String::new();
    reader
        .take(TEXT_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {name} as UTF-8 text"))?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        return Err(Failure::new(Exit::Failure, format!("{name} is larger than {} MiB", TEXT_BYTES_MAX >> 20)).into());
    }
    Ok((text, name))
}

/// Diagnostics as text, an empty line after each.
pub fn diagnostics(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(|d| format!("{}\n\n", d.rendered)).collect()
}

fn diff(diff: &ConfigDiff, colour: bool) -> String {
    let mut out = diagnostics(&diff.diagnostics);
    if !diff.changed {
        out.push_str(&format!("nothing would change: revision {} says the same\n", diff.revision));
        return out;
    }
    out.push_str(&coloured(&diff.unified, colour));
    if !diff.unified.is_empty() {
        out.push('\n');
    }
    out.push_str(&changes(&diff.changes));
    out
}

/// A unified difference with its colours.
pub fn coloured(unified: &str, colour: bool) -> String {
    let mut out = String::new();
    for line in unified.lines() {
        let tone = match line.as_bytes().first() {
            Some(b'+') => Tone::Good,
            Some(b'-') => Tone::Bad,
            Some(b'@') => Tone::Faint,
            _ => Tone::Plain,
        };
        let line: String = line.split('\t').map(printable).collect::<Vec<_>>().join("\t");
        out.push_str(&if colour { tinted(&line, tone) } else { line });
        out.push('\n');
    }
    out
}

/// A line for each change.
pub fn changes(changes: &[String]) -> String {
    changes.iter().map(|change| format!("- {change}\n")).collect()
}

fn applied(applied: &Applied) -> String {
    let mut out = diagnostics(&applied.diagnostics);
    out.push_str(&match applied.outcome {
        ApplyOutcome::Applied => format!("applied as revision {} in {} ms\n", applied.revision, applied.duration_ms),
        ApplyOutcome::Unchanged => format!("nothing changed: revision {} says the same\n", applied.revision),
    });
    out.push_str(&changes(&applied.changes));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning() -> Diagnostic {
        Diagnostic {
            severity: api::Severity::Warning,
            code: String::new(),
            message: "weights are all 0".into(),
            hint: None,
            file: "weir.toml".into(),
            line: 9,
            column: 1,
            rendered: "warning: weights are all 0\n --> weir.toml:9:1".into(),
        }
    }

    #[test]
    fn a_diff_shows_lines_then_sentences() {
        let mut answer = ConfigDiff {
            revision: 3,
            changed: true,
            changes: vec!["service web: backend 10.0.0.14:80 added, weight 2".into()],
            unified: "@@ -1 +1,2 @@\n a\n+b\n".into(),
            diagnostics: vec![warning()],
        };
        assert_eq!(
            diff(&answer, false),
            "warning: weights are all 0\n --> weir.toml:9:1\n\n@@ -1 +1,2 @@\n a\n+b\n\n\
             - service web: backend 10.0.0.14:80 added, weight 2\n"
        );
        assert!(diff(&answer, true).contains("\x1b[32m+b\x1b[0m\n"));
        answer.changed = false;
        answer.diagnostics.clear();
        assert_eq!(diff(&answer, false), "nothing would change: revision 3 says the same\n");
    }

    #[test]
    fn an_apply_says_its_revision() {
        let answer = Applied {
            outcome: ApplyOutcome::Applied,
            revision: 4,
            changes: vec!["service web: removed".into()],
            duration_ms: 12,
            diagnostics: Vec::new(),
        };
        assert_eq!(applied(&answer), "applied as revision 4 in 12 ms\n- service web: removed\n");
    }
}
