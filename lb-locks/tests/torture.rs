//! The torture in memory: the same schedules, protocol and verdict as over servers, in a fraction of the time. Each protection
//! taken away is noticed.

use std::{sync::atomic::AtomicBool, time::Duration};

use lb_locks::{
    round::Fencing,
    torture::{
        check::Verdict,
        conductor::{Outcome, Torture, run_in_memory},
        schedule::Fault,
    },
};

fn torture(seed: u64, faults: &[Fault]) -> Torture {
    Torture {
        seed,
        duration: Duration::from_secs(2),
        clients: 6,
        nodes: 5,
        faults: faults.to_vec(),
        ttl: Duration::from_millis(100),
        node_timeout: Duration::from_millis(25),
        quarantine: true,
        fencing: Fencing::TwoRounds,
    }
}

fn run(torture: &Torture) -> Outcome {
    let outcome = run_in_memory(torture, &mut |_| {}, &AtomicBool::new(false)).unwrap();
    println!("seed {}: {:?}", torture.seed, outcome.verdict);
    outcome
}

/// The verdicts over several seeds, side by side.
fn verdicts(seeds: std::ops::Range<u64>, with: impl Fn(u64) -> Torture + Sync) -> Vec<Verdict> {
    std::thread::scope(|scope| {
        let with = &with;
        let runs: Vec<_> = seeds.map(|seed| scope.spawn(move || run(&with(seed)).verdict)).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

#[test]
fn every_promise_is_kept_under_every_fault() {
    let all = verdicts(0..4, |seed| torture(seed, &Fault::PROMISED));
    assert!(all.iter().all(Verdict::held), "{all:?}");
    let sum = |of: fn(&Verdict) -> u64| all.iter().map(of).sum::<u64>();
    assert!(sum(|verdict| verdict.acquisitions) > 50 && sum(|verdict| verdict.writes) > 50, "{all:?}");
    assert!(sum(|verdict| verdict.refused) > 0, "nobody wrote late, so this says nothing about the fence: {all:?}");
}

#[test]
fn without_quarantine_two_hold() {
    let all = verdicts(0..2, |seed| Torture { quarantine: false, ..torture(seed, &[Fault::Empty]) });
    assert!(all.iter().any(|verdict| verdict.overlaps.count > 0), "{all:?}");
}

#[test]
fn without_the_second_round_tokens_go_back() {
    let faults = [Fault::Partition, Fault::Stop, Fault::Kill];
    let without = |seed| Torture { fencing: Fencing::OneRound, ..torture(seed, &faults) };
    let all = verdicts(0..8, without);
    assert!(all.iter().any(|verdict| verdict.inversions.count + verdict.equal_tokens.count > 0), "{all:?}");
    assert!(all.iter().all(|verdict| verdict.overlaps.count == 0), "the lock itself is not to blame: {all:?}");
}

#[test]
fn without_the_fence_late_writes_are_taken() {
    let all = verdicts(0..2, |seed| Torture { fencing: Fencing::None, ..torture(seed, &[Fault::Pause]) });
    assert!(all.iter().any(|verdict| verdict.disordered_writes.count > 0), "{all:?}");
    assert!(all.iter().all(|verdict| verdict.overlaps.count == 0), "the lock itself is not to blame: {all:?}");
}

#[test]
fn moved_clocks_let_two_hold_and_the_fence_stops_them() {
    let all = verdicts(0..2, |seed| torture(seed, &[Fault::Clock]));
    assert!(all.iter().any(|verdict| verdict.overlaps.count > 0), "{all:?}");
    assert!(all.iter().all(|verdict| verdict.disordered_writes.count == 0), "{all:?}");
}

#[test]
fn an_end_before_its_time_has_a_verdict() {
    let stop = AtomicBool::new(false);
    let long = Torture { duration: Duration::from_secs(3_600), ..torture(1, &[]) };
    let mut progress = |progress: &lb_locks::torture::conductor::Progress| {
        stop.store(progress.acquisitions > 0, std::sync::atomic::Ordering::Release);
    };
    let outcome = run_in_memory(&long, &mut progress, &stop).unwrap();
    assert!(outcome.interrupted && outcome.verdict.held() && outcome.verdict.acquisitions > 0, "{:?}", outcome.verdict);
}
