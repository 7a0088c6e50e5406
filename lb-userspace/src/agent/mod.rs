//! The agent: keeps the maps of the data plane true to the configuration and to what it observes.

pub mod api;
pub mod lock;
pub mod overrides;
pub mod pace;
pub mod privilege;
