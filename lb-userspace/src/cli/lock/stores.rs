//! Which stores the locks are in: options of the command line, then the environment, then a file.
//!
//! Invariants: whatever is said about a store that holds a password says nothing of the password; a file is read whole or
//! refused with its line.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use lb_locks::{
    Lock, Options, Redlock, Single,
    node::{redis::RedisOptions, sqlite::SqliteNode},
};
use serde::Deserialize;

use super::duration;
use crate::{
    cli::exit::{Exit, Failure},
    model,
};

/// The file that is read if nothing else names the stores, and if it is there.
pub const FILE_DEFAULT: &str = "/etc/weir/locks.toml";
/// Time for one answer of a database, unless another is given.
const SQLITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Where the locks are, and how they are reached.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Stores")]
pub struct Stores {
    /// A Redis node, `[NAME=]redis://[USER:PASSWORD@]HOST[:PORT][/DB]`; once for each. A password is safer in the environment
    /// or in a file, where `ps` does not show it
    #[arg(long = "node", value_name = "URL", env = "WEIR_LOCK_NODES", value_delimiter = ',', hide_env_values = true)]
    nodes: Vec<String>,
    /// A database file instead, for the processes of one machine
    #[arg(long, value_name = "PATH", env = "WEIR_LOCK_SQLITE", conflicts_with = "nodes")]
    sqlite: Option<PathBuf>,
    /// A file with a `[locks]` table: nodes or sqlite, and prefix, node_timeout, max_ttl [default: /etc/weir/locks.toml]
    #[arg(long = "locks", value_name = "FILE", env = "WEIR_LOCKS")]
    file: Option<PathBuf>,
    /// Begin of the keys on Redis [default: weir]
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Time for one answer of one node, connecting included [default: 50ms; 1s for a database file]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    node_timeout: Option<Duration>,
    /// The longest lock of all clients, and so how long a node that restarted keeps out of votes; the nodes remember the largest
    /// [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    max_ttl: Option<Duration>,
}

/// `[locks]` of a file.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    nodes: Vec<String>,
    sqlite: Option<PathBuf>,
    prefix: Option<String>,
    node_timeout: Option<String>,
    max_ttl: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    locks: Table,
}

/// The stores, opened.
#[derive(Clone, Debug)]
pub struct Place {
    /// What locks are taken with.
    pub lock: Arc<dyn Lock>,
    /// The same, where there is a list of nodes.
    pub list: Option<Redlock>,
    /// How long one node may take.
    pub node_timeout: Duration,
}

impl Stores {
    /// Opens the stores; `label` is what `inspect` shows about the holder. Redis nodes are connected to when they are first asked.
    pub fn open(&self, label: &str) -> Result<Place, Failure> {
        let file = self.read_file()?;
        let time = |given: Option<Duration>, text: &Option<String>, key: &str, default: Duration| match (given, text) {
            (Some(given), _) => Ok(given),
            (None, None) => Ok(default),
            (None, Some(text)) => {
                model::duration::parse(text).ok_or_else(|| wrong(format!("{key} is {text:?}, which is no duration")))
            }
        };
        let defaults = Options::default();
        // What the command line or the environment names takes the place of the file's stores, it is not added to them.
        let named = !self.nodes.is_empty() || self.sqlite.is_some();
        let (nodes, sqlite) = if named { (self.nodes.clone(), self.sqlite.clone()) } else { (file.nodes, file.sqlite) };
        // A transaction waits for the disk, which can take longer than a network.
        let default = if sqlite.is_some() { SQLITE_TIMEOUT } else { defaults.node_timeout };
        let node_timeout = time(self.node_timeout, &file.node_timeout, "node_timeout", default)?;
        let options = Options {
            node_timeout,
            max_ttl: time(self.max_ttl, &file.max_ttl, "max_ttl", defaults.max_ttl)?,
            label: label.to_owned(),
            ..defaults
        };
        let redis = RedisOptions::default();
        let redis = RedisOptions { prefix: self.prefix.clone().or(file.prefix).unwrap_or(redis.prefix), ..redis };
        match (nodes.as_slice(), sqlite) {
            ([], None) => Err(wrong("no store for locks is named".into()).hint(format!(
                "--node redis://HOST:PORT for each node, or --sqlite PATH, or a [locks] table in {FILE_DEFAULT}"
            ))),
            ([], Some(path)) => {
                let node = SqliteNode::open(&path).map_err(|e| wrong(e.to_string()))?;
                // Nobody else reaps here; that a busy database could not be reaped now is no reason to refuse a lock.
                let _ = node.reap();
                let lock = Single::new(Arc::new(node), options).map_err(|e| wrong(e.to_string()))?;
                Ok(Place { lock: Arc::new(lock), list: None, node_timeout })
            }
            (_, Some(_)) => Err(wrong("both nodes and sqlite are named: locks are in one or the other".into())),
            (nodes, None) => {
                let list = Redlock::redis(nodes, &redis, options).map_err(|e| wrong(e.to_string()))?;
                Ok(Place { lock: Arc::new(list.clone()), list: Some(list), node_timeout })
            }
        }
    }

