//! The zone as a master file (RFC 1035, section 5), for servers that read files: CoreDNS `file`, or any other.
//!
//! Pure. Invariant: the text says the same records as the answers of this server.

use std::fmt::Write as _;

use super::zone::{Data, Zone};

/// The master file of `zone`: `$ORIGIN`, `$TTL`, SOA, then one record a line with absolute names.
pub fn master_file(zone: &Zone) -> String {
    let mut out = String::new();
    let soa = zone.soa();
    let [refresh, retry, expire, minimum] = soa.times_s;
    // Writing to a string cannot fail.
    let _ = writeln!(out, "; written by weir, serial {}: changes here are lost", zone.serial());
    let _ = writeln!(out, "$ORIGIN {}.", zone.origin());
    let _ = writeln!(out, "$TTL {}", zone.ttl_s());
    let _ =
        writeln!(out, "@ IN SOA {}. {}. {} {refresh} {retry} {expire} {minimum}", soa.mname, soa.rname, zone.serial());
    for (owner, data) in zone.records() {
        let _ = match data {
            Data::Ns(ns) => writeln!(out, "{owner}. IN NS {ns}."),
            Data::A(address) => writeln!(out, "{owner}. IN A {address}"),
            Data::Aaaa(address) => writeln!(out, "{owner}. IN AAAA {address}"),
            // The SOA stands first, and records() has none.
            Data::Soa(_) => Ok(()),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{super::sample::sample, *};

    #[test]
    fn every_record_is_in_it() {
        let text = master_file(&sample(42));
        let expected = "\
; written by weir, serial 42: changes here are lost
$ORIGIN lb.example.
$TTL 10
@ IN SOA ns1.lb.example. hostmaster.example. 42 60 15 604800 5
lb.example. IN NS ns1.lb.example.
lb.example. IN NS ns2.elsewhere.test.
a.b.deep.lb.example. IN A 192.0.2.9
ns1.lb.example. IN A 192.0.2.53
www.lb.example. IN A 192.0.2.1
www.lb.example. IN A 192.0.2.2
www.lb.example. IN A 192.0.2.3
www.lb.example. IN AAAA 2001:db8::1
www.lb.example. IN AAAA 2001:db8::2
";
        assert_eq!(text, expected);
    }
}
