//! What the kernel must be set to so that replies of `nat` services come through.
//!
//! Pure: configuration and settings in, needs out; the settings come from [`super::sysctl`]. Two readers use the same
//! settings differently. The program's route look-up (`bpf_fib_lookup`) wants forwarding on the interface that a reply came
//! in by. A reply whose next hop has no known MAC goes on to the kernel's stack, already translated: its source is the VIP.
//! IPv4 takes a packet whose source is an address of the host itself for a martian unless `accept_local` is set; IPv6 does
//! not look, but forwards only if `conf.all.forwarding` is set (or, from Linux 6.17 on, `force_forwarding` of the interface).

use std::fmt;

use super::sysctl::{Settings, sysctl_name};
use crate::model::{Announce, Config, Forward};

/// A setting that replies need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// `net.ipv4.conf.IF.forwarding`, for the program's look-up and the kernel.
    ForwardingV4,
    /// `net.ipv6.conf.all.forwarding`, for the kernel.
    ForwardingV6All,
    /// `net.ipv6.conf.IF.forwarding`, for the program's look-up.
    ForwardingV6,
    /// `net.ipv4.conf.IF.accept_local`, for the kernel, where the node itself holds the VIP.
    AcceptLocal,
}

/// The needs of `config` at each interface that carries the program, in the order in which they are to be set.
pub fn needs(config: &Config) -> Vec<Need> {
    let nat = |v6| config.services.iter().any(|s| s.forward == Forward::Nat && s.key.vip.is_ipv6() == v6);
    let (v4, v6) = (nat(false), nat(true));
    [
        (Need::ForwardingV4, v4),
        (Need::ForwardingV6All, v6),
        (Need::ForwardingV6, v6),
        (Need::AcceptLocal, v4 && config.node.announce == Announce::Address),
    ]
    .into_iter()
    .filter_map(|(need, there)| there.then_some(need))
    .collect()
}

impl Need {
    /// Whether the settings of an interface satisfy it.
    pub fn met(self, settings: &Settings) -> bool {
        let on = |value: Option<i64>| value.is_some_and(|value| value > 0);
        match self {
            Self::ForwardingV4 => on(settings.forwarding_v4),
            Self::ForwardingV6All => on(settings.ipv6_forwarding) || on(settings.force_forwarding_v6),
            Self::ForwardingV6 => on(settings.forwarding_v6),
            Self::AcceptLocal => on(settings.accept_local),
        }
    }

    /// The assignment that satisfies it, as `sysctl -w` takes it.
    pub fn assignment(self, interface: &str) -> String {
        let interface = sysctl_name(interface);
        match self {
            Self::ForwardingV4 => format!("net.ipv4.conf.{interface}.forwarding=1"),
            Self::ForwardingV6All => "net.ipv6.conf.all.forwarding=1".into(),
            Self::ForwardingV6 => format!("net.ipv6.conf.{interface}.forwarding=1"),
            Self::AcceptLocal => format!("net.ipv4.conf.{interface}.accept_local=1"),
        }
    }

    /// What happens while it is not satisfied.
    pub const fn loss(self) -> &'static str {
        match self {
            Self::ForwardingV4 | Self::ForwardingV6 => {
                "replies of nat backends are dropped as nat_reply_forwarding_disabled"
            }
            Self::ForwardingV6All => {
                "the kernel does not forward replies of nat backends whose next hop it must resolve first \
                 (nat_reply_to_kernel)"
            }
            Self::AcceptLocal => {
                "the kernel drops replies of nat backends whose next hop it must resolve first (nat_reply_to_kernel), as \
                 their source, the VIP, is its own address"
            }
        }
    }
}

/// Needs that are not met, with the interface at which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unmet(Vec<(Need, String)>);

