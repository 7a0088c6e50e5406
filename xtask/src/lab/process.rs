//! Processes that a lab started, told apart from any other that may get their pid later.

use std::{
    fmt, fs,
    os::unix::process::CommandExt,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// How long a killed process may take to be gone.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A process: its pid, and when it started in clock ticks since boot. Both together never mean another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    what: String,
    pid: i32,
    start_ticks: u64,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.what, self.pid)
    }
}

/// Starts a command that outlives its starter: own process group, so that Ctrl-C at the terminal does not reach it.
pub fn spawn(what: &str, command: &mut Command) -> Result<Process> {
    let mut child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {what}: `{}`", crate::step::command_line(command)))?;
    let pid = i32::try_from(child.id()).context("a pid that is no pid")?;
    let start_ticks = start_ticks(pid).with_context(|| format!("{what} ended at once"))?;
    // Reaped by a thread as long as this process lives, so that a killed one does not linger as a zombie.
    std::thread::spawn(move || child.wait());
    Ok(Process { what: what.to_owned(), pid, start_ticks })
}

impl Process {
    /// What it was started as.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            bail!("{self} is not running");
        }
        kill(Pid::from_raw(self.pid), signal).with_context(|| format!("{signal} to {self}"))
    }

    /// Kills it and waits until it is gone; a process that is gone is fine.
    pub fn end(&self) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        // It may end by itself between the question and the signal.
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).ok();
        self.wait(END_TIMEOUT)
    }

    /// Waits until it is gone.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while self.is_running() {
            if start.elapsed() > limit {
                bail!("{self} still runs after {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// When a process started; `None` if there is none, or only its zombie.
fn start_ticks(pid: i32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// State and start time of proc_pid_stat(5), where the name in parentheses may hold anything.
fn parse_stat(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    // The number of threads is field 20, the start time field 22; the state was field 3.
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    // What a process holds, such as locks, it holds until its last thread has ended, which need not be the first one.
    if matches!(state, "Z" | "X") && threads <= 1 {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 4711 99 98";
        assert_eq!(parse_stat(stat), Some(4711));
        assert_eq!(parse_stat(&stat.replace(") S", ") Z")), None);
        assert_eq!(
            parse_stat(&stat.replace(") S", ") Z").replace(" 20 0 1 0 ", " 20 0 3 0 ")),
            Some(4711),
            "threads are left"
        );
        assert_eq!(parse_stat("garbage"), None);
    }

    #[test]
    fn a_process_is_ended_and_another_start_time_is_another_process() {
        let process = spawn("sleeper", Command::new("sleep").arg("30")).unwrap();
        assert!(process.is_running());
        let stranger = Process { start_ticks: process.start_ticks + 1, ..process.clone() };
        stranger.end().unwrap();
        assert!(process.is_running() && !stranger.is_running());
        process.end().unwrap();
        assert!(!process.is_running());
        process.end().unwrap();
    }
}
