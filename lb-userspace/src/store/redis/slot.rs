//! A connection that callers share, and its opening that they share as well.
//!
//! Invariants: a slot opens one connection at a time, and whoever needs one meanwhile has the outcome of that opening, so that a server
//! which does not answer costs each caller the time of one opening and no more; an opening ends by itself, whoever gives up on it; no
//! lock is held while anybody waits.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};

use super::{config::RedisConfig, link::Link};
use crate::store::access::StoreError;

type Opening = Shared<BoxFuture<'static, Result<Arc<Link>, StoreError>>>;

/// A place for one connection.
#[derive(Default)]
pub struct Slot(Mutex<Option<Opening>>);

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot(..)")
    }
}

impl Slot {
    /// The connection; a new one where there is none, or it is known to be broken.
    pub async fn link(&self, config: &Arc<RedisConfig>) -> Result<Arc<Link>, StoreError> {
        let opening = {
            // One opening is put in place of another as a whole.
            let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match slot.as_ref() {
                Some(opening) if is_good(opening) => opening.clone(),
                _ => slot.insert(open(Arc::clone(config))).clone(),
            }
        };
        opening.await
    }
}

/// Whether it has led to a connection that is not known to be broken, or may still.
fn is_good(opening: &Opening) -> bool {
    match opening.peek() {
        Some(outcome) => outcome.as_ref().is_ok_and(|link| !link.is_dead()),
        None => true,
    }
}

/// Opens by itself: callers with less patience than an opening may need would give up on one after another.
fn open(config: Arc<RedisConfig>) -> Opening {
    let opening = tokio::spawn(async move { Link::open(&config, None).await.map(Arc::new) });
    let ended = |_| StoreError::Unavailable("the opening of a connection was given up".into());
    async move { opening.await.unwrap_or_else(|error| Err(ended(error))) }.boxed().shared()
}
