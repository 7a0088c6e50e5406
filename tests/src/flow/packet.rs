//! The packets of the clients. Refuses to know who sends them when.

use std::net::IpAddr;

use lb_userspace::model::{Protocol, ServiceKey};

use super::place::FRAME;

/// TCP flags.
pub mod flag {
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Acknowledges.
    pub const ACK: u8 = 16;
    /// No more data.
    pub const FIN: u8 = 1;
    /// Resets.
    pub const RST: u8 = 4;
}

/// A segment or datagram without payload to a service, of the service's family. `client` is an IPv4 address, or the end of an IPv6
/// address; `flags` are those of TCP.
pub fn frame(service: &ServiceKey, client: [u8; 4], source_port: u16, flags: u8) -> Vec<u8> {
    let mut transport = [source_port.to_be_bytes(), service.port.to_be_bytes()].concat();
    match service.protocol {
        Protocol::Tcp => transport.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]),
        Protocol::Udp => transport.extend([0, 8, 0, 0]),
    }
    let (number, len) = (service.protocol.number(), transport.len() as u8);
    let mut p = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9];
    match service.vip {
        IpAddr::V4(vip) => {
            let mut header =
                [[0x45, 0, 0, 20 + len], [0, 0, 0x40, 0], [64, number, 0, 0], client, vip.octets()].concat();
            let sum: u32 = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
            let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            p.extend([8, 0]);
            p.extend(header);
        }
        IpAddr::V6(vip) => {
            p.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, len, number, 64]);
            p.extend([0x20, 1, 0xd, 0xb8, 0, 0x51, 0, 0, 0, 0, 0, 0]);
            p.extend(client);
            p.extend(vip.octets());
        }
    }
    p.extend(transport);
    p.resize(p.len().max(FRAME), 0);
    p
}
