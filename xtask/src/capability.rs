//! What this kernel and this user may do, found out by doing it.
//!
//! Owns the questions that setup and the tests ask before they need an answer. Refuses to guess from versions. Nothing
//! that is tried here outlives the question.

use std::{fs, io, path::Path, process::Command};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::Uid,
};

/// Something that a tier needs and a machine may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// User id 0.
    Root,
    /// Creating a network namespace.
    Netns,
    /// Creating a veth pair.
    Veth,
    /// Creating a bridge.
    Bridge,
    /// Loading an XDP program.
    Bpf,
    /// A bpf file system to pin in, or the right to mount one.
    BpfFs,
}

/// All that the lab needs, in the order in which one failing explains the next.
pub const LAB: [Capability; 6] =
    [Capability::Root, Capability::Netns, Capability::Veth, Capability::Bridge, Capability::Bpf, Capability::BpfFs];
/// What loading and test-running a program needs.
pub const PROGRAM: [Capability; 2] = [Capability::Root, Capability::Bpf];
/// What a program on pinned maps needs.
pub const PINNED: [Capability; 3] = [Capability::Root, Capability::Bpf, Capability::BpfFs];

/// Folder where BPF objects are pinned.
pub const BPF_FS: &str = "/sys/fs/bpf";

/// The first of `wanted` that is missing, as a sentence that says what to do.
pub fn missing(wanted: &[Capability]) -> Option<String> {
    wanted.iter().find_map(|capability| capability.probe().err())
}

/// Whether a test that needs `wanted` may run.
///
/// On a laptop a missing capability is noted in the file `WEIR_SKIPPED` names (the test runner prints it) and the answer is
/// no. In CI it panics, which fails the test: there nothing may be skipped.
pub fn available(wanted: &[Capability], test: &str) -> bool {
    let Some(reason) = missing(wanted) else { return true };
    assert!(!crate::is_ci(), "{test} needs what this machine lacks, and CI may not skip: {reason}");
    eprintln!("skipped {test}: {reason}");
    if let Some(path) = std::env::var_os("WEIR_SKIPPED") {
        use std::io::Write;
        if let Ok(mut file) = fs::File::options().append(true).create(true).open(path) {
            // The note is for people; a full disk must not turn a skip into a failure.
            writeln!(file, "{test}: {reason}").ok();
        }
    }
    false
}

impl Capability {
    /// Tries it.
    pub fn probe(self) -> Result<(), String> {
        match self {
            Self::Root => Uid::effective().is_root().then_some(()).ok_or_else(|| {
                "not root: run it with `sudo -E env PATH=$PATH cargo xtask ...`, or as root".to_owned()
            }),
            Self::Netns => in_new_netns(|| Ok(())).map_err(|error| {
                format!("no network namespaces ({error}): needs CONFIG_NET_NS and CAP_SYS_ADMIN (in a container: --privileged)")
            }),
            Self::Veth => in_new_netns(|| link_add("veth")).map_err(|error| {
                format!("no veth pairs ({error}): needs CONFIG_VETH (`modprobe veth`) and CAP_NET_ADMIN")
            }),
            Self::Bridge => in_new_netns(|| link_add("bridge"))
                .map_err(|error| format!("no bridge ({error}): needs CONFIG_BRIDGE (`modprobe bridge`)")),
            Self::Bpf => load_xdp_program().map_err(|error| {
                format!("the kernel refuses an XDP program ({error}): needs CONFIG_BPF_SYSCALL, CAP_BPF and CAP_NET_ADMIN")
            }),
            Self::BpfFs => bpf_fs().map_err(|error| {
                format!("no bpf file system ({error}): `mount -t bpf bpf {BPF_FS}` needs CAP_SYS_ADMIN")
            }),
        }
    }
}

/// Mounts the bpf file system where it is usual, unless it is there.
pub fn bpf_fs() -> io::Result<()> {
    let stat = nix::sys::statfs::statfs(BPF_FS)?;
    if stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC {
        return Ok(());
    }
    if !Path::new(BPF_FS).is_dir() {
        return Err(io::Error::other("the kernel offers no /sys/fs/bpf"));
    }
    nix::mount::mount(Some("bpf"), BPF_FS, Some("bpf"), nix::mount::MsFlags::empty(), Some("mode=0700"))?;
    Ok(())
}

/// Runs `action` on a thread of its own in a network namespace that ends with the thread.
fn in_new_netns(action: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            action()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the probing thread panicked")))
    })
}

/// A child inherits the namespace of the thread that starts it.
fn link_add(kind: &str) -> io::Result<()> {
    let output = Command::new(crate::setup::tool::find("ip").unwrap_or_else(|| "ip".into()))
        .args(["link", "add", "weir-probe", "type", kind])
        .output()
        .map_err(|error| io::Error::other(format!("cannot run ip: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Loads `r0 = XDP_PASS; exit` and closes it again.
fn load_xdp_program() -> io::Result<()> {
    /// First part of `union bpf_attr` for BPF_PROG_LOAD (linux/bpf.h).
    #[repr(C)]
    #[derive(Default)]
    struct ProgLoad {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    // struct bpf_insn: opcode, registers, offset, immediate. `mov64 r0, 2` and `exit`.
    let instructions: [u64; 2] =
        [u64::from_le_bytes([0xb7, 0, 0, 0, 2, 0, 0, 0]), u64::from_le_bytes([0x95, 0, 0, 0, 0, 0, 0, 0])];
    let license = c"GPL";
    let attributes = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: 2,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..ProgLoad::default()
    };
    // SAFETY: `attributes` and the two buffers it points to live until the call returns, and the size passed is its own.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<ProgLoad>()) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just returned by the kernel and nobody else knows it.
    unsafe { libc::close(descriptor as libc::c_int) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_root_the_sentence_says_what_to_run() {
        if Uid::effective().is_root() {
            assert!(Capability::Root.probe().is_ok());
        } else {
            assert!(missing(&LAB).unwrap().contains("sudo"));
        }
    }
}
