//! No connection moves: random sequences of packets, changes and restarts against a reference that remembers every flow.
//!
//! A failing sequence is shown with its seed and with what is left of it once every step that is not needed is gone. `WEIR_SEED` is
//! the first seed, `WEIR_SEQUENCES` the number of sequences.

mod dying;
mod floods;
mod killed;
pub mod linked;
mod packet;
mod place;
mod play;
mod played;
mod program;
mod promises;
mod race;
mod resize;
mod rig;
mod settings;
mod setup;
mod shrink;
mod spread;
mod step;
mod times;
mod weaken;

use std::{
    num::NonZero,
    sync::atomic::{AtomicU64, Ordering},
    thread::available_parallelism,
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_core::abi::service::Algo;
use xtask::capability::{PINNED, available};

use self::{
    place::{Host, Place},
    play::{Play, TIMES},
    played::Played,
    program::Loaded,
    setup::{Setup, sizes},
    step::{ATTEMPTS, Answer, Change, How, SERVERS, Step},
    weaken::Rule,
};

/// Steps of a sequence.
const STEPS: usize = 500;
/// Sequences against the loaded program, unless `WEIR_SEQUENCES` says otherwise.
const SEQUENCES: u64 = 200;
/// Sequences against the host.
const HOST_SEQUENCES: u64 = 200;
/// Sequences within which a broken rule is noticed.
const BROKEN_SEQUENCES: u64 = 60;
const SEED: u64 = 0x0066_6c6f_7700;

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}

/// A service alone.
fn alone() -> Vec<Setup> {
    vec![Setup::new(SERVERS.into(), usize::from(SERVERS) / 2, 251, TIMES)]
}

/// Plays steps from the beginning to the end of all windows. The error comes with the number of the step at which it was met.
fn play<P: Place>(
    place: &mut P,
    setups: Vec<Setup>,
    steps: &[Step],
    broken: Option<Rule>,
) -> Result<Played, (usize, anyhow::Error)> {
    let mut play = Play::new(place, setups, broken).map_err(|error| (0, error))?;
    for (at, step) in steps.iter().enumerate() {
        play.step(*step).map_err(|error| (at, error))?;
    }
    play.finish().map_err(|error| (steps.len(), error))
}

/// Plays the sequence of a seed; a failure names the seed and the steps that it takes.
fn sequence<P: Place>(place: &mut P, seed: u64, broken: Option<Rule>) -> Result<Played> {
    let (steps, several) = (step::sequence(seed, STEPS), || Setup::several(TIMES).into());
    let (at, error) = match play(place, several(), &steps, broken) {
        Ok(played) => return Ok(played),
        Err((_, error)) if broken.is_some() => return Err(error),
        Err(failed) => failed,
    };
    let fails = |steps: &[Step]| play(place, several(), steps, broken).err().map(|(_, error)| error.to_string());
    let (steps, last) = shrink::shrink(steps.into_iter().take(at + 1).collect(), fails);
    let list: String = steps.iter().map(|step| format!("\n    {step:?}")).collect();
    bail!(
        "repeat with WEIR_SEED={seed} WEIR_SEQUENCES=1\n  {error}\n  {} steps are enough: {last:?}{list}",
        steps.len()
    )
}

/// Plays sequences, on as many threads as there are CPUs, each with a place of its own.
fn sequences<P: Place>(place: impl Fn() -> Result<P> + Sync, count: u64) -> Result<()> {
    let (seed, count) = (number("WEIR_SEED", SEED)?, number("WEIR_SEQUENCES", count)?);
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let work = || -> Result<Played> {
        let (mut place, mut played) = (place()?, Played::default());
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return Ok(played);
            }
            // The first failure ends the run: what the others have begun is played to its end.
            played += sequence(&mut place, seed + n, None).inspect_err(|_| next.store(count, Ordering::Relaxed))?;
        }
    };
    let threads = available_parallelism().map_or(1, NonZero::get) as u64;
    let mut played = Played::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.min(count)).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            played += thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        anyhow::Ok(())
    })?;
    println!("{count} sequences in {:.1} s on {threads} threads: {played:?}", began.elapsed().as_secs_f32());
    // A run in which little happens proves little.
    ensure!(played.flows >= count * 50 && played.kept >= count * 200, "too little happened: {played:?}");
    Ok(())
}

