//! `cargo xtask bench`: builds the benchmark optimised and runs it on this terminal.
//!
//! Owns: how it is started. What is measured, and how, is `tests/benches/datapath`.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{capability, capability::Capability, root};

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Fewer packets, rounds and combinations: good for a look
    #[arg(long)]
    quick: bool,
    /// Measure one part alone: modes, flows, floods or control
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Also write the results there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw cost against flows there
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure nothing, but compare two runs that --json wrote
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], conflicts_with_all = ["quick", "only", "json", "svg"])]
    compare: Option<Vec<PathBuf>>,
}

/// Runs it. Timings never fail it; a machine on which it cannot run does.
pub fn run(args: &Args) -> Result<()> {
    // Comparing needs nothing.
    if args.compare.is_none()
        && let Some(reason) = capability::missing(&[Capability::Root])
    {
        bail!("the bench needs what this machine lacks: {reason}");
    }
    let mut command = Command::new("cargo");
    command.args(["bench", "--quiet", "-p", "weir-tests", "--bench", "datapath", "--"]).current_dir(root());
    if args.quick {
        command.arg("--quick");
    }
    if let Some(part) = &args.only {
        command.args(["--only", part]);
    }
    // Relative to where the command was typed, not to the package, where cargo starts a benchmark.
    let here = env::current_dir().context("there is no current folder")?;
    for (option, path) in [("--json", &args.json), ("--svg", &args.svg)] {
        if let Some(path) = path {
            command.arg(option).arg(here.join(path));
        }
    }
    if let Some(files) = &args.compare {
        command.arg("--compare").args(files.iter().map(|file| here.join(file)));
    }
    if args.compare.is_none() {
        println!("building the benchmark, optimised, then measuring");
    }
    let status = command.status().context("starting cargo")?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(())
}
