//! What was measured, as a table for people and as JSON to compare.
//!
//! Owns: medians, ratios, targets. A target that is missed is reported and fails nothing: timings depend on the machine.

use std::{fmt::Write, fs, process::Command};

use serde::{Deserialize, Serialize};

use crate::lab::Sample;

/// The case of rows that compare forwarding modes.
pub const MODES: &str = "modes";

/// What files say that know no cases.
fn modes() -> String {
    MODES.into()
}

/// A run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// Whether the run was shortened.
    pub quick: bool,
    /// Rounds; every figure is the median over them.
    pub rounds: usize,
    /// Slots of each ring and backends of each service.
    pub ring_slots: u32,
    pub backends: u16,
    /// One per program, kind of packet and number of flows.
    pub rows: Vec<Row>,
    /// Figures that have a target.
    pub targets: Vec<Target>,
}

/// Where and when.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    pub virtualised: bool,
    pub date_utc: String,
    pub commit: String,
}

/// A program under one kind of packet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// `floor`, `minimal`, `lru` or `weir`.
    pub program: String,
    /// Forwarding mode; `-` for the floor.
    pub mode: String,
    /// What is compared: `modes`, or a way of keeping flows.
    #[serde(default = "modes")]
    pub case: String,
    pub family: String,
    pub protocol: String,
    pub flows: u32,
    /// Time in the program per packet, with what measuring costs.
    pub gross_ns: f64,
    /// The same without the floor of its round.
    pub net_ns: f64,
    /// Forwarded packets per second, generator and sink on the same CPU.
    pub pps: f64,
    /// Smallest and largest net time of the rounds.
    pub net_ns_range: [f64; 2],
    /// Share of packets that were not forwarded.
    pub lost: f64,
}

/// What weir promises of its costs, in the order of the summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// A packet that the ring decides costs little more than in a minimal program.
    Forwarding,
    /// Recording every flow adds at most half of what the kernel's LRU hash adds.
    Recording,
    /// A flood adds at most 15 % to what as many tuples cost without one.
    Floods,
    /// Changes are in the maps soon. Also what files say that know no promises.
    #[default]
    Changes,
}

impl Promise {
    const ALL: [Self; 4] = [Self::Forwarding, Self::Recording, Self::Floods, Self::Changes];

    fn name(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding costs little more than a minimal program",
            Self::Recording => "recording adds at most half of what the LRU hash adds",
            Self::Floods => "floods add at most 15 %",
            Self::Changes => "changes are in the maps soon",
        }
    }
}

/// A figure that has a target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Which promise it is part of.
    #[serde(default)]
    pub promise: Promise,
    pub what: String,
    pub unit: String,
    pub measured: f64,
    /// `at most` or `at least`.
    pub bound: String,
    pub target: f64,
    pub met: bool,
}

impl Target {
    pub fn at_most(promise: Promise, what: impl Into<String>, unit: &str, measured: f64, target: f64) -> Self {
        Self {
            promise,
            what: what.into(),
            unit: unit.into(),
            measured,
            bound: "at most".into(),
            target,
            met: measured <= target,
        }
    }

    pub fn at_least(promise: Promise, what: impl Into<String>, unit: &str, measured: f64, target: f64) -> Self {
        Self {
            promise,
            what: what.into(),
            unit: unit.into(),
            measured,
            bound: "at least".into(),
            target,
            met: measured >= target,
        }
    }
}

/// The middle value.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Row {
    /// The medians of samples that were taken beside those of the floor, round by round.
    pub fn new(
        (program, mode): (&str, &str),
        case: String,
        (family, protocol, flows): (&str, &str, u32),
        samples: &[Sample],
        floors: &[Sample],
    ) -> Self {
        let nets: Vec<f64> =
            samples.iter().zip(floors).map(|(sample, floor)| sample.gross_ns - floor.gross_ns).collect();
        Self {
            program: program.into(),
            mode: mode.into(),
            case,
            family: family.into(),
            protocol: protocol.into(),
            flows,
            gross_ns: median(samples.iter().map(|s| s.gross_ns)),
            net_ns: median(nets.iter().copied()),
            pps: median(samples.iter().map(|s| s.pps)),
            net_ns_range: [
                nets.iter().copied().fold(f64::INFINITY, f64::min),
                nets.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ],
            lost: samples.iter().map(|s| s.lost).fold(0.0, f64::max),
        }
    }
}

