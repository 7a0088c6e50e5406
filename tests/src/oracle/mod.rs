//! The oracle: random packets, the host's verdict and bytes against the loaded program's.

pub mod generate;
