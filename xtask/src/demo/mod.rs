//! `cargo xtask demo`: the main job, shown with real connections and judged.
//!
//! Owns the order of the steps and their verdicts. Invariants: a step that did not happen as promised ends the demo with
//! a non-zero exit that names the step; the lab is taken down however it ends, unless it was asked to be kept. Tuples and
//! seed are the same in every run, so shares do not differ from run to run by luck.

pub mod fleet;
pub mod share;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use nix::sys::signal::Signal;

use crate::{
    lab::{
        Lab,
        agent::Node,
        client::{self, Load, Outcome, Plan, Ports},
        command::{build, service},
        topology::{ECHO_PORT, HTTP_PORT, Host, vip},
    },
    setup,
};

/// Connections that must all succeed after health has taken a backend out.
const AFTER_TRANSITION: usize = 2000;
/// How long health may take to see that a backend died, or that it is back.
const HEALTH_LIMIT: Duration = Duration::from_secs(10);
/// Backends and their weights.
const WEIGHTS: [(Host, u16); 3] = [(Host::B1, 1), (Host::B2, 2), (Host::B3, 3)];

/// `cargo xtask demo`.
#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    other: Option<Other>,
    /// Leave the lab up at the end, also after a failure
    #[arg(long)]
    keep: bool,
    /// A third of the requests
    #[arg(long)]
    quick: bool,
    /// Name of the lab; labs of different names do not meet
    #[arg(long, default_value = "weir-demo")]
    name: String,
    /// Sabotage a step, to see that the demo notices
    #[arg(long = "break", value_enum, hide = true)]
    sabotage: Option<Step>,
}

/// Other demos.
#[derive(Debug, Subcommand)]
enum Other {
    /// The fleet that runs itself: nodes come and go with the load, clients find them by name
    Fleet(fleet::Args),
}

/// Runs the demo that is asked for.
pub fn command(args: &Args) -> Result<()> {
    match &args.other {
        None => run(args),
        Some(Other::Fleet(args)) => fleet::run(args),
    }
}

/// What the demo shows, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// Everything that is needed is installed
    Setup,
    /// weir is built from source
    Build,
    /// The lab is laid out
    Lab,
    /// The agent starts and is ready
    Agent,
    /// HTTP connections follow the weights
    Http,
    /// Datagrams follow the weights
    Udp,
    /// Health sees a killed backend
    Health,
    /// No connection fails once health has seen it
    Failover,
    /// The backend comes back
    Recovery,
    /// The agent is killed and restarted, and no connection notices
    Restart,
    /// Nothing is left of the lab
    Down,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Setup => "setup",
            Self::Build => "build",
            Self::Lab => "lab",
            Self::Agent => "agent",
            Self::Http => "http",
            Self::Udp => "udp",
            Self::Health => "health",
            Self::Failover => "failover",
            Self::Recovery => "recovery",
            Self::Restart => "restart",
            Self::Down => "down",
        })
    }
}

/// Runs the steps; the error names the one that failed.
pub fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    heading(Step::Setup, "what building and the lab need");
    named(Step::Setup, setup::run(&setup::Args::default()))?;
    heading(Step::Build, "the eBPF object and weir, from source");
    let weir = named(Step::Build, build())?;
    heading(Step::Lab, "a client, the node, and backends with nginx, as network namespaces");
    let ready = Instant::now();
    let end_of_interrupted = on_interrupt(args.name.clone(), args.keep);
    let lab = named(Step::Lab, Lab::up(&args.name, &weir))?;
    println!("    up after {:.1} s", ready.elapsed().as_secs_f32());
    let mut demo = Demo { lab, args, ports: Arc::new(Ports::starting_at(0)) };
    let outcome = demo.steps();
    drop(end_of_interrupted);
    if args.keep {
        println!(
            "\nThe lab stays up: `cargo xtask lab shell client --name {0}`, `cargo xtask lab down --name {0}`",
            args.name
        );
        return outcome;
    }
    heading(Step::Down, "taking the lab down");
    conclude(outcome, named(Step::Down, demo.down()), start, ready)
}

