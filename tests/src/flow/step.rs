//! Steps of a sequence, and sequences made from a seed.
//!
//! A step holds everything that was drawn for it, and means something whatever came before it: so that a failing sequence can be
//! shortened by leaving steps out. Refuses to know what a step does.

use lb_core::abi::{
    ring::Inputs,
    service::{Algo, OnMarkedDown},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// Services of a sequence.
pub const SERVICES: u8 = 5;
/// Tuples that clients use, of all services.
pub const TUPLES: u16 = 600;
/// Servers that can be configured, of each service.
pub const SERVERS: u8 = 12;
/// Of so many sequences, one changes the size of the flow table: the kernel has to look at a program three times for each change.
const RESIZES_IN: u32 = 16;
/// Attempts of a client to connect: at 0, 1, 3 and 7 s.
pub const ATTEMPTS: usize = 4;

/// How a connection is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Milliseconds until the answer to each SYN is there; 0 is never.
    pub delays_ms: [u16; ATTEMPTS],
    /// Milliseconds after which the network delivers the first SYN again; 0 is never.
    pub duplicate_ms: u16,
}

/// What a flood consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// SYNs.
    Syn,
    /// ACKs.
    Ack,
    /// Both.
    Mixed,
}

/// What becomes different.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A server is configured, again perhaps.
    Add(u8),
    /// A server is no longer configured.
    Remove(u8),
    /// A server gets a weight; 0 drains it.
    Weight(u8, u8),
    /// Every server gets the weight 0: new flows find nobody.
    DrainAll,
    /// A server goes into maintenance, or comes out of it.
    Maint(u8),
    /// A server dies.
    Die(u8),
    /// Every server is taken for dead, and all answer.
    DieAll,
    /// It answers again.
    Recover(u8),
    /// Every server answers again.
    RecoverAll,
    /// A server may have that many connections; 0 is no limit.
    Limit(u8, u32),
    /// Every server may.
    LimitEach(u32),
    /// New flows are placed otherwise.
    Algo(Algo),
    /// The ring has another size.
    RingSize(u32),
    /// Slots are chosen by something else.
    Inputs(Inputs),
    /// Every flow is recorded, or not.
    TrackAll(bool),
    /// Flows of dead servers are treated otherwise.
    OnMarkedDown(OnMarkedDown),
}

/// How a plan is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As usual.
    Whole,
    /// Packets come in after this share (of 65536) of its operations and this many stores of the next one.
    Paused(u16, u16),
    /// The agent dies there, and the next one adopts what it left.
    Crashed(u16, u16),
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A client opens a connection, or begins to send datagrams, unless one with that tuple is open.
    Open(u16, Answer),
    /// Open flows send, as many as the second number from that pick on.
    Talk(u16, u8),
    /// An open flow ends by FIN or by RST.
    End(u16, bool),
    /// Milliseconds pass.
    Wait(u32),
    /// Packets of as many random tuples come in.
    Flood(u64, Flood, u16),
    /// The configuration of a service, by its number, or one of its servers changes.
    Change(u8, Change, How),
    /// The agent is stopped.
    Stop,
    /// An agent starts; its clock begins at this second.
    Start(u32),
    /// An agent comes that wants a flow table for so many flows, and dies after this many steps towards it if it takes more.
    Resize(u32, u8),
}

fn answer(rng: &mut StdRng) -> Answer {
    let mut delay = || {
        // As in the model of the rules: a few slow answers, a few lost ones, most of which the server repeats.
        let slow = match rng.random_range(0..35) {
            0..30 => 20,
            30..34 => 300,
            _ => 1100,
        };
        match rng.random_range(0..100) {
            0..85 => slow,
            85..97 => slow + 1000,
            _ => 0,
        }
    };
    let delays_ms = std::array::from_fn(|_| delay());
    let duplicate_ms = if rng.random_range(0..12) == 0 { rng.random_range(50..1500) } else { 0 };
    Answer { delays_ms, duplicate_ms }
}

fn how(rng: &mut StdRng) -> How {
    let (ops, stores) = (rng.random(), rng.random_range(0..600));
    match rng.random_range(0..10) {
        0..6 => How::Whole,
        6..8 => How::Paused(ops, stores),
        _ => How::Crashed(ops, stores),
    }
}

