//! The verdict over a history. Pure.
//!
//! Owns: what counts as broken. A hold lasts from the moment at which a worker had the lock to its release, its loss, or the
//! end of its validity, whichever came first. Two holds that overlap break exclusion. A token that is not larger than that
//! of a grant which had ended before the attempt began breaks the order. A write that the resource accepted after one of a
//! newer grant is what all of this is to prevent.

use std::collections::BTreeMap;

use super::history::{Entry, Event};

/// Most examples of each kind that a verdict carries; all are counted.
pub const EXAMPLES_MAX: usize = 10;

/// One grant and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Grant {
    /// Who.
    pub worker: u32,
    /// Its number among the worker's.
    pub grant: u64,
    /// Before the attempt began.
    pub started_us: u64,
    /// When the worker had it.
    pub acquired_us: u64,
    /// When the hold was over.
    pub end_us: u64,
    /// The token.
    pub fence: Option<u64>,
}

/// Two grants that break a promise together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pair {
    /// The earlier one.
    pub first: Grant,
    /// The later one.
    pub second: Grant,
    /// For how long they overlapped, 0 for other breaches.
    pub overlap_us: u64,
}

/// How often a promise was broken, with examples.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Breaches {
    /// How often.
    pub count: u64,
    /// The first few.
    pub examples: Vec<Pair>,
}

impl Breaches {
    fn add(&mut self, first: &Grant, second: &Grant, overlap_us: u64) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(Pair { first: *first, second: *second, overlap_us });
        }
    }
}

/// What a history comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Grants.
    pub acquisitions: u64,
    /// Extensions that succeeded.
    pub extensions: u64,
    /// Holds whose loss was noticed.
    pub lost: u64,
    /// Attempts that failed, by error.
    pub failures: BTreeMap<String, u64>,
    /// The longest wait for a grant.
    pub longest_wait_us: u64,
    /// Writes that the resource accepted.
    pub writes: u64,
    /// Writes that it refused, for a newer token had been there.
    pub refused: u64,
    /// Two holders at one time.
    pub overlaps: Breaches,
    /// A token smaller than that of an earlier grant.
    pub inversions: Breaches,
    /// The token of an earlier grant again.
    pub equal_tokens: Breaches,
    /// A write accepted after one of a newer grant.
    pub disordered_writes: Breaches,
}

impl Verdict {
    /// Whether every promise was kept.
    pub fn held(&self) -> bool {
        [&self.overlaps, &self.inversions, &self.equal_tokens, &self.disordered_writes]
            .iter()
            .all(|breaches| breaches.count == 0)
    }
}

/// Judges a history, in any order of workers, each worker's own entries in order.
pub fn check(entries: &[Entry]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut grants: BTreeMap<(u32, u64), Grant> = BTreeMap::new();
    let mut writes: Vec<(u64, (u32, u64))> = Vec::new();
    for Entry { worker, event } in entries {
        let mut ended = |grant: &u64, at_us: &u64| {
            if let Some(hold) = grants.get_mut(&(*worker, *grant)) {
                hold.end_us = hold.end_us.min(*at_us);
            }
        };
        match event {
            Event::Acquired { grant, at_us, started_us, valid_until_us, waited_us, fence } => {
                verdict.acquisitions += 1;
                verdict.longest_wait_us = verdict.longest_wait_us.max(*waited_us);
                let (worker, grant) = (*worker, *grant);
                let (started_us, acquired_us, end_us) = (*started_us, *at_us, *valid_until_us);
                let hold = Grant { worker, grant, started_us, acquired_us, end_us, fence: *fence };
                grants.insert((worker, grant), hold);
            }
            Event::Extended { grant, valid_until_us } => {
                verdict.extensions += 1;
                if let Some(hold) = grants.get_mut(&(*worker, *grant)) {
                    hold.end_us = hold.end_us.max(*valid_until_us);
                }
            }
            Event::Written { grant, place: Some(place) } => {
                verdict.writes += 1;
                writes.push((*place, (*worker, *grant)));
            }
            Event::Written { place: None, .. } => verdict.refused += 1,
            Event::Released { grant, at_us } => ended(grant, at_us),
            Event::Lost { grant, at_us } => {
                verdict.lost += 1;
                ended(grant, at_us);
            }
            Event::Failed { why, .. } => *verdict.failures.entry(why.clone()).or_default() += 1,
        }
    }
    let holds: Vec<Grant> = grants.values().copied().collect();
    verdict.overlaps = overlaps(&holds);
    (verdict.inversions, verdict.equal_tokens) = tokens(&holds);
    writes.sort_unstable();
    verdict.disordered_writes = disorder(&writes, &grants);
    verdict
}

