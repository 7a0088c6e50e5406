//! The keys of `[[service]]` about flows, and what they must agree on with protocol, algorithm and backends.

use std::time::Duration;

use super::{
    super::{
        duration,
        flows::{Flows, OnMarkedDown, Track, UdpFlows},
    },
    At, Code, Diagnostic, Findings, Protocol, Span, algo,
    reader::Section,
    service::BackendDraft,
};

/// Something in a service for which every flow is recorded.
struct Need {
    /// How findings call it.
    what: String,
    span: Span,
    /// Why it is.
    why: &'static str,
}

/// Reads the keys; `None` where protocol or algorithm were refused, on which their meaning depends.
pub(super) fn read(
    section: &Section<'_>,
    protocol: Option<Protocol>,
    algo: &algo::Draft,
    backends: &[BackendDraft],
    findings: &mut Findings,
) -> Option<Flows> {
    let track = section.word("track", &[("moved", Track::Moved), ("all", Track::All)], findings);
    let promises = [("stateless", UdpFlows::Stateless), ("sticky", UdpFlows::Sticky)];
    let udp_flows = section.word("udp_flows", &promises, findings);
    let ends = [("rehash", OnMarkedDown::Rehash), ("keep", OnMarkedDown::Keep), ("reset", OnMarkedDown::Reset)];
    let on_marked_down = section.word("on_marked_down", &ends, findings);
    let window = section.duration("window", Flows::TIMEOUTS, findings);
    let flow_timeout = section.duration("flow_timeout", Flows::TIMEOUTS, findings);
    let announce_for = section.duration("announce_for", Flows::ANNOUNCE_FOR, findings);
    let drain_timeout = section.duration("drain_timeout", Flows::DRAIN_TIMEOUT, findings);

    let protocol = protocol?;
    of_protocol(section, protocol, on_marked_down.as_ref(), findings);
    let udp_flows = udp_flows.filter(|_| protocol == Protocol::Udp);
    let mut needs = needs(algo, backends);
    if let Some(at) = udp_flows.as_ref().filter(|at| at.value == UdpFlows::Stateless) {
        let all = track.as_ref().filter(|track| track.value == Track::All).map(|track| Need {
            what: "`track = \"all\"`".to_owned(),
            span: track.span.clone(),
            why: "datagrams follow the record of their flow",
        });
        let hint = "remove `udp_flows`, which is \"sticky\" beside it, or let the ring decide: `algo = \"maglev\"` without limits \
                    and `track`";
        conflict("udp_flows", "stateless", &at.span, needs.iter().chain(&all), hint, findings);
    }
    needs.extend(udp_flows.filter(|at| at.value == UdpFlows::Sticky).map(|at| Need {
        what: "`udp_flows = \"sticky\"`".to_owned(),
        span: at.span,
        why: "datagrams follow the record of their flow",
    }));
    if let Some(at) = track.as_ref().filter(|at| at.value == Track::Moved) {
        conflict("track", "moved", &at.span, needs.iter(), "remove `track`, which is \"all\" beside it", findings);
    }

    let defaults = Flows::defaults(protocol, algo.kind?);
    let (window, flow_timeout) = silence(section, window, flow_timeout, defaults.window, findings);
    Some(Flows {
        track: if needs.is_empty() { track.map_or(defaults.track, |at| at.value) } else { Track::All },
        on_marked_down: on_marked_down.map_or(defaults.on_marked_down, |at| at.value),
        window,
        flow_timeout,
        announce_for: announce_for.map_or(defaults.announce_for, |at| at.value),
        drain_timeout: drain_timeout.map_or(defaults.drain_timeout, |at| at.value),
    })
}

