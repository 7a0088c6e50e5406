//! `weir lock run`: a command under a lock.
//!
//! Owns: the life of the command. Invariants: it starts only once the lock is held; it and everything that came from it is
//! told to end (SIGTERM) a grace before the validity of the lock ends, and made to (SIGKILL) before that end; if this
//! process is killed, so is the command.

use std::{
    ffi::OsString,
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use lb_locks::{Guard, LockError, Request, clock::BootTime};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::{self, Pid},
};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal as Signals, SignalKind, signal},
    time::sleep,
};

use super::{Wanted, duration, family, settled, stores::Stores};
use crate::cli::exit::{Exit, Failure};

const AFTER_HELP: &str = "\
Example: at most one of several machines runs the nightly backup:

    weir lock run nightly --ttl 60s -- /usr/local/bin/backup

The command finds the lock's name in WEIR_LOCK_NAME, and with --fence its token in WEIR_LOCK_FENCE. The lock is extended while it
runs. Signals (HUP, INT, QUIT, TERM, USR1, USR2) are passed on to it. What it leaves in the background when it ends is not
under the lock any more.

Exit code: the command's own, or 128 + N if signal N ended it; 75 if the lock was not acquired, 76 if it was lost and the command
stopped, 125 if something else failed, 126 if the command cannot be executed, 127 if it is not found.";

/// Signals that are passed on.
const FORWARDED: [(SignalKind, Signal); 6] = [
    (SignalKind::hangup(), Signal::SIGHUP),
    (SignalKind::interrupt(), Signal::SIGINT),
    (SignalKind::quit(), Signal::SIGQUIT),
    (SignalKind::terminate(), Signal::SIGTERM),
    (SignalKind::user_defined1(), Signal::SIGUSR1),
    (SignalKind::user_defined2(), Signal::SIGUSR2),
];
/// How often ending processes are looked after.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// `weir lock run`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct Run {
    #[command(flatten)]
    wanted: Wanted,
    /// Time between SIGTERM and SIGKILL when the lock is lost, at most half of the lifetime [default: a quarter of the lifetime,
    /// at most 5s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    grace: Option<Duration>,
    /// What `inspect` shows about the holder; the command's name unless given
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    stores: Stores,
}

/// Runs `weir lock run`.
pub fn run(args: &Run) -> anyhow::Result<ExitCode> {
    supervise(args).map_err(|error| {
        // The command's own codes must be told from ours.
        let exit = match error.downcast_ref::<Failure>().map(|failure| failure.exit) {
            Some(exit @ (Exit::NotAcquired | Exit::LockLost | Exit::NotExecutable | Exit::NoCommand)) => exit,
            _ => Exit::RunFailed,
        };
        match error.downcast::<Failure>() {
            Ok(failure) => Failure { exit, ..failure }.into(),
            Err(error) => Failure::new(exit, format!("{error:#}")).into(),
        }
    })
}

fn supervise(args: &Run) -> anyhow::Result<ExitCode> {
    let Some(program) = args.command.first() else {
        return Err(Failure::new(Exit::RunFailed, "no command is given").into());
    };
    let ttl = args.wanted.ttl;
    let grace = args.grace.unwrap_or((ttl / 4).min(Duration::from_secs(5)));
    if grace > ttl / 2 {
        let message = format!("--grace {grace:?} is more than half of the lifetime of {ttl:?}");
        return Err(Failure::new(Exit::RunFailed, message).into());
    }
    // Arguments may hold secrets; the name does not.
    let name = Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
    let place = args.stores.open(args.label.as_ref().unwrap_or(&name))?;
    let times = Times { grace, margin: (ttl / 20).clamp(Duration::from_millis(20), Duration::from_millis(500)) };
    // Taking hours is the command's business: only its end, or the loss of the lock, ends the extensions.
    let request =
        Request { extensions_max: u32::MAX, lost_margin: times.grace + times.margin, ..args.wanted.request() };
    settled(place, async |place| {
        let mut forwarded = Forwarded::new()?;
        let guard = tokio::select! {
            biased;
            guard = super::acquire(place, request) => guard?,
            signal = forwarded.ending() => return Ok(ExitCode::from(code_of_signal(signal as i32))),
        };
        let (child, ended) = match start(args, &guard) {
            Ok(child) => (child.id(), Supervised { child, guard: &guard, times }.watch(&mut forwarded).await),
            Err(error) => (None, Err(error)),
        };
        let valid = guard.is_valid();
        let released = guard.release().await;
        let status = ended?;
        if !valid {
            let message = format!("{:?} was lost while {name} ran (process {})", args.wanted.name, child.unwrap_or(0));
            let hint = "another may have held it meanwhile; a longer --ttl bears longer pauses";
            return Err(Failure::new(Exit::LockLost, message).hint(hint).into());
        }
        if !released.confirmed {
            eprintln!(
                "weir: {:?} was not given back by a majority and will expire ({})",
                args.wanted.name, released.report
            );
        }
        Ok(ExitCode::from(code_of(status)))
    })
}

/// How a lost lock is dealt with.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// From SIGTERM to SIGKILL.
    grace: Duration,
    /// From SIGKILL to the end of validity.
    margin: Duration,
}

