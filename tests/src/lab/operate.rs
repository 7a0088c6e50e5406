//! What an operator does, and what goes wrong meanwhile: reloads, bad reloads, a dead agent, a backend that is not there.

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use xtask::lab::{
    agent::Node,
    client::{self, Load, Observed, Plan},
    command::{service, service_to},
    topology::{HTTP_PORT, Host, address, vip},
};

use super::{
    scene::{PORT, Scene, at, both_protocols},
    session::Connection,
};

const B123: [(Host, u16); 3] = [(Host::B1, 1), (Host::B2, 1), (Host::B3, 1)];

fn web(number: u8) -> String {
    let mut text = service(&format!("web4-{number}"), number, false, "tcp", HTTP_PORT, "ipip", &B123);
    text.push_str(&service(&format!("web6-{number}"), number, true, "tcp", HTTP_PORT, "ipip", &B123));
    text
}

fn load(scene: &Scene) -> Load {
    let targets = [false, true].map(|v6| (Host::Client.address(v6), at(0, v6, HTTP_PORT))).to_vec();
    Load::start(&scene.lab.namespace(Host::Client), Plan { targets, rate: 300, long_lived: 10, port_offset: 0 })
        .expect("load")
}

fn flawless(observed: &Observed) {
    assert!(observed.new.len() > 100 && observed.long_lived.len() > 100, "hardly any load");
    assert!(client::failures(&observed.new).is_empty(), "{:?}", client::failures(&observed.new));
    assert!(client::failures(&observed.long_lived).is_empty(), "{:?}", client::failures(&observed.long_lived));
}

#[test]
fn reloading_under_load_loses_nothing() {
    let Some(scene) = Scene::new("reloading_under_load_loses_nothing", &Node::default(), &web(0)) else { return };
    let load = load(&scene);
    for round in 0..6 {
        thread::sleep(Duration::from_millis(300));
        let before = scene.lab.status().expect("status")["revision"].as_u64().expect("revision");
        let services = if round % 2 == 0 { format!("{}{}", web(1), web(0)) } else { web(0) };
        scene.lab.write_config(&Node::default(), &services).expect("configuration");
        scene.wait_status("the reload", |status| status["revision"].as_u64() > Some(before));
    }
    flawless(&load.stop().expect("load"));
}

#[test]
fn a_bad_reload_changes_nothing_and_says_so() {
    let Some(scene) = Scene::new("a_bad_reload_changes_nothing_and_says_so", &Node::default(), &web(0)) else { return };
    let load = load(&scene);
    let before = scene.lab.status().expect("status");
    let good = fs::read_to_string(scene.lab.config_file()).expect("configuration");
    let bad = good.replacen("weight = 1", "wieght = 1", 1).replacen("forward = \"ipip\"", "forward = \"ipop\"", 1);
    fs::write(scene.lab.config_file(), bad).expect("configuration");
    let status = scene.wait_status("the refusal", |status| status["last_reload"]["outcome"] == "refused");
    let diagnostics = status["last_reload"]["diagnostics"].as_array().expect("diagnostics");
    assert!(diagnostics.len() >= 2, "both mistakes are told: {diagnostics:#?}");
    assert_eq!(status["revision"], before["revision"]);
    thread::sleep(Duration::from_millis(500));
    flawless(&load.stop().expect("load"));
    let log = fs::read_to_string(scene.lab.log_of("agent")).expect("log");
    assert!(log.contains("wieght") || log.contains("refused"), "the log is silent about the bad file:\n{log}");
}

#[test]
fn killing_and_restarting_the_agent_loses_nothing() {
    let Some(mut scene) = Scene::new("killing_and_restarting_the_agent_loses_nothing", &Node::default(), &web(0))
    else {
        return;
    };
    let load = load(&scene);
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(500));
        scene.lab.kill_agent().expect("kill");
        thread::sleep(Duration::from_millis(500));
        let agent = scene.lab.start_agent().expect("agent");
        scene.lab.wait_ready(&agent).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(scene.lab.status().expect("status")["adopted"], true);
    }
    thread::sleep(Duration::from_millis(500));
    flawless(&load.stop().expect("load"));
}

#[test]
fn a_backend_without_a_mac_address_has_its_own_reason() {
    let Some(mut scene) = Scene::without_agent("a_backend_without_a_mac_address_has_its_own_reason") else { return };
    let nobody = address(0, 99, false);
    let service = format!(
        "[[service]]\nname = \"gone\"\nvip = \"{}\"\nport = {PORT}\nprotocol = \"tcp\"\nforward = \"dsr\"\n\
         [[service.backends]]\naddress = \"{nobody}\"\nport = {PORT}\n",
        vip(0, false)
    );
    scene.lab.write_config(&Node::default(), &service).expect("configuration");
    scene.lab.start_agent().expect("agent");
    let start = Instant::now();
    while scene.lab.status().is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "the agent does not answer");
        thread::sleep(Duration::from_millis(50));
    }
    scene.wait_status("the unresolved backend", |status| status["counts"]["backends_unresolved"] == 1);
    let before = scene.reason("backend_unresolved");
    let client = scene.lab.namespace(Host::Client);
    let refused = client.run(|| {
        let to = at(0, false, PORT);
        Ok(TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_err())
    });
    assert!(refused.expect("client"));
    assert!(scene.reason("backend_unresolved") > before);
}

