//! `[service.health_check]`.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    super::{Probe, duration},
    At, Code, Diagnostic, Findings, HealthCheck, Span,
    reader::{Section, shown},
};

/// Time between probes.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
/// Time a probe may take; the interval is a further bound.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// Consecutive results.
const COUNTS: RangeInclusive<u32> = 1..=100;
/// Longest path of a check in bytes.
const PATH_BYTES_MAX: usize = 1024;
/// Longest host of a check: a name (RFC 1035 section 2.3.4), a colon and a port.
const HOST_BYTES_MAX: usize = 255 + 6;

/// What `type` says.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Http,
    Tcp,
}

/// A check as far as it could be read.
pub(super) struct Draft {
    /// Where the table starts.
    pub span: Span,
    /// The check, if nothing in it was refused.
    pub check: Option<HealthCheck>,
    /// Whether `port` stands in the table, well-formed or not.
    pub has_port: bool,
}

/// Reads the table.
pub(super) fn read(section: &Section<'_>, findings: &mut Findings) -> Draft {
    section.require(&["type"], findings);
    let kind = section.word("type", &[("http", Kind::Http), ("tcp", Kind::Tcp)], findings);
    let path = section.string("path", findings).map(|at| (path_refused(at.value), at));
    let host = section.string("host", findings).map(|at| (host_refused(at.value), at));
    if let Some(At { value: Kind::Tcp, .. }) = kind {
        for name in ["path", "host"] {
            if let Some(span) = section.key_span(name) {
                let message = format!("`{name}` does not belong to a check of type \"tcp\"");
                let hint = "a TCP check only connects; `type = \"http\"` asks for a path";
                findings.push(Diagnostic::new(Code::HealthKey, span, message).hint(hint));
            }
        }
    } else {
        if let Some((Some((what, hint)), at)) = &path {
            let message = format!("`path` {what}: \"{}\"", shown(at.value));
            findings.push(Diagnostic::new(Code::HealthPath, at.span.clone(), message).hint(*hint));
        }
        if let Some((Some(what), at)) = &host {
            let message = format!("`host` {what}: \"{}\"", shown(at.value));
            let hint = "it is sent as the `Host` header: a name or an address, with or without `:port`";
            findings.push(Diagnostic::new(Code::HealthHost, at.span.clone(), message).hint(hint));
        }
    }
    let port = section.integer("port", 1..=65_535, findings);
    let interval = section.duration("interval", INTERVAL, findings);
    let timeout = section.duration("timeout", TIMEOUT, findings);
    // A refused interval says nothing about the timeout.
    let interval_refused = interval.is_none() && section.get("interval").is_some();
    let interval_in_force = interval.as_ref().map_or(HealthCheck::INTERVAL, |at| at.value);
    if let Some(timeout) = timeout.as_ref().filter(|at| !interval_refused && at.value > interval_in_force) {
        let (longest, shortest) = (duration::format(interval_in_force), duration::format(timeout.value));
        let message = format!("`timeout` ({shortest}) is above the interval ({longest})");
        let mut finding = Diagnostic::new(Code::TimeoutAboveInterval, timeout.span.clone(), message);
        if let Some(interval) = &interval {
            finding = finding.related(interval.span.clone(), "the interval");
        }
        let hint = format!("a probe ends before the next begins: at most \"{longest}\", or a longer `interval`");
        findings.push(finding.hint(hint));
    }
    let rise = section.integer("rise", COUNTS, findings).map_or(HealthCheck::RISE, |at| at.value);
    let fall = section.integer("fall", COUNTS, findings).map_or(HealthCheck::FALL, |at| at.value);
    let probe = kind.map(|kind| match kind.value {
        Kind::Tcp => Probe::Tcp,
        Kind::Http => Probe::Http {
            path: path.map_or_else(|| HealthCheck::PATH.to_owned(), |(_, at)| at.value.to_owned()),
            host: host.map(|(_, at)| at.value.to_owned()),
        },
    });
    let check = probe.map(|probe| HealthCheck {
        probe,
        port: port.as_ref().and_then(|at| u16::try_from(at.value).ok()),
        interval: interval_in_force,
        timeout: timeout.map_or(HealthCheck::TIMEOUT.min(interval_in_force), |at| at.value),
        rise,
        fall,
    });
    Draft { span: section.span.clone(), check, has_port: section.get("port").is_some() }
}

/// Why a path cannot be requested (RFC 9112 section 3.2.1, RFC 3986 section 3.3), and what to do.
pub(in crate::model) fn path_refused(path: &str) -> Option<(&'static str, &'static str)> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&b);
    if !path.starts_with('/') {
        Some((
            "does not start with `/`",
            "write the path alone, as in \"/health\"; `host` and `port` are keys of their own",
        ))
    } else if path.len() > PATH_BYTES_MAX {
        Some(("is longer than 1024 bytes", "choose a shorter path"))
    } else if path.chars().any(char::is_control) {
        Some(("has control characters", "a line end in it would forge a request"))
    } else if !path.bytes().all(allowed) {
        Some(("has characters that a request cannot carry", "write them as %XX, a space as %20 (RFC 3986)"))
    } else {
        None
    }
}

/// Why a host cannot be sent as a header.
pub(in crate::model) fn host_refused(host: &str) -> Option<&'static str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
    if host.is_empty() {
        Some("is empty")
    } else if host.len() > HOST_BYTES_MAX {
        Some("is longer than a name can be")
    } else if !host.bytes().all(allowed) {
        Some("has characters that no host has")
    } else {
        None
    }
}
