//! What the tests of stores share: servers, writes, and waiting for followers.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_locks::torture::server::{RedisServer, ServerOptions};
use lb_userspace::store::{
    Key, Outcome, Store, StoreError, WriteError,
    redis::{RedisConfig, RedisStore, Servers},
    write::{Intent, NewText},
};

/// Longest wait for something that must happen.
pub const SOON: Duration = Duration::from_secs(60);

pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(600), test).await.expect("the test ends") })
}

pub fn redis() -> RedisServer {
    RedisServer::start(ServerOptions::default()).expect("redis-server")
}

pub fn config(server: std::net::SocketAddr, prefix: &str) -> RedisConfig {
    let mut config = RedisConfig::new(Servers::Standalone((server.ip().to_string(), server.port())));
    config.prefix = prefix.to_owned();
    config
}

pub fn store(config: RedisConfig) -> Arc<dyn Store> {
    Arc::new(RedisStore::new(config).unwrap())
}

pub fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub fn set(name: &str, text: &str) -> NewText {
    (key(name), Some(text.into()))
}

pub fn intent() -> Intent {
    Intent { expect: None, fence: None, author: "test@here".into(), message: String::new() }
}

/// Writes without a condition.
pub async fn write(store: &Arc<dyn Store>, edits: &[NewText]) -> Result<Outcome, StoreError> {
    store.write(&intent(), edits, |_| Ok::<_, std::convert::Infallible>(())).await.map_err(|error| match error {
        WriteError::Store(error) => error,
        WriteError::Refused(never) => match never {},
    })
}

/// Tries `check` until it holds.
pub async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !check().await {
        assert!(started.elapsed() < SOON, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All objects as plain texts.
pub async fn texts(store: &Arc<dyn Store>) -> BTreeMap<String, String> {
    let objects = store.snapshot().await.unwrap().map(|snapshot| snapshot.objects).unwrap_or_default();
    objects.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect()
}
