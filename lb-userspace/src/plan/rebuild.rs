//! What the maps hold, read from the maps: an adopting agent has no memory of its own.
//!
//! What counts is what is named: `LOOKUP` names services, services name rings, rings name backends, and a valid backend entry
//! names its service. Whatever else lies in the maps is the remains of an agent that was stopped between two stores: it is
//! cleared or simply free. What contradicts itself in another way is refused, not guessed at.
//!
//! Pure: reads copies, writes nothing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hasher,
    sync::Arc,
};

use lb_core::abi::{
    ABI_VERSION,
    backend::{Backend, BackendKey, FLAG_REMOVED, FLAG_VALID},
    lookup::{Bucket, Entry, Key, Kind},
    node::Node,
    ring::{Extent, Slot, State},
    service::{Forward, Service},
};
use siphasher::sip::SipHasher24;

use super::{
    MapSizes, Op, Present, PresentBackend, PresentService, Secrets, Times, Window,
    lookup::Table,
    op::SERVICE_WORD_PREVIOUS,
    present::{Former, RingInputs},
    wanted::address,
    window::{GRACE_S, Unsettled},
};
use crate::model::{Protocol, ServiceKey};

/// Copies of the maps.
pub struct Contents<'a> {
    /// `NODE`.
    pub node: Node,
    /// `LOOKUP`.
    pub lookup: Vec<Bucket>,
    /// `SERVICES`.
    pub services: &'a [Service],
    /// `BACKENDS`.
    pub backends: &'a [Backend],
    /// `BACKEND_KEYS`.
    pub keys: &'a [BackendKey],
    /// The slots of an extent of `RINGS`, unless it reaches beyond the arena.
    pub ring: &'a dyn Fn(Extent) -> Option<Vec<u32>>,
    /// The same of `OWNERS`.
    pub owners: &'a dyn Fn(Extent) -> Option<Vec<u32>>,
    /// Backend ids that flow records name.
    pub recorded: HashSet<u32>,
    /// Seconds of a clock that only grows: windows and drains that are under way begin anew.
    pub now_s: u64,
}

/// What the maps hold, and the stores that clear an interrupted change.
#[derive(Debug)]
pub struct Adopted {
    /// What the maps hold once `repairs` are carried out.
    pub present: Present,
    /// Stores that clear what nothing names. Packets cannot meet what they change.
    pub repairs: Vec<Op>,
}

/// The maps contradict themselves or are of another version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RebuildError {
    /// Another version of the layouts.
    #[error("the maps have ABI version {found}, this weir has {wanted}")]
    Version {
        /// Version in `NODE`.
        found: u32,
        /// [`ABI_VERSION`].
        wanted: u32,
    },
    /// Sizes that belong to other limits.
    #[error("LOOKUP has mask {found:#x}, the limits ask for {wanted:#x}")]
    LookupMask {
        /// Mask in `NODE`.
        found: u32,
        /// Mask that follows from the limits.
        wanted: u32,
    },
    /// Something names what cannot be.
    #[error("the maps contradict themselves: {0}")]
    Contradiction(String),
}

/// Times of a service that was taken over, until a configuration says them: nothing is due.
const TIMES_UNKNOWN: Times = Times { announce_s: 1 << 40, window_s: 1 << 40 };
/// When a backend leaves whose drain another agent began.
pub(super) const LEAVES_UNKNOWN: u64 = u64::MAX;

/// Digest of the backends of a ring's slots, to recognise a ring whose members' weights are not known.
pub fn digest(slots: &[u32]) -> u64 {
    let mut hasher = SipHasher24::new();
    slots.iter().for_each(|slot| hasher.write_u32(Slot(*slot).current()));
    hasher.finish()
}

fn contradiction(what: String) -> RebuildError {
    RebuildError::Contradiction(what)
}

