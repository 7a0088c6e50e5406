//! Other places than one Redis of today: a database that one node serves to another, and a store that a newer release has written.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _};

use anyhow::{Result, ensure};
use serde_json::Value;
use xtask::lab::fleet::{
    Fleet,
    redis::Keep,
    topology::{Host, REDIS_PORT},
};

use super::{NODES, begin, fault, one_redis, ready, rings, scenario, traffic::Traffic, write};

/// Where the database is served.
const STORE_PORT: u16 = 9653;

#[test]
fn a_node_serves_its_database_to_another() {
    scenario("places::a_node_serves_its_database_to_another", |fleet, _| {
        let (owner, other) = (NODES[0], NODES[1]);
        let token = fleet.ground.folder().join("token");
        let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&token)?;
        writeln!(file, "{}", "70ce".repeat(10))?;
        let (at, token) = (format!("{}:{STORE_PORT}", owner.address(false)), token.display());
        let database = fleet.state_dir(owner).join("store.redb");
        fs::create_dir_all(fleet.state_dir(owner))?;
        let common = format!("token_file = \"{token}\"\ninsecure = true\n");
        let kind = "[store]\nkind = \"embedded\"\n";
        fleet.write_node(owner, &format!("{kind}path = \"{}\"\nlisten = \"{at}\"\n{common}", database.display()))?;
        fleet.write_node(other, &format!("{kind}url = \"http://{at}\"\n{common}"))?;
        let file = fleet.ground.folder().join("services.toml");
        fs::write(&file, super::services())?;
        // While nobody serves it, whoever comes opens the file; then its owner is asked.
        write(fleet, owner, &["config", "apply", &file.display().to_string()])?;
        fleet.start_agent(owner)?;
        fleet.start_agent(other)?;
        let up = |status: &Value| status["counts"]["backends_up"] == 4 && status["store"]["up"] == true;
        for node in [owner, other] {
            fleet.wait_status(node, "ready", up)?;
        }
        let vips = [owner, other].map(|node| rings::leases(fleet, node).map(|leases| leases["front"]));
        let traffic = Traffic::start(fleet, &vips.into_iter().collect::<Result<Vec<_>>>()?)?;
        // Both nodes' command lines write to it, and both nodes follow.
        let backend = format!("web/{}:80", Host::Backend(2).address(false));
        for (node, weight) in [(owner, "3"), (other, "5")] {
            write(fleet, node, &["backend", "weight", &backend, weight, "--wait=30"])?;
        }
        agree(fleet, other, "5")?;
        commands(fleet, other)?;
        // Without its owner the other node goes on, says so, and follows again.
        fleet.kill_agent(owner)?;
        fleet.wait_status(other, "without its store", |status| status["store"]["up"] == false)?;
        fleet.start_agent(owner)?;
        fleet.wait_status(other, "with its store again", |status| status["store"]["up"] == true)?;
        write(fleet, other, &["backend", "weight", &backend, "2", "--wait=30"])?;
        agree(fleet, owner, "2")?;
        agree(fleet, other, "2")?;
        let nodes = write(fleet, other, &["node", "list"])?;
        ensure!(nodes.contains("n1") && nodes.contains("n2"), "{nodes}");
        // Whoever has no token is not let in.
        fleet.write_node(Host::Node(3), &format!("{kind}url = \"http://{at}\"\ninsecure = true\n"))?;
        let refused = write(fleet, Host::Node(3), &["node", "list"]);
        ensure!(refused.is_err(), "without a token: {refused:?}");
        let (through, _) = traffic.stop()?;
        for seen in through {
            ensure!(seen.failures.is_empty() && seen.answers > 20, "{seen:?}");
        }
        Ok(())
    });
}

