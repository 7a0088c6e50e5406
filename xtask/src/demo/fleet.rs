//! `cargo xtask demo fleet`: the fleet that runs itself, with real processes and real connections.
//!
//! Owns: the order of the steps and their verdicts. Invariants: each step says what was seen and how long it took; one in
//! which that was not seen ends the demo with an error that names it; the lab is taken down however it ends, unless it was
//! asked to be kept.

use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args as ClapArgs, ValueEnum};
use nix::sys::signal::Signal;

use super::{conclude, named};
use crate::{
    lab::{
        command::build,
        fleet::{
            Fleet,
            client::{Connection, Crowd},
            control::{CONNECTIONS_MAX, NAME, SATURATED_FOR, services, until},
            executor::Entry,
            topology::Host,
        },
    },
    setup,
};

/// Clients while there is little to do, and while there is too much for two nodes.
const CLIENTS: (usize, usize) = (8, 22);
/// How long what is started may take until it serves.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a node that is gone may stay in DNS.
const DNS_LIMIT: Duration = Duration::from_secs(5);
/// How long the orchestrator may take to decide for more nodes, and a backend that is back until it has a connection.
const CHANGE_LIMIT: Duration = Duration::from_secs(25);
/// How long a backend that is dead may get new connections: fall x interval + time-out + 1 s.
const DEATH_LIMIT: Duration = Duration::from_millis(3 * 1000 + 500 + 1000);
/// The backend that dies.
const VICTIM: Host = Host::Backend(3);
/// The backend that wants a whole CPU, and the host that is free for another one.
const SATURATED: (Host, Host) = (Host::Backend(2), Host::Backend(7));

/// `cargo xtask demo fleet`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Leave the lab up at the end, also after a failure
    #[arg(long)]
    keep: bool,
    /// Name of the lab; labs of different names do not meet
    #[arg(long, default_value = "weir-fleet-demo")]
    name: String,
    /// Last step to show
    #[arg(long, value_enum, default_value = "shrink")]
    until: Step,
    /// Sabotage a step, to see that the demo notices
    #[arg(long = "break", value_enum, hide = true)]
    sabotage: Option<Step>,
}

/// What the demo shows, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Step {
    /// Everything is installed, built and laid out
    Lab,
    /// The name resolves to two nodes, and clients reach every backend through them
    Start,
    /// More connections than two nodes shall have: a third one is started and takes connections
    Grow,
    /// A backend dies and comes back
    Backend,
    /// A backend is at 100 % CPU for too long and is replaced
    Saturated,
    /// The algorithm is changed
    Algorithm,
    /// A node is killed, leaves DNS, and another one takes its place
    Node,
    /// Load falls: a node drains and stops
    Shrink,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lab => "lab",
            Self::Start => "start",
            Self::Grow => "grow",
            Self::Backend => "backend",
            Self::Saturated => "saturated",
            Self::Algorithm => "algorithm",
            Self::Node => "node",
            Self::Shrink => "shrink",
        })
    }
}

/// Runs the steps; the error names the one that failed.
///
/// # Errors
/// What a step promises was not seen.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    heading(Step::Lab, "store with Sentinels, DNS servers, orchestrators, Prometheus, nodes, backends, clients");
    let (weir, ready) = named(Step::Lab, setup::run(&setup::Args::default()).and_then(|()| build()))
        .map(|weir| (weir, Instant::now()))?;
    let interrupted = super::on_interrupt(args.name.clone(), args.keep);
    let outcome = named(Step::Lab, Fleet::up_with_control_plane(&args.name, &weir)).and_then(|fleet| {
        println!("    laid out after {:.1} s", ready.elapsed().as_secs_f32());
        steps(fleet, args)
    });
    drop(interrupted);
    if args.keep {
        println!("\nThe lab stays up, with its files in /run/weir-lab/{}", args.name);
        return outcome;
    }
    conclude(outcome, Fleet::down(&args.name).context("taking the lab down"), start, ready)
}

