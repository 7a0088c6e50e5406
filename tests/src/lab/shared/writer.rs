//! Random changes of the store, in bursts, through the library that the command line uses; sometimes one that is no configuration.
//!
//! What a writer wants next depends on what the store holds, so a change whose fate is unknown needs no memory here.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_userspace::{
    model::{AdminState, Incremental, StoreConfig, parse},
    store::{
        Change, Key, Objects, Outcome, Revision, Store, StoreError, WriteError,
        document::document,
        edit::{self, BackendChange, NewBackend, Setting, Target},
        write::{Intent, NewText},
    },
};
use xtask::lab::fleet::{
    Fleet,
    topology::{BACKENDS, Host, SHARED, address},
};

/// Backends that every state has, so that a change that removes or drains some never takes the traffic away.
pub const KEPT: u8 = 2;
/// Longest time that a writer goes on while the store takes nothing.
const PATIENCE: Duration = Duration::from_secs(40);

/// Splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What came of a writer's changes.
#[derive(Debug, Default)]
pub struct Done {
    /// Revisions that the store said a replica (or its disk) has.
    pub safe: Vec<Revision>,
    /// Revisions that were stored and not replicated.
    pub unsafe_: Vec<Revision>,
    /// Revisions that are no configuration.
    pub invalid: BTreeSet<String>,
    /// Attempts whose answer was an error.
    pub failures: u32,
}

/// The store as the configuration of a node in the lab names it; used from a thread in a host's namespace.
pub fn open(local: &str) -> Result<Arc<dyn Store>> {
    let config: StoreConfig =
        parse::document::store("weir.toml", local).map_err(|checked| anyhow::anyhow!("{:?}", checked.diagnostics))?;
    Ok(lb_userspace::store::open(&config)?)
}

/// Runs `work` to its end with a runtime of this thread alone, so that its sockets are of this thread's namespace.
pub fn block<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Makes `changes` changes from the control host.
pub fn start(fleet: &Fleet, local: String, changes: u64, mut random: Random) -> Result<JoinHandle<Result<Done>>> {
    fleet.ground.namespace(&Host::Control.name()).spawn(move || {
        block(async {
            let (store, mut done) = (open(&local)?, Done::default());
            let mut made = 0;
            while made < changes {
                let burst = (1 + random.below(40)).min(changes - made);
                for _ in 0..burst {
                    one(&store, &local, &mut random, &mut done).await?;
                }
                made += burst;
                tokio::time::sleep(Duration::from_millis(random.below(120))).await;
            }
            Ok(done)
        })
    })
}

/// Makes one change, however often that has to be tried.
async fn one(store: &Arc<dyn Store>, local: &str, random: &mut Random, done: &mut Done) -> Result<()> {
    let intent = Intent { author: "lab@ctl".into(), ..Intent::default() };
    let started = Instant::now();
    loop {
        // Drawn anew: the state may be another one.
        let seed = random.below(u64::MAX);
        let invalid = random.below(60) == 0;
        let decide = |objects: &Objects| decide(objects, local, Random(seed), invalid);
        match store.update(&intent, decide).await {
            Ok(Outcome::Changed(written, change)) => {
                if written.replicated { &mut done.safe } else { &mut done.unsafe_ }.push(written.revision);
                if breaks(&change) {
                    done.invalid.insert(written.revision.to_string());
                    // Long enough that nodes read it.
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
                return Ok(());
            }
            Ok(Outcome::Unchanged(_)) => {}
            Err(WriteError::Refused(why)) => bail!("{why}"),
            Err(WriteError::Store(error @ (StoreError::Form(_) | StoreError::Schema { .. }))) => {
                return Err(error.into());
            }
            Err(WriteError::Store(error)) => {
                done.failures += 1;
                if started.elapsed() > PATIENCE {
                    return Err(anyhow::Error::from(error).context("the store takes no change"));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The object that makes a state no configuration.
fn broken() -> Result<Key> {
    Ok(Key::new("service/broken")?)
}

/// Whether a change leads to what is no configuration; the next one takes it back.
pub fn breaks(change: &Change) -> bool {
    broken().is_ok_and(|key| change.edits.iter().any(|edit| edit.key == key && edit.after.is_some()))
}

/// What to write: something that `objects` do not say yet. Repairs what an earlier change broke first.
fn decide(objects: &Objects, local: &str, mut random: Random, invalid: bool) -> Result<Vec<NewText>> {
    if objects.contains_key(&broken()?) {
        return Ok(vec![(broken()?, None)]);
    }
    if invalid {
        return Ok(vec![(broken()?, Some("[[service]]\nname = \"broken\"\nvip = \"nowhere\"\n".into()))]);
    }
    for _ in 0..50 {
        let Ok(edits) = draw(objects, &mut random) else { continue };
        let after = lb_userspace::store::document::after(objects, &edits);
        if after == *objects {
            continue;
        }
        let checked = Incremental::default().document(&document("weir.toml", local, &after));
        if checked.config.is_some() {
            return Ok(edits);
        }
        bail!("a change that was meant to be good is none: {:?}", checked.diagnostics);
    }
    bail!("no change can be thought of")
}

fn draw(objects: &Objects, random: &mut Random) -> Result<Vec<NewText>> {
    let service =
        if objects.contains_key(&Key::new("service/extra")?) && random.below(3) == 0 { "extra" } else { "web" };
    let number = 1 + random.below(BACKENDS.into()) as u8;
    let backend = Host::Backend(number).address(false);
    let target = Target { service: service.into(), address: backend, port: None };
    let weight = 1 + random.below(9) as u16;
    let change = |change: BackendChange| Ok(edit::change_backend(objects, &target, change)?);
    match random.below(12) {
        0..=4 => change(BackendChange { weight: Some(weight), ..BackendChange::default() }),
        5 | 6 if number > KEPT => {
            let state = [AdminState::Ready, AdminState::Drain, AdminState::Maint][random.below(3) as usize];
            change(BackendChange { admin_state: Some(state), ..BackendChange::default() })
        }
        7 if number > KEPT => Ok(edit::remove_backend(objects, &target)?),
        8 if number > KEPT => {
            let new = BackendChange { weight: Some(weight), ..BackendChange::default() };
            Ok(edit::add_backend(objects, service, &NewBackend { address: backend, port: None, change: new })?)
        }
        9 => {
            let size = [251, 1021, 4093][random.below(3) as usize];
            let setting: Setting = format!("algo_config.ring_size={size}").parse()?;
            Ok(edit::set_service(objects, service, &[setting])?)
        }
        10 => {
            let key = Key::new("service/extra")?;
            let text =
                (!objects.contains_key(&key)).then(|| super::service("extra", &address(SHARED, false).to_string()));
            Ok(vec![(key, text.map(Into::into))])
        }
        _ => {
            let setting: Setting = format!("window={}s", 2 + random.below(3)).parse()?;
            Ok(edit::set_service(objects, service, &[setting])?)
        }
    }
}

/// What the store holds and the changes that it keeps, newest first.
pub fn look(fleet: &Fleet, local: &str) -> Result<(lb_userspace::store::Snapshot, Vec<Change>)> {
    let started = Instant::now();
    fleet.ground.namespace(&Host::Control.name()).run(|| {
        block(async {
            let store = open(local)?;
            loop {
                let read = async {
                    let snapshot = store.snapshot().await?.context("the store is empty")?;
                    anyhow::Ok((snapshot, store.history(1_000).await?))
                };
                match read.await {
                    Ok(read) => return Ok(read),
                    Err(error) if started.elapsed() > PATIENCE => return Err(error),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        })
    })
}
