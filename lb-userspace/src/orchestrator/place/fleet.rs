//! The fleet's store as the orchestrator's: records under claims and fences, nodes by their reports, services from objects.
//!
//! Refuses to know: which kind of store it is. Invariants: holder and epoch of the master and assignment records are written as
//! the record's claim too, for that is what the store's fences look at; services that do not pass the check of a
//! configuration leave the last good ones in force.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;

use super::{Look, Place, PlaceError};
use crate::{
    model::{self, AdminState, Incremental},
    orchestrator::{
        intent::Edit,
        record::{DECISIONS, Expect, Fence, Outcome, PREFIXES, Put, Record, Version, Write},
        watch::Node,
    },
    store::{
        self, Key, Objects, Revision, Store, StoreError,
        document::document,
        edit::{BackendChange, NewBackend, Target, add_backend, change_backend, remove_backend},
        object::RevisionName,
        write::{Intent, Outcome as Changed, WriteError},
    },
};

/// What a node's part of a configuration must have; the services beside it are what is looked at. Pools need a store, whichever,
/// and limits are those of nodes: whatever any of them may have is no reason to see no service here.
const LOCAL: &str = "[node]\ninterface = \"lo\"\n[node.limits]\nservices_max = 65535\nbackends_max = 4194304\n\
                     ring_slots_max = 536870912\n[store]\nkind = \"redis\"\nurl = \"redis://127.0.0.1\"\n";

/// Services of the revision that was read last.
#[derive(Default)]
struct Known {
    revision: Option<Revision>,
    incremental: Incremental,
    services: Arc<Vec<model::Service>>,
}

/// The store of a fleet.
pub struct Fleet {
    store: Arc<dyn Store>,
    known: Mutex<Known>,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Fleet {
    /// The orchestrator's view of `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, known: Mutex::default() }
    }

    /// Revision and services, read anew only where the revision changed.
    async fn services(&self) -> Result<(u64, Arc<Vec<model::Service>>), StoreError> {
        let last = self.known.lock().unwrap_or_else(PoisonError::into_inner).revision;
        if let Some(last) = last
            && self.store.since(last).await?.head.is_some_and(|head| head.revision == last)
        {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            return Ok((last.number, Arc::clone(&known.services)));
        }
        let Some(snapshot) = self.store.snapshot().await? else { return Ok((0, Arc::default())) };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = known.incremental.document(&document("store", LOCAL, &snapshot.objects));
        match checked.config {
            Some(config) => known.services = Arc::new(config.services),
            None => tracing::error!("revision {}: {}; the services before stay", snapshot.revision, checked.summary()),
        }
        known.revision = Some(snapshot.revision);
        Ok((snapshot.revision.number, Arc::clone(&known.services)))
    }

    async fn nodes(&self) -> Result<BTreeMap<String, Node>, StoreError> {
        let mut nodes = BTreeMap::new();
        for record in self.store.record_all("node/").await? {
            let Ok(report) = serde_json::from_str::<store::node::NodeReport>(&record.value) else { continue };
            let node = Node {
                // It differs after each report, which is all that is looked at.
                beat: record.version,
                lease: Duration::from_millis(report.lease_ms),
                addresses: report.addresses.into_iter().collect(),
                ready_at: report.metrics,
                revision: report.applied.map_or(0, |revision| revision.number),
                ready: report.ready,
                draining: report.draining,
            };
            nodes.insert(report.node, node);
        }
        Ok(nodes)
    }

    async fn put(&self, put: Put) -> Result<Outcome, StoreError> {
        let text = put.record.encode().map_err(|error| StoreError::Refused(error.to_string()))?;
        let mut wanted = store::access::Put::new(Key::new(&put.record.key())?, text).expecting(match put.expect {
            Expect::Absent => store::access::Expect::Absent,
            Expect::Version(Version(version)) => store::access::Expect::Version(version),
            Expect::Any => store::access::Expect::Any,
        });
        match &put.record {
            // What was given back is held by nobody.
            Record::Lease(lease) if !lease.released => wanted = wanted.claim(&lease.holder, lease.epoch),
            Record::Assignment(assignment) => wanted = wanted.claim(&assignment.holder, assignment.epoch),
            _ => {}
        }
        if let Some(ttl_s) = put.ttl_s {
            wanted = wanted.ttl_ms(ttl_s.saturating_mul(1000));
        }
        if let Some(fence) = &put.fence {
            let (key, holder, epoch) = fence.parts();
            wanted = wanted.fence(Key::new(key)?, holder, epoch);
        }
        let store::Recorded { version, replicated } = self.store.record_put(wanted).await?;
        Ok(Outcome::Done { version: Version(version), replicated })
    }

