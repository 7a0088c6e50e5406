//! From the fleet's state to the zone: which addresses a name has, and under which serial number.
//!
//! Pure. Owns: the rule that decides who is in DNS. Refuses to know: how nodes are watched and where the object is written
//! (under the master's epoch). Invariants: a name that had addresses never loses its last one while it is wanted; nothing
//! changes without a new serial number, and no serial number is used up by nothing.

use std::{collections::BTreeMap, net::IpAddr};

use super::zone::{SoaObject, ZoneObject, newer};

/// A node as a candidate for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Address that clients shall connect to: a VIP of the node.
    pub address: IpAddr,
    /// Its heartbeat and its probe are good, and it has applied the current revision.
    pub ready: bool,
    /// It is being taken out.
    pub draining: bool,
}

/// What the zone shall hold, from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneSpec {
    /// Name of the zone.
    pub origin: String,
    /// TTL of every record, in seconds.
    pub ttl_s: u32,
    /// SOA without serial number.
    pub soa: SoaObject,
    /// Name servers, absolute.
    pub ns: Vec<String>,
    /// Addresses that do not depend on nodes (those of the name servers), by relative name.
    pub fixed: BTreeMap<String, Vec<IpAddr>>,
}

/// Why a name has the addresses that it has, where that is not "these nodes are ready".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// No node is ready: the addresses of the zone before stay.
    LastGood,
    /// No node is ready, and there are none from before, but some that are draining still forward: these.
    Draining,
    /// No node has ever been ready: the name does not exist yet.
    Absent,
}

/// A zone to write, or the one that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The zone.
    pub zone: ZoneObject,
    /// Whether it differs from the last one, and so has a new serial number.
    pub changed: bool,
    /// Names (and families) that are not what their nodes say.
    pub held: Vec<(String, Family, Held)>,
}

