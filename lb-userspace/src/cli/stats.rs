//! `weir stats`: counters of the data plane; rates per second while watching.

use clap::Args;

use super::{
    shell::{Shell, Watch},
    table::{Cell, Column, Tone, table},
    unit,
};
use crate::api::{Action, InterfaceStats, Stats};

/// `weir stats`.
#[derive(Args, Clone, Copy, Debug)]
pub struct StatsArgs {
    /// Show reasons and losses also where no packet met them
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    watch: Watch,
}

/// Runs `weir stats`.
pub fn run(shell: &Shell, args: &StatsArgs) -> anyhow::Result<()> {
    shell.repeat(
        args.watch,
        async |client| client.stats().await,
        |now, before| render(now, before, args.all, shell.colour),
    )
}

/// Packets, bytes and, where there was a sample before, what they grew by per second.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    packets: u64,
    bytes: u64,
    rates: Option<(f64, f64)>,
}

impl Traffic {
    /// `before` is what the counters said `seconds` ago. A counter that fell was reset: its rate is 0.
    fn new(now: (u64, u64), before: Option<(u64, u64)>, seconds: f64) -> Self {
        let rates = before.filter(|_| seconds > 0.0).map(|before| {
            (now.0.saturating_sub(before.0) as f64 / seconds, now.1.saturating_sub(before.1) as f64 / seconds)
        });
        Self { packets: now.0, bytes: now.1, rates }
    }

    fn cells(self) -> [Cell; 4] {
        let (packet_rate, byte_rate) = self.rates.unzip();
        [
            unit::count(self.packets).into(),
            unit::bytes(self.bytes).into(),
            packet_rate.map_or_else(|| "-".into(), unit::per_second).into(),
            byte_rate.map_or_else(|| "-".into(), unit::bits_per_second).into(),
        ]
    }
}

fn action(action: Action) -> Cell {
    match action {
        Action::Pass => Cell::toned("pass", Tone::Faint),
        Action::Drop => Cell::toned("drop", Tone::Warn),
        Action::Tx => Cell::toned("tx", Tone::Good),
        Action::Redirect => Cell::toned("redirect", Tone::Good),
        Action::Forward => Cell::toned("forward", Tone::Good),
        Action::Aborted => Cell::toned("aborted", Tone::Bad),
    }
}

fn render(now: &Stats, before: Option<&Stats>, all: bool, colour: bool) -> String {
    let seconds = before.map_or(0.0, |b| now.at_unix_ms.saturating_sub(b.at_unix_ms) as f64 / 1000.0);
    let mut out = reasons(now, before, seconds, all, colour);
    let losses = losses(&now.interfaces, all, colour);
    if !losses.is_empty() {
        out.push('\n');
        out.push_str(&losses);
    }
    out.push('\n');
    let columns = |first, second| {
        [
            Column::Left(first),
            Column::Left(second),
            Column::Right("PACKETS"),
            Column::Right("BYTES"),
            Column::Right("PACKETS/S"),
            Column::Right("BITS/S"),
        ]
    };
    let services = now.services.iter().map(|s| {
        let earlier = before.and_then(|b| b.services.iter().find(|e| e.service == s.service));
        let traffic = Traffic::new((s.packets, s.bytes), earlier.map(|e| (e.packets, e.bytes)), seconds);
        row([s.service.as_str().into(), "(all)".into()], traffic)
    });
    let backends = now.backends.iter().map(|s| {
        let earlier = before.and_then(|b| b.backends.iter().find(|e| e.service == s.service && e.backend == s.backend));
        let traffic = Traffic::new((s.packets, s.bytes), earlier.map(|e| (e.packets, e.bytes)), seconds);
        row([s.service.as_str().into(), s.backend.as_str().into()], traffic)
    });
    out.push_str(&table(&columns("SERVICE", "BACKEND"), services.chain(backends).collect(), colour));
    out
}

fn row<const N: usize>(first: [Cell; N], traffic: Traffic) -> Vec<Cell> {
    first.into_iter().chain(traffic.cells()).collect()
}

