//! Pure decisions: from a configuration and what was observed to what the maps shall hold.

pub mod sizes;

pub use sizes::MapSizes;
