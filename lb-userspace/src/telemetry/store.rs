//! What a scrape shows of the store that the node follows.

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::snapshot::{counter, gauge};
use crate::api::StoreStatus;

/// The number before the digest of a revision.
fn number(revision: Option<&String>) -> u64 {
    revision.and_then(|text| text.split('-').next()?.parse().ok()).unwrap_or(0)
}

/// Writes the metrics of the store.
pub(super) fn encode(store: &StoreStatus, to: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
    let mut one = |name: &str, help: &str, value: u64| {
        let m = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(m)
    };
    one("store_up", "Whether the store is read; while it is not, what is in force stays.", u64::from(store.up))?;
    one("store_revision", "Number of the newest revision that was read.", number(store.newest.as_ref()))?;
    one("store_revision_applied", "Number of the revision in force on this node.", number(store.applied.as_ref()))?;
    one("store_lag", "Changes by which this node is behind what was read.", store.lag)?;
    let refused = u64::from(store.history_lost.is_some());
    one(
        "store_history_lost",
        "Whether the store's state is refused, because its history is not the one followed.",
        refused,
    )?;
    let help = "Health targets by who checks them: this node, or the orchestrators through the store.";
    let mut m = to.encode_descriptor("health_targets", help, None, MetricType::Gauge)?;
    gauge(&mut m, &[("source", "store")], u64::from(store.health_from_store))?;
    gauge(&mut m, &[("source", "node")], u64::from(store.health_own))?;
    let help = "How often the store's history was not the one followed.";
    let mut m = to.encode_descriptor("store_history_losses", help, None, MetricType::Counter)?;
    counter(&mut m, &[("store", store.store.as_str())], store.losses)?;
    let help = "How often the store had to be asked anew, by cause.";
    let mut m = to.encode_descriptor("store_resyncs", help, None, MetricType::Counter)?;
    store.resyncs.iter().try_for_each(|one| counter(&mut m, &[("cause", one.cause.as_str())], one.count))?;
    let help = "Whether this node leases an address of the pool.";
    let mut m = to.encode_descriptor("store_pool_leased", help, None, MetricType::Gauge)?;
    store
        .pools
        .iter()
        .try_for_each(|pool| gauge(&mut m, &[("pool", pool.pool.as_str())], u64::from(pool.address.is_some())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_known_by_its_number() {
        assert_eq!(number(Some(&"42-1a2b3c4d".to_owned())), 42);
        assert_eq!(number(None), 0);
    }
}
