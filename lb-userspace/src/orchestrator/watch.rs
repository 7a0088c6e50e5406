//! Which nodes clients may be sent to: heartbeats and probes of ready endpoints in, the records of the zone out.
//!
//! Pure. Rules:
//!
//! - A node leaves DNS when it drains, says that it is not ready, fails [`PROBE_FALL`] probes in a row (the second one
//!   follows the first at once, so that this is within one probe cycle), or lets its own lease pass without a heartbeat.
//! - A node enters when none of that is so, [`PROBE_RISE`] probes in a row succeeded and it has applied the present revision.
//!   Lagging behind a revision keeps a node out, but takes none out: else each change of the configuration would.
//! - A name never loses its last address. What was there last stays, and the decision says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    clock::{BootTime, Periods},
    placement::Liveness,
};

/// Failures in a row that take a node out.
pub const PROBE_FALL: u32 = 2;
/// Successes in a row that let a node in.
pub const PROBE_RISE: u32 = 2;

/// A node as it reported itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Grows with each heartbeat.
    pub beat: u64,
    /// Without a heartbeat for so long it is gone.
    pub lease: Duration,
    /// Addresses that clients connect to.
    pub addresses: BTreeSet<IpAddr>,
    /// Where its ready endpoint (`GET /ready`) is.
    pub ready_at: Option<SocketAddr>,
    /// Revision that it applied last.
    pub revision: u64,
    /// Says that it forwards.
    pub ready: bool,
    /// Says that it wants no new connections.
    pub draining: bool,
}

/// What DNS answers: one object, replaced whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Serial of its SOA record.
    pub serial: u32,
    /// Addresses by name.
    pub records: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Zone {
    /// Whether some name has some of `addresses`.
    pub fn has(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        self.records.values().any(|set| !set.is_disjoint(addresses))
    }
}

/// The serial that follows `last`: max(last + 1, unix time), so that it grows even over the loss of the last one. Serials
/// wrap (RFC 1982); 0 is left out, as some secondaries take it for "none".
pub fn next_serial(last: Option<u32>, unix_s: u64) -> u32 {
    // The low 32 bits are what a serial can hold; the comparison is that of RFC 1982.
    let time = (unix_s & u64::from(u32::MAX)) as u32;
    let next = match last {
        None => time,
        Some(last) => {
            let after = last.wrapping_add(1);
            let ahead = time.wrapping_sub(after) < 1 << 31;
            if ahead { time } else { after }
        }
    };
    next.max(1)
}

/// Why a node is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Takes connections.
    InService,
    /// It wants no new connections, or is being removed.
    Draining,
    /// It says that it is not ready.
    NotReady,
    /// Its ready endpoint failed.
    ProbeFailed,
    /// No heartbeat for its lease.
    Silent,
    /// Has not applied the present revision yet.
    Behind,
    /// Too few probes so far.
    Unproven,
}

impl Reason {
    /// As words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::InService => "in service",
            Self::Draining => "draining",
            Self::NotReady => "not ready",
            Self::ProbeFailed => "ready probe failed",
            Self::Silent => "no heartbeat",
            Self::Behind => "behind the revision",
            Self::Unproven => "not probed enough",
        }
    }
}

/// Probes of one node.
#[derive(Clone, Debug, Default)]
struct Probes {
    failures: u32,
    successes: u32,
    due: BootTime,
    /// When the one under way was sent.
    sent: Option<BootTime>,
    /// When the node was seen first.
    since: BootTime,
}

/// What the master knows about nodes beyond what they report.
#[derive(Clone, Debug)]
pub struct Watch {
    periods: Periods,
    liveness: Liveness,
    probes: BTreeMap<String, Probes>,
}

impl Watch {
    /// Nothing known yet.
    pub fn new(periods: Periods) -> Self {
        Self { periods, liveness: Liveness::new(periods.read * 2), probes: BTreeMap::new() }
    }

    /// A look at the reports.
    pub fn look(&mut self, nodes: &BTreeMap<String, Node>, now: BootTime) {
        self.liveness.look(nodes.iter().map(|(name, node)| (name.as_str(), node.beat)), now);
        self.probes.retain(|name, _| nodes.contains_key(name));
        for name in nodes.keys() {
            self.probes.entry(name.clone()).or_insert_with(|| Probes { due: now, since: now, ..Probes::default() });
        }
    }

    /// Nodes to probe at `now`; they count as asked.
    pub fn due(&mut self, nodes: &BTreeMap<String, Node>, now: BootTime) -> Vec<(String, SocketAddr)> {
        let mut due = Vec::new();
        for (name, probes) in &mut self.probes {
            let Some(address) = nodes.get(name).and_then(|node| node.ready_at) else { continue };
            let lost = probes.sent.is_some_and(|sent| now.since(sent) >= self.periods.timeout * 3);
            if now >= probes.due && (probes.sent.is_none() || lost) {
                probes.sent = Some(now);
                probes.due = now + self.periods.probe;
                due.push((name.clone(), address));
            }
        }
        due
    }

