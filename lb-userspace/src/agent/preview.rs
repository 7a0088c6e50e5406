//! What a plan would do to slots and flows, before it is carried out.
//!
//! Pure: a plan, what the maps hold, and the words of the flow table in; figures and sentences out.
//! Refuses to know: how the plan came about.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use lb_core::abi::{
    backend::{FLAG_DRAINING, FLAG_REMOVED},
    flow::{Record, is_record},
    ring::Extent,
};

use crate::{
    api::{BackendPlan, ServiceAction, ServicePlan, backend_name},
    model::{ServiceKey, Track, UdpFlows, duration},
    plan::{Moves, Plan, Present, PresentBackend, PresentService, wanted::address},
};

/// Live records, as far as a plan touches them.
#[derive(Clone, Debug)]
pub struct Touched {
    services: HashMap<u32, u32>,
    /// Slots that move, by service id; `None` is all of them.
    moved: HashMap<u32, Option<HashSet<u32>>>,
    recorded: HashMap<u32, u64>,
    on_moved: HashMap<u32, u64>,
    backends: HashMap<u32, u64>,
}

impl Touched {
    /// Nothing counted yet.
    pub fn new(present: &Present, plan: &Plan) -> Self {
        let backends = present.services().flat_map(|(_, s)| s.backends.iter().map(|b| (b.id, s.id)));
        let former = present.former().iter().map(|f| (f.id, f.service));
        let moved = |m: &Moves| {
            let slots = (!m.whole).then(|| m.slots.iter().map(|(slot, _)| *slot).collect());
            Some((present.service(&m.service)?.id, slots))
        };
        Self {
            services: backends.chain(former).collect(),
            moved: plan.moves.iter().filter_map(moved).collect(),
            recorded: HashMap::new(),
            on_moved: HashMap::new(),
            backends: HashMap::new(),
        }
    }

    /// Takes a word of the flow table; `now_s` is the program's clock.
    pub fn take(&mut self, word: u64, now_s: u32) {
        let record = Record::unpack(word);
        if !is_record(word) || record.left_s(now_s) == 0 {
            return;
        }
        *self.backends.entry(record.backend).or_default() += 1;
        let Some(service) = self.services.get(&record.backend) else { return };
        *self.recorded.entry(*service).or_default() += 1;
        let moves = self.moved.get(service);
        if moves.is_some_and(|slots| slots.as_ref().is_none_or(|slots| slots.contains(&record.slot))) {
            *self.on_moved.entry(*service).or_default() += 1;
        }
    }
}

/// What is said of a service in a configuration: its name, and how it keeps its flows.
#[derive(Clone, Debug)]
pub struct Known {
    /// Name.
    pub name: String,
    /// Which flows are recorded.
    pub track: Track,
    /// What a UDP service promises.
    pub udp_flows: Option<UdpFlows>,
    /// How long a drain lasts at most.
    pub drain_s: u64,
}

/// What the plan does to each service that it touches; `known` says what is configured, or was.
pub fn services(
    present: &Present,
    plan: &Plan,
    touched: &Touched,
    known: &dyn Fn(&ServiceKey) -> Option<Known>,
) -> Vec<ServicePlan> {
    let keys: BTreeSet<ServiceKey> = present.services().chain(plan.next.services()).map(|(key, _)| *key).collect();
    let moves: BTreeMap<ServiceKey, &Moves> = plan.moves.iter().map(|m| (m.service, m)).collect();
    let one = |key: &ServiceKey| {
        service(present.service(key), plan.next.service(key), moves.get(key).copied(), touched, &known(key)?)
    };
    keys.iter().filter_map(one).collect()
}

