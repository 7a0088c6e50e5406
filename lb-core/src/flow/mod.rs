//! Which backend a packet's flow has, for packets that the ring alone does not decide: slots that a change moved, services that record
//! every flow, backends that are down.
//!
//! Owns: the rules by slot state, packet and record. [`table`] keeps records, [`choose`] picks backends for new flows.
//! Refuses to know: packets (it is told a [`Request`]) and who changes slots.
//!
//! | slot | SYN, no record | SYN, record | other, record | other, no record |
//! |---|---|---|---|---|
//! | settled | (not here) | | | |
//! | announced | owner, recorded | see below | recorded backend | owner |
//! | moving | current, recorded | see below | recorded backend | owner, learned |
//! | residual | current | see below | recorded backend | current |
//! | any, tracked | chosen, recorded (announced: owner unless full) | see below | recorded backend | as the slot says, learned; UDP: chosen, recorded |
//!
//! Where all that a service has drains, "current" is nobody: new flows are refused, and those that have an owner or a record stay.
//!
//! A SYN follows a record that is half-open, or established and seen within [`DUPLICATE_S`]: a duplicate must not move a live
//! flow. Otherwise the flow is new, and its record is overwritten; in residual it is removed.
//!
//! Compare JET (Ophir Eliasaf et al., "Just Enough Tracking", CoNEXT 2021) and Beamer (Olteanu et al., NSDI 2018).

pub mod choose;
pub mod table;

use crate::{
    abi::{
        backend::{FLAG_DOWN, FLAG_DRAINING, FLAG_VALID},
        flow::{self, DUPLICATE_S, FlowState, HALF_OPEN_S, Record},
        node::Node,
        ring::{Extent, LINE_SLOTS, Slot, State},
        service::{Algo, FLAG_TRACK_ALL, OnMarkedDown, Service},
        stats::FlowEvent,
    },
    reason::Reason,
    tables::Tables,
    wire::{ipv4, transport},
};

/// A packet of a service, as far as its flow matters. Numbers only: it crosses a call in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Hash of the 5-tuple.
    pub hash: u64,
    /// Packed extent of the service's ring, as it was read for this packet.
    pub ring: u64,
    /// Packed previous ring of the service, as it was read for this packet.
    pub previous: u64,
    /// Service id.
    pub service: u32,
    /// Slot of that ring.
    pub slot: u32,
    /// What stands in the slot.
    pub word: u32,
    /// The 32 bits that choose a slot under the hash inputs of the previous ring.
    pub previous_bits: u32,
    /// TCP flags; 0 for UDP.
    pub tcp_flags: u32,
    /// IP protocol number.
    pub proto: u32,
    /// 1 for a packet *about* the flow (an ICMP error): it finds the flow's backend and records nothing.
    pub about: u32,
    /// Zero.
    pub pad: u32,
}

impl Request {
    #[inline(always)]
    const fn is_syn(&self) -> bool {
        self.tcp_flags & (transport::SYN | transport::ACK | transport::RST | transport::FIN) == transport::SYN
    }

    #[inline(always)]
    const fn ends(&self) -> bool {
        self.tcp_flags & (transport::RST | transport::FIN) != 0
    }
}

/// What became of a request, as one number: a backend id, or a reason above bit 32.
///
/// VERIFIER: a number comes back from a call in a register; a result that is written through a pointer does not.
#[inline(always)]
const fn refused(reason: Reason) -> u64 {
    (reason as u64 + 1) << 32
}

/// The backend of a request that the ring alone does not decide.
///
/// # Errors
/// The reason for which the packet goes to no backend.
#[inline(always)]
pub fn backend<T: Tables>(tables: &T, request: &Request) -> Result<u32, Reason> {
    let outcome = tables.flow_resolve(request);
    match (outcome >> 32) as u32 {
        0 if outcome != 0 => Ok(outcome as u32),
        n if n == Reason::FlowReset as u32 + 1 => Err(Reason::FlowReset),
        n if n == Reason::SynRefused as u32 + 1 => Err(Reason::SynRefused),
        _ => Err(Reason::SlotEmpty),
    }
}

