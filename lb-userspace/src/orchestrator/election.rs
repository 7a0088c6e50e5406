//! Who is the master: a record in the store that names a holder and an epoch, and the state machine of one candidate.
//!
//! Pure: takes `now` and answers, owns no clock and no connection. Rules:
//!
//! - The record changes by compare-and-set only. A candidate may take it when it has seen it unchanged for a whole lease on
//!   its *own* clock, or when its holder released it. No clock of the store takes part, so none can end a lease early.
//! - A record that is absent is first put there without a holder, and then waited for like any other: a store that lost its
//!   history may have forgotten a master that still acts, and "absent" has no version that would tell one absence from another.
//! - A master acts until [`Periods::act`] after it *sent* its last acknowledged and replicated write of the record. After a
//!   pause it finds that time over, whatever it was about to do.
//! - The epoch grows with each holder. Holders are unique per start of a process, for an epoch alone can repeat when a
//!   fail-over loses it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    clock::{BootTime, Periods},
    record::{Outcome, Version},
};

/// The master record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who holds it: name of the process and a word that is new at each start; empty for nobody.
    pub holder: String,
    /// Grows with each holder.
    pub epoch: u64,
    /// Grows with each renewal.
    pub beat: u64,
    /// The holder gave it back.
    #[serde(default)]
    pub released: bool,
}

/// A write that the election wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// The record to write.
    pub lease: Lease,
    /// Version that it must replace; `None`: it must be absent.
    pub expect: Option<Version>,
}

#[derive(Clone, Debug)]
enum State {
    /// Somebody else holds the record, or nobody. `since`: from when on it was seen as it is; `fresh`: it was looked at after
    /// our last write.
    Following { seen: Option<(Version, Lease)>, since: Option<BootTime>, fresh: bool },
    /// The record is ours as far as we know.
    Leading { lease: Lease, version: Version, act_until: BootTime, renew_at: BootTime },
}

/// One candidate.
#[derive(Clone, Debug)]
pub struct Election {
    me: String,
    periods: Periods,
    state: State,
    /// Highest epoch ever seen.
    epoch_seen: u64,
    /// The write under way, and when it was sent.
    sent: Option<(BootTime, Want)>,
    /// Does not stand for election before that.
    abstains_until: BootTime,
    /// The record is to be given back at the next chance.
    steps_down: bool,
}

impl Election {
    /// A candidate that has seen nothing yet. `me` must be new at each start of the process.
    pub fn new(me: impl Into<String>, periods: Periods) -> Self {
        Self {
            me: me.into(),
            periods,
            state: State::Following { seen: None, since: None, fresh: false },
            epoch_seen: 0,
            sent: None,
            abstains_until: BootTime::default(),
            steps_down: false,
        }
    }

    /// This candidate's name as holder.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// The epoch in which this process may act at `now`.
    pub fn may_act(&self, now: BootTime) -> Option<u64> {
        match &self.state {
            State::Leading { lease, act_until, .. } if now < *act_until && !self.steps_down => Some(lease.epoch),
            _ => None,
        }
    }

    /// The epoch that this process holds as far as it knows, whether or not it may act.
    pub fn epoch_held(&self) -> Option<u64> {
        match &self.state {
            State::Leading { lease, .. } => Some(lease.epoch),
            State::Following { .. } => None,
        }
    }

    /// Gives the record back at the next chance, and leaves the next two leases to others.
    pub fn step_down(&mut self, now: BootTime) {
        self.abstains_until = now + self.periods.lease * 2;
        self.steps_down = matches!(self.state, State::Leading { .. });
    }

    /// Stands for no election any more, as a process that is about to end.
    pub fn retire(&mut self) {
        self.abstains_until = BootTime(Duration::MAX);
        self.steps_down = matches!(self.state, State::Leading { .. });
    }

