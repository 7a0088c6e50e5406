//! `weir explain`: what becomes of a packet, step by step, by the code that runs in the kernel over a copy of its maps.
//!
//! [`craft`] and [`capture`] make frames, [`trace`] follows one, [`layers`] shows what changed; this file asks and prints.

mod capture;
pub mod craft;
mod layers;
mod trace;
mod watched;

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use lb_core::{
    reason::Reason,
    tables::{NextHop, Route},
};

use self::{
    trace::{Flow, Service, Slot, Trace, trace},
    watched::Watched,
};
use super::{
    exit::{Exit, Failure},
    service::endpoint,
    shell::{Format, Shell, block_on, json},
    table::{Cell, Column, Tone, block, table},
    unit,
};
use crate::{
    dataplane::{live::LiveTables, pin::Pins},
    net::{Cause, Resolution, Resolver},
};

/// Folder of the pins unless the agent says otherwise.
const PIN_DIR_DEFAULT: &str = "/sys/fs/bpf/weir";
/// Time that the kernel's route to a client may take to find.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(2);

/// `weir explain`.
#[derive(Args, Clone, Debug)]
pub struct Explain {
    /// Protocol of the packet
    #[arg(required_unless_present = "pcap", conflicts_with = "pcap", requires = "destination", value_name = "PROTO")]
    protocol: Option<craft::Protocol>,
    /// Where it comes from: 192.0.2.7:40000, [2001:db8::7]:40000
    #[arg(conflicts_with = "pcap", value_name = "SRC")]
    source: Option<craft::Endpoint>,
    /// Where it goes to: 203.0.113.1:80, [2001:db8::1]:80
    #[arg(conflicts_with = "pcap", value_name = "DST")]
    destination: Option<craft::Endpoint>,
    /// What a TCP segment says of its connection
    #[arg(long, value_enum, default_value_t, value_name = "FLAGS", conflicts_with = "pcap")]
    flags: craft::Segment,
    /// Packets of a capture (pcap or pcapng) instead: a line for each, or one in full
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Which packet of the capture, from 1
    #[arg(long, value_name = "N", requires = "pcap", value_parser = clap::value_parser!(u32).range(1..))]
    packet: Option<u32>,
    /// Folder of the pinned maps; the agent's unless given, /sys/fs/bpf/weir if no agent answers
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
}

/// Runs `weir explain`.
pub fn run(shell: &Shell, args: &Explain) -> anyhow::Result<()> {
    let traces = traces(shell, &frames(args)?, args.pin_dir.clone())?;
    match (traces.as_slice(), shell.format) {
        ([one], Format::Table) => shell.print(&render(one, shell.colour)),
        ([one], Format::Json) => shell.print(&json(one)?),
        (many, Format::Table) => shell.print(&list(many, shell.colour)),
        (many, Format::Json) => shell.print(&json(&many)?),
    }
}

/// The way of a packet that belongs to the established flow of a tuple.
pub fn of_flow(
    shell: &Shell,
    protocol: craft::Protocol,
    source: craft::Endpoint,
    destination: craft::Endpoint,
    pin_dir: Option<PathBuf>,
) -> anyhow::Result<Trace> {
    let bytes = craft::frame(protocol, source.0, destination.0, craft::Segment::Ack)
        .map_err(|message| Failure::new(Exit::Usage, message))?;
    let traces = traces(shell, &[(None, capture::Frame { wire_len: bytes.len(), bytes })], pin_dir)?;
    traces.into_iter().next().ok_or_else(|| Failure::new(Exit::Failure, "the packet left no trace").into())
}

