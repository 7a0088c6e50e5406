//! What the orchestrators keep in the store besides the configuration: small records under keys, each changed by
//! compare-and-set, the ones that only a master or a worker of the present assignment may write by a *fenced* put.
//!
//! Owns keys and their encoding. Refuses to know which store there is. Invariant: a record that cannot be read (a newer
//! version wrote it, somebody edited it) is absent from a view and named in [`View::unreadable`], never guessed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    decision::Decision,
    election::Lease,
    intent::{Edit, Intent},
    placement::{Assignment, Beat, Health},
    replace::Suspects,
    watch::Node,
};
use crate::{
    dns::zone::ZoneObject,
    health::shared::{ASSIGNMENT, BEATS as BEAT, HEALTH},
};

/// Version of a record, given by the store at each write; comparable for equality only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub u64);

/// Longest record, in bytes of JSON.
pub const RECORD_BYTES_MAX: usize = 256 << 10;

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Who is the master.
    Lease(Lease),
    /// A live process, by its name.
    Beat(String, Beat),
    /// Who checks.
    Assignment(Assignment),
    /// What DNS answers.
    Zone(ZoneObject),
    /// Something that is being done, by its id.
    Intent(Intent),
    /// Something that was decided, by its place in the ring.
    Decision(u64, Decision),
    /// Health of a target, by its name.
    Health(String, Health),
    /// What a replacement rule has seen so far, by the rule's name.
    Suspects(String, Suspects),
}

const LEASE: &str = "orchestrator/master";
const ZONE: &str = "dns/zone";
const INTENT: &str = "orchestrator/intent/";
const DECISION: &str = "orchestrator/decision/";
const SUSPECTS: &str = "orchestrator/suspects/";

/// Prefixes under which all of these are, without the decisions.
pub const PREFIXES: [&str; 7] = [LEASE, BEAT, ASSIGNMENT, INTENT, SUSPECTS, HEALTH, ZONE];
/// Prefix of the decisions.
pub const DECISIONS: &str = DECISION;

impl Record {
    /// Where it is kept.
    pub fn key(&self) -> String {
        match self {
            Self::Lease(_) => LEASE.to_owned(),
            Self::Beat(name, _) => format!("{BEAT}{name}"),
            Self::Assignment(_) => ASSIGNMENT.to_owned(),
            Self::Zone(_) => ZONE.to_owned(),
            Self::Intent(intent) => format!("{INTENT}{}", intent.id),
            Self::Decision(slot, _) => format!("{DECISION}{slot:04}"),
            Self::Health(target, _) => format!("{HEALTH}{target}"),
            Self::Suspects(rule, _) => format!("{SUSPECTS}{rule}"),
        }
    }

    /// Its text.
    ///
    /// # Errors
    /// It is longer than [`RECORD_BYTES_MAX`].
    pub fn encode(&self) -> Result<String, RecordError> {
        let text = match self {
            Self::Lease(value) => serde_json::to_string(value),
            Self::Beat(_, value) => serde_json::to_string(value),
            Self::Assignment(value) => serde_json::to_string(value),
            Self::Zone(value) => serde_json::to_string(value),
            Self::Intent(value) => serde_json::to_string(value),
            Self::Decision(_, value) => serde_json::to_string(value),
            Self::Health(_, value) => serde_json::to_string(value),
            Self::Suspects(_, value) => serde_json::to_string(value),
        };
        let text = text.map_err(|error| RecordError { key: self.key(), why: error.to_string() })?;
        if text.len() > RECORD_BYTES_MAX {
            let why = format!("{} bytes, more than {RECORD_BYTES_MAX}", text.len());
            return Err(RecordError { key: self.key(), why });
        }
        Ok(text)
    }

