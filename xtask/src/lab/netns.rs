//! Network namespaces: made, entered by a child or a thread, removed.
//!
//! Never through `ip netns exec`: it mounts a /sys of its own, and pinned BPF objects vanish inside it.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::setup::tool;

/// A network namespace by its name below /run/netns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The namespace of that name, whether it exists or not.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Makes it.
    pub fn create(&self) -> Result<()> {
        super::output(Command::new(program("ip")).args(["netns", "add", &self.name])).map(drop)
    }

    /// Removes it, if it is there. What runs in it goes on until it ends.
    pub fn delete(&self) -> Result<()> {
        if !self.path().exists() {
            return Ok(());
        }
        super::output(Command::new(program("ip")).args(["netns", "delete", &self.name])).map(drop)
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("network namespace {}: is the lab up?", self.name))
    }

    /// A command that will run in it.
    pub fn command(&self, name: &str) -> Result<Command> {
        let namespace = self.open()?;
        let mut command = Command::new(program(name));
        let enter = move || {
            // The file moved in here, so the descriptor is open in the child as well.
            if namespace.as_raw_fd() < 0 {
                return Err(io::Error::other("no descriptor"));
            }
            setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
        };
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Runs `action` on a thread of its own inside it.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
                action()
            });
            thread.join().unwrap_or_else(|_| Err(anyhow!("a thread in {} panicked", self.name)))
        })
    }

    /// Starts `action` on a thread of its own inside it, and goes on.
    pub fn spawn<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<T>>> {
        let namespace = self.open()?;
        Ok(std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
            action()
        }))
    }

    /// Writes a setting below /proc/sys/net.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.run(|| std::fs::write(&path, value).with_context(|| format!("{path} = {value} in {}", self.name)))
    }
}

fn program(name: &str) -> PathBuf {
    if name.contains('/') {
        return PathBuf::from(name);
    }
    tool::find(name).unwrap_or_else(|| PathBuf::from(name))
}
