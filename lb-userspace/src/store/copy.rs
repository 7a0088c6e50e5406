//! The last good state of a store, as a node keeps it in a file of its own: what `weir config restore` puts back.
//!
//! Invariant: the file holds one whole state or is not there; a half-written one is never seen under its name.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::{access::Snapshot, file::replace_file, object::STORE_BYTES_MAX};

/// Name of the file in a node's `state_dir`.
pub const COPY_FILE: &str = "store.json";
/// Largest file that is read: JSON doubles what it must escape.
const BYTES_MAX: u64 = 2 * STORE_BYTES_MAX as u64 + (16 << 20);

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The file system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The content.
    #[error("it holds no state of a store: {0}")]
    Content(#[from] serde_json::Error),
    /// Too large.
    #[error("it is larger than any state of a store")]
    TooLarge,
}

/// Writes `snapshot` in place of what `path` held.
///
/// # Errors
/// [`CopyError::Io`].
pub fn write(path: &Path, snapshot: &Snapshot) -> Result<(), CopyError> {
    Ok(replace_file(path, &serde_json::to_vec(snapshot)?, Some(0o600))?)
}

/// Reads what [`write()`] wrote.
///
/// # Errors
/// [`CopyError`].
pub fn read(path: &Path) -> Result<Snapshot, CopyError> {
    let mut text = Vec::new();
    File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(CopyError::TooLarge);
    }
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::{Key, Objects, Revision, object::Digest};

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(COPY_FILE);
        let origin = Digest::new([3; 32]);
        let objects = Objects::from([(Key::new("service/web").unwrap(), "[[service]]\nname = \"web\"\n".into())]);
        let snapshot = Snapshot { origin, revision: Revision::origin(origin), objects };
        assert!(matches!(read(&path), Err(CopyError::Io(_))));
        write(&path, &snapshot).unwrap();
        write(&path, &snapshot).unwrap();
        assert_eq!(read(&path).unwrap(), snapshot);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::write(&path, "{").unwrap();
        assert!(matches!(read(&path), Err(CopyError::Content(_))));
    }
}
