//! Pure decisions: from a configuration and what was observed to what the maps shall hold, and the ordered operations
//! that lead there.
//!
//! [`wanted`] says what shall be (effective weights are computed there and nowhere else), [`Present`] says what the maps
//! hold, [`diff`] gives a [`Plan`] of operations. Refuses to know: clocks, files, aya, who applies the operations.
//!
//! Invariants: a plan that cannot be carried out changes nothing (limits are checked while planning); a ring is written to
//! lines that no service names; ids and lines that packets in flight may still name are reused only after
//! [`Present::release`].

pub mod arena;
pub mod diff;
pub mod ids;
pub mod lookup;
pub mod op;
pub mod present;
pub mod rebuild;
pub mod ring;
pub mod sizes;
pub mod wanted;

pub use diff::{Plan, PlanError, Summary, diff};
pub use op::Op;
pub use present::{Fill, Present, PresentBackend, PresentService, Secrets};
pub use rebuild::{Adopted, RebuildError, rebuild};
pub use sizes::MapSizes;
pub use wanted::{Wanted, WantedBackend, WantedService, wanted};

#[cfg(test)]
mod diff_tests;
