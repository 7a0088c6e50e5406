//! The zone as one object: what the orchestrator's master writes, what every DNS server serves, and its check.
//!
//! Pure. Owns: the form of the object, its limits, and the lookup by name. Refuses to know: where the object comes from and
//! what is asked about it. Invariants: a [`Zone`] exists only as the output of [`Zone::check`]; it has an SOA, at least one
//! name server and no empty address list; names are kept in lower case and compared without regard to case.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use domain::base::ToName;
use serde::{Deserialize, Serialize};

pub use crate::model::dns::Name;
use crate::model::dns::host_name;

/// Names with addresses in a zone, at most.
pub const NAMES_MAX: usize = 10_000;
/// Addresses of one family under one name, at most: so many AAAA records fit a message of 65,535 bytes twice.
pub const ADDRESSES_MAX: usize = 1024;
/// Name servers of a zone, at most.
pub const NS_MAX: usize = 16;
/// TTLs that a zone may have, in seconds: shorter ones load the resolvers, longer ones keep clients on nodes that left.
pub const TTL_S: RangeInclusive<u32> = 1..=3600;
/// Largest value of the SOA's times, in seconds: ten years.
const SOA_TIME_S_MAX: u64 = 10 * 365 * 86_400;
/// The key of [`ZoneObject::records`] for the origin itself.
pub const APEX: &str = "@";

/// The zone as it is written and exchanged: JSON, unknown fields are left alone so that a newer master can add some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneObject {
    /// Name of the zone, with or without the final dot.
    pub origin: String,
    /// Serial number of the SOA; later versions are newer in the sense of RFC 1982.
    pub serial: u32,
    /// TTL of every record, in seconds, within [`TTL_S`]; 5 to 15 is what load balancing wants.
    pub ttl_s: u32,
    /// The rest of the SOA.
    pub soa: SoaObject,
    /// Names of the zone's name servers, absolute; one inside the zone needs addresses in `records`.
    pub ns: Vec<String>,
    /// Addresses by name, relative to the origin; [`APEX`] is the origin itself. No list is empty.
    pub records: BTreeMap<String, Vec<IpAddr>>,
}

/// The SOA without its serial number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoaObject {
    /// Primary name server, an absolute name.
    pub mname: String,
    /// Mailbox of who is responsible, as a name: `hostmaster.example.com` for hostmaster@example.com.
    pub rname: String,
    /// Seconds after which a secondary asks for the serial number; default 60, for NOTIFY is faster.
    #[serde(default = "SoaObject::refresh_s")]
    pub refresh_s: u32,
    /// Seconds after which it asks again when nobody answered; default 15.
    #[serde(default = "SoaObject::retry_s")]
    pub retry_s: u32,
    /// Seconds for which it serves a zone whose primary is silent; default a week.
    #[serde(default = "SoaObject::expire_s")]
    pub expire_s: u32,
    /// TTL of negative answers, in seconds; default 5.
    #[serde(default = "SoaObject::minimum_s")]
    pub minimum_s: u32,
}

impl SoaObject {
    /// An SOA with the default times.
    pub fn new(mname: impl Into<String>, rname: impl Into<String>) -> Self {
        Self {
            mname: mname.into(),
            rname: rname.into(),
            refresh_s: Self::refresh_s(),
            retry_s: Self::retry_s(),
            expire_s: Self::expire_s(),
            minimum_s: Self::minimum_s(),
        }
    }

    const fn refresh_s() -> u32 {
        60
    }

    const fn retry_s() -> u32 {
        15
    }

    const fn expire_s() -> u32 {
        7 * 86_400
    }

    const fn minimum_s() -> u32 {
        5
    }
}

