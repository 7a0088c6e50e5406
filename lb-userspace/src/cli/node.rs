//! `weir node list`: the nodes that share a store, and how far each has come.

use clap::Subcommand;
use serde::Serialize;

use super::{
    shell::{Shell, block_on},
    store::{self, StoreArgs, failed},
    table::{Cell, Column, Tone, table},
    unit,
};
use crate::store::{
    Revision,
    node::{NodeStatus, Outcome},
};

/// `weir node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes that reported to the store, and which revision each has applied
    List {
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// What `-o json` prints.
#[derive(Serialize)]
struct Nodes {
    /// Where the store stands.
    revision: Option<Revision>,
    /// By name.
    nodes: Vec<NodeStatus>,
}

/// Runs `weir node ...`.
pub fn run(shell: &Shell, command: &NodeCommand) -> anyhow::Result<()> {
    let NodeCommand::List { store } = command;
    let shared = store::place(store)?.store("`weir status` shows this node")?;
    let nodes = block_on(async {
        let snapshot = shared.store.snapshot().await.map_err(failed)?;
        let nodes = shared.store.nodes().await.map_err(failed)?;
        Ok(Nodes { revision: snapshot.map(|snapshot| snapshot.revision), nodes })
    })?;
    shell.show(&nodes, |nodes| list(nodes, shell.colour))
}

fn list(nodes: &Nodes, colour: bool) -> String {
    let head =
        nodes.revision.map_or_else(|| "was never written".to_owned(), |revision| format!("stands at {revision}"));
    if nodes.nodes.is_empty() {
        return format!("no node has reported; the store {head}\n");
    }
    let columns = [
        Column::Left("NODE"),
        Column::Left("STATE"),
        Column::Left("APPLIED"),
        Column::Right("BEHIND"),
        Column::Left("VERSION"),
        Column::Left("ADDRESSES"),
        Column::Left("NOTE"),
    ];
    let rows = nodes.nodes.iter().map(|node| row(node, nodes.revision)).collect();
    format!("the store {head}\n\n{}", table(&columns, rows, colour))
}

fn row(node: &NodeStatus, head: Option<Revision>) -> Vec<Cell> {
    let report = &node.report;
    let state = match (node.live, report.draining, report.ready) {
        (false, ..) => Cell::toned(format!("silent for {}", unit::duration(node.age_ms / 1000)), Tone::Bad),
        (true, true, _) => Cell::toned("draining", Tone::Warn),
        (true, false, false) => Cell::toned("not ready", Tone::Warn),
        (true, false, true) => Cell::toned("ready", Tone::Good),
    };
    let behind = match (head, report.applied) {
        (Some(head), Some(applied)) if applied == head => Cell::toned("0", Tone::Good),
        // Another history: numbers cannot be compared.
        (Some(head), Some(applied)) if applied.number >= head.number => Cell::toned("?", Tone::Bad),
        (Some(head), Some(applied)) => Cell::toned((head.number - applied.number).to_string(), Tone::Warn),
        _ => "-".into(),
    };
    let note = match &report.outcome {
        Outcome::Refused(why) => {
            let revision = report.revision.map_or_else(|| "a revision".to_owned(), |revision| revision.to_string());
            Cell::toned(format!("refused {revision}: {}", why.lines().next().unwrap_or("")), Tone::Bad)
        }
        Outcome::Applied => "".into(),
    };
    let addresses: Vec<String> = report.addresses.iter().map(ToString::to_string).collect();
    vec![
        report.node.as_str().into(),
        state,
        report.applied.map_or_else(|| "-".to_owned(), |revision| revision.to_string()).into(),
        behind,
        report.version.as_str().into(),
        addresses.join(" ").into(),
        note,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{node::NodeReport, object::Digest};

    #[test]
    fn who_lags_is_seen() {
        let revision = |number| Revision { number, digest: Digest::new([0xab; 32]) };
        let report = NodeReport {
            node: "lb1".into(),
            lease_ms: 10_000,
            revision: Some(revision(42)),
            outcome: Outcome::Applied,
            applied: Some(revision(42)),
            version: "0.1.0".into(),
            addresses: vec![[192, 0, 2, 1].into()],
            ready: true,
            draining: false,
            metrics: None,
            drains: Vec::new(),
        };
        let lag = NodeReport {
            node: "lb2".into(),
            outcome: Outcome::Refused("weir.toml: 1 error\nmore".into()),
            applied: Some(revision(40)),
            addresses: Vec::new(),
            ..report.clone()
        };
        let silent = NodeReport { node: "lb3".into(), applied: None, draining: true, ..report.clone() };
        let status = |report, age_ms, live| NodeStatus { report, age_ms, live };
        let nodes = vec![status(report, 10, true), status(lag, 20, true), status(silent, 90_000, false)];
        let text = list(&Nodes { revision: Some(revision(42)), nodes }, false);
        let expect = "the store stands at 42-abababab\n\n\
            NODE  STATE             APPLIED      BEHIND  VERSION  ADDRESSES  NOTE\n\
            lb1   ready             42-abababab       0  0.1.0    192.0.2.1\n\
            lb2   ready             40-abababab       2  0.1.0               refused 42-abababab: weir.toml: 1 error\n\
            lb3   silent for 1m30s  -                 -  0.1.0    192.0.2.1\n";
        assert_eq!(text, expect);
        assert_eq!(
            list(&Nodes { revision: None, nodes: Vec::new() }, false),
            "no node has reported; the store was never written\n"
        );
    }
}
