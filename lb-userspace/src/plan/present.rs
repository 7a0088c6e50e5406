//! What the maps hold: the memory that planning works from, rebuilt from the maps themselves by an adopting agent.
//!
//! Owns: which ids, lines and lookup words are in use, and the quarantine of those that packets in flight may still name.
//! Refuses to know: when a packet has left (the caller says so through [`Present::release`]). Invariants: an id or line in
//! quarantine is not given out; a copy is cheap, for services are shared; secrets are never shown.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use bytemuck::Zeroable;
use lb_core::{
    abi::{
        ABI_VERSION,
        backend::{Backend, BackendKey, FLAG_DOWN, FLAG_REMOVED, FLAG_UP},
        lookup::WAYS,
        node::Node,
        ring::Extent,
        service::{FLAG_TRACK_ALL, Service},
    },
    hash::HashKey,
};

use super::{
    MapSizes, Op,
    arena::Arena,
    ids::IdPool,
    lookup::Table,
    wanted::backend_key,
    window::{GRACE_S, Records, Times, Window},
};
use crate::model::ServiceKey;

/// What a node must not show: whoever knows it can aim at a slot or a bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secrets {
    /// Key of the flow hash and of the lookup hash.
    pub hash_key: HashKey,
    /// Seed of ring construction.
    pub ring_seed: u64,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// What the maps hold.
#[derive(Clone)]
pub struct Present {
    pub(super) sizes: MapSizes,
    pub(super) secrets: Secrets,
    pub(super) node: Node,
    pub(super) services: BTreeMap<ServiceKey, Arc<PresentService>>,
    /// The service that each VIP's own lookup word names.
    pub(super) vips: BTreeMap<IpAddr, u32>,
    pub(super) table: Arc<Table>,
    pub(super) service_ids: IdPool,
    pub(super) backend_ids: IdPool,
    pub(super) arena: Arena,
    pub(super) quarantine: VecDeque<Quarantine>,
    /// Ids of backends that left, until no record and no owner names them.
    pub(super) former: Vec<Former>,
    /// Number of the last plan.
    pub(super) generation: u64,
    /// Raised by every plan and every release, so that a plan made from an older state is noticed.
    pub(super) version: u64,
}

impl fmt::Debug for Present {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Present")
            .field("revision", &self.node.revision)
            .field("generation", &self.generation)
            .field("fill", &self.fill())
            .finish_non_exhaustive()
    }
}

/// What one plan took out of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quarantine {
    pub generation: u64,
    pub services: Vec<u32>,
    pub backends: Vec<Former>,
    pub extents: Vec<Extent>,
}

/// A service in the maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresentService {
    /// Service id.
    pub id: u32,
    /// Its entry.
    pub entry: Service,
    /// Backends in the order of their keys.
    pub backends: Vec<PresentBackend>,
    /// What the ring was built from; unknown after adoption, until the ring that is wanted was built once and compared.
    pub(super) ring: RingInputs,
    /// Its slots that are not settled.
    pub window: Window,
    /// How long their states last.
    pub times: Times,
    /// From when on every record of its flows names a slot of this ring, and not of one of other size or inputs.
    pub(super) aligned_s: u64,
    /// What the members were made from, empty without; unknown after adoption.
    pub(super) members: Option<Vec<(u32, u32)>>,
}

impl PresentService {
    /// Whether every flow is recorded.
    pub fn tracks_all(&self) -> bool {
        self.entry.flags & FLAG_TRACK_ALL != 0
    }

    /// Whether every flow has been recorded for `window_s`: whoever was silent since before may not send any more.
    pub(super) fn tells_all(&self, now_s: u64, window_s: u64) -> bool {
        let since_s = self.entry.tracked_since_s();
        since_s.is_some_and(|since_s| now_s >= u64::from(since_s) + window_s)
    }

    /// When something is due without a cause from outside.
    pub fn due_s(&self) -> Option<u64> {
        let leaves = self.backends.iter().filter_map(|b| b.leaves_s);
        leaves.chain(self.window.due_s(self.times)).min()
    }

    /// Whether a look at the flow table could bring something to its end.
    pub fn waits_for_records(&self) -> bool {
        self.window.waits_for_records() || (self.tracks_all() && self.backends.iter().any(|b| b.leaves_s.is_some()))
    }
}

