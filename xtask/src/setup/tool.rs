//! Which programs and toolchains this machine has.
//!
//! Reads only: nothing here installs or changes anything.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Version of bpf-linker that set-up installs: the newest that takes LLVM 22, the LLVM of Debian's rustc-web.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// A compiler that can make BPF code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BpfRustc {
    /// A compiler with a ready `core` for the BPF target, as Debian's rustc-web with libstd-rust-web-dev-bpf.
    Ready {
        /// The compiler.
        rustc: PathBuf,
        /// Its version line.
        version: String,
    },
    /// rustup's nightly with rust-src, which builds `core` along.
    Nightly,
}

impl fmt::Display for BpfRustc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { rustc, version } => write!(f, "{} ({version}) with a ready core", rustc.display()),
            Self::Nightly => write!(f, "rustup's nightly with rust-src"),
        }
    }
}

/// The program `name` on PATH, in the folders of root's programs, or among cargo's.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo = cargo_bin();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .chain(cargo)
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

/// Where `cargo install` puts programs.
pub fn cargo_bin() -> Option<PathBuf> {
    std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .map(|home| home.join("bin"))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// What `program arguments` prints, if it runs and succeeds.
pub fn output_of(program: impl AsRef<Path>, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program.as_ref()).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a compiler's sysroot holds a ready `core` for BPF.
fn has_bpf_core(sysroot: &Path) -> bool {
    let folder = sysroot.join("lib/rustlib/bpfel-unknown-none/lib");
    let Ok(entries) = folder.read_dir() else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// The first compiler that can make BPF code, the ready one preferred.
pub fn bpf_rustc() -> Option<BpfRustc> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    if is_executable(&rustc)
        && let Some(sysroot) = output_of(&rustc, &["--print", "sysroot"])
        && has_bpf_core(Path::new(&sysroot))
    {
        let version = output_of(&rustc, &["--version"]).unwrap_or_default();
        return Some(BpfRustc::Ready { rustc, version });
    }
    let sysroot = output_of("rustup", &["run", "nightly", "rustc", "--print", "sysroot"])?;
    Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file().then_some(BpfRustc::Nightly)
}

/// The linker of BPF objects and its version, if it runs.
pub fn bpf_linker() -> Option<(PathBuf, String)> {
    let file = find("bpf-linker")?;
    let version = output_of(&file, &["--version"])?;
    Some((file, version))
}

/// Names the distribution, as `/etc/os-release` does.
pub fn distribution() -> String {
    std::fs::read_to_string("/etc/os-release")
        .ok()
        .and_then(|text| pretty_name(&text))
        .unwrap_or_else(|| "this system".to_owned())
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_where_they_are_and_only_there() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-of-weir"), None);
    }

    #[test]
    fn the_distribution_names_itself() {
        assert_eq!(pretty_name("ID=debian\nPRETTY_NAME=\"Debian 12\"\n").as_deref(), Some("Debian 12"));
        assert_eq!(pretty_name("ID=x\n"), None);
    }

    #[test]
    fn a_sysroot_without_core_is_not_enough() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!has_bpf_core(folder.path()));
        let lib = folder.path().join("lib/rustlib/bpfel-unknown-none/lib");
        std::fs::create_dir_all(&lib).unwrap();
        assert!(!has_bpf_core(folder.path()));
        std::fs::write(lib.join("libcore-0123.rlib"), "").unwrap();
        assert!(has_bpf_core(folder.path()));
    }
}
