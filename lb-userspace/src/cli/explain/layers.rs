//! A frame as named fields, and what differs between two frames.
//!
//! Only shows; it decides nothing, so it is forgiving: a header that is cut off is left out.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

/// Headers that are followed; a tunnel in a tunnel has four.
const LAYERS_MAX: usize = 6;

/// A header with its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layer {
    name: &'static str,
    fields: Vec<(&'static str, String)>,
}

/// A field that differs. `before` is missing in a header that was added, `after` in one that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `ethernet.destination`, `ipv4.source` ...
    pub field: String,
    /// Value before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// Value after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// What differs between a frame before and after, outermost header first.
pub fn changes(before: &[u8], after: &[u8]) -> Vec<Change> {
    let (before, after) = (layers(before), layers(after));
    let mut out = Vec::new();
    // Ethernet meets Ethernet; behind it the innermost headers belong together, so a tunnel's header is the one left over.
    let skip_before = before.len().saturating_sub(after.len());
    let skip_after = after.len().saturating_sub(before.len());
    compare(&mut out, before.first(), after.first());
    for layer in before.iter().skip(1).take(skip_before) {
        compare(&mut out, Some(layer), None);
    }
    for layer in after.iter().skip(1).take(skip_after) {
        compare(&mut out, None, Some(layer));
    }
    for (old, new) in before.iter().skip(1 + skip_before).zip(after.iter().skip(1 + skip_after)) {
        if old.name == new.name {
            compare(&mut out, Some(old), Some(new));
        } else {
            compare(&mut out, Some(old), None);
            compare(&mut out, None, Some(new));
        }
    }
    out
}

fn compare(out: &mut Vec<Change>, before: Option<&Layer>, after: Option<&Layer>) {
    let value = |layer: Option<&Layer>, field: &str| {
        layer.and_then(|l| l.fields.iter().find(|(name, _)| *name == field)).map(|(_, value)| value.clone())
    };
    let Some(shown) = after.or(before) else { return };
    for (field, _) in &shown.fields {
        let (old, new) = (value(before, field), value(after, field));
        if old != new {
            out.push(Change { field: format!("{}.{field}", shown.name), before: old, after: new });
        }
    }
}

