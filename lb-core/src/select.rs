//! What a packet is for: packet and tables to a verdict. Reads tables, never the packet's bytes.
//!
//! [`settled`] decides what [`crate::parse::plain_v4`] and its like recognised and a service takes, and says nothing about the rest;
//! [`any`] decides everything. Both agree where both answer.

use crate::{
    abi::{
        ABI_VERSION,
        backend::{self, Backend},
        fragment::{Fragment, FragmentKey},
        lookup::{Bucket, Entry, Key, Kind},
        node::{self, Node},
        ring::{Extent, Inputs, LINE_SLOTS, SLOTS_MASK, Slot},
        service::Service,
        stats::FlowEvent,
    },
    flow::{self, Request},
    hash,
    parse::{Addresses, Family, Packet, Part, Transport},
    reason::Reason,
    tables::Tables,
    wire::{ipv4, take, transport},
};

/// What is to be done with a packet that is not left alone. Plain numbers, no references: it crosses a call in the kernel, and the verifier does
/// not connect a variant with the pointers inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it to a backend.
    Forward(Choice),
    /// It is a backend's reply (`nat`): translate its source and send it to the client.
    Reply {
        /// Backend id.
        backend: u32,
    },
    /// Answer the echo request.
    Echo,
    /// Reset the TCP connection in the name of its backend, which is down.
    Reset,
}

/// The backend of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Service id.
    pub service: u32,
    /// Slot of the service's ring; `None` for a later fragment, which follows the first.
    pub slot: Option<u32>,
    /// Backend id.
    pub backend: u32,
    /// Flow hash; the ring took the high half, outer headers spread by the low half.
    pub hash: u64,
}

/// The entries that rewriting towards a backend reads.
#[derive(Clone, Copy, Debug)]
pub struct Target<'t> {
    /// What is true for the whole node.
    pub node: &'t Node,
    /// The backend.
    pub backend: &'t Backend,
}

/// Hash of a flow, the packet's own ports and protocol.
#[inline(always)]
pub fn flow_hash(node: &Node, addresses: &Addresses, ports: u32, proto: u8) -> u64 {
    let (src, dst) = (addresses.src, addresses.dst);
    match addresses.family {
        Family::V4 => hash::flow_v4(&node.hash_key, src[3], dst[3], ports, proto),
        Family::V6 => hash::flow_v6(&node.hash_key, src, dst, ports, proto),
    }
}

/// Decides for a plain packet that a service takes; `None` is for [`any`].
#[inline(always)]
pub fn settled<'t, T: Tables>(packet: &Packet, tables: &'t T) -> Option<(Choice, Target<'t>)> {
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
    let hash = tables.anew(flow_hash(node, &packet.addresses, packet.ports, packet.proto));
    let flow =
        Flow { addresses: &packet.addresses, hash, tcp_flags: packet.tcp_flags, proto: packet.proto, about: false };
    let (choice, backend) = choose(tables, node, candidate, service, &flow).ok()?;
    Some((choice, Target { node, backend }))
}

/// Decides for any packet, in `verdict`.
///
/// # Errors
/// The reason to pass or drop it unchanged; `verdict` then says nothing.
#[inline(always)]
pub fn any<T: Tables>(packet: &Packet, tables: &T, verdict: &mut Verdict) -> Result<(), Reason> {
    decide(packet, tables, verdict).map_or(Ok(()), Err)
}

