//! Explanations over maps made by hand: one service, one backend, in each mode.

use std::net::SocketAddr;

use bytemuck::Zeroable;
use lb_core::{
    abi::{
        ABI_VERSION,
        backend::{Backend, FLAG_DOWN, FLAG_NEXT_HOP, FLAG_UP, FLAG_VALID},
        flow,
        lookup::{Bucket, Entry, Key, Kind},
        mapped,
        node::{FLAG_NAT, Node},
        ring::{Extent, Inputs, LINE_SLOTS, Line, Slot, State},
        service::{self, Forward, OnMarkedDown},
        stats::FlowEvent,
        turns::Turns,
    },
    hash,
    host::Snapshot,
};

use super::*;

const VIP: [u8; 4] = [203, 0, 113, 1];
const BACKEND: [u8; 4] = [10, 0, 0, 11];

fn put(maps: &mut Snapshot, key: &Key, id: u32) {
    let (first, _, tag) = hash::lookup_buckets(hash::lookup(&maps.node.hash_key, key), maps.node.lookup_mask);
    let bucket = &mut maps.lookup[first as usize];
    let free = bucket.entries.iter().position(|word| *word == 0).expect("room");
    bucket.entries[free] = Entry { tag, kind: key.kind, id }.pack();
}

/// Service 1 at the VIP's port 80, its 251 slots all of backend 1.
fn maps(forward: Forward) -> Snapshot {
    let node = Node {
        abi_version: ABI_VERSION,
        flags: FLAG_NAT,
        hash_key: [7; 12],
        lookup_mask: 15,
        outer_source_v4: [198, 18, 0, 0],
        ..Node::zeroed()
    };
    let service = service::Service {
        ring: Extent { line: 0, slots: 251 }.pack(Inputs::Tuple),
        addr: mapped(VIP),
        port: 80,
        proto: 6,
        forward: forward as u8,
        ..service::Service::zeroed()
    };
    let backend = Backend {
        flags: FLAG_VALID | FLAG_UP | FLAG_NEXT_HOP,
        service: 1,
        addr: mapped(BACKEND),
        ifindex: 5,
        mtu: 1500,
        port: if forward == Forward::Nat { 8080 } else { 80 },
        dst_mac: [2, 0, 0, 0, 0, 11],
        src_mac: [2, 0, 0, 0, 0, 99],
        forward: forward as u8,
        proto: 6,
        ..Backend::zeroed()
    };
    let mut maps = Snapshot {
        node,
        lookup: vec![Bucket::zeroed(); 16],
        services: vec![service::Service::zeroed(), service],
        lines: vec![Line { slots: [Slot::settled(1).0; LINE_SLOTS] }; 16],
        backends: vec![Backend::zeroed(), backend],
        ..Snapshot::default()
    };
    put(&mut maps, &service.key(), 1);
    put(&mut maps, &Key { addr: mapped(VIP), port: 0, proto: 0, kind: Kind::Vip as u8 }, 1);
    put(&mut maps, &backend.reply_key(), 1);
    maps
}

fn segment(from: &str, to: &str, segment: craft::Segment) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    craft::frame(craft::Protocol::Tcp, from, to, segment).unwrap()
}

/// The beginning of a connection.
fn tcp(from: &str, to: &str) -> Vec<u8> {
    segment(from, to, craft::Segment::Syn)
}

/// As [`tcp`], of an established connection.
fn ack(from: &str, to: &str) -> Vec<u8> {
    segment(from, to, craft::Segment::Ack)
}

fn steps(maps: &Snapshot, frame: &[u8]) -> Trace {
    trace(frame, &Watched::new(maps), |id| (id == 1).then(|| "web".into()))
}

fn change<'t>(t: &'t Trace, field: &str) -> Option<(Option<&'t str>, Option<&'t str>)> {
    t.changes.iter().find(|c| c.field == field).map(|c| (c.before.as_deref(), c.after.as_deref()))
}

