//! The fleet's lab: several nodes, backends, and a host for what runs the fleet, on one segment.
//!
//! Owns what exists while it is up, and how hosts are cut off and joined again. Refuses to know what is tested in it.

pub mod client;
pub mod control;
pub mod executor;
pub mod node;
pub mod redis;
pub mod resolve;
pub mod topology;
pub mod vitals;

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{ground::Ground, server, wait_listening};
use topology::Host;

/// A fleet's lab that is up. Dropping it leaves it up: [`Fleet::down`] takes it down.
#[derive(Debug)]
pub struct Fleet {
    /// What it stands on.
    pub ground: Ground,
}

impl Fleet {
    /// Lays out namespaces, links and the backends' servers, after removing what an earlier lab of that name left. `weir` is the
    /// product's binary.
    pub fn up(name: &str, weir: &Path) -> Result<Self> {
        Self::lay_out(name, weir, topology::hosts())
    }

    /// The same with the hosts of a control plane; what runs on them is in [`control`].
    pub fn up_with_control_plane(name: &str, weir: &Path) -> Result<Self> {
        Self::lay_out(name, weir, topology::hosts().into_iter().chain(topology::control_plane()).collect())
    }

    /// One that another process has laid out.
    pub fn open(name: &str, weir: &Path) -> Result<Self> {
        let ground = Ground::open(name, weir)?.with_context(|| format!("there is no lab `{name}`"))?;
        Ok(Self { ground })
    }

    fn lay_out(name: &str, weir: &Path, hosts: Vec<Host>) -> Result<Self> {
        let mut fleet = Self { ground: Ground::prepare(name, weir)? };
        match fleet.build(&hosts) {
            Ok(()) => Ok(fleet),
            Err(error) => {
                Self::down(name).ok();
                Err(error.context(format!("laying out the fleet `{name}`")))
            }
        }
    }

    /// Takes it down, also where it was only half laid out; none of that name is fine.
    pub fn down(name: &str) -> Result<()> {
        Ground::clear(name)
    }

    fn build(&mut self, hosts: &[Host]) -> Result<()> {
        for host in hosts {
            self.ground.create(&host.name())?;
        }
        for host in hosts {
            for (key, value) in topology::sysctls(*host) {
                self.ground.namespace(&host.name()).sysctl(key, value)?;
            }
        }
        let lines = topology::links(hosts, |host| self.ground.namespace(&host.name()).name().to_owned());
        self.ground.ip(&Host::Switch.name(), &lines)?;
        for host in hosts.iter().copied() {
            self.ground.ip(&host.name(), &topology::addresses(host))?;
            match host {
                // A frame that XDP sends back into a veth arrives only if the peer runs an XDP program, too.
                Host::Node(_) => self.decap(Host::Switch, &topology::port(host), &[])?,
                Host::Backend(_) => {
                    let shared = [false, true].map(|v6| topology::address(topology::SHARED, v6).to_string());
                    let [v4, v6] = &shared;
                    self.decap(host, "eth0", &[v4, v6, topology::POOL_V4, topology::POOL_V6])?;
                    if matches!(host, Host::Backend(1..=topology::BACKENDS)) {
                        self.start_web(host)?;
                    }
                }
                _ => {}
            }
            if host != Host::Switch {
                self.ground.run(&host.name(), "ethtool", &["-K", "eth0", "tx", "off", "rx", "off"])?;
            }
        }
        Ok(())
    }

    fn decap(&self, host: Host, interface: &str, vips: &[&str]) -> Result<()> {
        let mut arguments = vec!["decap", "--interface", interface];
        arguments.extend(vips.iter().flat_map(|vip| ["--vip", vip]));
        self.ground.run(&host.name(), &self.ground.weir_binary().to_string_lossy(), &arguments).map(drop)
    }

    /// A command that will run in a host.
    pub fn command(&self, host: Host, program: &str) -> Result<Command> {
        self.ground.command(&host.name(), program)
    }

    /// Name under which a backend's web server is recorded.
    pub fn web_of(host: Host) -> String {
        format!("nginx-{}", host.name())
    }

    /// Starts a backend's web server, which answers with the backend's name, and waits until it listens.
    pub fn start_web(&mut self, host: Host) -> Result<()> {
        let what = Self::web_of(host);
        let arguments = server::nginx_arguments(&self.ground.folder().join(&what), &host.name())?;
        let mut command = self.command(host, "nginx")?;
        command.args(arguments);
        let process = self.ground.start(&what, &mut command)?;
        wait_listening(&self.ground, &host.name(), (host.address(false), topology::HTTP_PORT).into(), &process)
    }

    /// Cuts a host off from another one, both ways: packets between them vanish.
    pub fn cut(&self, host: Host, from: Host) -> Result<()> {
        self.ways(host, from, "add").and_then(|()| self.ways(from, host, "add"))
    }

    /// Joins what [`Fleet::cut`] parted.
    pub fn join(&self, host: Host, with: Host) -> Result<()> {
        self.ways(host, with, "del").and_then(|()| self.ways(with, host, "del"))
    }

    /// Cuts a host off from everybody: its port leaves the bridge, and nothing tells the host.
    pub fn isolate(&self, host: Host) -> Result<()> {
        self.ground.ip(&Host::Switch.name(), &[format!("link set {} nomaster", topology::port(host))])
    }

    /// Puts the port of a host that was isolated back on the bridge.
    pub fn rejoin(&self, host: Host) -> Result<()> {
        self.ground.ip(&Host::Switch.name(), &[format!("link set {} master br-f", topology::port(host))])
    }

    fn ways(&self, host: Host, other: Host, verb: &str) -> Result<()> {
        let line = |v6: bool| {
            let (family, length) = if v6 { ("-6 ", 128) } else { ("", 32) };
            format!("{family}route {verb} blackhole {}/{length}", other.address(v6))
        };
        self.ground.ip(&host.name(), &[line(false), line(true)]).context("cutting off or joining")
    }
}
