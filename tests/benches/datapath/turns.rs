//! Turns of two runs of the bench, as of two commits: whoever holds the lock of one file measures, the other waits.
//!
//! So both meet the same seconds of a machine whose speed changes from one second to the next.

use std::{fs::File, path::Path, thread::sleep, time::Duration};

use anyhow::{Context, Result};

/// What the other run needs to take the lock that it waits for, before this one asks for it again.
const HAND_OVER: Duration = Duration::from_millis(1);

/// The file that is locked, if turns are taken.
#[derive(Default)]
pub struct Turns(Option<File>);

impl Turns {
    /// Turns by the lock of the file at `path`, which is made.
    ///
    /// # Errors
    /// If it cannot be opened for writing.
    pub fn by(path: &Path) -> Result<Self> {
        let file = File::options().create(true).truncate(false).write(true).open(path);
        Ok(Self(Some(file.with_context(|| format!("cannot take turns by {}", path.display()))?)))
    }

    /// Waits for this run's turn, and does `work` in it.
    ///
    /// # Errors
    /// Those of the work; if the file cannot be locked.
    pub fn take<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(file) = &self.0 else { return work() };
        file.lock().context("cannot lock the file of turns")?;
        let done = work();
        file.unlock().context("cannot unlock the file of turns")?;
        sleep(HAND_OVER);
        done
    }
}