/// The end of a demo that began at `start` and had everything built when it was `ready`: the steps' outcome, and that of taking the lab
/// down.
fn conclude(steps: Result<()>, down: Result<()>, start: Instant, ready: Instant) -> Result<()> {
    // The earlier failure is the one to tell.
    steps?;
    down?;
    println!(
        "\nEvery step happened as promised: {:.0} s, {:.0} s of them after set-up and build.",
        start.elapsed().as_secs_f32(),
        ready.elapsed().as_secs_f32()
    );
    Ok(())
}

fn heading(step: Step, text: &str) {
    println!("\n[{}/{}] {step}: {text}", step as usize + 1, Step::Down as usize + 1);
}

fn named<T>(step: impl fmt::Display, outcome: Result<T>) -> Result<T> {
    outcome.with_context(|| format!("the demo failed at step `{step}`"))
}

/// Takes the lab down on Ctrl-C or SIGTERM, and ends. The sender keeps the watch alive.
fn on_interrupt(name: String, keep: bool) -> Option<tokio::sync::oneshot::Sender<()>> {
    let (alive, ended) = tokio::sync::oneshot::channel::<()>();
    let runtime = client::runtime().ok()?;
    std::thread::spawn(move || {
        let interrupted = runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return false };
            tokio::select! {
                _ = ended => false,
                _ = tokio::signal::ctrl_c() => true,
                _ = terminate.recv() => true,
            }
        });
        if interrupted {
            if !keep {
                eprintln!("\ninterrupted; taking the lab down");
                if let Err(error) = Lab::down(&name) {
                    eprintln!("error: {error:#}; the next run tries again");
                }
            }
            std::process::exit(130);
        }
    });
    Some(alive)
}

struct Demo<'a> {
    lab: Lab,
    args: &'a Args,
    ports: Arc<Ports>,
}