#[inline(never)]
fn decide<T: Tables>(packet: &Packet, tables: &T, verdict: &mut Verdict) -> Option<Reason> {
    let Some(node) = configured(tables) else { return Some(Reason::Unconfigured) };
    if packet.part == Part::Later {
        return later_fragment(packet, node, tables, verdict);
    }
    // Towards the backend, the flow is the packet's own or, for an ICMP error, that of the quoted packet, which went the
    // other way. From the backend it is the reverse of either.
    let (flow, ports, proto) = match packet.transport {
        Transport::Flow => (packet.addresses, packet.ports, packet.proto),
        Transport::Error => {
            (packet.quoted.addresses.reversed(), packet.quoted.ports.rotate_left(16), packet.quoted.proto)
        }
        _ => return not_a_flow(packet, node, tables, verdict),
    };
    // An error belongs to a flow only if it is sent to the sender of the packet that it quotes.
    let own = same(&flow.dst(), &packet.addresses.dst());
    let service = if own { find_service(tables, node, service_key(&flow, ports as u16, proto)) } else { 0 };
    if service != 0 {
        let hash = flow_hash(node, &flow, ports, proto);
        let about = packet.transport == Transport::Error;
        let flow = Flow { addresses: &flow, hash, tcp_flags: packet.tcp_flags, proto, about };
        let entry = tables.service(service).ok_or(Reason::NoBackend);
        return match entry.and_then(|entry| choose(tables, node, service, entry, &flow)) {
            Ok((choice, _)) => {
                remember(packet, tables, choice.backend, Kind::Service);
                *verdict = Verdict::Forward(choice);
                None
            }
            Err(Reason::FlowReset) => {
                *verdict = Verdict::Reset;
                None
            }
            Err(reason) => Some(reason),
        };
    }
    if is_vip(tables, node, &packet.addresses) {
        remember(packet, tables, 0, Kind::Vip);
        return Some(match packet.transport {
            Transport::Flow => Reason::VipNoService,
            _ => Reason::IcmpErrorNoFlow,
        });
    }
    if own && node.flags & node::FLAG_NAT != 0 {
        // In the same terms: the backend is the source of a reply, and of the reverse of a packet that an error quotes.
        let key = Key { addr: flow.src(), port: (ports >> 16) as u16, proto, kind: Kind::Reply as u8 };
        let backend = find_reply(tables, node, key);
        if backend != 0 {
            remember(packet, tables, backend, Kind::Reply);
            *verdict = Verdict::Reply { backend };
            return None;
        }
    }
    Some(Reason::NotVip)
}

/// Packets without a flow matter for VIPs only.
#[inline(always)]
fn not_a_flow<T: Tables>(packet: &Packet, node: &Node, tables: &T, verdict: &mut Verdict) -> Option<Reason> {
    if !is_vip(tables, node, &packet.addresses) {
        return Some(Reason::NotVip);
    }
    match packet.transport {
        Transport::Malformed => packet.malformed,
        Transport::Echo => {
            *verdict = Verdict::Echo;
            None
        }
        Transport::ErrorWithoutFlow => Some(Reason::IcmpErrorNoFlow),
        Transport::Flow | Transport::Error | Transport::Other => Some(Reason::VipOther),
    }
}

/// A later fragment goes where the first one went.
#[inline(always)]
fn later_fragment<T: Tables>(packet: &Packet, node: &Node, tables: &T, verdict: &mut Verdict) -> Option<Reason> {
    if let Some(first) = tables.fragment(&fragment_key(packet)) {
        if first.kind == Kind::Service as u32 {
            let hash = flow_hash(node, &packet.addresses, 0, packet.proto);
            return match reachable(tables, first.backend) {
                Ok(backend) => {
                    let service = backend.service;
                    *verdict = Verdict::Forward(Choice { service, slot: None, backend: first.backend, hash });
                    None
                }
                Err(reason) => Some(reason),
            };
        }
        if first.kind == Kind::Reply as u32 {
            *verdict = Verdict::Reply { backend: first.backend };
            return None;
        }
        if first.kind == Kind::Vip as u32 {
            return Some(Reason::VipNoService);
        }
    }
    if !is_vip(tables, node, &packet.addresses) {
        return Some(Reason::NotVip);
    }
    match packet.proto {
        ipv4::PROTO_TCP | ipv4::PROTO_UDP => Some(Reason::FragmentOvertook),
        _ => Some(Reason::VipOther),
    }
}

#[inline(always)]
fn fragment_key(packet: &Packet) -> FragmentKey {
    FragmentKey { src: packet.addresses.src(), dst: packet.addresses.dst(), id: packet.id, proto: packet.proto as u32 }
}

/// Notes where the first fragment of a datagram goes.
#[inline(always)]
fn remember<T: Tables>(packet: &Packet, tables: &T, backend: u32, kind: Kind) {
    if packet.part == Part::First {
        tables.remember_fragment(&fragment_key(packet), &Fragment { backend, kind: kind as u32 });
    }
}

/// The node's entry, if an agent of this ABI wrote it.
#[inline(always)]
fn configured<T: Tables>(tables: &T) -> Option<&Node> {
    tables.node().filter(|node| node.abi_version == ABI_VERSION)
}

/// A packet of a service.
struct Flow<'p> {
    /// Its addresses, client first.
    addresses: &'p Addresses,
    /// [`flow_hash`].
    hash: u64,
    /// TCP flags; 0 for UDP and for ICMP errors.
    tcp_flags: u32,
    /// 6 or 17.
    proto: u8,
    /// It is an ICMP error about the flow.
    about: bool,
}

