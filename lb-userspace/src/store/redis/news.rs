//! A subscription on a connection of its own.
//!
//! Owns: the bounded queue between the server and the reader, and the watch over the connection: a peer that vanished
//! without a word is noticed because it does not answer, one that lost its role because it says so.
//!
//! Invariant: once a notice was dropped for want of room, the reader is told [`Notice::Missed`] before the next one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use redis::{PushKind, Value};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    config::{RedisConfig, Servers},
    link::{self, Link, bounded},
};
use crate::store::access::{NOTICES_MAX, Notice, StoreError, Subscription};

/// Between two looks at the connection.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks after which the Sentinels are asked too.
const SENTINEL_EVERY: u32 = 3;

pub struct News {
    notices: mpsc::Receiver<Notice>,
    missed: Arc<AtomicBool>,
    broken: watch::Receiver<Option<String>>,
    watch: JoinHandle<()>,
}

impl News {
    pub async fn subscribe(config: &Arc<RedisConfig>, channels: &[String]) -> Result<Self, StoreError> {
        let (sender, notices) = mpsc::channel(NOTICES_MAX);
        let (tell, broken) = watch::channel(None);
        let missed = Arc::new(AtomicBool::new(false));
        let (missed_too, tell_too) = (Arc::clone(&missed), tell.clone());
        let pushed = Box::new(move |push: redis::PushInfo| {
            let notice = match push.kind {
                PushKind::Disconnection => {
                    tell_too.send_replace(Some("the connection was closed".into()));
                    return;
                }
                PushKind::Message => notice(push.data),
                _ => return,
            };
            // One that is not understood still says that something happened.
            if sender.try_send(notice.unwrap_or(Notice::Missed)).is_err() {
                missed_too.store(true, Ordering::Release);
            }
        });
        let link = Link::open(config, Some(pushed)).await?;
        bounded(&link, config.answer_timeout, link.subscribe(channels)).await?;
        let config = Arc::clone(config);
        let watch = tokio::spawn(async move {
            let why = observe(&config, &link).await;
            tell.send_replace(Some(why.to_string()));
        });
        Ok(Self { notices, missed, broken, watch })
    }
}

/// The notice in a message of a channel.
fn notice(data: Vec<Value>) -> Option<Notice> {
    serde_json::from_str(&link::text(data.into_iter().nth(1)?)?).ok()
}

/// Returns why the link is not good any more.
async fn observe(config: &RedisConfig, link: &Link) -> StoreError {
    for look in 1u32.. {
        tokio::time::sleep(LOOK_EVERY).await;
        match bounded(link, config.answer_timeout, link.is_master()).await {
            Ok(true) => {}
            Ok(false) => return StoreError::Unavailable("the server is no master any more".into()),
            Err(error) => return error,
        }
        // A master that was cut off from its Sentinels takes itself for one still.
        if look.is_multiple_of(SENTINEL_EVERY)
            && matches!(config.servers, Servers::Sentinel { .. })
            && let Ok(address) = link::master(config).await
            && address != link.address
        {
            return StoreError::Unavailable("the Sentinels name another master".into());
        }
    }
    StoreError::Unavailable("watched for too long".into())
}

impl Drop for News {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Subscription for News {
    fn next(&mut self) -> BoxFuture<'_, Result<Notice, StoreError>> {
        Box::pin(async {
            if self.missed.swap(false, Ordering::AcqRel) {
                // What waits is older than what was dropped; the answer to one question covers both.
                while self.notices.try_recv().is_ok() {}
                return Ok(Notice::Missed);
            }
            tokio::select! {
                biased;
                notice = self.notices.recv() => notice.ok_or(StoreError::Unavailable("the connection was closed".into())),
                why = self.broken.wait_for(Option::is_some) => {
                    let why = why.ok().and_then(|why| why.clone());
                    Err(StoreError::Unavailable(why.unwrap_or_else(|| "the connection was closed".into())))
                }
            }
        })
    }
}
