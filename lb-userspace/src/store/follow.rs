//! How a reader stays true to a store whose news get lost: the reading protocol as a state machine.
//!
//! [pure] Messages and `now_ms` (any monotonic clock) come in, what to ask and what to tell comes out. The shell beside it
//! (`feed`) subscribes, asks and sleeps.
//!
//! A published change is only a wake-up. The reader subscribes, waits for the confirmation, then asks what happened since its
//! revision. It applies changes that chain to what it has. On anything else (a gap, a reconnect, a number that goes
//! back, a number with another digest, a change whose digest is wrong, and by a jittered timer anyway) it asks again, and
//! where the kept changes do not lead from its revision to the store's, it takes a snapshot.
//!
//! Invariants: what is told is a chain: each delta follows the revision told before it; a state that replaces the one held
//! without following it is either told with its alarm or refused with its alarm. Refused are an empty store and one of
//! another origin: both mean that the store was lost, and taking them would take services down that were never removed.

mod message;

use super::{
    access::{Head, Notice, Since, Snapshot},
    object::{Change, Revision},
};
pub use message::{Ask, Counters, Event, Input, Loss, Resync, Times};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down { retry_at_ms: u64 },
    Asked,
    Live,
}

/// A reader.
#[derive(Debug)]
pub struct Follow {
    times: Times,
    copy: Option<Snapshot>,
    link: Link,
    /// The store is read: what was missed is told.
    up: bool,
    /// Told that it is down.
    told_down: bool,
    /// The store has been read once.
    read: bool,
    /// Why to ask next.
    wanted: Option<Resync>,
    /// Ask for everything, whatever is held.
    whole: bool,
    /// A loss that a look at the changes found; the snapshot is judged by it.
    suspected: Option<Loss>,
    /// An ask is out.
    asked: Option<Resync>,
    /// Heard while an ask was out.
    heard: Option<Heard>,
    failures: u32,
    retry_at_ms: u64,
    look_at_ms: u64,
    /// The loss that was told last, and where the store stood.
    refused: Option<(Loss, Option<Head>)>,
    adopt: bool,
    events: std::collections::VecDeque<Event>,
    counters: Counters,
    random: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// One revision, once or more often.
    One(Revision),
    /// Several, or none that is known.
    Many,
}

impl Follow {
    /// A reader that holds `copy`, or nothing yet. `seed` makes its pauses differ from those of others.
    pub fn new(copy: Option<Snapshot>, times: Times, seed: u64, now_ms: u64) -> Self {
        Self {
            times,
            copy,
            link: Link::Down { retry_at_ms: now_ms },
            up: false,
            told_down: false,
            read: false,
            wanted: Some(Resync::Start),
            whole: false,
            suspected: None,
            asked: None,
            heard: None,
            failures: 0,
            retry_at_ms: now_ms,
            look_at_ms: u64::MAX,
            refused: None,
            adopt: false,
            events: std::collections::VecDeque::new(),
            counters: Counters::default(),
            random: seed,
        }
    }

    /// What is held.
    pub fn copy(&self) -> Option<&Snapshot> {
        self.copy.as_ref()
    }

    /// The loss because of which the store's state is refused.
    pub fn refused(&self) -> Option<Loss> {
        self.refused.map(|(loss, _)| loss)
    }

    /// Whether the store is read and what is held is what it has.
    pub fn is_up(&self) -> bool {
        self.up && self.refused.is_none()
    }

    /// How often what happened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Somebody said that the store's state, which is refused, is right: takes it, whatever it is.
    pub fn adopt(&mut self) {
        if self.refused.is_some() {
            self.adopt = true;
            self.want(Resync::Lost);
        }
    }

    /// What to tell next.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What to do now.
    pub fn ask(&mut self, now_ms: u64) -> Option<Ask> {
        match self.link {
            Link::Down { retry_at_ms } if now_ms >= retry_at_ms => {
                self.link = Link::Asked;
                return Some(Ask::Subscribe);
            }
            Link::Down { .. } | Link::Asked => return None,
            Link::Live => {}
        }
        if self.asked.is_some() || now_ms < self.retry_at_ms {
            return None;
        }
        let cause = self.wanted.take()?;
        if cause != Resync::Timer {
            self.counters.count(cause);
        }
        self.asked = Some(cause);
        self.heard = None;
        Some(match &self.copy {
            Some(copy) if !self.whole && !self.adopt => Ask::Since(copy.revision),
            _ => Ask::Snapshot,
        })
    }

    /// When [`Input::Tick`] is due, if nothing else comes before.
    pub fn deadline_ms(&self) -> u64 {
        match self.link {
            Link::Down { retry_at_ms } => retry_at_ms,
            Link::Asked => u64::MAX,
            Link::Live if self.asked.is_some() => u64::MAX,
            Link::Live if self.wanted.is_some() => self.retry_at_ms,
            Link::Live => self.look_at_ms,
        }
    }