impl Unmet {
    /// Looks at each interface of `config`; `settings` gives those of an interface by its name.
    pub fn of(config: &Config, settings: impl Fn(&str) -> Settings) -> Self {
        let needs = needs(config);
        if needs.is_empty() {
            return Self::default();
        }
        let at = |name: &String| {
            let settings = settings(name);
            needs.iter().filter(move |need| !need.met(&settings)).map(|need| (*need, name.clone())).collect::<Vec<_>>()
        };
        Self(config.node.interfaces.iter().flat_map(at).collect())
    }

    /// Whether all is well.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The losses, then the one command that ends them.
impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut losses: Vec<&str> = self.0.iter().map(|(need, _)| need.loss()).collect();
        losses.dedup();
        let command = command(self.0.iter().map(|(need, interface)| need.assignment(interface)));
        write!(f, "{}; to change that: {command}", losses.join(", and "))
    }
}

/// One command for several assignments, each of them once.
pub fn command(assignments: impl IntoIterator<Item = String>) -> String {
    let mut once: Vec<String> = Vec::new();
    for assignment in assignments {
        if !once.contains(&assignment) {
            once.push(assignment);
        }
    }
    format!("sysctl -w {}", once.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model;

    fn config(vip: &str, forward: Forward, announce: Announce) -> Config {
        let backend = if vip.contains(':') { "fd00::11" } else { "10.0.0.11" };
        let text = format!(
            "[node]\ninterfaces = [\"eth0.5\", \"eth1\"]\n\
             [[service]]\nname = \"web\"\nvip = \"{vip}\"\nport = 80\nprotocol = \"tcp\"\nforward = \"ipip\"\n\
             [[service.backends]]\naddress = \"{backend}\"\n"
        );
        let mut config = model::check("weir.toml", &text).config.expect("a configuration");
        config.node.announce = announce;
        config.services[0].forward = forward;
        config
    }

    #[test]
    fn needs_follow_mode_family_and_who_holds_the_vip() {
        let (v4, v6, address) = ("203.0.113.1", "2001:db8::1", Announce::Address);
        for (vip, forward, announce, want) in [
            (v4, Forward::Ipip, address, &[][..]),
            (v6, Forward::Dsr, address, &[]),
            (v4, Forward::Nat, address, &[Need::ForwardingV4, Need::AcceptLocal]),
            (v4, Forward::Nat, Announce::None, &[Need::ForwardingV4]),
            (v6, Forward::Nat, address, &[Need::ForwardingV6All, Need::ForwardingV6]),
        ] {
            assert_eq!(needs(&config(vip, forward, announce)), want, "{vip} {forward:?} {announce:?}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_one_command() {
        let v4 = config("203.0.113.1", Forward::Nat, Announce::Address);
        let bare = |_: &str| Settings::default();
        let told = Unmet::of(&v4, bare).to_string();
        let command = "to change that: sysctl -w net.ipv4.conf.eth0/5.forwarding=1 net.ipv4.conf.eth0/5.accept_local=1 \
                       net.ipv4.conf.eth1.forwarding=1 net.ipv4.conf.eth1.accept_local=1";
        assert!(told.ends_with(command), "{told}");
        let set = |name: &str| Settings {
            forwarding_v4: Some(1),
            accept_local: Some(i64::from(name == "eth1")),
            ..Settings::default()
        };
        let told = Unmet::of(&v4, set).to_string();
        assert!(told.ends_with("to change that: sysctl -w net.ipv4.conf.eth0/5.accept_local=1"), "{told}");
        let v6 = config("2001:db8::1", Forward::Nat, Announce::Address);
        let told = Unmet::of(&v6, bare).to_string();
        assert_eq!(told.matches("all.forwarding=1").count(), 1, "{told}");
        let forced = |_: &str| Settings { forwarding_v6: Some(1), force_forwarding_v6: Some(1), ..Settings::default() };
        assert!(Unmet::of(&v6, forced).is_empty());
        assert!(Unmet::of(&config("203.0.113.1", Forward::Ipip, Announce::Address), bare).is_empty());
    }
}
