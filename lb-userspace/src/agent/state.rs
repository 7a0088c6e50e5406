//! What the agent knows, and what follows from it.
//!
//! Owns: the configuration in force, overrides, observed health and next hops, and the translation between a backend and the
//! probe that it shares with others. Refuses to know: clocks, sockets, maps.
//!
//! Pure. Invariants: `effective` is always configuration plus overrides; there is one [`Observed`] per target of `effective`, no
//! more and no fewer, so health of what left the configuration is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::overrides::{BackendId, Dropped, Overrides};
use crate::{
    health::{
        self, Candidate, Outcome, Target,
        shared::{self, Health},
    },
    model::{AdminState, Backend, Config, Service, ServiceKey},
    net::{Resolution, Table},
    plan::{self, Standing, Wanted},
};

/// Health of one target as observed.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// Judged state.
    pub state: health::State,
    /// When it was last another one.
    pub since: Option<SystemTime>,
    /// The last result.
    pub last: Option<LastResult>,
    /// Results in a row that speak against `state`.
    pub against: u32,
    /// How many of those change it.
    pub against_max: u32,
    /// Changes of state since the agent started.
    pub transitions: u64,
    /// Reason word of the judgement in the store, where that counts; `None` where this node checks for itself.
    pub spoken: Option<String>,
    /// Name of the target in the store, once it was looked for.
    name: Option<Arc<str>>,
}

/// What judgements of the store changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// Targets whose state changed, with whether they are up.
    pub states: Vec<(Target, Health)>,
    /// Whether other targets than before are checked by this node.
    pub sources: bool,
}

/// The last result of a probe.
#[derive(Clone, Debug, PartialEq)]
pub struct LastResult {
    /// What it found.
    pub outcome: Outcome,
    /// When.
    pub at: SystemTime,
    /// How long it took.
    pub latency: Duration,
}

/// A backend within the configuration: index of its service, index within the service.
pub type Place = (usize, usize);

/// What the agent knows.
#[derive(Clone, Debug)]
pub struct State {
    config: Config,
    overrides: Overrides,
    effective: Config,
    health: BTreeMap<Target, Observed>,
    users: BTreeMap<Target, Vec<Place>>,
    /// Backends whose check began when nobody of their service was judged. What is said of one that is judged by now does not count.
    starting: BTreeSet<BackendId>,
    /// Addresses of backends that are no longer configured and still have flows.
    leaving: BTreeSet<IpAddr>,
    /// Shared between copies: a change of the configuration seldom touches it, and it is large.
    next_hops: Arc<Table>,
}

/// What asks a backend for its health: `None` without a check, or while it is in maintenance.
pub fn target(service: &Service, backend: &Backend) -> Option<Target> {
    let check = service.health_check.as_ref().filter(|_| backend.admin_state != AdminState::Maint)?;
    let address = SocketAddr::new(backend.address, check.port.unwrap_or(backend.port));
    // The port stands in the address; two services that reach it in different words share one probe.
    Some(Target { address, check: health_check_without_port(check) })
}

fn health_check_without_port(check: &crate::model::HealthCheck) -> crate::model::HealthCheck {
    crate::model::HealthCheck { port: None, ..check.clone() }
}

impl State {
    /// The state at the start. `inherited` is the health that a data plane which was taken over holds, if any.
    pub fn new(config: Config, overrides: Overrides, inherited: &dyn Fn(&BackendId) -> Option<bool>) -> Self {
        let mut state = Self {
            effective: config.clone(),
            config,
            overrides,
            health: BTreeMap::new(),
            users: BTreeMap::new(),
            starting: BTreeSet::new(),
            leaving: BTreeSet::new(),
            next_hops: Arc::default(),
        };
        state.refresh(inherited);
        state
    }

    /// The configuration as the file has it.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The configuration with overrides in force; services and backends are at the same places as in [`State::config`].
    pub fn effective(&self) -> &Config {
        &self.effective
    }

