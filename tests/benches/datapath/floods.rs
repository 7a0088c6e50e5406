//! What floods of random tuples cost beside live flows, at rest and while a change is in its window.
//!
//! Each flood has a base of its own: the same service in the same state, under ACKs of as many tuples and nothing else. Both begin with
//! tables that are full, and take turns of a quarter of a second, every other round the other way round; what counts is the median of
//! the ratios of such rounds. So a slow second of the machine is not taken for the flood's, and the flood lasts: where it makes
//! records, each takes the place of another that is just old enough.

use anyhow::{Result, ensure};
use lb_core::wire::transport::{ACK, SYN};

use crate::{
    flows::{SERVICE, Subject, Way},
    lab::{self, Flood, Lab, Sample, Traffic},
    report::{Promise, Row, Target, median},
    scene::{FLOWS_MAX, one_service},
    weir::Weir,
};

/// Live flows beside a flood.
const LIVE: u32 = 1_000;
/// A kind of flood, and the flags of its packets.
const FLOODS: [(&str, [u32; 2]); 3] = [("ACK", [ACK, ACK]), ("SYN", [SYN, SYN]), ("mixed", [SYN, ACK])];
/// The service that counts connections.
const LEAST: Way = Way::Chosen("least_connections");
/// What a packet may cost under a flood, in terms of one without.
const RATIO_MAX: f64 = 1.15;
/// The empty program, whose time varies little, gets one packet of so many.
const FLOOR_PART: u32 = 5;
/// Share of the packets that may be lost.
const LOST_MAX: f64 = 0.001;

/// How much is measured.
pub struct Amount {
    pub rounds: usize,
    /// Packets of a turn.
    pub packets: u32,
    /// Tuples that a flood draws from, a power of two.
    pub tuples: u32,
}

/// A flood of a service in a state, and what it is measured by; each with a table of its own.
struct Pair {
    case: String,
    base: (Subject, Traffic),
    flooded: (Subject, Traffic),
}

/// What was measured of a [`Pair`], round by round.
#[derive(Default)]
struct Rounds {
    floor: Vec<Sample>,
    base: Vec<Sample>,
    flooded: Vec<Sample>,
}

/// A service in a state, with live flows recorded where flows are.
fn load(lab: &mut Lab, way: Way, in_window: bool, n: usize) -> Result<Subject> {
    let keys = format!("{}\nannounce_for = \"0s\"", way.keys());
    let mut weir = Weir::load(&one_service(&lab::spare(n), SERVICE, &keys), lab.egress())?;
    if in_window {
        weir.change_weight(0, 3)?;
    }
    let subject = Subject::Weir(way, Box::new(weir));
    let live = Traffic::of(SERVICE, LIVE);
    subject.send(lab, Traffic { flags: Some(SYN as u8), ..live }, LIVE)?;
    subject.send(lab, live, LIVE * 2)?;
    Ok(subject)
}

impl Pair {
    fn load(lab: &mut Lab, way: Way, in_window: bool, case: String, flags: [u32; 2], tuples: u32) -> Result<Self> {
        let flood = Flood { tuples, flags: flags.map(|flags| flags as u8) };
        let pair = Self {
            case,
            base: (load(lab, way, in_window, 0)?, Traffic { first: LIVE, drawn: true, ..Traffic::of(SERVICE, tuples) }),
            flooded: (load(lab, way, in_window, 1)?, Traffic { flood: Some(flood), ..Traffic::of(SERVICE, LIVE) }),
        };
        if way != Way::Settled {
            for (subject, traffic) in [&pair.base, &pair.flooded] {
                subject.send(lab, *traffic, FLOWS_MAX * 2)?;
            }
        }
        Ok(pair)
    }

    fn run(&self, lab: &mut Lab, amount: &Amount) -> Result<Rounds> {
        let floor = Subject::Bench("bench_floor", "floor", "-");
        let mut rounds = Rounds::default();
        for round in 0..amount.rounds {
            rounds.floor.push(floor.run(lab, self.base.1, amount.packets / FLOOR_PART)?);
            let mut turns = [(&self.base, &mut rounds.base), (&self.flooded, &mut rounds.flooded)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for ((subject, traffic), samples) in turns {
                let sample = subject.run(lab, *traffic, amount.packets)?;
                let lost = sample.lost * 100.0;
                ensure!(sample.lost < LOST_MAX, "{}: {lost:.2} % of the packets were lost", self.case);
                samples.push(sample);
            }
        }
        Ok(rounds)
    }
}

/// Net times, round by round.
fn nets(samples: &[Sample], floors: &[Sample]) -> Vec<f64> {
    samples.iter().zip(floors).map(|(sample, floor)| sample.gross_ns - floor.gross_ns).collect()
}

/// Floods of a service that the ring decides, and of one that counts connections.
pub fn measure(lab: &mut Lab, amount: &Amount) -> Result<(Vec<Row>, Vec<Target>)> {
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    let kind = (SERVICE.family.name(), SERVICE.protocol.name(), amount.tuples);
    for (way, algo) in [(Way::Settled, "maglev"), (LEAST, LEAST.name())] {
        for (in_window, when) in [(false, "at rest"), (true, "in a window")] {
            eprintln!("measuring floods, {algo} {when}");
            let mut bases = Rounds::default();
            for (flood, flags) in FLOODS {
                let pair =
                    Pair::load(lab, way, in_window, format!("{algo}, {flood} flood {when}"), flags, amount.tuples)?;
                let Rounds { floor, base, flooded } = pair.run(lab, amount)?;
                let ratios = nets(&flooded, &floor).into_iter().zip(nets(&base, &floor)).map(|(of, to)| of / to);
                let what = format!("net time, {} / no flood", pair.case);
                targets.push(Target::at_most(Promise::Floods, what, "", median(ratios), RATIO_MAX));
                rows.push(Row::new(pair.flooded.0.names(), pair.case, kind, &flooded, &floor));
                bases.base.extend(base);
                bases.floor.extend(floor);
            }
            let names = ("weir", SERVICE.mode.name());
            rows.push(Row::new(names, format!("{algo}, no flood {when}"), kind, &bases.base, &bases.floor));
        }
    }
    Ok((rows, targets))
}
