//! Vitals of the fleet's backends for Prometheus: the CPU time that each backend's processes want.
//!
//! Owns: measuring and telling. Refuses to know: what is too much. Time wanted is time run and time waited for a CPU
//! (proc(5), `schedstat`): a process that never sleeps wants a second each second, however many others share the machine, so
//! what a test makes of it does not depend on the machine's load.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args as ClapArgs;

use super::{
    Fleet,
    topology::{BACKENDS, Host, SPARE_BACKENDS},
};
use crate::lab::{process::Process, wait_listening};

/// Port at the control host.
pub const PORT: u16 = 9100;
/// How long a question or its answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a question that are read.
const QUESTION_BYTES_MAX: usize = 4096;

/// Arguments of the hidden `lab-vitals` command.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Name of the lab
    #[arg(long)]
    lab: String,
    /// The product's binary
    #[arg(long)]
    weir: PathBuf,
    /// Where to answer
    #[arg(long)]
    listen: SocketAddr,
}

/// Answers every request with the vitals, until it is ended.
///
/// # Errors
/// There is no such lab, or the address is taken.
pub fn run(args: &Args) -> Result<()> {
    let fleet = Fleet::open(&args.lab, &args.weir)?;
    let hosts: Vec<Host> = (1..=BACKENDS + SPARE_BACKENDS).map(Host::Backend).collect();
    let inode = |host: &Host| Ok((fs::metadata(fleet.ground.namespace(&host.name()).path())?.ino(), *host));
    let hosts: BTreeMap<u64, Host> = hosts.iter().map(inode).collect::<Result<_>>()?;
    let listener = TcpListener::bind(args.listen).with_context(|| args.listen.to_string())?;
    for stream in listener.incoming() {
        // One that asks and goes away is no reason to end.
        let _ = stream.context("a connection").and_then(|stream| answer(stream, &text(&hosts)));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, body: &str) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut question = [0; QUESTION_BYTES_MAX];
    let mut read = 0;
    while !question[..read].ends_with(b"\r\n\r\n") {
        match stream.read(&mut question[read..])? {
            0 => break,
            more => read += more,
        }
    }
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\n");
    stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()).context("answering")
}

/// The metrics of all hosts, given by the inodes of their network namespaces; a series for each process, for a sum falls when
/// one ends.
fn text(hosts: &BTreeMap<u64, Host>) -> String {
    let mut out = "# TYPE lab_cpu_wanted_seconds_total counter\n".to_owned();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that ended meanwhile has nothing to tell.
        let Ok(namespace) = fs::metadata(process.path().join("ns/net")) else { continue };
        let Some(host) = hosts.get(&namespace.ino()) else { continue };
        let Some(wanted) = fs::read_to_string(process.path().join("schedstat")).ok().as_deref().and_then(wanted) else {
            continue;
        };
        let (address, seconds) = (host.address(false), wanted.as_secs_f64());
        out += &format!("lab_cpu_wanted_seconds_total{{backend=\"{address}\",pid=\"{pid}\"}} {seconds:.3}\n");
    }
    out
}

/// Time run and time waited, of a `schedstat` file.
fn wanted(schedstat: &str) -> Option<Duration> {
    let mut fields = schedstat.split_whitespace().map(str::parse::<u64>);
    let (ran, waited) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(Duration::from_nanos(ran.saturating_add(waited)))
}

impl Fleet {
    /// Starts the vitals at the control host.
    pub(super) fn start_vitals(&mut self) -> Result<Process> {
        let at = SocketAddr::new(Host::Control.address(false), PORT);
        let this = std::env::current_exe().context("where is this program?")?;
        let xtask = crate::lab::command::xtask_binary(&this);
        let mut command = self.command(Host::Control, &xtask.to_string_lossy())?;
        command.args(["lab-vitals", "--lab", self.ground.name(), "--listen", &at.to_string(), "--weir"]);
        command.arg(self.ground.weir_binary());
        let process = self.ground.start("vitals", &mut command)?;
        wait_listening(&self.ground, &Host::Control.name(), at, &process)?;
        Ok(process)
    }

    /// Name under which what [`Fleet::saturate`] starts is recorded.
    pub fn burn_of(host: Host) -> String {
        format!("burn-{}", host.name())
    }

    /// Starts a process on a host that never sleeps; the rest of the machine comes first, but not by so much that it stands
    /// still for seconds, which its figures would show as pauses.
    pub fn saturate(&mut self, host: Host) -> Result<Process> {
        let mut command = self.command(host, "nice")?;
        command.args(["-n", "5", "sh", "-c", "while :; do :; done"]);
        self.ground.start(&Self::burn_of(host), &mut command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_wanted_is_time_run_and_time_waited() {
        assert_eq!(wanted("1500000000 500000000 17\n"), Some(Duration::from_secs(2)));
        assert_eq!(wanted(""), None);
        assert_eq!(wanted("1 x 3"), None);
    }

    #[test]
    fn a_process_is_counted_for_the_host_whose_namespace_it_is_in() {
        let here = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let text = text(&BTreeMap::from([(here, Host::Backend(1))]));
        let me = format!("backend=\"10.78.0.11\",pid=\"{}\"", std::process::id());
        assert!(text.contains(&me), "{text}");
        assert!(!self::text(&BTreeMap::from([(1, Host::Backend(1))])).contains("pid"));
    }
}