/// Reads what the maps hold.
///
/// # Errors
/// [`RebuildError`] where the contents cannot be relied on.
pub fn rebuild(sizes: MapSizes, contents: Contents<'_>) -> Result<Adopted, RebuildError> {
    let node = contents.node;
    if node.abi_version != ABI_VERSION {
        return Err(RebuildError::Version { found: node.abi_version, wanted: ABI_VERSION });
    }
    if node.lookup_mask != sizes.lookup_mask() || contents.lookup.len() != sizes.lookup_buckets as usize {
        return Err(RebuildError::LookupMask { found: node.lookup_mask, wanted: sizes.lookup_mask() });
    }
    let mut present = Present::empty(sizes, Secrets { hash_key: node.hash_key, ring_seed: node.ring_seed }, node.hz);
    present.node = node;
    let mut table = Table::from_buckets(node.hash_key, contents.lookup.clone());
    let mut repairs = Vec::new();

    let mut services = read_services(&contents, &table, &mut present)?;
    let replies = |table: &Table| -> HashSet<u32> {
        table.iter().filter(|e| e.kind == Kind::Reply as u8).map(|e| e.id).collect()
    };
    let with_reply = replies(&table);
    for service in services.values_mut().filter(|s| s.entry.previous_ring != 0) {
        // Stopped before the ring that needs a previous one was named.
        if service.entry.previous_ring == service.entry.ring {
            service.entry.previous_ring = 0;
            repairs.push(Op::ServiceWord { id: service.id, word: SERVICE_WORD_PREVIOUS, value: 0 });
        }
    }
    let (named, owners) = read_rings(&contents, &mut services, &mut present)?;
    read_backends(&contents, &mut services, &named, &with_reply, &mut present, &mut repairs)?;
    keep_former(&owners, contents.now_s, &mut present);
    drop_stale_words(&contents, &mut table, &services, &mut present, &mut repairs)?;

    restore_replies(&contents, &mut table, &services, &mut repairs);
    // A word that another backend in use holds stays: the next plan decides whose it is.
    let with_reply = replies(&table);
    let mut keys: Vec<(Key, u32)> = services.values().map(|s| (s.entry.key(), s.id)).collect();
    let backends = services.values().flat_map(|s| &s.backends);
    keys.extend(backends.filter(|b| with_reply.contains(&b.id)).map(|b| (b.entry.reply_key(), b.id)));
    keys.extend(present.vips.iter().map(|(&vip, &id)| (vip_key(super::wanted::octets(vip)), id)));
    if !table.correct_marks(&keys, &mut repairs) {
        return Err(contradiction("LOOKUP holds words that belong to no key".into()));
    }
    present.table = Arc::new(table);
    for service in services.into_values() {
        let key = service_key(&service.entry)?;
        present.services.insert(key, Arc::new(service));
    }
    Ok(Adopted { present, repairs })
}

fn vip_key(addr: [u8; 16]) -> Key {
    Key { addr, port: 0, proto: 0, kind: Kind::Vip as u8 }
}

fn service_key(entry: &Service) -> Result<ServiceKey, RebuildError> {
    let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|p| p.number() == entry.proto);
    let protocol = protocol.ok_or_else(|| contradiction(format!("a service has protocol {}", entry.proto)))?;
    Ok(ServiceKey { vip: address(entry.addr), port: entry.port, protocol })
}

/// Services are those that `LOOKUP` names.
fn read_services(
    contents: &Contents<'_>,
    table: &Table,
    present: &mut Present,
) -> Result<BTreeMap<u32, PresentService>, RebuildError> {
    let mut services = BTreeMap::new();
    for Entry { id, .. } in table.iter().filter(|e| e.kind == Kind::Service as u8) {
        let entry = *contents
            .services
            .get(id as usize)
            .filter(|entry| id != 0 && Forward::from_u8(entry.forward).is_some())
            .ok_or_else(|| contradiction(format!("LOOKUP names service {id}, which does not exist")))?;
        service_key(&entry)?;
        if !present.service_ids.claim(id) {
            return Err(contradiction(format!("LOOKUP names service {id} twice")));
        }
        let service = PresentService {
            id,
            entry,
            backends: Vec::new(),
            ring: RingInputs::Adopted(0),
            window: Window::Settled,
            times: TIMES_UNKNOWN,
            // Its ring may have had another size until just now.
            aligned_s: contents.now_s + u64::from(entry.established_s) + GRACE_S,
            members: None,
        };
        services.insert(id, service);
    }
    Ok(services)
}

/// Backend ids with the id of the service that they belong to.
type Named = HashMap<u32, u32>;

