//! The fleet's control plane: store with Sentinels, DNS servers, orchestrators and Prometheus, each in a host of its own.
//!
//! Owns: their configurations and how they are asked. Refuses to know: what they decide.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    Fleet,
    redis::Keep,
    resolve,
    topology::{DNS_SERVERS, Host, ORCHESTRATORS, POOL_V4, REDIS_PORT, STORES},
    vitals,
};
use crate::lab::{client::runtime, process::Process, wait_listening};

/// The name that clients resolve.
pub const NAME: &str = "www.fleet.test";
/// Connections that a node is meant to have at most.
pub const CONNECTIONS_MAX: u32 = 10;
/// Share of a CPU that a backend may want. One that wants all of it waits in pieces on a busy machine, and is counted in pieces.
const SATURATED: f64 = 0.6;
/// How long it may want more, before it is replaced.
pub const SATURATED_FOR: Duration = Duration::from_secs(5);
/// Port of the Sentinels.
const SENTINEL_PORT: u16 = 26379;
/// Name under which Prometheus is recorded.
pub const PROMETHEUS: &str = "prometheus";
/// Port of Prometheus.
const PROMETHEUS_PORT: u16 = 9090;
/// Port of the orchestrators' metrics.
const ORCHESTRATOR_PORT: u16 = 9651;
/// How long the parts may take to know each other.
const PATIENCE: Duration = Duration::from_secs(40);

