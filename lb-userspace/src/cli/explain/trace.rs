//! What becomes of one frame, step by step: pure, over any [`Tables`].
//!
//! Every decision is `lb_core`'s own, the code that runs in the kernel; this file only writes down what it said.

use std::net::{IpAddr, Ipv6Addr};

use lb_core::{
    abi::{backend, ring::Extent, service},
    hash, host,
    parse::{self, Packet, Part, Transport},
    pipeline,
    reason::{Class, Reason},
    rewrite::Exit,
    select::{self, Verdict},
    tables::Tables,
};
use serde::Serialize;

use super::{
    layers::{Change, changes, summary},
    watched::Watched,
};
use crate::api::backend_name;

/// A frame's way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trace {
    /// Number in the capture, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<usize>,
    /// The frame in one line.
    pub packet: String,
    /// Bytes of the frame.
    pub bytes: usize,
    /// What parsing made of it; `None` if it was refused there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parsed: Option<Parsed>,
    /// The service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Slot of the service's ring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// The backend that it goes to, or whose reply it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<Backend>,
    /// Fields that change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Index of the interface that it leaves by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_ifindex: Option<u32>,
    /// Name of that interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_interface: Option<String>,
    /// `pass`, `drop`, `transmit` or `forward`.
    pub action: &'static str,
    /// Reason under which it is counted.
    pub reason: &'static str,
    /// What that means.
    pub help: &'static str,
    /// What this explanation cannot know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What parsing found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parsed {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Ports of source and destination, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<(u16, u16)>,
    /// Bytes of IP packet.
    pub length: u16,
    /// `whole`, `first fragment` or `later fragment`.
    pub part: &'static str,
    /// `flow`, `ICMP error about a flow`, `echo request` ...
    pub kind: &'static str,
}

/// The service in the maps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Service {
    /// Id.
    pub id: u32,
    /// Name, where the agent told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// VIP.
    pub vip: IpAddr,
    /// Port; 0 for all.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Forwarding mode, `unknown` for a number that is none.
    pub forward: &'static str,
}

/// A slot of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Its index.
    pub index: u32,
    /// Slots of the ring.
    pub of: u32,
}

/// The backend in the maps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    /// Id.
    pub id: u32,
    /// Address and port.
    pub name: String,
    /// Health as the maps have it.
    pub up: bool,
    /// MAC of its next hop, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop_mac: Option<String>,
    /// Index of the interface that leads there.
    pub ifindex: u32,
    /// MTU of that way.
    pub mtu: u16,
}

/// An address of the maps as people write it.
pub fn address(bytes: [u8; 16]) -> IpAddr {
    IpAddr::from(bytes).to_canonical()
}

/// The client whose route decides about `frame`, if it is a backend's reply.
pub fn reply_to<T: Tables>(frame: &[u8], tables: &T) -> Option<IpAddr> {
    let mut packet = Packet::unknown();
    let mut verdict = Verdict::Echo;
    parse::any(&host::Frame::new(frame), &mut packet).ok()?;
    select::any(&packet, tables, &mut verdict).ok()?;
    matches!(verdict, Verdict::Reply { .. }).then(|| address(packet.addresses.dst()))
}