    async fn edit(&self, edit: &Edit, revision: u64, fence: &Fence) -> Result<Outcome, StoreError> {
        let (key, holder, epoch) = fence.parts();
        // The store looks at it in the moment of the write: between a question and a write another may have become the master.
        let claim = store::access::Claim { holder: holder.to_owned(), epoch };
        let fence = Some(store::access::Fence { key: Key::new(key)?, claim });
        let (Edit::Add { backend, .. } | Edit::Drain { backend, .. } | Edit::Remove { backend, .. }) = edit;
        let address: SocketAddr =
            backend.parse().map_err(|_| StoreError::Refused(format!("{backend} is no address")))?;
        let target = Target { service: edit.service().to_owned(), address: address.ip(), port: Some(address.port()) };
        let decide = |objects: &Objects| match edit {
            Edit::Add { service, .. } => {
                let change = BackendChange::default();
                let new = NewBackend { address: address.ip(), port: Some(address.port()), change };
                add_backend(objects, service, &new)
            }
            Edit::Drain { .. } => {
                let change = BackendChange { admin_state: Some(AdminState::Drain), ..BackendChange::default() };
                change_backend(objects, &target, change)
            }
            Edit::Remove { .. } => remove_backend(objects, &target),
        };
        // Whoever changed the configuration since this was decided has made it void.
        let expect = Some(RevisionName { number: revision, digest: String::new() });
        let (author, message) = (format!("orchestrator {holder}"), format!("{edit:?}"));
        let intent = Intent { expect, fence, author, message };
        match self.store.update(&intent, decide).await {
            Ok(Changed::Changed(written, _)) => {
                let version = Version(written.revision.number);
                Ok(Outcome::Done { version, replicated: written.replicated })
            }
            Ok(Changed::Unchanged(have)) => {
                let version = Version(have.map_or(0, |revision| revision.number));
                Ok(Outcome::Done { version, replicated: true })
            }
            Err(WriteError::Store(error)) => Err(error),
            Err(WriteError::Refused(error)) => {
                tracing::warn!(%error, "{edit:?} cannot be written");
                Ok(Outcome::Refused)
            }
        }
    }
}

