//! What a packet is for: packet and tables to a verdict. Reads tables, never the packet's bytes.
//!
//! [`settled`] decides what [`crate::parse::plain`] recognised and a service takes, and says nothing about the rest;
//! [`any`] decides everything. Both agree where both answer.

use crate::{
    abi::{
        ABI_VERSION,
        backend::{self, Backend},
        fragment::{Fragment, FragmentKey},
        lookup::{Bucket, Entry, Key, Kind},
        node::{self, Node},
        ring::{Extent, LINE_SLOTS, Slot},
        service::Service,
    },
    hash,
    parse::{Addresses, Packet, Part, Transport},
    reason::Reason,
    tables::Tables,
    wire::{ipv4, take},
};

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'t> {
    /// Pass or drop it unchanged, as the reason's class says.
    Leave(Reason),
    /// Send it to a backend.
    Forward(Choice<'t>),
    /// It is a backend's reply (`nat`): translate its source and send it to the client.
    Reply(Reply<'t>),
    /// Answer the echo request.
    Echo,
}

/// The backend of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'t> {
    /// What is true for the whole node.
    pub node: &'t Node,
    /// Service id.
    pub service: u32,
    /// Slot of the service's ring; `None` for a later fragment, which follows the first.
    pub slot: Option<u32>,
    /// Backend id.
    pub id: u32,
    /// Its entry.
    pub backend: &'t Backend,
    /// Flow hash; the ring took the high half, outer headers spread by the low half.
    pub hash: u64,
}

/// The service whose VIP a reply is to come from.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'t> {
    /// Backend id.
    pub id: u32,
    /// Its entry.
    pub backend: &'t Backend,
    /// Its service.
    pub service: &'t Service,
}

/// Hash of a flow, the packet's own ports and protocol.
#[inline(always)]
pub fn flow_hash(node: &Node, addresses: &Addresses, ports: u32, proto: u8) -> u64 {
    match *addresses {
        Addresses::V4 { src, dst } => hash::flow_v4(&node.hash_key, src, dst, ports, proto),
        Addresses::V6 { src, dst } => hash::flow_v6(&node.hash_key, src, dst, ports, proto),
    }
}

/// Decides for a plain packet that a service takes; `None` is for [`any`].
#[inline(always)]
pub fn settled<'t, T: Tables>(packet: &Packet, tables: &'t T) -> Option<Choice<'t>> {
    let node = configured(tables)?;
    let mut key = service_key(&packet.addresses, packet.ports as u16, packet.proto);
    let mut candidate = first_match(tables, node, &key)?;
    if candidate == 0 && node.flags & node::FLAG_ALL_PORTS != 0 {
        key.port = 0;
        candidate = first_match(tables, node, &key)?;
    }
    let service = tables.service(candidate)?;
    if candidate == 0 || !service_matches(service, &key) {
        return None;
    }
    let hash = flow_hash(node, &packet.addresses, packet.ports, packet.proto);
    choose(tables, node, candidate, service, hash).ok()
}

/// Decides for any packet.
#[inline(always)]
pub fn any<'t, T: Tables>(packet: &Packet, tables: &'t T) -> Verdict<'t> {
    let Some(node) = configured(tables) else { return Verdict::Leave(Reason::Unconfigured) };
    if let Part::Later(id) = packet.part {
        return later_fragment(packet, id, node, tables);
    }
    // Towards the backend, the flow is the packet's own or, for an ICMP error, that of the quoted packet, which went the
    // other way. From the backend it is the reverse of either.
    let (flow, ports, proto) = match packet.transport {
        Transport::Flow => (packet.addresses, packet.ports, packet.proto),
        Transport::Error(quoted) => (quoted.addresses.reversed(), quoted.ports.rotate_left(16), quoted.proto),
        other => return not_a_flow(packet, other, node, tables),
    };
    // An error belongs to a flow only if it is sent to the sender of the packet that it quotes.
    let own = same(&flow.dst(), &packet.addresses.dst());
    if own && let Some((id, service)) = find_service(tables, node, service_key(&flow, ports as u16, proto)) {
        let hash = flow_hash(node, &flow, ports, proto);
        return match choose(tables, node, id, service, hash) {
            Ok(choice) => {
                remember(packet, tables, choice.id, Kind::Service);
                Verdict::Forward(choice)
            }
            Err(reason) => Verdict::Leave(reason),
        };
    }
    if is_vip(tables, node, &packet.addresses) {
        remember(packet, tables, 0, Kind::Vip);
        return Verdict::Leave(match packet.transport {
            Transport::Flow => Reason::VipNoService,
            _ => Reason::IcmpErrorNoFlow,
        });
    }
    if own && node.flags & node::FLAG_NAT != 0 {
        // In the same terms: the backend is the source of a reply, and of the reverse of a packet that an error quotes.
        let key = Key { addr: flow.src(), port: (ports >> 16) as u16, proto, kind: Kind::Reply as u8 };
        if let Some(reply) = find_reply(tables, node, key) {
            remember(packet, tables, reply.id, Kind::Reply);
            return Verdict::Reply(reply);
        }
    }
    Verdict::Leave(Reason::NotVip)
}