/// The way of `frame` through `tables`.
pub fn trace<T: Tables>(frame: &[u8], tables: &Watched<'_, T>, name: impl Fn(u32) -> Option<String>) -> Trace {
    let mut packet = Packet::unknown();
    let mut verdict = Verdict::Echo;
    let mut edited = host::Frame::new(frame);
    let parse = parse::any(&edited, &mut packet);
    // The decision is asked for twice: here for its steps, then as the program takes it, which has the last word.
    tables.take_backend();
    let decided = parse.and_then(|()| select::any(&packet, tables, &mut verdict));
    let asked = tables.take_backend();
    let exit = pipeline::process(&mut edited, tables);
    let reason = exit.reason();
    let mut out = Trace {
        number: None,
        packet: summary(frame),
        bytes: frame.len(),
        parsed: parse.is_ok().then(|| parsed(&packet)),
        service: None,
        slot: None,
        backend: None,
        changes: Vec::new(),
        egress_ifindex: None,
        egress_interface: None,
        action: match exit {
            Exit::Pass(_) => Class::Pass.name(),
            Exit::Drop(_) => Class::Drop.name(),
            Exit::Transmit(_) => Class::Transmit.name(),
            Exit::Forward { .. } => Class::Forward.name(),
        },
        reason: reason.name(),
        help: reason.help(),
        note: None,
    };
    match (decided, verdict) {
        (Ok(()), Verdict::Forward(choice)) => {
            out.service = service(tables, choice.service, &name);
            out.slot = choice
                .slot
                .zip(tables.service(choice.service))
                .map(|(index, service)| Slot { index, of: Extent::unpack(tables.load_u64(&service.ring)).slots });
            out.backend = backend(tables, choice.backend);
        }
        (Ok(()), Verdict::Reply { backend: id }) => {
            out.service = tables.backend(id).and_then(|b| service(tables, b.service, &name));
            out.backend = backend(tables, id);
        }
        // The ring named it, but it cannot be sent to: the verdict is silent about whom.
        (Err(Reason::BackendUnresolved | Reason::BackendInvalid), _) => {
            out.backend = asked.and_then(|id| backend(tables, id));
            out.service = asked.and_then(|id| tables.backend(id)).and_then(|b| service(tables, b.service, &name));
            out.slot = out.service.as_ref().and_then(|s| slot(tables, s.id, &packet));
        }
        (Ok(()), Verdict::Reset) => {
            out.backend = asked.and_then(|id| backend(tables, id));
            out.service = asked.and_then(|id| tables.backend(id)).and_then(|b| service(tables, b.service, &name));
            out.slot = out.service.as_ref().and_then(|s| slot(tables, s.id, &packet));
        }
        (Ok(()), Verdict::Echo) | (Err(_), _) => {}
    }
    if !matches!(exit, Exit::Drop(_)) {
        out.changes = changes(frame, edited.as_bytes());
    }
    if let Exit::Forward { ifindex, .. } = exit {
        out.egress_ifindex = Some(ifindex);
    }
    if reason == Reason::FragmentOvertook {
        out.note = Some("the first fragment was looked for in the maps as they were a moment ago".into());
    }
    out
}

/// The slot of a packet's own flow.
fn slot<T: Tables>(tables: &T, service: u32, packet: &Packet) -> Option<Slot> {
    let ring = Extent::unpack(tables.load_u64(&tables.service(service)?.ring));
    let hash = select::flow_hash(tables.node()?, &packet.addresses, packet.ports, packet.proto);
    (packet.transport == Transport::Flow && ring.slots > 0)
        .then(|| Slot { index: ring.slot_of(hash::slot_bits(hash)), of: ring.slots })
}

fn parsed(packet: &Packet) -> Parsed {
    let flow = packet.transport == Transport::Flow;
    Parsed {
        source: address(packet.addresses.src()),
        destination: address(packet.addresses.dst()),
        protocol: packet.proto,
        ports: flow.then_some(((packet.ports >> 16) as u16, packet.ports as u16)),
        length: packet.len,
        part: match packet.part {
            Part::Whole => "whole",
            Part::First => "first fragment",
            Part::Later => "later fragment",
        },
        kind: match packet.transport {
            Transport::Flow => "flow",
            Transport::Error => "ICMP error about a flow",
            Transport::ErrorWithoutFlow => "ICMP error about no flow",
            Transport::Echo => "echo request",
            Transport::Other => "other",
            Transport::Malformed => "malformed",
        },
    }
}

fn service<T: Tables>(tables: &T, id: u32, name: impl Fn(u32) -> Option<String>) -> Option<Service> {
    let entry = tables.service(id)?;
    Some(Service {
        id,
        name: name(id),
        vip: address(entry.addr),
        port: entry.port,
        protocol: entry.proto,
        forward: match service::Forward::from_u8(entry.forward) {
            Some(service::Forward::Dsr) => "dsr",
            Some(service::Forward::Ipip) => "ipip",
            Some(service::Forward::Nat) => "nat",
            None => "unknown",
        },
    })
}

fn backend<T: Tables>(tables: &T, id: u32) -> Option<Backend> {
    let entry = tables.backend(id)?;
    let flags = tables.load_u32(&entry.flags);
    let mac = entry.dst_mac.map(|byte| format!("{byte:02x}")).join(":");
    Some(Backend {
        id,
        name: match address(entry.addr) {
            // A mapped address that is no IPv4 one cannot be; an IPv6 address stays as it is.
            IpAddr::V6(v6) if v6 == Ipv6Addr::UNSPECIFIED => "unset".into(),
            address => backend_name(address, entry.port),
        },
        up: flags & backend::FLAG_UP != 0,
        next_hop_mac: (flags & backend::FLAG_NEXT_HOP != 0).then_some(mac),
        ifindex: entry.ifindex,
        mtu: entry.mtu,
    })
}
