//! When a backend counts as up: the state machine behind health, as data.
//!
//! Pure: takes `now` and returns data; owns no clock, no socket and no random source. Rules:
//!
//! - `rise` successes in a row take a backend up, `fall` failures in a row take it down; the opposite result starts over.
//! - The first result of a backend without history is trusted at once.
//! - After a restart of the agent the state before it is inherited, and only `rise` or `fall` results change it.
//! - Going down is never delayed. Going up is damped while a backend flaps: from the second fall in a row of short lives
//!   on, the successes must also span [`Rules::hold`], which doubles with each further one, up to [`HOLD_MAX`]. Every
//!   [`FORGET`] that it stayed up takes one such fall off its record. (The idea is RFC 2439's; a count of falls replaces
//!   its penalty, so that an operator can work out the figure.)
//! - Results of which [`Verdict::Inconclusive`] is said change nothing.

use std::time::{Duration, Instant};

use super::outcome::Verdict;

/// Longest time that successes must span before a flapping backend comes up again.
pub const HOLD_MAX: Duration = Duration::from_secs(60);
/// Time up that takes one fall off the record.
pub const FORGET: Duration = Duration::from_secs(60);
/// Falls that are remembered at most.
pub const FLAPS_MAX: u32 = 8;

/// Observed health of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// No result yet.
    Unknown,
    /// Judged up.
    Up,
    /// Judged down.
    Down,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// State before.
    pub from: State,
    /// State now.
    pub to: State,
}

/// The part of a health check that the state machine needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Consecutive successes until up; 0 counts as 1.
    pub rise: u32,
    /// Consecutive failures until down; 0 counts as 1.
    pub fall: u32,
    /// Time between probes.
    pub interval: Duration,
}

impl Rules {
    /// How long successes must span after this many falls on record: nothing for the first, then `rise * interval`
    /// doubled with each, at most [`HOLD_MAX`].
    pub fn hold(&self, flaps: u32) -> Duration {
        match flaps.min(FLAPS_MAX) {
            0 | 1 => Duration::ZERO,
            n => self.interval.saturating_mul(self.rise.max(1)).saturating_mul(1 << (n - 1)).min(HOLD_MAX),
        }
    }
}

