//! The backend's side of a tunnel: `weir_decap` for XDP and `weir_decap_tc` for tc ingress.
//!
//! A shell over [`lb_core::decap`]: the views, the maps and the removal of the outer header. Without VIPs (`ACTIVE` is 0)
//! the verifier removes everything but the counter, and what remains is the program that passes, which the veth peer of
//! a port that transmits by XDP must have.
#![no_std]
#![no_main]
#![allow(missing_docs, reason = "the entry-point macros drop the comments of what they wrap")]

use core::ptr;

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_SHOT,
        TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, xdp_action,
    },
    btf_maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_skb_load_bytes, bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_core::{
    abi::decap::{LOCAL_MAX, Reason, SOURCES_MAX, VIPS_MAX},
    decap::{ETH_LEN, Family, Mark, Packet, Rules, Verdict, decide},
};

#[btf_map]
static DECAP_LOCAL: HashMap<[u8; 16], u8, LOCAL_MAX> = HashMap::new();
#[btf_map]
static DECAP_SOURCES: LpmTrie<[u8; 16], u8, SOURCES_MAX> = LpmTrie::new();
#[btf_map]
static DECAP_VIPS: LpmTrie<[u8; 16], u8, VIPS_MAX> = LpmTrie::new();
#[btf_map]
static DECAP_STATS: PerCpuArray<u64, { Reason::ALL.len() }> = PerCpuArray::new();

/// 1 if there are VIPs, set by the command, a constant for the verifier.
#[unsafe(no_mangle)]
static ACTIVE: u32 = 0;

/// Offset of the ethertype.
const ETHERTYPE: usize = 12;

/// XDP entry point; reads and moves headers only, so the payload may lie in fragments of the frame.
#[xdp(frags)]
pub fn weir_decap(ctx: XdpContext) -> u32 {
    if !active() {
        count(Reason::Passed);
        return xdp_action::XDP_PASS;
    }
    let (reason, action) = match decide(&XdpView { ctx: &ctx }, &Maps) {
        Verdict::Pass(reason) => (reason, xdp_action::XDP_PASS),
        Verdict::Drop(reason) => (reason, xdp_action::XDP_DROP),
        Verdict::Strip { outer_len, inner, mark, .. } => match xdp_strip(&ctx, outer_len, inner, mark) {
            Ok(()) => (Reason::Decapsulated, xdp_action::XDP_PASS),
            Err(action) => (Reason::Failed, action),
        },
    };
    count(reason);
    action
}

/// tc entry point, for interfaces where XDP cannot be attached.
#[classifier]
pub fn weir_decap_tc(ctx: TcContext) -> i32 {
    if !active() {
        count(Reason::Passed);
        return TC_ACT_UNSPEC;
    }
    let (reason, action) = match decide(&SkbView { ctx: &ctx }, &Maps) {
        Verdict::Pass(reason) => (reason, TC_ACT_UNSPEC),
        Verdict::Drop(reason) => (reason, TC_ACT_SHOT),
        Verdict::Strip { outer_len, outer, inner, mark } => match tc_strip(&ctx, outer_len, outer, inner, mark) {
            Ok(()) => (Reason::Decapsulated, TC_ACT_UNSPEC),
            Err(action) => (Reason::Failed, action),
        },
    };
    count(reason);
    action
}

#[inline(always)]
fn active() -> bool {
    // SAFETY: ACTIVE is an aligned static; volatile, as its value is not the one that the compiler sees.
    unsafe { ptr::read_volatile(&raw const ACTIVE) != 0 }
}

#[inline(always)]
fn count(reason: Reason) {
    if let Some(counter) = DECAP_STATS.get_ptr_mut(reason as u32) {
        // SAFETY: the map returned this CPU's own value, which no other code touches while the program runs.
        unsafe { *counter += 1 }
    }
}

struct Maps;

impl Rules for Maps {
    #[inline(always)]
    fn is_local(&self, addr: &[u8; 16]) -> bool {
        // SAFETY: nothing is removed from the map while the program is loaded, and the value is not read.
        unsafe { DECAP_LOCAL.get(addr) }.is_some()
    }

    #[inline(always)]
    fn is_source(&self, addr: &[u8; 16]) -> bool {
        DECAP_SOURCES.get(&Key::new(128, *addr)).is_some()
    }

    #[inline(always)]
    fn is_vip(&self, addr: &[u8; 16]) -> bool {
        DECAP_VIPS.get(&Key::new(128, *addr)).is_some()
    }
}

struct XdpView<'a> {
    ctx: &'a XdpContext,
}

