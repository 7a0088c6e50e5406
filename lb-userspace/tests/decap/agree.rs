//! The loaded programs and the model give the same action and the same bytes for every packet.

use std::collections::HashMap as Expected;

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        HashMap, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{SchedClassifier, TestRun, TestRunOptions, Xdp},
};
use lb_core::{
    abi::{decap::Reason, mapped},
    decap::{ETH_LEN, Packet, Rules, Verdict, decide},
};
use lb_userspace::object::WEIR_DECAP;

use crate::{
    frame::{Ecn, datagram, tunnel},
    privileged,
};

const SOURCE: [&str; 2] = ["198.18.7.9", "100::7:9"];
const HOST: [&str; 2] = ["10.9.0.2", "fd09::2"];
const VIP: [&str; 2] = ["192.0.2.80", "2001:db8::80"];
const CLIENT: [&str; 2] = ["10.9.0.1", "fd09::1"];

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_UNSPEC: u32 = u32::MAX;
const TC_SHOT: u32 = 2;

struct Frame<'a>(&'a [u8]);

impl Frame<'_> {
    fn at<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset + N)?.try_into().ok()
    }
}

impl Packet for Frame<'_> {
    fn frame_len(&self) -> usize {
        self.0.len()
    }
    fn u8(&self, offset: usize) -> Option<u8> {
        self.at::<1>(offset).map(|[byte]| byte)
    }
    fn u16(&self, offset: usize) -> Option<u16> {
        self.at(offset).map(u16::from_be_bytes)
    }
    fn v4(&self, offset: usize) -> Option<[u8; 4]> {
        self.at(offset)
    }
    fn v6(&self, offset: usize) -> Option<[u8; 16]> {
        self.at(offset)
    }
}

/// 192.0.2.0/24 and 2001:db8::/64 are VIPs, 198.18.0.0/16 and 100::/64 sources, as in [`load`].
struct Model;

impl Rules for Model {
    fn is_local(&self, addr: &[u8; 16]) -> bool {
        HOST.iter().any(|host| sixteen(host) == *addr)
    }
    fn is_source(&self, addr: &[u8; 16]) -> bool {
        addr[..14] == mapped([198, 18, 0, 0])[..14] || addr[..8] == sixteen("100::")[..8]
    }
    fn is_vip(&self, addr: &[u8; 16]) -> bool {
        addr[..15] == mapped([192, 0, 2, 0])[..15] || addr[..8] == sixteen("2001:db8::")[..8]
    }
}

fn sixteen(text: &str) -> [u8; 16] {
    match text.parse().expect("an address") {
        std::net::IpAddr::V4(v4) => mapped(v4.octets()),
        std::net::IpAddr::V6(v6) => v6.octets(),
    }
}

fn load(active: u32) -> Ebpf {
    let mut ebpf =
        EbpfLoader::new().override_global("ACTIVE", &active, true).load(WEIR_DECAP).expect("the object loads");
    let mut local: HashMap<_, [u8; 16], u8> = ebpf.map_mut("DECAP_LOCAL").unwrap().try_into().unwrap();
    for host in HOST {
        local.insert(sixteen(host), 1, 0).unwrap();
    }
    for (name, prefixes) in [
        ("DECAP_SOURCES", [("198.18.0.0", 96 + 16), ("100::", 64)]),
        ("DECAP_VIPS", [("192.0.2.0", 96 + 24), ("2001:db8::", 64)]),
    ] {
        let mut trie: LpmTrie<_, [u8; 16], u8> = ebpf.map_mut(name).unwrap().try_into().unwrap();
        for (address, bits) in prefixes {
            trie.insert(&Key::new(bits, sixteen(address)), 1, 0).unwrap();
        }
    }
    ebpf
}

/// Whole packets of all pairs of families and congestion bits; every truncation; every byte up to the inner ports changed.
fn packets() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for outer in 0..2 {
        for inner in 0..2 {
            let build = |ecn: Ecn| {
                let (client, vip) = (CLIENT[inner].parse().unwrap(), VIP[inner].parse().unwrap());
                let inside = datagram((client, 5000), (vip, 8080), ecn.inner, b"a payload of 23 bytes..");
                tunnel(SOURCE[outer].parse().unwrap(), HOST[outer].parse().unwrap(), &inside, ecn.outer)
            };
            for bits in 0..16 {
                packets.push(build(Ecn { outer: bits >> 2, inner: bits & 3 }));
            }
            let whole = build(Ecn::default());
            packets.extend((ETH_LEN..whole.len()).map(|len| whole[..len].to_vec()));
            let headers = ETH_LEN + [20, 40][outer] + [20, 40][inner] + 4;
            for offset in 12..headers {
                for flip in [0x01, 0x04, 0x10, 0x40, 0xff] {
                    let mut changed = whole.clone();
                    changed[offset] ^= flip;
                    packets.push(changed);
                }
            }
        }
    }
    packets
}

