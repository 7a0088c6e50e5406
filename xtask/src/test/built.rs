//! The test programs of this workspace, built once.
//!
//! Owns one call of cargo for all of them and what it said about each: which package it tests, what the target is
//! called, where the program is. Knows nothing of tiers. Invariant: everything is built with one set of features. Built
//! package by package, each would ask for features of its own, and the larger dependencies would be compiled anew
//! between any two tiers.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The environment variable that names the folder with `weir` and `xtask` when both are built already.
pub const PROGRAMS: &str = "WEIR_PROGRAMS";

/// The XDP program is compiled for its own target by lb-userspace's build script.
const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "xdp-ebpf"];

/// One test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The package's name.
    pub package: String,
    /// The target's name: that of the library, of a program, or of a file in `tests`.
    pub target: String,
    /// The package's folder, in which its tests expect to run.
    pub folder: PathBuf,
    /// What to start.
    pub executable: PathBuf,
}

/// Builds every test program, and with them the programs and examples that they start.
pub fn build() -> Result<Vec<Program>> {
    let mut command = Command::new("cargo");
    // No kinds of targets are named: examples that are asked for by name are built as tests, and not as what tests start.
    command.arg("test").args(WORKSPACE).args(["--no-run", "--quiet"]);
    command.arg("--message-format=json-render-diagnostics");
    let mut child = command
        .current_dir(crate::root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut programs = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            programs.extend(program(&line?));
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the tests do not compile: cargo ended with {status}");
    }
    // Cargo finishes targets in any order; a run that can be compared with the last one has an order of its own.
    programs.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(programs)
}

/// The folder with `weir` and `xtask`, if somebody has built them already.
pub fn folder() -> Option<PathBuf> {
    std::env::var_os(PROGRAMS).map(PathBuf::from)
}

/// A message of cargo, as far as it is read here.
/// Source: the Cargo Book, "External tools", section JSON messages.
#[derive(Deserialize)]
struct Message {
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// The test program that a line of cargo's speaks of, if it speaks of one.
fn program(line: &str) -> Option<Program> {
    let message: Message = serde_json::from_str(line).ok()?;
    if !message.profile?.test {
        return None;
    }
    let folder = message.manifest_path?.parent()?.to_owned();
    Some(Program { package: name_of(&folder)?, target: message.target?.name, folder, executable: message.executable? })
}

/// Packages are called like their folders, but for the folder of the tests.
fn name_of(folder: &Path) -> Option<String> {
    let name = folder.file_name()?.to_str()?;
    Some(if name == "tests" { "weir-tests".to_owned() } else { name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_messages_name_the_test_programs() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///w/lb-core#0.1.0","manifest_path":"/w/lb-core/Cargo.toml","target":{"kind":["lib"],"name":"lb_core"},"profile":{"opt_level":"0","test":true},"executable":"/t/deps/lb_core-1"}"#;
        let found = program(line).unwrap();
        let wanted = Program {
            package: "lb-core".into(),
            target: "lb_core".into(),
            folder: "/w/lb-core".into(),
            executable: "/t/deps/lb_core-1".into(),
        };
        assert_eq!(found, wanted);
        assert_eq!(program(&line.replace("/w/lb-core/", "/w/tests/")).unwrap().package, "weir-tests");
        // A library is no test program, nor is the end of the build.
        assert_eq!(program(&line.replace("true", "false")), None);
        assert_eq!(program(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(program("warning: nothing of cargo's"), None);
    }

    #[test]
    fn the_test_program_of_this_test_has_its_packages_name() {
        assert_eq!(name_of(Path::new(env!("CARGO_MANIFEST_DIR"))).as_deref(), Some("xtask"));
    }
}
