//! What is promised of live flows while a service changes, at the size at which it is promised, through the loaded program.

use anyhow::{Result, bail, ensure};
use lb_core::abi::{ring::Inputs, service::Algo, stats::FlowEvent};
use lb_userspace::{
    model::Limits,
    plan::{MapSizes, Times},
};
use xtask::capability::{PINNED, available};

use super::{
    place::{Host, Place, records},
    play::Play,
    program::Loaded,
    setup::{Setup, sizes},
    step::{ATTEMPTS, Answer, Change, How, Step},
};

/// Flows that are live.
const FLOWS: u16 = 20_000;
/// Backends at the beginning.
const BACKENDS: u8 = 100;
/// Slots of the ring.
const SLOTS: u32 = 65_537;
/// An answer that comes at once.
pub const AT_ONCE: Answer = Answer { delays_ms: [20; ATTEMPTS], duplicate_ms: 0 };

fn lookups(loaded: &Loaded) -> Result<u64> {
    Ok(loaded.events()?.get(&FlowEvent::Lookup).copied().unwrap_or(0))
}

/// Slots that are not settled, of those of the ring.
fn unsettled(play: &Play<'_, Loaded>, slots: u32) -> Result<u32> {
    Ok(play.present()?.services().map(|(_, service)| service.window.counts(slots).iter().sum::<u32>()).sum())
}

/// Opens `count` flows with tuples from `first` on, and has them answered.
pub fn open<P: Place>(play: &mut Play<'_, P>, first: u16, count: u16) -> Result<()> {
    for at in 0..count {
        play.step(Step::Open(first + at, AT_ONCE))?;
        if at % 500 == 499 {
            play.step(Step::Wait(50))?;
        }
    }
    play.step(Step::Wait(50))
}

#[test]
fn a_maglev_service_changes_under_20000_flows_and_none_moves() -> Result<()> {
    if !available(&PINNED, "20,000 flows through the loaded program") {
        return Ok(());
    }
    let limits = Limits { services_max: 4, backends_max: 400, ring_slots_max: 8 * SLOTS, flows_max: 65_536 };
    let mut loaded = Loaded::new(MapSizes::of(&limits))?;
    let times = Times { announce_s: 4, window_s: 60 };
    let setup = Setup { drain_s: 300, ..Setup::new(110, BACKENDS.into(), SLOTS, times) };
    let mut play = Play::new(&mut loaded, vec![setup], None)?;
    let rested = lookups(play.place())?;
    open(&mut play, 0, FLOWS)?;
    play.talk_all()?;
    ensure!(play.rightful().len() == usize::from(FLOWS), "only {} flows are live", play.rightful().len());
    // At rest nothing is recorded, and no packet reads the table.
    ensure!(records(play.place()) == 0, "{} records at rest", records(play.place()));
    ensure!(lookups(play.place())? == rested, "packets of settled slots read the table");

    // One backend more: what is recorded is what the ring moved, give or take a fifth.
    play.step(Step::Change(0, Change::Add(BACKENDS), How::Whole))?;
    play.step(Step::Wait(5000))?;
    play.talk_all()?;
    let (recorded, moved) = (records(play.place()) as f64, f64::from(unsettled(&play, SLOTS)?));
    let expected = moved / f64::from(SLOTS) * f64::from(FLOWS);
    println!("{recorded} flows recorded, {moved} slots moved, which is {expected:.0} flows");
    ensure!(recorded > 0.0 && recorded <= 1.2 * expected, "{recorded} flows recorded instead of {expected}");

    let changes = [
        (Change::Remove(3), How::Whole),
        (Change::Weight(5, 3), How::Paused(40_000, 9000)),
        (Change::Add(101), How::Whole),
        (Change::Remove(10), How::Crashed(30_000, 9000)),
        (Change::Add(102), How::Whole),
        (Change::Remove(11), How::Whole),
        (Change::Add(103), How::Crashed(50_000, 1)),
        (Change::Remove(12), How::Whole),
        (Change::Add(104), How::Paused(64_000, 20_000)),
        (Change::Remove(13), How::Whole),
        (Change::Add(105), How::Whole),
        (Change::Remove(14), How::Crashed(65_000, 0)),
        (Change::Add(3), How::Whole),
        (Change::Die(20), How::Paused(20_000, 100)),
        (Change::Recover(20), How::Whole),
        (Change::Weight(30, 0), How::Whole),
    ];
    for (change, how) in changes {
        play.step(Step::Change(0, change, how))?;
        play.step(Step::Wait(3000))?;
        play.talk_all()?;
    }
    play.step(Step::Stop)?;
    play.talk_all()?;
    play.step(Step::Start(5))?;
    for _ in 0..4 {
        play.step(Step::Wait(20_000))?;
        play.talk_all()?;
    }
    let live = play.rightful().len();
    println!("{live} of {FLOWS} flows are still live");
    // Those of the backend that died are not.
    ensure!(live > usize::from(FLOWS) * 97 / 100, "only {live} flows are left");
    Ok(())
}