impl Place for Fleet {
    fn look(&self, decisions: bool) -> BoxFuture<'_, Result<Look, PlaceError>> {
        Box::pin(async move {
            let failed = |error: StoreError| PlaceError(error.to_string());
            let (revision, services) = self.services().await.map_err(failed)?;
            let nodes = self.nodes().await.map_err(failed)?;
            let mut records = Vec::new();
            for prefix in PREFIXES.iter().copied().chain(decisions.then_some(DECISIONS)) {
                for record in self.store.record_all(prefix).await.map_err(failed)? {
                    records.push((record.key.as_str().to_owned(), Version(record.version), record.value));
                }
            }
            Ok(Look { records, nodes, revision, services })
        })
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            let written = match write {
                Write::Put(put) => self.put(put).await,
                Write::Edit { edit, revision, fence } => self.edit(&edit, revision, &fence).await,
            };
            written.unwrap_or_else(|error| match error {
                StoreError::Unavailable(_) | StoreError::Uncertain(_) | StoreError::Broken(_) => Outcome::Unknown,
                StoreError::Conflict { .. } | StoreError::RecordConflict { .. } | StoreError::Fenced => {
                    Outcome::Refused
                }
                error => {
                    tracing::error!(%error, "the store refused a write");
                    Outcome::Refused
                }
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::{election::Lease, placement::Assignment};

    fn lease(holder: &str, epoch: u64) -> Record {
        Record::Lease(Lease { holder: holder.into(), epoch, beat: 0, released: false })
    }

    fn put(record: Record, expect: Expect, fence: Option<Fence>) -> Write {
        Write::Put(Put { record, expect, fence, ttl_s: None })
    }

    fn master(holder: &str, epoch: u64) -> Fence {
        Fence::Master { holder: holder.into(), epoch }
    }

    #[tokio::test]
    async fn claims_fences_and_versions_are_the_stores() {
        let fleet = Fleet::new(Arc::new(store::memory::MemoryStore::new(100)));
        let assignment = |epoch| {
            let workers = ["o1".to_owned()].into();
            Record::Assignment(Assignment { holder: "a/1".into(), epoch, workers, vantage_points: 1 })
        };
        let Outcome::Done { version, .. } = fleet.write(put(lease("a/1", 1), Expect::Absent, None)).await else {
            panic!("the first master is refused");
        };
        assert_eq!(fleet.write(put(lease("b/1", 2), Expect::Absent, None)).await, Outcome::Refused);
        for (fence, done) in [(master("a/1", 2), false), (master("b/1", 1), false), (master("a/1", 1), true)] {
            let outcome = fleet.write(put(assignment(1), Expect::Absent, Some(fence.clone()))).await;
            assert_eq!(matches!(outcome, Outcome::Done { .. }), done, "{fence:?}");
        }
        let look = fleet.look(true).await.unwrap();
        let (view, _) = super::super::view(&look);
        assert_eq!(view.lease.map(|at| at.version), Some(version));
        assert_eq!((view.assignment.map(|at| at.value.epoch), view.unreadable.len()), (Some(1), 0));
        let released = Record::Lease(Lease { holder: "a/1".into(), epoch: 1, beat: 1, released: true });
        assert!(matches!(fleet.write(put(released, Expect::Version(version), None)).await, Outcome::Done { .. }));
        let late = put(assignment(2), Expect::Any, Some(master("a/1", 1)));
        assert_eq!(fleet.write(late).await, Outcome::Refused, "who gave the mastership back");
    }

    #[tokio::test]
    async fn nodes_are_asked_where_they_report_their_metrics() {
        let store: Arc<dyn Store> = Arc::new(store::memory::MemoryStore::new(100));
        let at = SocketAddr::from(([10, 0, 0, 1], 9650));
        let old = r#"{"node":"n2","lease_ms":1,"revision":null,"outcome":"applied","applied":null,"version":"0","addresses":[],
                      "ready":true,"draining":false}"#;
        let older: store::node::NodeReport = serde_json::from_str(old).unwrap();
        store.report(&store::node::NodeReport { node: "n1".into(), metrics: Some(at), ..older.clone() }).await.unwrap();
        store.report(&older).await.unwrap();
        let look = Fleet::new(store).look(false).await.unwrap();
        let at_each: Vec<_> = look.nodes.iter().map(|(name, node)| (name.as_str(), node.ready_at)).collect();
        assert_eq!(at_each, [("n1", Some(at)), ("n2", None)]);
    }

    #[test]
    fn services_whose_vip_is_of_a_pool_are_seen() {
        let text = |key: &str, text: &str| (Key::new(key).unwrap(), Arc::<str>::from(text));
        let service = "[[service]]\nname = \"web\"\nvip = \"pool:front\"\nport = 80\nforward = \"dsr\"\n\
                       [[service.backends]]\naddress = \"10.0.0.1\"\n";
        let pool = "[[pool]]\nname = \"front\"\nprefix = \"198.51.100.0/28\"\n";
        let objects = Objects::from([text("service/web", service), text("pool/front", pool)]);
        let document = document("store", LOCAL, &objects);
        let checked = Incremental::default().document(&document);
        let config = checked.config.clone().unwrap_or_else(|| panic!("{}", document.render(&checked, false)));
        assert_eq!(config.services[0].backends.len(), 1);
    }

    #[tokio::test]
    async fn services_are_read_and_edited_in_place() {
        let store: Arc<dyn Store> = Arc::new(store::memory::MemoryStore::new(100));
        let text = "[[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nport = 80\nforward = \"nat\"\n\
                    [[service.backends]]\naddress = \"10.0.0.1\"\nport = 80\n";
        let edits = [(Key::new("service/web").unwrap(), Some(Arc::from(text)))];
        let intent = Intent { author: "test".into(), ..Intent::default() };
        store.write(&intent, &edits, |_| Ok::<_, String>(())).await.unwrap();
        let fleet = Fleet::new(Arc::clone(&store));
        fleet.write(put(lease("a/1", 1), Expect::Absent, None)).await;
        let backends = async || {
            let look = fleet.look(false).await.unwrap();
            let list = look.services[0].backends.iter().map(|one| (one.address.to_string(), one.admin_state));
            (look.revision, list.collect::<Vec<_>>())
        };
        let (service, backend) = ("web".to_owned(), "10.0.0.2:80".to_owned());
        let edit = |edit, revision, fence| fleet.write(Write::Edit { edit, revision, fence });
        let add = Edit::Add { service: service.clone(), backend: backend.clone() };
        assert_eq!(edit(add.clone(), 1, master("b/1", 1)).await, Outcome::Refused);
        assert_eq!(edit(add.clone(), 7, master("a/1", 1)).await, Outcome::Refused);
        assert!(matches!(edit(add, 1, master("a/1", 1)).await, Outcome::Done { .. }));
        let ready = ("10.0.0.1".to_owned(), AdminState::Ready);
        assert_eq!(backends().await, (2, vec![ready.clone(), ("10.0.0.2".to_owned(), AdminState::Ready)]));
        let drain = Edit::Drain { service: service.clone(), backend: backend.clone() };
        assert!(matches!(edit(drain, 2, master("a/1", 1)).await, Outcome::Done { .. }));
        assert_eq!(backends().await.1[1].1, AdminState::Drain);
        assert!(matches!(edit(Edit::Remove { service, backend }, 3, master("a/1", 1)).await, Outcome::Done { .. }));
        assert_eq!(backends().await, (4, vec![ready]));
    }
}
