//! Addresses of pools: each node leases one of each pool from the store, and keeps it over restarts.
//!
//! Owns: which address is asked for, and how long a lease is good. Refuses to know: what the address is used for.
//!
//! A lease outlives a dead agent for [`TTL_MS`]: the node's program goes on forwarding for that address, and another node that
//! answered for it would break its connections. Only a node that gives its lease back frees the address sooner.
//!
//! The node remembers its leases in a file, so that an agent that starts while the store is away goes on serving them.
//!
//! Invariants: at most one node has a lease of an address, because it is written where none is, by compare and set; a node that
//! has one never asks for another of the same pool. A node that is cut off from the store for longer than [`TTL_MS`] goes on serving its
//! address, because forwarding outlives the store; only then another may lease it meanwhile, and the first asks for another once
//! it is back.

use std::{collections::BTreeMap, fs, io, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use ipnet::IpNet;
use tokio::time::Instant;

use crate::{
    model::store::POOL_ADDRESSES_MAX,
    store::{
        Key, Store, StoreError,
        access::{Expect, Put, Record},
        file::replace_file,
    },
};

/// How long a lease is good without renewal: 1 h.
pub const TTL_MS: u64 = 3_600_000;
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(300);
/// How often one that could not be had is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Longest time that a start waits for one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Addresses of a pool that nodes may lease: the hosts of the prefix, without network and broadcast address in IPv4.
pub fn addresses(pool: &IpNet) -> impl Iterator<Item = IpAddr> + use<> {
    let skip = usize::from(matches!(pool, IpNet::V6(net) if net.prefix_len() < 127));
    // The first address of an IPv6 prefix is the subnet-router anycast address (RFC 4291, 2.6.1).
    pool.hosts().skip(skip).take(POOL_ADDRESSES_MAX)
}

/// Addresses of `pool` in the order in which `node` asks for them: by highest random weight, so that nodes that start together seldom
/// ask for the same one, and a node that lost its lease asks for the same one again (Thaler and Ravishankar, "A Name-Based
/// Mapping Scheme for Rendezvous", 1996).
pub fn order(pool: &IpNet, node: &str) -> Vec<IpAddr> {
    use siphasher::sip::SipHasher13;
    use std::hash::{Hash as _, Hasher as _};
    let weight = |address: &IpAddr| {
        // No secret: any node may know where the others would like to be.
        let mut hasher = SipHasher13::new();
        (node, address).hash(&mut hasher);
        hasher.finish()
    };
    let mut all: Vec<IpAddr> = addresses(pool).collect();
    all.sort_by_key(|address| std::cmp::Reverse(weight(address)));
    all
}

/// The address that `node` holds among the leases of a pool, with the version of its record.
fn own(records: &[Record], pool: &str, node: &str) -> Option<(IpAddr, u64)> {
    records
        .iter()
        .filter(|record| &*record.value == node)
        .find_map(|record| Some((place(record, pool)?, record.version)))
}

fn prefix(pool: &str) -> String {
    format!("lease/{pool}/")
}

fn place(record: &Record, pool: &str) -> Option<IpAddr> {
    record.key.as_str().strip_prefix(&prefix(pool))?.parse().ok()
}

/// The leases of a node.
pub struct Leaser {
    store: Arc<dyn Store>,
    node: String,
    pools: BTreeMap<String, IpNet>,
    held: BTreeMap<String, IpAddr>,
    /// Where `held` is remembered.
    file: PathBuf,
    due: Instant,
}

/// What an earlier run held; nothing where that cannot be read, which costs no more than asking for it.
fn remembered(file: &std::path::Path) -> BTreeMap<String, IpAddr> {
    let read = fs::read(file).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other));
    read.unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(%error, "cannot read the leases of an earlier run in {}", file.display());
        }
        BTreeMap::new()
    })
}

impl Leaser {
    /// With the leases that an earlier run remembered in `file`.
    pub fn new(store: Arc<dyn Store>, node: String, file: PathBuf) -> Self {
        let held = remembered(&file);
        Self { store, node, pools: BTreeMap::new(), held, file, due: far() }
    }

