//! `cargo xtask bench`: what a packet costs in an empty program, in a minimal one and in weir, in one run; and what the
//! control side costs.
//!
//! In each round the programs take turns on the same interface under the same packets, so that a slow minute of the
//! machine is slow for all of them. Figures are medians over the rounds. How to read them: `docs/bench/README.md`.

mod compare;
mod control;
mod floods;
mod flows;
mod lab;
mod plot;
mod reload;
mod report;
mod scene;
mod turns;
mod weir;

use std::{env, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail, ensure};
use lab::{Lab, Sample, Traffic};
use report::{Machine, Report, Row, Target};
use scene::{BACKENDS, Family, Mode, Protocol, RING_SLOTS, Service};
use turns::Turns;
use weir::Weir;

const HELP: &str = "\
Usage: cargo xtask bench [--quick] [--only PART] [--rounds N] [--turns FILE] [--json FILE] [--svg FILE]
       cargo xtask bench --compare A.json B.json

  --quick      fewer packets, rounds and combinations
  --only PART  one part of it: modes, flows, floods or control
  --rounds N   so many rounds of the part modes, and not five or three
  --turns FILE take turns with another run that has the same FILE, by its lock
  --json FILE  also write the results there
  --svg FILE   also draw cost against flows there
  --compare A.json B.json
               measure nothing, but print each row of two runs with the ratio of their times
";

/// What can be measured alone.
const PARTS: [&str; 4] = ["modes", "flows", "floods", "control"];

/// How much is measured.
struct Plan {
    quick: bool,
    rounds: usize,
    families: &'static [Family],
    protocols: &'static [Protocol],
    flows: &'static [u32],
    /// Packets of a measurement, and of one with a million flows.
    packets: [u32; 2],
    amount: flows::Amount,
    floods: floods::Amount,
    /// The file by whose lock turns are taken with another run.
    turns: Option<PathBuf>,
    /// The only part that is run, of [`PARTS`].
    only: Option<String>,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
    /// Two runs to be compared, instead of measuring.
    compare: Option<[PathBuf; 2]>,
}

impl Plan {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut plan = Self {
            quick: false,
            rounds: 5,
            families: &Family::ALL,
            protocols: &Protocol::ALL,
            flows: &[1, 1_000, 100_000, 1_000_000],
            packets: [300_000, 1_500_000],
            amount: flows::Amount { rounds: 5, flows: &[1_000, 100_000, 1_000_000], packets: [300_000, 1_500_000] },
            floods: floods::Amount { rounds: 30, packets: 250_000, tuples: 1 << 24 },
            turns: None,
            only: None,
            json: None,
            svg: None,
            compare: None,
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => {
                    plan = Self {
                        quick: true,
                        rounds: 3,
                        families: &[Family::V4],
                        protocols: &[Protocol::Tcp],
                        flows: &[1_000, 1_000_000],
                        packets: [200_000, 1_000_000],
                        amount: flows::Amount { rounds: 3, flows: &[1_000, 1_000_000], packets: [100_000, 1_000_000] },
                        floods: floods::Amount { rounds: 10, packets: 150_000, tuples: 1 << 22 },
                        ..plan
                    }
                }
                "--only" => {
                    let part = arguments.next().filter(|part| PARTS.contains(&&**part));
                    plan.only = Some(part.with_context(|| format!("--only needs one of {}", PARTS.join(", ")))?);
                }
                "--rounds" => {
                    let rounds = arguments.next().and_then(|n| n.parse().ok()).filter(|n| (1..=1_000).contains(n));
                    plan.rounds = rounds.context("--rounds needs a number from 1 to 1000")?;
                }
                "--turns" => plan.turns = Some(arguments.next().context("--turns needs a file")?.into()),
                "--json" => plan.json = Some(arguments.next().context("--json needs a file")?.into()),
                "--svg" => plan.svg = Some(arguments.next().context("--svg needs a file")?.into()),
                "--compare" => {
                    let mut file = || arguments.next().context("--compare needs two files").map(PathBuf::from);
                    plan.compare = Some([file()?, file()?]);
                }
                // What cargo adds.
                "--bench" => {}
                "-h" | "--help" => return Ok(None),
                other => bail!("unknown argument {other}\n{HELP}"),
            }
        }
        Ok(Some(plan))
    }

    /// Whether a part is to be run.
    fn wants(&self, part: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == part)
    }
}

/// A program under test.
#[derive(Clone, Copy, PartialEq)]
enum Program {
    Floor,
    Minimal,
    Weir(Mode),
}

impl Program {
    const ALL: [Self; 5] =
        [Self::Floor, Self::Minimal, Self::Weir(Mode::Dsr), Self::Weir(Mode::Ipip), Self::Weir(Mode::Nat)];

