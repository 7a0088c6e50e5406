//! TCP (RFC 9293) and UDP (RFC 768): where ports, lengths and checksums stand.

use network_types::{tcp::TcpHdr, udp::UdpHdr};

/// Bytes of a TCP header without options.
pub const TCP_LEN: usize = TcpHdr::LEN;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = UdpHdr::LEN;
/// Offset of the source port, for both.
pub const SRC_PORT: usize = 0;
/// Offset of the destination port, for both.
pub const DST_PORT: usize = 2;
/// Offset of the TCP byte whose high half is the header length in 4-byte words.
pub const TCP_DATA_OFFSET: usize = 12;
/// Offset of the TCP checksum.
pub const TCP_CHECKSUM: usize = core::mem::offset_of!(TcpHdr, check);
/// Offset of the UDP length.
pub const UDP_LENGTH: usize = 4;
/// Offset of the UDP checksum.
pub const UDP_CHECKSUM: usize = 6;
/// TCP flag FIN, in the byte behind [`TCP_DATA_OFFSET`].
pub const FIN: u32 = 1 << 0;
/// TCP flag SYN.
pub const SYN: u32 = 1 << 1;
/// TCP flag RST.
pub const RST: u32 = 1 << 2;
/// TCP flag ACK.
pub const ACK: u32 = 1 << 4;
/// Offset of the TCP sequence number.
pub const TCP_SEQUENCE: usize = 4;
/// Offset of the TCP acknowledgement number.
pub const TCP_ACKNOWLEDGEMENT: usize = 8;
