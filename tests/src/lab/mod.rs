//! The lab: real sessions through a real node in namespaces.

pub mod session;
pub mod wire;