impl Demo<'_> {
    fn steps(&mut self) -> Result<()> {
        for (step, text, action) in [
            (Step::Agent, "`weir agent` loads the program and learns the backends", Self::agent as fn(&mut Self) -> _),
            (Step::Http, "HTTP requests over IPv4 and IPv6, a connection each, shared by weight 1:2:3", Self::http),
            (Step::Udp, "datagrams over IPv4 and IPv6, shared by weight 1:2:3", Self::udp),
        ] {
            heading(step, text);
            named(step, action(self))?;
        }
        self.death()?;
        heading(Step::Recovery, "b3's nginx starts again");
        named(Step::Recovery, self.recovery())?;
        heading(Step::Restart, "the agent is killed (SIGKILL) and restarted under load");
        named(Step::Restart, self.restart())
    }

    fn breaks(&self, step: Step) -> bool {
        self.args.sabotage == Some(step)
    }

    fn requests(&self) -> usize {
        if self.args.quick { 1200 } else { 3600 }
    }

    fn agent(&mut self) -> Result<()> {
        let weights = if self.breaks(Step::Http) { WEIGHTS.map(|(host, _)| (host, 1)) } else { WEIGHTS };
        let mut services = String::new();
        for (number, v6) in [(0, false), (0, true)] {
            let family = if v6 { 6 } else { 4 };
            services.push_str(&service(&format!("web{family}"), number, v6, "tcp", HTTP_PORT, "ipip", &weights));
            services.push_str(&service(&format!("echo{family}"), number, v6, "udp", ECHO_PORT, "ipip", &weights));
        }
        if self.breaks(Step::Agent) {
            services.push_str("[[service]]\nname = \"nothing\"\n");
        }
        self.lab.write_config(&Node::default(), &services)?;
        let agent = self.lab.start_agent()?;
        let took = self.lab.wait_ready(&agent)?;
        let status = self.lab.status()?;
        let mode = status["interfaces"][0]["mode"].as_str().unwrap_or("?");
        ensure!(mode == "native", "XDP runs in {mode} mode, not in the driver");
        println!("    ready after {:.1} s: {mode} XDP, every backend up, every next hop known", took.as_secs_f32());
        Ok(())
    }

    /// Where requests of one family come from and go to.
    fn ends(v6: bool, port: u16) -> (IpAddr, SocketAddr) {
        (Host::Client.address(v6), SocketAddr::new(vip(0, v6), port))
    }

    fn http(&mut self) -> Result<()> {
        for v6 in [false, true] {
            let (source, target) = Self::ends(v6, HTTP_PORT);
            let outcomes = self
                .lab
                .namespace(Host::Client)
                .run(|| client::http(source, target, self.requests(), 32, &self.ports))?;
            judge(&format!("http://{target}/"), &outcomes)?;
        }
        Ok(())
    }

    fn udp(&mut self) -> Result<()> {
        if self.breaks(Step::Udp) {
            self.lab.process(&Lab::echo_of(Host::B2))?.end()?;
        }
        for v6 in [false, true] {
            let (source, target) = Self::ends(v6, ECHO_PORT);
            let outcomes = self
                .lab
                .namespace(Host::Client)
                .run(|| client::datagrams(source, target, self.requests(), 64, &self.ports))?;
            judge(&format!("udp {target}"), &outcomes)?;
        }
        Ok(())
    }

    fn plan(long_lived: usize, port_offset: u16) -> Plan {
        let targets = [false, true].map(|v6| Self::ends(v6, HTTP_PORT)).to_vec();
        Plan { targets, rate: 400, long_lived, port_offset }
    }

    /// Kills a backend's web server under load: when health saw it, and what came of 2,000 connections begun after that.
    fn death(&mut self) -> Result<()> {
        heading(Step::Health, "b3's nginx is killed (SIGKILL) under load");
        let (load, killed, seen) = named(Step::Health, self.health())?;
        heading(Step::Failover, "connections begun after health has seen it");
        named(Step::Failover, self.failover(load, killed, seen))
    }

    fn health(&mut self) -> Result<(Load, Instant, Instant)> {
        let load = Load::start(&self.lab.namespace(Host::Client), Self::plan(0, 12_000))?;
        std::thread::sleep(Duration::from_millis(700));
        let killed = Instant::now();
        self.lab.process(&Lab::nginx_of(Host::B3))?.signal(Signal::SIGKILL)?;
        if self.breaks(Step::Health) {
            self.lab.process(&Lab::nginx_of(Host::B3)).map_or(Ok(()), |nginx| nginx.wait(HEALTH_LIMIT))?;
            self.lab.start_nginx(Host::B3)?;
        }
        self.lab.wait_health(Host::B3, "down", HEALTH_LIMIT)?;
        let seen = Instant::now();
        println!("    health took b3 out {:.2} s after the kill", (seen - killed).as_secs_f32());
        Ok((load, killed, seen))
    }

    fn failover(&mut self, load: Load, killed: Instant, seen: Instant) -> Result<()> {
        if self.breaks(Step::Failover) {
            self.lab.process(&Lab::nginx_of(Host::B2))?.signal(Signal::SIGKILL)?;
        }
        let mut after = Vec::new();
        for v6 in [false, true] {
            let (source, target) = Self::ends(v6, HTTP_PORT);
            let half = AFTER_TRANSITION / 2;
            after.extend(self.lab.namespace(Host::Client).run(|| client::http(source, target, half, 32, &self.ports))?);
        }
        let mut observed = load.stop()?.new;
        let (before, mut later): (Vec<Outcome>, Vec<Outcome>) = observed.drain(..).partition(|o| o.began < seen);
        let (alive, dying): (Vec<Outcome>, Vec<Outcome>) = before.into_iter().partition(|o| o.began < killed);
        println!(
            "    between kill and transition {} of {} connections failed, as they reached b3",
            dying.iter().filter(|o| o.result.is_err()).count(),
            dying.len(),
        );
        // Those under way at the moment of the kill belong to neither side.
        let finished: Vec<_> = alive.into_iter().filter(|o| o.ended < killed).collect();
        flawless("before the kill", &finished)?;
        ensure!(after.len() == AFTER_TRANSITION, "{} connections were made, not {AFTER_TRANSITION}", after.len());
        later.append(&mut after);
        flawless("begun after the transition", &later)?;
        ensure!(!client::by_backend(&later).contains_key("b3"), "b3 answered after it was killed");
        Ok(())
    }

    fn recovery(&mut self) -> Result<()> {
        let start = Instant::now();
        if !self.breaks(Step::Recovery) {
            self.lab.start_nginx(Host::B3)?;
        }
        self.lab.wait_health(Host::B3, "up", HEALTH_LIMIT)?;
        println!("    health put b3 back {:.2} s after its start", start.elapsed().as_secs_f32());
        for v6 in [false, true] {
            let (source, target) = Self::ends(v6, HTTP_PORT);
            let outcomes =
                self.lab.namespace(Host::Client).run(|| client::http(source, target, 600, 32, &self.ports))?;
            judge(&format!("http://{target}/"), &outcomes)?;
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        let load = Load::start(&self.lab.namespace(Host::Client), Self::plan(20, 17_000))?;
        std::thread::sleep(Duration::from_secs(1));
        let killed = Instant::now();
        self.lab.kill_agent()?;
        if self.breaks(Step::Restart) {
            std::fs::remove_dir_all(self.lab.pin_dir())?;
        }
        std::thread::sleep(Duration::from_secs(1));
        let agent = self.lab.start_agent()?;
        let ready = self.lab.wait_ready(&agent);
        let back = Instant::now();
        std::thread::sleep(Duration::from_secs(1));
        let observed = load.stop()?;
        ready?;
        println!("    no agent for {:.1} s until the new one was ready", (back - killed).as_secs_f32());
        let during = observed.new.iter().filter(|o| (killed..back).contains(&o.began)).count();
        ensure!(during > 100, "only {during} connections were begun while there was no agent: that proves nothing");
        flawless("begun before, during and after", &observed.new)?;
        flawless("on 40 connections that stayed open", &observed.long_lived)?;
        ensure!(observed.long_lived.len() > 40, "the long-lived connections were hardly used");
        let status = self.lab.status()?;
        ensure!(
            status["adopted"].as_bool() == Some(true),
            "the new agent loaded a data plane and did not adopt the pinned one"
        );
        println!("    the new agent adopted the pinned data plane");
        Ok(())
    }

    fn down(&mut self) -> Result<()> {
        Lab::down(&self.args.name)?;
        if self.breaks(Step::Down) {
            self.lab.namespace(Host::Client).create()?;
        }
        let left = self.lab.leftovers();
        if self.breaks(Step::Down) {
            self.lab.namespace(Host::Client).delete()?;
        }
        ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        println!("    no namespace, process, pin or file is left");
        Ok(())
    }
}

