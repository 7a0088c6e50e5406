//! The compiled eBPF objects, inside this binary. Knows their bytes only; loading them is the business of `dataplane`.

/// The load balancer's object: program `weir_lb`, every map of [`lb_core::abi::MAPS`], and the constant `INTERFACE`
/// (`u32`, the interface slot below [`lb_core::abi::stats::INTERFACES_MAX`]), which the loader sets once per interface.
pub static WEIR_LB: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir_lb"));

/// The backend's side of a tunnel: programs `weir_decap` (XDP) and `weir_decap_tc` (tc), the maps of
/// [`lb_core::abi::decap`], and the constant `ACTIVE` (`u32`, 1 if there are VIPs).
pub static WEIR_DECAP: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir_decap"));

/// The loss counters: programs `loss_exception`, `loss_redirect`, `loss_transmit` and `loss_bulk_tx`, map `LOSSES`, and the
/// offsets `IFINDEX`, `ND_NET` and `INUM` (`u32`), which the loader finds in the kernel's BTF.
pub static WEIR_LOSS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir_loss"));

/// The benchmark's programs (`bench_generate`, `bench_sink`, `bench_floor`, `bench_minimal`) and their maps; only the
/// benchmark names it, so it is in no binary that is shipped.
pub static WEIR_BENCH: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir_bench"));
