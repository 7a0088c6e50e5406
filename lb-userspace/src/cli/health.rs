//! `weir health list`.

use clap::Subcommand;

use super::{
    backend::{age, health},
    shell::{Shell, Watch, now_unix_s},
    table::{Cell, Column, Tone, table},
    unit,
};
use crate::api::{HealthState, HealthTarget};

/// `weir health`.
#[derive(Debug, Subcommand)]
pub enum HealthCommand {
    /// List what health checks see, one line per backend of a service
    List {
        /// Only those that are not up
        #[arg(long)]
        failing: bool,
        #[command(flatten)]
        watch: Watch,
    },
}

/// Runs `weir health ...`.
pub fn run(shell: &Shell, command: &HealthCommand) -> anyhow::Result<()> {
    let HealthCommand::List { failing, watch } = command;
    shell.repeat(
        *watch,
        async |client| {
            let mut targets = client.health().await?;
            targets.retain(|t| !failing || matches!(t.state, HealthState::Down | HealthState::Unknown));
            Ok(targets)
        },
        |targets, _| list(targets, *failing, now_unix_s(), shell.colour),
    )
}

fn list(targets: &[HealthTarget], failing: bool, now_unix_s: u64, colour: bool) -> String {
    if targets.is_empty() {
        return if failing { "no backend fails its health check\n" } else { "no backends are configured\n" }.into();
    }
    let columns = [
        Column::Left("SERVICE"),
        Column::Left("BACKEND"),
        Column::Left("HEALTH"),
        Column::Left("REASON"),
        Column::Right("SINCE"),
        Column::Right("CHECKED"),
        Column::Right("LATENCY"),
        Column::Right("AGAINST"),
        Column::Right("CHANGES"),
        Column::Left("PROBE"),
        Column::Left("DETAIL"),
    ];
    let row = |t: &HealthTarget| {
        // "2/3" on a backend that is up: one more failure takes it down.
        let against =
            if t.probe.is_empty() || t.from_store { "-".into() } else { format!("{}/{}", t.against, t.against_max) };
        let tone = if t.against > 0 { Tone::Warn } else { Tone::Plain };
        vec![
            t.service.as_str().into(),
            t.backend.as_str().into(),
            health(t.state),
            t.reason.as_deref().unwrap_or("-").into(),
            age(t.since_unix_s, now_unix_s).into(),
            age(t.checked_unix_s, now_unix_s).into(),
            t.latency_us.map_or_else(|| "-".into(), unit::latency).into(),
            Cell::toned(against, tone),
            t.transitions.to_string().into(),
            if t.probe.is_empty() { "-".into() } else { t.probe.as_str().into() },
            t.detail.as_deref().unwrap_or(if t.from_store { "judged by the orchestrators" } else { "" }).into(),
        ]
    };
    table(&columns, targets.iter().map(row).collect(), colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::sample::NOW;

    #[test]
    fn list_shows_why_and_how_close_to_a_change() {
        let down = HealthTarget {
            service: "web".into(),
            backend: "10.0.0.11:80".into(),
            probe: "http 10.0.0.11:80/health".into(),
            state: HealthState::Down,
            reason: Some("L7STS".into()),
            detail: Some("HTTP status 503".into()),
            since_unix_s: Some(NOW - 75),
            checked_unix_s: Some(NOW - 1),
            latency_us: Some(1234),
            against: 1,
            against_max: 2,
            transitions: 3,
            from_store: false,
        };
        let unchecked = HealthTarget {
            service: "dns".into(),
            backend: "10.0.0.12:53".into(),
            probe: String::new(),
            state: HealthState::Unchecked,
            reason: None,
            detail: None,
            since_unix_s: None,
            checked_unix_s: None,
            latency_us: None,
            against: 0,
            against_max: 0,
            transitions: 0,
            from_store: false,
        };
        assert_eq!(
            list(&[down, unchecked], false, NOW, false),
            "\
SERVICE  BACKEND       HEALTH     REASON  SINCE  CHECKED  LATENCY  AGAINST  CHANGES  PROBE                     DETAIL
web      10.0.0.11:80  down       L7STS   1m15s       1s  1.23 ms      1/2        3  http 10.0.0.11:80/health  HTTP status 503
dns      10.0.0.12:53  unchecked  -           -        -        -        -        0  -
"
        );
        assert_eq!(list(&[], true, NOW, false), "no backend fails its health check\n");
    }
}