/// Claims the lines of the rings and digests them. Returns which backends rings name, and which are named as owners or by records,
/// each with its service.
fn read_rings(
    contents: &Contents<'_>,
    services: &mut BTreeMap<u32, PresentService>,
    present: &mut Present,
) -> Result<(Named, Named), RebuildError> {
    let (mut named, mut owners) = (Named::new(), Named::new());
    for service in services.values_mut() {
        let mut claimed = |word: u64| -> Result<Option<Vec<u32>>, RebuildError> {
            let extent = Extent::unpack(word);
            if extent.slots == 0 {
                return Ok(None);
            }
            let slots = (contents.ring)(extent).filter(|_| present.arena.claim(extent));
            slots.map(Some).ok_or_else(|| {
                contradiction(format!("a ring of service {} lies outside the arena or in another ring", service.id))
            })
        };
        let (ring, previous) = (claimed(service.entry.ring)?, claimed(service.entry.previous_ring)?);
        let members = claimed(service.entry.members)?;
        if let Some(slots) = &ring {
            let held = (contents.owners)(Extent::unpack(service.entry.ring)).unwrap_or_default();
            service.window = window(slots, &held, previous.is_some(), contents.now_s);
            service.ring = RingInputs::Adopted(digest(slots));
        }
        // Where all that a service has drains, its slots settle on nobody one after another.
        let drained = ring.iter().flatten().all(|word| Slot(*word).current() == 0);
        let words = ring.iter().chain(&members).flatten().map(|word| Slot(*word));
        let ids: HashSet<u32> = words
            .filter(|slot| slot.current() != 0 || (slot.state() == State::Settled && !drained))
            .map(|slot| slot.current())
            .collect();
        for id in ids {
            if id == 0 || named.insert(id, service.id).is_some_and(|other| other != service.id) {
                return Err(contradiction(format!("the ring of service {} names backend {id}", service.id)));
            }
        }
        // Owners may have left since.
        if let Window::Slots(slots) = &service.window {
            owners.extend(slots.iter().map(|u| (u.owner, service.id)));
        }
        if let Some(slots) = previous {
            let before = (contents.owners)(Extent::unpack(service.entry.previous_ring)).unwrap_or_default();
            owners.extend(slots.iter().chain(&before).map(|word| (Slot(*word).current(), service.id)));
        }
    }
    owners.extend(contents.recorded.iter().map(|id| (*id, 0)));
    Ok((named, owners))
}

/// The window of a ring that was taken over. Its states begin anew, as nothing says when they began.
fn window(slots: &[u32], owners: &[u32], has_previous: bool, since_s: u64) -> Window {
    let states = || slots.iter().map(|word| Slot(*word).state());
    if has_previous && let Some(state) = states().min_by_key(|state| (*state == State::Settled, *state)) {
        return if state == State::Settled { Window::Settled } else { Window::Whole { state, since_s } };
    }
    let list = (0..).zip(states().zip(owners)).filter(|(_, (state, _))| *state != State::Settled);
    Window::from(
        list.map(|(slot, (state, owner))| Unsettled { slot, owner: *owner, state, since_s }).collect::<Vec<_>>(),
    )
}

/// Keeps ids of backends that left from reuse while an owner or a record may name them.
fn keep_former(owners: &HashMap<u32, u32>, now_s: u64, present: &mut Present) {
    for (&id, &service) in owners {
        if id != 0 && !present.backend_ids.is_used(id) && present.backend_ids.claim(id) {
            present.former.push(Former { id, service, since_s: now_s });
        }
    }
    present.former.sort_unstable_by_key(|former| former.id);
}

