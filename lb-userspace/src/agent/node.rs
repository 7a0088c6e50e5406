//! The node: state, data plane and tally together, and the one way by which a change reaches the maps.
//!
//! Owns: planning and applying, the revision, the record of the last reload. Refuses to know: sockets, signals, who asks.
//!
//! Invariant: whatever the cause (file, operator, health, next hop), a change walks [`Node::publish`]; if it cannot be
//! carried out, the state before it stays.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use lb_core::abi::{
    backend::{BackendKey, FLAG_NEXT_HOP},
    loss::LossKind,
    ring::Slot,
    stats::{Counter, FlowTotals},
};

use super::{
    drain::Drains,
    state::State,
    tally::{ById, Tally},
};
use crate::{
    api,
    dataplane::{self, Dataplane, load::Attached, loss::Losses},
    model::{NextHop, ServiceKey},
    plan::{
        self, PlanError, Present, Summary, Wanted,
        ring::{self, Member},
    },
};

/// Age up to which counters are not read again.
const COUNTERS_AGE: Duration = Duration::from_millis(250);
/// How often a plan waits for what earlier changes took out of use.
const TRANSIENT_TRIES: u32 = 4;
/// Longest of these waits.
const TRANSIENT_WAIT: Duration = Duration::from_secs(2);

/// An interface that carries the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// Slot of its counters.
    pub slot: u32,
    /// Kernel's id of the program.
    pub program_id: u32,
}

impl From<&Attached> for Carrier {
    fn from(attached: &Attached) -> Self {
        Self {
            name: attached.name.clone(),
            ifindex: attached.ifindex,
            slot: attached.slot,
            program_id: attached.program_id,
        }
    }
}

/// Why a change did not reach the maps.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It cannot be planned; nothing was changed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The maps refused.
    #[error(transparent)]
    Data(#[from] dataplane::Error),
}

/// What a change did.
#[derive(Clone, Debug)]
pub struct Published {
    /// Revision in force.
    pub revision: u64,
    /// What changed in the maps.
    pub summary: Summary,
    /// Operations carried out.
    pub ops: usize,
    /// From planning to the last map written.
    pub took: Duration,
}

/// Counters as last read.
#[derive(Clone, Debug)]
struct Read {
    at: Instant,
    counted: Counted,
}

/// Counters of backends by id, as read from the maps; [`Node::tally`] and [`Node::flow_tally`] make totals of them.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Packets and bytes.
    pub packets: Arc<ById<Counter>>,
    /// Flows.
    pub flows: Arc<ById<FlowTotals>>,
}

type RingKey = (u32, Vec<(BackendKey, u32)>);

/// The node.
pub struct Node {
    /// What is known.
    pub state: State,
    /// The interfaces that carry the program.
    pub carriers: Vec<Carrier>,
    /// How the last reload went.
    pub reload: api::Reload,
    /// How it stands with the store, as last seen; `None` where the services stand in the file.
    pub store: Option<api::StoreStatus>,
    data: Box<dyn Dataplane>,
    losses: Option<Losses>,
    wanted: Wanted,
    tally: Tally<Counter>,
    flow_tally: Tally<FlowTotals>,
    drains: Drains,
    read: Option<Read>,
    slots: HashMap<ServiceKey, (RingKey, Vec<u32>)>,
}

impl Node {
    /// A node whose maps hold what `data` says; nothing is published yet.
    pub fn new(state: State, data: Box<dyn Dataplane>, carriers: Vec<Carrier>, losses: Option<Losses>) -> Self {
        let (tally, flow_tally) = (Tally::new(data.present()), Tally::new(data.present()));
        let reload = api::Reload {
            at_unix_s: 0,
            outcome: api::ReloadOutcome::Unchanged,
            message: "nothing was read yet".into(),
            diagnostics: Vec::new(),
        };
        let mut state = state;
        state.set_leaving(leaving(data.present()));
        let wanted = state.wanted(&|_| None);
        let drains = Drains::default();
        let slots = HashMap::new();
        Self {
            state,
            carriers,
            reload,
            store: None,
            data,
            losses,
            wanted,
            tally,
            flow_tally,
            drains,
            read: None,
            slots,
        }
    }

    /// The data plane.
    pub fn data(&self) -> &dyn Dataplane {
        &*self.data
    }

    /// What the maps were last told to hold.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// Revision that the maps hold.
    pub fn revision(&self) -> u64 {
        self.data.present().revision()
    }

    /// Makes the maps hold what follows from `state`. With `raise`, the revision goes up if anything changes.
    ///
    /// # Errors
    /// [`PublishError`]; the state before stays in force, and so do the maps unless they failed half-way.
    pub async fn publish(&mut self, state: State, raise: bool) -> Result<Published, PublishError> {
        self.publish_with(state, raise, || Ok(())).await
    }

