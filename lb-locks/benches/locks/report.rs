//! Figures and targets, and how they are printed.

use std::{fmt, time::Duration};

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    figures: Vec<(String, String)>,
    targets: Vec<Target>,
}

struct Target {
    what: String,
    measured: f64,
    bound: Bound,
    unit: &'static str,
}

/// On which side of a number a figure has to be.
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.measured <= most,
            Bound::AtLeast(least) => self.measured >= least,
        }
    }
}

impl Report {
    /// Notes a figure that no target is about.
    pub fn figure(&mut self, what: impl Into<String>, value: impl Into<String>) {
        self.figures.push((what.into(), value.into()));
    }

    /// Notes a figure and what it has to be.
    pub fn target(&mut self, what: impl Into<String>, measured: f64, bound: Bound, unit: &'static str) {
        self.targets.push(Target { what: what.into(), measured, bound, unit });
    }

    /// Whether no target is missed.
    pub fn is_met(&self) -> bool {
        self.targets.iter().all(Target::is_met)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.figures.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        for (what, value) in &self.figures {
            writeln!(f, "{what:<width$}  {value}")?;
        }
        for target in &self.targets {
            let Target { what, measured, bound, unit } = target;
            let (side, number) = match bound {
                Bound::AtMost(most) => ("at most", most),
                Bound::AtLeast(least) => ("at least", least),
            };
            let verdict = if target.is_met() { "PASS" } else { "MISSED" };
            writeln!(f, "{verdict:<6} {what}: {measured:.2}{unit} ({side} {number:.2}{unit})")?;
        }
        Ok(())
    }
}

/// The value below which `share` of the samples are.
pub fn quantile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort_unstable();
    let at = ((samples.len() as f64 * share).ceil() as usize).clamp(1, samples.len().max(1)) - 1;
    samples.get(at).copied().unwrap_or_default()
}

/// `duration` in microseconds or milliseconds, for people.
pub fn text(duration: Duration) -> String {
    if duration < Duration::from_millis(10) {
        format!("{} µs", duration.as_micros())
    } else {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    }
}
