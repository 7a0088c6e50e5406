//! `cargo xtask bench`: builds the benchmark optimised and runs it on this terminal.
//!
//! Owns: how it is started. What is measured, and how, is `tests/benches/datapath`.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{capability, capability::Capability, root};

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Fewer packets, rounds and combinations: under a minute, good for a look
    #[arg(long)]
    quick: bool,
    /// Also write the results there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs it. Timings never fail it; a machine on which it cannot run does.
pub fn run(args: &Args) -> Result<()> {
    if let Some(reason) = capability::missing(&[Capability::Root]) {
        bail!("the bench needs what this machine lacks: {reason}");
    }
    let mut command = Command::new("cargo");
    command.args(["bench", "--quiet", "-p", "weir-tests", "--bench", "datapath", "--"]).current_dir(root());
    if args.quick {
        command.arg("--quick");
    }
    if let Some(path) = &args.json {
        // Relative to where the command was typed, not to the package, where cargo starts a benchmark.
        command.arg("--json").arg(env::current_dir().context("there is no current folder")?.join(path));
    }
    println!("building the benchmark, optimised, then measuring");
    let status = command.status().context("starting cargo")?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(())
}
