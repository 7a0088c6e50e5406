//! `cargo xtask test`: everything that is tested, in tiers with their times.
//!
//! Owns the order of the tiers, the table at the end and the closing line `N passed, N failed`. Invariants: a tier that
//! cannot run here is skipped with its reason on a laptop and fails in CI; a tier in which no test ran has failed; the
//! closing line counts every test of every tier, and one check for each tier that is not made of tests.

mod built;

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args as ClapArgs, ValueEnum};

use self::built::Program;
pub use self::built::folder as programs_folder;
use crate::{
    capability::{self, Capability},
    tidy,
};

/// The module of the crate of tests whose tests are of what the others use.
const TOOLS: &str = "craft::";
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
    /// Every test program, and what the tests start
    Build,
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
    const ALL: [Self; 13] = [
        Self::Fmt,
        Self::Clippy,
        Self::Tidy,
        Self::Build,
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
            Self::Build => "build",
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
            Self::Fmt | Self::Clippy | Self::Tidy | Self::Build => &[],
            Self::Unit | Self::Locks | Self::Store | Self::Fleet => &[],
            Self::Packet | Self::Oracle => &capability::PROGRAM,
            Self::Flow => &capability::PINNED,
            Self::Lab | Self::Demo => &capability::LAB,
        }
    }

    /// What it consists of.
    fn parts(self) -> Vec<Part> {
        let suite = |package, target, arguments: &[&str]| Part::Suite {
            package,
            target,
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        };
        let filter = format!("{}::", self.name());
        match self {
            Self::Fmt => vec![Part::Cargo(&["fmt", "--all", "--check"])],
            Self::Clippy => {
                vec![Part::Cargo(&[
                    "clippy",
                    "--workspace",
                    "--exclude",
                    "xdp-ebpf",
                    "--all-targets",
                    "--",
                    "-D",
                    "warnings",
                ])]
            }
            Self::Tidy => vec![Part::Tidy],
            Self::Build => vec![Part::Build],
            Self::Unit => vec![
                suite("lb-core", None, &[]),
                suite("lb-userspace", None, &["--skip", REAL_SERVERS]),
                suite("xtask", None, &[]),
                suite("weir-tests", None, &[TOOLS]),
            ],
            // Real servers and real time-outs: one suite at a time, as each would be in production.
            Self::Locks => vec![
                suite("lb-locks", None, &["--test-threads=1"]),
                suite("lb-userspace", Some("lock"), &[REAL_SERVERS, "--test-threads=1"]),
            ],
            Self::Packet | Self::Oracle => vec![suite("weir-tests", None, &[&filter])],
            // These share the machine's two or so cores, and some its namespaces.
            Self::Store | Self::Flow | Self::Fleet | Self::Lab | Self::Demo => {
                vec![suite("weir-tests", None, &[&filter, "--test-threads=1"])]
            }
        }
    }
}

/// A part of a tier.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// A command of cargo's that is a check by itself.
    Cargo(&'static [&'static str]),
    /// The rules that the compiler does not check.
    Tidy,
    /// Every test program, and what it starts.
    Build,
    /// The test programs of a package, or the one of that name.
    Suite { package: &'static str, target: Option<&'static str>, arguments: Vec<String> },
}

/// What a tier came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: u64,
    failed: u64,
    /// Why it did not run.
    skipped: Option<String>,
}

