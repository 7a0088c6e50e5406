//! Long external commands: their progress on the screen, their whole output in a file.
//!
//! Refuses to know what a command does. Invariant: a failed step names its log and shows the end of it.

use std::{
    fs::{self, File},
    io::{IsTerminal, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Bytes of a log that a failure shows.
const TAIL_BYTES: u64 = 3000;
/// How often a step that is still running says so when the output is no terminal.
const QUIET_INTERVAL: Duration = Duration::from_secs(10);

/// A command as a person would type it.
pub fn command_line(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            line.push_str(&format!("{}={} ", name.to_string_lossy(), value.to_string_lossy()));
        }
    }
    line.push_str(&command.get_program().to_string_lossy());
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Where the log of a step goes.
pub fn log_path(name: &str) -> PathBuf {
    crate::target_dir().join("xtask").join(format!("{name}.log"))
}

/// Runs `command` to its end; output is appended to the log `name`.
///
/// On a terminal the elapsed seconds count up; elsewhere a line appears every ten seconds.
pub fn run(title: &str, name: &str, command: &mut Command) -> Result<()> {
    let path = log_path(name);
    let folder = path.parent().context("the log has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut log =
        File::options().create(true).append(true).open(&path).with_context(|| format!("{}", path.display()))?;
    writeln!(log, "$ {}", command_line(command))?;
    let start_at = log.metadata()?.len();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start `{}`", command.get_program().to_string_lossy()))?;

    let clock = Progress::start(title);
    let status = child.wait()?;
    let elapsed = clock.finish();
    if status.success() {
        println!("  {title}: done in {:.1} s", elapsed.as_secs_f32());
        return Ok(());
    }
    println!("  {title}: FAILED after {:.1} s", elapsed.as_secs_f32());
    eprintln!("{}", tail(&path, start_at)?);
    bail!("{title}: `{}` ended with {status}; full output: {}", command_line(command), path.display());
}

/// The end of a log, from `start_at` on.
pub fn tail(path: &Path, start_at: u64) -> Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(start_at.max(length.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A clock that shows that something is still going on.
pub struct Progress {
    start: Instant,
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Progress {
    /// Starts the clock of the step `title`.
    pub fn start(title: &str) -> Self {
        let (stop, stopped) = mpsc::channel();
        let title = title.to_owned();
        let start = Instant::now();
        let thread = thread::spawn(move || {
            let terminal = std::io::stdout().is_terminal();
            let interval = if terminal { Duration::from_secs(1) } else { QUIET_INTERVAL };
            while stopped.recv_timeout(interval) == Err(mpsc::RecvTimeoutError::Timeout) {
                let seconds = start.elapsed().as_secs();
                if terminal {
                    print!("\r  {title}: {seconds} s ");
                    // A terminal that went away must not end the step.
                    std::io::stdout().flush().ok();
                } else {
                    println!("  {title}: still running after {seconds} s");
                }
            }
            if terminal {
                print!("\r\x1b[K");
            }
        });
        Self { start, stop, thread }
    }

    /// Stops the clock, clears its line and tells the time since the start.
    pub fn finish(self) -> Duration {
        drop(self.stop);
        // The clock thread has nothing to report; a panic in it would only have lost the display.
        self.thread.join().ok();
        self.start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_end_of_its_output_and_the_log() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo it broke; exit 3"]);
        let error =
            run("breaking", &format!("test-step-{}", std::process::id()), &mut command).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains(".log"), "{error}");
        let path = log_path(&format!("test-step-{}", std::process::id()));
        assert!(tail(&path, 0).unwrap().contains("it broke"));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = Command::new("apt-get");
        command.env("A", "b").args(["install", "x"]);
        assert_eq!(command_line(&command), "A=b apt-get install x");
    }
}