/// Each rule, broken in the harness, makes flows move (or, rule c, packets go to the dead) within a few sequences.
#[test]
fn each_broken_rule_is_noticed() -> Result<()> {
    let mut host = Host::new(sizes());
    for rule in Rule::ALL {
        host.hides_half_open = rule == Rule::A;
        let errors = (0..BROKEN_SEQUENCES).map(|n| (n, sequence(&mut host, SEED + n, Some(rule)).err()));
        let mut found = errors.filter_map(|(n, error)| Some((n, error?.to_string())));
        let noticed = found.find(|(_, error)| error.starts_with("moved") || error.contains("which is down"));
        let (n, error) = noticed.with_context(|| format!("rule {rule:?} is broken and nobody notices"))?;
        println!("{rule:?}: sequence {n}: {error}");
        host.hides_half_open = false;
        sequence(&mut host, SEED + n, None)?;
    }
    Ok(())
}

/// A SYN that follows the record of an earlier flow with its tuple keeps it for as long as the SYN may be repeated.
#[test]
fn a_record_that_a_syn_follows_does_not_expire_before_the_syn_is_repeated() -> Result<()> {
    let quick = Answer { delays_ms: [20; ATTEMPTS], duplicate_ms: 0 };
    let slow = Answer { delays_ms: [1020, 20, 20, 20], duplicate_ms: 0 };
    for silent_ms in (47_000..52_000).step_by(200) {
        let turns = Step::Change(0, Change::Algo(Algo::Turns), How::Whole);
        let opened = (0..40).flat_map(|tuple| [Step::Open(tuple, quick), Step::Wait(1)]);
        let again = (0..40).flat_map(|tuple| [Step::Open(tuple, slow), Step::Wait(1)]);
        let waits = |ms| std::iter::once(Step::Wait(ms));
        let steps: Vec<Step> = [turns]
            .into_iter()
            .chain(waits(6000))
            .chain(opened)
            .chain(waits(silent_ms))
            .chain(again)
            .chain(waits(3000))
            .collect();
        play(&mut Host::new(sizes()), alone(), &steps, None).map_err(|(_, error)| error)?;
    }
    Ok(())
}

/// Where a ring of another size is announced while a drain is no longer, new flows go on as they did.
#[test]
fn a_ring_of_another_size_gives_no_new_flow_to_a_server_that_drains() -> Result<()> {
    let quick = Answer { delays_ms: [20; ATTEMPTS], duplicate_ms: 0 };
    for algo in [Algo::Hashed, Algo::Turns] {
        let [algo, remove, size] = [Change::Algo(algo), Change::Remove(1), Change::RingSize(257)]
            .map(|change| Step::Change(0, change, How::Whole));
        let mut steps = vec![algo, Step::Wait(8000), remove, Step::Wait(7000), size];
        // The check of new flows stands in the play.
        steps.extend((0..120).map(|tuple| Step::Open(tuple, quick)));
        play(&mut Host::new(sizes()), alone(), &steps, None).map_err(|(_, error)| error)?;
    }
    Ok(())
}

#[test]
fn no_flow_moves_on_the_host() -> Result<()> {
    sequences(|| Ok(Host::new(sizes())), HOST_SEQUENCES)
}

#[test]
fn no_flow_moves_in_the_loaded_program() -> Result<()> {
    if !available(&PINNED, "flow sequences against the loaded program") {
        return Ok(());
    }
    sequences(|| Loaded::new(sizes()), SEQUENCES)
}
