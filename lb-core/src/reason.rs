//! Every way a packet can leave the program: numbered, named, explained, one counter each.
//!
//! Invariants: a number never changes its meaning (counters are read by agents of other versions), each packet has
//! exactly one reason, and a reason belongs to exactly one [`Class`] of XDP action.

/// What happens to a packet, by kind of XDP action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// `XDP_PASS`: the kernel's network stack takes it.
    Pass,
    /// `XDP_DROP`.
    Drop,
    /// `XDP_TX`: an answer made by the program, out of the port the packet came in by.
    Transmit,
    /// `XDP_TX` or `XDP_REDIRECT` towards a backend or a client.
    Forward,
}

impl Class {
    /// Stable lower-case name: `pass`, `drop`, `transmit`, `forward`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Transmit => "transmit",
            Self::Forward => "forward",
        }
    }
}

macro_rules! reasons {
    ($($variant:ident = $number:literal $class:ident $name:literal $help:literal)*) => {
        /// Why a packet left the way it did; the number is the index of its counter.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $help] $variant = $number,)*
        }

        impl Reason {
            /// Every reason, in order of its number.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Stable `snake_case` name, the label of metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for people.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }

            /// What kind of action carries it out.
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)* }
            }
        }
    };
}

reasons! {
    ForwardedDsr = 0 Forward "forwarded_dsr" "Forwarded to a backend by MAC address."
    ForwardedIpip = 1 Forward "forwarded_ipip" "Forwarded to a backend in an outer IP header."
    ForwardedNat = 2 Forward "forwarded_nat" "Forwarded to a backend with translated destination."
    NatReply = 3 Forward "nat_reply" "A backend's reply, source translated back, sent to the client."
    EchoReply = 4 Transmit "echo_reply" "Echo request to a VIP, answered."
    FragmentationNeeded = 5 Transmit "fragmentation_needed" "IPv4 packet too long for the way to its receiver, answered with ICMP \"fragmentation needed\"."
    PacketTooBig = 6 Transmit "packet_too_big" "IPv6 packet too long for the way to its receiver, answered with ICMPv6 \"packet too big\"."
    NatReplyToKernel = 7 Pass "nat_reply_to_kernel" "A backend's reply, translated, whose next hop has no known MAC address: the kernel resolves it and forwards."
    NotIp = 8 Pass "not_ip" "Neither IPv4 nor IPv6."
    Vlan = 9 Pass "vlan" "VLAN-tagged frame; tags are not looked into."
    NotVip = 10 Pass "not_vip" "Not for a VIP."
    VipNoService = 11 Pass "vip_no_service" "For a VIP, but no service has this port and protocol."
    VipOther = 12 Pass "vip_other" "For a VIP, neither TCP nor UDP nor anything the program answers."
    IcmpErrorNoFlow = 13 Pass "icmp_error_no_flow" "ICMP error to a VIP that quotes no packet of a service."
    Unconfigured = 14 Pass "unconfigured" "No agent has written the maps yet, or one of another ABI version."
    FrameTruncated = 15 Drop "frame_truncated" "Shorter than an Ethernet header."
    Ipv4Truncated = 16 Drop "ipv4_truncated" "Frame ends inside the IPv4 header."
    Ipv4BadVersion = 17 Drop "ipv4_bad_version" "EtherType says IPv4, the version field does not."
    Ipv4BadHeaderLength = 18 Drop "ipv4_bad_header_length" "IPv4 header length below 20 bytes."
    Ipv4BadTotalLength = 19 Drop "ipv4_bad_total_length" "IPv4 total length beyond the frame or shorter than the header."
    Ipv6Truncated = 20 Drop "ipv6_truncated" "Frame ends inside the IPv6 header."
    Ipv6BadVersion = 21 Drop "ipv6_bad_version" "EtherType says IPv6, the version field does not."
    Ipv6BadPayloadLength = 22 Drop "ipv6_bad_payload_length" "IPv6 payload length beyond the frame."
    Ipv6ExtensionTruncated = 23 Drop "ipv6_extension_truncated" "For a VIP, and ends inside an IPv6 extension header."
    Ipv6ExtensionsTooMany = 24 Drop "ipv6_extensions_too_many" "For a VIP, with more or longer IPv6 extension headers than are followed."
    TcpTruncated = 25 Drop "tcp_truncated" "For a VIP, and ends inside the TCP header."
    TcpBadOffset = 26 Drop "tcp_bad_offset" "For a VIP, TCP data offset below 20 bytes or beyond the packet."
    UdpTruncated = 27 Drop "udp_truncated" "For a VIP, and ends inside the UDP header."
    UdpBadLength = 28 Drop "udp_bad_length" "For a VIP, UDP length below 8 bytes or beyond the packet."
    IcmpTruncated = 29 Drop "icmp_truncated" "For a VIP, and ends inside the ICMP header."
    IcmpErrorTruncated = 30 Drop "icmp_error_truncated" "ICMP error to a VIP whose quoted packet is cut before its ports or malformed."
    FragmentOvertook = 31 Drop "fragment_overtook" "Fragment for a VIP whose first fragment was not seen, so that its ports are unknown."
    NoBackend = 32 Drop "no_backend" "The service has no backend that takes traffic."
    SlotEmpty = 33 Drop "slot_empty" "The flow's ring slot names no backend, or the ring lies outside its arena."
    BackendInvalid = 34 Drop "backend_invalid" "The flow's backend has no valid entry."
    BackendUnresolved = 35 Drop "backend_unresolved" "The MAC address of the backend's next hop is not known."
    BackendFamily = 36 Drop "backend_family" "The backend's address family cannot carry this packet in the service's mode."
    NoHeadroom = 37 Drop "no_headroom" "The driver leaves no room for the outer header."
    TooBigUnanswered = 38 Drop "too_big_unanswered" "Too long for the way to its receiver, and of a kind that must not be answered (ICMP error, later fragment)."
    NatReplyNoRoute = 39 Drop "nat_reply_no_route" "A backend's reply to a client that the kernel has no route to."
    NatReplyForwardingDisabled = 40 Drop "nat_reply_forwarding_disabled" "A backend's reply, but IP forwarding is switched off on the interface it came in by."
    NatReplyRouteUnsupported = 41 Drop "nat_reply_route_unsupported" "A backend's reply to a client behind a route that XDP cannot follow, such as a tunnel."
    SourceInvalid = 42 Drop "source_invalid" "Would be answered, but its source is no unicast address."
    RewriteFailed = 43 Drop "rewrite_failed" "A bounds check failed after the packet was parsed; never expected."
    FlowReset = 44 Transmit "flow_reset" "TCP flow of a backend that is down, answered with a reset as its service is configured."
    SynRefused = 45 Drop "syn_refused" "New connection that could not be recorded while its slot moves; the client tries again."
    ResetUnanswered = 46 Drop "reset_unanswered" "TCP flow of a backend that is down, in a packet that no reset may answer: a fragment, a reset, no unicast source."
}

impl Reason {
    /// The reason with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }
}

const _: () = assert!(Reason::ALL.len() <= crate::abi::stats::REASONS_MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_indexes_and_names_are_unique() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert_eq!(Reason::from_number(i as u32), Some(*reason));
            assert!(reason.name().chars().all(|c| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit()));
            assert!(Reason::ALL.iter().skip(i + 1).all(|other| other.name() != reason.name()));
        }
        assert_eq!(Reason::from_number(Reason::ALL.len() as u32), None);
    }
}
