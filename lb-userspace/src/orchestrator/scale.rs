//! How many there should be: a metric against a target gives a number, and rules say when that number is acted on.
//!
//! Pure. `desired = ceil(current * value / target)`, nothing within the tolerance, as Kubernetes' horizontal pod autoscaler
//! computes it. Rules:
//!
//! - More is decided at once; less only if *every* value of the window asked for less, and then one at a time.
//! - A value that is missing (no answer, no series, several, not a number) is no value: it scales neither up nor down, and a
//!   window with a hole in it is no window.
//! - After the number of those in service changed, the metric still speaks about the old number: nothing is decided until
//!   it has settled.
//! - What is being created counts as there. Fewer than `min` for `settle` are made up for without any metric.

use std::{collections::VecDeque, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::clock::BootTime;

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Subject {
    /// The load balancer's nodes.
    Nodes,
    /// The backends of a service.
    Backends(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nodes => f.write_str("nodes"),
            Self::Backends(service) => write!(f, "service/{service}"),
        }
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> Self {
        subject.to_string()
    }
}

impl TryFrom<String> for Subject {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix("service/") {
            Some(service) if !service.is_empty() => Ok(Self::Backends(service.to_owned())),
            _ if text == "nodes" => Ok(Self::Nodes),
            _ => Err(format!("{text:?} is neither `nodes` nor `service/NAME`")),
        }
    }
}

/// A scaling rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// What it scales.
    pub subject: Subject,
    /// PromQL whose one value is compared with `target`.
    pub expr: String,
    /// What the value should be, above 0.
    pub target: f64,
    /// Share of `target` by which the value may be off without anything happening.
    pub tolerance: f64,
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// Less is decided only when every value for so long asked for less.
    pub down_window: Duration,
    /// After a change nothing is decided for so long.
    pub settle: Duration,
    /// Time between evaluations.
    pub every: Duration,
}

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// Prometheus did not answer, or refused.
    NoAnswer(String),
    /// The expression gave no series.
    Empty,
    /// It gave more than one.
    Many(usize),
    /// The value is not a finite number, or below zero.
    NotANumber,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer(why) => write!(f, "no answer: {why}"),
            Self::Empty => f.write_str("no series"),
            Self::Many(count) => write!(f, "{count} series instead of one"),
            Self::NotANumber => f.write_str("not a number that could be compared"),
        }
    }
}

/// What is there when a rule is evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// Those in service.
    pub current: u32,
    /// Those being created.
    pub pending: u32,
    /// Those being removed; they are not among `current`.
    pub leaving: u32,
    /// The value.
    pub value: Result<f64, Missing>,
}

/// Why nothing happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// As many as there should be.
    Enough,
    /// The value is missing.
    Missing(Missing),
    /// There was a change lately.
    Settling,
    /// Fewer would do, but not for long enough.
    Window,
    /// What was decided before is still being done.
    Busy,
    /// More are needed than may be.
    AtMax,
    /// Fewer than `min`, and perhaps they come back by themselves.
    Short,
}

/// What a rule says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing.
    Hold(Hold),
    /// Create so many.
    Up(u32),
    /// Remove so many.
    Down(u32),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(by) => write!(f, "create {by}"),
            Self::Down(by) => write!(f, "remove {by}"),
            Self::Hold(Hold::Enough) => f.write_str("hold: enough"),
            Self::Hold(Hold::Missing(why)) => write!(f, "hold: metric missing, {why}"),
            Self::Hold(Hold::Settling) => f.write_str("hold: settling after a change"),
            Self::Hold(Hold::Window) => f.write_str("hold: fewer would do, not for the whole window"),
            Self::Hold(Hold::Busy) => f.write_str("hold: the last decision is being carried out"),
            Self::Hold(Hold::Short) => f.write_str("hold: fewer than min, given a chance to come back"),
            Self::Hold(Hold::AtMax) => f.write_str("hold: more are needed, max is reached"),
        }
    }
}