#[test]
fn a_backend_decapsulates_in_tc_where_it_must() {
    let services = both_protocols("tunnel", vip(1, false), "ipip", &[(Host::B1.address(false), PORT)]);
    let Some(scene) = Scene::new("a_backend_decapsulates_in_tc_where_it_must", &Node::default(), &services) else {
        return;
    };
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    scene.lab.weir(Host::B1, &words("decap --interface eth0 --detach")).expect("detach");
    let vip = vip(1, false);
    let said = scene.lab.weir(Host::B1, &words(&format!("decap --interface eth0 --mode tc --vip {vip}"))).expect("tc");
    assert!(said.contains("tc mode"), "{said}");
    let mut connection = scene.connect(at(1, false, PORT));
    connection.download(1 << 20).expect("download");
    connection.upload(1 << 20).expect("upload");
    assert_eq!(scene.datagram(at(1, false, PORT), 1400), "b1");
}

#[test]
fn packets_for_others_pass() {
    let services =
        [web(0), service_to("all", (vip(2, false), 7000), "udp", "dsr", &[(Host::B1.address(false), 7000, 1)])];
    let Some(scene) = Scene::new("packets_for_others_pass", &Node::default(), &services.concat()) else { return };
    // The node's own address, and a port of the VIP without a service, are the kernel's to refuse, at once.
    for to in [SocketAddr::new(Host::Lb.address(false), 9), SocketAddr::new(Host::Lb.address(true), 9), at(0, false, 9)]
    {
        let refused = scene.lab.namespace(Host::Client).run(|| {
            Ok(TcpStream::connect_timeout(&to, Duration::from_secs(2)).expect_err("nobody listens there").kind())
        });
        assert_eq!(refused.expect("client"), ErrorKind::ConnectionRefused, "{to}");
    }
}

/// Every flow is recorded from now on; a backend drains and says what it waits for; what is known of a flow is what its client sees.
#[test]
fn an_operator_watches_flows_and_drains_a_backend() {
    let backends = [Host::B1, Host::B2, Host::B3].map(|host| (host.address(false), PORT, 1));
    let services = service_to("web", (vip(0, false), PORT), "tcp", "ipip", &backends);
    let Some(scene) = Scene::new("an_operator_watches_flows_and_drains_a_backend", &Node::default(), &services) else {
        return;
    };
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let json = |text: &str| {
        let arguments: Vec<&str> = text.split(' ').collect();
        scene.lab.weir_json(&arguments).unwrap_or_else(|error| panic!("{error:#}"))
    };
    let set = json("service set web track=all announce_for=1s drain_timeout=1m");
    assert_eq!(set["service"]["track"], "all");
    let mut connections: Vec<(String, Connection)> = (0..12)
        .map(|_| {
            let mut connection = scene.connect(at(0, false, PORT));
            (connection.name().expect("name"), connection)
        })
        .collect();
    let listed = json("flow list --service web --state established");
    assert_eq!(listed["matched"], 12, "{listed:#}");
    for (name, connection) in &connections {
        let host = [Host::B1, Host::B2, Host::B3].into_iter().find(|host| host.name() == name).expect("a backend");
        let backend = SocketAddr::new(host.address(false), PORT).to_string();
        let (from, to) = (connection.local().expect("address"), at(0, false, PORT));
        let found = json(&format!("flow get tcp {from} {to}"));
        assert_eq!((&found["flow"]["record"]["backend"], &found["slot"]["tracked"]), (&backend.into(), &true.into()));
        let explained = json(&format!("explain tcp {from} {to} --flags ack"));
        assert_eq!(explained["backend"]["name"], found["flow"]["record"]["backend"]);
        assert_eq!(explained["reason"], "forwarded_ipip");
    }
    let said = scene.lab.weir(Host::Lb, &words("plan")).expect("plan");
    assert!(said.contains("nothing would change"), "{said}");

    // The backend of the first connection drains until its last connection is closed, and the others are left alone.
    let name = connections[0].0.clone();
    let host = [Host::B1, Host::B2, Host::B3].into_iter().find(|host| host.name() == name).expect("a backend");
    let target = format!("web/{}:{PORT}", host.address(false));
    let (ends, stays): (Vec<_>, Vec<_>) = connections.drain(..).partition(|(backend, _)| *backend == name);
    thread::scope(|scope| {
        let drain = scope.spawn(|| scene.lab.weir(Host::Lb, &words(&format!("backend drain --wait {target}"))));
        thread::sleep(Duration::from_secs(3));
        assert!(!drain.is_finished(), "it does not wait");
        let service = json("service get web");
        let drains = service["backends"].as_array().expect("backends").iter().find(|b| b["drain"].is_object());
        let drain_now = &drains.expect("a drain")["drain"];
        assert_eq!((&drain_now["phase"], &drain_now["connections"]), (&"draining".into(), &ends.len().into()));
        assert_ne!(scene.connect(at(0, false, PORT)).name().expect("name"), name, "a new flow");
        drop(ends);
        let said = drain.join().expect("the drain").expect("weir backend drain");
        assert!(said.ends_with("ended: no connection is left\n"), "{said}");
    });
    let log = fs::read_to_string(scene.lab.log_of("agent")).expect("log");
    assert!(log.contains("the backend drains: announced for 1 s, then no new flows; ends when the last of"), "{log}");
    for (name, mut connection) in stays {
        assert_eq!(connection.name().expect("name"), name);
    }
    let flushed = json("flow flush --yes --service web");
    assert!(flushed["removed"].as_u64() > Some(0), "{flushed}");
    assert_eq!(json("flow list")["records"], 0);
    let reset = json("service reset web");
    assert_eq!(reset["service"]["track"], "moved");
}