/// Packets without a flow matter for VIPs only.
#[inline(always)]
fn not_a_flow<'t, T: Tables>(packet: &Packet, transport: Transport, node: &Node, tables: &'t T) -> Verdict<'t> {
    if !is_vip(tables, node, &packet.addresses) {
        return Verdict::Leave(Reason::NotVip);
    }
    match transport {
        Transport::Malformed(reason) => Verdict::Leave(reason),
        Transport::Echo => Verdict::Echo,
        Transport::ErrorWithoutFlow => Verdict::Leave(Reason::IcmpErrorNoFlow),
        Transport::Flow | Transport::Error(_) | Transport::Other => Verdict::Leave(Reason::VipOther),
    }
}

/// A later fragment goes where the first one went.
#[inline(always)]
fn later_fragment<'t, T: Tables>(packet: &Packet, id: u32, node: &'t Node, tables: &'t T) -> Verdict<'t> {
    if let Some(first) = tables.fragment(&fragment_key(packet, id)) {
        if first.kind == Kind::Service as u32 {
            let hash = flow_hash(node, &packet.addresses, 0, packet.proto);
            return match live_backend(tables, first.backend) {
                Ok(backend) => Verdict::Forward(Choice {
                    node,
                    service: backend.service,
                    slot: None,
                    id: first.backend,
                    backend,
                    hash,
                }),
                Err(reason) => Verdict::Leave(reason),
            };
        }
        if first.kind == Kind::Reply as u32
            && let Some(backend) = tables.backend(first.backend)
            && let Some(service) = tables.service(backend.service)
        {
            return Verdict::Reply(Reply { id: first.backend, backend, service });
        }
        if first.kind == Kind::Vip as u32 {
            return Verdict::Leave(Reason::VipNoService);
        }
    }
    if !is_vip(tables, node, &packet.addresses) {
        return Verdict::Leave(Reason::NotVip);
    }
    match packet.proto {
        ipv4::PROTO_TCP | ipv4::PROTO_UDP => Verdict::Leave(Reason::FragmentOvertook),
        _ => Verdict::Leave(Reason::VipOther),
    }
}

#[inline(always)]
fn fragment_key(packet: &Packet, id: u32) -> FragmentKey {
    FragmentKey { src: packet.addresses.src(), dst: packet.addresses.dst(), id, proto: packet.proto, pad: [0; 3] }
}

/// Notes where the first fragment of a datagram goes.
#[inline(always)]
fn remember<T: Tables>(packet: &Packet, tables: &T, backend: u32, kind: Kind) {
    if let Part::First(id) = packet.part {
        tables.remember_fragment(&fragment_key(packet, id), &Fragment { backend, kind: kind as u32 });
    }
}

/// The node's entry, if an agent of this ABI wrote it.
#[inline(always)]
fn configured<T: Tables>(tables: &T) -> Option<&Node> {
    tables.node().filter(|node| node.abi_version == ABI_VERSION)
}

/// The backend for a flow hash, by the service's ring.
#[inline(always)]
fn choose<'t, T: Tables>(
    tables: &'t T,
    node: &'t Node,
    id: u32,
    service: &'t Service,
    hash: u64,
) -> Result<Choice<'t>, Reason> {
    let ring = Extent::unpack(tables.load_u64(&service.ring));
    if ring.slots == 0 {
        return Err(Reason::NoBackend);
    }
    let slot = ring.slot_of(hash::slot_bits(hash));
    let line = tables.line(ring.line.wrapping_add(slot / LINE_SLOTS as u32)).ok_or(Reason::SlotEmpty)?;
    let word = line.slots.get(slot as usize % LINE_SLOTS).ok_or(Reason::SlotEmpty)?;
    let current = Slot(tables.load_u32(word)).current();
    if current == 0 {
        return Err(Reason::SlotEmpty);
    }
    let backend = live_backend(tables, current)?;
    Ok(Choice { node, service: id, slot: Some(slot), id: current, backend, hash })
}

