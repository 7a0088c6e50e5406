//! Packets on two CPUs at once, while the agent's side plans, dies, sweeps and gives the flow table another size.
//!
//! Two threads, each on a CPU of its own, own half of the flows each, and both send on those that they share. An agent's time goes on
//! in steps, between which every flow has spoken; records live by the kernel's time, which is short here.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::Xdp;
use lb_core::abi::{ring::Inputs, service::Algo};
use lb_userspace::{
    dataplane::{
        pin::Pins,
        resize::{Progress, Resize},
    },
    model::Limits,
    plan::{MapSizes, Times},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use xtask::capability::{LAB, available};

use super::{
    linked::{Linked, programs, run},
    packet::{flag, frame},
    place::{Place as _, Sent, drift},
    play::Play,
    setup::{Setup, WEB},
    step::{Change, How, Step},
};

/// Threads that send.
const THREADS: u32 = 2;
/// Flows of each thread, and as many that all of them share.
const FLOWS: u16 = 150;
/// Rounds after which a flow ends and another begins.
const ROUNDS: u32 = 100;
/// Seconds of the agent that go by between two rounds of every thread.
const STEP_MS: u32 = 1500;
/// Time between two looks at what threads have done.
const PAUSE: Duration = Duration::from_millis(1);
/// Rounds at most, so that a test whose agent does not get on ends.
const ROUNDS_MAX: u32 = 1_000_000;

fn sizes(flows_max: u32) -> MapSizes {
    MapSizes::of(&Limits { services_max: 4, backends_max: 64, ring_slots_max: 16_384, flows_max })
}

/// What threads tell each other.
struct Shared {
    stop: AtomicBool,
    /// Raised when the links have other programs.
    programs: AtomicU32,
    /// Rounds that each thread has gone.
    rounds: [AtomicU32; THREADS as usize],
    /// Which of the programs each thread has.
    taken: [AtomicU32; THREADS as usize],
    failed: AtomicBool,
}

/// A flow of a thread: its tuple, its rightful server, the round in which it began.
#[derive(Clone, Copy)]
struct Flow {
    tuple: u32,
    server: u16,
    round: u32,
}

fn packet(tuple: u32, flags: u8) -> Vec<u8> {
    let [_, a, b, c] = tuple.to_be_bytes();
    frame(&WEB, [198, 18, a, b], 1024 + u16::from(c), flags)
}

/// A SYN and the ACK of its answer, at the same server.
fn opens(program: &Xdp, tuple: u32, round: u32) -> Result<Flow> {
    let Sent::To(server) = run(program, &packet(tuple, flag::SYN))? else { bail!("the SYN of {tuple} went nowhere") };
    let flow = Flow { tuple, server, round };
    talks(program, flow, flag::ACK)?;
    Ok(flow)
}

fn talks(program: &Xdp, flow: Flow, flags: u8) -> Result<()> {
    let sent = run(program, &packet(flow.tuple, flags))?;
    let Flow { tuple, server, round } = flow;
    ensure!(sent == Sent::To(server), "moved: flow {tuple} of server {server}, since round {round}: {sent:?}");
    Ok(())
}

/// What a thread does until it is told to stop. Gives how many flows it began.
fn send(pins: &Pins, shared: &Shared, of_all: &[Flow], thread: u32, cpu: usize) -> Result<u32> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only)?;
    let at = thread as usize;
    let mut mine = programs(pins)?;
    let mut next = (thread + 1) << 20;
    let mut flows = Vec::new();
    for round in 0..ROUNDS_MAX {
        let now = shared.programs.load(Ordering::Acquire);
        if shared.taken[at].load(Ordering::Relaxed) != now {
            mine = programs(pins)?;
            shared.taken[at].store(now, Ordering::Release);
        }
        let program = mine.get(at).context("each thread has a link")?;
        // The shared ones from both ends, so that both threads meet at some flow.
        for n in 0..of_all.len() {
            let flow = if thread == 0 { of_all[n] } else { of_all[of_all.len() - 1 - n] };
            talks(program, flow, flag::ACK)?;
        }
        while flows.len() < usize::from(FLOWS) {
            flows.push(opens(program, next, round)?);
            next += 1;
        }
        for flow in &flows {
            talks(program, *flow, flag::ACK)?;
        }
        let ends = |flow: &Flow| round >= flow.round + ROUNDS + flow.tuple % ROUNDS;
        for flow in flows.extract_if(.., |flow| ends(flow)) {
            talks(program, flow, flag::FIN | flag::ACK)?;
        }
        shared.rounds[at].store(round + 1, Ordering::Release);
        if shared.stop.load(Ordering::Acquire) {
            return Ok(next - ((thread + 1) << 20));
        }
    }
    bail!("the agent does not get on")
}

