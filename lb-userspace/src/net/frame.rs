//! The frames that tell a segment where a VIP lives.
//!
//! Pure: addresses in, bytes out. Sources: RFC 5227 section 3 (an ARP announcement is a request with sender and target
//! address equal), RFC 4861 section 7.2.6 (unsolicited neighbour advertisement to all nodes, override flag set).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use network_types::{
    arp::ArpHdr,
    eth::{EthHdr, EtherType},
};

/// All nodes of the segment, RFC 4291 section 2.7.1.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Group address that [`ALL_NODES`] maps to, RFC 2464 section 7.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const BROADCAST_MAC: [u8; 6] = [0xff; 6];
/// ICMPv6 type of a neighbour advertisement.
const ADVERTISEMENT: u8 = 136;
/// The override flag of an advertisement.
const OVERRIDE: u8 = 0x20;
/// Bytes of an advertisement with the target's link-layer address.
const ADVERTISEMENT_LEN: u8 = 32;
const ICMPV6: u8 = 58;

/// The announcement of `vip` at `mac`: gratuitous ARP or unsolicited neighbour advertisement.
pub fn announcement(vip: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match vip {
        IpAddr::V4(vip) => gratuitous_arp(vip, mac),
        IpAddr::V6(vip) => unsolicited_advertisement(vip, mac),
    }
}

fn gratuitous_arp(vip: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut arp = ArpHdr::new();
    arp.set_htype(1);
    arp.set_ptype(0x0800);
    arp.set_hlen(6);
    arp.set_plen(4);
    arp.set_oper(1);
    arp.set_sha(mac);
    arp.set_spa(vip.octets());
    arp.set_tpa(vip.octets());
    let mut frame = ethernet(BROADCAST_MAC, mac, EtherType::Arp);
    let ArpHdr { htype, ptype, hlen, plen, oper, sha, spa, tha, tpa } = arp;
    for field in [&htype[..], &ptype, &[hlen, plen], &oper, &sha, &spa, &tha, &tpa] {
        frame.extend_from_slice(field);
    }
    frame
}

fn unsolicited_advertisement(vip: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut icmp = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    icmp.extend_from_slice(&vip.octets());
    // Option 2, target link-layer address, in units of 8 bytes.
    icmp.extend_from_slice(&[2, 1]);
    icmp.extend_from_slice(&mac);
    let checksum = checksum(vip, ALL_NODES, &icmp);
    icmp.splice(2..4, checksum.to_be_bytes());

    let mut frame = ethernet(ALL_NODES_MAC, mac, EtherType::Ipv6);
    // Version 6; hop limit 255, without which receivers must ignore it.
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, ADVERTISEMENT_LEN, ICMPV6, 255]);
    frame.extend_from_slice(&vip.octets());
    frame.extend_from_slice(&ALL_NODES.octets());
    frame.extend_from_slice(&icmp);
    frame
}

fn ethernet(dst: [u8; 6], src: [u8; 6], ether_type: EtherType) -> Vec<u8> {
    let EthHdr { dst_addr, src_addr, ether_type } = EthHdr::new(dst, src, ether_type);
    // The field is in network order already: its bytes in memory are the bytes on the wire.
    [&dst_addr[..], &src_addr, &ether_type.to_ne_bytes()].concat()
}

/// ICMPv6 checksum over pseudo header and message (RFC 4443 section 2.3).
fn checksum(src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let pseudo = [&src.octets()[..], &dst.octets(), &length, &[0, 0, 0, ICMPV6], message].concat();
    let mut sum: u32 = pseudo
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0)]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];

    #[test]
    fn arp_announcement_byte_for_byte() {
        let want = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0xaa, 0x08, 0x06, // Ethernet
            0, 1, 8, 0, 6, 4, 0, 1, // ARP request for IPv4 over Ethernet
            2, 0, 0, 0, 0, 0xaa, 192, 0, 2, 1, // sender
            0, 0, 0, 0, 0, 0, 192, 0, 2, 1, // target
        ];
        assert_eq!(announcement("192.0.2.1".parse().expect("ip"), MAC), want);
    }

    #[test]
    fn advertisement_is_well_formed() {
        let vip: Ipv6Addr = "2001:db8::1".parse().expect("ip");
        let frame = announcement(vip.into(), MAC);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0xaa, 0x86, 0xdd]);
        assert_eq!(frame[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(frame[22..38], vip.octets());
        assert_eq!(frame[38..54], ALL_NODES.octets());
        assert_eq!((frame[54], frame[58]), (136, 0x20));
        assert_eq!(frame[62..78], vip.octets());
        assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 0xaa]);
        // The sum over a message with its checksum in place is all ones, so its complement is zero.
        assert_eq!(checksum(vip, ALL_NODES, &frame[54..]), 0);
        assert_ne!(frame[56..58], [0, 0]);
    }
}
