//! The node that the fixtures meet: one service of each kind with one backend each, so that nothing depends on a slot.
//!
//! VIPs 203.0.113.1 and 2001:db8:aa::1; ports say what the service does.

use std::collections::BTreeMap;

use lb_core::{
    abi::{
        self, backend,
        ring::{Extent, Slot, State},
        service::{Algo, Forward, OnMarkedDown, flags},
    },
    host::Snapshot,
    tables::NextHop,
};
use rand::{SeedableRng as _, rngs::StdRng};

use crate::oracle::world::{INGRESS, add_backend, add_service, empty, set_ring};

const SLOTS: usize = 251;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The maps. Everything is constant, the hash key too, as outgoing bytes depend on it.
pub fn node(next_hops: BTreeMap<[u8; 16], NextHop>) -> Snapshot {
    let mut snapshot = empty(&mut StdRng::seed_from_u64(0));
    for (i, word) in (1_u32..).zip(&mut snapshot.node.hash_key) {
        *word = 0x9e37_79b1_u32.wrapping_mul(i);
    }
    snapshot.next_hops = next_hops;
    // No bucket of the flow table lies in the map.
    snapshot.node.flow_mask = u32::MAX;
    let vip4 = abi::mapped([203, 0, 113, 1]);
    let vip6 = *b"\x20\x01\x0d\xb8\x00\xaa\0\0\0\0\0\0\0\0\0\x01";
    let v4 = |n: u8| abi::mapped([10, 0, 0, n]);
    let v6 = |n: u8| [0x20, 1, 0x0d, 0xb8, 0, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0, n];
    let services = [
        (vip4, 80, TCP, Forward::Ipip, v4(1), 80, INGRESS),
        (vip4, 53, UDP, Forward::Ipip, v6(1), 53, 7),
        (vip6, 80, TCP, Forward::Ipip, v6(2), 80, INGRESS),
        (vip6, 53, UDP, Forward::Ipip, v4(2), 53, 7),
        (vip4, 82, TCP, Forward::Dsr, v4(3), 82, 7),
        (vip6, 82, UDP, Forward::Dsr, v6(3), 82, INGRESS),
        (vip4, 83, TCP, Forward::Nat, v4(4), 8083, 7),
        (vip4, 83, UDP, Forward::Nat, v4(4), 8083, 7),
        (vip6, 83, TCP, Forward::Nat, v6(4), 8083, 7),
        (vip6, 83, UDP, Forward::Nat, v6(4), 8083, 7),
        (vip4, 85, TCP, Forward::Dsr, v4(5), 85, 7),
        (vip4, 86, TCP, Forward::Dsr, v4(6), 86, 7),
        (vip4, 87, TCP, Forward::Dsr, v4(7), 87, 7),
        (vip4, 88, TCP, Forward::Nat, v6(8), 88, 7),
        (vip4, 89, TCP, Forward::Dsr, v4(9), 89, 7),
        (vip6, 89, TCP, Forward::Dsr, v6(9), 89, 7),
        (vip4, 90, TCP, Forward::Dsr, v4(10), 90, 7),
    ];
    for (vip, port, proto, forward, addr, backend_port, ifindex) in services {
        let service = add_service(&mut snapshot, vip, port, proto, forward);
        let id = add_backend(&mut snapshot, service, addr, backend_port, 1500, ifindex);
        let entry = &mut snapshot.backends[id as usize];
        match port {
            86 => entry.flags = 0,
            87 => entry.flags &= !backend::FLAG_NEXT_HOP,
            // Port 89: its backend is down, and its flows are reset.
            89 => entry.flags |= backend::FLAG_DOWN,
            _ => {}
        }
        if port == 89 {
            snapshot.services[service as usize].flags = flags(false, Algo::Hashed, OnMarkedDown::Reset);
        }
        let slot = if port == 85 { 0 } else { id };
        set_ring(&mut snapshot, service, &[slot; SLOTS]);
        if port == 90 {
            // Every slot moves, nobody has owned it, and there is no room for a record.
            let extent = Extent::unpack(snapshot.services[service as usize].ring);
            for line in &mut snapshot.lines[extent.line as usize..] {
                line.slots = line.slots.map(|slot| Slot::new(Slot(slot).current(), State::Moving, false).0);
            }
        }
    }
    // Port 84: a service without a ring.
    add_service(&mut snapshot, vip4, 84, TCP, Forward::Dsr);
    snapshot
}
