//! What a developer of weir runs, as a library that the test package shares.
//!
//! Refuses to depend on `lb-userspace`: building that needs the eBPF toolchain which [`setup`] installs.

pub mod bench;
pub mod capability;
pub mod demo;
pub mod dist;
pub mod lab;
pub mod setup;
pub mod step;
pub mod test;
pub mod tidy;

use std::path::PathBuf;

/// Root of the working copy this program was built from.
pub fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    [manifest, Some(here)]
        .into_iter()
        .flatten()
        .filter_map(|dir| dir.parent().map(PathBuf::from))
        .find(|dir| dir.join("xtask/Cargo.toml").is_file())
        .unwrap_or_else(|| PathBuf::from("."))
}

/// Folder of build results, as cargo sees it.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Whether this is a continuous-integration run, where a missing capability is a failure and not a skip.
pub fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}
