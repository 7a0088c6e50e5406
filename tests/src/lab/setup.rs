//! What `weir doctor` and `weir backend setup-help` tell an operator to type is typed here, word for word, and has to help.

use std::{
    net::{SocketAddr, TcpStream},
    process::Output,
    time::Duration,
};

use serde_json::Value;
use xtask::lab::{
    agent::Node,
    topology::{Host, vip},
};

use super::scene::{PORT, PORT_MAPPED, Scene, at, both_protocols};

/// Bytes of a transfer: many windows, in no time.
const TRANSFER: u64 = 2 << 20;
/// How long a connection that must fail is waited for: one retransmission of the SYN.
const IN_VAIN: Duration = Duration::from_millis(1500);

/// Runs a line in the shell of a host, with `weir` on its path, to its good end; standard output and error.
fn run(scene: &Scene, host: Host, line: &str) -> (String, String) {
    let folder = scene.lab.weir_binary().parent().expect("a folder").display().to_string();
    let mut command = scene.lab.namespace(host).command("sh").expect("the host");
    command.args(["-c", line]).env("PATH", format!("{folder}:/usr/sbin:/usr/bin:/sbin:/bin"));
    let Output { status, stdout, stderr } = command.output().expect("sh");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert!(status.success(), "in {}: {line}: {status}: {stderr}", host.name());
    (stdout, stderr)
}

/// As [`run`]; standard output.
fn shell(scene: &Scene, host: Host, line: &str) -> String {
    run(scene, host, line).0
}

/// Takes from a backend everything that the lab gave it for its VIPs, and makes it as strict as distributions are.
fn strip(scene: &Scene, host: Host) {
    shell(scene, host, "weir decap --interface eth0 --detach");
    for v6 in [false, true] {
        let family = if v6 { "-6" } else { "-4" };
        let (own, client) = (host.address(v6), Host::Client.address(v6));
        shell(scene, host, &format!("ip {family} address flush dev lo scope global"));
        shell(scene, host, &format!("ip {family} rule del from {own} to {client} lookup 77"));
        shell(scene, host, &format!("ip {family} route flush table 77"));
    }
    for (key, value) in [("arp_ignore", "0"), ("arp_announce", "0"), ("rp_filter", "1")] {
        shell(scene, host, &format!("sysctl -w net.ipv4.conf.all.{key}={value} net.ipv4.conf.eth0.{key}={value}"));
    }
}

/// Does what `setup-help` says, on the node and on the backend `host`.
fn follow(scene: &Scene, target: &str, host: Host) {
    let words = ["backend", "setup-help", target];
    let text = scene.lab.weir(Host::Lb, &words.map(str::to_owned)).expect("setup-help");
    let help = scene.lab.weir_json(&words).expect("setup-help");
    let [group] = help["backends"].as_array().expect("a list").as_slice() else { panic!("one backend: {help:#}") };
    for (place, steps) in [(Host::Lb, &help["node"]), (host, &group["steps"])] {
        for step in steps.as_array().expect("a list") {
            for command in step["commands"].as_array().expect("a list") {
                let command = command.as_str().expect("text");
                assert!(text.contains(&format!("\n{command}\n")), "not among what people read: {command}\n{text}");
                let (said, complaint) = run(scene, place, command);
                // A tunnel that this kernel lacks is one thing, a word that `ip` does not know another.
                assert!(!complaint.contains(" is wrong"), "{command}: {complaint}");
                if command.starts_with("ss ") {
                    assert!(said.contains("LISTEN") || said.contains("UNCONN"), "nobody listens: {command}: {said}");
                }
            }
        }
    }
}

/// Whether a connection from the client comes about.
fn connects(scene: &Scene, to: SocketAddr) -> bool {
    let client = scene.lab.namespace(Host::Client);
    client.run(|| Ok(TcpStream::connect_timeout(&to, IN_VAIN).is_ok())).expect("client")
}

/// A bare backend does not serve; as soon as the printed commands were run there, and again when they were repeated, it does.
fn helps(name: &str, forward: &str, vip_v6: bool, backend_v6: bool) {
    const NUMBER: u8 = 1;
    let port = if forward == "nat" { PORT_MAPPED } else { PORT };
    let backend = (Host::B1.address(backend_v6), port);
    let services = both_protocols(name, vip(NUMBER, vip_v6), forward, &[backend]);
    let Some(scene) = Scene::new(name, &Node::default(), &services) else { return };
    strip(&scene, Host::B1);
    if forward == "nat" {
        shell(&scene, Host::Lb, "sysctl -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
    }
    let target = at(NUMBER, vip_v6, PORT);
    assert!(!connects(&scene, target), "the backend is not bare");
    for time in ["first", "again"] {
        for protocol in ["tcp", "udp"] {
            follow(&scene, &format!("{name}-{protocol}"), Host::B1);
        }
        let told = || scene.reason("fragmentation_needed") + scene.reason("packet_too_big");
        let before = told();
        let mut connection = scene.connect(target);
        let answered = connection.name().expect("name");
        assert_eq!(answered, if port == PORT { "b1" } else { "b1-mapped" }, "{time}");
        connection.download(TRANSFER).unwrap_or_else(|error| panic!("{time}, down: {error}"));
        connection.upload(TRANSFER).unwrap_or_else(|error| panic!("{time}, up: {error}"));
        assert_eq!(told(), before, "{time}: segments were too long for the way to the backend");
        assert_eq!(scene.datagram(target, 1000), answered, "{time}");
    }
}

#[test]
fn setup_help_is_enough_for_dsr() {
    helps("setup_help_is_enough_for_dsr", "dsr", false, false);
    helps("setup_help_is_enough_for_dsr", "dsr", true, true);
}

#[test]
fn setup_help_is_enough_for_ipip() {
    for (vip_v6, backend_v6) in [(false, false), (true, false), (false, true), (true, true)] {
        helps("setup_help_is_enough_for_ipip", "ipip", vip_v6, backend_v6);
    }
}

#[test]
fn setup_help_is_enough_for_nat() {
    helps("setup_help_is_enough_for_nat", "nat", false, false);
    helps("setup_help_is_enough_for_nat", "nat", true, true);
}

/// What doctor says on the node about the lab's configuration file.
fn doctor(scene: &Scene) -> Vec<Value> {
    let mut command = scene.lab.namespace(Host::Lb).command(&scene.lab.weir_binary().to_string_lossy()).expect("node");
    command.env("WEIR_SOCKET", scene.lab.api_socket()).args(["doctor", "-o", "json", "--config"]);
    let Output { stdout, stderr, .. } = command.arg(scene.lab.config_file()).output().expect("doctor");
    let findings: Value =
        serde_json::from_slice(&stdout).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&stderr)));
    findings.as_array().expect("a list").clone()
}