/// Why an object is no zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// It is no JSON of that form.
    #[error("not a zone object: {0}")]
    Form(String),
    /// A name cannot be one.
    #[error("`{field}` has \"{name}\", which is no host name: {why}")]
    Name {
        /// Where it stands.
        field: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A name of `records` names the same host as another one.
    #[error("`records` has {0} twice (names differ only in case or in a final dot)")]
    Twice(String),
    /// A number is out of range.
    #[error("`{field}` is {value}, which is not within {min} to {max}")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The least that is allowed.
        min: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// A name without addresses, which would be an empty answer.
    #[error("{0} has no address: a name without addresses is left out, or keeps those it had")]
    NoAddress(String),
    /// An address that nobody can connect to.
    #[error("{name} has the address {address}, to which nobody can connect")]
    Address {
        /// The name.
        name: String,
        /// The address.
        address: IpAddr,
    },
    /// A name server inside the zone has no address.
    #[error("the name server {0} is inside the zone and has no address in `records`")]
    NoGlue(String),
}

/// What stands under one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// A records, ascending.
    pub a: Vec<Ipv4Addr>,
    /// AAAA records, ascending.
    pub aaaa: Vec<Ipv6Addr>,
}

/// One record of the zone, without owner and TTL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// Authority of the zone, with this serial number.
    Soa(u32),
    /// A name server.
    Ns(Name),
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
}

/// The SOA's fields as names and numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Soa {
    /// Primary name server.
    pub mname: Name,
    /// Responsible mailbox.
    pub rname: Name,
    /// Times in seconds: refresh, retry, expire, minimum.
    pub times_s: [u32; 4],
}

/// A zone that has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    object: ZoneObject,
    origin: Name,
    soa: Soa,
    ns: Vec<Name>,
    /// Every name that exists, the origin and empty non-terminals (RFC 8020) among them.
    nodes: BTreeMap<Name, Node>,
}

impl Zone {
    /// Reads and checks the JSON of a [`ZoneObject`].
    ///
    /// # Errors
    /// The first [`ZoneError`].
    pub fn from_json(json: &[u8]) -> Result<Self, ZoneError> {
        let object = serde_json::from_slice(json).map_err(|e| ZoneError::Form(e.to_string()))?;
        Self::check(object)
    }

    /// Checks an object.
    ///
    /// # Errors
    /// The first [`ZoneError`].
    pub fn check(object: ZoneObject) -> Result<Self, ZoneError> {
        let origin = name("origin", &object.origin)?;
        range("ttl_s", object.ttl_s.into(), u64::from(*TTL_S.start())..=u64::from(*TTL_S.end()))?;
        let times = [
            ("soa.refresh_s", object.soa.refresh_s),
            ("soa.retry_s", object.soa.retry_s),
            ("soa.expire_s", object.soa.expire_s),
            ("soa.minimum_s", object.soa.minimum_s),
        ];
        for (field, value) in times {
            range(field, value.into(), 1..=SOA_TIME_S_MAX)?;
        }
        let soa = Soa {
            mname: name("soa.mname", &object.soa.mname)?,
            rname: name("soa.rname", &object.soa.rname)?,
            times_s: times.map(|(_, value)| value),
        };
        range("ns (how many)", object.ns.len() as u64, 1..=NS_MAX as u64)?;
        range("records (how many names)", object.records.len() as u64, 0..=NAMES_MAX as u64)?;
        let nodes = nodes(&origin, &object.records)?;
        let ns = object.ns.iter().map(|ns| name("ns", ns)).collect::<Result<Vec<_>, _>>()?;
        let zone = Self { object, origin, soa, ns, nodes };
        let bare = |ns: &&Name| ns.ends_with(&zone.origin) && zone.node(ns).is_none_or(Node::is_empty);
        if let Some(ns) = zone.ns.iter().find(bare) {
            return Err(ZoneError::NoGlue(ns.to_string()));
        }
        Ok(zone)
    }

    /// The object as it was written.
    pub fn object(&self) -> &ZoneObject {
        &self.object
    }

    /// Name of the zone.
    pub fn origin(&self) -> &Name {
        &self.origin
    }

    /// Serial number.
    pub fn serial(&self) -> u32 {
        self.object.serial
    }

    /// TTL of every record, in seconds.
    pub fn ttl_s(&self) -> u32 {
        self.object.ttl_s
    }

    /// TTL of negative answers, in seconds (RFC 2308, section 5).
    pub fn negative_ttl_s(&self) -> u32 {
        self.object.ttl_s.min(self.object.soa.minimum_s)
    }

