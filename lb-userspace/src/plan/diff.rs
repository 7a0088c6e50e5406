//! From what the maps hold to what they shall hold.
//!
//! Order of a plan: backends, their reply words, rings (on fresh lines), services (one store publishes a ring), the words that
//! name services, removals, the node's flags, and the revision last. A packet that runs at any point of it sees either the old
//! or the new state of each service, and so does an agent that adopts maps whose writer was stopped at any point.
//! A slot that changes its backend goes through a window ([`super::window`]); a backend that leaves keeps its flows for its drain.
//! A service whose forwarding mode changes is another service: new ids for it and its backends, published by one lookup
//! store, so that no packet meets half of each.
//!
//! Pure: the same input gives the same plan. Invariants: an error leaves the present state as it is; a service that did not change
//! costs one comparison and no operation; a ring is built only when its members, their weights or its size changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bytemuck::Zeroable;
use lb_core::abi::{
    backend::{Backend, FLAG_DOWN, FLAG_DRAINING, FLAG_REMOVED, FLAG_VALID},
    lookup::{Key, Kind},
    ring::{Extent, Inputs},
    service::{Forward, Service},
};

use super::{
    PlanError, Present, PresentBackend, PresentService, Records, Times, Wanted, WantedBackend, WantedService, Window,
    entries::{
        change_backend, change_node, change_service, common_factor, entry, leaving, node_entry, policy, policy_words,
    },
    op::Op,
    present::{Former, Quarantine, RingInputs},
    rebuild::LEAVES_UNKNOWN,
    ring, rings,
    wanted::{address, octets},
};
use crate::model::{NextHop, SERVICE_BACKENDS_MAX, ServiceKey};

/// What planning is told besides what the maps hold and shall hold.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// Seconds of a clock that only grows.
    pub now_s: u64,
    /// The slots of a ring in the maps, as they are now; `None` outside the arena.
    pub ring: &'a dyn Fn(Extent) -> Option<Vec<u32>>,
    /// The last look at the flow table, if any.
    pub records: Option<&'a dyn Records>,
    /// Recorded flows of a backend, half-open ones included.
    pub flows: &'a dyn Fn(u32) -> u64,
}

impl<'a> Seen<'a> {
    /// Nothing is known of flows.
    pub fn rings(now_s: u64, ring: &'a dyn Fn(Extent) -> Option<Vec<u32>>) -> Self {
        Self { now_s, ring, records: None, flows: &|_| 1 }
    }
}

/// Slots of a service that a plan moves to another backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves {
    /// Key of the service.
    pub service: ServiceKey,
    /// Slots whose new flows go to another backend than before, by (slot, backend id before).
    pub slots: Vec<(u32, u32)>,
    /// Slots of the ring.
    pub of: u32,
    /// Size or inputs change: every flow may have another slot.
    pub whole: bool,
}

/// Operations in order, and what the maps hold after them.
#[derive(Clone, Debug)]
pub struct Plan {
    /// To be carried out in this order.
    pub ops: Vec<Op>,
    /// What the maps hold then.
    pub next: Present,
    /// [`Present::version`] of the state that this plan was made from.
    pub base: u64,
    /// What changes, for people.
    pub summary: Summary,
    /// Slots that change, by service.
    pub moves: Vec<Moves>,
}

/// What a plan changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Services that appear, a changed forwarding mode included.
    pub services_added: u32,
    /// Services that go, a changed forwarding mode included.
    pub services_removed: u32,
    /// Backends that appear.
    pub backends_added: u32,
    /// Backends that go.
    pub backends_removed: u32,
    /// Backends whose entry changes (health, next hop).
    pub backends_changed: u32,
    /// Backends that are no longer configured and begin to drain.
    pub backends_leaving: u32,
    /// Rings that are written.
    pub rings_built: u32,
    /// Rings of which slots change their states alone.
    pub rings_moved_on: u32,
    /// Services that fail open: none of their ready backends is up.
    pub fail_open: Vec<String>,
}