/// A verdict with the numbers that led to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// What there was.
    pub inputs: Inputs,
    /// What the value alone asks for, within `min` and `max`; `None` without a value.
    pub desired: Option<u32>,
    /// The largest `desired` of the window; `None` unless the window is whole.
    pub window_max: Option<u32>,
    /// What follows.
    pub verdict: Verdict,
}

/// What a rule remembers. A new master begins with nothing, so it removes nothing before it has seen a whole window.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    history: VecDeque<(BootTime, u32)>,
    current: Option<u32>,
    changed_at: Option<BootTime>,
    /// Since when there are fewer than `min`, without a break.
    short_since: Option<BootTime>,
}

/// Values that are remembered, at most; a window of an hour at one a second fits.
const HISTORY_MAX: usize = 4096;

impl Rule {
    /// What the value alone asks for.
    fn desired(&self, current: u32, value: f64) -> u32 {
        let ratio = value / self.target;
        let wanted = if (ratio - 1.0).abs() <= self.tolerance + 1e-9 {
            f64::from(current)
        } else {
            // The product of exact decimals may come out a hair above a whole number, which must not cost one more.
            (f64::from(current) * ratio - 1e-9).ceil()
        };
        // A cast from a float saturates.
        (wanted.max(0.0) as u32).clamp(self.min, self.max)
    }

    /// Evaluates the rule at `now`.
    pub fn evaluate(&self, memory: &mut Memory, inputs: Inputs, now: BootTime) -> Evaluation {
        if memory.current != Some(inputs.current) {
            // The first look is no change: a new master need not wait before it helps.
            memory.changed_at = memory.current.map(|_| now);
            memory.current = Some(inputs.current);
        }
        let short = inputs.current.saturating_add(inputs.pending) < self.min;
        memory.short_since = short.then(|| memory.short_since.unwrap_or(now));
        let desired = inputs.value.as_ref().ok().map(|value| self.desired(inputs.current, *value));
        let window_max = memory.push(desired, self.down_window, self.every, now);
        let verdict = self.verdict(memory, &inputs, desired, window_max, now);
        Evaluation { inputs, desired, window_max, verdict }
    }

    fn verdict(
        &self,
        memory: &Memory,
        inputs: &Inputs,
        desired: Option<u32>,
        window_max: Option<u32>,
        now: BootTime,
    ) -> Verdict {
        let there = inputs.current.saturating_add(inputs.pending);
        if let Some(since) = memory.short_since {
            // A node that is restarted is back sooner than a new one would be there.
            let waited = now.since(since) >= self.settle;
            return if waited { Verdict::Up(self.min.saturating_sub(there)) } else { Verdict::Hold(Hold::Short) };
        }
        let desired = match (&inputs.value, desired) {
            (Ok(_), Some(desired)) => desired,
            (Err(why), _) => return Verdict::Hold(Hold::Missing(why.clone())),
            (Ok(_), None) => return Verdict::Hold(Hold::Missing(Missing::NotANumber)),
        };
        let settling = memory.changed_at.is_some_and(|changed| now.since(changed) < self.settle);
        let busy = inputs.pending > 0 || inputs.leaving > 0;
        if desired > there {
            return if settling { Verdict::Hold(Hold::Settling) } else { Verdict::Up(desired - there) };
        }
        if desired >= inputs.current {
            let short = desired == self.max
                && inputs.value.as_ref().is_ok_and(|value| value / self.target > 1.0 + self.tolerance);
            return Verdict::Hold(match () {
                () if busy => Hold::Busy,
                () if short => Hold::AtMax,
                () => Hold::Enough,
            });
        }
        match window_max {
            _ if busy => Verdict::Hold(Hold::Busy),
            _ if settling => Verdict::Hold(Hold::Settling),
            Some(most) if most < inputs.current => Verdict::Down(1),
            _ => Verdict::Hold(Hold::Window),
        }
    }
}

