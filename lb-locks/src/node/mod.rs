//! One lock node: the trait that every store implements.
//!
//! Invariants: requests that were begun in an order reach the store in that order, so that a release cannot be overtaken
//! by the acquisition that it undoes; dropping the future of a request does not take the request back.

pub mod memory;
pub mod redis;
pub mod sqlite;

use std::{fmt, pin::Pin, sync::Arc};

use tokio::sync::watch;

use crate::{
    command::{Command, Reply},
    error::NodeError,
};

/// A future on the heap, as the traits of this crate return them.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One store that can hold locks. Its semantics are those of [`crate::model`].
pub trait Node: fmt::Debug + Send + Sync {
    /// Names the node in reports and in the list of nodes: `host:port`, or a path.
    fn name(&self) -> &str;

    /// Sends `command`. There is no time-out here: whoever waits brings one for all nodes of a round.
    fn call(&self, command: Arc<Command>) -> BoxFuture<'static, Result<Reply, NodeError>>;

    /// Whether the counter survives everything that the node survives; else what is missing.
    fn fence_support(&self) -> BoxFuture<'static, Result<(), FenceGap>>;

    /// Listens for announcements of a new list. `heard` becomes the largest number that was announced, and wakes its
    /// receivers with every announcement and also when the listening begins, for what was announced before was not heard.
    /// Never ends; the default hears nothing.
    fn listen(&self, _heard: Arc<watch::Sender<u64>>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// Why fencing tokens of a node cannot be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceGap {
    /// The node says how it is set up, and that is not enough.
    Setup(String),
    /// The node cannot be asked now; it cannot vote then either.
    Unknown(NodeError),
}