fn start(args: &Run, guard: &Guard) -> anyhow::Result<Child> {
    let (program, arguments) = args.command.split_first().context("no command is given")?;
    // Orphans of the command become ours, so that they can be found and ended too.
    prctl::set_child_subreaper(true).context("cannot become the parent of orphans")?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).env("WEIR_LOCK_NAME", guard.name());
    match guard.fence() {
        Some(fence) => command.env("WEIR_LOCK_FENCE", fence.to_string()),
        // That of a lock around this one would be taken for ours.
        None => command.env_remove("WEIR_LOCK_FENCE"),
    };
    let parent = unistd::getpid();
    // SAFETY: between fork and exec the closure makes two system calls, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the line above.
            if unistd::getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
        });
    }
    let program = program.to_string_lossy();
    Command::from(command).spawn().map_err(|error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NoCommand } else { Exit::NotExecutable };
        Failure::new(exit, format!("cannot run {program}: {error}")).into()
    })
}

/// A command that runs under a lock.
struct Supervised<'a> {
    child: Child,
    guard: &'a Guard,
    times: Times,
}

impl Supervised<'_> {
    /// Waits for the command's end, or brings it about.
    async fn watch(mut self, forwarded: &mut Forwarded) -> anyhow::Result<ExitStatus> {
        let mut keep = Box::pin(self.guard.keep());
        let mut lost = Box::pin(self.guard.lost());
        let mut orphans = signal(SignalKind::child()).context("cannot listen to signals")?;
        let mut valid_until = self.guard.valid_until();
        let why = loop {
            let child = self.child.id();
            tokio::select! {
                biased;
                status = self.child.wait() => return status.context("cannot wait for the command"),
                error = &mut keep => break error,
                () = &mut lost => {
                    let why = "it could not be extended in time";
                    let (name, report) = (self.guard.name().to_owned(), lb_locks::Report::default());
                    break LockError::Lost { name, why, report };
                }
                signal = forwarded.next() => forward(signal, child),
                _ = orphans.recv() => family::reap_orphans(child),
                // A guard that lost its lock does not tell any more how long it would have been valid.
                () = sleep(self.times.margin) => valid_until = self.guard.valid_until().max(valid_until),
            }
        };
        drop(keep);
        let name = self.guard.name().to_owned();
        eprintln!("weir: {why}; stopping the command");
        // What the nodes promised still holds until then, whatever became of them; if that is over, a grace is all there is.
        let now = BootTime::now();
        let end = valid_until.before(self.times.margin);
        let end = if end <= now { now + self.times.grace / 2 } else { end.min(now + self.times.grace) };
        self.stop(end, forwarded).await?;
        Err(Failure::new(Exit::LockLost, format!("{name:?} was lost, and the command was stopped")).into())
    }

    /// SIGTERM to all that came from the command, SIGKILL at `end`.
    async fn stop(&mut self, end: BootTime, forwarded: &mut Forwarded) -> anyhow::Result<()> {
        let mut asked = Vec::new();
        family::signal_all(&[Signal::SIGTERM, Signal::SIGCONT]);
        loop {
            let ended = self.child.try_wait().context("cannot wait for the command")?;
            family::reap_orphans(self.child.id());
            let killing = BootTime::now() >= end;
            let left = family::signal_all(if killing { &[Signal::SIGKILL] } else { &[] });
            if ended.is_some() && left == 0 {
                return Ok(());
            }
            tokio::select! {
                signal = forwarded.next() => {
                    // More than one of each says nothing new.
                    if !asked.contains(&signal) {
                        forward(signal, self.child.id());
                        asked.push(signal);
                    }
                }
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }
}

/// Passes `signal` on. What the terminal sends, it sends to the command too.
fn forward(signal: Signal, child: Option<u32>) {
    let from_terminal = matches!(signal, Signal::SIGINT | Signal::SIGQUIT) && family::in_foreground();
    if let (Some(child), false) = (child, from_terminal) {
        // The child is not reaped yet, so its number is still its own.
        let _ = nix::sys::signal::kill(Pid::from_raw(child.cast_signed()), signal);
    }
}

/// Signals as they come.
struct Forwarded(Vec<(Signals, Signal)>);

impl Forwarded {
    fn new() -> anyhow::Result<Self> {
        let each = FORWARDED.iter().map(|(kind, name)| Ok((signal(*kind)?, *name)));
        Ok(Self(each.collect::<io::Result<_>>().context("cannot listen to signals")?))
    }

    async fn next(&mut self) -> Signal {
        let each = self.0.iter_mut().map(|(signals, name)| {
            Box::pin(async move {
                match signals.recv().await {
                    Some(()) => *name,
                    None => std::future::pending().await,
                }
            })
        });
        futures_util::future::select_all(each).await.0
    }

    /// A signal that ends a process which does not care for it: all of them.
    async fn ending(&mut self) -> Signal {
        self.next().await
    }
}

fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().map(|code| u8::try_from(code).unwrap_or(u8::MAX));
    code.unwrap_or_else(|| code_of_signal(status.signal().unwrap_or(0)))
}

/// What a shell makes of a process that a signal ended.
fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_a_shell() {
        for (raw, code) in [(0, 0), (3 << 8, 3), (255 << 8, 255), (9, 137), (15, 143)] {
            assert_eq!(code_of(ExitStatus::from_raw(raw)), code, "{raw}");
        }
    }
}
