//! The zone and the key that tests share.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr as _, sync::Arc};

use domain::tsig::{Algorithm, Key, KeyName};

use super::{
    key::key,
    zone::{SoaObject, Zone, ZoneObject},
};

/// A zone with three names, both families and an empty non-terminal.
pub fn sample(serial: u32) -> Zone {
    Zone::check(object(serial)).unwrap()
}

/// The same as an object.
pub fn object(serial: u32) -> ZoneObject {
    let ips = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
    ZoneObject {
        origin: "LB.example".into(),
        serial,
        ttl_s: 10,
        soa: SoaObject::new("ns1.lb.example", "hostmaster.example"),
        ns: vec!["ns1.lb.example.".into(), "ns2.elsewhere.test".into()],
        records: BTreeMap::from([
            ("ns1".into(), ips(&["192.0.2.53"])),
            ("www".into(), ips(&["192.0.2.2", "192.0.2.1", "192.0.2.3", "2001:db8::1", "2001:db8::2"])),
            ("a.b.deep".into(), ips(&["192.0.2.9"])),
        ]),
    }
}

/// A secret.
pub const SECRET: &str = "c2l4dGVlbiBieXRlcyBhbmQgc29tZSBtb3JlIQ==";

/// A key called `name` with that secret.
pub fn test_key(name: &str) -> Arc<Key> {
    key(KeyName::from_str(name).unwrap(), Algorithm::Sha256, SECRET).unwrap()
}
