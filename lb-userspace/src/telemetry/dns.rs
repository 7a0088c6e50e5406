//! Metrics of `weir dns`, prefix `weir_dns_`.
//!
//! Invariant: labels come from the configuration and from fixed words, never from queries.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicI64, AtomicU64},
};

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use super::metrics::Labels;

type Counters<const N: usize> = Family<Labels<N>, Counter>;

/// What `weir dns` counts.
#[derive(Debug)]
pub struct DnsMetrics {
    registry: Registry,
    answers: Counters<2>,
    dropped: Counters<1>,
    transfers: Counters<1>,
    offers: Counters<1>,
    told: Counters<3>,
    behind: Family<Labels<2>, Gauge>,
    serial: Gauge<i64, AtomicI64>,
    taken_s: Gauge<f64, AtomicU64>,
    names: Gauge<i64, AtomicI64>,
    connections: Gauge<i64, AtomicI64>,
}

impl DnsMetrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("weir_dns");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION").to_owned())]);
        registry.register("build", "The DNS server that runs", build);
        let mut metrics = Self {
            registry: Registry::default(),
            answers: Family::default(),
            dropped: Family::default(),
            transfers: Family::default(),
            offers: Family::default(),
            told: Family::default(),
            behind: Family::default(),
            serial: Gauge::default(),
            taken_s: Gauge::default(),
            names: Gauge::default(),
            connections: Gauge::default(),
        };
        registry.register("answers", "Answers sent, by transport and response code", metrics.answers.clone());
        registry.register("dropped", "Queries and connections without an answer, by reason", metrics.dropped.clone());
        registry.register("transfers", "Zone transfers served, by kind", metrics.transfers.clone());
        registry.register(
            "zone_offers",
            "Zones that the source brought, by what became of them",
            metrics.offers.clone(),
        );
        registry.register("peer_messages", "NOTIFY and updates sent, by peer and outcome", metrics.told.clone());
        registry.register(
            "peer_behind",
            "Whether a peer has not yet confirmed the serial number that is served",
            metrics.behind.clone(),
        );
        registry.register("zone_serial", "Serial number that is served; 0 without a zone", metrics.serial.clone());
        registry.register_with_unit(
            "zone_taken_timestamp",
            "When the zone that is served was taken, as Unix time",
            Unit::Seconds,
            metrics.taken_s.clone(),
        );
        registry.register("zone_names", "Names with addresses in the zone", metrics.names.clone());
        registry.register("tcp_connections", "Open TCP connections", metrics.connections.clone());
        for reason in ["limit", "unanswerable", "connections", "send"] {
            // A counter that exists from the start makes the first drop visible to rate().
            drop(metrics.dropped.get_or_create(&Labels([("reason", reason.to_owned())])));
        }
        metrics.registry = registry;
        metrics
    }

    /// An answer went out over `transport`.
    pub fn answered(&self, transport: &'static str, rcode: &str) {
        let labels = Labels([("transport", transport.to_owned()), ("rcode", rcode.to_owned())]);
        self.answers.get_or_create(&labels).inc();
    }

    /// Something got no answer: `limit`, `unanswerable`, `connections` or `send`.
    pub fn dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&Labels([("reason", reason.to_owned())])).inc();
    }

    /// A transfer was served: `axfr` or `ixfr`.
    pub fn transferred(&self, kind: &'static str) {
        self.transfers.get_or_create(&Labels([("kind", kind.to_owned())])).inc();
    }

    /// The source brought a zone, or failed.
    pub fn offered(&self, outcome: &'static str) {
        self.offers.get_or_create(&Labels([("outcome", outcome.to_owned())])).inc();
    }

    /// A peer was told of the zone by `notify` or `update`.
    pub fn told(&self, kind: &'static str, peer: &str, outcome: &'static str) {
        let labels = Labels([("kind", kind.to_owned()), ("peer", peer.to_owned()), ("outcome", outcome.to_owned())]);
        self.told.get_or_create(&labels).inc();
    }

    /// Whether a peer still lacks the zone that is served.
    pub fn behind(&self, kind: &'static str, peer: &str, behind: bool) {
        let labels = Labels([("kind", kind.to_owned()), ("peer", peer.to_owned())]);
        self.behind.get_or_create(&labels).set(i64::from(behind));
    }

    /// A zone with so many names is served since `unix_s`.
    pub fn zone(&self, serial: u32, names: usize, unix_s: f64) {
        self.serial.set(serial.into());
        self.names.set(i64::try_from(names).unwrap_or(i64::MAX));
        self.taken_s.set(unix_s);
    }

    /// So many TCP connections are open.
    pub fn connections(&self, open: usize) {
        self.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// Everything as text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode_registry(&mut text, &self.registry).and_then(|()| encode_eof(&mut text)) {
            // Writing to a string cannot fail; a scraper that meets this line refuses the text, as it should.
            let _ = writeln!(text, "# incomplete: {error}");
        }
        text
    }
}

impl Default for DnsMetrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_in_the_text() {
        let metrics = DnsMetrics::new();
        metrics.answered("udp", "NOERROR");
        metrics.dropped("limit");
        metrics.told("notify", "192.0.2.1:53", "ok");
        metrics.behind("notify", "192.0.2.1:53", true);
        metrics.zone(42, 3, 1.5);
        let text = metrics.render();
        for line in [
            "weir_dns_answers_total{transport=\"udp\",rcode=\"NOERROR\"} 1",
            "weir_dns_dropped_total{reason=\"limit\"} 1",
            "weir_dns_dropped_total{reason=\"connections\"} 0",
            "weir_dns_peer_behind{kind=\"notify\",peer=\"192.0.2.1:53\"} 1",
            "weir_dns_zone_serial 42",
            "weir_dns_zone_taken_timestamp_seconds 1.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