/// Plans the way from `present` to `wanted`, which carries the number `revision`.
///
/// # Errors
/// [`PlanError`] where a limit is exceeded; nothing has changed then.
pub fn diff(present: &Present, wanted: &Wanted, revision: u64, seen: Seen<'_>) -> Result<Plan, PlanError> {
    check_limits(present, wanted)?;
    let mut draft = Draft::new(present, wanted, seen);
    let mut gone: BTreeSet<ServiceKey> = present.services.keys().copied().collect();
    for service in &wanted.services {
        gone.remove(&service.key);
        match present.services.get(&service.key) {
            Some(old) if unchanged(old, service, &wanted.leaving, seen.now_s) && !is_due(old, &seen) => {}
            Some(old) if old.entry.forward == service.forward as u8 => draft.update(old, service)?,
            Some(old) => {
                draft.remove(old);
                draft.create(service)?;
            }
            None => draft.create(service)?,
        }
    }
    for key in gone {
        if let Some(old) = draft.next.services.remove(&key) {
            draft.remove(&old);
        }
    }
    if let Some(records) = seen.records {
        draft.next.forget(records);
    }
    draft.finish(wanted, revision, present.version)
}

fn check_limits(present: &Present, wanted: &Wanted) -> Result<(), PlanError> {
    let sizes = &present.sizes;
    if wanted.services.len() > sizes.services_max as usize {
        return Err(PlanError::Services { wanted: wanted.services.len(), limit: sizes.services_max });
    }
    let backends = wanted.services.iter().map(|s| s.backends.len()).sum();
    if backends > sizes.backends_max as usize {
        return Err(PlanError::Backends { wanted: backends, limit: sizes.backends_max });
    }
    for pair in wanted.services.windows(2) {
        if let [a, b] = pair
            && a.key == b.key
        {
            return Err(PlanError::Twice { what: "service", address: a.key.vip, port: a.key.port });
        }
    }
    for service in &wanted.services {
        let name = || service.name.clone();
        if service.backends.len() > SERVICE_BACKENDS_MAX {
            return Err(PlanError::ServiceBackends { service: name(), wanted: service.backends.len() });
        }
        if !ring::is_prime(service.ring_size) {
            return Err(PlanError::RingSize { service: name(), size: service.ring_size });
        }
        for pair in service.backends.windows(2) {
            if let [a, b] = pair
                && a.key == b.key
            {
                return Err(PlanError::Twice { what: "backend", address: address(a.key.addr), port: a.key.port });
            }
        }
    }
    Ok(())
}

/// Whether time or records alone may bring something of a service to its end.
fn is_due(old: &PresentService, seen: &Seen<'_>) -> bool {
    old.due_s().is_some_and(|due_s| seen.now_s >= due_s) || (seen.records.is_some() && old.waits_for_records())
}

/// Whether nothing new is asked of a service. Allocates nothing: this runs for every service of every change.
fn unchanged(old: &PresentService, new: &WantedService, known: &BTreeMap<IpAddr, Option<NextHop>>, now_s: u64) -> bool {
    let RingInputs::Members(members) = &old.ring else { return false };
    if old.entry.forward != new.forward as u8 || policy_words(&old.entry) != policy_words(&policy(old.entry, new, 0)) {
        return false;
    }
    let weighted = new.backends.iter().any(|b| b.weight > 0);
    if weighted && shape(old.entry.ring) != (new.ring_size, new.policy.inputs) {
        return false;
    }
    if old.times != new.policy.times || (old.window != Window::Settled && !new.policy.windows) {
        return false;
    }
    if old.backends.iter().any(|b| b.leaves_s.is_some() && leaving(&b.entry, known) != b.entry) {
        return false;
    }
    let dismissed = |b: &&PresentBackend| new.dismissed.binary_search(&b.key).is_ok();
    let mut olds = old.backends.iter().filter(|b| b.leaves_s.is_none());
    if olds.clone().count() != new.backends.len() || old.backends.iter().any(|b| dismissed(&b)) {
        return false;
    }
    let factor = common_factor(&new.backends);
    let mut members = members.iter();
    new.backends.iter().zip(olds.by_ref()).all(|(n, o)| {
        o.key == n.key
            && o.entry == kept(old, o, new, n, now_s)
            && (n.weight == 0 || members.next() == Some(&(o.id, n.weight / factor)))
    }) && members.next().is_none()
}

/// The entry of a backend that stays.
///
/// A limit that it did not have waits until no slot is announced: flows that began before every flow was recorded may still repeat their
/// SYNs, of which nothing is known, and a full backend would turn them away.
fn kept(
    service: &PresentService,
    old: &PresentBackend,
    wanted: &WantedService,
    new: &WantedBackend,
    now_s: u64,
) -> Backend {
    let mut entry = entry(Some(&old.entry), service.id, wanted, new);
    let times = wanted.policy.times;
    let begins = || !service.tracks_all() && times.announce_s > 0;
    let is_new = old.entry.max_connections == 0 && entry.max_connections != 0;
    if is_new && wanted.policy.track_all && (begins() || service.window.is_announced(times, now_s)) {
        entry.max_connections = 0;
    }
    entry
}