fn overlaps(holds: &[Grant]) -> Breaches {
    let mut holds: Vec<&Grant> = holds.iter().filter(|hold| hold.end_us > hold.acquired_us).collect();
    holds.sort_by_key(|hold| hold.acquired_us);
    let mut found = Breaches::default();
    let mut longest: Option<&Grant> = None;
    for hold in holds {
        if let Some(before) = longest
            && hold.acquired_us < before.end_us
        {
            found.add(before, hold, before.end_us.min(hold.end_us) - hold.acquired_us);
        }
        if longest.is_none_or(|before| before.end_us < hold.end_us) {
            longest = Some(hold);
        }
    }
    found
}

/// Each grant against the largest token of all that had ended before its attempt began.
fn tokens(holds: &[Grant]) -> (Breaches, Breaches) {
    let (mut smaller, mut equal) = (Breaches::default(), Breaches::default());
    let fenced = || holds.iter().filter_map(|hold| Some((hold.fence?, hold)));
    let (mut by_start, mut by_end): (Vec<_>, Vec<_>) = (fenced().collect(), fenced().collect());
    by_start.sort_by_key(|(_, hold)| hold.started_us);
    by_end.sort_by_key(|(_, hold)| hold.end_us);
    let mut ended = by_end.into_iter().peekable();
    let mut largest: Option<(u64, &Grant)> = None;
    for (fence, hold) in by_start {
        while let Some((other, before)) = ended.next_if(|(_, before)| before.end_us < hold.started_us) {
            if largest.is_none_or(|(token, _)| token < other) {
                largest = Some((other, before));
            }
        }
        match largest {
            Some((token, before)) if fence < token => smaller.add(before, hold, 0),
            Some((token, before)) if fence == token => equal.add(before, hold, 0),
            _ => {}
        }
    }
    (smaller, equal)
}

