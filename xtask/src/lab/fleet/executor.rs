//! The lab's executor: what an orchestrator calls to have a node or a backend started or stopped on one of the lab's hosts.
//!
//! Owns: which host runs which of those, a list of the orders that came and a journal of those that were carried out. Invariants:
//! nothing is done twice for one (intent, action), and what was said of it is said again; one order at a time; a name is in
//! the file before anything is started.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args as ClapArgs;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::{
    Fleet,
    topology::{BACKENDS, HTTP_PORT, Host, NODES, SPARE_BACKENDS},
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
    /// What it is about: `nodes` or `service/NAME`.
    pub subject: String,
    /// The node, or the backend: what an order to create calls it, or its address.
    pub name: String,
    /// Epoch of the master that gave the order.
    pub epoch: String,
    /// Where the new backend is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
}

/// Carries out one order.
///
/// # Errors
/// The order is none, there is no free host, or a program fails: then the order may be given again.
pub fn run(args: &Args) -> Result<()> {
    let told = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let mut entry = Entry {
        intent: told("WEIR_INTENT")?,
        action: told("WEIR_ACTION")?,
        subject: told("WEIR_SUBJECT")?,
        name: told("WEIR_NAME")?,
        epoch: told("WEIR_EPOCH")?,
        address: None,
    };
    let mut fleet = Fleet::open(&args.lab, &args.weir)?;
    append(&fleet.orders_file(), &entry)?;
    let _turn = lock(&fleet.ground.folder().join("executor.lock"))?;
    let done = fleet.journal()?;
    let done = done.into_iter().find(|one| (&one.intent, &one.action) == (&entry.intent, &entry.action));
    let carried_out = done.is_some();
    if let Some(done) = done {
        entry = done;
    } else {
        match (&*entry.action, entry.subject.starts_with("service/")) {
            ("create", true) => entry.address = Some(fleet.create_backend(&entry.name)?),
            ("remove", true) => fleet.remove_backend(&entry.name)?,
            ("create", false) => drop(fleet.create_node(&entry.name)?),
            ("remove", false) => fleet.remove_node(&entry.name)?,
            (other, _) => bail!("`{other}` is no action"),
        }
    }
    if let Some(address) = entry.address {
        println!("{address}");
    }
    if carried_out { Ok(()) } else { append(&fleet.journal_file(), &entry) }
}

/// Adds a line in one write, so that lines of several executors do not mix.
fn append(file: &Path, entry: &Entry) -> Result<()> {
    let mut open = fs::File::options().create(true).append(true).open(file).context("opening the journal")?;
    open.write_all(format!("{}\n", serde_json::to_string(entry)?).as_bytes()).context("writing the journal")
}

/// The lines of a file; none where there is no file.
fn lines(file: &Path) -> Result<Vec<Entry>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(file)?;
    text.lines().map(|line| serde_json::from_str(line).context("a line of the journal")).collect()
}

impl Fleet {
    fn journal_file(&self) -> PathBuf {
        self.ground.folder().join("executor.journal")
    }

    fn orders_file(&self) -> PathBuf {
        self.ground.folder().join("executor.orders")
    }

    /// Orders that were carried out, in their order.
    pub fn journal(&self) -> Result<Vec<Entry>> {
        lines(&self.journal_file())
    }

    /// Every order that came, also those that came again.
    pub fn orders(&self) -> Result<Vec<Entry>> {
        lines(&self.orders_file())
    }

    /// Hosts that run nodes, by the node's name; the host by its number.
    pub fn nodes(&self) -> Result<BTreeMap<String, u8>> {
        self.taken("nodes.json")
    }

    /// Hosts that run backends which were ordered, by the name of the order; the host by its number.
    fn backends(&self) -> Result<BTreeMap<String, u8>> {
        self.taken("backends.json")
    }

    fn taken(&self, file: &str) -> Result<BTreeMap<String, u8>> {
        match fs::read(self.ground.folder().join(file)) {
            Ok(text) => serde_json::from_slice(&text).context("reading which host runs what"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn set_taken(&self, file: &str, taken: &BTreeMap<String, u8>) -> Result<()> {
        let new = self.ground.folder().join(format!("{file}.new"));
        fs::write(&new, serde_json::to_vec(taken)?)?;
        fs::rename(&new, self.ground.folder().join(file)).context("writing which host runs what")
    }

    /// Starts the web server of a backend on the first host that runs none; where it answers.
    fn create_backend(&mut self, name: &str) -> Result<SocketAddr> {
        let mut backends = self.backends()?;
        let runs = |n: &u8| self.ground.process(&Self::web_of(Host::Backend(*n))).is_ok();
        let free = (1..=BACKENDS + SPARE_BACKENDS).find(|n| !backends.values().any(|taken| taken == n) && !runs(n));
        let number = match backends.get(name) {
            Some(number) => *number,
            None => free.context("no host is free: each runs a backend")?,
        };
        backends.insert(name.to_owned(), number);
        self.set_taken("backends.json", &backends)?;
        let host = Host::Backend(number);
        if self.ground.process(&Self::web_of(host)).is_err() {
            self.start_web(host)?;
        }
        Ok(SocketAddr::new(host.address(false), HTTP_PORT))
    }

    /// Ends everything that a backend's host runs; `name` is what an order called it, or its address.
    fn remove_backend(&mut self, name: &str) -> Result<()> {
        let mut backends = self.backends()?;
        let at = |n: &u8| SocketAddr::new(Host::Backend(*n).address(false), HTTP_PORT).to_string() == name;
        let number = backends.get(name).copied().or_else(|| (1..=BACKENDS + SPARE_BACKENDS).find(at));
        let Some(number) = number else { return Ok(()) };
        let host = Host::Backend(number);
        for what in [Self::web_of(host), Self::burn_of(host)] {
            // What does not run needs no end.
            if let Ok(process) = self.ground.process(&what) {
                process.end()?;
            }
        }
        backends.retain(|_, taken| *taken != number);
        self.set_taken("backends.json", &backends)
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
        self.set_taken("nodes.json", &nodes)?;
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
        self.set_taken("nodes.json", &nodes)
    }
}
