//! Metrics in the OpenMetrics text format, prefix `weir_`.
//!
//! Two kinds: what happens is recorded as it happens (reloads, probes, transitions); what is there is read when asked
//! ([`Snapshot`]), so that the series of a removed backend vanish while the totals of its service stay.
//!
//! Invariant: labels come from configured names and from fixed words, never from packets or requests.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{
        EncodeLabelSet, LabelSetEncoder,
        text::{encode_eof, encode_registry},
    },
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

pub use super::snapshot::{BackendState, Snapshot};

/// What a scraper is told about the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How a reload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReloadOutcome {
    /// The maps hold it.
    Applied,
    /// It says what they held already.
    Unchanged,
    /// Refused.
    Refused,
}

/// Label names with their values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Labels<const N: usize>(pub [(&'static str, String); N]);

impl<const N: usize> EncodeLabelSet for Labels<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        use prometheus_client::encoding::EncodeLabel as _;
        self.0.iter().try_for_each(|(name, value)| (*name, value.as_str()).encode(encoder.encode_label()))
    }
}

type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Histograms<const N: usize> = Family<Labels<N>, Histogram>;

/// What is recorded as it happens.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reloads: Counters<1>,
    reload_ok: Gauge<i64, AtomicI64>,
    reload_time_s: Gauge<f64, AtomicU64>,
    applied_s: Histogram,
    checks: Counters<3>,
    check_s: Histograms<1>,
    transitions: Counters<3>,
    propagation_s: Histograms<1>,
    store_request_s: Histogram,
}

/// A stage of a change's way from its writer to the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From being written, by the writer's clock, to being received here.
    WrittenToReceived,
    /// From being received to the last map written.
    ReceivedToApplied,
    /// Of a judgement of health: from the vote that decided, by its worker's clock, to being received here.
    HealthJudgedToReceived,
    /// Of a judgement of health: from being received to the last map written.
    HealthReceivedToApplied,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 4] =
        [Self::WrittenToReceived, Self::ReceivedToApplied, Self::HealthJudgedToReceived, Self::HealthReceivedToApplied];

    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::WrittenToReceived => "written_to_received",
            Self::ReceivedToApplied => "received_to_applied",
            Self::HealthJudgedToReceived => "health_judged_to_received",
            Self::HealthReceivedToApplied => "health_received_to_applied",
        }
    }
}

fn apply_buckets() -> Histogram {
    // 0.5 ms to 8 s: one backend changed in a small ring, up to a first load of everything.
    Histogram::new(exponential_buckets(0.0005, 2.0, 15))
}

