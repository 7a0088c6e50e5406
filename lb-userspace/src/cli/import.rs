//! `weir config import`: the configuration of another load balancer as TOML on standard output, and what was changed or left out on
//! standard error.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    config,
    exit::{Exit, Failure},
    shell::{Format, Shell, json},
    table::printable,
};
use crate::{
    api::{self, Diagnostic},
    model::import::{self, Imported, Note, Source},
};

/// `weir config import`.
#[derive(Args, Clone, Debug)]
pub struct Import {
    /// Whose configuration it is
    #[arg(long, value_enum, value_name = "PROGRAM")]
    from: Program,
    /// Interface on which packets for the VIPs arrive; may be given several times
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// keepalived.conf, or what `ipvsadm -Sn` printed; `-` for standard input
    file: PathBuf,
}

/// `--from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Program {
    /// keepalived.conf: its virtual servers
    Keepalived,
    /// The output of `ipvsadm -S` or `ipvsadm -Sn`
    Ipvsadm,
}

/// What `-o json` prints.
#[derive(Serialize)]
struct Report {
    /// The configuration.
    text: String,
    /// Whether it can be used as it is.
    valid: bool,
    /// What was changed or left out.
    notes: Vec<Note>,
    /// Notes beyond those listed.
    omitted: usize,
    /// What `weir config check` says about the text.
    diagnostics: Vec<Diagnostic>,
}

/// Runs `weir config import`.
pub fn run(shell: &Shell, args: &Import) -> anyhow::Result<Exit> {
    let (text, name) = config::read(&args.file)?;
    let source = match args.from {
        Program::Keepalived => Source::Keepalived,
        Program::Ipvsadm => Source::Ipvsadm,
    };
    let imported = import::import(source, &name, &text, &args.interfaces)
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot read {name}, {error}")).hint(error.hint))?;
    let valid = imported.checked.config.is_some();
    match shell.format {
        Format::Table => {
            shell.print(&imported.text)?;
            eprint!("{}", told(&name, &imported));
        }
        Format::Json => shell.print(&json(&Report {
            valid,
            diagnostics: api::diagnostics(&imported.checked, &imported.text),
            text: imported.text,
            notes: imported.notes,
            omitted: imported.omitted,
        })?)?,
    }
    Ok(if valid { Exit::Ok } else { Exit::ConfigInvalid })
}

/// What standard error says: a line for each note, then what is left to do.
fn told(name: &str, imported: &Imported) -> String {
    let Imported { text, notes, omitted, checked } = imported;
    let mut out: String =
        notes.iter().map(|note| format!("{name}:{}: {}\n", note.line, printable(&note.text))).collect();
    if *omitted > 0 {
        out.push_str(&format!("{omitted} more not shown\n"));
    }
    if !out.is_empty() {
        out.push('\n');
    }
    let findings = checked.render(text, false);
    match (&checked.config, findings.is_empty()) {
        (Some(_), true) => out.push_str("the result is valid; read the comments in it before it is used\n"),
        (Some(_), false) => out.push_str(&format!("the result is valid, with warnings:\n\n{findings}")),
        (None, _) => out.push_str(&format!(
            "the result (called {} here) needs more before it is valid:\n\n{findings}",
            checked.file_name
        )),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_do_is_said_with_lines() {
        let text = "-A -t 192.0.2.1:80 -s fo\n-a -t 192.0.2.1:80 -r 10.0.0.1:80 -g\n";
        let told = |interfaces: &[String]| {
            told("ipvs", &import::import(Source::Ipvsadm, "ipvs", text, interfaces).expect("a good text"))
        };
        let without = told(&[]);
        assert!(without.starts_with("ipvs:1: the scheduler `fo` fills"), "{without}");
        assert!(
            without.contains("needs more before it is valid") && without.contains("has no `interfaces`"),
            "{without}"
        );
        let with = told(&["eth0".into()]);
        assert!(with.ends_with("the result is valid; read the comments in it before it is used\n"), "{with}");
    }
}
