//! What nodes report about themselves, and who is alive.
//!
//! Owns: the records `node/NAME`, and `drain/NAME`, by which somebody takes a node out. Invariant: a node whose report is older than its own lease is not alive, by the store's
//! clock alone; its last report is still shown, for a week.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    access::{LIST_MAX, Put, RECORDS_MAX, Record, Recorded, Store, StoreError},
    object::{Key, Revision},
};

/// How long a node that fell silent is remembered.
pub const FORGET_MS: u64 = 7 * 24 * 3_600_000;
/// Drains in a report: those of one service of many backends.
pub const DRAINS_MAX: usize = 4_096;
/// Kind of the records.
const KIND: &str = "node/";
/// Kind of the records that take nodes out.
const DRAIN: &str = "drain/";

/// What became of a revision on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The maps hold it.
    Applied,
    /// It was refused, and the revision before stays.
    Refused(String),
}

/// A node's report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name.
    pub node: String,
    /// For how long the report counts.
    pub lease_ms: u64,
    /// The newest revision that it has read; `None` before the first.
    pub revision: Option<Revision>,
    /// What became of that one.
    pub outcome: Outcome,
    /// The newest revision that its maps hold.
    pub applied: Option<Revision>,
    /// Release of weir.
    pub version: String,
    /// Addresses that DNS may publish.
    pub addresses: Vec<std::net::IpAddr>,
    /// Whether it forwards.
    pub ready: bool,
    /// Whether somebody takes it out ([`DrainOrder`]).
    pub draining: bool,
    /// Where others reach its `/metrics` and `/ready`; `None`: nowhere, or an older release wrote the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<std::net::SocketAddr>,
    /// Drains that are not over, at most [`DRAINS_MAX`]; none also where an older release wrote the report.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drains: Vec<NodeDrain>,
}

/// A backend that drains on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDrain {
    /// Service and backend: `web/10.0.0.11:80`.
    pub backend: String,
    /// Connections that it has left, where all are recorded.
    pub connections: Option<u64>,
    /// Its time is over, and connections are left.
    pub timed_out: bool,
}

/// That a node is taken out: it forwards as before, DNS leaves it out, until the order is withdrawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainOrder {
    /// Who wants it.
    pub author: String,
    /// Why; may be empty.
    pub message: String,
}

/// A node as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its last report.
    pub report: NodeReport,
    /// Age of that report, by the store's clock.
    pub age_ms: u64,
    /// Whether the report still counts.
    pub live: bool,
}

impl dyn Store {
    /// Writes `report`.
    ///
    /// # Errors
    /// The store's; [`StoreError::Form`] for a name that is none.
    pub async fn report(&self, report: &NodeReport) -> Result<(), StoreError> {
        let key = Key::new(&format!("{KIND}{}", report.node))?;
        let text = serde_json::to_string(report).map_err(|e| StoreError::Broken(e.to_string()))?;
        self.record_put(Put::new(key, text).ttl_ms(FORGET_MS)).await.map(|_| ())
    }

    /// All nodes that reported within [`FORGET_MS`], by name. Reports that a newer release wrote in another form are left
    /// out.
    ///
    /// # Errors
    /// The store's.
    pub async fn nodes(&self) -> Result<Vec<NodeStatus>, StoreError> {
        let records = self.record_all(KIND).await?;
        Ok(records.iter().filter_map(status).collect())
    }

    /// Takes the node `name` out, or back in with `None`; whether that changed anything.
    ///
    /// # Errors
    /// The store's; [`StoreError::Form`] for a name that is none.
    pub async fn drain_node(&self, name: &str, order: Option<&DrainOrder>) -> Result<Option<Recorded>, StoreError> {
        let key = Key::new(&format!("{DRAIN}{name}"))?;
        let present = self.record_get(key.clone()).await?;
        let put = match (order, present) {
            (Some(order), _) => {
                Put::new(key, serde_json::to_string(order).map_err(|e| StoreError::Broken(e.to_string()))?)
            }
            (None, Some(_)) => Put::remove(key),
            (None, None) => return Ok(None),
        };
        self.record_put(put).await.map(Some)
    }

    /// Whether the node `name` is to be out.
    ///
    /// # Errors
    /// The store's; [`StoreError::Form`] for a name that is none.
    pub async fn is_drained(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.record_get(Key::new(&format!("{DRAIN}{name}"))?).await?.is_some())
    }

    /// The orders by node. One in another form counts, without its author.
    ///
    /// # Errors
    /// The store's.
    pub async fn drain_orders(&self) -> Result<BTreeMap<String, DrainOrder>, StoreError> {
        let unknown = || DrainOrder { author: String::new(), message: String::new() };
        let order = |record: &Record| serde_json::from_str(&record.value).unwrap_or_else(|_| unknown());
        let records = self.record_all(DRAIN).await?;
        Ok(records.iter().map(|record| (record.key.name().to_owned(), order(record))).collect())
    }

    /// All records whose keys begin with `prefix`, in the order of keys, read page by page.
    ///
    /// # Errors
    /// The store's.
    pub async fn record_all(&self, prefix: &str) -> Result<Vec<Record>, StoreError> {
        let mut records: Vec<Record> = Vec::new();
        for _ in 0..RECORDS_MAX.div_ceil(LIST_MAX) {
            let after = records.last().map(|record| record.key.clone());
            let page = self.record_list(prefix.to_owned(), after, LIST_MAX).await?;
            let last = page.len() < LIST_MAX;
            records.extend(page);
            if last {
                break;
            }
        }
        Ok(records)
    }
}

fn status(record: &Record) -> Option<NodeStatus> {
    let report: NodeReport = serde_json::from_str(&record.value).ok()?;
    Some(NodeStatus { live: record.age_ms <= report.lease_ms, age_ms: record.age_ms, report })
}