    /// The overrides.
    pub fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// Puts a new configuration in force. Overrides that it outdates are dropped and returned.
    pub fn set_config(&mut self, config: Config) -> Vec<Dropped> {
        let dropped = self.overrides.reconcile(&config);
        let before = self.known_health();
        self.config = config;
        self.refresh(&|id| before.get(id).copied());
        dropped
    }

    /// Puts other overrides in force.
    pub fn set_overrides(&mut self, overrides: Overrides) {
        let before = self.known_health();
        self.overrides = overrides;
        self.refresh(&|id| before.get(id).copied());
    }

    /// Judged health of every backend that has one.
    fn known_health(&self) -> BTreeMap<BackendId, bool> {
        let mut known = BTreeMap::new();
        for (target, places) in &self.users {
            let up = match self.health.get(target).map(|o| o.state) {
                Some(health::State::Up) => true,
                Some(health::State::Down) => false,
                Some(health::State::Unknown) | None => continue,
            };
            for place in places {
                if let Some((service, backend)) = at(&self.effective, *place) {
                    known.insert(BackendId::new(service.key, backend), up);
                }
            }
        }
        known
    }

    /// Computes what follows from configuration and overrides. A target that is new starts with what is known of one of
    /// its backends: a changed check does not forget that a backend is down.
    fn refresh(&mut self, known: &dyn Fn(&BackendId) -> Option<bool>) {
        self.effective = self.overrides.apply(&self.config);
        let mut users: BTreeMap<Target, Vec<Place>> = BTreeMap::new();
        for (s, service) in self.effective.services.iter().enumerate() {
            for (b, backend) in service.backends.iter().enumerate() {
                if let Some(target) = target(service, backend) {
                    users.entry(target).or_default().push((s, b));
                }
            }
        }
        let mut before = std::mem::take(&mut self.health);
        for (target, places) in &users {
            let observed = before.remove(target).unwrap_or_else(|| {
                let inherited = places.iter().find_map(|place| {
                    let (service, backend) = at(&self.effective, *place)?;
                    known(&BackendId::new(service.key, backend))
                });
                Observed::starting(inherited)
            });
            self.health.insert(target.clone(), observed);
        }
        self.users = users;
        self.starting = self.starting(known);
    }

    /// The backends without a result whose check began, or begins now, when nobody of their service was judged; `known` is what was
    /// judged before.
    fn starting(&self, known: &dyn Fn(&BackendId) -> Option<bool>) -> BTreeSet<BackendId> {
        let mut begins: BTreeMap<usize, bool> = BTreeMap::new();
        let unknown = self.health.iter().filter(|(_, observed)| observed.state == health::State::Unknown);
        let places = unknown.filter_map(|(target, _)| self.users.get(target)).flatten();
        let starts = places.filter_map(|place| {
            let (service, backend) = at(&self.effective, *place)?;
            let id = |backend: &Backend| BackendId::new(service.key, backend);
            let mut first =
                || *begins.entry(place.0).or_insert_with(|| service.backends.iter().all(|b| known(&id(b)).is_none()));
            (self.starting.contains(&id(backend)) || first()).then(|| id(backend))
        });
        starts.collect()
    }

    /// What the checker shall probe, each with the state that a new target starts from.
    pub fn targets(&self) -> BTreeMap<Target, Option<bool>> {
        let up = |o: &Observed| match o.state {
            health::State::Up => Some(true),
            health::State::Down => Some(false),
            health::State::Unknown => None,
        };
        self.health.iter().map(|(target, observed)| (target.clone(), up(observed))).collect()
    }

    /// As [`State::targets`], those of them that this node checks for itself.
    pub fn own_targets(&self) -> BTreeMap<Target, Option<bool>> {
        let mut targets = self.targets();
        targets.retain(|target, _| !self.is_spoken_for(target));
        targets
    }

    /// Whether the store speaks for a target.
    pub fn is_spoken_for(&self, target: &Target) -> bool {
        self.health.get(target).is_some_and(|observed| observed.spoken.is_some())
    }

