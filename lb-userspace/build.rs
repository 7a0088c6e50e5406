//! Builds the eBPF object and puts each of its programs into `OUT_DIR`, where `object.rs` includes them.
//!
//! A build of its own rather than aya-build's, which fixes the compiler flags: the programs need `target-cpu=v3`. Knows
//! how to find a compiler that can build for BPF; refuses to install one, which is the business of `cargo xtask setup`.
//!
//! A compiler is searched in this order: `WEIR_BPF_RUSTC`; a rustc on PATH whose sysroot holds `core` for the BPF target
//! (Debian's rustc-web with libstd-rust-web-dev-bpf); rustup's nightly with rust-src.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, exit},
};

/// The package that is built, beside this one.
const PACKAGE: &str = "xdp-ebpf";

/// A compiler that can build for the BPF target.
enum Compiler {
    /// It has a ready `core`; a stable compiler whose unstable features are freed for the named crates only.
    Ready(PathBuf),
    /// rustup's nightly, which builds `core` from source.
    Nightly,
}

fn main() {
    if let Err(reason) = build() {
        eprintln!("{reason}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    let manifest_dir = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(var("OUT_DIR")?);
    let root = manifest_dir.parent().ok_or("lb-userspace has no parent folder")?;
    for path in
        ["Cargo.toml", "xdp-ebpf/Cargo.toml", "xdp-ebpf/build.rs", "xdp-ebpf/src", "lb-core/Cargo.toml", "lb-core/src"]
    {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["WEIR_BPF_RUSTC", "CARGO_HOME"] {
        println!("cargo:rerun-if-env-changed={name}");
    }

    let target = match var("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let bins = bins(&root.join(PACKAGE).join("Cargo.toml"))?;
    let path = search_path();
    if find("bpf-linker", &path).is_none() {
        return Err(missing("bpf-linker, which links eBPF programs, is not on PATH"));
    }
    let compiler = compiler(target, &path)?;

    let mut cargo = match &compiler {
        Compiler::Ready(rustc) => {
            let mut cargo = Command::new(var("CARGO")?);
            // Frees the unstable features that these crates name, and no others.
            let freed = ["aya_ebpf"].into_iter().chain(bins.iter().map(String::as_str)).collect::<Vec<_>>();
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", freed.join(","));
            cargo
        }
        Compiler::Nightly => {
            let mut cargo = Command::new("rustup");
            cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
            cargo.env_remove("RUSTC").env_remove("RUSTC_BOOTSTRAP").env_remove("RUSTUP_TOOLCHAIN");
            cargo
        }
    };
    // What the outer cargo says to its own compiler, clippy among it, must not reach the inner one.
    for name in [
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_RUSTC_WRAPPER",
        "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "RUSTDOC",
        "CARGO_BUILD_TARGET",
        "CARGO_INCREMENTAL",
        "LD_LIBRARY_PATH",
        "LLVM_PROFILE_FILE",
    ] {
        cargo.env_remove(name);
    }
    // CARGO_CFG_TARGET_ARCH is what aya-ebpf calls the architecture of the kernel, except that it knows one RISC-V.
    let arch = match var("CARGO_CFG_TARGET_ARCH")? {
        arch if arch.starts_with("riscv64") => "riscv64".to_owned(),
        arch => arch,
    };
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    // A folder of its own: cargo would wait for the lock of the outer build's target folder.
    let target_dir = out_dir.join("bpf-target");
    cargo
        .env("PATH", &path)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--quiet", "--release", "--bins", "--package", PACKAGE, "--target", target])
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir);
    if env::var_os("CARGO_FEATURE_BPF_LOG").is_some() {
        cargo.args(["--features", "log"]);
    }
    let status = cargo.status().map_err(|e| missing(&format!("{:?} does not start: {e}", cargo.get_program())))?;
    if !status.success() {
        return Err("The eBPF programs did not compile; the compiler's messages stand above.".to_owned());
    }
    for bin in &bins {
        let from = target_dir.join(target).join("release").join(bin);
        fs::copy(&from, out_dir.join(bin)).map_err(|e| format!("cannot copy {}: {e}", from.display()))?;
    }
    Ok(())
}

/// Finds a compiler for `target`, or says what is missing.
fn compiler(target: &str, path: &OsString) -> Result<Compiler, String> {
    if let Some(rustc) = env::var_os("WEIR_BPF_RUSTC") {
        let rustc = PathBuf::from(rustc);
        return match has_core(&rustc, target) {
            true => Ok(Compiler::Ready(rustc)),
            false => Err(missing(&format!("WEIR_BPF_RUSTC={} has no core library for {target}", rustc.display()))),
        };
    }
    let candidates = env::split_paths(path).map(|dir| dir.join("rustc")).chain([PathBuf::from("/usr/bin/rustc")]);
    // rustup's proxy takes the toolchain from the environment, so it is seen here as what it stands for now.
    if let Some(rustc) = candidates.into_iter().find(|rustc| rustc.is_file() && has_core(rustc, target)) {
        return Ok(Compiler::Ready(rustc));
    }
    let nightly = output(Command::new("rustup").args(["run", "nightly", "rustc", "--print=sysroot"]));
    if nightly.is_some_and(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir()) {
        return Ok(Compiler::Nightly);
    }
    Err(missing("no Rust compiler on this machine can build for BPF"))
}

/// Whether the sysroot of `rustc` holds a compiled `core` for `target`.
fn has_core(rustc: &Path, target: &str) -> bool {
    let Some(sysroot) = output(Command::new(rustc).arg("--print=sysroot")) else { return false };
    let lib = Path::new(&sysroot).join("lib/rustlib").join(target).join("lib");
    let Ok(files) = fs::read_dir(lib) else { return false };
    files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
}

/// PATH, then cargo's folder of installed programs, which a fresh rustup may not have put there yet.
fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let dirs = env::split_paths(&path).chain(cargo_home.map(|home| home.join("bin")));
    env::join_paths(dirs).unwrap_or(path)
}

fn find(program: &str, path: &OsString) -> Option<PathBuf> {
    env::split_paths(path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Names of the `[[bin]]` targets of a manifest.
fn bins(manifest: &Path) -> Result<Vec<String>, String> {
    let text = fs::read_to_string(manifest).map_err(|e| format!("cannot read {}: {e}", manifest.display()))?;
    let names = text.split("[[bin]]").skip(1).filter_map(|section| {
        let line = section.lines().find(|line| line.starts_with("name"))?;
        Some(line.split('"').nth(1)?.to_owned())
    });
    Ok(names.collect())
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn missing(what: &str) -> String {
    format!("weir cannot build its eBPF programs: {what}; run `cargo xtask setup`, which installs what is missing.")
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}
