//! ICMP (RFC 792, RFC 1191) and ICMPv6 (RFC 4443): the types that concern a load balancer.

/// Bytes before the quoted packet or the echo data, both families.
pub const LEN: usize = 8;
/// Offset of the checksum.
pub const CHECKSUM: usize = 2;
/// ICMP echo reply.
pub const V4_ECHO_REPLY: u8 = 0;
/// ICMP destination unreachable.
pub const V4_UNREACHABLE: u8 = 3;
/// Its code "fragmentation needed and DF set".
pub const V4_FRAGMENTATION_NEEDED: u8 = 4;
/// ICMP echo request.
pub const V4_ECHO_REQUEST: u8 = 8;
/// ICMP time exceeded.
pub const V4_TIME_EXCEEDED: u8 = 11;
/// ICMP parameter problem.
pub const V4_PARAMETER_PROBLEM: u8 = 12;
/// ICMPv6 packet too big; 1 to 4 are the errors.
pub const V6_PACKET_TOO_BIG: u8 = 2;
/// ICMPv6 echo request.
pub const V6_ECHO_REQUEST: u8 = 128;
/// ICMPv6 echo reply.
pub const V6_ECHO_REPLY: u8 = 129;

/// Whether an ICMP message of this type quotes the packet it is about, and belongs to that packet's flow.
#[inline(always)]
pub const fn is_error_v4(kind: u8) -> bool {
    matches!(kind, V4_UNREACHABLE | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM)
}

/// As [`is_error_v4`], ICMPv6.
#[inline(always)]
pub const fn is_error_v6(kind: u8) -> bool {
    matches!(kind, 1..=4)
}
