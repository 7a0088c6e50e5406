//! Pure decisions: from a configuration and what was observed to what the maps shall hold, and the ordered operations
//! that lead there.
//!
//! [`wanted`] says what shall be (effective weights are computed there and nowhere else), [`Present`] says what the maps
//! hold, [`diff`] gives a [`Plan`] of operations. Refuses to know: clocks, files, aya, who applies the operations.
//!
//! Invariants: a plan that cannot be carried out changes nothing (limits are checked while planning); a ring is written to
//! lines that no service names, and only the states of its slots change there later; ids and lines that packets in flight may
//! still name are reused only after [`Present::release`], and ids that flow records or owners name only after those are gone.

pub mod arena;
pub mod diff;
mod entries;
pub mod error;
pub mod ids;
pub mod lookup;
pub mod members;
pub mod op;
pub mod present;
pub mod rebuild;
pub mod records;
pub mod ring;
mod rings;
pub mod sizes;
pub mod wanted;
pub mod window;

pub use diff::{Moves, Plan, Seen, Summary, diff};
pub use error::PlanError;
pub use op::Op;
pub use present::{Fill, Former, Present, PresentBackend, PresentService, Secrets};
pub use rebuild::{Adopted, RebuildError, rebuild};
pub use records::Look;
pub use sizes::MapSizes;
pub use wanted::{Policy, Standing, Wanted, WantedBackend, WantedService, wanted};
pub use window::{Records, Times, Window};

#[cfg(test)]
mod diff_tests;
