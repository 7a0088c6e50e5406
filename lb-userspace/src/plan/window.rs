//! Windows: what becomes of the slots that a change moves, so that the flows on them stay where they are.
//!
//! A slot that changes is announced (planned changes only), then moving, then residual, then settled; `lb_core::flow` says what a
//! packet meets in each state. Owns: the transitions. Refuses to know: rings, maps, clocks (it is told `now_s`).
//!
//! Invariants: a change of a slot that is announced or moving keeps its owner and its time; where it makes current and owner the
//! same, the slot is residual, never settled at once, for records of others exist; a residual slot settles only after a look
//! at the flow table that began [`GRACE_S`] after it became residual and found no record for another backend.

use lb_core::abi::ring::State;

/// Seconds after a slot stopped recording until a look at the flow table counts: every packet that still recorded has left by then.
pub const GRACE_S: u64 = 2;

/// A slot in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsettled {
    /// Its number.
    pub slot: u32,
    /// Backend id that has the flows which nobody recorded.
    pub owner: u32,
    /// Announced, moving or residual.
    pub state: State,
    /// When it entered that state.
    pub since_s: u64,
}

/// The slots of a service that are not settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Window {
    /// None.
    #[default]
    Settled,
    /// All of them alike. While they are announced or moving, their owners are what the service's previous ring says.
    Whole {
        /// Announced, moving or residual.
        state: State,
        /// When they entered it.
        since_s: u64,
    },
    /// Some, in the order of their numbers.
    Slots(Vec<Unsettled>),
}

/// How long the states of a service last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Announced.
    pub announce_s: u64,
    /// Moving: the longest silence that a flow survives.
    pub window_s: u64,
}

/// What a look at the flow table found out.
pub trait Records {
    /// When it began; what happened since is not in it.
    fn at_s(&self) -> u64;
    /// Whether a record of this service and slot names a backend other than `current`.
    fn others(&self, service: u32, slot: u32, current: u32) -> bool;
    /// Whether there is a record of this service.
    fn any(&self, service: u32) -> bool;
    /// Whether any record names the backend.
    fn names(&self, backend: u32) -> bool;
}

/// The state in which a change begins.
fn first(planned: bool, times: Times) -> State {
    if planned && times.announce_s > 0 { State::Announced } else { State::Moving }
}

fn holds_owner(state: State) -> bool {
    matches!(state, State::Announced | State::Moving)
}

impl Window {
    /// Owner (0 where it stands in the previous ring, or in none) and state of a slot.
    pub fn at(&self, slot: u32) -> (u32, State) {
        match self {
            Self::Settled => (0, State::Settled),
            Self::Whole { state, .. } => (0, *state),
            Self::Slots(slots) => {
                let at = slots.binary_search_by_key(&slot, |u| u.slot).ok();
                at.and_then(|at| slots.get(at)).map_or((0, State::Settled), |u| (u.owner, u.state))
            }
        }
    }

    /// Slots in each of announced, moving and residual, of a ring of `slots`.
    pub fn counts(&self, slots: u32) -> [u32; 3] {
        let mut counts = [0; 3];
        let mut count = |state: State, n: u32| match state {
            State::Settled => {}
            State::Announced => counts[0] += n,
            State::Moving => counts[1] += n,
            State::Residual => counts[2] += n,
        };
        match self {
            Self::Settled => {}
            Self::Whole { state, .. } => count(*state, slots),
            Self::Slots(list) => list.iter().for_each(|u| count(u.state, 1)),
        }
        counts
    }

    /// Whether a slot names the backend as owner.
    pub fn owned_by(&self, backend: u32) -> bool {
        matches!(self, Self::Slots(slots) if slots.iter().any(|u| u.owner == backend && holds_owner(u.state)))
    }

    /// The window of a ring whose slots change from `old` to `new`, of the same size and under the same inputs. `planned` says whether
    /// the change of slots that a backend has is announced: not if it is down.
    #[must_use]
    pub fn change(&self, old: &[u32], new: &[u32], planned: &dyn Fn(u32) -> bool, times: Times, now_s: u64) -> Self {
        if let Self::Whole { state: State::Announced | State::Moving, .. } = self {
            return self.clone();
        }
        let mut known = match self {
            Self::Slots(slots) => slots.as_slice(),
            Self::Settled | Self::Whole { .. } => &[],
        }
        .iter()
        .peekable();
        let mut slots = Vec::new();
        for (slot, (&old, &new)) in (0..).zip(old.iter().zip(new)) {
            let before = match self {
                Self::Whole { state, since_s } => {
                    Some(Unsettled { slot, owner: old, state: *state, since_s: *since_s })
                }
                Self::Settled | Self::Slots(_) => known.next_if(|u| u.slot == slot).copied(),
            };
            match before {
                Some(u) if holds_owner(u.state) && u.owner == new => {
                    slots.push(Unsettled { state: State::Residual, since_s: now_s, ..u });
                }
                Some(u) if holds_owner(u.state) => slots.push(u),
                _ if old != new => {
                    slots.push(Unsettled { slot, owner: old, state: first(planned(old), times), since_s: now_s });
                }
                Some(u) => slots.push(u),
                None => {}
            }
        }
        Self::from(slots)
    }

