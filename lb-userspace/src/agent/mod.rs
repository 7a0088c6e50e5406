//! The agent: keeps the maps of the data plane true to the configuration and to what it observes.
//!
//! | module | what |
//! |---|---|
//! | [`run`](mod@run) | the order of start and stop, `--unload` |
//! | [`event_loop`] | one task that takes one cause at a time |
//! | `answer` | what the API asks and changes |
//! | [`node`] | the one way by which a change reaches the maps |
//! | [`shared`](mod@shared), [`follow`] | services that come from a store: the loop's side, and the tasks beside it |
//! | [`state`] | pure: what is known, and what follows from it |
//! | [`reload`] | pure: what becomes of a configuration text |
//! | [`overrides`] | what an operator changed at run time |
//! | [`drain`] | pure: since when backends drain |
//! | [`flows`] | pure: recorded flows by name |
//! | [`preview`] | pure: what a plan would do to slots and flows |
//! | [`pace`] | pure: when to plan |
//! | [`tally`] | pure: counters that do not fall |
//! | [`view`], `flow_view`, [`reason`] | the node in the words of the API |
//! | [`unified`] | pure: two texts compared |
//! | [`api`] | the Unix socket and the metrics' listener |
//! | [`network`] | requests to netlink |
//! | [`mode`] | whether XDP runs in a mode that is allowed |
//! | [`owner`] | the embedded database that this process serves |
//! | [`secret`], [`lock`], [`privilege`], [`systemd`] | what a daemon needs |
//!
//! Invariant: a change walks one way, whatever its cause: state, plan, data plane.

mod answer;
pub mod api;
pub mod drain;
pub mod event_loop;
mod flow_view;
pub mod flows;
pub mod follow;
pub mod lock;
#[cfg(test)]
mod loop_scene;
#[cfg(test)]
mod loop_tests;
pub mod mode;
pub mod network;
pub mod node;
pub mod overrides;
pub mod owner;
pub mod pace;
pub mod preview;
pub mod privilege;
pub mod reason;
pub mod reload;
pub mod run;
pub mod secret;
pub mod shared;
#[cfg(test)]
mod shared_tests;
pub mod state;
pub mod systemd;
pub mod tally;
pub mod unified;
pub mod view;

pub use run::{CONFIG_DEFAULT, Options, StartError, run, unload};
