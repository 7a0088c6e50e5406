//! The API's Unix socket: who may use it, and what becomes of one that is already there.
//!
//! Invariant: a socket on which somebody listens is never taken over, and at no moment is the socket open to more users
//! than it will be in the end.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net,
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::stat::{Mode, umask},
    unistd::{Gid, Group, chown},
};
use tokio::net::UnixListener;

/// Longest path of a socket, in bytes (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens.
    #[error("somebody listens on {} already: is it running twice? give each a socket of its own", .0.display())]
    InUse(PathBuf),
    /// What is there is no socket, and is not removed.
    #[error("{} exists and is no socket; move it away or choose another path", .0.display())]
    NotSocket(PathBuf),
    /// Too long for a socket's address.
    #[error("the path {} is longer than {PATH_BYTES_MAX} bytes, more than a socket can have", .0.display())]
    TooLong(PathBuf),
    /// The group does not exist.
    #[error("there is no group `{0}` (api_group); create it with `groupadd --system {0}`")]
    NoGroup(String),
    /// The system refused.
    #[error("cannot {what} {}: {cause}", .path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// Listens at `path`, for the owner and, if given, `group`. Needs the runtime's context.
///
/// # Errors
/// [`SocketError`].
pub fn listen(path: &Path, group: Option<&str>) -> Result<UnixListener, SocketError> {
    let failed = |what| move |cause| SocketError::System { what, path: path.to_owned(), cause };
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(SocketError::TooLong(path.to_owned()));
    }
    let group = group.map(group_id).transpose()?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
    }
    remove_stale(path)?;
    // The mode is narrow from the first moment; only then is it widened for the group.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = net::UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(failed("listen on"))?;
    if let Some(group) = group {
        chown(path, None, Some(group)).map_err(|e| failed("give the group")(e.into()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed("open for the group"))?;
    }
    listener.set_nonblocking(true).map_err(failed("listen on"))?;
    UnixListener::from_std(listener).map_err(failed("listen on"))
}

/// Removes a socket on which nobody listens.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |what| move |cause| SocketError::System { what, path: path.to_owned(), cause };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at")(e)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::NotSocket(path.to_owned())),
        Ok(_) => {}
    }
    match net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove the stale socket"))
        }
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

fn group_id(name: &str) -> Result<Gid, SocketError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(SocketError::NoGroup(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test(flavor = "current_thread")]
    async fn replaces_only_what_is_stale() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/api.sock");
        let first = listen(&path, None).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(matches!(listen(&path, None), Err(SocketError::InUse(_))));
        drop(first);
        assert!(path.exists(), "the kernel leaves the name behind");
        listen(&path, None).unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(listen(&file, None), Err(SocketError::NotSocket(_))));
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_group_gets_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        assert!(matches!(listen(&path, Some("no-such-group")), Err(SocketError::NoGroup(_))));
        // One's own group can always be given.
        let own = Group::from_gid(nix::unistd::getegid()).unwrap().unwrap();
        let _listener = listen(&path, Some(&own.name)).unwrap();
        assert_eq!(mode(&path), 0o660);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_long_path_is_refused_in_words() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        assert!(matches!(listen(&path, None), Err(SocketError::TooLong(_))));
    }
}
