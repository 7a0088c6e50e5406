//! The words of the reading protocol: what goes into the machine and what comes out.
//!
//! [pure] Data only.

use crate::store::{
    access::{Head, Notice, Since, Snapshot},
    object::{Change, Revision},
};

/// Times of a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Between two looks without any news; each is drawn from 80 to 120 % of it.
    pub look_ms: u64,
    /// First pause after a failure; doubles with each further one, drawn from half of it to all.
    pub retry_min_ms: u64,
    /// Longest pause.
    pub retry_max_ms: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self { look_ms: 10_000, retry_min_ms: 100, retry_max_ms: 5_000 }
    }
}

/// Why the store was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resync {
    /// First look.
    Start,
    /// The subscription was made anew.
    Reconnect,
    /// A change was announced whose text is too large for a notice.
    Large,
    /// A number was left out.
    Gap,
    /// The changes after the revision held are no longer kept.
    Trimmed,
    /// The store's number is below the one held.
    WentBack,
    /// The same number has another digest.
    Fork,
    /// A change's digest is not the one of its content.
    Broken,
    /// The store is of another origin, or empty.
    Lost,
    /// Nothing was heard, but the slow look found something.
    Timer,
    /// The reader was too slow for the news.
    Missed,
}

impl Resync {
    /// Every cause.
    pub const ALL: [Self; 11] = [
        Self::Start,
        Self::Reconnect,
        Self::Large,
        Self::Gap,
        Self::Trimmed,
        Self::WentBack,
        Self::Fork,
        Self::Broken,
        Self::Lost,
        Self::Timer,
        Self::Missed,
    ];

    /// The word for metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Reconnect => "reconnect",
            Self::Large => "large",
            Self::Gap => "gap",
            Self::Trimmed => "trimmed",
            Self::WentBack => "went_back",
            Self::Fork => "fork",
            Self::Broken => "broken",
            Self::Lost => "lost",
            Self::Timer => "timer",
            Self::Missed => "missed",
        }
    }
}

/// How a history was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// The store is as if nothing was ever written.
    Vacant,
    /// The store began anew, with another origin.
    Origin,
    /// The store's number is below the one held.
    WentBack,
    /// The same number has another digest.
    Fork,
    /// A change's digest is not the one of its content.
    Broken,
    /// No object is left, and no kept change says how that came.
    Empty,
}

impl Loss {
    /// What happened, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Vacant => "the store is empty, as if it had never been written",
            Self::Origin => "the store was begun anew",
            Self::WentBack => "the store lost its newest changes",
            Self::Fork => "the store has another history than the one followed so far",
            Self::Broken => "a change in the store is damaged",
            Self::Empty => "the store has no objects left, and no change that says why",
        }
    }
}

/// What the shell tells the machine.
#[derive(Clone, Debug)]
pub enum Input {
    /// The subscription is confirmed.
    Subscribed,
    /// The subscription broke, or cannot be made.
    Lost(String),
    /// News.
    Notice(Notice),
    /// The answer to [`Ask::Since`].
    Since(Since),
    /// The answer to [`Ask::Snapshot`].
    Snapshot(Option<Snapshot>),
    /// The store did not answer the last ask.
    Failed(String),
    /// The deadline has come.
    Tick,
}

/// What the machine wants to be done. One at a time; the next one comes when its answer went in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Subscribe, then [`Input::Subscribed`] or [`Input::Lost`].
    Subscribe,
    /// Changes, then [`Input::Since`] or [`Input::Failed`].
    Since(Revision),
    /// Everything, then [`Input::Snapshot`] or [`Input::Failed`].
    Snapshot,
}

/// What the reader is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A change that follows what was told before.
    Delta(Box<Change>),
    /// All objects, in place of what was told before.
    Snapshot {
        /// The objects with their revision.
        snapshot: Snapshot,
        /// Why not by changes.
        cause: Resync,
    },
    /// The store was read, and nothing was ever written in it. Only before the first snapshot.
    Vacant,
    /// The store's history is not the one that was followed: an alarm.
    HistoryLost {
        /// How.
        loss: Loss,
        /// The revision held.
        have: Revision,
        /// Where the store stands.
        found: Option<Head>,
        /// Whether the store's state is taken, which the next event holds; else the one held stays until the store is put
        /// back (`weir config restore`) or declared right ([`super::Follow::adopt`]).
        taken: bool,
    },
    /// The store cannot be read.
    Down(String),
    /// The store is read again, and what was missed has been told.
    Up,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Changes told.
    pub deltas: u64,
    /// Snapshots told.
    pub snapshots: u64,
    /// Alarms.
    pub losses: u64,
    /// Resynchronisations by [`Resync::ALL`]'s order; looks by timer only where they found something.
    pub resyncs: [u64; Resync::ALL.len()],
}

impl Counters {
    /// Resynchronisations for one cause.
    pub fn resyncs(&self, cause: Resync) -> u64 {
        self.resyncs.get(cause as usize).copied().unwrap_or(0)
    }

    pub(super) fn count(&mut self, cause: Resync) {
        if let Some(count) = self.resyncs.get_mut(cause as usize) {
            *count += 1;
        }
    }
}
