//! The fleet's nodes: each with its configuration, its agent, its answers.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Fleet, topology::Host};
use crate::{capability::BPF_FS, lab::process::Process, step};

/// How long an agent may take until it is as a test wants it.
const PATIENCE: Duration = Duration::from_secs(30);

impl Fleet {
    fn file_of(&self, node: Host, what: &str) -> PathBuf {
        self.ground.folder().join(format!("{}-{what}", node.name()))
    }

    /// The socket of a node's agent.
    pub fn api_socket(&self, node: Host) -> PathBuf {
        self.file_of(node, "api.sock")
    }

    /// The configuration file of a node.
    pub fn config_file(&self, node: Host) -> PathBuf {
        self.file_of(node, "weir.toml")
    }

    /// Folder of a node's pins.
    pub fn pin_dir(&self, node: Host) -> PathBuf {
        Path::new(BPF_FS).join(format!("weir-lab-{}-{}", self.ground.name(), node.name()))
    }

    /// Folder of what a node keeps.
    pub fn state_dir(&self, node: Host) -> PathBuf {
        self.file_of(node, "state")
    }

    /// Name under which a node's agent is recorded.
    pub fn agent_of(node: Host) -> String {
        format!("agent-{}", node.name())
    }

    /// The secret that all nodes share.
    ///
    /// It is fixed: the same tuples reach the same backends in every run.
    fn seed_file(&self) -> Result<PathBuf> {
        use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
        let seed = self.ground.folder().join("seed");
        if !seed.exists() {
            let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&seed)?;
            writeln!(file, "{}", "5eed".repeat(16))?;
        }
        Ok(seed)
    }

    /// Writes the configuration of a node: `[node]`, then `store`.
    pub fn write_node(&self, node: Host, store: &str) -> Result<()> {
        self.write_node_as(node, &node.name(), store)
    }

    /// The same for a node that has another name than its host.
    pub fn write_node_as(&self, node: Host, name: &str, store: &str) -> Result<()> {
        let seed = self.seed_file()?;
        let text = format!(
            "[node]
name = \"{name}\"
interfaces = [\"eth0\"]
xdp_mode = \"native\"
announce = \"address\"
pin_dir = \"{}\"
state_dir = \"{}\"
seed_file = \"{}\"

[node.metrics]
listen = \"{}:9650\"

[node.api]
socket = \"{}\"

[node.limits]
ring_slots_max = 2097152

{store}",
            self.pin_dir(node).display(),
            self.state_dir(node).display(),
            seed.display(),
            node.address(false),
            self.api_socket(node).display(),
        );
        let new = self.file_of(node, "weir.toml.new");
        fs::write(&new, text)?;
        fs::rename(&new, self.config_file(node)).context("replacing the configuration")
    }

    /// Starts the agent of a node.
    pub fn start_agent(&mut self, node: Host) -> Result<Process> {
        fs::create_dir_all(self.state_dir(node))?;
        let pin_dir = self.pin_dir(node);
        self.ground.add_pin_dir(&pin_dir)?;
        let mut command = self.command(node, &self.ground.weir_binary().to_string_lossy())?;
        command.arg("agent").arg("--config").arg(self.config_file(node));
        self.ground.start(&Self::agent_of(node), &mut command)
    }

    /// Kills the agent of a node without a chance to say goodbye.
    pub fn kill_agent(&self, node: Host) -> Result<()> {
        let agent = self.ground.process(&Self::agent_of(node))?;
        agent.signal(Signal::SIGKILL)?;
        agent.wait(Duration::from_secs(5))
    }

    /// Runs `weir` on a node to its end; its standard output.
    pub fn weir(&self, node: Host, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(node, &self.ground.weir_binary().to_string_lossy())?;
        command.args(arguments).env("WEIR_SOCKET", self.api_socket(node));
        crate::lab::output(&mut command).with_context(|| format!("on {}", node.name()))
    }

    /// `weir ARGUMENTS -o json` on a node.
    pub fn weir_json(&self, node: Host, arguments: &[&str]) -> Result<Value> {
        let all: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
        let text = self.weir(node, &all)?;
        serde_json::from_str(&text).with_context(|| format!("`weir {}` printed no JSON: {text}", arguments.join(" ")))
    }

    /// Waits until the status of a node satisfies `wanted`; the time it took.
    pub fn wait_status(&self, node: Host, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let status = self.weir_json(node, &["status"]);
            match status {
                Ok(status) if wanted(&status) => return Ok(start.elapsed()),
                found if start.elapsed() > PATIENCE => {
                    let log = step::tail(&self.ground.log_of(&Self::agent_of(node)), 0).unwrap_or_default();
                    let found = found.map_or_else(|error| format!("{error:#}"), |status| format!("{status:#}"));
                    bail!("{}: not {what} within {} s: {found}\nits log ends:\n{log}", node.name(), PATIENCE.as_secs());
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}