fn service(
    old: Option<&PresentService>,
    new: Option<&PresentService>,
    moves: Option<&Moves>,
    touched: &Touched,
    known: &Known,
) -> Option<ServicePlan> {
    let action = match (old, new) {
        (None, None) => return None,
        (None, Some(_)) => ServiceAction::Added,
        (Some(_), None) => ServiceAction::Removed,
        (Some(old), Some(new)) if old.id != new.id => ServiceAction::Replaced,
        (Some(old), Some(new)) => {
            let settings = |s: &PresentService| (s.entry.flags, s.entry.established_s, s.times);
            let same = settings(old) == settings(new) && old.backends == new.backends;
            if same && moves.is_none() {
                return None;
            }
            ServiceAction::Changed
        }
    };
    let id = old.map_or(0, |old| old.id);
    let count = |of: &HashMap<u32, u64>, id: u32| of.get(&id).copied().unwrap_or(0);
    let slots = new.or(old).map_or(0, |s| Extent::unpack(s.entry.ring).slots);
    let whole = moves.is_some_and(|m| m.whole);
    let times = new.or(old).map(|s| s.times);
    let stateless = known.udp_flows == Some(UdpFlows::Stateless);
    let backends = match (old, new) {
        (Some(old), Some(new)) if action == ServiceAction::Changed => {
            old.backends.iter().filter_map(|b| backend(b, new, known, count(&touched.backends, b.id))).collect()
        }
        _ => Vec::new(),
    };
    let mut out = ServicePlan {
        service: known.name.clone(),
        action,
        slots,
        slots_moved: match moves {
            Some(m) if m.whole => m.of,
            Some(m) => m.slots.len() as u32,
            None => 0,
        },
        whole,
        flows_recorded: count(&touched.recorded, id),
        flows_on_moved_slots: count(&touched.on_moved, id),
        announce_for_s: if stateless { 0 } else { times.map_or(0, |t| t.announce_s) },
        window_s: if stateless { 0 } else { times.map_or(0, |t| t.window_s) },
        backends,
        flows: Vec::new(),
    };
    out.flows = sentences(&out, known);
    Some(out)
}

/// What becomes of a backend, if it loses its place.
fn backend(old: &PresentBackend, new: &PresentService, known: &Known, flows_recorded: u64) -> Option<BackendPlan> {
    let leaves = |b: &PresentBackend| b.entry.flags & (FLAG_DRAINING | FLAG_REMOVED) != 0;
    let drain_s = match new.backends.iter().find(|b| b.id == old.id) {
        Some(kept) if leaves(kept) && !leaves(old) => known.drain_s,
        Some(_) => return None,
        None => 0,
    };
    Some(BackendPlan { backend: backend_name(address(old.key.addr), old.key.port), flows_recorded, drain_s })
}

fn plural(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

fn time(seconds: u64) -> String {
    duration::format(std::time::Duration::from_secs(seconds))
}

/// What becomes of the flows of a service.
fn sentences(s: &ServicePlan, known: &Known) -> Vec<String> {
    let recorded = plural(s.flows_recorded, "recorded flow");
    let mut out = Vec::new();
    match s.action {
        ServiceAction::Added => return vec!["new: there are no flows to keep".into()],
        ServiceAction::Removed => return vec![format!("its connections end at once, {recorded} among them")],
        ServiceAction::Replaced => {
            return vec![format!("another service for the maps: {recorded} are forgotten, flows may move at once")];
        }
        ServiceAction::Changed => {}
    }
    let announced = match s.announce_for_s {
        0 => "at once".into(),
        seconds => format!("after {}", time(seconds)),
    };
    let (slots, window) = (format!("{} of {}", s.slots_moved, plural(u64::from(s.slots), "slot")), time(s.window_s));
    if s.slots_moved == 0 {
        out.push("no slot moves: no flow is touched".into());
    } else if known.udp_flows == Some(UdpFlows::Stateless) {
        out.push(format!("{slots} move at once: each datagram goes where the ring says (udp_flows is stateless)"));
    } else if known.track == Track::All {
        out.push(format!("{slots} move {announced}: every flow is recorded and stays, new ones are chosen anew"));
    } else {
        out.push(format!(
            "{slots} move {announced}: new flows on them go elsewhere; established ones stay, and are recorded as they speak for \
             {window}; one that is silent for longer moves"
        ));
    }
    if s.whole {
        out.push("size or hash inputs of the ring change: the ring before is kept until its flows are known".into());
    }
    for b in &s.backends {
        let flows = plural(b.flows_recorded, "recorded flow");
        out.push(match b.drain_s {
            0 => format!("{} goes at once; {flows} with it", b.backend),
            seconds => {
                format!("{} takes no new flows and drains for {} at most; {flows} now", b.backend, time(seconds))
            }
        });
    }
    out
}
