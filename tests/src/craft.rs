//! Packets made from parts, for fixtures and for the oracle.
//!
//! Owns: serialising headers with correct lengths and checksums, written from the RFCs and without `lb_core`, so that a
//! mistake there cannot hide behind the same mistake here. Refuses to know: services, verdicts, maps.

/// Full Internet checksum (RFC 1071) over `parts`, each padded to 16 bits only at the very end.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An Ethernet header.
pub fn ethernet(dst: [u8; 6], src: [u8; 6], ethertype: u16) -> Vec<u8> {
    [&dst[..], &src[..], &ethertype.to_be_bytes()].concat()
}

/// What an IPv4 header says beside its addresses.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    /// Source.
    pub src: [u8; 4],
    /// Destination.
    pub dst: [u8; 4],
    /// Type of service.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Don't fragment.
    pub df: bool,
    /// More fragments.
    pub mf: bool,
    /// Fragment offset in units of 8 bytes.
    pub offset: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol number.
    pub proto: u8,
    /// Options, a multiple of 4 bytes, at most 40.
    pub options: Vec<u8>,
}

impl Ipv4 {
    /// A plain header.
    pub fn new(src: [u8; 4], dst: [u8; 4], proto: u8) -> Self {
        Self { src, dst, tos: 0, id: 1, df: true, mf: false, offset: 0, ttl: 64, proto, options: Vec::new() }
    }

    /// Header and payload.
    pub fn emit(&self, payload: &[u8]) -> Vec<u8> {
        let ihl = 5 + self.options.len() / 4;
        let total = (ihl * 4 + payload.len()) as u16;
        let flags = u16::from(self.df) << 14 | u16::from(self.mf) << 13 | (self.offset & 0x1fff);
        let mut header = vec![0x40 | ihl as u8, self.tos];
        header.extend(total.to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend([self.ttl, self.proto, 0, 0]);
        header.extend(self.src);
        header.extend(self.dst);
        header.extend(&self.options);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(payload);
        header
    }

    /// The pseudo header of a transport checksum.
    pub fn pseudo(&self, len: usize) -> Vec<u8> {
        [&self.src[..], &self.dst[..], &[0, self.proto], &(len as u16).to_be_bytes()].concat()
    }
}

/// What an IPv6 header says beside its addresses.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    /// Source.
    pub src: [u8; 16],
    /// Destination.
    pub dst: [u8; 16],
    /// Traffic class.
    pub class: u8,
    /// Flow label.
    pub label: u32,
    /// Hop limit.
    pub hops: u8,
    /// Protocol number of the transport header, behind all extension headers.
    pub proto: u8,
    /// Extension headers in order: (protocol number, bytes whose first byte, the next header, is filled in here).
    pub extensions: Vec<(u8, Vec<u8>)>,
}

impl Ipv6 {
    /// A plain header.
    pub fn new(src: [u8; 16], dst: [u8; 16], proto: u8) -> Self {
        Self { src, dst, class: 0, label: 0, hops: 64, proto, extensions: Vec::new() }
    }

    /// Header, extension headers and payload.
    pub fn emit(&self, payload: &[u8]) -> Vec<u8> {
        let mut rest = Vec::new();
        for (i, (_, bytes)) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(i + 1).map_or(self.proto, |(number, _)| *number);
            let at = rest.len();
            rest.extend(bytes);
            rest[at] = next;
        }
        rest.extend(payload);
        let first = self.extensions.first().map_or(self.proto, |(number, _)| *number);
        let word = 6u32 << 28 | u32::from(self.class) << 20 | (self.label & 0xf_ffff);
        let mut header = word.to_be_bytes().to_vec();
        header.extend((rest.len() as u16).to_be_bytes());
        header.extend([first, self.hops]);
        header.extend(self.src);
        header.extend(self.dst);
        header.extend(rest);
        header
    }

    /// The pseudo header of a transport checksum.
    pub fn pseudo(&self, len: usize) -> Vec<u8> {
        [&self.src[..], &self.dst[..], &(len as u32).to_be_bytes(), &[0, 0, 0, self.proto]].concat()
    }

    /// A hop-by-hop or destination-options header of `8 * (1 + extra)` bytes, filled with PadN.
    pub fn options(number: u8, extra: u8) -> (u8, Vec<u8>) {
        let mut bytes = vec![0; 8 * (1 + usize::from(extra))];
        bytes[1] = extra;
        bytes[2] = 1;
        bytes[3] = (bytes.len() - 4) as u8;
        (number, bytes)
    }

    /// A fragment header; `offset` in units of 8 bytes.
    pub fn fragment(offset: u16, more: bool, id: u32) -> (u8, Vec<u8>) {
        let mut bytes = vec![0, 0];
        bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
        bytes.extend(id.to_be_bytes());
        (44, bytes)
    }
}

/// TCP flags.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Resets one.
    pub const RST: u8 = 4;
    /// Acknowledges.
    pub const ACK: u8 = 16;
}

