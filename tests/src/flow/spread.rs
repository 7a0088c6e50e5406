//! How algorithms spread flows over backends, and that the counters they go by stay true, through the loaded program.

use std::{cmp::Reverse, collections::BinaryHeap};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_core::abi::service::Algo;
use lb_userspace::{
    dataplane::engine::{Clock, Engine},
    model::Limits,
    plan::{MapSizes, Times},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use xtask::capability::{PINNED, available};

use super::{
    number,
    packet::{flag, frame},
    place::{Place, Sent, drift},
    program::{Loaded, Quiet},
    setup::{SECRETS, Setup, WEB, wanted},
};

const TIMES: Times = Times { announce_s: 4, window_s: 40 };

/// A service in the program's maps.
struct Stage {
    loaded: Loaded,
    engine: Option<Engine<Quiet>>,
    backends: u32,
}

impl Stage {
    fn new(flows_max: u32) -> Result<Self> {
        // Turns are each CPU's own: on one of them, everything is in order.
        let mut cpu = CpuSet::new();
        cpu.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &cpu)?;
        let limits = Limits { services_max: 4, backends_max: 64, ring_slots_max: 65_536, flows_max };
        let sizes = MapSizes::of(&limits);
        Ok(Self { loaded: Loaded::new(sizes)?, engine: None, backends: sizes.backends })
    }

    /// Begins anew with a service.
    fn set(&mut self, setup: &Setup) -> Result<()> {
        self.engine = None;
        self.loaded.clear()?;
        self.adopt(setup)
    }

    /// An agent comes, to which the service is told.
    fn adopt(&mut self, setup: &Setup) -> Result<()> {
        self.engine = None;
        let (memory, sizes) = (self.loaded.memory()?, self.loaded.sizes());
        let mut engine = Engine::start(memory, sizes, SECRETS, Clock { hz: self.loaded.hz(), now_s: 10 })?;
        let plan = engine.plan(&wanted([setup]), 1, 10, &|_| 0)?;
        engine.apply(plan, std::time::Instant::now(), 10).map_err(|error| anyhow!("{error}"))?;
        self.engine = Some(engine);
        Ok(())
    }

    fn send(&self, tuple: u32, flags: u8) -> Result<u16> {
        let [_, high, low, last] = (tuple >> 8).to_be_bytes();
        match self.loaded.run(&frame(&WEB, [10, high, low, last], 1024 + (tuple & 0xff) as u16, flags))? {
            Sent::To(n) => Ok(n),
            other => bail!("{other:?}"),
        }
    }

    /// Opens a flow; the client's ACK follows it.
    fn open(&self, tuple: u32) -> Result<u16> {
        let n = self.send(tuple, flag::SYN)?;
        let same = self.send(tuple, flag::ACK)?;
        ensure!(same == n, "a flow of backend {n} went to {same}");
        Ok(n)
    }
}

fn spread(counts: &[u64]) -> u64 {
    counts.iter().max().copied().unwrap_or(0) - counts.iter().min().copied().unwrap_or(0)
}

#[test]
fn turns_are_exact_and_weights_are_kept() -> Result<()> {
    if !available(&PINNED, "distribution through the loaded program") {
        return Ok(());
    }
    let mut stage = Stage::new(131_072)?;
    let mut setup = Setup { algo: Algo::Turns, ..Setup::new(10, 10, 251, TIMES) };
    stage.set(&setup)?;
    let mut counts = [0u64; 10];
    for tuple in 0..1237 {
        counts[usize::from(stage.open(tuple)?)] += 1;
        ensure!(spread(&counts) <= 1, "after {tuple} flows: {counts:?}");
    }
    for (n, server) in setup.servers.iter_mut().enumerate() {
        server.weight = 1 + n as u32 * 3 % 7;
    }
    let sum: u32 = setup.servers.iter().map(|server| server.weight).sum();
    for algo in [Algo::Turns, Algo::LeastConnections] {
        setup.algo = algo;
        stage.set(&setup)?;
        let mut counts = [0u64; 10];
        const FLOWS: u32 = 100_000;
        for tuple in 0..FLOWS {
            counts[usize::from(stage.send(tuple, flag::SYN)?)] += 1;
        }
        for (count, server) in counts.iter().zip(&setup.servers) {
            let share = f64::from(FLOWS) * f64::from(server.weight) / f64::from(sum);
            let off = (*count as f64 - share).abs() / share;
            ensure!(off <= 0.01, "{algo:?}: weight {} of {sum} has {count} of {FLOWS} flows", server.weight);
        }
    }
    Ok(())
}