/// Writes in the order in which the resource accepted them: newer grants never before older ones. What is newer is said by
/// the token, and by the time of the grant where there is none, or the same one twice.
fn disorder(writes: &[(u64, (u32, u64))], grants: &BTreeMap<(u32, u64), Grant>) -> Breaches {
    let mut found = Breaches::default();
    let mut newest: Option<&Grant> = None;
    for hold in writes.iter().filter_map(|(_, by)| grants.get(by)) {
        let age = |hold: &Grant| (hold.fence, hold.acquired_us);
        match newest {
            Some(before) if age(hold) < age(before) => found.add(before, hold, 0),
            _ => newest = Some(hold),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `worker`'s only grant: asked for at `started`, had at `at`, valid until `until`.
    fn granted(worker: u32, started: u64, at: u64, until: u64, fence: u64) -> Entry {
        let fence = Some(fence).filter(|fence| *fence > 0);
        let (at_us, started_us, valid_until_us) = (at, started, until);
        let event = Event::Acquired { grant: 1, at_us, started_us, valid_until_us, waited_us: at - started, fence };
        Entry { worker, event }
    }

    fn then(worker: u32, event: Event) -> Entry {
        Entry { worker, event }
    }

    fn released(worker: u32, at_us: u64) -> Entry {
        then(worker, Event::Released { grant: 1, at_us })
    }

    fn written(worker: u32, place: u64) -> Entry {
        then(worker, Event::Written { grant: 1, place: Some(place).filter(|place| *place > 0) })
    }

    /// Overlaps, inversions, equal tokens, disordered writes.
    fn breaches(entries: &[Entry]) -> [u64; 4] {
        let verdict = check(entries);
        let all = [&verdict.overlaps, &verdict.inversions, &verdict.equal_tokens, &verdict.disordered_writes];
        assert_eq!(verdict.held(), all.iter().all(|breaches| breaches.count == 0));
        all.map(|breaches| breaches.count)
    }

    #[test]
    fn holds_overlap_only_inside_their_validity() {
        let second = |at| granted(2, at - 1, at, at + 100, 2);
        let lost = |at_us| then(1, Event::Lost { grant: 1, at_us });
        let extended = |valid_until_us| then(1, Event::Extended { grant: 1, valid_until_us });
        for (what, entries, overlaps) in [
            ("the first is still valid", vec![granted(1, 0, 10, 110, 1), second(109)], 1),
            ("its validity has just ended", vec![granted(1, 0, 10, 110, 1), second(110)], 0),
            ("it was released before", vec![granted(1, 0, 10, 110, 1), released(1, 50), second(51)], 0),
            ("it is released later", vec![granted(1, 0, 10, 110, 1), released(1, 53), second(52)], 1),
            ("it noticed its loss", vec![granted(1, 0, 10, 110, 1), lost(50), second(52)], 0),
            ("it was extended", vec![granted(1, 0, 10, 110, 1), extended(300), second(200)], 1),
            (
                "extended, and released all the same",
                vec![granted(1, 0, 10, 110, 1), extended(300), released(1, 120), second(200)],
                0,
            ),
            ("released after its validity", vec![granted(1, 0, 10, 110, 1), released(1, 500), second(200)], 0),
            ("entries come in any order of workers", vec![second(109), granted(1, 0, 10, 110, 1)], 1),
        ] {
            assert_eq!(breaches(&entries)[0], overlaps, "{what}");
        }
        // One long hold over two short ones that do not touch each other.
        let long = [granted(1, 0, 10, 500, 1), granted(2, 19, 20, 30, 2), granted(3, 39, 40, 50, 3)];
        let verdict = check(&long);
        assert_eq!(verdict.overlaps.count, 2);
        assert_eq!(verdict.overlaps.examples[1].overlap_us, 10);
        assert_eq!(verdict.overlaps.examples[1].first.worker, 1);
    }

    #[test]
    fn tokens_grow_over_grants_that_follow_each_other() {
        let (first, gone) = (granted(1, 0, 10, 110, 7), released(1, 20));
        let second = |fence| vec![first.clone(), gone.clone(), granted(2, 30, 40, 140, fence)];
        for (fence, expected) in [(8, [0, 0]), (7, [0, 1]), (6, [1, 0]), (0, [0, 0])] {
            assert_eq!(breaches(&second(fence))[1..3], expected, "{fence}");
        }
        // The attempt began before the first hold ended: nothing is promised about the two.
        let meanwhile = [first.clone(), gone.clone(), granted(2, 15, 40, 140, 6)];
        assert_eq!(breaches(&meanwhile)[1..3], [0, 0]);
        // The largest of all that ended counts, not the last.
        let third = [first, gone, granted(2, 15, 40, 50, 6), granted(3, 60, 61, 160, 7)];
        assert_eq!(breaches(&third)[1..3], [0, 1]);
    }

    #[test]
    fn the_resource_sees_newer_grants_only() {
        let two = [granted(1, 0, 10, 20, 4), granted(2, 30, 40, 140, 5)];
        let with = |more: &[Entry]| check(&[&two[..], more].concat());
        assert!(with(&[written(1, 1), written(2, 2), written(2, 3)]).held());
        let late = with(&[written(1, 1), written(2, 2), written(1, 3)]);
        assert_eq!((late.disordered_writes.count, late.writes, late.held()), (1, 3, false));
        assert_eq!(late.disordered_writes.examples[0].second.worker, 1);
        let refused = with(&[written(1, 1), written(2, 2), written(1, 0)]);
        assert_eq!((refused.refused, refused.held()), (1, true));
        // A token that two got cannot keep the older one out.
        let twice = [granted(1, 0, 10, 90, 5), granted(2, 30, 40, 140, 5), written(2, 1), written(1, 2)];
        assert_eq!(breaches(&twice), [1, 0, 0, 1]);
        // Without tokens the time of the grant says what is newer.
        let unfenced = [granted(1, 0, 10, 20, 0), granted(2, 30, 40, 140, 0), written(2, 1), written(1, 2)];
        assert_eq!(breaches(&unfenced), [0, 0, 0, 1]);
    }

    #[test]
    fn numbers_are_counted() {
        let failed = |why: &str| then(3, Event::Failed { waited_us: 9, why: why.to_owned() });
        let entries = [
            granted(1, 0, 10, 110, 1),
            then(1, Event::Extended { grant: 1, valid_until_us: 150 }),
            then(1, Event::Lost { grant: 1, at_us: 20 }),
            granted(2, 30, 95, 140, 2),
            failed("contended"),
            failed("no_quorum"),
            failed("contended"),
            // About a grant that the history does not have: its line was lost with its worker.
            then(4, Event::Released { grant: 9, at_us: 1 }),
        ];
        let verdict = check(&entries);
        assert_eq!((verdict.acquisitions, verdict.extensions, verdict.lost, verdict.longest_wait_us), (2, 1, 1, 65));
        assert_eq!(verdict.failures, [("contended".to_owned(), 2), ("no_quorum".to_owned(), 1)].into());
        assert!(verdict.held());
        assert!(check(&[]).held());
    }

    #[test]
    fn a_line_comes_back() {
        let entry = granted(1, 0, 10, 110, 1);
        let line = serde_json::to_string(&entry).unwrap();
        assert!(line.starts_with(r#"{"worker":1,"event":"acquired","grant":1,"#), "{line}");
        assert_eq!(serde_json::from_str::<Entry>(&line).unwrap(), entry);
    }
}
