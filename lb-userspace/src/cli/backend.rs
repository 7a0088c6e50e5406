//! `weir backend list|add|remove|drain|ready|maint|weight|reset` and the way to name a backend; `drain` and `setup-help` have their own
//! files. With a store, what an administrator says about a backend stands in its service's object; else in the agent's overrides.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, Subcommand};

use super::{
    drain::{self, DrainArgs},
    exit::{Exit, Failure},
    service::active,
    setup_help,
    shell::{Shell, Watch, block_on, now_unix_s},
    store::{self, Place, Shared, WriteArgs},
    table::{Cell, Column, Tone, table},
    unit,
};
use crate::{
    api::{AdminChange, Backend, Drain, DrainPhase, HealthState, NextHop, backend_name},
    model::{AdminState, WEIGHT_MAX},
    store::edit::{self, BackendChange, NewBackend},
};

/// `weir backend`.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// List backends with weight, health, next hop and share of the ring
    List {
        /// Only those of this service
        service: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Give a backend no new connections once the change was announced; those that it has go on. --wait waits until the drain is
    /// over, with a store on all live nodes
    Drain(DrainArgs),
    /// Let a backend take traffic according to its weight and health
    Ready(TargetArgs),
    /// Take a backend out at once: no traffic, no health checks
    Maint(TargetArgs),
    /// Change a backend's weight: in the store; or on this node, until `weir backend reset` or until the file changes it
    Weight {
        #[command(flatten)]
        target: Target,
        /// New weight; 0 gives the backend no new connections
        #[arg(value_parser = clap::value_parser!(u16).range(0..=i64::from(WEIGHT_MAX)))]
        weight: u16,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Add a backend to a service of the store
    Add {
        #[command(flatten)]
        target: Target,
        /// Its share of new flows relative to the others, 0 to 1000 [default: 1]
        #[arg(long, value_parser = clap::value_parser!(u16).range(0..=i64::from(WEIGHT_MAX)))]
        weight: Option<u16>,
        /// Connections that it takes at most
        #[arg(long, value_name = "N")]
        max_connections: Option<u32>,
        /// Add it without traffic: `weir backend ready` lets it take some
        #[arg(long)]
        maint: bool,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Remove a backend from a service of the store; connections that it has are drained
    Remove {
        #[command(flatten)]
        target: Target,
        /// Without a drain: it is taken out on all live nodes first, which ends its connections
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Forget overrides: administrative state and weight are the configuration's again
    Reset(Target),
    /// Print the commands that a backend's host needs for the service's forwarding mode
    SetupHelp(setup_help::SetupHelp),
}

/// Which backend.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Service and backend: `web/10.0.0.11:80`, `web/[fd00::11]:80`; the port may be left out where it is clear
    #[arg(value_name = "SERVICE/BACKEND")]
    target: String,
}

/// Which backend, and how the store is changed.
#[derive(Args, Clone, Debug)]
pub struct TargetArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    write: WriteArgs,
}

/// Runs `weir backend ...`.
pub fn run(shell: &Shell, command: &BackendCommand) -> anyhow::Result<Exit> {
    let state = |state| AdminChange { admin_state: Some(state), ..AdminChange::default() };
    match command {
        BackendCommand::List { service, watch } => shell.repeat(
            *watch,
            async |client| match service {
                Some(name) => Ok(client.service(name).await?.backends),
                None => client.backends().await,
            },
            |backends, _| list(backends, now_unix_s(), shell.colour),
        ),
        BackendCommand::Drain(args) => return drain::run(shell, args),
        BackendCommand::Ready(args) => return admin(shell, &args.target, &args.write, state(AdminState::Ready)),
        BackendCommand::Maint(args) => return admin(shell, &args.target, &args.write, state(AdminState::Maint)),
        BackendCommand::Weight { target, weight, write } => {
            return admin(shell, target, write, AdminChange { weight: Some(*weight), ..AdminChange::default() });
        }
        BackendCommand::Add { target, weight, max_connections, maint, write } => {
            let target = target.in_store()?;
            let admin_state = maint.then_some(AdminState::Maint);
            let change = BackendChange { weight: *weight, max_connections: *max_connections, admin_state };
            let new = NewBackend { address: target.address, port: target.port, change };
            let shared = store::place(&write.store)?.store(IN_THE_FILE)?;
            return store::change(shell, &shared, write, &format!("backend add {target}"), |objects| {
                edit::add_backend(objects, &target.service, &new)
            });
        }
        BackendCommand::Remove { target, now, write } => {
            let target = target.in_store()?;
            let shared = store::place(&write.store)?.store(IN_THE_FILE)?;
            let mut write = write.clone();
            if *now && !write.dry_run {
                take_out(&shared, &target, &write)?;
                // The revision that was insisted on is the one before it was taken out.
                write.expect_rev = None;
            }
            let subject = format!("backend remove {target}");
            return store::change(shell, &shared, &write, &subject, |objects| edit::remove_backend(objects, &target));
        }
        BackendCommand::Reset(target) => change(shell, target, AdminChange { reset: true, ..AdminChange::default() }),
        BackendCommand::SetupHelp(args) => setup_help::run(shell, args),
    }?;
    Ok(Exit::Ok)
}

/// What there is to do where backends stand in a file.
const IN_THE_FILE: &str = "edit the file, then `weir config apply`";

/// How long live nodes may take to take a backend out that is removed without a drain.
const TAKE_OUT_S: u32 = 30;

/// Puts a backend into maintenance and waits until all live nodes have it: what is in maintenance leaves without a drain, and a node that
/// met both changes at once would drain it.
fn take_out(shared: &Shared, target: &edit::Target, write: &WriteArgs) -> anyhow::Result<()> {
    let write = WriteArgs { wait: Some(TAKE_OUT_S), ..write.clone() };
    let maint = BackendChange { admin_state: Some(AdminState::Maint), ..BackendChange::default() };
    let subject = format!("backend maint {target}");
    let made = store::make(shared, &write, &subject, |objects| edit::change_backend(objects, target, maint));
    let nodes = block_on(made)?.nodes.unwrap_or_default();
    let refused = nodes.refused.iter().map(|refusal| &refusal.node);
    let without: Vec<&str> = nodes.late.iter().chain(refused).map(String::as_str).collect();
    if without.is_empty() {
        return Ok(());
    }
    let message =
        format!("{target} is in maintenance now, and not removed: {} did not take it out", without.join(", "));
    let hint = "`weir node list` says how they stand; without `--now` it is removed and drained";
    Err(Failure::new(Exit::TimedOut, message).hint(hint).into())
}

/// Changes what an administrator says about a backend, where that stands.
fn admin(shell: &Shell, target: &Target, write: &WriteArgs, wanted: AdminChange) -> anyhow::Result<Exit> {
    match store::place(&write.store)? {
        Place::Store(shared) => in_store(shell, &shared, target, write, wanted),
        Place::File => {
            write.refuse_without_store("")?;
            change(shell, target, wanted)?;
            Ok(Exit::Ok)
        }
    }
}

/// Writes state or weight into the service's object.
pub fn in_store(
    shell: &Shell,
    shared: &Shared,
    target: &Target,
    write: &WriteArgs,
    wanted: AdminChange,
) -> anyhow::Result<Exit> {
    let target = target.in_store()?;
    let AdminChange { admin_state, weight, .. } = wanted;
    let subject = match (admin_state, weight) {
        (Some(state), _) => format!("backend {state} {target}"),
        (None, weight) => format!("backend weight {target} {}", weight.unwrap_or_default()),
    };
    let change = BackendChange { weight, max_connections: None, admin_state };
    store::change(shell, shared, write, &subject, |objects| edit::change_backend(objects, &target, change))
}

impl Target {
    /// The same as the store names it.
    pub fn in_store(&self) -> Result<edit::Target, Failure> {
        let (service, which) = parse(&self.target)?;
        let (address, port) = match which {
            Which::Exact(name) => match name.parse::<SocketAddr>() {
                Ok(at) => (at.ip(), Some(at.port())),
                Err(_) => return Err(Failure::new(Exit::Usage, format!("{name:?} is not address:port"))),
            },
            Which::Address(address) => (address, None),
        };
        Ok(edit::Target { service, address, port })
    }

    /// Names of service and backend; asks the agent where the port was left out.
    pub fn resolve(&self, shell: &Shell) -> anyhow::Result<(String, String)> {
        named(shell, &self.target)
    }
}

/// Names of the service and backend that `text` means; asks the agent where the port was left out.
pub fn named(shell: &Shell, text: &str) -> anyhow::Result<(String, String)> {
    let (service, which) = parse(text)?;
    let name = match which {
        Which::Exact(name) => name,
        Which::Address(address) => {
            let detail = shell.ask(async |client| client.service(&service).await)?;
            resolve(&service, address, &detail.backends)?.name.clone()
        }
    };
    Ok((service, name))
}

fn change(shell: &Shell, target: &Target, change: AdminChange) -> anyhow::Result<()> {
    let (service, name) = target.resolve(shell)?;
    let backend = shell.ask(async |client| client.admin(&service, &name, change).await)?;
    shell.show(&backend, |backend| list(std::slice::from_ref(backend), now_unix_s(), shell.colour))
}

/// A backend as the user named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// By address and port: the name itself.
    Exact(String),
    /// By its address alone.
    Address(IpAddr),
}

