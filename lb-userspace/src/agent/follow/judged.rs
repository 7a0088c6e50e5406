//! Health that the orchestrators' workers judge: which of it counts on this node, and reading it from the store.
//!
//! Owns: [`Source`], which decides for each target whether the store speaks for it, and the task that feeds it. Refuses to know:
//! which targets this node has, and what a judgement changes.
//!
//! Invariants: the store speaks for a target only while every worker that checks it is seen to move and to work by the present
//! assignment, so a judgement that nobody keeps true is never followed for longer than [`SILENCE_MAX`]; what the store does not speak
//! for the node checks for itself, beginning with the state that was in force, so that another source by itself changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    health::shared::{ASSIGNMENT, Assignment, BEATS, Beat, HEALTH, Health, checkers},
    store::{
        Key, Store, StoreError,
        feed::{RecordFeed, RecordNews},
    },
};

/// Two leases of a process of the control plane: who was silent for so long speaks for nothing.
pub const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How often assignment and heartbeats are read: as often as workers write theirs.
const LOOK: Duration = Duration::from_secs(1);
/// How often all judgements are read; between, those of which the store brings news.
const LOOK_ALL: Duration = Duration::from_secs(10);
/// Pause between the first news of a burst and reading what they are about: a burst costs one look at the whole.
const BURST: Duration = Duration::from_millis(5);
/// Records that are read one by one; of more all are read at once.
const ONE_BY_ONE_MAX: usize = 64;
/// Longest time for one answer of the store.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the store says, by the names of targets; the rest the node checks for itself.
pub type Judgements = Arc<BTreeMap<String, Health>>;

/// A worker as it is seen from here.
#[derive(Clone, Debug)]
struct Seen {
    holder: String,
    beat: u64,
    /// When its heartbeat was last of the present assignment and seen to differ; of one that is seen for the first time, when the
    /// store says that it was written.
    moved: Option<Instant>,
}

/// Decides for which targets the store speaks. Pure: `now` is brought along.
#[derive(Clone, Debug)]
pub struct Source {
    silence_max: Duration,
    assignment: Option<Assignment>,
    workers: BTreeMap<String, Seen>,
    health: BTreeMap<String, Health>,
}

impl Source {
    /// A source in which nobody spoke yet, and which a silence of `silence_max` ends.
    pub fn new(silence_max: Duration) -> Self {
        Self { silence_max, assignment: None, workers: BTreeMap::new(), health: BTreeMap::new() }
    }

    /// Takes what a look found: each heartbeat with its age. A look that failed is none: time passes, and that is all that it tells.
    pub fn look(&mut self, assignment: Option<Assignment>, beats: BTreeMap<String, (Beat, Duration)>, now: Instant) {
        self.assignment = assignment;
        let generation = self.assignment.as_ref().map(|assignment| assignment.epoch);
        let mut seen = BTreeMap::new();
        for (name, (beat, age)) in beats {
            let before = self.workers.remove(&name);
            let moved = match &before {
                // Who works by another assignment may not check what this one gives it.
                _ if Some(beat.generation) != generation => before.and_then(|before| before.moved),
                None => now.checked_sub(age),
                Some(before) if (&before.holder, before.beat) == (&beat.holder, beat.beat) => before.moved,
                Some(_) => Some(now),
            };
            seen.insert(name, Seen { holder: beat.holder, beat: beat.beat, moved });
        }
        // A heartbeat that is gone has stood still for longer than it is kept.
        self.workers = seen;
    }

    /// Takes all judgements anew.
    pub fn judged_all(&mut self, health: BTreeMap<String, Health>) {
        self.health = health;
    }

    /// Takes the judgement of one target; `None` where there is none any more.
    pub fn judged(&mut self, target: &str, health: Option<Health>) {
        match health {
            Some(health) => drop(self.health.insert(target.to_owned(), health)),
            None => drop(self.health.remove(target)),
        }
    }

