//! `cargo bench -p lb-locks`: what a lock costs and how it is handed over, against five real servers on loopback.
//!
//! Everything that is compared is measured in turns in one run, so that a slow minute of the machine is slow for all of it,
//! and targets are ratios. Exit code 1 where one is missed. `-- --quick` takes fewer samples, `-- --only PART` one part.

mod contention;
mod report;
mod speed;

use std::process::ExitCode;

use lb_locks::{
    LockError, Options, Redlock,
    node::redis::RedisOptions,
    torture::server::{RedisServer, ServerOptions},
};
use report::Report;

/// Servers of the lock.
const NODES: usize = 5;
/// What can be measured alone.
const PARTS: [&str; 3] = ["speed", "stopped", "contention"];
const USAGE: &str = "usage: cargo bench -p lb-locks -- [--quick] [--only speed|stopped|contention]";

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let mut quick = false;
    let mut only = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--only" => only = arguments.next(),
            // Cargo says so itself.
            "--bench" => {}
            _ => return usage(),
        }
    }
    if only.as_deref().is_some_and(|part| !PARTS.contains(&part)) {
        return usage();
    }
    match measure(quick, only.as_deref()) {
        Ok(report) => {
            print!("{report}");
            if report.is_met() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("the benchmark failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn measure(quick: bool, only: Option<&str>) -> Outcome<Report> {
    // One thread, as a small service has; the servers need the other cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let durable = || RedisServer::start(ServerOptions { aof: true, ..ServerOptions::default() });
    let servers = (0..NODES).map(|_| durable()).collect::<Result<Vec<_>, _>>()?;
    let mut report = Report::default();
    let wants = |part: &str| only.is_none_or(|only| only == part);
    runtime.block_on(async {
        lb_locks::Lock::bootstrap(&client(&servers, Options::default())?, 0).await?;
        if wants("speed") {
            speed::healthy(&servers, if quick { 300 } else { 3_000 }, &mut report).await?;
        }
        if wants("stopped") {
            speed::one_stopped(&servers, if quick { 60 } else { 300 }, &mut report).await?;
        }
        if wants("contention") {
            contention::run(&servers, if quick { 1 } else { 3 }, &mut report).await?;
        }
        Ok(report)
    })
}

/// A client with connections of its own, as another process would have.
fn client(servers: &[RedisServer], options: Options) -> Result<Redlock, LockError> {
    let urls: Vec<String> = servers.iter().map(RedisServer::url).collect();
    Redlock::redis(&urls, &RedisOptions::default(), options)
}
