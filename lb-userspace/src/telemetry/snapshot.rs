//! What a scrape shows of the state of the node at one moment.

use std::collections::BTreeMap;

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, EncodeMetric as _, MetricEncoder,
    },
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::metrics::Labels;
use crate::api;

/// State of a backend as one word; the strongest that applies, in this order: leaving, maint, drain, down, unresolved, up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// Takes traffic according to its weight.
    Up,
    /// Health judged it down.
    Down,
    /// Takes no new flows.
    Drain,
    /// Taken out, not checked.
    Maint,
    /// No next hop.
    Unresolved,
    /// No longer configured, until its drain is over.
    Leaving,
}

impl BackendState {
    /// Every state.
    pub const ALL: [Self; 6] = [Self::Up, Self::Down, Self::Drain, Self::Maint, Self::Unresolved, Self::Leaving];

    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Drain => "drain",
            Self::Maint => "maint",
            Self::Unresolved => "unresolved",
            Self::Leaving => "leaving",
        }
    }
}

/// The state of the node at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Revision that the maps hold.
    pub revision: u64,
    /// Counters.
    pub stats: api::Stats,
    /// State of each backend, in the order of `stats.backends`.
    pub states: Vec<BackendState>,
    /// Whether each service fails open, in the order of `stats.services`.
    pub fail_open: Vec<bool>,
    /// Interfaces.
    pub interfaces: Vec<api::Interface>,
    /// Fill of the maps.
    pub maps: Vec<api::MapFill>,
    /// Backend addresses without a next hop.
    pub next_hops_unresolved: u64,
    /// How it stands with the store, where the services come from one.
    pub store: Option<api::StoreStatus>,
}

/// XDP modes by word, in the order of the one-hot series.
const MODES: [(api::XdpModeInForce, &str); 4] = [
    (api::XdpModeInForce::Native, "native"),
    (api::XdpModeInForce::Generic, "generic"),
    (api::XdpModeInForce::Offload, "offload"),
    (api::XdpModeInForce::Detached, "detached"),
];

const fn action_word(action: api::Action) -> &'static str {
    match action {
        api::Action::Pass => "pass",
        api::Action::Drop => "drop",
        api::Action::Tx => "tx",
        api::Action::Redirect => "redirect",
        api::Action::Forward => "forward",
        api::Action::Aborted => "aborted",
    }
}

pub(super) fn counter(to: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> std::fmt::Result
where
    u64: EncodeCounterValue,
{
    ConstCounter::new(value).encode(to.encode_family(labels)?)
}

pub(super) fn gauge<T: EncodeGaugeValue + Copy>(
    to: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: T,
) -> std::fmt::Result
where
    ConstGauge<T>: prometheus_client::encoding::EncodeMetric,
{
    ConstGauge::new(value).encode(to.encode_family(labels)?)
}

impl Collector for Snapshot {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.services(&mut to)?;
        self.backends(&mut to)?;
        super::flows::encode(&self.stats, &mut to)?;
        self.reasons(&mut to)?;
        if let Some(store) = &self.store {
            super::store::encode(store, &mut to)?;
        }
        self.node(&mut to)
    }
}

