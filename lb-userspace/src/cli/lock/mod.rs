//! `weir lock`: locks of `lb-locks` for shells and scripts; one file per subcommand.
//!
//! Owns: how a lock is asked for on the command line, exit codes of locks, and ending only when what runs in the background
//! has reached the nodes. Refuses to know: how locks work.

mod acquire;
mod extend;
mod family;
mod handle;
mod inspect;
mod list;
mod nodes;
mod release;
mod run;
mod stores;
mod torture;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use lb_locks::{Guard, LockError, Request};

use super::{
    exit::{Exit, Failure},
    shell::Shell,
};
use crate::model;
use stores::Place;

const HELP: &str = "\
Exit codes of `weir lock`, beside the common ones:
   75  not acquired: held by another, or too few nodes could vote; also: not extended, but still held; try again
   76  the lock was lost
  125  `run` only: something else kept the command from running under the lock
  126  `run` only: the command cannot be executed
  127  `run` only: the command is not found
`run` ends with its command's own code otherwise, 128 + N if signal N ended the command.

New nodes, and nodes that restarted or were emptied, keep out of votes for the longest lifetime (--max-ttl); `weir lock nodes
bootstrap` ends that by your word that nothing is held.

The lock is a lease: a process that is stopped for longer than it lasts does not know that it lost it. Where that would do
harm use --fence, and let the resource refuse tokens that are older than the newest it saw.";

/// `weir lock`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct LockArgs {
    #[command(subcommand)]
    command: LockCommand,
}

#[derive(Debug, Subcommand)]
enum LockCommand {
    /// Run a command under a lock, and stop it before the lock is lost
    Run(run::Run),
    /// Take a lock and leave it held: prints a handle for `extend` and `release`, or writes it into a file
    Acquire(acquire::Acquire),
    /// Give back a lock that `acquire` took
    Release(release::Release),
    /// Begin the lifetime of a lock that `acquire` took anew, if it is still held
    Extend(extend::Extend),
    /// List locks that are held or waited for
    List(list::List),
    /// Show who holds and who waits for one lock, node by node
    Inspect(inspect::Inspect),
    /// The nodes that hold the locks: what they say of themselves, first set-up, changes of their list
    #[command(subcommand)]
    Nodes(nodes::Nodes),
    /// Let processes fight for a lock while its nodes are broken on purpose, and check that exclusion held
    Torture(torture::Torture),
    /// One process of `torture`
    #[command(hide = true)]
    TortureWorker(torture::Worker),
}

/// Runs `weir lock ...`.
pub fn run(shell: &Shell, args: &LockArgs) -> anyhow::Result<ExitCode> {
    let exit = match &args.command {
        LockCommand::Run(args) => return run::run(args),
        LockCommand::Acquire(args) => acquire::run(shell, args)?,
        LockCommand::Release(args) => release::run(shell, args)?,
        LockCommand::Extend(args) => extend::run(shell, args)?,
        LockCommand::List(args) => list::run(shell, args)?,
        LockCommand::Inspect(args) => inspect::run(shell, args)?,
        LockCommand::Nodes(args) => nodes::run(shell, args)?,
        LockCommand::Torture(args) => return torture::run(shell, args),
        LockCommand::TortureWorker(args) => torture::worker(args)?,
    };
    Ok(exit.into())
}

/// What is asked for.
#[derive(Args, Clone, Debug)]
pub struct Wanted {
    /// The lock
    name: String,
    /// Lifetime without an extension: 500ms, 30s, 1m30s
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    ttl: Duration,
    /// How long to try; once unless given
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0s")]
    wait: Duration,
    /// With a fencing token, which grows with each grant; Redis nodes need `appendonly yes` and `appendfsync always`
    #[arg(long)]
    fence: bool,
    /// Shared with other readers; without it the lock is exclusive
    #[arg(long)]
    shared: bool,
    /// In the order in which clients came: exact over one store, best effort over several
    #[arg(long)]
    first_come: bool,
}

