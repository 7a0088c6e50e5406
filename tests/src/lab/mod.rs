//! The lab: real sessions through a real node in namespaces.

pub mod session;
pub mod wire;

mod flows;
mod matrix;
mod modes;
mod operate;
mod resize;
mod scene;
mod setup;
mod shared;

use std::{path::PathBuf, process::Command, sync::OnceLock};

/// The programs that scenarios start.
pub struct Programs {
    /// The product.
    pub weir: PathBuf,
    /// The developer's commands, with the lab's datagram server.
    pub xtask: PathBuf,
}

/// Builds the programs once for this run: the tests link libraries alone.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let folder = xtask::test::programs_folder().unwrap_or_else(|| {
            let mut cargo = Command::new("cargo");
            cargo.args(["build", "--quiet", "-p", "lb-userspace", "-p", "xtask", "--bins"]).current_dir(xtask::root());
            let status = cargo.status().expect("cargo starts");
            assert!(status.success(), "building weir and xtask: {status}");
            xtask::target_dir().join("debug")
        });
        Programs { weir: folder.join("weir"), xtask: folder.join("xtask") }
    })
}
