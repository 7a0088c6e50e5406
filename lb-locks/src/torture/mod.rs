//! Breaking lock nodes on purpose: servers, a proxy, faults, workers, and a checker over what the workers saw.

pub mod proxy;
pub mod server;
