//! What records cost: slots in every state, services that record every flow, and new flows; the kernel's LRU hash in the same rounds.
//!
//! Each way of keeping flows has its own instance of weir with its own table. What a row says of itself is checked: packets that
//! pass without the table are counted, and so are records that should have been there.

use anyhow::{Result, ensure};
use lb_core::{
    abi::{ring::State, stats::FlowEvent},
    wire::transport::SYN,
};

use crate::{
    lab::{self, Lab, Sample, Traffic},
    report::{Promise, Row, Target, flows_text, median},
    scene::{Family, Mode, Protocol, Service, one_service},
    weir::Weir,
};

/// The packets of every row here.
pub const SERVICE: Service = Service { family: Family::V4, protocol: Protocol::Tcp, mode: Mode::Ipip };
/// Live flows at which what recording adds is compared.
const MANY: u32 = 1_000_000;
/// First of the flows that nobody has seen.
const UNSEEN: u32 = 2_000_000;
/// A measurement of steady rows may find so small a share of its packets unrecorded.
const MISSED_MAX: f64 = 0.001;

/// How much is measured.
pub struct Amount {
    pub rounds: usize,
    pub flows: &'static [u32],
    /// Packets of a measurement, and of one with a million flows.
    pub packets: [u32; 2],
}

/// A way of keeping flows.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    /// Every slot is settled: no record.
    Settled,
    /// Every slot is residual: records are looked for, and there are none.
    Residual,
    /// Every slot is moving, and every flow was recorded.
    Moving,
    /// `track = all` of a hashed service.
    Tracked,
    /// A chosen algorithm.
    Chosen(&'static str),
}

impl Way {
    const ALL: [Self; 7] = [
        Self::Settled,
        Self::Residual,
        Self::Moving,
        Self::Tracked,
        Self::Chosen("round_robin"),
        Self::Chosen("least_connections"),
        Self::Chosen("random_two"),
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Residual => "residual",
            Self::Moving => "moving-recorded",
            Self::Tracked => "tracked",
            Self::Chosen(algo) => algo,
        }
    }

    pub fn keys(self) -> String {
        match self {
            Self::Settled | Self::Residual | Self::Moving => "algo = \"maglev\"".into(),
            Self::Tracked => "algo = \"maglev\"\ntrack = \"all\"".into(),
            Self::Chosen(algo) => format!("algo = \"{algo}\""),
        }
    }

    fn state(self) -> Option<State> {
        match self {
            Self::Residual => Some(State::Residual),
            Self::Moving => Some(State::Moving),
            _ => None,
        }
    }

    fn records(self) -> bool {
        !matches!(self, Self::Settled | Self::Residual)
    }
}

/// A program under test.
pub enum Subject {
    /// One of the bench's programs, with its mode.
    Bench(&'static str, &'static str, &'static str),
    Weir(Way, Box<Weir>),
}

impl Subject {
    pub fn run(&self, lab: &mut Lab, traffic: Traffic, packets: u32) -> Result<Sample> {
        match self {
            Self::Bench(function, ..) => {
                lab.install(function)?;
                lab.run(traffic, packets, |lab| lab.info(function))
            }
            Self::Weir(_, weir) => {
                lab.install_other(&mut weir.program()?)?;
                lab.run(traffic, packets, |_| weir.info())
            }
        }
    }

    pub fn send(&self, lab: &mut Lab, traffic: Traffic, packets: u32) -> Result<()> {
        match self {
            Self::Bench(function, ..) => lab.install(function)?,
            Self::Weir(_, weir) => lab.install_other(&mut weir.program()?)?,
        }
        lab.send(traffic, packets)
    }

    fn is_lru(&self) -> bool {
        matches!(self, Self::Bench("bench_lru", ..))
    }

    fn records(&self) -> bool {
        self.is_lru() || matches!(self, Self::Weir(way, _) if way.records())
    }

