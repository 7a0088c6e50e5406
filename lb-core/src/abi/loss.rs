//! `LOSSES`: frames that the kernel or a driver lost after an XDP program had given its verdict.
//!
//! Written by the tracepoint programs of `weir_loss`, for every device of the machine; read by the agent, which keeps the
//! entries of its own network namespace.

use bytemuck::{Pod, Zeroable};

use super::MapShape;

/// Shape of `LOSSES`.
pub const SHAPE: MapShape = MapShape {
    name: "LOSSES",
    key_size: size_of::<LossKey>() as u32,
    value_size: size_of::<u64>() as u32,
    mmapable: false,
};

/// Where a frame was lost.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LossKind {
    /// An XDP program was aborted, returned an unknown action, or its `XDP_TX` had no place to go.
    Exception = 1,
    /// A redirect found no target, or the target cannot transmit.
    Redirect = 2,
    /// The driver of the egress device refused frames that were redirected to it.
    Transmit = 3,
    /// The driver refused frames of `XDP_TX` (drivers that send them in bulk).
    BulkTransmit = 4,
}

impl LossKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Exception, Self::Redirect, Self::Transmit, Self::BulkTransmit];

    /// Stable name, as metrics show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exception => "exception",
            Self::Redirect => "redirect",
            Self::Transmit => "transmit",
            Self::BulkTransmit => "bulk_transmit",
        }
    }
}

/// A device and a kind of loss.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct LossKey {
    /// Inode number of the device's network namespace: interface indexes repeat between namespaces.
    pub netns: u32,
    /// Index of the device that received the frame, for `Transmit` of the device that should have sent it.
    pub ifindex: u32,
    /// [`LossKind`] as a number.
    pub kind: u32,
}