    /// When the next probe is due.
    pub fn wake_at(&self) -> Option<BootTime> {
        self.probes.values().filter(|probes| probes.sent.is_none()).map(|probes| probes.due).min()
    }

    /// What the probe of a node found.
    pub fn probed(&mut self, name: &str, ready: bool, now: BootTime) {
        let Some(probes) = self.probes.get_mut(name) else { return };
        if probes.sent.take().is_none() {
            return;
        }
        if ready {
            probes.successes = probes.successes.saturating_add(1);
            probes.failures = 0;
        } else {
            probes.failures = probes.failures.saturating_add(1);
            probes.successes = 0;
            if probes.failures < PROBE_FALL {
                probes.due = now;
            }
        }
    }

    /// Where a node stands. `inside`: DNS has it now; `drained`: it is being removed.
    pub fn standing(&self, name: &str, node: &Node, inside: bool, drained: bool, revision: u64) -> Reason {
        let silence = self.liveness.silence(name).unwrap_or(Duration::MAX);
        let (failures, successes) = self.probes.get(name).map_or((0, 0), |probes| (probes.failures, probes.successes));
        // A node without an endpoint is believed.
        let probed = node.ready_at.is_some();
        if drained || node.draining {
            Reason::Draining
        } else if !node.ready {
            Reason::NotReady
        } else if silence >= node.lease {
            Reason::Silent
        } else if probed && failures >= PROBE_FALL {
            Reason::ProbeFailed
        } else if inside {
            Reason::InService
        } else if node.revision < revision {
            Reason::Behind
        } else if probed && (successes < PROBE_RISE) {
            Reason::Unproven
        } else {
            Reason::InService
        }
    }

    /// Forgets what probes found, as a process that was no master for a while must.
    pub fn forget_probes(&mut self, now: BootTime) {
        for probes in self.probes.values_mut() {
            *probes = Probes { due: now, since: now, ..Probes::default() };
        }
    }

    /// Whether a node that is not in service may be so soon, being here for less than `patience`.
    pub fn is_coming(&self, name: &str, standing: Reason, patience: Duration, now: BootTime) -> bool {
        let young = self.probes.get(name).is_some_and(|probes| now.since(probes.since) < patience);
        young && matches!(standing, Reason::Unproven | Reason::Behind | Reason::NotReady)
    }

    /// Whether a node has been silent for so long that nothing is to be expected of it.
    pub fn is_dead(&self, name: &str, after: Duration) -> bool {
        self.liveness.silence(name).is_none_or(|silence| silence >= after)
    }
}

/// The records that follow from the addresses `in_service`, for each of `names`; what would be empty stays as it was in
/// `last`, and is left out where it never was.
pub fn records(
    names: &BTreeSet<String>,
    in_service: &BTreeSet<IpAddr>,
    last: Option<&Zone>,
) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let mut records = BTreeMap::new();
    for name in names {
        let kept = last.and_then(|zone| zone.records.get(name));
        let set = if in_service.is_empty() { kept.cloned().unwrap_or_default() } else { in_service.clone() };
        if !set.is_empty() {
            records.insert(name.clone(), set);
        }
    }
    records
}

/// The zone that replaces `last`, if it differs.
pub fn next_zone(
    names: &BTreeSet<String>,
    in_service: &BTreeSet<IpAddr>,
    last: Option<&Zone>,
    unix_s: u64,
) -> Option<Zone> {
    let records = records(names, in_service, last);
    if records.is_empty() || last.is_some_and(|zone| zone.records == records) {
        return None;
    }
    Some(Zone { serial: next_serial(last.map(|zone| zone.serial), unix_s), records })
}

#[cfg(test)]
mod tests {
    use super::{super::clock::PERIODS, *};

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn node(last: u8) -> Node {
        Node {
            beat: 1,
            lease: Duration::from_secs(10),
            addresses: [IpAddr::from([192, 0, 2, last])].into(),
            ready_at: Some(SocketAddr::from(([192, 0, 2, last], 9650))),
            revision: 7,
            ready: true,
            draining: false,
        }
    }

    /// A watch over one node with results of probes: `+` and `-`.
    fn watched(node: &Node, results: &str) -> Watch {
        let nodes = BTreeMap::from([("n1".to_owned(), node.clone())]);
        let mut watch = Watch::new(PERIODS);
        let mut now = at(0);
        watch.look(&nodes, now);
        for result in results.chars() {
            while watch.due(&nodes, now).is_empty() {
                now = now + Duration::from_millis(100);
            }
            watch.probed("n1", result == '+', now);
        }
        watch
    }

