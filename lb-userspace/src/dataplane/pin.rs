//! Where things are pinned, and how they are removed.
//!
//! Layout below the pin folder, which must lie in a bpf file system:
//!
//! ```text
//! maps/NAME                 every map of the data plane
//! interfaces/SLOT-IFINDEX/  program and link of one interface (names with dots cannot be pinned, indexes can)
//! loss/                     links and map of the loss counters
//! ```
//!
//! Owns: paths, the mount, removal. Refuses to know: what a pinned object contains.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::link;

/// Name of the pin of an interface's link.
pub const LINK: &str = "link";

/// Why the pin folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The folder is not below a bpf file system and none can be mounted for it.
    #[error(
        "{0} does not lie in a bpf file system; choose a folder below /sys/fs/bpf, or mount one: mount -t bpf bpf FOLDER"
    )]
    NotBpffs(PathBuf),
    /// `/sys/fs/bpf` has no bpf file system, and mounting one failed.
    #[error("cannot mount a bpf file system on /sys/fs/bpf: {0}; the agent needs root for it")]
    Mount(nix::Error),
    /// A file operation failed.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Io { path, source }
}

/// The pin folder of one data plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    dir: PathBuf,
}

/// An interface that has pins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinnedInterface {
    /// Slot of its counters.
    pub slot: u32,
    /// Index of the interface when it was attached.
    pub ifindex: u32,
}

impl Pins {
    /// The pins below `dir`; nothing is touched yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join("maps").join(name)
    }

    /// Whether maps are pinned: a data plane is loaded, if only in part.
    pub fn hold_maps(&self) -> bool {
        fs::read_dir(self.dir.join("maps")).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// The folder of an interface: `program` and `link` lie in it.
    pub fn interface(&self, interface: &PinnedInterface) -> PathBuf {
        self.dir.join("interfaces").join(format!("{}-{}", interface.slot, interface.ifindex))
    }

    /// The folder of the loss counters.
    pub fn loss(&self) -> PathBuf {
        self.dir.join("loss")
    }

    /// Makes the folders, mounting the bpf file system at its usual place if it is not there yet. Owner only.
    pub fn create(&self) -> Result<(), PinError> {
        self.mount()?;
        for dir in [self.dir.clone(), self.dir.join("maps"), self.dir.join("interfaces")] {
            make_dir(&dir)?;
        }
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700)).map_err(at(&self.dir))
    }

    fn mount(&self) -> Result<(), PinError> {
        const USUAL: &str = "/sys/fs/bpf";
        if is_bpffs(&self.dir) {
            return Ok(());
        }
        if !self.dir.starts_with(USUAL) {
            return Err(PinError::NotBpffs(self.dir.clone()));
        }
        mount(
            Some("bpf"),
            USUAL,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .map_err(PinError::Mount)?;
        if is_bpffs(&self.dir) { Ok(()) } else { Err(PinError::NotBpffs(self.dir.clone())) }
    }

    /// Interfaces that have pins, by slot. Folders that weir did not name are left out.
    pub fn interfaces(&self) -> Result<Vec<PinnedInterface>, PinError> {
        let dir = self.dir.join("interfaces");
        let entries = match fs::read_dir(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(at(&dir))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.map_err(at(&dir))?.file_name();
            if let Some((slot, ifindex)) = name.to_str().and_then(|name| name.split_once('-'))
                && let (Ok(slot), Ok(ifindex)) = (slot.parse(), ifindex.parse())
            {
                found.push(PinnedInterface { slot, ifindex });
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Removes an interface's pins: the program is detached when this returns.
    pub fn remove_interface(&self, interface: &PinnedInterface) -> Result<(), PinError> {
        let dir = self.interface(interface);
        let link = dir.join(LINK);
        link::detach(&link).map_err(at(&link))?;
        remove(&dir)
    }

    /// Removes everything: first the links, so that no program runs on maps that are half gone. What is missing already is
    /// fine. Returns whether there was anything.
    pub fn remove_all(&self) -> Result<bool, PinError> {
        let existed = self.dir.exists();
        for interface in self.interfaces()? {
            self.remove_interface(&interface)?;
        }
        for dir in [self.dir.join("interfaces"), self.loss(), self.dir.join("maps"), self.dir.clone()] {
            remove(&dir)?;
        }
        Ok(existed)
    }
}

/// Makes a folder for pins, owner only; it may exist.
pub fn make_dir(dir: &Path) -> Result<(), PinError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))
}

/// Whether the nearest existing ancestor of `path` lies in a bpf file system.
pub fn is_bpffs(path: &Path) -> bool {
    path.ancestors().find_map(|dir| statfs(dir).ok()).is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn remove(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(path)(e)),
        _ => Ok(()),
    }
}
