//! Commands as functions in the server, and their answers read back.
//!
//! Owns: the library of functions (Redis 7.0), the names of keys, the order of arguments. Functions and no scripts,
//! because a library can keep what ends with the server's process: its run, which is else asked for at every vote and
//! costs more than the rest of the vote. Invariants: each function is one atomic step of
//! [`crate::model::NodeModel::apply`]; an answer that is not understood is an error, never a vote.

use std::sync::LazyLock;

use redis::{Cmd, Value as Raw};
use sha2::{Digest, Sha256};

use crate::{
    command::{Command, Inspection, List, ListId, Mode, Refusal, Reply, Status, Ticket},
    error::NodeError,
    model::{INTENT_MS, QUEUE_MAX},
    value::Value,
};

/// One function of the library: its name there, its flags, its body.
type Function = (&'static str, &'static str, &'static str);

const ACQUIRE: Function = ("acquire", "", include_str!("acquire.lua"));
const CONFIRM: Function = ("confirm", "", include_str!("confirm.lua"));
// What only prolongs or removes is allowed where memory is full.
const EXTEND: Function = ("extend", "'allow-oom'", include_str!("extend.lua"));
const RELEASE: Function = ("release", "'allow-oom'", include_str!("release.lua"));
const STATUS: Function = ("status", "'no-writes'", include_str!("status.lua"));
const READY: Function = ("ready", "", include_str!("ready.lua"));
const SET_LIST: Function = ("set_list", "", include_str!("set_list.lua"));
const INSPECT: Function = ("inspect", "'no-writes'", include_str!("inspect.lua"));
const FUNCTIONS: [Function; 8] = [ACQUIRE, CONFIRM, EXTEND, RELEASE, STATUS, READY, SET_LIST, INSPECT];

/// The library of functions, under a name of its text: clients of several versions do not meet each other's.
struct Library {
    version: String,
    text: String,
}

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let prelude = format!("local INTENT_MS, QUEUE_MAX = {INTENT_MS}, {QUEUE_MAX}\n{}", include_str!("prelude.lua"));
    let bodies = FUNCTIONS.map(|(name, flags, body)| format!("{name}{flags}{body}")).concat();
    let digest = Sha256::digest(format!("{prelude}{bodies}"));
    let version: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let functions = FUNCTIONS.map(|(name, flags, body)| {
        format!(
            "redis.register_function{{function_name = 'weir_{name}_{version}', flags = {{{flags}}}, \
             callback = function(KEYS, ARGV)\nnode = KEYS[1]\n{body}end}}\n"
        )
    });
    let text = format!("#!lua name=weir_locks_{version}\n{prelude}{}", functions.concat());
    Library { version, text }
});

/// The command that gives the server the library.
pub fn load() -> Cmd {
    let mut cmd = redis::cmd("FUNCTION");
    cmd.arg("LOAD").arg(&LIBRARY.text);
    cmd
}

/// Names of keys and channel under one prefix.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

/// The kind of the key that holds an exclusive holder's value.
pub const WRITER: char = 'w';
/// Kinds of keys that show that a lock is held or waited for.
pub const LIVE_KINDS: [char; 3] = [WRITER, 'r', 'q'];

impl Keys {
    /// Keys that begin with `prefix` and a colon.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The channel on which a change of the list is announced.
    pub fn channel(&self) -> String {
        format!("{}:nodes", self.prefix)
    }

    /// What all keys of one kind begin with.
    pub fn kind(&self, kind: char) -> String {
        format!("{}:{kind}:", self.prefix)
    }

    /// A call of `function` with the first `count` of the keys of the lock `name`; its arguments follow.
    fn call(&self, function: Function, count: usize, name: &str) -> Cmd {
        let mut cmd = redis::cmd("FCALL");
        cmd.arg(format!("weir_{}_{}", function.0, LIBRARY.version)).arg(count);
        cmd.arg(format!("{}:node", self.prefix));
        for kind in [WRITER, 'r', 'q', 'd', 'i'].into_iter().take(count.saturating_sub(1)) {
            cmd.arg(self.kind(kind) + name);
        }
        cmd
    }
}

