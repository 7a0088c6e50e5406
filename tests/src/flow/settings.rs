//! What single settings of a service promise of its flows: a backend that is down, one that is full, a client that stays where it is.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context as _, Result, bail, ensure};
use lb_core::abi::{
    flow::{self, Record},
    ring::{Extent, Inputs, Slot},
    service::OnMarkedDown,
    stats::FlowEvent,
};
use lb_userspace::{
    dataplane::apply::Memory as _,
    plan::{Op, PresentService, Wanted},
};
use xtask::capability::{PINNED, available};

use super::{
    packet::flag,
    place::{Host, Place, Sent},
    play::TIMES,
    program::Loaded,
    rig::{Flow, Rig},
    setup::{Setup, sizes},
};

/// The server that dies, or that is full.
const ONE: u16 = 2;
/// What it takes then.
const FULL: usize = 20;
/// Places of a ring that are tried after the flow's own.
const TRIES: usize = 16;

/// Every flow sends; those of the others stay, and those of the dead one fare as is configured. Gives where those went.
fn after_a_death<P: Place>(rig: &Rig<'_, P>, flows: &[Flow], on: OnMarkedDown) -> Result<BTreeMap<u16, Sent>> {
    let mut went = BTreeMap::new();
    for &(tuple, server) in flows {
        let sent = rig.send(tuple, flag::ACK)?;
        let right = match (on, sent) {
            _ if server != ONE => sent == Sent::To(server),
            (OnMarkedDown::Rehash, Sent::To(n)) => n != ONE,
            (OnMarkedDown::Keep, _) => sent == Sent::To(ONE),
            (OnMarkedDown::Reset, _) => sent == Sent::Reset,
            _ => false,
        };
        ensure!(right, "{on:?}: a packet of flow {tuple} of server {server}: {sent:?}");
        if server == ONE {
            went.insert(tuple, sent);
        }
    }
    Ok(went)
}

fn dies<P: Place>(place: &mut P, on_marked_down: OnMarkedDown, track_all: bool) -> Result<()> {
    let mut setup = Setup { on_marked_down, track_all, ..Setup::new(6, 6, 251, TIMES) };
    let mut rig = Rig::new(place, &setup.alone())?;
    let flows = rig.open_all(0..240)?;
    setup.servers[usize::from(ONE)].up = false;
    let plan = rig.plan(&setup.alone())?;
    // Its own entry alone: that it is down acts before a ring is built.
    let alone = plan.ops.iter().take_while(|op| matches!(op, Op::BackendWord { .. })).count();
    ensure!(alone > 0 && alone < plan.ops.len(), "{:?}", plan.ops.first());
    rig.write(&plan.ops[..alone])?;
    let at_once = after_a_death(&rig, &flows, on_marked_down)?;
    ensure!(at_once.len() > 20, "only {} flows of the server that died", at_once.len());
    for tuple in 1000..1040 {
        let (_, server) = rig.open(tuple)?;
        ensure!(server != ONE, "a new flow went to the dead server");
    }
    rig.apply(plan)?;
    for seconds in [1, 5, 10] {
        let later = after_a_death(&rig, &flows, on_marked_down)?;
        ensure!(later == at_once, "who left the dead server went on: {at_once:?} {later:?}");
        rig.pass(seconds, &setup.alone())?;
    }
    Ok(())
}

#[test]
fn flows_of_a_dead_backend_select_another_stay_or_are_reset() -> Result<()> {
    let loads = available(&PINNED, "a dead backend, through the loaded program");
    let mut loaded = if loads { Some(Loaded::new(sizes())?) } else { None };
    for on in [OnMarkedDown::Rehash, OnMarkedDown::Keep, OnMarkedDown::Reset] {
        for track_all in [false, true] {
            dies(&mut Host::new(sizes()), on, track_all)?;
            if let Some(loaded) = &mut loaded {
                dies(loaded, on, track_all)?;
            }
        }
    }
    Ok(())
}

/// The slot under which a flow was recorded, of the words before and after.
fn slot_of(before: &HashSet<u64>, after: &[u64]) -> Result<usize> {
    let new = after.iter().find(|word| flow::is_record(**word) && !before.contains(word));
    Ok(Record::unpack(*new.context("the flow is recorded")?).slot as usize)
}

