//! `weir node list|drain|ready`: the nodes that share a store, how far each has come, and which are taken out.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    exit::{Exit, Failure},
    shell::{Shell, block_on},
    store::{self, Shared, StoreArgs, author, failed},
    table::{Cell, Column, Tone, table},
    unit,
};
use crate::store::{
    DrainOrder, Revision,
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
    /// Take a node out: it forwards as before, and DNS leaves it out until it is taken back in
    Drain {
        #[command(flatten)]
        node: OneNode,
        /// Who takes it out [default: you]
        #[arg(long, value_name = "NAME", env = "WEIR_AUTHOR")]
        author: Option<String>,
        /// Why
        #[arg(short, long, value_name = "TEXT", default_value = "")]
        message: String,
    },
    /// Take a node back in
    Ready {
        #[command(flatten)]
        node: OneNode,
    },
}

/// Which node of which store.
#[derive(Args, Debug)]
pub struct OneNode {
    /// Name of the node
    name: String,
    #[command(flatten)]
    store: StoreArgs,
}

/// What `-o json` prints.
#[derive(Serialize)]
struct Nodes {
    /// Where the store stands.
    revision: Option<Revision>,
    /// By name.
    nodes: Vec<Node>,
}

/// A node with the order to take it out, if there is one.
#[derive(Serialize)]
struct Node {
    #[serde(flatten)]
    status: NodeStatus,
    drain: Option<DrainOrder>,
}

/// What `weir node drain|ready -o json` prints.
#[derive(Debug, PartialEq, Serialize)]
struct Ordered {
    node: String,
    /// Whether it is taken out now.
    draining: bool,
    /// Whether it was in before, or out.
    changed: bool,
    /// `false`: a fail-over at this moment would lose the order.
    replicated: bool,
}

/// Runs `weir node ...`.
pub fn run(shell: &Shell, command: &NodeCommand) -> anyhow::Result<()> {
    let args = match command {
        NodeCommand::List { store } | NodeCommand::Drain { node: OneNode { store, .. }, .. } => store,
        NodeCommand::Ready { node } => &node.store,
    };
    let shared = store::place(args)?.store("`weir status` shows this node")?;
    match command {
        NodeCommand::List { .. } => shell.show(&block_on(look(&shared))?, |nodes| list(nodes, shell.colour)),
        NodeCommand::Drain { node, author: by, message } => {
            let order = DrainOrder { author: by.clone().unwrap_or_else(author), message: message.clone() };
            shell.show(&block_on(order_of(&shared, &node.name, Some(&order)))?, words)
        }
        NodeCommand::Ready { node } => shell.show(&block_on(order_of(&shared, &node.name, None))?, words),
    }
}

async fn look(shared: &Shared) -> anyhow::Result<Nodes> {
    let snapshot = shared.store.snapshot().await.map_err(failed)?;
    let mut orders = shared.store.drain_orders().await.map_err(failed)?;
    let nodes = shared.store.nodes().await.map_err(failed)?.into_iter();
    let nodes = nodes.map(|status| Node { drain: orders.remove(&status.report.node), status }).collect();
    Ok(Nodes { revision: snapshot.map(|snapshot| snapshot.revision), nodes })
}

/// Takes a node out, or in again.
async fn order_of(shared: &Shared, name: &str, order: Option<&DrainOrder>) -> anyhow::Result<Ordered> {
    let nodes = shared.store.nodes().await.map_err(failed)?;
    let before = shared.store.is_drained(name).await.map_err(failed)?;
    if !before && !nodes.iter().any(|node| node.report.node == name) {
        let failure = Failure::new(Exit::NotFound, format!("no node `{name}` has reported to the store"));
        return Err(failure.hint("`weir node list` lists those that did").into());
    }
    let recorded = shared.store.drain_node(name, order).await.map_err(failed)?;
    let draining = order.is_some();
    let replicated = recorded.is_none_or(|recorded| recorded.replicated);
    Ok(Ordered { node: name.to_owned(), draining, changed: before != draining, replicated })
}

fn words(ordered: &Ordered) -> String {
    let Ordered { node, draining, changed, replicated } = ordered;
    let mut out = match (draining, changed) {
        (true, true) => {
            format!("{node} is taken out: it forwards as before, and DNS leaves it out once it has reported that\n")
        }
        (true, false) => format!("{node} was out already\n"),
        (false, true) => format!("{node} is taken back in\n"),
        (false, false) => format!("{node} was not taken out\n"),
    };
    if !replicated {
        out.push_str("stored, not replicated: if the store's server is lost now, so is the order\n");
    }
    out
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

fn row(node: &Node, head: Option<Revision>) -> Vec<Cell> {
    let Node { status: NodeStatus { report, age_ms, live }, drain } = node;
    let state = match (*live, report.draining || drain.is_some(), report.ready) {
        (false, ..) => Cell::toned(format!("silent for {}", unit::duration(age_ms / 1000)), Tone::Bad),
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
        Outcome::Applied => drain.as_ref().map_or_else(String::new, ordered).into(),
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

/// Who takes a node out, and why.
fn ordered(order: &DrainOrder) -> String {
    let by = if order.author.is_empty() { "taken out".to_owned() } else { format!("taken out by {}", order.author) };
    if order.message.is_empty() { by } else { format!("{by}: {}", order.message) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::store::{Store, memory::MemoryStore, node::NodeReport, object::Digest};

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
        let leaves = NodeReport { node: "lb4".into(), addresses: Vec::new(), ..report.clone() };
        let status = |report, age_ms, live| Node { status: NodeStatus { report, age_ms, live }, drain: None };
        let drain = Some(DrainOrder { author: "op@lb1".into(), message: "disk".into() });
        let nodes = vec![
            status(report, 10, true),
            status(lag, 20, true),
            status(silent, 90_000, false),
            Node { drain, ..status(leaves, 5, true) },
        ];
        let text = list(&Nodes { revision: Some(revision(42)), nodes }, false);
        let expect = "the store stands at 42-abababab\n\n\
            NODE  STATE             APPLIED      BEHIND  VERSION  ADDRESSES  NOTE\n\
            lb1   ready             42-abababab       0  0.1.0    192.0.2.1\n\
            lb2   ready             40-abababab       2  0.1.0               refused 42-abababab: weir.toml: 1 error\n\
            lb3   silent for 1m30s  -                 -  0.1.0    192.0.2.1\n\
            lb4   draining          42-abababab       0  0.1.0               taken out by op@lb1: disk\n";
        assert_eq!(text, expect);
        assert_eq!(
            list(&Nodes { revision: None, nodes: Vec::new() }, false),
            "no node has reported; the store was never written\n"
        );
    }

    #[tokio::test]
    async fn a_node_is_taken_out_and_back_in() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let shared = Shared { store: Arc::clone(&store), local: "".into(), file_name: "weir.toml".into() };
        let order = DrainOrder { author: "op@lb1".into(), message: "disk".into() };
        let failure: Failure = order_of(&shared, "lb1", Some(&order)).await.unwrap_err().downcast().unwrap();
        assert_eq!(failure.exit, Exit::NotFound);
        let report = crate::agent::follow::report::report("lb1", &Default::default(), false);
        store.report(&report).await.unwrap();
        for (wanted, changed) in [(Some(&order), true), (Some(&order), false), (None, true), (None, false)] {
            let ordered = order_of(&shared, "lb1", wanted).await.unwrap();
            assert_eq!((ordered.draining, ordered.changed), (wanted.is_some(), changed), "{}", words(&ordered));
            assert_eq!(look(&shared).await.unwrap().nodes[0].drain.as_ref(), wanted);
        }
    }
}
