//! Who checks what: health checks shared over the live workers, without a list of shares anywhere.
//!
//! Pure. Each worker computes its own share from the assignment by rendezvous hashing: the workers with
//! the highest hash of (target, worker) check the target, so a worker that comes or goes moves its own share only.
//!
//! Invariants: a write of health carries the generation of the assignment that it rests on, so that a worker which was given
//! up cannot speak any more; a target's state changes only by votes of the workers that are assigned to it, and a vote that
//! is missing changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::clock::BootTime;
pub use crate::health::shared::{Assignment, Beat, Health, Vote, checkers};

/// The share of `worker`: those of `targets` that it checks.
pub fn share<'t>(
    targets: impl IntoIterator<Item = &'t String>,
    worker: &str,
    assignment: &Assignment,
) -> BTreeSet<&'t str> {
    targets.into_iter().filter(|target| checkers(target, assignment).contains(worker)).map(String::as_str).collect()
}

/// The assignment that follows, if `live` workers or the number of vantage points ask for another. Nobody alive changes
/// nothing: an assignment to nobody would be worse than one to somebody who may come back.
pub fn reassign(
    present: Option<&Assignment>,
    live: &BTreeSet<String>,
    vantage_points: u32,
    holder: &str,
) -> Option<Assignment> {
    if live.is_empty() || present.is_some_and(|now| now.workers == *live && now.vantage_points == vantage_points) {
        return None;
    }
    let epoch = present.map_or(0, |now| now.epoch).saturating_add(1);
    Some(Assignment { holder: holder.to_owned(), epoch, workers: live.clone(), vantage_points })
}

/// The health record after `worker` votes, or `None` where that changes nothing.
///
/// Down takes the votes of all assigned checkers, up takes one of them; a checker that has not voted yet speaks with the
/// state so far, so a hand-over by itself never changes a judgement. A target that nobody judged before is what its first
/// vote says, with one vantage point, and up until all have voted with more.
pub fn vote(
    present: Option<&Health>,
    target: &str,
    worker: &str,
    vote: Vote,
    assignment: &Assignment,
) -> Option<Health> {
    let checkers = checkers(target, assignment);
    if !checkers.contains(worker) {
        return None;
    }
    let mut votes: BTreeMap<String, Vote> = present.map(|health| health.votes.clone()).unwrap_or_default();
    votes.retain(|voter, _| checkers.contains(voter.as_str()));
    let same = |old: &Vote| old.up == vote.up;
    let known = votes.get(worker).is_some_and(same);
    let before = present.is_none_or(|health| health.up);
    let (reason, at) = (vote.reason.clone(), vote.at);
    if !known {
        votes.insert(worker.to_owned(), vote);
    }
    let down = votes.values().filter(|vote| !vote.up).count();
    let silent = checkers.len().saturating_sub(votes.len());
    let up = if down == checkers.len() {
        false
    } else if down + silent == checkers.len() {
        // Nobody of those who spoke says up.
        before
    } else {
        true
    };
    match present {
        Some(health) if health.up == up && health.votes == votes => None,
        Some(health) if health.up == up => Some(Health { votes, ..health.clone() }),
        _ => Some(Health { up, reason, since: at, votes }),
    }
}

/// How long things that should move have stood still, by this process's own clock.
///
/// Time counts only between successful looks, and at most `gap_max` for each: neither a store that was silent nor a pause of
/// this process makes anybody look dead.
#[derive(Clone, Debug)]
pub struct Liveness {
    gap_max: Duration,
    looked_at: Option<BootTime>,
    seen: BTreeMap<String, (u64, Duration)>,
}

impl Liveness {
    /// Nothing seen yet.
    pub fn new(gap_max: Duration) -> Self {
        Self { gap_max, looked_at: None, seen: BTreeMap::new() }
    }

