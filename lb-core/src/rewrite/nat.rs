//! `nat`: destination to the backend's on the way in, source back to the VIP's on the way out, without state.
//!
//! Checksums are updated incrementally (RFC 1624). Of later fragments only the address changes, as the first one
//! carries ports and checksum. In an ICMP error the quoted packet is translated with the outer one, on its other side,
//! checksums included as far as they are quoted.

use crate::{
    abi::{backend::Backend, service::Service},
    packet::PacketEdit,
    parse::{Addresses, Family, Packet, Part, Transport},
    reason::Reason,
    wire::{
        be16, be32,
        checksum::{change16, change32, update, update_udp},
        eth, icmp, ipv4, ipv6, transport,
    },
};

/// Which end of a packet changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

impl Side {
    #[inline(always)]
    const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// The address and port that take the place of others.
#[derive(Clone, Copy)]
struct End<'a> {
    side: Side,
    addr: &'a [u8; 16],
    /// 0 keeps the packet's.
    port: u16,
}

/// Translates the destination of a packet and sends it to the backend's next hop.
///
/// # Errors
/// [`Reason::BackendFamily`] if the backend's address is of the other family.
#[inline(always)]
pub fn to_backend<P: PacketEdit>(p: &mut P, packet: &Packet, backend: &Backend) -> Result<(), Reason> {
    let macs = super::macs(backend);
    let end = End { side: Side::Destination, addr: &backend.addr, port: backend.port };
    translate(p, packet, end)?;
    p.put(eth::MACS, macs).ok_or(Reason::RewriteFailed)
}

/// Translates the source of a backend's reply; gives `done`, or the reason why it could not.
#[inline(never)]
pub fn from_backend<P: PacketEdit>(p: &mut P, packet: &Packet, service: &Service, done: Reason) -> Reason {
    let end = End { side: Side::Source, addr: &service.addr, port: service.port };
    match translate(p, packet, end) {
        Ok(()) => done,
        Err(reason) => reason,
    }
}

#[inline(always)]
fn translate<P: PacketEdit>(p: &mut P, packet: &Packet, end: End<'_>) -> Result<(), Reason> {
    if super::is_v4(end.addr) != (packet.addresses.family == Family::V4) {
        return Err(Reason::BackendFamily);
    }
    let done = match (packet.transport, packet.part) {
        (_, Part::Later) => address(p, &packet.addresses, eth::LEN, end).map(|_| ()),
        (Transport::Error, _) => error(p, packet, &end),
        _ => flow(p, packet, end),
    };
    done.ok_or(Reason::RewriteFailed)
}

/// Replaces an address of the IP header at offset `l3`; gives what that adds to checksums over a pseudo header.
#[inline(always)]
fn address<P: PacketEdit>(p: &mut P, addresses: &Addresses, l3: usize, end: End<'_>) -> Option<u64> {
    match addresses.family {
        Family::V4 => {
            let (old, at) = match end.side {
                Side::Source => (addresses.src[3], l3 + ipv4::SRC),
                Side::Destination => (addresses.dst[3], l3 + ipv4::DST),
            };
            let new = be32(end.addr, 12);
            let changes = change32(old, new);
            let check = u16::from_be_bytes(p.bytes_at(l3 + ipv4::CHECKSUM)?);
            p.put_at(l3 + ipv4::CHECKSUM, update(check, changes).to_be_bytes())?;
            p.put_at(at, new.to_be_bytes())?;
            Some(changes)
        }
        Family::V6 => {
            let (old, at) = match end.side {
                Side::Source => (addresses.src, l3 + ipv6::SRC),
                Side::Destination => (addresses.dst, l3 + ipv6::DST),
            };
            let new = ipv6::words(end.addr, 0);
            p.put_at(at, *end.addr)?;
            Some(
                change32(old[0], new[0])
                    + change32(old[1], new[1])
                    + change32(old[2], new[2])
                    + change32(old[3], new[3]),
            )
        }
    }
}

/// Replaces a port at offset `l4` and gives what that adds to checksums.
#[inline(always)]
fn port<P: PacketEdit>(p: &mut P, ports: u32, l4: usize, end: End<'_>) -> Option<u64> {
    if end.port == 0 {
        return Some(0);
    }
    let (old, at) = match end.side {
        Side::Source => ((ports >> 16) as u16, l4 + transport::SRC_PORT),
        Side::Destination => (ports as u16, l4 + transport::DST_PORT),
    };
    p.put_at(at, end.port.to_be_bytes())?;
    Some(change16(old, end.port))
}

#[inline(always)]
fn flow<P: PacketEdit>(p: &mut P, packet: &Packet, end: End<'_>) -> Option<()> {
    let changes = address(p, &packet.addresses, eth::LEN, end)? + port(p, packet.ports, packet.l4, end)?;
    if packet.proto == ipv4::PROTO_TCP {
        let at = packet.l4 + transport::TCP_CHECKSUM;
        let check = u16::from_be_bytes(p.bytes_at(at)?);
        p.put_at(at, update(check, changes).to_be_bytes())
    } else {
        let at = packet.l4 + transport::UDP_CHECKSUM;
        let check = u16::from_be_bytes(p.bytes_at(at)?);
        p.put_at(at, update_udp(check, changes).to_be_bytes())
    }
}

/// Translates an ICMP error and the packet that it quotes.
#[inline(never)]
fn error<P: PacketEdit>(p: &mut P, packet: &Packet, end: &End<'_>) -> Option<()> {
    let quoted = &packet.quoted;
    let inner = End { side: end.side.other(), ..*end };
    let outer_changes = address(p, &packet.addresses, eth::LEN, *end)?;

    // Every change inside is under the ICMP checksum, changes of checksums among them.
    let v4 = quoted.addresses.family == Family::V4;
    let old_ip_check = p.bytes_at::<2>(quoted.l3 + ipv4::CHECKSUM)?;
    let address_changes = address(p, &quoted.addresses, quoted.l3, inner)?;
    let new_ip_check = p.bytes_at::<2>(quoted.l3 + ipv4::CHECKSUM)?;
    let port_changes = port(p, quoted.ports, quoted.l4, inner)?;
    let changes = address_changes + port_changes;
    let mut icmp_changes = changes;
    if v4 {
        icmp_changes += change16(be16(&old_ip_check, 0), be16(&new_ip_check, 0));
    }
    if quoted.proto == ipv4::PROTO_UDP {
        let at = quoted.l4 + transport::UDP_CHECKSUM;
        let old = u16::from_be_bytes(p.bytes_at(at)?);
        let new = update_udp(old, changes);
        p.put_at(at, new.to_be_bytes())?;
        icmp_changes += change16(old, new);
    } else if quoted.l4 + transport::TCP_CHECKSUM + 2 <= eth::LEN + packet.len {
        let at = quoted.l4 + transport::TCP_CHECKSUM;
        let old = u16::from_be_bytes(p.bytes_at(at)?);
        let new = update(old, changes);
        p.put_at(at, new.to_be_bytes())?;
        icmp_changes += change16(old, new);
    }
    if !v4 {
        icmp_changes += outer_changes;
    }
    let at = packet.l4 + icmp::CHECKSUM;
    let check = u16::from_be_bytes(p.bytes_at(at)?);
    p.put_at(at, update(check, icmp_changes).to_be_bytes())
}
