//! Packet to what the decisions need to know of it, or a reason to leave it.
//!
//! Two ways in: [`plain`] recognises unfragmented TCP and UDP without options or extension headers in a few compares and
//! says nothing about the rest; [`any`] explains every packet. Both agree where both answer. Malformed network headers
//! are refused at once; malformed transport headers are only noted, because they matter for VIPs alone.

use crate::{
    abi,
    packet::{OFFSET_MAX, PacketView},
    reason::Reason,
    wire::{be16, be32, eth, icmp, ipv4, ipv6, transport},
};

/// Source and destination of a packet, numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// Source.
        src: u32,
        /// Destination.
        dst: u32,
    },
    /// IPv6.
    V6 {
        /// Source.
        src: ipv6::Words,
        /// Destination.
        dst: ipv6::Words,
    },
}

impl Addresses {
    /// Source in the 16-byte form of the maps.
    #[inline(always)]
    pub const fn src(&self) -> [u8; 16] {
        match self {
            Self::V4 { src, .. } => abi::mapped(src.to_be_bytes()),
            Self::V6 { src, .. } => ipv6::octets(*src),
        }
    }

    /// Destination in the 16-byte form of the maps.
    #[inline(always)]
    pub const fn dst(&self) -> [u8; 16] {
        match self {
            Self::V4 { dst, .. } => abi::mapped(dst.to_be_bytes()),
            Self::V6 { dst, .. } => ipv6::octets(*dst),
        }
    }

    /// Source and destination exchanged.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        match self {
            Self::V4 { src, dst } => Self::V4 { src: dst, dst: src },
            Self::V6 { src, dst } => Self::V6 { src: dst, dst: src },
        }
    }
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, which carries the ports; with the identification.
    First(u32),
    /// A later fragment; with the identification.
    Later(u32),
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Its addresses: the source is whom the error is sent to.
    pub addresses: Addresses,
    /// 6 or 17.
    pub proto: u8,
    /// Its ports, source in the high half.
    pub ports: u32,
    /// Offset of its IP header in the frame.
    pub l3: usize,
    /// Offset of its transport header in the frame; at least 8 bytes of it are there.
    pub l4: usize,
}

/// What follows the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A well-formed TCP or UDP header.
    Flow,
    /// An ICMP error about a TCP or UDP packet.
    Error(Quoted),
    /// An ICMP error about something else, or about a later fragment.
    ErrorWithoutFlow,
    /// An unfragmented ICMP echo request.
    Echo,
    /// Anything else; also what later fragments carry.
    Other,
    /// Not what its protocol number promises.
    Malformed(Reason),
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source and destination.
    pub addresses: Addresses,
    /// IP protocol number of the transport header.
    pub proto: u8,
    /// Ports of [`Transport::Flow`], source in the high half; otherwise 0.
    pub ports: u32,
    /// ToS or traffic class.
    pub tos: u8,
    /// Bytes of IP packet, from its own length field; frames may be longer.
    pub len: u16,
    /// Offset of the transport header in the frame.
    pub l4: usize,
    /// Fragmentation.
    pub part: Part,
    /// What follows the network header.
    pub transport: Transport,
}

const L4_V4: usize = eth::LEN + ipv4::LEN;
const L4_V6: usize = eth::LEN + ipv6::LEN;

