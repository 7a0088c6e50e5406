//! What is wrong with an interface that is to carry XDP, and what to do about it.
//!
//! Pure: facts in, findings out; the facts come from [`super::interface`], [`super::sysctl`] and [`super::offload`]. Refuses
//! to know kernel versions, capabilities and programs: `weir doctor` has those from elsewhere. Invariant: each finding names
//! a remedy that can be typed or done.

use super::{
    interface::Interface,
    offload::Offloads,
    sysctl::{Settings, sysctl_name},
};
use crate::model::Forward;

/// Largest MTU with which drivers accept a native program that does not take fragments: a page less headroom and tail
/// (veth: 3500 attaches, 3520 does not).
pub const NATIVE_MTU_MAX: u32 = 3500;
/// Bytes that `ipip` over IPv4 adds, the least of all tunnels.
const TUNNEL_OVERHEAD_MIN: u32 = 20;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Works, but worth knowing.
    Note,
    /// Works for some traffic.
    Warning,
    /// Does not work.
    Error,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What is the matter.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// What is known about one interface.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The interface.
    pub interface: Interface,
    /// Its settings.
    pub settings: Settings,
    /// Its offloads.
    pub offloads: Offloads,
    /// Names of the VLAN interfaces upon it: tagged frames are expected there.
    pub vlans: Vec<String>,
    /// Modes that services ask for; empty if no configuration is known.
    pub modes: Vec<Forward>,
    /// Backends with an IPv4 address.
    pub backends_v4: usize,
    /// Backends with an IPv6 address.
    pub backends_v6: usize,
    /// Whether a VIP is IPv6.
    pub vips_v6: bool,
    /// Whether generic XDP is acceptable.
    pub generic: bool,
}

