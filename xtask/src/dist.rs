//! `cargo xtask dist`: a release as one tarball, for machines without Rust.
//!
//! Owns: what is in it. Invariant: everything in the tarball is made from this working copy, the man pages and completions by
//! the very binary that is shipped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{root, step, target_dir};

/// Arguments of `dist`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder for the tarball
    #[arg(long, default_value = "target/dist")]
    out: PathBuf,
}

/// Files of the working copy and their places in the tarball.
const FILES: [(&str, &str); 8] = [
    ("lb-userspace/assets/weir.service", "weir.service"),
    ("lb-userspace/assets/weir.toml", "weir.toml"),
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("LICENSE-GPL-2.0", "LICENSE-GPL-2.0"),
    ("scripts/pktgen.sh", "pktgen.sh"),
];

/// Builds and packs; prints what was made.
pub fn run(args: &Args) -> Result<()> {
    step::run(
        "release build",
        "dist",
        Command::new("cargo").args(["build", "--release", "-p", "lb-userspace"]).current_dir(root()),
    )?;
    let binary = target_dir().join("release/weir");
    let version = output(Command::new(&binary).arg("--version"))?;
    let version = version.split_whitespace().last().context("`weir --version` printed nothing")?.to_owned();
    let name = format!("weir-{version}-{}-linux", std::env::consts::ARCH);
    let out = root().join(&args.out);
    let tree = out.join(&name);
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    fs::create_dir_all(tree.join("man")).with_context(|| format!("creating {}", tree.display()))?;
    fs::create_dir_all(tree.join("completions"))?;
    copy(&binary, &tree.join("weir"))?;
    for (from, to) in FILES {
        copy(&root().join(from), &tree.join(to))?;
    }
    output(Command::new(&binary).arg("man").arg(tree.join("man")))?;
    for (shell, file) in [("bash", "weir.bash"), ("zsh", "_weir"), ("fish", "weir.fish")] {
        let text = output(Command::new(&binary).args(["completions", shell]))?;
        fs::write(tree.join("completions").join(file), text)?;
    }
    let check = Command::new(tree.join("weir")).args(["config", "check"]).arg(tree.join("weir.toml")).status()?;
    if !check.success() {
        bail!("the shipped configuration does not pass the shipped `weir config check`");
    }

    let tarball = out.join(format!("{name}.tar.gz"));
    // Owner and order fixed, so that two builds of the same tree differ in times alone.
    output(
        Command::new("tar")
            .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-czf"])
            .arg(&tarball)
            .arg("-C")
            .arg(&out)
            .arg(&name),
    )?;
    let sum = output(Command::new("sha256sum").arg(format!("{name}.tar.gz")).current_dir(&out))?;
    fs::write(out.join(format!("{name}.tar.gz.sha256")), &sum)?;
    fs::remove_dir_all(&tree)?;
    println!("{} ({} KiB)", tarball.display(), fs::metadata(&tarball)?.len() / 1024);
    print!("sha256 {sum}");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let done = command.output().with_context(|| format!("cannot start `{}`", step::command_line(command)))?;
    if !done.status.success() {
        bail!("`{}` failed: {}", step::command_line(command), String::from_utf8_lossy(&done.stderr));
    }
    String::from_utf8(done.stdout).context("output is not UTF-8")
}