/// Opens flows of very different lifetimes; gives the share of samples in which every backend is within max(2, 2 %) of the mean, and
/// the mean spread.
fn churn(stage: &mut Stage, algo: Algo) -> Result<(f64, f64)> {
    stage.set(&Setup { algo, ..Setup::new(10, 10, 251, TIMES) })?;
    let mut rng = StdRng::seed_from_u64(7);
    let mut ends: BinaryHeap<Reverse<(u32, u32, u16)>> = BinaryHeap::new();
    let mut counts = [0u64; 10];
    let (mut samples, mut within, mut spreads) = (0u32, 0u32, 0u64);
    for at in 0..24_000u32 {
        while let Some(Reverse((_, tuple, n))) = ends.pop_if_due(at) {
            ensure!(stage.send(tuple, flag::FIN | flag::ACK)? == n, "a flow moved");
            counts[usize::from(n)] -= 1;
        }
        let n = stage.open(at)?;
        counts[usize::from(n)] += 1;
        // Nine of ten live for a moment, one lives two hundred times as long.
        let lives = if rng.random_range(0..10) == 0 { rng.random_range(4000..12_000) } else { rng.random_range(1..80) };
        ends.push(Reverse((at + lives, at, n)));
        if at >= 8000 && at % 20 == 0 {
            let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
            let bound = (0.02 * mean).max(2.0);
            within += u32::from(counts.iter().all(|count| (*count as f64 - mean).abs() <= bound));
            samples += 1;
            spreads += spread(&counts);
        }
    }
    Ok((f64::from(within) / f64::from(samples), spreads as f64 / f64::from(samples)))
}

trait Due<T> {
    /// Takes the first of what ends by `at`.
    fn pop_if_due(&mut self, at: u32) -> Option<T>;
}

impl Due<Reverse<(u32, u32, u16)>> for BinaryHeap<Reverse<(u32, u32, u16)>> {
    fn pop_if_due(&mut self, at: u32) -> Option<Reverse<(u32, u32, u16)>> {
        if self.peek().is_some_and(|Reverse((end, ..))| *end <= at) { self.pop() } else { None }
    }
}

#[test]
fn least_connections_stay_level_and_random_two_beats_round_robin_under_churn() -> Result<()> {
    if !available(&PINNED, "distribution through the loaded program") {
        return Ok(());
    }
    let mut stage = Stage::new(131_072)?;
    let (within, least) = churn(&mut stage, Algo::LeastConnections)?;
    let (_, turns) = churn(&mut stage, Algo::Turns)?;
    let (_, two) = churn(&mut stage, Algo::RandomTwo)?;
    println!(
        "least connections: {:.1} % of samples within, spread {least:.1}; turns {turns:.1}; two {two:.1}",
        within * 100.0
    );
    ensure!(within >= 0.99, "least_connections: only {:.1} % of samples are within", within * 100.0);
    ensure!(two * 3.0 <= turns, "random_two spreads {two:.1}, round_robin {turns:.1}");
    Ok(())
}

#[test]
fn active_counters_equal_a_recount_after_many_cycles_restarts_and_evictions() -> Result<()> {
    if !available(&PINNED, "counters of the loaded program") {
        return Ok(());
    }
    let cycles = number("WEIR_CYCLES", 1_000_000)? as u32;
    let mut stage = Stage::new(1024)?;
    let mut setup = Setup { algo: Algo::LeastConnections, ..Setup::new(10, 8, 251, TIMES) };
    stage.set(&setup)?;
    let restarts = 20;
    for cycle in 0..cycles {
        // Every third one ends, the others have to make room or find none.
        stage.send(cycle, flag::SYN)?;
        if cycle % 3 < 2 {
            stage.send(cycle, flag::ACK)?;
        }
        if cycle % 3 < 1 {
            stage.send(cycle, flag::FIN | flag::ACK)?;
        }
        if cycle % (cycles / restarts).max(1) == 0 {
            setup.servers[8].listed = !setup.servers[8].listed;
            stage.adopt(&setup)?;
            stage.loaded.set_clock(u64::from(cycle) * 20_000 / 1000);
            let drifted = drift(&stage.loaded, stage.backends);
            ensure!(drifted.is_none(), "after {cycle} cycles (id, counted, found): {drifted:?}");
        }
        if cycle % 500 == 0 {
            stage.loaded.set_clock(u64::from(cycle) * 20);
        }
    }
    stage.loaded.sweep()?;
    let drifted = drift(&stage.loaded, stage.backends);
    ensure!(drifted.is_none(), "after {cycles} cycles (id, counted, found): {drifted:?}");
    let counted: u64 = (0..stage.backends).map(|id| stage.loaded.active(id)).sum();
    ensure!(counted > 0, "nothing was counted at the end");
    stage.loaded.set_clock(u64::from(cycles) * 20 + 1_000_000);
    stage.loaded.sweep()?;
    let left: u64 = (0..stage.backends).map(|id| stage.loaded.active(id)).sum();
    ensure!(left == 0, "{left:#x} is left after everything expired");
    stage.engine.as_ref().context("an agent runs").map(drop)
}
