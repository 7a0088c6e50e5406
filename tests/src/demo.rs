//! The demo, run as a person runs it: once as it is, and once for each step with that step broken.

use std::process::{Command, Output};

use xtask::capability;

use crate::lab::programs;

/// Runs `cargo xtask demo` with a lab name of its own; `None` where the lab cannot be.
fn demo(test: &str, arguments: &[&str]) -> Option<Output> {
    if !capability::available(&capability::LAB, test) {
        return None;
    }
    let xtask = programs().xtask.clone();
    let output = Command::new(xtask)
        .args(["demo", "--quick", "--name", "weir-test-demo"])
        .args(arguments)
        .current_dir(xtask::root())
        .output()
        .expect("the demo starts");
    Some(output)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The demo ends with an error that names the broken step, and leaves nothing behind.
fn notices(step: &str) {
    let Some(output) = demo(&format!("demo::{step}"), &["--break", step]) else { return };
    let text = text(&output);
    assert!(!output.status.success(), "the demo did not notice that `{step}` was broken:\n{text}");
    assert!(text.contains(&format!("the demo failed at step `{step}`")), "another step failed than `{step}`:\n{text}");
    let left = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let left: Vec<_> = left.filter(|e| e.file_name().to_string_lossy().starts_with("weir-test-demo-")).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn the_demo_succeeds() {
    let Some(output) = demo("demo::the_demo_succeeds", &[]) else { return };
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("Every step happened as promised"));
}

/// Runs `cargo xtask demo fleet`.
fn fleet(test: &str, arguments: &[&str]) -> Option<Output> {
    if !capability::available(&capability::LAB, test) {
        return None;
    }
    let mut command = Command::new(&programs().xtask);
    command.args(["demo", "fleet", "--name", "weir-test-fleet"]).args(arguments).current_dir(xtask::root());
    Some(command.output().expect("the demo starts"))
}

/// The fleet's demo ends with an error that names the broken step.
fn fleet_notices(step: &str) {
    let Some(output) = fleet(&format!("demo::fleet {step}"), &["--break", step]) else { return };
    let text = text(&output);
    assert!(!output.status.success(), "the demo did not notice that `{step}` was broken:\n{text}");
    assert!(text.contains(&format!("the demo failed at step `{step}`")), "another step failed than `{step}`:\n{text}");
}

#[test]
fn the_fleet_grows_and_survives_a_backend() {
    let Some(output) = fleet("demo::the_fleet_grows_and_survives_a_backend", &["--until", "backend"]) else { return };
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("Every step happened as promised"));
}

#[test]
fn a_node_that_does_not_leave_dns_is_noticed() {
    fleet_notices("node");
}

#[test]
fn an_agent_that_refuses_its_configuration_is_noticed() {
    notices("agent");
}

#[test]
fn shares_that_do_not_follow_the_weights_are_noticed() {
    notices("http");
}

#[test]
fn datagrams_that_are_not_answered_are_noticed() {
    notices("udp");
}

#[test]
fn a_backend_that_health_does_not_take_out_is_noticed() {
    notices("health");
}

#[test]
fn failures_after_the_transition_are_noticed() {
    notices("failover");
}

#[test]
fn a_backend_that_does_not_come_back_is_noticed() {
    notices("recovery");
}

#[test]
fn a_data_plane_that_goes_with_its_agent_is_noticed() {
    notices("restart");
}

#[test]
fn what_is_left_behind_is_noticed() {
    notices("down");
}
