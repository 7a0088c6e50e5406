//! The zone that is served, and the versions before it, for incremental transfers.
//!
//! Pure. Owns: which zone may follow which. Invariant: the serial number only moves forward (RFC 1982), so secondaries
//! never meet a version that is older than theirs, or another one under the same number.

use std::{collections::VecDeque, sync::Arc};

use super::zone::{Zone, newer};

/// Versions that are kept besides the current one.
const VERSIONS_MAX: usize = 32;
/// Names of all kept versions together, at most: bounds the memory of large zones.
const NAMES_MAX: usize = 50_000;

/// What is served.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    current: Option<Arc<Zone>>,
    /// Newest first.
    before: VecDeque<Arc<Zone>>,
}

/// What is to be done with a zone that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is served from now on.
    Take,
    /// It is the one that is served.
    Same,
    /// Its serial number is older than the one that is served.
    Older,
    /// It says something else under the serial number that is served.
    Forked,
    /// It is another zone.
    OtherZone,
}

impl Serving {
    /// The current zone.
    pub fn current(&self) -> Option<&Arc<Zone>> {
        self.current.as_ref()
    }

    /// The kept version with that serial number.
    pub fn version(&self, serial: u32) -> Option<&Arc<Zone>> {
        self.before.iter().find(|zone| zone.serial() == serial)
    }

    /// What is to be done with `offered`, where `origin` is the zone that this server is for.
    pub fn decide(&self, offered: &Zone, origin: &super::zone::Name) -> Decision {
        if offered.origin() != origin {
            return Decision::OtherZone;
        }
        match &self.current {
            None => Decision::Take,
            Some(current) if current.object() == offered.object() => Decision::Same,
            Some(current) if current.serial() == offered.serial() => Decision::Forked,
            Some(current) if newer(offered.serial(), current.serial()) => Decision::Take,
            Some(_) => Decision::Older,
        }
    }

    /// The same with `zone` as the current one.
    #[must_use]
    pub fn with(&self, zone: Arc<Zone>) -> Self {
        let mut before = self.before.clone();
        before.extend(self.current.clone());
        before.rotate_right(usize::from(self.current.is_some()));
        before.truncate(VERSIONS_MAX);
        let mut names = 0;
        let within = before.iter().take_while(|zone| {
            names += zone.object().records.len();
            names <= NAMES_MAX
        });
        let kept = within.count();
        before.truncate(kept);
        Self { current: Some(zone), before }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sample::*, *};

    #[test]
    fn only_forward() {
        let origin = sample(1).origin().clone();
        let serving = Serving::default().with(Arc::new(sample(10)));
        let mut fork = object(10);
        fork.ttl_s = 7;
        let mut other = object(11);
        other.origin = "other.example".into();
        other.ns = vec!["ns.elsewhere.test".into()];
        for (offered, decision) in [
            (object(11), Decision::Take),
            (object(10), Decision::Same),
            (object(9), Decision::Older),
            (object(10u32.wrapping_sub(1 << 30)), Decision::Older),
            (fork, Decision::Forked),
            (other, Decision::OtherZone),
        ] {
            let offered = Zone::check(offered).unwrap();
            assert_eq!(serving.decide(&offered, &origin), decision, "{}", offered.serial());
        }
        assert_eq!(Serving::default().decide(&sample(3), &origin), Decision::Take);
    }

    #[test]
    fn versions_are_kept_newest_first_and_bounded() {
        let serving = (1..=40).fold(Serving::default(), |serving, serial| serving.with(Arc::new(sample(serial))));
        assert_eq!(serving.current().unwrap().serial(), 40);
        assert!(serving.version(39).is_some() && serving.version(8).is_some());
        assert!(serving.version(7).is_none() && serving.version(40).is_none());
    }
}
