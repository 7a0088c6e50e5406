//! One `weir dns` with its folder, its zone file and its configuration; and dig.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use lb_userspace::dns::zone::{SoaObject, ZoneObject};

use super::process::{Process, eventually, free_port, local};
use crate::lab::programs;

/// The zone of all tests.
pub const ORIGIN: &str = "lb.example";
/// Name of the key of secondaries and updates.
pub const KEY: &str = "transfer.lb.example";
/// Its secret.
pub const SECRET: &str = "c2l4dGVlbiBieXRlcyBhbmQgc29tZSBtb3JlIQ==";
/// Another one.
pub const OTHER_SECRET: &str = "YW5vdGhlciBzZWNyZXQgb2YgdHdlbnR5IGJ5dGVz";

/// A zone whose only way to a secondary within an hour is NOTIFY.
pub fn zone(serial: u32, records: &[(&str, &[&str])]) -> ZoneObject {
    let parse = |addresses: &[&str]| addresses.iter().map(|a| a.parse().expect("an address")).collect();
    let mut records: BTreeMap<String, Vec<IpAddr>> =
        records.iter().map(|(name, addresses)| ((*name).to_owned(), parse(addresses))).collect();
    records.insert("ns1".into(), parse(&["127.0.0.1"]));
    let soa = SoaObject { refresh_s: 3600, retry_s: 3600, ..SoaObject::new("ns1.lb.example", "hostmaster.example") };
    let ns = vec!["ns1.lb.example".into()];
    ZoneObject { origin: ORIGIN.into(), serial, ttl_s: 10, soa, ns, records }
}

/// A server and its folder.
pub struct Scene {
    folder: tempfile::TempDir,
    /// Where it answers.
    pub port: u16,
    /// Where its metrics are.
    pub metrics_port: u16,
    /// The process.
    pub process: Process,
}

impl Scene {
    /// Starts a server of `zone` with the further configuration `more`, which may say `{secret}` and `{other}` for files with
    /// the secrets, and waits until it answers.
    pub fn start(zone: Option<&ZoneObject>, more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let metrics_port = free_port();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("secret"), SECRET).expect("a file");
        fs::write(path("other"), OTHER_SECRET).expect("a file");
        // The zone comes from one place.
        let zone_file = match more.contains("[store]") {
            true => String::new(),
            false => format!("zone_file = \"{}\"\n", path("zone.json").display()),
        };
        let text = format!(
            "origin = \"{ORIGIN}\"\nlisten = [\"0.0.0.0:{port}\"]\n{zone_file}state_dir = \"{folder}/state\"\n{more}\n[metrics]\nlisten = \"127.0.0.1:{metrics_port}\"\n",
            folder = folder.path().display(),
            more = more
                .replace("{secret}", &path("secret").display().to_string())
                .replace("{other}", &path("other").display().to_string()),
        );
        fs::write(path("dns.toml"), text).expect("a file");
        let process = launch(folder.path());
        let scene = Self { folder, port, metrics_port, process };
        if let Some(zone) = zone {
            scene.publish(zone);
            scene.wait_serial(zone.serial);
        } else {
            eventually("it answers", || scene.http("/health").filter(|answer| answer.starts_with("200")));
        }
        scene
    }

    /// Starts it again after it was killed.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(self.folder.path());
    }

    /// A file in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces the zone file.
    pub fn publish(&self, zone: &ZoneObject) {
        let fresh = self.path("zone.json.new");
        fs::write(&fresh, serde_json::to_vec(zone).expect("JSON")).expect("a file");
        fs::rename(&fresh, self.path("zone.json")).expect("renamed");
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// Waits until it serves `serial`.
    pub fn wait_serial(&self, serial: u32) {
        wait_serial(self.port, serial);
    }

    /// Status and body of a GET of its metrics listener; `None` if nobody listens.
    pub fn http(&self, path: &str) -> Option<String> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(local(self.metrics_port)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some(format!("{} {body}", head.split(' ').nth(1)?))
    }

    /// The value of a series of its metrics; 0 if it does not exist.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.http("/metrics").expect("metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }
}

fn launch(folder: &Path) -> Process {
    let mut command = Command::new(&programs().weir);
    command.args(["dns", "serve", "--log", "debug", "--config"]).arg(folder.join("dns.toml"));
    Process::start("weir dns", "weir", folder.join("weir.log"), &mut command)
}

/// Runs dig against 127.0.0.1 and returns its output, whatever it is.
pub fn dig(port: u16, arguments: &[&str]) -> String {
    let mut command = Command::new("dig");
    command.args(["-r", "-p", &port.to_string()]);
    if !arguments.iter().any(|argument| argument.starts_with('@')) {
        command.arg("@127.0.0.1");
    }
    // Later ones win: a busy machine gets time, and a test may take it back.
    command.args(["+time=5", "+tries=3"]).args(arguments);
    let output = command.output().unwrap_or_else(|e| panic!("cannot start dig (package bind9-dnsutils): {e}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The answers of `dig +short`, sorted.
pub fn short(port: u16, arguments: &[&str]) -> Vec<String> {
    let output = dig(port, &[arguments, &["+short"]].concat());
    let mut lines: Vec<String> = output
        .lines()
        .filter(|line| !line.starts_with(';'))
        .map(|line| line.trim_end_matches('.').to_owned())
        .collect();
    lines.sort();
    lines
}

/// The serial number that a server serves.
pub fn serial(port: u16) -> Option<u32> {
    short(port, &["+time=1", "+tries=1", ORIGIN, "SOA"]).first()?.split(' ').nth(2)?.parse().ok()
}

/// Waits until a server serves `wanted`.
pub fn wait_serial(port: u16, wanted: u32) {
    eventually(&format!("serial {wanted} on port {port}"), || (serial(port) == Some(wanted)).then_some(()));
}
