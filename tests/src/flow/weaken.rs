//! The rules of windows, each with a way to break it: who checks flows must notice.
//!
//! Owns: what a broken rule does to a plan, to maps before they are adopted, or to what a decision reads. The product has no switch
//! for any of this.

use std::cell::Cell;

use lb_core::{
    abi::{
        backend::{Backend, FLAG_DOWN},
        flow::{self, FlowState, Record, Word},
        fragment::{Fragment, FragmentKey},
        lookup::Bucket,
        node::Node,
        ring::{Extent, LINE_SLOTS, Line, Slot, State},
        service::Service,
        stats::FlowEvent,
        turns::Turns,
    },
    flow::{self as flows, Request},
    host::Snapshot,
    tables::{NextHop, Pair, Route, Tables},
    wire::transport,
};
use lb_userspace::{
    dataplane::apply::{Map, Memory},
    plan::{
        Op, Present,
        op::{BACKEND_WORD_FLAGS, SERVICE_WORD_PREVIOUS},
    },
};

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A SYN follows the record of its flow.
    A,
    /// A change of a slot in a window keeps its owner.
    B,
    /// That a backend is down acts at once.
    C,
    /// A window is as long as the longest silence.
    D,
    /// A slot settles when no record names another backend.
    E,
    /// The ring before a change of size or inputs says who the owners are.
    F,
    /// An agent that adopts a window takes its owners over.
    G,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 7] = [Self::A, Self::B, Self::C, Self::D, Self::E, Self::F, Self::G];

    /// Breaks the rule in the operations of a plan that was made from `present`.
    pub fn spoil(self, ops: &mut [Op], present: &Present, memory: &impl Memory) {
        match self {
            Self::A | Self::D | Self::G => {}
            Self::B => {
                // Who has a slot now becomes its owner, whoever owned it before.
                let published = ops.iter().filter_map(|op| match op {
                    Op::ServiceRing { id, ring } => Some((Extent::unpack(*ring), *id)),
                    _ => None,
                });
                let services: Vec<(Extent, u32)> = published.collect();
                for op in ops {
                    let Op::PutRing { extent, owners, .. } = op else { continue };
                    let of = services.iter().find(|(ring, _)| ring == extent).map(|(_, id)| *id);
                    let before = present.services().find(|(_, service)| Some(service.id) == of);
                    let ring = before.map_or(0, |(_, service)| service.entry.ring);
                    let held = memory.ring(Extent::unpack(ring)).unwrap_or_default();
                    if owners.len() == held.len() {
                        let now = held.iter().map(|word| Slot(*word).current());
                        owners.iter_mut().zip(now).filter(|(owner, _)| **owner != 0).for_each(|(o, now)| *o = now);
                    }
                }
            }
            Self::C => {
                for op in ops {
                    match op {
                        Op::PutBackend { entry, .. } => entry.flags &= !FLAG_DOWN,
                        Op::BackendWord { word: BACKEND_WORD_FLAGS, value, .. } => {
                            let [flags, service]: [u32; 2] = bytemuck::cast(*value);
                            *value = bytemuck::cast([flags & !FLAG_DOWN, service]);
                        }
                        _ => {}
                    }
                }
            }
            Self::E => {
                for op in ops {
                    let (Op::PutRing { slots, .. } | Op::RingStates { slots, .. }) = op else { continue };
                    let words = slots.iter_mut().map(|word| (Slot(*word), word));
                    for (slot, word) in words.filter(|(slot, _)| slot.state() == State::Residual) {
                        *word = Slot::new(slot.current(), State::Settled, slot.tracked()).0;
                    }
                }
            }
            Self::F => {
                for op in ops {
                    if let Op::ServiceWord { word: SERVICE_WORD_PREVIOUS, value, .. } = op {
                        *value = 0;
                    }
                }
            }
        }
    }

    /// Breaks the rule in maps that an agent is about to adopt.
    pub fn spoil_maps(self, memory: &mut impl Memory) {
        if self != Self::G {
            return;
        }
        for line in 0..memory.entries(Map::Rings) {
            let Some(Line { slots }) = memory.read(Map::Rings, line) else { continue };
            let now = slots.map(|word| Slot(word).current());
            for word in 0..LINE_SLOTS / 2 {
                memory.store(Map::Owners, line, word, bytemuck::cast([now[2 * word], now[2 * word + 1]]));
            }
        }
    }
}

/// The maps of the host, in which a SYN does not see half-open records.
pub struct HalfOpenHidden<'a> {
    tables: &'a Snapshot,
    syn: Cell<bool>,
}

impl<'a> HalfOpenHidden<'a> {
    /// Over the maps as they are.
    pub fn new(tables: &'a Snapshot) -> Self {
        Self { tables, syn: Cell::new(false) }
    }
}

impl Tables for HalfOpenHidden<'_> {
    fn flow_resolve(&self, request: &Request) -> u64 {
        self.syn.set(request.tcp_flags & transport::SYN != 0);
        flows::resolve(self, request)
    }

    fn flow_find(&self, hash: u64, mask: u32, now_s: u32) -> u64 {
        match flows::table::find(self, hash, mask, now_s) {
            held if self.syn.get() && flow::is_record(held) && Record::unpack(held).state == FlowState::HalfOpen => {
                // Forgotten, so that what is recorded now is the only record.
                flows::table::replace(self, hash, mask, held, 0);
                0
            }
            held => held,
        }
    }

    fn node(&self) -> Option<&Node> {
        self.tables.node()
    }

    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.tables.bucket(index)
    }

    fn service(&self, id: u32) -> Option<&Service> {
        self.tables.service(id)
    }

    fn line(&self, index: u32) -> Option<&Line> {
        self.tables.line(index)
    }

    fn owners(&self, index: u32) -> Option<&Line> {
        self.tables.owners(index)
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.tables.backend(id)
    }

    fn flows(&self, index: u32) -> Option<&flow::Bucket> {
        self.tables.flows(index)
    }

    fn pair(&self) -> Option<Pair> {
        self.tables.pair()
    }

    fn flows_beside(&self, index: u32) -> Option<&flow::Bucket> {
        self.tables.flows_beside(index)
    }

    fn active(&self, id: u32) -> Option<&Word> {
        self.tables.active(id)
    }

    fn count(&self, event: FlowEvent) {
        self.tables.count(event);
    }

    fn count_flows(&self, backend: u32, flows: [u32; 4]) {
        self.tables.count_flows(backend, flows);
    }

    fn turns(&self, service: u32) -> Turns {
        self.tables.turns(service)
    }

    fn set_turns(&self, service: u32, turns: Turns) {
        self.tables.set_turns(service, turns);
    }

    fn jiffies(&self) -> u64 {
        self.tables.jiffies()
    }

    fn load_u64(&self, word: &u64) -> u64 {
        *word
    }

    fn load_u32(&self, word: &u32) -> u32 {
        *word
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.tables.fragment(key)
    }

    fn remember_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.tables.remember_fragment(key, fragment);
    }

    fn next_hop(&self, route: &Route) -> NextHop {
        self.tables.next_hop(route)
    }
}
