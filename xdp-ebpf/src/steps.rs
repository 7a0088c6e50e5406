//! Steps of flow decisions as functions of the program.
//!
//! VERIFIER: "BPF program is too large. Processed 1000001 insn". A function with a global name is checked once, for any argument,
//! and its result is any number; the calls of a local one are followed on every way that leads there. Their arguments are
//! numbers, or a pointer whose type says how much lies behind it.

use core::ptr;

use lb_core::{
    flow::{
        self, Request, choose,
        table::{self, Moved},
    },
    tables::Tables as _,
};

use crate::kernel::Kernel;

/// The maps alone: no step sends anything or asks for a route.
const TABLES: Kernel = Kernel::new(ptr::null_mut());

/// VERIFIER: "R1 invalid mem access 'mem_or_null'": a pointer that a global function is given may be null.
#[inline(always)]
fn given(request: *const Request) -> Option<&'static Request> {
    // SAFETY: callers pass a reference, which outlives the call; null is refused here, for the verifier.
    unsafe { request.as_ref() }
}

/// [`flow::resolve`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_resolve(request: *const Request) -> u64 {
    given(request).map_or(0, |request| flow::resolve(&TABLES, request))
}

/// [`choose::new`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_choose(request: *const Request) -> u64 {
    given(request).map_or(0, |request| choose::new(&TABLES, request) as u64)
}

/// [`choose::current`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_current(request: *const Request, limits: u32) -> u64 {
    given(request).map_or(0, |request| choose::current(&TABLES, request, limits != 0) as u64)
}

/// [`table::replace`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_replace(hash: u64, mask: u32, old: u64, new: u64) -> u64 {
    table::replace(&TABLES, hash, mask, old, new) as u64
}

/// [`table::insert`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_insert(hash: u64, mask: u32, now_s: u32, word: u64) -> u64 {
    table::insert(&TABLES, hash, mask, now_s, word) as u64
}

/// [`choose::member`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_member(service: u32, id: u32) -> u64 {
    choose::member(&TABLES, service, id)
}

/// [`choose::closed`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_closed(service: u32, backend: u32) -> u64 {
    choose::closed(&TABLES, service, backend);
    0
}

/// [`table::sweep`], at this moment.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_sweep_bucket(index: u32) -> u64 {
    let Some(node) = TABLES.node() else { return 0 };
    table::sweep(&TABLES, index, node.flow_mask, flow::now_s(&TABLES, node)) as u64
}

/// [`table::flush`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_flush_bucket(index: u32, service: u32, backend: u32) -> u64 {
    let Some(node) = TABLES.node() else { return 0 };
    table::flush(&TABLES, index, node.flow_mask, service, backend) as u64
}

/// [`table::move_way`], at this moment: 1 for a record that was moved, 1 << 32 for one that there is no room for.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn weir_move_way(index: u32, way: u32) -> u64 {
    let Some(node) = TABLES.node() else { return 0 };
    match table::move_way(&TABLES, index, way as usize, flow::now_s(&TABLES, node)) {
        Moved::Nothing => 0,
        Moved::Moved => 1,
        Moved::NoRoom => 1 << 32,
    }
}
