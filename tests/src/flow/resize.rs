//! The flow table gets another size, and the program another release, under flows that talk at every step, through the links.

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use lb_core::abi::{flow::SHAPE, service::Algo};
use lb_userspace::{
    dataplane::{
        kernel::KernelCounters,
        load::{How as Loaded, LoadError},
        resize::{BEFORE, NEXT, Progress, Resize},
    },
    model::Limits,
    plan::{MapSizes, Times},
};
use xtask::capability::{LAB, available};

use super::{
    linked::Linked,
    place::{Place as _, drift},
    play::Play,
    promises::open,
    setup::Setup,
    step::{Change, How, Step},
};

/// Flows that are live, all recorded; an odd number, as of those below, so that each comes in by one link and by the other.
const FLOWS: u16 = 4001;
/// Flows that are live while agents die.
const FEW: u16 = 601;
/// More steps than a change takes.
const STEPS_MAX: usize = 40;
/// Flows that are opened between two steps.
const MORE: u16 = 11;

fn sizes(flows_max: u32) -> MapSizes {
    MapSizes::of(&Limits { services_max: 4, backends_max: 64, ring_slots_max: 16_384, flows_max })
}

/// A service of which every flow is recorded, so that one whose record is lost goes elsewhere.
fn recorded() -> Setup {
    let times = Times { announce_s: 4, window_s: 3600 };
    Setup { algo: Algo::LeastConnections, drain_s: 3600, ..Setup::new(12, 10, 251, times) }
}

/// Steps towards another size, at most so many, while flows talk and begin after each. Says whether that was all.
fn steps(play: &mut Play<'_, Linked>, flows_max: u32, most: usize, first: &mut u16) -> Result<bool> {
    let (pins, sizes) = (play.place().pins().clone(), sizes(flows_max));
    let mut resize = Resize::new(&pins, &sizes)?;
    for _ in 0..most {
        let progress = resize.advance()?;
        play.place_mut().look()?;
        play.talk_all()?;
        open(play, *first, MORE)?;
        *first += MORE;
        match progress {
            Progress::More => {}
            Progress::Rest => return Ok(true),
            Progress::Left(left) => bail!("{left} records are left where there is room"),
        }
    }
    Ok(false)
}

/// An agent comes: it ends what was begun, towards the size that it wants, and goes on.
fn come(play: &mut Play<'_, Linked>, flows_max: u32, first: &mut u16) -> Result<()> {
    ensure!(steps(play, flows_max, STEPS_MAX, first)?, "a change does not end");
    let attached = play.place_mut().load(sizes(flows_max))?;
    ensure!(attached.iter().all(|a| a.how == Loaded::Kept), "what runs is what is wanted: {attached:?}");
    play.step(Step::Start(1000))?;
    play.talk_all()
}

fn no_drift(play: &Play<'_, Linked>) -> Result<()> {
    let drifted = drift(play.place(), play.place().sizes().backends);
    ensure!(drifted.is_none(), "ACTIVE has drifted (id, counted, found): {drifted:?}");
    Ok(())
}

#[test]
fn the_table_grows_and_shrinks_under_4000_flows_and_none_moves() -> Result<()> {
    if !available(&LAB, "flows through attached programs") {
        return Ok(());
    }
    let mut linked = Linked::new(sizes(8192))?;
    let mut play = Play::new(&mut linked, vec![recorded()], None)?;
    let mut first = FLOWS;
    open(&mut play, 0, FLOWS)?;
    for flows_max in [65_536, 4500] {
        let before = opened(&play)?;
        let began = (first, Instant::now());
        play.step(Step::Stop)?;
        come(&mut play, flows_max, &mut first)?;
        println!("to {flows_max} in {:.1} s, {} flows meanwhile", began.1.elapsed().as_secs_f32(), first - began.0);
        no_drift(&play)?;
        let news = opened(&play)? - before;
        ensure!(news == u64::from(first - began.0), "{news} flows are counted as opened, {} were", first - began.0);
    }
    let live = play.rightful().len();
    ensure!(live == usize::from(first), "only {live} of {first} flows are live");

    // Where the live ones have no room nothing happens, and the numbers are told.
    let tags = play.place().tags()?;
    let refused = play.place_mut().load(sizes(1024)).err().context("4,000 flows do not fit 1,024 places")?;
    let told = matches!(
        refused.downcast_ref(),
        Some(LoadError::FlowsDoNotFit { live, flows_max: 1024 }) if *live == u64::from(first)
    );
    ensure!(told && refused.to_string().contains(&first.to_string()), "{refused}");
    ensure!(play.place().tags()? == tags, "programs changed");
    play.step(Step::Change(0, Change::Add(11), How::Whole))?;
    play.talk_all()
}

