//! lb-core's tables over the BPF maps and the kernel's routing table.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::{bpf_fib_lookup, xdp_md},
    helpers::generated::bpf_fib_lookup as fib_lookup,
};
use lb_core::{
    abi::{
        backend::Backend,
        fragment::{Fragment, FragmentKey},
        lookup::Bucket,
        node::Node,
        ring::Line,
        service::Service,
    },
    rewrite::is_v4,
    tables::{NextHop, Route, Tables},
    wire::take,
};

use crate::maps;

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
    pub fn new(ctx: *mut xdp_md) -> Self {
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
    fn backend(&self, id: u32) -> Option<&Backend> {
        maps::BACKENDS.get(id)
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
