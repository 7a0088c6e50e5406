//! `weir`'s command line: noun, then verb; one file per subcommand.
//!
//! Owns: arguments, rendering, exit codes. Refuses to know: how an answer came about; it asks the agent through
//! [`crate::api::client`], or a pure module. Completions and man pages are made from the same definitions.

mod agent;
mod backend;
mod config;
mod decap;
mod dns;
mod doctor;
mod drain;
pub mod exit;
mod explain;
mod flow;
mod generate;
mod health;
mod import;
mod lock;
mod node;
mod orchestrator;
mod plan;
mod pool;
#[cfg(test)]
mod sample;
mod service;
mod setup_help;
mod shell;
mod stats;
mod status;
mod store;
mod table;
mod unit;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use exit::Exit;
use shell::{Format, Global, Shell};

/// weir, an XDP layer 4 load balancer
#[derive(Debug, Parser)]
#[command(name = "weir", version, after_help = exit::HELP, max_term_width = 120, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent, which loads the data plane and keeps it true to the configuration
    Agent(agent::AgentArgs),
    /// Services: what clients connect to
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Backends: who answers, and how to take one out and bring it back
    #[command(subcommand)]
    Backend(backend::BackendCommand),
    /// The configuration: check, show, compare, apply, import; and the past of a store
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Nodes that share a store
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Pools of addresses that nodes lease from the store
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Show what applying a configuration would do to slots and flows, without doing it
    Plan(config::Text),
    /// Recorded flows: list them, find one, forget them
    #[command(subcommand)]
    Flow(flow::FlowCommand),
    /// Health of the backends
    #[command(subcommand)]
    Health(health::HealthCommand),
    /// The fleet's control plane: what it sees, what it decided, what its rules would decide
    #[command(subcommand)]
    Orchestrator(orchestrator::OrchestratorCommand),
    /// What runs on this node, and how its last reload went
    Status(status::StatusArgs),
    /// Packets by reason, service and backend; rates with --watch
    Stats(stats::StatsArgs),
    /// Remote locks for scripts: run a command under a lock over one store or a majority of several
    Lock(lock::LockArgs),
    /// Take packets out of IP-in-IP tunnels, on a backend whose kernel has none
    Decap(decap::DecapArgs),
    /// The authoritative DNS server of a fleet: names to the nodes that are ready
    #[command(subcommand)]
    Dns(dns::DnsCommand),
    /// Show what becomes of a packet, step by step, by the maps as they are now
    Explain(explain::Explain),
    /// Check this machine: kernel, privileges, interfaces, ways to backends; and say what to do
    Doctor(doctor::Doctor),
    /// Print a completion script for a shell
    Completions(generate::Completions),
    /// Write the man pages into a folder
    Man(generate::Man),
}

/// Runs the command line `arguments` (the program's name first) and says how to end.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" that end well; a closed output is nobody's concern here.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    let shell = Shell::new(&cli.global);
    match run(&shell, &cli.command) {
        Ok(code) => code,
        Err(error) => {
            let text = match shell.format {
                Format::Table => exit::as_text(&error),
                Format::Json => shell::json(&exit::as_api_error(&error)).unwrap_or_else(|_| exit::as_text(&error)),
            };
            eprint!("{text}");
            exit::code_of(&error).into()
        }
    }
}

fn run(shell: &Shell, command: &Command) -> anyhow::Result<ExitCode> {
    let exit = match command {
        Command::Agent(args) => agent::run(args)?,
        Command::Service(command) => service::run(shell, command)?,
        Command::Node(command) => done(node::run(shell, command))?,
        Command::Backend(command) => backend::run(shell, command)?,
        Command::Config(command) => config::run(shell, command)?,
        Command::Pool(command) => pool::run(shell, command)?,
        Command::Plan(text) => plan::run(shell, text)?,
        Command::Flow(command) => flow::run(shell, command)?,
        Command::Health(command) => done(health::run(shell, command))?,
        Command::Orchestrator(command) => orchestrator::run(shell, command)?,
        Command::Status(args) => done(status::run(shell, args))?,
        Command::Stats(args) => done(stats::run(shell, args))?,
        // The only one that can end with a number which is not ours.
        Command::Lock(args) => return lock::run(shell, args),
        Command::Decap(args) => done(decap::run(shell, args))?,
        Command::Dns(command) => dns::run(shell, command)?,
        Command::Explain(args) => done(explain::run(shell, args))?,
        Command::Doctor(args) => doctor::run(shell, args)?,
        Command::Completions(args) => done(generate::completions(shell, args, Cli::command()))?,
        Command::Man(args) => done(generate::man(args, Cli::command()))?,
    };
    Ok(exit.into())
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<Exit> {
    result.map(|()| Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_hold() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} has no help");
            for argument in command.get_arguments().filter(|a| a.get_id() != "help" && a.get_id() != "version") {
                assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
            }
            for sub in command.get_subcommands() {
                check(sub, &path);
            }
        }
        check(&Cli::command(), "");
    }

    #[test]
    fn watching_takes_an_optional_interval() {
        for (arguments, good) in [
            (vec!["weir", "stats", "--watch"], true),
            (vec!["weir", "service", "list", "--watch=0.5", "-o", "json"], true),
            (vec!["weir", "-o", "json", "health", "list", "--failing"], true),
            (vec!["weir", "stats", "--watch=0"], false),
            (vec!["weir", "backend", "weight", "web/10.0.0.1:80", "1001"], false),
            (vec!["weir", "backend", "weight", "web/10.0.0.1:80", "1000"], true),
            (vec!["weir", "service", "create", "web", "vip=192.0.2.1", "--backend", "10.0.0.1", "--dry-run"], true),
            (vec!["weir", "service", "set", "web", "algo=maglev", "--wait", "--expect-rev", "42-1a2b"], true),
            (vec!["weir", "backend", "add", "web/10.0.0.1:80", "--weight", "1001"], false),
            (vec!["weir", "config", "rollback", "42", "--wait=5", "-m", "back"], true),
            (vec!["weir", "config", "rollback", "yesterday"], false),
            (vec!["weir", "config", "show"], true),
            (vec!["weir", "backend", "remove", "web/10.0.0.1:80", "--now"], true),
            (vec!["weir", "pool", "set", "front", "192.0.2.0/28", "--wait"], true),
            (vec!["weir", "pool", "set", "front", "192.0.2.0"], false),
            (vec!["weir", "nonsense"], false),
        ] {
            assert_eq!(Cli::try_parse_from(&arguments).is_ok(), good, "{arguments:?}");
        }
    }
}