/// Splits `SERVICE/BACKEND`.
pub fn parse(text: &str) -> Result<(String, Which), Failure> {
    let wrong = |message: String| {
        Failure::new(Exit::Usage, message).hint("name it as `weir backend list` does: web/10.0.0.11:80")
    };
    let (service, backend) = text
        .split_once('/')
        .filter(|(service, backend)| !service.is_empty() && !backend.is_empty())
        .ok_or_else(|| wrong(format!("{text:?} does not name a service and a backend")))?;
    let which = if let Ok(socket) = backend.parse::<SocketAddr>() {
        Which::Exact(backend_name(socket.ip(), socket.port()))
    } else {
        let address = backend.trim_start_matches('[').trim_end_matches(']');
        Which::Address(address.parse().map_err(|_| wrong(format!("{backend:?} is neither address nor address:port")))?)
    };
    Ok((service.to_owned(), which))
}

/// The one backend of `service` with this address.
pub fn resolve<'a>(service: &str, address: IpAddr, backends: &'a [Backend]) -> Result<&'a Backend, Failure> {
    let mut found = backends.iter().filter(|backend| backend.address == address);
    match (found.next(), found.next()) {
        (Some(backend), None) => Ok(backend),
        (None, _) => Err(Failure::new(Exit::NotFound, format!("service {service} has no backend {address}"))
            .hint(format!("`weir backend list {service}` shows those it has"))),
        (Some(first), Some(second)) => Err(Failure::new(
            Exit::Usage,
            format!("service {service} has several backends at {address}: {}, {} ...", first.name, second.name),
        )
        .hint("give the port too")),
    }
}

