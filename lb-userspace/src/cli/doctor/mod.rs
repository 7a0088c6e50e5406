//! `weir doctor`: is this machine ready, and if not, what is to be done?
//!
//! [`host`], [`network`] and [`store`] judge, [`gather`] collects; this file shows the findings.

mod gather;
mod host;
mod network;
mod store;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{
    exit::Exit,
    shell::Shell,
    table::{Tone, printable, tinted},
};

/// `weir doctor`.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// Configuration whose interfaces and services are checked; the agent's own if it answers
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could, or may bite later.
    Warn,
    /// Does not work.
    Fail,
}

/// Result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: String,
    /// How it ended.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(check: impl Into<String>, level: Level, found: impl Into<String>) -> Self {
        Self { check: check.into(), level, found: found.into(), advice: None }
    }

    fn ok(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, found)
    }

    fn warn(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(check, Level::Warn, found)
    }

    fn fail(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self::new(check, Level::Fail, found)
    }

    fn advice(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// Runs `weir doctor`; [`Exit::Failure`] if any check failed.
pub fn run(shell: &Shell, args: &Doctor) -> anyhow::Result<Exit> {
    let findings = gather::findings(shell, args.config.as_deref())?;
    shell.show(&findings, |findings| render(findings, shell.colour))?;
    let failed = findings.iter().any(|f| f.level == Level::Fail);
    Ok(if failed { Exit::Failure } else { Exit::Ok })
}

fn render(findings: &[Finding], colour: bool) -> String {
    let width = findings.iter().map(|f| f.check.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for finding in findings {
        let (word, tone) = match finding.level {
            Level::Ok => ("OK  ", Tone::Good),
            Level::Warn => ("WARN", Tone::Warn),
            Level::Fail => ("FAIL", Tone::Bad),
        };
        let word = if colour { tinted(word, tone) } else { word.into() };
        out.push_str(&format!("{word}  {:<width$}  {}\n", printable(&finding.check), printable(&finding.found)));
        if let Some(advice) = &finding.advice {
            out.push_str(&format!("      {:<width$}  -> {}\n", "", printable(advice)));
        }
    }
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    out.push_str(&format!(
        "\n{} checks: {} ok, {} warnings, {} failed\n",
        findings.len(),
        count(Level::Ok),
        count(Level::Warn),
        count(Level::Fail)
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_says_what_to_do() {
        let findings = [
            Finding::ok("kernel", "6.18.5"),
            Finding::fail("link eth0", "down").advice("ip link set eth0 up"),
            Finding::warn("jit", "off").advice("sysctl -w net.core.bpf_jit_enable=1"),
        ];
        assert_eq!(
            render(&findings, false),
            "\
OK    kernel     6.18.5
FAIL  link eth0  down
                 -> ip link set eth0 up
WARN  jit        off
                 -> sysctl -w net.core.bpf_jit_enable=1

3 checks: 1 ok, 1 warnings, 1 failed
"
        );
        assert!(render(&findings, true).contains("\x1b[31mFAIL\x1b[0m"));
    }
}
