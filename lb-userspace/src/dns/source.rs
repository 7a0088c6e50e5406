//! Where zones come from, and what is kept of them.
//!
//! Owns: taking a zone that a source offers (a file here, a store in [`super::store`]), the last good one on disk, and telling
//! everybody.
//! Invariants: what is served never goes back; a zone that was taken is on disk before it is served, so that a restart
//! without its source serves it; a source that is silent or broken changes nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    history::{Decision, Serving},
    zone::{Name, Zone, ZoneError},
};
use crate::store::file::{FileStore, replace_file};

/// Name of the last good zone in the state folder.
pub const LAST_GOOD: &str = "zone.json";
/// How often a file is read even if nothing told that it changed.
const LOOK: Duration = Duration::from_secs(30);

/// Why an offered zone is not served.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is no zone.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// It is another zone than this server's.
    #[error("the zone is {offered}, this server is for {origin}")]
    OtherZone {
        /// The zone that was offered.
        offered: Name,
        /// The zone of this server.
        origin: Name,
    },
    /// Its serial number is older.
    #[error("serial {offered} is older than {serving}, which is served: give the zone a newer one")]
    Older {
        /// The serial number that was offered.
        offered: u32,
        /// The one that is served.
        serving: u32,
    },
    /// It has the same serial number and other records.
    #[error("serial {0} is served with other records: every change needs a new serial number")]
    Forked(u32),
}

impl Refused {
    /// One word for a metric.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Zone(_) => "invalid",
            Self::OtherZone { .. } => "other_zone",
            Self::Older { .. } => "older",
            Self::Forked(_) => "forked",
        }
    }
}

/// What became of an offered zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is served from now on.
    New,
    /// It was served already.
    Same,
}

/// Where every source brings its zones.
#[derive(Debug)]
pub struct Keeper {
    origin: Name,
    last_good: PathBuf,
    serving: watch::Sender<Serving>,
    /// One offer at a time: deciding, writing and telling are one step.
    turn: Mutex<()>,
}

impl Keeper {
    /// A keeper of the zone `origin` that serves the last good version in `state_dir`, if there is one. A file there that is
    /// unreadable is reported and left alone until a good zone replaces it.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(origin: Name, state_dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(state_dir)?;
        let last_good = state_dir.join(LAST_GOOD);
        let serving = match fs::read(&last_good).map_err(|e| e.to_string()).and_then(|json| {
            let zone = Zone::from_json(&json).map_err(|e| e.to_string())?;
            if *zone.origin() == origin { Ok(zone) } else { Err(format!("it is the zone {}", zone.origin())) }
        }) {
            Ok(zone) => {
                tracing::info!(
                    serial = zone.serial(),
                    "serving the last good zone of this server until a newer one comes"
                );
                Serving::default().with(Arc::new(zone))
            }
            Err(error) if last_good.exists() => {
                tracing::error!(file = %last_good.display(), "the last good zone cannot be used: {error}");
                Serving::default()
            }
            Err(_) => Serving::default(),
        };
        Ok(Self { origin, last_good, serving: watch::Sender::new(serving), turn: Mutex::new(()) })
    }

    /// News about what is served.
    pub fn subscribe(&self) -> watch::Receiver<Serving> {
        self.serving.subscribe()
    }

    /// Offers a zone. One that cannot be written to disk is served all the same, with a complaint.
    ///
    /// # Errors
    /// [`Refused`]; what is served stays.
    pub fn offer(&self, zone: Zone) -> Result<Accepted, Refused> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let serving = self.serving.borrow().clone();
        let now = serving.current().map_or(0, |zone| zone.serial());
        match serving.decide(&zone, &self.origin) {
            Decision::Same => return Ok(Accepted::Same),
            Decision::Take => {}
            Decision::Older => return Err(Refused::Older { offered: zone.serial(), serving: now }),
            Decision::Forked => return Err(Refused::Forked(now)),
            Decision::OtherZone => {
                return Err(Refused::OtherZone { offered: zone.origin().clone(), origin: self.origin.clone() });
            }
        }
        if let Err(error) = self.keep(&zone) {
            tracing::error!(file = %self.last_good.display(), %error, "the zone cannot be kept: a restart would not know it");
        }
        self.serving.send_replace(serving.with(Arc::new(zone)));
        Ok(Accepted::New)
    }

    fn keep(&self, zone: &Zone) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(zone.object())?;
        replace_file(&self.last_good, &json, Some(0o640))
    }
}

