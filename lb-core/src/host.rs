//! Packets and tables on the host: a frame in a vector and maps in vectors, for tests and `weir explain`.

extern crate alloc;

use alloc::{collections::BTreeMap, vec::Vec};
use core::cell::{Cell, RefCell};

use bytemuck::Zeroable;

use crate::{
    abi::{
        backend::Backend,
        flow::{self, Word},
        fragment::{Fragment, FragmentKey},
        lookup::Bucket,
        node::Node,
        ring::Line,
        service::Service,
        stats::FlowEvent,
        turns::Turns,
    },
    packet::{OFFSET_MAX, PacketEdit, PacketView},
    tables::{NextHop, Pair, Route, Tables},
};

/// Room in front of a frame, as `XDP_PACKET_HEADROOM` is in the kernel.
pub const HEADROOM: usize = 256;

/// A frame with room in front of it.
#[derive(Clone, Debug)]
pub struct Frame {
    buffer: Vec<u8>,
    start: usize,
}

impl Frame {
    /// A copy of `bytes`, Ethernet header first.
    pub fn new(bytes: &[u8]) -> Self {
        Self::with_headroom(bytes, HEADROOM)
    }

    /// As [`Frame::new`], with `headroom` bytes in front, as of a driver that leaves less.
    pub fn with_headroom(bytes: &[u8], headroom: usize) -> Self {
        let mut buffer = alloc::vec![0; headroom];
        buffer.extend_from_slice(bytes);
        Self { buffer, start: headroom }
    }

    /// The frame as it is now.
    pub fn as_bytes(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }
}

impl PacketView for Frame {
    fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.as_bytes().get(offset..)?.first_chunk().copied()
    }

    fn bytes_at<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > OFFSET_MAX { None } else { self.bytes(offset) }
    }
}

impl PacketEdit for Frame {
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.buffer.get_mut(self.start + offset..)?.first_chunk_mut()? = bytes;
        Some(())
    }

    fn put_at<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        if offset > OFFSET_MAX { None } else { self.put(offset, bytes) }
    }

    fn grow_head(&mut self, n: usize) -> Option<()> {
        self.start = self.start.checked_sub(n)?;
        Some(())
    }

    fn truncate(&mut self, len: usize) -> Option<()> {
        (len <= self.len()).then(|| self.buffer.truncate(self.start + len))
    }
}

/// The maps as vectors; indexes are those of the maps.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// `NODE`.
    pub node: Node,
    /// `LOOKUP`.
    pub lookup: Vec<Bucket>,
    /// `SERVICES`.
    pub services: Vec<Service>,
    /// `RINGS`.
    pub lines: Vec<Line>,
    /// `OWNERS`; those that are missing are empty.
    pub owners: Vec<Line>,
    /// `BACKENDS`.
    pub backends: Vec<Backend>,
    /// `FLOWS`; empty is a table without room.
    pub flows: Vec<flow::Bucket>,
    /// The table beside `FLOWS`, while one takes the other's place; empty is none.
    pub beside: Vec<flow::Bucket>,
    /// `ACTIVE`; those that are missing are not counted.
    pub active: Vec<Word>,
    /// `FLOW_STATS`.
    pub events: RefCell<BTreeMap<FlowEvent, u64>>,
    /// `BACKEND_FLOWS`: SYNs, FINs, opened, closed.
    pub totals: RefCell<BTreeMap<u32, [u64; 4]>>,
    /// `TURNS` of the one CPU.
    pub turns: RefCell<BTreeMap<u32, Turns>>,
    /// The kernel's jiffies.
    pub jiffies: Cell<u64>,
    /// `FRAGMENTS`, unbounded here.
    pub fragments: RefCell<BTreeMap<FragmentKey, Fragment>>,
    /// Next hops of destinations in 16-byte form; those not listed have no route.
    pub next_hops: BTreeMap<[u8; 16], NextHop>,
    /// MTU of the routes: a longer packet gives [`NextHop::TooBig`].
    pub route_mtu: u16,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            node: Node::zeroed(),
            lookup: Vec::new(),
            services: Vec::new(),
            lines: Vec::new(),
            owners: Vec::new(),
            flows: Vec::new(),
            beside: Vec::new(),
            active: Vec::new(),
            events: RefCell::default(),
            totals: RefCell::default(),
            turns: RefCell::default(),
            jiffies: Cell::default(),
            backends: Vec::new(),
            fragments: RefCell::default(),
            next_hops: BTreeMap::new(),
            route_mtu: 1500,
        }
    }
}

impl Tables for Snapshot {
    fn node(&self) -> Option<&Node> {
        Some(&self.node)
    }

    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.lookup.get(index as usize)
    }

    fn service(&self, id: u32) -> Option<&Service> {
        self.services.get(id as usize)
    }

    fn line(&self, index: u32) -> Option<&Line> {
        self.lines.get(index as usize)
    }

    fn owners(&self, index: u32) -> Option<&Line> {
        self.owners.get(index as usize)
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(id as usize)
    }

    fn flows(&self, index: u32) -> Option<&flow::Bucket> {
        self.flows.get(index as usize)
    }

    fn pair(&self) -> Option<Pair> {
        let mask = |table: &[flow::Bucket]| (table.len() as u32).checked_sub(1);
        Some(Pair { beside: mask(&self.beside)?, mask: mask(&self.flows)? })
    }

    fn flows_beside(&self, index: u32) -> Option<&flow::Bucket> {
        self.beside.get(index as usize)
    }

    fn active(&self, id: u32) -> Option<&Word> {
        self.active.get(id as usize)
    }

    fn count(&self, event: FlowEvent) {
        *self.events.borrow_mut().entry(event).or_default() += 1;
    }

    fn count_flows(&self, backend: u32, flows: [u32; 4]) {
        if flows != [0; 4] {
            let mut totals = self.totals.borrow_mut();
            let total = totals.entry(backend).or_default();
            total.iter_mut().zip(flows).for_each(|(total, n)| *total += u64::from(n));
        }
    }

    fn turns(&self, service: u32) -> Turns {
        self.turns.borrow().get(&service).copied().unwrap_or_default()
    }

    fn set_turns(&self, service: u32, turns: Turns) {
        self.turns.borrow_mut().insert(service, turns);
    }

    fn jiffies(&self) -> u64 {
        self.jiffies.get()
    }

    fn load_u64(&self, word: &u64) -> u64 {
        *word
    }

    fn load_u32(&self, word: &u32) -> u32 {
        *word
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn remember_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn next_hop(&self, route: &Route) -> NextHop {
        match self.next_hops.get(&route.dst) {
            Some(_) if route.len > self.route_mtu => NextHop::TooBig { mtu: self.route_mtu },
            Some(next_hop) => *next_hop,
            None => NextHop::NoRoute,
        }
    }
}