    /// How many targets the store speaks for, and how many this node checks for itself.
    pub fn sources(&self) -> (u32, u32) {
        let spoken = self.health.values().filter(|observed| observed.spoken.is_some()).count();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (count(spoken), count(self.health.len() - spoken))
    }

    /// Takes what the store says, by the names of targets. A target of which it says nothing any more keeps its state, from which
    /// this node's own check goes on: another source by itself changes no state.
    pub fn judge(&mut self, judgements: &BTreeMap<String, Health>) -> Judged {
        let mut judged = Judged::default();
        for (target, observed) in &mut self.health {
            if judgements.is_empty() && observed.spoken.is_none() {
                continue;
            }
            let name = observed.name.get_or_insert_with(|| shared::name(target).into());
            let said = judgements.get(&**name);
            judged.sources |= said.is_some() != observed.spoken.is_some();
            if said.is_some() != observed.spoken.is_some() {
                // Of the other source nothing is known here yet.
                (observed.last, observed.against, observed.against_max) = (None, 0, 0);
            }
            observed.spoken = said.map(|health| health.reason.clone());
            let Some(health) = said else { continue };
            let state = if health.up { health::State::Up } else { health::State::Down };
            if observed.state != state {
                observed.state = state;
                observed.transitions += 1;
                observed.since = Some(SystemTime::UNIX_EPOCH + Duration::from_millis(health.since.0));
                judged.states.push((target.clone(), health.clone()));
            }
        }
        judged
    }