/// Recognises a plain TCP or UDP packet; `None` is for [`any`] to judge.
#[inline(always)]
pub fn plain<P: PacketView>(p: &P) -> Option<Packet> {
    const HEAD_V4: usize = L4_V4 + transport::UDP_LEN;
    const HEAD_V6: usize = L4_V6 + transport::UDP_LEN;
    let head = p.bytes::<HEAD_V4>(0)?;
    match be16(&head, eth::TYPE) {
        eth::IPV4 => {
            let ip = ipv4::Header::parse(&head, eth::LEN);
            if ip.version_ihl != 0x45 || ip.fragment & (ipv4::MF | ipv4::OFFSET) != 0 {
                return None;
            }
            if eth::LEN + ip.total_len as usize > p.len() {
                return None;
            }
            plain_transport(p, ip.proto, L4_V4, ip.total_len as usize, ipv4::LEN, be16(&head, L4_V4 + 4))?;
            Some(Packet {
                addresses: Addresses::V4 { src: ip.src, dst: ip.dst },
                proto: ip.proto,
                ports: be32(&head, L4_V4),
                tos: ip.tos,
                len: ip.total_len,
                l4: L4_V4,
                part: Part::Whole,
                transport: Transport::Flow,
            })
        }
        eth::IPV6 => {
            let head = p.bytes::<HEAD_V6>(0)?;
            let ip = ipv6::Header::parse(&head, eth::LEN);
            let len = ipv6::LEN + ip.payload_len as usize;
            if ip.version() != 6 || eth::LEN + len > p.len() || len > u16::MAX as usize {
                return None;
            }
            plain_transport(p, ip.next, L4_V6, len, ipv6::LEN, be16(&head, L4_V6 + 4))?;
            Some(Packet {
                addresses: Addresses::V6 { src: ip.src, dst: ip.dst },
                proto: ip.next,
                ports: be32(&head, L4_V6),
                tos: ip.traffic_class(),
                len: len as u16,
                l4: L4_V6,
                part: Part::Whole,
                transport: Transport::Flow,
            })
        }
        _ => None,
    }
}

/// Whether a TCP or UDP header at the fixed offset `l4` is well-formed; `len` and `ip_len` are of packet and IP header.
#[inline(always)]
fn plain_transport<P: PacketView>(p: &P, proto: u8, l4: usize, len: usize, ip_len: usize, udp_len: u16) -> Option<()> {
    match proto {
        ipv4::PROTO_TCP => {
            let [offset] = p.bytes::<1>(l4 + transport::TCP_DATA_OFFSET)?;
            let header_len = (offset >> 4) as usize * 4;
            (header_len >= transport::TCP_LEN && ip_len + header_len <= len).then_some(())
        }
        ipv4::PROTO_UDP => {
            let udp_len = udp_len as usize;
            (udp_len >= transport::UDP_LEN && ip_len + udp_len <= len).then_some(())
        }
        _ => None,
    }
}

