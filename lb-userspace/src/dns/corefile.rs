//! Server blocks for CoreDNS, which serves the zone from a file or as a secondary.
//!
//! Pure. CoreDNS transfers without TSIG, so its `[[secondary]]` has no key and its address alone is trusted.

use std::{fmt::Write as _, net::SocketAddr};

use super::zone::Name;

/// A block for the plugin `file`, which reads the master file again within `reload`.
pub fn with_file(origin: &Name) -> String {
    format!(
        "\
# weir dns export --format zone > /etc/coredns/{origin}.zone   (write beside it and rename)
{origin}:53 {{
    file /etc/coredns/{origin}.zone {{
        reload 5s
    }}
    loadbalance round_robin
    errors
}}
"
    )
}

/// A block for the plugin `secondary`, which transfers the zone from one of `primaries`.
pub fn with_secondary(origin: &Name, primaries: &[SocketAddr]) -> String {
    let mut from = String::new();
    for primary in primaries {
        // Writing to a string cannot fail.
        let _ = write!(from, " {primary}");
    }
    format!(
        "\
# In dns.toml of each primary, a [[secondary]] with the address of this server and without a key.
{origin}:53 {{
    secondary {{
        transfer from{from}
    }}
    loadbalance round_robin
    errors
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_name_the_zone_and_its_primaries() {
        let origin = crate::model::dns::host_name("lb.example").unwrap();
        let text = with_secondary(&origin, &["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:5353".parse().unwrap()]);
        assert!(
            text.contains("\nlb.example:53 {\n") && text.contains("transfer from 192.0.2.1:53 [2001:db8::1]:5353\n")
        );
        assert!(with_file(&origin).contains("file /etc/coredns/lb.example.zone {"));
    }
}
