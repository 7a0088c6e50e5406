//! A redis-server process of our own on loopback, and what can be done to it.
//!
//! Invariants: its data lives in a folder of its own that goes with it; dropping it kills exactly the process it started.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// How long a server may take to answer after its start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Where Debian keeps the library that moves clocks.
const FAKETIME: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
];

/// What a server is started with.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Append-only file, written through at every command: counters survive.
    pub aof: bool,
    /// The clock can be moved.
    pub movable_clock: bool,
    /// Further arguments.
    pub arguments: Vec<String>,
}

/// A running, stopped or killed server.
#[derive(Debug)]
pub struct RedisServer {
    options: ServerOptions,
    port: u16,
    folder: TempDir,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts a server on a free port of 127.0.0.1 and waits until it answers.
    ///
    /// # Errors
    /// redis-server is not installed, or does not come up.
    pub fn start(options: ServerOptions) -> std::io::Result<Self> {
        // A file system in memory: AOF `always` costs what it costs the processor, not what this machine's disk takes.
        let shm = PathBuf::from("/dev/shm");
        let folder = if shm.is_dir() { tempfile::tempdir_in(shm)? } else { tempfile::tempdir()? };
        let mut server = Self { options, port: 0, folder, process: None };
        let mut last = None;
        for _ in 0..5 {
            // Another process may take the port between our look and the server's.
            server.port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            match server.launch() {
                Ok(()) => return Ok(server),
                Err(error) => {
                    // Half up is not up.
                    server.kill();
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| std::io::Error::other("no port")))
    }

    fn launch(&mut self) -> std::io::Result<()> {
        let yes_no = |yes| if yes { "yes" } else { "no" };
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"])
            .args(["--appendonly", yes_no(self.options.aof), "--appendfsync", "always"])
            .args(["--maxmemory-policy", "noeviction", "--dir"])
            .arg(self.folder.path())
            .args(&self.options.arguments)
            // Ctrl-C on a terminal is for whoever started it, who then ends it.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(File::options().create(true).append(true).open(self.folder.path().join("log"))?)
            .stderr(Stdio::null());
        if self.options.movable_clock {
            let library = FAKETIME.iter().find(|path| PathBuf::from(path).exists());
            let library =
                library.ok_or_else(|| std::io::Error::other("libfaketime is not installed: package faketime"))?;
            self.move_clock(0)?;
            // The C library follows, so that its allocator stands before the jemalloc that the server links: jemalloc asks
            // for the time in its first call, libfaketime allocates in its own first call, and neither gets out of that.
            command
                .env("LD_PRELOAD", format!("{library} libc.so.6"))
                .env("FAKETIME_TIMESTAMP_FILE", self.folder.path().join("clock"))
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let child = command.spawn().map_err(|e| {
            std::io::Error::new(e.kind(), format!("cannot start redis-server (package redis-server): {e}"))
        })?;
        self.process = Some(child);
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> std::io::Result<()> {
        let started = Instant::now();
        while started.elapsed() < START_TIMEOUT {
            if let Some(process) = &mut self.process
                && let Some(status) = process.try_wait()?
            {
                return Err(std::io::Error::other(format!("redis-server ended with {status}")));
            }
            if self.answers() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(std::io::Error::other("redis-server does not answer"))
    }

    /// Whether it answers a PING within 100 ms; not while it loads its data.
    pub fn answers(&self) -> bool {
        let ping = || -> std::io::Result<bool> {
            let mut stream = TcpStream::connect_timeout(&self.address(), Duration::from_millis(100))?;
            stream.set_read_timeout(Some(Duration::from_millis(100)))?;
            stream.write_all(b"PING\r\n")?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer)?;
            Ok(&answer == b"+PONG" || &answer == b"-NOAU")
        };
        ping().unwrap_or(false)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            // A process that is gone already needs no signal.
            let _ = kill(Pid::from_raw(process.id().cast_signed()), signal);
        }
    }

    /// SIGSTOP: it keeps its sockets and says nothing.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Killing a process that has ended fails, and then there is nothing to do.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Kills it if it runs, and starts it again on the same port, with its files or without.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart(&mut self, keep: bool) -> std::io::Result<()> {
        self.kill();
        if !keep {
            let files = self.folder.path().join("appendonlydir");
            if files.exists() {
                std::fs::remove_dir_all(files)?;
            }
        }
        self.launch()
    }

    /// Sends one command in the inline form, ignoring the answer's content.
    ///
    /// # Errors
    /// It does not answer.
    pub fn command(&self, text: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address(), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(format!("{text}\r\n").as_bytes())?;
        let mut answer = [0; 8192];
        let mut read = 0;
        // A bulk string says its length, and may come in pieces.
        while read < answer.len() && !is_whole(&answer[..read]) {
            match stream.read(&mut answer[read..])? {
                0 => break,
                more => read += more,
            }
        }
        Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
    }

    /// Moves its wall clock to `offset_ms` from the true one; only with [`ServerOptions::movable_clock`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn move_clock(&self, offset_ms: i64) -> std::io::Result<()> {
        let (new, path) = (self.folder.path().join("clock.new"), self.folder.path().join("clock"));
        let sign = if offset_ms < 0 { '-' } else { '+' };
        let offset_ms = offset_ms.unsigned_abs();
        std::fs::write(&new, format!("{sign}{}.{:03}\n", offset_ms / 1000, offset_ms % 1000))?;
        std::fs::rename(new, path)
    }
}

/// Whether `answer` is one: a line, or a bulk string with all its bytes.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(2).position(|pair| pair == b"\r\n") else { return false };
    let size = answer.strip_prefix(b"$").and_then(|_| std::str::from_utf8(&answer[1..end]).ok()?.parse::<i64>().ok());
    size.is_none_or(|size| size < 0 || answer.len() as i64 >= end as i64 + 4 + size)
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