/// The ways of frames through the pinned maps.
fn traces(
    shell: &Shell,
    frames: &[(Option<usize>, capture::Frame)],
    pin_dir: Option<PathBuf>,
) -> anyhow::Result<Vec<Trace>> {
    // An agent helps with names and the folder of the pins, but explaining must work without.
    let status = shell.ask(async |client| Ok(client.status().await.ok()))?;
    let services = match &status {
        Some(_) => shell.ask(async |client| Ok(client.services().await.unwrap_or_default()))?,
        None => Vec::new(),
    };
    let names: HashMap<u32, String> = services.into_iter().map(|s| (s.id, s.name)).collect();
    let dir = pin_dir.or(status.map(|s| s.pin_dir.into())).unwrap_or_else(|| PIN_DIR_DEFAULT.into());
    let routes = RefCell::new(HashMap::new());
    let maps = open(&Pins::new(&dir), |route| routes.borrow().get(&route.dst).copied().unwrap_or(NextHop::NoRoute))?;
    let clients = frames.iter().filter_map(|(_, frame)| trace::reply_to(&frame.bytes, &maps)).collect();
    routes.replace(routes_to(&clients)?);
    let tables = Watched::new(&maps);
    let mut traces = Vec::new();
    for (number, frame) in frames {
        let mut trace = trace(&frame.bytes, &tables, |id| names.get(&id).cloned());
        trace.number = *number;
        trace.egress_interface = trace.egress_ifindex.and_then(interface_name);
        if frame.bytes.len() < frame.wire_len {
            trace.note = Some(format!(
                "the capture holds {} of {} bytes: capture whole packets (tcpdump -s 0), or lengths seem wrong",
                frame.bytes.len(),
                frame.wire_len
            ));
        }
        traces.push(trace);
    }
    Ok(traces)
}

/// The frames that are meant, with their numbers where they have one.
fn frames(args: &Explain) -> anyhow::Result<Vec<(Option<usize>, capture::Frame)>> {
    if let Some(path) = &args.pcap {
        let frames = capture::read(path)?;
        let count = frames.len();
        let mut numbered: Vec<_> = frames.into_iter().enumerate().map(|(i, frame)| (Some(i + 1), frame)).collect();
        if let Some(packet) = args.packet {
            numbered.retain(|(number, _)| *number == Some(packet as usize));
        }
        if numbered.is_empty() {
            let message = format!("{} has {count} packets, not the one asked for", path.display());
            return Err(Failure::new(Exit::Failure, message).into());
        }
        return Ok(numbered);
    }
    let (Some(protocol), Some(source), Some(destination)) = (args.protocol, args.source, args.destination) else {
        return Err(
            Failure::new(Exit::Usage, "a protocol, a source and a destination are needed, or --pcap FILE").into()
        );
    };
    let bytes = craft::frame(protocol, source.0, destination.0, args.flags)
        .map_err(|message| Failure::new(Exit::Usage, message))?;
    Ok(vec![(None, capture::Frame { wire_len: bytes.len(), bytes })])
}

/// The pinned maps, or what is missing.
fn open<F: Fn(&Route) -> NextHop>(pins: &Pins, route: F) -> anyhow::Result<LiveTables<F>> {
    let dir = pins.dir().display();
    if matches!(pins.map("NODE").try_exists(), Ok(false)) {
        let hint = "start the agent first, or name the folder of its pins with --pin-dir";
        return Err(Failure::new(Exit::Failure, format!("no data plane is loaded: nothing is pinned below {dir}"))
            .hint(hint)
            .into());
    }
    LiveTables::open(pins, route).map_err(|error| {
        let message = format!("cannot read the maps below {dir}: {error}");
        Failure::new(Exit::Failure, message).hint("run this as root, with the release that the agent runs").into()
    })
}