    /// The write that is due at `now`, if none is under way.
    pub fn want(&self, now: BootTime) -> Option<Want> {
        if self.sent.is_some() {
            return None;
        }
        match &self.state {
            State::Leading { lease, version, renew_at, .. } => {
                let due = self.steps_down || now >= *renew_at;
                let lease = Lease { beat: lease.beat.wrapping_add(1), released: self.steps_down, ..lease.clone() };
                due.then_some(Want { lease, expect: Some(*version) })
            }
            State::Following { fresh: false, .. } => None,
            State::Following { seen: None, .. } => {
                let nobody = Lease { holder: String::new(), epoch: self.epoch_seen, beat: 0, released: false };
                Some(Want { lease: nobody, expect: None })
            }
            State::Following { seen: Some((version, seen)), since, .. } => {
                let over = now.since((*since)?) >= self.periods.lease;
                if now < self.abstains_until || !(seen.released || over) {
                    return None;
                }
                let epoch = self.epoch_seen.saturating_add(1);
                let lease = Lease { holder: self.me.clone(), epoch, beat: 0, released: false };
                Some(Want { lease, expect: Some(*version) })
            }
        }
    }

    /// The earliest time at which [`Election::want`] can say something new.
    pub fn wake_at(&self) -> Option<BootTime> {
        match &self.state {
            _ if self.sent.is_some() => None,
            State::Leading { renew_at, .. } => Some(*renew_at),
            State::Following { fresh: false, .. } => None,
            State::Following { since, .. } => since.map(|since| (since + self.periods.lease).max(self.abstains_until)),
        }
    }

    /// `want` has been sent at `now`.
    pub fn sent(&mut self, want: Want, now: BootTime) {
        self.sent = Some((now, want));
    }

    /// What became of the write under way.
    pub fn answered(&mut self, outcome: &Outcome, now: BootTime) {
        let Some((sent_at, want)) = self.sent.take() else { return };
        match outcome {
            Outcome::Done { version, .. } if want.lease.released || want.lease.holder.is_empty() => {
                self.follow(Some((*version, want.lease)), now);
            }
            Outcome::Done { version, replicated } => {
                let before = match &self.state {
                    State::Leading { act_until, .. } => *act_until,
                    State::Following { .. } => BootTime::default(),
                };
                // What no replica has may be forgotten by a fail-over: it gives no right to act.
                let act_until = if *replicated { (sent_at + self.periods.act).max(before) } else { before };
                let renew_at = if *replicated { sent_at + self.periods.renew } else { now + self.periods.timeout };
                self.epoch_seen = self.epoch_seen.max(want.lease.epoch);
                self.state = State::Leading { lease: want.lease, version: *version, act_until, renew_at };
            }
            // Somebody else wrote, or an answer of ours was lost: the next look at the record tells. Until then nobody
            // acts on a record that may be another's.
            Outcome::Refused => match &mut self.state {
                State::Leading { act_until, renew_at, .. } => {
                    *act_until = BootTime::default();
                    *renew_at = now + self.periods.renew;
                }
                State::Following { fresh, .. } => *fresh = false,
            },
            Outcome::Unknown => match &mut self.state {
                State::Leading { renew_at, .. } => *renew_at = now,
                State::Following { fresh, .. } => *fresh = false,
            },
        }
    }

    /// The record as it was read; the answer came at `now`.
    pub fn observe(&mut self, record: Option<(Version, &Lease)>, now: BootTime) {
        if let Some((_, lease)) = record {
            self.epoch_seen = self.epoch_seen.max(lease.epoch);
        }
        let record = record.map(|(version, lease)| (version, lease.clone()));
        match (&mut self.state, record) {
            (State::Leading { lease: ours, version, renew_at, .. }, Some((seen, lease)))
                if lease.holder == ours.holder && lease.epoch == ours.epoch && !lease.released =>
            {
                if *version != seen {
                    // A renewal whose answer was lost, or one that a fail-over took back: renew on what is there.
                    *version = seen;
                    ours.beat = ours.beat.max(lease.beat);
                    *renew_at = now;
                }
            }
            (State::Leading { .. }, record) => self.follow(record, now),
            (State::Following { .. }, Some((version, lease))) if lease.holder == self.me && !lease.released => {
                // An acquisition whose answer was lost. It gives no right to act before a renewal is acknowledged.
                self.state = State::Leading { lease, version, act_until: BootTime::default(), renew_at: now };
            }
            (State::Following { seen, since, fresh }, record) => {
                *fresh = true;
                if *seen != record || since.is_none() {
                    *since = Some(now);
                }
                *seen = record;
            }
        }
    }

