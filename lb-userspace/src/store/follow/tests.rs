//! The reading protocol: one row for each cause.

use super::*;
use crate::store::{
    access::Commit,
    object::{Digest, Edit, Key},
    state::State,
};

pub const TIMES: Times = Times { look_ms: 10_000, retry_min_ms: 100, retry_max_ms: 1_000 };

/// A store, a reader, and everything that the reader was told.
pub struct World {
    pub state: State,
    pub follow: Follow,
    pub now_ms: u64,
    told: Vec<Event>,
    /// What was told, applied.
    pub seen: Option<Snapshot>,
    origins: u8,
}

impl World {
    pub fn new(history_max: usize) -> Self {
        let follow = Follow::new(None, TIMES, 7, 0);
        let state = State::new(history_max);
        Self { state, follow, now_ms: 0, told: Vec::new(), seen: None, origins: 0 }
    }

    /// One that follows a store with `writes` changes.
    fn started(history_max: usize, writes: u32) -> Self {
        let mut world = Self::new(history_max);
        for at in 0..writes {
            world.write(&format!("service/s{at}"), Some("1"));
        }
        world.settle();
        world.told.clear();
        world
    }

    pub fn write(&mut self, key: &str, after: Option<&str>) -> Notice {
        let (expect, origin) = match self.state.head() {
            Some(head) => (Some(head.revision), head.origin),
            None => {
                self.origins += 1;
                (None, Digest::new([self.origins; 32]))
            }
        };
        let key = Key::new(key).unwrap();
        let before = self.state.snapshot().and_then(|s| s.objects.get(&key).cloned());
        let edits = vec![Edit { key, before, after: after.map(Into::into) }];
        let previous = expect.unwrap_or(Revision::origin(origin));
        let change = Change::new(previous, "writer", self.now_ms, "", edits);
        let commit = Commit { expect, origin, change: change.clone(), reseed: None, fence: None };
        if self.state.check(&commit, 0).is_ok() {
            self.state.commit(commit);
        }
        Notice::Changed { revision: change.revision, change: Some(Box::new(change)) }
    }

    pub fn restore(&mut self, copy: &Snapshot) -> Notice {
        let change = Change::new(copy.revision, "operator", self.now_ms, "", Vec::new());
        let expect = self.state.head().map(|head| head.revision);
        let commit = Commit {
            expect,
            origin: copy.origin,
            change: change.clone(),
            reseed: Some(copy.objects.clone()),
            fence: None,
        };
        self.state.check(&commit, 0).unwrap();
        self.state.commit(commit);
        Notice::Changed { revision: change.revision, change: Some(Box::new(change)) }
    }

    pub fn answer(&self, ask: Ask) -> Input {
        match ask {
            Ask::Subscribe => Input::Subscribed,
            Ask::Since(revision) => Input::Since(self.state.since(revision)),
            Ask::Snapshot => Input::Snapshot(self.state.snapshot()),
        }
    }

    pub fn hear(&mut self, notice: Notice) {
        self.handle(Input::Notice(notice));
    }

    pub fn handle(&mut self, input: Input) {
        self.follow.handle(input, self.now_ms);
        while let Some(event) = self.follow.event() {
            self.check(&event);
            self.told.push(event);
        }
        let adopted_nothing = matches!(self.told.last(), Some(Event::Vacant));
        assert!(adopted_nothing || self.seen.as_ref() == self.follow.copy(), "what is held was told");
    }

    /// Whatever is told is a chain, or comes with its alarm.
    fn check(&mut self, event: &Event) {
        let alarmed = matches!(self.told.last(), Some(Event::HistoryLost { taken: true, .. }));
        match event {
            Event::Delta(change) => {
                let seen = self.seen.as_mut().expect("a delta needs something before it");
                assert!(change.follows(&seen.revision), "{} does not follow {}", change.revision, seen.revision);
                change.apply(&mut seen.objects);
                seen.revision = change.revision;
            }
            Event::Snapshot { snapshot, cause } => {
                if let Some(seen) = &self.seen {
                    let ahead = snapshot.origin == seen.origin && snapshot.revision.number > seen.revision.number;
                    assert!(alarmed || (ahead && *cause == Resync::Trimmed), "{cause:?} without an alarm");
                    assert!(alarmed || !snapshot.objects.is_empty() || seen.objects.is_empty());
                }
                self.seen = Some(snapshot.clone());
            }
            Event::HistoryLost { have, .. } => assert_eq!(Some(*have), self.seen.as_ref().map(|seen| seen.revision)),
            Event::Vacant => self.seen = None,
            Event::Down(_) | Event::Up => {}
        }
    }

