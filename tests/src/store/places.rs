//! The conformance suite over each place.

use std::sync::Arc;

use lb_locks::torture::server::RedisServer;
use lb_userspace::store::{
    Store, StoreError,
    access::Put,
    embedded::EmbeddedStore,
    http::{Access, Door, Endpoint, HttpStore, serve},
    memory::MemoryStore,
};
use tempfile::TempDir;
use tokio::{net::UnixListener, task::JoinHandle};

use super::{
    conformance::{self, Factory, HISTORY_MAX},
    rig::{config, key, redis, run, set, store, texts, write},
};

struct Memory;

impl Factory for Memory {
    async fn make(&mut self) -> Arc<dyn Store> {
        Arc::new(MemoryStore::new(HISTORY_MAX))
    }
}

#[test]
fn memory() {
    run(conformance::all(Memory));
}

struct Redis {
    server: RedisServer,
    made: u32,
}

impl Factory for Redis {
    async fn make(&mut self) -> Arc<dyn Store> {
        self.made += 1;
        let mut config = config(self.server.address(), &format!("weir{}", self.made));
        config.history_max = HISTORY_MAX;
        store(config)
    }
}

#[test]
fn redis_standalone() {
    run(conformance::all(Redis { server: redis(), made: 0 }));
}

struct Embedded {
    folder: TempDir,
    made: u32,
}

impl Embedded {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), made: 0 }
    }

    fn open(&mut self) -> EmbeddedStore {
        self.made += 1;
        EmbeddedStore::open(self.folder.path().join(format!("{}.redb", self.made)), HISTORY_MAX).unwrap()
    }
}

impl Factory for Embedded {
    async fn make(&mut self) -> Arc<dyn Store> {
        Arc::new(self.open())
    }
}

#[test]
fn embedded() {
    run(conformance::all(Embedded::new()));
}

/// The embedded database behind HTTP on a Unix socket.
struct Http {
    stores: Embedded,
    server: Option<JoinHandle<Result<(), StoreError>>>,
}

impl Factory for Http {
    async fn make(&mut self) -> Arc<dyn Store> {
        if let Some(server) = self.server.take() {
            server.abort();
        }
        let store = Arc::new(self.stores.open());
        let socket = self.stores.folder.path().join(format!("{}.sock", self.stores.made));
        let door = Door::Unix(UnixListener::bind(&socket).unwrap());
        self.server = Some(tokio::spawn(serve(door, store, Access::default())));
        Arc::new(HttpStore::new(Endpoint::Unix(socket), None, false).unwrap())
    }

    fn fills(&self) -> bool {
        // The database behind it is filled in a test of its own; here it would be JSON of 32 MiB, again and again.
        false
    }
}

#[test]
fn embedded_through_http() {
    run(conformance::all(Http { stores: Embedded::new(), server: None }));
}

#[test]
fn a_database_is_what_it_was_when_it_is_opened_again() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weir.redb");
        let open = || EmbeddedStore::open(&path, HISTORY_MAX);
        let (snapshot, history, record) = {
            let store: Arc<dyn Store> = Arc::new(open().unwrap());
            for at in 0..HISTORY_MAX + 2 {
                write(&store, &[set("service/a", &at.to_string()), set("service/b", "1")]).await.unwrap();
            }
            store.record_put(Put::new(key("lease/a"), "1").claim("x", 2).ttl_ms(600_000)).await.unwrap();
            store.record_put(Put::new(key("lease/b"), "1").ttl_ms(1)).await.unwrap();
            assert!(matches!(open(), Err(StoreError::Unavailable(_))), "one process at a time");
            let record = store.record_get(key("lease/a")).await.unwrap().unwrap();
            (store.snapshot().await.unwrap(), store.history(100).await.unwrap(), record)
        };
        let store: Arc<dyn Store> = Arc::new(open().unwrap());
        assert_eq!(store.snapshot().await.unwrap(), snapshot);
        assert_eq!(store.history(100).await.unwrap(), history);
        assert_eq!(history.len(), HISTORY_MAX);
        let again = store.record_get(key("lease/a")).await.unwrap().unwrap();
        assert_eq!((again.version, &again.claim), (record.version, &record.claim));
        assert!(again.ttl_ms.is_some_and(|ttl_ms| ttl_ms <= 600_000));
        assert_eq!(store.record_get(key("lease/b")).await.unwrap(), None);
        let recorded = store.record_put(Put::new(key("lease/c"), "1")).await.unwrap();
        assert!(recorded.version > record.version + 1, "versions go on");
        write(&store, &[set("service/c", "1")]).await.unwrap();
        assert_eq!(texts(&store).await.len(), 3);
    });
}
