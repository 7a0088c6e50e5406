//! There is no single point of failure: each part of a fleet is killed, paused and cut off, one at a time and in pairs, while
//! clients connect and the load asks for another node or for one less.
//!
//! CI plays a short selection. `WEIR_MATRIX=all` plays every part in every way and every pair of parts in one combination of
//! ways; `WEIR_MATRIX=every` every pair in each; `WEIR_MATRIX="kill master+cut dns, pause agent"` what it names. Each run
//! prints its table, and with `WEIR_MATRIX_TABLE=FILE` writes it.

mod fault;
mod scene;
mod verdict;
mod watch;

use std::{fs, time::Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use xtask::lab::fleet::{Fleet, control::until};

use self::{
    fault::{Fault, PARTS, WAYS, named},
    scene::Scene,
    verdict::{NEW_MASTER_MAX, table},
};

/// What CI plays: two parts at once whose loss takes little time.
const SHORT: &str = "kill agent+pause dns";

/// What a run shall play.
fn wanted() -> Result<Vec<Vec<Fault>>> {
    match std::env::var("WEIR_MATRIX") {
        Err(_) => named(SHORT),
        Ok(text) if text == "all" => Ok(singles().chain(pairs(false)).collect()),
        Ok(text) if text == "every" => Ok(singles().chain(pairs(true)).collect()),
        Ok(text) => named(&text),
    }
}

fn singles() -> impl Iterator<Item = Vec<Fault>> {
    PARTS.into_iter().flat_map(|part| WAYS.map(|way| vec![Fault { part, way }]))
}

/// All pairs of parts; in each combination of ways, or in one that turns such that every part meets every way.
fn pairs(each: bool) -> impl Iterator<Item = Vec<Fault>> {
    let parts = (0..PARTS.len()).flat_map(|first| (first + 1..PARTS.len()).map(move |second| (first, second)));
    parts.flat_map(move |(first, second)| {
        let ways = (0..WAYS.len()).flat_map(|one| (0..WAYS.len()).map(move |other| (one, other)));
        let turn = ((first + second) % WAYS.len(), (first + 2 * second) % WAYS.len());
        let ways = ways.filter(move |ways| each || *ways == turn);
        ways.map(move |(one, other)| {
            vec![Fault { part: PARTS[first], way: WAYS[one] }, Fault { part: PARTS[second], way: WAYS[other] }]
        })
    })
}

#[test]
fn nothing_is_a_single_point_of_failure() {
    let faults = wanted().expect("WEIR_MATRIX");
    scene::lab("lab::matrix::nothing_is_a_single_point_of_failure", |scene| {
        paused_before_an_order(scene).context("a master that is paused between intent and execution")?;
        let (mut rows, mut failures) = (Vec::new(), Vec::new());
        for faults in faults {
            let row = scene.play(&faults)?;
            println!("{row}");
            failures.extend(row.broken.iter().map(|broken| format!("{}: {broken}", row.what)));
            rows.push(row);
        }
        let table = table(&rows);
        println!("{table}");
        if let Some(file) = std::env::var_os("WEIR_MATRIX_TABLE") {
            fs::write(&file, &table).with_context(|| format!("{}", file.display()))?;
        }
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(())
    });
}

/// The master stands still after its intent is in the store and before the executor has its order; another master carries the
/// intent out; the first one wakes up, believes nothing that it knew, and orders nothing.
fn paused_before_an_order(scene: &mut Scene) -> Result<()> {
    scene.settle()?;
    let master = scene.master()?;
    let process = scene.fleet.ground.process(&Fleet::orchestrator_of(master))?;
    let (primary, before) = (scene.primary()?, scene.fleet.orders()?.len());
    let intents = |scene: &Scene| {
        let keys = scene.fleet.ask_store(primary, false, &["KEYS", "weir:record:orchestrator/intent/*"]);
        keys.map(|answer| answer.matches("orchestrator/intent/").count())
    };
    let old = intents(scene)?;
    scene.turn_load();
    until("an intent", scene::DECISION_MAX, || {
        // Between the intent and its order lies one look at the store.
        for _ in 0..50 {
            if intents(scene)? > old {
                process.signal(Signal::SIGSTOP)?;
                return Ok(Some(()));
            }
        }
        Ok(None)
    })?;
    let stood = Instant::now();
    ensure!(scene.fleet.orders()?.len() == before, "the master was too quick: its order is given already");
    until("another master", NEW_MASTER_MAX, || Ok(scene.acting(3 - master)?.map(drop)))?;
    let took = stood.elapsed();
    println!("the master stood still before its order; another one after {:.1} s", took.as_secs_f32());
    ensure!(took <= NEW_MASTER_MAX, "another master after {took:?}");
    until("the order of another master", scene::DECISION_MAX, || {
        Ok((scene.fleet.journal()?.len() > scene.journal).then_some(()))
    })?;
    process.signal(Signal::SIGCONT)?;
    let epoch = scene.acting(3 - master)?.context("the new master")?;
    until("that the first master knows of the other", scene::DECISION_MAX, || {
        Ok((scene.fleet.ask_orchestrator(master)?["master"]["epoch"].as_u64() == Some(epoch)).then_some(()))
    })?;
    let journal = scene.journal;
    scene.settle()?;
    let (done, orders) = (scene.fleet.journal()?, scene.fleet.orders()?.split_off(before));
    ensure!(done.len() == journal + 1, "more than one order was carried out: {done:?}");
    let first = orders.first().context("no order")?;
    let same = orders.iter().all(|order| (&order.intent, &order.action) == (&first.intent, &first.action));
    ensure!(same, "two intents for one wish: {orders:?}");
    ensure!(orders.iter().all(|order| order.epoch == epoch.to_string()), "not in epoch {epoch}: {orders:?}");
    Ok(())
}
