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
mod steps;
mod view;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::bpf_redirect,
    macros::xdp,
    programs::XdpContext,
};
use lb_core::{
    abi::{
        flow::WAYS,
        stats::{Counter, REASONS_MAX},
    },
    packet::{PacketEdit, PacketView},
    parse::{self, Packet},
    pipeline,
    reason::Reason,
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

/// The long way, for any packet: what it is, what is to be done, doing it.
///
/// VERIFIER: "combined stack size of 6 calls is 528. Too large": all three are calls, so that the stack of one is given back before
/// the next takes its own. Each makes its own view: pointers into the packet do not survive a call.
#[inline(never)]
fn any(ctx: *mut xdp_md) -> u32 {
    let mut refused = understand(ctx);
    if refused == 0 {
        refused = decide(ctx);
    }
    match refused {
        0 => carry_out(ctx),
        refused => refuse(ctx, refused - 1),
    }
}

/// What was parsed and decided, on this CPU.
#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: this CPU's own value, which no other code touches while the program runs, and of which the callers hold one
    // reference at a time; zeroed when the map was made, and since then written whole before it is read.
    maps::SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Parses, into the scratch. Gives 0, or the number of the reason to leave the packet, plus 1.
#[inline(never)]
fn understand(ctx: *mut xdp_md) -> u32 {
    let Some(Scratch { packet, .. }) = scratch() else { return Reason::RewriteFailed as u32 + 1 };
    *packet = Packet::unknown();
    number(parse::any(&View::new(ctx), packet))
}

/// Selects, into the scratch; as [`understand`].
#[inline(never)]
fn decide(ctx: *mut xdp_md) -> u32 {
    let Some(Scratch { packet, verdict }) = scratch() else { return Reason::RewriteFailed as u32 + 1 };
    number(select::any(packet, &Kernel::new(ctx), verdict))
}

/// VERIFIER: calls give numbers.
#[inline(always)]
fn number(refused: Result<(), Reason>) -> u32 {
    match refused {
        Ok(()) => 0,
        Err(reason) => reason as u32 + 1,
    }
}

/// Does what was decided.
#[inline(never)]
fn carry_out(ctx: *mut xdp_md) -> u32 {
    let tables = Kernel::new(ctx);
    let mut view = View::new(ctx);
    let received = view.len();
    let Some(Scratch { packet, verdict }) = scratch() else { return xdp_action::XDP_ABORTED };
    let exit = rewrite::apply(&mut view, packet, verdict, &tables);
    send(&tables, received, exit)
}

/// Leaves the packet as it is, for a reason.
#[inline(never)]
fn refuse(ctx: *mut xdp_md, reason: u32) -> u32 {
    let received = View::new(ctx).len();
    let reason = Reason::from_number(reason).unwrap_or(Reason::RewriteFailed);
    send(&Kernel::new(ctx), received, Exit::new(reason, Egress::default()))
}

/// Buckets of the flow table that one run sweeps.
const BUCKETS_A_RUN: u32 = 16;

/// Removes expired records from the flow table. Run by the agent, never attached: its frame begins with the next bucket and, at byte
/// 8, the number of records removed so far, both of which it moves on.
#[xdp]
pub fn weir_sweep(ctx: XdpContext) -> u32 {
    let mut view = View::new(ctx.ctx);
    let (Some(first), Some(removed)) = (view.bytes::<4>(0), view.bytes::<4>(8)) else { return xdp_action::XDP_ABORTED };
    let (first, mut removed) = (u32::from_ne_bytes(first), u32::from_ne_bytes(removed));
    for at in 0..BUCKETS_A_RUN {
        removed = removed.wrapping_add(steps::weir_sweep_bucket(first.wrapping_add(at)) as u32);
    }
    let done = view.put(0, first.wrapping_add(BUCKETS_A_RUN).to_ne_bytes()).is_some()
        && view.put(8, removed.to_ne_bytes()).is_some();
    if done { xdp_action::XDP_PASS } else { xdp_action::XDP_ABORTED }
}

/// Removes records of a service or a backend from the flow table. Run by the agent as [`weir_sweep`] is; the service's id stands at byte 16 of
/// the frame, the backend's at byte 20, and 0 is any.
#[xdp]
pub fn weir_flush(ctx: XdpContext) -> u32 {
    let mut view = View::new(ctx.ctx);
    let (Some(first), Some(removed)) = (view.bytes::<4>(0), view.bytes::<4>(8)) else { return xdp_action::XDP_ABORTED };
    let (Some(service), Some(backend)) = (view.bytes::<4>(16), view.bytes::<4>(20)) else {
        return xdp_action::XDP_ABORTED;
    };
    let (first, mut removed) = (u32::from_ne_bytes(first), u32::from_ne_bytes(removed));
    let (service, backend) = (u32::from_ne_bytes(service), u32::from_ne_bytes(backend));
    for at in 0..BUCKETS_A_RUN {
        removed = removed.wrapping_add(steps::weir_flush_bucket(first.wrapping_add(at), service, backend) as u32);
    }
    let done = view.put(0, first.wrapping_add(BUCKETS_A_RUN).to_ne_bytes()).is_some()
        && view.put(8, removed.to_ne_bytes()).is_some();
    if done { xdp_action::XDP_PASS } else { xdp_action::XDP_ABORTED }
}

/// Moves records from the flow table beside into `FLOWS`. Run by the agent as [`weir_sweep`] is; byte 16 of the frame has the number of
/// records for which there was no room.
#[xdp]
pub fn weir_move(ctx: XdpContext) -> u32 {
    let mut view = View::new(ctx.ctx);
    let (Some(first), Some(moved)) = (view.bytes::<4>(0), view.bytes::<4>(8)) else { return xdp_action::XDP_ABORTED };
    let Some(left) = view.bytes::<4>(16) else { return xdp_action::XDP_ABORTED };
    let (first, mut moved) = (u32::from_ne_bytes(first), u32::from_ne_bytes(moved));
    let mut left = u32::from_ne_bytes(left);
    for at in 0..BUCKETS_A_RUN * WAYS as u32 {
        let way = steps::weir_move_way(first.wrapping_add(at / WAYS as u32), at % WAYS as u32);
        moved = moved.wrapping_add(way as u32);
        left = left.wrapping_add((way >> 32) as u32);
    }
    let done = view.put(0, first.wrapping_add(BUCKETS_A_RUN).to_ne_bytes()).is_some()
        && view.put(8, moved.to_ne_bytes()).is_some()
        && view.put(16, left.to_ne_bytes()).is_some();
    if done { xdp_action::XDP_PASS } else { xdp_action::XDP_ABORTED }
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
