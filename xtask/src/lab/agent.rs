//! The agent of a lab: its configuration, its start, its answers, its end.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Lab, process::Process, topology::Host};
use crate::capability::BPF_FS;

/// Name under which the agent is recorded.
pub const AGENT: &str = "agent";
/// How long the agent may take until its maps hold the configuration.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// Settings of `[node]` that scenarios vary.
#[derive(Clone, Debug)]
pub struct Node {
    /// Interfaces that carry XDP.
    pub interfaces: Vec<&'static str>,
    /// `announce`.
    pub announce: &'static str,
}

impl Default for Node {
    fn default() -> Self {
        Self { interfaces: vec!["eth0"], announce: "address" }
    }
}

impl Lab {
    /// The agent's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.folder().join("api.sock")
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.folder().join("weir.toml")
    }

    /// Folder of the agent's pins.
    pub fn pin_dir(&self) -> PathBuf {
        Path::new(BPF_FS).join(format!("weir-lab-{}", self.name()))
    }

    /// Writes `[node]` for this lab, followed by `services`, as one file in place of the old one.
    ///
    /// The seed is fixed: the same tuples reach the same backends in every run.
    pub fn write_config(&self, node: &Node, services: &str) -> Result<()> {
        let folder = self.folder().display();
        let seed = self.folder().join("seed");
        if !seed.exists() {
            use std::{io::Write, os::unix::fs::OpenOptionsExt};
            let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&seed)?;
            writeln!(file, "{}", "5eed".repeat(16))?;
        }
        let interfaces = node.interfaces.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let text = format!(
            "[node]
name = \"lab\"
interfaces = [{interfaces}]
xdp_mode = \"native\"
announce = \"{}\"
pin_dir = \"{}\"
state_dir = \"{folder}/state\"
seed_file = \"{}\"

[node.metrics]
listen = \"127.0.0.1:9650\"

[node.api]
socket = \"{folder}/api.sock\"

{services}",
            node.announce,
            self.pin_dir().display(),
            seed.display()
        );
        let new = self.folder().join("weir.toml.new");
        fs::write(&new, text)?;
        fs::rename(&new, self.config_file()).context("replacing the configuration")
    }

    /// Starts the agent on the node.
    pub fn start_agent(&mut self) -> Result<Process> {
        fs::create_dir_all(self.folder().join("state"))?;
        let pin_dir = self.pin_dir();
        self.ground.add_pin_dir(&pin_dir)?;
        let mut command = self.namespace(Host::Lb).command(&self.weir_binary().to_string_lossy())?;
        command.arg("agent").arg("--config").arg(self.config_file());
        self.start(AGENT, &mut command)
    }

    /// Waits until the running agent has answered, every backend is judged up, and every next hop is known.
    pub fn wait_ready(&self, process: &Process) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let state =
                self.status().and_then(|status| not_ready(&status, process.pid()).map_or(Ok(()), |why| bail!(why)));
            match state {
                Ok(()) => return Ok(start.elapsed()),
                Err(error) if start.elapsed() > READY_TIMEOUT || !process.is_running() => {
                    let log = crate::step::tail(&self.log_of(AGENT), 0).unwrap_or_default();
                    let how = if process.is_running() { "is not ready" } else { "ended" };
                    bail!(
                        "the agent {how} after {:.0} s: {error:#}\nits log ends:\n{log}",
                        start.elapsed().as_secs_f32()
                    );
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// `weir ARGUMENTS -o json` on the node.
    pub fn weir_json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        all.extend(["-o", "json"].map(str::to_owned));
        let text = self.weir(Host::Lb, &all)?;
        serde_json::from_str(&text).with_context(|| format!("`weir {}` printed no JSON: {text}", arguments.join(" ")))
    }

    /// `weir status`.
    pub fn status(&self) -> Result<Value> {
        self.weir_json(&["status"])
    }

    /// State of each (service, backend address) that health knows.
    pub fn health(&self) -> Result<Vec<(String, String, String)>> {
        let targets = self.weir_json(&["health", "list"])?;
        let targets = targets.as_array().context("`weir health list` printed no list")?;
        let text = |target: &Value, key: &str| target[key].as_str().unwrap_or_default().to_owned();
        Ok(targets.iter().map(|t| (text(t, "service"), text(t, "backend"), text(t, "state"))).collect())
    }

    /// Waits until health says `state` about every target whose backend has this address; the time it took.
    pub fn wait_health(&self, host: Host, state: &str, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let addresses = [format!("{}:", host.address(false)), format!("[{}]:", host.address(true))];
        loop {
            let all = self.health()?;
            let mut mine =
                all.iter().filter(|(_, backend, _)| addresses.iter().any(|a| backend.starts_with(a))).peekable();
            if mine.peek().is_none() {
                bail!("health knows nothing about {}: {all:?}", host.name());
            }
            if mine.all(|(.., is)| is == state) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > limit {
                bail!("health did not say `{state}` about {} within {} s: {all:?}", host.name(), limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Kills the agent without a chance to say goodbye.
    pub fn kill_agent(&self) -> Result<()> {
        let agent = self.process(AGENT)?;
        agent.signal(Signal::SIGKILL)?;
        agent.wait(Duration::from_secs(5))
    }
}

/// What the status says is still missing.
fn not_ready(status: &Value, pid: i32) -> Option<String> {
    if status["pid"].as_i64() != Some(i64::from(pid)) {
        return Some("another agent answers".to_owned());
    }
    let counts = &status["counts"];
    let count = |key: &str| counts[key].as_u64().unwrap_or(u64::MAX);
    if count("backends") == 0 || count("services") == 0 {
        return Some("no service is loaded".to_owned());
    }
    if count("backends_up") != count("backends") {
        return Some(format!("{} of {} backends are up", count("backends_up"), count("backends")));
    }
    (count("backends_unresolved") != 0).then(|| format!("{} next hops are unknown", count("backends_unresolved")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ready_is_the_right_agent_with_every_backend_up_and_resolved() {
        let status = |up: u32, unresolved: u32| json!({"pid": 7, "counts": {"services": 1, "backends": 3, "backends_up": up, "backends_unresolved": unresolved}});
        assert_eq!(not_ready(&status(3, 0), 7), None);
        assert!(not_ready(&status(3, 0), 8).unwrap().contains("another"));
        assert!(not_ready(&status(2, 0), 7).unwrap().contains("2 of 3"));
        assert!(not_ready(&status(3, 1), 7).unwrap().contains("1 next hop"));
        assert!(not_ready(&json!({}), 7).is_some());
    }
}