/// What asks for records by itself: the algorithm, and the first backend with a limit.
fn needs(algo: &algo::Draft, backends: &[BackendDraft]) -> Vec<Need> {
    let chosen = algo.kind.zip(algo.span.clone()).filter(|(kind, _)| !kind.is_hashed()).map(|(kind, span)| Need {
        what: format!("`algo = \"{kind}\"`"),
        span,
        why: "only a record knows what was chosen",
    });
    let limited = backends.iter().filter_map(|backend| backend.max_connections.as_ref()).find(|limit| limit.value > 0);
    let limited = limited.map(|limit| Need {
        what: "`max_connections`".to_owned(),
        span: limit.span.clone(),
        why: "connections are counted by their records",
    });
    chosen.into_iter().chain(limited).collect()
}

/// Reports that `key` cannot be `word` because of `needs`, if there are any.
fn conflict<'n>(
    key: &str,
    word: &str,
    span: &Span,
    needs: impl Iterator<Item = &'n Need>,
    hint: &str,
    findings: &mut Findings,
) {
    let mut needs = needs.peekable();
    let Some(first) = needs.peek() else { return };
    let message = format!("`{key}` cannot be \"{word}\" beside {}, for which every flow is recorded", first.what);
    let finding = Diagnostic::new(Code::TrackConflict, span.clone(), message).hint(hint);
    findings.push(needs.fold(finding, |finding, need| finding.related(need.span.clone(), need.why)));
}

/// Keys and words that only one protocol has.
fn of_protocol(
    section: &Section<'_>,
    protocol: Protocol,
    on_marked_down: Option<&At<OnMarkedDown>>,
    findings: &mut Findings,
) {
    let stated = |finding: Diagnostic| match section.get("protocol") {
        Some(value) => finding.related(value.span(), "the protocol"),
        None => finding,
    };
    match protocol {
        Protocol::Tcp => {
            let Some(span) = section.key_span("udp_flows") else { return };
            let finding = Diagnostic::new(Code::ProtocolKey, span, "`udp_flows` does not belong to a TCP service")
                .hint("TCP flows keep their backend without it; `track = \"all\"` records every one of them");
            findings.push(stated(finding));
        }
        Protocol::Udp => {
            let Some(at) = on_marked_down.filter(|at| at.value == OnMarkedDown::Reset) else { return };
            let message = "`on_marked_down` cannot be \"reset\" in a UDP service";
            let finding = Diagnostic::new(Code::ProtocolKey, at.span.clone(), message)
                .hint("only TCP has resets: \"rehash\" sends the flows of a backend that is down to another one");
            findings.push(stated(finding));
        }
    }
}

/// `window` and `flow_timeout` in force; what the file does not say follows what it does.
///
/// A record that expires before the window is over leaves its flow to the slot's owner, which need not be the recorded
/// backend: the window would promise what no record keeps.
fn silence(
    section: &Section<'_>,
    window: Option<At<Duration>>,
    flow_timeout: Option<At<Duration>>,
    default: Duration,
    findings: &mut Findings,
) -> (Duration, Duration) {
    let refused = |name: &str, read: &Option<At<Duration>>| read.is_none() && section.get(name).is_some();
    if refused("window", &window) || refused("flow_timeout", &flow_timeout) {
        return (default, default);
    }
    match (window, flow_timeout) {
        (None, None) => (default, default),
        (Some(window), None) => (window.value, window.value.max(default)),
        (None, Some(flow_timeout)) => (flow_timeout.value.min(default), flow_timeout.value),
        (Some(window), Some(flow_timeout)) => {
            if window.value > flow_timeout.value {
                let (longer, shorter) = (duration::format(window.value), duration::format(flow_timeout.value));
                let message = format!("`window` ({longer}) is above `flow_timeout` ({shorter})");
                let hint = format!(
                    "a flow that is silent for longer than `flow_timeout` loses its record, and with it what the window promises: at \
                     most \"{shorter}\", or a longer `flow_timeout`"
                );
                let finding = Diagnostic::new(Code::WindowAboveTimeout, window.span, message)
                    .related(flow_timeout.span, "records expire after this")
                    .hint(hint);
                findings.push(finding);
            }
            (window.value, flow_timeout.value)
        }
    }
}
