//! `cargo xtask test`: everything that is tested, in tiers with their times.
//!
//! Owns the order of the tiers, the table at the end and the closing line `N passed, N failed`. Invariants: a tier that
//! cannot run here is skipped with its reason on a laptop and fails in CI; a tier in which no test ran has failed; the
//! closing line counts every test of every tier, and one check for each tier that is not made of tests.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, ValueEnum};

use crate::{
    capability::{self, Capability},
    tidy,
};

/// The module of lb-userspace's tests that belongs to the tier `locks`.
const REAL_SERVERS: &str = "real_servers::";

/// `cargo xtask test`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Tiers to run; all of them unless named
    #[arg(value_enum)]
    pub tiers: Vec<Tier>,
}

/// A group of tests that share what they need and what they cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    /// Formatting
    Fmt,
    /// Clippy, warnings as errors
    Clippy,
    /// Rules that the compiler does not check
    Tidy,
    /// Pure logic: lb-core, lb-userspace, xtask
    Unit,
    /// Locks: every store, real Redis servers, the simulation, `weir lock` and its torture
    Locks,
    /// Stores: every place, real Redis servers and their faults
    Store,
    /// Packet fixtures against the loaded program
    Packet,
    /// Random packets: host verdict against the loaded program
    Oracle,
    /// No connection moves: random sequences and the promises about flows
    Flow,
    /// DNS: BIND, Knot and dig beside `weir dns`
    Fleet,
    /// Real sessions through the lab
    Lab,
    /// The demo, and each of its steps broken once
    Demo,
}

impl Tier {
    const ALL: [Self; 12] = [
        Self::Fmt,
        Self::Clippy,
        Self::Tidy,
        Self::Unit,
        Self::Locks,
        Self::Store,
        Self::Packet,
        Self::Oracle,
        Self::Flow,
        Self::Fleet,
        Self::Lab,
        Self::Demo,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Fmt => "fmt",
            Self::Clippy => "clippy",
            Self::Tidy => "tidy",
            Self::Unit => "unit",
            Self::Locks => "locks",
            Self::Store => "store",
            Self::Packet => "packet",
            Self::Oracle => "oracle",
            Self::Flow => "flow",
            Self::Fleet => "fleet",
            Self::Lab => "lab",
            Self::Demo => "demo",
        }
    }

    /// What the kernel and the user's rights must give.
    const fn needs(self) -> &'static [Capability] {
        match self {
            Self::Fmt | Self::Clippy | Self::Tidy | Self::Unit | Self::Locks | Self::Store | Self::Fleet => &[],
            Self::Packet | Self::Oracle => &capability::PROGRAM,
            Self::Flow => &capability::PINNED,
            Self::Lab | Self::Demo => &capability::LAB,
        }
    }

    /// The cargo command lines, without `cargo`; none for what this program does itself.
    fn commands(self) -> Vec<Vec<String>> {
        let filter = format!("{}::", self.name());
        let commands: &[&[&str]] = match self {
            Self::Fmt => &[&["fmt", "--all", "--check"]],
            // The XDP program is compiled for its own target by lb-userspace's build script.
            Self::Clippy => {
                &[&["clippy", "--workspace", "--exclude", "xdp-ebpf", "--all-targets", "--", "-D", "warnings"]]
            }
            Self::Tidy => &[],
            Self::Unit => {
                &[&["test", "-p", "lb-core", "-p", "lb-userspace", "-p", "xtask", "--", "--skip", REAL_SERVERS]]
            }
            // Real servers and real time-outs: one suite at a time, as each would be in production.
            Self::Locks => &[
                &["test", "-p", "lb-locks", "--", "--test-threads=1"],
                &["test", "-p", "lb-userspace", "--test", "lock", "--", REAL_SERVERS, "--test-threads=1"],
            ],
            Self::Packet | Self::Oracle => &[&["test", "-p", "weir-tests", "--", &filter]],
            // These share the machine's two or so cores, and some its namespaces.
            Self::Store | Self::Flow | Self::Fleet | Self::Lab | Self::Demo => {
                &[&["test", "-p", "weir-tests", "--", &filter, "--test-threads=1"]]
            }
        };
        commands.iter().map(|words| words.iter().map(|&word| word.to_owned()).collect()).collect()
    }

    /// Whether cargo's test runner counts.
    const fn is_tests(self) -> bool {
        !matches!(self, Self::Fmt | Self::Clippy | Self::Tidy)
    }
}

/// What a tier came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: u64,
    failed: u64,
    /// Why it did not run.
    skipped: Option<String>,
}

