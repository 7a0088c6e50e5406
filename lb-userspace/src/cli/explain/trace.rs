//! What becomes of one frame, step by step: pure, over any [`Tables`].
//!
//! Every decision is `lb_core`'s own, the code that runs in the kernel; this file only writes down what it said.

use std::net::{IpAddr, Ipv6Addr};

use lb_core::{
    abi::{
        backend,
        flow::{self, Record},
        ring::{Extent, Inputs, Slot as Word, State},
        service,
    },
    flow as flows, hash, host,
    parse::{self, Packet, Part, Transport},
    reason::{Class, Reason},
    rewrite::{self, Egress, Exit},
    select::{self, Verdict},
    tables::Tables,
};
use serde::Serialize;

use super::{
    layers::{Change, changes, summary},
    watched::{Asked, Watched},
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
    /// What the flow table holds of the packet's flow; `None` for what is no flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<Flow>,
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
    pub length: usize,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Slot {
    /// Its index.
    pub index: u32,
    /// Slots of the ring.
    pub of: u32,
    /// `settled`, `announced`, `moving` or `residual`.
    pub state: &'static str,
    /// Whether every flow is recorded.
    pub tracked: bool,
    /// The backend that the ring gives new flows, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// The backend that has the flows which nobody recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A flow in the flow table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// Whether the decision asked the table: not where the slot is settled and the backend up.
    pub looked_up: bool,
    /// Another CPU was just writing its record.
    pub busy: bool,
    /// Its record, before this packet changed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<Recorded>,
}

/// A record of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// The backend by name.
    pub backend: String,
    /// Its id.
    pub backend_id: u32,
    /// Whether that backend takes its packets: not if it is down or gone.
    pub backend_lives: bool,
    /// Slot that the flow had when it was recorded.
    pub slot: u32,
    /// `half_open`, `established`, `closing` or `once`.
    pub state: &'static str,
    /// Seconds until it expires.
    pub left_s: u32,
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
    // Decided once, as what a decision records is found by the next: the long way, whose decisions are those of the short one.
    tables.take_backend();
    let held = parse.is_ok().then(|| held(tables, &packet)).flatten();
    tables.take_asked();
    tables.take_turn();
    let decided = parse.and_then(|()| select::any(&packet, tables, &mut verdict));
    let asked = tables.take_backend();
    let request = tables.take_asked();
    let turn = tables.take_turn();
    let exit = match decided {
        Ok(()) => rewrite::apply(&mut edited, &packet, &verdict, tables),
        Err(reason) => Exit::new(reason, Egress::default()),
    };
    let reason = exit.reason();
    let mut out = Trace {
        number: None,
        packet: summary(frame),
        bytes: frame.len(),
        parsed: parse.is_ok().then(|| parsed(&packet)),
        service: None,
        slot: None,
        flow: None,
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
            out.slot = match &request {
                Some(asked) => Some(unsettled(tables, asked)),
                None => choice.slot.and_then(|index| settled(tables, choice.service, index, choice.backend)),
            };
            out.backend = backend(tables, choice.backend);
        }
        (Ok(()), Verdict::Reply { backend: id }) => {
            out.service = tables.backend(id).and_then(|b| service(tables, b.service, &name));
            out.backend = backend(tables, id);
        }
        // The verdict is silent about whom: a backend that cannot be sent to, one that is reset for, a flow that is refused.
        (Err(Reason::BackendUnresolved | Reason::BackendInvalid | Reason::SynRefused), _)
        | (Ok(()), Verdict::Reset) => {
            out.backend = asked.and_then(|id| backend(tables, id));
            let id = request.map(|asked| asked.request.service).or_else(|| Some(tables.backend(asked?)?.service));
            out.service = id.and_then(|id| service(tables, id, &name));
            out.slot = match &request {
                Some(asked) => Some(unsettled(tables, asked)),
                None => out.service.as_ref().and_then(|s| slot(tables, s.id, &packet, asked)),
            };
        }
        (Ok(()), Verdict::Echo) | (Err(_), _) => {}
    }
    if out.slot.is_some() {
        let (word, now_s) = request.map(|asked| (asked.word, asked.now_s)).or(held).unwrap_or_default();
        let record = flow::is_record(word).then(|| recorded(tables, Record::unpack(word), now_s));
        out.flow = Some(Flow { looked_up: request.is_some(), busy: word == flow::BUSY, record });
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
    if turn {
        out.note =
            Some("each CPU takes turns of its own: this is whom the first one would choose for a new flow now".into());
    }
    out
}

/// The word that the flow table holds for a packet's own flow, and the program's clock.
fn held<T: Tables>(tables: &Watched<'_, T>, packet: &Packet) -> Option<(u64, u32)> {
    let node = tables.node().filter(|_| packet.transport == Transport::Flow)?;
    let hash = select::flow_hash(node, &packet.addresses, packet.ports, packet.proto);
    let now_s = flows::now_s(tables, node);
    Some((flows::table::find(tables, hash, node.flow_mask, now_s), now_s))
}

fn recorded<T: Tables>(tables: &T, record: Record, now_s: u32) -> Recorded {
    let entry = backend(tables, record.backend);
    let flags = tables.backend(record.backend).map_or(0, |entry| tables.load_u32(&entry.flags));
    Recorded {
        backend: entry.map_or_else(|| "unknown".into(), |b| b.name),
        backend_id: record.backend,
        backend_lives: flags & (backend::FLAG_VALID | backend::FLAG_DOWN) == backend::FLAG_VALID,
        slot: record.slot,
        state: record.state.name(),
        left_s: record.left_s(now_s),
    }
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Settled => "settled",
        State::Announced => "announced",
        State::Moving => "moving",
        State::Residual => "residual",
    }
}

/// The slot of a request to the flow table.
fn unsettled<T: Tables>(tables: &T, asked: &Asked) -> Slot {
    let (request, word) = (&asked.request, Word(asked.request.word));
    let named = |id: u32| backend(tables, id).map(|b| b.name);
    Slot {
        index: request.slot,
        of: Extent::unpack(request.ring).slots,
        state: state_word(word.state()),
        tracked: word.tracked(),
        current: named(word.current()),
        owner: named(flows::owner(tables, request)),
    }
}

/// A slot that the ring alone decides.
fn settled<T: Tables>(tables: &T, service: u32, index: u32, current: u32) -> Option<Slot> {
    let of = Extent::unpack(tables.load_u64(&tables.service(service)?.ring)).slots;
    let named = backend(tables, current).map(|b| b.name);
    Some(Slot { index, of, state: state_word(State::Settled), tracked: false, current: named.clone(), owner: named })
}

/// The slot of a packet's own flow, which the ring alone decided for backend `current`.
fn slot<T: Tables>(tables: &T, service: u32, packet: &Packet, current: Option<u32>) -> Option<Slot> {
    let word = tables.load_u64(&tables.service(service)?.ring);
    let (node, ring) = (tables.node()?, Extent::unpack(word));
    let bits = match Inputs::unpack(word) {
        Inputs::Tuple => hash::slot_bits(select::flow_hash(node, &packet.addresses, packet.ports, packet.proto)),
        Inputs::Source => hash::slot_bits(hash::source(&node.hash_key, packet.addresses.src)),
    };
    let flow = packet.transport == Transport::Flow && ring.slots > 0;
    flow.then(|| settled(tables, service, ring.slot_of(bits), current.unwrap_or(0))).flatten()
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