/// The 32 bits that choose a slot, by the inputs of a ring. The key is looked up once more, for the rarer inputs, see [`Tables::anew`].
#[inline(always)]
fn slot_bits<T: Tables>(tables: &T, inputs: Inputs, flow: &Flow<'_>) -> u32 {
    match inputs {
        Inputs::Source => {
            tables.node().map_or(0, |node| hash::slot_bits(hash::source(&node.hash_key, flow.addresses.src)))
        }
        Inputs::Tuple => hash::slot_bits(flow.hash),
    }
}

/// The backend of a packet: by the service's ring alone where its slot is settled and its backend up, else by [`flow`].
#[inline(always)]
fn choose<'t, T: Tables>(
    tables: &'t T,
    node: &Node,
    id: u32,
    service: &Service,
    packet: &Flow<'_>,
) -> Result<(Choice, &'t Backend), Reason> {
    let ring_word = tables.load_u64(&service.ring);
    // By the low half of the word: a ring of tuples, the usual one, is told from none and from one of sources by its slots alone.
    let bits = match ring_word as u32 {
        1..=SLOTS_MASK => hash::slot_bits(packet.hash),
        low if low & SLOTS_MASK == 0 => return Err(Reason::NoBackend),
        _ => slot_bits(tables, Inputs::unpack(ring_word), packet),
    };
    let ring = Extent::unpack(ring_word);
    let slot = ring.slot_of(bits);
    let line = tables.line(ring.line.wrapping_add(slot / LINE_SLOTS as u32)).ok_or(Reason::SlotEmpty)?;
    let word = line.slots.get(slot as usize % LINE_SLOTS).ok_or(Reason::SlotEmpty)?;
    let word = Slot(tables.load_u32(word));
    if word.is_plain() {
        // With nothing beside it, the word is the id.
        let current = word.0;
        if current == 0 {
            return Err(Reason::SlotEmpty);
        }
        let backend = tables.backend(current).ok_or(Reason::BackendInvalid)?;
        let flags = tables.load_u32(&backend.flags);
        if flags & (backend::FLAG_VALID | backend::FLAG_NEXT_HOP | backend::FLAG_DOWN)
            == backend::FLAG_VALID | backend::FLAG_NEXT_HOP
        {
            count_ends(tables, current, packet.tcp_flags);
            return Ok((Choice { service: id, slot: Some(slot), backend: current, hash: packet.hash }, backend));
        }
        if flags & backend::FLAG_DOWN == 0 {
            return Err(unreachable(flags));
        }
    }
    // All that follows is worked out from these two.
    let packet = &Flow { hash: tables.anew(packet.hash), ..*packet };
    let ring_word = tables.anew(ring_word);
    let bits = slot_bits(tables, Inputs::unpack(ring_word), packet);
    let slot = Extent::unpack(ring_word).slot_of(bits);
    let choice = Choice { service: id, slot: Some(slot), backend: word.current(), hash: packet.hash };
    let passing = packet.tcp_flags & (transport::SYN | transport::FIN | transport::RST) == 0 && !packet.about;
    let known = if passing { tables.flow_known(node, service, packet.hash, slot, word) } else { 0 };
    if known != 0
        && let Some(backend) = tables.backend(known)
        && backend.service == id
        && tables.load_u32(&backend.flags) & (backend::FLAG_VALID | backend::FLAG_NEXT_HOP | backend::FLAG_DOWN)
            == backend::FLAG_VALID | backend::FLAG_NEXT_HOP
    {
        tables.count(FlowEvent::Lookup);
        return Ok((Choice { backend: known, ..choice }, backend));
    }
    let previous = tables.load_u64(&service.previous_ring);
    let previous_bits = if previous == 0 { 0 } else { slot_bits(tables, Inputs::unpack(previous), packet) };
    let request = Request {
        hash: packet.hash,
        ring: ring_word,
        service: id,
        slot,
        word: word.0,
        previous,
        previous_bits,
        tcp_flags: packet.tcp_flags,
        proto: packet.proto as u32,
        about: packet.about as u32,
        pad: 0,
    };
    let chosen = flow::backend(tables, &request)?;
    let backend = reachable(tables, chosen)?;
    count_ends(tables, chosen, packet.tcp_flags);
    Ok((Choice { backend: chosen, ..choice }, backend))
}

