//! Debian packages: which are offered, and installing them.
//!
//! Invariants: nothing is removed; no service that comes with a package keeps running or starts at boot; a lock that another
//! program holds is waited for; an earlier run that was interrupted is finished first.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};
use nix::unistd::Uid;

use super::tool;
use crate::step;

/// Seconds to wait for another package manager.
const LOCK_TIMEOUT_S: u32 = 300;
/// Programs whose packages bring a service along: program, service, its process id file.
const SERVICES: [(&str, &str, &str); 5] = [
    ("nginx", "nginx", "/run/nginx.pid"),
    ("redis-server", "redis-server", "/run/redis/redis-server.pid"),
    ("named", "named", "/run/named/named.pid"),
    ("knotd", "knot", "/run/knot/knot.pid"),
    ("prometheus", "prometheus", "/run/prometheus/prometheus.pid"),
];

/// The command that installs `packages`.
pub fn install_command(packages: &[String]) -> Command {
    let mut command = apt_get();
    command.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages);
    command
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Maintainer scripts start a service only in a run level that has it; 1 has none.
        .env("RUNLEVEL", "1")
        .args(["-o", &format!("DPkg::Lock::Timeout={LOCK_TIMEOUT_S}")]);
    command
}

/// Installs `packages`; what is installed already is left alone.
pub fn install(packages: &[String]) -> Result<()> {
    if tool::find("apt-get").is_none() {
        bail!("no apt-get here: set-up installs packages on Debian and its relatives only");
    }
    if !Uid::effective().is_root() {
        bail!(
            "installing packages needs root; run as root:\n  apt-get update && {}",
            step::command_line(&install_command(packages))
        );
    }
    let absent_before: Vec<_> = SERVICES.iter().filter(|(program, ..)| tool::find(program).is_none()).collect();
    if interrupted(Path::new("/var/lib/dpkg/updates")) {
        println!("an earlier installation was interrupted; finishing it: dpkg --configure -a");
        step::run("finishing an interrupted installation", "setup", Command::new("dpkg").args(["--configure", "-a"]))?;
    }
    if packages.iter().any(|name| !is_offered(name)) {
        step::run("reading package lists (apt-get update)", "setup", apt_get().arg("update"))?;
    }
    let absent: Vec<_> = packages.iter().filter(|name| !is_offered(name)).map(String::as_str).collect();
    if !absent.is_empty() {
        bail!("{} has no package {}", tool::distribution(), absent.join(", "));
    }
    let title = format!("installing {}", packages.join(" "));
    if step::run(&title, "setup", &mut install_command(packages)).is_err() {
        // Lists that are a few weeks old name versions that the mirrors have deleted.
        println!("trying once more with fresh package lists");
        step::run("reading package lists (apt-get update)", "setup", apt_get().arg("update"))?;
        step::run(&title, "setup", &mut install_command(packages))?;
    }
    for (program, service, pid_file) in absent_before {
        if tool::find(program).is_some() {
            silence(service, Path::new(pid_file))?;
        }
    }
    Ok(())
}

/// Whether dpkg has notes of an unfinished run.
fn interrupted(updates: &Path) -> bool {
    updates.read_dir().is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().chars().all(|c| c.is_ascii_digit()))
    })
}

/// Whether a package has a version that can be installed.
fn is_offered(package: &str) -> bool {
    tool::output_of("apt-cache", &["policy", package]).is_some_and(|text| has_candidate(&text))
}

fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|candidate| !matches!(candidate.trim(), "" | "(none)"))
}

/// Lab and tests start servers of their own; the one of the distribution, which this run installed, stays off.
fn silence(service: &str, pid_file: &Path) -> Result<()> {
    println!("the {service} service that came with the package is switched off: lab and tests start their own");
    let title = format!("stopping the {service} service");
    if Path::new("/run/systemd/system").is_dir() {
        return step::run(&title, "setup", Command::new("systemctl").args(["disable", "--now", service]));
    }
    if pid_file.exists() {
        step::run(&title, "setup", Command::new("service").args([service, "stop"]))?;
    }
    // The package may have switched it on for the next boot of a machine whose systemd does not run now.
    if tool::find("systemctl").is_some() {
        step::run(&title, "setup", Command::new("systemctl").args(["disable", service]))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_a_candidate_is_not_offered() {
        assert!(has_candidate("nginx:\n  Installed: (none)\n  Candidate: 1.22.1-9\n"));
        assert!(!has_candidate("nginx:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }

    #[test]
    fn an_unfinished_run_of_dpkg_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!interrupted(folder.path()));
        std::fs::create_dir(folder.path().join("tmp.i")).unwrap();
        assert!(!interrupted(folder.path()));
        std::fs::write(folder.path().join("0001"), "").unwrap();
        assert!(interrupted(folder.path()));
    }
}