impl Snapshot {
    fn services(&self, to: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let services = &self.stats.services;
        let mut m = to.encode_descriptor(
            "service_packets",
            "Packets forwarded, by service; also those to backends that are gone.",
            None,
            MetricType::Counter,
        )?;
        services.iter().try_for_each(|s| counter(&mut m, &[("service", s.service.as_str())], s.packets))?;
        let mut m = to.encode_descriptor(
            "service",
            "Bytes forwarded, as received from the Ethernet header on, by service.",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        services.iter().try_for_each(|s| counter(&mut m, &[("service", s.service.as_str())], s.bytes))?;
        let mut m = to.encode_descriptor(
            "service_fail_open",
            "1 while health left no backend of the service and all ready ones take traffic therefore.",
            None,
            MetricType::Gauge,
        )?;
        services
            .iter()
            .zip(&self.fail_open)
            .try_for_each(|(s, open)| gauge(&mut m, &[("service", s.service.as_str())], i64::from(*open)))
    }

    fn backends(&self, to: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let backends = &self.stats.backends;
        let labels = |b: &api::BackendStats| Labels([("service", b.service.clone()), ("backend", b.backend.clone())]);
        let mut m =
            to.encode_descriptor("backend_packets", "Packets forwarded, by backend.", None, MetricType::Counter)?;
        backends.iter().try_for_each(|b| counter(&mut m, &labels(b), b.packets))?;
        let mut m = to.encode_descriptor(
            "backend",
            "Bytes forwarded, as received from the Ethernet header on, by backend.",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        backends.iter().try_for_each(|b| counter(&mut m, &labels(b), b.bytes))?;
        let mut m = to.encode_descriptor(
            "backend_state",
            "1 for the state that the backend is in, 0 for the others.",
            None,
            MetricType::Gauge,
        )?;
        for (b, is) in backends.iter().zip(&self.states) {
            for state in BackendState::ALL {
                let labels =
                    [("service", b.service.as_str()), ("backend", b.backend.as_str()), ("state", state.word())];
                gauge(&mut m, &labels, i64::from(state == *is))?;
            }
        }
        Ok(())
    }

    fn reasons(&self, to: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let each = |to: &mut MetricEncoder<'_>, value: fn(&api::ReasonCount) -> u64| {
            for i in &self.stats.interfaces {
                for r in &i.reasons {
                    let labels = [
                        ("interface", i.interface.as_str()),
                        ("reason", r.reason.as_str()),
                        ("action", action_word(r.action)),
                    ];
                    counter(to, &labels, value(r))?;
                }
            }
            Ok(())
        };
        let mut m = to.encode_descriptor(
            "packets",
            "Packets received, each under exactly one reason.",
            None,
            MetricType::Counter,
        )?;
        each(&mut m, |r| r.packets)?;
        let mut m = to.encode_descriptor(
            "received",
            "Bytes of packets received, each under exactly one reason.",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        each(&mut m, |r| r.bytes)?;
        let mut m = to.encode_descriptor(
            "xdp_actions",
            "What the program did with the packets of an interface.",
            None,
            MetricType::Counter,
        )?;
        for i in &self.stats.interfaces {
            let mut actions: BTreeMap<&str, u64> = BTreeMap::new();
            for r in &i.reasons {
                *actions.entry(action_word(r.action)).or_default() += r.packets;
            }
            for (action, packets) in actions {
                counter(&mut m, &[("interface", i.interface.as_str()), ("action", action)], packets)?;
            }
        }
        let mut m = to.encode_descriptor(
            "losses",
            "Packets lost after the program's verdict, by cause.",
            None,
            MetricType::Counter,
        )?;
        for i in &self.stats.interfaces {
            for l in &i.losses {
                counter(&mut m, &[("interface", i.interface.as_str()), ("loss", l.loss.as_str())], l.packets)?;
            }
        }
        Ok(())
    }

    fn node(&self, to: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut m = to.encode_descriptor(
            "xdp_mode",
            "1 for the XDP mode in force on the interface, 0 for the others.",
            None,
            MetricType::Gauge,
        )?;
        for i in &self.interfaces {
            for (mode, word) in MODES {
                gauge(&mut m, &[("interface", i.name.as_str()), ("mode", word)], i64::from(i.mode == mode))?;
            }
        }
        let mut m = to.encode_descriptor("map_entries", "Entries of a map in use.", None, MetricType::Gauge)?;
        self.maps.iter().try_for_each(|f| gauge(&mut m, &[("map", f.name.as_str())], f.used))?;
        let mut m = to.encode_descriptor("map_entries_max", "Entries that fit a map.", None, MetricType::Gauge)?;
        self.maps.iter().try_for_each(|f| gauge(&mut m, &[("map", f.name.as_str())], f.max))?;
        let mut m = to.encode_descriptor("map", "Memory of a map.", Some(&Unit::Bytes), MetricType::Gauge)?;
        self.maps.iter().try_for_each(|f| gauge(&mut m, &[("map", f.name.as_str())], f.memory_bytes))?;
        let m = to.encode_descriptor(
            "config_revision",
            "Revision of the configuration that the maps hold.",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(self.revision).encode(m)?;
        let m = to.encode_descriptor(
            "next_hop_unresolved",
            "Backend addresses whose next hop is unknown.",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(self.next_hops_unresolved).encode(m)
    }
}
