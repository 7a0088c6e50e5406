//! Breaking lock nodes on purpose: servers, a proxy, faults by a schedule, and a checker over what workers saw.

pub mod check;
pub mod conductor;
pub mod history;
mod memory;
mod processes;
pub mod proxy;
pub mod schedule;
pub mod server;
pub mod worker;
