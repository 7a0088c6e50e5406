//! `weir dns` on loopback: asked by dig, transferred by BIND and Knot, updating BIND, flooded, killed.

mod ask;
mod flood;
pub(super) mod process;
mod scene;
mod secondary;
mod serve;
mod update;
