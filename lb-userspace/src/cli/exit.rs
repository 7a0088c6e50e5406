//! Exit codes, and how an error becomes one.
//!
//! Owns: the numbers (scripts rely on them), the help text that lists them, and the words on standard error.

use std::process::ExitCode;

use crate::api::{ApiError, Diagnostic, client::ClientError};

/// How `weir` ends. The numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Any failure without a number of its own; `doctor`: a check failed.
    Failure = 1,
    /// The command line is wrong (clap's own number).
    Usage = 2,
    /// A configuration is invalid.
    ConfigInvalid = 3,
    /// The agent or the store cannot be reached or does not answer.
    NotReachable = 4,
    /// The agent or the store refused the request; `--wait`: a node refused the change.
    Refused = 5,
    /// No such service or backend; `flow get`: no record of the flow; `lock inspect`: nobody holds it.
    NotFound = 6,
    /// `backend drain --wait`: its time ended the drain, and connections are left. `--wait` of a change of the store: not every
    /// node has it.
    TimedOut = 7,
    /// `lock`: held by another, or too few nodes could vote.
    NotAcquired = 75,
    /// `lock`: it was held and is not any more.
    LockLost = 76,
    /// `lock run`: any failure of its own that has no other number, for the command's codes are passed on.
    RunFailed = 125,
    /// `lock run`: the command cannot be executed.
    NotExecutable = 126,
    /// `lock run`: the command is not found.
    NoCommand = 127,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What `weir --help` and the man page say about exit codes.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  failure; for `weir doctor`: at least one check failed
  2  the command line is wrong
  3  the configuration is invalid
  4  the agent, the store, or every lock node, cannot be reached or does not answer
  5  the agent or the store refused the request; with --wait: a node refused the change
  6  no such service or backend; for `weir flow get`: the flow is not recorded; for `weir lock inspect`: not held
  7  `weir backend drain --wait`: the drain's time is over and connections are left; with --wait on a change of a store:
     a live node has not applied it in time, or fell out of its lease meanwhile
  75, 76, 125 to 127 and what a command ended with: `weir lock --help`";

/// An error of the command line's own that knows its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What failed, and where.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Findings about a configuration.
    pub diagnostics: Vec<Diagnostic>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, diagnostics: Vec::new() }
    }

    /// The same with advice.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// The exit code that fits `error`.
pub fn code_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.exit;
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return match error {
                ClientError::NotReachable { .. }
                | ClientError::NoPermission { .. }
                | ClientError::TimedOut { .. }
                | ClientError::Broken { .. } => Exit::NotReachable,
                ClientError::Unreadable { .. } => Exit::Failure,
                ClientError::Refused { status: 404, .. } => Exit::NotFound,
                ClientError::Refused { status: 422, .. } => Exit::ConfigInvalid,
                ClientError::Refused { status: 500.., .. } => Exit::Failure,
                ClientError::Refused { .. } => Exit::Refused,
            };
        }
    }
    Exit::Failure
}

/// `error` in the API's own form: what `-o json` prints on standard error.
pub fn as_api_error(error: &anyhow::Error) -> ApiError {
    let mut out = ApiError { error: format!("{error:#}"), ..ApiError::default() };
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            out.hint.clone_from(&failure.hint);
            out.diagnostics.clone_from(&failure.diagnostics);
        }
        match cause.downcast_ref::<ClientError>() {
            Some(ClientError::Refused { error, .. }) => {
                out.hint.clone_from(&error.hint);
                out.diagnostics.clone_from(&error.diagnostics);
            }
            Some(ClientError::NotReachable { socket, .. }) => {
                out.hint = Some(format!(
                    "start it with `weir agent --config FILE`, or name its socket: --socket PATH (now {})",
                    socket.display()
                ));
            }
            _ => {}
        }
    }
    out
}

/// `error` as lines for standard error, with its advice and findings.
pub fn as_text(error: &anyhow::Error) -> String {
    let error = as_api_error(error);
    let mut out = String::new();
    for diagnostic in &error.diagnostics {
        out.push_str(&diagnostic.rendered);
        out.push_str("\n\n");
    }
    out.push_str(&format!("weir: {}\n", error.error));
    if let Some(hint) = error.hint {
        out.push_str(&format!("hint: {hint}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16) -> anyhow::Error {
        let error = ApiError { error: "no".into(), hint: Some("do".into()), diagnostics: Vec::new() };
        anyhow::Error::from(ClientError::Refused { status, error }).context("cannot drain web/10.0.0.1:80")
    }

    #[test]
    fn each_refusal_has_its_code() {
        for (status, exit) in [
            (400, Exit::Refused),
            (404, Exit::NotFound),
            (409, Exit::Refused),
            (422, Exit::ConfigInvalid),
            (500, Exit::Failure),
            (503, Exit::Failure),
        ] {
            assert_eq!(code_of(&refused(status)), exit, "{status}");
        }
        let failure = Failure::new(Exit::Usage, "no such packet");
        assert_eq!(code_of(&anyhow::Error::from(failure).context("reading")), Exit::Usage);
        assert_eq!(code_of(&anyhow::anyhow!("other")), Exit::Failure);
    }

    #[test]
    fn the_agents_advice_reaches_the_user() {
        assert_eq!(as_text(&refused(409)), "weir: cannot drain web/10.0.0.1:80: no\nhint: do\n");
    }

    #[test]
    fn the_help_lists_every_code() {
        for exit in [
            Exit::Ok,
            Exit::Failure,
            Exit::Usage,
            Exit::ConfigInvalid,
            Exit::NotReachable,
            Exit::Refused,
            Exit::NotFound,
            Exit::TimedOut,
        ] {
            assert!(HELP.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
        }
    }
}
