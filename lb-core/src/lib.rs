//! What weir's kernel program and its userspace must agree on.
//!
//! The same code is the program in the kernel, its model in the tests and the engine behind `weir explain`. Owns: map
//! layouts ([`abi`]). Refuses to know: aya, clocks, allocation.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod decap;
pub mod hash;
