//! An embedded database that this process owns, and serves to the others.
//!
//! Owns: the socket beside the database, through which this machine's other processes reach it, and the listener for other machines, where
//! `listen` asks for one. Refuses to know: what is in it.
//!
//! Invariant: one process has a database at a time. Whoever comes later asks the one that has it.

use std::{os::unix::net::UnixStream, sync::Arc};

use anyhow::Context as _;
use tokio::net::UnixListener;

use super::api::socket;
use crate::{
    model::{StoreConfig, store::EmbeddedStore},
    store::{
        self, Store,
        http::{self, Access, Door},
    },
};

/// A database with the socket on which it will be served.
#[derive(Debug)]
pub struct Owner {
    store: Arc<dyn Store>,
    inner: UnixListener,
    config: EmbeddedStore,
}

impl Owner {
    /// Of the embedded database that `config` names; `None` where it names none, or somebody else serves it already. `group` may use
    /// the socket, too. Needs the runtime's context.
    ///
    /// # Errors
    /// A database that cannot be opened, and a socket that cannot be listened on.
    pub fn of(config: &StoreConfig, group: Option<&str>) -> anyhow::Result<Option<Self>> {
        let StoreConfig::Embedded(embedded) = config else { return Ok(None) };
        let path = store::socket_path(&embedded.path);
        // Asked before the database is opened: one that somebody else serves is theirs.
        if UnixStream::connect(&path).is_ok() {
            return Ok(None);
        }
        // Opened before there is a socket: whoever opens it asks behind the socket, if there is one.
        let store = store::open(config).context("cannot use the store")?;
        Ok(Some(Self { store, inner: socket::listen(&path, group)?, config: embedded.clone() }))
    }

    /// Serves it from now on: to command lines of this machine, and to others where `listen` says. Its owner's own way to it.
    ///
    /// # Errors
    /// Files of `[store]` that cannot be read, and an address that cannot be listened on.
    pub async fn serve(self) -> anyhow::Result<Arc<dyn Store>> {
        let outer = store::outer_door(&self.config).await.context("cannot serve the store")?;
        let doors = [Some((Door::Unix(self.inner), Access::default())), outer];
        for (door, access) in doors.into_iter().flatten() {
            tracing::info!("the store is served: {door:?}");
            let store = Arc::clone(&self.store);
            tokio::spawn(async move {
                if let Err(error) = http::serve(door, store, access).await {
                    tracing::error!(%error, "the store is not served");
                }
            });
        }
        Ok(self.store)
    }
}
