//! The fleet under clients in which faults happen: when it is quiet, what is seen while a fault lasts, and the end of it.
//!
//! Owns: the lab, its clients, which of two loads they make, and waiting. Refuses to know: what may be lost ([`super::verdict`]).
//! Invariant: a fault begins in a quiet fleet (one master, all workers, replicas, nodes and DNS servers there, no intent open).

use std::{
    collections::BTreeSet,
    net::IpAddr,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::{
    capability,
    lab::fleet::{
        Fleet,
        client::Crowd,
        control::{NAME, services, until},
        topology::{Host, ORCHESTRATORS, STORES},
    },
    step,
};

use super::{
    fault::{BACKEND, Cast, DNS, Fault, NODE, Part},
    verdict::{Facts, Row, judge},
    watch::Watch,
};
use crate::lab::programs;

/// Name of the lab.
const LAB: &str = "weir-matrix";
/// Clients for whom two nodes are enough, and for whom three are.
const CLIENTS: (usize, usize) = (8, 24);
/// How long what was asked for may take until it is quiet again: a window, a drain, a new node, health.
const QUIET_MAX: Duration = Duration::from_secs(120);
/// How long a decision may take from the load to the order.
pub const DECISION_MAX: Duration = Duration::from_secs(60);
/// How long a fault lasts at least.
const HOLD: Duration = Duration::from_secs(6);
/// The same without Prometheus: longer than the window after which fewer nodes would do.
const HOLD_BLIND: Duration = Duration::from_secs(14);
/// The same with a dead backend while nobody may check it: two leases, and the time that it takes to see it.
const HOLD_UNCHECKED: Duration = Duration::from_secs(27);
/// How long recovery is waited for.
const RECOVERY_MAX: Duration = Duration::from_secs(45);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// The fleet, its clients and who listens to DNS.
pub struct Scene {
    /// The lab.
    pub fleet: Fleet,
    /// Orders that were carried out when it was quiet last.
    pub journal: usize,
    crowd: Crowd,
    watch: Watch,
    high: bool,
}

/// Takes the lab down, also when the scenario fails.
struct Down;

impl Drop for Down {
    fn drop(&mut self) {
        if let Err(error) = Fleet::down(LAB) {
            eprintln!("the lab stays behind: {error:#}");
        }
    }
}

/// Plays in a fleet of its own.
pub fn lab(test: &str, play: impl FnOnce(&mut Scene) -> Result<()>) {
    if !capability::available(&capability::LAB, test) {
        return;
    }
    let _turn = super::super::scene::turn();
    let _down = Down;
    let mut scene = Scene::start().unwrap_or_else(|error| panic!("{error:#}"));
    let mut outcome = play(&mut scene);
    if outcome.is_err() {
        scene.tell();
    }
    let ended = scene.watch.stop().and_then(|()| scene.crowd.stop().map(drop));
    outcome = outcome.and(ended);
    outcome.unwrap_or_else(|error| panic!("{error:#}"));
}

impl Scene {
    fn start() -> Result<Self> {
        let mut fleet = Fleet::up_with_control_plane(LAB, &programs().weir)?;
        fleet.start_control_plane(&services())?;
        until("two addresses in each DNS server", QUIET_MAX, || {
            Ok(fleet.names()?.iter().all(|said| said.len() == 2).then_some(()))
        })?;
        let crowd = Crowd::start(&fleet, NAME, CLIENTS.0)?;
        let watch = Watch::start(&fleet)?;
        Ok(Self { fleet, journal: 0, crowd, watch, high: false })
    }

    /// The ends of the logs of those who decide.
    fn tell(&self) {
        for n in 1..=ORCHESTRATORS {
            let what = Fleet::orchestrator_of(n);
            let log = step::tail(&self.fleet.ground.log_of(&what), 0).unwrap_or_default();
            eprintln!("the log of {what} ends:\n{log}");
        }
    }

    /// From one load to the other; the nodes that it needs.
    pub fn turn_load(&mut self) -> usize {
        self.high = !self.high;
        self.crowd.want(if self.high { CLIENTS.1 } else { CLIENTS.0 });
        self.nodes_wanted()
    }

    fn nodes_wanted(&self) -> usize {
        if self.high { 3 } else { 2 }
    }

    /// The epoch in which an orchestrator acts, if it does.
    pub fn acting(&self, n: u8) -> Result<Option<u64>> {
        Ok(self.fleet.ask_orchestrator(n)?["acting"].as_u64())
    }

    /// Number of the master.
    pub fn master(&self) -> Result<u8> {
        let acting = |n: &u8| self.acting(*n).is_ok_and(|epoch| epoch.is_some());
        (1..=ORCHESTRATORS).find(acting).context("nobody is the master")
    }

    /// Number of the server that the Sentinels call the primary.
    pub fn primary(&self) -> Result<u8> {
        self.primary_except(None)
    }

    fn primary_except(&self, hit: Option<u8>) -> Result<u8> {
        let one = (1..=STORES).find(|n| Some(*n) != hit).context("no Sentinel")?;
        let answer = self.fleet.ask_store(one, true, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "weir"])?;
        let address = |n: &u8| answer.contains(&format!("\r\n{}\r\n", Host::Store(*n).address(false)));
        (1..=STORES).find(address).with_context(|| format!("the Sentinels say {answer:?}"))
    }

    /// Waits until nothing is under way.
    pub fn settle(&mut self) -> Result<()> {
        until("a quiet fleet", QUIET_MAX, || {
            let why = self.unrest()?;
            ensure!(why.is_none(), "{}", why.unwrap_or_default());
            Ok(Some(()))
        })?;
        self.journal = self.fleet.journal()?.len();
        Ok(())
    }

    /// What is not as it should be.
    fn unrest(&self) -> Result<Option<String>> {
        let wanted = self.nodes_wanted();
        let names: Vec<BTreeSet<IpAddr>> =
            self.fleet.names()?.into_iter().map(|said| said.into_iter().collect()).collect();
        if names.iter().any(|said| said.len() != wanted || *said != names[0]) {
            return Ok(Some(format!("{wanted} nodes are wanted, DNS says {names:?}")));
        }
        if self.fleet.nodes()?.len() != wanted {
            return Ok(Some(format!("{wanted} nodes are wanted, there are {:?}", self.fleet.nodes()?)));
        }
        let all = (1..=ORCHESTRATORS).map(|n| self.fleet.ask_orchestrator(n)).collect::<Result<Vec<_>>>()?;
        let count = |of: &dyn Fn(&Value) -> bool| all.iter().filter(|status| of(status)).count();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let open = |status: &Value| {
            list(&status["intents"]).iter().any(|one| !matches!(one["phase"].as_str(), Some("done" | "failed")))
        };
        let assigned = |status: &Value| list(&status["workers"]).iter().filter(|one| one["assigned"] == true).count();
        let workers = usize::from(ORCHESTRATORS);
        Ok([
            (count(&|status| status["acting"].is_u64()) != 1, "not one master"),
            (count(&|status| !status["store_error"].is_null()) > 0, "the store does not answer"),
            (count(&|status| assigned(status) != workers) > 0, "a worker is missing"),
            (count(&open) > 0, "an intent is open"),
            (count(&|status| !list(&status["down"]).is_empty()) > 0, "a backend is down"),
            (!self.replicated()?, "a replica is missing"),
            (self.crowd.open().len() != wanted, "connections through too few nodes"),
        ]
        .into_iter()
        .find_map(|(is, what)| is.then(|| what.to_owned())))
    }

    fn replicated(&self) -> Result<bool> {
        let told = self.fleet.ask_store(self.primary()?, false, &["INFO", "replication"])?;
        Ok(told.contains("role:master") && told.matches("state=online").count() == usize::from(STORES) - 1)
    }

    /// Lets faults happen while the load changes, mends them, and judges what was seen.
    pub fn play(&mut self, faults: &[Fault]) -> Result<Row> {
        self.settle().context("before the fault")?;
        let cast = Cast { master: self.master()?, primary: self.primary()? };
        let vip = self.fleet.vip(NODE)?.context("the node leases no address")?;
        let (orders, journal) = (self.fleet.orders()?.len(), self.journal);
        self.turn_load();
        let begun = Instant::now();
        let hits = faults.iter().map(|fault| fault.happen(&self.fleet, cast)).collect::<Result<Vec<_>>>()?;
        let is_hit = |part| faults.iter().any(|fault| fault.part == part);
        let recovered = self.recover(&is_hit, cast, vip, begun);
        let blind = self.fleet.journal()?.len();
        for hit in &hits {
            hit.mend(&mut self.fleet).with_context(|| format!("mending {}", hit.fault))?;
        }
        let settled = self.settle().context("after it was mended");
        let facts = Facts {
            faults: faults.to_vec(),
            begun,
            vip,
            victim: BACKEND.name(),
            high: self.high,
            recovered,
            connections: self.crowd.over().into_iter().filter(|one| one.ended >= begun).collect(),
            said: self.watch.since(begun),
            orders: self.fleet.orders()?.split_off(orders),
            journal: self.fleet.journal()?.split_off(journal),
            while_hit: blind - journal,
        };
        let mut row = judge(&facts);
        if let Err(error) = settled {
            row.broken.push(format!("{error:#}"));
        }
        Ok(row)
    }

    /// Looks until everything that comes back by itself has done so; what did, and when.
    fn recover(
        &self,
        is_hit: &dyn Fn(Part) -> bool,
        cast: Cast,
        vip: IpAddr,
        begun: Instant,
    ) -> Vec<(Part, Option<Duration>)> {
        let decided = !(is_hit(Part::Master) && is_hit(Part::Worker));
        let awaited = [Part::Agent, Part::Master, Part::Worker, Part::Redis];
        let awaited = awaited.into_iter().filter(|part| is_hit(*part) && (decided || *part == Part::Redis));
        let mut recovered: Vec<(Part, Option<Duration>)> = awaited.map(|part| (part, None)).collect();
        let control = is_hit(Part::Master) || is_hit(Part::Worker) || is_hit(Part::Redis);
        let hold = match () {
            () if (is_hit(Part::Backend) && control) || !decided => HOLD_UNCHECKED,
            () if is_hit(Part::Prometheus) => HOLD_BLIND,
            () => HOLD,
        };
        let mut failed_over = None;
        loop {
            for (part, at) in recovered.iter_mut().filter(|(_, at)| at.is_none()) {
                let back = match part {
                    Part::Agent => self.left_dns(is_hit, vip, begun),
                    Part::Master => self.acting(3 - cast.master).is_ok_and(|epoch| epoch.is_some()),
                    Part::Worker => self.handed_over(is_hit, cast),
                    _ => self.failed_over(is_hit, cast, &mut failed_over),
                };
                if back {
                    *at = Some(begun.elapsed());
                }
            }
            let all = recovered.iter().all(|(_, at)| at.is_some());
            if (all && begun.elapsed() >= hold) || begun.elapsed() >= RECOVERY_MAX {
                return recovered;
            }
            thread::sleep(LOOK);
        }
    }

    /// Whether the last answers of all DNS servers that can answer are without the node.
    fn left_dns(&self, is_hit: &dyn Fn(Part) -> bool, vip: IpAddr, begun: Instant) -> bool {
        let said = self.watch.since(begun);
        let last = |server| said.iter().rev().find(|one| one.server == server)?.addresses.clone();
        let servers = (1..=3).filter(|server| !(is_hit(Part::Dns) && *server == DNS));
        servers.map(last).all(|said| said.is_some_and(|said| !said.contains(&vip)))
    }

    /// Whether the checks of the worker that was hit are others' now.
    fn handed_over(&self, is_hit: &dyn Fn(Part) -> bool, cast: Cast) -> bool {
        let other = if is_hit(Part::Master) { 3 - cast.master } else { cast.master };
        let Ok(status) = self.fleet.ask_orchestrator(other) else { return false };
        let workers = status["workers"].as_array().cloned().unwrap_or_default();
        let lost = format!("o{}", 3 - cast.master);
        !workers.is_empty() && !workers.iter().any(|one| one["name"] == lost && one["assigned"] == true)
    }

    /// Whether another server is the primary, and whoever is left has read it since.
    fn failed_over(&self, is_hit: &dyn Fn(Part) -> bool, cast: Cast, since: &mut Option<u64>) -> bool {
        if since.is_none() && self.primary_except(Some(cast.primary)).is_ok_and(|now| now != cast.primary) {
            let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            *since = Some(u64::try_from(unix.as_millis()).unwrap_or(u64::MAX));
        }
        let Some(since) = *since else { return false };
        let hit = |n: u8| if n == cast.master { is_hit(Part::Master) } else { is_hit(Part::Worker) };
        (1..=ORCHESTRATORS).filter(|n| !hit(*n)).all(|n| {
            let status = self.fleet.ask_orchestrator(n);
            status.is_ok_and(|status| {
                status["store_error"].is_null() && status["read_at"].as_u64().is_some_and(|read| read > since)
            })
        })
    }
}