/// Size and inputs of a packed ring.
fn shape(ring: u64) -> (u32, Inputs) {
    (Extent::unpack(ring).slots, Inputs::unpack(ring))
}

/// What happens to a lookup key.
#[derive(Default)]
struct KeyChange {
    old: Option<u32>,
    new: Option<u32>,
}

/// A plan being made.
pub(super) struct Draft<'s> {
    pub(super) next: Present,
    pub(super) seen: Seen<'s>,
    out: Quarantine,
    backends: Vec<Op>,
    pub(super) rings: Vec<Op>,
    services: Vec<Op>,
    keys: BTreeMap<Key, KeyChange>,
    pub(super) summary: Summary,
    pub(super) moves: Vec<Moves>,
    /// Backends whose entry now says that they are down.
    down: BTreeSet<u32>,
    /// [`Wanted::leaving`].
    leaving: &'s BTreeMap<IpAddr, Option<NextHop>>,
}

impl<'s> Draft<'s> {
    fn new(present: &Present, wanted: &'s Wanted, seen: Seen<'s>) -> Self {
        let mut next = present.clone();
        next.generation += 1;
        next.version += 1;
        let fail_open = wanted.services.iter().filter(|s| s.fail_open).map(|s| s.name.clone()).collect();
        Self {
            out: Quarantine {
                generation: next.generation,
                services: Vec::new(),
                backends: Vec::new(),
                extents: Vec::new(),
            },
            next,
            seen,
            moves: Vec::new(),
            down: BTreeSet::new(),
            leaving: &wanted.leaving,
            backends: Vec::new(),
            rings: Vec::new(),
            services: Vec::new(),
            keys: BTreeMap::new(),
            summary: Summary { fail_open, ..Summary::default() },
        }
    }

    fn create(&mut self, wanted: &WantedService) -> Result<(), PlanError> {
        let id = self.next.service_ids.take().ok_or(PlanError::Ids {
            what: "service",
            used: self.next.service_ids.used(),
            limit: self.next.sizes.services - 1,
        })?;
        let mut backends = Vec::with_capacity(wanted.backends.len());
        for backend in &wanted.backends {
            backends.push(self.add_backend(id, wanted, backend)?);
        }
        let rings = self.ring(wanted, &backends, None)?;
        let entry = Service {
            ring: rings.ring,
            members: rings.members_word,
            addr: octets(wanted.key.vip),
            port: wanted.key.port,
            proto: wanted.key.protocol.number(),
            forward: wanted.forward as u8,
            ..policy(Service::zeroed(), wanted, self.seen.now_s)
        };
        self.services.push(Op::PutService { id, entry });
        self.set_key(entry.key(), id)?;
        self.put(wanted, id, entry, backends, rings);
        self.summary.services_added += 1;
        Ok(())
    }

    fn put(
        &mut self,
        wanted: &WantedService,
        id: u32,
        entry: Service,
        backends: Vec<PresentBackend>,
        rings: rings::Rings,
    ) {
        let service = PresentService {
            id,
            entry,
            backends,
            ring: rings.inputs,
            window: rings.window,
            times: wanted.policy.times,
            aligned_s: rings.aligned_s,
            members: Some(rings.members),
        };
        self.next.services.insert(wanted.key, Arc::new(service));
    }