/// All servers drain under live flows, each of which stays; new ones find nobody, until a server takes new flows again.
fn drain_all<P: Place>(place: &mut P, track_all: bool) -> Result<()> {
    let setup = Setup { track_all, drain_s: 300, ..Setup::new(6, 6, 251, Times { announce_s: 4, window_s: 60 }) };
    let mut play = Play::new(place, vec![setup], None)?;
    open(&mut play, 0, 200)?;
    play.talk_all()?;
    ensure!(play.rightful().len() == 200, "{} of 200 flows are live", play.rightful().len());
    play.step(Step::Change(0, Change::DrainAll, How::Whole))?;
    for at in 0..16 {
        play.talk_all()?;
        play.step(Step::Wait(10_000))?;
        // A SYN that goes to a drained server would be noticed there.
        open(&mut play, 300 + at, 1)?;
    }
    // The last of those clients gives up.
    play.step(Step::Wait(20_000))?;
    play.talk_all()?;
    ensure!(play.rightful().len() == 200, "{} of 200 flows are live in the end", play.rightful().len());
    play.step(Step::Change(0, Change::Weight(2, 1), How::Whole))?;
    play.step(Step::Wait(6000))?;
    open(&mut play, 400, 20)?;
    play.talk_all()?;
    ensure!(play.rightful().len() == 220, "{} of 220 flows are live", play.rightful().len());
    play.finish()?;
    Ok(())
}

#[test]
fn a_service_whose_last_backends_drain_keeps_its_flows() -> Result<()> {
    for track_all in [false, true] {
        drain_all(&mut Host::new(sizes()), track_all)?;
        if available(&PINNED, "flows through the loaded program") {
            drain_all(&mut Loaded::new(sizes())?, track_all)?;
        }
    }
    Ok(())
}

#[test]
fn algorithm_ring_and_inputs_change_without_moving_a_flow() -> Result<()> {
    if !available(&PINNED, "flows through the loaded program") {
        return Ok(());
    }
    let limits = Limits { services_max: 4, backends_max: 64, ring_slots_max: 65_536, flows_max: 16_384 };
    let mut loaded = Loaded::new(MapSizes::of(&limits))?;
    let setup = Setup::new(10, 8, 1009, Times { announce_s: 4, window_s: 60 });
    let mut play = Play::new(&mut loaded, vec![setup], None)?;
    let changes = [
        Change::RingSize(2003),
        Change::Inputs(Inputs::Source),
        Change::Algo(Algo::Turns),
        Change::Weight(2, 3),
        Change::Algo(Algo::LeastConnections),
        Change::Inputs(Inputs::Tuple),
        Change::Algo(Algo::RandomTwo),
        Change::Algo(Algo::Hashed),
        Change::RingSize(1009),
    ];
    for (first, change) in (0..).step_by(200).zip(changes) {
        open(&mut play, first, 200)?;
        play.step(Step::Change(0, change, How::Whole))?;
        for _ in 0..3 {
            play.step(Step::Wait(7000))?;
            play.talk_all()?;
        }
    }
    let live = play.rightful().len();
    ensure!(live == 200 * changes.len(), "only {live} flows are live");
    play.finish().map(drop)
}

