//! The example, as a user runs it.

use std::process::Command;

fn run(arguments: &[&str]) -> String {
    // Cargo builds examples beside the tests.
    let tests = std::env::current_exe().unwrap();
    let example = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/queue");
    let output = Command::new(example).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn with_the_lock_each_message_is_read_once() {
    let text = run(&[]);
    assert!(text.contains("60 of 60 messages read, 0 of them more than once"), "{text}");
    assert!(text.contains("consumers killed: 1"), "{text}");
    // The one that slept past the lifetime of its lock wrote late, and the resource refused it.
    assert!(text.contains("pauses: ") && text.contains("STALE"), "{text}");
    assert!(!text.contains("refused by the fence: 0"), "{text}");
}

#[test]
fn without_the_lock_messages_are_read_twice() {
    let text = run(&["--unsafe"]);
    assert!(text.contains("60 of 60 messages read"), "{text}");
    assert!(!text.contains(" 0 of them more than once"), "{text}");
}
