//! Since when backends drain, and where their drains stand.
//!
//! Pure. An agent that takes over running maps does not know since when a configured backend drains: its drains begin with it. One that
//! is no longer configured has its end in what the maps' planning knows ([`crate::plan::PresentBackend::leaves_s`]).

use std::collections::{HashMap, HashSet};

use lb_core::abi::backend::{FLAG_DRAINING, FLAG_REMOVED};

use crate::{
    api::{Drain, DrainPhase},
    plan::{Present, PresentBackend},
};

/// How long the phases of a drain last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Until no new flow comes.
    pub announce_s: u64,
    /// Until it ends at the latest.
    pub drain_s: u64,
}

/// Since when which backend id drains, in seconds of the clock of plans.
#[derive(Clone, Debug, Default)]
pub struct Drains {
    since_s: HashMap<u32, u64>,
}

/// Backends whose drains began.
pub type Begun = Vec<u32>;

fn drains(backend: &PresentBackend) -> bool {
    backend.entry.flags & (FLAG_DRAINING | FLAG_REMOVED) != 0
}

impl Drains {
    /// The maps hold `present` now. Gives the ids whose drains begin.
    pub fn changed(&mut self, present: &Present, now_s: u64) -> Begun {
        let now: HashSet<u32> = (present.services().flat_map(|(_, service)| &service.backends))
            .filter_map(|backend| drains(backend).then_some(backend.id))
            .collect();
        self.since_s.retain(|id, _| now.contains(id));
        let begun: Begun = now.into_iter().filter(|id| !self.since_s.contains_key(id)).collect();
        self.since_s.extend(begun.iter().map(|id| (*id, now_s)));
        begun
    }

    /// Whether nothing drains.
    pub fn is_empty(&self) -> bool {
        self.since_s.is_empty()
    }

    /// Where the drain of a backend stands; `None` if it takes new flows. `connections` are its recorded flows, where all are.
    pub fn of(&self, backend: &PresentBackend, times: Times, now_s: u64, connections: Option<u64>) -> Option<Drain> {
        let since_s = *self.since_s.get(&backend.id)?;
        let ends_s = backend.leaves_s.unwrap_or(since_s + times.drain_s);
        let announced_for_s = (since_s + times.announce_s).min(ends_s).saturating_sub(now_s);
        let ends_in_s = ends_s.saturating_sub(now_s);
        let phase = match connections {
            _ if announced_for_s > 0 => DrainPhase::Announced,
            Some(0) => DrainPhase::Ended,
            None if ends_in_s == 0 => DrainPhase::Ended,
            Some(_) if ends_in_s == 0 => DrainPhase::TimedOut,
            _ => DrainPhase::Draining,
        };
        Some(Drain { phase, connections, announced_for_s, ends_in_s })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{NextHop, check},
        plan::{MapSizes, Secrets, Seen, diff, wanted},
    };

    /// What the maps hold after `before` with backends 10.0.0.X of (X, administrative state).
    fn next(before: Option<&Present>, backends: &[(u8, &str)], now_s: u64) -> Present {
        let mut text = String::from(
            "[node]\ninterface = \"eth0\"\n[[service]]\nname = \"s\"\nvip = \"192.0.2.1\"\nport = 80\nforward = \"ipip\"\n\
             track = \"all\"\ndrain_timeout = \"60s\"\nalgo_config = { ring_size = 251 }\n",
        );
        for (last, state) in backends {
            text += &format!("[[service.backends]]\naddress = \"10.0.0.{last}\"\nadmin_state = \"{state}\"\n");
        }
        let config = check("f", &text).config.unwrap();
        let hop = NextHop { ifindex: 1, mtu: 1500, src_mac: [2; 6], dst_mac: [2; 6] };
        let wanted = wanted(&config, &|_, _| Some(true), &|_| Some(hop));
        let secrets = Secrets { hash_key: [1; lb_core::abi::node::HASH_KEY_WORDS], ring_seed: 1 };
        let empty = Present::empty(MapSizes::of(&config.node.limits), secrets, 250);
        let ring = |extent: lb_core::abi::ring::Extent| Some(vec![1; extent.slots as usize]);
        diff(before.unwrap_or(&empty), &wanted, 1, Seen::rings(now_s, &ring)).unwrap().next
    }

    fn backend(present: &Present, last: u8) -> PresentBackend {
        let (key, _) = present.services().next().unwrap();
        *present.backend(key, [10, 0, 0, last].into(), 80).unwrap()
    }

    #[test]
    fn a_drain_has_its_phases() {
        let times = Times { announce_s: 4, drain_s: 60 };
        let mut drains = Drains::default();
        let one = next(None, &[(1, "ready"), (2, "ready")], 100);
        assert!(drains.changed(&one, 100).is_empty());
        let b = backend(&one, 2);
        assert_eq!(drains.of(&b, times, 100, Some(5)), None);
        let two = next(Some(&one), &[(1, "ready"), (2, "drain")], 110);
        assert_eq!(drains.changed(&two, 110), [b.id]);
        assert!(drains.changed(&two, 120).is_empty(), "a drain begins once");
        let b = backend(&two, 2);
        let table = [
            // (now, connections, phase, until no new flows, until the end)
            (110, Some(0), DrainPhase::Announced, 4, 60),
            (113, None, DrainPhase::Announced, 1, 57),
            (114, Some(3), DrainPhase::Draining, 0, 56),
            (114, Some(0), DrainPhase::Ended, 0, 56),
            (169, None, DrainPhase::Draining, 0, 1),
            (170, None, DrainPhase::Ended, 0, 0),
            (170, Some(1), DrainPhase::TimedOut, 0, 0),
        ];
        for (now_s, connections, phase, announced_for_s, ends_in_s) in table {
            let expect = Drain { phase, connections, announced_for_s, ends_in_s };
            assert_eq!(drains.of(&b, times, now_s, connections), Some(expect), "{now_s}");
        }
        // Back, and away again: another drain.
        let three = next(Some(&two), &[(1, "ready"), (2, "ready")], 180);
        drains.changed(&three, 180);
        assert_eq!(drains.of(&backend(&three, 2), times, 180, None), None);
        // What leaves the configuration ends when planning says so.
        let four = next(Some(&three), &[(1, "ready")], 200);
        drains.changed(&four, 200);
        let left = backend(&four, 2);
        assert_eq!(left.leaves_s, Some(260));
        let expect = Drain { phase: DrainPhase::Draining, connections: Some(1), announced_for_s: 0, ends_in_s: 50 };
        assert_eq!(drains.of(&left, times, 210, Some(1)), Some(expect));
    }
}