/// The backend of a packet that neither begins nor ends its flow and of which nothing is to be decided: its record is established on
/// this slot, or there is none and a residual slot lets it pass. 0 for every other packet: [`backend`] decides.
///
/// Whether the backend is up is for the caller to see; where it is not, [`backend`] decides as well.
///
/// All of it is inline, other than [`backend`]: a return costs 10 ns where the kernel guards against speculative return stack overflow.
#[inline(always)]
pub fn known<T: Tables>(tables: &T, node: &Node, service: &Service, hash: u64, slot: u32, word: Slot) -> u32 {
    if tables.pair().is_some() {
        return 0;
    }
    let now_s = now_s(tables, node);
    let expires_s = now_s.wrapping_add(service.established_s);
    let same = Record { backend: 0, slot, state: FlowState::Established, expires_s };
    let held = table::touch(tables, hash, node.flow_mask, now_s, same);
    let passes = word.state() == State::Residual && !word.tracked() && service.flags & FLAG_TRACK_ALL == 0;
    match held {
        0 if passes => word.current(),
        held => (held >> 40) as u32,
    }
}

/// The flags of a backend that belongs to the service, 0 for any other.
#[inline(always)]
fn flags_of<T: Tables>(tables: &T, service: u32, id: u32) -> u32 {
    match tables.backend(id) {
        Some(backend) if backend.service == service => tables.load_u32(&backend.flags),
        _ => 0,
    }
}

#[inline(always)]
fn alive<T: Tables>(tables: &T, service: u32, id: u32) -> bool {
    flags_of(tables, service, id) & (FLAG_VALID | FLAG_DOWN) == FLAG_VALID
}

/// Whether an owner still takes new flows.
#[inline(always)]
fn takes_new<T: Tables>(tables: &T, service: u32, id: u32) -> bool {
    flags_of(tables, service, id) & (FLAG_VALID | FLAG_DOWN | FLAG_DRAINING) == FLAG_VALID
}

/// The decision behind [`backend`].
#[inline(always)]
pub fn resolve<T: Tables>(tables: &T, request: &Request) -> u64 {
    let (Some(node), Some(service)) = (tables.node(), tables.service(request.service)) else {
        return refused(Reason::SlotEmpty);
    };
    let now_s = now_s(tables, node);
    tables.count(FlowEvent::Lookup);
    let begins = request.is_syn() && request.about == 0;
    if begins {
        table::fetch(tables, request.hash, node.flow_mask);
    }
    let held = tables.flow_find(request.hash, node.flow_mask, now_s);
    let step = Step { request, service, mask: node.flow_mask, now_s, held };
    if begins { syn(tables, &step) } else { other(tables, &step) }
}

/// A request with what was read for it.
struct Step<'a> {
    request: &'a Request,
    service: &'a Service,
    /// [`Node::flow_mask`].
    mask: u32,
    now_s: u32,
    /// What [`table::find`] said.
    held: u64,
}

impl Step<'_> {
    #[inline(always)]
    fn record(&self) -> Option<Record> {
        if flow::is_record(self.held) { Some(Record::unpack(self.held)) } else { None }
    }

    /// The word of a record for this flow.
    #[inline(always)]
    fn word(&self, backend: u32, slot: u32, state: FlowState) -> u64 {
        let expires_s = self.now_s.wrapping_add(state.timeout_s(self.service.established_s));
        Record { backend, slot, state, expires_s }.pack()
    }

    /// Writes a record where [`table::find`] saw one or none; not while another CPU writes it.
    #[inline(always)]
    fn write<T: Tables>(&self, tables: &T, word: u64) -> bool {
        match self.held {
            0 => tables.flow_insert(self.request.hash, self.mask, self.now_s, word),
            flow::BUSY => false,
            held if held == word => true,
            held => tables.flow_replace(self.request.hash, self.mask, held, word),
        }
    }
}

/// The program's clock in seconds, modulo 2^32.
#[inline(always)]
pub fn now_s<T: Tables>(tables: &T, node: &Node) -> u32 {
    let hz = if node.hz == 0 { 1 } else { node.hz as u64 };
    (tables.jiffies() / hz) as u32
}

