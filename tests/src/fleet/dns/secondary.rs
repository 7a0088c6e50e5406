//! BIND and Knot as secondaries: they transfer with TSIG, follow NOTIFY, and serve on when the primary is dead.

use std::{fs, path::Path, process::Command};

use super::{
    process::{Process, eventually, free_port},
    scene::{KEY, ORIGIN, SECRET, Scene, serial, short, wait_serial, zone},
};

/// A server that others wrote.
struct Secondary {
    process: Process,
    port: u16,
    _folder: tempfile::TempDir,
}

fn named(folder: &Path, port: u16, primary: u16) -> Process {
    let text = format!(
        "options {{ directory \"{folder}\"; pid-file \"{folder}/pid\"; session-keyfile \"{folder}/session\"; \
         listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; dnssec-validation no; \
         allow-query {{ any; }}; }};\ncontrols {{ }};\nkey \"{KEY}\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
         zone \"{ORIGIN}\" {{ type secondary; primaries {{ 127.0.0.1 port {primary} key \"{KEY}\"; }}; \
         file \"{folder}/zone.db\"; }};\n",
        folder = folder.display()
    );
    let config = folder.join("named.conf");
    fs::write(&config, text).expect("a file");
    let mut command = Command::new("named");
    command.args(["-g", "-n", "1", "-c"]).arg(config);
    Process::start("named", "bind9", folder.join("log"), &mut command)
}

fn knot(folder: &Path, port: u16, primary: u16) -> Process {
    let text = format!(
        "server:\n  rundir: {folder}\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  \
         background-workers: 1\nlog:\n  - target: stderr\n    any: info\ndatabase:\n  storage: {folder}\nkey:\n  - id: \
         {KEY}.\n    algorithm: hmac-sha256\n    secret: {SECRET}\nremote:\n  - id: weir\n    address: \
         127.0.0.1@{primary}\n    key: {KEY}.\nacl:\n  - id: notified\n    address: 127.0.0.1\n    key: {KEY}.\n    \
         action: notify\nzone:\n  - domain: {ORIGIN}\n    storage: {folder}\n    master: weir\n    acl: notified\n",
        folder = folder.display()
    );
    let config = folder.join("knot.conf");
    fs::write(&config, text).expect("a file");
    let mut command = Command::new("knotd");
    command.arg("-c").arg(config);
    Process::start("knotd", "knot", folder.join("log"), &mut command)
}

fn follows(start: fn(&Path, u16, u16) -> Process) {
    let port = free_port();
    let config = format!(
        "[[key]]\nname = \"{KEY}\"\nsecret_file = \"{{secret}}\"\n[[secondary]]\naddress = \"127.0.0.1:{port}\"\nkey = \
         \"{KEY}\"\n"
    );
    let mut primary = Scene::start(Some(&zone(10, &[("www", &["192.0.2.1"])])), &config);
    let folder = tempfile::tempdir().expect("a folder");
    let mut secondary = Secondary { process: start(folder.path(), port, primary.port), port, _folder: folder };
    wait_serial(secondary.port, 10);
    assert_eq!(short(port, &["www.lb.example"]), ["192.0.2.1"]);
    // Its refresh is an hour away: what it learns now, NOTIFY told it.
    let series = format!("weir_dns_peer_behind{{kind=\"notify\",peer=\"127.0.0.1:{port}\"}}");
    primary.publish(&zone(11, &[("www", &["192.0.2.1", "192.0.2.2"]), ("new", &["192.0.2.3", "2001:db8::3"])]));
    wait_serial(port, 11);
    assert_eq!(short(port, &["www.lb.example"]), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(short(port, &["new.lb.example", "AAAA"]), ["2001:db8::3"]);
    eventually("the secondary confirms", || (primary.metric(&series) == 0.0).then_some(()));
    let incremental = primary.metric("weir_dns_transfers_total{kind=\"ixfr\"}");
    assert!(incremental >= 1.0, "the change came as a difference");
    // A secondary that was away learns the rest when it is back, from NOTIFY's repetition or its own start.
    secondary.process.kill();
    primary.publish(&zone(12, &[("www", &["192.0.2.4"])]));
    primary.wait_serial(12);
    eventually("the primary knows that it is behind", || (primary.metric(&series) == 1.0).then_some(()));
    let folder = &secondary._folder;
    secondary.process = start(folder.path(), port, primary.port);
    wait_serial(port, 12);
    assert_eq!(short(port, &["www.lb.example"]), ["192.0.2.4"]);
    assert!(short(port, &["new.lb.example", "AAAA"]).is_empty(), "what is gone is gone");
    // The primary dies: the secondary serves on.
    primary.process.kill();
    assert_eq!(serial(primary.port), None);
    assert_eq!(short(port, &["www.lb.example"]), ["192.0.2.4"]);
    // And follows the next one that starts in its place.
    primary.restart();
    primary.wait_serial(12);
    primary.publish(&zone(13, &[("www", &["192.0.2.5"])]));
    wait_serial(port, 13);
}

#[test]
fn bind_follows() {
    follows(named);
}

#[test]
fn knot_follows() {
    follows(knot);
}
