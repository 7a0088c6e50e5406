//! The lab: a client, the load balancer and its backends as network namespaces, joined by veth pairs and bridges.
//!
//! Owns what exists while a lab is up and how it goes away. Refuses to know what is tested in it. Invariants: everything is
//! written down before it is made, so an interrupted lab can be removed; only processes that a lab started are ended, and
//! never another one that got the same pid; a lab's name is in the name of each of its namespaces, so labs do not meet.

pub mod agent;
pub mod client;
pub mod command;
pub mod echo;
pub mod netns;
pub mod process;
pub mod record;
pub mod server;
pub mod topology;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::capability;
use netns::Namespace;
use process::Process;
use record::Record;
use topology::{HOSTS, Host};

/// Folder with one folder per lab.
const RUN: &str = "/run/weir-lab";

/// A lab that is up. Dropping it leaves it up: [`Lab::down`] takes it down.
#[derive(Debug)]
pub struct Lab {
    name: String,
    weir: PathBuf,
    record: Record,
}

impl Lab {
    /// Lays out namespaces, links and servers, after removing what an earlier lab of that name left.
    ///
    /// `weir` is the product's binary: its `decap` takes packets out of their tunnels on the backends.
    pub fn up(name: &str, weir: &Path) -> Result<Self> {
        check_name(name)?;
        if let Some(reason) = capability::missing(&capability::LAB) {
            bail!("no lab here: {reason}");
        }
        Self::down(name)?;
        let record = Record::create(&Path::new(RUN).join(name))?;
        let mut lab = Self { name: name.to_owned(), weir: weir.to_owned(), record };
        match lab.build() {
            Ok(()) => Ok(lab),
            Err(error) => {
                // The first error is the one to tell; what is left is written down for the next run.
                Self::down(name).ok();
                Err(error.context(format!("laying out the lab `{name}`")))
            }
        }
    }

    /// A lab that another process left up.
    pub fn open(name: &str, weir: &Path) -> Result<Self> {
        check_name(name)?;
        let record = Record::open(&Path::new(RUN).join(name))?
            .with_context(|| format!("there is no lab `{name}`: `cargo xtask lab up` makes one"))?;
        Ok(Self { name: name.to_owned(), weir: weir.to_owned(), record })
    }

    fn build(&mut self) -> Result<()> {
        for host in HOSTS {
            let namespace = self.namespace(host);
            self.record.add_namespace(namespace.name())?;
            namespace.create()?;
        }
        for host in HOSTS {
            for (key, value) in topology::sysctls(host) {
                self.namespace(host).sysctl(key, value)?;
            }
        }
        self.ip(Host::Switch, &topology::links(|host| self.namespace(host).name().to_owned()))?;
        for host in HOSTS {
            self.ip(host, &topology::addresses(host))?;
            for interface in topology::interfaces(host) {
                self.run(host, "ethtool", &["-K", interface, "tx", "off", "rx", "off"])?;
            }
        }
        for host in topology::BACKENDS {
            let vips = topology::vips();
            let mut arguments = vec!["decap".to_owned(), "--interface".to_owned(), "eth0".to_owned()];
            arguments.extend(vips.iter().flat_map(|vip| ["--vip".to_owned(), vip.to_string()]));
            self.weir(host, &arguments)?;
            self.start_nginx(host)?;
            self.start_echo(host)?;
        }
        // A frame that XDP sends back into a veth arrives only if the peer runs an XDP program, too.
        for port in topology::NODE_PORTS {
            self.weir(Host::Switch, &["decap".to_owned(), "--interface".to_owned(), port.to_owned()])?;
        }
        Ok(())
    }

    /// Takes a lab down, also one that was only half laid out; no lab of that name is fine.
    pub fn down(name: &str) -> Result<()> {
        check_name(name)?;
        let Some(record) = Record::open(&Path::new(RUN).join(name))? else { return Ok(()) };
        for process in record.processes() {
            process.end()?;
        }
        for folder in record.pin_dirs() {
            remove_pins(folder)?;
        }
        for namespace in record.namespaces() {
            let namespace = Namespace::named(namespace);
            if let Ok(data) = fs::metadata(namespace.path()) {
                remove_decap_pins(data.ino())?;
            }
            namespace.delete()?;
        }
        record.remove()
    }