/// Asks the kernel for the ways to the clients of replies, which the program asks for at each packet; by 16-byte form.
fn routes_to(clients: &BTreeSet<IpAddr>) -> anyhow::Result<HashMap<[u8; 16], NextHop>> {
    if clients.is_empty() {
        return Ok(HashMap::new());
    }
    let found = block_on(async {
        let resolver = Resolver::start()?;
        let mut table = resolver.table();
        resolver.set_destinations(clients.clone());
        // What has not settled when the time is up is taken as it is then.
        let _ =
            tokio::time::timeout(ROUTE_TIMEOUT, table.wait_for(|t| clients.iter().all(|c| settled(t.get(c))))).await;
        let found = table.borrow().clone();
        Ok(found)
    })?;
    let octets = |client: &IpAddr| match client {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    Ok(clients.iter().filter_map(|c| Some((octets(c), next_hop(found.get(c)?)))).collect())
}

fn settled(resolution: Option<&Resolution>) -> bool {
    !matches!(resolution, None | Some(Resolution::Unresolved(Cause::Pending | Cause::NeighbourIncomplete { .. })))
}

/// A resolution in the words of the program's route lookup.
fn next_hop(resolution: &Resolution) -> NextHop {
    match resolution {
        Resolution::Resolved { next_hop, .. } => {
            let mut macs = [0; 12];
            for (to, from) in macs.iter_mut().zip(next_hop.dst_mac.iter().chain(&next_hop.src_mac)) {
                *to = *from;
            }
            NextHop::Resolved { ifindex: next_hop.ifindex, macs }
        }
        Resolution::Unresolved(Cause::NeighbourIncomplete { .. } | Cause::NeighbourFailed { .. } | Cause::Pending) => {
            NextHop::NoNeighbour
        }
        Resolution::Unresolved(Cause::NotEthernet { .. }) => NextHop::Unsupported,
        Resolution::Unresolved(_) => NextHop::NoRoute,
    }
}

fn interface_name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok())
}

fn tone(trace: &Trace) -> Tone {
    match trace.action {
        "drop" => Tone::Bad,
        "pass" => Tone::Warn,
        _ => Tone::Good,
    }
}

/// `web (id 1): 203.0.113.1:80 protocol 6, ipip`.
fn service_cell(s: &Service) -> Cell {
    let name = s.name.as_deref().unwrap_or("service");
    format!("{name} (id {}): {} protocol {}, {}", s.id, endpoint(s.vip, s.port), s.protocol, s.forward).into()
}

/// `17 of 251, moving: new flows to 10.0.0.12:80, unrecorded ones stay with 10.0.0.11:80`.
fn slot_cell(slot: &Slot) -> Cell {
    let name = |backend: &Option<String>| backend.clone().unwrap_or_else(|| "nobody".into());
    let mut text = format!("{} of {}, {}", slot.index, slot.of, slot.state);
    if slot.tracked {
        text.push_str(", every flow recorded");
    }
    let (current, owner) = (name(&slot.current), name(&slot.owner));
    match slot.state {
        "settled" => text.push_str(&format!(": {current}")),
        "announced" => text.push_str(&format!(": still {owner}, next {current}")),
        "moving" => text.push_str(&format!(": new flows to {current}, unrecorded ones stay with {owner}")),
        _ => text.push_str(&format!(": {current} but for what is recorded")),
    }
    Cell::toned(text, if slot.state == "settled" { Tone::Plain } else { Tone::Warn })
}

/// What the flow table holds of a flow.
fn flow_cell(flow: &Flow) -> Cell {
    let unused = if flow.looked_up { "" } else { "; not looked up, the slot is settled" };
    match &flow.record {
        Some(r) => {
            let (state, left) = (r.state.replace('_', "-"), unit::duration(u64::from(r.left_s)));
            let dead = if r.backend_lives { "" } else { ", which is down or gone" };
            let tone = if r.backend_lives { Tone::Plain } else { Tone::Bad };
            Cell::toned(format!("recorded for {}{dead}: {state}, expires in {left}{unused}", r.backend), tone)
        }
        None if flow.busy => "its record is being written".into(),
        None => format!("not recorded{unused}").into(),
    }
}