/// The state of the slot. One that is settled comes here because its backend is down: its flows leave as in a window.
#[inline(always)]
fn state(request: &Request) -> State {
    match Slot(request.word).state() {
        State::Settled if !Slot(request.word).tracked() => State::Moving,
        state => state,
    }
}

/// Who has the flows that nobody recorded.
#[inline(always)]
pub fn owner<T: Tables>(tables: &T, request: &Request) -> u32 {
    let current = Slot(request.word).current();
    match Slot(request.word).state() {
        State::Announced | State::Moving => {}
        State::Settled | State::Residual => return current,
    }
    let previous = Extent::unpack(request.previous);
    if previous.slots == 0 {
        return word_at(tables, Extent::unpack(request.ring), request.slot, true).current();
    }
    // The ring before hash inputs or size changed speaks for them, and where it was itself in a window, its owners.
    let slot = previous.slot_of(request.previous_bits);
    let word = word_at(tables, previous, slot, false);
    match word.state() {
        State::Announced | State::Moving => word_at(tables, previous, slot, true).current(),
        State::Settled | State::Residual => word.current(),
    }
}

/// Who takes new flows while a change is announced: who took them before. That is the owner, unless the ring before had already
/// moved the slot on from it.
#[inline(always)]
fn still_takes<T: Tables>(tables: &T, request: &Request, owner: u32) -> u32 {
    let previous = Extent::unpack(request.previous);
    if previous.slots == 0 {
        return owner;
    }
    let word = word_at(tables, previous, previous.slot_of(request.previous_bits), false);
    if word.state() == State::Moving { word.current() } else { owner }
}

/// A slot of a ring, or its owner; empty outside the arena.
#[inline(always)]
fn word_at<T: Tables>(tables: &T, ring: Extent, slot: u32, owner: bool) -> Slot {
    let index = ring.line.wrapping_add(slot / LINE_SLOTS as u32);
    let line = if owner { tables.owners(index) } else { tables.line(index) };
    let word = line.and_then(|line| line.slots.get(slot as usize % LINE_SLOTS)).map_or(0, |word| tables.load_u32(word));
    Slot(word)
}

/// A connection begins, or a SYN of it is repeated.
#[inline(always)]
fn syn<T: Tables>(tables: &T, step: &Step<'_>) -> u64 {
    let Step { request, service, .. } = *step;
    let state = state(request);
    let all = service.flags & FLAG_TRACK_ALL != 0;
    if let Some(held) = step.record() {
        if alive(tables, request.service, held.backend) {
            let silent_s = service.established_s.saturating_sub(held.left_s(step.now_s));
            match held.state {
                FlowState::HalfOpen => {
                    step.write(tables, step.word(held.backend, request.slot, FlowState::HalfOpen));
                    return held.backend as u64;
                }
                FlowState::Established | FlowState::Once if silent_s <= DUPLICATE_S => {
                    // Where time-outs are short it could expire between this SYN and its repetition, which would go elsewhere.
                    if held.left_s(step.now_s) < HALF_OPEN_S {
                        let expires_s = step.now_s.wrapping_add(HALF_OPEN_S);
                        step.write(tables, Record { expires_s, ..held }.pack());
                    }
                    return held.backend as u64;
                }
                _ => {}
            }
        }
        if state == State::Residual && !all {
            tables.flow_replace(request.hash, step.mask, step.held, 0);
        }
    }
    if state == State::Residual && !all {
        return tables.flow_current(request, all) as u64;
    }
    let owner = owner(tables, request);
    // While a drain is announced, its backend still takes new flows, as many as it may have.
    let before = if state == State::Announced { still_takes(tables, request, owner) } else { 0 };
    let full = all && before != 0 && choose::is_full(tables, before);
    if full {
        tables.count(FlowEvent::Spilled);
    }
    let backend = if before != 0 && !full && alive(tables, request.service, before) {
        before
    } else if all && service.algo() == Algo::LeastConnections {
        // VERIFIER: "BPF program is too large": all ways through the choice meet again.
        match tables.forget(choose::least(tables, request, service) as u64) as u32 {
            0 => tables.flow_current(request, true),
            id => id,
        }
    } else if all {
        chosen(tables, request)
    } else {
        tables.flow_current(request, false)
    };
    if backend == 0 {
        return refused(Reason::SlotEmpty);
    }
    if step.write(tables, step.word(backend, request.slot, FlowState::HalfOpen)) {
        return backend as u64;
    }
    if all {
        // Its ACK finds no record either, and goes the same way.
        return unrecorded(tables, request, owner) as u64;
    }
    if takes_new(tables, request.service, owner) {
        return owner as u64;
    }
    tables.count(FlowEvent::SynRefused);
    refused(Reason::SynRefused)
}

