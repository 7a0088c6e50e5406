//! How an agent follows a store that many nodes share: from a change in the store to news for the event loop, and back to a report.
//!
//! Owns: the reader's task, bursts, the last good copy, leases of addresses, reports, judgements of health. Refuses to know: what
//! objects mean, maps.
//!
//! ```text
//!   store ──feed──> [task] ──batched, leases ready──> News ──watch──> event loop ──apply──> maps
//!     ^                                                                   │
//!     └──────────── report, health ── [reporter] <──watch── Standing ─────┘
//! ```
//!
//! Invariants: the event loop never waits for the store; between two news only the newest counts, and it chains to what was told
//! before; what is kept as a copy was applied here.

pub mod health;
pub mod join;
pub mod judged;
pub mod keep;
pub mod lease;
pub mod report;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::watch;

use crate::{
    model::POOL_OBJECT,
    store::{
        Objects, Revision, Snapshot, Store,
        batch::{Batch, WINDOW_MS},
        feed::Feed,
        follow::{Counters, Event, Loss, Resync, Times},
        object::Digest,
    },
    telemetry::metrics::Metrics,
};

/// A state of the store's objects, for the event loop.
#[derive(Clone, Debug)]
pub struct News {
    /// The objects with their revision.
    pub snapshot: Arc<Snapshot>,
    /// Addresses that this node leases, by pool; a pool of which it got none is left out.
    pub leases: BTreeMap<String, IpAddr>,
    /// When the newest change was written, by its writer's clock: milliseconds since 1970; `None` where a whole state was read.
    pub written_unix_ms: Option<u64>,
    /// When it was received.
    pub received: Instant,
}

impl News {
    /// A store in which nothing was ever written.
    pub fn nothing() -> Self {
        let origin = Digest::default();
        let snapshot = Snapshot { origin, revision: Revision::origin(origin), objects: Objects::new() };
        Self { snapshot: Arc::new(snapshot), leases: BTreeMap::new(), written_unix_ms: None, received: Instant::now() }
    }
}

/// How it stands with the store, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Kind and address, without secrets.
    pub store: String,
    /// Whether it is read.
    pub up: bool,
    /// Why not, in words.
    pub why: Option<String>,
    /// Since when that is so.
    pub since: Option<SystemTime>,
    /// The loss because of which its state is refused.
    pub refused: Option<Loss>,
    /// The newest revision that was read.
    pub newest: Option<Revision>,
    /// Nothing was ever written in it.
    pub vacant: bool,
    /// What the reader counted.
    pub counters: Counters,
    /// Addresses that are leased, by pool.
    pub leases: BTreeMap<String, IpAddr>,
    /// Pools of which no address could be had.
    pub without: Vec<String>,
}

/// The event loop's ends of the task.
#[derive(Debug)]
pub struct Following {
    /// The newest state.
    pub news: watch::Receiver<Option<Arc<News>>>,
    /// How it stands with the store.
    pub view: watch::Receiver<View>,
    /// What this node says of itself.
    pub standing: watch::Sender<report::Standing>,
    /// What it applied last, to be kept.
    pub good: watch::Sender<Option<Arc<Snapshot>>>,
    /// Observed health, to be shared.
    pub health: watch::Sender<health::Observations>,
    /// Health that the store speaks for.
    pub judged: watch::Receiver<judged::Judgements>,
}

/// What the task needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this node.
    pub node: String,
    /// Where the last good copy is kept.
    pub copy_file: std::path::PathBuf,
    /// Where leases are remembered.
    pub leases_file: std::path::PathBuf,
    /// Pauses of the reader.
    pub times: Times,
    /// How long those who judge health may be silent: [`judged::SILENCE_MAX`].
    pub silence_max: Duration,
}

/// Names and prefixes of the pools among the objects. What is wrong with one of them the check of the configuration says.
fn pools(objects: &Objects) -> BTreeMap<String, ipnet::IpNet> {
    #[derive(serde::Deserialize)]
    struct Text {
        pool: Vec<Pool>,
    }
    #[derive(serde::Deserialize)]
    struct Pool {
        prefix: ipnet::IpNet,
    }
    let prefix = |text: &str| toml::from_str::<Text>(text).ok()?.pool.first().map(|pool| pool.prefix.trunc());
    let pools = objects.iter().filter(|(key, _)| key.kind() == POOL_OBJECT);
    pools.filter_map(|(key, text)| Some((key.name().to_owned(), prefix(text)?))).collect()
}

