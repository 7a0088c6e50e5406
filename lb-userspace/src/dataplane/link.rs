//! Ends pinned links at once.
//!
//! Removing a link's pin ends it too, but the kernel does that later, from a worker and after an RCU grace: the interface
//! stays occupied for some milliseconds, packets still meet the program, and whoever attaches next is told `EBUSY`.
//!
//! Owns: one call that aya has no name for. Refuses to know: what is attached, and where pins lie.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::bpf_cmd;

/// `union bpf_attr` for `BPF_OBJ_GET` (linux/bpf.h).
#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
struct LinkDetach {
    link_fd: u32,
}

/// Detaches the link that is pinned at `pin`; when this returns, no packet meets its program any more. The pin stays, and
/// names a link without effect. A missing pin is fine.
///
/// # Errors
/// The kernel's: `EINVAL` if something else is pinned there, `EOPNOTSUPP` if links of this type cannot be detached (those
/// of tracing), which then only end with their last name.
pub fn detach(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the attributes are the kernel's form for this command, and the path that they point to outlives the call.
    let fd = match unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &get) } {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        fd => fd?,
    };
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let detach = LinkDetach { link_fd: link.as_raw_fd() as u32 };
    // SAFETY: the attributes are the kernel's form for this command and point to nothing.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &detach) }.map(drop)
}

/// # Safety
/// `attributes` must be what the kernel reads for `command`, with valid pointers.
unsafe fn bpf<T>(command: bpf_cmd, attributes: &T) -> io::Result<i32> {
    // SAFETY: the caller's promise; the size is that of `attributes`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