    /// Addresses of all backends that packets may go to.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.backends().filter(|(_, b)| b.admin_state != AdminState::Maint).map(|(_, b)| b.address).collect()
    }

    /// Addresses whose next hops are needed: of [`State::addresses`], and of backends that leave, for as long as they have flows.
    pub fn destinations(&self) -> BTreeSet<IpAddr> {
        &self.addresses() | &self.leaving
    }

    /// Takes note of which backends leave.
    pub fn set_leaving(&mut self, leaving: BTreeSet<IpAddr>) {
        self.leaving = leaving;
    }

    /// Addresses that clients connect to.
    pub fn vips(&self) -> BTreeSet<IpAddr> {
        self.effective.services.iter().map(|s| s.key.vip).collect()
    }

    /// Every backend with its service, overrides in force.
    pub fn backends(&self) -> impl Iterator<Item = (&Service, &Backend)> {
        self.effective.services.iter().flat_map(|s| s.backends.iter().map(move |b| (s, b)))
    }

    /// Takes a result of a target for which the store does not speak. Returns whether it changes what is judged; a result of a target that is gone changes nothing.
    pub fn observe(&mut self, event: &health::Event) -> bool {
        let Some(observed) = self.health.get_mut(&*event.target) else { return false };
        let changed = observed.state != event.state;
        if changed {
            observed.since = Some(event.at);
        }
        observed.transitions += u64::from(event.transition.is_some());
        observed.state = event.state;
        observed.last = Some(LastResult { outcome: event.outcome.clone(), at: event.at, latency: event.latency });
        (observed.against, observed.against_max) = (event.against, event.against_max);
        changed
    }

    /// The backends that a target speaks for.
    pub fn users(&self, target: &Target) -> impl Iterator<Item = (&Service, &Backend)> {
        self.users.get(target).into_iter().flatten().filter_map(|place| at(&self.effective, *place))
    }

    /// What is observed of a backend; `None` if nothing asks it.
    pub fn observed(&self, service: &Service, backend: &Backend) -> Option<&Observed> {
        self.health.get(&target(service, backend)?)
    }

    /// Whether a backend counts as up: judged so, or not asked.
    pub fn up(&self, service: &Service, backend: &Backend) -> bool {
        self.observed(service, backend).is_none_or(|o| o.state == health::State::Up)
    }

    /// What health says of a backend.
    fn judged(&self, service: &Service, backend: &Backend) -> Standing {
        match self.observed(service, backend).map(|o| o.state) {
            None | Some(health::State::Up) => Standing::Up,
            Some(health::State::Down) => Standing::Down,
            Some(health::State::Unknown) if self.starting.contains(&BackendId::new(service.key, backend)) => {
                Standing::Starting
            }
            Some(health::State::Unknown) => Standing::Unknown,
        }
    }

    /// Whether health left the service no backend, so that all that are ready take traffic.
    pub fn fail_open(&self, service: &Service) -> bool {
        let candidates: Vec<Candidate> = service
            .backends
            .iter()
            .map(|b| Candidate {
                weight: b.weight,
                admin_state: b.admin_state,
                health: self.observed(service, b).map(|o| o.state),
            })
            .collect();
        health::effective(&candidates).fail_open
    }

    /// Takes what the network says about the ways to addresses, of which some may matter only later: who comes back is known. Returns
    /// whether a next hop changed; a changed cause of a failure does not count.
    pub fn resolved(&mut self, table: Arc<Table>) -> bool {
        let before = std::mem::replace(&mut self.next_hops, table);
        let of = |table: &Table, address| table.get(address).and_then(Resolution::next_hop);
        self.destinations().iter().any(|address| of(&before, address) != of(&self.next_hops, address))
    }

    /// What is known about the way to an address.
    pub fn next_hop(&self, address: IpAddr) -> Option<&Resolution> {
        self.next_hops.get(&address)
    }

    /// Whether every address has an answer, good or bad, other than "not looked up yet".
    pub fn all_answered(&self) -> bool {
        self.addresses().iter().all(|a| self.next_hops.get(a).is_some_and(|r| r.next_hop().is_some()))
    }

    /// Addresses without next hop.
    pub fn unresolved(&self) -> usize {
        self.addresses().iter().filter(|a| self.next_hops.get(a).and_then(Resolution::next_hop).is_none()).count()
    }

    /// What the maps shall hold. `held` is the next hop that the maps hold already: it stays in use until the network
    /// says something about the address, so that a restart of the agent interrupts nothing.
    pub fn wanted(&self, held: &dyn Fn(IpAddr) -> Option<crate::model::NextHop>) -> Wanted {
        self.wanted_if(&|service, backend| self.judged(service, backend), held)
    }

    /// As [`State::wanted`], once backends without a result of their check are up.
    pub fn expected(&self, held: &dyn Fn(IpAddr) -> Option<crate::model::NextHop>) -> Wanted {
        let expected = |judged| if judged == Standing::Down { Standing::Down } else { Standing::Up };
        self.wanted_if(&|service, backend| expected(self.judged(service, backend)), held)
    }

    fn wanted_if(
        &self,
        judged: &dyn Fn(&Service, &Backend) -> Standing,
        held: &dyn Fn(IpAddr) -> Option<crate::model::NextHop>,
    ) -> Wanted {
        // While an answer is under way, nothing is said yet.
        let said = |address: &IpAddr| self.next_hops.get(address).filter(|resolution| !resolution.is_underway());
        let known = |address: &IpAddr| Some((*address, said(address)?.next_hop()));
        let way = |address| said(&address).map_or_else(|| held(address), Resolution::next_hop);
        let wanted = plan::wanted(&self.effective, judged, &way);
        Wanted { leaving: self.leaving.iter().filter_map(known).collect(), ..wanted }
    }

    /// The service with that key, overrides in force.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.effective.services.iter().find(|s| s.key == *key)
    }
}

fn at(config: &Config, (service, backend): Place) -> Option<(&Service, &Backend)> {
    let service = config.services.get(service)?;
    Some((service, service.backends.get(backend)?))
}