/// Every request was answered, and by the backends that the weights ask for.
fn judge(title: &str, outcomes: &[Outcome]) -> Result<()> {
    let weights = WEIGHTS.map(|(host, weight)| (host.name(), weight));
    let shares = share::shares(&client::by_backend(outcomes), &weights);
    print!("{}", share::table(title, &shares));
    let failures = client::failures(outcomes);
    ensure!(
        failures.is_empty(),
        "{title}: {} of {} requests failed: {failures:?}",
        failures.values().sum::<usize>(),
        outcomes.len()
    );
    if let Some(share) = share::outlier(&shares) {
        bail!(
            "{title}: {} got {:.2} % where its weight asks for {:.2} %: {:+.1} standard deviations",
            share.backend,
            100.0 * share.actual,
            100.0 * share.expected,
            share.sigmas
        );
    }
    Ok(())
}

/// No request failed, and there were some.
fn flawless(what: &str, outcomes: &[Outcome]) -> Result<()> {
    let failures = client::failures(outcomes);
    println!("    {what}: {} requests, {} failed", outcomes.len(), failures.values().sum::<usize>());
    ensure!(!outcomes.is_empty(), "no request {what}");
    ensure!(failures.is_empty(), "requests {what} failed: {failures:?}");
    Ok(())
}
