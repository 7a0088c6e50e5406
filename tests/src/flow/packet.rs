//! The packets of the clients. Refuses to know who sends them when.

use super::{
    place::FRAME,
    setup::{PORT, VIP},
};

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

/// A TCP segment without payload to the service.
pub fn frame(src: [u8; 4], source_port: u16, flags: u8) -> [u8; FRAME] {
    let mut p = [0u8; FRAME];
    p[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0]);
    p[14..26].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    p[26..30].copy_from_slice(&src);
    p[30..34].copy_from_slice(&VIP.octets());
    let sum: u32 = p[14..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    p[24..26].copy_from_slice(&checksum.to_be_bytes());
    p[34..36].copy_from_slice(&source_port.to_be_bytes());
    p[36..38].copy_from_slice(&PORT.to_be_bytes());
    (p[46], p[47]) = (0x50, flags);
    p
}