    fn update(&mut self, old: &PresentService, wanted: &WantedService) -> Result<(), PlanError> {
        // Those that are wanted, and those that still have flows to end.
        let (mut backends, mut leaving) = (Vec::with_capacity(wanted.backends.len()), Vec::new());
        let mut olds = old.backends.iter().peekable();
        // The agent before may have been stopped before it wrote a reply word.
        let adopted = matches!(old.ring, RingInputs::Adopted(_));
        for new in &wanted.backends {
            while let Some(gone) = olds.next_if(|o| o.key < new.key) {
                leaving.extend(self.leave(gone, old, wanted));
            }
            match olds.next_if(|o| o.key == new.key) {
                Some(kept) => {
                    let entry = self::kept(old, kept, wanted, new, self.seen.now_s);
                    if entry.flags & FLAG_DOWN != 0 {
                        self.down.insert(kept.id);
                    }
                    if entry != kept.entry {
                        change_backend(kept.id, &kept.entry, &entry, &mut self.backends);
                        self.summary.backends_changed += 1;
                    }
                    if adopted && wanted.forward == Forward::Nat {
                        self.set_key(entry.reply_key(), kept.id)?;
                    }
                    backends.push(PresentBackend { entry, leaves_s: None, ..*kept });
                }
                None => backends.push(self.add_backend(old.id, wanted, new)?),
            }
        }
        for gone in olds {
            leaving.extend(self.leave(gone, old, wanted));
        }
        let rings = self.ring(wanted, &backends, Some(old))?;
        self.out.extents.extend(rings.freed.iter().copied());
        let entry = Service {
            ring: rings.ring,
            previous_ring: rings.previous,
            members: rings.members_word,
            ..policy(old.entry, wanted, self.seen.now_s)
        };
        change_service(old.id, &old.entry, &entry, &mut self.services);
        backends.extend(leaving);
        backends.sort_unstable_by_key(|b| b.key);
        self.put(wanted, old.id, entry, backends, rings);
        Ok(())
    }

    /// A backend that is no longer wanted: gone at once where it is dismissed, or has nobody to drain, else it stays for its drain.
    fn leave(
        &mut self,
        gone: &PresentBackend,
        service: &PresentService,
        wanted: &WantedService,
    ) -> Option<PresentBackend> {
        let now_s = self.seen.now_s;
        let known = gone.leaves_s.filter(|leaves_s| *leaves_s != LEAVES_UNKNOWN);
        let leaves_s = known.unwrap_or(now_s + wanted.policy.drain_s);
        let announced = known.is_some_and(|s| now_s + wanted.policy.drain_s >= s + wanted.policy.times.announce_s);
        // Half-open flows count too, and none begins once the drain is no longer announced; the table also has those that were seen
        // once or are closing. A flow that was silent since before every flow was recorded is in neither.
        let Times { announce_s, window_s } = wanted.policy.times;
        let told = self.seen.records.filter(|r| r.at_s() + wanted.policy.drain_s >= leaves_s + announce_s);
        let none = (self.seen.flows)(gone.id) == 0 && told.is_some_and(|r| !r.names(gone.id));
        let ended = service.tells_all(now_s, window_s) && announced && none;
        let dismissed = wanted.dismissed.binary_search(&gone.key).is_ok();
        let down = gone.entry.flags & (FLAG_DOWN | FLAG_VALID) != FLAG_VALID;
        if dismissed || down || ended || now_s >= leaves_s || !wanted.policy.windows {
            if wanted.policy.windows {
                // Records name it until its entry is cleared: what they say no longer holds, least of all for a new flow.
                let entry = Backend { flags: gone.entry.flags | FLAG_DOWN, ..gone.entry };
                change_backend(gone.id, &gone.entry, &entry, &mut self.backends);
            }
            self.remove_backend(gone);
            return None;
        }
        let known = leaving(&gone.entry, self.leaving);
        let entry = Backend { flags: known.flags | FLAG_DRAINING | FLAG_REMOVED, ..known };
        if entry != gone.entry {
            change_backend(gone.id, &gone.entry, &entry, &mut self.backends);
            let begins = gone.entry.flags & FLAG_REMOVED == 0;
            *(if begins { &mut self.summary.backends_leaving } else { &mut self.summary.backends_changed }) += 1;
        }
        Some(PresentBackend { entry, leaves_s: Some(leaves_s), ..*gone })
    }

    /// The caller takes the service out of `next.services`, or puts its successor there.
    fn remove(&mut self, old: &PresentService) {
        old.backends.iter().for_each(|b| self.remove_backend(b));
        self.keys.entry(old.entry.key()).or_default().old = Some(old.id);
        self.out.services.push(old.id);
        let words = [old.entry.ring, old.entry.previous_ring, old.entry.members];
        self.out.extents.extend(words.map(Extent::unpack));
        self.summary.services_removed += 1;
    }

    fn add_backend(
        &mut self,
        service: u32,
        wanted: &WantedService,
        new: &WantedBackend,
    ) -> Result<PresentBackend, PlanError> {
        let id = self.next.backend_ids.take().ok_or(PlanError::Ids {
            what: "backend",
            used: self.next.backend_ids.used(),
            limit: self.next.sizes.backends - 1,
        })?;
        let entry = entry(None, service, wanted, new);
        self.backends.push(Op::PutBackend { id, key: new.key, entry });
        if wanted.forward == Forward::Nat {
            self.set_key(entry.reply_key(), id)?;
        }
        self.summary.backends_added += 1;
        Ok(PresentBackend { id, key: new.key, entry, leaves_s: None })
    }

