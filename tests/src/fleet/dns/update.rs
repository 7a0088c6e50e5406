//! Dynamic updates to a BIND that others run, from several instances at once.

use std::{fs, process::Command};

use super::{
    process::{Process, eventually, free_port},
    scene::{KEY, SECRET, Scene, dig, short, zone},
};

/// A BIND with the zone `example`, which takes updates from the key and holds names of others.
fn named(folder: &std::path::Path, port: u16) -> Process {
    let folder_name = folder.display();
    let master = "$TTL 60\n@ IN SOA ns.example. h.example. 1 3600 3600 604800 60\n@ IN NS ns\nns IN A 127.0.0.1\n\
                  www IN A 198.51.100.1\nother.lb IN A 198.51.100.2\nwww.lb IN A 198.51.100.3\n";
    fs::write(folder.join("example.db"), master).expect("a file");
    let text = format!(
        "options {{ directory \"{folder_name}\"; pid-file \"{folder_name}/pid\"; session-keyfile \
         \"{folder_name}/session\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; \
         dnssec-validation no; }};\ncontrols {{ }};\nkey \"{KEY}\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; \
         }};\nzone \"example\" {{ type primary; file \"{folder_name}/example.db\"; allow-update {{ key \"{KEY}\"; }}; \
         notify no; }};\n"
    );
    fs::write(folder.join("named.conf"), text).expect("a file");
    run(folder)
}

#[test]
fn bind_is_updated_by_several_instances_and_keeps_what_is_not_theirs() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let mut server = named(folder.path(), port);
    eventually("BIND answers", || (short(port, &["www.example"]) == ["198.51.100.1"]).then_some(()));
    let config = format!(
        "[[key]]\nname = \"{KEY}\"\nsecret_file = \"{{secret}}\"\n[[update]]\nserver = \"127.0.0.1:{port}\"\nzone = \
         \"example\"\nkey = \"{KEY}\"\n"
    );
    let first = zone(20, &[("www", &["192.0.2.1", "192.0.2.2", "2001:db8::1"]), ("old", &["192.0.2.9"])]);
    let instances = [Scene::start(Some(&first), &config), Scene::start(Some(&first), &config)];
    let addresses = |name: &str, rtype: &str| short(port, &[name, rtype]);
    eventually("the record set is replaced", || {
        (addresses("www.lb.example", "A") == ["192.0.2.1", "192.0.2.2"]).then_some(())
    });
    assert_eq!(addresses("www.lb.example", "AAAA"), ["2001:db8::1"]);
    assert_eq!(addresses("old.lb.example", "A"), ["192.0.2.9"]);
    let behind = format!("weir_dns_peer_behind{{kind=\"update\",peer=\"127.0.0.1:{port}\"}}");
    let settled = |scene: &Scene| eventually("it is settled", || (scene.metric(&behind) == 0.0).then_some(()));
    instances.iter().for_each(settled);
    // One instance is ahead, the other never takes the server back, also when it starts anew.
    let second = zone(21, &[("www", &["192.0.2.3"])]);
    let [ahead, mut late] = instances;
    ahead.publish(&second);
    eventually("the change arrives", || (addresses("www.lb.example", "A") == ["192.0.2.3"]).then_some(()));
    late.restart();
    late.wait_serial(20);
    settled(&late);
    assert_eq!(addresses("www.lb.example", "A"), ["192.0.2.3"]);
    assert!(addresses("www.lb.example", "AAAA").is_empty() && addresses("old.lb.example", "A").is_empty());
    assert_eq!(
        late.metric(&format!(
            "weir_dns_peer_messages_total{{kind=\"update\",peer=\"127.0.0.1:{port}\",outcome=\"updated\"}}"
        )),
        0.0
    );
    // Both at once, several times: the last version wins, and none of them is lost.
    for serial in 22..27 {
        let next = zone(serial, &[("www", &[&format!("192.0.2.{serial}")])]);
        ahead.publish(&next);
        late.publish(&next);
    }
    eventually("the last one arrives", || (addresses("www.lb.example", "A") == ["192.0.2.26"]).then_some(()));
    settled(&ahead);
    settled(&late);
    // What is not ours was never touched.
    assert_eq!(addresses("other.lb.example", "A"), ["198.51.100.2"]);
    assert_eq!(addresses("www.example", "A"), ["198.51.100.1"]);
    // A server that was away is told when it is back.
    server.kill();
    ahead.publish(&zone(30, &[("www", &["192.0.2.30"])]));
    eventually("it is behind", || (ahead.metric(&behind) == 1.0).then_some(()));
    server = run(folder.path());
    eventually("it is told", || (addresses("www.lb.example", "A") == ["192.0.2.30"]).then_some(()));
    // With another key it is refused, and the reason is in the log.
    let wrong = Scene::start(Some(&zone(40, &[("www", &["192.0.2.40"])])), &config.replace("{secret}", "{other}"));
    eventually("the refusal is logged", || wrong.process.log().contains("do name, algorithm, secret").then_some(()));
    assert_eq!(addresses("www.lb.example", "A"), ["192.0.2.30"]);
    assert!(dig(port, &["_weir.lb.example", "TXT"]).contains("\"weir\" \"30\""));
    drop(server);
}

/// Starts BIND in its folder, with the zone as it stands there.
fn run(folder: &std::path::Path) -> Process {
    let mut command = Command::new("named");
    command.args(["-g", "-n", "1", "-c"]).arg(folder.join("named.conf"));
    Process::start("named", "bind9", folder.join("log"), &mut command)
}