/// What the model does to `packet`: reason and, if it is not dropped, the bytes that go on.
fn model(packet: &[u8]) -> (Reason, Option<Vec<u8>>) {
    match decide(&Frame(packet), &Model) {
        Verdict::Pass(reason) => (reason, Some(packet.to_vec())),
        Verdict::Drop(reason) => (reason, None),
        Verdict::Strip { outer_len, inner, mark, .. } => {
            let mut out = packet[..12].to_vec();
            out.extend(inner.ethertype().to_be_bytes());
            out.extend(&packet[ETH_LEN + outer_len..]);
            if let Some(mark) = mark {
                out[ETH_LEN..ETH_LEN + 2].copy_from_slice(&mark.first.to_be_bytes());
                if let Some(checksum) = mark.checksum {
                    out[ETH_LEN + 10..ETH_LEN + 12].copy_from_slice(&checksum.to_be_bytes());
                }
            }
            (Reason::Decapsulated, Some(out))
        }
    }
}

/// Runs all packets through `run` (packet and room for the result to action and length) and compares with the model.
fn compare(
    ebpf: &mut Ebpf,
    packets: &[Vec<u8>],
    pass: u32,
    drop: u32,
    run: impl Fn(&mut Ebpf, &[u8], &mut [u8]) -> (u32, usize),
) {
    let mut expected = Expected::new();
    for packet in packets {
        let (reason, bytes) = model(packet);
        *expected.entry(reason).or_insert(0) += 1;
        let mut room = [0; 512];
        let (action, len) = run(ebpf, packet, &mut room);
        match bytes {
            Some(bytes) => {
                assert_eq!(action, pass, "{reason:?} {packet:02x?}");
                assert_eq!(&room[..len], &bytes[..], "{reason:?} {packet:02x?}");
            }
            None => assert_eq!(action, drop, "{reason:?} {packet:02x?}"),
        }
    }
    let stats: PerCpuArray<_, u64> = ebpf.map("DECAP_STATS").unwrap().try_into().unwrap();
    let counted = |reason: Reason| stats.get(&(reason as u32), 0).unwrap().iter().sum::<u64>();
    for reason in Reason::ALL {
        assert_eq!(counted(reason), expected.get(&reason).copied().unwrap_or_default(), "{reason:?}");
    }
    assert_eq!(Reason::ALL.into_iter().map(counted).sum::<u64>(), packets.len() as u64);
    for reason in Reason::ALL.into_iter().filter(|reason| *reason != Reason::Failed) {
        assert!(counted(reason) > 0, "no packet meets {reason:?}: the test is too weak");
    }
}

fn xdp(ebpf: &mut Ebpf, packet: &[u8], room: &mut [u8]) -> (u32, usize) {
    let program: &mut Xdp = ebpf.program_mut("weir_decap").unwrap().try_into().unwrap();
    let options = TestRunOptions { data_in: Some(packet), data_out: Some(room), ..TestRunOptions::new() };
    let result = program.test_run(options).unwrap();
    (result.return_value, result.data_size_out as usize)
}

fn tc(ebpf: &mut Ebpf, packet: &[u8], room: &mut [u8]) -> (u32, usize) {
    let program: &mut SchedClassifier = ebpf.program_mut("weir_decap_tc").unwrap().try_into().unwrap();
    let options = TestRunOptions { data_in: Some(packet), data_out: Some(room), ..TestRunOptions::new() };
    let result = program.test_run(options).unwrap();
    (result.return_value, result.data_size_out as usize)
}

#[test]
fn xdp_does_what_the_model_says() {
    if !privileged() {
        return;
    }
    let mut ebpf = load(1);
    let program: &mut Xdp = ebpf.program_mut("weir_decap").unwrap().try_into().unwrap();
    program.load().expect("the verifier accepts it");
    compare(&mut ebpf, &packets(), XDP_PASS, XDP_DROP, xdp);
}

#[test]
fn tc_does_what_the_model_says() {
    if !privileged() {
        return;
    }
    let mut ebpf = load(1);
    let program: &mut SchedClassifier = ebpf.program_mut("weir_decap_tc").unwrap().try_into().unwrap();
    program.load().expect("the verifier accepts it");
    // The kernel takes no socket buffer for a test that is shorter than the header its ethertype names.
    let mut packets = packets();
    packets.retain(|packet| packet.len() >= ETH_LEN + if packet[12..14] == [0x08, 0x00] { 20 } else { 40 });
    compare(&mut ebpf, &packets, TC_UNSPEC, TC_SHOT, tc);
}

#[test]
fn without_vips_everything_passes_untouched() {
    if !privileged() {
        return;
    }
    let mut ebpf = load(0);
    let program: &mut Xdp = ebpf.program_mut("weir_decap").unwrap().try_into().unwrap();
    program.load().expect("the verifier accepts it");
    let packets = packets();
    for packet in &packets {
        let mut room = [0; 512];
        assert_eq!(xdp(&mut ebpf, packet, &mut room), (XDP_PASS, packet.len()));
        assert_eq!(&room[..packet.len()], &packet[..]);
    }
    let stats: PerCpuArray<_, u64> = ebpf.map("DECAP_STATS").unwrap().try_into().unwrap();
    let passed: u64 = stats.get(&(Reason::Passed as u32), 0).unwrap().iter().sum();
    assert_eq!(passed, packets.len() as u64);
}
