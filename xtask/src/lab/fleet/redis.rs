//! The fleet's store: redis-server processes, of which each is in a host: all in the control host, or one server and one
//! Sentinel in each of those that a control plane has for them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Fleet, topology::Host};
use crate::lab::{process::Process, wait_listening};

/// How long a command to a server may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a server keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// In memory only: a restart is empty.
    Nothing,
    /// In an append-only file that is written through at once.
    Everything,
}

impl Fleet {
    /// Name under which the server at a port is recorded.
    pub fn redis_of(port: u16) -> String {
        format!("redis-{port}")
    }

    /// Starts a server at the control host's address, and waits until it answers. `more` are further directives.
    pub fn start_redis(&mut self, port: u16, keep: Keep, more: &[&str]) -> Result<Process> {
        self.start_redis_at(Host::Control, &Self::redis_of(port), port, keep, more)
    }

    /// Starts a server at a host's address under the name `what`, and waits until it answers.
    pub fn start_redis_at(&mut self, host: Host, what: &str, port: u16, keep: Keep, more: &[&str]) -> Result<Process> {
        let at = SocketAddr::new(host.address(false), port);
        let folder = self.ground.folder().join(what);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let (port, folder) = (port.to_string(), folder.display().to_string());
        let bind = format!("{} 127.0.0.1", at.ip());
        let append = if keep == Keep::Everything { "yes" } else { "no" };
        let mut command = self.command(host, "redis-server")?;
        command.args(["--port", &port, "--dir", &folder, "--protected-mode", "no", "--save", ""]);
        command.args(["--bind"]).args(bind.split(' '));
        command.args(["--appendonly", append, "--appendfsync", "always"]).args(more);
        let process = self.ground.start(what, &mut command)?;
        wait_listening(&self.ground, &host.name(), at, &process)?;
        Ok(process)
    }

    /// Starts a Sentinel at the control host's address that watches one master, with `options` of that master.
    pub fn start_sentinel(
        &mut self,
        port: u16,
        master: &str,
        at: SocketAddr,
        options: &[(&str, &str)],
    ) -> Result<Process> {
        self.start_sentinel_at(Host::Control, &Self::redis_of(port), (port, 1), (master, at), options)
    }

    /// Starts a Sentinel at a host's address under the name `what`: on a port, with a quorum.
    pub fn start_sentinel_at(
        &mut self,
        host: Host,
        what: &str,
        (port, quorum): (u16, u8),
        (master, at): (&str, SocketAddr),
        options: &[(&str, &str)],
    ) -> Result<Process> {
        let own = SocketAddr::new(host.address(false), port);
        let folder = self.ground.folder().join(what);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let mut text = format!("port {port}\nbind {}\nprotected-mode no\ndir {}\n", own.ip(), folder.display());
        text += &format!("sentinel monitor {master} {} {} {quorum}\n", at.ip(), at.port());
        options.iter().for_each(|(key, value)| text += &format!("sentinel {key} {master} {value}\n"));
        // It writes what it learns into its own file.
        let file = folder.join("sentinel.conf");
        fs::write(&file, text)?;
        let mut command = self.command(host, "redis-server")?;
        command.arg(&file).arg("--sentinel");
        let process = self.ground.start(what, &mut command)?;
        wait_listening(&self.ground, &host.name(), own, &process)?;
        Ok(process)
    }

    /// Where the server at a port is reached.
    pub fn redis_at(&self, port: u16) -> SocketAddr {
        (Host::Control.address(false), port).into()
    }

    /// Sends one command to the server at a port, from the control host; its answer as it came.
    pub fn redis(&self, port: u16, words: &[&str]) -> Result<String> {
        self.ask_redis(self.redis_at(port), words)
    }

    /// Sends one command to a server or Sentinel, from the control host; its answer as it came.
    pub fn ask_redis(&self, to: SocketAddr, words: &[&str]) -> Result<String> {
        let mut text = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| text.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        self.ground.namespace(&Host::Control.name()).run(|| {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).context("connecting to redis")?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(text.as_bytes())?;
            let mut answer = vec![0; 64 << 10];
            let read = stream.read(&mut answer).context("no answer from redis")?;
            answer.truncate(read);
            let answer = String::from_utf8_lossy(&answer).into_owned();
            if answer.starts_with('-') {
                bail!("redis: {}", answer.trim());
            }
            Ok(answer)
        })
    }
}
