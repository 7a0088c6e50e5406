//! A node's maps with every kind of service and backend, made from a seed, once as vectors and once to be copied into maps.
//!
//! Owns: what the oracle's packets meet. Refuses to know: how the program is run.

use std::collections::BTreeMap;

use bytemuck::Zeroable;
use lb_core::{
    abi::{
        self,
        backend::{self, Backend},
        lookup::{Bucket, Entry, Key, Kind, WAYS},
        node,
        ring::{Extent, Inputs, LINE_SLOTS, Line, Slot},
        service::{Forward, Service},
    },
    hash,
    host::Snapshot,
    tables::NextHop,
};
use rand::{Rng, RngExt};

use super::generate::{Population, Target};

/// Buckets of the lookup table: few, so that some overflow.
const BUCKETS: usize = 8;
/// Slots of each ring, prime.
const SLOTS: u32 = 251;
/// Interface that `BPF_PROG_RUN` says a frame came in by: loopback.
pub const INGRESS: u32 = 1;
/// Clients, by what the routes of [`super::program::enter_namespace`] know: a neighbour, one without MAC, none at all, one
/// behind a tunnel.
pub const CLIENTS_V4: [[u8; 4]; 4] = [[192, 0, 2, 7], [192, 0, 2, 8], [192, 0, 2, 9], [192, 0, 2, 10]];
/// As [`CLIENTS_V4`].
pub const CLIENTS_V6: [[u8; 16]; 4] = [client_v6(7), client_v6(8), client_v6(9), client_v6(10)];

const fn client_v6(last: u8) -> [u8; 16] {
    let mut addr = [0; 16];
    (addr[0], addr[1], addr[2], addr[3], addr[15]) = (0x20, 0x01, 0x0d, 0xb8, last);
    addr
}

fn vip_v6(last: u8) -> [u8; 16] {
    let mut addr = client_v6(last);
    addr[4] = 0xaa;
    addr
}

fn backend_addr(v4: bool, n: u32) -> [u8; 16] {
    let [_, _, a, b] = n.to_be_bytes();
    if v4 {
        return abi::mapped([10, 0, a, b]);
    }
    let mut addr = client_v6(b);
    (addr[4], addr[14]) = (0xbb, a);
    addr
}

/// Adds a key as the agent does: to the emptier of its two buckets.
pub fn insert(snapshot: &mut Snapshot, key: &Key, id: u32) {
    let hash = hash::lookup(&snapshot.node.hash_key, key);
    let (first, second, tag) = hash::lookup_buckets(hash, snapshot.node.lookup_mask);
    let used = |bucket: &Bucket| bucket.entries.iter().filter(|word| **word != 0).count();
    let (a, b) = (used(&snapshot.lookup[first as usize]), used(&snapshot.lookup[second as usize]));
    let at = if b < a { second } else { first } as usize;
    let free = snapshot.lookup[at].entries.iter_mut().find(|word| **word == 0).expect("a free word");
    *free = Entry { tag, kind: key.kind, id }.pack();
    if at != first as usize {
        snapshot.lookup[first as usize].overflowed += 1;
    }
}

/// Adds a service and the key of its VIP; gives its id.
pub fn add_service(snapshot: &mut Snapshot, addr: [u8; 16], port: u16, proto: u8, forward: Forward) -> u32 {
    let id = snapshot.services.len() as u32;
    let known = snapshot.services.iter().skip(1).any(|service| service.addr == addr);
    let mut service = Service::zeroed();
    (service.addr, service.port, service.proto, service.forward) = (addr, port, proto, forward as u8);
    snapshot.services.push(service);
    insert(snapshot, &service.key(), id);
    if !known {
        insert(snapshot, &Key { addr, port: 0, proto: 0, kind: Kind::Vip as u8 }, id);
    }
    id
}

/// Adds a backend, and for `nat` its reply key; gives its id.
pub fn add_backend(snapshot: &mut Snapshot, service: u32, addr: [u8; 16], port: u16, mtu: u16, ifindex: u32) -> u32 {
    let id = snapshot.backends.len() as u32;
    let of = snapshot.services[service as usize];
    let mut backend = Backend::zeroed();
    backend.flags = backend::FLAG_VALID | backend::FLAG_UP | backend::FLAG_NEXT_HOP;
    (backend.service, backend.addr, backend.port, backend.mtu) = (service, addr, port, mtu);
    (backend.forward, backend.proto, backend.ifindex) = (of.forward, of.proto, ifindex);
    backend.dst_mac = [2, 0xbe, 0, 0, 0, id as u8];
    backend.src_mac = [2, 0x0d, 0xe0, 0, 0, ifindex as u8];
    snapshot.backends.push(backend);
    if of.forward == Forward::Nat as u8 {
        insert(snapshot, &backend.reply_key(), id);
    }
    id
}

