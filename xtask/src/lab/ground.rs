//! What any lab stands on: namespaces, files and processes that are written down before they are made.
//!
//! Owns: how they are made, found again and taken away. Refuses to know: which hosts there are and what runs in them; a host
//! is a name here. Invariants: see [`super`].

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{
    netns::Namespace,
    output,
    process::{self, Process},
    record::Record,
};
use crate::capability;

/// Folder with one folder per lab.
const RUN: &str = "/run/weir-lab";

/// The ground of a lab. Dropping it leaves everything in place: [`Ground::clear`] takes it away.
#[derive(Debug)]
pub struct Ground {
    name: String,
    weir: PathBuf,
    record: Record,
}

impl Ground {
    /// An empty ground, after removing what an earlier lab of that name left. `weir` is the product's binary.
    pub fn prepare(name: &str, weir: &Path) -> Result<Self> {
        check_name(name)?;
        if let Some(reason) = capability::missing(&capability::LAB) {
            bail!("no lab here: {reason}");
        }
        Self::clear(name)?;
        let record = Record::create(&Path::new(RUN).join(name))?;
        Ok(Self { name: name.to_owned(), weir: weir.to_owned(), record })
    }

    /// The ground of a lab that another process left up; `None` if there is none.
    pub fn open(name: &str, weir: &Path) -> Result<Option<Self>> {
        check_name(name)?;
        let record = Record::open(&Path::new(RUN).join(name))?;
        Ok(record.map(|record| Self { name: name.to_owned(), weir: weir.to_owned(), record }))
    }

    /// Takes everything of a lab away, also of one that was only half laid out; no lab of that name is fine.
    pub fn clear(name: &str) -> Result<()> {
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

    /// What is left: namespaces, processes, pins, files. Empty after [`Ground::clear`].
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
    pub fn namespace(&self, host: &str) -> Namespace {
        Namespace::named(&format!("{}-{host}", self.name))
    }

    /// Makes the network namespace of a host.
    pub fn create(&mut self, host: &str) -> Result<Namespace> {
        let namespace = self.namespace(host);
        self.record.add_namespace(namespace.name())?;
        namespace.create()?;
        Ok(namespace)
    }

    /// Notes a folder of pins that is about to be made.
    pub fn add_pin_dir(&mut self, path: &Path) -> Result<()> {
        self.record.add_pin_dir(path)
    }

    /// A command that will run in a host.
    pub fn command(&self, host: &str, program: &str) -> Result<Command> {
        self.namespace(host).command(program)
    }

    /// Runs a program in a host to its end; its standard output.
    pub fn run(&self, host: &str, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(host, program)?;
        command.args(arguments);
        output(&mut command).with_context(|| format!("in {host}"))
    }

    /// Feeds lines to `ip -batch` in a host; those that begin with `-6` come last, as that is no word of a batch.
    pub fn ip(&self, host: &str, lines: &[String]) -> Result<()> {
        let (v6, rest): (Vec<_>, Vec<_>) = lines.iter().map(String::as_str).partition(|line| line.starts_with("-6 "));
        self.ip_batch(host, &[], &rest)?;
        let v6: Vec<_> = v6.iter().map(|line| line.trim_start_matches("-6 ")).collect();
        self.ip_batch(host, &["-6"], &v6)
    }

    fn ip_batch(&self, host: &str, options: &[&str], lines: &[&str]) -> Result<()> {
        use std::io::Write;
        if lines.is_empty() {
            return Ok(());
        }
        let mut command = self.command(host, "ip")?;
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
            bail!("ip in {host}: {}", String::from_utf8_lossy(&output.stderr).trim());
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

    /// The running process that was started under the name `what`, also one that another process of this lab started.
    pub fn process(&self, what: &str) -> Result<Process> {
        let running = |record: &Record| {
            let named = record.processes().iter().rev().find(|one| one.what() == what && one.is_running());
            named.cloned()
        };
        let found = running(&self.record).or_else(|| running(&Record::open(self.record.folder()).ok()??));
        found.with_context(|| format!("no `{what}` is running in the lab"))
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
