//! What has been bad for too long: an expression that names instances, and how long each has been named without a break.
//!
//! Pure. The time is kept in a record, so that a rule of five hours survives any number of masters. It grows only between two
//! evaluations that both named the instance, and by no more than two periods: neither a silent Prometheus nor a step of the
//! wall clock makes anybody ripe.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{clock::UnixMs, scale::Subject};

/// A rule of replacement.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// What it replaces.
    pub subject: Subject,
    /// PromQL; each series that it returns names an instance that is bad now.
    pub expr: String,
    /// Label of a series that names the instance.
    pub label: String,
    /// How long it must have been bad.
    pub after: Duration,
    /// Time between evaluations.
    pub every: Duration,
}

/// Instances that an expression names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspects {
    /// By instance.
    pub instances: BTreeMap<String, Suspicion>,
}

/// How long an instance has been named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// Time for which it was named without a break, in ms.
    pub held_ms: u64,
    /// When it was named last.
    pub seen: UnixMs,
}

/// Instances that are remembered, at most; more are no suspects but an expression that is wrong.
pub const SUSPECTS_MAX: usize = 1024;

/// The suspects after one evaluation that named `named`.
pub fn update(before: &Suspects, named: &BTreeSet<String>, every: Duration, now: UnixMs) -> Suspects {
    let most_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX).saturating_mul(2);
    let grown = |name: &String| match before.instances.get(name) {
        None => Suspicion { held_ms: 0, seen: now },
        Some(old) => {
            let passed_ms = now.0.saturating_sub(old.seen.0).min(most_ms);
            Suspicion { held_ms: old.held_ms.saturating_add(passed_ms), seen: now }
        }
    };
    Suspects { instances: named.iter().take(SUSPECTS_MAX).map(|name| (name.clone(), grown(name))).collect() }
}

/// The instance that has been bad for longest, if that is long enough.
pub fn ripest(suspects: &Suspects, after: Duration) -> Option<(&str, Duration)> {
    let longest = suspects.instances.iter().max_by_key(|(_, suspicion)| suspicion.held_ms)?;
    let held = Duration::from_millis(longest.1.held_ms);
    (held >= after).then_some((longest.0.as_str(), held))
}

/// Whether an instance label means `name`, a node's name or a backend's `ADDRESS:PORT`: the same text, or the same host, for
/// exporters listen on ports of their own.
pub fn means(instance: &str, name: &str) -> bool {
    fn host(text: &str) -> &str {
        let bare = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(host, _)| host);
        bare.unwrap_or_else(|| match text.rsplit_once(':') {
            // An IPv6 address without brackets has no port.
            Some((host, _)) if !host.contains(':') => host,
            _ => text,
        })
    }
    instance == name || host(instance) == host(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(60);

    fn named(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn time_grows_only_without_a_break() {
        let mut suspects = Suspects::default();
        let mut held = Vec::new();
        for (minute, names) in [
            (0, &["a", "b"][..]),
            (1, &["a", "b"]),
            (2, &["a"]),
            (3, &["a", "b"]),
            // Prometheus was silent for an hour: that is worth two periods.
            (63, &["a"]),
            // The wall clock went back.
            (10, &["a"]),
            (11, &["a"]),
        ] {
            suspects = update(&suspects, &named(names), EVERY, UnixMs(minute * 60_000));
            let of = |name: &str| suspects.instances.get(name).map(|one| one.held_ms / 60_000);
            held.push((of("a"), of("b")));
        }
        let want = [
            (Some(0), Some(0)),
            (Some(1), Some(1)),
            (Some(2), None),
            (Some(3), Some(0)),
            (Some(5), None),
            (Some(5), None),
            (Some(6), None),
        ];
        assert_eq!(held, want);
        assert_eq!(ripest(&suspects, EVERY * 6), Some(("a", EVERY * 6)));
        assert_eq!(ripest(&suspects, EVERY * 7), None);
        assert_eq!(ripest(&Suspects::default(), Duration::ZERO), None);
    }

    #[test]
    fn an_instance_is_known_by_its_host() {
        for (instance, name, want) in [
            ("10.0.0.1:9100", "10.0.0.1:80", true),
            ("10.0.0.1", "10.0.0.1:80", true),
            ("10.0.0.11:9100", "10.0.0.1:80", false),
            ("[2001:db8::1]:9100", "[2001:db8::1]:80", true),
            ("2001:db8::1", "[2001:db8::1]:80", true),
            ("lb-1", "lb-1", true),
            ("lb-1:9650", "lb-1", true),
            ("lb-12", "lb-1", false),
        ] {
            assert_eq!(means(instance, name), want, "{instance} {name}");
        }
    }
}
