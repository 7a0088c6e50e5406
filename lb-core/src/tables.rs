//! What the decisions read besides the packet: the maps, seen through a trait.
//!
//! Over BPF maps in the kernel, over vectors in tests and `weir explain`. An absent entry is `None`; nothing here fails
//! otherwise.

use crate::abi::{
    backend::Backend,
    fragment::{Fragment, FragmentKey},
    lookup::Bucket,
    node::Node,
    ring::Line,
    service::Service,
};

/// The maps of the load balancer.
pub trait Tables {
    /// `NODE`.
    fn node(&self) -> Option<&Node>;
    /// `LOOKUP` at an index.
    fn bucket(&self, index: u32) -> Option<&Bucket>;
    /// `SERVICES` at an id.
    fn service(&self, id: u32) -> Option<&Service>;
    /// `RINGS` at an index.
    fn line(&self, index: u32) -> Option<&Line>;
    /// `BACKENDS` at an id.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// A 64-bit word of an entry above that the agent publishes while packets read it: loaded exactly once and whole.
    fn load_u64(&self, word: &u64) -> u64;
    /// As [`Self::load_u64`], 32 bits.
    fn load_u32(&self, word: &u32) -> u32;
    /// `FRAGMENTS`: where the first fragment went.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Remembers where a first fragment went; failing is allowed and costs the later ones.
    fn remember_fragment(&self, key: &FragmentKey, fragment: &Fragment);
    /// The kernel's route for a reply that leaves as `route` says.
    fn next_hop(&self, route: &Route) -> NextHop;
}

/// A packet to be routed by the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Source after translation, 16-byte form.
    pub src: [u8; 16],
    /// Destination, 16-byte form.
    pub dst: [u8; 16],
    /// ToS or traffic class.
    pub tos: u8,
    /// IP protocol number.
    pub proto: u8,
    /// Bytes of IP packet, to be compared with the route's MTU.
    pub len: u16,
}

/// Where [`Tables::next_hop`] leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// Out of an interface.
    Resolved {
        /// Interface index.
        ifindex: u32,
        /// Destination and source MAC, as the Ethernet header has them.
        macs: [u8; 12],
    },
    /// There is a route, but its next hop's MAC is not known.
    NoNeighbour,
    /// The packet exceeds the route's MTU.
    TooBig {
        /// That MTU, bytes of IP packet.
        mtu: u16,
    },
    /// No route, or one that refuses; also to this machine itself.
    NoRoute,
    /// Forwarding is switched off on the ingress interface.
    ForwardingDisabled,
    /// A route that needs more than a MAC, or an error of the lookup.
    Unsupported,
}
