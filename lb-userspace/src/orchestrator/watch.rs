//! Which nodes clients may be sent to: heartbeats and probes of ready endpoints in, where each node stands out.
//!
//! Pure. Rules:
//!
//! - A node leaves DNS when it drains, says that it is not ready, fails [`PROBE_FALL`] probes in a row (the second one
//!   follows the first at once, so that this is within one probe cycle), or lets its own lease pass without a heartbeat.
//! - A node enters when none of that is so, [`PROBE_RISE`] probes in a row succeeded and it has applied the present revision.
//!   Lagging behind a revision keeps a node out, but takes none out: else each change of the configuration would.
//!
//! What becomes of the zone then is [`crate::dns::publish`]'s to say; a name never loses its last address.

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
            let Some(address) = nodes.get(name).and_then(|node| node.ready_at) else {
                // There is nothing to ask, and a probe that stays due would keep the loop awake.
                probes.due = now + self.periods.probe;
                continue;
            };
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
    fn a_node_without_an_endpoint_keeps_nobody_awake() {
        let nodes = BTreeMap::from([("n1".to_owned(), Node { ready_at: None, ..node(1) })]);
        let mut watch = Watch::new(PERIODS);
        watch.look(&nodes, at(0));
        assert_eq!(watch.due(&nodes, at(0)), []);
        assert!(watch.wake_at().is_some_and(|due| due > at(0)), "{:?}", watch.wake_at());
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
}
