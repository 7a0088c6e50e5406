//! `weir service list|get|create|set|reset|delete`.

use clap::Subcommand;

use super::{
    backend,
    exit::Exit,
    shell::{Shell, Watch, now_unix_s},
    store::{self, Place, WriteArgs},
    table::{Cell, Column, Tone, block, table},
    unit,
};
use crate::{
    api::{Connections, Forward, HealthCheckSettings, Service, ServiceChange, ServiceDetail},
    model::Protocol,
    store::edit::{self, NewBackend, Setting},
};

/// `weir service`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List the services with the state of their backends
    List {
        #[command(flatten)]
        watch: Watch,
    },
    /// Show one service with its backends
    Get {
        /// Name of the service
        name: String,
        #[command(flatten)]
        watch: Watch,
    },
    /// Create a service in the store: vip=203.0.113.10 port=443 forward=ipip health_check.type=http --backend 10.1.0.11
    Create {
        /// Name of the service
        name: String,
        /// KEY=VALUE of [[service]], keys of its tables with a dot: vip, port and forward are needed
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<Setting>,
        /// A backend, with its port where that is not the service's; may be given several times
        #[arg(long = "backend", value_name = "ADDRESS[:PORT]")]
        backends: Vec<NewBackend>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Change settings of a service: in the store; or on this node, until `weir service reset` or until the file changes them
    Set {
        /// Name of the service
        name: String,
        /// KEY=VALUE: algo, algo_config.ring_size, track, udp_flows, on_marked_down, window, flow_timeout, announce_for,
        /// drain_timeout; in a store every key of [[service]], and `KEY=` for its default
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<String>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Delete a service from the store
    Delete {
        /// Name of the service
        name: String,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Forget settings made at run time: the configuration's hold again
    Reset {
        /// Name of the service
        name: String,
    },
}

/// Runs `weir service ...`.
pub fn run(shell: &Shell, command: &ServiceCommand) -> anyhow::Result<Exit> {
    match command {
        ServiceCommand::Create { name, settings, backends, write } => {
            let shared = store::place(&write.store)?.store(IN_THE_FILE)?;
            return store::change(shell, &shared, write, &format!("service create {name}"), |objects| {
                edit::create_service(objects, name, settings, backends)
            });
        }
        ServiceCommand::Delete { name, write } => {
            let shared = store::place(&write.store)?.store(IN_THE_FILE)?;
            let subject = format!("service delete {name}");
            return store::change(shell, &shared, write, &subject, |objects| edit::delete_service(objects, name));
        }
        ServiceCommand::Set { name, settings, write } => match store::place(&write.store)? {
            Place::Store(shared) => {
                let subject = format!("service set {name} {}", settings.join(" "));
                let settings: Result<Vec<Setting>, _> = settings.iter().map(|word| word.parse()).collect();
                let settings = settings.map_err(store::refused)?;
                return store::change(shell, &shared, write, &subject, |objects| {
                    edit::set_service(objects, name, &settings)
                });
            }
            Place::File => {
                write.refuse_without_store("")?;
                change(shell, name, &ServiceChange { set: Some(settings.join(" ")), reset: false })
            }
        },
        ServiceCommand::List { watch } => {
            shell.repeat(*watch, async |client| client.services().await, |services, _| list(services, shell.colour))
        }
        ServiceCommand::Get { name, watch } => shell.repeat(
            *watch,
            async |client| client.service(name).await,
            |detail, _| get(detail, now_unix_s(), shell.colour),
        ),
        ServiceCommand::Reset { name } => change(shell, name, &ServiceChange { set: None, reset: true }),
    }?;
    Ok(Exit::Ok)
}

/// What there is to do where services stand in a file.
const IN_THE_FILE: &str = "edit the file, then `weir config apply`";

fn change(shell: &Shell, name: &str, change: &ServiceChange) -> anyhow::Result<()> {
    let detail = shell.ask(async |client| client.set(name, change).await)?;
    shell.show(&detail, |detail| get(detail, now_unix_s(), shell.colour))
}

/// The configuration's word for a protocol.
pub fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// The configuration's word for a forwarding mode.
pub fn forward(forward: Forward) -> &'static str {
    match forward {
        Forward::Dsr => "dsr",
        Forward::Ipip => "ipip",
        Forward::Nat => "nat",
    }
}

/// `10.0.0.1:80`, `[fd00::1]:80`, with `*` for all ports.
pub fn endpoint(address: std::net::IpAddr, port: u16) -> String {
    match (address.is_ipv6(), port) {
        (false, 0) => format!("{address}:*"),
        (true, 0) => format!("[{address}]:*"),
        _ => crate::api::backend_name(address, port),
    }
}

fn up(service: &Service) -> Cell {
    let text = format!("{}/{}", service.backends_up, service.backends);
    let tone = match service.backends_up {
        0 => Tone::Bad,
        n if n < service.backends => Tone::Warn,
        _ => Tone::Good,
    };
    Cell::toned(text, tone)
}

/// What needs attention, in words; empty if nothing does.
fn note(service: &Service) -> Cell {
    if service.fail_open {
        Cell::toned("fail-open: no backend is healthy, all take traffic", Tone::Bad)
    } else if service.backends_taking == 0 {
        Cell::toned("no backend takes traffic", Tone::Bad)
    } else {
        "".into()
    }
}

/// Which flows are recorded; of a stateless UDP service none.
fn track(service: &Service) -> &str {
    match service.udp_flows.as_deref() {
        Some("stateless") => "none",
        _ => &service.track,
    }
}

/// Active connections: counted ones, with the half-open ones that are not yet among them and the limit where there is one; an estimate
/// with a `~`; `-` where nothing tells.
pub fn active(connections: &Connections, max: u32) -> String {
    let c = connections;
    let Some(active) = c.active else {
        return c.active_estimate.map_or_else(|| "-".into(), |estimate| format!("~{}", unit::count(estimate)));
    };
    let limit = if max == 0 { String::new() } else { format!("/{}", unit::count(u64::from(max))) };
    match c.pending {
        Some(pending) if pending > 0 => format!("{}{limit} +{}", unit::count(active), unit::count(pending)),
        _ => format!("{}{limit}", unit::count(active)),
    }
}

/// How many slots are in a window, and how long the last of them records at most.
fn window(service: &Service) -> Cell {
    let unsettled = u64::from(service.slots.unsettled());
    match service.window_ends_in_s {
        _ if unsettled == 0 => "-".into(),
        Some(seconds) => Cell::toned(format!("{} {}", unit::count(unsettled), unit::duration(seconds)), Tone::Warn),
        None => Cell::toned(format!("{} residual", unit::count(unsettled)), Tone::Faint),
    }
}

/// `600 announced, 711 moving, 0 residual of 65537 slots; the last one moves for 2h04m at most`.
fn slots(service: &Service) -> Cell {
    let s = &service.slots;
    if s.unsettled() == 0 {
        return Cell::toned("all slots are settled", Tone::Good);
    }
    let mut text = format!(
        "{} announced, {} moving, {} residual of {} slots",
        s.announced, s.moving, s.residual, service.ring_size
    );
    match service.window_ends_in_s {
        Some(seconds) => text.push_str(&format!("; flows are recorded for {} more at most", unit::duration(seconds))),
        None => text.push_str("; they settle once no record names another backend"),
    }
    Cell::toned(text, Tone::Warn)
}

fn track_words(service: &Service) -> String {
    match (service.udp_flows.as_deref(), service.track.as_str()) {
        (Some("stateless"), _) => "none: udp_flows is stateless, each datagram goes where the ring says".into(),
        (Some(udp), track) => format!("{track} (udp_flows is {udp})"),
        (None, "moved") => "moved: flows on slots that a change moves are recorded".into(),
        (None, track) => format!("{track}: every flow is recorded"),
    }
}

fn connections(service: &Service) -> String {
    let c = &service.connections;
    match (c.active, c.active_estimate) {
        (Some(active), _) => format!(
            "{active} active, {} pending; {} opened and {} closed in all",
            c.pending.unwrap_or(0),
            unit::count(c.opened),
            unit::count(c.closed)
        ),
        (None, Some(estimate)) => {
            format!(
                "~{estimate} active (estimate: {} SYNs less {} FINs and resets)",
                unit::count(c.syns),
                unit::count(c.fins)
            )
        }
        (None, None) => "not counted: datagrams do not say when a flow ends".into(),
    }
}

fn list(services: &[Service], colour: bool) -> String {
    if services.is_empty() {
        return "no services are configured\n".into();
    }
    let columns = [
        Column::Left("NAME"),
        Column::Left("VIP"),
        Column::Left("PROTO"),
        Column::Left("FORWARD"),
        Column::Left("ALGO"),
        Column::Right("UP"),
        Column::Right("TAKING"),
        Column::Left("TRACK"),
        Column::Right("ACTIVE"),
        Column::Right("WINDOW"),
        Column::Right("PACKETS"),
        Column::Right("BYTES"),
        Column::Left("NOTE"),
    ];
    let row = |s: &Service| {
        vec![
            s.name.as_str().into(),
            endpoint(s.vip, s.port).into(),
            protocol(s.protocol).into(),
            forward(s.forward).into(),
            format!("{}{}", s.algo, if s.overrides.is_empty() { "" } else { "*" }).into(),
            up(s),
            s.backends_taking.to_string().into(),
            track(s).into(),
            active(&s.connections, 0).into(),
            window(s),
            unit::count(s.packets).into(),
            unit::bytes(s.bytes).into(),
            note(s),
        ]
    };
    let mut out = table(&columns, services.iter().map(row).collect(), colour);
    if services.iter().any(|s| !s.overrides.is_empty()) {
        out.push_str(
            "* settings made at run time: `weir service get NAME` shows them, `weir service reset NAME` forgets them\n",
        );
    }
    out
}

fn check(check: &HealthCheckSettings) -> String {
    let mut text = check.kind.clone();
    if let Some(path) = &check.path {
        text.push_str(&format!(" {path}"));
    }
    if let Some(host) = &check.host {
        text.push_str(&format!(", host {host}"));
    }
    if let Some(port) = check.port {
        text.push_str(&format!(", port {port}"));
    }
    text.push_str(&format!(
        ", every {} ms, time-out {} ms, rise {}, fall {}",
        check.interval_ms, check.timeout_ms, check.rise, check.fall
    ));
    text
}

fn get(detail: &ServiceDetail, now_unix_s: u64, colour: bool) -> String {
    let s = &detail.service;
    let mut pairs = vec![
        ("service", Cell::from(s.name.as_str())),
        ("id", s.id.to_string().into()),
        ("vip", endpoint(s.vip, s.port).into()),
        ("protocol", protocol(s.protocol).into()),
        ("forward", forward(s.forward).into()),
        ("algo", format!("{}, {} ring entries", s.algo, s.ring_size).into()),
        ("track", track_words(s).into()),
        ("window", slots(s)),
        ("connections", connections(s).into()),
        ("health check", s.health_check.as_ref().map_or_else(|| "none".into(), check).into()),
        ("up", up(s)),
        ("traffic", format!("{} packets, {}", unit::count(s.packets), unit::bytes(s.bytes)).into()),
    ];
    if !s.overrides.is_empty() {
        pairs.push(("run time", Cell::toned(s.overrides.join(" "), Tone::Warn)));
    }
    if s.fail_open || s.backends_taking == 0 {
        pairs.push(("note", note(s)));
    }
    let mut out = block(&pairs, colour);
    out.push('\n');
    out.push_str(&backend::list(&detail.backends, now_unix_s, colour));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::SlotStates, cli::sample};

    #[test]
    fn list_shows_what_needs_attention() {
        let mut services = vec![sample::service("web"), sample::service("dns")];
        services[1].vip = "2001:db8::1".parse().unwrap();
        services[1].port = 0;
        services[1].protocol = Protocol::Udp;
        services[1].backends_up = 0;
        services[1].fail_open = true;
        services[1].udp_flows = Some("stateless".into());
        services[1].connections = Connections::default();
        services.push(sample::service("api"));
        services[2].track = "all".into();
        services[2].connections = Connections { active: Some(1500), pending: Some(7), ..Connections::default() };
        services[2].slots = SlotStates { settled: 64_226, announced: 600, moving: 711, residual: 0 };
        services[2].window_ends_in_s = Some(7440);
        assert_eq!(
            list(&services, false),
            "\
NAME  VIP              PROTO  FORWARD  ALGO     UP  TAKING  TRACK   ACTIVE      WINDOW  PACKETS     BYTES  NOTE
web   203.0.113.1:80   tcp    ipip     maglev  2/3       2  moved     ~240           -     123k  64.0 MiB
dns   [2001:db8::1]:*  udp    ipip     maglev  0/3       2  none         -           -     123k  64.0 MiB  fail-open: no backend is healthy, all take traffic
api   203.0.113.1:80   tcp    ipip     maglev  2/3       2  all    1500 +7  1311 2h04m     123k  64.0 MiB
"
        );
        assert_eq!(list(&[], false), "no services are configured\n");
    }

    #[test]
    fn get_shows_settings_and_backends() {
        let detail = ServiceDetail { service: sample::service("web"), backends: sample::backends() };
        let text = get(&detail, sample::NOW, false);
        assert!(text.starts_with(
            "\
service       web
id            1
vip           203.0.113.1:80
protocol      tcp
forward       ipip
algo          maglev, 65537 ring entries
track         moved: flows on slots that a change moves are recorded
window        all slots are settled
connections   ~240 active (estimate: 900 SYNs less 660 FINs and resets)
health check  http /health, every 2000 ms, time-out 1000 ms, rise 2, fall 3
up            2/3
traffic       123k packets, 64.0 MiB

SERVICE  "
        ));
    }

    #[test]
    fn get_tells_of_windows() {
        let mut s = sample::service("web");
        s.slots = SlotStates { settled: 64_226, announced: 600, moving: 700, residual: 11 };
        s.window_ends_in_s = Some(7440);
        s.track = "all".into();
        s.connections = Connections {
            active: Some(12),
            pending: Some(1),
            opened: 20_000,
            closed: 19_988,
            ..Connections::default()
        };
        let text = get(&ServiceDetail { service: s.clone(), backends: Vec::new() }, sample::NOW, false);
        for line in [
            "track         all: every flow is recorded\n",
            "window        600 announced, 700 moving, 11 residual of 65537 slots; flows are recorded for 2h04m more at most\n",
            "connections   12 active, 1 pending; 20.0k opened and 20.0k closed in all\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        s.slots = SlotStates { settled: 65_526, residual: 11, ..SlotStates::default() };
        s.window_ends_in_s = None;
        let text = get(&ServiceDetail { service: s, backends: Vec::new() }, sample::NOW, false);
        assert!(
            text.contains("11 residual of 65537 slots; they settle once no record names another backend\n"),
            "{text}"
        );
    }

    #[test]
    fn settings_made_at_run_time_stand_out() {
        let mut s = sample::service("web");
        s.algo = "random_two".into();
        s.overrides = vec!["algo=random_two".into(), "window=10m".into()];
        let text = list(std::slice::from_ref(&s), false);
        assert!(text.contains("  random_two*  ") && text.contains("\n* settings made at run time"), "{text}");
        let text = get(&ServiceDetail { service: s, backends: Vec::new() }, sample::NOW, false);
        assert!(text.contains("run time      algo=random_two window=10m\n"), "{text}");
    }

    #[test]
    fn a_limit_stands_beside_what_it_limits() {
        let counted = Connections { active: Some(90), pending: Some(0), ..Connections::default() };
        assert_eq!(active(&counted, 100), "90/100");
        assert_eq!(active(&Connections { pending: Some(3), ..counted }, 100), "90/100 +3");
        assert_eq!(active(&Connections::default(), 100), "-");
    }
}