/// Explains any frame.
///
/// # Errors
/// The reason for which it is passed or dropped whatever it is for.
#[inline(always)]
pub fn any<P: PacketView>(p: &P) -> Result<Packet, Reason> {
    let head = p.bytes::<{ eth::LEN }>(0).ok_or(Reason::FrameTruncated)?;
    match be16(&head, eth::TYPE) {
        eth::IPV4 => any_v4(p),
        eth::IPV6 => any_v6(p),
        eth::VLAN | eth::SERVICE_VLAN => Err(Reason::Vlan),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
fn any_v4<P: PacketView>(p: &P) -> Result<Packet, Reason> {
    let head = p.bytes::<{ ipv4::LEN }>(eth::LEN).ok_or(Reason::Ipv4Truncated)?;
    let ip = ipv4::Header::parse(&head, 0);
    if ip.version_ihl >> 4 != 4 {
        return Err(Reason::Ipv4BadVersion);
    }
    if ip.header_len() < ipv4::LEN {
        return Err(Reason::Ipv4BadHeaderLength);
    }
    let end = eth::LEN + ip.total_len as usize;
    if (ip.total_len as usize) < ip.header_len() || end > p.len() {
        return Err(Reason::Ipv4BadTotalLength);
    }
    let part = match (ip.fragment & ipv4::OFFSET, ip.fragment & ipv4::MF) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First(ip.id as u32),
        _ => Part::Later(ip.id as u32),
    };
    let l4 = eth::LEN + ip.header_len();
    let (transport, ports) = match ip.proto {
        ipv4::PROTO_ICMP => (icmp_v4(p, l4, end, part), 0),
        proto => tcp_or_udp(p, proto, l4, end, part),
    };
    Ok(Packet {
        addresses: Addresses::V4 { src: ip.src, dst: ip.dst },
        proto: ip.proto,
        ports,
        tos: ip.tos,
        len: ip.total_len,
        l4,
        part,
        transport,
    })
}

#[inline(always)]
fn any_v6<P: PacketView>(p: &P) -> Result<Packet, Reason> {
    let head = p.bytes::<{ ipv6::LEN }>(eth::LEN).ok_or(Reason::Ipv6Truncated)?;
    let ip = ipv6::Header::parse(&head, 0);
    if ip.version() != 6 {
        return Err(Reason::Ipv6BadVersion);
    }
    let len = ipv6::LEN + ip.payload_len as usize;
    let end = eth::LEN + len;
    if end > p.len() || len > u16::MAX as usize {
        return Err(Reason::Ipv6BadPayloadLength);
    }
    let walk = extensions(p, ip.next, L4_V6, end);
    let (transport, ports) = match walk.failure {
        Some(reason) => (Transport::Malformed(reason), 0),
        None => match walk.proto {
            ipv6::PROTO_ICMPV6 => (icmp_v6(p, walk.l4, end, walk.part), 0),
            proto => tcp_or_udp(p, proto, walk.l4, end, walk.part),
        },
    };
    Ok(Packet {
        addresses: Addresses::V6 { src: ip.src, dst: ip.dst },
        proto: walk.proto,
        ports,
        tos: ip.traffic_class(),
        len: len as u16,
        l4: walk.l4,
        part: walk.part,
        transport,
    })
}

/// Where the extension headers of an IPv6 packet end.
struct Walk {
    /// Protocol number found there.
    proto: u8,
    /// Offset of the transport header.
    l4: usize,
    /// Fragmentation; an atomic fragment (RFC 6946) is whole.
    part: Part,
    /// Why the walk did not arrive.
    failure: Option<Reason>,
}

/// Follows extension headers from offset `start`, at most [`ipv6::EXTENSIONS_MAX`] of them.
#[inline(always)]
fn extensions<P: PacketView>(p: &P, next: u8, start: usize, end: usize) -> Walk {
    let mut walk = Walk { proto: next, l4: start, part: Part::Whole, failure: None };
    for _ in 0..ipv6::EXTENSIONS_MAX {
        if ipv6::extension(walk.proto, 0) == ipv6::Extension::Transport {
            return walk;
        }
        let head = match p.bytes_at::<8>(walk.l4) {
            Some(head) if walk.l4 + 8 <= end => head,
            _ => return Walk { failure: Some(Reason::Ipv6ExtensionTruncated), ..walk },
        };
        match ipv6::extension(walk.proto, head[1]) {
            ipv6::Extension::Transport => return walk,
            ipv6::Extension::Skip(len) => walk.l4 += len,
            ipv6::Extension::Fragment => {
                walk.l4 += 8;
                let (field, id) = (be16(&head, 2), be32(&head, 4));
                if field >> 3 != 0 {
                    return Walk { proto: head[0], part: Part::Later(id), ..walk };
                }
                if field & 1 != 0 {
                    walk.part = Part::First(id);
                }
            }
        }
        walk.proto = head[0];
        if walk.l4 > end {
            return Walk { failure: Some(Reason::Ipv6ExtensionTruncated), ..walk };
        }
        if walk.l4 > OFFSET_MAX {
            return Walk { failure: Some(Reason::Ipv6ExtensionsTooMany), ..walk };
        }
    }
    if ipv6::extension(walk.proto, 0) != ipv6::Extension::Transport {
        walk.failure = Some(Reason::Ipv6ExtensionsTooMany);
    }
    walk
}

/// Judges a TCP or UDP header; `end` is the offset behind the IP packet.
#[inline(always)]
fn tcp_or_udp<P: PacketView>(p: &P, proto: u8, l4: usize, end: usize, part: Part) -> (Transport, u32) {
    if matches!(part, Part::Later(_)) {
        return (Transport::Other, 0);
    }
    match proto {
        ipv4::PROTO_TCP => {
            let Some(head) = p.bytes_at::<{ transport::TCP_LEN }>(l4).filter(|_| l4 + transport::TCP_LEN <= end) else {
                return (Transport::Malformed(Reason::TcpTruncated), 0);
            };
            let [offset] = crate::wire::take(&head, transport::TCP_DATA_OFFSET);
            let header_len = (offset >> 4) as usize * 4;
            if header_len < transport::TCP_LEN || l4 + header_len > end {
                return (Transport::Malformed(Reason::TcpBadOffset), 0);
            }
            (Transport::Flow, be32(&head, 0))
        }
        ipv4::PROTO_UDP => {
            let Some(head) = p.bytes_at::<{ transport::UDP_LEN }>(l4).filter(|_| l4 + transport::UDP_LEN <= end) else {
                return (Transport::Malformed(Reason::UdpTruncated), 0);
            };
            // The length counts the whole datagram, so the first fragment is shorter than it says.
            let udp_len = be16(&head, transport::UDP_LENGTH) as usize;
            if udp_len < transport::UDP_LEN || (part == Part::Whole && l4 + udp_len > end) {
                return (Transport::Malformed(Reason::UdpBadLength), 0);
            }
            (Transport::Flow, be32(&head, 0))
        }
        _ => (Transport::Other, 0),
    }
}

#[inline(always)]
fn icmp_v4<P: PacketView>(p: &P, l4: usize, end: usize, part: Part) -> Transport {
    if part != Part::Whole {
        return Transport::Other;
    }
    let Some([kind, ..]) = p.bytes_at::<{ icmp::LEN }>(l4).filter(|_| l4 + icmp::LEN <= end) else {
        return Transport::Malformed(Reason::IcmpTruncated);
    };
    if kind == icmp::V4_ECHO_REQUEST {
        return Transport::Echo;
    }
    if !icmp::is_error_v4(kind) {
        return Transport::Other;
    }
    let truncated = Transport::Malformed(Reason::IcmpErrorTruncated);
    let l3 = l4 + icmp::LEN;
    let Some(head) = p.bytes_at::<{ ipv4::LEN }>(l3).filter(|_| l3 + ipv4::LEN <= end) else { return truncated };
    let ip = ipv4::Header::parse(&head, 0);
    if ip.version_ihl >> 4 != 4 || ip.header_len() < ipv4::LEN {
        return truncated;
    }
    if ip.fragment & ipv4::OFFSET != 0 {
        return Transport::ErrorWithoutFlow;
    }
    quoted(p, Addresses::V4 { src: ip.src, dst: ip.dst }, ip.proto, l3, l3 + ip.header_len(), end)
}

#[inline(always)]
fn icmp_v6<P: PacketView>(p: &P, l4: usize, end: usize, part: Part) -> Transport {
    if part != Part::Whole {
        return Transport::Other;
    }
    let Some([kind, ..]) = p.bytes_at::<{ icmp::LEN }>(l4).filter(|_| l4 + icmp::LEN <= end) else {
        return Transport::Malformed(Reason::IcmpTruncated);
    };
    if kind == icmp::V6_ECHO_REQUEST {
        return Transport::Echo;
    }
    if !icmp::is_error_v6(kind) {
        return Transport::Other;
    }
    let truncated = Transport::Malformed(Reason::IcmpErrorTruncated);
    let l3 = l4 + icmp::LEN;
    let Some(head) = p.bytes_at::<{ ipv6::LEN }>(l3).filter(|_| l3 + ipv6::LEN <= end) else { return truncated };
    let ip = ipv6::Header::parse(&head, 0);
    if ip.version() != 6 {
        return truncated;
    }
    let walk = extensions(p, ip.next, l3 + ipv6::LEN, end);
    if walk.failure.is_some() {
        return truncated;
    }
    if matches!(walk.part, Part::Later(_)) {
        return Transport::ErrorWithoutFlow;
    }
    quoted(p, Addresses::V6 { src: ip.src, dst: ip.dst }, walk.proto, l3, walk.l4, end)
}

#[inline(always)]
fn quoted<P: PacketView>(p: &P, addresses: Addresses, proto: u8, l3: usize, l4: usize, end: usize) -> Transport {
    if proto != ipv4::PROTO_TCP && proto != ipv4::PROTO_UDP {
        return Transport::ErrorWithoutFlow;
    }
    // RFC 792: the quoted header is followed by at least 64 bits of the datagram.
    match p.bytes_at::<8>(l4) {
        Some(head) if l4 + 8 <= end => Transport::Error(Quoted { addresses, proto, ports: be32(&head, 0), l3, l4 }),
        _ => Transport::Malformed(Reason::IcmpErrorTruncated),
    }
}
