//! `weir lock torture`, and one of its workers.

use std::{
    io::{self, IsTerminal as _, Read as _},
    path::PathBuf,
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use lb_locks::{
    round::Fencing,
    torture::{
        check::{Breaches, Verdict},
        conductor::{self, Outcome, Progress, TortureError},
        schedule::Fault,
        worker::{self, Orders},
    },
};
use tokio::signal::unix::{SignalKind, signal};

use super::duration;
use crate::{
    cli::{
        exit::{Exit, Failure},
        shell::{Shell, block_on},
        table::{Cell, Tone, block},
        unit,
    },
    model,
};

const AFTER_HELP: &str = "\
It starts redis-server processes of its own on loopback and as many worker processes as --clients says, breaks them by a schedule
that the seed gives, and ends all of them. Every worker writes down when it held the lock; the verdict is made of that alone.
With --memory the nodes are in memory and the workers are tasks: the same schedule and protocol where no redis-server is.

Faults: stop (SIGSTOP to nodes), kill (SIGKILL, then a start with their files), empty (FLUSHALL, or a start without files),
partition (requests or answers between nodes and one half of the clients are lost), pause (the holder is stopped for longer than
its lock lives), crash (the holder is killed), clock (a node's wall clock is moved forward; needs the package faketime). All but
the last are borne; clock breaks exclusion, and the fence stops what comes of it at the resource.

--without shows what a protection is for: without the quarantine a node that was emptied votes at once, and two hold the lock;
without the fence the resource takes the writes of holders that were paused.

Exit code: 0 if every promise was kept, 1 if not, 128 + N if signal N ended it before that was known.";

/// `weir lock torture`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Torture {
    /// The seed of schedule and workers; drawn unless given
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long the fight lasts
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    duration: Duration,
    /// Worker processes
    #[arg(long, value_name = "N", default_value_t = 6)]
    clients: usize,
    /// Lock nodes
    #[arg(long, value_name = "N", default_value_t = 5)]
    nodes: usize,
    /// Kinds of faults, separated by commas; an empty word for none [default: all but clock]
    #[arg(long, value_name = "KINDS", value_delimiter = ',', value_parser = fault)]
    faults: Option<Vec<Kind>>,
    /// A protection to do without: may be repeated
    #[arg(long, value_enum, value_name = "PROTECTION")]
    without: Vec<Protection>,
    /// No processes: nodes in memory, workers as tasks
    #[arg(long)]
    memory: bool,
    /// Lifetime of the lock
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1s")]
    ttl: Duration,
    /// Time for one answer of one node
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "100ms")]
    node_timeout: Duration,
    /// Write what the workers saw into this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

/// A word of `--faults`; the empty one is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind(Option<Fault>);

fn fault(word: &str) -> Result<Kind, String> {
    if word.is_empty() {
        return Ok(Kind(None));
    }
    let found = Fault::ALL.into_iter().find(|fault| fault.name() == word);
    found.map(|fault| Kind(Some(fault))).ok_or_else(|| format!("one of {}", Fault::ALL.map(Fault::name).join(", ")))
}

/// What protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protection {
    /// Nodes that restarted or were emptied keep out of votes
    Quarantine,
    /// Tokens, and a resource that looks at them
    Fence,
    /// A token is stored by a majority before it is handed out
    SecondRound,
}

/// What a worker is told.
#[derive(Args, Clone, Debug)]
pub struct Worker {
    /// Number of the worker
    #[arg(long)]
    worker: u32,
    /// Seed of the run
    #[arg(long)]
    seed: u64,
    /// Lifetime of the lock
    #[arg(long, value_parser = duration)]
    ttl: Duration,
    /// Time for one answer of one node
    #[arg(long, value_parser = duration)]
    node_timeout: Duration,
    /// The server with the resource
    #[arg(long)]
    resource: String,
    /// A protection to do without
    #[arg(long, value_enum)]
    without: Vec<Protection>,
    /// Nodes, `NAME=redis://...`
    nodes: Vec<String>,
}

fn fencing(without: &[Protection]) -> Fencing {
    if without.contains(&Protection::Fence) {
        Fencing::None
    } else if without.contains(&Protection::SecondRound) {
        Fencing::OneRound
    } else {
        Fencing::TwoRounds
    }
}

