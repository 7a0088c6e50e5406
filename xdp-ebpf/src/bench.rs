//! Programs of the benchmark (`cargo xtask bench`); none of them is part of the product.
//!
//! `bench_generate` writes each packet's tuple and redirects it, `bench_sink` ends it, `bench_floor` is what any program
//! costs, and `bench_minimal` is the practical limit: a stateless Maglev with IP-in-IP encapsulation, without counters,
//! reasons or MTU check. `bench_lru` is the same with a connection table, the kernel's LRU hash: what recording every flow
//! costs the usual way. Layouts of the maps are words, which the benchmark fills (`tests/benches/datapath`).
#![no_std]
#![no_main]
#![allow(missing_docs, reason = "the entry-point macros drop the comments of what they wrap")]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::{bpf_get_prandom_u32, bpf_redirect, bpf_xdp_adjust_head},
    macros::{btf_map, xdp},
    programs::XdpContext,
};

/// What the generator writes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Template {
    /// The frame, from the Ethernet header on.
    frame: [u64; 10],
    /// Interface that packets are redirected to.
    ifindex: u32,
    /// Number of flows.
    flows: u32,
    /// 1 for IPv6.
    v6: u32,
    /// Sum of the IPv4 header's words without source and checksum.
    sum: u32,
    /// The first flow.
    first: u32,
    /// A power of two less one: of sixteen packets, fifteen are of as many random flows behind those in turn. 0 without.
    random_mask: u32,
    /// TCP flags of random packets, one or the other by chance.
    random_flags: [u32; 2],
    /// 1: the flows do not take turns but are drawn.
    drawn: u32,
    /// Zero.
    pad: u32,
}

#[btf_map]
static TEMPLATE: Array<Template, 1> = Array::new();
/// Next flow, one per CPU.
#[btf_map]
static FLOW: PerCpuArray<u64, 1> = PerCpuArray::new();
/// Packets and bytes that arrived at the sink.
#[btf_map]
static SUNK: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// (address, port and protocol) to (first ring entry, ring entries).
#[btf_map]
static SERVICES_V4: HashMap<[u32; 2], [u32; 2], 64> = HashMap::new();
#[btf_map]
static SERVICES_V6: HashMap<[u32; 5], [u32; 2], 64> = HashMap::new();
/// (source, destination, ports, protocol) to the backend's number, as many as weir's flow table is rated for.
#[btf_map]
static RECORDED: LruHashMap<[u32; 4], u32, { 1 << 20 }> = LruHashMap::new();
/// Packets whose flow was not recorded.
#[btf_map]
static MISSED: PerCpuArray<u64, 1> = PerCpuArray::new();
/// Backend numbers.
#[btf_map]
static RING: Array<u32, 65537> = Array::new();
/// Four words of address, three of MAC addresses (destination first), one unused.
#[btf_map]
static TARGETS: Array<[u32; 8], 128> = Array::new();

const ETH_LEN: usize = 14;
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
/// Where the flags are in a TCP header.
const TCP_FLAGS: usize = 13;
const TCP: u32 = 6;
const UDP: u32 = 17;

/// Writes the next flow's packet and redirects it. A frame comes back from an earlier round rewritten, so all of its
/// headers are written again.
#[xdp]
pub fn bench_generate(ctx: XdpContext) -> u32 {
    let (Some(template), Some(next)) = (TEMPLATE.get(0), FLOW.get_ptr_mut(0)) else { return xdp_action::XDP_ABORTED };
    // SAFETY: the helper takes nothing.
    let random = if template.random_mask == 0 { 0 } else { unsafe { bpf_get_prandom_u32() } };
    let in_turn = random & 0xf == 0;
    let flow = if template.drawn != 0 {
        // SAFETY: the helper takes nothing.
        (unsafe { bpf_get_prandom_u32() } as u64 * template.flows as u64 >> 32) as u32
    } else if in_turn {
        // SAFETY: the map returned this CPU's own value, which no other code touches while the program runs.
        unsafe {
            let flow = *next;
            *next = if flow + 1 >= template.flows as u64 { 0 } else { flow + 1 };
            flow as u32
        }
    } else {
        template.flows.wrapping_add(random >> 4 & template.random_mask)
    };
    let flow = template.first.wrapping_add(flow);
    let Some(start) = start::<64>(&ctx) else { return xdp_action::XDP_ABORTED };
    for (i, word) in template.frame.iter().take(8).enumerate() {
        put(start, i * 8, *word);
    }
    // 10.128.0.0/10 holds four million addresses; the bits of the flow above them are in the port.
    let port = (1024 + (flow & 0x1fff) + ((flow >> 22 & 7) << 13)) as u16;
    if template.v6 == 0 {
        // The checksum follows the source.
        let src = 0x0a80_0000 | flow & 0x3f_ffff;
        let sum = template.sum + (src >> 16) + (src & 0xffff);
        put(start, 24, (!fold(sum)).to_be());
        put(start, 26, src.to_be());
        put(start, ETH_LEN + V4_LEN, port.to_be());
        if !in_turn {
            let [one, other] = template.random_flags;
            put(start, ETH_LEN + V4_LEN + TCP_FLAGS, if random >> 31 == 0 { one } else { other } as u8);
        }
    } else {
        let Some(start) = self::start::<74>(&ctx) else { return xdp_action::XDP_ABORTED };
        put(start, 64, template.frame[8]);
        put(start, 72, template.frame[9] as u16);
        put(start, 34, flow.to_be());
        put(start, ETH_LEN + V6_LEN, port.to_be());
    }
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect(template.ifindex, 0) as u32 }
}

