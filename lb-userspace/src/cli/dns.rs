//! `weir dns serve|check|export`: the authoritative DNS server, and what it serves as files for others.

use std::{
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    exit::{Exit, Failure},
    shell::{Format, Shell, json},
};
use crate::{
    agent::{
        api::serve::{Listener, serve},
        privilege, systemd,
    },
    api::{self, Diagnostic},
    dns::{corefile, key, server, zone::Zone, zonefile},
    model::{code::Severity, dns::DnsConfig, parse},
    store::{self, FileStore},
    telemetry::log,
};

/// Where the configuration lies unless told otherwise.
const CONFIG_DEFAULT: &str = "/etc/weir/dns.toml";
/// Time for one scrape.
const METRICS_TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes of a zone object that are read.
const ZONE_BYTES_MAX: u64 = 32 << 20;

/// `weir dns`.
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Run the DNS server
    Serve(ServeArgs),
    /// Check a configuration of the DNS server and report every error; needs no server
    Check {
        /// The file, or `-` for standard input
        #[arg(default_value = CONFIG_DEFAULT)]
        file: PathBuf,
    },
    /// Print a zone object in the form that another DNS server reads
    Export(ExportArgs),
}

/// Arguments of `weir dns serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// Least important lines that are logged: error, warn, info, debug or trace; RUST_LOG overrides it
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: String,
    /// Form of log lines: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: log::Format,
}

/// Arguments of `weir dns export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The zone object, or `-` for standard input
    #[arg(default_value = "/var/lib/weir-dns/zone.json")]
    file: PathBuf,
    /// What to print
    #[arg(long, value_enum, default_value_t = Form::Zone)]
    format: Form,
    /// Where CoreDNS transfers the zone from; for `corefile-secondary`, may be repeated
    #[arg(long = "from", value_name = "ADDRESS")]
    from: Vec<SocketAddr>,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A master file
    Zone,
    /// A server block for CoreDNS that reads the master file (plugin `file`)
    CorefileFile,
    /// A server block for CoreDNS that transfers the zone (plugin `secondary`)
    CorefileSecondary,
}

/// Runs `weir dns ...`.
pub fn run(shell: &Shell, command: &DnsCommand) -> anyhow::Result<Exit> {
    match command {
        DnsCommand::Serve(args) => serve_zone(args),
        DnsCommand::Check { file } => check(shell, file),
        DnsCommand::Export(args) => export(shell, args),
    }
}

fn read(file: &Path) -> anyhow::Result<(String, String)> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().take(ZONE_BYTES_MAX).read_to_string(&mut text).context("cannot read standard input")?;
        return Ok((text, "standard input".to_owned()));
    }
    Ok((FileStore::new(file).read()?.text, file.display().to_string()))
}

/// What `weir dns check -o json` prints.
#[derive(Serialize)]
struct CheckReport {
    file: String,
    valid: bool,
    errors: usize,
    warnings: usize,
    /// Findings beyond those listed.
    omitted: usize,
    diagnostics: Vec<Diagnostic>,
}

fn check(shell: &Shell, file: &Path) -> anyhow::Result<Exit> {
    let (text, name) = read(file)?;
    let checked = parse::dns::check(&name, &text);
    let valid = checked.config.is_some();
    match shell.format {
        Format::Table => {
            let mut out = checked.render(&text, shell.colour);
            if !out.is_empty() {
                out.push('\n');
            }
            shell.print(&format!("{out}{}\n", checked.summary()))?;
        }
        Format::Json => shell.print(&json(&CheckReport {
            valid,
            errors: checked.count(Severity::Error),
            warnings: checked.count(Severity::Warning),
            omitted: checked.omitted,
            diagnostics: api::diagnostics(&checked, &text),
            file: name,
        })?)?,
    }
    Ok(if valid { Exit::Ok } else { Exit::ConfigInvalid })
}

fn load(file: &Path) -> anyhow::Result<DnsConfig> {
    let (text, name) = read(file)?;
    let checked = parse::dns::check(&name, &text);
    let diagnostics = api::diagnostics(&checked, &text);
    let message = format!("invalid configuration, {}", checked.summary());
    checked.config.ok_or_else(|| Failure { diagnostics, ..Failure::new(Exit::ConfigInvalid, message) }.into())
}

/// A zone object in another form, with its serial number; what `-o json` prints.
#[derive(Serialize)]
struct Exported {
    origin: String,
    serial: u32,
    text: String,
}

fn export(shell: &Shell, args: &ExportArgs) -> anyhow::Result<Exit> {
    let (text, name) = read(&args.file)?;
    let zone = Zone::from_json(text.as_bytes()).with_context(|| name.clone())?;
    let text = match args.format {
        Form::Zone => zonefile::master_file(&zone),
        Form::CorefileFile => corefile::with_file(zone.origin()),
        Form::CorefileSecondary if args.from.is_empty() => {
            return Err(Failure::new(Exit::Usage, "`--format corefile-secondary` needs `--from ADDRESS`")
                .hint("name the address and port of each `weir dns`, as in --from 192.0.2.53:53")
                .into());
        }
        Form::CorefileSecondary => corefile::with_secondary(zone.origin(), &args.from),
    };
    let exported = Exported { origin: zone.origin().to_string(), serial: zone.serial(), text };
    shell.show(&exported, |exported| exported.text.clone())?;
    Ok(Exit::Ok)
}

/// Where the zone comes from.
fn source(config: &DnsConfig) -> anyhow::Result<server::Source> {
    if config.store.is_file() {
        return Ok(server::Source::File(config.zone_file.clone()));
    }
    Ok(server::Source::Store(store::open(&config.store).context("cannot use the store (`[store]`)")?))
}

fn serve_zone(args: &ServeArgs) -> anyhow::Result<Exit> {
    log::start(args.log_format, &args.log).map_err(|e| Failure::new(Exit::Usage, e.to_string()))?;
    let config = load(&args.config)?;
    let keys = key::load(&config.keys)?;
    let bound = server::bind(&config.listen)?;
    // Its secrets may be readable only now.
    let source = source(&config)?;
    let metrics = config.metrics_listen.map(std::net::TcpListener::bind).transpose();
    let metrics = metrics.with_context(|| format!("cannot serve metrics on {:?}", config.metrics_listen))?;
    // Everything that needed a privilege is open, and the process still has one thread.
    let dropped = privilege::give_up(&[]).context("cannot give up privileges")?;
    tracing::debug!("{dropped} capabilities given up");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut server = server::start(&config, keys, bound, source)?;
        let leaving = Arc::new(AtomicBool::new(false));
        if let Some(listener) = metrics {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let router = server.router(Arc::clone(&leaving));
            tokio::spawn(serve(Listener::Tcp(listener), router, METRICS_TIMEOUT));
        }
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let listen: Vec<_> = config.listen.iter().map(ToString::to_string).collect();
        let status = format!("{} on {}", config.origin, listen.join(", "));
        systemd::ready(&status);
        tracing::info!("weir dns {}: {status}", env!("CARGO_PKG_VERSION"));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            died = server.failed() => anyhow::bail!("{died}"),
        }
        leaving.store(true, Ordering::Relaxed);
        systemd::stopping("stopping");
        tracing::info!("stopped: secondaries and the other instances go on serving");
        Ok(Exit::Ok)
    })
}