    /// What the store says at `now`.
    pub fn speaks(&self, now: Instant) -> BTreeMap<String, Health> {
        let Some(assignment) = &self.assignment else { return BTreeMap::new() };
        let live = |name: &str| {
            let moved = self.workers.get(name).and_then(|seen| seen.moved);
            moved.is_some_and(|moved| now.saturating_duration_since(moved) < self.silence_max)
        };
        // With several vantage points all must move: a target goes down by the votes of all.
        let kept = |target: &str| {
            let checkers = checkers(target, assignment);
            !checkers.is_empty() && checkers.into_iter().all(live)
        };
        let spoken = self.health.iter().filter(|(target, _)| kept(target));
        spoken.map(|(target, health)| (target.clone(), health.clone())).collect()
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    // What a newer version wrote says nothing here; then the node checks for itself.
    serde_json::from_str(text).ok()
}

/// Assignment and heartbeats.
async fn look(
    store: &(dyn Store + 'static),
) -> Result<(Option<Assignment>, BTreeMap<String, (Beat, Duration)>), StoreError> {
    let assignment = store.record_get(Key::new(ASSIGNMENT)?).await?.and_then(|record| read(&record.value));
    if assignment.is_none() {
        return Ok((None, BTreeMap::new()));
    }
    let beats = store.record_all(BEATS).await?;
    let beat = |record: &crate::store::access::Record| {
        let beat = (read(&record.value)?, Duration::from_millis(record.age_ms));
        Some((record.key.as_str().strip_prefix(BEATS)?.to_owned(), beat))
    };
    Ok((assignment, beats.iter().filter_map(beat).collect()))
}

/// All judgements.
async fn all(store: &(dyn Store + 'static)) -> Result<BTreeMap<String, Health>, StoreError> {
    let records = store.record_all(HEALTH).await?;
    let judgement = |record: &crate::store::access::Record| {
        Some((record.key.as_str().strip_prefix(HEALTH)?.to_owned(), read(&record.value)?))
    };
    Ok(records.iter().filter_map(judgement).collect())
}

/// Within its time, what the store says; `None` where it says nothing.
async fn within<T>(ask: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
    tokio::time::timeout(PATIENCE, ask).await.ok()?.ok()
}

/// Reads until nobody takes judgements any more. The first look is told even if the store says nothing.
pub async fn run(store: Arc<dyn Store>, silence_max: Duration, to: watch::Sender<Judgements>) {
    let mut source = Source::new(silence_max);
    let mut news = RecordFeed::new(Arc::clone(&store));
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut read_all: Option<Instant> = None;
    // Keys of judgements that there are news of, and when the first of them came.
    let (mut burst, mut burst_at) = (BTreeSet::new(), Instant::now());
    // A store that was silent a moment ago is not waited for once more before its silence is told.
    let (mut answered, mut first) = (false, true);
    loop {
        tokio::select! {
            () = to.closed() => return,
            _ = tick.tick() => {
                let looked = within(look(&*store)).await;
                answered = looked.is_some();
                if let Some((assignment, beats)) = looked {
                    source.look(assignment, beats, Instant::now());
                }
            }
            () = tokio::time::sleep_until((burst_at + BURST).into()), if !burst.is_empty() => {
                if burst.len() > ONE_BY_ONE_MAX {
                    read_all = None;
                }
                for key in std::mem::take(&mut burst) {
                    // What is read with all others, or was not answered, is not asked for again.
                    if read_all.is_none() {
                        break;
                    }
                    match (within(store.record_get(Key::clone(&key))).await, key.as_str().strip_prefix(HEALTH)) {
                        (Some(record), Some(target)) => source.judged(target, record.and_then(|one| read(&one.value))),
                        _ => read_all = None,
                    }
                }
            }
            one = news.next() => {
                match one {
                    RecordNews::Any => read_all = None,
                    RecordNews::Key(key) if key.as_str().starts_with(HEALTH) => {
                        if burst.is_empty() {
                            burst_at = Instant::now();
                        }
                        burst.insert(key);
                    }
                    RecordNews::Key(_) => {}
                }
                continue;
            }
        }
        // Without an orchestrator there is nothing to read.
        let due = answered && source.assignment.is_some() && read_all.is_none_or(|at| at.elapsed() >= LOOK_ALL);
        if due && let Some(health) = within(all(&*store)).await {
            source.judged_all(health);
            read_all = Some(Instant::now());
        }
        let now = source.speaks(Instant::now());
        to.send_if_modified(|told| {
            let differs = **told != now || std::mem::take(&mut first);
            if differs {
                *told = Arc::new(now);
            }
            differs
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::shared::UnixMs;

    /// One step of a story: at a second, who moves among the workers (upper case: is restarted; with a prime: works by an assignment
    /// that is over; then `!`: the store does not answer; `-`: there is no assignment), and for how many of two targets the store
    /// speaks then.
    type Step = (u64, &'static str, usize);

    fn play(vantage_points: u32, steps: &[Step]) {
        let start = Instant::now();
        let mut source = Source::new(SILENCE_MAX);
        let workers = ["a", "b"].map(str::to_owned).into();
        let assignment = Assignment { holder: "m/1".into(), epoch: 1, workers, vantage_points };
        let health = Health { up: false, reason: "L4CON".into(), since: UnixMs(1), votes: BTreeMap::new() };
        // Of two workers each has one target.
        let of = |worker: &str| {
            let one = Assignment { vantage_points: 1, ..assignment.clone() };
            (0..100).map(|n| format!("10.0.0.{n}:80/x")).find(|t| checkers(t, &one).contains(worker)).unwrap()
        };
        source.judged_all([(of("a"), health.clone()), (of("b"), health)].into());
        let mut beats: BTreeMap<String, (Beat, u64)> = BTreeMap::new();
        for (second, moving, want) in steps {
            let now = start + Duration::from_secs(*second);
            let mut names = moving.chars().peekable();
            while let Some(name) = names.next_if(char::is_ascii_alphabetic) {
                let new = (Beat { holder: "1".into(), beat: 0, generation: 1, address: None }, 0);
                let (beat, at) = beats.entry(name.to_ascii_lowercase().to_string()).or_insert(new);
                *at = *second;
                beat.generation = u64::from(names.next_if_eq(&'\'').is_none());
                if name.is_uppercase() { beat.holder += "1" } else { beat.beat += 1 }
            }
            if !moving.ends_with('!') {
                let beats = beats
                    .iter()
                    .map(|(name, (beat, at))| (name.clone(), (beat.clone(), Duration::from_secs(second - at))));
                source.look((!moving.ends_with('-')).then(|| assignment.clone()), beats.collect(), now);
            }
            let spoken = source.speaks(now).len();
            assert_eq!(spoken, *want, "at {second} s of {steps:?}, {vantage_points} vantage points");
        }
    }

    #[test]
    fn the_store_speaks_for_what_is_checked_by_workers_that_move() {
        let stories: &[(u32, &[Step])] = &[
            // At once for who begins to look, unless who wrote is silent for long.
            (1, &[(0, "ab", 2), (1, "ab", 2)]),
            (1, &[(0, "ab!", 0), (19, "", 2), (20, "", 0), (21, "a", 1)]),
            // What one of them does not keep true is the node's own after two leases, and not before.
            (1, &[(0, "ab", 2), (1, "ab", 2), (10, "a", 2), (20, "a", 2), (21, "a", 1), (40, "a", 1)]),
            // With two vantage points both must move.
            (2, &[(0, "a", 0), (1, "ab", 2), (20, "a", 2), (21, "a", 0), (22, "ab", 2)]),
            // The store is silent: the same.
            (1, &[(0, "ab", 2), (1, "ab", 2), (20, "!", 2), (21, "!", 0), (60, "ab", 2)]),
            // The assignment is gone: nobody checks.
            (1, &[(0, "ab", 2), (1, "ab", 2), (2, "-", 0)]),
            // Who lives and does not take the present assignment keeps nothing of it true.
            (1, &[(0, "ab'", 1), (1, "ab", 2), (2, "ab'", 2), (20, "ab'", 2), (21, "ab'", 1), (22, "ab", 2)]),
            // A restarted worker has counted nothing, but moves.
            (1, &[(0, "ab", 2), (1, "ab", 2), (2, "AB", 2), (22, "", 0)]),
        ];
        for &(vantage_points, steps) in stories {
            play(vantage_points, steps);
        }
    }

    #[test]
    fn what_nobody_judged_the_node_checks_itself() {
        let mut source = Source::new(SILENCE_MAX);
        assert!(source.speaks(Instant::now()).is_empty());
        source.judged("10.0.0.1:80/x", None);
        assert!(source.speaks(Instant::now()).is_empty());
    }
}