impl Memory {
    /// Remembers a value; the largest of the window, if it is whole up to now.
    fn push(&mut self, desired: Option<u32>, window: Duration, every: Duration, now: BootTime) -> Option<u32> {
        // A pause of the evaluations is a hole like a missing value.
        let hole = self.history.back().is_some_and(|(last, _)| now.since(*last) > every * 3);
        let Some(desired) = desired else {
            self.history.clear();
            return None;
        };
        if hole {
            self.history.clear();
        }
        self.history.push_back((now, desired));
        // The value at the very beginning of the window is kept: it shows that the window is whole.
        while self.history.get(1).is_some_and(|(second, _)| now.since(*second) >= window)
            || self.history.len() > HISTORY_MAX
        {
            self.history.pop_front();
        }
        let whole = self.history.front().is_some_and(|(first, _)| now.since(*first) >= window);
        whole.then(|| self.history.iter().map(|(_, desired)| *desired).max()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule() -> Rule {
        Rule {
            name: "nodes".into(),
            subject: Subject::Nodes,
            expr: "x".into(),
            target: 10.0,
            tolerance: 0.1,
            min: 2,
            max: 6,
            down_window: Duration::from_secs(300),
            settle: Duration::from_secs(30),
            every: Duration::from_secs(15),
        }
    }

    fn at(s: u64) -> BootTime {
        BootTime(Duration::from_secs(s))
    }

    fn with(current: u32, value: f64) -> Inputs {
        Inputs { current, pending: 0, leaving: 0, value: Ok(value) }
    }

    fn missing(current: u32) -> Inputs {
        Inputs { value: Err(Missing::Empty), ..with(current, 0.0) }
    }

    #[test]
    fn one_look() {
        for (what, inputs, want) in [
            ("at the target", with(2, 10.0), Verdict::Hold(Hold::Enough)),
            ("within the tolerance above", with(3, 11.0), Verdict::Hold(Hold::Enough)),
            ("just beyond it", with(2, 11.1), Verdict::Up(1)),
            ("exact products do not round up", with(3, 20.0), Verdict::Up(3)),
            ("half as much again", with(4, 15.0), Verdict::Up(2)),
            ("clamped to max", with(4, 100.0), Verdict::Up(2)),
            ("at max", with(6, 100.0), Verdict::Hold(Hold::AtMax)),
            ("pending counts", Inputs { pending: 2, ..with(4, 15.0) }, Verdict::Hold(Hold::Busy)),
            ("and leaves the rest", Inputs { pending: 1, ..with(4, 15.0) }, Verdict::Up(1)),
            ("less waits", with(4, 5.0), Verdict::Hold(Hold::Window)),
            ("zero is a value", with(4, 0.0), Verdict::Hold(Hold::Window)),
            ("missing", missing(4), Verdict::Hold(Hold::Missing(Missing::Empty))),
            ("below min waits", missing(1), Verdict::Hold(Hold::Short)),
            (
                "below min with pending",
                Inputs { pending: 2, ..missing(0) },
                Verdict::Hold(Hold::Missing(Missing::Empty)),
            ),
        ] {
            assert_eq!(rule().evaluate(&mut Memory::default(), inputs, at(0)).verdict, want, "{what}");
        }
    }

    /// Evaluates every 15 s from 0 on; the second at which the first `Down` comes.
    fn first_down(inputs: impl Fn(u64) -> Inputs, end: u64) -> Option<u64> {
        let mut memory = Memory::default();
        (0..=end)
            .step_by(15)
            .find(|s| matches!(rule().evaluate(&mut memory, inputs(*s), at(*s)).verdict, Verdict::Down(_)))
    }

    #[test]
    fn less_takes_a_whole_window() {
        assert_eq!(first_down(|_| with(4, 5.0), 1000), Some(300));
        // One value that needs all of them begins the window anew.
        assert_eq!(first_down(|s| with(4, if s == 150 { 10.0 } else { 5.0 }), 1000), Some(465));
        assert_eq!(first_down(|s| if s == 150 { missing(4) } else { with(4, 5.0) }, 1000), Some(465));
        assert_eq!(first_down(|_| missing(4), 10_000), None);
        assert_eq!(first_down(|_| with(2, 0.0), 10_000), None, "never below min");
        assert_eq!(first_down(|_| Inputs { leaving: 1, ..with(4, 5.0) }, 10_000), None, "one at a time");
    }

    #[test]
    fn a_hole_in_the_evaluations_is_a_hole_in_the_window() {
        let mut memory = Memory::default();
        for s in [0, 15, 400, 415, 600, 695] {
            let verdict = rule().evaluate(&mut memory, with(4, 5.0), at(s)).verdict;
            assert_eq!(verdict, Verdict::Hold(Hold::Window), "{s}");
        }
    }

    #[test]
    fn a_change_has_to_settle() {
        let mut memory = Memory::default();
        assert_eq!(rule().evaluate(&mut memory, with(2, 20.0), at(0)).verdict, Verdict::Up(2));
        // The metric has not noticed the third yet.
        assert_eq!(rule().evaluate(&mut memory, with(3, 20.0), at(15)).verdict, Verdict::Hold(Hold::Settling));
        assert_eq!(rule().evaluate(&mut memory, with(3, 20.0), at(44)).verdict, Verdict::Hold(Hold::Settling));
        assert_eq!(rule().evaluate(&mut memory, with(3, 20.0), at(45)).verdict, Verdict::Up(3));
    }

    #[test]
    fn fewer_than_min_are_made_up_for_without_a_metric() {
        let mut memory = Memory::default();
        for (s, inputs, want) in [
            (0, missing(1), Verdict::Hold(Hold::Short)),
            (15, missing(2), Verdict::Hold(Hold::Missing(Missing::Empty))),
            (30, missing(1), Verdict::Hold(Hold::Short)),
            (45, with(0, 0.0), Verdict::Hold(Hold::Short)),
            (60, missing(0), Verdict::Up(2)),
            (75, Inputs { pending: 1, ..missing(0) }, Verdict::Up(1)),
        ] {
            assert_eq!(rule().evaluate(&mut memory, inputs, at(s)).verdict, want, "{s}");
        }
    }

    #[test]
    fn subjects_are_words() {
        for text in ["nodes", "service/web"] {
            assert_eq!(Subject::try_from(text.to_owned()).unwrap().to_string(), text);
        }
        for text in ["", "node", "service/", "service"] {
            assert!(Subject::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    proptest! {
        /// A constant load with noise of the tolerance's size settles and stays. It may go up once too far at a peak, and come
        /// back after a whole window; it never goes up again.
        #[test]
        fn noise_does_not_flap(load in 5.0_f64..60.0, noise in 0.0_f64..0.1, seed: u64) {
            use rand::{RngExt, SeedableRng, rngs::SmallRng};
            let mut random = SmallRng::seed_from_u64(seed);
            let (rule, mut memory, mut current) = (rule(), Memory::default(), 2_u32);
            let mut turns = 0;
            let mut last = 0_i32;
            for step in 0..1000_u64 {
                let value = load / f64::from(current) * random.random_range(1.0 - noise..=1.0 + noise);
                let evaluation = rule.evaluate(&mut memory, with(current, value), at(step * 15));
                let way = match evaluation.verdict {
                    Verdict::Up(by) => { current += by; 1 }
                    Verdict::Down(by) => { current -= by; -1 }
                    Verdict::Hold(_) => 0,
                };
                prop_assert!((rule.min..=rule.max).contains(&current));
                if way != 0 {
                    turns += u32::from(last != 0 && way != last);
                    last = way;
                }
            }
            prop_assert!(turns <= 1, "{turns} turns");
        }

        #[test]
        fn no_value_panics(value: f64, current: u32, target in 0.001_f64..1e9) {
            let rule = Rule { target, ..rule() };
            let evaluation = rule.evaluate(&mut Memory::default(), with(current, value), at(0));
            prop_assert!(!matches!(evaluation.verdict, Verdict::Down(_)));
        }
    }
}
