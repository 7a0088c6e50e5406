//! weir's load-balancing program: view, parse, select, rewrite, send.
//!
//! What to do with a packet is decided in lb-core; this is the shell that gives it frames and maps and carries out
//! what it says. Plain TCP and UDP packets of a service take the short way, all others the long one.
#![no_std]
#![no_main]
#![allow(missing_docs, reason = "the xdp macro makes a public function without documentation")]
#![feature(asm_experimental_arch)]

mod kernel;
mod maps;
mod view;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::bpf_redirect,
    macros::xdp,
    programs::XdpContext,
};
use lb_core::{
    abi::stats::{Counter, REASONS_MAX},
    packet::PacketView,
    parse::{self, Packet},
    pipeline,
    rewrite::{self, Egress, Exit},
    select,
    wire::eth,
};

use crate::{kernel::Kernel, maps::Scratch, view::View};

/// Slot of the interface that this instance of the program serves; set by the loader, a constant for the verifier.
#[unsafe(no_mangle)]
static INTERFACE: u32 = 0;

/// Entry point.
///
/// VERIFIER: "combined stack size of 4 calls is 592. Too large": the short ways are calls of their own, so that their stack
/// is given back before the long way takes one.
#[xdp]
pub fn weir_lb(ctx: XdpContext) -> u32 {
    let action = match parse::ethertype(&View::new(ctx.ctx)) {
        eth::IPV4 => plain_v4(ctx.ctx),
        eth::IPV6 => plain_v6(ctx.ctx),
        _ => 0,
    };
    match action {
        0 => any(ctx.ctx),
        action => action,
    }
}

/// The short way over IPv4. Gives the XDP action, or 0, and nothing changed, for a packet that needs a longer look.
#[inline(never)]
fn plain_v4(ctx: *mut xdp_md) -> u32 {
    let view = View::new(ctx);
    let packet = parse::plain_v4(&view);
    plain(ctx, view, packet)
}

/// As [`plain_v4`], IPv6.
#[inline(never)]
fn plain_v6(ctx: *mut xdp_md) -> u32 {
    let view = View::new(ctx);
    let packet = parse::plain_v6(&view);
    plain(ctx, view, packet)
}

/// Plain TCP and UDP packets of a service.
#[inline(always)]
fn plain(ctx: *mut xdp_md, mut view: View, packet: Option<Packet>) -> u32 {
    let tables = Kernel::new(ctx);
    let received = view.len();
    match pipeline::fast(&mut view, packet, &tables) {
        Some(exit) => send(&tables, received, exit),
        None => 0,
    }
}

/// The long way, for any packet. Takes the context, from which it makes its own view: pointers into the packet do not
/// survive the call.
#[inline(never)]
fn any(ctx: *mut xdp_md) -> u32 {
    let tables = Kernel::new(ctx);
    let mut view = View::new(ctx);
    let received = view.len();
    let Some(scratch) = maps::SCRATCH.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: this CPU's own value, which no other code touches while the program runs; zeroed when the map was made, and
    // since then written whole before it is read.
    let Scratch { packet, verdict } = unsafe { &mut *scratch };
    *packet = Packet::unknown();
    let decided = parse::any(&view, packet).and_then(|()| select::any(packet, &tables, verdict));
    let exit = match decided {
        Ok(()) => rewrite::apply(&mut view, packet, verdict, &tables),
        Err(reason) => Exit::new(reason, Egress::default()),
    };
    send(&tables, received, exit)
}

/// Counts a packet under its reason and turns the exit into an XDP action.
#[inline(always)]
fn send(tables: &Kernel, received: usize, exit: Exit) -> u32 {
    // SAFETY: INTERFACE is an aligned static; volatile, as its value is not the one that the compiler sees.
    let interface = unsafe { core::ptr::read_volatile(&raw const INTERFACE) };
    count(maps::REASON_STATS.get_ptr_mut(interface * REASONS_MAX + exit.reason() as u32), received);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        &aya_ebpf::programs::XdpContext::new(tables.context()),
        "reason {} interface {} bytes {}",
        exit.reason() as u32,
        interface,
        received
    );
    match exit {
        Exit::Pass(_) => xdp_action::XDP_PASS,
        Exit::Drop(_) => xdp_action::XDP_DROP,
        Exit::Transmit(_) => xdp_action::XDP_TX,
        Exit::Forward { reason: _, ifindex, backend } => {
            if backend != 0 {
                count(maps::BACKEND_STATS.get_ptr_mut(backend), received);
            }
            if ifindex == tables.ingress() {
                return xdp_action::XDP_TX;
            }
            // SAFETY: the helper takes numbers only.
            unsafe { bpf_redirect(ifindex, 0) as u32 }
        }
    }
}

/// Adds a packet to a counter of this CPU.
#[inline(always)]
fn count(counter: Option<*mut Counter>, bytes: usize) {
    if let Some(counter) = counter {
        // SAFETY: the map returned this CPU's own value, which no other code changes while the program runs.
        unsafe {
            (*counter).packets = (*counter).packets.wrapping_add(1);
            (*counter).bytes = (*counter).bytes.wrapping_add(bytes as u64);
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// "Dual MIT/GPL" is what the kernel accepts for helpers that only free programs may call.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