/// Waits until `look` finds something, up to `limit`; what it found, and how long that took.
///
/// # Errors
/// `what` was not seen in time; the last error of `look` says why, if it had one.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(Some(found)) => return Ok((found, start.elapsed())),
            last if start.elapsed() > limit => {
                last?;
                bail!("{what}: not seen within {} s", limit.as_secs_f32());
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

impl Fleet {
    /// `[store]` of everything that uses the store.
    pub fn store_text(&self) -> Result<String> {
        let sentinels: Vec<String> =
            (1..=STORES).map(|n| format!("\"redis://{}:{SENTINEL_PORT}\"", Host::Store(n).address(false))).collect();
        let sentinels = sentinels.join(", ");
        Ok(format!("[store]\nkind = \"redis\"\nsentinels = [{sentinels}]\nmaster_name = \"weir\"\ninsecure = true\n"))
    }

    /// Starts the servers of the store, of which the first is the primary, and their Sentinels.
    pub fn start_store(&mut self) -> Result<()> {
        let primary = SocketAddr::new(Host::Store(1).address(false), REDIS_PORT);
        let (address, port) = (primary.ip().to_string(), primary.port().to_string());
        for n in 1..=STORES {
            let follow = ["--replicaof", &*address, &*port];
            self.start_store_server(n, if n > 1 { &follow[..] } else { &[] })?;
        }
        for n in 1..=STORES {
            let options = [("down-after-milliseconds", "1500"), ("failover-timeout", "4000")];
            let what = format!("sentinel-s{n}");
            self.start_sentinel_at(Host::Store(n), &what, (SENTINEL_PORT, 2), ("weir", primary), &options)?;
        }
        until("two replicas of the primary", PATIENCE, || {
            let told = self.ask_redis(primary, &["INFO", "replication"])?;
            Ok((told.matches("state=online").count() == 2).then_some(()))
        })?;
        Ok(())
    }

    /// Starts a server of the store; one that comes back without further directives is what its Sentinels make of it.
    pub fn start_store_server(&mut self, n: u8, more: &[&str]) -> Result<Process> {
        let replicated = ["--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0"];
        let more = [&replicated[..], more].concat();
        self.start_redis_at(Host::Store(n), &Self::store_of(n), REDIS_PORT, Keep::Everything, &more)
    }

    /// Asks the Sentinel of a host, or the server beside it; its answer as it came.
    pub fn ask_store(&self, n: u8, sentinel: bool, words: &[&str]) -> Result<String> {
        let port = if sentinel { SENTINEL_PORT } else { REDIS_PORT };
        self.ask_redis((Host::Store(n).address(false), port).into(), words)
    }

    /// What an orchestrator says of itself and the fleet, as `weir orchestrator status -o json` prints it.
    pub fn ask_orchestrator(&self, n: u8) -> Result<Value> {
        let mut command = self.command(Host::Control, &self.ground.weir_binary().to_string_lossy())?;
        command.args(["orchestrator", "status", "-o", "json", "--at"]).arg(self.orchestrator_socket(n));
        let text = crate::lab::output(&mut command).with_context(|| format!("asking {}", Self::orchestrator_of(n)))?;
        serde_json::from_str(&text).context("the status of an orchestrator")
    }

    /// Starts a DNS server and waits until it listens.
    pub fn start_dns(&mut self, n: u8) -> Result<Process> {
        let (host, what) = (Host::Dns(n), Self::dns_of(n));
        let address = host.address(false);
        let file = self.ground.folder().join(format!("{what}.toml"));
        let state = self.ground.folder().join(format!("{what}-state"));
        let text = format!(
            "origin = \"fleet.test\"\nlisten = [\"{address}:53\"]\nstate_dir = \"{}\"\n\n{}\n[metrics]\nlisten = \"{address}:9652\"\n",
            state.display(),
            self.store_text()?
        );
        fs::write(&file, text)?;
        let mut command = self.command(host, &self.ground.weir_binary().to_string_lossy())?;
        command.args(["dns", "serve", "--config"]).arg(&file);
        let process = self.ground.start(&what, &mut command)?;
        wait_listening(&self.ground, &host.name(), (address, 53).into(), &process)?;
        Ok(process)
    }

    /// Name under which an orchestrator is recorded.
    pub fn orchestrator_of(n: u8) -> String {
        format!("orchestrator-o{n}")
    }

    /// Name under which a DNS server is recorded.
    pub fn dns_of(n: u8) -> String {
        format!("dns-d{n}")
    }

    /// Name under which a server of the store is recorded.
    pub fn store_of(n: u8) -> String {
        format!("redis-s{n}")
    }

    fn orchestrator_socket(&self, n: u8) -> PathBuf {
        self.ground.folder().join(format!("o{n}.sock"))
    }

    /// Starts an orchestrator that has the lab's executor.
    pub fn start_orchestrator(&mut self, n: u8) -> Result<Process> {
        let (host, what) = (Host::Orchestrator(n), Self::orchestrator_of(n));
        let at = SocketAddr::new(host.address(false), ORCHESTRATOR_PORT);
        let file = self.ground.folder().join(format!("{what}.toml"));
        let this = std::env::current_exe().context("where is this program?")?;
        let xtask = crate::lab::command::xtask_binary(&this);
        let servers = |line: &dyn Fn(u8, IpAddr) -> String| -> String {
            (1..=DNS_SERVERS).map(|n| line(n, Host::Dns(n).address(false))).collect()
        };
        let exec = format!(
            "exec = {{ program = \"{xtask}\", timeout = \"30s\", arguments = [\"lab-executor\", \"--lab\", \"{lab}\", \
             \"--weir\", \"{weir}\"] }}",
            xtask = xtask.display(),
            lab = self.ground.name(),
            weir = self.ground.weir_binary().display(),
        );
        let text = format!(
            "name = \"o{n}\"
listen = \"{at}\"
address = \"{at}\"
socket = \"{socket}\"
prometheus = \"http://{prometheus}:{PROMETHEUS_PORT}\"
prefix = \"extra\"
ready_timeout = \"1m\"
drain_timeout = \"5s\"

{store}
[zone]
origin = \"fleet.test\"
names = [\"www\"]
ttl = \"5s\"
ns = [\"ns1.fleet.test\", \"ns2.fleet.test\", \"ns3.fleet.test\"]
contact = \"hostmaster.fleet.test\"
{fixed}
[[scaling]]
name = \"nodes\"
of = \"nodes\"
expr = 'sum(weir_backend_connections_active) / count(weir_flow_records_max)'
target = {CONNECTIONS_MAX}
min = 2
max = 4
down_window = \"10s\"
settle = \"6s\"
every = \"1s\"
{exec}

[[replace]]
name = \"saturated\"
of = \"service/web\"
expr = 'sum by (backend) (rate(lab_cpu_wanted_seconds_total[5s])) > {SATURATED}'
label = \"backend\"
for = \"{saturated_s}s\"
every = \"1s\"
{exec}
{dns}",
            socket = self.orchestrator_socket(n).display(),
            prometheus = Host::Prometheus.address(false),
            store = self.store_text()?,
            fixed = servers(&|n, address| format!("[[zone.fixed]]\nname = \"ns{n}\"\naddresses = [\"{address}\"]\n")),
            saturated_s = SATURATED_FOR.as_secs(),
            dns = servers(&|n, address| format!("\n[[dns_server]]\nname = \"d{n}\"\nmetrics = \"{address}:9652\"\n")),
        );
        fs::write(&file, text)?;
        let mut command = self.command(host, &self.ground.weir_binary().to_string_lossy())?;
        command.args(["orchestrator", "run", "--config"]).arg(&file);
        let process = self.ground.start(&what, &mut command)?;
        wait_listening(&self.ground, &host.name(), at, &process)?;
        Ok(process)
    }

    /// Starts Prometheus with the configuration that ships with weir, at the pace of a lab.
    pub fn start_prometheus(&mut self) -> Result<Process> {
        let host = Host::Prometheus;
        let assets = crate::root().join("lb-userspace/assets/prometheus");
        let text = fs::read_to_string(assets.join("prometheus.yml")).context("the configuration that ships")?;
        let orchestrator = |n| format!("{}:{ORCHESTRATOR_PORT}", Host::Orchestrator(n).address(false));
        let vitals = SocketAddr::new(Host::Control.address(false), vitals::PORT);
        let vitals = format!("\n  - job_name: vitals\n    static_configs:\n      - targets: [\"{vitals}\"]\n");
        let text = (text + &vitals)
            .replace("10.0.0.5:9651", &orchestrator(1))
            .replace("10.0.0.6:9651", &orchestrator(2))
            .replace(": 5s", ": 1s")
            .replace("scrape_timeout: 4s", "scrape_timeout: 1s")
            .replace("weir.rules.yml", &assets.join("weir.rules.yml").display().to_string());
        let (file, data) = (self.ground.folder().join("prometheus.yml"), self.ground.folder().join("prometheus"));
        fs::write(&file, text)?;
        let at = SocketAddr::new(host.address(false), PROMETHEUS_PORT);
        let mut command = self.command(host, "prometheus")?;
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", data.display())).arg(format!("--web.listen-address={at}"));
        let process = self.ground.start(PROMETHEUS, &mut command)?;
        wait_listening(&self.ground, &host.name(), at, &process)?;
        Ok(process)
    }

    /// Starts all of it, and two nodes that serve `services`.
    pub fn start_control_plane(&mut self, services: &str) -> Result<()> {
        self.start_store()?;
        let file = self.ground.folder().join("services.toml");
        fs::write(&file, services)?;
        self.write_node_as(Host::Node(1), "n1", &self.store_text()?)?;
        let config = self.config_file(Host::Node(1)).display().to_string();
        self.weir(Host::Node(1), &["config", "apply", &file.display().to_string(), "--config", &config])?;
        for name in ["n1", "n2"] {
            let host = self.create_node(name)?;
            // Orchestrators that find fewer nodes than there shall be start others.
            until("an address of the pool", PATIENCE, || self.vip(host))?;
        }
        (1..=ORCHESTRATORS).try_for_each(|n| self.start_orchestrator(n).map(drop))?;
        (1..=DNS_SERVERS).try_for_each(|n| self.start_dns(n).map(drop))?;
        self.start_vitals()?;
        self.start_prometheus().map(drop)
    }

    /// What each DNS server says about the name; an error where one does not answer.
    pub fn names(&self) -> Result<Vec<Vec<IpAddr>>> {
        self.ground.namespace(&Host::Client.name()).run(|| {
            runtime()?.block_on(async {
                let mut all = Vec::new();
                for n in 1..=DNS_SERVERS {
                    let mut said = resolve::ask(resolve::server(n), NAME).await?;
                    said.sort_unstable();
                    all.push(said);
                }
                Ok(all)
            })
        })
    }

    /// The VIP that a node leases, if it does.
    pub fn vip(&self, host: Host) -> Result<Option<IpAddr>> {
        let status = self.weir_json(host, &["status"])?;
        let leased = &status["store"]["pools"][0]["address"];
        Ok(leased.as_str().and_then(|text| text.parse().ok()))
    }
}

/// The service of the fleet: six backends behind the VIP that each node leases, every connection counted.
pub fn services() -> String {
    let mut text = format!("[[pool]]\nname = \"front\"\nprefix = \"{POOL_V4}\"\n\n");
    text += "[[service]]\nname = \"web\"\nvip = \"pool:front\"\nport = 80\nprotocol = \"tcp\"\nforward = \"ipip\"\n";
    text += "track = \"all\"\nannounce_for = \"1s\"\nwindow = \"3s\"\nalgo_config = { ring_size = 1021 }\n\n";
    text += "[service.health_check]\ntype = \"http\"\npath = \"/health\"\ninterval = \"1s\"\ntimeout = \"500ms\"\n";
    for n in 1..=super::topology::BACKENDS {
        text += &format!("\n[[service.backends]]\naddress = \"{}\"\nweight = 1\n", Host::Backend(n).address(false));
    }
    text
}
