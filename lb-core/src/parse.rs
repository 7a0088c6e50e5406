//! Packet to what the decisions need to know of it, or a reason to leave it.
//!
//! Two ways in: [`plain_v4`] and [`plain_v6`] recognise unfragmented TCP and UDP without options or extension headers in a few compares and
//! say nothing about the rest; [`any`] explains every packet. Both agree where both answer. Malformed network headers
//! are refused at once; malformed transport headers are only noted, because they matter for VIPs alone.

use crate::{
    packet::{OFFSET_MAX, PacketView},
    reason::Reason,
    wire::{be16, be32, eth, icmp, ipv4, ipv6, transport},
};

/// Address family.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Source and destination of a packet, each as four numbers in host order: an IPv4 address is `[0, 0, 0xffff, addr]`, in
/// the form of the maps.
///
/// VERIFIER: "misaligned stack access". The compiler joins stores of neighbouring words, so pairs of words are aligned.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// Source.
    pub src: ipv6::Words,
    /// Destination.
    pub dst: ipv6::Words,
    /// Family of both.
    pub family: Family,
}

impl Addresses {
    /// No addresses.
    pub const NONE: Self = Self { family: Family::V6, src: [0; 4], dst: [0; 4] };

    /// IPv4 addresses.
    #[inline(always)]
    pub const fn v4(src: u32, dst: u32) -> Self {
        Self { family: Family::V4, src: [0, 0, 0xffff, src], dst: [0, 0, 0xffff, dst] }
    }

    /// IPv6 addresses.
    #[inline(always)]
    pub const fn v6(src: ipv6::Words, dst: ipv6::Words) -> Self {
        Self { family: Family::V6, src, dst }
    }

    /// Source in the 16-byte form of the maps.
    #[inline(always)]
    pub const fn src(&self) -> [u8; 16] {
        ipv6::octets(self.src)
    }

    /// Destination in the 16-byte form of the maps.
    #[inline(always)]
    pub const fn dst(&self) -> [u8; 16] {
        ipv6::octets(self.dst)
    }

    /// Source and destination exchanged.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self { family: self.family, src: self.dst, dst: self.src }
    }
}

/// Which part of a datagram a packet is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, which carries the ports.
    First,
    /// A later fragment.
    Later,
}

/// The packet that an ICMP error quotes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    /// Its addresses: the source is whom the error is sent to.
    pub addresses: Addresses,
    /// Offset of its IP header in the frame.
    pub l3: usize,
    /// Offset of its transport header in the frame; at least 8 bytes of it are there.
    pub l4: usize,
    /// Its ports, source in the high half.
    pub ports: u32,
    /// 6 or 17.
    pub proto: u8,
}

impl Quoted {
    /// What a packet other than an ICMP error quotes.
    pub const NOTHING: Self = Self { addresses: Addresses::NONE, proto: 0, ports: 0, l3: 0, l4: 0 };
}

/// What follows the network header.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A well-formed TCP or UDP header.
    Flow,
    /// An ICMP error about a TCP or UDP packet.
    Error,
    /// An ICMP error about something else, or about a later fragment.
    ErrorWithoutFlow,
    /// An unfragmented ICMP echo request.
    Echo,
    /// Anything else; also what later fragments carry.
    Other,
    /// Not what its protocol number promises.
    Malformed,
}

/// What is known of a packet. Every field has a value in every packet, none is wrapped in a variant of another: the
/// verifier refuses to copy what was never written ("R2 !read_ok"), which is what the compiler makes of absent payloads.
///
/// VERIFIER: "misaligned stack access", as for [`Addresses`]: neighbours that the compiler may join are aligned together.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source and destination.
    pub addresses: Addresses,
    /// What an ICMP error is about.
    pub quoted: Quoted,
    /// Offset of the transport header in the frame.
    pub l4: usize,
    /// Ports of [`Transport::Flow`], source in the high half; otherwise 0.
    pub ports: u32,
    /// Bytes of IP packet, from its own length field; frames may be longer.
    pub len: usize,
    /// IP protocol number of the transport header.
    pub proto: u8,
    /// ToS or traffic class.
    pub tos: u8,
    /// TCP flags of [`Transport::Flow`] ([`transport::SYN`] and others); 0 for UDP.
    pub tcp_flags: u32,
    /// Fragmentation.
    pub part: Part,
    /// Identification that the fragments of a datagram share; 0 unless it is fragmented.
    pub id: u32,
    /// What follows the network header.
    pub transport: Transport,
    /// Why it is [`Transport::Malformed`].
    pub malformed: Option<Reason>,
}

