//! The whole control plane in a simulation: the very code that runs in production ([`Process`] and all that it decides with),
//! under a virtual clock, with a network that loses and delays, processes that are killed, paused and cut off, and a store that
//! fails over. A seed is a schedule; a schedule that breaks a promise prints its seed.
//!
//! Each protection taken away makes the same schedules fail, so they do test it.
//!
//! [`Process`]: lb_userspace::orchestrator::process::Process

mod fault;
mod promise;
mod run;
mod store;
mod world;

use std::{env, thread, time::Duration};

use run::{Report, Run};
use world::{SOUND, World};

/// Schedules of the sound world; `WEIR_SCHEDULES` asks for more, `WEIR_SEED` for one.
const SCHEDULES: u64 = 400;
/// Schedules within which a world without one of its protections must have failed.
const WEAK_SCHEDULES: u64 = 600;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Plays `seeds`, on two threads.
fn play(world: World, from: u64, count: u64) -> Vec<(u64, Report)> {
    let half = |first: u64| {
        (from + first..from + count).step_by(2).map(|seed| (seed, Run::new(world, seed).play())).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        let mut reports = half(0);
        reports.extend(other.join().unwrap());
        reports
    })
}

/// The first seed that breaks a promise, and how.
fn first_broken(world: World, count: u64) -> Option<(u64, String)> {
    (0..count).find_map(|seed| Run::new(world, seed).play().broken.map(|broken| (seed, broken)))
}

#[test]
fn every_promise_holds_on_every_schedule() {
    let (from, count) = match number("WEIR_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("WEIR_SCHEDULES").unwrap_or(SCHEDULES)),
    };
    for (what, world, count) in [("sound", SOUND, count), ("torn", World { torn: true, ..SOUND }, count.div_ceil(4))] {
        let reports = play(world, from, count);
        let broken = reports.iter().filter_map(|(seed, report)| Some((seed, report.broken.as_ref()?)));
        let broken: Vec<String> = broken.map(|(seed, how)| format!("WEIR_SEED={seed}: {how}")).collect();
        assert!(broken.is_empty(), "world {what}, {} schedules:\n{}", broken.len(), broken.join("\n"));
        let sum = |of: fn(&Report) -> usize| reports.iter().map(|(_, report)| of(report)).sum::<usize>();
        println!(
            "{what}: {count} schedules, {} elections, {} effects, {} up, {} down, unchecked for {} s at most",
            sum(|r| r.elections),
            sum(|r| r.effects),
            sum(|r| r.ups),
            sum(|r| r.downs),
            reports.iter().map(|(_, report)| report.unchecked_s).max().unwrap_or(0),
        );
        // A simulation in which nothing happens proves nothing.
        assert!(count < 100 || (sum(|r| r.elections) as u64 > count && sum(|r| r.effects) as u64 > count));
        assert!(count < 100 || (sum(|r| r.downs) > 0 && sum(|r| r.ups) > 0));
    }
}

#[test]
fn noise_alone_does_not_flap() {
    let world = World { nodes_die: false, load_changes: false, ..SOUND };
    for (seed, report) in play(world, 0, 100) {
        assert_eq!(report.broken, None, "WEIR_SEED={seed}: {report:?}");
        // Up once too far at a peak of the noise and back after a whole window; never up again.
        assert!(report.turns <= 1, "WEIR_SEED={seed}: {report:?}");
    }
}

#[test]
fn each_protection_is_needed() {
    for (what, world) in [
        ("no fences at the store", World { fences: false, torn: true, ..SOUND }),
        ("acting until the lease ends", World { act: Duration::from_secs(10), ..SOUND }),
        ("executing before recording", World { record_first: false, ..SOUND }),
        ("a missing metric is zero", World { missing_is_missing: false, ..SOUND }),
    ] {
        let broken = first_broken(world, WEAK_SCHEDULES);
        let (seed, how) = broken.unwrap_or_else(|| panic!("{what}: no schedule of {WEAK_SCHEDULES} notices"));
        println!("{what}: seed {seed}, {how}");
    }
}

#[test]
fn a_schedule_is_its_seed() {
    for seed in [3, 77] {
        assert_eq!(Run::new(SOUND, seed).play(), Run::new(SOUND, seed).play());
    }
}
