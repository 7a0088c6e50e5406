//! Remote locks: over one store, and over N independent ones by Redlock, with fencing tokens.
//!
//! [`Single`] locks over one store, [`Redlock`] over a majority of several; both are a [`Lock`]. Stores are Redis, SQLite
//! and memory, and each is a [`node::Node`]. The protocol itself ([`round`], [`model`], [`repair`], [`members`]) is
//! pure: it is given answers and the time, and the simulation in the tests runs the very same code.
//!
//! What is promised: no two holders at one time, while the rates of clocks differ by no more than [`clock::drift`], no
//! wall clock of a node is stepped, and every node that restarted or was emptied is kept out by its quarantine. Where that
//! does not hold, two may believe that they hold one lock, and [`FencedResource`] refuses the older one. The crate's
//! README says when not to use this at all.

pub mod asking;
pub mod clock;
pub mod command;
pub mod error;
pub mod fenced;
pub mod guard;
pub mod held;
pub mod lock;
pub mod many;
pub mod members;
pub mod model;
pub mod node;
pub mod redlock;
pub mod repair;
pub mod round;
pub mod torture;
pub mod value;

mod attempt;
mod claim;
mod engine;
mod nodes;

pub use error::{LockError, NodeError, NodeOutcome, Report};
pub use fenced::FencedResource;
pub use guard::{Guard, Released};
pub use held::Held;
pub use lock::{Holding, Inspections, Lock, Options, Request, Single};
pub use redlock::Redlock;