    /// The SOA.
    pub fn soa(&self) -> &Soa {
        &self.soa
    }

    /// Name servers.
    pub fn ns(&self) -> &[Name] {
        &self.ns
    }

    /// What stands under `name`; `None` if it does not exist. A node without records is an empty non-terminal or the origin.
    pub fn node(&self, name: &impl ToName) -> Option<&Node> {
        self.nodes.get(&lower(name))
    }

    /// Names that have addresses, in canonical order, with them.
    pub fn hosts(&self) -> impl Iterator<Item = (&Name, &Node)> {
        self.nodes.iter().filter(|(_, node)| !node.is_empty())
    }

    /// Every record but the SOA, with its owner: the order of a transfer.
    pub fn records(&self) -> impl Iterator<Item = (&Name, Data)> {
        let ns = self.ns.iter().map(|ns| (&self.origin, Data::Ns(ns.clone())));
        ns.chain(self.hosts().flat_map(|(name, node)| node.data().map(move |data| (name, data))))
    }
}

impl Node {
    /// Whether nothing stands here.
    pub fn is_empty(&self) -> bool {
        self.a.is_empty() && self.aaaa.is_empty()
    }

    /// Its records.
    pub fn data(&self) -> impl Iterator<Item = Data> {
        self.a.iter().copied().map(Data::A).chain(self.aaaa.iter().copied().map(Data::Aaaa))
    }
}

/// Whether serial number `a` is newer than `b` (RFC 1982, section 3.2); where that is undefined, it is not.
pub fn newer(a: u32, b: u32) -> bool {
    let ahead = a.wrapping_sub(b);
    ahead != 0 && ahead < 1 << 31
}

/// `name` in lower case, which is how the zone keeps names.
pub fn lower(name: &impl ToName) -> Name {
    name.to_canonical_name()
}

/// `text` as an absolute host name in lower case.
///
/// # Errors
/// [`ZoneError::Name`] with `field`.
pub fn name(field: &'static str, text: &str) -> Result<Name, ZoneError> {
    host_name(text).map_err(|why| ZoneError::Name { field, name: text.to_owned(), why })
}

/// The absolute name of `relative`, a key of [`ZoneObject::records`].
///
/// # Errors
/// [`ZoneError::Name`].
pub fn under(origin: &Name, relative: &str) -> Result<Name, ZoneError> {
    if relative == APEX {
        return Ok(origin.clone());
    }
    if relative.ends_with('.') {
        let why = "names here are relative to the origin, without a final dot".to_owned();
        return Err(ZoneError::Name { field: "records", name: relative.to_owned(), why });
    }
    name("records", &format!("{relative}.{origin}"))
}

fn nodes(origin: &Name, records: &BTreeMap<String, Vec<IpAddr>>) -> Result<BTreeMap<Name, Node>, ZoneError> {
    let mut nodes = BTreeMap::from([(origin.clone(), Node::default())]);
    let mut seen = std::collections::BTreeSet::new();
    for (relative, addresses) in records {
        let owner = under(origin, relative)?;
        if !seen.insert(owner.clone()) {
            return Err(ZoneError::Twice(owner.to_string()));
        }
        let mut node = Node::default();
        for &address in addresses {
            if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
                return Err(ZoneError::Address { name: owner.to_string(), address });
            }
            match address {
                IpAddr::V4(address) => node.a.push(address),
                IpAddr::V6(address) => node.aaaa.push(address),
            }
        }
        if node.is_empty() {
            return Err(ZoneError::NoAddress(owner.to_string()));
        }
        node.a.sort_unstable();
        node.a.dedup();
        node.aaaa.sort_unstable();
        node.aaaa.dedup();
        range("addresses under one name", node.a.len().max(node.aaaa.len()) as u64, 1..=ADDRESSES_MAX as u64)?;
        for ancestor in owner.iter_suffixes().skip(1).take_while(|suffix| suffix.ends_with(origin)) {
            if let Entry::Vacant(vacant) = nodes.entry(lower(&ancestor)) {
                vacant.insert(Node::default());
            }
        }
        nodes.insert(owner, node);
    }
    Ok(nodes)
}