/// A TCP segment with the checksum for `pseudo`, a function from its length to the pseudo header.
pub fn tcp(sport: u16, dport: u16, flags: u8, payload: &[u8], pseudo: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(sport.to_be_bytes());
    segment.extend(dport.to_be_bytes());
    segment.extend(0x0102_0304u32.to_be_bytes());
    segment.extend(if flags & flag::ACK == 0 { 0u32 } else { 0x0506_0708 }.to_be_bytes());
    segment.extend([0x50, flags, 0x20, 0x00, 0, 0, 0, 0]);
    segment.extend(payload);
    let sum = checksum(&[&pseudo(segment.len()), &segment]);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// A UDP datagram; `pseudo` as in [`tcp`], or `None` for checksum 0, which IPv4 allows.
pub fn udp(sport: u16, dport: u16, payload: &[u8], pseudo: Option<&dyn Fn(usize) -> Vec<u8>>) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(sport.to_be_bytes());
    datagram.extend(dport.to_be_bytes());
    datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    if let Some(pseudo) = pseudo {
        let sum = match checksum(&[&pseudo(datagram.len()), &datagram]) {
            0 => 0xffff,
            sum => sum,
        };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    datagram
}

/// An ICMP or ICMPv6 message: `rest` is the second header word; `pseudo` is `None` for ICMP.
pub fn icmp(kind: u8, code: u8, rest: [u8; 4], payload: &[u8], pseudo: Option<&dyn Fn(usize) -> Vec<u8>>) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    message.extend(payload);
    let head = pseudo.map(|pseudo| pseudo(message.len())).unwrap_or_default();
    let sum = checksum(&[&head, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The first thing wrong with the lengths and checksums of an Ethernet frame that holds IP, all the way into tunnels;
/// `None` when everything holds. A UDP checksum of 0 is accepted over IPv4.
pub fn wrong(frame: &[u8]) -> Option<String> {
    match frame.get(12..14)? {
        [0x08, 0x00] => wrong_ip(&frame[14..], 4),
        [0x86, 0xdd] => wrong_ip(&frame[14..], 41),
        _ => None,
    }
}

fn wrong_ip(packet: &[u8], kind: u8) -> Option<String> {
    if kind == 4 {
        let ihl = usize::from(packet.first()? & 15) * 4;
        let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        if ihl < 20 || total < ihl || packet.len() < total {
            return Some(format!("IPv4 lengths: ihl {ihl}, total {total}, present {}", packet.len()));
        }
        if checksum(&[&packet[..ihl]]) != 0 {
            return Some("IPv4 header checksum".into());
        }
        let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
        let body = &packet[ihl..total];
        let pseudo = [&packet[12..20], &[0, packet[9]], &(body.len() as u16).to_be_bytes()].concat();
        if fragment { None } else { wrong_transport(packet[9], body, &pseudo, true) }
    } else {
        let len = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
        if packet.len() < 40 + len {
            return Some(format!("IPv6 length: payload {len}, present {}", packet.len().saturating_sub(40)));
        }
        let (mut proto, mut at) = (packet[6], 40);
        while matches!(proto, 0 | 43 | 60) && at + 8 <= 40 + len {
            let size = 8 * (1 + usize::from(packet[at + 1]));
            proto = packet[at];
            at += size;
        }
        if proto == 44 || at > 40 + len {
            return None;
        }
        let body = &packet[at..40 + len];
        let pseudo = [&packet[8..40], &(body.len() as u32).to_be_bytes(), &[0, 0, 0, proto]].concat();
        wrong_transport(proto, body, &pseudo, false)
    }
}

fn wrong_transport(proto: u8, body: &[u8], pseudo: &[u8], v4: bool) -> Option<String> {
    let name = match proto {
        4 | 41 => return wrong_ip(body, proto),
        1 => return (checksum(&[body]) != 0).then(|| "ICMP checksum".into()),
        6 => "TCP checksum",
        17 if v4 && body.get(6..8) == Some(&[0, 0]) => return None,
        17 => "UDP checksum",
        58 => "ICMPv6 checksum",
        _ => return None,
    };
    (checksum(&[pseudo, body]) != 0).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1071_example() {
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn what_is_made_is_right_and_one_flipped_bit_is_not() {
        let v4 = Ipv4::new([192, 0, 2, 1], [203, 0, 113, 1], 6);
        let v6 = Ipv6::new([1; 16], [2; 16], 17);
        let frames = [
            [ethernet([1; 6], [2; 6], 0x0800), v4.emit(&tcp(1, 2, flag::SYN, b"odd", |n| v4.pseudo(n)))].concat(),
            [ethernet([1; 6], [2; 6], 0x86dd), v6.emit(&udp(1, 2, b"even", Some(&|n| v6.pseudo(n))))].concat(),
        ];
        for frame in frames {
            assert_eq!(wrong(&frame), None);
            let mut broken = frame.clone();
            *broken.last_mut().unwrap() ^= 1;
            assert!(wrong(&broken).is_some());
        }
    }
}
