//! Observed health, shared: each node writes what it observes as one record, and a node that starts without maps inherits it.
//!
//! Owns: the record `observed/NODE`, how often it is written, and how old it may be to be inherited. Refuses to know: revisions; a
//! flapping backend never touches the configuration.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::store::{Key, Store, StoreError, access::Put};

/// Shortest time between two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between writes that say nothing new, so that the record's age tells whether it is true.
const BEAT: Duration = Duration::from_secs(10);
/// Age up to which a record is inherited: longer than a beat with a few lost.
pub const INHERIT_MS: u64 = 60_000;
/// How long a record is kept.
const FORGET_MS: u64 = 24 * 3_600_000;
/// Longest time for one write.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether what is probed is up, by `ADDRESS CHECK`; what has no result yet is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Observations(pub BTreeMap<String, bool>);

/// The name of a target: where it is probed, and how.
pub fn name(address: SocketAddr, check: &crate::model::HealthCheck) -> String {
    match &check.probe {
        crate::model::Probe::Http { path, host } => {
            format!("{address} http {path} {}", host.as_deref().unwrap_or("-"))
        }
        crate::model::Probe::Tcp => format!("{address} tcp"),
    }
}

/// What was observed before: by this node if its record is young enough, else by the node whose record is youngest.
///
/// # Errors
/// The store's.
pub async fn inherited(store: &(dyn Store + 'static), node: &str) -> Result<Observations, StoreError> {
    let mut records = store.record_all("observed/").await?;
    records.retain(|record| record.age_ms <= INHERIT_MS);
    records.sort_by_key(|record| (record.key.name() != node, record.age_ms));
    Ok(records.iter().find_map(|record| serde_json::from_str(&record.value).ok()).unwrap_or_default())
}

/// Writes what comes; ends with its source.
pub async fn run(store: Arc<dyn Store>, node: String, mut health: watch::Receiver<Observations>) {
    let Ok(key) = Key::new(&format!("observed/{node}")) else { return };
    loop {
        let now = health.borrow_and_update().clone();
        // An agent that has observed nothing yet must not overwrite what it is about to inherit.
        if !now.0.is_empty()
            && let Ok(text) = serde_json::to_string(&now)
        {
            // The reader tells that the store is away; health follows with the next beat.
            let put = store.record_put(Put::new(key.clone(), text).ttl_ms(FORGET_MS));
            drop(tokio::time::timeout(PATIENCE, put).await);
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(BEAT) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    #[test]
    fn names_tell_checks_apart() {
        let check = |probe| crate::model::HealthCheck {
            probe,
            port: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 1,
        };
        let at = "10.0.0.1:80".parse().unwrap();
        let http = |path: &str| check(crate::model::Probe::Http { path: path.into(), host: None });
        let names = [check(crate::model::Probe::Tcp), http("/"), http("/health")].map(|check| name(at, &check));
        assert_eq!(names, ["10.0.0.1:80 tcp", "10.0.0.1:80 http / -", "10.0.0.1:80 http /health -"]);
    }

    #[tokio::test]
    async fn the_own_record_is_inherited_first_and_an_old_one_never() {
        let store = MemoryStore::default();
        let store: &(dyn Store + 'static) = &store;
        let put = |node: &str, up: bool| {
            let text = serde_json::to_string(&Observations([("x tcp".to_owned(), up)].into())).unwrap();
            Put::new(Key::new(&format!("observed/{node}")).unwrap(), text)
        };
        assert_eq!(inherited(store, "n1").await, Ok(Observations::default()));
        store.record_put(put("n2", true)).await.unwrap();
        assert!(inherited(store, "n1").await.unwrap().0["x tcp"]);
        store.record_put(put("n1", false)).await.unwrap();
        assert!(!inherited(store, "n1").await.unwrap().0["x tcp"]);
    }
}
