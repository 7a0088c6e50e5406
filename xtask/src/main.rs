//! `cargo xtask`: everything a developer of weir runs.
//!
//! Owns the command line; each command lives in the module that carries its name.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, demo, dist, lab, setup, test, tidy};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Everything a developer of weir runs", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find what is missing for building and for the lab, and install it, announcing each thing first
    Setup(setup::Args),
    /// The main job, shown and judged: real connections balanced, a backend and the agent killed under load
    Demo(demo::Args),
    /// The lab for playing: network namespaces with a client, the node and its backends
    Lab(lab::command::Args),
    /// The datagram server of a backend
    #[command(hide = true)]
    LabEcho(lab::echo::Args),
    /// What the orchestrators of the fleet's lab call
    #[command(hide = true)]
    LabExecutor(lab::fleet::executor::Args),
    /// What the fleet's lab tells Prometheus about its backends
    #[command(hide = true)]
    LabVitals(lab::fleet::vitals::Args),
    /// Run everything that is tested, in tiers with their times
    Test(test::Args),
    /// Measure weir's program against an empty and a minimal one, and the control side
    Bench(bench::Args),
    /// Make a release: one tarball for machines without Rust
    Dist(dist::Args),
    /// Check the rules that the compiler does not: import directions, file lengths, module docs
    Tidy,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Setup(args) => setup::run(&args),
        Command::Demo(args) => demo::command(&args),
        Command::Lab(args) => lab::command::run(&args),
        Command::LabEcho(args) => lab::echo::run(&args),
        Command::LabExecutor(args) => lab::fleet::executor::run(&args),
        Command::LabVitals(args) => lab::fleet::vitals::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Tidy => tidy::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
