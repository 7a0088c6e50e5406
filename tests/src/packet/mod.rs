//! Packets as data: what comes in, what happens, what goes out, what is counted.
//!
//! The cases stand in `tests/fixtures/packets/*.toml`, in hexadecimal, against the small node of [`node`] in the file's
//! [`Setting`]. Each packet is given to lb-core and to the loaded program. `WEIR_BLESS=1` rewrites action, reason and outgoing bytes from what lb-core
//! says; the difference is for a person to judge.

mod coverage;
mod node;
mod setting;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use lb_core::{host::Snapshot, reason::Reason, rewrite::Exit, wire::eth};
use serde::{Deserialize, Serialize};
use xtask::capability::{PROGRAM, available};

use crate::{
    craft,
    oracle::{model, program::Program},
};

use self::setting::Setting;

/// A file of cases.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixture {
    /// What the node is like.
    #[serde(default, skip_serializing_if = "Setting::is_usual")]
    setting: Setting,
    case: Vec<Case>,
}

/// Packets that belong together, in order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What the case shows.
    description: String,
    packet: Vec<Packet>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Packet {
    /// The frame that comes in.
    #[serde(rename = "in")]
    frame: String,
    /// `drop`, `pass`, `tx` or `redirect`.
    action: String,
    /// The counter that grows by this packet, and no other.
    reason: String,
    /// The frame that goes out; absent where it is the one that came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<String>,
}

fn action_name(action: u32) -> &'static str {
    ["aborted", "drop", "pass", "tx", "redirect"].get(action as usize).copied().unwrap_or("unknown")
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    ensure!(digits.len().is_multiple_of(2), "an odd number of digits");
    digits.chunks(2).map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}

fn files() -> Result<Vec<PathBuf>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/packets");
    let mut files: Vec<_> = fs::read_dir(&dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    Ok(files)
}

/// Every file with what it holds.
fn fixtures() -> Result<Vec<(PathBuf, Fixture)>> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path)?;
        let fixture = toml::from_str(&text).with_context(|| path.display().to_string())?;
        Ok((path, fixture))
    };
    files()?.into_iter().map(read).collect()
}

/// Checks one packet.
fn check(setting: Setting, snapshot: &Snapshot, program: &Program, packet: &Packet) -> Result<()> {
    let frame = from_hex(&packet.frame)?;
    let out = packet.out.as_deref().map_or_else(|| Ok(frame.clone()), from_hex)?;
    let (exit, host) = setting.model(snapshot, &frame);
    let before = program.reasons()?;
    let kernel = setting.run(program, &frame)?;
    let after = program.reasons()?;
    for (who, outcome) in [("lb-core", &host), ("the program", &kernel)] {
        ensure!(
            (action_name(outcome.action), &outcome.frame) == (packet.action.as_str(), &out),
            "{who}: {} with {}, expected {} with {}",
            action_name(outcome.action),
            to_hex(&outcome.frame),
            packet.action,
            to_hex(&out)
        );
    }
    ensure!(exit.reason().name() == packet.reason, "lb-core's reason is {}", exit.reason().name());
    let grown: BTreeMap<_, _> = after
        .iter()
        .filter_map(|(reason, (packets, bytes))| {
            let (old_packets, old_bytes) = before.get(reason).copied().unwrap_or_default();
            (*packets != old_packets).then(|| (reason.name(), (packets - old_packets, bytes - old_bytes)))
        })
        .collect();
    let expected = BTreeMap::from([(packet.reason.as_str(), (1, frame.len() as u64))]);
    ensure!(grown == expected, "the program counted {grown:?}, expected {expected:?}");
    if craft::wrong(&frame).is_none() && packet.action != "drop" {
        let wrong = craft::wrong(&out);
        ensure!(wrong.is_none(), "the fixture itself is wrong: {wrong:?}");
    }
    Ok(())
}

fn run(setting: Setting) -> Result<()> {
    let snapshot = setting.enter()?;
    let program = Program::load(&snapshot)?;
    for (path, fixture) in fixtures()?.into_iter().filter(|(_, fixture)| fixture.setting == setting) {
        for case in &fixture.case {
            for (n, packet) in case.packet.iter().enumerate() {
                check(setting, &snapshot, &program, packet)
                    .with_context(|| format!("{}: {}, packet {}", path.display(), case.description, n + 1))?;
            }
        }
    }
    Ok(())
}

fn bless(setting: Setting) -> Result<()> {
    let snapshot = setting.enter()?;
    for (path, mut fixture) in fixtures()?.into_iter().filter(|(_, fixture)| fixture.setting == setting) {
        for packet in fixture.case.iter_mut().flat_map(|case| &mut case.packet) {
            let frame = from_hex(&packet.frame)?;
            let (exit, outcome) = setting.model(&snapshot, &frame);
            packet.action = action_name(outcome.action).to_owned();
            packet.reason = exit.reason().name().to_owned();
            packet.out = (outcome.frame != frame).then(|| to_hex(&outcome.frame));
        }
        fs::write(&path, toml::to_string(&fixture)?)?;
    }
    Ok(())
}

/// Runs in a thread, which takes its network namespace with it.
fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    std::thread::spawn(work).join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
}

#[test]
fn fixtures_hold_for_core_and_program() -> Result<()> {
    if !available(&PROGRAM, "packet fixtures") {
        return Ok(());
    }
    let settings: BTreeSet<Setting> = fixtures()?.iter().map(|(_, fixture)| fixture.setting).collect();
    for setting in settings {
        if std::env::var_os("WEIR_BLESS").is_some() {
            in_thread(move || bless(setting))?;
        }
        in_thread(move || run(setting)).with_context(|| format!("{setting:?}"))?;
    }
    Ok(())
}

/// Every prefix of every fixture's frame has a reason of its own accord in lb-core, and the program agrees.
#[test]
fn every_truncation_has_a_reason() -> Result<()> {
    if !available(&PROGRAM, "truncated packets") {
        return Ok(());
    }
    in_thread(|| {
        let snapshot = Setting::Usual.enter()?;
        let program = Program::load(&snapshot)?;
        let mut runs = 0;
        for (_, fixture) in fixtures()? {
            for packet in fixture.case.iter().flat_map(|case| &case.packet) {
                let frame = from_hex(&packet.frame)?;
                // Behind the headers one length is like another.
                for len in (0..=frame.len()).filter(|len| *len < 160 || *len == frame.len()) {
                    let (exit, host) = model(&snapshot, &frame[..len]);
                    if len < eth::LEN {
                        ensure!(exit == Exit::Drop(Reason::FrameTruncated), "{len} bytes: {exit:?}");
                        ensure!(
                            program.run(&frame[..len]).is_err(),
                            "BPF_PROG_RUN takes {len} bytes: make it a fixture"
                        );
                        continue;
                    }
                    let kernel = program.run(&frame[..len])?;
                    ensure!(host == kernel, "{} bytes of {}: {host:?}, {kernel:?}", len, packet.frame);
                    runs += 1;
                }
            }
        }
        let counted: u64 = program.reasons()?.values().map(|(packets, _)| packets).sum();
        ensure!(counted == runs, "{runs} packets sent, {counted} counted");
        Ok(())
    })
}