/// Backends are the valid entries whose service exists and is the one that their key names.
fn read_backends(
    contents: &Contents<'_>,
    services: &mut BTreeMap<u32, PresentService>,
    named: &HashMap<u32, u32>,
    with_reply: &HashSet<u32>,
    present: &mut Present,
    repairs: &mut Vec<Op>,
) -> Result<(), RebuildError> {
    for (id, (entry, key)) in (0..).zip(contents.backends.iter().zip(contents.keys)) {
        if entry.flags & FLAG_VALID == 0 {
            if let Some(service) = named.get(&id) {
                return Err(contradiction(format!(
                    "the ring of service {service} names backend {id}, which is not valid"
                )));
            }
            continue;
        }
        let service = services.get_mut(&entry.service).filter(|s| {
            (s.entry.addr, s.entry.port, s.entry.proto, s.entry.forward)
                == (key.vip, key.vip_port, key.proto, entry.forward)
                && (entry.addr, entry.port, entry.proto) == (key.addr, key.port, key.proto)
                && named.get(&id).is_none_or(|by| *by == s.id)
        });
        match service {
            Some(service) if present.backend_ids.claim(id) => {
                service.backends.push(PresentBackend {
                    id,
                    key: *key,
                    entry: *entry,
                    leaves_s: (entry.flags & FLAG_REMOVED != 0).then_some(LEAVES_UNKNOWN),
                });
            }
            _ if named.contains_key(&id) => {
                return Err(contradiction(format!("a ring names backend {id}, which is not of its service")));
            }
            _ => repairs.push(Op::ClearBackend { id }),
        }
    }
    if let Some((id, service)) = named.iter().find(|(id, _)| !present.backend_ids.is_used(**id)) {
        return Err(contradiction(format!("the ring of service {service} names backend {id}, which does not exist")));
    }
    for service in services.values_mut() {
        // Of two entries with one key, one was being removed. A ring or a reply word names the other; where neither does,
        // no packet reaches either of them.
        service.backends.sort_by_key(|b| (b.key, !named.contains_key(&b.id), !with_reply.contains(&b.id), b.id));
        let mut kept: Option<BackendKey> = None;
        service.backends.retain(|b| {
            let first = kept != Some(b.key);
            kept = Some(b.key);
            if !first {
                present.backend_ids.free(b.id);
                repairs.push(Op::ClearBackend { id: b.id });
            }
            first
        });
    }
    Ok(())
}

/// Takes words out of the table that name a service's VIP or a backend's replies although neither is there any more.
fn drop_stale_words(
    contents: &Contents<'_>,
    table: &mut Table,
    services: &BTreeMap<u32, PresentService>,
    present: &mut Present,
    repairs: &mut Vec<Op>,
) -> Result<(), RebuildError> {
    let replies: HashSet<u32> = services
        .values()
        .filter(|s| s.entry.forward == Forward::Nat as u8)
        .flat_map(|s| s.backends.iter().map(|b| b.id))
        .collect();
    let words: Vec<Entry> = table.iter().collect();
    for Entry { kind, id, .. } in words {
        let key = if kind == Kind::Vip as u8 {
            let entry = contents.services.get(id as usize);
            let entry =
                entry.ok_or_else(|| contradiction(format!("LOOKUP names service {id}, which does not exist")))?;
            if services.contains_key(&id) {
                present.vips.insert(address(entry.addr), id);
                continue;
            }
            vip_key(entry.addr)
        } else if kind == Kind::Reply as u8 {
            if replies.contains(&id) {
                continue;
            }
            let entry = contents.backends.get(id as usize);
            entry.ok_or_else(|| contradiction(format!("LOOKUP names backend {id}, which does not exist")))?.reply_key()
        } else if kind == Kind::Service as u8 {
            continue;
        } else {
            return Err(contradiction(format!("LOOKUP holds a word of unknown kind {kind}")));
        };
        if !table.remove(&key, id, repairs) {
            return Err(contradiction(format!("LOOKUP holds a word of kind {kind} that names {id} under another key")));
        }
    }
    Ok(())
}

/// Puts in the reply words that `nat` backends lack because a change that was to take them over was stopped.
fn restore_replies(
    contents: &Contents<'_>,
    table: &mut Table,
    services: &BTreeMap<u32, PresentService>,
    repairs: &mut Vec<Op>,
) {
    let backends = services.values().flat_map(|s| &s.backends).filter(|b| b.entry.forward == Forward::Nat as u8);
    for backend in backends {
        let key = backend.entry.reply_key();
        let held = table.holds(&key, backend.id)
            || table
                .find(&key, |id| contents.backends.get(id as usize).is_some_and(|b| b.reply_key() == key))
                .is_some();
        if !held && table.insert(&key, backend.id, repairs).is_err() {
            // The table had room for it before; if not, its replies wait for a plan that finds room.
            return;
        }
    }
}