#[test]
fn a_drain_says_how_many_flows_are_left_and_ends_with_the_last() -> Result<()> {
    if !available(&PINNED, "a drain through the loaded program") {
        return Ok(());
    }
    let mut loaded = Loaded::new(sizes())?;
    let times = Times { announce_s: 4, window_s: 40 };
    let setup = Setup { track_all: true, drain_s: 3000, ..Setup::new(5, 4, 251, times) };
    let mut play = Play::new(&mut loaded, vec![setup], None)?;
    open(&mut play, 0, 200)?;
    play.step(Step::Change(0, Change::Remove(1), How::Whole))?;
    play.step(Step::Wait(8000))?;
    let id = |play: &Play<'_, Loaded>| {
        let mut leaving =
            play.present()?.services().flat_map(|(_, service)| &service.backends).filter(|b| b.leaves_s.is_some());
        anyhow::Ok(leaving.next().map(|backend| backend.id))
    };
    let draining = id(&play)?.ok_or_else(|| anyhow::anyhow!("nothing drains"))?;
    // New flows go elsewhere, which every SYN of the play is held to.
    open(&mut play, 300, 200)?;
    let mut left = play.rightful().into_iter().filter(|n| *n == 1).count();
    ensure!(left > 20, "only {left} flows on the backend that drains");
    loop {
        play.talk_all()?;
        let shown = play.place().active(draining) as u32;
        ensure!(shown as usize == left, "{shown} flows are shown to be left, {left} are");
        play.step(Step::Wait(300))?;
        ensure!(id(&play)?.is_some(), "the drain ended with {left} flows left");
        if !play.end_one_of(1)? {
            break;
        }
        left -= 1;
    }
    // Closing records go first, and a look at the table has to see it.
    for _ in 0..4 {
        play.talk_all()?;
        play.step(Step::Wait(5000))?;
    }
    ensure!(id(&play)?.is_none(), "the drain goes on although its last flow ended");
    Ok(())
}

/// Where flows go without a limit, and with one: to the ring's own backend, or if that is full to another, which is counted.
#[test]
fn a_full_backend_spills_along_the_ring_and_every_flow_that_does_is_counted() -> Result<()> {
    if !available(&PINNED, "limits through the loaded program") {
        return Ok(());
    }
    const LIMIT: u32 = 5;
    let mut loaded = Loaded::new(sizes())?;
    let spilled = |loaded: &Loaded| anyhow::Ok(loaded.events()?.get(&FlowEvent::Spilled).copied().unwrap_or(0));
    let mut went = Vec::new();
    for limit in [0, LIMIT] {
        let mut setup = Setup { track_all: true, ..Setup::new(4, 4, 251, Times { announce_s: 4, window_s: 40 }) };
        setup.servers.iter_mut().for_each(|server| server.limit = limit);
        let before = spilled(&loaded)?;
        let mut play = Play::new(&mut loaded, vec![setup], None)?;
        open(&mut play, 0, 17)?;
        play.talk_all()?;
        went.push((play.rightful(), spilled(play.place())? - before));
    }
    let [(own, 0), (limited, counted)] = &went[..] else { bail!("flows spill without a limit: {went:?}") };
    let (mut held, mut expected) = ([0u32; 4], 0);
    for (own, to) in own.iter().zip(limited) {
        let full = held[usize::from(*own)] == LIMIT;
        ensure!((own != to) == full, "with {held:?} connections, a flow of server {own} went to {to}");
        held[usize::from(*to)] += 1;
        expected += u64::from(full);
    }
    ensure!(own.len() == 17 && held.iter().all(|held| *held <= LIMIT), "{held:?}");
    ensure!(expected > 0 && *counted == expected, "{counted} flows are counted as spilled, {expected} were");
    Ok(())
}
