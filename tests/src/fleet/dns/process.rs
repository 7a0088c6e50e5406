//! A server process of a test: its log, its end, and waiting for what it shall do.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Longer than anything takes on a machine that works: reached only by what will never happen.
const FOREVER: Duration = Duration::from_secs(90);

/// A process that is killed with the test.
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; its output goes to the file `log`.
    pub fn start(name: &'static str, package: &str, log: PathBuf, command: &mut Command) -> Self {
        let file = File::options().create(true).append(true).open(&log).expect("a log");
        let child =
            command.stdin(Stdio::null()).stdout(file.try_clone().expect("a log")).stderr(file).spawn().unwrap_or_else(
                |e| panic!("cannot start {name} (package {package}; `cargo xtask setup` installs it): {e}"),
            );
        Self { name, child, log }
    }

    /// What it has written.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it runs");
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        // One that is gone already needs no signal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, and how it did.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        eventually("it ends", || self.child.try_wait().expect("it is ours"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
        }
    }
}

/// What `look` finds as soon as it finds something.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < FOREVER, "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A port of 127.0.0.1 that nobody has, for UDP and TCP.
pub fn free_port() -> u16 {
    for _ in 0..100 {
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
        let port = tcp.local_addr().expect("bound").port();
        if UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free for both UDP and TCP");
}

/// `127.0.0.1:port`.
pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