/// Gives a service a ring with these slots.
pub fn set_ring(snapshot: &mut Snapshot, service: u32, slots: &[u32]) {
    let line = snapshot.lines.len() as u32;
    for chunk in slots.chunks(LINE_SLOTS) {
        let mut line = Line::zeroed();
        for (slot, id) in line.slots.iter_mut().zip(chunk) {
            *slot = Slot::settled(*id).0;
        }
        snapshot.lines.push(line);
    }
    snapshot.services[service as usize].ring = Extent { line, slots: slots.len() as u32 }.pack(Inputs::Tuple);
}

/// A node without services.
pub fn empty(rng: &mut impl Rng) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.node.abi_version = abi::ABI_VERSION;
    snapshot.node.flags = node::FLAG_ALL_PORTS | node::FLAG_NAT | node::FLAG_NAT_ALL_PORTS;
    snapshot.node.hash_key = std::array::from_fn(|_| rng.random());
    snapshot.node.lookup_mask = BUCKETS as u32 - 1;
    snapshot.node.outer_source_v4 = [198, 18, 0, 0];
    (snapshot.node.outer_source_v6[0], snapshot.node.outer_source_v6[1]) = (1, 0);
    snapshot.lookup = vec![Bucket::zeroed(); BUCKETS];
    snapshot.services = vec![Service::zeroed()];
    snapshot.backends = vec![Backend::zeroed()];
    snapshot
}

/// Every mode in every combination of families, with whole and broken backends.
pub fn build(rng: &mut impl Rng, next_hops: BTreeMap<[u8; 16], NextHop>) -> (Snapshot, Population) {
    const { assert!(BUCKETS * WAYS > 50) };
    let mut snapshot = empty(rng);
    snapshot.next_hops = next_hops;
    let mut population = Population {
        targets: Vec::new(),
        repliers: Vec::new(),
        clients_v4: CLIENTS_V4.to_vec(),
        clients_v6: CLIENTS_V6.to_vec(),
        mac: [2, 0, 0, 0, 0, 1],
        ip_max: 1700,
    };
    // Service over v4 or v6, backends over v4 or v6, mode, port, protocol.
    let services = [
        (true, true, Forward::Ipip, 80, 6),
        (true, true, Forward::Ipip, 53, 17),
        (true, false, Forward::Ipip, 81, 6),
        (false, false, Forward::Ipip, 80, 6),
        (false, true, Forward::Ipip, 53, 17),
        (true, true, Forward::Dsr, 82, 6),
        (false, false, Forward::Dsr, 82, 17),
        (true, true, Forward::Nat, 83, 6),
        (true, true, Forward::Nat, 83, 17),
        (false, false, Forward::Nat, 83, 6),
        (false, false, Forward::Nat, 84, 17),
        (true, true, Forward::Nat, 0, 17),
        (false, true, Forward::Nat, 85, 6),
        (true, true, Forward::Ipip, 86, 17),
    ];
    for (n, (v4, backends_v4, forward, port, proto)) in services.into_iter().enumerate() {
        // The service on all ports has a VIP of its own, else it would take what others leave.
        let last = if port == 0 { 2 } else { 1 };
        let addr = if v4 { abi::mapped([203, 0, 113, last]) } else { vip_v6(last) };
        let service = add_service(&mut snapshot, addr, port, proto, forward);
        let target = |port| match v4 {
            true => Target::V4([203, 0, 113, last], port, proto),
            false => Target::V6(addr, port, proto),
        };
        population.targets.extend([target(port), target(port), target(port), target(9)]);
        let mut ids = vec![0];
        for k in 0..3 {
            let addr = backend_addr(backends_v4, (n as u32) << 4 | k);
            let backend_port = if port == 0 || forward != Forward::Nat { port } else { 8000 + port + k as u16 };
            let ifindex = if k == 0 { INGRESS } else { 7 };
            let id = add_backend(&mut snapshot, service, addr, backend_port, rng.random_range(1400..1600), ifindex);
            ids.extend([id; 30]);
            if forward == Forward::Nat {
                population.repliers.push(match backends_v4 {
                    true => Target::V4([addr[12], addr[13], addr[14], addr[15]], backend_port, proto),
                    false => Target::V6(addr, backend_port, proto),
                });
            }
        }
        let unresolved =
            add_backend(&mut snapshot, service, backend_addr(backends_v4, 0xe00 + n as u32), port, 1500, 7);
        snapshot.backends[unresolved as usize].flags &= !backend::FLAG_NEXT_HOP;
        let invalid = add_backend(&mut snapshot, service, backend_addr(backends_v4, 0xf00 + n as u32), port, 1500, 7);
        snapshot.backends[invalid as usize].flags = 0;
        ids.extend([unresolved, invalid, 0xff_ffff]);
        // The last one stays without a ring.
        if n + 1 < services.len() {
            let slots: Vec<u32> = (0..SLOTS).map(|_| ids[rng.random_range(0..ids.len())]).collect();
            set_ring(&mut snapshot, service, &slots);
        }
    }
    population.targets.extend([
        Target::V4([203, 0, 113, 99], 80, 6),
        Target::V6(vip_v6(99), 80, 6),
        Target::V4([255, 255, 255, 255], 67, 17),
    ]);
    (snapshot, population)
}
