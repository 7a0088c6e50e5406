//! The last good copy: what the store said and this node applied, for starts at which the store does not answer.
//!
//! Owns: when it is written. Invariant: a state is kept only after it was applied.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use crate::store::{
    Snapshot,
    copy::{self, CopyError},
};

/// Pause between two writes: after a crash, an older copy is as good as any, the store has the rest.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads the copy; `None` if there is none.
///
/// # Errors
/// The file cannot be read, or is no copy.
pub fn load(file: &Path) -> Result<Option<Snapshot>, CopyError> {
    match copy::read(file) {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(CopyError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps what comes, the newest at the latest [`PAUSE`] after it came; ends with its source.
pub async fn run(file: PathBuf, mut good: watch::Receiver<Option<Arc<Snapshot>>>) {
    let mut failed = false;
    while good.changed().await.is_ok() {
        let Some(snapshot) = good.borrow_and_update().clone() else { continue };
        let to = file.clone();
        let saved = tokio::task::spawn_blocking(move || copy::write(&to, &snapshot)).await;
        match saved.map_err(|e| CopyError::Io(io::Error::other(e))).and_then(|saved| saved) {
            Ok(()) => failed = false,
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::error!(%error, "cannot keep a copy of the configuration in {}", file.display());
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_copy_is_no_error_and_a_damaged_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("copy.json");
        assert_eq!(load(&file).unwrap(), None);
        std::fs::write(&file, "{\"origin\":").unwrap();
        assert!(load(&file).is_err());
    }
}