fn check_buckets() -> Histogram {
    // 0.25 ms to 8 s: a neighbour in the rack, up to the longest sensible time-out.
    Histogram::new(exponential_buckets(0.00025, 2.0, 16))
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("weir");
        let build = Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("abi_version", lb_core::abi::ABI_VERSION.to_string()),
        ]);
        registry.register("build", "The agent that runs", build);
        let metrics = Self {
            reloads: Family::default(),
            reload_ok: Gauge::default(),
            reload_time_s: Gauge::default(),
            applied_s: apply_buckets(),
            checks: Family::default(),
            check_s: Family::new_with_constructor(check_buckets),
            transitions: Family::default(),
            propagation_s: Family::new_with_constructor(check_buckets),
            store_request_s: check_buckets(),
            registry: Registry::default(),
        };
        registry.register("config_reloads", "Configurations that were read, by outcome", metrics.reloads.clone());
        registry.register(
            "config_last_reload_successful",
            "Whether the configuration that was read last is in force or says the same",
            metrics.reload_ok.clone(),
        );
        registry.register_with_unit(
            "config_last_reload_success_timestamp",
            "When a configuration was last accepted, as Unix time",
            Unit::Seconds,
            metrics.reload_time_s.clone(),
        );
        registry.register_with_unit(
            "apply_duration",
            "Time from planning a change to the last map written",
            Unit::Seconds,
            metrics.applied_s.clone(),
        );
        registry.register("health_checks", "Results of health checks, by reason word", metrics.checks.clone());
        registry.register_with_unit(
            "health_check_duration",
            "Time that health checks took, by type",
            Unit::Seconds,
            metrics.check_s.clone(),
        );
        registry.register("health_transitions", "Changes of observed health", metrics.transitions.clone());
        registry.register_with_unit(
            "store_propagation",
            "Time that changes took from their writer to the maps, by stage",
            Unit::Seconds,
            metrics.propagation_s.clone(),
        );
        registry.register_with_unit(
            "store_request_duration",
            "Time that the store took for one report of this node",
            Unit::Seconds,
            metrics.store_request_s.clone(),
        );
        for outcome in [ReloadOutcome::Applied, ReloadOutcome::Unchanged, ReloadOutcome::Refused] {
            // A counter that exists from the start makes the first refusal visible to rate().
            drop(metrics.reloads.get_or_create(&outcome_label(outcome)));
        }
        Self { registry, ..metrics }
    }

    /// A configuration was read at `unix`.
    pub fn reloaded(&self, outcome: ReloadOutcome, unix: Duration) {
        self.reloads.get_or_create(&outcome_label(outcome)).inc();
        let ok = outcome != ReloadOutcome::Refused;
        self.reload_ok.set(i64::from(ok));
        if ok {
            self.reload_time_s.set(unix.as_secs_f64());
        }
    }

    /// A change was written to the maps.
    pub fn applied(&self, took: Duration) {
        self.applied_s.observe(took.as_secs_f64());
    }

    /// A change from the store took so long for one stage of its way.
    pub fn propagated(&self, stage: Stage, took: Duration) {
        self.propagation_s.get_or_create(&Labels([("stage", stage.word().to_owned())])).observe(took.as_secs_f64());
    }

    /// The store answered a request after so long.
    pub fn store_answered(&self, took: Duration) {
        self.store_request_s.observe(took.as_secs_f64());
    }

    /// A health check of `backend` ended with the reason word `result`.
    pub fn checked(&self, service: &str, backend: &str, result: &str) {
        self.checks
            .get_or_create(&Labels([
                ("service", service.to_owned()),
                ("backend", backend.to_owned()),
                ("result", result.to_owned()),
            ]))
            .inc();
    }

    /// A probe of the type `kind` took so long; once per probe, however many backends share it.
    pub fn probed(&self, kind: &'static str, took: Duration) {
        self.check_s.get_or_create(&Labels([("type", kind.to_owned())])).observe(took.as_secs_f64());
    }

    /// The observed health of `backend` changed.
    pub fn transition(&self, service: &str, backend: &str, up: bool) {
        self.transitions
            .get_or_create(&Labels([
                ("service", service.to_owned()),
                ("backend", backend.to_owned()),
                ("to", if up { "up" } else { "down" }.to_owned()),
            ]))
            .inc();
    }

    /// The backend is gone: its series end. `results` are the reason words that may have been counted.
    pub fn forget(&self, service: &str, backend: &str, results: &[&str]) {
        let labels = |name, value: &str| {
            Labels([("service", service.to_owned()), ("backend", backend.to_owned()), (name, value.to_owned())])
        };
        for result in results {
            self.checks.remove(&labels("result", result));
        }
        for to in ["up", "down"] {
            self.transitions.remove(&labels("to", to));
        }
    }

    /// Everything as text: what was recorded and what `snapshot` says.
    pub fn render(&self, snapshot: &Arc<Snapshot>) -> String {
        let mut text = String::with_capacity(64 << 10);
        let mut present = Registry::with_prefix("weir");
        present.register_collector(Box::new(Arc::clone(snapshot)));
        let written = encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &present))
            .and_then(|()| encode_eof(&mut text));
        if let Err(error) = written {
            // Writing to a string cannot fail; a scraper that meets this line refuses the text, as it should.
            let _ = writeln!(text, "# incomplete: {error}");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn outcome_label(outcome: ReloadOutcome) -> Labels<1> {
    let word = match outcome {
        ReloadOutcome::Applied => "applied",
        ReloadOutcome::Unchanged => "unchanged",
        ReloadOutcome::Refused => "refused",
    };
    Labels([("outcome", word.to_owned())])
}