fn heading(step: Step, text: &str) {
    println!("\n[{}/{}] {step}: {text}", step as usize + 1, Step::Shrink as usize + 1);
}

fn seen(what: &str, took: Duration) {
    println!("    {:>6.2} s  {what}", took.as_secs_f32());
}

struct Demo<'a> {
    fleet: Fleet,
    crowd: Crowd,
    args: &'a Args,
}

fn steps(mut fleet: Fleet, args: &Args) -> Result<()> {
    heading(Step::Start, "two nodes, found by name through three DNS servers");
    named(Step::Start, start(&mut fleet))?;
    let crowd = Crowd::start(&fleet, NAME, CLIENTS.0)?;
    let mut demo = Demo { fleet, crowd, args };
    let outcome = demo.play();
    let over = demo.crowd.stop()?;
    outcome?;
    println!("    {} connections in all, {} of them lost", over.len(), lost(&over).count());
    Ok(())
}

/// Starts everything; the VIPs of both nodes are in every DNS server in the end.
fn start(fleet: &mut Fleet) -> Result<()> {
    let begun = Instant::now();
    fleet.start_control_plane(&services())?;
    seen("every process runs", begun.elapsed());
    let (names, took) = until("two addresses in each DNS server", START_LIMIT, || in_dns(fleet, 2))?;
    seen(&format!("{NAME} is {}", words(&names)), took);
    Ok(())
}

/// What all DNS servers say, if they agree on so many addresses.
fn in_dns(fleet: &Fleet, count: usize) -> Result<Option<BTreeSet<IpAddr>>> {
    let said = fleet.names()?;
    let first: BTreeSet<IpAddr> = said.iter().flatten().copied().collect();
    Ok((first.len() == count && said.iter().all(|one| one.len() == count)).then_some(first))
}

fn words(addresses: &BTreeSet<IpAddr>) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

fn lost(over: &[Connection]) -> impl Iterator<Item = &Connection> {
    over.iter().filter(|one| one.lost.is_some())
}