    /// What is left of the lab `name`: namespaces, processes, pins, files. Empty after [`Lab::down`].
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        left.extend(self.record.processes().iter().filter(|p| p.is_running()).map(|p| format!("process {p}")));
        left.extend(
            self.record
                .namespaces()
                .iter()
                .map(|n| Namespace::named(n))
                .filter_map(|namespace| namespace.path().exists().then(|| format!("namespace {}", namespace.name()))),
        );
        left.extend(
            self.record.pin_dirs().iter().filter(|dir| dir.exists()).map(|dir| format!("pins {}", dir.display())),
        );
        if self.record.folder().exists() {
            left.push(format!("folder {}", self.record.folder().display()));
        }
        left
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Folder for the lab's files; goes away with the lab.
    pub fn folder(&self) -> &Path {
        self.record.folder()
    }

    /// The product's binary.
    pub fn weir_binary(&self) -> &Path {
        &self.weir
    }

    /// Uses another binary from now on, as after an upgrade of the product.
    pub fn use_weir(&mut self, weir: &Path) {
        self.weir = weir.to_owned();
    }

    /// The network namespace of a host.
    pub fn namespace(&self, host: Host) -> Namespace {
        Namespace::named(&format!("{}-{}", self.name, host.name()))
    }

    /// Runs a program in a host to its end; its standard output.
    pub fn run(&self, host: Host, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.namespace(host).command(program)?;
        command.args(arguments);
        output(&mut command).with_context(|| format!("in {}", host.name()))
    }

    /// Runs `weir` in a host to its end; its standard output.
    pub fn weir(&self, host: Host, arguments: &[String]) -> Result<String> {
        let mut command = self.namespace(host).command(&self.weir.to_string_lossy())?;
        command.args(arguments).env("WEIR_SOCKET", self.api_socket());
        output(&mut command).with_context(|| format!("in {}", host.name()))
    }

    /// Feeds lines to `ip -batch` in a host; those that begin with `-6` come last, as that is no word of a batch.
    pub fn ip(&self, host: Host, lines: &[String]) -> Result<()> {
        let (v6, rest): (Vec<_>, Vec<_>) = lines.iter().map(String::as_str).partition(|line| line.starts_with("-6 "));
        self.ip_batch(host, &[], &rest)?;
        let v6: Vec<_> = v6.iter().map(|line| line.trim_start_matches("-6 ")).collect();
        self.ip_batch(host, &["-6"], &v6)
    }

    fn ip_batch(&self, host: Host, options: &[&str], lines: &[&str]) -> Result<()> {
        use std::io::Write;
        if lines.is_empty() {
            return Ok(());
        }
        let mut command = self.namespace(host).command("ip")?;
        let mut child = command
            .args(options)
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start ip")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.join("\n").as_bytes()).context("talking to ip")?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip in {}: {}", host.name(), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Starts a program that stays, with its output in the lab's folder, and writes it down under the name `what`.
    pub fn start(&mut self, what: &str, command: &mut Command) -> Result<Process> {
        let log = self.log_of(what);
        let file =
            fs::File::options().append(true).create(true).open(&log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process = process::spawn(what, command)?;
        self.record.add_process(&process)?;
        Ok(process)
    }

    /// Where the output of a process of this lab goes.
    pub fn log_of(&self, what: &str) -> PathBuf {
        self.folder().join(format!("{what}.log"))
    }

    /// The running process that was started under the name `what`.
    pub fn process(&self, what: &str) -> Result<&Process> {
        self.record
            .processes()
            .iter()
            .rev()
            .find(|process| process.what() == what && process.is_running())
            .with_context(|| format!("no `{what}` is running in the lab"))
    }
}

/// Names become parts of paths and of namespace names.
fn check_name(name: &str) -> Result<()> {
    let good = !name.is_empty()
        && name.len() <= 20
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && name.starts_with(|c: char| c.is_ascii_alphabetic());
    if !good {
        bail!("`{name}` cannot name a lab: a letter, then at most 19 letters, digits and hyphens");
    }
    Ok(())
}

/// Output of a command that has to succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let line = crate::step::command_line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` ended with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Pinned objects are files; without their last name the kernel lets go of them.
fn remove_pins(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing the pins in {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// `weir decap` keeps the pins of an interface in `weir-decap/NAMESPACE-INTERFACE`.
fn remove_decap_pins(namespace: u64) -> Result<()> {
    let Ok(entries) = Path::new(capability::BPF_FS).join("weir-decap").read_dir() else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{namespace}-")) {
            remove_pins(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for bad in ["", "../x", "a b", "-x", "a-name-that-is-far-too-long", "1", "a/b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        for good in ["weir", "weir-demo2"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
    }
}