/// Runs `weir lock torture`.
pub fn run(shell: &Shell, args: &Torture) -> anyhow::Result<ExitCode> {
    let seed = match args.seed {
        Some(seed) => seed,
        // Small enough to be typed.
        None => u64::from(getrandom::u32().context("the kernel gives no random numbers")?),
    };
    let faults = args.faults.as_ref().map(|kinds| kinds.iter().filter_map(|kind| kind.0).collect());
    let torture = conductor::Torture {
        seed,
        duration: args.duration,
        clients: args.clients,
        nodes: args.nodes,
        faults: faults.unwrap_or_else(|| Fault::PROMISED.to_vec()),
        ttl: args.ttl,
        node_timeout: args.node_timeout,
        quarantine: !args.without.contains(&Protection::Quarantine),
        fencing: fencing(&args.without),
    };
    eprintln!("weir: torture with --seed {seed} for {}", model::duration::format(args.duration));
    let stop = Arc::new(AtomicBool::new(false));
    let (ended, by) = block_on(async {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .map(|kind| Ok((signal(kind)?, kind.as_raw_value())))
            .into_iter()
            .collect::<io::Result<Vec<_>>>()
            .context("cannot listen to signals")?;
        let (flag, without, in_memory) = (Arc::clone(&stop), args.without.clone(), args.memory);
        let mut conductor = tokio::task::spawn_blocking(move || {
            let command = |orders: &Orders| command(&program, orders, &without);
            let mut progress = show_progress(torture.duration);
            if in_memory {
                conductor::run_in_memory(&torture, &mut progress, &flag)
            } else {
                conductor::run(&torture, &command, &mut progress, &flag)
            }
        });
        let mut by = None;
        loop {
            let next = signals.iter_mut().map(|(signals, number)| {
                Box::pin(async move {
                    signals.recv().await;
                    *number
                })
            });
            tokio::select! {
                ended = &mut conductor => return Ok((ended.context("the torture panicked")?, by)),
                (number, ..) = futures_util::future::select_all(next) => {
                    by = by.or(Some(number));
                    stop.store(true, Ordering::Release);
                }
            }
        }
    })?;
    let interrupted = by.map(|number| ExitCode::from(u8::try_from(128 + number).unwrap_or(u8::MAX)));
    if let (Err(_), Some(code)) = (&ended, interrupted) {
        return Ok(code);
    }
    let outcome = ended.map_err(|error| match error {
        TortureError::Config(text) => Failure::new(Exit::Usage, text),
        error => Failure::new(Exit::Failure, error.to_string()),
    })?;
    if let Some(path) = &args.history {
        conductor::write_history(path, &outcome.history).with_context(|| format!("cannot write {}", path.display()))?;
    }
    shell.show(&outcome, |outcome| text(outcome, shell.colour))?;
    Ok(match interrupted {
        _ if !outcome.verdict.held() => Exit::Failure.into(),
        Some(code) => code,
        None => Exit::Ok.into(),
    })
}

/// This program as a worker.
fn command(program: &std::path::Path, orders: &Orders, without: &[Protection]) -> Command {
    let mut command = Command::new(program);
    let time = |duration| model::duration::format(duration);
    command.args(["lock", "torture-worker"]);
    command.args(["--worker", &orders.worker.to_string(), "--seed", &orders.seed.to_string()]);
    command.args(["--ttl", &time(orders.ttl), "--node-timeout", &time(orders.node_timeout)]);
    command.args(["--resource", &orders.resource]);
    for protection in without.iter().filter_map(Protection::to_possible_value) {
        command.args(["--without", protection.get_name()]);
    }
    command.args(&orders.nodes);
    command
}

/// A line that is written anew on a terminal, or one now and then into a log.
fn show_progress(duration: Duration) -> impl FnMut(&Progress) {
    let terminal = io::stderr().is_terminal();
    move |progress: &Progress| {
        let seconds = progress.elapsed.as_secs();
        let line = format!(
            "{} of {}: {} grants, {} failures, {} scenes, last {}",
            unit::duration(seconds),
            unit::duration(duration.as_secs()),
            unit::count(progress.acquisitions),
            unit::count(progress.failures),
            progress.scenes,
            progress.fault.map_or("none", Fault::name),
        );
        if terminal {
            eprint!("\r\x1b[K{line}");
            if seconds + 1 >= duration.as_secs() {
                eprintln!();
            }
        } else if seconds.is_multiple_of(10) {
            eprintln!("{line}");
        }
    }
}