    fn read_file(&self) -> Result<Table, Failure> {
        let path = match &self.file {
            Some(path) => path.as_path(),
            None if self.nodes.is_empty() && self.sqlite.is_none() && Path::new(FILE_DEFAULT).exists() => {
                Path::new(FILE_DEFAULT)
            }
            None => return Ok(Table::default()),
        };
        let failed = |e: std::io::Error| wrong(format!("cannot read {}: {e}", path.display()));
        let data = std::fs::metadata(path).map_err(failed)?;
        if data.len() > FILE_BYTES_MAX {
            return Err(wrong(format!("{} has more than {FILE_BYTES_MAX} bytes", path.display())));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let table = parse(&text).map_err(|e| wrong(format!("{}: {e}", path.display())))?;
        if data.mode() & 0o077 != 0 && table.nodes.iter().any(|url| url.contains('@')) {
            eprintln!("weir: {} holds a password and others may read it: chmod 600", path.display());
        }
        Ok(table)
    }
}

/// The table in `text`. The parser's own rendering would show the line, and with it a password.
fn parse(text: &str) -> Result<Table, String> {
    let file: Result<File, toml::de::Error> = toml::from_str(text);
    match file {
        Ok(file) => Ok(file.locks),
        Err(error) => {
            let line = error.span().map_or(1, |span| text.get(..span.start).unwrap_or("").matches('\n').count() + 1);
            // A value of the wrong type is quoted, and may be an address with a password.
            let message = match error.message().split_once(": string ") {
                Some((what, rest)) => {
                    format!(
                        "{what}{}",
                        rest.rsplit_once(", expected ").map_or(String::new(), |(_, t)| format!(", expected {t}"))
                    )
                }
                None => error.message().to_owned(),
            };
            Err(format!("line {line}: {message}"))
        }
    }
}

fn wrong(message: String) -> Failure {
    Failure::new(Exit::ConfigInvalid, message)
}

impl Place {
    /// Learns the list of nodes that a majority has, for a client that starts with an old one is refused at first.
    pub async fn refresh(&self) {
        if let Some(list) = &self.list
            && let Err(error) = list.refresh().await
        {
            eprintln!("weir: the list of lock nodes cannot be renewed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_stores_and_its_mistakes_show_no_password() {
        let table = parse("[locks]\nnodes = [\"a=redis://h:1\"]\nmax_ttl = \"10s\"\n").unwrap();
        assert_eq!((table.nodes.len(), table.max_ttl.as_deref()), (1, Some("10s")));
        for (text, line) in [
            ("[locks]\nnodes = [\"redis://:hunter2@h\"\n", "line "),
            ("[locks]\nnode = [\"redis://:hunter2@h\"]\n", "line 2: unknown field `node`"),
            ("[locks]\nnodes = \"redis://:hunter2@h\"\n", "line 2: "),
            ("nodes = []\n", "line "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(line), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
