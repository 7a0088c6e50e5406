//! lb-core's tables over the BPF maps and the kernel's routing table.

use core::{arch::asm, mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::{bpf_fib_lookup, xdp_md},
    helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_jiffies64},
};
use lb_core::{
    abi::{
        backend::Backend,
        flow::{self, Word},
        fragment::{Fragment, FragmentKey},
        lookup::Bucket,
        node::Node,
        ring::Line,
        service::Service,
        stats::FlowEvent,
        turns::Turns,
    },
    flow::Request,
    rewrite::is_v4,
    tables::{NextHop, Pair, Route, Tables},
    wire::take,
};

use crate::{maps, steps};

/// Results of `bpf_fib_lookup` (linux/bpf.h).
const FIB_SUCCESS: i64 = 0;
const FIB_BLACKHOLE: i64 = 1;
const FIB_UNREACHABLE: i64 = 2;
const FIB_PROHIBIT: i64 = 3;
const FIB_NOT_FORWARDED: i64 = 4;
const FIB_FORWARDING_DISABLED: i64 = 5;
const FIB_NO_NEIGHBOUR: i64 = 7;
const FIB_FRAGMENTATION_NEEDED: i64 = 8;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The maps, and the context that route lookups need.
pub struct Kernel {
    ctx: *mut xdp_md,
}

impl Kernel {
    /// Tables for the packet of a context.
    #[inline(always)]
    pub const fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    /// The context, for logging.
    #[cfg(feature = "log")]
    pub fn context(&self) -> *mut xdp_md {
        self.ctx
    }

    /// Interface that the packet came in by.
    #[inline(always)]
    pub fn ingress(&self) -> u32 {
        // SAFETY: `ctx` is the program's own context, valid while it runs.
        unsafe { (*self.ctx).ingress_ifindex }
    }
}