/// Commands of a node with a store.
fn commands(fleet: &Fleet, node: Host) -> Result<()> {
    // What a file would change on this node is planned, and nothing is changed.
    let file = fleet.ground.folder().join("planned.toml");
    fs::write(&file, super::services().replacen("weight = 1", "weight = 7", 1))?;
    let plan = fleet.weir_json(node, &["plan", &file.display().to_string()])?;
    ensure!(plan["changed"] == true && plan["services"][0]["slots_moved"].as_u64() > Some(0), "{plan}");
    agree(fleet, node, "5")?;
    let pools = write(fleet, node, &["pool", "list", "-o", "json"])?;
    ensure!(pools.contains("front") && pools.contains("n1") && pools.contains("n2"), "{pools}");
    write(fleet, node, &["pool", "set", "spare", "10.78.0.160/30"])?;
    ensure!(write(fleet, node, &["pool", "delete", "front"]).is_err(), "a pool that is used is not deleted");
    write(fleet, node, &["pool", "delete", "spare"])?;
    // Waiting ends with the drain on both nodes; one that is removed at once leaves nothing behind.
    let backend = |n: u8| format!("web/{}:80", Host::Backend(n).address(false));
    write(fleet, node, &["service", "set", "web", "drain_timeout=2s", "--wait"])?;
    write(fleet, node, &["backend", "drain", &backend(3), "--wait"])?;
    write(fleet, node, &["backend", "remove", &backend(4), "--now", "--wait"])?;
    let list = fleet.weir_json(node, &["backend", "list"])?;
    let all = list.as_array().cloned().unwrap_or_default();
    let name = format!("{}:80", Host::Backend(4).address(false));
    ensure!(all.len() == 3 && !all.iter().any(|b| b["name"] == name.as_str()), "{list}");
    let doctor = fleet.weir(node, &["doctor", "--config", &fleet.config_file(node).display().to_string()]);
    let told = doctor.unwrap_or_else(|error| format!("{error:#}"));
    ensure!(told.contains("store at"), "{told}");
    Ok(())
}

/// Whether the maps of a node have the configured weight of the second backend.
fn agree(fleet: &Fleet, node: Host, weight: &str) -> Result<()> {
    let (name, weight) = (format!("{}:80", Host::Backend(2).address(false)), weight.parse::<u64>()?);
    fault::until("the weight on the node", || {
        let list = fleet.weir_json(node, &["backend", "list"])?;
        let all = list.as_array().cloned().unwrap_or_default();
        Ok(all.iter().any(|b| b["name"] == name.as_str() && b["weight_configured"] == weight))
    })
}

#[test]
fn a_store_of_a_newer_release_is_refused_and_forwarding_stays() {
    scenario("places::a_store_of_a_newer_release_is_refused_and_forwarding_stays", |fleet, _| {
        fleet.start_redis(REDIS_PORT, Keep::Everything, &[])?;
        begin(fleet, &one_redis(), &super::services())?;
        ready(fleet)?;
        let vips = NODES.map(|node| rings::leases(fleet, node).map(|leases| leases["front"]));
        let traffic = Traffic::start(fleet, &vips.into_iter().collect::<Result<Vec<_>>>()?)?;
        // Windows that began with the first health end meanwhile; who has a slot must not change.
        let owners = |fleet: &Fleet| -> Result<Vec<_>> {
            let rings = rings::held(&rings::maps(fleet, NODES[0])?)?;
            Ok(rings.into_iter().map(|(at, ring)| (at, ring.current)).collect())
        };
        let before = owners(fleet)?;
        fleet.redis(REDIS_PORT, &["HSET", "weir:meta", "schema", "99"])?;
        // Also what is connected already must not go on reading or writing.
        for node in NODES {
            fleet.wait_status(node, "on a store that it refuses", refuses)?;
        }
        let backend = format!("web/{}:80", Host::Backend(2).address(false));
        let written = write(fleet, NODES[0], &["backend", "weight", &backend, "9"]);
        let told = format!("{:#}", written.expect_err("a schema that is not known was written to"));
        ensure!(told.contains("schema") && told.contains("99"), "{told}");
        // An agent that starts on it takes over what it finds.
        fleet.kill_agent(NODES[0])?;
        fleet.start_agent(NODES[0])?;
        fleet.wait_status(NODES[0], "started on a store that it refuses", refuses)?;
        ensure!(owners(fleet)? == before, "the maps changed");
        fleet.redis(REDIS_PORT, &["HSET", "weir:meta", "schema", "1"])?;
        for node in NODES {
            fleet.wait_status(node, "on its store again", |status| status["store"]["up"] == true)?;
        }
        let (through, _) = traffic.stop()?;
        for seen in through {
            ensure!(seen.failures.is_empty() && seen.answers > 20, "{seen:?}");
        }
        Ok(())
    });
}

fn refuses(status: &Value) -> bool {
    let why = status["store"]["why"].as_str().unwrap_or_default();
    status["store"]["up"] == false && why.contains("schema") && why.contains("99")
}
