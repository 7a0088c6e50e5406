//! What a scrape shows of connections, windows and the flow table.

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};

use super::{
    metrics::Labels,
    snapshot::{counter, gauge},
};
use crate::api::{BackendStats, Connections, FlowTable, ServiceStats, Stats};

/// A figure of a backend's connections with its name and help.
type Figure<T> = (&'static str, &'static str, fn(&Connections) -> T);

/// Figures that are there only where they mean something: exact ones with `track = all`, the estimate elsewhere.
const GAUGES: [Figure<Option<u64>>; 3] = [
    (
        "backend_connections_active",
        "Established flows of the backend, where every flow is recorded (track = all).",
        |c| c.active,
    ),
    (
        "backend_connections_pending",
        "Flows of the backend whose client has not completed the handshake, where every flow is recorded.",
        |c| c.pending,
    ),
    (
        "backend_connections_active_estimate",
        "SYNs less FINs and resets of the backend, where not every flow is recorded: an estimate of its active connections.",
        |c| c.active_estimate,
    ),
];

const COUNTERS: [Figure<u64>; 4] = [
    ("backend_syns", "SYNs forwarded, by backend; repeated ones too.", |c| c.syns),
    ("backend_fins", "Packets with FIN or RST from clients forwarded, by backend.", |c| c.fins),
    ("backend_connections_opened", "Recorded flows whose handshake the client completed, by backend.", |c| c.opened),
    ("backend_connections_closed", "Recorded flows that ended or expired after their handshake, by backend.", |c| {
        c.closed
    }),
];

/// Writes all of it.
pub fn encode(stats: &Stats, to: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
    backends(&stats.backends, to)?;
    slots(&stats.services, to)?;
    table(&stats.flows, to)
}

fn backends(backends: &[BackendStats], to: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
    let labels = |b: &BackendStats| Labels([("service", b.service.clone()), ("backend", b.backend.clone())]);
    for (name, help, figure) in GAUGES {
        let mut m = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for b in backends {
            figure(&b.connections).map_or(Ok(()), |value| gauge(&mut m, &labels(b), value))?;
        }
    }
    for (name, help, figure) in COUNTERS {
        let mut m = to.encode_descriptor(name, help, None, MetricType::Counter)?;
        backends.iter().try_for_each(|b| counter(&mut m, &labels(b), figure(&b.connections)))?;
    }
    Ok(())
}

fn slots(services: &[ServiceStats], to: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
    let help = "Slots of the service's ring by state; all but settled ones read the flow table.";
    let mut m = to.encode_descriptor("service_slots", help, None, MetricType::Gauge)?;
    for s in services {
        let states = [
            ("settled", s.slots.settled),
            ("announced", s.slots.announced),
            ("moving", s.slots.moving),
            ("residual", s.slots.residual),
        ];
        for (state, n) in states {
            gauge(&mut m, &[("service", s.service.as_str()), ("state", state)], u64::from(n))?;
        }
    }
    Ok(())
}

fn table(flows: &FlowTable, to: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
    let mut one = |name: &str, help: &str, value: u64| {
        let m = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(m)
    };
    one("flow_records_max", "Records that the flow table is made for (limits.flows_max).", flows.records_max)?;
    one("flow_places", "Places for records in the flow table.", flows.places)?;
    one("backends_leaving", "Backends that are no longer configured and drain.", u64::from(flows.backends_leaving))?;
    one(
        "backend_ids_former",
        "Ids of backends that are gone, kept from reuse while records or owners of slots name them.",
        u64::from(flows.backend_ids_former),
    )?;
    let look = flows.look.unwrap_or_default();
    one(
        "flow_active_drift",
        "By how much active and pending connections were off the records at the last look, summed over backends.",
        look.drift,
    )?;
    one(
        "flow_records_no_room",
        "Records that a change of limits.flows_max left in the table before for want of room, where they are found, at the last look.",
        look.no_room,
    )?;
    let mut m = to.encode_descriptor(
        "flow_records",
        "Records in the flow table at the last look, by state.",
        None,
        MetricType::Gauge,
    )?;
    let states = [
        ("half_open", look.half_open),
        ("established", look.established),
        ("closing", look.closing),
        ("once", look.once),
    ];
    states.iter().try_for_each(|(state, n)| gauge(&mut m, &[("state", *state)], *n))?;
    let mut m = to.encode_descriptor(
        "flow_events",
        "What happened to the flow table, by kind of event.",
        None,
        MetricType::Counter,
    )?;
    flows.events.iter().try_for_each(|e| counter(&mut m, &[("event", e.event.as_str())], e.count))?;
    // Without a look yet there is no time to tell.
    let Some(look) = flows.look else { return Ok(()) };
    let seconds = Some(&Unit::Seconds);
    let help = "How long the last look at the flow table took, sweeping included.";
    let m = to.encode_descriptor("flow_look_duration", help, seconds, MetricType::Gauge)?;
    ConstGauge::new(look.duration_us as f64 / 1e6).encode(m)?;
    let m = to.encode_descriptor(
        "flow_look_age",
        "Time since the last look at the flow table.",
        seconds,
        MetricType::Gauge,
    )?;
    ConstGauge::new(look.age_s).encode(m)
}
