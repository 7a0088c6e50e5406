//! The frame that a client would send for a tuple, as small as it gets and with right checksums.
//!
//! Written from the RFCs and not from `lb_core`: an error there shall not hide behind the same error here.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::ValueEnum;

/// What a tuple begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// A segment without payload, a SYN unless --flags says otherwise
    Tcp,
    /// A datagram without payload
    Udp,
}

/// An address with a port: `192.0.2.7:40000`, `[2001:db8::7]:40000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint(pub SocketAddr);

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            format!("{text:?} is not ADDRESS:PORT: 192.0.2.7:40000, or [2001:db8::7]:40000 with the brackets")
        })
    }
}

/// What a TCP segment says of its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Segment {
    /// It begins it
    #[default]
    Syn,
    /// It belongs to an established one
    Ack,
    /// It ends it
    Fin,
    /// It aborts it
    Rst,
}

impl Segment {
    /// Flags of the header (RFC 9293 section 3.1).
    const fn flags(self) -> u8 {
        match self {
            Self::Syn => 0x02,
            Self::Ack => 0x10,
            Self::Fin => 0x11,
            Self::Rst => 0x04,
        }
    }
}

/// The frame, or why there is none: both ends must be of one family. `flags` matter for TCP only.
pub fn frame(
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    flags: Segment,
) -> Result<Vec<u8>, String> {
    let payload = |pseudo: &[u8]| segment(protocol, source.port(), destination.port(), flags.flags(), pseudo);
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let length = segment_len(protocol);
            let payload = payload(&[&addresses[..], &[0, number], &length.to_be_bytes()].concat());
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            // Identification 0, do not fragment, 64 hops.
            header.extend([0, 0, 0x40, 0, 64, number, 0, 0]);
            header.extend(addresses);
            let checksum = checksum(&header);
            header.splice(10..12, checksum.to_be_bytes());
            frame.extend([0x08, 0x00]);
            frame.extend(header);
            frame.extend(payload);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = [from.octets(), to.octets()].concat();
            let length = segment_len(protocol);
            let payload = payload(&[&addresses[..], &[0, 0], &length.to_be_bytes(), &[0, 0, 0, number]].concat());
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([number, 64]);
            frame.extend(addresses);
            frame.extend(payload);
        }
        _ => return Err(format!("{source} and {destination} are of different families")),
    }
    Ok(frame)
}

fn segment_len(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 20,
        Protocol::Udp => 8,
    }
}

/// TCP segment without payload (RFC 9293 section 3.1) or empty datagram (RFC 768), checksummed over `pseudo` and itself.
fn segment(protocol: Protocol, source: u16, destination: u16, flags: u8, pseudo: &[u8]) -> Vec<u8> {
    let mut out = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    let checksum_at = match protocol {
        Protocol::Tcp => {
            // Sequence 1, acknowledgement 0, five words of header, flags, window 65535.
            out.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
            16
        }
        Protocol::Udp => {
            out.extend([0, 8, 0, 0]);
            6
        }
    };
    let sum = match checksum(&[pseudo, &out].concat()) {
        // In UDP, 0 would say that there is no checksum.
        0 if protocol == Protocol::Udp => 0xffff,
        sum => sum,
    };
    out.splice(checksum_at..checksum_at + 2, sum.to_be_bytes());
    out
}

/// The Internet checksum (RFC 1071) of bytes whose own checksum field is 0.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(protocol: Protocol, from: &str, to: &str) -> Vec<u8> {
        frame(protocol, from.parse().unwrap(), to.parse().unwrap(), Segment::Syn).unwrap()
    }

    #[test]
    fn an_ipv4_header_sums_to_zero() {
        let frame = make(Protocol::Tcp, "192.0.2.7:40000", "203.0.113.1:80");
        assert_eq!(frame.len(), 54);
        assert_eq!(checksum(&frame[14..34]), 0);
        let pseudo = [&frame[26..34], &[0, 6, 0, 20]].concat();
        assert_eq!(checksum(&[&pseudo[..], &frame[34..]].concat()), 0);
        assert_eq!(frame[34..38], [0x9c, 0x40, 0, 80]);
        assert_eq!(frame[47], 0x02);
    }

    #[test]
    fn an_ipv6_datagram_sums_to_zero() {
        let frame = make(Protocol::Udp, "[2001:db8::7]:40000", "[2001:db8::1]:53");
        assert_eq!(frame.len(), 62);
        let pseudo = [&frame[22..54], &[0, 0, 0, 8, 0, 0, 0, 17]].concat();
        assert_eq!(checksum(&[&pseudo[..], &frame[54..]].concat()), 0);
    }

    #[test]
    fn families_must_agree_and_ports_be_given() {
        let from = "192.0.2.7:1".parse().unwrap();
        assert!(frame(Protocol::Tcp, from, "[::1]:80".parse().unwrap(), Segment::Syn).is_err());
        assert!(Endpoint::from_str("192.0.2.7").unwrap_err().contains("ADDRESS:PORT"));
    }
}
