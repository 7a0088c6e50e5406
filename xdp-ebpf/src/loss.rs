//! Counts what is lost after an XDP program's verdict: the packet left through its reason, and then the kernel or the
//! driver dropped it.
//!
//! Owns: four tracepoint programs and their map. Refuses to know: why; the kernel's own messages say that. Field offsets of
//! kernel structures differ between kernels, so the loader finds them in the running kernel's BTF and sets them here.
#![no_std]
#![no_main]

use core::ffi::c_void;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::PerCpuHashMap,
    helpers::bpf_probe_read_kernel,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use lb_core::abi::loss::{LossKey, LossKind};

/// Lost frames by namespace, device and kind.
#[btf_map]
static LOSSES: PerCpuHashMap<LossKey, u64, 4096> = PerCpuHashMap::new();

/// Offset of `net_device.ifindex`.
#[unsafe(no_mangle)]
static IFINDEX: u32 = 0;
/// Offset of `net_device.nd_net`, a pointer to `net`.
#[unsafe(no_mangle)]
static ND_NET: u32 = 0;
/// Offset of `net.ns.inum`.
#[unsafe(no_mangle)]
static INUM: u32 = 0;

macro_rules! offset {
    ($name:ident) => {{
        // SAFETY: an aligned static; volatile, as the loader replaces the value that the compiler sees.
        unsafe { core::ptr::read_volatile(&raw const $name) as usize }
    }};
}

fn read<T>(base: *const c_void, offset: usize) -> Option<T> {
    // SAFETY: the helper checks the address itself and fails instead of faulting.
    unsafe { bpf_probe_read_kernel(base.cast::<u8>().wrapping_add(offset).cast::<T>()) }.ok()
}

fn count(device: *const c_void, kind: LossKind, frames: u64) -> Option<()> {
    if device.is_null() || frames == 0 {
        return None;
    }
    let net: *const c_void = read::<u64>(device, offset!(ND_NET))? as *const c_void;
    let key = LossKey { netns: read(net, offset!(INUM))?, ifindex: read(device, offset!(IFINDEX))?, kind: kind as u32 };
    if let Some(counter) = LOSSES.get_ptr_mut(key) {
        // SAFETY: the map returned this CPU's own value, and tracepoints of one CPU do not interrupt each other here.
        unsafe { *counter += frames };
    } else {
        // Another CPU may have made the entry meanwhile; then this one frame batch is added to it.
        if LOSSES.insert(key, frames, u64::from(BPF_NOEXIST)).is_err() {
            let counter = LOSSES.get_ptr_mut(key)?;
            // SAFETY: as above.
            unsafe { *counter += frames };
        }
    }
    Some(())
}

/// `xdp_exception(dev, prog, act)`.
#[raw_tracepoint]
pub fn loss_exception(ctx: RawTracePointContext) -> i32 {
    count(ctx.arg(0), LossKind::Exception, 1);
    0
}

/// `xdp_redirect_err(dev, prog, target, err, map type, map id, index)`.
#[raw_tracepoint]
pub fn loss_redirect(ctx: RawTracePointContext) -> i32 {
    count(ctx.arg(0), LossKind::Redirect, 1);
    0
}

/// `xdp_devmap_xmit(from, to, sent, drops, err)`.
#[raw_tracepoint]
pub fn loss_transmit(ctx: RawTracePointContext) -> i32 {
    count(ctx.arg(1), LossKind::Transmit, u64::from(ctx.arg::<i32>(3).max(0).unsigned_abs()));
    0
}

/// `xdp_bulk_tx(dev, sent, drops, err)`.
#[raw_tracepoint]
pub fn loss_bulk_tx(ctx: RawTracePointContext) -> i32 {
    count(ctx.arg(0), LossKind::BulkTransmit, u64::from(ctx.arg::<i32>(2).max(0).unsigned_abs()));
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