/// What a ring was built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RingInputs {
    /// (backend id, weight without the common factor), in the order of keys. With the size, all that decides.
    Members(Vec<(u32, u32)>),
    /// Digest of the slots, see [`super::rebuild::digest`].
    Adopted(u64),
}

/// A backend in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresentBackend {
    /// Backend id.
    pub id: u32,
    /// Stable identity.
    pub key: BackendKey,
    /// Its entry.
    pub entry: Backend,
    /// When it leaves, for one that is no longer configured.
    pub leaves_s: Option<u64>,
}

/// A backend id that nothing may get while records or owners can name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Former {
    /// Backend id.
    pub id: u32,
    /// Service id.
    pub service: u32,
    /// When it left.
    pub since_s: u64,
}

/// How full the maps are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Services.
    pub services: u32,
    /// Services that may exist.
    pub services_max: u32,
    /// Backends over all services.
    pub backends: u32,
    /// Backends that may exist.
    pub backends_max: u32,
    /// Slots of the ring arena in use or in quarantine, in whole lines.
    pub ring_slots: u64,
    /// Slots of the arena.
    pub ring_slots_max: u64,
    /// Lookup entries.
    pub lookup_entries: u32,
    /// Ways of the lookup table; insertions may fail well before all are taken.
    pub lookup_entries_max: u32,
}

impl Present {
    /// Maps in which nothing is, of a kernel whose clock ticks `hz` times a second.
    pub fn empty(sizes: MapSizes, secrets: Secrets, hz: u32) -> Self {
        let node = Node {
            abi_version: ABI_VERSION,
            hash_key: secrets.hash_key,
            ring_seed: secrets.ring_seed,
            lookup_mask: sizes.lookup_mask(),
            flow_mask: sizes.flow_mask(),
            hz,
            ..Node::zeroed()
        };
        Self {
            sizes,
            secrets,
            node,
            services: BTreeMap::new(),
            vips: BTreeMap::new(),
            table: Arc::new(Table::new(secrets.hash_key, sizes.lookup_buckets)),
            service_ids: IdPool::new(sizes.services),
            backend_ids: IdPool::new(sizes.backends),
            arena: Arena::new(sizes.ring_lines),
            quarantine: VecDeque::new(),
            former: Vec::new(),
            generation: 0,
            version: 0,
        }
    }

    /// The node entry. Holds the secrets: never log it.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Revision of the configuration that the maps hold; 0 before the first.
    pub fn revision(&self) -> u64 {
        self.node.revision
    }

    /// Sizes of the maps.
    pub fn sizes(&self) -> &MapSizes {
        &self.sizes
    }

    /// The service with a key.
    pub fn service(&self, key: &ServiceKey) -> Option<&PresentService> {
        self.services.get(key).map(Arc::as_ref)
    }