impl XdpView<'_> {
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.ctx.data() + offset;
        (start + size_of::<T>() <= self.ctx.data_end()).then_some(start as *mut T)
    }

    #[inline(always)]
    fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` compared the end of this read with the end of the packet.
        self.at::<T>(offset).map(|from| unsafe { from.read_unaligned() })
    }
}

impl Packet for XdpView<'_> {
    #[inline(always)]
    fn frame_len(&self) -> usize {
        // SAFETY: the context is the one that the kernel passed in.
        (unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) }) as usize
    }

    #[inline(always)]
    fn u8(&self, offset: usize) -> Option<u8> {
        self.read(offset)
    }

    #[inline(always)]
    fn u16(&self, offset: usize) -> Option<u16> {
        self.read(offset).map(u16::from_be)
    }

    #[inline(always)]
    fn v4(&self, offset: usize) -> Option<[u8; 4]> {
        self.read(offset)
    }

    #[inline(always)]
    fn v6(&self, offset: usize) -> Option<[u8; 16]> {
        self.read(offset)
    }
}

/// Moves the MAC addresses over the outer header and gives its bytes back. `Err` carries the action for the packet.
#[inline(always)]
fn xdp_strip(ctx: &XdpContext, outer_len: usize, inner: Family, mark: Option<Mark>) -> Result<(), u32> {
    let view = XdpView { ctx };
    let Some(macs) = view.read::<[u32; 3]>(0) else { return Err(xdp_action::XDP_PASS) };
    // SAFETY: the context is the one that the kernel passed in; no pointer into the packet outlives this call.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, outer_len as i32) } != 0 {
        return Err(xdp_action::XDP_PASS);
    }
    // Half of a header is gone: from here on a packet that cannot be finished is dropped.
    let Some(eth) = view.at::<[u32; 3]>(0) else { return Err(xdp_action::XDP_DROP) };
    // SAFETY: `at` compared the end of this write with the end of the packet.
    unsafe { eth.write_unaligned(macs) };
    let Some(ethertype) = view.at::<u16>(ETHERTYPE) else { return Err(xdp_action::XDP_DROP) };
    // SAFETY: as above.
    unsafe { ethertype.write_unaligned(inner.ethertype().to_be()) };
    if let Some(mark) = mark {
        let Some(first) = view.at::<u16>(ETH_LEN) else { return Err(xdp_action::XDP_DROP) };
        // SAFETY: as above.
        unsafe { first.write_unaligned(mark.first.to_be()) };
        if let Some(new) = mark.checksum {
            let Some(checksum) = view.at::<u16>(ETH_LEN + 10) else { return Err(xdp_action::XDP_DROP) };
            // SAFETY: as above.
            unsafe { checksum.write_unaligned(new.to_be()) };
        }
    }
    Ok(())
}

struct SkbView<'a> {
    ctx: &'a TcContext,
}

impl SkbView<'_> {
    // VERIFIER: the buffer is filled before the call; the helper leaves it as it is when it fails, and LLVM moves the read
    // of it before the test of the result ("R1 !read_ok").
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: the context is the one that the kernel passed in, and the helper writes N bytes at most.
        let result =
            unsafe { bpf_skb_load_bytes(self.ctx.skb.skb.cast(), offset as u32, bytes.as_mut_ptr().cast(), N as u32) };
        (result == 0).then_some(bytes)
    }
}

impl Packet for SkbView<'_> {
    #[inline(always)]
    fn frame_len(&self) -> usize {
        self.ctx.len() as usize
    }

    #[inline(always)]
    fn u8(&self, offset: usize) -> Option<u8> {
        self.read(offset).map(u8::from_be_bytes)
    }

    #[inline(always)]
    fn u16(&self, offset: usize) -> Option<u16> {
        self.read(offset).map(u16::from_be_bytes)
    }

    #[inline(always)]
    fn v4(&self, offset: usize) -> Option<[u8; 4]> {
        self.read(offset)
    }

    #[inline(always)]
    fn v6(&self, offset: usize) -> Option<[u8; 16]> {
        self.read(offset)
    }
}

/// As [`xdp_strip`], on a socket buffer. The kernel sets the buffer's protocol from the flags (Linux 6.3 where the families
/// differ); the ethertype in the frame is ours to write.
#[inline(always)]
fn tc_strip(ctx: &TcContext, outer_len: usize, outer: Family, inner: Family, mark: Option<Mark>) -> Result<(), i32> {
    let mut flags = BPF_F_ADJ_ROOM_FIXED_GSO as u64;
    if outer != inner {
        flags |= match inner {
            Family::V4 => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
            Family::V6 => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        } as u64;
    }
    ctx.adjust_room(-(outer_len as i32), BPF_ADJ_ROOM_MAC, flags).map_err(|_| TC_ACT_UNSPEC)?;
    let shot = |_| TC_ACT_SHOT;
    if outer != inner {
        ctx.store(ETHERTYPE, &inner.ethertype().to_be(), 0).map_err(shot)?;
    }
    if let Some(mark) = mark {
        ctx.store(ETH_LEN, &mark.first.to_be(), 0).map_err(shot)?;
        if let Some(checksum) = mark.checksum {
            ctx.store(ETH_LEN + 10, &checksum.to_be(), 0).map_err(shot)?;
        }
    }
    Ok(())
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