impl Tables for Kernel {
    #[inline(always)]
    fn node(&self) -> Option<&Node> {
        maps::NODE.get(0)
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<&Bucket> {
        maps::LOOKUP.get(index)
    }

    #[inline(always)]
    fn service(&self, id: u32) -> Option<&Service> {
        maps::SERVICES.get(id)
    }

    #[inline(always)]
    fn line(&self, index: u32) -> Option<&Line> {
        maps::RINGS.get(index)
    }

    #[inline(always)]
    fn owners(&self, index: u32) -> Option<&Line> {
        maps::OWNERS.get(index)
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        maps::BACKENDS.get(id)
    }

    #[inline(always)]
    fn flows(&self, index: u32) -> Option<&flow::Bucket> {
        let bucket = maps::FLOWS.get_ptr(index)?;
        // SAFETY: the map's values are buckets: as large, aligned to 64 bytes as the kernel aligns array values of that size to
        // 8 and nothing here needs more, and made of words for which every value is valid. Cells allow that they change.
        Some(unsafe { &*bucket.cast::<flow::Bucket>() })
    }

    #[inline(always)]
    fn pair(&self) -> Option<Pair> {
        maps::pair()
    }

    #[inline(always)]
    fn flows_beside(&self, index: u32) -> Option<&flow::Bucket> {
        let bucket = maps::FLOWS_BESIDE.get_ptr(index)?;
        // SAFETY: as in `flows`.
        Some(unsafe { &*bucket.cast::<flow::Bucket>() })
    }

    #[inline(always)]
    fn active(&self, id: u32) -> Option<&Word> {
        let word = maps::ACTIVE.get_ptr(id)?;
        // SAFETY: a word of the map, aligned and valid; a cell allows that it changes.
        Some(unsafe { &*word.cast::<Word>() })
    }

    #[inline(always)]
    fn load(&self, word: &Word) -> u64 {
        // SAFETY: a reference is valid and aligned; volatile, because other CPUs store meanwhile.
        unsafe { ptr::read_volatile(word.cell().as_ptr()) }
    }

    #[inline(always)]
    fn store(&self, word: &Word, value: u64) {
        // SAFETY: as in `load`. The caller owns the word; stores of one CPU are seen in their order where memory is strongly
        // ordered, and elsewhere the exchange that claimed the word came before.
        unsafe { ptr::write_volatile(word.cell().as_ptr(), value) };
    }

    #[inline(always)]
    fn exchange(&self, word: &Word, old: u64, new: u64) -> bool {
        let seen: u64;
        // SAFETY: one instruction on a valid, aligned word of a map; r0 is its operand and result by definition.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({place} + 0, r0, {new})",
                place = in(reg) word.cell().as_ptr(),
                new = in(reg) new,
                inout("r0") old => seen,
                options(nostack)
            );
        }
        seen == old
    }

    #[inline(always)]
    fn add(&self, word: &Word, n: u64) {
        // SAFETY: one instruction on a valid, aligned word of a map.
        unsafe {
            asm!("lock *(u64 *)({place} + 0) += {n}", place = in(reg) word.cell().as_ptr(), n = in(reg) n, options(nostack));
        }
    }

    #[inline(always)]
    fn flow_resolve(&self, request: &Request) -> u64 {
        let Some(place) = maps::REQUEST.get_ptr_mut(0) else { return 0 };
        // SAFETY: this CPU's own value, which no other code touches while the program runs.
        unsafe { place.write(*request) };
        steps::weir_resolve(place)
    }

    #[inline(always)]
    fn flow_replace(&self, hash: u64, mask: u32, old: u64, new: u64) -> bool {
        steps::weir_replace(hash, mask, old, new) != 0
    }

    #[inline(always)]
    fn flow_insert(&self, hash: u64, mask: u32, now_s: u32, word: u64) -> bool {
        steps::weir_insert(hash, mask, now_s, word) != 0
    }

    #[inline(always)]
    fn flow_choose(&self, request: &Request) -> u32 {
        steps::weir_choose(request) as u32
    }

    #[inline(always)]
    fn flow_current(&self, request: &Request, limits: bool) -> u32 {
        steps::weir_current(request, limits as u32) as u32
    }

    #[inline(always)]
    fn flow_member(&self, service: u32, id: u32) -> u64 {
        steps::weir_member(service, id)
    }

    #[inline(always)]
    fn flow_closed(&self, service: u32, backend: u32) {
        steps::weir_closed(service, backend);
    }

    #[inline(always)]
    fn count(&self, event: FlowEvent) {
        if let Some(counter) = maps::FLOW_STATS.get_ptr_mut(event as u32) {
            // SAFETY: this CPU's own value, which no other code changes while the program runs.
            unsafe { *counter = (*counter).wrapping_add(1) };
        }
    }

    #[inline(always)]
    fn count_flows(&self, backend: u32, [syns, fins, opened, closed]: [u32; 4]) {
        if let Some(totals) = maps::BACKEND_FLOWS.get_ptr_mut(backend) {
            // SAFETY: this CPU's own value, which no other code changes while the program runs.
            let totals = unsafe { &mut *totals };
            totals.syns = totals.syns.wrapping_add(syns as u64);
            totals.fins = totals.fins.wrapping_add(fins as u64);
            totals.opened = totals.opened.wrapping_add(opened as u64);
            totals.closed = totals.closed.wrapping_add(closed as u64);
        }
    }

    #[inline(always)]
    fn turns(&self, service: u32) -> Turns {
        // SAFETY: this CPU's own value, which no other code touches while the program runs.
        maps::TURNS.get_ptr(service).map_or(Turns::default(), |turns| unsafe { *turns })
    }

    #[inline(always)]
    fn set_turns(&self, service: u32, turns: Turns) {
        if let Some(place) = maps::TURNS.get_ptr_mut(service) {
            // SAFETY: as in `turns`.
            unsafe { *place = turns };
        }
    }

    #[inline(always)]
    fn forget(&self, n: u64) -> u64 {
        let (mut n, unknown) = (n, self.jiffies());
        // SAFETY: two instructions on registers; the second undoes the first.
        unsafe { asm!("{0} ^= {1}", "{0} ^= {1}", inout(reg) n, in(reg) unknown, options(pure, nomem, nostack)) };
        n
    }

    #[inline(always)]
    fn anew(&self, n: u64) -> u64 {
        let mut n = n;
        // SAFETY: one instruction on a register.
        unsafe { asm!("{0} = {0}", inout(reg) n, options(pure, nomem, nostack)) };
        n
    }

    #[inline(always)]
    fn sign(&self, n: u64) -> u64 {
        let mut n = n;
        // SAFETY: one instruction on a register.
        unsafe { asm!("{0} s>>= 63", inout(reg) n, options(pure, nomem, nostack)) };
        n
    }

    #[inline(always)]
    fn jiffies(&self) -> u64 {
        // SAFETY: the helper takes nothing.
        unsafe { bpf_jiffies64() }
    }

    #[inline(always)]
    fn load_u64(&self, word: &u64) -> u64 {
        // SAFETY: a reference is valid and aligned; volatile, because the agent stores through its own mapping.
        unsafe { ptr::read_volatile(word) }
    }

    #[inline(always)]
    fn load_u32(&self, word: &u32) -> u32 {
        // SAFETY: as in `load_u64`.
        unsafe { ptr::read_volatile(word) }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: the value is copied at once; an entry that is reused meanwhile sends a fragment astray, which its
        // receiver's checksum catches, as it would any datagram whose identification repeats.
        unsafe { maps::FRAGMENTS.get(key).copied() }
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        // A failed insertion costs the later fragments, which then count as having overtaken the first.
        let _ = maps::FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn next_hop(&self, route: &Route) -> NextHop {
        let mut params = FibParams(MaybeUninit::uninit());
        let zeroes = params.0.as_mut_ptr().cast::<u64>();
        for word in 0..size_of::<bpf_fib_lookup>() / 8 {
            // VERIFIER: "Global function memset() doesn't return scalar": plain zeroing becomes a call, volatile does not.
            // SAFETY: the words lie in `params`, which is aligned to them.
            unsafe { zeroes.add(word).write_volatile(0) };
        }
        // SAFETY: all of it was written, and it consists of plain numbers, for which zero is valid.
        let params = unsafe { params.0.assume_init_mut() };
        params.ifindex = self.ingress();
        params.l4_protocol = route.proto;
        params.__bindgen_anon_1.tot_len = route.len;
        if is_v4(&route.dst) {
            params.family = AF_INET;
            params.__bindgen_anon_2.tos = route.tos;
            params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(take(&route.src, 12));
            params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(take(&route.dst, 12));
        } else {
            params.family = AF_INET6;
            params.__bindgen_anon_2.flowinfo = ((route.tos as u32) << 20).to_be();
            params.__bindgen_anon_3.ipv6_src = words(&route.src);
            params.__bindgen_anon_4.ipv6_dst = words(&route.dst);
        }
        // SAFETY: the helper reads and writes `params`, whose size it is told, and takes the program's own context.
        let result = unsafe { fib_lookup(self.ctx.cast(), params, size_of::<bpf_fib_lookup>() as i32, 0) };
        match result {
            FIB_SUCCESS => {
                // VERIFIER: "misaligned stack access": the destination begins at an odd word, so the three words that
                // hold both addresses are read whole.
                let at = core::mem::offset_of!(bpf_fib_lookup, smac);
                let word = |n: usize| {
                    // SAFETY: an aligned word of `params`, which the kernel filled.
                    unsafe { ptr::from_ref(params).cast::<u8>().add(at + n * 4).cast::<u32>().read_volatile() }
                        .to_ne_bytes()
                };
                let ([a, b, c, d], [e, f, g, h], [i, j, k, l]) = (word(0), word(1), word(2));
                let macs = [g, h, i, j, k, l, a, b, c, d, e, f];
                NextHop::Resolved { ifindex: params.ifindex, macs }
            }
            FIB_NO_NEIGHBOUR => NextHop::NoNeighbour,
            // SAFETY: with this result the kernel left the MTU there.
            FIB_FRAGMENTATION_NEEDED => NextHop::TooBig { mtu: unsafe { params.__bindgen_anon_1.mtu_result } },
            FIB_BLACKHOLE | FIB_UNREACHABLE | FIB_PROHIBIT | FIB_NOT_FORWARDED => NextHop::NoRoute,
            FIB_FORWARDING_DISABLED => NextHop::ForwardingDisabled,
            _ => NextHop::Unsupported,
        }
    }
}

/// Parameters of a route lookup, aligned so that they can be zeroed in words.
#[repr(align(8))]
struct FibParams(MaybeUninit<bpf_fib_lookup>);

const _: () = assert!(size_of::<bpf_fib_lookup>() == 64);

/// An address as the words that the kernel wants, in network order.
#[inline(always)]
fn words(addr: &[u8; 16]) -> [u32; 4] {
    [0, 4, 8, 12].map(|at| u32::from_ne_bytes(take(addr, at)))
}
