//! The oracle: random packets, the host's verdict and bytes against the loaded program's.
//!
//! The seed is printed on failure and set by `WEIR_SEED`; `WEIR_PACKETS` changes how many packets are drawn.

pub mod generate;
pub mod program;
pub mod world;

use anyhow::{Context as _, Result, bail, ensure};
use lb_core::{
    host::{Frame, HEADROOM, Snapshot},
    pipeline,
    reason::Reason,
    rewrite::Exit,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use xtask::capability::{PROGRAM, available};

use crate::craft;

use self::program::{Counters, Outcome, Program};

/// Packets of a full run.
const PACKETS: u64 = 100_000;
const SEED: u64 = 0x0077_6569_7200;

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}

/// What the host says about a frame.
pub fn model(snapshot: &Snapshot, frame: &[u8]) -> (Exit, Outcome) {
    model_behind(HEADROOM, snapshot, frame)
}

/// What the host says about a frame with `headroom` bytes in front of it.
pub fn model_behind(headroom: usize, snapshot: &Snapshot, frame: &[u8]) -> (Exit, Outcome) {
    let mut copy = Frame::with_headroom(frame, headroom);
    let exit = pipeline::process(&mut copy, snapshot);
    let action = match exit {
        Exit::Drop(_) => 1,
        Exit::Pass(_) => 2,
        Exit::Transmit(_) => 3,
        Exit::Forward { ifindex, .. } if ifindex == world::INGRESS => 3,
        Exit::Forward { .. } => 4,
    };
    (exit, Outcome { action, frame: copy.as_bytes().to_vec() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How the run is spoiled, to see that it notices.
#[derive(Clone, Copy, PartialEq)]
enum Spoil {
    Nothing,
    /// One bit of one backend's address in the program's maps.
    TableBit,
    /// One byte of one frame that the host made.
    HostByte,
    /// One packet that the program counts and the host does not.
    Count,
}

/// Draws packets, gives them to both and compares. An error names the first difference.
fn compare(seed: u64, packets: u64, spoil: Spoil) -> Result<Counters> {
    let mut rng = StdRng::seed_from_u64(seed);
    let next_hops = program::enter_namespace()?;
    let (snapshot, population) = world::build(&mut rng, next_hops);
    let mut program = Program::load(&snapshot)?;
    if spoil == Spoil::TableBit {
        let mut backends = snapshot.backends.clone();
        backends[1].addr[15] ^= 1;
        program.set::<_, 64>("BACKENDS", &backends)?;
    }
    let spoiled = rng.random_range(0..packets);
    let mut counters = Counters::new();
    let mut forwarded = vec![(0, 0); snapshot.backends.len()];
    for n in 0..packets {
        let frame = generate::frame(&mut rng, &population);
        let (exit, mut expected) = model(&snapshot, &frame);
        if spoil == Spoil::HostByte && n == spoiled {
            expected.frame[13] ^= 1;
        }
        let seen = program.run(&frame)?;
        ensure!(
            expected == seen,
            "packet {n}: {}\n  host    action {} frame {}\n  program action {} frame {}\n  host's reason {}",
            hex(&frame),
            expected.action,
            hex(&expected.frame),
            seen.action,
            hex(&seen.frame),
            exit.reason().name()
        );
        // What was right when it came must be right when it leaves, as judged by code that knows the RFCs and not lb-core.
        let changed = !matches!(exit, Exit::Drop(_) | Exit::Pass(Reason::NotVip));
        if changed && craft::wrong(&frame).is_none() {
            let wrong = craft::wrong(&seen.frame);
            ensure!(wrong.is_none(), "packet {n} left wrong, {wrong:?}: {} became {}", hex(&frame), hex(&seen.frame));
        }
        let bytes = frame.len() as u64;
        let counter = counters.entry(exit.reason()).or_default();
        *counter = (counter.0 + 1, counter.1 + bytes);
        if let Exit::Forward { backend, .. } = exit {
            let counter = &mut forwarded[backend as usize];
            *counter = (counter.0 + 1, counter.1 + bytes);
        }
    }
    if spoil == Spoil::Count {
        program.run(&[0; 14])?;
    }
    let seen = program.reasons()?;
    ensure!(counters == seen, "reasons: host {counters:?}, program {seen:?}");
    let total: u64 = seen.values().map(|(packets, _)| packets).sum();
    ensure!(total == packets, "{packets} packets sent, {total} counted");
    for (id, expected) in forwarded.iter().enumerate().skip(1) {
        let seen = program.backend(id as u32)?;
        ensure!(*expected == seen, "backend {id}: host {expected:?}, program {seen:?}");
    }
    Ok(counters)
}

/// Runs a comparison in a thread, which takes its namespace with it.
fn in_thread(seed: u64, packets: u64, spoil: Spoil) -> Result<Counters> {
    match std::thread::spawn(move || compare(seed, packets, spoil)).join() {
        Ok(result) => result,
        Err(_) => bail!("the comparison panicked"),
    }
}

#[test]
fn host_and_program_agree_on_random_packets() -> Result<()> {
    if !available(&PROGRAM, "oracle") {
        return Ok(());
    }
    let (seed, packets) = (number("WEIR_SEED", SEED)?, number("WEIR_PACKETS", PACKETS)?);
    let counters = in_thread(seed, packets, Spoil::Nothing).with_context(|| format!("repeat with WEIR_SEED={seed}"))?;
    // A run that exercises few reasons proves little.
    ensure!(counters.len() >= 35 || packets < PACKETS, "only {} reasons met: {counters:?}", counters.len());
    for (reason, (packets, _)) in counters {
        println!("{packets:>8} {}", reason.name());
    }
    Ok(())
}

#[test]
fn a_broken_bit_is_caught() {
    if !available(&PROGRAM, "oracle, broken bits") {
        return;
    }
    for (spoil, packets) in [(Spoil::TableBit, 5000), (Spoil::HostByte, 200), (Spoil::Count, 50)] {
        assert!(in_thread(SEED, packets, spoil).is_err());
    }
    assert!(in_thread(SEED, 200, Spoil::Nothing).is_ok());
}
