//! Checks of interfaces and ways to backends. Pure: facts in, findings out.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Finding, Level};
use crate::{
    api::Forward,
    model::Config,
    net::{
        self,
        doctor::Severity,
        forwarding::{self, Need},
    },
};

/// What is known about an interface of the configuration.
#[derive(Clone, Debug, Default)]
pub struct InterfaceFacts {
    /// Name.
    pub name: String,
    /// Why there is no such interface; the rest means nothing then.
    pub missing: Option<String>,
    /// Link, settings and offloads, judged by [`net::doctor`].
    pub link: net::doctor::Facts,
    /// Whether the attached XDP program is weir's.
    pub ours: bool,
}

/// The way to a backend.
#[derive(Clone, Debug)]
pub struct PathFacts {
    /// `web/10.0.0.11:80`.
    pub backend: String,
    /// Forwarding mode.
    pub forward: Forward,
    /// Family of the outer header.
    pub address: IpAddr,
    /// MTU of interface or route; `None` while the next hop is unknown.
    pub mtu: Option<u32>,
    /// Why the next hop is unknown.
    pub cause: Option<String>,
}

/// What is known about the network.
#[derive(Clone, Debug, Default)]
pub struct NetworkFacts {
    /// Interfaces of the configuration, in its order.
    pub interfaces: Vec<InterfaceFacts>,
    /// Ways to backends, if the agent told them.
    pub paths: Vec<PathFacts>,
}