    fn remember(&self) {
        let written = serde_json::to_vec(&self.held).map_err(io::Error::other);
        if let Err(error) = written.and_then(|text| replace_file(&self.file, &text, Some(0o600))) {
            tracing::error!(%error, "cannot remember the leases in {}", self.file.display());
        }
    }

    /// What is held, by pool.
    pub fn held(&self) -> &BTreeMap<String, IpAddr> {
        &self.held
    }

    /// Pools of which nothing is held.
    pub fn without(&self) -> Vec<String> {
        self.pools.keys().filter(|pool| !self.held.contains_key(*pool)).cloned().collect()
    }

    /// When [`Leaser::renew`] is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Sets the pools of which one address each is wanted. Says whether one is missing that has to be asked for first; what is held is
    /// renewed in its own time.
    pub fn set(&mut self, pools: BTreeMap<String, IpNet>) -> bool {
        let before = self.held.len();
        let inside = |pool: &String, address: &IpAddr| pools.get(pool).is_some_and(|net| net.contains(address));
        self.held.retain(|pool, address| inside(pool, address));
        if self.held.len() < before {
            self.remember();
        }
        if pools == self.pools {
            return false;
        }
        self.pools = pools;
        self.due = Instant::now();
        !self.without().is_empty()
    }

    /// Renews what is held and asks for what is missing. Failures are told and tried again later; what is held stays so.
    pub async fn renew(&mut self) {
        let (mut missing, before) = (false, self.held.clone());
        for (pool, net) in self.pools.clone() {
            match tokio::time::timeout(PATIENCE, self.lease(&pool, &net)).await {
                Ok(Ok(Some(address))) => {
                    if self.held.insert(pool.clone(), address) != Some(address) {
                        tracing::info!(%pool, %address, "leased an address");
                    }
                }
                Ok(Ok(None)) => {
                    missing = true;
                    self.held.remove(&pool);
                    tracing::error!(%pool, %net, "no address of the pool is free: its services are not served by this node");
                }
                Ok(Err(error)) => {
                    missing = true;
                    tracing::warn!(%pool, %error, "cannot lease or renew an address");
                }
                Err(_) => {
                    missing = true;
                    tracing::warn!(%pool, "the store does not answer about leases");
                }
            }
        }
        if self.held != before {
            self.remember();
        }
        self.due = match (self.pools.is_empty(), missing) {
            (true, _) => far(),
            (false, true) => Instant::now() + RETRY,
            (false, false) => Instant::now() + RENEW,
        };
    }

