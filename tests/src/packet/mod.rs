//! Packets as data: what comes in, what happens, what goes out, what is counted.
//!
//! The cases stand in `tests/fixtures/packets/*.toml`, in hexadecimal, against the small node of [`node`]. Each packet is
//! given to lb-core and to the loaded program. `WEIR_BLESS=1` rewrites action, reason and outgoing bytes from what lb-core
//! says; the difference is for a person to judge.

mod node;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use lb_core::{host::Snapshot, reason::Reason};
use serde::{Deserialize, Serialize};
use xtask::capability::{PROGRAM, available};

use crate::{
    craft,
    oracle::{
        model,
        program::{self, Program},
    },
};

/// A file of cases.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixture {
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

/// Checks one packet and gives its reason.
fn check(snapshot: &Snapshot, program: &Program, packet: &Packet) -> Result<Reason> {
    let frame = from_hex(&packet.frame)?;
    let out = packet.out.as_deref().map_or_else(|| Ok(frame.clone()), from_hex)?;
    let (exit, host) = model(snapshot, &frame);
    let before = program.reasons()?;
    let kernel = program.run(&frame)?;
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
    Ok(exit.reason())
}

fn run() -> Result<BTreeSet<Reason>> {
    let snapshot = node::node(program::enter_namespace()?);
    let program = Program::load(&snapshot)?;
    let mut met = BTreeSet::new();
    for path in files()? {
        let fixture: Fixture = toml::from_str(&fs::read_to_string(&path)?)?;
        for case in &fixture.case {
            for (n, packet) in case.packet.iter().enumerate() {
                let reason = check(&snapshot, &program, packet)
                    .with_context(|| format!("{}: {}, packet {}", path.display(), case.description, n + 1))?;
                met.insert(reason);
            }
        }
    }
    Ok(met)
}

fn bless() -> Result<()> {
    let snapshot = node::node(program::enter_namespace()?);
    for path in files()? {
        let mut fixture: Fixture = toml::from_str(&fs::read_to_string(&path)?)?;
        for packet in fixture.case.iter_mut().flat_map(|case| &mut case.packet) {
            let frame = from_hex(&packet.frame)?;
            let (exit, outcome) = model(&snapshot, &frame);
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
    if std::env::var_os("WEIR_BLESS").is_some() {
        in_thread(bless)?;
    }
    let met = in_thread(run)?;
    // Ways out that no fixture can show: they need another agent's maps, a driver without headroom, a kernel that does not
    // forward or a bug.
    let exempt = [
        Reason::Unconfigured,
        Reason::FrameTruncated,
        Reason::NoHeadroom,
        Reason::NatReplyForwardingDisabled,
        Reason::NatReplyRouteUnsupported,
        Reason::RewriteFailed,
    ];
    let missing: Vec<_> =
        Reason::ALL.iter().filter(|reason| !met.contains(reason) && !exempt.contains(reason)).collect();
    ensure!(missing.is_empty(), "no fixture for {missing:?}");
    Ok(())
}

/// Every prefix of every fixture's frame has a reason of its own accord in lb-core, and the program agrees.
#[test]
fn every_truncation_has_a_reason() -> Result<()> {
    if !available(&PROGRAM, "truncated packets") {
        return Ok(());
    }
    in_thread(|| {
        let snapshot = node::node(program::enter_namespace()?);
        let program = Program::load(&snapshot)?;
        let mut runs = 0;
        for path in files()? {
            let fixture: Fixture = toml::from_str(&fs::read_to_string(&path)?)?;
            for packet in fixture.case.iter().flat_map(|case| &case.packet) {
                let frame = from_hex(&packet.frame)?;
                // Behind the headers one length is like another.
                for len in (0..=frame.len()).filter(|len| *len < 160 || *len == frame.len()) {
                    let (exit, host) = model(&snapshot, &frame[..len]);
                    if len < 14 {
                        // BPF_PROG_RUN takes no frame without an Ethernet header.
                        ensure!(exit.reason() == Reason::FrameTruncated);
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