/// Counts and drops.
#[xdp]
pub fn bench_sink(ctx: XdpContext) -> u32 {
    if let Some(sunk) = SUNK.get_ptr_mut(0) {
        // SAFETY: as in the generator.
        unsafe {
            (*sunk)[0] += 1;
            (*sunk)[1] += (ctx.data_end() - ctx.data()) as u64;
        }
    }
    xdp_action::XDP_DROP
}

/// Sends every packet back.
#[xdp]
pub fn bench_floor(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// The practical limit.
#[xdp]
pub fn bench_minimal(ctx: XdpContext) -> u32 {
    minimal(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

/// The same with every flow recorded in the kernel's LRU hash; IPv4 alone.
#[xdp]
pub fn bench_lru(ctx: XdpContext) -> u32 {
    lru(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn minimal(ctx: &XdpContext) -> Option<u32> {
    let p = start::<{ ETH_LEN + V4_LEN + 8 }>(ctx)?;
    match u16::from_be(get(p, 12)) {
        0x0800 => v4(ctx, p, |service, hash, _| target(service, hash)),
        0x86dd => v6(ctx),
        _ => None,
    }
}

#[inline(always)]
fn lru(ctx: &XdpContext) -> Option<u32> {
    let p = start::<{ ETH_LEN + V4_LEN + 8 }>(ctx)?;
    if u16::from_be(get(p, 12)) != 0x0800 {
        return None;
    }
    v4(ctx, p, recorded)
}

/// The backend that the flow was recorded with, or the ring's, which is then recorded.
#[inline(always)]
fn recorded(service: &[u32; 2], hash: u32, tuple: [u32; 4]) -> Option<&'static [u32; 8]> {
    // SAFETY: what an evicted entry is overwritten with is a backend's number as well.
    if let Some(number) = unsafe { RECORDED.get(&tuple) } {
        return TARGETS.get(*number);
    }
    let number = number(service, hash)?;
    let _ = RECORDED.insert(&tuple, &number, 0);
    if let Some(missed) = MISSED.get_ptr_mut(0) {
        // SAFETY: as in the generator.
        unsafe { *missed += 1 };
    }
    TARGETS.get(number)
}

/// `choose` is told the service, the hash of the flow, and the 5-tuple.
#[inline(always)]
fn v4(
    ctx: &XdpContext,
    p: *mut u8,
    choose: impl Fn(&[u32; 2], u32, [u32; 4]) -> Option<&'static [u32; 8]>,
) -> Option<u32> {
    let proto = get::<u8>(p, ETH_LEN + 9) as u32;
    if get::<u8>(p, ETH_LEN) != 0x45 || (proto != TCP && proto != UDP) {
        return None;
    }
    let len = u16::from_be(get(p, ETH_LEN + 2)) as u32;
    let src = get::<u32>(p, ETH_LEN + 12);
    let dst = get::<u32>(p, ETH_LEN + 16);
    let ports = get::<u32>(p, ETH_LEN + V4_LEN);
    let key = [dst, ports >> 16 | proto << 16];
    // SAFETY: nothing is removed from the map while the program is loaded.
    let service = unsafe { SERVICES_V4.get(&key) }?;
    let hash = mix((src as u64) << 32 | ports as u64, (dst as u64) << 32 | proto as u64);
    let target = choose(service, hash, [src, dst, ports, proto])?;

    let p = grow::<{ V4_LEN }, { ETH_LEN + V4_LEN }>(ctx)?;
    ethernet(p, target, 0x0008);
    let total = len + V4_LEN as u32;
    let to = target[0];
    let low = hash & 0xffff;
    // 0x4500, the total length, don't fragment, TTL 64 and protocol 4, 198.18 and the hash, and the destination.
    let sum = 0x4500 + total + 0x4000 + 0x4004 + 0xc612 + low + (to.to_be() >> 16) + (to.to_be() & 0xffff);
    put(p, ETH_LEN, (0x4500 << 16 | total).to_be());
    put(p, ETH_LEN + 4, 0x4000u32.to_be());
    put(p, ETH_LEN + 8, (0x4004 << 16 | (!fold(sum)) as u32).to_be());
    put(p, ETH_LEN + 12, (0xc612 << 16 | low).to_be());
    put(p, ETH_LEN + 16, to);
    Some(xdp_action::XDP_TX)
}

#[inline(always)]
fn v6(ctx: &XdpContext) -> Option<u32> {
    let p = start::<{ ETH_LEN + V6_LEN + 8 }>(ctx)?;
    let proto = get::<u8>(p, ETH_LEN + 6) as u32;
    if proto != TCP && proto != UDP {
        return None;
    }
    let len = u16::from_be(get(p, ETH_LEN + 4));
    let src: [u32; 4] = get(p, ETH_LEN + 8);
    let dst: [u32; 4] = get(p, ETH_LEN + 24);
    let ports = get::<u32>(p, ETH_LEN + V6_LEN);
    let key = [dst[0], dst[1], dst[2], dst[3], ports >> 16 | proto << 16];
    // SAFETY: as in `v4`.
    let service = unsafe { SERVICES_V6.get(&key) }?;
    let pair =
        |a: [u32; 4]| ((a[0] as u64) << 32 | a[1] as u64).wrapping_mul(MIX) ^ ((a[2] as u64) << 32 | a[3] as u64);
    let hash = mix(pair(src) ^ ((ports as u64) << 8 | proto as u64), pair(dst));
    let target = target(service, hash)?;

    let p = grow::<{ V6_LEN }, { ETH_LEN + V6_LEN }>(ctx)?;
    ethernet(p, target, 0xdd86);
    put(p, ETH_LEN, 0x6000_0000u32.to_be());
    put(p, ETH_LEN + 4, ((len as u32 + V6_LEN as u32) << 16 | 41 << 8 | 64).to_be());
    put(p, ETH_LEN + 8, 0x0100_0000_0000_0000u64.to_be());
    put(p, ETH_LEN + 16, (hash as u64).to_be());
    for (i, word) in target.iter().take(4).enumerate() {
        put(p, ETH_LEN + 24 + i * 4, *word);
    }
    Some(xdp_action::XDP_TX)
}

const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// A multiplicative hash with the bits of both words in its high half.
#[inline(always)]
fn mix(a: u64, b: u64) -> u32 {
    let h = (a ^ b.wrapping_mul(MIX)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    ((h ^ h >> 32).wrapping_mul(MIX) >> 32) as u32
}

#[inline(always)]
fn target(service: &[u32; 2], hash: u32) -> Option<&'static [u32; 8]> {
    TARGETS.get(number(service, hash)?)
}

/// The number of the ring's backend.
#[inline(always)]
fn number(service: &[u32; 2], hash: u32) -> Option<u32> {
    let slot = (hash as u64 * service[1] as u64 >> 32) as u32;
    RING.get(service[0] + slot).copied()
}

#[inline(always)]
fn ethernet(p: *mut u8, target: &[u32; 8], ethertype: u16) {
    put(p, 0, target[4]);
    put(p, 4, target[5]);
    put(p, 8, target[6]);
    put(p, 12, ethertype);
}

/// Makes room for `N` bytes and returns the new start, with `CHECKED` bytes behind it.
#[inline(always)]
fn grow<const N: usize, const CHECKED: usize>(ctx: &XdpContext) -> Option<*mut u8> {
    // SAFETY: the context is the one that the kernel passed in; no pointer into the packet outlives this call.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(N as i32)) } != 0 {
        return None;
    }
    start::<CHECKED>(ctx)
}

/// The packet, if it has `N` bytes.
#[inline(always)]
fn start<const N: usize>(ctx: &XdpContext) -> Option<*mut u8> {
    let start = ctx.data();
    (start + N <= ctx.data_end()).then_some(start as *mut u8)
}

#[inline(always)]
fn get<T: Copy>(p: *mut u8, offset: usize) -> T {
    // SAFETY: every offset is a constant below the length that `start` compared; the verifier holds us to it.
    unsafe { p.add(offset).cast::<T>().read_unaligned() }
}

#[inline(always)]
fn put<T: Copy>(p: *mut u8, offset: usize, value: T) {
    // SAFETY: as in `get`.
    unsafe { p.add(offset).cast::<T>().write_unaligned(value) }
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