    /// Answers everything that is asked now.
    pub fn settle(&mut self) {
        for _ in 0..100 {
            let Some(ask) = self.follow.ask(self.now_ms) else { return };
            let input = self.answer(ask);
            self.handle(input);
        }
        panic!("it asks for ever");
    }

    /// Lets the time come to which the reader sleeps.
    pub fn tick(&mut self) {
        self.now_ms = self.now_ms.max(self.follow.deadline_ms());
        self.handle(Input::Tick);
        self.settle();
    }

    pub fn agrees(&self) -> bool {
        self.follow.copy() == self.state.snapshot().as_ref()
    }

    pub fn words(&self) -> Vec<String> {
        self.told
            .iter()
            .map(|event| match event {
                Event::Delta(change) => format!("delta {}", change.revision.number),
                Event::Snapshot { snapshot, cause } => {
                    format!("snapshot {} {}", snapshot.revision.number, cause.word())
                }
                Event::Vacant => "vacant".into(),
                Event::HistoryLost { loss, taken, .. } => format!("lost {loss:?} {taken}"),
                Event::Down(_) => "down".into(),
                Event::Up => "up".into(),
            })
            .collect()
    }
}

#[test]
fn the_first_look_is_a_snapshot() {
    let mut world = World::new(10);
    world.write("service/a", Some("1"));
    assert_eq!(world.follow.ask(0), Some(Ask::Subscribe));
    assert_eq!(world.follow.ask(0), None, "one at a time, and nothing before the confirmation");
    world.handle(Input::Subscribed);
    world.settle();
    assert_eq!(world.words(), ["snapshot 1 start", "up"]);
    assert!(world.agrees() && world.follow.is_up());
}

#[test]
fn a_store_without_a_write_is_vacant_until_the_first() {
    let mut world = World::new(10);
    world.settle();
    world.tick();
    assert_eq!(world.words(), ["vacant", "up"], "told once");
    let notice = world.write("service/a", Some("1"));
    world.hear(notice);
    world.settle();
    assert_eq!(world.words()[2..], ["snapshot 1 start"]);
}

#[test]
fn a_change_that_follows_is_applied_once_and_unasked() {
    let mut world = World::started(10, 1);
    let notice = world.write("service/b", Some("2"));
    world.hear(notice.clone());
    world.hear(notice);
    assert_eq!(world.follow.ask(world.now_ms), None);
    assert_eq!(world.words(), ["delta 2"]);
    assert!(world.agrees());
}

#[test]
fn a_gap_is_filled_from_the_kept_changes() {
    let mut world = World::started(10, 1);
    world.write("service/b", Some("2"));
    let second = world.write("service/c", Some("3"));
    world.hear(second);
    world.settle();
    assert_eq!(world.words(), ["delta 2", "delta 3"]);
    assert_eq!(world.follow.counters().resyncs(Resync::Gap), 1);
}

#[test]
fn what_was_missed_while_away_is_told_after_the_reconnect() {
    let mut world = World::started(10, 1);
    world.write("service/b", Some("2"));
    world.handle(Input::Lost("connection reset".into()));
    assert_eq!(world.follow.ask(world.now_ms), None, "not at once");
    for _ in 0..20 {
        world.now_ms = world.follow.deadline_ms();
        assert_eq!(world.follow.ask(world.now_ms), Some(Ask::Subscribe));
        let before_ms = world.now_ms;
        world.handle(Input::Lost("refused".into()));
        assert!(world.follow.deadline_ms() - before_ms <= TIMES.retry_max_ms);
    }
    world.now_ms = world.follow.deadline_ms();
    world.settle();
    assert_eq!(world.words(), ["down", "delta 2", "up"], "down is told once");
    assert_eq!(world.follow.counters().resyncs(Resync::Reconnect), 1);
}

#[test]
fn trimmed_changes_need_a_snapshot_and_no_alarm() {
    let mut world = World::started(2, 1);
    for at in 0..5 {
        world.write("service/b", Some(&at.to_string()));
    }
    let last = world.write("service/c", Some("3"));
    world.hear(last);
    world.settle();
    assert_eq!(world.words(), ["snapshot 7 trimmed"]);
}

#[test]
fn a_number_that_goes_back_is_taken_with_an_alarm() {
    let mut world = World::started(10, 2);
    let older = world.state.clone();
    let lost = world.write("service/c", Some("3"));
    world.hear(lost);
    world.state = older;
    world.tick();
    assert_eq!(world.words(), ["delta 3", "lost WentBack true", "snapshot 2 went_back"]);
    assert!(world.agrees() && world.follow.is_up());
}

