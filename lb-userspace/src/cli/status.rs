//! `weir status`.

use clap::Args;
use lb_core::abi;

use super::{
    backend::age,
    shell::{Shell, Watch, now_unix_s},
    table::{Cell, Column, Tone, block, table},
    unit,
};
use crate::api::{
    FlowTable, Interface, MapFill, PoolLease, Reload, ReloadOutcome, Status, StoreStatus, XdpModeInForce,
};

/// `weir status`.
#[derive(Args, Clone, Copy, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    watch: Watch,
}

/// Runs `weir status`.
pub fn run(shell: &Shell, args: &StatusArgs) -> anyhow::Result<()> {
    shell.repeat(
        args.watch,
        async |client| client.status().await,
        |status, _| render(status, now_unix_s(), shell.colour),
    )
}

fn reload(reload: &Reload, now_unix_s: u64) -> Cell {
    let (word, tone) = match reload.outcome {
        ReloadOutcome::Applied => ("applied", Tone::Good),
        ReloadOutcome::Unchanged => ("unchanged", Tone::Good),
        ReloadOutcome::Refused => ("REFUSED", Tone::Bad),
    };
    let colon = if reload.message.is_empty() { "" } else { ": " };
    let age = age(Some(reload.at_unix_s), now_unix_s);
    Cell::toned(format!("{word} {age} ago{colon}{}", reload.message), tone)
}

/// Records in the flow table, and what they are.
fn flows(flows: &FlowTable) -> Cell {
    let Some(look) = &flows.look else { return "not looked at yet".into() };
    let records = flows.records();
    let mut text = format!("{} records of {}", unit::count(records), unit::count(flows.records_max));
    if records > 0 {
        text.push_str(&format!(
            " ({} established, {} half-open, {} closing, {} seen once)",
            unit::count(look.established),
            unit::count(look.half_open),
            unit::count(look.closing),
            unit::count(look.once)
        ));
    }
    if look.no_room > 0 {
        text.push_str(&format!("; {} have no room in it yet and are in the one before", unit::count(look.no_room)));
    }
    let tight = records > flows.records_max || look.no_room > 0;
    Cell::toned(text, if tight { Tone::Warn } else { Tone::Plain })
}

fn store(s: &StoreStatus, now_unix_s: u64) -> Cell {
    let applied = s.applied.as_deref().unwrap_or("nothing");
    let behind = if s.lag > 0 { format!(", {} behind", s.lag) } else { String::new() };
    let since = age(s.since_unix_s, now_unix_s);
    if let Some(lost) = &s.history_lost {
        let text = format!("{}: HISTORY LOST, {lost}; {applied} stays in force, see `weir config restore`", s.store);
        return Cell::toned(text, Tone::Bad);
    }
    match &s.why {
        Some(why) if !s.up => {
            Cell::toned(format!("{}: DOWN for {since}: {why}; {applied} stays in force", s.store), Tone::Bad)
        }
        _ if !s.up => Cell::toned(format!("{}: not read yet; {applied} in force", s.store), Tone::Warn),
        _ if s.lag > 0 => Cell::toned(format!("{}: {applied} in force{behind}", s.store), Tone::Warn),
        _ => format!("{}: {applied} in force", s.store).into(),
    }
}

fn health(s: &StoreStatus) -> Cell {
    match (s.health_from_store, s.health_own) {
        (0, 0) => "nothing is checked".into(),
        (0, _) => "checked by this node".into(),
        (_, 0) => "from the store, where orchestrators judge".into(),
        (store, own) => format!("{store} from the store, {own} checked by this node").into(),
    }
}

fn pool(lease: &PoolLease) -> Cell {
    match lease.address {
        Some(address) => format!("{}: {address}", lease.pool).into(),
        None => Cell::toned(format!("{}: no address, its services are not served here", lease.pool), Tone::Bad),
    }
}

fn windows(s: &Status) -> Cell {
    let (n, slots) = (s.counts.services_in_window, &s.counts.slots);
    if n == 0 {
        return "all slots are settled".into();
    }
    let services = if n == 1 { "service" } else { "services" };
    let (announced, moving, residual) = (slots.announced, slots.moving, slots.residual);
    Cell::toned(
        format!("{n} {services}: {announced} announced, {moving} moving, {residual} residual slots"),
        Tone::Warn,
    )
}

