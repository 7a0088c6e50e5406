//! Ethernet II: destination, source, EtherType.

use network_types::eth::{EthHdr, EtherType};

/// Bytes of the header; the IP header starts here.
pub const LEN: usize = EthHdr::LEN;
/// Offset of destination and source, 12 bytes.
pub const MACS: usize = 0;
/// Offset of the EtherType.
pub const TYPE: usize = 12;
/// EtherType of IPv4, host order.
pub const IPV4: u16 = u16::from_be(EtherType::Ipv4 as u16);
/// EtherType of IPv6, host order.
pub const IPV6: u16 = u16::from_be(EtherType::Ipv6 as u16);
/// EtherType of a VLAN tag (802.1Q), host order.
pub const VLAN: u16 = u16::from_be(EtherType::Ieee8021q as u16);
/// EtherType of a service VLAN tag (802.1ad), host order.
pub const SERVICE_VLAN: u16 = u16::from_be(EtherType::Ieee8021ad as u16);

/// Destination and source exchanged.
#[inline(always)]
pub const fn swap(macs: [u8; 12]) -> [u8; 12] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = macs;
    [g, h, i, j, k, l, a, b, c, d, e, f]
}