/// The backend of a new flow of a service that records every flow.
#[inline(always)]
fn chosen<T: Tables>(tables: &T, request: &Request) -> u32 {
    match tables.flow_choose(request) {
        0 => tables.flow_current(request, true),
        id => id,
    }
}

/// Where a flow that cannot be recorded goes: to the slot's owner while that is up, else along the ring. The same for each of its
/// packets while nothing changes.
#[inline(always)]
fn unrecorded<T: Tables>(tables: &T, request: &Request, owner: u32) -> u32 {
    if alive(tables, request.service, owner) { owner } else { tables.flow_current(request, false) }
}

/// Any packet that does not begin a connection.
#[inline(always)]
fn other<T: Tables>(tables: &T, step: &Step<'_>) -> u64 {
    let Step { request, service, .. } = *step;
    let all = service.flags & FLAG_TRACK_ALL != 0;
    let udp = request.proto == ipv4::PROTO_UDP as u32;
    let record = step.record();
    let owner = match record {
        Some(held) => held.backend,
        None => owner(tables, request),
    };
    let chooses = udp && all && request.about == 0 && record.is_none();
    let flags = flags_of(tables, request.service, owner);
    let backend = if !chooses && flags & (FLAG_VALID | FLAG_DOWN) == FLAG_VALID {
        owner
    } else {
        match service.on_marked_down() {
            OnMarkedDown::Keep if !chooses && flags & FLAG_VALID != 0 => owner,
            OnMarkedDown::Reset if !udp && request.about == 0 && owner != 0 => return refused(Reason::FlowReset),
            _ if all && (chooses || record.is_some()) => chosen(tables, request),
            _ => tables.flow_current(request, false),
        }
    };
    if backend == 0 {
        return refused(Reason::SlotEmpty);
    }
    if request.about != 0 {
        return backend as u64;
    }
    if let Some(held) = record {
        let next = match held.state {
            _ if request.ends() => FlowState::Closing,
            FlowState::Closing => FlowState::Closing,
            _ => FlowState::Established,
        };
        let written = step.write(tables, step.word(backend, request.slot, next));
        if written && request.ends() && held.state == FlowState::Established && service.algo() == Algo::LeastConnections
        {
            tables.flow_closed(request.service, held.backend);
        }
        return backend as u64;
    }
    // A flow that ends with this packet needs no record.
    if (all || state(request) == State::Moving) && request.tcp_flags & transport::RST == 0 {
        let state = if request.ends() { FlowState::Closing } else { FlowState::Once };
        if step.write(tables, step.word(backend, request.slot, state)) {
            tables.count(FlowEvent::Learned);
        } else if chooses {
            return unrecorded(tables, request, owner) as u64;
        }
    }
    backend as u64
}

