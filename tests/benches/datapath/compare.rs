//! Two runs beside each other: ratios of the rows that both have, with what noise allows.
//!
//! Nanoseconds of two runs are those of two states of a machine. The rows of `minimal`, which is the same program in both, tell how far
//! these differ: each ratio is also given in terms of theirs.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

use crate::report::{MODES, Report, Row, flows_text};

/// Reads a run that `--json` wrote.
///
/// # Errors
/// If there is none, or it is not one.
pub fn read(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not what --json writes", path.display()))
}

/// What a row is about.
fn key(row: &Row) -> (&str, &str, &str, &str, &str, u32) {
    (&row.program, &row.mode, &row.case, &row.family, &row.protocol, row.flows)
}

/// Net time of `b` in terms of `a`: of the medians, and the least and most that the rounds allow. `None` where the range of `a` reaches
/// down to its floor, and for the floor itself.
fn ratios(a: &Row, b: &Row) -> Option<[f64; 3]> {
    let ([a_least, a_most], [b_least, b_most]) = (a.net_ns_range, b.net_ns_range);
    (a_least > 0.0).then(|| [b.net_ns / a.net_ns, b_least / a_most, b_most / a_least])
}

/// The ratio of the medians of `minimal` under the packets of `row`; `None` where one of the runs lacks it.
fn machine(row: &Row, before: &Report, after: &Report) -> Option<f64> {
    let of = |report: &Report| {
        let same = |other: &&Row| {
            other.program == "minimal"
                && (&other.family, &other.protocol, other.flows) == (&row.family, &row.protocol, row.flows)
        };
        // The one that was measured beside the row, if there is one.
        let mut rows: Vec<&Row> = report.rows.iter().filter(same).collect();
        rows.sort_by_key(|other| (other.case == MODES) != (row.case == MODES));
        rows.first().map(|other| other.net_ns)
    };
    Some(of(after)? / of(before)?)
}

/// The table: each row of `before` that `after` has too. A row is marked where noise does not explain the difference.
pub fn text(before: &Report, after: &Report) -> String {
    let mut out = format!(
        "A: commit {}, {}\nB: commit {}, {}\n\n",
        before.machine.commit, before.machine.date_utc, after.machine.commit, after.machine.date_utc
    );
    let _ = writeln!(
        out,
        "{:<8} {:<5} {:<42} {:<5} {:<4} {:>9} {:>8} {:>8} {:>6} {:>10} {:>13}",
        "PROGRAM", "MODE", "CASE", "IP", "L4", "FLOWS", "A net ns", "B net ns", "B/A", "OF MINIMAL", "NOISE"
    );
    let mut missing = 0;
    for a in &before.rows {
        let Some(b) = after.rows.iter().find(|b| key(b) == key(a)) else {
            missing += 1;
            continue;
        };
        let Some([ratio, least, most]) = ratios(a, b) else { continue };
        let changed = if most < 1.0 {
            "  faster"
        } else if least > 1.0 {
            "  slower"
        } else {
            ""
        };
        let _ = writeln!(
            out,
            "{:<8} {:<5} {:<42} {:<5} {:<4} {:>9} {:>8.1} {:>8.1} {:>6.2} {:>10} {:>13}{changed}",
            a.program,
            a.mode,
            a.case,
            a.family,
            a.protocol,
            flows_text(a.flows).trim_end_matches(" flows"),
            a.net_ns,
            b.net_ns,
            ratio,
            machine(a, before, after).map_or("-".into(), |machine| format!("{:.2}", ratio / machine)),
            format!("{least:.2}..{most:.2}"),
        );
    }
    let _ = writeln!(out, "\n{:<88} {:>9} {:>9} {:>6}", "TARGET", "A", "B", "B/A");
    for a in &before.targets {
        let Some(b) = after.targets.iter().find(|b| b.what == a.what) else {
            missing += 1;
            continue;
        };
        let _ =
            writeln!(out, "{:<88} {:>9.3} {:>9.3} {:>6.2}", a.what, a.measured, b.measured, b.measured / a.measured);
    }
    if missing > 0 {
        let _ = writeln!(out, "\n{missing} rows and targets of A are not in B");
    }
    out
}
