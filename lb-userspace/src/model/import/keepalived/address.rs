//! Addresses, ranges of addresses and ports as `virtual_server_group` writes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A port; 0, which means all, where none is given.
pub(super) fn port(text: Option<&str>) -> Option<u16> {
    text.map_or(Some(0), |text| text.parse().ok())
}

/// `192.0.2.1`, `192.0.2.1-10`, `192.0.2.250-192.0.3.10`, `192.0.2.8/29` and the like for IPv6, where the end of a short range is
/// hexadecimal. `None` if it is none of them, or more than `room` addresses.
pub(super) fn range(text: &str, room: usize) -> Option<Vec<IpAddr>> {
    let (first, last) = if let Some((first, end)) = text.split_once('-') {
        let first: IpAddr = first.parse().ok()?;
        (first, end.parse().ok().or_else(|| short_end(first, end))?)
    } else if text.contains('/') {
        let net: IpNet = text.parse().ok()?;
        (net.network(), net.broadcast())
    } else {
        let address = text.parse().ok()?;
        (address, address)
    };
    let (from, to) = (number(first), number(last));
    if first.is_ipv4() != last.is_ipv4() || to < from || to - from >= room as u128 {
        return None;
    }
    let address = |n: u128| match first {
        IpAddr::V4(_) => u32::try_from(n).ok().map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(_) => Some(Ipv6Addr::from(n).into()),
    };
    (from..=to).map(address).collect()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// `first` with another last byte, or last sixteen bits.
fn short_end(first: IpAddr, end: &str) -> Option<IpAddr> {
    Some(match first {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) & !0xff | u32::from(end.parse::<u8>().ok()?)).into(),
        IpAddr::V6(v6) => {
            Ipv6Addr::from(u128::from(v6) & !0xffff | u128::from(u16::from_str_radix(end, 16).ok()?)).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_range() {
        let table = [
            ("192.0.2.1", 1, "192.0.2.1", "192.0.2.1"),
            ("192.0.2.1-10", 10, "192.0.2.1", "192.0.2.10"),
            ("192.0.2.250-192.0.3.10", 17, "192.0.2.250", "192.0.3.10"),
            ("192.0.2.8/29", 8, "192.0.2.8", "192.0.2.15"),
            ("2001:db8::1-a", 10, "2001:db8::1", "2001:db8::a"),
            ("255.255.255.255", 1, "255.255.255.255", "255.255.255.255"),
        ];
        for (text, n, first, last) in table {
            let all = range(text, 100).unwrap();
            assert_eq!(
                (all.len(), all[0].to_string(), all[n - 1].to_string()),
                (n, first.into(), last.into()),
                "{text}"
            );
        }
        for text in ["", "x", "192.0.2.9-1", "192.0.2.1-2001:db8::1", "::/0", "192.0.2.1-256", "10.0.0.0/8"] {
            assert_eq!(range(text, 100), None, "{text}");
        }
        assert_eq!(range("192.0.2.1", 0), None);
    }
}
