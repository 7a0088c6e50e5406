//! `weir orchestrator`: the fleet's control plane, what it sees and decides, and what its rules would decide.

mod run;
mod show;
mod simulate;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{
    exit::{Exit, Failure},
    shell::{Format, Shell, json},
};
use crate::{
    api::client::Client,
    model::{self, orchestrator::OrchestratorConfig},
    orchestrator::{
        decision::Decision,
        report::{PATH_DECISIONS, PATH_STATUS, PATH_STEP_DOWN, SOCKET_DEFAULT, Status},
    },
};

/// Where the configuration is unless another place is given.
const CONFIG_DEFAULT: &str = "/etc/weir/orchestrator.toml";

/// `weir orchestrator`.
#[derive(Debug, Subcommand)]
pub enum OrchestratorCommand {
    /// Run an orchestrator
    Run(run::Run),
    /// Check the configuration: every mistake at its line
    Check(File),
    /// The fleet as one orchestrator sees it: master, checks, nodes, what is being done
    Status(At),
    /// What was decided, newest first, with the values that led to it
    Decisions(Decisions),
    /// Play a series of values through a scaling rule and show what would be decided
    Simulate(simulate::Simulate),
    /// Make the master give its mastership to another orchestrator
    StepDown(At),
}

/// The configuration file.
#[derive(Args, Clone, Debug)]
pub struct File {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
}

/// The orchestrator that is asked.
#[derive(Args, Clone, Debug)]
pub struct At {
    /// The orchestrator's socket
    #[arg(long, env = "WEIR_ORCHESTRATOR_SOCKET", default_value = SOCKET_DEFAULT, value_name = "PATH")]
    at: PathBuf,
}

/// Arguments of `decisions`.
#[derive(Args, Debug)]
pub struct Decisions {
    #[command(flatten)]
    at: At,
    /// So many at most
    #[arg(long, default_value_t = 20, value_name = "NUMBER")]
    limit: u32,
}

/// Runs `weir orchestrator`.
///
/// # Errors
/// A [`Failure`], or the API's errors.
pub fn run(shell: &Shell, command: &OrchestratorCommand) -> anyhow::Result<Exit> {
    match command {
        OrchestratorCommand::Run(args) => return run::run(args),
        OrchestratorCommand::Check(file) => return check(shell, file),
        OrchestratorCommand::Status(at) => {
            let status: Status = ask(at, async |client| client.get(PATH_STATUS).await)?;
            shell.show(&status, |status| show::status(status, shell.colour))?;
        }
        OrchestratorCommand::Decisions(args) => {
            let path = format!("{PATH_DECISIONS}?limit={}", args.limit);
            let decisions: Vec<Decision> = ask(&args.at, async |client| client.get(&path).await)?;
            shell.show(&decisions, |decisions| show::decisions(decisions, shell.colour))?;
        }
        OrchestratorCommand::Simulate(args) => simulate::run(shell, args)?,
        OrchestratorCommand::StepDown(at) => {
            let answer: serde_json::Value =
                ask(at, async |client| client.post(PATH_STEP_DOWN, &serde_json::json!({})).await)?;
            match shell.format {
                Format::Json => shell.print(&json(&answer)?)?,
                Format::Table => {
                    shell.print("it gives its mastership back; another orchestrator takes it within seconds\n")?;
                }
            }
        }
    }
    Ok(Exit::Ok)
}

fn ask<T>(at: &At, ask: impl AsyncFnOnce(&Client) -> Result<T, crate::api::client::ClientError>) -> anyhow::Result<T> {
    let client = Client::new(&at.at);
    let asked = super::shell::block_on(async { Ok(ask(&client).await?) });
    asked.with_context(|| format!("cannot ask the orchestrator at {}", at.at.display()))
}

/// Reads the configuration, or fails with all findings.
fn config(file: &File) -> anyhow::Result<OrchestratorConfig> {
    let name = file.config.display().to_string();
    let text = std::fs::read_to_string(&file.config).with_context(|| format!("cannot read {name}"))?;
    let checked = model::parse::orchestrator::check(&name, &text);
    let shown = checked.render(&text, false);
    let summary = checked.summary();
    checked.config.ok_or_else(|| Failure::new(Exit::ConfigInvalid, format!("{shown}\n{summary}")).into())
}

fn check(shell: &Shell, file: &File) -> anyhow::Result<Exit> {
    let name = file.config.display().to_string();
    let text = std::fs::read_to_string(&file.config).with_context(|| format!("cannot read {name}"))?;
    let checked = model::parse::orchestrator::check(&name, &text);
    match shell.format {
        Format::Json => shell.print(&json(&checked.entries(&text))?)?,
        Format::Table => {
            shell.print(&checked.render(&text, shell.colour))?;
            shell.print(&format!("{}\n", checked.summary()))?;
        }
    }
    Ok(if checked.config.is_some() { Exit::Ok } else { Exit::ConfigInvalid })
}