    /// The record under `key`; `None` for a key that is none of these.
    ///
    /// # Errors
    /// The text is not what the key promises.
    pub fn decode(key: &str, text: &str) -> Result<Option<Self>, RecordError> {
        fn read<T: DeserializeOwned>(key: &str, text: &str) -> Result<T, RecordError> {
            serde_json::from_str(text).map_err(|error| RecordError { key: key.to_owned(), why: error.to_string() })
        }
        let record = match key {
            LEASE => Self::Lease(read(key, text)?),
            ASSIGNMENT => Self::Assignment(read(key, text)?),
            ZONE => Self::Zone(read(key, text)?),
            _ => {
                if let Some(name) = key.strip_prefix(BEAT) {
                    Self::Beat(name.to_owned(), read(key, text)?)
                } else if let Some(id) = key.strip_prefix(INTENT) {
                    let intent: Intent = read(key, text)?;
                    if intent.id != id {
                        return Err(RecordError { key: key.to_owned(), why: format!("it says id {}", intent.id) });
                    }
                    Self::Intent(intent)
                } else if let Some(slot) = key.strip_prefix(DECISION) {
                    let slot =
                        slot.parse().map_err(|_| RecordError { key: key.to_owned(), why: "no number".into() })?;
                    Self::Decision(slot, read(key, text)?)
                } else if let Some(target) = key.strip_prefix(HEALTH) {
                    Self::Health(target.to_owned(), read(key, text)?)
                } else if let Some(rule) = key.strip_prefix(SUSPECTS) {
                    Self::Suspects(rule.to_owned(), read(key, text)?)
                } else {
                    return Ok(None);
                }
            }
        };
        Ok(Some(record))
    }
}

/// A record that cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {key}: {why}")]
pub struct RecordError {
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
}

/// What must still be true of another record when a write arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The master record names this holder and epoch, and was not released.
    Master {
        /// Holder.
        holder: String,
        /// Epoch.
        epoch: u64,
    },
    /// The assignment was written by this holder and has this generation.
    Assignment {
        /// The master that wrote it.
        holder: String,
        /// Generation.
        generation: u64,
    },
}

impl Fence {
    /// Key of the record that is looked at, and the holder and epoch that it must have.
    pub fn parts(&self) -> (&'static str, &str, u64) {
        match self {
            Self::Master { holder, epoch } => (LEASE, holder, *epoch),
            Self::Assignment { holder, generation } => (ASSIGNMENT, holder, *generation),
        }
    }
}

/// What must be under the key of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Absent,
    /// This version.
    Version(Version),
    /// Whatever is there.
    Any,
}

impl From<Option<Version>> for Expect {
    fn from(version: Option<Version>) -> Self {
        version.map_or(Self::Absent, Self::Version)
    }
}

/// A write of one record.
#[derive(Clone, Debug, PartialEq)]
pub struct Put {
    /// What is written.
    pub record: Record,
    /// What must be there before.
    pub expect: Expect,
    /// What else must be true.
    pub fence: Option<Fence>,
    /// Seconds after which the store may forget it; `None`: never.
    pub ttl_s: Option<u64>,
}

/// A write that the store is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A record.
    Put(Put),
    /// A change of a service's backends in the configuration, refused unless the configuration still has that revision.
    Edit {
        /// The change.
        edit: Edit,
        /// Revision it is based on.
        revision: u64,
        /// Who may do it.
        fence: Fence,
    },
}

impl Write {
    /// Who may do it.
    pub fn fence(&self) -> Option<&Fence> {
        match self {
            Self::Put(put) => put.fence.as_ref(),
            Self::Edit { fence, .. } => Some(fence),
        }
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Stored.
    Done {
        /// The record's new version; of the configuration, its revision.
        version: Version,
        /// Whether a replica has it, or the place needs none.
        replicated: bool,
    },
    /// Another version was there, or the fence does not hold.
    Refused,
    /// The answer never came: it may have happened, may yet happen, or never.
    Unknown,
}

/// A record with its version.
#[derive(Clone, Debug, PartialEq)]
pub struct At<T> {
    /// Version.
    pub version: Version,
    /// The record.
    pub value: T,
}

/// A service as far as the orchestrator cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its backends by `ADDRESS:PORT`.
    pub backends: BTreeMap<String, Backend>,
    /// Health targets of backends that are about to be added, by `ADDRESS:PORT`.
    pub awaited: BTreeMap<String, Option<String>>,
}

/// A backend as far as the orchestrator cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Takes no new flows by configuration.
    pub drained: bool,
    /// Name of its health target; `None` where the service has no health check.
    pub target: Option<String>,
}

