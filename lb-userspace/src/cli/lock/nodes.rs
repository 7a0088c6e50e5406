//! `weir lock nodes list|bootstrap|add|remove`.

use std::io::{BufRead as _, IsTerminal as _};

use clap::Subcommand;
use lb_locks::{
    command::{List, Status},
    error::NodeError,
    members::{Change, Member},
};
use serde::Serialize;

use super::{inspect::time, settled, stores::Stores};
use crate::cli::{
    exit::{Exit, Failure},
    shell::Shell,
    table::{Cell, Column, Tone, table},
};

/// `weir lock nodes`.
#[derive(Clone, Debug, Subcommand)]
pub enum Nodes {
    /// What each node says about itself: whether it votes, its counter, its list
    List {
        #[command(flatten)]
        stores: Stores,
    },
    /// Let nodes vote that are new, by your word that nothing is held anywhere; for the first set-up
    Bootstrap {
        /// Let tokens begin above this number, when counters were lost and resources remember larger ones
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1 << 53))]
        fence: u64,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        stores: Stores,
    },
    /// Add a node to the list; one change at a time, the next one has to wait for the longest lifetime
    Add {
        /// Where clients reach it, with a name if it has one
        #[arg(value_name = "[NAME=]HOST:PORT")]
        node: String,
        #[command(flatten)]
        stores: Stores,
    },
    /// Remove a node from the list
    Remove {
        /// Its name, as `weir lock nodes list` shows it
        name: String,
        #[command(flatten)]
        stores: Stores,
    },
}

impl Nodes {
    const fn stores(&self) -> &Stores {
        match self {
            Self::List { stores }
            | Self::Bootstrap { stores, .. }
            | Self::Add { stores, .. }
            | Self::Remove { stores, .. } => stores,
        }
    }
}

/// One node.
#[derive(Serialize)]
struct Row {
    node: String,
    ready: Option<bool>,
    quarantine_ms: Option<u64>,
    fence: Option<u64>,
    max_ttl_ms: Option<u64>,
    list_epoch: Option<u64>,
    error: Option<String>,
}

/// The list after a change.
#[derive(Serialize)]
struct Changed {
    epoch: u64,
    members: Vec<String>,
}

/// Runs `weir lock nodes ...`.
pub fn run(shell: &Shell, args: &Nodes) -> anyhow::Result<Exit> {
    settled(args.stores().open("")?, async |place| {
        place.refresh().await;
        let change = async |change: Change| -> anyhow::Result<()> {
            let Some(list) = &place.list else {
                return Err(Failure::new(Exit::ConfigInvalid, "a database file has no list of nodes").into());
            };
            let list = list.change(&change).await.map_err(|e| super::failure(&e))?;
            let hint = "name the new list in options, environment or file of all clients that start from now on";
            shell.show(&changed(&list), |list| format!("list {} is {}\n{hint}\n", list.epoch, list.members.join(" ")))
        };
        match args {
            Nodes::List { .. } => {
                let rows: Vec<Row> = place.lock.statuses().await.into_iter().map(row).collect();
                let answered = rows.iter().any(|row| row.error.is_none());
                shell.show(&rows, |rows| text(rows, shell.colour))?;
                return Ok(if answered { Exit::Ok } else { Exit::NotReachable });
            }
            Nodes::Bootstrap { fence, yes, .. } => {
                if !yes && !confirmed()? {
                    return Err(Failure::new(Exit::Failure, "nothing was done").into());
                }
                let report = place.lock.bootstrap(*fence).await.map_err(|e| super::failure(&e))?;
                let said = serde_json::json!({"ready": report.yes(), "nodes": report.0.len()});
                shell.show(&said, |_| format!("{} of {} nodes vote\n", report.yes(), report.0.len()))?;
            }
            Nodes::Add { node, .. } => {
                let (name, address) = node.split_once('=').unwrap_or((node, node));
                change(Change::Add(Member { name: name.to_owned(), address: address.to_owned() })).await?;
            }
            Nodes::Remove { name, .. } => change(Change::Remove(name.clone())).await?,
        }
        Ok(Exit::Ok)
    })
}

fn changed(list: &List) -> Changed {
    Changed { epoch: list.id.epoch, members: list.members.split(' ').map(str::to_owned).collect() }
}

fn confirmed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        let message = "this makes nodes vote that may have forgotten locks, and there is no terminal to ask on";
        return Err(Failure::new(Exit::Usage, message).hint("say --yes").into());
    }
    eprint!("Nodes that restarted or were emptied may have forgotten locks. Is no lock held by anyone? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn row((node, answer): (String, Result<Status, NodeError>)) -> Row {
    match answer {
        Ok(status) => Row {
            node,
            ready: Some(status.ready),
            quarantine_ms: Some(status.quarantine_ms),
            fence: Some(status.fence),
            max_ttl_ms: Some(status.max_ttl_ms),
            list_epoch: Some(status.list.id.epoch),
            error: None,
        },
        Err(error) => Row {
            node,
            ready: None,
            quarantine_ms: None,
            fence: None,
            max_ttl_ms: None,
            list_epoch: None,
            error: Some(error.to_string()),
        },
    }
}

/// Whether a node votes.
pub fn votes(ready: Option<bool>) -> Cell {
    match ready {
        Some(true) => Cell::toned("yes", Tone::Good),
        Some(false) => Cell::toned("no", Tone::Warn),
        None => Cell::toned("?", Tone::Bad),
    }
}

fn text(rows: &[Row], colour: bool) -> String {
    let columns = [
        Column::Left("NODE"),
        Column::Left("VOTES"),
        Column::Right("FENCE"),
        Column::Right("MAX TTL"),
        Column::Right("LIST"),
        Column::Left("NOTE"),
    ];
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let each = rows.iter().map(|row| {
        let note = match (&row.error, row.ready, row.quarantine_ms) {
            (Some(error), ..) => Cell::toned(error.as_str(), Tone::Bad),
            (None, Some(false), _) if row.max_ttl_ms == Some(0) => "new: never asked for a lock".into(),
            (None, Some(false), Some(0)) => "quarantine over, repaired at the next lock".into(),
            (None, Some(false), Some(rest)) => Cell::toned(format!("in quarantine for {}", time(rest)), Tone::Warn),
            _ => "".into(),
        };
        let max_ttl = row.max_ttl_ms.filter(|ms| *ms > 0).map_or_else(|| "-".to_owned(), time);
        vec![
            row.node.as_str().into(),
            votes(row.ready),
            number(row.fence).into(),
            max_ttl.into(),
            number(row.list_epoch).into(),
            note,
        ]
    });
    table(&columns, each.collect(), colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_a_node_has_its_words() {
        let status = |ready, quarantine_ms, max_ttl_ms| {
            Ok(Status { ready, quarantine_ms, max_ttl_ms, fence: 5, ..Status::default() })
        };
        let answers = [
            ("a", status(true, 0, 60_000)),
            ("b", status(false, 1_900, 60_000)),
            ("c", status(false, 0, 60_000)),
            ("d", status(false, 2, 0)),
            ("e", Err(NodeError::Loading)),
        ];
        let rows: Vec<Row> = answers.into_iter().map(|(name, answer)| row((name.to_owned(), answer))).collect();
        assert_eq!(
            text(&rows, false),
            "\
NODE  VOTES  FENCE  MAX TTL  LIST  NOTE
a     yes        5       1m     0
b     no         5       1m     0  in quarantine for 1.9s
c     no         5       1m     0  quarantine over, repaired at the next lock
d     no         5        -     0  new: never asked for a lock
e     ?          -        -     -  still loading its data (LOADING)
"
        );
    }
}
