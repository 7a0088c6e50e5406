//! `weir backend setup-help`: the commands that a backend's host needs for its service's forwarding mode.
//!
//! Pure but for [`run`]: facts about service and backend in, steps out. The commands are meant to be read, then run as
//! root on the backend; each can be repeated.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;

use super::{
    backend::{self, Which},
    exit::{Exit, Failure},
    shell::Shell,
};
use crate::{
    api::{self, Forward, ServiceDetail, backend_name},
    model::{self, Config, Protocol},
};

/// MTU assumed where the next hop is unknown: Ethernet's.
const MTU_DEFAULT: u32 = 1500;
/// Names listed where one is wrong.
const NAMES_SHOWN: usize = 10;

/// `weir backend setup-help`.
#[derive(Args, Clone, Debug)]
pub struct SetupHelp {
    /// A service, or one of its backends: `web`, `web/10.0.0.11:80`
    #[arg(value_name = "SERVICE[/BACKEND]")]
    target: String,
    /// Read service and backends from this file instead of asking the agent
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What the steps depend on.
#[derive(Clone, Debug)]
struct Facts {
    vip: IpAddr,
    port: u16,
    protocol: Protocol,
    forward: Forward,
    backend: IpAddr,
    backend_port: u16,
    /// MTU of the way from node to backend.
    mtu: u32,
    /// The node's address towards the backend, if it is known.
    node: Option<IpAddr>,
}

/// One thing to do, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Step {
    why: String,
    commands: Vec<String>,
}

/// Backends that need the same steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Group {
    backends: Vec<String>,
    steps: Vec<Step>,
}

/// Runs `weir backend setup-help`.
pub fn run(shell: &Shell, args: &SetupHelp) -> anyhow::Result<()> {
    let (service, which) = match args.target.split_once('/') {
        Some(_) => {
            let (service, which) = backend::parse(&args.target)?;
            (service, Some(which))
        }
        None => (args.target.clone(), None),
    };
    let (forward, facts) = match &args.config {
        Some(path) => of_config(&super::config::load(path)?, &service)?,
        None => of_agent(&shell.ask(async |client| client.service(&service).await)?),
    };
    let groups = groups(&service, which.as_ref(), facts)?;
    shell.show(&groups, |groups| render(&service, forward, groups))
}

/// Facts that the agent tells; this machine is the node, so its own address towards the backend is known too.
fn of_agent(detail: &ServiceDetail) -> (Forward, Vec<Facts>) {
    let service = &detail.service;
    let facts = |b: &api::Backend| Facts {
        vip: service.vip,
        port: service.port,
        protocol: service.protocol,
        forward: service.forward,
        backend: b.address,
        backend_port: b.port,
        mtu: b.next_hop.mtu.unwrap_or(MTU_DEFAULT),
        node: node_towards(b.address),
    };
    (service.forward, detail.backends.iter().map(facts).collect())
}

/// Facts that a configuration tells; it may be another machine's.
fn of_config(config: &Config, service: &str) -> Result<(Forward, Vec<Facts>), Failure> {
    let service = config.service(service).ok_or_else(|| {
        let names: Vec<&str> = config.services.iter().map(|s| s.name.as_str()).take(NAMES_SHOWN).collect();
        Failure::new(Exit::NotFound, format!("the configuration has no service {service}"))
            .hint(format!("it has {}", names.join(", ")))
    })?;
    let facts = |b: &model::Backend| Facts {
        vip: service.key.vip,
        port: service.key.port,
        protocol: service.key.protocol,
        forward: service.forward.into(),
        backend: b.address,
        backend_port: b.port,
        mtu: MTU_DEFAULT,
        node: None,
    };
    Ok((service.forward.into(), service.backends.iter().map(facts).collect()))
}