/// One line per frame: `tcp 192.0.2.7:40000 -> 203.0.113.1:80`.
pub fn summary(frame: &[u8]) -> String {
    let layers = layers(frame);
    let field = |layer: &Layer, name: &str| {
        layer.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let Some(ip) = layers.iter().find(|l| l.name.starts_with("ip")) else {
        return format!("frame of {} bytes, neither IPv4 nor IPv6", frame.len());
    };
    let (source, destination) = (field(ip, "source"), field(ip, "destination"));
    match layers.last() {
        Some(l) if l.name == "tcp" || l.name == "udp" => {
            let bracket = |address: String| if address.contains(':') { format!("[{address}]") } else { address };
            let (from, to) = (field(l, "source_port"), field(l, "destination_port"));
            format!("{} {}:{from} -> {}:{to}", l.name, bracket(source), bracket(destination))
        }
        Some(l) if l.name == "icmp" => format!("icmp type {} {source} -> {destination}", field(l, "type")),
        _ => format!("{} protocol {} {source} -> {destination}", ip.name, field(ip, "protocol")),
    }
}

fn layers(frame: &[u8]) -> Vec<Layer> {
    let mut out = Vec::new();
    let Some(head) = frame.first_chunk::<14>() else { return out };
    let mac = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let ether_type = u16::from_be_bytes([head[12], head[13]]);
    out.push(Layer {
        name: "ethernet",
        fields: vec![
            ("destination", mac(&head[..6])),
            ("source", mac(&head[6..12])),
            ("type", format!("{ether_type:#06x}")),
        ],
    });
    // Numbers of IPv4 and IPv6 as payload of IP, so that the walk has one kind of name for what follows.
    let mut next = match ether_type {
        0x0800 => 4,
        0x86dd => 41,
        _ => return out,
    };
    let mut at = 14;
    while out.len() < LAYERS_MAX {
        let rest = frame.get(at..).unwrap_or_default();
        let Some((layer, len, following)) = layer(next, rest) else { break };
        out.push(layer);
        at += len;
        match following {
            Some(following) => next = following,
            None => break,
        }
    }
    out
}

/// The header with protocol number `number` in front of `bytes`, its length and what follows.
fn layer(number: u8, bytes: &[u8]) -> Option<(Layer, usize, Option<u8>)> {
    let be16 = |at: usize| bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    let hex = |at: usize| be16(at).map(|v| format!("{v:#06x}"));
    let number16 = |at: usize| be16(at).map(|v| v.to_string());
    Some(match number {
        4 => {
            let head = bytes.first_chunk::<20>()?;
            let len = usize::from(head[0] & 0x0f) * 4;
            let later = u16::from_be_bytes([head[6], head[7]]) & 0x1fff != 0;
            let fields = vec![
                ("source", Ipv4Addr::new(head[12], head[13], head[14], head[15]).to_string()),
                ("destination", Ipv4Addr::new(head[16], head[17], head[18], head[19]).to_string()),
                ("protocol", head[9].to_string()),
                ("total_length", number16(2)?),
                ("tos", format!("{:#04x}", head[1])),
                ("ttl", head[8].to_string()),
                ("fragment", hex(6)?),
                ("checksum", hex(10)?),
            ];
            (Layer { name: "ipv4", fields }, len.max(20), (!later).then_some(head[9]))
        }
        41 => {
            let head = bytes.first_chunk::<40>()?;
            let address =
                |at: usize| head.get(at..).and_then(<[u8]>::first_chunk::<16>).map(|b| Ipv6Addr::from(*b).to_string());
            let class = (u16::from_be_bytes([head[0], head[1]]) >> 4) & 0xff;
            let fields = vec![
                ("source", address(8)?),
                ("destination", address(24)?),
                ("protocol", head[6].to_string()),
                ("payload_length", number16(4)?),
                ("traffic_class", format!("{class:#04x}")),
                ("hop_limit", head[7].to_string()),
            ];
            (Layer { name: "ipv6", fields }, 40, Some(head[6]))
        }
        6 => {
            let fields = vec![
                ("source_port", number16(0)?),
                ("destination_port", number16(2)?),
                ("flags", format!("{:#04x}", bytes.get(13)?)),
                ("checksum", hex(16)?),
            ];
            (Layer { name: "tcp", fields }, 20, None)
        }
        17 => {
            let fields = vec![("source_port", number16(0)?), ("destination_port", number16(2)?), ("checksum", hex(6)?)];
            (Layer { name: "udp", fields }, 8, None)
        }
        1 | 58 => {
            let fields = vec![
                ("type", bytes.first()?.to_string()),
                ("code", bytes.get(1)?.to_string()),
                ("checksum", hex(2)?),
                ("mtu", number16(6)?),
            ];
            (Layer { name: "icmp", fields }, 8, None)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::explain::craft::{Protocol, Segment, frame};

    fn tcp() -> Vec<u8> {
        frame(Protocol::Tcp, "192.0.2.7:40000".parse().unwrap(), "203.0.113.1:80".parse().unwrap(), Segment::Syn)
            .unwrap()
    }

    #[test]
    fn a_frame_in_one_line() {
        assert_eq!(summary(&tcp()), "tcp 192.0.2.7:40000 -> 203.0.113.1:80");
        let udp =
            frame(Protocol::Udp, "[2001:db8::7]:1".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap(), Segment::Syn)
                .unwrap();
        assert_eq!(summary(&udp), "udp [2001:db8::7]:1 -> [2001:db8::1]:53");
        assert_eq!(summary(&[0; 20]), "frame of 20 bytes, neither IPv4 nor IPv6");
    }

    #[test]
    fn a_tunnel_shows_as_an_added_header() {
        let before = tcp();
        let outer =
            [&before[..14], &[0x45, 0, 0, 60, 0, 0, 0, 0, 64, 4, 0, 0, 198, 18, 1, 2, 10, 0, 0, 11][..], &before[14..]]
                .concat();
        let changes = changes(&before, &outer);
        let added: Vec<_> = changes.iter().filter(|c| c.before.is_none()).collect();
        assert_eq!(changes.len(), added.len(), "{changes:?}");
        assert_eq!(added[1].field, "ipv4.destination");
        assert_eq!(added[1].after.as_deref(), Some("10.0.0.11"));
    }

    #[test]
    fn changed_fields_have_both_values() {
        let before = tcp();
        let mut after = before.clone();
        after[0] = 0xaa;
        after[37] = 81;
        let changes = changes(&before, &after);
        let fields: Vec<_> = changes.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(fields, ["ethernet.destination", "tcp.destination_port"]);
        assert_eq!(changes[1].before.as_deref(), Some("80"));
        assert_eq!(changes[1].after.as_deref(), Some("81"));
    }

    #[test]
    fn every_cut_is_shown_as_far_as_it_goes() {
        let frame = tcp();
        for cut in 0..frame.len() {
            let _ = summary(&frame[..cut]);
            let _ = changes(&frame, &frame[..cut]);
        }
    }
}