/// Waits until every thread has gone a whole round, with the programs that the links have now.
fn round(shared: &Shared) -> Result<()> {
    let programs = shared.programs.fetch_add(1, Ordering::AcqRel) + 1;
    let taken = |at: usize| shared.taken[at].load(Ordering::Acquire) == programs;
    let rounds = |at: usize| shared.rounds[at].load(Ordering::Acquire);
    for at in 0..THREADS as usize {
        while !taken(at) && !shared.failed.load(Ordering::Acquire) {
            std::thread::sleep(PAUSE);
        }
        let before = rounds(at);
        while rounds(at) < before + 2 && !shared.failed.load(Ordering::Acquire) {
            std::thread::sleep(PAUSE);
        }
    }
    ensure!(!shared.failed.load(Ordering::Acquire), "a thread ended");
    Ok(())
}

/// Changes that no live flow has to leave for.
const CHANGES: [(Change, How); 14] = [
    (Change::Add(10), How::Whole),
    (Change::Remove(2), How::Paused(30_000, 100)),
    (Change::Weight(3, 4), How::Whole),
    (Change::Algo(Algo::LeastConnections), How::Whole),
    (Change::Remove(4), How::Crashed(20_000, 7)),
    (Change::Add(2), How::Whole),
    (Change::RingSize(307), How::Whole),
    (Change::Algo(Algo::RandomTwo), How::Crashed(50_000, 40)),
    (Change::Add(4), How::Whole),
    (Change::Algo(Algo::Turns), How::Whole),
    (Change::Inputs(Inputs::Source), How::Whole),
    (Change::Algo(Algo::Hashed), How::Paused(10_000, 10)),
    (Change::Inputs(Inputs::Tuple), How::Whole),
    (Change::Weight(5, 0), How::Whole),
];

fn agent(play: &mut Play<'_, Linked>, shared: &Shared) -> Result<()> {
    let mut flows_max = [131_072, 32_768, 65_536].into_iter().cycle();
    for (n, (change, how)) in CHANGES.into_iter().enumerate() {
        play.step(Step::Change(0, change, how))?;
        for _ in 0..8 {
            round(shared)?;
            play.step(Step::Wait(STEP_MS))?;
        }
        if n % 7 == 3 {
            let (pins, sizes) = (play.place().pins().clone(), sizes(flows_max.next().unwrap_or(65_536)));
            play.step(Step::Stop)?;
            let mut resize = Resize::new(&pins, &sizes)?;
            while resize.advance()? != Progress::Rest {
                round(shared)?;
            }
            println!("{} records moved", resize.moved());
            play.place_mut().resized(sizes)?;
            play.step(Step::Start(100 * n as u32))?;
        }
    }
    Ok(())
}

#[test]
fn packets_on_two_cpus_move_no_flow_while_the_agent_works() -> Result<()> {
    if !available(&LAB, "packets on two CPUs through attached programs") {
        return Ok(());
    }
    let may = sched_getaffinity(Pid::from_raw(0))?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|cpu| may.is_set(*cpu).unwrap_or(false)).collect();
    let mut linked = Linked::new(sizes(65_536))?;
    linked.is_busy = true;
    let pins = linked.pins().clone();
    let times = Times { announce_s: 4, window_s: 20 };
    let setup = Setup { drain_s: 36_000, established_s: 3600, ..Setup::new(12, 10, 251, times) };
    let mut play = Play::new(&mut linked, vec![setup], None)?;
    let first = programs(&pins)?;
    let program = first.first().context("there is a link")?;
    let of_all: Vec<Flow> = (0..u32::from(FLOWS)).map(|tuple| opens(program, tuple, 0)).collect::<Result<_>>()?;
    let shared = Shared {
        stop: AtomicBool::new(false),
        programs: AtomicU32::new(0),
        rounds: Default::default(),
        taken: Default::default(),
        failed: AtomicBool::new(false),
    };
    let began: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (pins, shared, of_all) = (&pins, &shared, &of_all);
                let cpu = cpus[thread as usize % cpus.len()];
                scope.spawn(move || {
                    let sent = send(pins, shared, of_all, thread, cpu);
                    shared.failed.fetch_or(sent.is_err(), Ordering::AcqRel);
                    sent
                })
            })
            .collect();
        let worked = agent(&mut play, &shared);
        shared.stop.store(true, Ordering::Release);
        let sent: Result<Vec<u32>> = threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
            .collect();
        // What a thread met says more than that it ended.
        let sent = sent?;
        worked.map(|()| sent.into_iter().sum())
    })?;
    println!("{began} flows began on {} CPUs", cpus.len().min(THREADS as usize));
    ensure!(began > 3 * u32::from(FLOWS), "hardly a flow began: {began}");
    let drifted = drift(play.place(), play.place().sizes().backends);
    ensure!(drifted.is_none(), "ACTIVE has drifted (id, counted, found): {drifted:?}");
    Ok(())
}
