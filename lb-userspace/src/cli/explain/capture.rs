//! Frames out of a capture file, pcap or pcapng, as Ethernet.
//!
//! Refuses to know: what is in a frame. Captures without Ethernet headers (raw IP) get an empty one, any other link type is
//! refused by name. Limits: [`FRAMES_MAX`] frames, [`FILE_BYTES_MAX`] bytes.

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context, bail};
use pcap_file::{
    DataLink, PcapError,
    pcap::PcapReader,
    pcapng::{Block, PcapNgReader},
};

/// Frames that are read of one capture.
pub const FRAMES_MAX: usize = 10_000;
/// Bytes that are read of one capture.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// First bytes of a pcapng section header.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// Bytes that it had on the wire; more than `bytes` if the capture cut it.
    pub wire_len: usize,
}

/// The frames of the file at `path`.
pub fn read(path: &Path) -> anyhow::Result<Vec<Frame>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("{shown} is larger than {} MiB: cut it, as with `tcpdump -r IN -w OUT -c 100`", FILE_BYTES_MAX >> 20);
    }
    frames(&bytes).with_context(|| format!("cannot read {shown} as pcap or pcapng"))
}

/// The frames of a capture in memory.
fn frames(bytes: &[u8]) -> anyhow::Result<Vec<Frame>> {
    if bytes.starts_with(&PCAPNG_MAGIC) { pcapng(bytes) } else { pcap(bytes) }
}

fn pcap(bytes: &[u8]) -> anyhow::Result<Vec<Frame>> {
    let mut reader = PcapReader::new(bytes)?;
    let link = reader.header().datalink;
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.with_context(|| format!("after packet {}", frames.len()))?;
        push(&mut frames, link, &packet.data, packet.orig_len)?;
    }
    Ok(frames)
}

fn pcapng(bytes: &[u8]) -> anyhow::Result<Vec<Frame>> {
    let mut reader = PcapNgReader::new(bytes)?;
    let mut frames = Vec::new();
    loop {
        // A block borrows the reader, which also knows its interface: copy what is needed first.
        let (interface, data, wire_len) = match reader.next_block() {
            None => return Ok(frames),
            Some(Err(error)) => return Err(error).with_context(|| format!("after packet {}", frames.len())),
            Some(Ok(Block::EnhancedPacket(p))) => (p.interface_id, p.data.into_owned(), p.original_len),
            Some(Ok(Block::SimplePacket(p))) => (0, p.data.into_owned(), p.original_len),
            Some(Ok(Block::Packet(p))) => (u32::from(p.interface_id), p.data.into_owned(), p.original_len),
            Some(Ok(_)) => continue,
        };
        let link = reader
            .interfaces()
            .get(interface as usize)
            .map(|i| i.linktype)
            .ok_or(PcapError::InvalidInterfaceId(interface))?;
        push(&mut frames, link, &data, wire_len)?;
    }
}

fn push(frames: &mut Vec<Frame>, link: DataLink, data: &[u8], wire_len: u32) -> anyhow::Result<()> {
    if frames.len() == FRAMES_MAX {
        bail!("more than {FRAMES_MAX} packets: cut the capture, as with `tcpdump -r IN -w OUT -c 100`");
    }
    let wire_len = wire_len as usize;
    frames.push(match link {
        DataLink::ETHERNET => Frame { bytes: data.to_vec(), wire_len },
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => {
            let version = data.first().map_or(4, |first| first >> 4);
            let ether_type: u16 = if version == 6 { 0x86dd } else { 0x0800 };
            let mut bytes = vec![0; ETHERNET - 2];
            bytes.extend_from_slice(&ether_type.to_be_bytes());
            bytes.extend_from_slice(data);
            Frame { bytes, wire_len: wire_len + ETHERNET }
        }
        other => bail!("captured with link type {other:?}: capture on one Ethernet interface, not on `any`"),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use pcap_file::{
        pcap::{PcapHeader, PcapPacket, PcapWriter},
        pcapng::{
            PcapNgWriter,
            blocks::{enhanced_packet::EnhancedPacketBlock, interface_description::InterfaceDescriptionBlock},
        },
    };
    use proptest::prelude::*;

    use super::*;

    fn write_pcap(link: DataLink, packets: &[&[u8]]) -> Vec<u8> {
        let header = PcapHeader { datalink: link, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for packet in packets {
            writer.write_packet(&PcapPacket::new(Default::default(), packet.len() as u32 + 1, packet)).unwrap();
        }
        writer.into_writer()
    }

    fn write_pcapng(packet: &[u8]) -> Vec<u8> {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        let interface = InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options: vec![] };
        writer.write_pcapng_block(interface).unwrap();
        let block = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Default::default(),
            original_len: packet.len() as u32,
            data: Cow::Borrowed(packet),
            options: vec![],
        };
        writer.write_pcapng_block(block).unwrap();
        writer.into_inner()
    }

    #[test]
    fn both_formats_give_the_same_frame() {
        let packet = [7u8; 60];
        let want = |wire_len| vec![Frame { bytes: packet.to_vec(), wire_len }];
        assert_eq!(frames(&write_pcap(DataLink::ETHERNET, &[&packet])).unwrap(), want(61));
        assert_eq!(frames(&write_pcapng(&packet)).unwrap(), want(60));
    }

    #[test]
    fn raw_ip_gets_a_link_header_and_others_are_named() {
        let six = [0x60u8; 40];
        let frames_ = frames(&write_pcap(DataLink::RAW, &[&six])).unwrap();
        assert_eq!(frames_[0].bytes.len(), 54);
        assert_eq!(frames_[0].bytes[12..14], [0x86, 0xdd]);
        let error = frames(&write_pcap(DataLink::LINUX_SLL, &[&six])).unwrap_err();
        assert!(error.to_string().contains("LINUX_SLL"), "{error}");
        assert!(frames(b"no capture at all, but long enough").is_err());
        assert!(frames(b"").is_err());
    }

    proptest! {
        #[test]
        fn damaged_captures_are_errors_not_panics(
            ng in any::<bool>(),
            edits in proptest::collection::vec((0usize..200, any::<u8>()), 0..8),
            cut in 0usize..250,
        ) {
            let mut bytes = if ng { write_pcapng(&[7; 60]) } else { write_pcap(DataLink::ETHERNET, &[&[7; 60], &[8; 60]]) };
            for (at, value) in edits {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(cut);
            let _ = frames(&bytes);
        }
    }
}