/// Everything that was read in one look at the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Who is the master.
    pub lease: Option<At<Lease>>,
    /// Who checks.
    pub assignment: Option<At<Assignment>>,
    /// Live processes by name.
    pub workers: BTreeMap<String, At<Beat>>,
    /// What is being done, by id; what was done lately, too.
    pub intents: BTreeMap<String, At<Intent>>,
    /// The ring of decisions by place, where it was asked for.
    pub decisions: BTreeMap<u64, At<Decision>>,
    /// What DNS answers.
    pub zone: Option<At<ZoneObject>>,
    /// Health by target.
    pub health: BTreeMap<String, At<Health>>,
    /// What replacement rules have seen, by rule.
    pub suspects: BTreeMap<String, At<Suspects>>,
    /// Nodes by name, as they reported.
    pub nodes: BTreeMap<String, Node>,
    /// Number of the configuration's revision.
    pub revision: u64,
    /// Services of the configuration by name.
    pub services: BTreeMap<String, Service>,
    /// Everything whose health is to be known: the targets of all services, and of backends that are about to be added.
    pub targets: BTreeSet<String>,
    /// Records that could not be read.
    pub unreadable: Vec<RecordError>,
}

impl View {
    /// Adds a record that was read.
    pub fn add(&mut self, version: Version, record: Record) {
        match record {
            Record::Lease(value) => self.lease = Some(At { version, value }),
            Record::Assignment(value) => self.assignment = Some(At { version, value }),
            Record::Zone(value) => self.zone = Some(At { version, value }),
            Record::Beat(name, value) => drop(self.workers.insert(name, At { version, value })),
            Record::Intent(value) => drop(self.intents.insert(value.id.clone(), At { version, value })),
            Record::Decision(slot, value) => drop(self.decisions.insert(slot, At { version, value })),
            Record::Health(target, value) => drop(self.health.insert(target, At { version, value })),
            Record::Suspects(rule, value) => drop(self.suspects.insert(rule, At { version, value })),
        }
    }

    /// Version of the record under `key`, if it was read.
    pub fn version(&self, record: &Record) -> Option<Version> {
        match record {
            Record::Lease(_) => self.lease.as_ref().map(|at| at.version),
            Record::Assignment(_) => self.assignment.as_ref().map(|at| at.version),
            Record::Zone(_) => self.zone.as_ref().map(|at| at.version),
            Record::Beat(name, _) => self.workers.get(name).map(|at| at.version),
            Record::Intent(intent) => self.intents.get(&intent.id).map(|at| at.version),
            Record::Decision(slot, _) => self.decisions.get(slot).map(|at| at.version),
            Record::Health(target, _) => self.health.get(target).map(|at| at.version),
            Record::Suspects(rule, _) => self.suspects.get(rule).map(|at| at.version),
        }
    }

    /// Whether a health target is up: as judged, and where nobody judged it yet what `unknown` says.
    pub fn is_up(&self, target: Option<&String>, unknown: bool) -> bool {
        // What nobody checks counts as up.
        target.is_none_or(|target| self.health.get(target).map_or(unknown, |health| health.value.up))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were() {
        for record in [
            Record::Lease(Lease { holder: "a/1".into(), epoch: 3, beat: 9, released: false }),
            Record::Beat("a".into(), Beat { holder: "a/1".into(), beat: 4, generation: 2, address: None }),
            Record::Assignment(Assignment {
                holder: "a/1".into(),
                epoch: 2,
                workers: ["a".into()].into(),
                vantage_points: 1,
            }),
            Record::Suspects("r".into(), Suspects::default()),
        ] {
            let (key, text) = (record.key(), record.encode().unwrap());
            assert_eq!(Record::decode(&key, &text), Ok(Some(record)), "{key} {text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_a_guess() {
        assert_eq!(Record::decode("service/web", "x"), Ok(None));
        for (key, text) in [
            (LEASE, "{}"),
            (LEASE, "not json"),
            ("orchestrator/decision/x", "{}"),
            ("orchestrator/intent/1", "{\"id\":\"2\"}"),
            ("health/t", "[]"),
        ] {
            assert!(Record::decode(key, text).is_err(), "{key} {text}");
        }
    }
}