/// Runs the tiers, prints the table and the closing line.
pub fn run(args: &Args) -> Result<()> {
    let tiers = if args.tiers.is_empty() { &Tier::ALL[..] } else { &args.tiers };
    let notes = crate::target_dir().join("xtask/skipped.txt");
    if notes.exists() {
        std::fs::remove_file(&notes).with_context(|| notes.display().to_string())?;
    }
    let mut rows = Vec::new();
    for &tier in tiers {
        println!("\n=== {} ===", tier.name());
        let start = Instant::now();
        let outcome = match capability::missing(tier.needs()) {
            Some(reason) if crate::is_ci() => {
                println!("{} cannot run, and CI may not skip: {reason}", tier.name());
                Outcome { failed: 1, ..Outcome::default() }
            }
            Some(reason) => Outcome { skipped: Some(reason), ..Outcome::default() },
            None => tier_run(tier, &notes).unwrap_or_else(|error| {
                println!("{}: {error:#}", tier.name());
                Outcome { failed: 1, ..Outcome::default() }
            }),
        };
        rows.push((tier, start.elapsed(), outcome));
    }
    print!("\n{}", table(&rows));
    if let Ok(text) = std::fs::read_to_string(&notes) {
        print!("skipped for want of a capability:\n{text}");
    }
    let passed: u64 = rows.iter().map(|(.., outcome)| outcome.passed).sum();
    let failed: u64 = rows.iter().map(|(.., outcome)| outcome.failed).sum();
    // The closing line is the last one: a failure says no more than this and its exit code.
    println!("{passed} passed, {failed} failed");
    std::io::stdout().flush()?;
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

fn table(rows: &[(Tier, Duration, Outcome)]) -> String {
    let mut text = String::from("tier       time  passed  failed\n");
    for (tier, time, outcome) in rows {
        let note = outcome.skipped.as_ref().map_or(String::new(), |reason| format!("  skipped: {reason}"));
        // Writing to a string cannot fail.
        writeln!(
            text,
            "{:<8} {:>4} s  {:>6}  {:>6}{note}",
            tier.name(),
            time.as_secs_f32().ceil(),
            outcome.passed,
            outcome.failed
        )
        .ok();
    }
    text
}

fn tier_run(tier: Tier, notes: &std::path::Path) -> Result<Outcome> {
    let commands = tier.commands();
    if commands.is_empty() {
        tidy::run()?;
        return Ok(Outcome { passed: 1, ..Outcome::default() });
    }
    let mut sum = Outcome::default();
    for arguments in commands {
        let outcome = cargo(tier, &arguments, notes)?;
        sum.passed += outcome.passed;
        sum.failed += outcome.failed;
    }
    Ok(sum)
}

fn cargo(tier: Tier, arguments: &[String], notes: &std::path::Path) -> Result<Outcome> {
    println!("$ cargo {}", arguments.join(" "));
    let mut child = Command::new("cargo")
        .args(arguments)
        .current_dir(crate::root())
        .env("WEIR_SKIPPED", notes)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let mut outcome = Outcome::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some((passed, failed)) = result_line(&line) {
                outcome.passed += passed;
                outcome.failed += failed;
            }
        }
    }
    let status = child.wait()?;
    if !tier.is_tests() {
        return if status.success() {
            Ok(Outcome { passed: 1, ..outcome })
        } else {
            bail!("`cargo {}` ended with {status}", arguments.join(" "))
        };
    }
    if !status.success() && outcome.failed == 0 {
        // It did not compile, or the test process died before it could count.
        println!("{}: `cargo {}` ended with {status}", tier.name(), arguments.join(" "));
        outcome.failed = 1;
    }
    if outcome.passed + outcome.failed == 0 {
        println!("{}: no test ran", tier.name());
        outcome.failed = 1;
    }
    Ok(outcome)
}

/// Passed and failed of one `test result:` line.
fn result_line(line: &str) -> Option<(u64, u64)> {
    let rest = line.trim_start().strip_prefix("test result: ")?;
    let rest = rest.split_once(". ")?.1;
    let mut parts = rest.split(';');
    let mut number = |unit: &str| parts.next()?.trim().strip_suffix(unit)?.trim().parse().ok();
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_lines_are_counted() {
        let line = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s";
        assert_eq!(result_line(line), Some((12, 0)));
        let line = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(result_line(line), Some((3, 2)));
        assert_eq!(result_line("running 3 tests"), None);
        assert_eq!(result_line("test result: nonsense"), None);
    }

    #[test]
    fn every_tier_says_what_it_runs() {
        for tier in Tier::ALL {
            let commands = tier.commands();
            assert_eq!(commands.is_empty(), tier == Tier::Tidy);
            for arguments in commands {
                assert!(["fmt", "clippy", "test"].contains(&arguments[0].as_str()));
            }
        }
    }

    #[test]
    fn the_table_shows_times_and_skips() {
        let rows = [
            (Tier::Unit, Duration::from_millis(1200), Outcome { passed: 7, ..Outcome::default() }),
            (Tier::Lab, Duration::ZERO, Outcome { skipped: Some("not root".to_owned()), ..Outcome::default() }),
        ];
        let text = table(&rows);
        assert!(text.contains("unit        2 s       7       0") && text.contains("skipped: not root"), "{text}");
    }
}
