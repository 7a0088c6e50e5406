//! `weir orchestrator simulate`: a series of values, given or recorded, through the very rule that would decide.

use std::{io::Read, time::Duration};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::{File, config};
use crate::{
    cli::{
        exit::{Exit, Failure},
        shell::Shell,
        table::{Cell, Column, Tone, table},
    },
    model::duration,
    orchestrator::{
        clock::BootTime,
        policy::policy,
        scale::{Inputs, Memory, Missing, Rule, Verdict},
    },
};

/// Values of a series, at most.
const VALUES_MAX: usize = 1_000_000;

/// Arguments of `simulate`.
#[derive(Args, Debug)]
pub struct Simulate {
    #[command(flatten)]
    file: File,
    /// Name of the scaling rule
    rule: String,
    /// The values, one for each evaluation, separated by commas or blanks; `missing` where there is none
    #[arg(long, value_name = "VALUES", conflicts_with = "from", allow_hyphen_values = true)]
    values: Option<String>,
    /// A file with the values, or `-` for standard input: words as with --values, or an answer of Prometheus' query_range
    #[arg(long, value_name = "FILE")]
    from: Option<String>,
    /// How many are in service at the beginning; `min` of the rule unless given
    #[arg(long, value_name = "NUMBER")]
    start: Option<u32>,
    /// The values are totals: what the rule sees is their share for each of those in service
    #[arg(long)]
    total: bool,
}

/// One evaluation.
#[derive(Debug, PartialEq, Serialize)]
pub struct Row {
    /// Seconds since the beginning.
    at_s: u64,
    /// The value that the rule saw.
    value: Option<f64>,
    /// Those in service.
    current: u32,
    /// What the value alone asks for.
    desired: Option<u32>,
    /// The largest of the window.
    window_max: Option<u32>,
    /// What follows.
    verdict: Verdict,
}

/// Runs `simulate`.
///
/// # Errors
/// A [`Failure`] for a rule that does not exist or values that are none.
pub fn run(shell: &Shell, args: &Simulate) -> anyhow::Result<()> {
    let config = config(&args.file)?;
    let policy = policy(&config, true);
    let rule = policy.scaling.iter().find(|rule| rule.name == args.rule).ok_or_else(|| {
        let names: Vec<&str> = policy.scaling.iter().map(|rule| rule.name.as_str()).collect();
        let message = format!("there is no scaling rule {:?} in {}", args.rule, args.file.config.display());
        Failure::new(Exit::NotFound, message).hint(format!("it has: {}", names.join(", ")))
    })?;
    let text = match (&args.values, args.from.as_deref()) {
        (Some(values), _) => values.clone(),
        (None, Some("-")) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            text
        }
        (None, Some(path)) => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?,
        (None, None) => {
            return Err(Failure::new(Exit::Usage, "no values").hint("give --values or --from FILE").into());
        }
    };
    let values = series(&text, rule.every).map_err(|error| Failure::new(Exit::Usage, error))?;
    let rows = play(rule, &values, args.start.unwrap_or(rule.min), args.total);
    shell.show(&rows, |rows| show(rows, shell.colour))
}

/// The values in a text, `None` where one is missing.
fn series(text: &str, every: Duration) -> Result<Vec<Option<f64>>, String> {
    if text.trim_start().starts_with('{') {
        return recorded(text, every);
    }
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
    let value = |word: &str| match word {
        "missing" => Ok(None),
        word => match word.parse::<f64>() {
            Ok(value) => Ok(Some(value).filter(|value| value.is_finite() && *value >= 0.0)),
            Err(_) => Err(format!("{word:?} is neither a number nor `missing`")),
        },
    };
    let values: Vec<_> = words.take(VALUES_MAX).map(value).collect::<Result<_, _>>()?;
    if values.is_empty() { Err("there are no values".to_owned()) } else { Ok(values) }
}

/// The one series of an answer of `query_range`, looked at every `every`.
fn recorded(text: &str, every: Duration) -> Result<Vec<Option<f64>>, String> {
    let answer: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let result = answer.pointer("/data/result").and_then(serde_json::Value::as_array);
    let series = match result.map(Vec::as_slice) {
        Some([one]) => one.get("values").and_then(serde_json::Value::as_array),
        Some(many) => return Err(format!("the answer has {} series instead of one", many.len())),
        None => None,
    };
    let samples = series.ok_or("the answer is not that of query_range: there is no /data/result/0/values")?;
    let sample = |pair: &serde_json::Value| Some((pair.get(0)?.as_f64()?, pair.get(1)?.as_str()?.parse::<f64>().ok()?));
    let samples: Vec<(f64, f64)> = samples.iter().filter_map(sample).collect();
    let (Some((first, _)), Some((last, _))) = (samples.first(), samples.last()) else {
        return Err("the series has no values".to_owned());
    };
    let step = every.as_secs_f64();
    let count = ((last - first) / step).floor().clamp(0.0, VALUES_MAX as f64) as usize;
    let at = |n: usize| {
        // The newest sample that is not older than two steps, as an instant query would find one.
        let now = first + step * n as f64;
        let newest = samples.partition_point(|(at, _)| *at <= now).checked_sub(1).and_then(|at| samples.get(at))?;
        (now - newest.0 <= 2.0 * step && newest.1.is_finite() && newest.1 >= 0.0).then_some(newest.1)
    };
    Ok((0..=count).map(at).collect())
}