    /// One lease: the one that is held, or the first free address in this node's order.
    async fn lease(&self, pool: &str, net: &IpNet) -> Result<Option<IpAddr>, StoreError> {
        let records = self.store.record_all(&prefix(pool)).await?;
        if let Some((address, version)) = own(&records, pool, &self.node).filter(|(address, _)| net.contains(address)) {
            match self.write(pool, address, Expect::Version(version)).await {
                Ok(()) => return Ok(Some(address)),
                // It ran out at this moment: asked for like any other.
                Err(StoreError::RecordConflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let taken: Vec<IpAddr> = records.iter().filter_map(|record| place(record, pool)).collect();
        // One that ran out while the store was away is asked for first: connections go through it.
        let first = self.held.get(pool).copied().filter(|address| net.contains(address));
        let all = first.into_iter().chain(order(net, &self.node));
        for address in all.filter(|address| !taken.contains(address)) {
            match self.write(pool, address, Expect::Absent).await {
                Ok(()) => return Ok(Some(address)),
                Err(StoreError::RecordConflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn write(&self, pool: &str, address: IpAddr, expect: Expect) -> Result<(), StoreError> {
        let key = Key::new(&format!("{}{address}", prefix(pool)))?;
        let put = Put::new(key, self.node.as_str()).expecting(expect).ttl_ms(TTL_MS);
        self.store.record_put(put).await.map(drop)
    }
}

/// Gives back every lease of `node`, so that other nodes may have the addresses at once.
///
/// # Errors
/// The store's.
pub async fn give_back(store: &(dyn Store + 'static), node: &str) -> Result<usize, StoreError> {
    let mut given = 0;
    for record in store.record_all("lease/").await?.into_iter().filter(|record| &*record.value == node) {
        let put = Put::remove(record.key).expecting(Expect::Version(record.version));
        match store.record_put(put).await {
            Ok(_) => given += 1,
            Err(StoreError::RecordConflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(given)
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::store::memory::MemoryStore;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn network_broadcast_and_anycast_addresses_are_nobodys() {
        let all = |text: &str| addresses(&net(text)).map(|a| a.to_string()).collect::<Vec<_>>();
        assert_eq!(all("192.0.2.0/30"), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(all("192.0.2.8/31"), ["192.0.2.8", "192.0.2.9"]);
        assert_eq!(all("192.0.2.8/32"), ["192.0.2.8"]);
        assert_eq!(all("2001:db8::/126"), ["2001:db8::1", "2001:db8::2", "2001:db8::3"]);
        assert_eq!(all("2001:db8::/64").len(), POOL_ADDRESSES_MAX);
    }

    /// A leaser that has forgotten everything but its name, and the folder of its file.
    fn leaser(store: &Arc<dyn Store>, node: &str, pool: &str) -> (Leaser, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let mut leaser = Leaser::new(Arc::clone(store), node.into(), folder.path().join("leases.json"));
        assert!(leaser.set([("front".to_owned(), net(pool))].into()));
        (leaser, folder)
    }

    #[tokio::test]
    async fn each_node_has_one_address_of_its_own_and_keeps_it() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let mut held = BTreeMap::new();
        for node in ["n1", "n2", "n3", "n4", "n5", "n6"] {
            let (mut leaser, _folder) = leaser(&store, node, "192.0.2.0/29");
            leaser.renew().await;
            held.insert(node, leaser.held()["front"]);
        }
        assert_eq!(held.values().collect::<BTreeSet<_>>().len(), 6, "{held:?}");
        // A seventh finds none; a node that starts again has its own.
        let (mut late, _folder) = leaser(&store, "n7", "192.0.2.0/29");
        late.renew().await;
        assert_eq!(late.without(), ["front"]);
        let (mut again, _folder) = leaser(&store, "n3", "192.0.2.0/29");
        again.renew().await;
        assert_eq!(again.held()["front"], held["n3"]);
        // What is given back is free.
        assert_eq!(give_back(&*store, "n3").await, Ok(1));
        late.renew().await;
        assert_eq!(late.held()["front"], held["n3"]);
    }

    #[tokio::test]
    async fn another_prefix_is_another_lease() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let (mut leaser, _folder) = leaser(&store, "n1", "192.0.2.0/29");
        leaser.renew().await;
        assert!(!leaser.set([("front".to_owned(), net("192.0.2.0/29"))].into()));
        assert!(leaser.set([("front".to_owned(), net("198.51.100.0/29"))].into()));
        assert!(leaser.held().is_empty());
        leaser.renew().await;
        assert!(net("198.51.100.0/29").contains(&leaser.held()["front"]));
    }

    #[tokio::test]
    async fn leases_outlive_the_agent_and_what_the_store_knows_of_them() {
        let memory = MemoryStore::default();
        let store: Arc<dyn Store> = Arc::new(memory.clone());
        let pools = || BTreeMap::from([("front".to_owned(), net("192.0.2.0/29"))]);
        let (mut first, folder) = leaser(&store, "n1", "192.0.2.0/29");
        first.renew().await;
        let held = first.held().clone();
        assert_eq!(held.len(), 1);
        // A new agent needs no answer to go on, and where the lease ran out in the store it has the same address again.
        let mut again = Leaser::new(store, "n1".into(), folder.path().join("leases.json"));
        assert!(!again.set(pools()), "nothing is missing");
        assert_eq!(*again.held(), held);
        memory.wipe();
        again.renew().await;
        assert_eq!(*again.held(), held);
    }
}
