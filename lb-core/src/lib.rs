//! What weir's kernel program and its userspace must agree on.
//!
//! The same code is the program in the kernel, its model in the tests and the engine behind `weir explain`. Owns: map
//! layouts ([`abi`]) and every decision about a packet: [`parse`], [`select`], [`rewrite`]. Refuses to know: aya, clocks,
//! allocation (except in [`host`], which only userspace compiles).
//!
//! Rules that the kernel's verifier teaches: packets only through [`packet`]'s traits; what touches packets is
//! `inline(always)`; no path that panics; every offset that came from a packet goes through the `_at` methods; loops are
//! bounded; nothing is allocated.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod decap;
pub mod flow;
pub mod hash;
#[cfg(feature = "host")]
pub mod host;
pub mod packet;
pub mod parse;
pub mod pipeline;
pub mod reason;
pub mod rewrite;
pub mod select;
pub mod tables;
pub mod wire;
