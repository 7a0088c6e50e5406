//! The kernel's side of the data plane: the only part of weir that names aya, beside `decap`.
//!
//! Owns: loading, pinning, adopting, memory of maps, counters. Refuses to know: configuration files, health, netlink.

pub mod btf;
pub mod load;
pub mod loss;
pub mod memory;
pub mod pin;
