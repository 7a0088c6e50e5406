//! What may be held on nodes, and giving it back in the background.
//!
//! Invariant: dropped while armed, a claim is released wherever it may be held.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::{
    attempt::Asked,
    command::{Command, Ticket},
    engine::Engine,
    nodes::Nodes,
    value::Value,
};

/// What an attempt or a guard may hold on nodes. Dropped while armed, it is released everywhere in the background.
pub struct Claim {
    pub engine: Arc<Engine>,
    pub nodes: Arc<Nodes>,
    pub name: String,
    pub value: Option<Value>,
    pub ticket: Option<String>,
    /// Nodes that may hold it; all that were asked unless it is known better.
    pub holding: Option<Vec<usize>>,
    /// Which nodes were asked.
    pub asked: Arc<Asked>,
    runtime: Option<Handle>,
    armed: bool,
}

impl Claim {
    pub fn new(engine: &Arc<Engine>, nodes: &Arc<Nodes>, name: &str, value: &Value, ticket: Option<String>) -> Self {
        Self {
            engine: Arc::clone(engine),
            nodes: Arc::clone(nodes),
            name: name.to_owned(),
            value: Some(value.clone()),
            ticket,
            holding: None,
            asked: Arc::default(),
            runtime: Handle::try_current().ok(),
            armed: true,
        }
    }

    pub fn of_ticket(engine: &Arc<Engine>, name: &str, ticket: &Ticket) -> Self {
        // A ticket's text is a value that no lock ever has.
        let value = Value::from_stored(ticket.id.clone());
        Self::new(engine, &engine.nodes(), name, &value, Some(ticket.id.clone()))
    }

    /// Leaves the cleaning up to another.
    pub fn disarm(&mut self) {
        self.armed = false;
    }

    /// The nodes to release on. Whoever was not asked until now is not asked any more.
    pub fn holders(&mut self) -> Vec<usize> {
        let unasked = self.asked.end();
        let mut holders = self.holding.take().unwrap_or_else(|| (0..self.nodes.nodes.len()).collect());
        holders.retain(|at| !unasked.contains(at));
        holders
    }

    /// The command that gives everything back.
    pub fn release(&self) -> Command {
        let value = self.value.clone().unwrap_or_else(|| Value::from_stored(String::new()));
        Command::Release { name: self.name.clone(), value, ticket: self.ticket.clone() }
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("name", &self.name).field("armed", &self.armed).finish_non_exhaustive()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take().filter(|_| self.armed) else { return };
        let holders = self.holders();
        let (engine, nodes, release) = (Arc::clone(&self.engine), Arc::clone(&self.nodes), Arc::new(self.release()));
        runtime.spawn(async move {
            let each = holders.into_iter().map(|at| (at, Arc::clone(&nodes.nodes[at]), Arc::clone(&release)));
            engine.round(&nodes, each, |_, _| false).await;
        });
    }
}
