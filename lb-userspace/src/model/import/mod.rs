//! Configurations of other load balancers as weir's own: keepalived's `virtual_server` blocks and what `ipvsadm -S` prints.
//!
//! The text of the other program becomes drafts of services ([`keepalived`], [`ipvsadm`]); [`fit`] changes what IPVS allows and
//! weir does not; [`write`] makes TOML of them, which is then checked like any other configuration.
//!
//! Pure and total: no text makes it panic, and its work is bounded. Refuses to know: files, and the machine's interfaces.
//! Invariant: whatever does not mean here what it meant there is noted, with its line.

mod fit;
mod ipvsadm;
mod keepalived;
mod lines;
mod tree;
mod write;

use std::net::IpAddr;

use thiserror::Error;

use super::{Forward, HealthCheck, Protocol, algo::Kind, parse, parse::Checked};

/// Notes that are kept; further ones are counted.
pub const NOTES_MAX: usize = 1_000;
/// Services that are taken over; each address of a group is one.
pub const SERVICES_MAX: usize = 4_096;
/// Backends of all services together.
pub const BACKENDS_MAX: usize = 262_144;

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `keepalived.conf`.
    Keepalived,
    /// The output of `ipvsadm -S`, or of `ipvsadm -Sn`.
    Ipvsadm,
}

/// Something that means less here, or something else.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    /// Line of the other program's text, from 1.
    pub line: usize,
    /// What became of it, in one sentence.
    pub text: String,
}

/// What was made of the other program's text.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The configuration in TOML. Notes stand in it as comments.
    pub text: String,
    /// What was changed or left out, by line.
    pub notes: Vec<Note>,
    /// Notes beyond [`NOTES_MAX`].
    pub omitted: usize,
    /// What `weir config check` says to [`Imported::text`]: what is an error there has to be added or decided by the user.
    pub checked: Checked,
}

/// Why a text was not taken over at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {message}")]
pub struct ImportError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// Makes a configuration of `text`. `file_name` names it in the comment on top; `interfaces` are those of the node, where the
/// caller knows them.
///
/// # Errors
/// [`ImportError`] where the text is not of that form.
pub fn import(source: Source, file_name: &str, text: &str, interfaces: &[String]) -> Result<Imported, ImportError> {
    let mut found = match source {
        Source::Keepalived => keepalived::read(text)?,
        Source::Ipvsadm => ipvsadm::read(text)?,
    };
    if !interfaces.is_empty() {
        found.interfaces = interfaces.to_vec();
    }
    fit::fit(&mut found);
    found.notes.sort_by_key(|note| note.line);
    found.services.iter_mut().for_each(|service| service.notes.sort_by_key(|note| note.line));
    let text = write::write(file_name, &found);
    let mut notes = found.notes;
    notes.extend(found.services.into_iter().flat_map(|service| service.notes));
    notes.sort_by(|a, b| (a.line, &a.text).cmp(&(b.line, &b.text)));
    // What holds for each address of a group stands beside each, and is told once.
    notes.dedup();
    let omitted = notes.len().saturating_sub(NOTES_MAX) + found.omitted;
    notes.truncate(NOTES_MAX);
    Ok(Imported { checked: parse::check("weir.toml", &text), text, notes, omitted })
}

/// What a text of another program says.
#[derive(Debug, Default)]
struct Found {
    /// Name of the node.
    name: Option<String>,
    interfaces: Vec<String>,
    services: Vec<Draft>,
    /// About no service.
    notes: Vec<Note>,
    /// Notes that were not kept.
    omitted: usize,
}

impl Found {
    fn note(&mut self, line: usize, text: impl Into<String>) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(Note { line, text: text.into() });
        } else {
            self.omitted += 1;
        }
    }
}

/// A service on its way from one program to the other.
#[derive(Clone, Debug)]
struct Draft {
    /// Where it begins.
    line: usize,
    /// Name, where the other program knows one.
    name: Option<String>,
    vip: IpAddr,
    /// 0 for all.
    port: u16,
    protocol: Protocol,
    forward: Forward,
    algo: Kind,
    /// Each datagram finds its backend by itself.
    one_packet: bool,
    /// Flows stay with a backend that failed.
    keep: bool,
    check: Option<HealthCheck>,
    backends: Vec<BackendDraft>,
    notes: Vec<Note>,
}

impl Draft {
    fn note(&mut self, line: usize, text: impl Into<String>) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(Note { line, text: text.into() });
        }
    }
}

/// A backend on its way.
#[derive(Clone, Debug)]
struct BackendDraft {
    line: usize,
    address: IpAddr,
    /// 0 for the one that the client chose.
    port: u16,
    /// IPVS' weights go up to 65535 and beyond.
    weight: u32,
    /// 0 for no limit.
    max_connections: u32,
}

/// The algorithm that stands in for a scheduler of IPVS, and what is to be said about it. `with_port`: whether its flag `sh-port` or
/// `mh-port` is set, without which both hash the client's address alone (ipvsadm(8), `--sched-flags`).
fn algo(scheduler: &str, with_port: bool) -> (Kind, Option<String>) {
    let differs = |why: &str| Some(format!("the scheduler `{scheduler}` {why}"));
    match scheduler {
        "rr" => (Kind::RoundRobin, None),
        "wrr" => (Kind::WeightedRoundRobin, None),
        "lc" => (Kind::LeastConnections, None),
        "wlc" => (Kind::WeightedLeastConnections, None),
        "sh" | "mh" if with_port => (Kind::Maglev, None),
        "sh" => (Kind::SourceHash, None),
        "mh" => (
            Kind::SourceHash,
            differs(
                "without `mh-port` hashes the client's address alone, as \"source_hash\" does over the same kind of ring",
            ),
        ),
        "twos" => (Kind::RandomTwo, None),
        "sed" | "nq" => {
            (Kind::WeightedLeastConnections, differs("has no counterpart: \"weighted_least_connections\" is nearest"))
        }
        "dh" | "lblc" | "lblcr" => (
            Kind::Maglev,
            differs("picks by destination, which is always the VIP here: \"maglev\" hashes addresses and ports"),
        ),
        "fo" | "ovf" => (
            Kind::Maglev,
            differs(
                "fills one backend after the other and has no counterpart: with \"maglev\" all share the load; give spare \
                 ones `weight = 0` and raise it when needed",
            ),
        ),
        _ => (Kind::Maglev, differs("is not known: \"maglev\" takes its place")),
    }
}

#[cfg(test)]
mod tests;