fn reasons(now: &Stats, before: Option<&Stats>, seconds: f64, all: bool, colour: bool) -> String {
    let columns = [
        Column::Left("INTERFACE"),
        Column::Left("REASON"),
        Column::Left("ACTION"),
        Column::Right("PACKETS"),
        Column::Right("BYTES"),
        Column::Right("PACKETS/S"),
        Column::Right("BITS/S"),
        Column::Left("MEANING"),
    ];
    let mut rows = Vec::new();
    for interface in &now.interfaces {
        let earlier = before.and_then(|b| b.interfaces.iter().find(|e| e.interface == interface.interface));
        for reason in interface.reasons.iter().filter(|r| all || r.packets > 0) {
            let earlier = earlier
                .and_then(|e| e.reasons.iter().find(|e| e.reason == reason.reason))
                .map(|e| (e.packets, e.bytes));
            let traffic = Traffic::new((reason.packets, reason.bytes), earlier, seconds);
            let first = [interface.interface.as_str().into(), reason.reason.as_str().into(), action(reason.action)];
            let mut cells = row(first, traffic);
            cells.push(Cell::toned(reason.help.as_str(), Tone::Faint));
            rows.push(cells);
        }
    }
    if rows.is_empty() { "no packet was received yet\n".into() } else { table(&columns, rows, colour) }
}

fn losses(interfaces: &[InterfaceStats], all: bool, colour: bool) -> String {
    let columns = [
        Column::Left("INTERFACE"),
        Column::Left("LOST AFTER THE VERDICT"),
        Column::Right("PACKETS"),
        Column::Left("MEANING"),
    ];
    let rows: Vec<Vec<Cell>> = interfaces
        .iter()
        .flat_map(|i| i.losses.iter().map(move |loss| (i, loss)))
        .filter(|(_, loss)| all || loss.packets > 0)
        .map(|(i, loss)| {
            let tone = if loss.packets > 0 { Tone::Bad } else { Tone::Plain };
            vec![
                i.interface.as_str().into(),
                Cell::toned(loss.loss.as_str(), tone),
                unit::count(loss.packets).into(),
                Cell::toned(loss.help.as_str(), Tone::Faint),
            ]
        })
        .collect();
    if rows.is_empty() { String::new() } else { table(&columns, rows, colour) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{BackendStats, Connections, FlowTable, LossCount, ReasonCount, ServiceStats, SlotStates};

    fn stats(at_unix_ms: u64, packets: u64) -> Stats {
        let reason = |reason: &str, action, packets| ReasonCount {
            reason: reason.into(),
            action,
            help: format!("{reason} in words"),
            packets,
            bytes: packets * 100,
        };
        Stats {
            at_unix_ms,
            interfaces: vec![InterfaceStats {
                interface: "eth0".into(),
                reasons: vec![
                    reason("forwarded", Action::Forward, packets),
                    reason("not_for_us", Action::Pass, 3),
                    reason("bad_ip", Action::Drop, 0),
                ],
                losses: vec![LossCount { loss: "tx_dropped".into(), help: "ring full".into(), packets: 2 }],
            }],
            services: vec![ServiceStats {
                service: "web".into(),
                packets,
                bytes: packets * 100,
                slots: SlotStates::default(),
                connections: Connections::default(),
            }],
            backends: vec![BackendStats {
                service: "web".into(),
                backend: "10.0.0.11:80".into(),
                packets,
                bytes: packets * 100,
                connections: Connections::default(),
            }],
            flows: FlowTable::default(),
        }
    }

    #[test]
    fn one_sample_has_no_rates() {
        assert_eq!(
            render(&stats(1000, 500), None, false, false),
            "\
INTERFACE  REASON      ACTION   PACKETS     BYTES  PACKETS/S  BITS/S  MEANING
eth0       forwarded   forward      500  48.8 KiB          -       -  forwarded in words
eth0       not_for_us  pass           3     300 B          -       -  not_for_us in words

INTERFACE  LOST AFTER THE VERDICT  PACKETS  MEANING
eth0       tx_dropped                    2  ring full

SERVICE  BACKEND       PACKETS     BYTES  PACKETS/S  BITS/S
web      (all)             500  48.8 KiB          -       -
web      10.0.0.11:80      500  48.8 KiB          -       -
"
        );
    }

    #[test]
    fn rates_are_per_second_between_samples() {
        let text = render(&stats(3000, 2500), Some(&stats(1000, 500)), false, false);
        assert!(text.contains("web      10.0.0.11:80     2500  244 KiB      1.00k  800 kbit/s"), "{text}");
        assert!(text.contains("eth0       not_for_us  pass           3    300 B          0           0"), "{text}");
    }

    #[test]
    fn a_counter_that_fell_has_no_negative_rate() {
        let text = render(&stats(3000, 5), Some(&stats(1000, 500)), false, false);
        assert!(text.contains("web      (all)               5  500 B          0       0"), "{text}");
    }

    #[test]
    fn all_shows_reasons_without_packets() {
        assert!(!render(&stats(1, 1), None, false, false).contains("bad_ip"));
        assert!(render(&stats(1, 1), None, true, false).contains("bad_ip"));
    }
}