    /// The services in the order of their keys.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &PresentService)> {
        self.services.iter().map(|(key, service)| (key, service.as_ref()))
    }

    /// A backend of a service.
    pub fn backend(&self, service: &ServiceKey, address: IpAddr, port: u16) -> Option<&PresentBackend> {
        let key = backend_key(service, address, port);
        let backends = &self.service(service)?.backends;
        backends.get(backends.binary_search_by_key(&key, |b| b.key).ok()?)
    }

    /// The health that the maps hold for a backend, for an adopting agent to start from.
    pub fn inherited_up(&self, service: &ServiceKey, address: IpAddr, port: u16) -> Option<bool> {
        let held = self.backend(service, address, port).filter(|b| b.entry.flags & FLAG_REMOVED == 0);
        held.and_then(|b| match b.entry.flags & (FLAG_UP | FLAG_DOWN) {
            0 => None,
            flags => Some(flags & FLAG_UP != 0),
        })
    }

    /// Whether the maps were made with these secrets. Those of the maps stay in force either way: others would move flows.
    pub fn has_secrets(&self, secrets: &Secrets) -> bool {
        self.secrets == *secrets
    }

    /// Whether a service id is in use or in quarantine.
    pub fn uses_service_id(&self, id: u32) -> bool {
        self.service_ids.is_used(id)
    }

    /// Whether a backend id is in use or in quarantine.
    pub fn uses_backend_id(&self, id: u32) -> bool {
        self.backend_ids.is_used(id)
    }

    /// Whether no ring in use or in quarantine has a line of `extent`, and all of it lies in the arena.
    pub fn has_free(&self, extent: Extent) -> bool {
        self.arena.is_free(extent)
    }

    /// Ids of the backends that this has and `other` does not, or for another service, with their services. A service that
    /// did not change since the one was made from the other costs next to nothing.
    pub fn backends_beyond(&self, other: &Self) -> Vec<(u32, ServiceKey)> {
        let mut beyond = Vec::new();
        for (key, service) in &self.services {
            let kept = other.services.get(key);
            if kept.is_some_and(|kept| Arc::ptr_eq(kept, service)) {
                continue;
            }
            let kept: HashSet<u32> = kept.iter().flat_map(|kept| &kept.backends).map(|backend| backend.id).collect();
            let ids = service.backends.iter().map(|backend| backend.id);
            beyond.extend(ids.filter(|id| !kept.contains(id)).map(|id| (id, *key)));
        }
        beyond
    }

    /// How full the maps are.
    pub fn fill(&self) -> Fill {
        let slots = |lines: u32| u64::from(lines) * lb_core::abi::ring::LINE_SLOTS as u64;
        Fill {
            services: self.services.len() as u32,
            services_max: self.sizes.services_max,
            backends: self.services.values().map(|s| s.backends.len() as u32).sum(),
            backends_max: self.sizes.backends_max,
            ring_slots: slots(self.arena.lines() - self.arena.free_lines()),
            ring_slots_max: slots(self.arena.lines()),
            lookup_entries: self.table.entries(),
            lookup_entries_max: self.sizes.lookup_buckets.saturating_mul(WAYS as u32),
        }
    }

    /// Number of the last plan, the one that [`Present::release`] takes once its grace is over.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Raised by every plan and every release.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// When something is due without a cause from outside.
    pub fn due_s(&self) -> Option<u64> {
        self.services.values().filter_map(|s| s.due_s()).min()
    }

    /// Whether a look at the flow table could bring something to its end.
    pub fn waits_for_records(&self) -> bool {
        !self.former.is_empty() || self.services.values().any(|s| s.waits_for_records())
    }

    /// Backends that left and whose ids are kept from reuse.
    pub fn former(&self) -> &[Former] {
        &self.former
    }

    /// Gives ids back that neither records nor owners name any more. Returns how many.
    pub fn forget(&mut self, records: &dyn Records) -> usize {
        let owned = |f: &Former| {
            let service = self.services.values().find(|s| s.id == f.service);
            service.is_some_and(|s| s.window.owned_by(f.id) || s.entry.previous_ring != 0)
        };
        let (gone, kept): (Vec<Former>, Vec<Former>) = (self.former.iter().copied())
            .partition(|f| records.at_s() >= f.since_s + GRACE_S && !records.names(f.id) && !owned(f));
        self.former = kept;
        gone.iter().for_each(|f| self.backend_ids.free(f.id));
        self.version += u64::from(!gone.is_empty());
        gone.len()
    }

    /// The oldest plan whose removals wait for a grace.
    pub fn quarantined(&self) -> Option<u64> {
        self.quarantine.front().map(|q| q.generation)
    }

    /// Slots of the arena that wait for a grace, in whole lines.
    pub fn quarantined_slots(&self) -> u64 {
        let lines = self.quarantine.iter().flat_map(|q| &q.extents).map(|e| u64::from(e.lines()));
        lines.sum::<u64>() * lb_core::abi::ring::LINE_SLOTS as u64
    }

    /// Makes reusable what plans up to `generation` took out of use. The caller vouches that every packet that began before
    /// the last of them was applied has left. Returns the stores that clear what was removed; they are carried out before
    /// any later plan.
    pub fn release(&mut self, generation: u64) -> Vec<Op> {
        let mut ops = Vec::new();
        while let Some(q) = self.quarantine.pop_front_if(|q| q.generation <= generation) {
            self.version += 1;
            for former in q.backends {
                // The id stays taken until no record and no owner names it.
                ops.push(Op::ClearBackend { id: former.id });
                self.former.push(former);
            }
            for id in q.services {
                self.service_ids.free(id);
                ops.push(Op::ClearService { id });
            }
            q.extents.into_iter().for_each(|extent| self.arena.free(extent));
        }
        ops
    }
}