impl Packet {
    /// A packet of which nothing is known yet, for [`any`] to fill.
    #[inline(always)]
    pub const fn unknown() -> Self {
        whole_flow(Addresses::NONE, 0, 0, 0, 0, 0)
    }
}

const L4_V4: usize = eth::LEN + ipv4::LEN;
const L4_V6: usize = eth::LEN + ipv6::LEN;

/// EtherType of a frame, host order; 0 for one shorter than an Ethernet header.
#[inline(always)]
pub fn ethertype<P: PacketView>(p: &P) -> u16 {
    p.bytes::<2>(eth::TYPE).map_or(0, u16::from_be_bytes)
}

/// Recognises a plain TCP or UDP packet in a frame whose [`ethertype`] is IPv4; `None` is for [`any`] to judge.
#[inline(always)]
pub fn plain_v4<P: PacketView>(p: &P) -> Option<Packet> {
    let head = p.bytes::<{ L4_V4 + transport::UDP_LEN }>(0)?;
    let ip = ipv4::Header::parse(&head, eth::LEN);
    if ip.version_ihl != 0x45 {
        return None;
    }
    let len = ip.total_len as usize;
    if ip.fragment & (ipv4::MF | ipv4::OFFSET) != 0 || eth::LEN + len > p.len() {
        return None;
    }
    let tcp_flags = plain_transport(p, ip.proto, L4_V4, len, ipv4::LEN, be16(&head, L4_V4 + 4))?;
    let addresses = Addresses::v4(ip.src, ip.dst);
    Some(Packet { tcp_flags, ..whole_flow(addresses, ip.proto, be32(&head, L4_V4), ip.tos, len, L4_V4) })
}

/// As [`plain_v4`], IPv6.
#[inline(always)]
pub fn plain_v6<P: PacketView>(p: &P) -> Option<Packet> {
    let head = p.bytes::<{ L4_V6 + transport::UDP_LEN }>(0)?;
    let ip = ipv6::Header::parse(&head, eth::LEN);
    let len = ipv6::LEN + ip.payload_len as usize;
    if ip.version() != 6 {
        return None;
    }
    if eth::LEN + len > p.len() || len > u16::MAX as usize {
        return None;
    }
    let tcp_flags = plain_transport(p, ip.next, L4_V6, len, ipv6::LEN, be16(&head, L4_V6 + 4))?;
    let addresses = Addresses::v6(ip.src, ip.dst);
    let packet = whole_flow(addresses, ip.next, be32(&head, L4_V6), ip.traffic_class(), len, L4_V6);
    Some(Packet { tcp_flags, ..packet })
}

#[inline(always)]
const fn whole_flow(addresses: Addresses, proto: u8, ports: u32, tos: u8, len: usize, l4: usize) -> Packet {
    Packet {
        addresses,
        proto,
        tos,
        len,
        ports,
        l4,
        tcp_flags: 0,
        part: Part::Whole,
        id: 0,
        transport: Transport::Flow,
        malformed: None,
        quoted: Quoted::NOTHING,
    }
}

/// The TCP flags (0 for UDP) of a well-formed TCP or UDP header at the fixed offset `l4`; `len` and `ip_len` are of packet and IP
/// header.
#[inline(always)]
fn plain_transport<P: PacketView>(p: &P, proto: u8, l4: usize, len: usize, ip_len: usize, udp_len: u16) -> Option<u32> {
    match proto {
        ipv4::PROTO_TCP => {
            // The whole header: of two bytes alone the compiler makes one word, and takes it apart again.
            let head = p.bytes::<{ transport::TCP_LEN }>(l4)?;
            let header_len = (head[transport::TCP_DATA_OFFSET] >> 4) as usize * 4;
            let flags = head[transport::TCP_DATA_OFFSET + 1] as u32;
            (header_len >= transport::TCP_LEN && ip_len + header_len <= len).then_some(flags)
        }
        ipv4::PROTO_UDP => {
            let udp_len = udp_len as usize;
            (udp_len >= transport::UDP_LEN && ip_len + udp_len <= len).then_some(0)
        }
        _ => None,
    }
}

