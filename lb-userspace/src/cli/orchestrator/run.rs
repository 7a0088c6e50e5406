//! `weir orchestrator run`: one of the fleet's orchestrators, until it is told to end.
//!
//! Owns: from the configuration to sockets, store and loop, and signals. Refuses to know: what is decided.

use std::{net::TcpListener, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::File;
use crate::{
    agent::{
        api::{
            serve::{Listener, serve},
            socket,
        },
        owner::Owner,
        run::host_name,
        systemd,
    },
    cli::exit::{Exit, Failure},
    model::{self, orchestrator::OrchestratorConfig},
    orchestrator::{
        clock::PERIODS,
        place::fleet::Fleet,
        policy,
        prometheus::Prometheus,
        record::View,
        report::{self, Doors, Status},
        run::{Handles, Parts, orchestrate},
    },
    store,
    telemetry::log,
};

/// Time for one answer of Prometheus.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one request to this process.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Arguments of `weir orchestrator run`.
#[derive(Args, Debug)]
pub struct Run {
    #[command(flatten)]
    file: File,
    /// Record what would be decided, and carry out none of it
    #[arg(long)]
    dry_run: bool,
    /// Least important lines that are logged: error, warn, info, debug or trace; RUST_LOG overrides it
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
    /// Form of log lines: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: log::Format,
}

/// Runs it.
///
/// # Errors
/// What keeps it from starting: the configuration, files of the store, addresses and sockets that are taken.
pub fn run(args: &Run) -> anyhow::Result<Exit> {
    log::start(args.log_format, &args.log).map_err(|e| Failure::new(Exit::Usage, e.to_string()))?;
    let config = super::config(&args.file)?;
    let name = own_name(&config)?;
    let listener = config.listen.map(TcpListener::bind).transpose();
    let listener = listener.with_context(|| format!("cannot serve metrics on {:?} (`listen`)", config.listen))?;
    let prometheus = config.prometheus.as_deref().map(|url| Prometheus::new(url, QUERY_TIMEOUT)).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = match Owner::of(&config.store, None)? {
            Some(owner) => owner.serve().await?,
            None => store::open(&config.store).context("cannot use the store (`[store]`)")?,
        };
        let at = store.describe();
        let socket = socket::listen(&config.socket, None)
            .with_context(|| format!("cannot open the socket {} (`socket`)", config.socket.display()))?;
        let parts = Parts {
            name: name.clone(),
            address: config.address.clone(),
            policy: Arc::new(policy::policy(&config, args.dry_run)),
            periods: PERIODS,
            place: Arc::new(Fleet::new(store)),
            prometheus,
            executors: policy::executors(&config),
        };
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            systemd::stopping("giving the mastership back");
        };
        let (Handles { status, commands }, orchestrator) = orchestrate(parts, stop)?;
        let doors = Doors { status: status.clone(), commands, dns: Arc::new(config.dns_servers.clone()) };
        tokio::spawn(serve(Listener::Unix(socket), report::admin(doors.clone()), REQUEST_TIMEOUT));
        if let Some(listener) = listener {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::spawn(serve(Listener::Tcp(listener), report::public(doors), REQUEST_TIMEOUT));
        }
        tokio::spawn(tell(status));
        let dry_run = if args.dry_run { ", dry run" } else { "" };
        tracing::info!("weir orchestrator {} {name}: {at}{dry_run}", env!("CARGO_PKG_VERSION"));
        systemd::ready("looking at the store");
        orchestrator.await;
        // Who comes next finds no stale socket; one that is gone already needs no removal.
        let _ = std::fs::remove_file(&config.socket);
        tracing::info!("stopped");
        Ok(Exit::Ok)
    })
}

/// Its name among the orchestrators: the one that is configured, or the host's.
fn own_name(config: &OrchestratorConfig) -> Result<String, Failure> {
    if let Some(name) = &config.name {
        return Ok(name.clone());
    }
    let name = host_name();
    if model::is_name(&name) {
        return Ok(name);
    }
    let failure = Failure::new(Exit::ConfigInvalid, format!("the host name {name:?} cannot name an orchestrator"));
    Err(failure.hint("set `name`: 1 to 64 letters, digits, `-`, `_` and `.`"))
}

/// Keeps the service manager's status line.
async fn tell(mut status: watch::Receiver<Arc<(Status, View)>>) {
    let mut said = String::new();
    loop {
        let line = line(&status.borrow_and_update().0);
        if line != said {
            systemd::status(&line);
            said = line;
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// One line about what it is.
fn line(status: &Status) -> String {
    match status {
        Status { store_error: Some(error), .. } => format!("the store cannot be read: {error}"),
        Status { acting: Some(epoch), .. } => format!("master, epoch {epoch}"),
        Status { master: Some(master), .. } if !master.released => {
            format!("stands by; {} is the master", master.holder)
        }
        Status { .. } => "stands by; there is no master".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::report::Master;

    #[test]
    fn what_matters_most_is_said() {
        let master = |released| Some(Master { holder: "o1/5f".into(), epoch: 3, released });
        let mut status = Status { master: master(true), ..Status::default() };
        assert_eq!(line(&status), "stands by; there is no master");
        status.master = master(false);
        assert_eq!(line(&status), "stands by; o1/5f is the master");
        status.acting = Some(3);
        assert_eq!(line(&status), "master, epoch 3");
        status.store_error = Some("no route".into());
        assert_eq!(line(&status), "the store cannot be read: no route");
    }
}