const _: () = assert!(size_of::<Request>() == 56);

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;

    use bytemuck::Zeroable as _;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        abi::{
            flow::{Bucket, Word},
            ring::{Inputs, Line},
            service::flags,
        },
        host::Snapshot,
    };

    const NOW_S: u32 = 1000;
    const ESTABLISHED_S: u32 = 300;
    const UP: u32 = 3;
    const CURRENT: u32 = 5;

    /// One service whose ring is one slot, and both of its backends up.
    fn tables() -> (Snapshot, Service) {
        let mut tables = Snapshot { flows: vec![Bucket::default(); 2], ..Snapshot::default() };
        (tables.node.flow_mask, tables.node.hz) = (1, 1);
        tables.jiffies.set(NOW_S.into());
        tables.backends = vec![bytemuck::Zeroable::zeroed(); 8];
        for id in [UP, CURRENT] {
            let backend = &mut tables.backends[id as usize];
            (backend.flags, backend.service) = (FLAG_VALID, 1);
        }
        let mut service: Service = bytemuck::Zeroable::zeroed();
        service.established_s = ESTABLISHED_S;
        tables.services = vec![bytemuck::Zeroable::zeroed(), service];
        (tables, service)
    }

    /// A limit holds for new flows of a backend whose drain is announced too; where not every flow is recorded there is none.
    #[test]
    fn an_announced_slot_gives_its_owner_no_flow_beyond_its_limit() {
        for (all, limit, held, expected) in
            [(true, 2, 1, UP), (true, 2, 2, CURRENT), (true, 0, 9, UP), (false, 2, 2, UP)]
        {
            let (mut tables, mut service) = tables();
            service.flags = flags(all, Algo::Hashed, OnMarkedDown::Rehash);
            service.ring = Extent { line: 0, slots: 1 }.pack(Inputs::Tuple);
            tables.services[1] = service;
            tables.active = vec![Word::default(); 8];
            tables.active[UP as usize].cell().set(held);
            let owner = &mut tables.backends[UP as usize];
            (owner.flags, owner.max_connections) = (FLAG_VALID | FLAG_DRAINING, limit);
            let word = Slot::new(CURRENT, State::Announced, all);
            let (mut line, mut owners) = (Line::zeroed(), Line::zeroed());
            (line.slots[0], owners.slots[0]) = (word.0, UP);
            (tables.lines, tables.owners) = (vec![line], vec![owners]);
            let request = Request {
                hash: 77,
                ring: service.ring,
                previous: 0,
                service: 1,
                slot: 0,
                word: word.0,
                previous_bits: 0,
                tcp_flags: transport::SYN,
                proto: 6,
                about: 0,
                pad: 0,
            };
            assert_eq!(resolve(&tables, &request), u64::from(expected), "{all} {limit} {held}");
            let found = Record::unpack(table::find(&tables, 77, 1, NOW_S));
            assert_eq!((found.backend, found.state), (expected, FlowState::HalfOpen), "what is recorded");
            let spilled = tables.events.borrow().get(&FlowEvent::Spilled).copied().unwrap_or(0);
            assert_eq!(spilled, u64::from(expected == CURRENT), "{all} {limit} {held}");
        }
    }

    proptest! {
        /// The short way decides nothing otherwise than the rules do, and leaves the table as they do.
        #[test]
        fn what_is_known_at_once_is_what_the_rules_say(
            state in 0usize..4,
            slot_state in 2u8..4,
            (held_slot, left) in (0u32..2, 0u32..=ESTABLISHED_S),
            recorded in any::<bool>(),
            hash in any::<u64>(),
            proto in prop_oneof![Just(6u32), Just(17)],
        ) {
            let ((quick, service), (ruled, _)) = (tables(), tables());
            let held = Record { backend: UP, slot: held_slot, state: FlowState::ALL[state], expires_s: NOW_S + left };
            for tables in [&quick, &ruled] {
                if recorded && left > 0 {
                    prop_assert!(table::insert(tables, hash, 1, NOW_S, held.pack()));
                }
            }
            let slot_state = if slot_state == 2 { State::Moving } else { State::Residual };
            let word = Slot::new(CURRENT, slot_state, false);
            let request = Request {
                hash, ring: 0, previous: 0, service: 1, slot: 0, word: word.0, previous_bits: 0,
                tcp_flags: if proto == 6 { transport::ACK } else { 0 }, proto, about: 0, pad: 0,
            };
            let known = known(&quick, &quick.node, &service, hash, 0, word);
            let in_place = recorded && left > 0;
            let settled_by_record = in_place && held.state == FlowState::Established && held_slot == 0;
            prop_assert_eq!(known != 0, settled_by_record || (!in_place && slot_state == State::Residual));
            if known != 0 {
                prop_assert_eq!(u64::from(known), resolve(&ruled, &request));
                let find = |tables: &Snapshot| table::find(tables, hash, 1, NOW_S);
                prop_assert_eq!(find(&quick), find(&ruled));
            }
        }
    }
}