/// Every check of the network, as far as `config` makes it matter.
pub fn check(facts: &NetworkFacts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for interface in &facts.interfaces {
        if let Some(missing) = &interface.missing {
            findings.push(
                Finding::fail(format!("interface {}", interface.name), missing.as_str())
                    .advice("`ip link` lists those of this network namespace; correct `interfaces` in [node]"),
            );
            continue;
        }
        findings.extend(link(interface));
        findings.push(xdp(interface));
        for finding in forwarding(interface, config) {
            // One setting of all interfaces is told once.
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }
    findings.extend(paths(facts));
    findings
}

fn link(i: &InterfaceFacts) -> Vec<Finding> {
    let check = format!("interface {}", i.name);
    let judged = net::doctor::check(&i.link);
    if judged.iter().all(|finding| finding.severity == Severity::Note) {
        let driver = i.link.offloads.driver.as_deref().unwrap_or("driver unknown");
        let summary = Finding::ok(check.as_str(), format!("up, {driver}, MTU {}", i.link.interface.mtu));
        return std::iter::once(summary).chain(judged.iter().map(|f| finding(&check, f))).collect();
    }
    judged.iter().map(|f| finding(&check, f)).collect()
}

fn finding(check: &str, judged: &net::doctor::Finding) -> Finding {
    let level = match judged.severity {
        Severity::Note => Level::Ok,
        Severity::Warning => Level::Warn,
        Severity::Error => Level::Fail,
    };
    Finding::new(check, level, judged.problem.as_str()).advice(judged.remedy.as_str())
}

fn xdp(i: &InterfaceFacts) -> Finding {
    let check = format!("xdp {}", i.name);
    let attached = i.link.interface.xdp;
    let programs = [(attached.native, "native"), (attached.generic, "generic"), (attached.offload, "offload")];
    let Some((id, mode)) = programs.into_iter().find_map(|(id, mode)| Some((id?, mode))) else {
        return Finding::ok(check, "no program is attached yet");
    };
    match (i.ours, mode) {
        (true, "generic") if !i.link.generic => {
            Finding::fail(check, format!("weir's program {id} runs in generic mode, which the configuration forbids"))
                .advice(
                    "allow `xdp_mode = \"generic\"` in [node]; or, if the driver has native XDP, `weir agent --unload` \
                     (forwarding stops) and start the agent",
                )
        }
        (true, "generic") => Finding::warn(check, format!("weir's program {id} runs in generic mode: slow"))
            .advice("use a card whose driver has native XDP"),
        (true, _) => Finding::ok(check, format!("weir's program {id} runs in {mode} mode")),
        (false, _) => Finding::fail(check, format!("another XDP program, id {id}, is attached in {mode} mode")).advice(
            format!(
                "`bpftool prog show id {id}` says whose it is; remove it (`ip link set {} xdp off`) or give weir another \
                 interface",
                i.name
            ),
        ),
    }
}

/// With `nat` the kernel routes replies for the program, or forwards them itself.
fn forwarding(i: &InterfaceFacts, config: &Config) -> Vec<Finding> {
    let judge = |need: Need| {
        let check = match need {
            Need::ForwardingV4 => format!("forwarding {} ipv4", i.name),
            Need::ForwardingV6All => "forwarding all ipv6".into(),
            Need::ForwardingV6 => format!("forwarding {} ipv6", i.name),
            Need::AcceptLocal => format!("accept_local {}", i.name),
        };
        if need.met(&i.link.settings) {
            return Finding::ok(check, "on");
        }
        Finding::fail(check, format!("off: {}", need.loss())).advice(forwarding::command([need.assignment(&i.name)]))
    };
    forwarding::needs(config).into_iter().map(judge).collect()
}

/// Room for the outer header on the way to each backend, one line for backends that share the problem.
fn paths(facts: &NetworkFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ingress = facts.interfaces.iter().filter(|i| i.missing.is_none()).map(|i| i.link.interface.mtu).max();
    let mut tight: BTreeMap<(u32, u32), Vec<&str>> = BTreeMap::new();
    let mut unknown: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in &facts.paths {
        let Some(mtu) = path.mtu else {
            unknown.entry(path.cause.as_deref().unwrap_or("unresolved")).or_default().push(&path.backend);
            continue;
        };
        let overhead = match path.forward {
            Forward::Ipip => {
                if path.address.is_ipv6() {
                    40
                } else {
                    20
                }
            }
            Forward::Dsr | Forward::Nat => 0,
        };
        if ingress.is_some_and(|ingress| ingress + overhead > mtu) {
            tight.entry((mtu, overhead)).or_default().push(&path.backend);
        }
    }
    for ((mtu, overhead), backends) in &tight {
        let ingress = ingress.unwrap_or_default();
        findings.push(
            Finding::warn(
                "path mtu",
                format!(
                    "packets of {ingress} bytes and {overhead} of outer header do not fit into {mtu} on the way to {}; \
                     clients are told by ICMP",
                    some(backends)
                ),
            )
            .advice(format!(
                "raise the MTU of that way to {}, or lower advmss on the backends (`weir backend setup-help`)",
                ingress + overhead
            )),
        );
    }
    for (cause, backends) in &unknown {
        findings.push(
            Finding::fail("next hop", format!("{cause}: {}", some(backends)))
                .advice("`ip route get ADDRESS` and `ip neighbour` show what the kernel knows"),
        );
    }
    if tight.is_empty() && unknown.is_empty() && !facts.paths.is_empty() {
        findings.push(Finding::ok("path mtu", format!("fits for all {} backends", facts.paths.len())));
    }
    findings
}

/// The first few names.
fn some(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    let shown: Vec<&str> = names.iter().copied().take(SHOWN).collect();
    let rest = names.len() - shown.len();
    if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::{doctor::Level, sample},
        model,
    };

    fn facts() -> NetworkFacts {
        let interface = net::Interface {
            name: "eth0".into(),
            ifindex: 2,
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1520,
            admin_up: true,
            up: true,
            ..net::Interface::default()
        };
        let settings = net::sysctl::Settings {
            accept_local: Some(1),
            forwarding_v4: Some(1),
            forwarding_v6: Some(1),
            ipv6_forwarding: Some(1),
            ..Default::default()
        };
        NetworkFacts {
            interfaces: vec![InterfaceFacts {
                name: "eth0".into(),
                missing: None,
                link: net::doctor::Facts {
                    interface,
                    settings,
                    modes: vec![model::Forward::Ipip],
                    ..Default::default()
                },
                ours: false,
            }],
            paths: vec![PathFacts {
                backend: "web/10.0.0.11:80".into(),
                forward: Forward::Ipip,
                address: [10, 0, 0, 11].into(),
                mtu: Some(1540),
                cause: None,
            }],
        }
    }

    /// Level of the check whose name starts with `name` after `change`; everything else must stay OK.
    fn level(name: &str, config: &Config, change: impl Fn(&mut NetworkFacts)) -> Level {
        let mut facts = facts();
        change(&mut facts);
        let (mine, others): (Vec<_>, Vec<_>) =
            check(&facts, config).into_iter().partition(|f| f.check.starts_with(name));
        assert!(others.iter().all(|f| f.level == Level::Ok), "{others:?}");
        let worst = mine.iter().max_by_key(|f| f.level).unwrap_or_else(|| panic!("no check {name}"));
        assert!(worst.level == Level::Ok || worst.advice.is_some(), "{worst:?} does not say what to do");
        worst.level
    }

    #[test]
    fn each_fact_of_an_interface_is_judged() {
        let config = sample::config(model::Forward::Ipip);
        let native = net::interface::Attached { native: Some(7), ..Default::default() };
        let generic = net::interface::Attached { generic: Some(7), ..Default::default() };
        assert_eq!(level("", &config, |_| ()), Level::Ok);
        assert_eq!(level("interface", &config, |f| f.interfaces[0].link.interface.up = false), Level::Fail);
        assert_eq!(level("interface", &config, |f| f.interfaces[0].link.settings.rp_filter = Some(1)), Level::Warn);
        assert_eq!(level("interface", &config, |f| f.interfaces[0].link.offloads.lro = Some(true)), Level::Fail);
        assert_eq!(level("xdp", &config, |f| f.interfaces[0].link.interface.xdp = native), Level::Fail);
        let ours = |xdp, generic| {
            move |f: &mut NetworkFacts| {
                f.interfaces[0].ours = true;
                f.interfaces[0].link.generic = generic;
                f.interfaces[0].link.interface.xdp = xdp;
            }
        };
        assert_eq!(level("xdp", &config, ours(native, false)), Level::Ok);
        assert_eq!(level("xdp", &config, ours(generic, false)), Level::Fail);
        assert_eq!(level("xdp", &config, ours(generic, true)), Level::Warn);
        let gone = |f: &mut NetworkFacts| {
            f.interfaces[0].missing = Some("does not exist".into());
            f.paths.clear();
        };
        assert_eq!(level("interface", &config, gone), Level::Fail);
    }

    #[test]
    fn generic_mode_forgives_size() {
        let config = sample::config(model::Forward::Dsr);
        let jumbo = |generic| {
            move |f: &mut NetworkFacts| {
                f.interfaces[0].link.interface.mtu = 9000;
                f.interfaces[0].link.generic = generic;
                f.paths.clear();
            }
        };
        assert_eq!(level("interface", &config, jumbo(false)), Level::Fail);
        assert_eq!(level("interface", &config, jumbo(true)), Level::Ok);
    }

    #[test]
    fn encapsulation_needs_room_on_the_way() {
        let config = sample::config(model::Forward::Ipip);
        assert_eq!(level("path mtu", &config, |f| f.paths[0].mtu = Some(1539)), Level::Warn);
        assert_eq!(level("path mtu", &config, |f| f.paths[0].mtu = Some(1540)), Level::Ok);
        assert_eq!(level("path mtu", &config, |f| f.paths[0].address = "fd00::1".parse().unwrap()), Level::Warn);
        let dsr = |f: &mut NetworkFacts| {
            f.paths[0].forward = Forward::Dsr;
            f.paths[0].mtu = Some(1520);
        };
        assert_eq!(level("path mtu", &config, dsr), Level::Ok);
        let unknown = |f: &mut NetworkFacts| f.paths[0].mtu = None;
        assert_eq!(level("next hop", &config, unknown), Level::Fail);
    }

    #[test]
    fn forwarding_matters_to_nat_only() {
        let off = |f: &mut NetworkFacts| f.interfaces[0].link.settings = net::sysctl::Settings::default();
        assert_eq!(level("", &sample::config(model::Forward::Ipip), off), Level::Ok);
        let nat = sample::config(model::Forward::Nat);
        let forwarding = |f: &mut NetworkFacts| f.interfaces[0].link.settings.forwarding_v4 = Some(0);
        assert_eq!(level("forwarding eth0 ipv4", &nat, forwarding), Level::Fail);
        let local = |f: &mut NetworkFacts| f.interfaces[0].link.settings.accept_local = Some(0);
        assert_eq!(level("accept_local eth0", &nat, local), Level::Fail);
        let mut routed = nat.clone();
        routed.node.announce = model::Announce::None;
        assert_eq!(level("", &routed, local), Level::Ok, "the VIP is not the node's");
    }

    #[test]
    fn a_setting_of_all_interfaces_is_told_once() {
        let mut config = sample::config(model::Forward::Nat);
        config.services[0].key.vip = "2001:db8::1".parse().unwrap();
        let mut facts = facts();
        facts.interfaces[0].link.settings.ipv6_forwarding = Some(0);
        facts.interfaces.push(InterfaceFacts { name: "eth1".into(), ..facts.interfaces[0].clone() });
        let findings = check(&facts, &config);
        let failed: Vec<_> = findings.iter().filter(|f| f.level == Level::Fail).collect();
        assert_eq!(failed.len(), 1, "{failed:?}");
        assert_eq!(failed[0].advice.as_deref(), Some("sysctl -w net.ipv6.conf.all.forwarding=1"));
    }

    #[test]
    fn many_backends_with_one_problem_make_one_line() {
        let mut facts = facts();
        facts.paths = vec![PathFacts { mtu: Some(1520), ..facts.paths[0].clone() }; 9];
        let findings = check(&facts, &sample::config(model::Forward::Ipip));
        let tight: Vec<_> = findings.iter().filter(|f| f.check == "path mtu").collect();
        assert_eq!(tight.len(), 1);
        assert!(tight[0].found.contains("and 5 more"), "{}", tight[0].found);
    }
}