fn text(outcome: &Outcome, colour: bool) -> String {
    let verdict = &outcome.verdict;
    let each = |pairs: &mut dyn Iterator<Item = (String, u64)>| {
        let words: Vec<String> = pairs.map(|(name, count)| format!("{name} {count}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let failures = each(&mut verdict.failures.iter().map(|(name, count)| (name.clone(), *count)));
    let mut scenes = each(&mut outcome.scenes.iter().map(|(name, count)| ((*name).to_owned(), *count)));
    if outcome.spared > 0 {
        scenes
            .push_str(&format!(" ({} nodes were not emptied: others had not got their counters back)", outcome.spared));
    }
    let breach = |breaches: &Breaches| {
        let tone = if breaches.count == 0 { Tone::Good } else { Tone::Bad };
        Cell::toned(breaches.count.to_string(), tone)
    };
    let grants =
        format!("{}, {} extensions, {} losses noticed", verdict.acquisitions, verdict.extensions, verdict.lost);
    let mut out = block(
        &[
            ("seed", outcome.seed.to_string().into()),
            ("scenes", scenes.into()),
            ("grants", grants.into()),
            ("failures", failures.into()),
            ("longest wait", unit::latency(verdict.longest_wait_us).into()),
            ("writes", format!("{} accepted, {} refused for their token", verdict.writes, verdict.refused).into()),
            ("two holders", breach(&verdict.overlaps)),
            ("smaller tokens", breach(&verdict.inversions)),
            ("equal tokens", breach(&verdict.equal_tokens)),
            ("late writes", breach(&verdict.disordered_writes)),
        ],
        colour,
    );
    out.push('\n');
    out.push_str(&examples(verdict));
    let interrupted = if outcome.interrupted { ", as far as it went" } else { "" };
    let seed = outcome.seed;
    out.push_str(&if verdict.held() {
        format!("every promise was kept{interrupted}; seed {seed}\n")
    } else if verdict.disordered_writes.count == 0 && verdict.writes > 0 {
        format!(
            "BROKEN{interrupted}, but no late write was accepted by the resource; seed {seed} draws the same schedule again\n"
        )
    } else {
        format!("BROKEN{interrupted}; seed {seed} draws the same schedule again\n")
    });
    out
}

fn examples(verdict: &Verdict) -> String {
    let mut out = String::new();
    for (what, breaches) in [
        ("both held it", &verdict.overlaps),
        ("the second one's token is smaller", &verdict.inversions),
        ("both got one token", &verdict.equal_tokens),
        ("the second one's write came late and was accepted", &verdict.disordered_writes),
    ] {
        for pair in breaches.examples.iter().take(3) {
            let token = |fence: Option<u64>| fence.map_or_else(String::new, |fence| format!(" (token {fence})"));
            let time =
                if pair.overlap_us > 0 { format!(" for {}", unit::latency(pair.overlap_us)) } else { String::new() };
            out.push_str(&format!(
                "worker {}{} and worker {}{}: {what}{time}\n",
                pair.first.worker,
                token(pair.first.fence),
                pair.second.worker,
                token(pair.second.fence)
            ));
        }
    }
    out
}

/// Runs one worker until its standard input ends.
pub fn worker(args: &Worker) -> anyhow::Result<Exit> {
    let orders = Orders {
        worker: args.worker,
        seed: args.seed,
        nodes: args.nodes.clone(),
        resource: args.resource.clone(),
        ttl: args.ttl,
        node_timeout: args.node_timeout,
        quarantine: !args.without.contains(&Protection::Quarantine),
        fencing: fencing(&args.without),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // The conductor holds the other end: it is closed when the run is over, also by the conductor's death.
    std::thread::spawn(move || {
        let mut byte = [0; 64];
        while io::stdin().read(&mut byte).is_ok_and(|read| read > 0) {}
        flag.store(true, Ordering::Release);
    });
    block_on(async { Ok(worker::work(&orders, &stop, &mut io::stdout()).await?) })?;
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use lb_locks::torture::{
        check::check,
        history::{Entry, Event},
    };

    use super::*;

    #[test]
    fn a_verdict_names_the_seed_and_what_broke() {
        let acquired = |worker, at_us, fence| Entry {
            worker,
            event: Event::Acquired {
                grant: 1,
                at_us,
                started_us: at_us,
                valid_until_us: 1_000_000,
                waited_us: 7,
                fence,
            },
        };
        let outcome = |history: Vec<Entry>| Outcome {
            seed: 42,
            scenes: [("stop", 2)].into(),
            spared: 0,
            interrupted: false,
            verdict: check(&history),
            history,
        };
        let good = text(&outcome(vec![acquired(1, 10, Some(1))]), false);
        assert!(
            good.contains("two holders     0\n") && good.ends_with("\nevery promise was kept; seed 42\n"),
            "{good}"
        );
        let bad = text(&outcome(vec![acquired(1, 10, Some(1)), acquired(2, 400_000, Some(2))]), false);
        assert!(bad.contains("worker 1 (token 1) and worker 2 (token 2): both held it for 600 ms\n"), "{bad}");
        assert!(bad.ends_with("BROKEN; seed 42 draws the same schedule again\n"), "{bad}");
    }

    #[test]
    fn faults_are_words() {
        for kind in Fault::ALL {
            assert_eq!(fault(kind.name()), Ok(Kind(Some(kind))));
        }
        assert_eq!(fault(""), Ok(Kind(None)));
        assert!(fault("earthquake").unwrap_err().contains("partition"));
    }
}
