//! The lab's executor: what an orchestrator calls to have a node started or stopped on one of the lab's node hosts.
//!
//! Owns: which host runs which node, and a journal of orders. Invariants: nothing is done twice for one (intent, action);
//! one order at a time; a node's name is in the file before its agent is started.

use std::{collections::BTreeMap, fs, io::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::{
    Fleet,
    topology::{Host, NODES},
};
use crate::lab::record::lock;

/// How long an agent may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Arguments of the hidden `lab-executor` command; the order itself comes from the environment, as `weir orchestrator` tells it.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Name of the lab
    #[arg(long)]
    lab: String,
    /// The product's binary
    #[arg(long)]
    weir: PathBuf,
}

/// One line of the journal: an order that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Id of the intent.
    pub intent: String,
    /// `create` or `remove`.
    pub action: String,
    /// The node.
    pub name: String,
    /// Epoch of the master that gave the order.
    pub epoch: String,
}

/// Carries out one order.
///
/// # Errors
/// The order is none, there is no free host, or a program fails: then the order may be given again.
pub fn run(args: &Args) -> Result<()> {
    let told = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let entry = Entry {
        intent: told("WEIR_INTENT")?,
        action: told("WEIR_ACTION")?,
        name: told("WEIR_NAME")?,
        epoch: told("WEIR_EPOCH")?,
    };
    let mut fleet = Fleet::open(&args.lab, &args.weir)?;
    let _turn = lock(&fleet.ground.folder().join("executor.lock"))?;
    let done = fleet.journal()?;
    if done.iter().any(|one| (&one.intent, &one.action) == (&entry.intent, &entry.action)) {
        return Ok(());
    }
    match entry.action.as_str() {
        "create" => drop(fleet.create_node(&entry.name)?),
        "remove" => fleet.remove_node(&entry.name)?,
        other => bail!("`{other}` is no action"),
    }
    let mut file = fs::File::options().create(true).append(true).open(fleet.journal_file())?;
    writeln!(file, "{}", serde_json::to_string(&entry)?).context("writing the journal")
}

impl Fleet {
    fn journal_file(&self) -> PathBuf {
        self.ground.folder().join("executor.journal")
    }

    /// Orders that were carried out, in their order.
    pub fn journal(&self) -> Result<Vec<Entry>> {
        let file = self.journal_file();
        if !file.exists() {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(file)?;
        text.lines().map(|line| serde_json::from_str(line).context("a line of the journal")).collect()
    }

    fn nodes_file(&self) -> PathBuf {
        self.ground.folder().join("nodes.json")
    }

    /// Hosts that run nodes, by the node's name; the host by its number.
    pub fn nodes(&self) -> Result<BTreeMap<String, u8>> {
        match fs::read(self.nodes_file()) {
            Ok(text) => serde_json::from_slice(&text).context("reading which host runs which node"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn set_nodes(&self, nodes: &BTreeMap<String, u8>) -> Result<()> {
        let new = self.ground.folder().join("nodes.json.new");
        fs::write(&new, serde_json::to_vec(nodes)?)?;
        fs::rename(&new, self.nodes_file()).context("writing which host runs which node")
    }

    /// Starts the agent of a node of that name on the first host that runs none; one that runs stays as it is.
    pub fn create_node(&mut self, name: &str) -> Result<Host> {
        let mut nodes = self.nodes()?;
        let free = (1..=NODES).find(|n| !nodes.values().any(|taken| taken == n));
        let number = match nodes.get(name) {
            Some(number) => *number,
            None => free.context("no host is free: each runs a node")?,
        };
        nodes.insert(name.to_owned(), number);
        self.set_nodes(&nodes)?;
        let host = Host::Node(number);
        if self.ground.process(&Self::agent_of(host)).is_err() {
            self.write_node_as(host, name, &self.store_text()?)?;
            self.start_agent(host)?;
        }
        Ok(host)
    }

    /// Stops a node: its agent, then its forwarding; none of that name is fine.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        let mut nodes = self.nodes()?;
        let Some(host) = nodes.get(name).copied().map(Host::Node) else { return Ok(()) };
        if let Ok(agent) = self.ground.process(&Self::agent_of(host)) {
            agent.signal(Signal::SIGTERM)?;
            agent.wait(END_TIMEOUT)?;
        }
        let config = self.config_file(host).display().to_string();
        self.weir(host, &["agent", "--unload", "--config", &config])?;
        nodes.remove(name);
        self.set_nodes(&nodes)
    }
}
