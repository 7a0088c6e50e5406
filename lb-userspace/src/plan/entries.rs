//! Entries of backends, services and the node as they shall be, and the single stores that change those that packets read meanwhile.
//!
//! Refuses to know which entries a plan changes. Invariant: a packet between two stores meets what one of the two entries means, or
//! is dropped and counted.

use std::{collections::BTreeMap, net::IpAddr};

use bytemuck::Zeroable;
use lb_core::abi::{
    backend::{Backend, FLAG_DOWN, FLAG_DRAINING, FLAG_NEXT_HOP, FLAG_UP, FLAG_VALID},
    node::{self, Node},
    service::{self, Forward, Service},
};

use super::{
    Policy, Present, Wanted, WantedBackend, WantedService,
    op::{
        BACKEND_WORD_FLAGS, BACKEND_WORDS, NODE_WORD_FLAGS, NODE_WORD_REVISION, Op, SERVICE_WORD_FLAGS,
        SERVICE_WORD_MEMBERS, SERVICE_WORD_PREVIOUS, SERVICE_WORD_RING, SERVICE_WORD_TIMEOUT, SERVICE_WORDS,
    },
    wanted::address,
};
use crate::model::NextHop;

/// The entry of a service with what its policy says from `now_s` on.
pub(super) fn policy(entry: Service, wanted: &WantedService, now_s: u64) -> Service {
    let Policy { algo, track_all, on_marked_down, established_s, .. } = wanted.policy;
    let begins = track_all && entry.tracked_since_s().is_none();
    // Where it ends, the time stays: no flag says that it holds, and a store less can be interrupted.
    let tracked_since_s = if begins { u32::try_from(now_s).unwrap_or(u32::MAX) } else { entry.tracked_since_s };
    Service { flags: service::flags(track_all, algo, on_marked_down), established_s, tracked_since_s, ..entry }
}

pub(super) fn policy_words(entry: &Service) -> (u32, u32) {
    (entry.flags, entry.established_s)
}

/// The greatest common divisor of the weights, at least 1.
pub(super) fn common_factor(backends: &[WantedBackend]) -> u32 {
    let gcd = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    backends.iter().fold(0, |factor, b| gcd(factor, b.weight)).max(1)
}

/// The entry of a backend. An unknown next hop keeps the last one's words and only drops its flag: one store.
pub(super) fn entry(old: Option<&Backend>, service: u32, wanted: &WantedService, new: &WantedBackend) -> Backend {
    let compares = matches!(wanted.policy.algo, service::Algo::LeastConnections | service::Algo::RandomTwo);
    let fail_open = wanted.fail_open;
    let mut entry = Backend {
        flags: FLAG_VALID
            | if new.up { FLAG_UP } else { 0 }
            | if new.down && !fail_open { FLAG_DOWN } else { 0 }
            | if new.weight == 0 && !new.down { FLAG_DRAINING } else { 0 },
        max_connections: new.max_connections,
        weight: if compares { new.weight } else { 0 },
        service,
        addr: new.key.addr,
        port: new.key.port,
        forward: wanted.forward as u8,
        proto: new.key.proto,
        ..old.copied().unwrap_or_else(Backend::zeroed)
    };
    set_next_hop(&mut entry, new.next_hop);
    entry
}

fn set_next_hop(entry: &mut Backend, hop: Option<NextHop>) {
    let Some(hop) = hop else {
        entry.flags &= !FLAG_NEXT_HOP;
        return;
    };
    entry.flags |= FLAG_NEXT_HOP;
    entry.ifindex = hop.ifindex;
    entry.mtu = hop.mtu;
    entry.src_mac = hop.src_mac;
    entry.dst_mac = hop.dst_mac;
}

/// The entry of a backend that is no longer configured, with what is known of its next hop by now.
pub(super) fn leaving(entry: &Backend, known: &BTreeMap<IpAddr, Option<NextHop>>) -> Backend {
    let mut entry = *entry;
    if let Some(hop) = known.get(&address(entry.addr)) {
        set_next_hop(&mut entry, *hop);
    }
    entry
}

/// Appends the stores that turn `old` into `new`. Where more than one word of the next hop changes, its flag is taken away
/// meanwhile: a packet in between is dropped and counted instead of leaving with one hop's MAC through another's interface.
pub(super) fn change_backend(id: u32, old: &Backend, new: &Backend, ops: &mut Vec<Op>) {
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

/// Appends the stores that turn `old` into `new`. What a packet may read in between: members before the algorithm that picks from
/// them; the previous ring before the ring that needs it, and after the ring that no longer does; flags that ask for records
/// before slots say so, and after.
pub(super) fn change_service(id: u32, old: &Service, new: &Service, ops: &mut Vec<Op>) {
    let (old_words, new_words): ([u64; SERVICE_WORDS], [u64; SERVICE_WORDS]) =
        (bytemuck::cast(*old), bytemuck::cast(*new));
    let mut store = |word: usize| {
        if let (Some(old), Some(&value)) = (old_words.get(word), new_words.get(word))
            && *old != value
        {
            ops.push(match word {
                SERVICE_WORD_RING => Op::ServiceRing { id, ring: value },
                _ => Op::ServiceWord { id, word, value },
            });
        }
    };
    let ring_first = [SERVICE_WORD_RING, SERVICE_WORD_PREVIOUS];
    let previous_first = [SERVICE_WORD_PREVIOUS, SERVICE_WORD_RING];
    let rings = if new.previous_ring == 0 { ring_first } else { previous_first };
    let tracks = new.flags & service::FLAG_TRACK_ALL != 0;
    store(SERVICE_WORD_TIMEOUT);
    if new.members != 0 {
        store(SERVICE_WORD_MEMBERS);
    }
    if tracks {
        store(SERVICE_WORD_FLAGS);
    }
    rings.into_iter().for_each(&mut store);
    if !tracks {
        store(SERVICE_WORD_FLAGS);
    }
    if new.members == 0 {
        store(SERVICE_WORD_MEMBERS);
    }
}

pub(super) fn node_entry(next: &Present, wanted: &Wanted, revision: u64) -> Node {
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
pub(super) fn change_node(old: &Node, new: &Node, ops: &mut Vec<Op>) {
    let (old, new): ([u64; 16], [u64; 16]) = (bytemuck::cast(*old), bytemuck::cast(*new));
    let changed = (NODE_WORD_FLAGS..new.len()).filter(|w| *w != NODE_WORD_REVISION && old.get(*w) != new.get(*w));
    ops.extend(
        changed.chain([NODE_WORD_REVISION]).filter_map(|word| Some(Op::NodeWord { word, value: *new.get(word)? })),
    );
}