/// Explains any frame, in `packet`.
///
/// # Errors
/// The reason for which it is passed or dropped whatever it is for; `packet` then says nothing.
#[inline(always)]
pub fn any<P: PacketView>(p: &P, packet: &mut Packet) -> Result<(), Reason> {
    let head = p.bytes::<{ eth::LEN }>(0).ok_or(Reason::FrameTruncated)?;
    let refused = match be16(&head, eth::TYPE) {
        eth::IPV4 => any_v4(p, packet),
        eth::IPV6 => any_v6(p, packet),
        eth::VLAN | eth::SERVICE_VLAN => Some(Reason::Vlan),
        _ => Some(Reason::NotIp),
    };
    refused.map_or(Ok(()), Err)
}

// VERIFIER: "cannot return stack pointer to the caller". Functions that are calls in the kernel return a number that is
// used; one that returns nothing, or writes its result through a hidden pointer, leaves that pointer in r0.

#[inline(never)]
fn any_v4<P: PacketView>(p: &P, packet: &mut Packet) -> Option<Reason> {
    let Some(head) = p.bytes::<{ ipv4::LEN }>(eth::LEN) else { return Some(Reason::Ipv4Truncated) };
    let ip = ipv4::Header::parse(&head, 0);
    if ip.version_ihl >> 4 != 4 {
        return Some(Reason::Ipv4BadVersion);
    }
    if ip.header_len() < ipv4::LEN {
        return Some(Reason::Ipv4BadHeaderLength);
    }
    let end = eth::LEN + ip.total_len as usize;
    if (ip.total_len as usize) < ip.header_len() || end > p.len() {
        return Some(Reason::Ipv4BadTotalLength);
    }
    let (part, id) = match (ip.fragment & ipv4::OFFSET, ip.fragment & ipv4::MF) {
        (0, 0) => (Part::Whole, 0),
        (0, _) => (Part::First, ip.id as u32),
        _ => (Part::Later, ip.id as u32),
    };
    let l4 = eth::LEN + ip.header_len();
    *packet = Packet {
        part,
        id,
        transport: Transport::Other,
        ..whole_flow(Addresses::v4(ip.src, ip.dst), ip.proto, 0, ip.tos, ip.total_len as usize, l4)
    };
    let malformed = match ip.proto {
        _ if part == Part::Later => None,
        ipv4::PROTO_TCP => tcp(p, packet, end),
        ipv4::PROTO_UDP => udp(p, packet, end),
        ipv4::PROTO_ICMP if part == Part::Whole => icmp_v4(p, packet, end),
        _ => None,
    };
    note_malformed(packet, malformed);
    None
}

#[inline(never)]
fn any_v6<P: PacketView>(p: &P, packet: &mut Packet) -> Option<Reason> {
    let Some(head) = p.bytes::<{ ipv6::LEN }>(eth::LEN) else { return Some(Reason::Ipv6Truncated) };
    let ip = ipv6::Header::parse(&head, 0);
    if ip.version() != 6 {
        return Some(Reason::Ipv6BadVersion);
    }
    let len = ipv6::LEN + ip.payload_len as usize;
    let end = eth::LEN + len;
    if end > p.len() || len > u16::MAX as usize {
        return Some(Reason::Ipv6BadPayloadLength);
    }
    let mut walk = Walk::new(ip.next, L4_V6);
    let failure = extensions(p, &mut walk, end);
    *packet = Packet {
        part: walk.part,
        id: walk.id,
        transport: Transport::Other,
        ..whole_flow(Addresses::v6(ip.src, ip.dst), walk.proto, 0, ip.traffic_class(), len, walk.l4)
    };
    let malformed = match walk.proto {
        _ if failure.is_some() => failure,
        _ if walk.part == Part::Later => None,
        ipv4::PROTO_TCP => tcp(p, packet, end),
        ipv4::PROTO_UDP => udp(p, packet, end),
        ipv6::PROTO_ICMPV6 if walk.part == Part::Whole => icmp_v6(p, packet, end),
        _ => None,
    };
    note_malformed(packet, malformed);
    None
}

