//! From what the maps hold to what they shall hold.
//!
//! Order of a plan: backends, their reply words, rings (on fresh lines), services (one store publishes a ring), the words that
//! name services, removals, the node's flags, and the revision last. A packet that runs at any point of it sees either the old
//! or the new state of each service, and so does an agent that adopts maps whose writer was stopped at any point.
//! A service whose forwarding mode changes is another service: new ids for it and its backends, published by one lookup
//! store, so that no packet meets half of each.
//!
//! Pure: the same input gives the same plan. Invariants: an error leaves the present state as it is; a service that did not change
//! costs one comparison and no operation; a ring is built only when its members, their weights or its size changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytemuck::Zeroable;
use lb_core::abi::{
    backend::{Backend, FLAG_NEXT_HOP, FLAG_UP, FLAG_VALID},
    lookup::{Key, Kind},
    node::{self, Node},
    ring::{Extent, LINE_SLOTS},
    service::{Forward, Service},
};

use super::{
    Present, PresentBackend, PresentService, Wanted, WantedBackend, WantedService,
    lookup::Full,
    op::{BACKEND_WORD_FLAGS, BACKEND_WORDS, NODE_WORD_FLAGS, NODE_WORD_REVISION, Op},
    present::{Quarantine, RingInputs},
    rebuild::digest,
    ring::{self, Member},
    wanted::{address, octets},
};
use crate::model::{SERVICE_BACKENDS_MAX, ServiceKey};

/// Why there is no plan. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More services than the maps have room for.
    #[error(
        "{wanted} services, but limits.services_max is {limit}: raise it, then run `weir agent --unload` and start again"
    )]
    Services {
        /// Services wanted.
        wanted: usize,
        /// The limit.
        limit: u32,
    },
    /// More backends than the maps have room for.
    #[error(
        "{wanted} backends, but limits.backends_max is {limit}: raise it, then run `weir agent --unload` and start again"
    )]
    Backends {
        /// Backends wanted.
        wanted: usize,
        /// The limit.
        limit: u32,
    },
    /// More backends than a service may have.
    #[error("service {service} has {wanted} backends, the limit is {SERVICE_BACKENDS_MAX}")]
    ServiceBackends {
        /// Name of the service.
        service: String,
        /// Backends wanted.
        wanted: usize,
    },
    /// A ring size that is no prime number: walks would not meet every slot.
    #[error("service {service}: ring size {size} is not a prime number")]
    RingSize {
        /// Name of the service.
        service: String,
        /// The size.
        size: u32,
    },
    /// No room for a ring beside the ones in use.
    #[error(
        "no room for the ring of service {service}: {slots} slots, {free} of {limit} free ({quarantined} more after the \
         grace of the last change); a changed ring needs room beside the old one: raise limits.ring_slots_max, then run \
         `weir agent --unload` and start again"
    )]
    Arena {
        /// Name of the service.
        service: String,
        /// Slots that it asks for.
        slots: u32,
        /// Free slots, perhaps in pieces.
        free: u64,
        /// Slots in quarantine.
        quarantined: u64,
        /// Slots of the arena.
        limit: u64,
    },
    /// All ids are in use or in quarantine.
    #[error("no free {what} id: {used} of {limit} in use or waiting for the grace of the last change")]
    Ids {
        /// `service` or `backend`.
        what: &'static str,
        /// Ids in use or in quarantine.
        used: u32,
        /// Ids in all.
        limit: u32,
    },
    /// The lookup table has no room.
    #[error(
        "{0}; raise limits.services_max or limits.backends_max, which size the table, then run `weir agent --unload`"
    )]
    Lookup(#[from] Full),
    /// Two services with one VIP, port and protocol, or two `nat` backends with one address, port and protocol.
    #[error("{what} {address} port {port} stands twice")]
    Twice {
        /// What stands twice.
        what: &'static str,
        /// Its address.
        address: std::net::IpAddr,
        /// Its port, 0 for all.
        port: u16,
    },
}

impl PlanError {
    /// Whether the same plan can succeed once quarantined ids and lines are released.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Arena { quarantined, .. } => *quarantined > 0,
            Self::Ids { .. } => true,
            _ => false,
        }
    }
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
    /// Rings that are written.
    pub rings_built: u32,
    /// Services that fail open: none of their ready backends is up.
    pub fail_open: Vec<String>,
}

