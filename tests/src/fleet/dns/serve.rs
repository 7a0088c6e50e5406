//! Starting, stopping and being without a source.

use std::{fs, process::Command};

use lb_userspace::{dns::store::ZONE_KEY, store::access::Put};

use super::{
    process::eventually,
    scene::{ORIGIN, Scene, dig, serial, short, zone},
};
use crate::{lab::programs, store::rig};

#[test]
fn the_last_good_zone_survives_its_source() {
    let mut scene = Scene::start(None, "");
    assert!(scene.http("/ready").expect("listens").starts_with("503"), "there is no zone yet");
    assert!(dig(scene.port, &["www.lb.example"]).contains("SERVFAIL"));
    scene.publish(&zone(7, &[("www", &["192.0.2.1"])]));
    scene.wait_serial(7);
    assert!(scene.http("/ready").expect("listens").starts_with("200 ok, serial 7"));
    // Broken, older, forked and foreign zones change nothing.
    let mut foreign = zone(9, &[("www", &["192.0.2.9"])]);
    foreign.origin = "elsewhere.example".into();
    foreign.ns = vec!["ns.elsewhere.test".into()];
    let refused = |outcome: &str| {
        let series = format!("weir_dns_zone_offers_total{{outcome=\"{outcome}\"}}");
        eventually(outcome, || (scene.metric(&series) >= 1.0).then_some(()));
        assert_eq!(serial(scene.port), Some(7), "{outcome}");
    };
    fs::write(scene.path("zone.json"), "{").expect("a file");
    refused("invalid");
    scene.publish(&zone(6, &[("www", &["192.0.2.6"])]));
    refused("older");
    scene.publish(&zone(7, &[("www", &["192.0.2.7"])]));
    refused("forked");
    scene.publish(&foreign);
    refused("other_zone");
    assert_eq!(short(scene.port, &["www.lb.example"]), ["192.0.2.1"]);
    // Killed at any moment, and its source gone: it starts with what it had.
    fs::remove_file(scene.path("zone.json")).expect("removed");
    scene.restart();
    scene.wait_serial(7);
    assert_eq!(short(scene.port, &["www.lb.example"]), ["192.0.2.1"]);
    assert!(scene.http("/ready").expect("listens").starts_with("200"));
    assert!(scene.process.terminate().success(), "SIGTERM is an orderly end");
}

#[test]
fn the_zone_of_the_store_is_served_and_outlives_the_store() {
    let mut redis = rig::redis();
    let mut scene = Scene::start(None, &format!("[store]\nkind = \"redis\"\nurl = \"redis://{}\"", redis.address()));
    assert!(scene.http("/ready").expect("listens").starts_with("503"), "no master has written a zone");
    for serial in [7, 8] {
        let text = serde_json::to_string(&zone(serial, &[("www", &["192.0.2.1"])])).expect("JSON");
        let put = Put::new(rig::key(ZONE_KEY), text);
        let config = rig::config(redis.address(), "weir");
        rig::run(async { rig::store(config).record_put(put).await }).expect("written");
        scene.wait_serial(serial);
    }
    redis.kill();
    scene.restart();
    scene.wait_serial(8);
    assert_eq!(short(scene.port, &["www.lb.example"]), ["192.0.2.1"]);
    assert!(scene.process.terminate().success(), "SIGTERM is an orderly end");
}

#[test]
fn instances_serve_one_object_alike() {
    let object = zone(7, &[("www", &["192.0.2.1", "192.0.2.2"])]);
    let (a, mut b) = (Scene::start(Some(&object), ""), Scene::start(Some(&object), ""));
    for scene in [&a, &b] {
        assert_eq!(serial(scene.port), Some(7));
        assert_eq!(short(scene.port, &["www.lb.example"]), ["192.0.2.1", "192.0.2.2"]);
    }
    b.process.kill();
    assert_eq!(short(a.port, &["www.lb.example"]), ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn the_master_file_is_one_that_bind_reads() {
    let scene = Scene::start(Some(&zone(7, &[("www", &["192.0.2.1", "2001:db8::1"]), ("@", &["192.0.2.2"])])), "");
    let state = scene.path("state/zone.json");
    let weir = |arguments: &[&str]| {
        let output = Command::new(&programs().weir).args(["dns", "export"]).args(arguments).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let state = state.display().to_string();
    let master = scene.path("master");
    fs::write(&master, weir(&[&state])).expect("a file");
    let output = Command::new("named-checkzone").arg(ORIGIN).arg(&master).output();
    let output = output.unwrap_or_else(|e| panic!("cannot start named-checkzone (package bind9-utils): {e}"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("loaded serial 7"), "{said}");
    let corefile = weir(&["--format", "corefile-secondary", "--from", "127.0.0.1:53", &state]);
    assert!(corefile.contains("transfer from 127.0.0.1:53"), "{corefile}");
}

#[test]
fn a_mistake_in_the_configuration_is_shown_at_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("dns.toml");
    fs::write(&file, "orign = \"lb.example\"\n").expect("a file");
    for arguments in [&["dns", "check"][..], &["dns", "serve", "--config"]] {
        let output = Command::new(&programs().weir).args(arguments).arg(&file).output().expect("runs");
        assert_eq!(output.status.code(), Some(3), "{arguments:?}");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("dns.toml:1:1") && said.contains("did you mean `origin`?"), "{said}");
    }
    // An address that somebody has already says so.
    let scene = Scene::start(Some(&zone(7, &[])), "");
    let output = Command::new(&programs().weir).args(["dns", "serve", "--config"]).arg(scene.path("dns.toml")).output();
    let said = String::from_utf8(output.expect("runs").stderr).expect("text");
    assert!(said.contains("cannot listen on") && said.contains("ss -lnp"), "{said}");
}
