//! Floods of random tuples, many times what the flow table holds, beside live flows, through the loaded program.

use anyhow::{Result, ensure};
use lb_core::abi::{service::Algo, stats::FlowEvent};
use lb_userspace::{
    model::Limits,
    plan::{MapSizes, Times},
};
use xtask::capability::{PINNED, available};

use super::{
    number,
    play::Play,
    program::Loaded,
    promises::open,
    setup::Setup,
    step::{Change, Flood, How, Step},
};

/// Live flows.
const LIVE: u16 = 1000;
/// Flows that the table is made for.
const FLOWS_MAX: u32 = 2048;
/// Packets of each flood, unless `WEIR_FLOOD` says otherwise.
const PACKETS: u64 = 40_000;
/// Packets between two looks at the live flows.
const BURST: u16 = 4000;

#[test]
fn no_live_flow_is_dropped_moved_or_evicted_by_a_flood() -> Result<()> {
    if !available(&PINNED, "floods through the loaded program") {
        return Ok(());
    }
    let packets = number("WEIR_FLOOD", PACKETS)?;
    let limits = Limits { services_max: 4, backends_max: 64, ring_slots_max: 16_384, flows_max: FLOWS_MAX };
    let mut loaded = Loaded::new(MapSizes::of(&limits))?;
    let count = |loaded: &Loaded, event| anyhow::Ok(loaded.events()?.get(&event).copied().unwrap_or(0));
    let failed = |loaded: &Loaded| count(loaded, FlowEvent::InsertFailed);
    for (algo, window) in
        [(Algo::Hashed, false), (Algo::Hashed, true), (Algo::LeastConnections, false), (Algo::LeastConnections, true)]
    {
        let setup = Setup { algo, drain_s: 300, ..Setup::new(12, 10, 251, Times { announce_s: 4, window_s: 600 }) };
        let before = failed(&loaded)?;
        let mut play = Play::new(&mut loaded, vec![setup], None)?;
        open(&mut play, 0, LIVE)?;
        if window {
            play.step(Step::Change(0, Change::Add(11), How::Whole))?;
            play.step(Step::Change(0, Change::Remove(2), How::Whole))?;
            play.step(Step::Wait(5000))?;
        }
        // A flow that was seen once since it may move makes room in need; one that was seen again never does.
        play.talk_all()?;
        play.talk_all()?;
        for flood in [Flood::Syn, Flood::Ack, Flood::Mixed] {
            for burst in 0..packets / u64::from(BURST) {
                play.step(Step::Flood(burst, flood, BURST))?;
                // A live flow that was evicted would be learned anew, and go on, if its slot still has the same owner.
                let learned = count(play.place(), FlowEvent::Learned)?;
                play.talk_all()?;
                let again = count(play.place(), FlowEvent::Learned)? - learned;
                ensure!(again == 0, "{algo:?}, window {window}: {again} live flows were evicted");
                play.step(Step::Wait(400))?;
            }
        }
        let live = play.rightful().len();
        ensure!(live == usize::from(LIVE), "{algo:?}, window {window}: {live} flows are live");
        let full = failed(play.place())? - before;
        println!("{algo:?}, window {window}: {full} insertions failed, {LIVE} flows live");
        ensure!(full > 0 || (algo == Algo::Hashed && !window), "the table did not overflow");
    }
    Ok(())
}
