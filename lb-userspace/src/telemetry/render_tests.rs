//! The text that a scraper gets, checked line by line against the rules of the OpenMetrics format and of Prometheus'
//! naming conventions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::metrics::{BackendState, Metrics, ReloadOutcome, Snapshot, Stage};
use crate::api;

fn snapshot() -> Snapshot {
    let reason = |reason: &str, action, packets| api::ReasonCount {
        reason: reason.into(),
        action,
        help: String::new(),
        packets,
        bytes: packets * 60,
    };
    Snapshot {
        revision: 7,
        stats: api::Stats {
            at_unix_ms: 1,
            interfaces: vec![api::InterfaceStats {
                interface: "eth0".into(),
                reasons: vec![
                    reason("forwarded", api::Action::Forward, 10),
                    reason("short", api::Action::Drop, 2),
                    reason("no_backend", api::Action::Drop, 3),
                ],
                losses: vec![api::LossCount { loss: "redirect_error".into(), help: String::new(), packets: 4 }],
            }],
            services: vec![api::ServiceStats {
                service: "web".into(),
                packets: 10,
                bytes: 600,
                slots: api::SlotStates { settled: 200, announced: 1, moving: 20, residual: 30 },
                connections: api::Connections::default(),
            }],
            backends: vec![
                api::BackendStats {
                    service: "web".into(),
                    backend: "10.0.0.11:80".into(),
                    packets: 6,
                    bytes: 360,
                    connections: api::Connections {
                        active: Some(5),
                        pending: Some(2),
                        opened: 9,
                        closed: 4,
                        ..api::Connections::default()
                    },
                },
                api::BackendStats {
                    service: "web".into(),
                    backend: "[fd00::1]:80".into(),
                    packets: 4,
                    bytes: 240,
                    connections: api::Connections {
                        active_estimate: Some(120),
                        syns: 130,
                        fins: 10,
                        ..api::Connections::default()
                    },
                },
            ],
            flows: api::FlowTable {
                records_max: 1024,
                places: 2048,
                look: Some(api::FlowLook {
                    age_s: 3,
                    duration_us: 2500,
                    swept: 1,
                    no_room: 6,
                    drift: 0,
                    half_open: 2,
                    established: 5,
                    closing: 0,
                    once: 1,
                }),
                events: vec![
                    api::FlowEventCount { event: "lookup".into(), count: 70 },
                    api::FlowEventCount { event: "evicted_half_open".into(), count: 6 },
                ],
                backends_leaving: 1,
                backend_ids_former: 4,
            },
        },
        states: vec![BackendState::Up, BackendState::Drain],
        fail_open: vec![true],
        interfaces: vec![api::Interface {
            name: "eth0".into(),
            ifindex: 2,
            mode: api::XdpModeInForce::Native,
            program_id: 1,
            attached: true,
            mtu: 1500,
            up: true,
        }],
        maps: vec![api::MapFill { name: "SERVICES".into(), used: 1, max: 4096, memory_bytes: 4096 * 64 }],
        next_hops_unresolved: 1,
        store: Some(api::StoreStatus {
            store: "redis 10.0.0.5:6379".into(),
            up: true,
            newest: Some("43-1a2b3c4d".into()),
            applied: Some("42-00aa11bb".into()),
            lag: 1,
            resyncs: vec![api::Resyncs { cause: "gap".into(), count: 2 }],
            pools: vec![api::PoolLease { pool: "front".into(), address: None }],
            ..api::StoreStatus::default()
        }),
    }
}

