//! Health of backends: what is asked, what the answers mean, and when a backend counts as up.
//!
//! Owns probes, their schedule, the state machine behind `up` and `down`, and the fail-open decision. Refuses to know
//! services, weights in a ring, or maps: the agent maps a [`Target`] to the backends that share it.
//!
//! | module | what |
//! |---|---|
//! | [`outcome`] | pure: the words for results (`L4CON`, `L7STS` ...) and what they count as |
//! | [`state`] | pure: rise, fall, trust in the first result, damping of recovery |
//! | [`schedule`] | pure: when the next probe is due |
//! | [`shared`] | pure: names of targets, who checks them, and the records that orchestrators write and agents read |
//! | [`fail_open`] | pure: which backends of a service count as up |
//! | [`probe`] | one HTTP or TCP probe |
//! | [`checker`] | the loop that runs the probes of all targets |
//!
//! Invariants: a target is probed by one probe at a time; every result is an [`Event`]; a trouble of this machine (no file
//! descriptors, no ports) never counts against a backend.

pub mod checker;
pub mod fail_open;
pub mod outcome;
pub mod probe;
pub mod schedule;
pub mod shared;
pub mod state;

pub use checker::{Checker, Event, Target};
pub use fail_open::{Candidate, Effective, effective};
pub use outcome::{Outcome, Verdict};
pub use state::{State, Transition};
