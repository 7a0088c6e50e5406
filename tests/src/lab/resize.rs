//! The program gets another release and the flow table another size, and the agent dies in the middle, under a thousand real connections.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use lb_userspace::{
    dataplane::resize::{BEFORE, NEXT},
    object::WEIR_LB,
};
use xtask::lab::{agent::Node, topology::HTTP_PORT};

use super::{
    flows::{B123, CONNECTIONS, Held, web},
    programs,
    scene::{Scene, at},
};
use crate::flow::linked::older;

/// Time for which connections talk between two changes.
const BETWEEN: Duration = Duration::from_millis(1000);

/// The product as of an older release: with another program in it, which does the same.
fn older_release(scene: &Scene) -> PathBuf {
    let mut binary = fs::read(&programs().weir).expect("the binary");
    let object = older().expect("another program");
    let at = binary.windows(WEIR_LB.len()).position(|bytes| bytes == WEIR_LB).expect("the program is in the binary");
    binary[at..at + object.len()].copy_from_slice(&object);
    let path = scene.lab.folder().join("weir-older");
    fs::write(&path, binary).expect("the older binary");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the older binary");
    path
}

/// A service of which every flow is recorded, in a table for so many.
fn recorded(flows_max: u32) -> String {
    format!("[node.limits]\nflows_max = {flows_max}\n\n{}", web("least_connections", "", &B123))
}

/// Starts an agent and waits until it is ready; gives its log.
fn start(scene: &mut Scene) -> String {
    let agent = scene.lab.start_agent().expect("agent");
    scene.lab.wait_ready(&agent).unwrap_or_else(|error| panic!("{error:#}"));
    thread::sleep(BETWEEN);
    fs::read_to_string(scene.lab.log_of("agent")).expect("log")
}

fn places(scene: &Scene) -> u64 {
    scene.lab.weir_json(&["stats"]).expect("stats")["flows"]["places"].as_u64().expect("places")
}

/// Starts an agent that is killed as soon as `pin` is there.
fn start_and_kill_at(scene: &mut Scene, pin: &str) {
    let pin = scene.lab.pin_dir().join("maps").join(pin);
    scene.lab.start_agent().expect("agent");
    let start = Instant::now();
    while !pin.exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "{} does not come", pin.display());
        thread::sleep(Duration::from_millis(1));
    }
    scene.lab.kill_agent().expect("kill");
    assert!(pin.exists(), "the change was over before the agent was killed");
    thread::sleep(BETWEEN);
}

#[test]
fn program_and_flow_table_change_and_no_connection_moves() {
    let Some(mut scene) = Scene::without_agent("program_and_flow_table_change_and_no_connection_moves") else { return };
    let node = Node::default();
    scene.lab.write_config(&node, &recorded(4096)).expect("configuration");
    let older = older_release(&scene);
    scene.lab.use_weir(&older);
    start(&mut scene);
    let held = Held::open(&scene, at(0, false, HTTP_PORT));
    assert_eq!(places(&scene), 8192);

    scene.lab.kill_agent().expect("kill");
    scene.lab.use_weir(&programs().weir);
    let log = start(&mut scene);
    assert!(log.contains("program upgraded"), "{log}");
    println!("the program was upgraded");

    // The running agent says what it takes, and keeps what it has.
    scene.lab.write_config(&node, &recorded(65_536)).expect("configuration");
    let status = scene.wait_status("the refusal", |status| status["last_reload"]["outcome"] == "refused");
    assert!(status["last_reload"]["message"].as_str().expect("message").contains("limits.flows_max"), "{status:#}");
    scene.lab.kill_agent().expect("kill");
    let log = start(&mut scene);
    assert!(log.contains("the flow table has its new size"), "{log}");
    assert_eq!(places(&scene), 131_072);
    println!("the flow table grew");

    for (flows_max, pin) in [(2048, NEXT), (8192, BEFORE), (2048, BEFORE)] {
        scene.lab.kill_agent().expect("kill");
        scene.lab.write_config(&node, &recorded(flows_max)).expect("configuration");
        start_and_kill_at(&mut scene, pin);
        start(&mut scene);
        assert_eq!(places(&scene), u64::from(flows_max) * 2);
        println!("the flow table got room for {flows_max}, and an agent was killed at {pin}");
    }
    let listed = scene.lab.weir_json(&["flow", "list", "--service", "web", "--state", "established"]).expect("flows");
    assert_eq!(listed["matched"], CONNECTIONS, "{}", listed["matched"]);
    // What is active is right, to the connection, after all that.
    let start = Instant::now();
    loop {
        let flows = &scene.lab.weir_json(&["stats"]).expect("stats")["flows"];
        if flows["look"]["drift"] == 0 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "ACTIVE has drifted: {flows:#}");
        thread::sleep(Duration::from_millis(500));
    }
    held.close();
}
