//! The ring of a service in a plan: what it was built from, its window, and where it lies.
//!
//! A ring whose slots change their backends is written to fresh lines; one whose slots only change their states is stored anew where
//! it lies. Refuses to know: other services and the order of stores.

use lb_core::abi::{
    backend::{FLAG_DOWN, FLAG_VALID},
    ring::{Extent, Inputs, LINE_SLOTS, Slot, State},
};

use super::{
    PlanError, PresentBackend, PresentService, WantedService, Window,
    diff::{Draft, Moves},
    entries::common_factor,
    members,
    op::Op,
    present::RingInputs,
    rebuild::digest,
    ring::{self, Member},
    window::GRACE_S,
};

/// What becomes of a service's rings.
pub(super) struct Rings {
    /// Packed ring.
    pub ring: u64,
    /// Packed previous ring.
    pub previous: u64,
    /// What the ring was built from.
    pub inputs: RingInputs,
    /// Slots that are not settled.
    pub window: Window,
    /// What the members were made from.
    pub members: Vec<(u32, u32)>,
    /// Packed extent of the members.
    pub members_word: u64,
    /// From when on every record names a slot of this ring.
    pub aligned_s: u64,
    /// Extents that nothing names any more.
    pub freed: Vec<Extent>,
}

impl Draft<'_> {
    /// The ring of a service; `backends` are those of `wanted`, in the same order.
    pub(super) fn ring(
        &mut self,
        wanted: &WantedService,
        backends: &[PresentBackend],
        old: Option<&PresentService>,
    ) -> Result<Rings, PlanError> {
        let factor = common_factor(&wanted.backends);
        let list: Vec<Member> = backends
            .iter()
            .zip(&wanted.backends)
            .filter(|(_, w)| w.weight > 0)
            .map(|(b, w)| Member { key: b.key, weight: w.weight / factor, slot: b.id })
            .collect();
        let pairs: Vec<(u32, u32)> = list.iter().map(|m| (m.slot, m.weight)).collect();
        let inputs = RingInputs::Members(pairs.clone());
        let (had_word, previous_word) = old.map_or((0, 0), |o| (o.entry.ring, o.entry.previous_ring));
        let had = Extent::unpack(had_word);
        let mut rings = Rings {
            ring: had_word,
            previous: previous_word,
            inputs,
            window: old.map_or(Window::Settled, |o| o.window.clone()),
            members: Vec::new(),
            members_word: 0,
            aligned_s: old.map_or(0, |o| o.aligned_s),
            freed: Vec::new(),
        };
        self.members(wanted, pairs, old, &mut rings)?;
        let policy = &wanted.policy;
        // A ring without members keeps its size: flows of what drains still pass.
        let size = if list.is_empty() { had.slots } else { wanted.ring_size };
        let same_shape = had.slots == size && (size == 0 || Inputs::unpack(had_word) == policy.inputs);
        let known = same_shape && old.is_some_and(|o| o.ring == rings.inputs);
        let fresh = if known { None } else { Some(self.slots(wanted, size, &list)) };
        let fresh =
            fresh.filter(|slots| !(same_shape && old.is_some_and(|o| o.ring == RingInputs::Adopted(digest(slots)))));
        let was_tracked = old.is_some_and(PresentService::tracks_all);
        let nothing = fresh.is_none() && was_tracked == policy.track_all && rings.window == Window::Settled;
        if nothing || size == 0 {
            return Ok(rings);
        }
        let held: Vec<u32> = match old {
            Some(_) if had.slots > 0 => {
                (self.seen.ring)(had).unwrap_or_default().iter().map(|word| Slot(*word).current()).collect()
            }
            _ => Vec::new(),
        };
        let current = fresh.as_deref().unwrap_or(&held);
        if let Some(old) = old.filter(|_| fresh.is_some() && !same_shape && had.slots > 0) {
            // A record says where its flow has its slot when the flow sends, or expires.
            let silent_s = old.entry.established_s.max(policy.established_s);
            rings.aligned_s = self.seen.now_s + u64::from(silent_s) + GRACE_S;
        }
        let before = rings.window.clone();
        rings.window = if policy.windows {
            self.window(wanted, old, &held, current, (same_shape, rings.aligned_s))
        } else {
            Window::Settled
        };
        self.note_moves(wanted, &held, fresh.as_deref(), same_shape);

        // The ring that says who the owners are.
        let reads_previous = matches!(rings.window, Window::Whole { state: State::Announced | State::Moving, .. });
        let shape_changed = fresh.is_some() && !same_shape && had.slots > 0;
        let kept = reads_previous && shape_changed && !(previous_word != 0 && before == rings.window);
        if kept {
            rings.freed.push(Extent::unpack(previous_word));
            rings.previous = had_word;
        } else if !reads_previous {
            rings.freed.push(Extent::unpack(previous_word));
            rings.previous = 0;
        }
        // Flows that are recorded pass through the ring of a service that records every flow, also once it is settled.
        let recorded =
            policy.track_all && old.is_some_and(|o| self.seen.records.is_none_or(|records| records.any(o.id)));
        let drained = rings.window == Window::Settled && !recorded && current.iter().all(|id| *id == 0);
        if drained {
            rings.freed.push(had);
            rings.ring = 0;
            return Ok(rings);
        }
        let slots: Box<[u32]> =
            (0..).zip(current).map(|(slot, &id)| Slot::new(id, rings.window.at(slot).1, policy.track_all).0).collect();
        let owners: Box<[u32]> = match &rings.window {
            Window::Slots(_) => (0..size).map(|slot| rings.window.at(slot).0).collect(),
            Window::Settled | Window::Whole { .. } => Box::default(),
        };
        if fresh.is_none() {
            if rings.window != before || was_tracked != policy.track_all {
                self.rings.push(Op::RingStates { extent: had, slots, owners });
                self.summary.rings_moved_on += 1;
            }
            return Ok(rings);
        }
        let extent = self.extent(wanted, size)?;
        self.rings.push(Op::PutRing { extent, slots, owners });
        self.summary.rings_built += 1;
        if !kept {
            rings.freed.push(had);
        }
        rings.ring = extent.pack(policy.inputs);
        Ok(rings)
    }

    fn slots(&self, wanted: &WantedService, size: u32, list: &[Member]) -> Box<[u32]> {
        if list.is_empty() {
            return vec![0; size as usize].into();
        }
        ring::build(self.next.secrets.ring_seed, wanted.ring_size, list)
    }

    /// The window after this change, and after what is due.
    fn window(
        &self,
        wanted: &WantedService,
        old: Option<&PresentService>,
        held: &[u32],
        current: &[u32],
        (same_shape, aligned_s): (bool, u64),
    ) -> Window {
        let (now_s, times, tracked) = (self.seen.now_s, wanted.policy.times, wanted.policy.track_all);
        let Some(old) = old.filter(|_| !held.is_empty()) else { return Window::Settled };
        let lives = |id: u32| {
            old.backends.iter().any(|b| b.id == id && b.entry.flags & (FLAG_VALID | FLAG_DOWN) == FLAG_VALID)
                && !self.is_down(id)
        };
        let mut window = match old.tracks_all() {
            false if tracked => old.window.begin_tracking(held, times, now_s),
            true if !tracked => old.window.end_tracking(held, now_s),
            _ => old.window.clone(),
        };
        window =
            if !same_shape { window.replace(times, now_s) } else { window.change(held, current, &lives, times, now_s) };
        window.tick((old.id, aligned_s), times, now_s, tracked, self.seen.records, current)
    }

    /// Slots that change, for people.
    fn note_moves(&mut self, wanted: &WantedService, held: &[u32], fresh: Option<&[u32]>, same_shape: bool) {
        let Some(fresh) = fresh.filter(|_| !held.is_empty()) else { return };
        let changed = (0..).zip(held.iter().zip(fresh)).filter(|(_, (old, new))| old != new);
        let slots: Vec<(u32, u32)> = changed.map(|(slot, (old, _))| (slot, *old)).collect();
        let of = fresh.len() as u32;
        self.moves.push(Moves { service: wanted.key, slots, of, whole: !same_shape });
    }

    fn extent(&mut self, wanted: &WantedService, slots: u32) -> Result<Extent, PlanError> {
        let line_slots = LINE_SLOTS as u64;
        self.next.arena.take(slots).ok_or_else(|| PlanError::Arena {
            service: wanted.name.clone(),
            slots,
            free: u64::from(self.next.arena.free_lines()) * line_slots,
            quarantined: self.next.quarantined_slots(),
            limit: u64::from(self.next.arena.lines()) * line_slots,
        })
    }

    /// The members of a chosen algorithm, on fresh lines where they changed.
    fn members(
        &mut self,
        wanted: &WantedService,
        pairs: Vec<(u32, u32)>,
        old: Option<&PresentService>,
        rings: &mut Rings,
    ) -> Result<(), PlanError> {
        let had = old.map_or(0, |o| o.entry.members);
        let same_algo = old.is_some_and(|o| o.entry.algo() == wanted.policy.algo);
        if same_algo && old.is_some_and(|o| o.members.as_ref() == Some(&pairs)) {
            (rings.members, rings.members_word) = (pairs, had);
            return Ok(());
        }
        let list = members::members(wanted.policy.algo, &pairs);
        rings.members = pairs;
        rings.freed.push(Extent::unpack(had));
        if !list.is_empty() {
            let extent = self.extent(wanted, list.len() as u32)?;
            let slots = list.into_iter().map(|id| Slot::settled(id).0).collect();
            self.rings.push(Op::PutRing { extent, slots, owners: Box::default() });
            rings.members_word = extent.pack(Inputs::Tuple);
        }
        Ok(())
    }
}
