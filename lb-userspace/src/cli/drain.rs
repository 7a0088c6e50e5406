//! `weir backend drain`: begins a drain, says what happens, and waits for its end where that is asked for.

use std::time::{Duration, Instant};

use clap::Args;

use super::{
    backend::{Target, admin_state, in_store, list},
    exit::{Exit, Failure},
    shell::{Format, Shell, block_on, json, now_unix_s},
    store::{self, Place, Shared, WriteArgs},
};
use crate::{
    api::{AdminChange, Backend, DrainPhase, HealthState, backend_name, client::ClientError},
    model::AdminState,
    store::{
        edit,
        node::{NodeDrain, NodeStatus},
    },
};

/// Time between questions while waiting.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long an agent may be away while waiting: a restart.
const AWAY: Duration = Duration::from_secs(60);

/// `weir backend drain`.
#[derive(Args, Clone, Debug)]
pub struct DrainArgs {
    #[command(flatten)]
    target: Target,
    // `--wait` waits for the drain's end: exit code 0 if no connection is left (or none is counted), 7 if its time ended it before.
    // With a store, for all live nodes first, and then for its end on each.
    #[command(flatten)]
    write: WriteArgs,
}

/// Runs `weir backend drain`.
pub fn run(shell: &Shell, args: &DrainArgs) -> anyhow::Result<Exit> {
    let change = AdminChange { admin_state: Some(AdminState::Drain), ..AdminChange::default() };
    if let Place::Store(shared) = store::place(&args.write.store)? {
        let exit = in_store(shell, &shared, &args.target, &args.write, change)?;
        if args.write.wait.is_none() || args.write.dry_run || exit != Exit::Ok {
            return Ok(exit);
        }
        let target = args.target.in_store()?;
        let over = block_on(wait_on_nodes(&shared, &target))?;
        if shell.format == Format::Table {
            shell.print(&format!("{target}: {}\n", over.words))?;
        }
        return Ok(over.exit);
    }
    args.write.refuse_without_store("--wait")?;
    let (service, name) = args.target.resolve(shell)?;
    let backend = shell.ask(async |client| client.admin(&service, &name, change).await)?;
    let target = format!("{service}/{name}");
    if args.write.wait.is_none() {
        shell.show(&backend, |backend| began(&target, backend, shell.colour))?;
        return Ok(Exit::Ok);
    }
    if shell.format == Format::Table {
        shell.print(&began(&target, &backend, shell.colour))?;
    }
    let (last, over) = wait(shell, &service, &name, backend)?;
    match shell.format {
        Format::Table => shell.print(&format!("{target}: {}\n", over.words))?,
        Format::Json => shell.print(&json(&last)?)?,
    }
    Ok(over.exit)
}

/// Whether the drain of `target` is over on all live nodes, by their reports; else who still has it.
fn over_on(target: &edit::Target, nodes: &[NodeStatus]) -> Result<Over, Vec<String>> {
    let service = &target.service;
    let named = |drain: &&NodeDrain| match target.port {
        Some(port) => drain.backend == format!("{service}/{}", backend_name(target.address, port)),
        None => drain.backend.starts_with(&format!("{service}/{}:", backend_name(target.address, 0))),
    };
    let live = nodes.iter().filter(|node| node.live);
    if live.clone().next().is_none() {
        return Err(vec!["no node is alive".to_owned()]);
    }
    let left: Vec<(&str, &NodeDrain)> =
        live.filter_map(|node| Some((&*node.report.node, node.report.drains.iter().find(named)?))).collect();
    let words = |(node, drain): &(&str, &NodeDrain)| match drain.connections {
        Some(n) => format!("{node}: {n} connections are left"),
        None => format!("{node}: draining"),
    };
    if left.is_empty() {
        return Ok(Over { exit: Exit::Ok, words: "the drain has ended on all live nodes".into() });
    }
    let told: Vec<String> = left.iter().map(words).collect();
    if left.iter().all(|(_, drain)| drain.timed_out) {
        return Ok(Over { exit: Exit::TimedOut, words: format!("its time is over; {}", told.join(", ")) });
    }
    Err(told)
}