fn render(s: &Status, now_unix_s: u64, colour: bool) -> String {
    let c = &s.counts;
    let down_tone = if c.backends_down > 0 { Tone::Warn } else { Tone::Plain };
    let mut backends = format!("{}: {} up, {} down", c.backends, c.backends_up, c.backends_down);
    if c.backends_not_ready > 0 {
        backends.push_str(&format!(", {} not ready", c.backends_not_ready));
    }
    if s.flows.backends_leaving > 0 {
        backends.push_str(&format!("; {} leaving", s.flows.backends_leaving));
    }
    let mut pairs = vec![
        ("node", Cell::from(s.node.as_str())),
        (
            "agent",
            format!(
                "weir {}, process {}, up {}{}",
                s.version,
                s.pid,
                unit::duration(s.uptime_s),
                if s.adopted { ", adopted a running data plane" } else { "" }
            )
            .into(),
        ),
        ("configuration", format!("{}, revision {}", s.config_file, s.revision).into()),
        ("last reload", reload(&s.last_reload, now_unix_s)),
        ("pins", format!("{}, ABI {}", s.pin_dir, s.abi_version).into()),
        ("services", c.services.to_string().into()),
        ("backends", Cell::toned(backends, down_tone)),
        ("windows", windows(s)),
        ("flow table", flows(&s.flows)),
    ];
    if let Some(store) = &s.store {
        pairs.splice(3..3, [("store", self::store(store, now_unix_s)), ("health", health(store))]);
        pairs.extend(store.pools.iter().map(|lease| ("pool", pool(lease))));
    }
    for (count, what) in [
        (c.services_fail_open, "services fail open: none of their backends is healthy"),
        (c.services_without_backend, "services have no backend that takes traffic"),
        (c.backends_unresolved, "backends have no next hop: `weir backend list` says why"),
    ] {
        if count > 0 {
            pairs.push(("attention", Cell::toned(format!("{count} {what}"), Tone::Bad)));
        }
    }
    let mut out = block(&pairs, colour);
    for diagnostic in &s.last_reload.diagnostics {
        out.push('\n');
        for line in diagnostic.rendered.lines() {
            out.push_str(&super::table::printable(line));
            out.push('\n');
        }
    }
    out.push('\n');
    out.push_str(&interfaces(&s.interfaces, colour));
    out.push('\n');
    out.push_str(&maps(&s.maps, colour));
    out
}

fn interfaces(interfaces: &[Interface], colour: bool) -> String {
    let columns = [
        Column::Left("INTERFACE"),
        Column::Left("LINK"),
        Column::Left("XDP"),
        Column::Right("PROGRAM"),
        Column::Left("ATTACHED"),
        Column::Right("MTU"),
    ];
    let row = |i: &Interface| {
        let mode = match i.mode {
            XdpModeInForce::Native => Cell::toned("native", Tone::Good),
            XdpModeInForce::Offload => Cell::toned("offload", Tone::Good),
            XdpModeInForce::Generic => Cell::toned("generic (slow)", Tone::Warn),
            XdpModeInForce::Detached => Cell::toned("detached", Tone::Bad),
        };
        vec![
            i.name.as_str().into(),
            if i.up { Cell::toned("up", Tone::Good) } else { Cell::toned("down", Tone::Bad) },
            mode,
            if i.program_id == 0 { "-".into() } else { i.program_id.to_string().into() },
            if i.attached { "ours".into() } else { Cell::toned("not ours", Tone::Bad) },
            i.mtu.to_string().into(),
        ]
    };
    table(&columns, interfaces.iter().map(row).collect(), colour)
}