/// One packet in full.
fn render(t: &Trace, colour: bool) -> String {
    let mut pairs: Vec<(&str, Cell)> = vec![("packet", format!("{}, {} bytes", t.packet, t.bytes).into())];
    pairs.push((
        "parse",
        match &t.parsed {
            Some(p) => format!("{}, protocol {}, {} bytes of IP, {}", p.kind, p.protocol, p.length, p.part).into(),
            None => Cell::toned("not followed", tone(t)),
        },
    ));
    pairs.extend(t.service.as_ref().map(|s| ("service", service_cell(s))));
    pairs.extend(t.slot.as_ref().map(|slot| ("slot", slot_cell(slot))));
    pairs.extend(t.flow.as_ref().map(|flow| ("flow", flow_cell(flow))));
    if let Some(b) = &t.backend {
        let health = if b.up { "up" } else { "down or not checked" };
        pairs.push(("backend", format!("{} (id {}), {health}", b.name, b.id).into()));
    }
    for (i, change) in t.changes.iter().enumerate() {
        let text = match (&change.before, &change.after) {
            (Some(before), Some(after)) => format!("{}  {before} -> {after}", change.field),
            (None, Some(after)) => format!("+ {}  {after}", change.field),
            (Some(before), None) => format!("- {}  {before}", change.field),
            (None, None) => continue,
        };
        pairs.push((if i == 0 { "rewrite" } else { "" }, text.into()));
    }
    if let (Some(b), true) = (&t.backend, t.action == "forward" || t.reason == Reason::BackendUnresolved.name()) {
        pairs.push(match &b.next_hop_mac {
            Some(mac) => ("next hop", format!("{mac}, MTU {}", b.mtu).into()),
            None => ("next hop", Cell::toned("unknown: `weir backend list` says why", Tone::Bad)),
        });
    }
    if let Some(index) = t.egress_ifindex {
        let name = t.egress_interface.as_deref().unwrap_or("interface that is gone");
        pairs.push(("egress", format!("{name} (index {index})").into()));
    }
    pairs.push(("result", Cell::toned(format!("{}, counted as {}", t.action, t.reason), tone(t))));
    pairs.push(("", t.help.into()));
    if let Some(note) = &t.note {
        pairs.push(("note", Cell::toned(note.as_str(), Tone::Warn)));
    }
    block(&pairs, colour)
}

/// What is known of one flow.
pub fn flow(t: &Trace, colour: bool) -> String {
    let mut pairs: Vec<(&str, Cell)> = vec![("flow", t.packet.as_str().into())];
    pairs.extend(t.service.as_ref().map(|s| ("service", service_cell(s))));
    pairs.extend(t.slot.as_ref().map(|slot| ("slot", slot_cell(slot))));
    pairs.extend(t.flow.as_ref().map(|flow| ("record", flow_cell(flow))));
    let goes = match &t.backend {
        Some(b) => format!("{}, {}", b.name, t.reason),
        None => t.reason.into(),
    };
    pairs.push(("goes to", Cell::toned(goes, tone(t))));
    block(&pairs, colour)
}

/// Many packets, a line each.
fn list(traces: &[Trace], colour: bool) -> String {
    let columns = [
        Column::Right("NUMBER"),
        Column::Left("PACKET"),
        Column::Left("SERVICE"),
        Column::Right("SLOT"),
        Column::Left("BACKEND"),
        Column::Left("ACTION"),
        Column::Left("REASON"),
    ];
    let dash = || "-".to_owned();
    let row = |t: &Trace| {
        let service = t.service.as_ref().map(|s| s.name.clone().unwrap_or_else(|| endpoint(s.vip, s.port)));
        vec![
            t.number.map_or_else(dash, |n| n.to_string()).into(),
            t.packet.as_str().into(),
            service.unwrap_or_else(dash).into(),
            t.slot.as_ref().map_or_else(dash, |s| s.index.to_string()).into(),
            t.backend.as_ref().map_or_else(dash, |b| b.name.clone()).into(),
            Cell::toned(t.action, tone(t)),
            t.reason.into(),
        ]
    };
    table(&columns, traces.iter().map(row).collect(), colour)
}

#[cfg(test)]
mod tests;
