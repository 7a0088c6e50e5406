//! `weir backend setup-help`: the commands that a backend's host, and the node, need for a service's forwarding mode.
//!
//! Pure but for [`run`] and [`node_towards`]: configuration and what the agent knows in, steps out. Invariants: a command
//! runs as it stands, without anything to fill in or to choose; it can be repeated; and it takes nothing away from another
//! service of the same host.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    path::PathBuf,
};

use clap::Args;
use ipnet::IpNet;
use serde::Serialize;

use super::{
    backend::{self, Which},
    exit::{Exit, Failure},
    shell::Shell,
};
use crate::{
    api::{self, Forward, ServiceDetail, backend_name},
    decap,
    model::{self, Config, Protocol},
    net::forwarding,
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
    /// The load balancer's address on the segment of `nat` backends; this machine's address towards them unless given
    #[arg(long, value_name = "ADDRESS")]
    node: Option<IpAddr>,
}

/// What the steps depend on.
#[derive(Clone, Debug)]
struct Facts {
    vip: IpAddr,
    /// The pool that the VIP comes from: the backend accepts all of it, so that a node with another address needs no change here.
    pool: Option<IpNet>,
    port: u16,
    protocol: Protocol,
    forward: Forward,
    backend: IpAddr,
    backend_port: u16,
    /// MTU of the way from node to backend.
    mtu: u32,
    /// `nat`: the node's address towards the backend.
    node: Option<IpAddr>,
    /// `ipip`: VIPs, and prefixes of pools, of all such services. A host has one decapsulator for all of its addresses.
    vips: Vec<String>,
    /// Prefixes of the outer sources, if they are not those that a decapsulator expects.
    sources: Vec<IpNet>,
}

/// One thing to do, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Step {
    why: String,
    commands: Vec<String>,
}

/// What is to be done where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Help {
    /// On the node.
    node: Vec<Step>,
    /// On backends.
    backends: Vec<Group>,
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
    let (config, detail) = match &args.config {
        Some(path) => (super::config::load(path)?, None),
        None => {
            let detail = shell.ask(async |client| client.service(&service).await)?;
            let text = shell.ask(async |client| client.config().await)?;
            (super::config::parse(&text.text, &text.file)?, Some(detail))
        }
    };
    let node = |backend| args.node.or_else(|| node_towards(backend));
    let help = help(&config, &service, which.as_ref(), detail.as_ref(), node)?;
    shell.show(&help, |help| render(&args.target, help))
}

/// The steps for those backends of `service` that are meant. `detail` is what the agent knows, `node` gives the node's
/// address towards a backend.
fn help(
    config: &Config,
    service: &str,
    which: Option<&Which>,
    detail: Option<&ServiceDetail>,
    node: impl Fn(IpAddr) -> Option<IpAddr>,
) -> Result<Help, Failure> {
    let service = config.service(service).ok_or_else(|| {
        let names: Vec<&str> = config.services.iter().map(|s| s.name.as_str()).take(NAMES_SHOWN).collect();
        Failure::new(Exit::NotFound, format!("the configuration has no service {service}"))
            .hint(format!("it has {}", names.join(", ")))
    })?;
    let facts: Result<Vec<Facts>, Failure> =
        meant(service, which).map(|b| facts(config, service, b, detail, &node)).collect();
    let backends = groups(facts?);
    if backends.is_empty() {
        return Err(Failure::new(Exit::NotFound, format!("service {} has no such backend", service.name))
            .hint(format!("`weir backend list {}` shows those it has", service.name)));
    }
    Ok(Help { node: on_node(config, service), backends })
}

/// The backends that the command line means.
fn meant<'a>(service: &'a model::Service, which: Option<&'a Which>) -> impl Iterator<Item = &'a model::Backend> {
    service.backends.iter().filter(move |b| match which {
        None => true,
        Some(Which::Exact(exact)) => *exact == backend_name(b.address, b.port),
        Some(Which::Address(address)) => *address == b.address,
    })
}