/// Waits until the drain is over on all live nodes: each ends it by itself, at `drain_timeout` at the latest.
async fn wait_on_nodes(shared: &Shared, target: &edit::Target) -> anyhow::Result<Over> {
    let (mut seen, mut told) = (Instant::now(), Vec::new());
    loop {
        match shared.store.nodes().await {
            Ok(nodes) => {
                if nodes.iter().any(|node| node.live) {
                    seen = Instant::now();
                } else if seen.elapsed() >= AWAY {
                    let words = "no node is alive any more, so nobody says whether it is over".to_owned();
                    return Ok(Over { exit: Exit::TimedOut, words });
                }
                match over_on(target, &nodes) {
                    Ok(over) => return Ok(over),
                    Err(left) if left != told => {
                        eprintln!("{target}: {}", left.join(", "));
                        told = left;
                    }
                    Err(_) => {}
                }
            }
            Err(error) if error.is_passing() && seen.elapsed() < AWAY => {}
            Err(error) => return Err(store::failed(error).into()),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn began(target: &str, backend: &Backend, colour: bool) -> String {
    let mut out = list(std::slice::from_ref(backend), now_unix_s(), colour);
    if let Some(drain) = &backend.drain {
        out.push_str(&format!("{target}: {}\n", drain.words()));
    }
    out
}

/// How waiting ended.
#[derive(Debug, PartialEq)]
struct Over {
    exit: Exit,
    words: String,
}

/// Whether a drain is over; `backend` is `None` once its service does not have it any more.
fn over(backend: Option<&Backend>) -> Result<Option<Over>, Failure> {
    let done = |exit, words: String| Ok(Some(Over { exit, words }));
    let Some(b) = backend else { return done(Exit::Ok, "gone, its drain is over".into()) };
    match &b.drain {
        Some(drain) => match drain.phase {
            DrainPhase::Announced | DrainPhase::Draining => Ok(None),
            DrainPhase::Ended => done(Exit::Ok, drain.words()),
            DrainPhase::TimedOut => done(Exit::TimedOut, drain.words()),
        },
        None if b.admin_state() == AdminState::Maint => done(Exit::Ok, "in maintenance: no flow is left".into()),
        None if b.admin_state() == AdminState::Drain && b.health == HealthState::Down => {
            done(Exit::Ok, "down: its flows left it".into())
        }
        None => {
            let state = admin_state(b.admin_state());
            let message = format!("{}/{} does not drain any more: it is {state}", b.service, b.name);
            Err(Failure::new(Exit::Failure, message).hint("somebody else changed it, or the configuration did"))
        }
    }
}

fn wait(shell: &Shell, service: &str, name: &str, first: Backend) -> anyhow::Result<(Backend, Over)> {
    block_on(async {
        let (mut last, mut seen) = (first, Instant::now());
        let mut told = last.drain.map(|d| (d.phase, d.connections));
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = match shell.client.service(service).await {
                Ok(detail) => detail.backends.into_iter().find(|b| b.name == name),
                Err(ClientError::Refused { status: 404, .. }) => None,
                Err(ClientError::NotReachable { .. } | ClientError::Broken { .. }) if seen.elapsed() < AWAY => continue,
                Err(error) => return Err(error.into()),
            };
            seen = Instant::now();
            let over = over(now.as_ref())?;
            last = now.unwrap_or(last);
            if let Some(over) = over {
                return Ok((last, over));
            }
            let tells = last.drain.map(|d| (d.phase, d.connections));
            if let (Some(drain), true) = (&last.drain, tells != told && shell.format == Format::Table) {
                eprintln!("{service}/{name}: {}", drain.words());
                told = tells;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::Drain, cli::sample};

    fn drained(phase: DrainPhase, connections: Option<u64>) -> Backend {
        let drain = Drain { phase, connections, announced_for_s: 0, ends_in_s: 250 };
        let admin_state_override = Some(AdminState::Drain);
        Backend { drain: Some(drain), admin_state_override, ..sample::backend(11) }
    }

    #[test]
    fn a_drain_is_over_when_nothing_is_left_or_its_time_is() {
        let table = [
            (drained(DrainPhase::Announced, Some(0)), None),
            (drained(DrainPhase::Draining, Some(2)), None),
            (drained(DrainPhase::Draining, None), None),
            (drained(DrainPhase::Ended, Some(0)), Some((Exit::Ok, "ended: no connection is left"))),
            (drained(DrainPhase::Ended, None), Some((Exit::Ok, "ended: its time is over"))),
            (
                drained(DrainPhase::TimedOut, Some(3)),
                Some((Exit::TimedOut, "its time is over, 3 connections are left")),
            ),
        ];
        for (backend, expect) in table {
            let expect = expect.map(|(exit, words)| Over { exit, words: words.into() });
            assert_eq!(over(Some(&backend)).unwrap(), expect, "{:?}", backend.drain);
        }
        assert_eq!(over(None).unwrap().map(|o| o.exit), Some(Exit::Ok));
        let mut down = Backend { drain: None, ..drained(DrainPhase::Draining, None) };
        down.health = HealthState::Down;
        assert_eq!(over(Some(&down)).unwrap().map(|o| o.exit), Some(Exit::Ok));
        let ready = sample::backend(11);
        assert!(
            over(Some(&ready)).unwrap_err().message.contains("web/10.0.0.11:80 does not drain any more: it is ready")
        );
    }

    #[test]
    fn a_drain_is_over_when_it_is_on_every_live_node() {
        use crate::store::node::{NodeReport, Outcome};
        let node = |name: &str, live, drains: &[(&str, Option<u64>, bool)]| {
            let drain = |(backend, connections, timed_out): &(&str, Option<u64>, bool)| NodeDrain {
                backend: (*backend).into(),
                connections: *connections,
                timed_out: *timed_out,
            };
            let report = NodeReport {
                node: name.into(),
                lease_ms: 10_000,
                revision: None,
                outcome: Outcome::Applied,
                applied: None,
                version: "0".into(),
                addresses: Vec::new(),
                ready: true,
                draining: false,
                metrics: None,
                drains: drains.iter().map(drain).collect(),
            };
            NodeStatus { report, age_ms: 1, live }
        };
        let (ours, other) = ("web/10.0.0.11:80", "web/10.0.0.111:80");
        for port in [Some(80), None] {
            let target = edit::Target { service: "web".into(), address: [10, 0, 0, 11].into(), port };
            let exit = |nodes: &[NodeStatus]| over_on(&target, nodes).map(|over| over.exit);
            let away = node("c", false, &[(ours, None, false)]);
            let through = node("b", true, &[(other, Some(1), false)]);
            assert_eq!(exit(&[through.clone(), away.clone()]), Ok(Exit::Ok));
            assert!(exit(&[away]).is_err(), "nobody is alive who could say so");
            let left = node("a", true, &[(ours, Some(2), false)]);
            assert_eq!(exit(&[left.clone(), through.clone()]), Err(vec!["a: 2 connections are left".to_owned()]));
            let late = node("d", true, &[(ours, Some(3), true)]);
            assert_eq!(exit(&[late.clone(), through]), Ok(Exit::TimedOut));
            assert!(exit(&[late, left]).is_err(), "one of them goes on");
        }
    }

    #[test]
    fn what_begins_is_said() {
        let mut backend = drained(DrainPhase::Announced, Some(7));
        backend.drain = backend.drain.map(|d| Drain { announced_for_s: 4, ends_in_s: 300, ..d });
        let text = began("web/10.0.0.11:80", &backend, false);
        let line = "web/10.0.0.11:80: announced for 4 s, then no new flows; ends when the last of 7 connections does, in 300 s at \
                    the latest\n";
        assert!(text.ends_with(line), "{text}");
        backend.drain = backend.drain.map(|d| Drain { announced_for_s: 0, connections: None, ..d });
        let line = "no new flows; ends in 300 s (not every flow is recorded: what is left is not known)\n";
        assert!(began("b", &backend, false).ends_with(line));
    }
}
