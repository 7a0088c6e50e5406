//! `weir service list|get`.

use clap::Subcommand;

use super::{
    backend,
    shell::{Shell, Watch, now_unix_s},
    table::{Cell, Column, Tone, block, table},
    unit,
};
use crate::{
    api::{Forward, HealthCheckSettings, Service, ServiceDetail},
    model::Protocol,
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
}

/// Runs `weir service ...`.
pub fn run(shell: &Shell, command: &ServiceCommand) -> anyhow::Result<()> {
    match command {
        ServiceCommand::List { watch } => {
            shell.repeat(*watch, async |client| client.services().await, |services, _| list(services, shell.colour))
        }
        ServiceCommand::Get { name, watch } => shell.repeat(
            *watch,
            async |client| client.service(name).await,
            |detail, _| get(detail, now_unix_s(), shell.colour),
        ),
    }
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
            s.algo.as_str().into(),
            up(s),
            s.backends_taking.to_string().into(),
            unit::count(s.packets).into(),
            unit::bytes(s.bytes).into(),
            note(s),
        ]
    };
    table(&columns, services.iter().map(row).collect(), colour)
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
        ("health check", s.health_check.as_ref().map_or_else(|| "none".into(), check).into()),
        ("up", up(s)),
        ("traffic", format!("{} packets, {}", unit::count(s.packets), unit::bytes(s.bytes)).into()),
    ];
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
    use crate::cli::sample;

    #[test]
    fn list_shows_what_needs_attention() {
        let mut services = vec![sample::service("web"), sample::service("dns")];
        services[1].vip = "2001:db8::1".parse().unwrap();
        services[1].port = 0;
        services[1].protocol = Protocol::Udp;
        services[1].backends_up = 0;
        services[1].fail_open = true;
        assert_eq!(
            list(&services, false),
            "\
NAME  VIP              PROTO  FORWARD  ALGO     UP  TAKING  PACKETS     BYTES  NOTE
web   203.0.113.1:80   tcp    ipip     maglev  2/3       2     123k  64.0 MiB
dns   [2001:db8::1]:*  udp    ipip     maglev  0/3       2     123k  64.0 MiB  fail-open: no backend is healthy, all take traffic
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
health check  http /health, every 2000 ms, time-out 1000 ms, rise 2, fall 3
up            2/3
traffic       123k packets, 64.0 MiB

SERVICE  "
        ));
    }
}