/// The address that this machine uses towards `backend`. A connected datagram socket knows it and sends nothing.
fn node_towards(backend: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if backend.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((backend, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

fn groups(service: &str, which: Option<&Which>, facts: Vec<Facts>) -> Result<Vec<Group>, Failure> {
    let mut groups: Vec<Group> = Vec::new();
    for facts in facts {
        let name = backend_name(facts.backend, facts.backend_port);
        let wanted = match which {
            None => true,
            Some(Which::Exact(exact)) => *exact == name,
            Some(Which::Address(address)) => *address == facts.backend,
        };
        if !wanted {
            continue;
        }
        let steps = steps(&facts);
        match groups.iter_mut().find(|group| group.steps == steps) {
            Some(group) => group.backends.push(name),
            None => groups.push(Group { backends: vec![name], steps }),
        }
    }
    if groups.is_empty() {
        return Err(Failure::new(Exit::NotFound, format!("service {service} has no such backend"))
            .hint(format!("`weir backend list {service}` shows those it has")));
    }
    Ok(groups)
}

fn render(service: &str, forward: Forward, groups: &[Group]) -> String {
    let mut out = String::new();
    for group in groups {
        out.push_str(&format!(
            "# Service {service} ({}): run as root on {}\n",
            super::service::forward(forward),
            group.backends.join(", ")
        ));
        for step in &group.steps {
            out.push_str(&format!("\n# {}\n", step.why));
            for command in &step.commands {
                out.push_str(&format!("{command}\n"));
            }
        }
        out.push('\n');
    }
    out.push_str("# These last until the host restarts: put them where its network is configured.\n");
    out
}

fn steps(facts: &Facts) -> Vec<Step> {
    match facts.forward {
        Forward::Dsr => {
            let mut steps = vip_local(facts);
            steps.push(listen(facts, facts.vip, facts.port));
            steps
        }
        Forward::Ipip => {
            let mut steps = tunnel(facts);
            steps.extend(vip_local(facts));
            steps.push(segment_size(facts));
            steps.push(listen(facts, facts.vip, facts.port));
            steps
        }
        Forward::Nat => vec![gateway(facts), listen(facts, facts.backend, facts.backend_port)],
    }
}

fn step(why: impl Into<String>, commands: impl IntoIterator<Item = String>) -> Step {
    Step { why: why.into(), commands: commands.into_iter().collect() }
}

/// The backend accepts packets for the VIP, but does not claim the address on its segment.
fn vip_local(facts: &Facts) -> Vec<Step> {
    let vip = facts.vip;
    if vip.is_ipv6() {
        // An address on lo is not answered for in neighbour discovery, so nothing else is needed.
        return vec![step(
            "The VIP is a local address, on lo, where neighbour discovery does not answer for it",
            [format!("ip -6 address replace {vip}/128 dev lo nodad")],
        )];
    }
    vec![
        step(
            "Do not answer ARP for addresses on other interfaces, and do not use the VIP as an ARP source: before the VIP \
             is added, or the backend takes traffic away from the load balancer",
            ["sysctl -w net.ipv4.conf.all.arp_ignore=1".into(), "sysctl -w net.ipv4.conf.all.arp_announce=2".into()],
        ),
        step("The VIP is a local address", [format!("ip address replace {vip}/32 dev lo")]),
    ]
}

/// The device that takes the outer header off.
fn tunnel(facts: &Facts) -> Vec<Step> {
    let local = facts.backend;
    let (device, create) = match (facts.vip.is_ipv6(), local.is_ipv6()) {
        (false, false) => ("weir-4in4", format!("type ipip local {local}")),
        (true, false) => ("weir-6in4", format!("type sit mode ip6ip4 local {local}")),
        (false, true) => ("weir-4in6", format!("type ip6tnl mode ipip6 local {local}")),
        (true, true) => ("weir-6in6", format!("type ip6tnl mode ip6ip6 local {local}")),
    };
    let mut steps = vec![step(
        "A tunnel device takes the outer header off, whoever sent it; it only receives (where the kernel has no such \
         tunnel, run `weir decap` instead, see `weir decap --help`)",
        [
            format!("ip link show {device} >/dev/null 2>&1 || ip link add {device} {create}"),
            format!("ip link set {device} up"),
        ],
    )];
    if !facts.vip.is_ipv6() {
        steps.push(step(
            "Replies leave through another interface than requests came in: no strict reverse-path filter on the tunnel",
            [format!("sysctl -w net.ipv4.conf.{device}.rp_filter=2")],
        ));
    }
    if !local.is_ipv6() {
        steps.push(step(
            "Outer sources vary (they spread load over receive queues) and need not be routed back: no strict \
             reverse-path filter on the interface that receives them",
            [format!(
                "sysctl -w net.ipv4.conf.$(ip -o -4 address show to {local} | awk '{{print $2; exit}}').rp_filter=2"
            )],
        ));
    }
    steps
}

/// Full-size segments must leave room for the outer header.
fn segment_size(facts: &Facts) -> Step {
    let outer = if facts.backend.is_ipv6() { 40 } else { 20 };
    let (inner, family) = if facts.vip.is_ipv6() { (40, "-6") } else { (20, "-4") };
    let mss = facts.mtu.saturating_sub(outer + inner + 20);
    step(
        format!(
            "Ask clients for segments that still fit into {} bytes with the outer header, so that uploads need no path \
             MTU discovery (not needed where the way from the load balancer to here has an MTU {outer} bytes larger \
             than the clients')",
            facts.mtu
        ),
        [format!("ip {family} route replace $(ip {family} route show default | head -n 1) advmss {mss}")],
    )
}

/// Replies must pass the load balancer, which puts the VIP back.
fn gateway(facts: &Facts) -> Step {
    let family = if facts.backend.is_ipv6() { "-6" } else { "-4" };
    let node = facts.node.map_or_else(|| "LOAD_BALANCER_ADDRESS".into(), |node| node.to_string());
    let protocol = super::service::protocol(facts.protocol);
    let port = if facts.backend_port == 0 { String::new() } else { format!(" sport {}", facts.backend_port) };
    let rule = format!("from {} ipproto {protocol}{port} lookup 1650", facts.backend);
    step(
        "Replies of the service go back through the load balancer, which writes the VIP into them (a rule of its own leaves \
         the host's other traffic alone; making the load balancer the default gateway does as well). Clients on this \
         host's own segment cannot use the VIP",
        [
            format!("ip {family} route replace default via {node} table 1650"),
            format!("ip {family} rule del {rule} 2>/dev/null; ip {family} rule add {rule}"),
        ],
    )
}

/// A server must listen there.
fn listen(facts: &Facts, address: IpAddr, port: u16) -> Step {
    let flag = match facts.protocol {
        Protocol::Tcp => "t",
        Protocol::Udp => "u",
    };
    let family = if address.is_ipv6() { "6" } else { "4" };
    if port == 0 {
        return step(format!("The servers listen on {address} or on all addresses"), [format!("ss -{family}{flag}ln")]);
    }
    step(
        format!("The server listens on {address} port {port} or on all addresses"),
        [format!("ss -{family}{flag}ln 'sport = :{port}'")],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample;

    fn facts(forward: Forward, vip: &str, backend: &str) -> Facts {
        Facts {
            vip: vip.parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
            forward,
            backend: backend.parse().unwrap(),
            backend_port: 8080,
            mtu: 1500,
            node: None,
        }
    }

    fn commands(facts: &Facts) -> Vec<String> {
        steps(facts).into_iter().flat_map(|step| step.commands).collect()
    }

    #[test]
    fn dsr_hides_the_vip_from_arp_before_it_is_added() {
        assert_eq!(
            commands(&facts(Forward::Dsr, "203.0.113.1", "10.0.0.11")),
            [
                "sysctl -w net.ipv4.conf.all.arp_ignore=1",
                "sysctl -w net.ipv4.conf.all.arp_announce=2",
                "ip address replace 203.0.113.1/32 dev lo",
                "ss -4tln 'sport = :80'",
            ]
        );
        assert_eq!(
            commands(&facts(Forward::Dsr, "2001:db8::1", "fd00::11")),
            ["ip -6 address replace 2001:db8::1/128 dev lo nodad", "ss -6tln 'sport = :80'"]
        );
    }

    #[test]
    fn ipip_has_a_tunnel_and_a_segment_size_for_each_pair_of_families() {
        for (vip, backend, tunnel, mss) in [
            ("203.0.113.1", "10.0.0.11", "weir-4in4 type ipip local 10.0.0.11", "advmss 1440"),
            ("2001:db8::1", "10.0.0.11", "weir-6in4 type sit mode ip6ip4 local 10.0.0.11", "advmss 1420"),
            ("203.0.113.1", "fd00::11", "weir-4in6 type ip6tnl mode ipip6 local fd00::11", "advmss 1420"),
            ("2001:db8::1", "fd00::11", "weir-6in6 type ip6tnl mode ip6ip6 local fd00::11", "advmss 1400"),
        ] {
            let commands = commands(&facts(Forward::Ipip, vip, backend)).join("\n");
            assert!(commands.contains(tunnel), "{commands}");
            assert!(commands.contains(mss), "{commands}");
        }
        let v4 = commands(&facts(Forward::Ipip, "203.0.113.1", "10.0.0.11")).join("\n");
        assert!(v4.contains("net.ipv4.conf.weir-4in4.rp_filter=2"), "{v4}");
    }

    #[test]
    fn nat_sends_replies_through_the_node() {
        let mut facts = facts(Forward::Nat, "203.0.113.1", "10.0.0.11");
        assert!(commands(&facts)[0].contains("via LOAD_BALANCER_ADDRESS"));
        facts.node = Some([10, 0, 0, 1].into());
        assert_eq!(
            commands(&facts),
            [
                "ip -4 route replace default via 10.0.0.1 table 1650",
                "ip -4 rule del from 10.0.0.11 ipproto tcp sport 8080 lookup 1650 2>/dev/null; \
                 ip -4 rule add from 10.0.0.11 ipproto tcp sport 8080 lookup 1650",
                "ss -4tln 'sport = :8080'",
            ]
        );
    }

    #[test]
    fn backends_with_the_same_steps_share_a_block() {
        let facts = |forward| ["10.0.0.11", "10.0.0.12"].map(|b| facts(forward, "203.0.113.1", b)).to_vec();
        let all = groups("web", None, facts(Forward::Dsr)).unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].backends, ["10.0.0.11:8080", "10.0.0.12:8080"]);
        assert_eq!(groups("web", None, facts(Forward::Ipip)).unwrap().len(), 2);
        let one = Which::Exact("10.0.0.12:8080".into());
        let text = render("web", Forward::Ipip, &groups("web", Some(&one), facts(Forward::Ipip)).unwrap());
        assert!(text.starts_with("# Service web (ipip): run as root on 10.0.0.12:8080\n"), "{text}");
        let none = Which::Exact("10.9.9.9:80".into());
        assert_eq!(groups("web", Some(&none), facts(Forward::Dsr)).unwrap_err().exit, Exit::NotFound);
    }

    #[test]
    fn agent_and_configuration_tell_the_same_facts() {
        let detail = ServiceDetail { service: sample::service("web"), backends: sample::backends() };
        let (forward, agent) = of_agent(&detail);
        let (same, config) = of_config(&sample::config(model::Forward::Ipip), "web").unwrap();
        assert_eq!(forward, same);
        assert_eq!(steps(&agent[0]), steps(&config[0]));
        assert_eq!(of_config(&sample::config(model::Forward::Ipip), "x").unwrap_err().exit, Exit::NotFound);
    }
}
