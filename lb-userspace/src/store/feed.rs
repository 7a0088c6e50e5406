//! A reader of a store: the shell around `follow`.
//!
//! Owns: the subscription, the question that is out, the clock. Refuses to know: why anything is asked.
//!
//! Invariants: [`Feed::next`] may be dropped at any moment and called again, nothing is lost; nothing runs while nobody
//! calls it, so a slow reader holds back its questions, and the subscription's own bounded queue says what it missed.

use std::{fmt, future::pending, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{
    access::{Notice, Snapshot, Store, StoreError, Subscription},
    follow::{Ask, Counters, Event, Follow, Input, Loss, Times},
};

/// Longest time for an answer, whatever the store promises.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

enum Answer {
    Subscribed(Result<Box<dyn Subscription>, StoreError>),
    Asked(Input),
}

/// A running reader.
pub struct Feed {
    store: Arc<dyn Store>,
    follow: Follow,
    subscription: Option<Box<dyn Subscription>>,
    answer: Option<BoxFuture<'static, Answer>>,
    started: Instant,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("store", &self.store.describe()).finish_non_exhaustive()
    }
}

impl Feed {
    /// A reader of `store` that holds `copy`, the last good state of an earlier run, or nothing yet. `seed`: any number
    /// that differs between readers.
    pub fn new(store: Arc<dyn Store>, copy: Option<Snapshot>, times: Times, seed: u64) -> Self {
        let follow = Follow::new(copy, times, seed, 0);
        Self { store, follow, subscription: None, answer: None, started: Instant::now() }
    }

    /// The next thing to know. Cancel-safe.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.follow.event() {
                return event;
            }
            if self.answer.is_none()
                && let Some(ask) = self.follow.ask(self.now_ms())
            {
                self.answer = Some(Box::pin(answer(Arc::clone(&self.store), ask)));
            }
            let deadline = self.started + Duration::from_millis(self.follow.deadline_ms().min(u64::MAX / 4_000_000));
            let answer = async {
                match &mut self.answer {
                    Some(answer) => answer.await,
                    None => pending().await,
                }
            };
            let notice = async {
                match &mut self.subscription {
                    Some(subscription) => subscription.next().await,
                    None => pending().await,
                }
            };
            let input = tokio::select! {
                answer = answer => {
                    self.answer = None;
                    match answer {
                        Answer::Asked(input) => input,
                        Answer::Subscribed(Ok(subscription)) => {
                            self.subscription = Some(subscription);
                            Input::Subscribed
                        }
                        Answer::Subscribed(Err(error)) => Input::Lost(error.to_string()),
                    }
                }
                notice = notice => match notice {
                    Ok(notice) => Input::Notice(notice),
                    Err(error) => {
                        self.subscription = None;
                        // Its answer may be from before what is missed now.
                        self.answer = None;
                        Input::Lost(error.to_string())
                    }
                },
                () = tokio::time::sleep_until(deadline) => Input::Tick,
            };
            self.follow.handle(input, self.now_ms());
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// What is held. Of several events in a row all are in it already when the first one is told.
    pub fn copy(&self) -> Option<&Snapshot> {
        self.follow.copy()
    }

    /// How often what happened.
    pub fn counters(&self) -> Counters {
        self.follow.counters()
    }

    /// Whether the store is read, and what is held is what it has.
    pub fn is_up(&self) -> bool {
        self.follow.is_up()
    }

    /// The loss because of which the store's state is refused.
    pub fn refused(&self) -> Option<Loss> {
        self.follow.refused()
    }

    /// Somebody said that the store's state is right: takes it, whatever it is.
    pub fn adopt(&mut self) {
        self.follow.adopt();
    }
}

async fn answer(store: Arc<dyn Store>, ask: Ask) -> Answer {
    let late = || StoreError::Unavailable("no answer".into());
    match ask {
        Ask::Subscribe => {
            let subscribed = tokio::time::timeout(ANSWER_TIMEOUT, store.subscribe()).await;
            Answer::Subscribed(subscribed.unwrap_or_else(|_| Err(late())))
        }
        Ask::Since(revision) => {
            let since = tokio::time::timeout(ANSWER_TIMEOUT, store.since(revision)).await;
            Answer::Asked(match since.unwrap_or_else(|_| Err(late())) {
                Ok(since) => Input::Since(since),
                Err(error) => Input::Failed(error.to_string()),
            })
        }
        Ask::Snapshot => {
            let snapshot = tokio::time::timeout(ANSWER_TIMEOUT, store.snapshot()).await;
            Answer::Asked(match snapshot.unwrap_or_else(|_| Err(late())) {
                Ok(snapshot) => Input::Snapshot(snapshot),
                Err(error) => Input::Failed(error.to_string()),
            })
        }
    }
}

/// News about records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordNews {
    /// This one was written or removed.
    Key(super::object::Key),
    /// Any may have been: the subscription is new, or news were lost.
    Any,
}

/// A wake-up for readers of records. News may be lost without a word and expiry makes none, so look by a timer too.
pub struct RecordFeed {
    store: Arc<dyn Store>,
    subscription: Option<Box<dyn Subscription>>,
    retry: Duration,
    /// Nothing is asked before this.
    retry_at: Instant,
}

impl fmt::Debug for RecordFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordFeed").field("store", &self.store.describe()).finish_non_exhaustive()
    }
}

/// First and longest pause between attempts to subscribe.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

impl RecordFeed {
    /// News of `store`'s records.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, subscription: None, retry: RETRY.0, retry_at: Instant::now() }
    }

    /// The next news; [`RecordNews::Any`] first. Cancel-safe, but an attempt to subscribe that is cut short begins anew.
    pub async fn next(&mut self) -> RecordNews {
        loop {
            let Some(subscription) = &mut self.subscription else {
                tokio::time::sleep_until(self.retry_at).await;
                match tokio::time::timeout(ANSWER_TIMEOUT, self.store.subscribe()).await {
                    Ok(Ok(subscription)) => {
                        self.subscription = Some(subscription);
                        self.retry = RETRY.0;
                        return RecordNews::Any;
                    }
                    Ok(Err(_)) | Err(_) => {
                        self.retry_at = Instant::now() + self.retry;
                        self.retry = (self.retry * 2).min(RETRY.1);
                    }
                }
                continue;
            };
            match subscription.next().await {
                Ok(Notice::Record(key)) => return RecordNews::Key(key),
                Ok(Notice::Missed) => return RecordNews::Any,
                Ok(Notice::Changed { .. }) => {}
                Err(_) => {
                    self.subscription = None;
                    self.retry_at = Instant::now() + self.retry;
                }
            }
        }
    }
}
