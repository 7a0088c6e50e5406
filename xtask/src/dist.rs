//! `cargo xtask dist`: a release as one tarball, for machines without Rust.
//!
//! Owns: what is in it. Invariants: everything in the tarball is made from this working copy, the man pages and completions by
//! the very binary that is shipped; a tarball that lacks anything is not left behind.

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
const FILES: [(&str, &str); 15] = [
    ("lb-userspace/assets/weir.service", "weir.service"),
    ("lb-userspace/assets/weir.toml", "weir.toml"),
    ("lb-userspace/assets/weir-dns.service", "weir-dns.service"),
    ("lb-userspace/assets/dns.toml", "dns.toml"),
    ("lb-userspace/assets/weir-orchestrator.service", "weir-orchestrator.service"),
    ("lb-userspace/assets/orchestrator.toml", "orchestrator.toml"),
    ("lb-userspace/assets/prometheus/prometheus.yml", "prometheus/prometheus.yml"),
    ("lb-userspace/assets/prometheus/weir.rules.yml", "prometheus/weir.rules.yml"),
    ("lb-userspace/assets/prometheus/weir.dashboard.json", "prometheus/weir.dashboard.json"),
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("LICENSE-GPL-2.0", "LICENSE-GPL-2.0"),
    ("scripts/pktgen.sh", "pktgen.sh"),
];

/// Shells and the names under which each looks for completions.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "weir.bash"), ("zsh", "_weir"), ("fish", "weir.fish")];

/// What every tarball holds besides the man pages of subcommands, as paths below its folder.
fn contents() -> Vec<String> {
    let files = FILES.iter().map(|(_, to)| (*to).to_owned());
    let completions = COMPLETIONS.iter().map(|(_, file)| format!("completions/{file}"));
    ["weir", "man/weir.1"].map(str::to_owned).into_iter().chain(files).chain(completions).collect()
}

/// What of [`contents`] is not in `listing`, the paths that `tar -t` prints of a tarball with the folder `name`.
fn missing(listing: &str, name: &str) -> Vec<String> {
    let held = |path: &String| listing.lines().any(|line| line == format!("{name}/{path}"));
    contents().into_iter().filter(|path| !held(path)).collect()
}

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
    fs::create_dir_all(tree.join("prometheus"))?;
    // Three quarters of the file are line tables. The names of functions stay, for backtraces and perf.
    output(Command::new("strip").args(["--strip-debug", "-o"]).arg(tree.join("weir")).arg(&binary))?;
    for (from, to) in FILES {
        copy(&root().join(from), &tree.join(to))?;
    }
    output(Command::new(&binary).arg("man").arg(tree.join("man")))?;
    for (shell, file) in COMPLETIONS {
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
    let missing = missing(&output(Command::new("tar").arg("-tzf").arg(&tarball))?, &name);
    if !missing.is_empty() {
        fs::remove_file(&tarball)?;
        bail!("the tarball would lack {}", missing.join(", "));
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_file_that_is_packed_is_in_the_working_copy() {
        for (from, _) in FILES {
            assert!(root().join(from).is_file(), "{from}");
        }
    }

    #[test]
    fn nothing_is_packed_over_something_else() {
        let contents = contents();
        assert_eq!(contents.iter().collect::<BTreeSet<_>>().len(), contents.len(), "{contents:?}");
    }

    #[test]
    fn whatever_a_tarball_lacks_is_named() {
        let listing: String = contents().iter().map(|path| format!("weir-1/{path}\n")).collect();
        assert_eq!(missing(&listing, "weir-1"), Vec::<String>::new());
        for path in contents() {
            let lacking = listing.replace(&format!("weir-1/{path}\n"), "");
            assert_eq!(missing(&lacking, "weir-1"), [path]);
        }
        assert_eq!(missing(&listing, "weir-2"), contents(), "files of another release");
    }
}