/// What the rule makes of the values, if what it decides is done by the next evaluation.
fn play(rule: &Rule, values: &[Option<f64>], start: u32, total: bool) -> Vec<Row> {
    let (mut memory, mut current) = (Memory::default(), start);
    let mut rows = Vec::with_capacity(values.len());
    for (step, value) in values.iter().enumerate() {
        let value = value.map(|value| if total { value / f64::from(current.max(1)) } else { value });
        let elapsed = rule.every.saturating_mul(u32::try_from(step).unwrap_or(u32::MAX));
        let inputs = Inputs { current, pending: 0, leaving: 0, value: value.ok_or(Missing::Empty) };
        let evaluation = rule.evaluate(&mut memory, inputs, BootTime(elapsed));
        let (desired, window_max, verdict) = (evaluation.desired, evaluation.window_max, evaluation.verdict);
        rows.push(Row { at_s: elapsed.as_secs(), value, current, desired, window_max, verdict });
        match rows.last().map(|row| &row.verdict) {
            Some(Verdict::Up(by)) => current = current.saturating_add(*by),
            Some(Verdict::Down(by)) => current = current.saturating_sub(*by),
            _ => {}
        }
    }
    rows
}

fn show(rows: &[Row], colour: bool) -> String {
    let columns = [
        Column::Right("AT"),
        Column::Right("VALUE"),
        Column::Right("CURRENT"),
        Column::Right("DESIRED"),
        Column::Right("WINDOW MAX"),
        Column::Left("DECISION"),
    ];
    let or_dash = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let row = |row: &Row| {
        let tone = if matches!(row.verdict, Verdict::Hold(_)) { Tone::Faint } else { Tone::Warn };
        vec![
            duration::format(Duration::from_secs(row.at_s)).into(),
            row.value.map_or_else(|| "missing".to_owned(), |value| format!("{value:.2}")).into(),
            row.current.to_string().into(),
            or_dash(row.desired).into(),
            or_dash(row.window_max).into(),
            Cell::toned(row.verdict.to_string(), tone),
        ]
    };
    table(&columns, rows.iter().map(row).collect(), colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orchestrator::scale::{Hold, Subject};

    fn rule() -> Rule {
        Rule {
            name: "nodes".into(),
            subject: Subject::Nodes,
            expr: "x".into(),
            target: 10.0,
            tolerance: 0.1,
            min: 2,
            max: 4,
            down_window: Duration::from_secs(30),
            settle: Duration::from_secs(10),
            every: Duration::from_secs(10),
        }
    }

    #[test]
    fn series_are_read() {
        let every = Duration::from_secs(10);
        assert_eq!(series("1, 2.5\nmissing NaN -1", every), Ok(vec![Some(1.0), Some(2.5), None, None, None]));
        assert!(series("1 two", every).is_err() && series(" ", every).is_err());
        let range = |values: &str| format!(r#"{{"status":"success","data":{{"result":[{{"values":[{values}]}}]}}}}"#);
        let text = range(r#"[100,"1"],[110,"2"],[160,"NaN"],[170,"4"]"#);
        let want = vec![Some(1.0), Some(2.0), Some(2.0), Some(2.0), None, None, None, Some(4.0)];
        assert_eq!(series(&text, every), Ok(want));
        assert!(series(&range(""), every).is_err() && series("{}", every).is_err());
        assert!(series(r#"{"data":{"result":[{},{}]}}"#, every).unwrap_err().contains("2 series"));
    }

    #[test]
    fn a_day_in_short() {
        let values = [20.0, 36.0, 36.0, 36.0, 22.0, 22.0, 22.0, 22.0].map(Some);
        let verdicts: Vec<_> =
            play(&rule(), &values, 2, true).into_iter().map(|row| (row.current, row.verdict)).collect();
        let want = [
            (2, Verdict::Hold(Hold::Enough)),
            (2, Verdict::Up(2)),
            (4, Verdict::Hold(Hold::Enough)),
            (4, Verdict::Hold(Hold::Enough)),
            (4, Verdict::Hold(Hold::Window)),
            (4, Verdict::Hold(Hold::Window)),
            (4, Verdict::Hold(Hold::Window)),
            (4, Verdict::Down(1)),
        ];
        assert_eq!(verdicts, want);
        let missing = play(&rule(), &[None; 100], 4, false);
        assert!(missing.iter().all(|row| row.current == 4), "a missing metric changes nothing");
    }

    #[test]
    fn rows_are_a_table() {
        assert_eq!(
            show(&play(&rule(), &[Some(18.0), None], 2, false), false),
            " AT    VALUE  CURRENT  DESIRED  WINDOW MAX  DECISION
 0s    18.00        2        4           -  create 2
10s  missing        4        -           -  hold: metric missing, no series
"
        );
    }
}
