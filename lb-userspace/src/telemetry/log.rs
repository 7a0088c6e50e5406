//! Log lines of long-running commands: text for people or JSON for collectors, on standard error.
//!
//! Invariant: secrets never reach a log line; the types that hold them show nothing of themselves.

use std::{io::IsTerminal as _, str::FromStr};

use tracing_subscriber::{EnvFilter, fmt::time::SystemTime};

/// Environment variable that overrides the level: a level, or directives as in `info,lb_userspace::health=debug`.
pub const LEVEL_VARIABLE: &str = "RUST_LOG";

/// Form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One line of text, coloured only on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// A word that names no [`Format`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no log format: use text or json")]
pub struct FormatError(String);

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(word: &str) -> Result<Self, FormatError> {
        match word {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(FormatError(word.to_owned())),
        }
    }
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not one.
    #[error("`{directives}` is no log level: {source}; use error, warn, info, debug or trace")]
    Level {
        /// What was given.
        directives: String,
        /// What the parser said.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something in this process already takes the log lines.
    #[error("logging was started twice")]
    Twice,
}

/// Sends log lines at `level` and above to standard error; `RUST_LOG` overrides `level`.
///
/// # Errors
/// [`LogError`]: a level that cannot be read, or a second start.
pub fn start(format: Format, level: &str) -> Result<(), LogError> {
    let directives = match std::env::var(LEVEL_VARIABLE) {
        Ok(directives) if !directives.is_empty() => directives,
        _ => level.to_owned(),
    };
    let filter = EnvFilter::builder().parse(&directives).map_err(|source| LogError::Level { directives, source })?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_timer(SystemTime)
        .with_target(false)
        .with_ansi(colour && format == Format::Text);
    match format {
        Format::Text => lines.try_init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    }
    .map_err(|_| LogError::Twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read_by_name() {
        assert_eq!("text".parse(), Ok(Format::Text));
        assert_eq!("json".parse(), Ok(Format::Json));
        assert_eq!("xml".parse::<Format>(), Err(FormatError("xml".into())));
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        let error = EnvFilter::builder().parse("lb_userspace=loud");
        assert!(error.is_err());
    }
}
