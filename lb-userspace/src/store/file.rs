//! A configuration file: read whole, replaced atomically, watched.
//!
//! The watch is on the folder, because editors replace a file by renaming another one over it and a watch on the file
//! itself would stay with the old one. A change is only a wake-up: the reader reads the file and compares texts, so a
//! lost, doubled or foreign event costs a read at most. What does *not* wake: writes before the writer closes the file, and a
//! file that is moved away or removed, after which editors write it anew. So a half-written file is not mistaken for a
//! broken one, nor worse, for a shorter one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use notify::{
    Event, EventKind, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind, RenameMode},
};
use tokio::sync::mpsc;

/// Largest configuration that is read, in bytes: 65,536 backends take about 8 MiB.
pub const FILE_BYTES_MAX: u64 = 32 << 20;

/// A configuration text.
#[derive(Clone, PartialEq, Eq)]
pub struct Text {
    /// The text.
    pub text: String,
}

impl Text {
    /// A text.
    pub fn new(text: String) -> Self {
        Self { text }
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Text({} bytes)", self.text.len())
    }
}

/// Why the file cannot be read, written or watched.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("cannot read {}: {cause}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It is larger than [`FILE_BYTES_MAX`].
    #[error("{} has more than {FILE_BYTES_MAX} bytes, which no configuration needs", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no UTF-8.
    #[error("{} is not UTF-8 text (byte {at})", .path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// First byte that is not.
        at: usize,
    },
    /// It cannot be replaced.
    #[error("cannot replace {}: {cause}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Its folder cannot be watched.
    #[error("cannot watch {}: {cause}", .path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What the watcher said.
        cause: notify::Error,
    },
}

/// A configuration file.
#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
}

impl FileStore {
    /// The store in the file `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        // A watch survives a change of the working folder only with an absolute path.
        Self { path: std::path::absolute(&path).unwrap_or(path) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole text.
    ///
    /// # Errors
    /// [`FileError::Read`], [`FileError::TooLarge`], [`FileError::NotText`].
    pub fn read(&self) -> Result<Text, FileError> {
        let path = || self.path.clone();
        let file = File::open(&self.path).map_err(|cause| FileError::Read { path: path(), cause })?;
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|cause| FileError::Read { path: path(), cause })?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(FileError::TooLarge { path: path() });
        }
        String::from_utf8(bytes)
            .map(Text::new)
            .map_err(|e| FileError::NotText { path: path(), at: e.utf8_error().valid_up_to() })
    }

    /// Replaces the whole text: a reader sees the old or the new one, never a part, also after a crash. Owner, group and
    /// mode stay as they were; a symbolic link stays one.
    ///
    /// # Errors
    /// [`FileError::Write`]; the file is unchanged then.
    pub fn replace(&self, text: &str) -> Result<(), FileError> {
        let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        replace_file(&target, text.as_bytes(), None).map_err(|cause| FileError::Write { path: target, cause })
    }

    /// News that the file may have changed. Lives as long as the returned [`Watch`].
    ///
    /// # Errors
    /// [`FileError::Watch`].
    pub fn watch(&self) -> Result<Watch, FileError> {
        let (sender, changed) = mpsc::channel(1);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |cause| FileError::Watch { path, cause }
        };
        let file = self.path.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, |event| may_change(event, &file)) {
                // Full means that a wake-up already waits; closed means that nobody does.
                let _ = sender.try_send(());
            }
        })
        .map_err(failed(&self.path))?;
        for folder in self.folders() {
            watcher.watch(&folder, RecursiveMode::NonRecursive).map_err(failed(&folder))?;
        }
        Ok(Watch { _watcher: watcher, changed })
    }

    /// The folder that holds the name and, for a symbolic link, the one that holds the file.
    fn folders(&self) -> Vec<PathBuf> {
        let parent = |path: &Path| path.parent().map(Path::to_owned);
        let mut folders: Vec<PathBuf> = parent(&self.path).into_iter().collect();
        if let Some(real) = fs::canonicalize(&self.path).ok().as_deref().and_then(parent)
            && !folders.iter().any(|f| fs::canonicalize(f).is_ok_and(|f| f == real))
        {
            folders.push(real);
        }
        folders
    }
}

/// Whether an event in the folder means that `file` may have a new and complete text. An error of the watcher counts as one
/// too: it may hide events.
fn may_change(event: &Event, file: &Path) -> bool {
    if event.need_rescan() {
        return true;
    }
    let complete = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        // Where the last path of an event stands now, a file has just been put.
        EventKind::Modify(ModifyKind::Name(mode)) => mode != RenameMode::From,
        // A new regular file is announced again when its writer closes it; a symbolic link is not.
        EventKind::Create(CreateKind::File | CreateKind::Any | CreateKind::Other) => {
            event.paths.iter().any(|path| path.is_symlink())
        }
        _ => false,
    };
    let real = fs::canonicalize(file).ok();
    let names = || [Some(file), real.as_deref()].into_iter().flatten().map(Path::file_name);
    // A link of any name may be on the way to the file.
    let concerned = |path: &PathBuf| names().any(|name| name == path.file_name()) || path.is_symlink();
    complete && event.paths.last().is_some_and(concerned)
}