    /// Program and mode in the report.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Floor => ("floor", "-"),
            Self::Minimal => ("minimal", Mode::Ipip.name()),
            Self::Weir(mode) => ("weir", mode.name()),
        }
    }

    /// Bytes that it adds to a packet.
    fn added(self, family: Family) -> usize {
        match (self, family) {
            (Self::Minimal | Self::Weir(Mode::Ipip), Family::V4) => 20,
            (Self::Minimal | Self::Weir(Mode::Ipip), Family::V6) => 40,
            _ => 0,
        }
    }
}

fn main() -> ExitCode {
    match Plan::parse(env::args().skip(1)).and_then(|plan| match plan {
        Some(plan) => run(&plan),
        None => {
            print!("{HELP}");
            Ok(())
        }
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan) -> Result<()> {
    if let Some([before, after]) = &plan.compare {
        print!("{}", compare::text(&compare::read(before)?, &compare::read(after)?));
        return Ok(());
    }
    let machine = Machine::here();
    lab::enter()?;
    let mut report = Report {
        machine,
        quick: plan.quick,
        rounds: plan.rounds,
        ring_slots: RING_SLOTS,
        backends: BACKENDS,
        rows: Vec::new(),
        targets: Vec::new(),
    };
    let turns = plan.turns.as_deref().map(Turns::by).transpose()?.unwrap_or_default();
    let mut lab = Lab::new(&control::minimal_ring(), turns)?;
    if plan.wants("modes") {
        report.rows = modes(&mut lab, plan)?;
        report.add_ratios();
    }
    if plan.wants("flows") {
        report.add(flows::measure(&mut lab, &plan.amount)?);
    }
    if plan.wants("floods") {
        report.add(floods::measure(&mut lab, &plan.floods)?);
    }
    if plan.wants("control") {
        eprintln!("measuring the control side");
        report.targets.extend(control(&lab, plan.quick)?);
    }
    print!("{}", report.text());
    if let Some(path) = &plan.svg {
        let svg = plot::svg(&report.rows).context("--svg needs rows of two numbers of flows: run the part flows")?;
        fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &plan.json {
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Every forwarding mode, family and protocol.
fn modes(lab: &mut Lab, plan: &Plan) -> Result<Vec<Row>> {
    let weir = Weir::load(&scene::configuration(lab::SPARE), lab.egress())?;
    let mut rows = Vec::new();
    for &family in plan.families {
        for &protocol in plan.protocols {
            lab.serve_minimal(Service { family, protocol, mode: Mode::Ipip })?;
            for &flows in plan.flows {
                eprintln!("measuring {} {}, {flows} flows", family.name(), protocol.name());
                rows.extend(measure(lab, &weir, plan, family, protocol, flows)?);
            }
        }
    }
    Ok(rows)
}

/// What changes cost.
fn control(lab: &Lab, quick: bool) -> Result<Vec<Target>> {
    let (builds, changes) = if quick { (11, 5) } else { (51, 15) };
    Ok(vec![
        control::ring_build(builds),
        control::ring_diff(lab::SPARE, lab.egress(), changes)?,
        control::one_change(lab::SPARE, lab.egress(), changes)?,
        reload::one_save(lab::SPARE, lab.egress(), control::SERVICES, changes)?,
    ])
}

/// All programs under one kind of packet, in interleaved rounds.
fn measure(
    lab: &mut Lab,
    weir: &Weir,
    plan: &Plan,
    family: Family,
    protocol: Protocol,
    flows: u32,
) -> Result<Vec<Row>> {
    let [packets, many] = plan.packets;
    let packets = if flows >= 1_000_000 { many } else { packets };
    let mut samples: [Vec<Sample>; Program::ALL.len()] = Default::default();
    for _ in 0..plan.rounds {
        for (program, samples) in Program::ALL.into_iter().zip(&mut samples) {
            let service = Service { family, protocol, mode: Mode::Ipip };
            let sample = match program {
                Program::Floor | Program::Minimal => {
                    let name = if program == Program::Floor { "bench_floor" } else { "bench_minimal" };
                    lab.install(name)?;
                    lab.run(Traffic::of(service, flows), packets, |lab| lab.info(name))?
                }
                Program::Weir(mode) => {
                    lab.install_other(&mut weir.program()?)?;
                    lab.run(Traffic::of(Service { mode, ..service }, flows), packets, |_| weir.info())?
                }
            };
            // Whoever does less than the whole work must not win.
            let expected = service.frame().len() + program.added(family);
            ensure!(
                sample.bytes == expected as f64,
                "{:?} forwarded {} bytes a packet instead of {expected}",
                program.names(),
                sample.bytes
            );
            samples.push(sample);
        }
    }
    let [floors, ..] = &samples;
    Ok(Program::ALL
        .into_iter()
        .zip(&samples)
        .map(|(program, samples)| {
            Row::new(program.names(), report::MODES.into(), (family.name(), protocol.name(), flows), samples, floors)
        })
        .collect())
}
