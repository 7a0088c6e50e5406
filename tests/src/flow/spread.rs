//! How algorithms spread flows over backends, and that the counters they go by stay true, through the loaded program.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lb_core::{
    abi::{service::Algo, stats::FlowEvent},
    tables::{NextHop, Tables as _},
};
use lb_userspace::{
    dataplane::{
        apply,
        engine::{Clock, Engine},
        live::LiveTables,
    },
    model::Limits,
    plan::{Look, MapSizes, Times},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use xtask::capability::{PINNED, available};

use super::{
    dying::Dying,
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
        on_cpu(0)?;
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

    /// An agent comes, begins to lead to the service, and dies after so many stores.
    fn crash(&mut self, setup: &Setup, stores: u32) -> Result<()> {
        self.engine = None;
        let (memory, sizes) = (self.loaded.memory()?, self.loaded.sizes());
        let engine = Engine::start(memory, sizes, SECRETS, Clock { hz: self.loaded.hz(), now_s: 10 })?;
        let plan = engine.plan(&setup.alone(), 1, 10, &|_| 0)?;
        let mut memory = self.loaded.memory()?;
        let died = apply::write(&mut Dying { memory: &mut memory, stores }, &plan.ops).is_err();
        ensure!(died, "the change takes no more than {stores} stores");
        Ok(())
    }

    /// The agent's metric of how far the counts of flows are off what the table holds.
    fn drift(&self) -> u64 {
        let counts: Vec<u64> = (0..self.backends).map(|id| self.loaded.active(id)).collect();
        let mut look = Look::new(0);
        self.loaded.words().into_iter().for_each(|word| look.take(word, |_| 1, &HashSet::new()));
        look.compare(&counts, &counts);
        look.drift
    }

    /// Flows that are counted as established, by server.
    fn counted(&self, servers: usize) -> Result<Vec<u64>> {
        let present = self.engine.as_ref().context("an agent runs")?.present();
        let mut counted = vec![0; servers];
        for backend in present.services().flat_map(|(_, service)| &service.backends) {
            let server = counted.get_mut(usize::from(backend.key.addr[15])).context("a server")?;
            *server = u64::from(self.loaded.active(backend.id) as u32);
        }
        Ok(counted)
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

fn on_cpu(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &only)?)
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
    // An explanation goes on from there.
    let (_, service) =
        stage.engine.as_ref().context("an agent runs")?.present().services().next().context("a service")?;
    let explained = LiveTables::open(stage.loaded.pins(), |_| NextHop::NoRoute)?.turns(service.id).next;
    ensure!(explained == 1237, "turn {explained} is explained, 1237 were taken");
    // Each CPU has a turn of its own, so that together they are off by no more than one flow each.
    let may = sched_getaffinity(Pid::from_raw(std::process::id() as i32))?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| may.is_set(*cpu).unwrap_or(false)).take(2).collect();
    stage.set(&setup)?;
    let mut counts = [0u64; 10];
    for tuple in 0..407 {
        on_cpu(cpus[tuple as usize % 3 % cpus.len()])?;
        counts[usize::from(stage.open(tuple)?)] += 1;
        ensure!(spread(&counts) <= cpus.len() as u64, "after {tuple} flows on {cpus:?}: {counts:?}");
    }
    on_cpu(0)?;
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
    let counted = stage.counted(counts.len())?;
    ensure!(counted == counts, "{algo:?}: {counted:?} flows are counted, {counts:?} are open");
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
            stage.crash(&setup, cycle % 97)?;
            stage.adopt(&setup)?;
            stage.loaded.set_clock(u64::from(cycle) * 20_000 / 1000);
            let drifted = drift(&stage.loaded, stage.backends);
            ensure!(drifted.is_none(), "after {cycle} cycles (id, counted, found): {drifted:?}");
            ensure!(stage.drift() == 0, "after {cycle} cycles the metric is {}", stage.drift());
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

#[test]
fn at_the_rated_size_hardly_a_flow_finds_no_place() -> Result<()> {
    if !available(&PINNED, "a full table of the loaded program") {
        return Ok(());
    }
    const FLOWS: u32 = 65_536;
    let mut stage = Stage::new(FLOWS)?;
    stage.set(&Setup { algo: Algo::Turns, ..Setup::new(10, 10, 251, TIMES) })?;
    for tuple in 0..FLOWS {
        // Established, so that none makes room for another.
        stage.send(tuple, flag::SYN)?;
        stage.send(tuple, flag::ACK)?;
    }
    let events = stage.loaded.events()?;
    let count = |event| events.get(&event).copied().unwrap_or(0);
    let (failed, inserted) = (count(FlowEvent::InsertFailed), count(FlowEvent::Insert));
    println!("{failed} of {FLOWS} flows found no place");
    // 0.01 %; a flow without a place tries again with its second packet.
    ensure!(failed <= 2 * u64::from(FLOWS) / 10_000, "{failed} inserts failed");
    let counted: u64 = stage.counted(10)?.iter().sum();
    ensure!(inserted + 6 >= FLOWS.into() && counted <= inserted, "{inserted} inserted, {counted} counted");
    Ok(())
}