fn facts(
    config: &Config,
    service: &model::Service,
    backend: &model::Backend,
    detail: Option<&ServiceDetail>,
    node: impl Fn(IpAddr) -> Option<IpAddr>,
) -> Result<Facts, Failure> {
    let name = backend_name(backend.address, backend.port);
    let known = detail.and_then(|detail| detail.backends.iter().find(|b| b.name == name));
    let forward = service.forward.into();
    let node = if forward == Forward::Nat { node(backend.address) } else { None };
    if forward == Forward::Nat && node.is_none_or(|node| node.is_ipv6() != backend.address.is_ipv6()) {
        let what = format!("which address of the load balancer the backend {name} reaches is not known");
        return Err(Failure::new(Exit::Usage, what).hint("say it with --node ADDRESS, of the backend's family"));
    }
    let pool = |service: &model::Service| {
        let name = service.pool.as_ref()?;
        config.pools.iter().find(|pool| pool.name == *name).map(|pool| pool.prefix)
    };
    let ipip = config.services.iter().filter(|s| s.forward == model::Forward::Ipip);
    // In the order of addresses, not of their digits.
    let vips: BTreeSet<(IpAddr, Option<IpNet>)> = ipip.map(|s| (s.key.vip, pool(s))).collect();
    let vips = vips.into_iter().map(|(vip, pool)| pool.map_or_else(|| vip.to_string(), |prefix| prefix.to_string()));
    let vips: Vec<String> = vips.collect();
    let sources = vec![IpNet::V4(config.node.outer_source_v4), IpNet::V6(config.node.outer_source_v6)];
    Ok(Facts {
        vip: service.key.vip,
        pool: pool(service),
        port: service.key.port,
        protocol: service.key.protocol,
        forward,
        backend: backend.address,
        backend_port: backend.port,
        mtu: known.and_then(|b: &api::Backend| b.next_hop.mtu).unwrap_or(MTU_DEFAULT),
        node,
        vips,
        sources: if sources == decap::default_sources() { Vec::new() } else { sources },
    })
}