    /// As [`Node::publish`], with a step between planning and writing: a change that cannot be planned does not take it,
    /// and if it fails, nothing is written.
    ///
    /// # Errors
    /// As [`Node::publish`], and what `commit` says.
    pub async fn publish_with<E: From<PublishError>>(
        &mut self,
        state: State,
        raise: bool,
        commit: impl FnOnce() -> Result<(), E>,
    ) -> Result<Published, E> {
        let started = Instant::now();
        let wanted = self.wanted_by(&state);
        let revision = self.revision() + u64::from(raise || self.revision() == 0);
        let plan = self.plan(&wanted, revision).await?;
        commit()?;
        let touched = self.tally.touched(&plan.next);
        let read = self.data.backend_counters(&touched).unwrap_or_default();
        let flows = self.data.flow_totals(&touched).unwrap_or_default();
        let (next, summary, ops) = (plan.next.clone(), plan.summary.clone(), plan.ops.len());
        self.data.apply(plan).map_err(PublishError::from)?;
        self.tally.changed(&next, &read);
        self.flow_tally.changed(&next, &flows);
        let begun = self.drains.changed(&next, self.data.now_s());
        self.slots.retain(|key, _| next.service(key).is_some());
        self.read = None;
        self.wanted = wanted;
        self.state = state;
        self.state.set_leaving(leaving(self.data.present()));
        self.tell_drains(&begun);
        Ok(Published { revision, summary, ops, took: started.elapsed() })
    }

    /// Says of drains that begin how they go on.
    fn tell_drains(&self, begun: &[u32]) {
        if begun.is_empty() {
            return;
        }
        for service in &self.state.effective().services {
            let backends = self.data.present().service(&service.key).map(|s| s.backends.as_slice()).unwrap_or_default();
            for backend in backends.iter().filter(|backend| begun.contains(&backend.id)) {
                if let Some(drain) = self.drain(service, backend) {
                    let name = api::backend_name(plan::wanted::address(backend.key.addr), backend.key.port);
                    tracing::info!(service = %service.name, backend = %name, "the backend drains: {}", drain.words());
                }
            }
        }
    }

    /// Whether the maps hold something else than what follows from `state`; also if that cannot be planned.
    pub fn differs(&self, state: &State) -> bool {
        let wanted = self.wanted_by(state);
        self.data.plan(&wanted, self.revision()).map_or(true, |plan| !plan.ops.is_empty())
    }

    /// The plan that [`Node::publish`] would carry out, as if backends without a result of their check were up.
    ///
    /// # Errors
    /// [`PublishError::Plan`].
    pub fn preview(&self, state: &State) -> Result<plan::Plan, PublishError> {
        let held = OnceCell::new();
        let wanted = state.expected(&|address| held.get_or_init(|| self.held_next_hops()).get(&address).copied());
        Ok(self.data.plan(&wanted, self.revision() + 1)?)
    }

    async fn plan(&mut self, wanted: &Wanted, revision: u64) -> Result<plan::Plan, PublishError> {
        for _ in 0..TRANSIENT_TRIES {
            match self.data.plan(wanted, revision) {
                Err(error) if error.is_transient() => {
                    let Some(until) = self.data.grace_until() else { return Err(error.into()) };
                    tracing::debug!(%error, "waiting for the grace of an earlier change");
                    let wait = until.saturating_duration_since(Instant::now()).min(TRANSIENT_WAIT);
                    tokio::time::sleep(wait).await;
                    self.data.settle(Instant::now())?;
                }
                planned => return Ok(planned?),
            }
        }
        Ok(self.data.plan(wanted, revision)?)
    }

    /// What the maps shall hold by `state`; what they hold is looked at only if the network has not spoken about all addresses.
    fn wanted_by(&self, state: &State) -> Wanted {
        let held = OnceCell::new();
        state.wanted(&|address| held.get_or_init(|| self.held_next_hops()).get(&address).copied())
    }

    /// Next hops that the maps hold, for addresses that the network has said nothing about yet.
    fn held_next_hops(&self) -> HashMap<IpAddr, NextHop> {
        let entries = self.data.present().services().flat_map(|(_, s)| &s.backends).map(|b| &b.entry);
        entries
            .filter(|e| e.flags & FLAG_NEXT_HOP != 0)
            .map(|e| {
                let hop = NextHop { ifindex: e.ifindex, mtu: e.mtu, src_mac: e.src_mac, dst_mac: e.dst_mac };
                (plan::wanted::address(e.addr), hop)
            })
            .collect()
    }

    /// When a plan has something to do that only time brings about, as from now.
    pub fn due_in(&self) -> Option<Duration> {
        self.data.due_in()
    }

    /// A look at the flow table, to be run on a thread of its own.
    pub fn look(&self) -> dataplane::LookJob {
        self.data.look()
    }

    /// Takes what a look found. Says whether a plan could bring something to its end by it.
    pub fn looked(&mut self, look: plan::Look) -> bool {
        let (before, now) = (self.data.last_look().map_or(0, |look| look.no_room), look.no_room);
        self.data.looked(look);
        // Told when it begins and when it ends, and not at every look.
        if before == 0 && now > 0 {
            tracing::warn!(
                records = now,
                "records have no room in the flow table that took another's place; they stay in that one, where they are found, and \
                 are tried again at every look"
            );
        } else if before > 0 && now == 0 {
            tracing::info!("the flow table before is empty; the next start of the agent gives its memory back");
        }
        self.data.present().waits_for_records()
    }

