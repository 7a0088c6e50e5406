//! One agent per pin folder: a lock file that the kernel releases with the process, however it ends.
//!
//! Invariant: the file's content (the pid) only serves the error message; the lock decides.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error(
        "another weir agent (pid {pid}) works on {}; stop it first, or give this one its own `pin_dir`", .pin_dir.display()
    )]
    Held {
        /// Its process id, as it wrote it; `?` if unreadable.
        pid: String,
        /// The pin folder.
        pin_dir: PathBuf,
    },
    /// The lock file cannot be made.
    #[error("cannot lock {}: {cause}", .path.display())]
    File {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// The lock; dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock for `pin_dir` with a file in `runtime_dir`, which is made if it is missing.
    ///
    /// # Errors
    /// [`LockError::Held`] names the other process.
    pub fn acquire(runtime_dir: &Path, pin_dir: &Path) -> Result<Self, LockError> {
        let path = runtime_dir.join(file_name(pin_dir));
        let failed = |cause| LockError::File { path: path.clone(), cause };
        fs::create_dir_all(runtime_dir).map_err(failed)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
                writeln!(file, "{}", std::process::id()).map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let _ = (&file).take(32).read_to_string(&mut pid);
                let pid = pid.trim();
                let pid = if pid.is_empty() { "?" } else { pid }.to_owned();
                Err(LockError::Held { pid, pin_dir: pin_dir.to_owned() })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

/// `/sys/fs/bpf/weir` gives `agent-sys-fs-bpf-weir.lock`.
fn file_name(pin_dir: &Path) -> String {
    let parts: Vec<_> = pin_dir
        .components()
        .filter_map(|c| match c {
            std::path::Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect();
    format!("agent-{}.lock", parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let first = Lock::acquire(&run, Path::new("/sys/fs/bpf/weir")).unwrap();
        let other_pins = Lock::acquire(&run, Path::new("/sys/fs/bpf/other")).unwrap();
        match Lock::acquire(&run, Path::new("/sys/fs/bpf/weir")) {
            Err(LockError::Held { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(first);
        Lock::acquire(&run, Path::new("/sys/fs/bpf/weir")).unwrap();
        drop(other_pins);
    }

    #[test]
    fn names_follow_the_folder() {
        assert_eq!(file_name(Path::new("/sys/fs/bpf/weir")), "agent-sys-fs-bpf-weir.lock");
    }
}