    /// A look: names with a number that should move. What is absent is forgotten.
    pub fn look<'n>(&mut self, present: impl IntoIterator<Item = (&'n str, u64)>, now: BootTime) {
        let passed = self.looked_at.map_or(Duration::ZERO, |before| now.since(before)).min(self.gap_max);
        self.looked_at = Some(now);
        let mut seen = BTreeMap::new();
        for (name, beat) in present {
            let silence = match self.seen.get(name) {
                Some((before, silence)) if *before == beat => *silence + passed,
                _ => Duration::ZERO,
            };
            seen.insert(name.to_owned(), (beat, silence));
        }
        self.seen = seen;
    }

    /// How long `name` has been silent; `None` if it is absent.
    pub fn silence(&self, name: &str) -> Option<Duration> {
        self.seen.get(name).map(|(_, silence)| *silence)
    }

    /// Names that were silent for less than `timeout`.
    pub fn live(&self, timeout: Duration) -> BTreeSet<String> {
        self.seen.iter().filter(|(_, (_, silence))| *silence < timeout).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::shared::UnixMs;

    fn assignment(workers: &[&str], vantage_points: u32) -> Assignment {
        let workers = workers.iter().map(|&name| name.to_owned()).collect();
        Assignment { holder: "m/1".into(), epoch: 1, workers, vantage_points }
    }

    fn targets() -> Vec<String> {
        (0..3000).map(|n| format!("10.0.{}.{}:80", n / 256, n % 256)).collect()
    }

    #[test]
    fn every_target_has_its_checkers_and_shares_are_even() {
        let targets = targets();
        for vantage_points in [1_u32, 2] {
            let all = assignment(&["a", "b", "c"], vantage_points);
            let mut sum = 0;
            for worker in ["a", "b", "c"] {
                let share = share(&targets, worker, &all).len();
                let even = 1000 * vantage_points as usize;
                assert!(share.abs_diff(even) < 120, "{worker} has {share} of {even}");
                sum += share;
            }
            assert_eq!(sum, 3000 * vantage_points as usize);
        }
        assert_eq!(share(&targets, "a", &assignment(&["a"], 3)).len(), 3000, "fewer workers than vantage points");
        assert!(share(&targets, "x", &assignment(&["a"], 1)).is_empty());
    }

    #[test]
    fn a_worker_that_goes_moves_its_own_share_only() {
        let (before, after) = (assignment(&["a", "b", "c"], 1), assignment(&["a", "b"], 1));
        for target in targets() {
            let old = checkers(&target, &before);
            assert!(old.contains("c") || old == checkers(&target, &after), "{target} moved for nothing");
        }
    }

    #[test]
    fn the_assignment_follows_the_living() {
        let live = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<BTreeSet<_>>();
        let first = reassign(None, &live(&["a"]), 1, "m/1").unwrap();
        assert_eq!((first.epoch, first.holder.as_str()), (1, "m/1"));
        assert_eq!(reassign(Some(&first), &live(&["a"]), 1, "n/1"), None, "a new master alone changes nothing");
        let second = reassign(Some(&first), &live(&["a", "b"]), 1, "n/1").unwrap();
        assert_eq!((second.epoch, second.holder.as_str()), (2, "n/1"));
        assert!(reassign(Some(&second), &live(&["a", "b"]), 2, "n/1").is_some());
        assert_eq!(reassign(Some(&second), &live(&[]), 1, "n/1"), None);
    }

    fn say(up: bool, at: u64) -> Vote {
        Vote { up, reason: if up { "L7OK" } else { "L4TOUT" }.into(), at: UnixMs(at) }
    }

    /// Plays votes `(worker, up)`; `.` where a vote changed nothing.
    fn play(health: &mut Option<Health>, votes: &[(&str, bool)], assignment: &Assignment) -> String {
        let mut out = String::new();
        for (at, (worker, up)) in votes.iter().enumerate() {
            let next = vote(health.as_ref(), "t", worker, say(*up, at as u64), assignment);
            out.push(match &next {
                None => '.',
                Some(health) if health.up => 'u',
                Some(_) => 'd',
            });
            if next.is_some() {
                *health = next;
            }
        }
        out
    }

    #[test]
    fn down_takes_all_vantage_points_and_up_takes_one() {
        let one = assignment(&["a"], 1);
        let two = assignment(&["a", "b"], 2);
        for (what, who, votes, want) in [
            ("one: first up", &one, &[("a", true)][..], "u"),
            ("one: first down", &one, &[("a", false)], "d"),
            ("one: repeated", &one, &[("a", true), ("a", true), ("a", false), ("a", false)], "u.d."),
            ("two: one down is up", &two, &[("a", true), ("b", true), ("a", false)], "uuu"),
            ("two: both down", &two, &[("a", true), ("b", true), ("a", false), ("b", false)], "uuud"),
            ("two: first vote down is not enough", &two, &[("a", false), ("b", false)], "ud"),
            ("two: one up again", &two, &[("a", false), ("b", false), ("b", true)], "udu"),
            ("a stranger has no vote", &two, &[("a", true), ("x", false)], "u."),
        ] {
            assert_eq!(play(&mut None, votes, who), want, "{what}");
        }
    }

    #[test]
    fn a_hand_over_changes_no_judgement() {
        let before = assignment(&["a", "b"], 2);
        let mut health = None;
        assert_eq!(play(&mut health, &[("a", false), ("b", false)], &before), "ud");
        let after = assignment(&["b", "c"], 2);
        assert_eq!(play(&mut health, &[("b", false)], &after), "d", "the vote of `a` is dropped, the state stays");
        assert_eq!(play(&mut health, &[("c", false)], &after), "d");
        assert_eq!(play(&mut health, &[("c", true)], &after), "u");
    }

    #[test]
    fn silence_counts_only_what_was_looked_at() {
        let at = |s: u64| BootTime(Duration::from_secs(s));
        let mut liveness = Liveness::new(Duration::from_secs(2));
        liveness.look([("a", 1), ("b", 1)], at(100));
        liveness.look([("a", 1), ("b", 2)], at(101));
        assert_eq!(liveness.silence("a"), Some(Duration::from_secs(1)));
        assert_eq!(liveness.silence("b"), Some(Duration::ZERO));
        // An hour of pause counts as two seconds.
        liveness.look([("a", 1), ("b", 2)], at(3_700));
        assert_eq!(liveness.silence("a"), Some(Duration::from_secs(3)));
        assert_eq!(liveness.live(Duration::from_secs(3)), ["b".to_owned()].into());
        liveness.look([("b", 2)], at(3_701));
        assert_eq!(liveness.silence("a"), None);
    }
}
