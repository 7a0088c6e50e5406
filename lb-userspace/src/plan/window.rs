//! Windows: what becomes of the slots that a change moves, so that the flows on them stay where they are.
//!
//! A slot that changes is announced (planned changes only), then moving, then residual, then settled; `lb_core::flow` says what a
//! packet meets in each state. Owns: the transitions. Refuses to know: rings, maps, clocks (it is told `now_s`).
//!
//! Invariants: a change of a slot that is announced or moving keeps its owner and its time; where it makes current and owner the
//! same, the slot is residual, never settled at once, for records of others exist; a residual slot settles only after a look
//! at the flow table that began [`GRACE_S`] after it became residual and found no record for another backend; records that were
//! written under a ring of other size or inputs name slots of that one, and while there can be any, no record at all is asked for.

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

    /// Whether a slot is announced, and not due to move at `now_s`.
    pub fn is_announced(&self, times: Times, now_s: u64) -> bool {
        let is = |state: State, since_s: u64| state == State::Announced && now_s < since_s + times.announce_s;
        match self {
            Self::Settled => false,
            Self::Whole { state, since_s } => is(*state, *since_s),
            Self::Slots(slots) => slots.iter().any(|u| is(u.state, u.since_s)),
        }
    }

    /// Whether a slot names the backend as owner.
    pub fn owned_by(&self, backend: u32) -> bool {
        matches!(self, Self::Slots(slots) if slots.iter().any(|u| u.owner == backend && holds_owner(u.state)))
    }

    /// The window of a ring whose slots change from `old` to `new`, of the same size and under the same inputs. `planned` says whether
    /// the change of slots that a backend has is announced: not if it is down.
    #[must_use]
    pub fn change(&self, old: &[u32], new: &[u32], planned: &dyn Fn(u32) -> bool, times: Times, now_s: u64) -> Self {
        let whole = matches!(self, Self::Whole { .. });
        if matches!(self, Self::Whole { state: State::Announced | State::Moving, .. }) || (whole && old == new) {
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
                // One that did not change and has its owner was announced to record every flow.
                Some(u) if holds_owner(u.state) && u.owner == new && old != new => {
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
    /// backend, also where they were not recorded because the slot was residual.
    #[must_use]
    pub fn begin_tracking(&self, current: &[u32], times: Times, now_s: u64) -> Self {
        let known = match self {
            _ if times.announce_s == 0 => return self.clone(),
            Self::Whole { state, .. } if holds_owner(*state) => return self.clone(),
            Self::Slots(slots) => slots.as_slice(),
            Self::Settled | Self::Whole { .. } => &[],
        };
        let mut known = known.iter().peekable();
        let all = (0..).zip(current).map(|(slot, &owner)| {
            let announced = Unsettled { slot, owner, state: State::Announced, since_s: now_s };
            known.next_if(|u| u.slot == slot).filter(|u| holds_owner(u.state)).copied().unwrap_or(announced)
        });
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

    /// Moves on what is due. `records` is the last look at the flow table, if any, and from `aligned_s` on every record names a slot of
    /// this ring; `current` says the backend of each. With `tracked`, records are always asked, and slots settle whatever is recorded.
    #[must_use]
    pub fn tick(
        &self,
        (service, aligned_s): (u32, u64),
        times: Times,
        now_s: u64,
        tracked: bool,
        records: Option<&dyn Records>,
        current: &[u32],
    ) -> Self {
        let next = |state: State, since_s: u64| match state {
            State::Announced if now_s >= since_s + times.announce_s => Some(State::Moving),
            State::Moving if now_s >= since_s + times.window_s => Some(State::Residual),
            _ => None,
        };
        let slots = current.len() as u32;
        let current = |slot: u32| current.get(slot as usize).copied().unwrap_or(0);
        let settles = |slot: u32, since_s: u64| {
            let looked = records.filter(|r| r.at_s() >= since_s + GRACE_S);
            looked.is_some_and(|r| {
                let own = || r.at_s() >= aligned_s && !r.others(service, slot, current(slot));
                tracked || !r.any(service) || own()
            })
        };
        match self {
            Self::Settled => Self::Settled,
            Self::Whole { state: State::Residual, since_s } => {
                let left = (0..slots).filter(|slot| !settles(*slot, *since_s));
                let left: Vec<Unsettled> = left
                    .map(|slot| Unsettled { slot, owner: current(slot), state: State::Residual, since_s: *since_s })
                    .collect();
                if left.len() == slots as usize { self.clone() } else { Self::from(left) }
            }
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
                    (State::Residual, None) => (!settles(u.slot, u.since_s)).then_some(*u),
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

    /// When the last slot stops recording flows, if no change comes; `None` where none records.
    pub fn ends_s(&self, times: Times) -> Option<u64> {
        let end = |state: State, since_s: u64| match state {
            State::Announced => Some(since_s + times.announce_s + times.window_s),
            State::Moving => Some(since_s + times.window_s),
            State::Settled | State::Residual => None,
        };
        match self {
            Self::Settled => None,
            Self::Whole { state, since_s } => end(*state, *since_s),
            Self::Slots(slots) => slots.iter().filter_map(|u| end(u.state, u.since_s)).max(),
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

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { announce_s: 4, window_s: 100 };

    /// A look that found records of other backends on some slots.
    struct Look(u64, Vec<u32>);

    impl Records for Look {
        fn at_s(&self) -> u64 {
            self.0
        }
        fn others(&self, _: u32, slot: u32, _: u32) -> bool {
            self.1.contains(&slot)
        }
        fn any(&self, _: u32) -> bool {
            !self.1.is_empty()
        }
        fn names(&self, _: u32) -> bool {
            false
        }
    }

    fn tick(window: &Window, now_s: u64, look: Option<&Look>, current: &[u32]) -> Window {
        window.tick((1, 0), TIMES, now_s, false, look.map(|look| look as &dyn Records), current)
    }

    fn change(window: &Window, old: &[u32], new: &[u32], now_s: u64) -> Window {
        window.change(old, new, &|_| true, TIMES, now_s)
    }

    #[test]
    fn a_slot_goes_its_way() {
        let (old, new) = ([7, 7, 8], [7, 9, 8]);
        let announced = change(&Window::Settled, &old, &new, 10);
        assert_eq!(
            [0, 1, 2].map(|slot| announced.at(slot)).map(|(_, state)| state),
            [State::Settled, State::Announced, State::Settled]
        );
        assert_eq!(announced.at(1).0, 7);
        assert_eq!(announced.due_s(TIMES), Some(14));
        assert_eq!(tick(&announced, 13, None, &new), announced);
        let moving = tick(&announced, 14, None, &new);
        assert_eq!((moving.at(1), moving.due_s(TIMES)), ((7, State::Moving), Some(114)));
        let residual = tick(&moving, 114, None, &new);
        assert_eq!((residual.at(1).1, residual.due_s(TIMES)), (State::Residual, None));
        assert!(residual.waits_for_records());
        // A look that began too early says nothing, one that found others keeps it.
        for look in [Look(115, vec![]), Look(200, vec![1])] {
            assert_eq!(tick(&residual, 300, Some(&look), &new), residual);
        }
        assert_eq!(tick(&residual, 300, Some(&Look(116, vec![2])), &new), Window::Settled);
    }

    #[test]
    fn a_later_change_keeps_owner_and_time() {
        let first = change(&Window::Settled, &[1], &[2], 10);
        let moving = tick(&first, 14, None, &[2]);
        let second = change(&moving, &[2], &[3], 50);
        assert_eq!((second.at(0), second.due_s(TIMES)), ((1, State::Moving), Some(114)));
        // Back at its owner: records of others exist, so it is residual first.
        let back = change(&second, &[3], &[1], 60);
        assert_eq!(back.at(0).1, State::Residual);
        // And a change of a residual slot begins anew, with the backend that it had.
        assert_eq!(change(&back, &[1], &[4], 70).at(0), (1, State::Announced));
    }

    #[test]
    fn what_is_down_is_not_announced() {
        let window = Window::Settled.change(&[1, 2], &[3, 3], &|id| id == 1, TIMES, 0);
        assert_eq!([window.at(0).1, window.at(1).1], [State::Announced, State::Moving]);
        let at_once = Times { announce_s: 0, ..TIMES };
        assert_eq!(Window::Settled.change(&[1], &[3], &|_| true, at_once, 0).at(0).1, State::Moving);
    }

    #[test]
    fn another_shape_moves_every_slot_and_keeps_its_time() {
        let whole = change(&Window::Settled, &[1], &[2], 0).replace(TIMES, 20);
        assert_eq!(whole, Window::Whole { state: State::Announced, since_s: 20 });
        let moving = tick(&whole, 24, None, &[5, 6]);
        assert_eq!(moving.replace(TIMES, 50), moving, "the first shape stays the owner");
        assert_eq!(change(&moving, &[5, 6], &[6, 6], 60), moving);
        let residual = tick(&moving, 124, None, &[6, 6]);
        assert_eq!(tick(&residual, 130, Some(&Look(126, vec![])), &[6, 6]), Window::Settled);
        // A change of a ring that is residual as a whole moves single slots.
        let mixed = change(&residual, &[6, 6], &[7, 6], 130);
        assert_eq!([mixed.at(0), mixed.at(1)], [(6, State::Announced), (6, State::Residual)]);
    }

    #[test]
    fn tracking_begins_announced_and_ends_residual() {
        let begun = Window::Settled.begin_tracking(&[1, 2], TIMES, 0);
        assert_eq!([begun.at(0), begun.at(1)], [(1, State::Announced), (2, State::Announced)]);
        let over = begun.tick((1, 0), TIMES, 4, true, None, &[1, 2]);
        assert_eq!(over.counts(2), [0, 0, 2], "nothing moves");
        let ended = over.end_tracking(&[1, 2], 9);
        assert!(ended.waits_for_records());
        assert_eq!(Window::Settled.end_tracking(&[1, 2], 9), Window::Whole { state: State::Residual, since_s: 9 });
    }

    /// One record of service 1: its slot and its backend.
    struct One(u64, u32, u32);

    impl Records for One {
        fn at_s(&self) -> u64 {
            self.0
        }

        fn others(&self, _: u32, slot: u32, current: u32) -> bool {
            slot == self.1 && current != self.2
        }

        fn any(&self, _: u32) -> bool {
            true
        }

        fn names(&self, backend: u32) -> bool {
            backend == self.2
        }
    }

    #[test]
    fn records_of_another_ring_keep_every_slot_residual() {
        let current = [7, 8, 9];
        let residual = Window::Whole { state: State::Residual, since_s: 100 };
        assert_eq!(residual.change(&current, &current, &|_| true, TIMES, 105), residual, "nothing changed");
        // The record names slot 0 and the backend of slot 0, but its flow may have any slot now.
        let tick = |at_s| residual.tick((1, 150), TIMES, at_s, false, Some(&One(at_s, 0, 7)), &current);
        assert_eq!(tick(149), residual);
        assert_eq!(tick(150), Window::Settled);
        // As parts of it, the same holds.
        let changed = residual.change(&current, &[7, 8, 7], &|_| true, TIMES, 105);
        let tick = |at_s| changed.tick((1, 150), TIMES, at_s, false, Some(&One(at_s, 0, 9)), &[7, 8, 7]).counts(3);
        assert_eq!((tick(108), tick(150)), ([1, 0, 2], [0, 1, 1]));
    }

    #[test]
    fn tracking_is_announced_on_every_slot_that_recorded_nothing_until_its_time_is_over() {
        let current = [7, 8];
        let residual = Unsettled { slot: 0, owner: 9, state: State::Residual, since_s: 90 };
        for before in [Window::Settled, Window::Slots(vec![residual])] {
            let begun = before.begin_tracking(&current, TIMES, 100);
            let planned = begun.change(&current, &current, &|_| true, TIMES, 102);
            assert_eq!(planned.counts(2), [2, 0, 0], "a plan that changes nothing");
            let over = planned.tick((1, 0), TIMES, 104, true, None, &current);
            assert_eq!(over.counts(2), [0, 0, 2]);
        }
    }
}