impl Observed {
    fn starting(up: Option<bool>) -> Self {
        let state = match up {
            Some(true) => health::State::Up,
            Some(false) => health::State::Down,
            None => health::State::Unknown,
        };
        Self { state, since: None, last: None, against: 0, against_max: 0, transitions: 0, spoken: None, name: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{NextHop, check},
        net::Cause,
    };

    fn config(backends: &[u8]) -> Config {
        let mut text = String::from(
            "[node]\ninterface = \"eth0\"\n[[service]]\nname = \"s\"\nvip = \"192.0.2.1\"\nport = 80\nforward = \"dsr\"\n",
        );
        backends.iter().for_each(|last| text += &format!("[[service.backends]]\naddress = \"10.0.0.{last}\"\n"));
        check("f", &text).config.expect("a configuration")
    }

    /// A result after which a target is in a state.
    fn event(target: &Target, state: health::State) -> health::Event {
        health::Event {
            target: Arc::new(target.clone()),
            outcome: Outcome::L4Ok,
            latency: Duration::ZERO,
            late: Duration::ZERO,
            state,
            transition: None,
            against: 0,
            against_max: 2,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    /// The state follows the store while that speaks, stays as it is when it falls silent, and is this node's own again then.
    #[test]
    fn the_source_of_health_changes_without_a_change_of_health() {
        let text = "[node]\ninterface = \"eth0\"\n[[service]]\nname = \"s\"\nvip = \"192.0.2.1\"\nport = 80\nforward = \"dsr\"\n\
                    [service.health_check]\ntype = \"tcp\"\n[[service.backends]]\naddress = \"10.0.0.1\"\n\
                    [[service.backends]]\naddress = \"10.0.0.2\"\n";
        let config = check("f", text).config.expect("a configuration");
        let mut state = State::new(config, Overrides::default(), &|_| Some(true));
        let targets: Vec<Target> = state.targets().into_keys().collect();
        let health = |up| Health { up, reason: "L4CON".into(), since: shared::UnixMs(5_000), votes: BTreeMap::new() };
        let said = |up: &[bool]| -> BTreeMap<String, Health> {
            targets.iter().map(shared::name).zip(up.iter().map(|up| health(*up))).collect()
        };
        assert_eq!(state.judge(&BTreeMap::new()), Judged::default());
        assert_eq!(state.judge(&said(&[true])), Judged { states: vec![], sources: true }, "it says what is known");
        assert_eq!((state.sources(), state.own_targets().len()), ((1, 1), 1));
        assert!(state.is_spoken_for(&targets[0]) && !state.is_spoken_for(&targets[1]));
        assert!(state.observe(&event(&targets[1], health::State::Down)), "this one is checked here");
        let judged = state.judge(&said(&[false, false]));
        assert_eq!(judged.states.len(), 1, "the second one is down already");
        assert!(judged.sources && state.own_targets().is_empty());
        // Silence: both stay down, and are checked here from there on.
        assert_eq!(state.judge(&BTreeMap::new()), Judged { states: vec![], sources: true });
        assert!(state.own_targets().values().all(|up| *up == Some(false)) && state.own_targets().len() == 2);
        assert!(state.observe(&event(&targets[0], health::State::Up)));
    }

    /// A service begins with all that it has; who comes later waits for its first result, whatever else changes meanwhile.
    #[test]
    fn who_is_there_when_a_service_begins_takes_flows_before_it_is_judged() {
        let config = |backends: &[u8]| {
            let mut text = String::from(
                "[node]\ninterface = \"eth0\"\n[[service]]\nname = \"s\"\nvip = \"192.0.2.1\"\nport = 80\nforward = \"dsr\"\n\
                 [service.health_check]\ntype = \"tcp\"\n",
            );
            backends.iter().for_each(|last| text += &format!("[[service.backends]]\naddress = \"10.0.0.{last}\"\n"));
            check("f", &text).config.expect("a configuration")
        };
        let weights = |state: &State| -> Vec<u32> {
            let wanted = state.wanted(&|_| None);
            wanted.services.iter().flat_map(|service| &service.backends).map(|backend| backend.weight).collect()
        };
        let observe = |state: &mut State, last: u8, to| {
            let target =
                state.targets().into_keys().find(|target| target.address.ip() == IpAddr::from([10, 0, 0, last]));
            assert!(state.observe(&event(&target.expect("it is asked"), to)));
        };
        let mut state = State::new(config(&[1, 2]), Overrides::default(), &|_| None);
        assert_eq!(weights(&state), [1, 1]);
        observe(&mut state, 1, health::State::Up);
        assert_eq!(weights(&state), [1, 1], "the second one stands until it is judged");
        state.set_config(config(&[1, 2, 3]));
        assert_eq!(weights(&state), [1, 1, 0], "and the third one does not stand before");
        state.set_config(config(&[1, 2, 3, 4]));
        assert_eq!(weights(&state), [1, 1, 0, 0]);
        observe(&mut state, 2, health::State::Down);
        observe(&mut state, 3, health::State::Up);
        assert_eq!(weights(&state), [1, 0, 1, 0]);
        // Whoever takes the maps over knows who was judged.
        let up = |id: &BackendId| (id.address == IpAddr::from([10, 0, 0, 1])).then_some(true);
        assert_eq!(weights(&State::new(config(&[1, 2]), Overrides::default(), &up)), [1, 0]);
    }

    /// The network is asked about a backend that leaves for as long as it does, and what it says reaches the maps.
    #[test]
    fn a_backend_that_leaves_is_still_resolved() {
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let hop = |last| {
            let next_hop = NextHop { ifindex: 1, mtu: 1500, src_mac: [2; 6], dst_mac: [2, 0, 0, 0, 0, last] };
            Resolution::Resolved { next_hop, interface: "eth0".into(), gateway: None }
        };
        let table = |hops: &[(u8, u8)]| Arc::new(hops.iter().map(|(last, to)| (address(*last), hop(*to))).collect());
        let mut state = State::new(config(&[1, 2]), Overrides::default(), &|_| None);
        assert!(state.resolved(table(&[(1, 1), (2, 2)])));
        state.set_config(config(&[1]));
        assert!(!state.destinations().contains(&address(2)) && state.wanted(&|_| None).leaving.is_empty());
        state.set_leaving([address(2)].into());
        assert!(state.destinations().contains(&address(2)) && !state.addresses().contains(&address(2)));
        assert!(state.resolved(table(&[(1, 1), (2, 3)])), "a change of its next hop is a change");
        assert_eq!(state.wanted(&|_| None).leaving, [(address(2), hop(3).next_hop())].into());
        assert_eq!(state.unresolved(), 0, "it is none of those that are configured");
        state.set_leaving(BTreeSet::new());
        assert!(!state.resolved(table(&[(1, 1), (2, 4)])), "it is gone");
    }

    /// Whoever takes an address away and brings it back finds what the network says about it, which says nothing new meanwhile.
    #[test]
    fn the_way_to_a_backend_that_comes_back_is_known() {
        let to = |last| IpAddr::from([10, 0, 0, last]);
        let next_hop = NextHop { ifindex: 1, mtu: 1500, src_mac: [2; 6], dst_mac: [3; 6] };
        let resolved = Resolution::Resolved { next_hop, interface: "eth0".into(), gateway: None };
        let way = |state: &State, held: Option<NextHop>| state.wanted(&|_| held).services[0].backends[1].next_hop;
        let mut state = State::new(config(&[1, 2]), Overrides::default(), &|_| None);
        state.resolved(Arc::new([(to(1), resolved.clone()), (to(2), resolved.clone())].into()));
        state.set_config(config(&[1]));
        state.set_config(config(&[1, 2]));
        assert_eq!((way(&state, None), state.unresolved()), (Some(next_hop), 0));
        // While the network is asked anew, the way that the maps hold is good; what it then says counts.
        let other = NextHop { dst_mac: [4; 6], ..next_hop };
        for (cause, expected) in [(Cause::Pending, Some(other)), (Cause::NoRoute, None)] {
            state.resolved(Arc::new([(to(1), resolved.clone()), (to(2), Resolution::Unresolved(cause))].into()));
            assert_eq!(way(&state, Some(other)), expected);
        }
    }
}