/// Level, finding and advice of a check.
fn check(scene: &Scene, name: &str) -> (String, String, String) {
    let findings = doctor(scene);
    let finding = findings.iter().find(|f| f["check"] == name).unwrap_or_else(|| panic!("no {name}: {findings:#?}"));
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    (text("level"), text("found"), text("advice"))
}

/// Makes the node forget its client, while the client knows where the VIP is and need not ask.
fn forget_client(scene: &Scene, v6: bool) {
    let mac = shell(scene, Host::Lb, "ip -o link show eth0 | sed -E 's,.*link/ether ([^ ]+) .*,\\1,'");
    let vip = vip(1, v6);
    shell(scene, Host::Client, &format!("ip neighbour replace {vip} lladdr {} dev eth0 nud permanent", mac.trim()));
    shell(scene, Host::Lb, &format!("ip neighbour flush to {} dev eth0", Host::Client.address(v6)));
}

/// Sets a node up so that replies to a forgotten client are lost, for the setting that `name` checks; doctor and log say so,
/// and what doctor advises helps.
fn forgotten(test: &str, v6: bool, name: &str, lose: &str, assignment: &str) {
    let services = both_protocols("nat", vip(1, v6), "nat", &[(Host::B1.address(v6), PORT)]);
    let Some(mut scene) = Scene::without_agent(test) else { return };
    shell(&scene, Host::Lb, lose);
    scene.lab.write_config(&Node::default(), &services).expect("configuration");
    let agent = scene.lab.start_agent().expect("agent");
    scene.lab.wait_ready(&agent).unwrap_or_else(|error| panic!("{error:#}"));
    let target = at(1, v6, PORT);
    forget_client(&scene, v6);
    assert!(!connects(&scene, target), "the kernel forwards without {assignment}");
    assert!(scene.reason("nat_reply_to_kernel") > 0);
    let (level, found, advice) = check(&scene, name);
    assert_eq!((level.as_str(), advice.as_str()), ("fail", format!("sysctl -w {assignment}").as_str()), "{found}");
    let log = std::fs::read_to_string(scene.lab.log_of("agent")).expect("log");
    let warned: Vec<_> = log.lines().filter(|line| line.contains(&advice)).collect();
    assert_eq!(warned.len(), 1, "the agent warns once, at its start:\n{log}");

    shell(&scene, Host::Lb, &advice);
    assert_eq!(check(&scene, name).0, "ok");
    forget_client(&scene, v6);
    let before = scene.reason("nat_reply_to_kernel");
    let mut connection = scene.connect(target);
    assert_eq!(connection.name().expect("name"), "b1");
    connection.download(TRANSFER).expect("down");
    connection.upload(TRANSFER).expect("up");
    assert!(scene.reason("nat_reply_to_kernel") > before, "the client was not forgotten");
}

#[test]
fn a_nat_reply_to_an_unknown_neighbour_needs_accept_local() {
    let lose = "sysctl -w net.ipv4.conf.all.accept_local=0 net.ipv4.conf.eth0.accept_local=0";
    let assignment = "net.ipv4.conf.eth0.accept_local=1";
    forgotten("a_nat_reply_to_an_unknown_neighbour_needs_accept_local", false, "accept_local eth0", lose, assignment);
}

#[test]
fn over_ipv6_it_needs_forwarding_of_all() {
    let lose = "sysctl -w net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.forwarding=1";
    let assignment = "net.ipv6.conf.all.forwarding=1";
    forgotten("over_ipv6_it_needs_forwarding_of_all", true, "forwarding all ipv6", lose, assignment);
}

#[test]
fn doctor_finds_the_room_on_the_way_before_the_first_start() {
    let Some(scene) = Scene::without_agent("doctor_finds_the_room_on_the_way_before_the_first_start") else { return };
    let to = |backend| both_protocols("tunnel", vip(1, false), "ipip", &[(backend, PORT)]);
    scene.lab.write_config(&Node::default(), &to(Host::B5.address(false))).expect("configuration");
    assert_eq!(check(&scene, "agent").0, "warn");
    let (level, found, advice) = check(&scene, "path mtu");
    assert_eq!(level, "warn", "{found}");
    assert!(found.contains("do not fit into 1500") && advice.contains("1520"), "{found} -> {advice}");
    shell(&scene, Host::Lb, "ip link set eth1 mtu 1520");
    assert_eq!(check(&scene, "path mtu").0, "ok");
    scene.lab.write_config(&Node::default(), &to([192, 0, 2, 9].into())).expect("configuration");
    let (level, found, _) = check(&scene, "next hop");
    assert_eq!((level.as_str(), found.contains("no route")), ("fail", true), "{found}");
}