/// Where the extension headers of an IPv6 packet end.
#[repr(C)]
struct Walk {
    /// Offset of the transport header.
    l4: usize,
    /// Fragmentation; an atomic fragment (RFC 6946) is whole.
    part: Part,
    /// Identification of a fragment.
    id: u32,
    /// Protocol number found there.
    proto: u8,
}

impl Walk {
    #[inline(always)]
    fn new(next: u8, start: usize) -> Self {
        Self { proto: next, l4: start, part: Part::Whole, id: 0 }
    }
}

/// Follows extension headers, at most [`ipv6::EXTENSIONS_MAX`] of them; `end` is the offset behind the packet. Gives the
/// reason if it does not arrive.
#[inline(never)]
fn extensions<P: PacketView>(p: &P, walk: &mut Walk, end: usize) -> Option<Reason> {
    for _ in 0..ipv6::EXTENSIONS_MAX {
        if ipv6::extension(walk.proto, 0) == ipv6::Extension::Transport {
            return None;
        }
        let head = match p.bytes_at::<8>(walk.l4) {
            Some(head) if walk.l4 + 8 <= end => head,
            _ => return Some(Reason::Ipv6ExtensionTruncated),
        };
        match ipv6::extension(walk.proto, head[1]) {
            ipv6::Extension::Transport => return None,
            ipv6::Extension::Skip(len) => walk.l4 += len,
            ipv6::Extension::Fragment => {
                walk.l4 += 8;
                let field = be16(&head, 2);
                if field & !6 != 0 {
                    walk.part = Part::First;
                    walk.id = be32(&head, 4);
                }
                if field >> 3 != 0 {
                    walk.part = Part::Later;
                    walk.proto = head[0];
                    return None;
                }
            }
        }
        walk.proto = head[0];
        if walk.l4 > end {
            return Some(Reason::Ipv6ExtensionTruncated);
        }
        if walk.l4 > OFFSET_MAX {
            return Some(Reason::Ipv6ExtensionsTooMany);
        }
    }
    if ipv6::extension(walk.proto, 0) != ipv6::Extension::Transport {
        return Some(Reason::Ipv6ExtensionsTooMany);
    }
    None
}

#[inline(always)]
fn note_malformed(packet: &mut Packet, malformed: Option<Reason>) {
    if malformed.is_some() {
        packet.transport = Transport::Malformed;
        packet.malformed = malformed;
    }
}

/// Judges a TCP header; `end` is the offset behind the IP packet.
#[inline(always)]
fn tcp<P: PacketView>(p: &P, packet: &mut Packet, end: usize) -> Option<Reason> {
    let Some(head) = p.bytes_at::<{ transport::TCP_LEN }>(packet.l4).filter(|_| packet.l4 + transport::TCP_LEN <= end)
    else {
        return Some(Reason::TcpTruncated);
    };
    let [offset, flags] = crate::wire::take(&head, transport::TCP_DATA_OFFSET);
    let header_len = (offset >> 4) as usize * 4;
    if header_len < transport::TCP_LEN || packet.l4 + header_len > end {
        return Some(Reason::TcpBadOffset);
    }
    packet.transport = Transport::Flow;
    packet.ports = be32(&head, 0);
    packet.tcp_flags = flags as u32;
    None
}

