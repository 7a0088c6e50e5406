//! Where an attached decapsulator lives while no process holds it: one folder per interface under the bpf file system.
//!
//! Namespaces share that file system and reuse interface names, so a folder is named by the inode of the network
//! namespace and the index of the interface.

use std::{fs, io, os::unix::fs::MetadataExt, path::PathBuf};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::DecapError;
use crate::dataplane::link;

const BPF_FS: &str = "/sys/fs/bpf";
const FOLDER: &str = "weir-decap";
/// How often the folder of an interface is tried to be made.
const CREATE_TRIES: u32 = 16;

/// The pins of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// The place for interface `index` of this thread's network namespace; nothing is created.
    pub fn of(index: u32) -> Result<Self, DecapError> {
        let path = PathBuf::from("/proc/thread-self/ns/net");
        let inode = fs::metadata(&path).map_err(|source| DecapError::Pin { path, source })?.ino();
        Ok(Self { folder: PathBuf::from(BPF_FS).join(FOLDER).join(format!("{inode}-{index}")) })
    }

    /// The link: XDP, or tc since Linux 6.6.
    pub fn link(&self) -> PathBuf {
        self.folder.join("link")
    }

    /// The program, where tc has no links.
    pub fn program(&self) -> PathBuf {
        self.folder.join("program")
    }

    /// Mounts the bpf file system if it is missing, and creates the folder.
    pub fn create(&self) -> Result<(), DecapError> {
        mount_bpf_fs()?;
        let mut tries = 0;
        loop {
            tries += 1;
            match fs::create_dir_all(&self.folder) {
                // Whoever detached another interface took the shared folder away just after it was made.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < CREATE_TRIES => {}
                made => return made.map_err(|source| DecapError::Pin { path: self.folder.clone(), source }),
            }
        }
    }

    /// Removes whatever is pinned. A link is detached when this returns, so that another hook or program can take its place.
    pub fn remove(&self) -> Result<(), DecapError> {
        let path = self.link();
        link::detach(&path).map_err(|source| DecapError::Pin { path, source })?;
        for path in [self.link(), self.program()] {
            absent_is_fine(fs::remove_file(&path)).map_err(|source| DecapError::Pin { path, source })?;
        }
        absent_is_fine(fs::remove_dir(&self.folder))
            .map_err(|source| DecapError::Pin { path: self.folder.clone(), source })?;
        // Shared with other interfaces: stays while one of them uses it.
        if let Some(parent) = self.folder.parent() {
            let _in_use = fs::remove_dir(parent);
        }
        Ok(())
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn mount_bpf_fs() -> Result<(), DecapError> {
    let failed = |errno: nix::Error| DecapError::BpfFs { source: errno.into() };
    if statfs(BPF_FS).map_err(failed)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    mount(Some("bpf"), BPF_FS, Some("bpf"), flags, Some("mode=0700")).map_err(failed)
}

/// Whether what is mounted here may vanish with this process, as inside `ip netns exec`, which mounts a /sys of its own.
pub(super) fn in_private_mount_namespace() -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    match (namespace("self"), namespace("1")) {
        (Some(own), Some(init)) => own != init,
        _ => false,
    }
}
