//! What a node can be like beside healthy: settings in which whole files of fixtures are run.
//!
//! Owns: what a setting changes in maps, routes and headroom. Refuses to know packets.

use anyhow::Result;
use bytemuck::Zeroable as _;
use lb_core::{
    abi::node::Node,
    host::{HEADROOM, Snapshot},
    rewrite::Exit,
    tables::NextHop,
};
use serde::{Deserialize, Serialize};

use super::node;
use crate::oracle::{
    model_behind,
    program::{self, Outcome, Program},
};

/// The setting of a file of fixtures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// All is well.
    #[default]
    Usual,
    /// No agent has written the maps.
    NoAgent,
    /// The maps were written in another version of their layout.
    OtherVersion,
    /// The kernel does not forward.
    NotForwarding,
    /// The driver leaves no room in front of frames.
    NoHeadroom,
}

impl Setting {
    /// Whether this is the usual one.
    pub fn is_usual(&self) -> bool {
        *self == Self::Usual
    }

    /// Moves this thread into a namespace as the setting wants it, and gives the maps.
    pub fn enter(self) -> Result<Snapshot> {
        let mut next_hops = program::enter_namespace()?;
        if self == Self::NotForwarding {
            program::shell(&["sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0".to_owned()])?;
            next_hops.values_mut().for_each(|hop| *hop = NextHop::ForwardingDisabled);
        }
        let mut snapshot = node::node(next_hops);
        match self {
            Self::NoAgent => snapshot.node = Node::zeroed(),
            Self::OtherVersion => snapshot.node.abi_version += 1,
            Self::Usual | Self::NotForwarding | Self::NoHeadroom => {}
        }
        Ok(snapshot)
    }

    /// What lb-core does with a frame.
    pub fn model(self, snapshot: &Snapshot, frame: &[u8]) -> (Exit, Outcome) {
        model_behind(if self == Self::NoHeadroom { 0 } else { HEADROOM }, snapshot, frame)
    }

    /// What the loaded program does with it.
    pub fn run(self, program: &Program, frame: &[u8]) -> Result<Outcome> {
        if self == Self::NoHeadroom { program.run_without_headroom(frame) } else { program.run(frame) }
    }
}