    fn follow(&mut self, seen: Option<(Version, Lease)>, now: BootTime) {
        self.steps_down = false;
        self.state = State::Following { seen, since: Some(now), fresh: true };
    }
}

#[cfg(test)]
mod tests {
    use super::{super::clock::PERIODS, *};

    fn at(ms: u64) -> BootTime {
        BootTime(Duration::from_millis(ms))
    }

    fn lease(holder: &str, epoch: u64, beat: u64) -> Lease {
        Lease { holder: holder.into(), epoch, beat, released: false }
    }

    fn done(version: u64) -> Outcome {
        Outcome::Done { version: Version(version), replicated: true }
    }

    /// A candidate that saw the record without a holder at `ms`.
    fn candidate(ms: u64) -> Election {
        let mut one = Election::new("a/1", PERIODS);
        one.observe(Some((Version(1), &lease("", 0, 0))), at(ms));
        one
    }

    /// A master by the shortest way, whose record was sent at `ms`.
    fn master(ms: u64) -> Election {
        let mut one = candidate(ms - 10_000);
        let want = one.want(at(ms)).unwrap();
        assert_eq!(want, Want { lease: lease("a/1", 1, 0), expect: Some(Version(1)) });
        one.sent(want, at(ms));
        one.answered(&done(2), at(ms + 50));
        one
    }

    #[test]
    fn an_absent_record_is_put_there_and_left_alone_for_a_lease() {
        let mut one = Election::new("a/1", PERIODS);
        assert_eq!(one.want(at(99_000)), None, "nothing read yet");
        one.observe(None, at(1_000));
        let want = one.want(at(1_000)).unwrap();
        assert_eq!(want, Want { lease: lease("", 0, 0), expect: None });
        one.sent(want, at(1_000));
        one.answered(&done(1), at(1_010));
        assert_eq!((one.epoch_held(), one.want(at(11_009)), one.wake_at()), (None, None, Some(at(11_010))));
        assert_eq!(one.want(at(11_010)).unwrap().lease, lease("a/1", 1, 0));
    }

    #[test]
    fn what_was_refused_is_not_tried_again_without_a_look() {
        let mut one = candidate(0);
        for outcome in [Outcome::Refused, Outcome::Unknown] {
            let want = one.want(at(20_000)).unwrap();
            one.sent(want, at(20_000));
            one.answered(&outcome, at(20_010));
            assert_eq!((one.want(at(20_010)), one.wake_at()), (None, None));
            one.observe(Some((Version(1), &lease("", 0, 0))), at(20_020));
        }
    }

    #[test]
    fn a_record_that_moves_is_not_taken() {
        let mut one = Election::new("b/1", PERIODS);
        for second in 0..60 {
            one.observe(Some((Version(second / 3), &lease("a/1", 4, second / 3))), at(second * 1000));
            assert_eq!(one.want(at(second * 1000 + 900)), None);
        }
        // It stands still from second 57 on, on this clock.
        assert_eq!(one.want(at(66_999)), None);
        let want = one.want(at(67_000)).unwrap();
        assert_eq!(want, Want { lease: lease("b/1", 5, 0), expect: Some(Version(19)) });
    }

    #[test]
    fn a_released_record_is_taken_at_once() {
        let mut one = Election::new("b/1", PERIODS);
        one.observe(Some((Version(7), &Lease { released: true, ..lease("a/1", 4, 9) })), at(0));
        assert_eq!(one.want(at(0)).unwrap().lease.epoch, 5);
    }

    #[test]
    fn acting_ends_seven_seconds_after_the_renewal_was_sent() {
        let mut one = master(20_000);
        assert_eq!(
            (one.may_act(at(20_050)), one.may_act(at(26_999)), one.may_act(at(27_000))),
            (Some(1), Some(1), None)
        );
        assert_eq!(one.want(at(22_999)), None);
        let want = one.want(at(23_000)).unwrap();
        one.sent(want.clone(), at(23_000));
        assert_eq!(one.want(at(23_500)), None, "one at a time");
        // The answer comes late: time counts from the sending.
        one.answered(&done(2), at(29_000));
        assert_eq!((one.may_act(at(29_999)), one.may_act(at(30_000))), (Some(1), None));
        assert_eq!(want.lease.beat, 1);
    }

