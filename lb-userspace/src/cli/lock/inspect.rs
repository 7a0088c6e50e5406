//! `weir lock inspect`.

use std::time::Duration;

use clap::Args;
use lb_locks::{
    Holding, Inspections,
    command::{Inspection, Mode, Status},
    error::NodeError,
    lock::{Holder, Statuses},
    value::Owner,
};
use serde::Serialize;

use super::{list::silent, nodes, settled, stores::Stores};
use crate::{
    cli::{
        exit::Exit,
        shell::{Shell, now_unix_s},
        table::{Cell, Column, Tone, table},
        unit,
    },
    model,
};

/// `weir lock inspect`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Ends with exit code 6 if nobody holds the lock.")]
pub struct Inspect {
    /// The lock
    name: String,
    #[command(flatten)]
    stores: Stores,
}

#[derive(Serialize)]
struct View {
    name: String,
    #[serde(flatten)]
    holding: Holding,
    on_nodes: Vec<OnNode>,
}

/// What one node says.
#[derive(Serialize)]
struct OnNode {
    node: String,
    /// Whether it votes.
    ready: Option<bool>,
    /// Its counter of fencing tokens: of all locks together.
    fence: Option<u64>,
    holders: Vec<HolderThere>,
    waiters: usize,
    error: Option<String>,
}

/// One holder on one node. Its value is a secret; the beginning tells holders apart.
#[derive(Serialize)]
struct HolderThere {
    id: String,
    mode: Mode,
    owner: Option<Owner>,
    remaining_ms: u64,
}

/// Runs `weir lock inspect`.
pub fn run(shell: &Shell, args: &Inspect) -> anyhow::Result<Exit> {
    settled(args.stores.open("")?, async |place| {
        place.refresh().await;
        let (each, statuses) = tokio::join!(place.lock.inspect_each(&args.name), place.lock.statuses());
        let holding = Holding::of(&each);
        if holding.answered == 0 {
            // Asked again for the error that says what each node lacks.
            place.lock.inspect(&args.name).await.map_err(|e| silent(&e))?;
        }
        let held = !holding.holders.is_empty();
        let view = View { name: args.name.clone(), holding, on_nodes: on_nodes(each, statuses) };
        shell.show(&view, |view| text(view, now_unix_s(), shell.colour))?;
        Ok(if held { Exit::Ok } else { Exit::NotFound })
    })
}

fn on_nodes(each: Inspections, statuses: Statuses) -> Vec<OnNode> {
    let pairs = each.into_iter().zip(statuses);
    pairs.map(|((node, answer), (_, status))| on_node(node, answer, status.ok())).collect()
}

fn on_node(node: String, answer: Result<Inspection, NodeError>, status: Option<Status>) -> OnNode {
    let (found, error) = match answer {
        Ok(found) => (found, None),
        Err(error) => (Inspection::default(), Some(error.to_string())),
    };
    let holder = |(mode, value, remaining_ms): (Mode, lb_locks::value::Value, u64)| HolderThere {
        id: value.token().chars().take(8).collect(),
        mode,
        owner: value.owner(),
        remaining_ms,
    };
    OnNode {
        node,
        ready: status.as_ref().map(|status| status.ready),
        fence: status.map(|status| status.fence),
        holders: found.holders.into_iter().map(holder).collect(),
        waiters: found.waiters.len(),
        error,
    }
}

/// The mode as a word.
pub fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "exclusive",
        Mode::Shared => "shared",
    }
}

/// The owner in a few words.
pub fn owner(owner: Option<&Owner>) -> String {
    match owner {
        None => "(not a value of this program)".to_owned(),
        Some(owner) if owner.label.is_empty() => format!("{} pid {}", owner.host, owner.pid),
        Some(owner) => format!("{} pid {}: {}", owner.host, owner.pid, owner.label),
    }
}

/// A rest of a lifetime, to the tenth of a second.
pub fn time(ms: u64) -> String {
    if ms < 60_000 {
        format!("{}.{}s", ms / 1000, ms % 1000 / 100)
    } else {
        model::duration::format(Duration::from_secs(ms / 1000))
    }
}

