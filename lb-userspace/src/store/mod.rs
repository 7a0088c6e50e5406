//! Where the configuration lives: here a file on the node, watched.
//!
//! Owns: bytes and the news that they may have changed. Refuses to know: what the text means.

pub mod file;
pub mod object;

pub use file::{FileStore, StoreError, Text, Watch};
