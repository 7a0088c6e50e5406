//! IP addresses as VIPs and backends have them: global or private unicast, one way to write each.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{
    At, Code, Diagnostic, Findings,
    reader::{Section, shown},
};

/// The address under `name`.
pub(super) fn read(section: &Section<'_>, name: &str, findings: &mut Findings) -> Option<At<IpAddr>> {
    let At { value: text, span } = section.string(name, findings)?;
    let Ok(address) = text.parse::<IpAddr>() else {
        let message = format!("`{name}` is not an IP address: \"{}\"", shown(text));
        findings.push(Diagnostic::new(Code::BadAddress, span, message).hint(spelling_hint(text)));
        return None;
    };
    match unusable(address) {
        None => Some(At { value: address, span }),
        Some((kind, hint)) => {
            let message = format!("`{name}` cannot be {kind}: {address}");
            findings.push(Diagnostic::new(Code::AddressKind, span, message).hint(hint));
            None
        }
    }
}

/// What is wrong with the spelling.
fn spelling_hint(text: &str) -> String {
    if let Ok(with_port) = text.parse::<SocketAddr>() {
        return format!("write \"{}\" and `port = {}`", with_port.ip(), with_port.port());
    }
    if let Some((address, _)) = text.split_once('/')
        && address.parse::<IpAddr>().is_ok()
    {
        return format!("write the address alone, without prefix length: \"{address}\"");
    }
    if let Some((address, _)) = text.split_once('%')
        && address.parse::<Ipv6Addr>().is_ok()
    {
        return "a zone (%...) only goes with link-local addresses, which cannot be balanced: use a global or unique local \
                address"
            .to_owned();
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'))
        && inner.parse::<Ipv6Addr>().is_ok()
    {
        return format!("write it without brackets: \"{inner}\"");
    }
    if text.chars().any(|c| c.is_ascii_alphabetic()) && text.contains('.') {
        return "names are not resolved: what a name stands for could change unseen; write the address".to_owned();
    }
    "an address is written \"192.0.2.1\" or \"2001:db8::1\"".to_owned()
}

/// Why an address can be neither VIP nor backend: its kind, and a hint.
pub(in crate::model) fn unusable(address: IpAddr) -> Option<(&'static str, &'static str)> {
    let elsewhere = "use an address that other machines can reach";
    match address {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some(("an unspecified address", elsewhere)),
        IpAddr::V4(v4) if v4.is_loopback() => Some(("a loopback address", elsewhere)),
        IpAddr::V4(v4) if v4.is_multicast() => Some(("a multicast address", "only unicast can be balanced")),
        IpAddr::V4(v4) if v4.is_broadcast() => Some(("the broadcast address", "only unicast can be balanced")),
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) if v6.is_unspecified() => Some(("an unspecified address", elsewhere)),
        IpAddr::V6(v6) if v6.is_loopback() => Some(("a loopback address", elsewhere)),
        IpAddr::V6(v6) if v6.is_multicast() => Some(("a multicast address", "only unicast can be balanced")),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Some(("an IPv4-mapped address", "write the IPv4 address itself, as in \"192.0.2.1\""))
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some((
            "a link-local address",
            "it means another machine on every link: use a global or unique local address",
        )),
        IpAddr::V6(_) => None,
    }
}
