//! weir's load-balancing program.
#![no_std]
#![no_main]

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_core::abi::stats::REASONS_MAX;

mod maps;

/// Slot of the interface that this instance of the program serves; set by the loader, a constant for the verifier.
#[unsafe(no_mangle)]
static INTERFACE: u32 = 0;

/// Entry point.
#[xdp]
pub fn weir_lb(ctx: XdpContext) -> u32 {
    // SAFETY: INTERFACE is an aligned static; volatile, as its value is not the one that the compiler sees.
    let interface = unsafe { core::ptr::read_volatile(&raw const INTERFACE) };
    if let Some(counter) = maps::REASON_STATS.get_ptr_mut(interface * REASONS_MAX) {
        // SAFETY: the map returned this CPU's own value, which no other code touches while the program runs.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += (ctx.data_end() - ctx.data()) as u64;
        }
    }
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
