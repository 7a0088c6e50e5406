//! What the decisions read besides the packet: the maps, seen through a trait.
//!
//! Over BPF maps in the kernel, over vectors in tests and `weir explain`. An absent entry is `None`; nothing here fails
//! otherwise.

use crate::{
    abi::{
        backend::Backend,
        flow::{self, Word},
        fragment::{Fragment, FragmentKey},
        lookup::Bucket,
        node::Node,
        ring::{Line, Slot},
        service::Service,
        stats::FlowEvent,
        turns::Turns,
    },
    flow::{self as flows, Request},
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
    /// `OWNERS` at an index.
    fn owners(&self, index: u32) -> Option<&Line>;
    /// `BACKENDS` at an id.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// `FLOWS` at an index.
    fn flows(&self, index: u32) -> Option<&flow::Bucket>;
    /// The masks of two flow tables, while one takes the place of the other; without it the node entry's mask counts.
    #[inline(always)]
    fn pair(&self) -> Option<Pair> {
        None
    }
    /// The table beside `FLOWS`, at an index.
    #[inline(always)]
    fn flows_beside(&self, _index: u32) -> Option<&flow::Bucket> {
        None
    }
    /// `ACTIVE` at a backend id.
    fn active(&self, id: u32) -> Option<&Word>;
    /// A word of the two above, loaded once and whole. As given, this and the next three serve one thread; the kernel's are atomic.
    #[inline(always)]
    fn load(&self, word: &Word) -> u64 {
        word.cell().get()
    }
    /// Stores a word that this CPU owns, after everything it stored before.
    #[inline(always)]
    fn store(&self, word: &Word, value: u64) {
        word.cell().set(value);
    }
    /// Stores `new` if the word is `old`, as one step among all CPUs; says whether it did.
    #[inline(always)]
    fn exchange(&self, word: &Word, old: u64, new: u64) -> bool {
        let same = word.cell().get() == old;
        if same {
            word.cell().set(new);
        }
        same
    }
    /// Adds to a word, as one step among all CPUs; wraps.
    #[inline(always)]
    fn add(&self, word: &Word, n: u64) {
        word.cell().set(word.cell().get().wrapping_add(n));
    }
    /// `n`, of which the compiler does not know that it is `n`: what follows from it is worked out anew. On the short way four registers
    /// survive a call, so a value that the rare ways want kept is a store for every packet.
    #[inline(always)]
    fn anew(&self, n: u64) -> u64 {
        n
    }
    /// [`flows::resolve`]. This and those called `flow_*` below are steps of a decision that the kernel makes functions of their own, which its
    /// verifier checks once and not on every way that leads there.
    #[inline(always)]
    fn flow_resolve(&self, request: &Request) -> u64
    where
        Self: Sized,
    {
        flows::resolve(self, request)
    }
    /// [`flows::known`]; 0, which is always allowed, sends the packet to [`Self::flow_resolve`].
    #[inline(always)]
    fn flow_known(&self, node: &Node, service: &Service, hash: u64, slot: u32, word: Slot) -> u32
    where
        Self: Sized,
    {
        flows::known(self, node, service, hash, slot, word)
    }
    /// [`flows::table::find`].
    #[inline(always)]
    fn flow_find(&self, hash: u64, mask: u32, now_s: u32) -> u64
    where
        Self: Sized,
    {
        flows::table::find(self, hash, mask, now_s)
    }
    /// [`flows::table::replace`].
    #[inline(always)]
    fn flow_replace(&self, hash: u64, mask: u32, old: u64, new: u64) -> bool
    where
        Self: Sized,
    {
        flows::table::replace(self, hash, mask, old, new)
    }
    /// [`flows::table::insert`].
    #[inline(always)]
    fn flow_insert(&self, hash: u64, mask: u32, now_s: u32, word: u64) -> bool
    where
        Self: Sized,
    {
        flows::table::insert(self, hash, mask, now_s, word)
    }
    /// [`flows::choose::new`].
    #[inline(always)]
    fn flow_choose(&self, request: &Request) -> u32
    where
        Self: Sized,
    {
        flows::choose::new(self, request)
    }
    /// [`flows::choose::current`].
    #[inline(always)]
    fn flow_current(&self, request: &Request, limits: bool) -> u32
    where
        Self: Sized,
    {
        flows::choose::current(self, request, limits)
    }
    /// [`flows::choose::member`].
    #[inline(always)]
    fn flow_member(&self, service: u32, id: u32) -> u64
    where
        Self: Sized,
    {
        flows::choose::member(self, service, id)
    }
    /// [`flows::choose::closed`].
    #[inline(always)]
    fn flow_closed(&self, service: u32, backend: u32)
    where
        Self: Sized,
    {
        flows::choose::closed(self, service, backend);
    }
    /// Counts in `FLOW_STATS`.
    fn count(&self, event: FlowEvent);
    /// Adds to a backend's `BACKEND_FLOWS`: SYNs, FINs, flows opened, flows closed.
    fn count_flows(&self, backend: u32, flows: [u32; 4]);
    /// This CPU's entry of a service in `TURNS`.
    fn turns(&self, service: u32) -> Turns;
    /// Writes that entry.
    fn set_turns(&self, service: u32, turns: Turns);
    /// The same number.
    ///
    /// VERIFIER: "BPF program is too large". A number that is known on some ways, as a constant that stands for "none", keeps them apart in
    /// all that is decided by it; here the kernel's side makes one of which nothing is known, and the ways meet again.
    #[inline(always)]
    fn forget(&self, n: u64) -> u64 {
        n
    }
    /// All ones for a number below 0, else 0.
    ///
    /// The kernel's side keeps the compiler from making a branch of what is decided by it.
    #[inline(always)]
    fn sign(&self, n: u64) -> u64 {
        (n as i64 >> 63) as u64
    }
    /// The kernel's 64-bit jiffies.
    fn jiffies(&self) -> u64;
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

/// Two flow tables, of which `FLOWS` takes new records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Buckets of `FLOWS` minus one.
    pub mask: u32,
    /// Buckets of the table beside it minus one.
    pub beside: u32,
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