    /// Program and mode in the report.
    pub fn names(&self) -> (&'static str, &'static str) {
        match self {
            Self::Bench(_, name, mode) => (name, mode),
            Self::Weir(..) => ("weir", Mode::Ipip.name()),
        }
    }

    fn case(&self) -> &'static str {
        match self {
            Self::Bench(..) => "flows",
            Self::Weir(way, _) => way.name(),
        }
    }

    /// Packets that met the table, and flows that were not recorded yet; the first of weir alone.
    fn counts(&self, lab: &Lab) -> Result<[u64; 2]> {
        match self {
            Self::Weir(_, weir) => {
                let events = weir.events()?;
                let count = |event: FlowEvent| events.get(&event).copied().unwrap_or(0);
                Ok([count(FlowEvent::Lookup), count(FlowEvent::Insert) + count(FlowEvent::InsertFailed)])
            }
            Self::Bench(..) => Ok([0, lab.missed()?]),
        }
    }
}

/// Every way of keeping flows under the same packets, in interleaved rounds.
pub fn measure(lab: &mut Lab, amount: &Amount) -> Result<(Vec<Row>, Vec<Target>)> {
    lab.serve_minimal(SERVICE)?;
    let mut subjects = vec![
        Subject::Bench("bench_floor", "floor", "-"),
        Subject::Bench("bench_minimal", "minimal", Mode::Ipip.name()),
        Subject::Bench("bench_lru", "lru", Mode::Ipip.name()),
    ];
    for (n, way) in Way::ALL.into_iter().enumerate() {
        let weir = Weir::load(&one_service(&lab::spare(n), SERVICE, &way.keys()), lab.egress())?;
        if let Some(state) = way.state() {
            weir.set_slots(state)?;
        }
        subjects.push(Subject::Weir(way, Box::new(weir)));
    }
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for &flows in amount.flows {
        eprintln!("measuring ways of keeping flows, {}", flows_text(flows));
        let samples = steady(lab, amount, &subjects, flows)?;
        rows.extend(rows_of(&subjects, &samples, flows, |subject| subject.case().into()));
        targets.extend(settled_targets(&samples, flows));
        if flows == MANY {
            targets.push(recording_target(&samples));
        }
    }
    eprintln!("measuring new flows");
    subjects.retain(|subject| subject.records() || matches!(subject, Subject::Bench("bench_floor", ..)));
    let samples = new_flows(lab, amount, &subjects)?;
    rows.extend(rows_of(&subjects, &samples, MANY, |subject| format!("{}, new flows", subject.case())));
    Ok((rows, targets))
}

fn rows_of(subjects: &[Subject], samples: &[Vec<Sample>], flows: u32, case: impl Fn(&Subject) -> String) -> Vec<Row> {
    let Some(floors) = samples.first() else { return Vec::new() };
    let kind = (SERVICE.family.name(), SERVICE.protocol.name(), flows);
    let rows = subjects.iter().zip(samples);
    rows.map(|(subject, samples)| Row::new(subject.names(), case(subject), kind, samples, floors)).collect()
}

/// Packets of flows that are recorded wherever flows are.
fn steady(lab: &mut Lab, amount: &Amount, subjects: &[Subject], flows: u32) -> Result<Vec<Vec<Sample>>> {
    let packets = amount.packets[usize::from(flows >= MANY)];
    let traffic = Traffic::of(SERVICE, flows);
    for subject in subjects.iter().filter(|subject| subject.records()) {
        subject.send(lab, Traffic { flags: Some(SYN as u8), ..traffic }, flows)?;
        // The first answer establishes the flow.
        subject.send(lab, traffic, flows)?;
    }
    let mut samples = vec![Vec::new(); subjects.len()];
    for _ in 0..amount.rounds {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            let before = subject.counts(lab)?;
            samples.push(subject.run(lab, Traffic { drawn: true, ..traffic }, packets)?);
            let after = subject.counts(lab)?;
            let [met, missed] = [after[0] - before[0], after[1] - before[1]];
            let sent = u64::from(packets + lab::warm_up(packets));
            ensure!(
                missed as f64 <= sent as f64 * MISSED_MAX,
                "{:?} {}: {missed} of {sent} packets were of flows without record",
                subject.names(),
                subject.case()
            );
            if let Subject::Weir(way, _) = subject {
                let expected = if *way == Way::Settled { 0 } else { sent };
                ensure!(met == expected, "{}: {met} of {sent} packets met the flow table", way.name());
            }
        }
    }
    Ok(samples)
}

