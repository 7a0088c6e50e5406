//! The backends' servers: nginx from the distribution, and the datagram echo.
//!
//! Each nginx has a folder, a configuration and a pid of its own and runs as one process, so that killing it kills it.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    Lab,
    ground::Ground,
    process::Process,
    topology::{ECHO_PORT, ECHO_PORT_ALT, HTTP_PORT, HTTP_PORT_ALT, Host, vips},
};

/// How long a server may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(5);

impl Lab {
    /// Name under which a backend's web server is recorded.
    pub fn nginx_of(host: Host) -> String {
        format!("nginx-{}", host.name())
    }

    /// Name under which a backend's datagram server is recorded.
    pub fn echo_of(host: Host) -> String {
        format!("echo-{}", host.name())
    }

    /// Starts a backend's nginx and waits until it listens.
    pub fn start_nginx(&mut self, host: Host) -> Result<Process> {
        let what = Self::nginx_of(host);
        let arguments = nginx_arguments(&self.folder().join(&what), host.name())?;
        let mut command = self.namespace(host).command("nginx")?;
        command.args(arguments);
        let process = self.start(&what, &mut command)?;
        wait_listening(&self.ground, host.name(), (host.address(false), HTTP_PORT).into(), &process)?;
        Ok(process)
    }

    /// Starts a backend's datagram server and waits until it is bound.
    pub fn start_echo(&mut self, host: Host) -> Result<Process> {
        let what = Self::echo_of(host);
        let program = std::env::current_exe().context("where is this program?")?;
        let xtask = crate::lab::command::xtask_binary(&program);
        let mut command = self.namespace(host).command(&xtask.to_string_lossy())?;
        command.args(["lab-echo", "--name", host.name()]);
        for port in [ECHO_PORT, ECHO_PORT_ALT] {
            command.args(["--port", &port.to_string()]);
        }
        for address in vips().into_iter().chain([host.address(false), host.address(true)]) {
            command.args(["--address", &address.to_string()]);
        }
        let ready = self.folder().join(format!("{what}.ready"));
        // Left by an earlier one of this name.
        fs::remove_file(&ready).ok();
        command.arg("--ready").arg(&ready);
        let process = self.start(&what, &mut command)?;
        let start = std::time::Instant::now();
        while !ready.exists() {
            if start.elapsed() > START_TIMEOUT || !process.is_running() {
                bail!("{process} does not come up:\n{}", crate::step::tail(&self.log_of(&what), 0)?);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(process)
    }
}

/// Waits until something listens at `address` in a host.
pub fn wait_listening(ground: &Ground, host: &str, address: SocketAddr, process: &Process) -> Result<()> {
    let start = std::time::Instant::now();
    while ground.namespace(host).run(|| Ok(TcpStream::connect_timeout(&address, START_TIMEOUT).is_err()))? {
        if start.elapsed() > START_TIMEOUT || !process.is_running() {
            bail!("{process} does not listen:\n{}", crate::step::tail(&ground.log_of(process.what()), 0)?);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Writes the configuration of a web server that answers with `name`, below `folder`; the arguments that start it.
pub fn nginx_arguments(folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let configuration = folder.join("nginx.conf");
    fs::write(&configuration, nginx_conf(&folder.to_string_lossy(), name))?;
    Ok(vec!["-p".into(), folder.into(), "-e".into(), folder.join("error.log"), "-c".into(), configuration])
}

fn nginx_conf(folder: &str, name: &str) -> String {
    format!(
        "daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  default_type text/plain;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_timeout 600s;
  keepalive_requests 1000000;
  server {{
    listen 0.0.0.0:{HTTP_PORT} backlog=4096;
    listen [::]:{HTTP_PORT} backlog=4096 ipv6only=on;
    listen 0.0.0.0:{HTTP_PORT_ALT} backlog=4096;
    listen [::]:{HTTP_PORT_ALT} backlog=4096 ipv6only=on;
    location = / {{ return 200 \"{name}\\n\"; }}
    location = /health {{ return 200 \"ok\\n\"; }}
    location = /port {{ return 200 \"$server_port $remote_addr\\n\"; }}
  }}
}}
"
    )
}