    /// Takes one message.
    pub fn handle(&mut self, input: Input, now_ms: u64) {
        match input {
            Input::Subscribed => {
                self.link = Link::Live;
                self.retry_at_ms = now_ms;
                self.want(if self.read { Resync::Reconnect } else { Resync::Start });
            }
            Input::Lost(why) => {
                self.asked = None;
                self.whole = false;
                self.suspected = None;
                let retry_at_ms = now_ms + self.pause();
                self.link = Link::Down { retry_at_ms };
                self.down(why);
            }
            Input::Failed(why) => {
                if let Some(cause) = self.asked.take() {
                    self.want(cause);
                }
                self.retry_at_ms = now_ms + self.pause();
                self.down(why);
            }
            Input::Notice(notice) => self.notice(notice),
            Input::Since(since) => {
                if let Some(cause) = self.asked.take() {
                    self.since(since, cause, now_ms);
                }
            }
            Input::Snapshot(snapshot) => {
                if let Some(cause) = self.asked.take() {
                    self.snapshot(snapshot, cause, now_ms);
                }
            }
            Input::Tick => {
                if self.link == Link::Live && self.asked.is_none() && self.wanted.is_none() && now_ms >= self.look_at_ms
                {
                    self.want(Resync::Timer);
                }
            }
        }
    }

    fn want(&mut self, cause: Resync) {
        self.wanted.get_or_insert(cause);
    }

    fn down(&mut self, why: String) {
        self.failures = self.failures.saturating_add(1);
        self.up = false;
        if !self.told_down {
            self.told_down = true;
            self.events.push_back(Event::Down(why));
        }
    }

    fn notice(&mut self, notice: Notice) {
        let (revision, change) = match notice {
            Notice::Record(_) => return,
            Notice::Missed if self.asked.is_some() => {
                self.heard = Some(Heard::Many);
                return;
            }
            Notice::Missed => return self.want(Resync::Missed),
            Notice::Changed { revision, change } => (revision, change),
        };
        if self.asked.is_some() {
            // The answer may be older or newer than this.
            self.heard = match self.heard {
                None => Some(Heard::One(revision)),
                Some(Heard::One(heard)) if heard == revision => self.heard,
                Some(_) => Some(Heard::Many),
            };
            return;
        }
        let Some(copy) = &self.copy else { return self.want(Resync::Start) };
        if revision == copy.revision {
            return;
        }
        match change {
            // The chain proves it, whatever was thought of the store before.
            Some(change) if change.revision == revision && change.follows(&copy.revision) => {
                self.delta(*change);
                self.refused = None;
            }
            Some(change) if change.previous == copy.revision => self.want(Resync::Broken),
            None if revision.number == copy.revision.number.saturating_add(1) => self.want(Resync::Large),
            _ if revision.number > copy.revision.number => self.want(Resync::Gap),
            _ if revision.number == copy.revision.number => self.want(Resync::Fork),
            // An old notice that comes late looks the same; asking is cheap.
            _ => self.want(Resync::WentBack),
        }
    }

    fn since(&mut self, since: Since, cause: Resync, now_ms: u64) {
        let Some(copy) = &self.copy else { return self.want(Resync::Start) };
        let have = copy.revision;
        let verdict = match since.head {
            None => Err((Resync::Lost, Some(Loss::Vacant))),
            Some(head) if head.origin != copy.origin => Err((Resync::Lost, Some(Loss::Origin))),
            Some(head) if head.revision == have => Ok(Vec::new()),
            Some(head) if head.revision.number < have.number => Err((Resync::WentBack, Some(Loss::WentBack))),
            Some(head) if head.revision.number == have.number => Err((Resync::Fork, Some(Loss::Fork))),
            Some(_) => chain(have, since.changes),
        };
        match verdict {
            Ok(changes) => {
                self.whole = false;
                self.suspected = None;
                self.refused = None;
                if cause == Resync::Timer && !changes.is_empty() {
                    self.counters.count(cause);
                }
                let reached = changes.last().map_or(have, |change| change.revision);
                for change in changes {
                    self.delta(change);
                }
                // One answer holds only so many changes.
                let more = since.head.is_some_and(|head| head.revision.number > reached.number);
                self.done(more.then_some(Resync::Gap), now_ms);
            }
            Err((cause, loss)) => {
                self.suspected = loss;
                self.whole = true;
                self.wanted = Some(cause);
            }
        }
    }