/// On how many of `nodes` it is held: a minority is what is left of an attempt that failed, or of a lock that is expiring.
pub fn share(holder: &Holder, nodes: usize) -> Cell {
    let tone = if holder.is_majority { Tone::Good } else { Tone::Warn };
    Cell::toned(format!("{}/{nodes}", holder.on_nodes), tone)
}

fn text(view: &View, now_unix_s: u64, colour: bool) -> String {
    let holding = &view.holding;
    let mut out = match holding.holders.as_slice() {
        [] => format!("{}: nobody holds it\n", view.name),
        _ => String::new(),
    };
    for holder in &holding.holders {
        let since = holder.owner.as_ref().map_or_else(String::new, |owner| {
            format!(", asked {} ago", unit::duration(now_unix_s.saturating_sub(owner.since_unix_ms / 1000)))
        });
        let majority = if holder.is_majority { "" } else { ", which is no majority" };
        out.push_str(&format!(
            "{}: held ({}) by {}{since}; expires in {}; on {} of {} nodes{majority}\n",
            crate::cli::table::printable(&view.name),
            mode(holder.mode),
            crate::cli::table::printable(&owner(holder.owner.as_ref())),
            time(holder.remaining_ms),
            holder.on_nodes,
            holding.nodes,
        ));
    }
    for (at, waiter) in holding.waiters.iter().enumerate() {
        out.push_str(&format!(
            "waits, {} in the order: {}\n",
            at + 1,
            crate::cli::table::printable(&owner(Some(waiter)))
        ));
    }
    out.push('\n');
    let columns = [
        Column::Left("NODE"),
        Column::Left("VOTES"),
        Column::Right("FENCE"),
        Column::Left("HOLDER"),
        Column::Right("EXPIRES IN"),
        Column::Right("WAITERS"),
    ];
    let mut rows = Vec::new();
    for node in &view.on_nodes {
        let row = |holder: Cell, rest: String| {
            vec![
                node.node.as_str().into(),
                nodes::votes(node.ready),
                node.fence.map_or_else(|| "-".to_owned(), |fence| fence.to_string()).into(),
                holder,
                rest.into(),
                node.waiters.to_string().into(),
            ]
        };
        match (&node.error, node.holders.as_slice()) {
            (Some(error), _) => rows.push(row(Cell::toned(error.as_str(), Tone::Bad), String::new())),
            (None, []) => rows.push(row("-".into(), String::new())),
            (None, holders) => {
                let each =
                    holders.iter().map(|h| row(format!("{} ({})", h.id, mode(h.mode)).into(), time(h.remaining_ms)));
                rows.extend(each);
            }
        }
    }
    out + &table(&columns, rows, colour)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_and_nodes_are_told_apart() {
        let owner = Owner { host: "db1".into(), pid: 7, since_unix_ms: 40_000, label: "backup".into() };
        let value = lb_locks::value::Value::from_token(&[0xab; 20], &owner);
        let found = Inspection { holders: vec![(Mode::Exclusive, value, 1_550)], waiters: Vec::new() };
        let each = vec![
            ("a".to_owned(), Ok(found.clone())),
            ("b".to_owned(), Ok(found)),
            ("c".to_owned(), Err(NodeError::Timeout)),
        ];
        let ready = |fence| Ok(Status { ready: true, fence, ..Status::default() });
        let statuses =
            vec![("a".to_owned(), ready(9)), ("b".to_owned(), ready(8)), ("c".to_owned(), Err(NodeError::Timeout))];
        let view = View { name: "n".into(), holding: Holding::of(&each), on_nodes: on_nodes(each, statuses) };
        let shown = text(&view, 45, false);
        assert_eq!(
            shown,
            "\
n: held (exclusive) by db1 pid 7: backup, asked 5s ago; expires in 1.5s; on 2 of 3 nodes

NODE  VOTES  FENCE  HOLDER                              EXPIRES IN  WAITERS
a     yes        9  abababab (exclusive)                      1.5s        0
b     yes        8  abababab (exclusive)                      1.5s        0
c     ?          -  no answer within the node time-out                    0
"
        );
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["holders"][0]["is_majority"], true);
        assert!(!json.to_string().contains(&"ab".repeat(20)), "a value is its holder's secret: {json}");
    }
}