    #[test]
    fn where_a_node_stands() {
        let good = node(1);
        let lagging = Node { revision: 6, ..node(1) };
        for (what, node, results, inside, drained, want) in [
            ("in service", &good, "++", true, false, Reason::InService),
            ("a new one needs two probes", &good, "+", false, false, Reason::Unproven),
            ("and has them", &good, "-++", false, false, Reason::InService),
            ("one failure is none", &good, "++-", true, false, Reason::InService),
            ("two are", &good, "++--", true, false, Reason::ProbeFailed),
            ("an old one is not doubted by a new master", &good, "", true, false, Reason::InService),
            ("behind keeps out", &lagging, "++", false, false, Reason::Behind),
            ("behind takes none out", &lagging, "++", true, false, Reason::InService),
            ("being removed", &good, "++", true, true, Reason::Draining),
            ("draining by itself", &Node { draining: true, ..node(1) }, "++", true, false, Reason::Draining),
            ("not ready", &Node { ready: false, ..node(1) }, "++", true, false, Reason::NotReady),
            ("no endpoint", &Node { ready_at: None, ..node(1) }, "", false, false, Reason::InService),
        ] {
            assert_eq!(watched(node, results).standing("n1", node, inside, drained, 7), want, "{what}");
        }
    }

    #[test]
    fn a_silent_node_leaves_after_its_lease() {
        let node = node(1);
        let nodes = BTreeMap::from([("n1".to_owned(), node.clone())]);
        let mut watch = Watch::new(PERIODS);
        for second in 0..=10 {
            assert_eq!(watch.standing("n1", &node, true, false, 7) == Reason::InService, second > 0);
            watch.look(&nodes, at(second * 1000));
        }
        assert_eq!(watch.standing("n1", &node, true, false, 7), Reason::Silent);
        assert!(watch.is_dead("n1", Duration::from_secs(10)) && !watch.is_dead("n1", Duration::from_secs(11)));
        assert!(watch.is_dead("n2", Duration::from_secs(11)));
    }

    #[test]
    fn a_failed_probe_is_repeated_at_once() {
        let nodes = BTreeMap::from([("n1".to_owned(), node(1))]);
        let mut watch = Watch::new(PERIODS);
        watch.look(&nodes, at(0));
        assert_eq!(watch.due(&nodes, at(0)).len(), 1);
        assert!(watch.due(&nodes, at(2500)).is_empty(), "one is under way");
        watch.probed("n1", true, at(100));
        assert!(watch.due(&nodes, at(1999)).is_empty());
        assert_eq!(watch.due(&nodes, at(2000)).len(), 1);
        watch.probed("n1", false, at(3000));
        assert_eq!((watch.wake_at(), watch.due(&nodes, at(3000)).len()), (Some(at(3000)), 1));
        watch.probed("n1", false, at(4000));
        // Death right after a good probe: out within probe + 2 * timeout, under 5 s.
        assert_eq!(watch.standing("n1", &nodes["n1"], true, false, 7), Reason::ProbeFailed);
        assert!(watch.due(&nodes, at(4999)).is_empty(), "a dead node is probed at the usual pace");
    }

    #[test]
    fn serials_grow() {
        for (last, unix_s, want) in [
            (None, 1_800_000_000, 1_800_000_000),
            (Some(5), 1_800_000_000, 1_800_000_000),
            (Some(1_800_000_000), 1_800_000_000, 1_800_000_001),
            (Some(1_800_000_009), 1_800_000_000, 1_800_000_010),
            (None, 0, 1),
            (Some(u32::MAX), 4_294_967_295, 1),
            (Some(u32::MAX - 1), u64::from(u32::MAX) + 6, 5),
        ] {
            assert_eq!(next_serial(last, unix_s), want, "{last:?} {unix_s}");
        }
    }

    #[test]
    fn no_name_loses_its_last_address() {
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let names: BTreeSet<String> = ["lb".to_owned()].into();
        let zone = next_zone(&names, &[address(1), address(2)].into(), None, 100).unwrap();
        assert_eq!(zone.serial, 100);
        assert_eq!(next_zone(&names, &[address(2), address(1)].into(), Some(&zone), 200), None);
        assert_eq!(next_zone(&names, &BTreeSet::new(), Some(&zone), 200), None, "the last good set stays");
        assert_eq!(next_zone(&names, &BTreeSet::new(), None, 200), None, "nothing is no zone");
        let next = next_zone(&names, &[address(2)].into(), Some(&zone), 50).unwrap();
        assert_eq!((next.serial, next.records["lb"].len()), (101, 1));
        assert!(next.has(&[address(2)].into()) && !next.has(&[address(1)].into()));
    }
}