/// The pins of flow tables that there are.
fn pinned(play: &Play<'_, Linked>) -> Vec<&'static str> {
    let pins = play.place().pins();
    [SHAPE.name, NEXT, BEFORE].into_iter().filter(|name| pins.map(name).exists()).collect()
}

/// Agents die one after another, each a few steps further; the next one goes on, whether it wants the same size or another.
#[test]
fn agents_die_at_each_step_of_a_change_and_no_flow_moves() -> Result<()> {
    if !available(&LAB, "flows through attached programs") {
        return Ok(());
    }
    let mut linked = Linked::new(sizes(2048))?;
    let mut play = Play::new(&mut linked, vec![recorded()], None)?;
    let mut first = FEW;
    open(&mut play, 0, FEW)?;
    play.step(Step::Stop)?;
    let (making, between, moving) = (&[SHAPE.name, NEXT][..], &[NEXT, BEFORE][..], &[SHAPE.name, BEFORE][..]);
    let lives = [
        // Made; then known to one of the links; then to both.
        (4096, 1, making),
        (4096, 1, making),
        (4096, 2, making),
        // Another size is wanted: what was made goes, and is made anew.
        (16_384, 4, making),
        (16_384, 3, between),
        // Records go to the new table by one link, and by both.
        (16_384, 2, moving),
        (16_384, 2, moving),
        // A third size: what was begun is ended first. One link knows the new table alone, the other still both.
        (8192, 3, moving),
    ];
    for (flows_max, most, left) in lives {
        ensure!(!steps(&mut play, flows_max, most, &mut first)?, "the change is over");
        ensure!(
            pinned(&play) == left,
            "{:?} are pinned after {most} steps to {flows_max}, not {left:?}",
            pinned(&play)
        );
        play.talk_all()?;
    }
    come(&mut play, 8192, &mut first)?;
    no_drift(&play)?;
    // Given up before it began: the old size is wanted again.
    play.step(Step::Stop)?;
    steps(&mut play, 2048, 2, &mut first)?;
    come(&mut play, 8192, &mut first)?;
    no_drift(&play)?;
    ensure!(pinned(&play) == [SHAPE.name], "{:?} are pinned at the end", pinned(&play));
    let live = play.rightful().len();
    ensure!(live == usize::from(first), "only {live} of {first} flows are live");
    play.step(Step::Change(0, Change::Remove(1), How::Whole))?;
    play.talk_all()
}

#[test]
fn another_release_of_the_program_takes_over_and_no_flow_moves() -> Result<()> {
    if !available(&LAB, "flows through attached programs") {
        return Ok(());
    }
    let mut linked = Linked::new(sizes(8192))?;
    let newer = linked.tags()?;
    linked.downgrade()?;
    ensure!(linked.tags()?.iter().all(|tag| !newer.contains(tag)), "the older release is the newer one");
    let mut play = Play::new(&mut linked, vec![recorded()], None)?;
    open(&mut play, 0, FLOWS)?;
    play.step(Step::Stop)?;
    play.talk_all()?;
    let attached = play.place_mut().load(sizes(8192))?;
    ensure!(attached.iter().all(|a| a.how == Loaded::Upgraded), "{attached:?}");
    ensure!(play.place().tags()? == newer, "the programs are not those of this release");
    play.talk_all()?;
    play.step(Step::Start(1))?;
    play.talk_all()?;
    let live = play.rightful().len();
    ensure!(live == usize::from(FLOWS), "only {live} flows are live");
    // Both at once: another release, and another size.
    play.place_mut().downgrade()?;
    play.step(Step::Stop)?;
    let attached = play.place_mut().load(sizes(65_536))?;
    ensure!(attached.iter().all(|a| a.how == Loaded::Kept), "{attached:?}");
    ensure!(play.place().tags()? == newer, "the programs are not those of this release");
    play.step(Step::Start(1))?;
    play.talk_all()?;
    no_drift(&play)
}

/// Flows that were opened, by the totals of backends.
fn opened(play: &Play<'_, Linked>) -> Result<u64> {
    let ids: Vec<u32> = (1..play.place().sizes().backends).collect();
    let totals = KernelCounters::open(play.place().pins())?.flow_totals(&ids)?;
    Ok(totals.values().map(|total| total.opened).sum())
}
