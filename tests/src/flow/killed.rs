//! An agent that is killed between any two stores of a change moves no flow, nor does the one that takes over.
//!
//! Sequences kill agents at points that they draw; here every store of some changes is such a point.

use anyhow::{Context as _, Result, ensure};
use lb_core::abi::{ring::Inputs, service::Algo};
use lb_userspace::{
    model::Limits,
    plan::{MapSizes, Times},
};
use xtask::capability::{PINNED, available};

use super::{
    packet::flag,
    place::{Host, Place, Sent},
    program::Loaded,
    rig::Rig,
    setup::Setup,
};

/// Flows that are live.
const FLOWS: u16 = 40;
/// Slots of the ring: few, so that there are few stores.
const SLOTS: u32 = 31;
/// Stores of a change at most.
const STORES_MAX: u32 = 4000;
/// Of how many points one is tried in the loaded program.
const STRIDE: u32 = 5;

fn sizes() -> MapSizes {
    MapSizes::of(&Limits { services_max: 2, backends_max: 24, ring_slots_max: 1024, flows_max: 256 })
}

/// A change, and one that went before it and is in its window.
struct Case {
    what: &'static str,
    earlier: fn(&mut Setup),
    change: fn(&mut Setup),
}

const CASES: [Case; 9] = [
    Case { what: "one is added", earlier: |_| {}, change: |s| s.servers[8].listed = true },
    Case { what: "one is drained", earlier: |_| {}, change: |s| s.servers[3].listed = false },
    Case { what: "a weight", earlier: |_| {}, change: |s| s.servers[5].weight = 3 },
    Case { what: "all drain", earlier: |_| {}, change: |s| s.servers.iter_mut().for_each(|server| server.weight = 0) },
    Case {
        what: "one is replaced within the window of another change",
        earlier: |s| (s.servers[1].listed, s.servers[8].listed) = (false, true),
        change: |s| (s.servers[2].listed, s.servers[9].listed) = (false, true),
    },
    Case {
        what: "one that drains is added again",
        earlier: |s| s.servers[3].listed = false,
        change: |s| s.servers[3].listed = true,
    },
    Case { what: "the algorithm", earlier: |_| {}, change: |s| s.algo = Algo::LeastConnections },
    Case {
        what: "back to the ring, whose size is another",
        earlier: |s| s.algo = Algo::Turns,
        change: |s| (s.algo, s.ring_size) = (Algo::Hashed, 37),
    },
    Case {
        what: "hash inputs within the window of another change",
        earlier: |s| s.servers[6].weight = 2,
        change: |s| s.inputs = Inputs::Source,
    },
];

/// An agent dies after so many stores of the change. Says whether it did before they were all done.
fn dies_at<P: Place>(place: &mut P, case: &Case, stores: u32) -> Result<bool> {
    let times = Times { announce_s: 4, window_s: 40 };
    let mut setup = Setup { drain_s: 3000, ..Setup::new(10, 8, SLOTS, times) };
    let mut rig = Rig::new(place, &setup.alone())?;
    let flows = rig.open_all(0..FLOWS)?;
    let first = setup.clone();
    (case.earlier)(&mut setup);
    if setup != first {
        rig.change(&setup.alone())?;
        rig.talk(&flows)?;
        rig.pass(6, &setup.alone())?;
        rig.talk(&flows)?;
    }
    (case.change)(&mut setup);
    let wanted = setup.alone();
    let died = rig.die(&wanted, stores)?;
    // Nobody is there: who is live goes on, and who begins finds somebody, as long as anybody takes new flows.
    rig.talk(&flows).context("without an agent")?;
    let begins = rig.send(FLOWS, flag::SYN)?;
    let takes = setup.servers.iter().any(|server| setup.takes_new(server));
    ensure!(!takes || matches!(begins, Sent::To(_)), "a connection begins and finds nobody: {begins:?}");
    rig.adopt(&wanted)?;
    rig.talk(&flows).context("with the next agent")?;
    for seconds in [5, 20, 25, 5] {
        rig.pass(seconds, &wanted)?;
        rig.talk(&flows).with_context(|| format!("after another {seconds} s"))?;
    }
    Ok(died)
}

fn dies_everywhere<P: Place>(place: &mut P, stride: u32) -> Result<()> {
    for (first, case) in CASES.iter().enumerate() {
        let mut points = 0;
        for stores in (first as u32 % stride..STORES_MAX).step_by(stride as usize) {
            let died =
                dies_at(place, case, stores).with_context(|| format!("{}, killed after {stores} stores", case.what))?;
            if !died {
                break;
            }
            points += 1;
        }
        println!("{}: {points} points", case.what);
        ensure!(points * stride > 15 && points * stride < STORES_MAX, "{}: {points} points", case.what);
    }
    Ok(())
}

#[test]
fn an_agent_that_dies_at_any_store_of_a_change_moves_no_flow() -> Result<()> {
    dies_everywhere(&mut Host::new(sizes()), 1)
}

#[test]
fn an_agent_that_dies_at_stores_of_a_change_moves_no_flow_in_the_loaded_program() -> Result<()> {
    if !available(&PINNED, "agents that die, through the loaded program") {
        return Ok(());
    }
    dies_everywhere(&mut Loaded::new(sizes())?, STRIDE)
}
