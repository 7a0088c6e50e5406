//! Health that is checked once for many nodes: how a target is named, who checks it, and the records that say so.
//!
//! Pure. Orchestrators write these records, agents read them. Refuses to know: which store there is, and how a judgement comes
//! about. Invariant: all processes of a fleet give a target the same name and come to the same checkers.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use siphasher::sip::SipHasher13;

use super::Target;
use crate::model::Probe;

/// Key of the assignment.
pub const ASSIGNMENT: &str = "orchestrator/assignment";
/// What keys of heartbeats begin with; the name of the process follows.
pub const BEATS: &str = "orchestrator/worker/";
/// What keys of health records begin with; the name of the target follows.
pub const HEALTH: &str = "health/";

/// Milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMs(pub u64);

/// Heartbeat of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Name and the word of this start.
    pub holder: String,
    /// Grows with each heartbeat.
    pub beat: u64,
    /// Generation of the assignment that it works by; 0 before it has any.
    pub generation: u64,
    /// Where its metrics are, for service discovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// Who checks, written by the master whenever that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The master that wrote it.
    pub holder: String,
    /// Generation; grows with each change. Named like the epoch of the master record, because fences read both alike.
    pub epoch: u64,
    /// Names of the workers.
    pub workers: BTreeSet<String>,
    /// Workers that must agree before a target is down.
    pub vantage_points: u32,
}

/// What one worker says about a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Up or down, after that worker's `rise` and `fall`.
    pub up: bool,
    /// Why, in the words of the health checks (`L4TOUT`, `L7STS`, ...).
    pub reason: String,
    /// When.
    pub at: UnixMs,
}

/// Health of a target as all may read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The judgement.
    pub up: bool,
    /// Why, from the vote that decided.
    pub reason: String,
    /// Since when.
    pub since: UnixMs,
    /// Votes by worker.
    pub votes: BTreeMap<String, Vote>,
}

/// The name of a target among all processes of a fleet.
pub fn name(target: &Target) -> String {
    let check = &target.check;
    // Keys of a store have few characters: the address without brackets, and a digest of how it is asked.
    let how = match &check.probe {
        Probe::Http { path, host } => format!("http {path} {}", host.as_deref().unwrap_or_default()),
        Probe::Tcp => "tcp".to_owned(),
    };
    let ms = [check.interval.as_millis(), check.timeout.as_millis(), check.rise.into(), check.fall.into()];
    let digest = Sha256::digest(format!("{how} {ms:?}"));
    let digest: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{}:{}/{digest}", target.address.ip(), target.address.port())
}

/// How much a worker is wanted for a target.
fn score(target: &str, worker: &str) -> u64 {
    // Every process must come to the same order, so the key is a constant; nobody gains by choosing names.
    let mut hasher = SipHasher13::new_with_keys(0x7765_6972, 0x6f72_6368);
    hasher.write(target.as_bytes());
    hasher.write_u8(0xff);
    hasher.write(worker.as_bytes());
    hasher.finish()
}

/// The workers that check `target`: as many as there are vantage points, or all of fewer. By rendezvous hashing (Thaler and
/// Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM Transactions on Networking 6(1), 1998).
pub fn checkers<'w>(target: &str, assignment: &'w Assignment) -> BTreeSet<&'w str> {
    let mut ranked: Vec<(u64, &str)> =
        assignment.workers.iter().map(|worker| (score(target, worker), worker.as_str())).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    let wanted = usize::try_from(assignment.vantage_points.max(1)).unwrap_or(usize::MAX);
    ranked.into_iter().take(wanted).map(|(_, worker)| worker).collect()
}