    fn remove_backend(&mut self, old: &PresentBackend) {
        if old.entry.forward == Forward::Nat as u8 {
            self.keys.entry(old.entry.reply_key()).or_default().old = Some(old.id);
        }
        self.out.backends.push(Former { id: old.id, service: old.entry.service, since_s: self.seen.now_s });
        self.summary.backends_removed += 1;
    }

    /// Whether this plan found the backend down.
    pub(super) fn is_down(&self, id: u32) -> bool {
        self.down.contains(&id)
    }

    fn set_key(&mut self, key: Key, id: u32) -> Result<(), PlanError> {
        match self.keys.entry(key).or_default().new.replace(id) {
            None => Ok(()),
            Some(_) => Err(PlanError::Twice { what: "lookup key", address: address(key.addr), port: key.port }),
        }
    }

    /// The service that each VIP's own word names: the one it names now while that stays, else the lowest id.
    fn vips(&mut self) {
        let mut wanted: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for (key, service) in &self.next.services {
            let kept = self.next.vips.get(&key.vip) == Some(&service.id);
            let id = wanted.entry(key.vip).or_insert(service.id);
            if kept || (service.id < *id && self.next.vips.get(&key.vip) != Some(id)) {
                *id = service.id;
            }
        }
        let key = |vip| Key { addr: octets(vip), port: 0, proto: 0, kind: Kind::Vip as u8 };
        for (&vip, &id) in &self.next.vips {
            if wanted.get(&vip) != Some(&id) {
                self.keys.entry(key(vip)).or_default().old = Some(id);
            }
        }
        for (&vip, &id) in &wanted {
            if self.next.vips.get(&vip) != Some(&id) {
                self.keys.entry(key(vip)).or_default().new = Some(id);
            }
        }
        self.next.vips = wanted;
    }

    fn finish(mut self, wanted: &Wanted, revision: u64, base: u64) -> Result<Plan, PlanError> {
        self.vips();
        let (mut replies, mut names, mut removals) = (Vec::new(), Vec::new(), Vec::new());
        if !self.keys.is_empty() {
            let services = &self.next.services;
            let table = Arc::make_mut(&mut self.next.table);
            for (key, change) in &self.keys {
                let Some(new) = change.new else { continue };
                let reply = key.kind == Kind::Reply as u8;
                let ops = if reply { &mut replies } else { &mut names };
                if table.holds(key, new) || change.old.is_some_and(|old| table.replace(key, old, new, ops)) {
                    continue;
                }
                if reply && table.find(key, |id| reply_of(services, key, id)).is_some() {
                    let (address, port) = (address(key.addr), key.port);
                    return Err(PlanError::Twice { what: "nat backend", address, port });
                }
                table.insert(key, new, ops)?;
            }
            // What names a service goes before the replies of its backends: while it is reachable, so are they.
            let mut gone: Vec<(&Key, u32)> =
                self.keys.iter().filter(|(_, c)| c.new.is_none()).filter_map(|(key, c)| Some((key, c.old?))).collect();
            gone.sort_by_key(|(key, _)| key.kind);
            for (key, old) in gone {
                table.remove(key, old, &mut removals);
            }
        }
        let mut ops = self.backends;
        ops.append(&mut replies);
        ops.append(&mut self.rings);
        ops.append(&mut self.services);
        ops.append(&mut names);
        ops.append(&mut removals);

        let node = node_entry(&self.next, wanted, revision);
        change_node(&self.next.node, &node, &mut ops);
        self.next.node = node;
        self.out.extents.retain(|e| e.slots > 0);
        if !(self.out.services.is_empty() && self.out.backends.is_empty() && self.out.extents.is_empty()) {
            self.next.quarantine.push_back(self.out);
        }
        Ok(Plan { ops, next: self.next, base, summary: self.summary, moves: self.moves })
    }
}

/// Whether `id` is a backend in use whose replies come from `key`.
fn reply_of(services: &BTreeMap<ServiceKey, Arc<PresentService>>, key: &Key, id: u32) -> bool {
    services.values().flat_map(|s| &s.backends).any(|b| b.id == id && b.entry.reply_key() == *key)
}