    fn snapshot(&mut self, snapshot: Option<Snapshot>, cause: Resync, now_ms: u64) {
        self.whole = false;
        let suspected = self.suspected.take();
        let adopt = std::mem::take(&mut self.adopt);
        let Some(copy) = &self.copy else {
            match snapshot {
                Some(snapshot) => self.take(snapshot, cause),
                None if self.read => {}
                None => self.events.push_back(Event::Vacant),
            }
            return self.done(None, now_ms);
        };
        let have = copy.revision;
        let found = snapshot.as_ref().map(Snapshot::head);
        let empty = snapshot.as_ref().is_none_or(|snapshot| snapshot.objects.is_empty());
        let ahead = snapshot
            .as_ref()
            .is_some_and(|snapshot| snapshot.origin == copy.origin && snapshot.revision.number > have.number);
        if ahead && !adopt && matches!(suspected, Some(Loss::Vacant | Loss::Origin | Loss::WentBack)) {
            // The store moved on after the look, or was put back: only its changes say whether it follows what is held.
            return self.done(Some(Resync::Gap), now_ms);
        }
        let loss = match &snapshot {
            None => Some(Loss::Vacant),
            Some(snapshot) if snapshot.origin != copy.origin => Some(Loss::Origin),
            Some(snapshot) if snapshot.revision == have => None,
            Some(snapshot) if snapshot.revision.number < have.number => Some(Loss::WentBack),
            Some(snapshot) if snapshot.revision.number == have.number => Some(Loss::Fork),
            Some(_) => suspected.or((empty && !copy.objects.is_empty()).then_some(Loss::Empty)),
        };
        // A reader that holds nothing has nothing to protect.
        let guarded = !copy.objects.is_empty() && !adopt;
        let refuse = guarded && (empty || matches!(loss, Some(Loss::Vacant | Loss::Origin)));
        match (loss, snapshot) {
            (None, Some(snapshot)) => {
                if snapshot.revision != have {
                    self.take(snapshot, cause);
                }
                self.refused = None;
            }
            (Some(loss), snapshot) => {
                let taken = !refuse && (snapshot.is_some() || adopt);
                let known = self.refused.is_some_and(|(before, head)| {
                    before == loss && head.map(|head| head.origin) == found.map(|head| head.origin)
                });
                if taken || !known {
                    self.counters.losses += 1;
                    self.events.push_back(Event::HistoryLost { loss, have, found, taken });
                }
                self.refused = (!taken).then_some((loss, found));
                match snapshot {
                    Some(snapshot) if taken => self.take(snapshot, cause),
                    None if taken => {
                        self.copy = None;
                        self.events.push_back(Event::Vacant);
                    }
                    _ => {}
                }
            }
            (None, None) => {}
        }
        self.done(None, now_ms);
    }

    fn take(&mut self, snapshot: Snapshot, cause: Resync) {
        self.counters.snapshots += 1;
        self.copy = Some(snapshot.clone());
        self.events.push_back(Event::Snapshot { snapshot, cause });
    }

    fn delta(&mut self, change: Change) {
        if let Some(copy) = &mut self.copy {
            change.apply(&mut copy.objects);
            copy.revision = change.revision;
            self.counters.deltas += 1;
            self.events.push_back(Event::Delta(Box::new(change)));
        }
    }

    /// An answer was taken; `more` if it was known to be incomplete.
    fn done(&mut self, more: Option<Resync>, now_ms: u64) {
        self.read = true;
        self.failures = 0;
        let held = self.copy.as_ref().map(|copy| copy.revision);
        let unheard = match self.heard.take() {
            Some(Heard::One(heard)) if Some(heard) == held => None,
            heard => heard.map(|_| Resync::Gap),
        };
        if let Some(cause) = more.or(unheard) {
            self.want(cause);
        }
        if more.is_none() {
            self.told_down = false;
            if !self.up {
                self.up = true;
                self.events.push_back(Event::Up);
            }
        }
        let (low, span) = (self.times.look_ms * 4 / 5, self.times.look_ms * 2 / 5);
        self.look_at_ms = now_ms + low + self.draw(span);
    }

    fn pause(&mut self) -> u64 {
        let doublings = self.failures.min(16);
        let longest = self.times.retry_min_ms.saturating_mul(1 << doublings).min(self.times.retry_max_ms).max(1);
        longest / 2 + self.draw(longest / 2)
    }

    /// 0 to `max`. Splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
    fn draw(&mut self, max: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % (max + 1)
    }
}

/// The changes that lead on from `have`, or why a snapshot is needed.
fn chain(have: Revision, changes: Vec<Change>) -> Result<Vec<Change>, (Resync, Option<Loss>)> {
    match changes.first() {
        None => return Err((Resync::Trimmed, None)),
        Some(first) if first.previous.number > have.number => return Err((Resync::Trimmed, None)),
        Some(first) if first.previous != have => return Err((Resync::Fork, Some(Loss::Fork))),
        Some(_) => {}
    }
    let mut at = have;
    for change in &changes {
        if !change.follows(&at) {
            return Err((Resync::Broken, Some(Loss::Broken)));
        }
        at = change.revision;
    }
    Ok(changes)
}

#[cfg(test)]
mod schedule;
#[cfg(test)]
mod tests;