    /// The window of a ring of another size or under other inputs, whose owners the ring before it says.
    #[must_use]
    pub fn replace(&self, times: Times, now_s: u64) -> Self {
        match self {
            Self::Whole { state, .. } if holds_owner(*state) => self.clone(),
            _ => Self::Whole { state: first(true, times), since_s: now_s },
        }
    }

    /// The window of a service that begins to record every flow: until repeated SYNs are over, new flows of a slot stay with its
    /// backend.
    #[must_use]
    pub fn begin_tracking(&self, current: &[u32], times: Times, now_s: u64) -> Self {
        if *self != Self::Settled || times.announce_s == 0 {
            return self.clone();
        }
        let all =
            (0..).zip(current).map(|(slot, &owner)| Unsettled { slot, owner, state: State::Announced, since_s: now_s });
        Self::from(all.collect::<Vec<_>>())
    }

    /// The window of a service that no longer records every flow: its records speak until they are gone.
    #[must_use]
    pub fn end_tracking(&self, current: &[u32], now_s: u64) -> Self {
        let Self::Slots(slots) = self else {
            let residual = Self::Whole { state: State::Residual, since_s: now_s };
            return if *self == Self::Settled { residual } else { self.clone() };
        };
        let mut known = slots.iter().peekable();
        let all = (0..).zip(current).map(|(slot, &owner)| {
            let settled = Unsettled { slot, owner, state: State::Residual, since_s: now_s };
            known.next_if(|u| u.slot == slot).copied().unwrap_or(settled)
        });
        Self::from(all.collect::<Vec<_>>())
    }

    /// Moves on what is due. `records` is the last look at the flow table, if any; `current` says the backend of a slot. With
    /// `tracked`, records are always asked, and slots settle whatever is recorded.
    #[must_use]
    pub fn tick(
        &self,
        service: u32,
        times: Times,
        now_s: u64,
        tracked: bool,
        records: Option<&dyn Records>,
        current: &dyn Fn(u32) -> u32,
    ) -> Self {
        let next = |state: State, since_s: u64| match state {
            State::Announced if now_s >= since_s + times.announce_s => Some(State::Moving),
            State::Moving if now_s >= since_s + times.window_s => Some(State::Residual),
            _ => None,
        };
        let looked = |since_s: u64| records.filter(|r| r.at_s() >= since_s + GRACE_S);
        match self {
            Self::Settled => Self::Settled,
            Self::Whole { state: State::Residual, since_s } => match looked(*since_s) {
                // A record may name the slot that its flow had in an earlier ring: none at all is asked for.
                Some(records) if tracked || !records.any(service) => Self::Settled,
                _ => self.clone(),
            },
            Self::Whole { state, since_s } => match next(*state, *since_s) {
                Some(state) => Self::Whole { state, since_s: now_s },
                None => self.clone(),
            },
            Self::Slots(slots) => {
                let moved = slots.iter().filter_map(|u| match (u.state, next(u.state, u.since_s)) {
                    // It was announced that every flow will be recorded, and nothing moves.
                    (_, Some(State::Moving)) if u.owner == current(u.slot) => {
                        Some(Unsettled { state: State::Residual, since_s: now_s, ..*u })
                    }
                    (_, Some(state)) => Some(Unsettled { state, since_s: now_s, ..*u }),
                    (State::Residual, None) => {
                        let settled = match looked(u.since_s) {
                            Some(records) => tracked || !records.others(service, u.slot, current(u.slot)),
                            None => false,
                        };
                        (!settled).then_some(*u)
                    }
                    (_, None) => Some(*u),
                });
                Self::from(moved.collect::<Vec<_>>())
            }
        }
    }

    /// When [`Window::tick`] has something to do next without a look at the flow table.
    pub fn due_s(&self, times: Times) -> Option<u64> {
        let due = |state: State, since_s: u64| match state {
            State::Announced => Some(since_s + times.announce_s),
            State::Moving => Some(since_s + times.window_s),
            State::Settled | State::Residual => None,
        };
        match self {
            Self::Settled => None,
            Self::Whole { state, since_s } => due(*state, *since_s),
            Self::Slots(slots) => slots.iter().filter_map(|u| due(u.state, u.since_s)).min(),
        }
    }

    /// Whether a look at the flow table could settle something.
    pub fn waits_for_records(&self) -> bool {
        match self {
            Self::Settled => false,
            Self::Whole { state, .. } => *state == State::Residual,
            Self::Slots(slots) => slots.iter().any(|u| u.state == State::Residual),
        }
    }
}

impl From<Vec<Unsettled>> for Window {
    fn from(slots: Vec<Unsettled>) -> Self {
        if slots.is_empty() { Self::Settled } else { Self::Slots(slots) }
    }
}
