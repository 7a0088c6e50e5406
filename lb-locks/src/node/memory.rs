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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::{ListId, Mode, Refusal, Terms, Ticket},
        value::Value,
    };

    const MAX: u64 = u64::MAX;

    async fn said(node: &MemoryNode, command: Command) -> Reply {
        node.call(Arc::new(command)).await.unwrap()
    }

    fn terms() -> Terms {
        Terms { list: ListId::default(), max_ttl_ms: MAX, quarantine: false }
    }

    fn acquire(name: &str, value: &str, mode: Mode, fence: bool, ticket: Option<Ticket>) -> Command {
        let value = Value::from_stored(value.into());
        Command::Acquire { name: name.into(), value, mode, ttl_ms: MAX, fence, ticket, terms: terms() }
    }

    #[tokio::test]
    async fn the_largest_numbers_neither_panic_nor_wrap() {
        let node = MemoryNode::new("a");
        let guarded = Command::Acquire {
            name: "n".into(),
            value: Value::from_stored("v".into()),
            mode: Mode::Exclusive,
            ttl_ms: MAX,
            fence: false,
            ticket: None,
            terms: Terms { quarantine: true, ..terms() },
        };
        let refused = said(&node, guarded).await;
        assert!(matches!(refused, Reply::Refused(Refusal::Quarantined { remaining_ms }) if remaining_ms > 0));
        assert!(matches!(said(&node, Command::Status).await, Reply::Status(status) if status.quarantine_ms > 0));
        let ticket = |id: &str, order| Some(Ticket { id: id.into(), order, patience_ms: MAX });
        let granted = said(&node, acquire("n", "v", Mode::Exclusive, false, ticket("t", Some(MAX)))).await;
        assert!(matches!(granted, Reply::Granted { .. }), "{granted:?}");
        let extend =
            Command::Extend { name: "n".into(), value: Value::from_stored("v".into()), ttl_ms: MAX, terms: terms() };
        assert_eq!(said(&node, extend).await, Reply::Done);
        for (id, order) in [("u", Some(MAX)), ("v", None)] {
            let refused = said(&node, acquire("n", id, Mode::Exclusive, false, ticket(id, order))).await;
            assert!(matches!(refused, Reply::Refused(_)), "{refused:?}");
        }
    }

    #[tokio::test]
    async fn a_counter_at_its_end_gives_no_token_twice() {
        let node = MemoryNode::new("a");
        node.with_model(|model| model.apply(&acquire("n", "v", Mode::Exclusive, true, None), 0));
        let confirm = Command::Confirm { name: "n".into(), value: Value::from_stored("v".into()), fence: MAX };
        assert_eq!(said(&node, confirm).await, Reply::Done);
        assert_eq!(said(&node, acquire("o", "w", Mode::Exclusive, true, None)).await, Reply::Gone);
        // It holds nothing, so another can have it.
        let granted = said(&node, acquire("o", "x", Mode::Exclusive, false, None)).await;
        assert!(matches!(granted, Reply::Granted { .. }), "{granted:?}");
    }
}
