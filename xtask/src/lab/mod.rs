//! The lab: a client, the load balancer and its backends as network namespaces, joined by veth pairs and bridges.
//!
//! Owns what exists while a lab is up and how it goes away. Refuses to know what is tested in it. Invariants: everything is
//! written down before it is made, so an interrupted lab can be removed; only processes that a lab started are ended, and
//! never another one that got the same pid; a lab's name is in the name of each of its namespaces, so labs do not meet.

pub mod agent;
pub mod client;
pub mod command;
pub mod echo;
pub mod fleet;
pub mod ground;
pub mod netns;
pub mod process;
pub mod record;
pub mod server;
pub mod topology;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use ground::Ground;
use netns::Namespace;
use process::Process;
use server::wait_listening;
use topology::{HOSTS, Host};

/// A lab that is up. Dropping it leaves it up: [`Lab::down`] takes it down.
#[derive(Debug)]
pub struct Lab {
    ground: Ground,
}

impl Lab {
    /// Lays out namespaces, links and servers, after removing what an earlier lab of that name left.
    ///
    /// `weir` is the product's binary: its `decap` takes packets out of their tunnels on the backends.
    pub fn up(name: &str, weir: &Path) -> Result<Self> {
        let mut lab = Self { ground: Ground::prepare(name, weir)? };
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
        let ground = Ground::open(name, weir)?
            .with_context(|| format!("there is no lab `{name}`: `cargo xtask lab up` makes one"))?;
        Ok(Self { ground })
    }

    fn build(&mut self) -> Result<()> {
        for host in HOSTS {
            self.ground.create(host.name())?;
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
        Ground::clear(name)
    }

    /// What is left of the lab: namespaces, processes, pins, files. Empty after [`Lab::down`].
    pub fn leftovers(&self) -> Vec<String> {
        self.ground.leftovers()
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        self.ground.name()
    }

    /// Folder for the lab's files; goes away with the lab.
    pub fn folder(&self) -> &Path {
        self.ground.folder()
    }

    /// The product's binary.
    pub fn weir_binary(&self) -> &Path {
        self.ground.weir_binary()
    }

    /// Uses another binary from now on, as after an upgrade of the product.
    pub fn use_weir(&mut self, weir: &Path) {
        self.ground.use_weir(weir);
    }

    /// The network namespace of a host.
    pub fn namespace(&self, host: Host) -> Namespace {
        self.ground.namespace(host.name())
    }

    /// Runs a program in a host to its end; its standard output.
    pub fn run(&self, host: Host, program: &str, arguments: &[&str]) -> Result<String> {
        self.ground.run(host.name(), program, arguments)
    }

    /// Runs `weir` in a host to its end; its standard output.
    pub fn weir(&self, host: Host, arguments: &[String]) -> Result<String> {
        let mut command = self.ground.command(host.name(), &self.weir_binary().to_string_lossy())?;
        command.args(arguments).env("WEIR_SOCKET", self.api_socket());
        output(&mut command).with_context(|| format!("in {}", host.name()))
    }

    /// Feeds lines to `ip -batch` in a host.
    pub fn ip(&self, host: Host, lines: &[String]) -> Result<()> {
        self.ground.ip(host.name(), lines)
    }

    /// Starts a program that stays, with its output in the lab's folder, and writes it down under the name `what`.
    pub fn start(&mut self, what: &str, command: &mut Command) -> Result<Process> {
        self.ground.start(what, command)
    }

    /// Where the output of a process of this lab goes.
    pub fn log_of(&self, what: &str) -> PathBuf {
        self.ground.log_of(what)
    }

    /// The running process that was started under the name `what`.
    pub fn process(&self, what: &str) -> Result<Process> {
        self.ground.process(what)
    }
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