fn range(field: &'static str, value: u64, within: RangeInclusive<u64>) -> Result<(), ZoneError> {
    let (min, max) = within.clone().into_inner();
    if within.contains(&value) { Ok(()) } else { Err(ZoneError::Range { field, value, min, max }) }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use serde_json::json;

    use super::{
        super::sample::{object, sample},
        *,
    };

    #[test]
    fn names_are_found_in_any_case_and_empty_non_terminals_exist() {
        let zone = sample(7);
        for (text, exists, a, aaaa) in [
            ("WwW.lb.EXAMPLE", true, 3, 2),
            ("lb.example", true, 0, 0),
            ("deep.lb.example", true, 0, 0),
            ("b.deep.lb.example", true, 0, 0),
            ("a.b.deep.lb.example", true, 1, 0),
            ("x.deep.lb.example", false, 0, 0),
            ("example", false, 0, 0),
        ] {
            let node = zone.node(&Name::from_str(text).unwrap());
            assert_eq!(node.map(|n| (n.a.len(), n.aaaa.len())), exists.then_some((a, aaaa)), "{text}");
        }
        assert_eq!(zone.records().count(), 2 + 1 + 5 + 1);
    }

    #[test]
    fn what_is_no_zone_is_refused() {
        let good = serde_json::to_value(object(1)).unwrap();
        assert!(Zone::from_json(good.to_string().as_bytes()).is_ok());
        for (pointer, value, part) in [
            ("/origin", json!(""), "no host name"),
            ("/origin", json!("."), "it is empty"),
            ("/origin", json!("a b"), "letters, digits"),
            ("/origin", json!(["x"]), "not a zone object"),
            ("/ttl_s", json!(0), "`ttl_s` is 0"),
            ("/ttl_s", json!(-1), "not a zone object"),
            ("/serial", json!(1u64 << 32), "not a zone object"),
            ("/soa/expire_s", json!(0), "`soa.expire_s`"),
            ("/soa/rname", json!("root@example"), "soa.rname"),
            ("/ns", json!([]), "how many"),
            ("/ns/0", json!("ns9.lb.example"), "inside the zone"),
            ("/ns/0", json!("deep.lb.example"), "inside the zone"),
            ("/records/www", json!([]), "has no address"),
            ("/records/www", json!(["0.0.0.0"]), "nobody can connect"),
            ("/records/www", json!(["192.0.2.256"]), "not a zone object"),
            ("/records", json!({"*": ["192.0.2.1"]}), "wildcards"),
            ("/records", json!({"www.": ["192.0.2.1"]}), "final dot"),
            ("/records", json!({"w..w": ["192.0.2.1"]}), "no host name"),
            ("/records", json!({"ww": ["192.0.2.1"], "WW": ["192.0.2.1"]}), "twice"),
        ] {
            let mut json = good.clone();
            *json.pointer_mut(pointer).unwrap() = value;
            let error = Zone::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{pointer}: {error}");
        }
        let long = format!("{}.x", ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join("."));
        let mut json = good;
        json["records"] = json!({ long: ["192.0.2.1"] });
        assert!(Zone::from_json(json.to_string().as_bytes()).is_err());
    }

    #[test]
    fn fields_of_a_newer_master_are_left_alone_and_times_have_defaults() {
        let mut json = serde_json::to_value(object(1)).unwrap();
        json["weights"] = json!({});
        json["soa"] = json!({"mname": "ns1.lb.example", "rname": "h.example"});
        let zone = Zone::from_json(json.to_string().as_bytes()).unwrap();
        assert_eq!(zone.soa().times_s, [60, 15, 604_800, 5]);
        assert_eq!(zone.negative_ttl_s(), 5);
    }

    #[test]
    fn serial_numbers_are_a_circle() {
        for (a, b, is) in [
            (2, 1, true),
            (1, 2, false),
            (1, 1, false),
            (0, u32::MAX, true),
            (u32::MAX, 0, false),
            (1 << 31, 0, false),
            ((1 << 31) - 1, 0, true),
        ] {
            assert_eq!(newer(a, b), is, "{a} {b}");
        }
    }
}