/// `command` as a call of a function.
pub fn encode(command: &Command, keys: &Keys) -> Result<Cmd, NodeError> {
    Ok(match command {
        Command::Acquire { name, value, mode, ttl_ms, fence, ticket, terms } => {
            let mut flags = String::new();
            for (flag, is_set) in [('s', *mode == Mode::Shared), ('f', *fence), ('u', !terms.quarantine)] {
                flags.extend(is_set.then_some(flag));
            }
            let mut cmd = keys.call(ACQUIRE, 6, name);
            cmd.arg(value.as_str()).arg(ttl_ms).arg(flags);
            cmd.arg(terms.list.epoch).arg(&terms.list.digest).arg(terms.max_ttl_ms);
            if let Some(Ticket { id, order, patience_ms }) = ticket {
                cmd.arg(id).arg(order.map_or_else(String::new, |order| order.to_string())).arg(patience_ms);
            }
            cmd
        }
        Command::Confirm { name, value, fence } => {
            let mut cmd = keys.call(CONFIRM, 3, name);
            cmd.arg(value.as_str()).arg(fence);
            cmd
        }
        Command::Extend { name, value, ttl_ms, terms } => {
            let mut cmd = keys.call(EXTEND, 3, name);
            cmd.arg(value.as_str()).arg(ttl_ms);
            cmd.arg(terms.list.epoch).arg(&terms.list.digest).arg(terms.max_ttl_ms);
            cmd.arg(u8::from(terms.quarantine));
            cmd
        }
        Command::Release { name, value, ticket } => {
            let mut cmd = keys.call(RELEASE, if ticket.is_some() { 5 } else { 3 }, name);
            cmd.arg(value.as_str()).arg(ticket);
            cmd
        }
        Command::Status => keys.call(STATUS, 1, ""),
        Command::Ready { run_id, fence, max_ttl_ms, list, force } => {
            let mut cmd = keys.call(READY, 1, "");
            cmd.arg(run_id).arg(fence).arg(max_ttl_ms);
            cmd.arg(list.id.epoch).arg(&list.id.digest).arg(&list.members).arg(u8::from(*force));
            cmd
        }
        Command::SetList { from, list, join } => {
            let mut cmd = keys.call(SET_LIST, 1, "");
            cmd.arg(from.epoch).arg(&from.digest).arg(list.id.epoch).arg(&list.id.digest).arg(&list.members);
            cmd.arg(keys.channel()).arg(u8::from(*join));
            cmd
        }
        Command::Inspect { name } => keys.call(INSPECT, 5, name),
        // Listing walks over the keys in steps; the node itself does it.
        Command::Names { .. } => return Err(NodeError::Protocol("names are not listed by a function".into())),
    })
}

/// Reads what a function returned.
pub fn decode(raw: Raw) -> Result<Reply, NodeError> {
    let Raw::Array(items) = raw else { return Err(unknown(&raw)) };
    let mut items = items.into_iter();
    let word = items.next().and_then(text).unwrap_or_default();
    let reply = match word.as_str() {
        "granted" => (|| Some(Reply::Granted { fence: number(items.next()?)?, run_id: text(items.next()?)? }))(),
        "done" => Some(Reply::Done),
        "gone" => Some(Reply::Gone),
        "status" => status(&mut items).map(Reply::Status),
        "inspection" => inspection(items).map(Reply::Inspection),
        _ => refusal(&word, &mut items).map(Reply::Refused),
    };
    reply.ok_or_else(|| NodeError::Protocol(format!("a function's answer {word:?} with unknown parts")))
}

fn refusal(word: &str, items: &mut impl Iterator<Item = Raw>) -> Option<Refusal> {
    Some(match word {
        "held" => Refusal::Held { remaining_ms: number(items.next()?)? },
        "queued" => Refusal::Queued { ahead: number(items.next()?)? },
        "quarantined" => Refusal::Quarantined { remaining_ms: number(items.next()?)? },
        "repair" => Refusal::NeedsRepair { run_id: text(items.next()?)? },
        "list" => Refusal::OtherList { list: list(items)? },
        "ttl" => Refusal::TtlTooLong { max_ttl_ms: number(items.next()?)? },
        "run" => Refusal::OtherRun { run_id: text(items.next()?)? },
        "soon" => Refusal::TooSoon { remaining_ms: number(items.next()?)? },
        _ => return None,
    })
}

fn list(items: &mut impl Iterator<Item = Raw>) -> Option<List> {
    let id = ListId { epoch: number(items.next()?)?, digest: text(items.next()?)? };
    Some(List { id, members: text(items.next()?)? })
}

fn status(items: &mut impl Iterator<Item = Raw>) -> Option<Status> {
    Some(Status {
        run_id: text(items.next()?)?,
        ready: number(items.next()?)? == 1,
        quarantine_ms: number(items.next()?)?,
        fence: number(items.next()?)?,
        max_ttl_ms: number(items.next()?)?,
        list: list(items)?,
        list_wait_ms: number(items.next()?)?,
    })
}

fn inspection(items: impl Iterator<Item = Raw>) -> Option<Inspection> {
    let mut found = Inspection::default();
    for item in items {
        let Raw::Array(parts) = item else { return None };
        let mut parts = parts.into_iter();
        let kind = text(parts.next()?)?;
        let value = text(parts.next()?)?;
        match kind.as_str() {
            "q" => found.waiters.push(value),
            "x" => found.holders.push((Mode::Exclusive, Value::from_stored(value), number(parts.next()?)?)),
            _ => found.holders.push((Mode::Shared, Value::from_stored(value), number(parts.next()?)?)),
        }
    }
    Some(found)
}

/// Text of one part of an answer.
pub fn text(raw: Raw) -> Option<String> {
    match raw {
        Raw::BulkString(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Raw::SimpleString(text) => Some(text),
        Raw::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

fn number(raw: Raw) -> Option<u64> {
    match raw {
        Raw::Int(number) => Some(u64::try_from(number).unwrap_or(0)),
        other => text(other)?.parse().ok(),
    }
}

fn unknown(raw: &Raw) -> NodeError {
    let kind = match raw {
        Raw::Nil => "nothing",
        Raw::Int(_) => "a number",
        Raw::BulkString(_) | Raw::SimpleString(_) => "text",
        _ => "another type",
    };
    NodeError::Protocol(format!("a function returned {kind}"))
}