/// The configuration's word for an administrative state.
pub fn admin_state(state: AdminState) -> &'static str {
    match state {
        AdminState::Ready => "ready",
        AdminState::Drain => "drain",
        AdminState::Maint => "maint",
    }
}

/// A health state as a cell.
pub fn health(state: HealthState) -> Cell {
    match state {
        HealthState::Up => Cell::toned("up", Tone::Good),
        HealthState::Down => Cell::toned("down", Tone::Bad),
        HealthState::Unknown => Cell::toned("unknown", Tone::Warn),
        HealthState::Unchecked => Cell::toned("unchecked", Tone::Faint),
    }
}

/// A next hop as a cell: `eth1 02:...`, `via` its gateway, or why there is none.
pub fn next_hop(hop: &NextHop) -> Cell {
    if !hop.resolved {
        return Cell::toned(hop.cause.as_deref().unwrap_or("unresolved"), Tone::Bad);
    }
    let mut text = hop.interface.clone().unwrap_or_default();
    if let Some(gateway) = hop.gateway {
        text.push_str(&format!(" via {gateway}"));
    }
    if let Some(mac) = &hop.mac {
        text.push_str(&format!(" {mac}"));
    }
    text.into()
}

/// Time since `since`, or `-`.
pub fn age(since_unix_s: Option<u64>, now_unix_s: u64) -> String {
    since_unix_s.map_or_else(|| "-".into(), |since| unit::duration(now_unix_s.saturating_sub(since)))
}

/// The effective weight, and in brackets the one that was asked for where it differs; `*` marks an override.
fn weight(b: &Backend) -> String {
    let asked = b.weight_override.unwrap_or(b.weight_configured);
    let star = if b.weight_override.is_some() { "*" } else { "" };
    if asked == b.weight_effective {
        format!("{asked}{star}")
    } else {
        format!("{} ({asked}{star})", b.weight_effective)
    }
}

fn state(b: &Backend) -> Cell {
    if b.leaving {
        return Cell::toned("leaving", Tone::Warn);
    }
    let star = if b.admin_state_override.is_some() { "*" } else { "" };
    let tone = if b.admin_state() == AdminState::Ready { Tone::Plain } else { Tone::Warn };
    Cell::toned(format!("{}{star}", admin_state(b.admin_state())), tone)
}

/// Where a drain stands, in a few words: `12 left, 4m10s`.
fn drain_cell(drain: Option<&Drain>) -> Cell {
    let Some(d) = drain else { return "-".into() };
    let left = d.connections.map(|n| format!("{} left, ", unit::count(n))).unwrap_or_default();
    let within = unit::duration(d.ends_in_s);
    match d.phase {
        DrainPhase::Announced => Cell::toned(format!("announced {}", unit::duration(d.announced_for_s)), Tone::Warn),
        DrainPhase::Draining => Cell::toned(format!("{left}{within}"), Tone::Warn),
        DrainPhase::Ended => Cell::toned("ended", Tone::Good),
        DrainPhase::TimedOut => Cell::toned(format!("{left}time is over"), Tone::Bad),
    }
}

