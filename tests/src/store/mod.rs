//! The store: one conformance suite over every place, and real servers that are killed, emptied, paused and cut off.

mod access;
mod conformance;
mod deaf;
mod faults;
mod places;
mod propagation;
mod reading;
pub mod rig;
mod sentinel;