fn change(rng: &mut StdRng) -> Change {
    let server = rng.random_range(0..SERVERS);
    match rng.random_range(0..100) {
        0..20 => Change::Add(server),
        20..37 => Change::Remove(server),
        37..47 => Change::Weight(server, rng.random_range(0..4)),
        47 => Change::DrainAll,
        48..50 => Change::Maint(server),
        50..58 => Change::Die(server),
        58 => Change::DieAll,
        59..70 => Change::Recover(server),
        70..72 => Change::RecoverAll,
        72..79 => {
            let algos = [Algo::Hashed, Algo::Hashed, Algo::Turns, Algo::LeastConnections, Algo::RandomTwo];
            Change::Algo(algos[rng.random_range(0..algos.len())])
        }
        79..85 => Change::RingSize([251, 257, 307, 509][rng.random_range(0..4)]),
        85..88 => Change::Inputs(if rng.random() { Inputs::Source } else { Inputs::Tuple }),
        88..92 => Change::TrackAll(rng.random()),
        92..94 => Change::Limit(server, rng.random_range(0..6)),
        94..96 => Change::LimitEach(if rng.random() { rng.random_range(1..6) } else { 0 }),
        _ => {
            let choices = [OnMarkedDown::Rehash, OnMarkedDown::Rehash, OnMarkedDown::Keep, OnMarkedDown::Reset];
            Change::OnMarkedDown(choices[rng.random_range(0..choices.len())])
        }
    }
}

/// A service: more often than not the one that the sequence is about, so that much happens to it.
fn service(rng: &mut StdRng, about: u8) -> u8 {
    if rng.random_range(0..5) < 3 { about } else { rng.random_range(0..SERVICES) }
}

fn open(rng: &mut StdRng, service: u8) -> Step {
    let services = u16::from(SERVICES);
    let tuple = rng.random_range(0..TUPLES / services) * services + u16::from(service);
    Step::Open(tuple, answer(rng))
}

/// A sequence of at least `len` steps.
pub fn sequence(seed: u64, len: usize) -> Vec<Step> {
    let mut rng = StdRng::seed_from_u64(seed);
    let rng = &mut rng;
    // Most sequences keep one character, so that long windows of one kind are met as well as all kinds mixed.
    let settles = rng.random_range(0..4) == 0;
    let about = rng.random_range(0..SERVICES);
    let resizes = rng.random_range(0..RESIZES_IN) == 0;
    let mut steps = Vec::with_capacity(len + 8);
    while steps.len() < len {
        let service = service(rng, about);
        match rng.random_range(0..100) {
            0..38 => steps.push(open(rng, service)),
            38..60 => steps.push(Step::Talk(rng.random(), rng.random_range(1..16))),
            60..66 => steps.push(Step::End(rng.random(), rng.random_range(0..4) == 0)),
            66..84 => steps.push(Step::Wait(rng.random_range(10..1500))),
            84..87 => steps.push(Step::Wait(rng.random_range(1500..8000))),
            87 => {
                // Silence, but for a few.
                let waits: u32 = if settles { 6 } else { 2 };
                for _ in 0..rng.random_range(1..=waits) {
                    steps.push(Step::Wait(rng.random_range(8000..30_000)));
                    steps.push(Step::Talk(rng.random(), rng.random_range(4..60)));
                }
            }
            88 => {
                let floods = [Flood::Syn, Flood::Ack, Flood::Mixed];
                let flood = floods[rng.random_range(0..floods.len())];
                steps.push(Step::Flood(rng.random(), flood, rng.random_range(10..150)));
            }
            89..97 => steps.push(Step::Change(service, change(rng), how(rng))),
            97 => {
                // One after another, inside each other's windows.
                for _ in 0..5 {
                    let (old, new) = (rng.random_range(0..SERVERS), rng.random_range(0..SERVERS));
                    steps.push(Step::Change(service, Change::Add(new), how(rng)));
                    steps.push(open(rng, service));
                    steps.push(Step::Wait(rng.random_range(100..3000)));
                    steps.push(Step::Change(service, Change::Remove(old), how(rng)));
                    steps.push(Step::Talk(rng.random(), 20));
                    steps.push(Step::Wait(rng.random_range(100..7000)));
                }
            }
            98 if resizes => {
                let flows_max = [1024, 2048, 4096][rng.random_range(0..3)];
                steps.push(Step::Resize(flows_max, rng.random_range(0..8)));
                if rng.random() {
                    steps.push(Step::Wait(rng.random_range(10..3000)));
                }
                steps.push(Step::Start(rng.random()));
            }
            98 => {
                steps.push(Step::Stop);
                if rng.random() {
                    steps.push(Step::Wait(rng.random_range(10..20_000)));
                }
                steps.push(Step::Start(rng.random()));
            }
            _ => {
                // Taken out and put back.
                let server = rng.random_range(0..SERVERS);
                steps.push(Step::Change(service, Change::Remove(server), how(rng)));
                steps.push(Step::Wait(rng.random_range(100..12_000)));
                steps.push(Step::Talk(rng.random(), 30));
                steps.push(Step::Change(service, Change::Add(server), how(rng)));
            }
        }
    }
    steps
}
