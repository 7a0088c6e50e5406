//! What every command shares: the format asked for, the client, standard output, and watching.
//!
//! The only file of the command line that looks at the terminal, the environment or the clock.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::api::{
    SOCKET_DEFAULT,
    client::{Client, ClientError},
};

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for people.
    #[default]
    Table,
    /// JSON for programs: raw numbers, stable names.
    Json,
}

/// Options that every command takes.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Tables for people or JSON for programs
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// The agent's socket
    #[arg(long, global = true, env = "WEIR_SOCKET", default_value = SOCKET_DEFAULT, value_name = "PATH")]
    pub socket: PathBuf,
}

/// `--watch`.
#[derive(Args, Clone, Copy, Debug)]
pub struct Watch {
    /// Show it again every SECONDS (2 unless given) until interrupted
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2",
        value_parser = interval
    )]
    pub watch: Option<Duration>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err("between 0.1 and 3600 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Where a command writes, and whom it asks.
#[derive(Clone, Debug)]
pub struct Shell {
    /// The format asked for.
    pub format: Format,
    /// Whether colours are wanted: a terminal, no `NO_COLOR`, and not a dumb one.
    pub colour: bool,
    /// Whether standard output is a terminal.
    pub terminal: bool,
    /// The agent.
    pub client: Client,
}

impl Shell {
    /// The shell for this process.
    pub fn new(global: &Global) -> Self {
        let terminal = io::stdout().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self {
            format: global.output,
            colour: terminal && !refused && !dumb,
            terminal,
            client: Client::new(&global.socket),
        }
    }

    /// Writes `text` to standard output. A reader that went away (`| head`) is no failure.
    pub fn print(&self, text: &str) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            result => result.context("cannot write to standard output"),
        }
    }

    /// Writes `value` in the format asked for.
    pub fn show<T: Serialize>(&self, value: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        match self.format {
            Format::Table => self.print(&table(value)),
            Format::Json => self.print(&json(value)?),
        }
    }

    /// Runs `ask` once, or again and again with `watch`, and shows each answer; `table` also gets the answer before.
    ///
    /// While watching, JSON is one line per answer, and an agent that is being restarted is waited for.
    pub fn repeat<T: Serialize>(
        &self,
        watch: Watch,
        mut ask: impl AsyncFnMut(&Client) -> Result<T, ClientError>,
        mut table: impl FnMut(&T, Option<&T>) -> String,
    ) -> anyhow::Result<()> {
        let Some(every) = watch.watch else {
            let answer = self.ask(ask)?;
            return self.show(&answer, |answer| table(answer, None));
        };
        block_on(async {
            let mut before: Option<T> = None;
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                match ask(&self.client).await {
                    Ok(answer) => {
                        match self.format {
                            Format::Json => self.print(&format!("{}\n", serde_json::to_string(&answer)?))?,
                            Format::Table => self.redraw(&table(&answer, before.as_ref()))?,
                        }
                        before = Some(answer);
                    }
                    Err(error) if before.is_none() => return Err(error.into()),
                    Err(error @ (ClientError::NotReachable { .. } | ClientError::Broken { .. })) => {
                        // What counted before the restart says nothing about rates after it.
                        if self.format == Format::Table {
                            self.redraw(&format!("{error}\nwaiting for it\n"))?;
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }

    /// Runs one request.
    pub fn ask<T>(&self, ask: impl AsyncFnOnce(&Client) -> Result<T, ClientError>) -> anyhow::Result<T> {
        block_on(async { Ok(ask(&self.client).await?) })
    }

    fn redraw(&self, text: &str) -> anyhow::Result<()> {
        // Home and clear; on a pipe the samples just follow each other, a blank line between them.
        if self.terminal { self.print(&format!("\x1b[H\x1b[2J{text}")) } else { self.print(&format!("{text}\n")) }
    }
}

/// `value` as indented JSON with a final newline.
pub fn json<T: Serialize>(value: &T) -> anyhow::Result<String> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write the answer as JSON")?;
    text.push('\n');
    Ok(text)
}

/// Seconds since 1970.
pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Runs `future` to its end on this thread.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?
        .block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_limits() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "x", "0", "-1", "nan", "inf", "1e9"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