    #[test]
    fn after_a_pause_nothing_is_done() {
        let one = master(20_000);
        assert_eq!(one.may_act(at(3_600_000)), None);
    }

    #[test]
    fn what_is_not_replicated_gives_no_right() {
        let mut one = candidate(0);
        let want = one.want(at(10_000)).unwrap();
        one.sent(want, at(10_000));
        one.answered(&Outcome::Done { version: Version(1), replicated: false }, at(10_010));
        assert_eq!((one.may_act(at(10_011)), one.epoch_held()), (None, Some(1)));
        let want = one.want(at(11_010)).unwrap();
        one.sent(want, at(11_010));
        one.answered(&done(2), at(11_020));
        assert_eq!(one.may_act(at(11_021)), Some(1));
    }

    #[test]
    fn a_refused_renewal_ends_acting() {
        let mut one = master(20_000);
        let want = one.want(at(23_000)).unwrap();
        one.sent(want, at(23_000));
        one.answered(&Outcome::Refused, at(23_010));
        assert_eq!(one.may_act(at(23_011)), None);
        one.observe(Some((Version(5), &lease("b/1", 2, 0))), at(23_100));
        assert_eq!((one.epoch_held(), one.want(at(33_000))), (None, None));
        assert_eq!(one.want(at(33_100)).unwrap().lease.epoch, 3);
    }

    #[test]
    fn a_lost_answer_is_cleared_up_by_the_next_look() {
        let mut one = master(20_000);
        let want = one.want(at(23_000)).unwrap();
        one.sent(want.clone(), at(23_000));
        one.answered(&Outcome::Unknown, at(24_000));
        one.observe(Some((Version(3), &want.lease)), at(24_100));
        let again = one.want(at(24_100)).unwrap();
        assert_eq!((again.expect, again.lease.beat), (Some(Version(3)), 2));
        // An acquisition whose answer was lost is one's own, but gives no right before it is renewed.
        let mut one = candidate(0);
        let want = one.want(at(10_000)).unwrap();
        one.sent(want.clone(), at(10_000));
        one.answered(&Outcome::Unknown, at(11_000));
        one.observe(Some((Version(1), &want.lease)), at(11_100));
        assert_eq!((one.epoch_held(), one.may_act(at(11_100))), (Some(1), None));
        assert_eq!(one.want(at(11_100)).unwrap().expect, Some(Version(1)));
    }

    #[test]
    fn a_process_started_anew_does_not_take_its_old_record_for_its_own() {
        let mut one = Election::new("a/2", PERIODS);
        one.observe(Some((Version(3), &lease("a/1", 1, 3))), at(0));
        assert_eq!((one.epoch_held(), one.want(at(9_999))), (None, None));
        assert_eq!(one.want(at(10_000)).unwrap().lease.epoch, 2);
    }

    #[test]
    fn stepping_down_frees_the_record_and_leaves_it_to_others() {
        let mut one = master(20_000);
        one.step_down(at(21_000));
        assert_eq!(one.may_act(at(21_000)), None, "no act between the wish and the record");
        let want = one.want(at(21_000)).unwrap();
        assert!(want.lease.released);
        one.sent(want, at(21_000));
        one.answered(&done(2), at(21_010));
        assert_eq!((one.epoch_held(), one.want(at(40_999))), (None, None));
        assert_eq!(one.want(at(41_000)).unwrap().lease.epoch, 2, "nobody else wanted it");
    }

    #[test]
    fn an_epoch_that_a_fail_over_lost_is_not_given_again_by_who_saw_it() {
        let mut one = Election::new("b/1", PERIODS);
        one.observe(Some((Version(9), &lease("a/1", 6, 0))), at(0));
        one.observe(Some((Version(8), &lease("c/1", 5, 4))), at(1_000));
        assert_eq!(one.want(at(11_000)).unwrap().lease.epoch, 7);
    }
}