impl Outcome {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs the tiers, prints the table and the closing line.
pub fn run(args: &Args) -> Result<()> {
    let tiers = if args.tiers.is_empty() { &Tier::ALL[..] } else { &args.tiers };
    let notes = crate::target_dir().join("xtask/skipped.txt");
    if notes.exists() {
        std::fs::remove_file(&notes).with_context(|| notes.display().to_string())?;
    }
    let (mut rows, mut programs) = (Vec::new(), Programs::default());
    for &tier in tiers {
        println!("\n=== {} ===", tier.name());
        let start = Instant::now();
        let outcome = match capability::missing(tier.needs()) {
            Some(reason) if crate::is_ci() => {
                println!("{} cannot run, and CI may not skip: {reason}", tier.name());
                Outcome { failed: 1, ..Outcome::default() }
            }
            Some(reason) => Outcome { skipped: Some(reason), ..Outcome::default() },
            None => tier_run(tier, &mut programs, &notes).unwrap_or_else(|error| {
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

/// The test programs, built when the first tier wants them, and once: what did not compile then does not later.
#[derive(Default)]
struct Programs(Option<Vec<Program>>);

impl Programs {
    fn get(&mut self) -> Result<&[Program]> {
        let programs = match self.0.take() {
            Some(programs) => programs,
            None => {
                println!("building the tests");
                self.0 = Some(Vec::new());
                built::build()?
            }
        };
        Ok(self.0.insert(programs))
    }
}

fn tier_run(tier: Tier, programs: &mut Programs, notes: &Path) -> Result<Outcome> {
    let one = Outcome { passed: 1, ..Outcome::default() };
    let mut sum = Outcome::default();
    for part in tier.parts() {
        let outcome = match part {
            Part::Tidy => tidy::run().map(|()| one.clone())?,
            Part::Build => programs.get().map(|_| one.clone())?,
            Part::Cargo(arguments) => {
                println!("$ cargo {}", arguments.join(" "));
                let status =
                    Command::new("cargo").args(arguments).current_dir(crate::root()).stdin(Stdio::null()).status();
                let status = status.context("cannot start cargo")?;
                if !status.success() {
                    bail!("`cargo {}` ended with {status}", arguments.join(" "));
                }
                one.clone()
            }
            Part::Suite { package, target, arguments } => {
                let chosen = programs.get()?.iter().filter(|program| program.package == package);
                let chosen = chosen.filter(|program| target.is_none_or(|target| program.target == target));
                let mut sum = Outcome::default();
                for program in chosen {
                    sum.add(&suite(program, &arguments, notes)?);
                }
                if sum.passed + sum.failed == 0 {
                    println!("{package}: no test ran");
                    sum.failed = 1;
                }
                sum
            }
        };
        sum.add(&outcome);
    }
    Ok(sum)
}

/// Runs one test program as cargo would.
fn suite(program: &Program, arguments: &[String], notes: &Path) -> Result<Outcome> {
    println!("$ cargo test -p {} [{}] -- {}", program.package, program.target, arguments.join(" "));
    let mut child = Command::new(&program.executable)
        .args(arguments)
        .current_dir(&program.folder)
        .env("CARGO_MANIFEST_DIR", &program.folder)
        .env("WEIR_SKIPPED", notes)
        .env(built::PROGRAMS, crate::target_dir().join("debug"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.executable.display()))?;
    let mut outcome = Outcome::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some((passed, failed)) = result_line(&line) {
                outcome.add(&Outcome { passed, failed, skipped: None });
            }
        }
    }
    let status = child.wait()?;
    if !status.success() && outcome.failed == 0 {
        println!("{}: its test program ended with {status} before it could count", program.package);
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
    fn every_test_of_the_workspace_belongs_to_a_tier() {
        let suites: Vec<_> = Tier::ALL.into_iter().flat_map(Tier::parts).collect();
        for package in ["lb-core", "lb-locks", "lb-userspace", "xtask", "weir-tests"] {
            assert!(
                suites
                    .iter()
                    .any(|part| matches!(part, Part::Suite { package: at, target: None, .. } if *at == package))
            );
        }
        // Of the crate of tests each suite runs a module; one without a suite would never run.
        let main = std::fs::read_to_string(crate::root().join("tests/src/main.rs")).unwrap();
        for module in main.lines().filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';')) {
            let filter = format!("{module}::");
            let runs = |part: &Part| matches!(part, Part::Suite { package: "weir-tests", arguments, .. } if arguments.contains(&filter));
            assert!(suites.iter().any(runs), "{module}");
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