impl Wanted {
    fn request(&self) -> Request {
        let mut request = Request::new(&self.name, self.ttl).wait(self.wait);
        if self.fence {
            request = request.fenced();
        }
        if self.shared {
            request = request.shared();
        }
        if self.first_come {
            request = request.first_come();
        }
        request
    }
}

/// A duration as configurations write it.
fn duration(text: &str) -> Result<Duration, String> {
    model::duration::parse(text).ok_or_else(|| "expected a duration such as 500ms, 30s or 1m30s".to_owned())
}

/// Takes the lock, or says why not and what helps.
async fn acquire(place: &Place, request: Request) -> Result<Guard, Failure> {
    place.refresh().await;
    place.lock.acquire(request).await.map_err(|error| failure(&error))
}

/// `error` with its exit code.
fn failure(error: &LockError) -> Failure {
    let exit = match error {
        LockError::Contended { .. } | LockError::NoQuorum { .. } | LockError::Expired { .. } => Exit::NotAcquired,
        LockError::Lost { .. } => Exit::LockLost,
        LockError::FenceUnavailable { .. } | LockError::Config(_) => Exit::ConfigInvalid,
    };
    let failure = Failure::new(exit, error.to_string());
    let text = failure.message.as_str();
    let quarantined = text.contains("in quarantine for") || text.contains("has to be repaired");
    let hint = match error {
        LockError::NoQuorum { .. } if quarantined => {
            "wait, or say `weir lock nodes bootstrap` if these nodes are new and nothing is held"
        }
        LockError::NoQuorum { .. } => "`weir lock nodes list` shows what each node says",
        LockError::Contended { .. } => "--wait TIME tries for longer; `weir lock inspect NAME` shows the holder",
        LockError::Expired { .. } => "ask for a longer --ttl",
        LockError::FenceUnavailable { .. } => "set the node up so that its counter survives, or do without --fence",
        _ => return failure,
    };
    failure.hint(hint)
}

/// Runs `work` and then lets go on, for a bounded time, what runs in the background: releases of what was not acquired after
/// all, and those that were sent to nodes beyond the majority.
fn settled<T>(place: Place, work: impl AsyncFnOnce(&Place) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let patience = place.node_timeout * 2 + Duration::from_millis(20);
    let result = runtime.block_on(work(&place));
    drop(place);
    runtime.block_on(async {
        let settle = async {
            while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        // A node that stays silent is not waited for any longer than in the protocol itself.
        let _ = tokio::time::timeout(patience, settle).await;
    });
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_lists_the_codes_of_locks() {
        for exit in [Exit::NotAcquired, Exit::LockLost, Exit::RunFailed, Exit::NotExecutable, Exit::NoCommand] {
            assert!(HELP.lines().any(|line| line.trim_start().starts_with(&(exit as u8).to_string())), "{exit:?}");
        }
    }

    #[test]
    fn each_error_has_its_code_and_says_what_helps() {
        let report = lb_locks::Report::default();
        let name = || "n".to_owned();
        for (error, exit, hint) in [
            (LockError::Contended { name: name(), report: report.clone() }, Exit::NotAcquired, Some("--wait")),
            (LockError::NoQuorum { name: name(), report: report.clone() }, Exit::NotAcquired, Some("nodes list")),
            (LockError::Lost { name: name(), why: "x", report }, Exit::LockLost, None),
            (LockError::FenceUnavailable { why: name() }, Exit::ConfigInvalid, Some("--fence")),
            (LockError::Config(name()), Exit::ConfigInvalid, None),
        ] {
            let failure = failure(&error);
            assert_eq!(failure.exit, exit, "{error}");
            assert_eq!(failure.hint.is_some(), hint.is_some(), "{error}");
            assert!(hint.is_none_or(|part| failure.hint.unwrap_or_default().contains(part)), "{error}");
        }
        let quarantined = lb_locks::NodeOutcome::Refused(lb_locks::command::Refusal::Quarantined { remaining_ms: 9 });
        let report = lb_locks::Report(vec![("a".to_owned(), quarantined)]);
        let hint = failure(&LockError::NoQuorum { name: name(), report }).hint.unwrap_or_default();
        assert!(hint.contains("nodes bootstrap"), "{hint}");
    }
}