/// A running watch.
#[derive(Debug)]
pub struct Watch {
    _watcher: notify::RecommendedWatcher,
    changed: mpsc::Receiver<()>,
}

impl Watch {
    /// Waits for the next news; several at once are one. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.changed.recv().await.is_none() {
            // The watcher is gone; a reload by signal or API still works.
            std::future::pending::<()>().await;
        }
    }
}

/// Writes `bytes` to a new file beside `target`, then renames it over `target`. `mode` for a file that does not exist
/// yet or whose mode must be that; else owner, group and mode are kept (0640 for a new file).
///
/// # Errors
/// What the system said; `target` is unchanged then.
pub fn replace_file(target: &Path, bytes: &[u8], mode: Option<u32>) -> io::Result<()> {
    let name = target.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
    let mut fresh_name = std::ffi::OsString::from(".");
    fresh_name.push(name);
    fresh_name.push(format!(".{}.new", std::process::id()));
    let fresh = target.with_file_name(fresh_name);
    let old = fs::metadata(target).ok();
    let mode = mode.or(old.as_ref().map(|m| m.permissions().mode() & 0o7777)).unwrap_or(0o640);
    let written = (|| {
        // One that a crash left behind would stop `create_new` for ever.
        let _ = fs::remove_file(&fresh);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        if let Some(old) = &old {
            let now = file.metadata()?;
            if (old.uid(), old.gid()) != (now.uid(), now.gid()) {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&fresh, target)?;
        // The rename itself must survive a crash, else the old text comes back.
        target.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);
    const QUIET: Duration = Duration::from_millis(150);

    async fn wakes(watch: &mut Watch) -> bool {
        tokio::time::timeout(SOON, watch.changed()).await.is_ok()
    }

    async fn settle(watch: &mut Watch) {
        while tokio::time::timeout(QUIET, watch.changed()).await.is_ok() {}
    }

    #[test]
    fn replaces_whole_and_keeps_mode() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(folder.path().join("weir.toml"));
        assert!(matches!(store.read(), Err(FileError::Read { .. })));
        store.replace("a = 1\n").unwrap();
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o604)).unwrap();
        store.replace("a = 2\n").unwrap();
        assert_eq!(store.read().unwrap(), Text::new("a = 2\n".into()));
        assert_eq!(fs::metadata(store.path()).unwrap().permissions().mode() & 0o777, 0o604);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn refuses_what_is_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(folder.path().join("weir.toml"));
        fs::write(store.path(), b"ab\xff").unwrap();
        assert!(matches!(store.read(), Err(FileError::NotText { at: 2, .. })));
        File::create(store.path()).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(store.read(), Err(FileError::TooLarge { .. })));
    }

    #[test]
    fn a_failed_replace_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("weir.toml");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("inside"), "x").unwrap();
        assert!(matches!(FileStore::new(&target).replace("a"), Err(FileError::Write { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn every_way_to_save_wakes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weir.toml");
        fs::write(&path, "1").unwrap();
        let store = FileStore::new(&path);
        let mut watch = store.watch().unwrap();
        // Written in place.
        fs::write(&path, "2").unwrap();
        assert!(wakes(&mut watch).await, "written in place");
        settle(&mut watch).await;
        // Renamed over, twice: the watch must not stay with the old file.
        for text in ["3", "4"] {
            store.replace(text).unwrap();
            assert!(wakes(&mut watch).await, "renamed over: {text}");
            settle(&mut watch).await;
        }
        // Moved away, written anew: what editors with backups do.
        fs::rename(&path, folder.path().join("weir.toml~")).unwrap();
        fs::write(&path, "5").unwrap();
        assert!(wakes(&mut watch).await, "moved and written");
        settle(&mut watch).await;
        // Reading wakes nobody, or a reload would cause the next one.
        store.read().unwrap();
        assert!(tokio::time::timeout(QUIET, watch.changed()).await.is_err(), "a read is no change");
        // Nor does what stands beside the file, or a file that is not complete yet.
        fs::write(folder.path().join("other.toml"), "6").unwrap();
        fs::rename(&path, folder.path().join("weir.toml~")).unwrap();
        let mut half = File::create(&path).unwrap();
        half.write_all(b"half").unwrap();
        assert!(tokio::time::timeout(QUIET, watch.changed()).await.is_err(), "nothing was saved yet");
        drop(half);
        assert!(wakes(&mut watch).await, "closed");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_target_of_a_link_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let real = tempfile::tempdir().unwrap();
        let target = real.path().join("real.toml");
        fs::write(&target, "1").unwrap();
        let link = folder.path().join("weir.toml");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let store = FileStore::new(&link);
        let mut watch = store.watch().unwrap();
        store.replace("2").unwrap();
        assert!(wakes(&mut watch).await, "replaced behind the link");
        assert!(link.symlink_metadata().unwrap().is_symlink(), "the link stays a link");
        settle(&mut watch).await;
        // A link that is swapped, as mounted configuration volumes do.
        let other = real.path().join("other.toml");
        fs::write(&other, "3").unwrap();
        let fresh = folder.path().join("fresh");
        std::os::unix::fs::symlink(&other, &fresh).unwrap();
        fs::rename(&fresh, &link).unwrap();
        assert!(wakes(&mut watch).await, "link swapped");
        assert_eq!(store.read().unwrap().text, "3");
    }
}