/// The address that this machine uses towards `backend`. A connected datagram socket knows it and sends nothing.
fn node_towards(backend: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if backend.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((backend, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

fn groups(facts: Vec<Facts>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for facts in facts {
        let name = backend_name(facts.backend, facts.backend_port);
        let steps = steps(&facts);
        match groups.iter_mut().find(|group| group.steps == steps) {
            Some(group) => group.backends.push(name),
            None => groups.push(Group { backends: vec![name], steps }),
        }
    }
    groups
}

fn render(target: &str, help: &Help) -> String {
    let mut out = String::new();
    let mut block = |host: &str, steps: &[Step]| {
        out.push_str(&format!("# For {target}: run as root on {host}\n"));
        for step in steps {
            out.push_str(&format!("\n# {}\n", step.why));
            for command in &step.commands {
                out.push_str(&format!("{command}\n"));
            }
        }
        out.push('\n');
    };
    if !help.node.is_empty() {
        block("the load balancer", &help.node);
    }
    for group in &help.backends {
        block(&group.backends.join(", "), &group.steps);
    }
    out.push_str("# These last until the host restarts: put them where its network is configured.\n");
    out
}

/// What the node itself needs: nothing, unless replies pass through it.
fn on_node(config: &Config, service: &model::Service) -> Vec<Step> {
    let alone = Config { services: vec![service.clone()], ..config.clone() };
    let needs = forwarding::needs(&alone);
    if needs.is_empty() {
        return Vec::new();
    }
    let interfaces = &config.node.interfaces;
    let assignments = interfaces.iter().flat_map(|name| needs.iter().map(move |need| need.assignment(name)));
    vec![step(
        "Replies of the service pass through here: they are routed as by a router, and the kernel resolves the next hop of a \
         client whose MAC address it does not know, with the VIP, one of its own addresses, as the packet's source",
        [forwarding::command(assignments)],
    )]
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
        Forward::Nat => {
            let mut steps = gateway(facts);
            steps.push(listen(facts, facts.backend, facts.backend_port));
            steps
        }
    }
}

fn step(why: impl Into<String>, commands: impl IntoIterator<Item = String>) -> Step {
    Step { why: why.into(), commands: commands.into_iter().collect() }
}

/// The backend accepts packets for the VIP, but does not claim the address on its segment.
fn vip_local(facts: &Facts) -> Vec<Step> {
    let vip = facts.vip;
    if let Some(prefix) = facts.pool {
        // A route of type local makes every address of it one of this host, and none of them is answered for on a link by IPv6;
        // ARP needs the same settings as for one address.
        let why = "Each address of the pool is a local address, whichever a node leases";
        let route = |family: &str| format!("ip{family} route replace local {prefix} dev lo");
        return match prefix {
            IpNet::V6(_) => vec![step(why, [route(" -6")])],
            IpNet::V4(_) => vec![quiet_arp(), step(why, [route("")])],
        };
    }
    if vip.is_ipv6() {
        // An address on lo is not answered for in neighbour discovery, so nothing else is needed.
        return vec![step(
            "The VIP is a local address, on lo, where neighbour discovery does not answer for it",
            [format!("ip -6 address replace {vip}/128 dev lo nodad")],
        )];
    }
    vec![quiet_arp(), step("The VIP is a local address", [format!("ip address replace {vip}/32 dev lo")])]
}

/// ARP for addresses on `lo` stays unanswered.
fn quiet_arp() -> Step {
    step(
        "Do not answer ARP for addresses on other interfaces, and do not use the VIP as an ARP source: before the VIP is \
         added, or the backend takes traffic away from the load balancer",
        ["sysctl -w net.ipv4.conf.all.arp_ignore=1".into(), "sysctl -w net.ipv4.conf.all.arp_announce=2".into()],
    )
}

/// The interface that holds an address, in words of a shell.
fn interface_of(address: IpAddr) -> String {
    format!("$(ip -o address show to {address} | awk '{{print $2; exit}}')")
}

/// What takes the outer header off: a tunnel device of the kernel, or `weir decap` where it has none.
fn tunnel(facts: &Facts) -> Vec<Step> {
    let local = facts.backend;
    let (device, create) = match (facts.vip.is_ipv6(), local.is_ipv6()) {
        (false, false) => ("weir-4in4", format!("type ipip local {local}")),
        (true, false) => ("weir-6in4", format!("type sit mode ip6ip local {local}")),
        (false, true) => ("weir-4in6", format!("type ip6tnl mode ipip6 local {local}")),
        (true, true) => ("weir-6in6", format!("type ip6tnl mode ip6ip6 local {local}")),
    };
    // Replies leave through another interface than requests came in.
    let loose =
        if facts.vip.is_ipv6() { String::new() } else { format!(" && sysctl -w net.ipv4.conf.{device}.rp_filter=2") };
    let vips: String = facts.vips.iter().map(|vip| format!(" --vip {vip}")).collect();
    let sources: String = facts.sources.iter().map(|source| format!(" --source {source}")).collect();
    let mut steps = vec![step(
        "A tunnel device takes the outer header off, whoever sent it; it only receives. Where the kernel has no such tunnel, \
         `weir decap` does it, for every VIP of this configuration that is forwarded in tunnels",
        [[
            format!("if ip link show {device} >/dev/null 2>&1 || ip link add {device} {create}; then"),
            format!("  ip link set {device} up{loose}"),
            "else".into(),
            format!("  weir decap --interface \"{}\"{vips}{sources}", interface_of(local)),
            "fi".into(),
        ]
        .join("\n")],
    )];
    if !(local.is_ipv6() && facts.vip.is_ipv6()) {
        steps.push(step(
            "Outer sources vary (they spread load over receive queues) and need not be routed back, and replies may leave \
             through another interface: no strict reverse-path filter on the interface that receives them",
            [format!("sysctl -w \"net/ipv4/conf/{}/rp_filter=2\"", interface_of(local))],
        ));
    }
    steps
}

/// Full-size segments must leave room for the outer header.
fn segment_size(facts: &Facts) -> Step {
    let outer = if facts.backend.is_ipv6() { 40 } else { 20 };
    let (inner, family) = if facts.vip.is_ipv6() { (40, "-6") } else { (20, "-4") };
    let mss = facts.mtu.saturating_sub(outer + inner + 20);
    // What `ip route show` adds to a route and `ip route replace` does not take, and what an earlier run added.
    let clean = r"sed -E 's/\\//g; s/ (advmss|expires) [^ ]+//g; s/ (linkdown|dead)//g'";
    step(
        format!(
            "Ask clients for segments that still fit into {} bytes with the outer header, so that uploads need no path \
             MTU discovery (not needed where the way from the load balancer to here has an MTU {outer} bytes larger \
             than the clients')",
            facts.mtu
        ),
        [[
            format!("ip -o {family} route show table main type unicast | {clean} |"),
            format!(
                "  while read -r to rest; do ip {family} route replace \"$to\" advmss {mss} $rest </dev/null || exit 1; done"
            ),
        ]
        .join("\n")],
    )
}

/// Replies must pass the load balancer, which puts the VIP back.
fn gateway(facts: &Facts) -> Vec<Step> {
    let Some(node) = facts.node else { return Vec::new() };
    let family = if facts.backend.is_ipv6() { "-6" } else { "-4" };
    let protocol = super::service::protocol(facts.protocol);
    let port = if facts.backend_port == 0 { String::new() } else { format!(" sport {}", facts.backend_port) };
    let rule = format!("from {} ipproto {protocol}{port} lookup 1650", facts.backend);
    vec![step(
        format!(
            "Replies of the service go back through the load balancer at {node}, which writes the VIP into them. A rule of \
             its own leaves the host's other traffic alone, and holds for clients on this host's own segment too, which a \
             default route would not"
        ),
        [
            format!("ip {family} route replace default via {node} table 1650"),
            format!("ip {family} rule del {rule} 2>/dev/null; ip {family} rule add {rule}"),
        ],
    )]
}

/// A server must listen there.
fn listen(facts: &Facts, address: IpAddr, port: u16) -> Step {
    let flag = match facts.protocol {
        Protocol::Tcp => "t",
        Protocol::Udp => "u",
    };
    let family = if address.is_ipv6() { "6" } else { "4" };
    let pool = facts.pool.filter(|_| address == facts.vip);
    let address = pool.map_or_else(|| address.to_string(), |prefix| format!("each address of {prefix}"));
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
        let vip = vip.parse().unwrap();
        Facts {
            vip,
            pool: None,
            port: 80,
            protocol: Protocol::Tcp,
            forward,
            backend: backend.parse().unwrap(),
            backend_port: 8080,
            mtu: 1500,
            node: Some([10, 0, 0, 1].into()),
            vips: vec![vip.to_string()],
            sources: Vec::new(),
        }
    }

    fn commands(facts: &Facts) -> Vec<String> {
        steps(facts).into_iter().flat_map(|step| step.commands).collect()
    }

    /// The help for `web` of `config`, without an agent, on a node that is 10.0.0.1.
    fn of(config: &Config, which: Option<&Which>) -> Result<Help, Failure> {
        help(config, "web", which, None, |_| Some([10, 0, 0, 1].into()))
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
    fn a_pool_is_accepted_whole() {
        let mut config = sample::config(model::Forward::Ipip);
        config.pools = vec![model::Pool { name: "front".into(), prefix: "203.0.113.0/28".parse().unwrap() }];
        config.services[0].pool = Some("front".into());
        let text = render("web", &of(&config, None).unwrap());
        assert!(text.contains("\nip route replace local 203.0.113.0/28 dev lo\n"), "{text}");
        assert!(text.contains(" --vip 203.0.113.0/28\n") && text.contains("arp_ignore=1"), "{text}");
        assert!(!text.contains("ip address replace"), "{text}");
        let v6 =
            Facts { pool: Some("2001:db8:1::/64".parse().unwrap()), ..facts(Forward::Dsr, "2001:db8:1::", "fd00::11") };
        assert_eq!(commands(&v6)[0], "ip -6 route replace local 2001:db8:1::/64 dev lo");
    }

    #[test]
    fn ipip_has_a_tunnel_and_a_segment_size_for_each_pair_of_families() {
        for (vip, backend, tunnel, mss) in [
            ("203.0.113.1", "10.0.0.11", "weir-4in4 type ipip local 10.0.0.11", "advmss 1440"),
            ("2001:db8::1", "10.0.0.11", "weir-6in4 type sit mode ip6ip local 10.0.0.11", "advmss 1420"),
            ("203.0.113.1", "fd00::11", "weir-4in6 type ip6tnl mode ipip6 local fd00::11", "advmss 1420"),
            ("2001:db8::1", "fd00::11", "weir-6in6 type ip6tnl mode ip6ip6 local fd00::11", "advmss 1400"),
        ] {
            let commands = commands(&facts(Forward::Ipip, vip, backend)).join("\n");
            assert!(commands.contains(tunnel), "{commands}");
            assert!(commands.contains(mss), "{commands}");
            assert!(commands.contains(&format!("--vip {vip}\n")), "{commands}");
        }
        let v4 = commands(&facts(Forward::Ipip, "203.0.113.1", "10.0.0.11"));
        assert_eq!(
            v4[0],
            "if ip link show weir-4in4 >/dev/null 2>&1 || ip link add weir-4in4 type ipip local 10.0.0.11; then\n  \
             ip link set weir-4in4 up && sysctl -w net.ipv4.conf.weir-4in4.rp_filter=2\nelse\n  \
             weir decap --interface \"$(ip -o address show to 10.0.0.11 | awk '{print $2; exit}')\" --vip 203.0.113.1\nfi"
        );
    }

    #[test]
    fn a_decapsulator_serves_every_tunnel_service_and_the_nodes_outer_sources() {
        let mut config = sample::config(model::Forward::Ipip);
        let mut more = |name: &str, vip: &str, forward| {
            let mut service = model::Service { name: name.into(), forward, ..config.services[0].clone() };
            service.key.vip = vip.parse().unwrap();
            config.services.push(service);
        };
        more("web6", "2001:db8::1", model::Forward::Ipip);
        more("again", "203.0.113.1", model::Forward::Ipip);
        more("other", "203.0.113.9", model::Forward::Dsr);
        let text = render("web", &of(&config, None).unwrap());
        assert!(text.contains(" --vip 203.0.113.1 --vip 2001:db8::1\n"), "{text}");
        config.node.outer_source_v4 = "172.16.0.0/16".parse().unwrap();
        let text = render("web", &of(&config, None).unwrap());
        assert!(text.contains(" --source 172.16.0.0/16 --source 100::/64\n"), "{text}");
    }

    #[test]
    fn nat_sends_replies_through_the_node() {
        let config = sample::config(model::Forward::Nat);
        let help_of_nat = of(&config, None).unwrap();
        let text = render("web", &help_of_nat);
        assert!(text.starts_with("# For web: run as root on the load balancer\n"), "{text}");
        let on_node = "sysctl -w net.ipv4.conf.eth0.forwarding=1 net.ipv4.conf.eth0.accept_local=1";
        assert_eq!(help_of_nat.node[0].commands, [on_node]);
        assert_eq!(
            commands(&facts(Forward::Nat, "203.0.113.1", "10.0.0.11")),
            [
                "ip -4 route replace default via 10.0.0.1 table 1650",
                "ip -4 rule del from 10.0.0.11 ipproto tcp sport 8080 lookup 1650 2>/dev/null; \
                 ip -4 rule add from 10.0.0.11 ipproto tcp sport 8080 lookup 1650",
                "ss -4tln 'sport = :8080'",
            ]
        );
        for unknown in [None, Some("fd00::1".parse().unwrap())] {
            let error = help(&config, "web", None, None, |_| unknown).unwrap_err();
            assert!(error.hint.is_some_and(|hint| hint.contains("--node")));
        }
        assert!(of(&sample::config(model::Forward::Ipip), None).unwrap().node.is_empty());
    }

    #[test]
    fn backends_with_the_same_steps_share_a_block() {
        let config = |forward| {
            let mut config = sample::config(forward);
            let other = model::Backend { address: [10, 0, 0, 12].into(), ..config.services[0].backends[0].clone() };
            config.services[0].backends.push(other);
            config
        };
        let all = of(&config(model::Forward::Dsr), None).unwrap().backends;
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].backends, ["10.0.0.11:80", "10.0.0.12:80"]);
        let ipip = config(model::Forward::Ipip);
        assert_eq!(of(&ipip, None).unwrap().backends.len(), 2);
        let one = Which::Exact("10.0.0.12:80".into());
        let text = render("web/10.0.0.12:80", &of(&ipip, Some(&one)).unwrap());
        assert!(text.starts_with("# For web/10.0.0.12:80: run as root on 10.0.0.12:80\n"), "{text}");
        let none = Which::Exact("10.9.9.9:80".into());
        assert_eq!(of(&ipip, Some(&none)).unwrap_err().exit, Exit::NotFound);
        assert_eq!(help(&ipip, "x", None, None, |_| None).unwrap_err().exit, Exit::NotFound);
    }

    #[test]
    fn the_agent_knows_the_mtu_of_the_way() {
        let config = sample::config(model::Forward::Ipip);
        let mut detail = ServiceDetail { service: sample::service("web"), backends: sample::backends() };
        let with =
            |detail: Option<&ServiceDetail>| render("web", &help(&config, "web", None, detail, |_| None).unwrap());
        assert_eq!(with(Some(&detail)), with(None), "Ethernet's is assumed");
        detail.backends[0].next_hop.mtu = Some(9000);
        assert!(with(Some(&detail)).contains("advmss 8940"));
    }
}