impl Report {
    /// The row of a program, if it was measured.
    fn row(&self, program: &str, mode: &str, flows: u32) -> Option<&Row> {
        self.rows.iter().find(|row| {
            (&*row.program, &*row.mode, &*row.case) == (program, mode, MODES)
                && (&*row.family, &*row.protocol, row.flows) == ("ipv4", "tcp", flows)
        })
    }

    /// Adds the ratios between weir and the practical limit.
    pub fn add_ratios(&mut self) {
        for flows in [1_000, 1_000_000] {
            let (Some(minimal), Some(weir)) = (self.row("minimal", "ipip", flows), self.row("weir", "ipip", flows))
            else {
                continue;
            };
            let case = format!("ipip ipv4 tcp, {}", flows_text(flows));
            let (net, rate) = (weir.net_ns / minimal.net_ns, weir.pps / minimal.pps);
            let (time, forwarded) = ("net time, weir / minimal", "forwarded rate, weir / minimal");
            self.targets.push(Target::at_most(Promise::Forwarding, format!("{time}, {case}"), "", net, 1.3));
            self.targets.push(Target::at_least(Promise::Forwarding, format!("{forwarded}, {case}"), "", rate, 0.95));
        }
    }

    /// Adds what a part measured.
    pub fn add(&mut self, (rows, targets): (Vec<Row>, Vec<Target>)) {
        self.rows.extend(rows);
        self.targets.extend(targets);
    }

    /// The tables.
    pub fn text(&self) -> String {
        let m = &self.machine;
        let mut out = format!(
            "{}, {} CPUs{}, Linux {}, {}, commit {}\n{} slots, {} backends, median of {} rounds\n\n",
            m.cpu,
            m.cpus,
            if m.virtualised { " (virtual)" } else { "" },
            m.kernel,
            m.date_utc,
            m.commit,
            self.ring_slots,
            self.backends,
            self.rounds
        );
        let _ = writeln!(
            out,
            "{:<8} {:<5} {:<42} {:<5} {:<4} {:>6} {:>9} {:>8} {:>15} {:>7}",
            "PROGRAM", "MODE", "CASE", "IP", "L4", "FLOWS", "GROSS ns", "NET ns", "NET RANGE", "Mpps"
        );
        for row in &self.rows {
            let range = format!("{:.1}..{:.1}", row.net_ns_range[0], row.net_ns_range[1]);
            let _ = write!(
                out,
                "{:<8} {:<5} {:<42} {:<5} {:<4} {:>6} {:>9.1} {:>8.1} {:>15} {:>7.3}",
                row.program,
                row.mode,
                row.case,
                row.family,
                row.protocol,
                flows_text(row.flows).trim_end_matches(" flows"),
                row.gross_ns,
                row.net_ns,
                range,
                row.pps / 1e6
            );
            out.push_str(&if row.lost > 0.0001 { format!("  {:.2} % lost\n", row.lost * 100.0) } else { "\n".into() });
        }
        out.push('\n');
        for target in &self.targets {
            let _ = writeln!(
                out,
                "{:<6} {}: {:.3}{} ({} {}{})",
                if target.met { "met" } else { "MISSED" },
                target.what,
                target.measured,
                target.unit,
                target.bound,
                target.target,
                target.unit
            );
        }
        out.push('\n');
        for promise in Promise::ALL {
            let of: Vec<&Target> = self.targets.iter().filter(|target| target.promise == promise).collect();
            let met = of.iter().filter(|target| target.met).count();
            let verdict = if met == of.len() { "met" } else { "MISSED" };
            if !of.is_empty() {
                let _ = writeln!(out, "{verdict:<6} {:<54} {met} of {}", promise.name(), of.len());
            }
        }
        out
    }
}

/// A number of flows, short.
pub fn flows_text(flows: u32) -> String {
    match flows {
        1 => "1 flow".into(),
        n if n >= 1_000_000 => format!("{} M flows", n / 1_000_000),
        n if n >= 1_000 => format!("{} k flows", n / 1_000),
        n => format!("{n} flows"),
    }
}

impl Machine {
    /// This machine, now. What cannot be found out is empty.
    pub fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            cpuinfo
                .lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split(": ").nth(1))
                .unwrap_or_default()
        };
        Self {
            cpu: format!("{} (family {} model {})", field("model name"), field("cpu family"), field("model\t")),
            cpus: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            virtualised: field("flags").split(' ').any(|flag| flag == "hypervisor"),
            date_utc: output("date", &["-u", "+%Y-%m-%dT%H:%MZ"]),
            commit: output("git", &["describe", "--always", "--dirty", "--exclude=*"]),
        }
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