/// Health of one target with what is needed to judge the next result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    state: State,
    /// When `state` began; `None` before the first result.
    since: Option<Instant>,
    /// Consecutive results that speak against `state`.
    against: u32,
    /// When the first of them came.
    against_since: Option<Instant>,
    /// Falls on record.
    flaps: u32,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// A target without history.
    pub const fn new() -> Self {
        Self { state: State::Unknown, since: None, against: 0, against_since: None, flaps: 0 }
    }

    /// A target whose state before a restart is known.
    pub const fn inherited(up: bool, now: Instant) -> Self {
        let state = if up { State::Up } else { State::Down };
        Self { state, since: Some(now), against: 0, against_since: None, flaps: 0 }
    }

    /// State as judged.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Consecutive results that speak against the state.
    pub const fn against(&self) -> u32 {
        self.against
    }

    /// How many of those change it: `rise` when down, `fall` when up, 1 when unknown.
    pub fn against_max(&self, rules: &Rules) -> u32 {
        match self.state {
            State::Unknown => 1,
            State::Up => rules.fall.max(1),
            State::Down => rules.rise.max(1),
        }
    }

    /// Whether the next results decide about a change: it is then probed faster, see [`super::schedule`]. A backend that
    /// has its `rise` successes and only waits for the hold to end is not in transition.
    pub fn in_transition(&self, rules: &Rules) -> bool {
        self.against > 0 && self.against < self.against_max(rules)
    }

    /// Until when recovery is held back, if the successes so far would otherwise suffice.
    pub fn held_until(&self, rules: &Rules) -> Option<Instant> {
        let since = self.against_since.filter(|_| self.state == State::Down && self.against >= rules.rise.max(1))?;
        since.checked_add(rules.hold(self.flaps))
    }

    /// Takes one result; says whether it changed the state.
    pub fn observe(&mut self, rules: &Rules, verdict: Verdict, now: Instant) -> Option<Transition> {
        let success = match verdict {
            Verdict::Success => true,
            Verdict::Failure => false,
            Verdict::Inconclusive => return None,
        };
        let confirms = match self.state {
            State::Unknown => return Some(self.enter(if success { State::Up } else { State::Down }, now)),
            State::Up => success,
            State::Down => !success,
        };
        if confirms {
            self.against = 0;
            self.against_since = None;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let since = *self.against_since.get_or_insert(now);
        if self.against < self.against_max(rules) {
            return None;
        }
        match self.state {
            State::Down if now.saturating_duration_since(since) < rules.hold(self.flaps) => None,
            State::Down => Some(self.enter(State::Up, now)),
            State::Up | State::Unknown => {
                self.flaps = self.remembered(now).saturating_add(1).min(FLAPS_MAX);
                Some(self.enter(State::Down, now))
            }
        }
    }

    /// Falls on record after what the present time up has taken off.
    fn remembered(&self, now: Instant) -> u32 {
        let up = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let forgotten = u32::try_from(up.as_secs() / FORGET.as_secs()).unwrap_or(u32::MAX);
        self.flaps.saturating_sub(forgotten)
    }

    fn enter(&mut self, to: State, now: Instant) -> Transition {
        let from = self.state;
        *self = Self { state: to, since: Some(now), against: 0, against_since: None, flaps: self.flaps };
        Transition { from, to }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules { rise: 2, fall: 3, interval: Duration::from_secs(2) };

    /// Plays results one interval apart: `+` success, `-` failure, `?` inconclusive; returns the states as `u`, `d`, `n`.
    fn play(machine: &mut Machine, rules: &Rules, start: Instant, results: &str) -> String {
        let mut now = start;
        results
            .chars()
            .map(|result| {
                let verdict = match result {
                    '+' => Verdict::Success,
                    '-' => Verdict::Failure,
                    _ => Verdict::Inconclusive,
                };
                let before = machine.state();
                let transition = machine.observe(rules, verdict, now);
                assert_eq!(transition.is_some(), before != machine.state());
                if let Some(transition) = transition {
                    assert_eq!((transition.from, transition.to), (before, machine.state()));
                }
                now += rules.interval;
                match machine.state() {
                    State::Up => 'u',
                    State::Down => 'd',
                    State::Unknown => 'n',
                }
            })
            .collect()
    }

    #[test]
    fn results_and_states() {
        for (what, start, results, want) in [
            ("first success is trusted", None, "+", "u"),
            ("first failure is trusted", None, "-", "d"),
            ("inconclusive is no result", None, "??+", "nnu"),
            ("fall counts failures in a row", None, "+---", "uuud"),
            ("a success starts the count over", None, "+--+--+---", "uuuuuuuuud"),
            ("rise counts successes in a row", None, "-+-++", "ddddu"),
            ("inconclusive does not break a row", None, "+-?--", "uuuud"),
            ("inherited up needs fall failures", Some(true), "--+---", "uuuuud"),
            ("inherited down needs rise successes", Some(false), "+-++", "dddu"),
        ] {
            let now = Instant::now();
            let mut machine = start.map_or_else(Machine::new, |up| Machine::inherited(up, now));
            assert_eq!(play(&mut machine, &RULES, now, results), want, "{what}");
        }
    }

    #[test]
    fn second_fall_holds_recovery_back_and_doubles() {
        let mut now = Instant::now();
        let mut machine = Machine::inherited(true, now);
        // The first fall recovers after two successes. After the second they must span 8 s (2 * 2 s * 2), which takes
        // five of them two seconds apart; after the third 16 s, which takes nine.
        for (results, want) in [("---++", "uuddu"), ("---+++++", "uudddddu"), ("---+++++++++", "uudddddddddu")] {
            now += Duration::from_secs(1);
            assert_eq!(play(&mut machine, &RULES, now, results), want);
            now += RULES.interval * u32::try_from(results.len()).expect("short");
        }
    }

    #[test]
    fn hold_doubles_to_its_limit() {
        let holds: Vec<u64> = (0..=10).map(|flaps| RULES.hold(flaps).as_secs()).collect();
        assert_eq!(holds, [0, 0, 8, 16, 32, 60, 60, 60, 60, 60, 60]);
        let slow = Rules { interval: Duration::from_secs(3600), ..RULES };
        assert_eq!(slow.hold(2), HOLD_MAX);
    }

    #[test]
    fn time_up_clears_the_record() {
        let start = Instant::now();
        let mut machine = Machine::inherited(true, start);
        play(&mut machine, &RULES, start, "---++---");
        assert_eq!(machine.flaps, 2);
        play(&mut machine, &RULES, start + Duration::from_secs(20), "+++++");
        assert_eq!(machine.state(), State::Up);
        let much_later = start + Duration::from_secs(28) + FORGET * 2;
        assert_eq!(play(&mut machine, &RULES, much_later, "---++"), "uuddu", "two minutes up forget both falls");
    }

    #[test]
    fn waiting_for_the_hold_is_not_a_transition() {
        let now = Instant::now();
        let mut machine = Machine::inherited(true, now);
        play(&mut machine, &RULES, now, "-");
        assert!(machine.in_transition(&RULES));
        play(&mut machine, &RULES, now, "--++---+++");
        assert_eq!((machine.state(), machine.against()), (State::Down, 3));
        assert!(!machine.in_transition(&RULES));
        assert!(machine.held_until(&RULES).is_some());
    }

    proptest! {
        /// Down is entered exactly after `fall` failures in a row, whatever went before; up never with fewer than `rise`.
        #[test]
        fn going_down_is_never_damped(
            results in proptest::collection::vec(0_u8..8, 1..400),
            rise in 1_u32..5,
            fall in 1_u32..5,
            step_ms in 1_u64..5_000,
        ) {
            let rules = Rules { rise, fall, interval: Duration::from_secs(2) };
            let mut now = Instant::now();
            let mut machine = Machine::new();
            let (mut failures, mut successes) = (0, 0);
            for result in results {
                let verdict = match result {
                    0 => Verdict::Inconclusive,
                    1..=4 => Verdict::Failure,
                    _ => Verdict::Success,
                };
                match verdict {
                    Verdict::Success => (successes, failures) = (successes + 1, 0),
                    Verdict::Failure => (successes, failures) = (0, failures + 1),
                    Verdict::Inconclusive => {}
                }
                let before = machine.state();
                let transition = machine.observe(&rules, verdict, now);
                prop_assert!(machine.flaps <= FLAPS_MAX);
                if before == State::Up {
                    prop_assert_eq!(machine.state() == State::Down, failures >= fall);
                }
                if let Some(Transition { from: State::Down, to }) = transition {
                    prop_assert_eq!(to, State::Up);
                    prop_assert!(successes >= rise);
                }
                if verdict != Verdict::Inconclusive {
                    prop_assert_ne!(machine.state(), State::Unknown);
                }
                now += Duration::from_millis(step_ms);
            }
        }

        /// However bad its record, a backend that answers for `HOLD_MAX` and `rise` probes is up.
        #[test]
        fn recovery_is_bounded(flaps in 0_u32..20, rise in 1_u32..5, interval_ms in 100_u64..10_000) {
            let rules = Rules { rise, fall: 1, interval: Duration::from_millis(interval_ms) };
            let mut now = Instant::now();
            let mut machine = Machine { flaps, ..Machine::inherited(false, now) };
            let end = now + HOLD_MAX + rules.interval * (rise + 1);
            while now <= end {
                machine.observe(&rules, Verdict::Success, now);
                now += rules.interval;
            }
            prop_assert_eq!(machine.state(), State::Up);
        }
    }
}
