//! A store in this process, for tests and for code that runs with and without other machines.
//!
//! Its time is the boot-time clock; it cannot fail, and forgets everything with the process.

use std::sync::{Arc, Mutex, PoisonError};

use super::{BoxFuture, FenceGap, Node};
use crate::{
    clock::{BootTime, ms},
    command::{Command, Reply},
    error::NodeError,
    model::NodeModel,
};

/// A node in memory. Clones are the same node.
#[derive(Clone, Debug)]
pub struct MemoryNode {
    name: Arc<str>,
    model: Arc<Mutex<NodeModel>>,
}

impl MemoryNode {
    /// An empty node. Its run is its name and the time, so that two nodes are never one server.
    pub fn new(name: &str) -> Self {
        let run_id = format!("{name}-{}", BootTime::now().0.as_nanos());
        Self { name: name.into(), model: Arc::new(Mutex::new(NodeModel::new(&run_id))) }
    }

    /// Changes the node under its users: restart it, empty it.
    pub fn with_model<T>(&self, change: impl FnOnce(&mut NodeModel) -> T) -> T {
        // A panic elsewhere leaves a whole model behind: every change is one call.
        change(&mut self.model.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Node for MemoryNode {
    fn name(&self) -> &str {
        &self.name
    }

    fn call(&self, command: Arc<Command>) -> BoxFuture<'static, Result<Reply, NodeError>> {
        // Carried out at once: order is the order of calls.
        let reply = self.with_model(|model| model.apply(&command, ms(BootTime::now().0)));
        Box::pin(std::future::ready(Ok(reply)))
    }

    fn fence_support(&self) -> BoxFuture<'static, Result<(), FenceGap>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