#[test]
fn a_full_backend_spills_to_the_next_in_the_ring_and_each_is_counted() -> Result<()> {
    if !available(&PINNED, "a full backend, through the loaded program") {
        return Ok(());
    }
    let setup = Setup { track_all: true, ..Setup::new(4, 4, 251, TIMES) };
    let limited = |mut wanted: Wanted| {
        let backends = wanted.services.iter_mut().flat_map(|service| &mut service.backends);
        backends.filter(|b| b.key.addr[15] == ONE as u8).for_each(|b| b.max_connections = FULL as u32);
        wanted
    };
    let mut loaded = Loaded::new(sizes())?;
    let spilled = |loaded: &Loaded| anyhow::Ok(loaded.events()?.get(&FlowEvent::Spilled).copied().unwrap_or(0));
    let rig = Rig::new(&mut loaded, &limited(setup.alone()))?;
    let (_, service) = rig.present()?.services().next().context("a service")?;
    let servers: BTreeMap<u32, u16> = service.backends.iter().map(|b| (b.id, b.key.addr[15].into())).collect();
    let ring = rig.memory()?.ring(Extent::unpack(service.entry.ring)).context("a ring")?;
    let at = |slot: usize| servers.get(&Slot(ring[slot % ring.len()]).current()).copied().context("a server");
    // A new flow with the server that its slot has, which is where it belongs unless that is full.
    let opens = |tuple| {
        let before: HashSet<u64> = rig.place.words().into_iter().collect();
        let Sent::To(server) = rig.send(tuple, flag::SYN)? else { bail!("a SYN went nowhere") };
        let slot = slot_of(&before, &rig.place.words())?;
        rig.talk(&[(tuple, server)])?;
        anyhow::Ok((slot, server))
    };
    let mut of_one = Vec::new();
    let (before, mut past) = (spilled(rig.place)?, 0);
    for tuple in 0..240 {
        let (slot, server) = opens(tuple)?;
        let own = at(slot)?;
        let next = (1..=TRIES).map(|tries| at(slot + tries)).find(|next| !matches!(next, Ok(next) if *next == own));
        let full = own == ONE && of_one.len() == FULL;
        past += u64::from(full);
        let right = if full { next.context("a next one")?? } else { own };
        ensure!(
            server == right,
            "slot {slot} of server {own}, which has {} flows: {server}, not {right}",
            of_one.len()
        );
        if server == ONE {
            of_one.push((tuple, server));
        }
    }
    ensure!(of_one.len() == FULL && past > 20, "{} flows, {past} past the full one", of_one.len());
    ensure!(
        spilled(rig.place)? - before == past,
        "{} spilled flows are counted, {past} were",
        spilled(rig.place)? - before
    );
    // As soon as one of its flows ends it takes one again, and only one.
    let (ended, _) = of_one.pop().context("it has flows")?;
    ensure!(rig.send(ended, flag::FIN | flag::ACK)? == Sent::To(ONE), "its last packet");
    let mut again = 0;
    for tuple in 1000..1040 {
        let (slot, server) = opens(tuple)?;
        ensure!(at(slot)? != ONE || again > 0 || server == ONE, "there is room for one");
        again += u16::from(server == ONE);
    }
    ensure!(again == 1, "{again} flows took the place of one");
    rig.talk(&of_one)
}

#[test]
fn a_client_meets_one_server_where_its_address_decides() -> Result<()> {
    if !available(&PINNED, "source_hash through the loaded program") {
        return Ok(());
    }
    let mut loaded = Loaded::new(sizes())?;
    for (inputs, most) in [(Inputs::Source, 1), (Inputs::Tuple, 6)] {
        let setup = Setup { inputs, ..Setup::new(6, 6, 251, TIMES) };
        let rig = Rig::new(&mut loaded, &setup.alone())?;
        // 32 clients, each with twelve connections.
        let mut met: BTreeMap<u16, BTreeSet<u16>> = BTreeMap::new();
        for (tuple, server) in rig.open_all(0..32 * 12)? {
            met.entry(tuple % 32).or_default().insert(server);
        }
        let many = met.values().map(BTreeSet::len).max().unwrap_or(0);
        ensure!(many <= most && (most == 1) == (many == 1), "{inputs:?}: one client met {many} servers");
        let all: BTreeSet<u16> = met.into_values().flatten().collect();
        ensure!(all.len() >= 4, "{inputs:?}: only {all:?} were met");
    }
    Ok(())
}

#[test]
fn each_service_has_a_window_of_its_own() -> Result<()> {
    let mut setup = Setup::new(6, 5, 251, TIMES);
    // The second one stays in its window for longer.
    let both = |setup: &Setup| {
        let mut wanted = setup.alone();
        let mut other = setup.alone().services;
        for service in &mut other {
            service.key.port = 81;
            service.policy.times.window_s *= 2;
            service.backends.iter_mut().for_each(|backend| backend.key.vip_port = 81);
        }
        wanted.services.extend(other);
        wanted
    };
    let mut host = Host::new(sizes());
    let mut rig = Rig::new(&mut host, &both(&setup))?;
    setup.servers[5].listed = true;
    rig.change(&both(&setup))?;
    let mut seen = Vec::new();
    for seconds in [5, 35, 10, 30, 15] {
        rig.pass(seconds, &both(&setup))?;
        // Residual slots settle at the next look that finds no record.
        let open = |(_, service): (_, &PresentService)| service.window.counts(251)[1] > 0;
        seen.push(rig.present()?.services().map(open).collect::<Vec<_>>());
    }
    let (both, second, none) = (vec![true, true], vec![false, true], vec![false, false]);
    ensure!(seen == [both.clone(), both, second.clone(), second, none], "slots move: {seen:?}");
    Ok(())
}