/// The entry of a backend that packets can be sent to.
#[inline(always)]
fn live_backend<T: Tables>(tables: &T, id: u32) -> Result<&Backend, Reason> {
    let backend = tables.backend(id).ok_or(Reason::BackendInvalid)?;
    let flags = tables.load_u32(&backend.flags);
    if flags & backend::FLAG_VALID == 0 {
        return Err(Reason::BackendInvalid);
    }
    if flags & backend::FLAG_NEXT_HOP == 0 {
        return Err(Reason::BackendUnresolved);
    }
    Ok(backend)
}

#[inline(always)]
fn service_key(flow: &Addresses, port: u16, proto: u8) -> Key {
    Key { addr: flow.dst(), port, proto, kind: Kind::Service as u8 }
}

#[inline(always)]
fn service_matches(service: &Service, key: &Key) -> bool {
    same(&service.addr, &key.addr) && service.port == key.port && service.proto == key.proto
}

/// Equality of two addresses as two compares of 64 bits.
#[inline(always)]
fn same(a: &[u8; 16], b: &[u8; 16]) -> bool {
    u64::from_ne_bytes(take(a, 0)) == u64::from_ne_bytes(take(b, 0))
        && u64::from_ne_bytes(take(a, 8)) == u64::from_ne_bytes(take(b, 8))
}

/// The id in the first word of the key's buckets that has its tag and kind, 0 without one. Whoever asks has to compare the
/// full key.
#[inline(always)]
fn first_match<T: Tables>(tables: &T, node: &Node, key: &Key) -> Option<u32> {
    let (first, second, tag) = hash::lookup_buckets(hash::lookup(&node.hash_key, key), node.lookup_mask);
    let bucket = tables.bucket(first)?;
    let id = first_in_bucket(tables, bucket, tag, key.kind);
    if id != 0 || tables.load_u64(&bucket.overflowed) == 0 {
        return Some(id);
    }
    Some(first_in_bucket(tables, tables.bucket(second)?, tag, key.kind))
}

#[inline(always)]
fn first_in_bucket<T: Tables>(tables: &T, bucket: &Bucket, tag: u32, kind: u8) -> u32 {
    let wanted = (tag as u64) << 8 | kind as u64;
    for word in &bucket.entries {
        let word = tables.load_u64(word);
        if word >> 24 == wanted {
            return Entry::unpack(word).id;
        }
    }
    0
}

/// Looks at every word of the key's buckets that has its tag and kind, until `accept` knows the id.
#[inline(always)]
fn find<T: Tables, R>(tables: &T, node: &Node, key: &Key, accept: impl Fn(u32) -> Option<R>) -> Option<R> {
    let (first, second, tag) = hash::lookup_buckets(hash::lookup(&node.hash_key, key), node.lookup_mask);
    let wanted = (tag as u64) << 8 | key.kind as u64;
    let mut index = first;
    for _ in 0..2 {
        let bucket = tables.bucket(index)?;
        for word in &bucket.entries {
            let word = tables.load_u64(word);
            if word >> 24 == wanted
                && let Some(found) = accept(Entry::unpack(word).id)
            {
                return Some(found);
            }
        }
        if tables.load_u64(&bucket.overflowed) == 0 {
            return None;
        }
        index = second;
    }
    None
}

#[inline(always)]
fn find_service<'t, T: Tables>(tables: &'t T, node: &Node, mut key: Key) -> Option<(u32, &'t Service)> {
    for _ in 0..2 {
        let found = find(tables, node, &key, |id| {
            tables.service(id).filter(|service| service_matches(service, &key)).map(|service| (id, service))
        });
        if found.is_some() || node.flags & node::FLAG_ALL_PORTS == 0 {
            return found;
        }
        key.port = 0;
    }
    None
}

#[inline(always)]
fn is_vip<T: Tables>(tables: &T, node: &Node, addresses: &Addresses) -> bool {
    let key = Key { addr: addresses.dst(), port: 0, proto: 0, kind: Kind::Vip as u8 };
    let known = |id| tables.service(id).filter(|service| same(&service.addr, &key.addr)).map(|_| ());
    find(tables, node, &key, known).is_some()
}

#[inline(always)]
fn find_reply<'t, T: Tables>(tables: &'t T, node: &Node, mut key: Key) -> Option<Reply<'t>> {
    for _ in 0..2 {
        let found = find(tables, node, &key, |id| {
            let backend = tables.backend(id)?;
            let matches = tables.load_u32(&backend.flags) & backend::FLAG_VALID != 0
                && same(&backend.addr, &key.addr)
                && backend.port == key.port
                && backend.proto == key.proto;
            let service = tables.service(backend.service).filter(|_| matches)?;
            Some(Reply { id, backend, service })
        });
        if found.is_some() || node.flags & node::FLAG_NAT_ALL_PORTS == 0 {
            return found;
        }
        key.port = 0;
    }
    None
}
