//! A store as the source of the zone: the record that the orchestrator's master writes.
//!
//! Owns: when the record is read. Invariants: news are wake-ups, and a slow look stands in for those that get lost; a store that
//! is silent or broken changes nothing.

use std::{sync::Arc, time::Duration};

use rand::RngExt as _;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    source::{Keeper, News, Refused},
    zone::Zone,
};
use crate::store::{
    Key, Store,
    feed::{RecordFeed, RecordNews},
};

/// Name of the record.
pub const ZONE_KEY: &str = "dns/zone";
/// How often the record is read even if nothing told that it changed; jittered by a quarter.
const LOOK: Duration = Duration::from_secs(10);
/// Longest time for an answer, whatever the store promises.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Brings the zone in `store` whenever it changes; `news` hears of each attempt that says something new. Never ends.
pub async fn watch_store(store: Arc<dyn Store>, keeper: &Keeper, mut news: impl FnMut(News)) {
    let mut feed = RecordFeed::new(Arc::clone(&store));
    let mut last: Option<Result<Option<Arc<str>>, String>> = None;
    loop {
        let read = read(&*store).await;
        if last.as_ref() != Some(&read) {
            match &read {
                Ok(Some(text)) => {
                    let zone = Zone::from_json(text.as_bytes()).map_err(Refused::Zone);
                    news(News::Offered(zone.and_then(|zone| keeper.offer(zone))));
                }
                // Before the first master there is none; one that vanished is a store that lost its records.
                Ok(None) if last.is_none() => {}
                Ok(None) => news(News::Broken(format!("{} has no {ZONE_KEY} any more", store.describe()))),
                Err(error) => news(News::Broken(error.clone())),
            }
            last = Some(read);
        }
        let look = Instant::now() + LOOK.mul_f64(rand::rng().random_range(0.75..1.25));
        loop {
            tokio::select! {
                told = feed.next() => match told {
                    RecordNews::Key(key) if key.as_str() != ZONE_KEY => {}
                    RecordNews::Key(_) | RecordNews::Any => break,
                },
                () = sleep_until(look) => break,
            }
        }
    }
}

async fn read(store: &dyn Store) -> Result<Option<Arc<str>>, String> {
    let key = Key::new(ZONE_KEY).map_err(|error| error.to_string())?;
    match timeout(ANSWER_TIMEOUT, store.record_get(key)).await {
        Ok(Ok(record)) => Ok(record.map(|record| record.value)),
        Ok(Err(error)) => Err(format!("{}: {error}", store.describe())),
        Err(_) => Err(format!("{}: no answer within {} s", store.describe(), ANSWER_TIMEOUT.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sample::*, *};
    use crate::store::{access::Put, memory::MemoryStore};

    #[tokio::test]
    async fn the_masters_record_is_followed_and_a_lost_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Arc::new(Keeper::open(sample(1).origin().clone(), folder.path()).unwrap());
        let store = MemoryStore::default();
        let (told, mut news) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn({
            let (store, keeper) = (Arc::new(store.clone()), Arc::clone(&keeper));
            async move { watch_store(store, &keeper, move |news| drop(told.send(news))).await }
        });
        let mut next = async || timeout(Duration::from_secs(60), news.recv()).await.unwrap().unwrap();
        let put = async |text: String| {
            store.record_put(Put::new(Key::new(ZONE_KEY).unwrap(), text)).await.unwrap();
        };
        let json = |serial| serde_json::to_string(&object(serial)).unwrap();
        let serving = || keeper.subscribe().borrow().current().map(|zone| zone.serial());
        put(json(7)).await;
        assert!(matches!(next().await, News::Offered(Ok(super::super::source::Accepted::New))));
        // Other records are nobody's news; what is older or no zone is refused.
        store.record_put(Put::new(Key::new("health/x").unwrap(), "{}")).await.unwrap();
        put(json(6)).await;
        assert!(matches!(next().await, News::Offered(Err(Refused::Older { offered: 6, serving: 7 }))));
        put("{}".into()).await;
        assert!(matches!(next().await, News::Offered(Err(Refused::Zone(_)))));
        // A store that lost everything: no news come of that, the slow look finds it.
        store.wipe();
        assert!(matches!(next().await, News::Broken(_)));
        assert_eq!(serving(), Some(7));
        put(json(8)).await;
        assert!(matches!(next().await, News::Offered(Ok(_))));
        assert_eq!(serving(), Some(8));
        task.abort();
    }
}
