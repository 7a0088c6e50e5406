//! Kernel settings below `/proc/sys/net` that decide whether forwarding works.
//!
//! Reads only; `/proc/sys/net` shows the network namespace of the thread that reads. Refuses to know what the values mean:
//! that is [`super::doctor`].

use std::{fs, path::PathBuf};

/// Settings of the namespace and of one interface. `None`: the kernel has no such setting, or it could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter_all: Option<i64>,
    /// `net.ipv4.conf.IF.rp_filter`; the larger one of this and `all` is in force.
    pub rp_filter: Option<i64>,
    /// `net.ipv4.conf.IF.accept_local`; the larger one of this and `all` is in force.
    pub accept_local: Option<i64>,
    /// `net.ipv4.conf.IF.forwarding`.
    pub forwarding_v4: Option<i64>,
    /// `net.ipv6.conf.IF.forwarding`.
    pub forwarding_v6: Option<i64>,
    /// `net.ipv6.conf.IF.force_forwarding`, from Linux 6.17 on.
    pub force_forwarding_v6: Option<i64>,
    /// `net.ipv4.ip_forward`.
    pub ip_forward: Option<i64>,
    /// `net.ipv6.conf.all.forwarding`.
    pub ipv6_forwarding: Option<i64>,
    /// `net.ipv6.conf.IF.disable_ipv6`.
    pub disable_ipv6: Option<i64>,
    /// `net.ipv4.conf.IF.arp_ignore`; the larger one of this and `all` is in force.
    pub arp_ignore: Option<i64>,
    /// `net.ipv4.neigh.default.gc_thresh3`: neighbours that the kernel keeps at most.
    pub neighbours_max_v4: Option<i64>,
    /// `net.ipv6.neigh.default.gc_thresh3`.
    pub neighbours_max_v6: Option<i64>,
}

/// Reads the settings for `interface`.
pub fn read(interface: &str) -> Settings {
    let global = |path: &[&str]| number(path);
    let of_interface = |family: &str, name: &str| {
        // A name is one component of the path; anything else is no interface.
        if interface.is_empty() || interface.contains('/') || interface.starts_with('.') {
            return None;
        }
        number(&[family, "conf", interface, name])
    };
    let larger = |name: &str| of_interface("ipv4", name).max(number(&["ipv4", "conf", "all", name]));
    Settings {
        rp_filter_all: global(&["ipv4", "conf", "all", "rp_filter"]),
        rp_filter: of_interface("ipv4", "rp_filter"),
        accept_local: larger("accept_local"),
        forwarding_v4: of_interface("ipv4", "forwarding"),
        forwarding_v6: of_interface("ipv6", "forwarding"),
        force_forwarding_v6: of_interface("ipv6", "force_forwarding"),
        ip_forward: global(&["ipv4", "ip_forward"]),
        ipv6_forwarding: global(&["ipv6", "conf", "all", "forwarding"]),
        disable_ipv6: of_interface("ipv6", "disable_ipv6"),
        arp_ignore: larger("arp_ignore"),
        neighbours_max_v4: global(&["ipv4", "neigh", "default", "gc_thresh3"]),
        neighbours_max_v6: global(&["ipv6", "neigh", "default", "gc_thresh3"]),
    }
}

fn number(path: &[&str]) -> Option<i64> {
    let file: PathBuf = ["/proc/sys/net"].iter().chain(path).collect();
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// In names of settings a dot of the interface's name is written as a slash.
pub fn sysctl_name(interface: &str) -> String {
    interface.replace('.', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_settings_and_nonsense_has_none() {
        let settings = read("lo");
        assert!(
            settings.rp_filter.is_some() && settings.ip_forward.is_some() && settings.forwarding_v4.is_some(),
            "{settings:?}"
        );
        for name in ["", "../lo", "wnh-none", "."] {
            assert_eq!(read(name).rp_filter, None, "{name}");
        }
    }
}