/// SYNs of flows that nobody has seen.
fn new_flows(lab: &mut Lab, amount: &Amount, subjects: &[Subject]) -> Result<Vec<Vec<Sample>>> {
    let [packets, _] = amount.packets;
    let sent = packets + lab::warm_up(packets);
    let mut samples = vec![Vec::new(); subjects.len()];
    for round in 0..amount.rounds as u32 {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            let traffic =
                Traffic { first: UNSEEN + round * sent, flags: Some(SYN as u8), ..Traffic::of(SERVICE, sent) };
            let before = subject.counts(lab)?;
            samples.push(subject.run(lab, traffic, packets)?);
            let recorded = subject.counts(lab)?[1] - before[1];
            ensure!(
                !subject.records() || recorded as f64 >= f64::from(sent) * (1.0 - MISSED_MAX),
                "{:?} {}: {recorded} of {sent} flows were new",
                subject.names(),
                subject.case()
            );
        }
    }
    Ok(samples)
}

/// Net times of a program, round by round.
fn nets(samples: &[Vec<Sample>], index: usize) -> Vec<f64> {
    let (Some(floors), Some(samples)) = (samples.first(), samples.get(index)) else { return Vec::new() };
    samples.iter().zip(floors).map(|(sample, floor)| sample.gross_ns - floor.gross_ns).collect()
}

/// Places of the subjects of [`measure`].
const MINIMAL: usize = 1;
const LRU: usize = 2;
const SETTLED: usize = 3;
const TRACKED: usize = 6;

fn settled_targets(samples: &[Vec<Sample>], flows: u32) -> Vec<Target> {
    let case = flows_text(flows);
    let net = ratio(samples, SETTLED, MINIMAL);
    let rates = |index: usize| samples.get(index).into_iter().flatten().map(|sample| sample.pps);
    let rate = median(rates(SETTLED).zip(rates(MINIMAL)).map(|(weir, minimal)| weir / minimal));
    vec![
        Target::at_most(Promise::Forwarding, format!("net time, settled / minimal, {case}"), "", net, 1.3),
        Target::at_least(Promise::Forwarding, format!("forwarded rate, settled / minimal, {case}"), "", rate, 0.95),
    ]
}

/// What recording adds, beside what the kernel's LRU hash adds in the same round.
fn recording_target(samples: &[Vec<Sample>]) -> Target {
    let added = |with: usize, without: usize| {
        nets(samples, with).into_iter().zip(nets(samples, without)).map(|(with, without)| with - without).collect()
    };
    let (weir, lru): (Vec<f64>, Vec<f64>) = (added(TRACKED, SETTLED), added(LRU, MINIMAL));
    let what = format!(
        "what recording adds ({:.1} ns) / what the LRU hash adds ({:.1} ns), {}",
        median(weir.iter().copied()),
        median(lru.iter().copied()),
        flows_text(MANY)
    );
    Target::at_most(Promise::Recording, what, "", median(weir.iter().zip(&lru).map(|(weir, lru)| weir / lru)), 0.5)
}

/// Net time of a program in terms of another's, round by round: the median.
fn ratio(samples: &[Vec<Sample>], of: usize, to: usize) -> f64 {
    median(nets(samples, of).iter().zip(nets(samples, to)).map(|(of, to)| of / to))
}