/// Counts the packets that begin and end connections: without records they are what is known of a backend's flows.
#[inline(always)]
fn count_ends<T: Tables>(tables: &T, backend: u32, tcp_flags: u32) {
    use transport::{ACK, FIN, RST, SYN};
    if tcp_flags & (SYN | FIN | RST) != 0 {
        let begins = tcp_flags & (SYN | ACK | RST | FIN) == SYN;
        let ends = tcp_flags & (FIN | RST) != 0;
        tables.count_flows(backend, [begins as u32, ends as u32, 0, 0]);
    }
}

/// The entry of a backend that packets can be sent to.
#[inline(always)]
fn reachable<T: Tables>(tables: &T, id: u32) -> Result<&Backend, Reason> {
    let backend = tables.backend(id).ok_or(Reason::BackendInvalid)?;
    let flags = tables.load_u32(&backend.flags);
    match flags & (backend::FLAG_VALID | backend::FLAG_NEXT_HOP) == backend::FLAG_VALID | backend::FLAG_NEXT_HOP {
        true => Ok(backend),
        false => Err(unreachable(flags)),
    }
}

/// Why no packet can be sent to a backend with these flags.
#[inline(always)]
fn unreachable(flags: u32) -> Reason {
    if flags & backend::FLAG_VALID == 0 { Reason::BackendInvalid } else { Reason::BackendUnresolved }
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

/// The id in a word of the key's buckets that has its tag and kind, without the first `skip` of them; 0 without one.
///
/// VERIFIER: a call that returns a number, and compares of full keys outside of it, keep the number of states small; with
/// the compares inside the loop the program exceeded a million instructions.
#[inline(never)]
fn nth_match<T: Tables>(tables: &T, node: &Node, key: &Key, mut skip: u32) -> u32 {
    let (first, second, tag) = hash::lookup_buckets(hash::lookup(&node.hash_key, key), node.lookup_mask);
    let wanted = (tag as u64) << 8 | key.kind as u64;
    let mut index = first;
    for _ in 0..2 {
        let Some(bucket) = tables.bucket(index) else { return 0 };
        for word in &bucket.entries {
            let word = tables.load_u64(word);
            if word >> 24 == wanted {
                if skip == 0 {
                    return Entry::unpack(word).id;
                }
                skip -= 1;
            }
        }
        if tables.load_u64(&bucket.overflowed) == 0 {
            return 0;
        }
        index = second;
    }
    0
}

/// Keys that share buckets, tag and kind, at most; a third one is met once in 2^64.
const MATCHES_MAX: u32 = 2;

/// The id of the service with exactly this key, 0 without one.
#[inline(never)]
fn service_with<T: Tables>(tables: &T, node: &Node, key: &Key) -> u32 {
    for skip in 0..MATCHES_MAX {
        let id = nth_match(tables, node, key, skip);
        let Some(service) = tables.service(id).filter(|_| id != 0) else { return 0 };
        if service_matches(service, key) {
            return id;
        }
    }
    0
}

/// The id of the backend with exactly this reply key, 0 without one.
#[inline(never)]
fn reply_with<T: Tables>(tables: &T, node: &Node, key: &Key) -> u32 {
    for skip in 0..MATCHES_MAX {
        let id = nth_match(tables, node, key, skip);
        let Some(backend) = tables.backend(id).filter(|_| id != 0) else { return 0 };
        if tables.load_u32(&backend.flags) & backend::FLAG_VALID != 0
            && same(&backend.addr, &key.addr)
            && backend.port == key.port
            && backend.proto == key.proto
        {
            return id;
        }
    }
    0
}

/// Whether the destination is a VIP.
#[inline(never)]
fn is_vip<T: Tables>(tables: &T, node: &Node, addresses: &Addresses) -> bool {
    let key = Key { addr: addresses.dst(), port: 0, proto: 0, kind: Kind::Vip as u8 };
    for skip in 0..MATCHES_MAX {
        let id = nth_match(tables, node, &key, skip);
        let Some(service) = tables.service(id).filter(|_| id != 0) else { return false };
        if same(&service.addr, &key.addr) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn find_service<T: Tables>(tables: &T, node: &Node, mut key: Key) -> u32 {
    let id = service_with(tables, node, &key);
    if id != 0 || node.flags & node::FLAG_ALL_PORTS == 0 {
        return id;
    }
    key.port = 0;
    service_with(tables, node, &key)
}

#[inline(always)]
fn find_reply<T: Tables>(tables: &T, node: &Node, mut key: Key) -> u32 {
    let id = reply_with(tables, node, &key);
    if id != 0 || node.flags & node::FLAG_NAT_ALL_PORTS == 0 {
        return id;
    }
    key.port = 0;
    reply_with(tables, node, &key)
}