/// A sample's name and labels, and its value; panics on a line that is none.
fn sample(line: &str) -> (String, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let name = series.split('{').next().unwrap();
    assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{line}");
    if let Some(labels) = series.strip_prefix(name).filter(|l| !l.is_empty()) {
        let inner = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}')).unwrap_or_else(|| panic!("{line}"));
        for label in inner.split("\",") {
            let (key, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            assert!(!value.trim_end_matches('"').contains('"'), "{line}");
        }
    }
    (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
}

/// Checks the form of the whole text and gives its samples.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut families: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut samples = BTreeMap::new();
    let body = text.strip_suffix("# EOF\n").expect("the end mark");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helped.insert(name), "{name} is described twice");
            assert!(help.ends_with('.') && !help.ends_with(".."), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(name.starts_with("weir_"), "{line}");
            assert!(!name.ends_with("_total"), "the suffix belongs to the sample: {line}");
            assert_eq!(families.insert(name, kind), None, "{name} is declared twice");
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').unwrap();
            assert!(["bytes", "seconds"].contains(&unit), "base units only: {line}");
            assert!(name.ends_with(&format!("_{unit}")), "{line}");
        } else {
            let (series, value) = sample(line);
            let name = series.split('{').next().unwrap().to_owned();
            let belongs = families.iter().any(|(family, kind)| match *kind {
                "counter" => name == format!("{family}_total"),
                "info" => name == format!("{family}_info"),
                "histogram" => ["_sum", "_count", "_bucket"].iter().any(|s| name == format!("{family}{s}")),
                _ => name == *family,
            });
            assert!(belongs, "no family declared for {line}");
            assert_eq!(samples.insert(series, value), None, "twice: {line}");
        }
    }
    assert_eq!(families.len(), helped.len());
    samples
}

#[test]
fn the_text_is_well_formed_and_complete() {
    let metrics = Metrics::new();
    metrics.reloaded(ReloadOutcome::Applied, Duration::from_secs(1_700_000_000));
    metrics.applied(Duration::from_millis(3));
    metrics.checked("web", "10.0.0.11:80", "L7OK");
    metrics.probed("http", Duration::from_micros(700));
    metrics.propagated(Stage::WrittenToReceived, Duration::from_millis(2));
    metrics.store_answered(Duration::from_micros(400));
    metrics.transition("web", "10.0.0.11:80", true);
    let samples = parse(&metrics.render(&Arc::new(snapshot())));
    let expected = [
        ("weir_backend_packets_total{service=\"web\",backend=\"10.0.0.11:80\"}", 6.0),
        ("weir_backend_bytes_total{service=\"web\",backend=\"[fd00::1]:80\"}", 240.0),
        ("weir_service_packets_total{service=\"web\"}", 10.0),
        ("weir_service_bytes_total{service=\"web\"}", 600.0),
        ("weir_service_fail_open{service=\"web\"}", 1.0),
        ("weir_packets_total{interface=\"eth0\",reason=\"short\",action=\"drop\"}", 2.0),
        ("weir_received_bytes_total{interface=\"eth0\",reason=\"forwarded\",action=\"forward\"}", 600.0),
        ("weir_xdp_actions_total{interface=\"eth0\",action=\"drop\"}", 5.0),
        ("weir_losses_total{interface=\"eth0\",loss=\"redirect_error\"}", 4.0),
        ("weir_backend_state{service=\"web\",backend=\"[fd00::1]:80\",state=\"drain\"}", 1.0),
        ("weir_backend_state{service=\"web\",backend=\"[fd00::1]:80\",state=\"up\"}", 0.0),
        ("weir_xdp_mode{interface=\"eth0\",mode=\"native\"}", 1.0),
        ("weir_xdp_mode{interface=\"eth0\",mode=\"generic\"}", 0.0),
        ("weir_map_entries{map=\"SERVICES\"}", 1.0),
        ("weir_map_entries_max{map=\"SERVICES\"}", 4096.0),
        ("weir_config_revision", 7.0),
        ("weir_store_up", 1.0),
        ("weir_store_revision", 43.0),
        ("weir_store_revision_applied", 42.0),
        ("weir_store_lag", 1.0),
        ("weir_store_history_losses_total{store=\"redis 10.0.0.5:6379\"}", 0.0),
        ("weir_store_resyncs_total{cause=\"gap\"}", 2.0),
        ("weir_store_pool_leased{pool=\"front\"}", 0.0),
        ("weir_store_propagation_seconds_count{stage=\"written_to_received\"}", 1.0),
        ("weir_store_request_duration_seconds_count", 1.0),
        ("weir_config_last_reload_successful", 1.0),
        ("weir_config_reloads_total{outcome=\"applied\"}", 1.0),
        ("weir_config_reloads_total{outcome=\"refused\"}", 0.0),
        ("weir_apply_duration_seconds_count", 1.0),
        ("weir_health_checks_total{service=\"web\",backend=\"10.0.0.11:80\",result=\"L7OK\"}", 1.0),
        ("weir_health_check_duration_seconds_count{type=\"http\"}", 1.0),
        ("weir_health_transitions_total{service=\"web\",backend=\"10.0.0.11:80\",to=\"up\"}", 1.0),
        ("weir_next_hop_unresolved", 1.0),
        ("weir_backend_connections_active{service=\"web\",backend=\"10.0.0.11:80\"}", 5.0),
        ("weir_backend_connections_pending{service=\"web\",backend=\"10.0.0.11:80\"}", 2.0),
        ("weir_backend_connections_active_estimate{service=\"web\",backend=\"[fd00::1]:80\"}", 120.0),
        ("weir_backend_connections_opened_total{service=\"web\",backend=\"10.0.0.11:80\"}", 9.0),
        ("weir_backend_connections_closed_total{service=\"web\",backend=\"10.0.0.11:80\"}", 4.0),
        ("weir_backend_syns_total{service=\"web\",backend=\"[fd00::1]:80\"}", 130.0),
        ("weir_backend_fins_total{service=\"web\",backend=\"[fd00::1]:80\"}", 10.0),
        ("weir_service_slots{service=\"web\",state=\"moving\"}", 20.0),
        ("weir_flow_records{state=\"established\"}", 5.0),
        ("weir_flow_records_no_room", 6.0),
        ("weir_flow_records_max", 1024.0),
        ("weir_flow_places", 2048.0),
        ("weir_flow_events_total{event=\"evicted_half_open\"}", 6.0),
        ("weir_flow_active_drift", 0.0),
        ("weir_flow_look_duration_seconds", 0.0025),
        ("weir_flow_look_age_seconds", 3.0),
        ("weir_backends_leaving", 1.0),
        ("weir_backend_ids_former", 4.0),
    ];
    for (series, value) in expected {
        assert_eq!(samples.get(series), Some(&value), "{series}\n{samples:#?}");
    }
    assert!(samples.keys().any(|s| s.starts_with("weir_build_info{") && s.contains("version=")));
    // What is counted has no estimate, and what is estimated no count.
    for series in [
        "weir_backend_connections_active{service=\"web\",backend=\"[fd00::1]:80\"}",
        "weir_backend_connections_active_estimate{service=\"web\",backend=\"10.0.0.11:80\"}",
    ] {
        assert!(!samples.contains_key(series), "{series}");
    }
}

