//! Judges the store that the configuration names: whether it is reached, and whether a fail-over could lose what it acknowledged.

use super::Finding;
use crate::{
    model::{
        StoreConfig,
        store::{RedisServers, RedisStore},
    },
    store::{self, StoreError, redis::Replication},
};

/// Everything about a store; nothing where services stand in the node's file.
pub async fn check(config: &StoreConfig) -> Vec<Finding> {
    if config.is_file() {
        return Vec::new();
    }
    let read = async {
        let store = store::open(config)?;
        let snapshot = store.snapshot().await?;
        let stands = snapshot.map_or_else(|| "never written".to_owned(), |snapshot| snapshot.revision.to_string());
        Ok::<_, StoreError>(format!("{}: {stands}", store.describe()))
    };
    let mut findings =
        vec![match read.await {
            Ok(found) => Finding::ok("store", found),
            Err(error) => {
                return vec![Finding::fail("store", error.to_string()).advice(
                    "nodes go on with what they have; see `[store]` in the configuration, and the store itself",
                )];
            }
        }];
    if let StoreConfig::Redis(redis @ RedisStore { servers: RedisServers::Sentinels { .. }, .. }) = config {
        let asked = async { Replication::ask(&store::redis_config(redis)?).await };
        findings.push(replication(asked.await));
    }
    findings
}

/// Whether a fail-over keeps what was acknowledged.
fn replication(asked: Result<Replication, StoreError>) -> Finding {
    const CHECK: &str = "store replicas";
    match asked {
        Ok(Replication { required: false, replicas }) => {
            Finding::warn(CHECK, format!("{replicas} connected, and none is needed for a write")).advice(
                "`min-replicas-to-write 1` on every server: a master that is cut off takes no writes to lose then",
            )
        }
        Ok(Replication { replicas: 0, .. }) => Finding::fail(CHECK, "none is connected: the store takes no writes")
            .advice("start the replicas; `SENTINEL REPLICAS` says where they should be"),
        Ok(Replication { replicas, .. }) => {
            Finding::ok(CHECK, format!("{replicas} connected, one is needed for a write"))
        }
        Err(error) => Finding::warn(CHECK, format!("not known: {error}"))
            .advice("let the user run `INFO`, or look for `min-replicas-to-write` on the servers yourself"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    #[test]
    fn a_write_that_nothing_replicates_is_warned_of() {
        let level = |replicas, required| replication(Ok(Replication { replicas, required })).level;
        assert_eq!(level(2, true), Level::Ok);
        assert_eq!(level(0, true), Level::Fail);
        assert_eq!(level(2, false), Level::Warn);
        assert_eq!(replication(Err(StoreError::Denied("INFO".into()))).level, Level::Warn);
    }
}