fn maps(maps: &[MapFill], colour: bool) -> String {
    let columns = [
        Column::Left("MAP"),
        Column::Right("USED"),
        Column::Right("MAX"),
        Column::Right("FILL"),
        Column::Right("MEMORY"),
    ];
    let row = |m: &MapFill| {
        let fill = if m.max == 0 { 0.0 } else { m.used as f64 / m.max as f64 };
        // These are full by their nature: one entry, and one counter per reason and interface.
        let fixed = m.name == abi::node::SHAPE.name || m.name == abi::stats::REASONS_SHAPE.name;
        let tone = match fill {
            _ if fixed => Tone::Faint,
            f if f >= 0.95 => Tone::Bad,
            f if f >= 0.8 => Tone::Warn,
            _ => Tone::Plain,
        };
        vec![
            m.name.as_str().into(),
            unit::count(m.used).into(),
            unit::count(m.max).into(),
            Cell::toned(unit::percent(fill), tone),
            unit::bytes(m.memory_bytes).into(),
        ]
    };
    table(&columns, maps.iter().map(row).collect(), colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{Counts, Diagnostic, FlowLook, Severity, SlotStates},
        cli::sample::NOW,
    };

    fn status() -> Status {
        Status {
            node: "lb1".into(),
            version: "0.1.0".into(),
            pid: 42,
            uptime_s: 3700,
            adopted: true,
            revision: 7,
            config_file: "/etc/weir/weir.toml".into(),
            pin_dir: "/sys/fs/bpf/weir".into(),
            abi_version: 1,
            last_reload: Reload {
                at_unix_s: NOW - 60,
                outcome: ReloadOutcome::Refused,
                message: "1 error".into(),
                diagnostics: vec![Diagnostic {
                    severity: Severity::Error,
                    code: "unknown-key".into(),
                    message: "unknown key".into(),
                    hint: None,
                    file: "weir.toml".into(),
                    line: 3,
                    column: 1,
                    rendered: "error: unknown key\n --> weir.toml:3:1".into(),
                }],
            },
            interfaces: vec![Interface {
                name: "eth0".into(),
                ifindex: 2,
                mode: XdpModeInForce::Generic,
                program_id: 99,
                attached: true,
                mtu: 1500,
                up: true,
            }],
            maps: vec![MapFill { name: "SERVICES".into(), used: 3900, max: 4096, memory_bytes: 262_144 }],
            counts: Counts { services: 2, backends: 6, backends_up: 5, backends_down: 1, ..Counts::default() },
            flows: FlowTable { records_max: 1 << 20, ..FlowTable::default() },
            store: None,
        }
    }

    #[test]
    fn a_refused_reload_stands_out() {
        assert_eq!(
            render(&status(), NOW, false),
            "\
node           lb1
agent          weir 0.1.0, process 42, up 1h01m, adopted a running data plane
configuration  /etc/weir/weir.toml, revision 7
last reload    REFUSED 1m00s ago: 1 error
pins           /sys/fs/bpf/weir, ABI 1
services       2
backends       6: 5 up, 1 down
windows        all slots are settled
flow table     not looked at yet

error: unknown key
 --> weir.toml:3:1

INTERFACE  LINK  XDP             PROGRAM  ATTACHED   MTU
eth0       up    generic (slow)       99  ours      1500

MAP       USED   MAX   FILL   MEMORY
SERVICES  3900  4096  95.2%  256 KiB
"
        );
    }

    #[test]
    fn what_is_broken_is_counted() {
        let mut s = status();
        s.counts.services_fail_open = 1;
        s.counts.backends_unresolved = 2;
        let text = render(&s, NOW, false);
        assert!(text.contains("attention      1 services fail open"), "{text}");
        assert!(text.contains("attention      2 backends have no next hop"), "{text}");
    }

    #[test]
    fn the_store_is_told_as_it_stands() {
        let mut s = status();
        let up = StoreStatus {
            store: "redis 10.0.0.5:6379".into(),
            up: true,
            newest: Some("42-1a2b3c4d".into()),
            applied: Some("42-1a2b3c4d".into()),
            pools: vec![
                PoolLease { pool: "front".into(), address: Some([192, 0, 2, 9].into()) },
                PoolLease { pool: "back".into(), address: None },
            ],
            ..StoreStatus::default()
        };
        let down = StoreStatus { up: false, why: Some("refused".into()), since_unix_s: Some(NOW - 60), ..up.clone() };
        let lost = StoreStatus { history_lost: Some("the store was begun anew".into()), ..up.clone() };
        let behind = StoreStatus { newest: Some("44-00000000".into()), lag: 2, ..up.clone() };
        let [spoken, silent, mixed] = [(6, 0), (0, 6), (5, 1)].map(|(health_from_store, health_own)| StoreStatus {
            health_from_store,
            health_own,
            ..up.clone()
        });
        for (store, line) in [
            (&up, "store          redis 10.0.0.5:6379: 42-1a2b3c4d in force\n"),
            (&up, "health         nothing is checked\n"),
            (&spoken, "health         from the store, where orchestrators judge\n"),
            (&silent, "health         checked by this node\n"),
            (&mixed, "health         5 from the store, 1 checked by this node\n"),
            (&up, "pool           front: 192.0.2.9\n"),
            (&up, "pool           back: no address, its services are not served here\n"),
            (&down, "store          redis 10.0.0.5:6379: DOWN for 1m00s: refused; 42-1a2b3c4d stays in force\n"),
            (&lost, "HISTORY LOST, the store was begun anew; 42-1a2b3c4d stays in force, see `weir config restore`\n"),
            (&behind, "42-1a2b3c4d in force, 2 behind\n"),
        ] {
            s.store = Some(store.clone());
            let text = render(&s, NOW, false);
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn windows_and_records_are_counted() {
        let mut s = status();
        s.counts.services_in_window = 2;
        s.counts.slots = SlotStates { settled: 9, announced: 1, moving: 2, residual: 3 };
        let look = FlowLook { half_open: 1, established: 20_000, closing: 3, once: 4, ..FlowLook::default() };
        s.flows = FlowTable { look: Some(look), backends_leaving: 1, ..s.flows };
        let text = render(&s, NOW, false);
        for line in [
            "backends       6: 5 up, 1 down; 1 leaving\n",
            "windows        2 services: 1 announced, 2 moving, 3 residual slots\n",
            "flow table     20.0k records of 1.05M (20.0k established, 1 half-open, 3 closing, 4 seen once)\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        s.flows.look = s.flows.look.map(|look| FlowLook { no_room: 7, ..look });
        let text = render(&s, NOW, false);
        assert!(text.contains("4 seen once); 7 have no room in it yet and are in the one before\n"), "{text}");
    }
}