/// What a source met, for log and metrics.
#[derive(Debug)]
pub enum News {
    /// A zone came.
    Offered(Result<Accepted, Refused>),
    /// The source itself does not work.
    Broken(String),
}

/// Brings the zone in the file `path` whenever it changes; `news` hears of each attempt. Never ends.
pub async fn watch_file(path: &Path, keeper: &Keeper, mut news: impl FnMut(News)) {
    let store = FileStore::new(path);
    let mut last: Option<Result<String, String>> = None;
    let mut watch = None;
    loop {
        if watch.is_none() {
            match store.watch() {
                Ok(watching) => watch = Some(watching),
                Err(error) => tracing::warn!("{error}; looking every {} s instead", LOOK.as_secs()),
            }
        }
        let read = store.read().map(|text| text.text).map_err(|e| e.to_string());
        // The same text or the same complaint again is no news.
        if last.as_ref() != Some(&read) {
            news(match &read {
                Ok(text) => News::Offered(
                    Zone::from_json(text.as_bytes()).map_err(Refused::Zone).and_then(|zone| keeper.offer(zone)),
                ),
                Err(error) => News::Broken(error.clone()),
            });
            last = Some(read);
        }
        match &mut watch {
            Some(watch) => drop(tokio::time::timeout(LOOK, watch.changed()).await),
            None => tokio::time::sleep(LOOK).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sample::*, *};

    fn serial(keeper: &Keeper) -> Option<u32> {
        keeper.subscribe().borrow().current().map(|zone| zone.serial())
    }

    #[test]
    fn what_was_taken_survives_a_restart_and_what_was_refused_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Keeper::open(sample(1).origin().clone(), folder.path()).unwrap();
        let keeper = open();
        assert_eq!(serial(&keeper), None);
        assert!(matches!(keeper.offer(sample(5)), Ok(Accepted::New)));
        assert!(matches!(keeper.offer(sample(5)), Ok(Accepted::Same)));
        assert!(matches!(keeper.offer(sample(4)), Err(Refused::Older { offered: 4, serving: 5 })));
        let mut fork = object(5);
        fork.ttl_s += 1;
        assert!(matches!(keeper.offer(Zone::check(fork).unwrap()), Err(Refused::Forked(5))));
        assert_eq!((serial(&keeper), serial(&open())), (Some(5), Some(5)));
        // A broken file is no zone, is kept for inspection, and gives way to the next good one.
        fs::write(folder.path().join(LAST_GOOD), "{").unwrap();
        let keeper = open();
        assert_eq!(serial(&keeper), None);
        assert!(matches!(keeper.offer(sample(6)), Ok(Accepted::New)));
        assert_eq!(serial(&open()), Some(6));
    }

    #[tokio::test]
    async fn a_file_is_followed_and_its_faults_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("source.json");
        let keeper = Arc::new(Keeper::open(sample(1).origin().clone(), &folder.path().join("state")).unwrap());
        let (told, mut news) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn({
            let (file, keeper) = (file.clone(), Arc::clone(&keeper));
            async move { watch_file(&file, &keeper, move |news| drop(told.send(news))).await }
        });
        let mut next = async || tokio::time::timeout(Duration::from_secs(60), news.recv()).await.unwrap().unwrap();
        assert!(matches!(next().await, News::Broken(_)), "there is no file yet");
        let write = |serial| {
            let json = serde_json::to_vec(&object(serial)).unwrap();
            replace_file(&file, &json, None).unwrap();
        };
        write(3);
        assert!(matches!(next().await, News::Offered(Ok(Accepted::New))));
        fs::write(&file, "{\"origin\":").unwrap();
        assert!(matches!(next().await, News::Offered(Err(Refused::Zone(_)))));
        write(2);
        assert!(matches!(next().await, News::Offered(Err(Refused::Older { .. }))));
        assert_eq!(serial(&keeper), Some(3));
        write(4);
        assert!(matches!(next().await, News::Offered(Ok(Accepted::New))));
        assert_eq!(serial(&keeper), Some(4));
        task.abort();
    }
}