/// A family of addresses: each has its own record set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Family {
    fn has(self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

/// The next serial number: one more than the last, or the time if that is newer.
pub fn next_serial(last: Option<u32>, now_unix_s: u64) -> u32 {
    // The serial number is a circle of 32 bits, and so is the time here: the next turn begins in 2106.
    let now = now_unix_s as u32;
    match last.map(|last| last.wrapping_add(1)) {
        Some(next) if !newer(now, next) => next,
        _ => now,
    }
}

/// The zone for `names` (relative name to candidates), given the last one that was written.
pub fn publish(
    spec: &ZoneSpec,
    names: &BTreeMap<String, Vec<Candidate>>,
    last: Option<&ZoneObject>,
    now_unix_s: u64,
) -> Published {
    let mut records = spec.fixed.clone();
    let mut held = Vec::new();
    for (name, candidates) in names {
        let before = last.and_then(|zone| zone.records.get(name)).map_or(&[][..], Vec::as_slice);
        let live = |c: &&Candidate| c.ready && !c.draining;
        let any_live = candidates.iter().any(|c| live(&c));
        let mut addresses: Vec<IpAddr> = Vec::new();
        for family in [Family::V4, Family::V6] {
            let of_family = || candidates.iter().filter(|c| family.has(&c.address));
            let good: Vec<IpAddr> = of_family().filter(live).map(|c| c.address).collect();
            if !good.is_empty() {
                addresses.extend(good);
                continue;
            }
            let old: Vec<IpAddr> = before.iter().copied().filter(|address| family.has(address)).collect();
            let draining: Vec<IpAddr> = of_family().filter(|c| c.ready).map(|c| c.address).collect();
            // A family that no node has any more, while others are live, was taken out of service and not lost.
            let retired = of_family().next().is_none() && any_live;
            let wanted = of_family().next().is_some() || !old.is_empty();
            match () {
                () if retired || !wanted => {}
                () if !old.is_empty() => {
                    held.push((name.clone(), family, Held::LastGood));
                    addresses.extend(old);
                }
                () if !draining.is_empty() => {
                    held.push((name.clone(), family, Held::Draining));
                    addresses.extend(draining);
                }
                () => held.push((name.clone(), family, Held::Absent)),
            }
        }
        addresses.extend(records.get(name).into_iter().flatten());
        addresses.sort_unstable();
        addresses.dedup();
        if !addresses.is_empty() {
            records.insert(name.clone(), addresses);
        }
    }
    let zone = ZoneObject {
        origin: spec.origin.clone(),
        serial: last.map_or(0, |zone| zone.serial),
        ttl_s: spec.ttl_s,
        soa: spec.soa.clone(),
        ns: spec.ns.clone(),
        records,
    };
    let changed = last != Some(&zone);
    let serial = if changed { next_serial(last.map(|zone| zone.serial), now_unix_s) } else { zone.serial };
    Published { zone: ZoneObject { serial, ..zone }, changed, held }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn spec() -> ZoneSpec {
        ZoneSpec {
            origin: "lb.example".into(),
            ttl_s: 10,
            soa: SoaObject::new("ns1.lb.example", "h.example"),
            ns: vec!["ns1.lb.example".into()],
            fixed: BTreeMap::from([("ns1".into(), vec!["192.0.2.53".parse().unwrap()])]),
        }
    }

    /// `192.0.2.1` is ready, a `!` before it says not ready, a `~` draining.
    fn candidates(words: &str) -> Vec<Candidate> {
        let one = |word: &str| Candidate {
            address: word.trim_start_matches(['!', '~']).parse().unwrap(),
            ready: !word.contains('!'),
            draining: word.contains('~'),
        };
        words.split_whitespace().map(one).collect()
    }

    fn web(zone: &ZoneObject) -> String {
        let list = zone.records.get("web").into_iter().flatten();
        list.map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn who_is_in_dns() {
        use Held::{Absent, Draining, LastGood};
        let (v4, v6) = (Family::V4, Family::V6);
        // Addresses before, nodes now, addresses after, what is held.
        type Row<'r> = (&'r str, &'r str, &'r str, &'r [(Family, Held)]);
        let table: [Row<'_>; 13] = [
            ("", "192.0.2.1 192.0.2.2", "192.0.2.1 192.0.2.2", &[]),
            ("192.0.2.1", "192.0.2.2 192.0.2.1", "192.0.2.1 192.0.2.2", &[]),
            ("192.0.2.1 192.0.2.2", "192.0.2.1 !192.0.2.2", "192.0.2.1", &[]),
            ("192.0.2.1 192.0.2.2", "192.0.2.1 ~192.0.2.2", "192.0.2.1", &[]),
            // All gone in any way: the last good set.
            ("192.0.2.1 192.0.2.2", "!192.0.2.1 ~192.0.2.2", "192.0.2.1 192.0.2.2", &[(v4, LastGood)]),
            ("192.0.2.1 192.0.2.2", "", "192.0.2.1 192.0.2.2", &[(v4, LastGood)]),
            ("", "!192.0.2.1 ~192.0.2.2", "192.0.2.2", &[(v4, Draining)]),
            ("", "!192.0.2.1", "", &[(v4, Absent)]),
            ("", "", "", &[]),
            // Each family has a set of its own.
            ("192.0.2.1 2001:db8::1", "192.0.2.1 !2001:db8::1", "192.0.2.1 2001:db8::1", &[(v6, LastGood)]),
            ("192.0.2.1 2001:db8::1", "192.0.2.1", "192.0.2.1", &[]),
            ("192.0.2.1 2001:db8::1", "!192.0.2.1", "192.0.2.1 2001:db8::1", &[(v4, LastGood), (v6, LastGood)]),
            ("192.0.2.1", "192.0.2.1 !2001:db8::1", "192.0.2.1", &[(v6, Absent)]),
        ];
        for (before, now, after, held) in table {
            let seed = publish(&spec(), &BTreeMap::from([("web".into(), candidates(before))]), None, NOW);
            let out = publish(&spec(), &BTreeMap::from([("web".into(), candidates(now))]), Some(&seed.zone), NOW);
            assert_eq!(web(&out.zone), after, "{before} -> {now}");
            let expected: Vec<_> = held.iter().map(|(family, held)| ("web".to_owned(), *family, *held)).collect();
            assert_eq!(out.held, expected, "{before} -> {now}");
            assert_eq!(out.changed, before != after, "{before} -> {now}");
            super::super::zone::Zone::check(out.zone).unwrap();
        }
    }

    #[test]
    fn what_stays_keeps_its_serial_and_what_is_no_longer_wanted_goes() {
        let names = BTreeMap::from([("web".into(), candidates("192.0.2.1"))]);
        let first = publish(&spec(), &names, None, NOW);
        assert_eq!((first.zone.serial, first.changed), (NOW as u32, true));
        let again = publish(&spec(), &names, Some(&first.zone), NOW + 60);
        assert_eq!((&again.zone, again.changed), (&first.zone, false));
        let gone = publish(&spec(), &BTreeMap::new(), Some(&first.zone), NOW);
        assert_eq!((web(&gone.zone).as_str(), gone.zone.serial), ("", NOW as u32 + 1));
        let other = publish(&ZoneSpec { ttl_s: 5, ..spec() }, &names, Some(&first.zone), NOW + 60);
        assert_eq!((other.zone.serial, other.changed), (NOW as u32 + 60, true));
    }

    #[test]
    fn serials_only_grow() {
        for (last, now, next) in [
            (None, 100, 100),
            (Some(99), 100, 100),
            (Some(100), 100, 101),
            // A clock that went back, and one that had been ahead.
            (Some(5_000), 100, 5_001),
            (Some(u32::MAX), u64::from(u32::MAX), 0),
            (Some(u32::MAX), (1 << 32) + 7, 7),
        ] {
            assert_eq!(next_serial(last, now), next, "{last:?} {now}");
        }
    }
}