/// Looks at one interface; worst findings first.
pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |severity, problem: String, remedy: String| findings.push(Finding { severity, problem, remedy });
    let Facts { interface, settings, offloads, .. } = facts;
    let name = &interface.name;

    if interface.mac.is_none() {
        let problem = format!("{name} is not an Ethernet interface");
        say(Severity::Error, problem, "name an Ethernet interface in `interfaces`".into());
    }
    if !interface.admin_up {
        say(Severity::Error, format!("{name} is down"), format!("ip link set {name} up"));
    } else if !interface.up {
        say(
            Severity::Error,
            format!("{name} has no carrier"),
            "check the cable, the switch port or the veth peer".into(),
        );
    }
    if interface.mtu > NATIVE_MTU_MAX && !facts.generic {
        let problem =
            format!("MTU {} of {name} is above {NATIVE_MTU_MAX}: most drivers refuse native XDP", interface.mtu);
        say(Severity::Error, problem, format!("ip link set {name} mtu {NATIVE_MTU_MAX}, or xdp_mode = \"generic\""));
    }
    if offloads.lro == Some(true) {
        let problem = format!("large receive offload is on at {name}: XDP cannot be attached, or frames arrive merged");
        say(Severity::Error, problem, format!("ethtool -K {name} lro off"));
    }
    if offloads.gro_hw == Some(true) {
        let problem = format!(
            "rx-gro-hw is on at {name}: the hardware merges frames, and drivers refuse XDP or show it merged ones"
        );
        say(Severity::Error, problem, format!("ethtool -K {name} rx-gro-hw off"));
    }
    if offloads.rx_vlan == Some(true) && !facts.vlans.is_empty() {
        let problem = format!(
            "rx-vlan-offload is on at {name}, which carries {}: XDP sees their frames without the tag, and forwards those \
             for a VIP untagged",
            facts.vlans.join(", ")
        );
        let remedy = format!("ethtool -K {name} rxvlan off: tagged frames then pass to the kernel, as the README says");
        say(Severity::Warning, problem, remedy);
    }
    let tunnels = facts.modes.contains(&Forward::Ipip);
    if tunnels && interface.mtu < 1500 + TUNNEL_OVERHEAD_MIN {
        let problem = format!("MTU {} of {name} leaves no room for a full packet inside a tunnel", interface.mtu);
        let remedy = format!(
            "raise it along the way to the backends (ip link set {name} mtu 1600), or let backends announce smaller segments \
             (ip route change ... advmss 1440); path-MTU discovery works, but costs the first packets"
        );
        say(Severity::Warning, problem, remedy);
    }
    if let Some(kind @ ("bridge" | "vlan" | "macvlan" | "ipvlan" | "vxlan" | "team")) = interface.kind.as_deref() {
        let problem = format!("{name} is a {kind}: there is no native XDP on it");
        let severity = if facts.generic { Severity::Warning } else { Severity::Error };
        say(severity, problem, "name the interface below it, or set xdp_mode = \"generic\"".into());
    }
    if interface.kind.as_deref() == Some("veth") {
        let problem =
            format!("{name} is a veth: a frame that XDP sends to it is lost unless its peer takes XDP frames");
        let remedy = "at the peer: attach an XDP program that passes everything, or ethtool -K PEER gro on; and \
                      ethtool -K PEER tx off where connections start, else checksums are wrong";
        say(Severity::Note, problem, remedy.into());
    }
    if settings.rp_filter.max(settings.rp_filter_all) == Some(1) && !facts.modes.is_empty() {
        let problem = format!("strict reverse path filter (rp_filter = 1) at {name} drops answers that pass this node");
        let remedy = format!("sysctl -w net.ipv4.conf.{}.rp_filter=2 net.ipv4.conf.all.rp_filter=2", sysctl_name(name));
        say(Severity::Warning, problem, remedy);
    }
    if facts.vips_v6 && settings.disable_ipv6 == Some(1) {
        let problem = format!("IPv6 is switched off at {name}, and there are IPv6 VIPs");
        say(Severity::Error, problem, format!("sysctl -w net.ipv6.conf.{}.disable_ipv6=0", sysctl_name(name)));
    }
    if settings.arp_ignore.is_some_and(|value| value >= 3) {
        let problem = format!("arp_ignore at {name} keeps the node from answering ARP for its VIPs");
        say(Severity::Warning, problem, format!("sysctl -w net.ipv4.conf.{}.arp_ignore=1", sysctl_name(name)));
    }
    if facts.modes.contains(&Forward::Nat) && settings.ip_forward == Some(0) {
        let problem = "net.ipv4.ip_forward = 0: what `nat` backends send besides answers stays at this gateway";
        let remedy = "sysctl -w net.ipv4.ip_forward=1, if backends reach other hosts through this node";
        say(Severity::Note, problem.into(), remedy.into());
    }
    for (backends, limit, family) in [
        (facts.backends_v4, settings.neighbours_max_v4, "ipv4"),
        (facts.backends_v6, settings.neighbours_max_v6, "ipv6"),
    ] {
        // Other neighbours want room too.
        let wanted = backends as u64 + 128;
        if let Some(limit) = limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit < wanted) {
            let problem =
                format!("the kernel keeps {limit} {family} neighbours, fewer than {backends} backends may need");
            let remedy = format!(
                "sysctl -w net.{family}.neigh.default.gc_thresh3={} net.{family}.neigh.default.gc_thresh2={wanted}",
                wanted * 2
            );
            say(Severity::Warning, problem, remedy);
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Facts {
        Facts {
            interface: Interface {
                name: "eth0.5".into(),
                mac: Some([2, 0, 0, 0, 0, 1]),
                mtu: 1600,
                admin_up: true,
                up: true,
                ..Interface::default()
            },
            settings: Settings {
                rp_filter: Some(0),
                rp_filter_all: Some(0),
                ip_forward: Some(1),
                ipv6_forwarding: Some(1),
                disable_ipv6: Some(0),
                arp_ignore: Some(0),
                neighbours_max_v4: Some(1024),
                neighbours_max_v6: Some(1024),
                ..Settings::default()
            },
            // A tag that nobody sends need not be seen.
            offloads: Offloads { lro: Some(false), gro_hw: Some(false), rx_vlan: Some(true), ..Offloads::default() },
            vlans: Vec::new(),
            modes: vec![Forward::Ipip, Forward::Nat],
            backends_v4: 100,
            backends_v6: 100,
            vips_v6: true,
            generic: false,
        }
    }

    #[test]
    fn nothing_wrong_nothing_said() {
        assert_eq!(check(&healthy()), []);
    }

    #[test]
    fn each_trouble_has_its_finding() {
        type Break = fn(&mut Facts);
        let cases: [(&str, Severity, &str, Break); 14] = [
            ("ethernet", Severity::Error, "interfaces", |f| f.interface.mac = None),
            ("down", Severity::Error, "ip link set eth0.5 up", |f| f.interface.admin_up = false),
            ("carrier", Severity::Error, "cable", |f| f.interface.up = false),
            ("jumbo", Severity::Error, "mtu 3500", |f| f.interface.mtu = 9000),
            ("lro", Severity::Error, "lro off", |f| f.offloads.lro = Some(true)),
            ("gro-hw", Severity::Error, "rx-gro-hw off", |f| f.offloads.gro_hw = Some(true)),
            ("vlans", Severity::Warning, "rxvlan off", |f| f.vlans = vec!["eth0.7".into()]),
            ("tunnel MTU", Severity::Warning, "mtu 1600", |f| f.interface.mtu = 1500),
            ("bridge", Severity::Error, "below it", |f| f.interface.kind = Some("bridge".into())),
            ("veth", Severity::Note, "at the peer", |f| f.interface.kind = Some("veth".into())),
            ("rp_filter of all", Severity::Warning, "conf.eth0/5.rp_filter=2", |f| f.settings.rp_filter_all = Some(1)),
            ("no IPv6", Severity::Error, "disable_ipv6=0", |f| f.settings.disable_ipv6 = Some(1)),
            ("no forwarding", Severity::Note, "ip_forward=1", |f| f.settings.ip_forward = Some(0)),
            ("neighbours", Severity::Warning, "gc_thresh3=4256", |f| f.backends_v6 = 2000),
        ];
        for (what, severity, remedy, break_it) in cases {
            let mut facts = healthy();
            break_it(&mut facts);
            let findings = check(&facts);
            let [finding] = findings.as_slice() else { panic!("{what}: {findings:?}") };
            assert_eq!(finding.severity, severity, "{what}");
            assert!(finding.remedy.contains(remedy), "{what}: {}", finding.remedy);
        }
    }

    #[test]
    fn the_larger_filter_is_in_force_and_loose_is_fine() {
        let mut facts = healthy();
        (facts.settings.rp_filter, facts.settings.rp_filter_all) = (Some(2), Some(1));
        assert_eq!(check(&facts), []);
    }
}