/// Backends as a table. `*` marks an override, explained below the table where one stands.
pub fn list(backends: &[Backend], now_unix_s: u64, colour: bool) -> String {
    if backends.is_empty() {
        return "no backends are configured\n".into();
    }
    let columns = [
        Column::Left("SERVICE"),
        Column::Left("BACKEND"),
        Column::Right("WEIGHT"),
        Column::Left("STATE"),
        Column::Left("HEALTH"),
        Column::Left("REASON"),
        Column::Right("SINCE"),
        Column::Right("SHARE"),
        Column::Right("EXPECTED"),
        Column::Right("ACTIVE"),
        Column::Left("DRAIN"),
        Column::Right("PACKETS"),
        Column::Right("BYTES"),
        Column::Left("NEXT HOP"),
    ];
    let row = |b: &Backend| {
        vec![
            b.service.as_str().into(),
            b.name.as_str().into(),
            weight(b).into(),
            state(b),
            health(b.health),
            b.health_reason.as_deref().unwrap_or("-").into(),
            age(b.health_since_unix_s, now_unix_s).into(),
            unit::percent(b.share.actual).into(),
            unit::percent(b.share.expected).into(),
            active(&b.connections, b.max_connections).into(),
            drain_cell(b.drain.as_ref()),
            unit::count(b.packets).into(),
            unit::bytes(b.bytes).into(),
            next_hop(&b.next_hop),
        ]
    };
    let mut out = table(&columns, backends.iter().map(row).collect(), colour);
    if backends.iter().any(|b| b.weight_override.is_some() || b.admin_state_override.is_some()) {
        out.push_str("* set at run time: `weir backend reset SERVICE/BACKEND` returns to the configuration\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    #[test]
    fn list_shows_configured_override_and_effective() {
        assert_eq!(
            list(&sample::backends(), sample::NOW, false),
            "\
SERVICE  BACKEND       WEIGHT  STATE   HEALTH  REASON  SINCE  SHARE  EXPECTED  ACTIVE  DRAIN  PACKETS     BYTES  NEXT HOP
web      10.0.0.11:80       1  ready   up      L7OK    5m12s  50.0%     50.0%    ~120  -        61.7k  32.0 MiB  eth1 02:00:00:00:00:0b
web      10.0.0.12:80  0 (5*)  drain*  up      L7OK    5m12s   0.0%      0.0%    ~120  4m10s    61.7k  32.0 MiB  neighbour FAILED
web      10.0.0.13:80   0 (1)  ready   down    L4CON   5m12s   0.0%      0.0%    ~120  -        61.7k  32.0 MiB  eth1 02:00:00:00:00:0b
* set at run time: `weir backend reset SERVICE/BACKEND` returns to the configuration
"
        );
    }

    #[test]
    fn drains_show_what_is_left_and_how_long() {
        let table = [
            // (phase, connections, announced for, ends in, text)
            (DrainPhase::Announced, Some(7), 3, 299, "announced 3s"),
            (DrainPhase::Draining, Some(7), 0, 250, "7 left, 4m10s"),
            (DrainPhase::Draining, None, 0, 250, "4m10s"),
            (DrainPhase::Ended, Some(0), 0, 250, "ended"),
            (DrainPhase::TimedOut, Some(2), 0, 0, "2 left, time is over"),
        ];
        for (phase, connections, announced_for_s, ends_in_s, text) in table {
            let mut backend = sample::backend(12);
            backend.leaving = true;
            backend.drain = Some(Drain { phase, connections, announced_for_s, ends_in_s });
            let shown = list(&[backend], sample::NOW, false);
            assert!(shown.contains(&format!("  {text}  ")) && shown.contains("  leaving  "), "{text}\n{shown}");
        }
    }

    #[test]
    fn a_backend_is_named_as_the_tables_show_it() {
        for (text, which) in [
            ("web/10.0.0.11:80", Which::Exact("10.0.0.11:80".into())),
            ("web/[FD00::0:11]:80", Which::Exact("[fd00::11]:80".into())),
            ("web/[fd00::11]", Which::Address("fd00::11".parse().unwrap())),
            ("web/10.0.0.11", Which::Address([10, 0, 0, 11].into())),
            ("web/fd00::11", Which::Address("fd00::11".parse().unwrap())),
        ] {
            assert_eq!(parse(text).unwrap(), ("web".into(), which), "{text}");
        }
        for wrong in ["", "web", "web/", "/10.0.0.1:80", "web/host:80", "web/10.0.0.1:99999", "web/10.0.0.1:*"] {
            assert_eq!(parse(wrong).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
    }

    #[test]
    fn an_address_alone_must_be_clear() {
        let mut backends = sample::backends();
        let address = backends[0].address;
        assert_eq!(resolve("web", address, &backends).unwrap().id, 11);
        assert_eq!(resolve("web", [10, 9, 9, 9].into(), &backends).unwrap_err().exit, Exit::NotFound);
        backends[1].address = address;
        assert_eq!(resolve("web", address, &backends).unwrap_err().exit, Exit::Usage);
    }
}