#[test]
fn an_old_notice_alone_is_no_loss() {
    let mut world = World::started(10, 1);
    let first = world.write("service/b", Some("2"));
    let second = world.write("service/c", Some("3"));
    world.hear(first.clone());
    world.hear(second);
    world.hear(first);
    world.settle();
    assert_eq!(world.words(), ["delta 2", "delta 3"]);
    assert_eq!(world.follow.counters().losses, 0);
}

#[test]
fn the_same_number_with_another_digest_is_a_fork() {
    let mut world = World::started(10, 1);
    let older = world.state.clone();
    let lost = world.write("service/b", Some("2"));
    world.hear(lost);
    world.state = older;
    let other = world.write("service/b", Some("other"));
    world.hear(other);
    world.settle();
    assert_eq!(world.words(), ["delta 2", "lost Fork true", "snapshot 2 fork"]);
    // Also where the other history is already longer.
    let mut world = World::started(10, 1);
    let older = world.state.clone();
    let lost = world.write("service/b", Some("2"));
    world.hear(lost);
    world.state = older;
    world.write("service/b", Some("other"));
    let longer = world.write("service/c", Some("other"));
    world.hear(longer);
    world.settle();
    assert_eq!(world.words(), ["delta 2", "lost Fork true", "snapshot 3 fork"]);
}

#[test]
fn a_damaged_notice_is_asked_about() {
    let mut world = World::started(10, 1);
    let Notice::Changed { revision, change: Some(mut change) } = world.write("service/b", Some("2")) else { panic!() };
    change.message = "forged".into();
    world.hear(Notice::Changed { revision, change: Some(change) });
    assert!(world.told.is_empty(), "what does not chain is not applied");
    world.settle();
    assert_eq!(world.words(), ["delta 2"], "the store has the true one");
    assert_eq!(world.follow.counters().resyncs(Resync::Broken), 1);
}

#[test]
fn a_damaged_history_is_an_alarm() {
    let mut world = World::started(10, 1);
    world.write("service/b", Some("2"));
    world.now_ms = world.follow.deadline_ms();
    world.handle(Input::Tick);
    let Some(Ask::Since(from)) = world.follow.ask(world.now_ms) else { panic!() };
    let mut since = world.state.since(from);
    since.changes[0].author = "forged".into();
    world.handle(Input::Since(since));
    world.settle();
    assert_eq!(world.words(), ["lost Broken true", "snapshot 2 broken"]);
}

#[test]
fn the_timer_finds_what_no_notice_said() {
    let mut looks = Vec::new();
    let mut world = World::started(10, 1);
    for _ in 0..50 {
        let wait_ms = world.follow.deadline_ms() - world.now_ms;
        assert!((TIMES.look_ms * 8 / 10..=TIMES.look_ms * 12 / 10).contains(&wait_ms), "{wait_ms}");
        looks.push(wait_ms);
        world.tick();
    }
    looks.sort();
    assert!(looks[40] - looks[10] > TIMES.look_ms / 10, "jittered: {looks:?}");
    assert_eq!(world.follow.counters().resyncs(Resync::Timer), 0, "nothing was found");
    world.write("service/b", Some("2"));
    world.tick();
    assert_eq!(world.words(), ["delta 2"]);
    assert_eq!(world.follow.counters().resyncs(Resync::Timer), 1);
}

#[test]
fn a_lost_store_is_refused_until_it_is_put_back() {
    let mut world = World::started(10, 3);
    let copy = world.follow.copy().unwrap().clone();
    world.state = State::new(10);
    world.tick();
    world.tick();
    assert_eq!(world.words(), ["lost Vacant false"], "one alarm");
    assert_eq!((world.follow.copy(), world.follow.refused()), (Some(&copy), Some(Loss::Vacant)));
    assert!(!world.follow.is_up());
    // A single write into the emptied store must not take everything else down.
    let notice = world.write("service/only", Some("1"));
    world.hear(notice);
    world.settle();
    let notice = world.write("service/second", Some("1"));
    world.hear(notice);
    world.settle();
    assert_eq!(world.words()[1..], ["lost Origin false"]);
    assert_eq!(world.follow.copy(), Some(&copy));
    let notice = world.restore(&copy);
    world.hear(notice);
    world.settle();
    assert_eq!(world.words()[2..], ["delta 4"]);
    assert!(world.agrees() && world.follow.is_up() && world.follow.refused().is_none());
    assert_eq!(world.follow.copy().unwrap().objects, copy.objects);
}

#[test]
fn a_store_put_back_is_also_found_without_a_notice() {
    let mut world = World::started(10, 3);
    let copy = world.follow.copy().unwrap().clone();
    world.state = State::new(10);
    world.tick();
    world.restore(&copy);
    world.tick();
    assert_eq!(world.words(), ["lost Vacant false", "delta 4"]);
    assert!(world.follow.is_up());
}

