//! Status and decisions as text.

use crate::{
    cli::table::{Cell, Column, Tone, block, table},
    orchestrator::{
        clock::UnixMs,
        decision::Decision,
        intent::{Intent, Phase},
        report::Status,
    },
};

/// A time as people read it, in UTC: `2026-11-25 03:04:05`.
pub fn when(at: UnixMs) -> String {
    let (days, seconds) = (at.0 / 86_400_000, at.0 / 1000 % 86_400);
    // Days to a date in the proleptic Gregorian calendar: years that begin in March put the leap day last.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{date:02} {:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// `weir orchestrator status`.
pub fn status(status: &Status, colour: bool) -> String {
    let master = match (&status.master, status.acting) {
        (_, Some(epoch)) => Cell::toned(format!("this one, epoch {epoch}"), Tone::Good),
        (Some(master), None) if master.released || master.holder.is_empty() => {
            Cell::toned(format!("nobody (epoch {})", master.epoch), Tone::Warn)
        }
        (Some(master), None) => format!("{}, epoch {}", master.holder, master.epoch).into(),
        (None, None) => Cell::toned("nobody", Tone::Bad),
    };
    let store = match (&status.store_error, status.read_at) {
        (Some(error), _) => Cell::toned(error.clone(), Tone::Bad),
        (None, None) => Cell::toned("not read yet", Tone::Warn),
        (None, Some(at)) => format!("read at {}", when(at)).into(),
    };
    let (mine, all) = status.targets;
    let down = status.down.len();
    let mut out = block(
        &[
            ("orchestrator", status.me.as_str().into()),
            ("master", master),
            ("store", store),
            ("revision", status.revision.to_string().into()),
            ("checks", format!("{mine} of {all}, generation {}", status.generation).into()),
            ("down", Cell::toned(down.to_string(), if down > 0 { Tone::Bad } else { Tone::Plain })),
            ("zone", status.serial.map_or_else(|| "none".to_owned(), |serial| format!("serial {serial}")).into()),
            ("dry run", if status.dry_run { "yes: nothing is scaled or replaced" } else { "no" }.into()),
        ],
        colour,
    );
    for error in &status.unreadable {
        out.push_str(&format!("left out: {error}\n"));
    }
    let yes = |is: bool| if is { "yes" } else { "no" };
    if !status.workers.is_empty() {
        let columns = [
            Column::Left("ORCHESTRATOR"),
            Column::Left("CHECKS"),
            Column::Right("GENERATION"),
            Column::Left("METRICS"),
        ];
        let rows = status.workers.iter().map(|one| {
            let assigned = if one.assigned { "yes".into() } else { Cell::toned("no", Tone::Warn) };
            let address = one.address.as_deref().unwrap_or("-");
            vec![one.name.as_str().into(), assigned, one.generation.to_string().into(), address.into()]
        });
        out.push('\n');
        out.push_str(&table(&columns, rows.collect(), colour));
    }
    if !status.nodes.is_empty() {
        let columns = [
            Column::Left("NODE"),
            Column::Left("IN DNS"),
            Column::Left("READY"),
            Column::Left("DRAINING"),
            Column::Right("REVISION"),
            Column::Left("ADDRESSES"),
        ];
        let rows = status.nodes.iter().map(|one| {
            let in_dns = if one.in_dns { Cell::toned("yes", Tone::Good) } else { Cell::toned("no", Tone::Warn) };
            let (ready, draining) = (yes(one.ready).into(), yes(one.draining).into());
            let revision = one.revision.to_string().into();
            vec![one.name.as_str().into(), in_dns, ready, draining, revision, one.addresses.join(" ").into()]
        });
        out.push('\n');
        out.push_str(&table(&columns, rows.collect(), colour));
    }
    if !status.intents.is_empty() {
        out.push('\n');
        out.push_str(&intents(&status.intents, colour));
    }
    out
}

fn intents(intents: &[Intent], colour: bool) -> String {
    let columns = [
        Column::Left("INTENT"),
        Column::Left("RULE"),
        Column::Left("PHASE"),
        Column::Left("SINCE"),
        Column::Left("CREATES"),
        Column::Left("REMOVES"),
        Column::Left("ERROR"),
    ];
    let row = |intent: &Intent| {
        let tone = match intent.phase {
            Phase::Done => Tone::Faint,
            Phase::Failed => Tone::Bad,
            _ => Tone::Warn,
        };
        let or_dash = |text: &Option<String>| text.as_deref().unwrap_or("-").to_owned();
        let creates = intent.address.as_ref().or(intent.creates.as_ref()).map_or("-", String::as_str);
        vec![
            intent.id.as_str().into(),
            intent.rule.as_str().into(),
            Cell::toned(intent.phase.word(), tone),
            when(intent.since).into(),
            creates.into(),
            or_dash(&intent.removes).into(),
            intent.error.as_deref().unwrap_or("").into(),
        ]
    };
    table(&columns, intents.iter().map(row).collect(), colour)
}

/// `weir orchestrator decisions`.
pub fn decisions(decisions: &[Decision], colour: bool) -> String {
    if decisions.is_empty() {
        return "nothing was decided yet\n".into();
    }
    let columns = [
        Column::Right("NUMBER"),
        Column::Left("WHEN"),
        Column::Right("EPOCH"),
        Column::Left("BY"),
        Column::Left("OUTCOME"),
        Column::Left("VALUES"),
    ];
    let row = |one: &Decision| {
        let values = one.values.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
        vec![
            one.number.to_string().into(),
            when(one.at).into(),
            one.epoch.to_string().into(),
            one.by.as_str().into(),
            one.outcome.as_str().into(),
            Cell::toned(values, Tone::Faint),
        ]
    };
    table(&columns, decisions.iter().map(row).collect(), colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::report::{Master, Node, Worker};

    #[test]
    fn times_are_dates() {
        for (ms, want) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (1_709_251_199_000, "2024-02-29 23:59:59"),
            (1_800_000_000_000, "2027-01-15 08:00:00"),
            (4_107_542_400_000, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(when(UnixMs(ms)), want);
        }
    }

    #[test]
    fn the_fleet_at_a_glance() {
        let fleet = Status {
            me: "o2/5f".into(),
            master: Some(Master { holder: "o1/3a".into(), epoch: 4, released: false }),
            read_at: Some(UnixMs(0)),
            generation: 7,
            workers: vec![Worker { name: "o1".into(), generation: 7, assigned: true, address: None }],
            targets: (3, 6),
            down: vec!["10.0.0.1:80/ab".into()],
            nodes: vec![Node {
                name: "n1".into(),
                in_dns: false,
                addresses: vec!["192.0.2.1".into()],
                revision: 8,
                ready: true,
                draining: true,
            }],
            revision: 9,
            serial: Some(1_800_000_000),
            ..Status::default()
        };
        assert_eq!(
            status(&fleet, false),
            "\
orchestrator  o2/5f
master        o1/3a, epoch 4
store         read at 1970-01-01 00:00:00
revision      9
checks        3 of 6, generation 7
down          1
zone          serial 1800000000
dry run       no

ORCHESTRATOR  CHECKS  GENERATION  METRICS
o1            yes              7  -

NODE  IN DNS  READY  DRAINING  REVISION  ADDRESSES
n1    no      yes    yes              8  192.0.2.1
"
        );
        assert_eq!(decisions(&[], false), "nothing was decided yet\n");
    }
}