#[test]
fn ipip_shows_every_step() {
    let mut t = steps(&maps(Forward::Ipip), &tcp("192.0.2.7:40000", "203.0.113.1:80"));
    t.egress_interface = Some("eth1".into());
    assert_eq!(t.reason, "forwarded_ipip");
    assert_eq!(change(&t, "ipv4.destination"), Some((None, Some("10.0.0.11"))));
    assert_eq!(change(&t, "ethernet.destination"), Some((Some("02:00:00:00:00:02"), Some("02:00:00:00:00:0b"))));
    assert_eq!((t.egress_ifindex, t.slot.as_ref().map(|s| s.of)), (Some(5), Some(251)));
    let text = render(&t, false);
    for line in [
        "packet    tcp 192.0.2.7:40000 -> 203.0.113.1:80, 54 bytes\n",
        "service   web (id 1): 203.0.113.1:80 protocol 6, ipip\n",
        " of 251, settled: 10.0.0.11:80\n",
        "flow      not recorded; not looked up, the slot is settled\n",
        "backend   10.0.0.11:80 (id 1), up\n",
        "          + ipv4.destination  10.0.0.11\n",
        "next hop  02:00:00:00:00:0b, MTU 1500\n",
        "egress    eth1 (index 5)\n",
        "result    forward, counted as forwarded_ipip\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
}

#[test]
fn dsr_changes_macs_only_and_nat_the_destination() {
    let frame = tcp("192.0.2.7:40000", "203.0.113.1:80");
    let t = steps(&maps(Forward::Dsr), &frame);
    let fields: Vec<_> = t.changes.iter().map(|c| c.field.as_str()).collect();
    assert_eq!((t.reason, fields), ("forwarded_dsr", vec!["ethernet.destination", "ethernet.source"]));
    let t = steps(&maps(Forward::Nat), &frame);
    assert_eq!(t.reason, "forwarded_nat");
    assert_eq!(change(&t, "ipv4.destination"), Some((Some("203.0.113.1"), Some("10.0.0.11"))));
    assert_eq!(change(&t, "tcp.destination_port"), Some((Some("80"), Some("8080"))));
}

#[test]
fn a_reply_goes_by_the_kernels_route() {
    let mut maps = maps(Forward::Nat);
    let frame = tcp("10.0.0.11:8080", "192.0.2.7:40000");
    assert_eq!(trace::reply_to(&frame, &maps), Some([192, 0, 2, 7].into()));
    assert_eq!(steps(&maps, &frame).reason, "nat_reply_no_route");
    maps.next_hops.insert(mapped([192, 0, 2, 7]), NextHop::Resolved { ifindex: 3, macs: [9; 12] });
    let t = steps(&maps, &frame);
    assert_eq!((t.reason, t.egress_ifindex), ("nat_reply", Some(3)));
    assert_eq!(change(&t, "ipv4.source"), Some((Some("10.0.0.11"), Some("203.0.113.1"))));
    assert_eq!(t.backend.map(|b| b.id), Some(1));
}

#[test]
fn an_unresolved_backend_is_named_all_the_same() {
    let mut maps = maps(Forward::Ipip);
    maps.backends[1].flags &= !FLAG_NEXT_HOP;
    let t = steps(&maps, &tcp("192.0.2.7:40000", "203.0.113.1:80"));
    assert_eq!((t.action, t.reason), ("drop", "backend_unresolved"));
    assert_eq!(t.service.as_ref().and_then(|s| s.name.as_deref()), Some("web"));
    assert!(t.changes.is_empty());
    assert!(render(&t, false).contains("next hop  unknown"), "{}", render(&t, false));
    assert_eq!(t.slot.as_ref().map(|s| s.of), Some(251));
}

/// Two backends, 1 the owner and 2 the current one of every slot, all in one state; and a flow table.
fn changing(state: State, tracked: bool) -> Snapshot {
    let mut maps = maps(Forward::Dsr);
    (maps.node.hz, maps.node.flow_mask) = (250, 15);
    maps.jiffies.set(250 * 1000);
    maps.services[1].established_s = 7440;
    maps.services[1].flags = service::flags(tracked, service::Algo::Hashed, OnMarkedDown::Rehash);
    maps.backends.push(Backend { addr: mapped([10, 0, 0, 12]), dst_mac: [2, 0, 0, 0, 0, 12], ..maps.backends[1] });
    maps.lines = vec![Line { slots: [Slot::new(2, state, tracked).0; LINE_SLOTS] }; 16];
    maps.owners = vec![Line { slots: [1; LINE_SLOTS] }; 16];
    maps.flows = (0..16).map(|_| flow::Bucket::default()).collect();
    maps
}

#[test]
fn the_state_of_a_slot_says_where_a_packet_goes() {
    let (from, to) = ("192.0.2.7:40000", "203.0.113.1:80");
    let table = [
        // (state, tracked, begins, backend, slot in words)
        (State::Announced, false, true, 1, "announced: still 10.0.0.11:80, next 10.0.0.12:80"),
        (State::Announced, false, false, 1, "announced: still 10.0.0.11:80, next 10.0.0.12:80"),
        (State::Moving, false, true, 2, "moving: new flows to 10.0.0.12:80, unrecorded ones stay with 10.0.0.11:80"),
        (State::Moving, false, false, 1, "moving: new flows to 10.0.0.12:80, unrecorded ones stay with 10.0.0.11:80"),
        (State::Residual, false, false, 2, "residual: 10.0.0.12:80 but for what is recorded"),
        (State::Settled, true, true, 2, "settled, every flow recorded: 10.0.0.12:80"),
    ];
    for (state, tracked, begins, backend, words) in table {
        let maps = changing(state, tracked);
        let t = steps(&maps, &if begins { tcp(from, to) } else { ack(from, to) });
        assert_eq!(t.backend.as_ref().map(|b| b.id), Some(backend), "{words}");
        assert_eq!(t.flow, Some(Flow { looked_up: true, busy: false, record: None }), "{words}");
        let text = render(&t, false);
        assert!(text.contains(&format!(" of 251, {words}\nflow      not recorded\n")), "{text}");
    }
}

#[test]
fn a_record_that_is_found_is_shown_as_it_was() {
    let (from, to) = ("192.0.2.7:40000", "203.0.113.1:80");
    // The first packet is recorded, the second finds that.
    let maps = changing(State::Moving, false);
    steps(&maps, &tcp(from, to));
    maps.jiffies.set(250 * 1004);
    let t = steps(&maps, &ack(from, to));
    let record = t.flow.as_ref().and_then(|f| f.record.clone()).expect("a record");
    assert_eq!((record.backend_id, record.state, record.left_s), (2, "half_open", 6));
    assert_eq!(record.slot, t.slot.as_ref().map(|s| s.index).unwrap());
    assert!(render(&t, false).contains("flow      recorded for 10.0.0.12:80: half-open, expires in 6s\n"));
    assert_eq!(t.backend.map(|b| b.id), Some(2), "and not the owner");
    let text = flow(&steps(&maps, &ack(from, to)), false);
    assert!(text.contains("record   recorded for 10.0.0.12:80: established, expires in 2h04m\n"), "{text}");
    assert!(text.contains("goes to  10.0.0.12:80, forwarded_dsr\n"), "{text}");
    let other = steps(&maps, &ack("192.0.2.7:40001", to));
    assert_eq!((other.flow.and_then(|f| f.record), other.backend.map(|b| b.id)), (None, Some(1)));
}

/// What a packet is decided for, it is decided for once: the packets of a capture find each other's records as they would in the program.
#[test]
fn a_packet_is_decided_once() {
    let (from, to) = ("192.0.2.7:40000", "203.0.113.1:80");
    let maps = changing(State::Moving, false);
    steps(&maps, &ack(from, to));
    let counted = |event| maps.events.borrow().get(&event).copied().unwrap_or(0);
    assert_eq!([FlowEvent::Lookup, FlowEvent::Insert, FlowEvent::Learned].map(counted), [1, 1, 1]);
    let t = steps(&maps, &ack(from, to));
    assert_eq!(t.flow.and_then(|f| f.record).map(|r| r.state), Some("once"), "one packet was seen before");
    // Each new flow takes one turn.
    let mut turns = changing(State::Settled, true);
    turns.services[1].flags = service::flags(true, service::Algo::Turns, OnMarkedDown::Rehash);
    let mut members = [0; LINE_SLOTS];
    (members[0], members[1]) = (1, 2);
    turns.lines.push(Line { slots: members });
    turns.services[1].members = Extent { line: 16, slots: 2 }.pack(Inputs::Tuple);
    let traces: Vec<_> = (0..4).map(|n| steps(&turns, &tcp(&format!("192.0.2.7:{}", 40_000 + n), to))).collect();
    assert_eq!(traces.iter().map(|t| t.backend.as_ref().map(|b| b.id)).collect::<Vec<_>>(), [1, 2, 1, 2].map(Some));
    assert!(
        traces.iter().all(|t| render(t, false).contains("note      each CPU takes turns of its own")),
        "{traces:?}"
    );
    let known = steps(&turns, &ack("192.0.2.7:40000", to));
    assert_eq!((known.backend.map(|b| b.id), known.note), (Some(1), None), "its record decides");
}

/// The fewest connections are found from where a CPU's turns stand, and not from the beginning.
#[test]
fn who_has_the_fewest_connections_is_who_a_cpu_remembers() {
    let to = "203.0.113.1:80";
    let mut maps = changing(State::Settled, true);
    maps.services[1].flags = service::flags(true, service::Algo::LeastConnections, OnMarkedDown::Rehash);
    let members = 40u32;
    for id in 3..=members {
        maps.backends.push(Backend { addr: mapped([10, 0, 1, id as u8]), ..maps.backends[1] });
    }
    let ids: Vec<u32> = (1..=members).collect();
    for slots in ids.chunks(LINE_SLOTS) {
        let mut line = Line { slots: [0; LINE_SLOTS] };
        line.slots[..slots.len()].copy_from_slice(slots);
        maps.lines.push(line);
    }
    maps.services[1].members = Extent { line: 16, slots: members }.pack(Inputs::Tuple);
    maps.active = ids.iter().map(|id| flow::Word::new(if *id == 31 { 0 } else { 9 })).collect();
    maps.active.insert(0, flow::Word::default());
    maps.turns.borrow_mut().insert(1, Turns { next: 5, fewest: [31, 2, 3] });
    let t = steps(&maps, &tcp("192.0.2.7:40000", to));
    assert_eq!(t.backend.as_ref().map(|b| b.id), Some(31), "{}", render(&t, false));
    // The end of a flow takes no turn that decides.
    steps(&maps, &ack("192.0.2.7:40000", to));
    let fin = steps(&maps, &segment("192.0.2.7:40000", to, craft::Segment::Fin));
    assert_eq!((fin.backend.map(|b| b.id), fin.note), (Some(31), None));
}

#[test]
fn a_dead_backend_is_named_where_its_flows_are_reset() {
    let (from, to) = ("192.0.2.7:40000", "203.0.113.1:80");
    let mut maps = changing(State::Settled, true);
    steps(&maps, &tcp(from, to));
    steps(&maps, &ack(from, to));
    maps.backends[2].flags = (maps.backends[2].flags & !FLAG_UP) | FLAG_DOWN;
    let t = steps(&maps, &ack(from, to));
    assert_eq!((t.reason, t.backend.as_ref().map(|b| b.id)), ("forwarded_dsr", Some(2)), "{}", render(&t, false));
    maps.services[1].flags = service::flags(true, service::Algo::Hashed, OnMarkedDown::Reset);
    let t = steps(&maps, &ack(from, to));
    assert_eq!((t.action, t.reason), ("transmit", "flow_reset"));
    assert_eq!(t.backend.as_ref().map(|b| b.id), Some(2));
    assert_eq!(t.service.as_ref().and_then(|s| s.name.as_deref()), Some("web"));
    let text = render(&t, false);
    assert!(text.contains("recorded for 10.0.0.12:80, which is down or gone: established"), "{text}");
    assert!(text.contains("result   transmit, counted as flow_reset\n"), "{text}");
}

#[test]
fn what_is_left_alone_has_its_reason() {
    let mut maps = maps(Forward::Ipip);
    for (to, action, reason) in [("203.0.113.1:81", "pass", "vip_no_service"), ("203.0.113.2:80", "pass", "not_vip")] {
        let t = steps(&maps, &tcp("192.0.2.7:40000", to));
        assert_eq!((t.action, t.reason, t.changes.len()), (action, reason, 0));
    }
    let t = steps(&maps, &tcp("192.0.2.7:40000", "203.0.113.1:80")[..20]);
    assert_eq!((t.action, t.reason, t.parsed), ("drop", "ipv4_truncated", None));
    maps.services[1].ring = 0;
    assert_eq!(steps(&maps, &tcp("192.0.2.7:1", "203.0.113.1:80")).reason, "no_backend");
}

#[test]
fn a_capture_is_a_table() {
    let maps = maps(Forward::Dsr);
    let mut traces = [tcp("192.0.2.7:40000", "203.0.113.1:80"), vec![0; 4]].map(|frame| steps(&maps, &frame)).to_vec();
    for (i, trace) in traces.iter_mut().enumerate() {
        trace.number = Some(i + 1);
        trace.slot = None;
    }
    assert_eq!(
        list(&traces, false),
        "\
NUMBER  PACKET                                   SERVICE  SLOT  BACKEND       ACTION   REASON
     1  tcp 192.0.2.7:40000 -> 203.0.113.1:80    web         -  10.0.0.11:80  forward  forwarded_dsr
     2  frame of 4 bytes, neither IPv4 nor IPv6  -           -  -             drop     frame_truncated
"
    );
}

#[test]
fn fragments_of_one_capture_find_each_other() {
    let maps = maps(Forward::Dsr);
    let mut first = tcp("192.0.2.7:40000", "203.0.113.1:80");
    first[20] = 0x20;
    let mut later = first.clone();
    later[21] = 3;
    later[20] = 0;
    let tables = Watched::new(&maps);
    let reasons = [&first, &later].map(|frame| trace(frame, &tables, |_| None).reason);
    assert_eq!(reasons, ["forwarded_dsr"; 2]);
    assert_eq!(steps(&maps, &later).reason, "fragment_overtook");
}