#[test]
fn the_last_object_may_be_removed_but_not_lost() {
    let mut world = World::started(2, 1);
    let notice = world.write("service/s0", None);
    world.hear(notice);
    assert_eq!(world.words(), ["delta 2"]);
    assert!(world.follow.copy().unwrap().objects.is_empty(), "a change that chains says so");
    let mut world = World::started(2, 1);
    for at in 0..4 {
        world.write("service/b", Some(&at.to_string()));
    }
    world.write("service/b", None);
    world.write("service/s0", None);
    world.tick();
    assert_eq!(world.words(), ["lost Empty false"]);
    world.follow.adopt();
    world.settle();
    assert_eq!(world.words()[1..], ["lost Empty true", "snapshot 7 lost"]);
    assert!(world.agrees() && world.follow.is_up());
}

#[test]
fn what_was_begun_anew_is_taken_when_somebody_says_so() {
    let mut world = World::started(10, 3);
    world.state = State::new(10);
    world.write("service/new", Some("1"));
    world.tick();
    world.follow.adopt();
    world.settle();
    assert_eq!(world.words(), ["lost Origin false", "lost Origin true", "snapshot 1 lost"]);
    assert!(world.agrees() && world.follow.is_up());
    world.state = State::new(10);
    world.follow.adopt();
    world.tick();
    world.follow.adopt();
    world.settle();
    assert_eq!(world.words()[3..], ["lost Vacant false", "lost Vacant true", "vacant"]);
    assert_eq!(world.follow.copy(), None);
}

#[test]
fn large_changes_and_missed_news_are_asked_for() {
    let mut world = World::started(10, 1);
    let Notice::Changed { revision, .. } = world.write("service/b", Some("2")) else { panic!() };
    world.hear(Notice::Changed { revision, change: None });
    world.settle();
    world.write("service/c", Some("3"));
    world.hear(Notice::Missed);
    world.settle();
    assert_eq!(world.words(), ["delta 2", "delta 3"]);
    let counters = world.follow.counters();
    assert_eq!((counters.resyncs(Resync::Large), counters.resyncs(Resync::Missed)), (1, 1));
}

#[test]
fn an_answer_older_than_the_news_is_followed_by_another() {
    let mut world = World::started(10, 1);
    world.now_ms = world.follow.deadline_ms();
    world.handle(Input::Tick);
    let ask = world.follow.ask(world.now_ms).unwrap();
    let old = world.answer(ask);
    let notice = world.write("service/b", Some("2"));
    world.hear(notice);
    world.handle(old);
    world.settle();
    assert_eq!(world.words(), ["delta 2"]);
}

#[test]
fn a_store_that_does_not_answer_is_down_until_it_does() {
    let mut world = World::started(10, 1);
    world.write("service/b", Some("2"));
    world.now_ms = world.follow.deadline_ms();
    world.handle(Input::Tick);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert!(matches!(world.follow.ask(world.now_ms), Some(Ask::Since(_))));
        world.handle(Input::Failed("timed out".into()));
        pauses.push(world.follow.deadline_ms() - world.now_ms);
        assert_eq!(world.follow.ask(world.now_ms), None, "not at once");
        world.now_ms = world.follow.deadline_ms();
    }
    assert!(pauses[0] <= 200 && pauses[7] >= TIMES.retry_max_ms / 2 && pauses[7] <= TIMES.retry_max_ms, "{pauses:?}");
    world.settle();
    assert_eq!(world.words(), ["down", "delta 2", "up"]);
}

#[test]
fn one_answer_holds_so_many_changes_and_the_rest_comes_next() {
    let mut world = World::started(1_000, 1);
    for at in 0..600 {
        world.write("service/b", Some(&at.to_string()));
    }
    world.handle(Input::Lost("away".into()));
    world.tick();
    assert_eq!(world.follow.counters().deltas, 600);
    assert_eq!(world.words().last().unwrap(), "up", "up only when all of it is told");
    assert!(world.agrees());
}

#[test]
fn a_copy_from_an_earlier_run_goes_on_where_it_stopped() {
    let mut world = World::started(10, 2);
    let copy = world.follow.copy().unwrap().clone();
    world.write("service/b", Some("2"));
    world.follow = Follow::new(Some(copy.clone()), TIMES, 1, world.now_ms);
    world.settle();
    assert_eq!(world.words(), ["delta 3", "up"]);
    world.follow = Follow::new(Some(copy), TIMES, 1, world.now_ms);
    world.state = State::new(10);
    world.seen = world.follow.copy().cloned();
    world.settle();
    assert_eq!(world.words()[2..], ["lost Vacant false", "up"]);
}