impl Demo<'_> {
    fn play(&mut self) -> Result<()> {
        for (step, text, action) in [
            (Step::Grow, "more connections than two nodes shall have", Self::grow as fn(&mut Self) -> _),
            (Step::Backend, "b3's web server is killed, and started again", Self::backend),
            (Step::Saturated, "b2 is at 100 % CPU", Self::saturated),
            (Step::Algorithm, "from Maglev to a hash of the source alone, on every node", Self::algorithm),
            (Step::Node, "n1 loses its power", Self::node),
            (Step::Shrink, "load falls", Self::shrink),
        ] {
            // What comes before a sabotaged step need not be shown.
            if step > self.args.until || self.args.sabotage.is_some_and(|broken| step < broken) {
                continue;
            }
            heading(step, text);
            named(step, action(self))?;
        }
        Ok(())
    }

    fn breaks(&self, step: Step) -> bool {
        self.args.sabotage == Some(step)
    }

    /// The first order of that action about that subject which the executor has carried out.
    fn order(&self, action: &str, subject: &str) -> Result<Option<Entry>> {
        let is = |entry: &Entry| entry.action == action && entry.subject == subject;
        Ok(self.fleet.journal()?.into_iter().find(is))
    }

    /// Nothing was lost since `from`.
    fn flawless(&self, from: Instant) -> Result<()> {
        let over = self.crowd.over();
        let lost: Vec<_> = lost(&over).filter(|one| one.ended >= from).collect();
        let count = over.iter().filter(|one| one.ended >= from).count();
        println!("              {count} connections ended meanwhile, {} of them lost", lost.len());
        ensure!(lost.is_empty(), "{} connections were lost, the first: {:?}", lost.len(), lost.first());
        Ok(())
    }

    fn grow(&mut self) -> Result<()> {
        let begun = Instant::now();
        if !self.breaks(Step::Grow) {
            self.crowd.want(CLIENTS.1);
        }
        println!("              {} connections, where {CONNECTIONS_MAX} a node are meant", CLIENTS.1);
        let (order, _) = until("the executor's order", CHANGE_LIMIT, || self.order("create", "nodes"))?;
        seen(&format!("the executor started {} for intent {}", order.name, order.intent), begun.elapsed());
        let (names, _) = until("a third address in each DNS server", START_LIMIT, || in_dns(&self.fleet, 3))?;
        seen(&format!("{NAME} is {}", words(&names)), begun.elapsed());
        let host = self.fleet.nodes()?.get(&order.name).copied().map(Host::Node).context("which host?")?;
        let vip = self.fleet.vip(host)?.context("the third node leases no address")?;
        ensure!(names.contains(&vip), "{vip} of the third node is not in DNS");
        until("connections through the third node", START_LIMIT, || {
            Ok(self.crowd.open().get(&vip).is_some_and(|count| *count > 2).then_some(()))
        })?;
        seen(&format!("connections by node: {:?}", self.crowd.open()), begun.elapsed());
        self.flawless(begun)
    }

    fn backend(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.fleet.ground.process(&Fleet::web_of(VICTIM))?.signal(Signal::SIGKILL)?;
        // Long enough that a connection that comes too late is seen.
        std::thread::sleep(DEATH_LIMIT + Duration::from_secs(2));
        let over = self.crowd.over();
        let late = lost(&over).filter(|one| one.began >= begun).map(|one| one.began - begun).max();
        match late {
            Some(late) => seen("the last new connection that met the dead backend was begun", late),
            None => println!("              no new connection met the dead backend"),
        }
        ensure!(late.is_none_or(|late| late <= DEATH_LIMIT), "new connections met it for {late:?}");
        let again = Instant::now();
        if !self.breaks(Step::Backend) {
            self.fleet.start_web(VICTIM)?;
        }
        let answers = |over: &[Connection]| {
            over.iter().any(|one| one.began >= again && one.backend.as_deref() == Some(&VICTIM.name()))
        };
        let (_, took) = until("a connection to the backend that is back", CHANGE_LIMIT, || {
            Ok(answers(&self.crowd.over()).then_some(()))
        })?;
        seen("b3 has served a connection again", took);
        self.flawless(again)
    }

    /// Another backend is created and serves before the saturated one drains and goes.
    fn saturated(&mut self) -> Result<()> {
        let (old, new) = SATURATED;
        let begun = Instant::now();
        if !self.breaks(Step::Saturated) {
            self.fleet.saturate(old)?;
        }
        println!("              for {} s, then it is to be replaced", SATURATED_FOR.as_secs());
        let (order, _) = until("the executor's order", CHANGE_LIMIT, || self.order("create", "service/web"))?;
        let at = order.address.context("the executor said no address")?;
        seen(&format!("the executor started {} at {at} for intent {}", order.name, order.intent), begun.elapsed());
        ensure!(at.ip() == new.address(false), "it is not at {}", new.address(false));
        let answered = |over: &[Connection], host: Host, from: Instant| {
            over.iter().any(|one| one.began >= from && one.backend.as_deref() == Some(&host.name()))
        };
        until("a connection to the new backend", CHANGE_LIMIT, || {
            Ok(answered(&self.crowd.over(), new, begun).then_some(()))
        })?;
        seen("b7 has served a connection", begun.elapsed());
        let (removed, _) = until("the executor's order", CHANGE_LIMIT, || self.order("remove", "service/web"))?;
        let gone = Instant::now();
        ensure!(removed.intent == order.intent, "another intent removed {}", removed.name);
        ensure!(removed.name == format!("{}:80", old.address(false)), "{} was removed", removed.name);
        ensure!(self.fleet.ground.process(&Fleet::web_of(old)).is_err(), "b2 still runs");
        seen(&format!("b2 was drained, and the executor stopped {}", removed.name), begun.elapsed());
        until("connections after that", CHANGE_LIMIT, || {
            Ok((self.crowd.over().iter().filter(|one| one.began >= gone).count() >= 20).then_some(()))
        })?;
        ensure!(!answered(&self.crowd.over(), old, gone), "a new connection met the backend that is gone");
        self.flawless(begun)
    }

    /// All clients have one address: each node sends them to one backend once the source alone decides.
    fn algorithm(&mut self) -> Result<()> {
        let begun = Instant::now();
        if !self.breaks(Step::Algorithm) {
            let config = self.fleet.config_file(Host::Node(1)).display().to_string();
            self.fleet.weir(Host::Node(1), &["service", "set", "web", "algo=source_hash", "--config", &config])?;
        }
        let pairs = |from: Instant, over: &[Connection]| {
            let new = over.iter().filter(|one| one.began >= from);
            new.filter_map(|one| Some((one.to?, one.backend.clone()?))).collect::<Vec<_>>()
        };
        // Begun later than the time for which a change is announced, and many enough to meet several backends otherwise.
        let from = begun + Duration::from_secs(3);
        let (found, _) = until("connections after the change", CHANGE_LIMIT, || {
            let found = pairs(from, &self.crowd.over());
            Ok((found.len() >= 20).then_some(found))
        })?;
        let different: BTreeSet<_> = found.iter().collect();
        let vips: BTreeSet<_> = found.iter().map(|(vip, _)| vip).collect();
        ensure!(different.len() == vips.len(), "a node sends one source to several backends: {different:?}");
        seen(&format!("{} new connections met one backend on each node", found.len()), begun.elapsed());
        self.flawless(begun)
    }

    fn node(&mut self) -> Result<()> {
        let host = Host::Node(1);
        let vip = self.fleet.vip(host)?.context("n1 leases no address")?;
        let before = self.fleet.names()?.into_iter().flatten().collect::<BTreeSet<_>>();
        ensure!(before.contains(&vip), "{vip} of n1 is not in DNS");
        let begun = Instant::now();
        if !self.breaks(Step::Node) {
            self.fleet.isolate(host)?;
            self.fleet.kill_agent(host)?;
        }
        until("DNS without the node", DNS_LIMIT, || {
            Ok(self.fleet.names()?.iter().all(|said| !said.contains(&vip) && !said.is_empty()).then_some(()))
        })?;
        let gone = Instant::now();
        seen(&format!("{vip} has left each DNS server"), gone - begun);
        let wanted = before.len();
        let (names, _) = until("a node in its place", START_LIMIT, || in_dns(&self.fleet, wanted))?;
        seen(&format!("another node takes its place: {NAME} is {}", words(&names)), begun.elapsed());
        let over = self.crowd.over();
        let lost: Vec<_> = lost(&over).filter(|one| one.ended >= begun).collect();
        println!("              {} connections were lost, all of them through n1", lost.len());
        let stranger = lost.iter().find(|one| one.to != Some(vip));
        ensure!(stranger.is_none(), "a connection that did not go through n1 was lost: {stranger:?}");
        let late = lost.iter().find(|one| one.began > gone);
        ensure!(late.is_none(), "a connection was sent to n1 after it had left DNS: {late:?}");
        Ok(())
    }

    fn shrink(&mut self) -> Result<()> {
        let begun = Instant::now();
        if !self.breaks(Step::Shrink) {
            self.crowd.want(CLIENTS.0);
        }
        let (names, _) = until("one address less in each DNS server", START_LIMIT, || in_dns(&self.fleet, 2))?;
        seen(&format!("a node drains: {NAME} is {}", words(&names)), begun.elapsed());
        let (Entry { name, .. }, _) = until("the executor's order", START_LIMIT, || self.order("remove", "nodes"))?;
        ensure!(!self.fleet.nodes()?.contains_key(&name), "{name} still has a host");
        seen(&format!("the executor stopped {name}"), begun.elapsed());
        self.flawless(begun)
    }
}