/// Plans the way from `present` to `wanted`, which carries the number `revision`.
///
/// # Errors
/// [`PlanError`] where a limit is exceeded; nothing has changed then.
pub fn diff(present: &Present, wanted: &Wanted, revision: u64) -> Result<Plan, PlanError> {
    check_limits(present, wanted)?;
    let mut draft = Draft::new(present, wanted);
    let mut gone: BTreeSet<ServiceKey> = present.services.keys().copied().collect();
    for service in &wanted.services {
        gone.remove(&service.key);
        match present.services.get(&service.key) {
            Some(old) if unchanged(old, service) => {}
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

/// Whether nothing at all is to be done for a service. Allocates nothing: this runs for every service of every change.
fn unchanged(old: &PresentService, new: &WantedService) -> bool {
    let RingInputs::Members(members) = &old.ring else { return false };
    if old.entry.forward != new.forward as u8 || old.backends.len() != new.backends.len() {
        return false;
    }
    let weighted = new.backends.iter().any(|b| b.weight > 0);
    if weighted && Extent::unpack(old.entry.ring).slots != new.ring_size {
        return false;
    }
    let factor = common_factor(&new.backends);
    let mut members = members.iter();
    old.backends.iter().zip(&new.backends).all(|(o, n)| {
        o.key == n.key
            && o.entry == entry(Some(&o.entry), o.entry.service, new.forward, n)
            && (n.weight == 0 || members.next() == Some(&(o.id, n.weight / factor)))
    }) && members.next().is_none()
}

/// The greatest common divisor of the weights, at least 1.
fn common_factor(backends: &[WantedBackend]) -> u32 {
    let gcd = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    backends.iter().fold(0, |factor, b| gcd(factor, b.weight)).max(1)
}

/// The entry of a backend. An unknown next hop keeps the last one's words and only drops its flag: one store.
fn entry(old: Option<&Backend>, service: u32, forward: Forward, new: &WantedBackend) -> Backend {
    let mut entry = Backend {
        flags: FLAG_VALID | if new.up { FLAG_UP } else { 0 },
        service,
        addr: new.key.addr,
        port: new.key.port,
        forward: forward as u8,
        proto: new.key.proto,
        ..old.copied().unwrap_or_else(Backend::zeroed)
    };
    if let Some(hop) = new.next_hop {
        entry.flags |= FLAG_NEXT_HOP;
        entry.ifindex = hop.ifindex;
        entry.mtu = hop.mtu;
        entry.src_mac = hop.src_mac;
        entry.dst_mac = hop.dst_mac;
    }
    entry
}

/// Appends the stores that turn `old` into `new`. Where more than one word of the next hop changes, its flag is taken away
/// meanwhile: a packet in between is dropped and counted instead of leaving with one hop's MAC through another's interface.
fn change_backend(id: u32, old: &Backend, new: &Backend, ops: &mut Vec<Op>) {
    let (old_words, new_words): ([u64; BACKEND_WORDS], [u64; BACKEND_WORDS]) =
        (bytemuck::cast(*old), bytemuck::cast(*new));
    let changed = |word: &usize| old_words.get(*word) != new_words.get(*word);
    let body: Vec<usize> = (0..BACKEND_WORDS).filter(|w| *w != BACKEND_WORD_FLAGS).filter(changed).collect();
    let mut store = |word: usize, words: &[u64; BACKEND_WORDS]| {
        if let Some(&value) = words.get(word) {
            ops.push(Op::BackendWord { id, word, value });
        }
    };
    let hidden = body.len() > 1 && old.flags & FLAG_NEXT_HOP != 0;
    if hidden {
        store(BACKEND_WORD_FLAGS, &bytemuck::cast(Backend { flags: old.flags & !FLAG_NEXT_HOP, ..*old }));
    }
    body.into_iter().for_each(|word| store(word, &new_words));
    if hidden || changed(&BACKEND_WORD_FLAGS) {
        store(BACKEND_WORD_FLAGS, &new_words);
    }
}

/// What happens to a lookup key.
#[derive(Default)]
struct KeyChange {
    old: Option<u32>,
    new: Option<u32>,
}

/// A plan being made.
struct Draft {
    next: Present,
    out: Quarantine,
    backends: Vec<Op>,
    rings: Vec<Op>,
    services: Vec<Op>,
    keys: BTreeMap<Key, KeyChange>,
    summary: Summary,
}

impl Draft {
    fn new(present: &Present, wanted: &Wanted) -> Self {
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
            backends.push(self.add_backend(id, wanted.forward, backend)?);
        }
        let (extent, ring) = self.ring(wanted, &backends, None)?;
        let entry = Service {
            ring: extent.pack(),
            addr: octets(wanted.key.vip),
            port: wanted.key.port,
            proto: wanted.key.protocol.number(),
            forward: wanted.forward as u8,
            ..Service::zeroed()
        };
        self.services.push(Op::PutService { id, entry });
        self.set_key(entry.key(), id)?;
        self.next.services.insert(wanted.key, Arc::new(PresentService { id, entry, backends, ring }));
        self.summary.services_added += 1;
        Ok(())
    }

    fn update(&mut self, old: &PresentService, wanted: &WantedService) -> Result<(), PlanError> {
        let mut backends = Vec::with_capacity(wanted.backends.len());
        let mut olds = old.backends.iter().peekable();
        // The agent before may have been stopped before it wrote a reply word.
        let adopted = matches!(old.ring, RingInputs::Adopted(_));
        for new in &wanted.backends {
            while let Some(gone) = olds.next_if(|o| o.key < new.key) {
                self.remove_backend(gone);
            }
            match olds.next_if(|o| o.key == new.key) {
                Some(kept) => {
                    let entry = entry(Some(&kept.entry), old.id, wanted.forward, new);
                    if entry != kept.entry {
                        change_backend(kept.id, &kept.entry, &entry, &mut self.backends);
                        self.summary.backends_changed += 1;
                    }
                    if adopted && wanted.forward == Forward::Nat {
                        self.set_key(entry.reply_key(), kept.id)?;
                    }
                    backends.push(PresentBackend { entry, ..*kept });
                }
                None => backends.push(self.add_backend(old.id, wanted.forward, new)?),
            }
        }
        olds.for_each(|gone| self.remove_backend(gone));

        let (extent, ring) = self.ring(wanted, &backends, Some(old))?;
        let entry = Service { ring: extent.pack(), ..old.entry };
        if entry.ring != old.entry.ring {
            self.services.push(Op::ServiceRing { id: old.id, extent });
            self.out.extents.push(Extent::unpack(old.entry.ring));
        }
        self.next.services.insert(wanted.key, Arc::new(PresentService { id: old.id, entry, backends, ring }));
        Ok(())
    }

    /// The caller takes the service out of `next.services`, or puts its successor there.
    fn remove(&mut self, old: &PresentService) {
        old.backends.iter().for_each(|b| self.remove_backend(b));
        self.keys.entry(old.entry.key()).or_default().old = Some(old.id);
        self.out.services.push(old.id);
        self.out.extents.extend([old.entry.ring, old.entry.previous_ring].map(Extent::unpack));
        self.summary.services_removed += 1;
    }

    fn add_backend(
        &mut self,
        service: u32,
        forward: Forward,
        new: &WantedBackend,
    ) -> Result<PresentBackend, PlanError> {
        let id = self.next.backend_ids.take().ok_or(PlanError::Ids {
            what: "backend",
            used: self.next.backend_ids.used(),
            limit: self.next.sizes.backends - 1,
        })?;
        let entry = entry(None, service, forward, new);
        self.backends.push(Op::PutBackend { id, key: new.key, entry });
        if forward == Forward::Nat {
            self.set_key(entry.reply_key(), id)?;
        }
        self.summary.backends_added += 1;
        Ok(PresentBackend { id, key: new.key, entry })
    }

    fn remove_backend(&mut self, old: &PresentBackend) {
        if old.entry.forward == Forward::Nat as u8 {
            self.keys.entry(old.entry.reply_key()).or_default().old = Some(old.id);
        }
        self.out.backends.push(old.id);
        self.summary.backends_removed += 1;
    }

    fn set_key(&mut self, key: Key, id: u32) -> Result<(), PlanError> {
        match self.keys.entry(key).or_default().new.replace(id) {
            None => Ok(()),
            Some(_) => Err(PlanError::Twice { what: "lookup key", address: address(key.addr), port: key.port }),
        }
    }

    /// The ring of a service: the one it has, if that was built from the same members, else one on fresh lines.
    fn ring(
        &mut self,
        wanted: &WantedService,
        backends: &[PresentBackend],
        old: Option<&PresentService>,
    ) -> Result<(Extent, RingInputs), PlanError> {
        let factor = common_factor(&wanted.backends);
        let members: Vec<Member> = backends
            .iter()
            .zip(&wanted.backends)
            .filter(|(_, w)| w.weight > 0)
            .map(|(b, w)| Member { key: b.key, weight: w.weight / factor, slot: b.id })
            .collect();
        let inputs = RingInputs::Members(members.iter().map(|m| (m.slot, m.weight)).collect());
        let none = Extent { line: 0, slots: 0 };
        let had = old.map_or(none, |o| Extent::unpack(o.entry.ring));
        if members.is_empty() {
            return Ok((none, inputs));
        }
        let same_size = had.slots == wanted.ring_size;
        if same_size && old.is_some_and(|o| o.ring == inputs) {
            return Ok((had, inputs));
        }
        let slots = ring::build(self.next.secrets.ring_seed, wanted.ring_size, &members);
        if same_size && old.is_some_and(|o| o.ring == RingInputs::Adopted(digest(&slots))) {
            return Ok((had, inputs));
        }
        let line_slots = LINE_SLOTS as u64;
        let extent = self.next.arena.take(wanted.ring_size).ok_or_else(|| PlanError::Arena {
            service: wanted.name.clone(),
            slots: wanted.ring_size,
            free: u64::from(self.next.arena.free_lines()) * line_slots,
            quarantined: self.next.quarantined_slots(),
            limit: u64::from(self.next.arena.lines()) * line_slots,
        })?;
        self.rings.push(Op::PutRing { extent, slots });
        self.summary.rings_built += 1;
        Ok((extent, inputs))
    }

    /// The service that each VIP's own word names: the one it names now while that stays, else the lowest id.
    fn vips(&mut self) {
        let mut wanted: BTreeMap<std::net::IpAddr, u32> = BTreeMap::new();
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
        Ok(Plan { ops, next: self.next, base, summary: self.summary })
    }
}

/// Whether `id` is a backend in use whose replies come from `key`.
fn reply_of(services: &BTreeMap<ServiceKey, Arc<PresentService>>, key: &Key, id: u32) -> bool {
    services.values().flat_map(|s| &s.backends).any(|b| b.id == id && b.entry.reply_key() == *key)
}

fn node_entry(next: &Present, wanted: &Wanted, revision: u64) -> Node {
    let mut flags = 0;
    for (key, service) in &next.services {
        let nat = service.entry.forward == Forward::Nat as u8;
        flags |= if key.port == 0 { node::FLAG_ALL_PORTS } else { 0 };
        flags |= if nat { node::FLAG_NAT } else { 0 };
        flags |= if nat && key.port == 0 { node::FLAG_NAT_ALL_PORTS } else { 0 };
    }
    let (outer_source_v4, outer_source_v6) = (wanted.outer_source_v4, wanted.outer_source_v6);
    Node { flags, outer_source_v4, outer_source_v6, revision, ..next.node }
}

/// Appends the stores that turn `old` into `new`: flags, then sources, the revision always and last.
fn change_node(old: &Node, new: &Node, ops: &mut Vec<Op>) {
    let (old, new): ([u64; 16], [u64; 16]) = (bytemuck::cast(*old), bytemuck::cast(*new));
    let changed = (NODE_WORD_FLAGS..new.len()).filter(|w| *w != NODE_WORD_REVISION && old.get(*w) != new.get(*w));
    ops.extend(
        changed.chain([NODE_WORD_REVISION]).filter_map(|word| Some(Op::NodeWord { word, value: *new.get(word)? })),
    );
}