/// Starts to follow `store` from `copy`, the last good state of an earlier run.
///
/// Its tasks end with the returned ends.
pub fn start(store: Arc<dyn Store>, copy: Option<Snapshot>, options: &Options, metrics: Arc<Metrics>) -> Following {
    let (news_to, news) = watch::channel(None);
    let (view_to, view) = watch::channel(View { store: store.describe(), ..View::default() });
    let (standing, standing_from) = watch::channel(report::Standing::default());
    let (good, good_from) = watch::channel(None);
    let (health, health_from) = watch::channel(health::Observations::default());
    let (judged_to, judged) = watch::channel(judged::Judgements::default());
    let seed = seed_of(&options.node);
    let feed = Feed::new(Arc::clone(&store), copy, options.times, seed);
    let leaser = lease::Leaser::new(Arc::clone(&store), options.node.clone(), options.leases_file.clone());
    tokio::spawn(Task { feed, leaser, news: news_to, view: view_to }.run());
    tokio::spawn(report::run(Arc::clone(&store), options.node.clone(), standing_from, view.clone(), metrics));
    tokio::spawn(health::run(Arc::clone(&store), options.node.clone(), health_from));
    tokio::spawn(judged::run(store, options.silence_max, judged_to));
    tokio::spawn(keep::run(options.copy_file.clone(), good_from));
    Following { news, view, standing, good, health, judged }
}

/// Readers that start together should not look together.
fn seed_of(node: &str) -> u64 {
    let mut random = [0; 8];
    match getrandom::fill(&mut random) {
        Ok(()) => u64::from_le_bytes(random),
        Err(_) => node.bytes().fold(u64::from(std::process::id()), |seed, b| seed.wrapping_mul(31) ^ u64::from(b)),
    }
}

struct Task {
    feed: Feed,
    leaser: lease::Leaser,
    news: watch::Sender<Option<Arc<News>>>,
    view: watch::Sender<View>,
}

impl Task {
    async fn run(mut self) {
        let started = Instant::now();
        let now_ms = || started.elapsed().as_millis() as u64;
        let mut batch: Batch<(Option<u64>, Instant)> = Batch::new(WINDOW_MS);
        // With the last good copy in hand the leases can be renewed before the store says anything.
        if self.feed.copy().is_some() {
            batch.push((None, Instant::now()));
        }
        loop {
            let due = batch.deadline_ms().map(|due_ms| Duration::from_millis(due_ms.saturating_sub(now_ms())));
            let renew = self.leaser.due();
            tokio::select! {
                event = self.feed.next() => {
                    if let Some(item) = self.take(event) {
                        batch.push(item);
                    }
                }
                () = sleep(due) => {}
                () = tokio::time::sleep_until(renew) => {
                    let before = self.leaser.held().clone();
                    self.leaser.renew().await;
                    if *self.leaser.held() != before {
                        batch.push((None, Instant::now()));
                    }
                }
                () = self.news.closed() => return,
            }
            let items = batch.take(now_ms());
            // The first of a burst waited longest.
            if let Some((written_unix_ms, received)) = items.first().copied() {
                self.tell(written_unix_ms, received).await;
            }
        }
    }

    /// Takes an event; says when a new state to tell was written, and when it was received.
    fn take(&mut self, event: Event) -> Option<(Option<u64>, Instant)> {
        let told = match &event {
            Event::Delta(change) => Some((Some(change.at_unix_ms), Instant::now())),
            Event::Snapshot { cause, .. } => {
                if *cause != Resync::Start {
                    tracing::info!(cause = cause.word(), "the whole configuration was read from the store again");
                }
                Some((None, Instant::now()))
            }
            Event::Vacant => {
                tracing::warn!("the store is empty: nothing was ever written; `weir config apply FILE` begins it");
                None
            }
            Event::HistoryLost { loss, have, found, taken } => {
                let found = found.map_or("nothing".into(), |head| head.revision.to_string());
                let then = if *taken {
                    "its state is taken"
                } else {
                    "this node stays with what it has; `weir config restore` puts the store back"
                };
                tracing::error!(%have, %found, "history lost: {}; {then}", loss.words());
                None
            }
            Event::Down(why) => {
                tracing::error!("the store cannot be read, what is in force stays: {why}");
                None
            }
            Event::Up => {
                tracing::info!(revision = %words(self.feed.copy()), "the store is read");
                None
            }
        };
        let (counters, refused) = (self.feed.counters(), self.feed.refused());
        let newest = self.feed.copy().map(|copy| copy.revision);
        self.view.send_modify(|view| {
            match &event {
                Event::Down(why) => {
                    (view.up, view.why, view.since) = (false, Some(why.clone()), Some(SystemTime::now()));
                }
                Event::Up => (view.up, view.why, view.since) = (true, None, Some(SystemTime::now())),
                _ => {}
            }
            view.vacant = matches!(event, Event::Vacant) || (view.vacant && newest.is_none());
            (view.counters, view.refused, view.newest) = (counters, refused, newest);
        });
        told
    }

    /// Tells the event loop of what is held now.
    async fn tell(&mut self, written_unix_ms: Option<u64>, received: Instant) {
        let Some(copy) = self.feed.copy() else { return };
        let snapshot = Arc::new(copy.clone());
        let wanted = pools(&snapshot.objects);
        if self.leaser.set(wanted) {
            self.leaser.renew().await;
        }
        let leases = self.leaser.held().clone();
        self.view.send_modify(|view| {
            view.leases = leases.clone();
            view.without = self.leaser.without();
        });
        let news = News { snapshot, leases, written_unix_ms, received };
        self.news.send_replace(Some(Arc::new(news)));
    }
}

fn words(copy: Option<&Snapshot>) -> String {
    copy.map_or_else(|| "none".into(), |copy| copy.revision.to_string())
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