/// Judges a UDP header.
#[inline(always)]
fn udp<P: PacketView>(p: &P, packet: &mut Packet, end: usize) -> Option<Reason> {
    let Some(head) = p.bytes_at::<{ transport::UDP_LEN }>(packet.l4).filter(|_| packet.l4 + transport::UDP_LEN <= end)
    else {
        return Some(Reason::UdpTruncated);
    };
    // The length counts the whole datagram, so the first fragment is shorter than it says.
    let udp_len = be16(&head, transport::UDP_LENGTH) as usize;
    if udp_len < transport::UDP_LEN || (packet.part == Part::Whole && packet.l4 + udp_len > end) {
        return Some(Reason::UdpBadLength);
    }
    packet.transport = Transport::Flow;
    packet.ports = be32(&head, 0);
    None
}

#[inline(never)]
fn icmp_v4<P: PacketView>(p: &P, packet: &mut Packet, end: usize) -> Option<Reason> {
    let Some([kind, ..]) = p.bytes_at::<{ icmp::LEN }>(packet.l4).filter(|_| packet.l4 + icmp::LEN <= end) else {
        return Some(Reason::IcmpTruncated);
    };
    if kind == icmp::V4_ECHO_REQUEST {
        packet.transport = Transport::Echo;
    }
    if !icmp::is_error_v4(kind) {
        return None;
    }
    let l3 = packet.l4 + icmp::LEN;
    let Some(head) = p.bytes_at::<{ ipv4::LEN }>(l3).filter(|_| l3 + ipv4::LEN <= end) else {
        return Some(Reason::IcmpErrorTruncated);
    };
    let ip = ipv4::Header::parse(&head, 0);
    if ip.version_ihl >> 4 != 4 || ip.header_len() < ipv4::LEN {
        return Some(Reason::IcmpErrorTruncated);
    }
    packet.quoted.addresses = Addresses::v4(ip.src, ip.dst);
    packet.quoted.proto = ip.proto;
    packet.quoted.l3 = l3;
    packet.quoted.l4 = l3 + ip.header_len();
    quoted(p, packet, end, ip.fragment & ipv4::OFFSET != 0)
}

#[inline(never)]
fn icmp_v6<P: PacketView>(p: &P, packet: &mut Packet, end: usize) -> Option<Reason> {
    let Some([kind, ..]) = p.bytes_at::<{ icmp::LEN }>(packet.l4).filter(|_| packet.l4 + icmp::LEN <= end) else {
        return Some(Reason::IcmpTruncated);
    };
    if kind == icmp::V6_ECHO_REQUEST {
        packet.transport = Transport::Echo;
    }
    if !icmp::is_error_v6(kind) {
        return None;
    }
    let l3 = packet.l4 + icmp::LEN;
    let Some(head) = p.bytes_at::<{ ipv6::LEN }>(l3).filter(|_| l3 + ipv6::LEN <= end) else {
        return Some(Reason::IcmpErrorTruncated);
    };
    let ip = ipv6::Header::parse(&head, 0);
    let mut walk = Walk::new(ip.next, l3 + ipv6::LEN);
    let failure = extensions(p, &mut walk, end);
    if ip.version() != 6 || failure.is_some() {
        return Some(Reason::IcmpErrorTruncated);
    }
    packet.quoted.addresses = Addresses::v6(ip.src, ip.dst);
    packet.quoted.proto = walk.proto;
    packet.quoted.l3 = l3;
    packet.quoted.l4 = walk.l4;
    quoted(p, packet, end, walk.part == Part::Later)
}

/// Reads the ports of the quoted packet, where it has some.
#[inline(always)]
fn quoted<P: PacketView>(p: &P, packet: &mut Packet, end: usize, later_fragment: bool) -> Option<Reason> {
    let proto = packet.quoted.proto;
    if later_fragment || (proto != ipv4::PROTO_TCP && proto != ipv4::PROTO_UDP) {
        packet.transport = Transport::ErrorWithoutFlow;
        return None;
    }
    // RFC 792: the quoted header is followed by at least 64 bits of the datagram.
    match p.bytes_at::<8>(packet.quoted.l4) {
        Some(head) if packet.quoted.l4 + 8 <= end => {
            packet.transport = Transport::Error;
            packet.quoted.ports = be32(&head, 0);
            None
        }
        _ => Some(Reason::IcmpErrorTruncated),
    }
}
