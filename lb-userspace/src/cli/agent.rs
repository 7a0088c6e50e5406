//! `weir agent`: runs the agent, or removes what it put in place.

use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, Failure};
use crate::{
    agent::{self, CONFIG_DEFAULT, Options, StartError},
    model,
    store::FileStore,
    telemetry::log::{self, Format},
};

/// Arguments of `weir agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// Remove programs, maps, VIP addresses and the socket, which stops forwarding, and end
    #[arg(long, conflicts_with = "check")]
    unload: bool,
    /// Check the configuration and end; the same as `weir config check`
    #[arg(long)]
    check: bool,
    /// Least important lines that are logged: error, warn, info, debug or trace; RUST_LOG overrides it
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
    /// Form of log lines: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
}

/// Runs `weir agent`.
///
/// # Errors
/// A [`Failure`] with exit code 3 if the configuration is invalid, else what failed.
pub fn run(args: &AgentArgs) -> anyhow::Result<Exit> {
    if args.check {
        return check(args);
    }
    log::start(args.log_format, &args.log).map_err(|e| Failure::new(Exit::Usage, e.to_string()))?;
    let options = Options { config: args.config.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended =
        runtime.block_on(async { if args.unload { agent::unload(options).await } else { agent::run(options).await } });
    // A log that is written for a machine ends with a machine-readable line too.
    match ended {
        Ok(()) => Ok(Exit::Ok),
        Err(error) => {
            if args.log_format == Format::Json {
                tracing::error!("{error:#}");
            }
            Err(match error {
                StartError::Config { .. } => Failure::new(Exit::ConfigInvalid, error.to_string()).into(),
                StartError::Other(error) => error,
            })
        }
    }
}

fn check(args: &AgentArgs) -> anyhow::Result<Exit> {
    let text = FileStore::new(&args.config).read()?;
    let checked = model::check(&args.config.display().to_string(), &text.text);
    eprint!("{}", checked.render(&text.text, false));
    eprintln!("{}", checked.summary());
    Ok(if checked.config.is_some() { Exit::Ok } else { Exit::ConfigInvalid })
}
