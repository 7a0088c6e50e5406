//! Connections, windows, drains and the flow table in the words of the API.
//!
//! Owns: the translation, and what an estimate is. Refuses to know: how an answer travels. Reads only.

use std::time::Duration;

use lb_core::abi::{
    flow::{FlowState, WAYS},
    ring::Extent,
    stats::FlowTotals,
};

use super::{
    api::Refusal,
    drain::Times,
    node::Node,
    view::{Figures, failed, next_hop},
};
use crate::{
    api::{self, backend_name},
    model::{AdminState, Protocol, Service, ServiceKey},
    plan::{PresentBackend, PresentService, Records as _, wanted::address},
};

/// What is said of a backend's connections. `flows` are the recorded ones, established and half-open, where every flow is recorded;
/// elsewhere a protocol that says when connections begin and end allows an estimate.
fn connections(flows: Option<(u32, u32)>, recorded: u64, totals: FlowTotals, estimates: bool) -> api::Connections {
    api::Connections {
        active: flows.map(|(active, _)| u64::from(active)),
        pending: flows.map(|(_, pending)| u64::from(pending)),
        active_estimate: (flows.is_none() && estimates).then(|| totals.syns.saturating_sub(totals.fins)),
        recorded,
        syns: totals.syns,
        fins: totals.fins,
        opened: totals.opened,
        closed: totals.closed,
    }
}

fn plus(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

impl Node {
    fn present_service(&self, key: &ServiceKey) -> Option<&PresentService> {
        self.data().present().service(key)
    }

    /// Connections of the backend with an id.
    pub(super) fn connections(&self, service: &Service, id: u32, figures: &Figures) -> api::Connections {
        let all = self.present_service(&service.key).is_some_and(PresentService::tracks_all);
        let flows = (all && id != 0).then(|| self.data().flows(id));
        let recorded = self.data().last_look().map_or(0, |look| look.of_backend(id));
        let totals = self.flow_tally().backend(id, &figures.read.flows);
        connections(flows, recorded, totals, service.key.protocol == Protocol::Tcp)
    }

    /// Connections of a service.
    pub(super) fn service_connections(&self, service: &Service, figures: &Figures) -> api::Connections {
        let ids = self.present_service(&service.key).map(|s| s.backends.as_slice()).unwrap_or_default();
        let mut sum = api::Connections::default();
        for backend in ids {
            let one = self.connections(service, backend.id, figures);
            sum.active = plus(sum.active, one.active);
            sum.pending = plus(sum.pending, one.pending);
            sum.active_estimate = plus(sum.active_estimate, one.active_estimate);
            sum.recorded += one.recorded;
        }
        let totals = figures.flows.get(&service.key).copied().unwrap_or_default();
        api::Connections { syns: totals.syns, fins: totals.fins, opened: totals.opened, closed: totals.closed, ..sum }
    }

    /// Slots of a service's ring by state.
    pub(super) fn slot_states(&self, key: &ServiceKey) -> api::SlotStates {
        let Some(service) = self.present_service(key) else { return api::SlotStates::default() };
        let slots = Extent::unpack(service.entry.ring).slots;
        let [announced, moving, residual] = service.window.counts(slots);
        let settled = slots.saturating_sub(announced + moving + residual);
        api::SlotStates { settled, announced, moving, residual }
    }

    /// Time until the last slot of a service stops recording.
    pub(super) fn window_ends_in_s(&self, key: &ServiceKey) -> Option<u64> {
        let service = self.present_service(key)?;
        Some(service.window.ends_s(service.times)?.saturating_sub(self.data().now_s()))
    }

    /// Where the drain of a backend stands.
    pub(super) fn drain(&self, service: &Service, backend: &PresentBackend) -> Option<api::Drain> {
        let present = self.present_service(&service.key)?;
        let windows = self.wanted_service(&service.key).is_none_or(|w| w.policy.windows);
        let announce_s = if windows { present.times.announce_s } else { 0 };
        let times = Times { announce_s, drain_s: service.flows.drain_timeout.as_secs() };
        let (active, pending) = self.data().flows(backend.id);
        let connections = present.tracks_all().then(|| u64::from(active) + u64::from(pending));
        self.drains().of(backend, times, self.data().now_s(), connections)
    }

    /// Backends of a service that are no longer configured and drain.
    pub(super) fn leaving(&self, key: &ServiceKey) -> impl Iterator<Item = &PresentBackend> {
        let backends = self.present_service(key).map(|s| s.backends.as_slice()).unwrap_or_default();
        backends.iter().filter(|backend| backend.leaves_s.is_some())
    }

    /// A leaving backend. It is not checked any more, and has no place in the ring.
    pub(super) fn leaving_view(&self, service: &Service, backend: &PresentBackend, figures: &Figures) -> api::Backend {
        let (address, port) = (address(backend.key.addr), backend.key.port);
        let counter = self.tally().backend(backend.id, &figures.read.packets);
        api::Backend {
            service: service.name.clone(),
            name: backend_name(address, port),
            address,
            port,
            id: backend.id,
            weight_configured: 0,
            weight_override: None,
            weight_effective: 0,
            admin_state_configured: AdminState::Drain,
            admin_state_override: None,
            health: api::HealthState::Unchecked,
            health_reason: None,
            health_since_unix_s: None,
            leaving: true,
            drain: self.drain(service, backend),
            connections: self.connections(service, backend.id, figures),
            max_connections: backend.entry.max_connections,
            next_hop: next_hop(self.state.next_hop(address)),
            share: api::Share::default(),
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }

    /// The flow table.
    pub(super) fn flow_table(&self) -> Result<api::FlowTable, Refusal> {
        let (data, present) = (self.data(), self.data().present());
        let look = data.last_look().map(|look| api::FlowLook {
            age_s: data.now_s().saturating_sub(look.at_s()),
            duration_us: micros(look.took),
            swept: look.swept,
            no_room: look.no_room,
            drift: look.drift,
            half_open: look.in_state(FlowState::HalfOpen),
            established: look.in_state(FlowState::Established),
            closing: look.in_state(FlowState::Closing),
            once: look.in_state(FlowState::Once),
        });
        let events = data.flow_events().map_err(failed)?;
        let leaving = present.services().flat_map(|(_, s)| &s.backends).filter(|b| b.leaves_s.is_some()).count();
        Ok(api::FlowTable {
            records_max: u64::from(present.sizes().flows_max),
            places: u64::from(present.sizes().flow_buckets) * WAYS as u64,
            look,
            events: events
                .into_iter()
                .map(|(event, count)| api::FlowEventCount { event: event.name().into(), count })
                .collect(),
            backends_leaving: leaving as u32,
            backend_ids_former: present.former().len() as u32,
        })
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_stands_only_where_nothing_is_counted() {
        let totals = FlowTotals { syns: 130, fins: 10, opened: 7, closed: 3 };
        let exact = connections(Some((5, 2)), 9, totals, true);
        assert_eq!((exact.active, exact.pending, exact.active_estimate, exact.recorded), (Some(5), Some(2), None, 9));
        assert_eq!((exact.syns, exact.fins, exact.opened, exact.closed), (130, 10, 7, 3));
        let moved = connections(None, 0, totals, true);
        assert_eq!((moved.active, moved.active_estimate), (None, Some(120)));
        let more_ends = FlowTotals { syns: 1, fins: 3, ..totals };
        assert_eq!(connections(None, 0, more_ends, true).active_estimate, Some(0));
        assert_eq!(connections(None, 0, totals, false).active_estimate, None, "datagrams do not say when a flow ends");
    }
}