    /// When [`Node::settle`] has something to do.
    pub fn grace_until(&self) -> Option<Instant> {
        self.data.grace_until()
    }

    /// Gives back what earlier changes took out of use. Returns the number of changes.
    ///
    /// # Errors
    /// The maps refused.
    pub fn settle(&mut self) -> Result<usize, dataplane::Error> {
        self.data.settle(Instant::now())
    }

    /// Counters of backends by id, at most [`COUNTERS_AGE`] old.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn counters(&mut self) -> Result<Counted, dataplane::Error> {
        if let Some(read) = self.read.as_ref().filter(|read| read.at.elapsed() < COUNTERS_AGE) {
            return Ok(read.counted.clone());
        }
        let ids = self.tally.ids();
        let (packets, flows) = (self.data.backend_counters(&ids)?, self.data.flow_totals(&ids)?);
        let counted = Counted { packets: Arc::new(packets), flows: Arc::new(flows) };
        self.read = Some(Read { at: Instant::now(), counted: counted.clone() });
        Ok(counted)
    }

    /// The tally of packets and bytes.
    pub fn tally(&self) -> &Tally<Counter> {
        &self.tally
    }

    /// The tally of flows.
    pub fn flow_tally(&self) -> &Tally<FlowTotals> {
        &self.flow_tally
    }

    /// Since when backends drain.
    pub fn drains(&self) -> &Drains {
        &self.drains
    }

    /// Counters of the reasons of an interface slot, by number.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn reasons(&self, slot: u32) -> Result<BTreeMap<u32, Counter>, dataplane::Error> {
        self.data.reason_counters(slot)
    }

    /// Losses after the verdict, where they are counted.
    pub fn losses(&self) -> BTreeMap<(u32, LossKind), u64> {
        self.losses.as_ref().map(Losses::read).unwrap_or_default()
    }

    /// Slots of a service's ring, by the position of the backend in [`Node::wanted`]'s service. Computed, as the ring in the maps was,
    /// and remembered until its inputs change.
    pub fn slots(&mut self, key: &ServiceKey) -> Vec<u32> {
        let Ok(at) = self.wanted.services.binary_search_by_key(key, |s| s.key) else { return Vec::new() };
        let Some(service) = self.wanted.services.get(at) else { return Vec::new() };
        let inputs: RingKey = (service.ring_size, service.backends.iter().map(|b| (b.key, b.weight)).collect());
        if let Some((known, slots)) = self.slots.get(key)
            && *known == inputs
        {
            return slots.clone();
        }
        let factor = inputs.1.iter().fold(0, |factor, (_, weight)| gcd(factor, *weight)).max(1);
        let members: Vec<Member> = (1..)
            .zip(&inputs.1)
            .map(|(n, (key, weight))| Member { key: *key, weight: weight / factor, slot: Slot::settled(n).0 })
            .collect();
        let mut slots = vec![0; members.len()];
        for slot in ring::build(self.data.present().node().ring_seed, inputs.0, &members) {
            if let Some(count) = (Slot(slot).current() as usize).checked_sub(1).and_then(|n| slots.get_mut(n)) {
                *count += 1;
            }
        }
        self.slots.insert(*key, (inputs, slots.clone()));
        slots
    }

    /// Remembers how reading a configuration ended.
    pub fn record_reload(
        &mut self,
        outcome: api::ReloadOutcome,
        message: String,
        diagnostics: Vec<api::Diagnostic>,
        now: SystemTime,
    ) {
        let at_unix_s = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.reload = api::Reload { at_unix_s, outcome, message, diagnostics };
    }
}

/// Addresses of backends that are no longer configured and still have flows.
fn leaving(present: &Present) -> BTreeSet<IpAddr> {
    let backends = present.services().flat_map(|(_, service)| &service.backends);
    backends.filter(|b| b.leaves_s.is_some()).map(|b| plan::wanted::address(b.entry.addr)).collect()
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Published {
    /// `+1 backend, -2 services, 1 ring in 3 ms`.
    pub fn words(&self) -> String {
        let mut parts = Vec::new();
        let s = &self.summary;
        let mut part = |n: u32, sign: &str, noun: &str| {
            if n > 0 {
                parts.push(format!("{sign}{n} {noun}{}", if n == 1 { "" } else { "s" }));
            }
        };
        part(s.services_added, "+", "service");
        part(s.services_removed, "-", "service");
        part(s.backends_added, "+", "backend");
        part(s.backends_removed, "-", "backend");
        part(s.backends_changed, "~", "backend");
        part(s.backends_leaving, "draining ", "backend");
        part(s.rings_built, "", "ring");
        part(s.rings_moved_on, "window of ", "ring");
        let what = if parts.is_empty() { "nothing in the maps".to_owned() } else { parts.join(", ") };
        format!("{what} in {:.1} ms", self.took.as_secs_f64() * 1000.0)
    }
}
