//! Tunnel packets, built from the RFCs and independent of the code under test.

use std::net::IpAddr;

/// Congestion bits of the outer and the inner header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ecn {
    pub outer: u8,
    pub inner: u8,
}

pub const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

/// A UDP datagram with its IP header.
pub fn datagram(src: (IpAddr, u16), dst: (IpAddr, u16), ecn: u8, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut udp = Vec::new();
    udp.extend(src.1.to_be_bytes());
    udp.extend(dst.1.to_be_bytes());
    udp.extend(len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut sum = sum_of(&octets(src.0)) + sum_of(&octets(dst.0)) + 17 + u32::from(len) + sum_of(&udp);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    udp[6..8].copy_from_slice(&(!sum as u16).to_be_bytes());
    ip(src.0, dst.0, 17, ecn, &udp)
}

/// An Ethernet frame that carries `inner` in a tunnel from `src` to `dst`.
pub fn tunnel(src: IpAddr, dst: IpAddr, inner: &[u8], ecn: u8) -> Vec<u8> {
    let proto = if inner[0] >> 4 == 4 { 4 } else { 41 };
    ethernet(&ip(src, dst, proto, ecn, inner))
}

/// An Ethernet frame around an IP packet.
pub fn ethernet(packet: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAC_B);
    out.extend(MAC_A);
    out.extend(if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    out.extend(packet);
    out
}

fn ip(src: IpAddr, dst: IpAddr, proto: u8, ecn: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if src.is_ipv4() {
        out.extend([0x45, ecn]);
        out.extend((20 + payload.len() as u16).to_be_bytes());
        out.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
    } else {
        out.extend([0x60, ecn << 4, 0, 0]);
        out.extend((payload.len() as u16).to_be_bytes());
        out.extend([proto, 64]);
    }
    out.extend(octets(src));
    out.extend(octets(dst));
    if src.is_ipv4() {
        let mut sum = sum_of(&out);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        out[10..12].copy_from_slice(&(!sum as u16).to_be_bytes());
    }
    out.extend(payload);
    out
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn sum_of(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or_default()]))).sum()
}