#[test]
fn a_state_is_one_hot() {
    let samples = parse(&Metrics::new().render(&Arc::new(snapshot())));
    for backend in ["10.0.0.11:80", "[fd00::1]:80"] {
        let hot: f64 = samples
            .iter()
            .filter(|(s, _)| s.starts_with("weir_backend_state{") && s.contains(backend))
            .map(|(_, v)| v)
            .sum();
        assert_eq!(hot, 1.0, "{backend}");
    }
}

#[test]
fn a_refused_reload_shows_and_a_gone_backend_does_not() {
    let metrics = Metrics::new();
    metrics.reloaded(ReloadOutcome::Applied, Duration::from_secs(5));
    metrics.reloaded(ReloadOutcome::Refused, Duration::from_secs(9));
    metrics.checked("web", "10.0.0.11:80", "L4CON");
    metrics.transition("web", "10.0.0.11:80", false);
    metrics.forget("web", "10.0.0.11:80", &["L4CON"]);
    let samples = parse(&metrics.render(&Arc::new(snapshot())));
    assert_eq!(samples["weir_config_last_reload_successful"], 0.0);
    assert_eq!(samples["weir_config_last_reload_success_timestamp_seconds"], 5.0, "the last good one");
    assert!(!samples.keys().any(|s| s.starts_with("weir_health_checks_total{")));
    assert!(!samples.keys().any(|s| s.starts_with("weir_health_transitions_total{")));
}
