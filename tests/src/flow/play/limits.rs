//! Limits of connections: which servers are full when a connection begins, and whether one of them may be given it all the same.
//!
//! Refuses to know which server a connection should have: only that one that is full gets none while the ring has another one near.

use anyhow::{Context as _, Result, ensure};
use lb_core::abi::{
    backend::{FLAG_DOWN, FLAG_DRAINING, FLAG_VALID},
    ring::{Extent, Slot},
};
use lb_userspace::{dataplane::apply::Memory as _, plan::PresentService};

use super::{
    super::place::{Place, Sent},
    Play,
};

/// Slots behind a flow's own among which the program looks for a server that is not full.
const RING_TRIES: usize = 16;

/// What a server has when a connection begins.
pub(super) struct Held {
    server: u8,
    id: u32,
    connections: u64,
    full: bool,
    takes_new: bool,
}

impl<P: Place> Play<'_, P> {
    /// A service as the running agent knows that the maps hold it.
    pub(super) fn present_of(&self, service: u8) -> Option<&PresentService> {
        let key = &self.services.get(usize::from(service))?.setup.key;
        self.engine.as_ref()?.present().services().find(|(of, _)| *of == key).map(|(_, service)| service)
    }

    fn connections(&self, id: u32) -> u64 {
        let word = self.place.active(id);
        (word & u64::from(u32::MAX)) + (word >> 32)
    }

    /// What the servers of a service have; nothing where none has a limit, or nobody knows what the maps hold.
    pub(super) fn held(&self, service: u8) -> Vec<Held> {
        let Some(present) = self.present_of(service).filter(|_| !self.waiting) else { return Vec::new() };
        if present.backends.iter().all(|backend| backend.entry.max_connections == 0) {
            return Vec::new();
        }
        let held = present.backends.iter().map(|backend| {
            let (entry, connections) = (&backend.entry, self.connections(backend.id));
            let [.., server] = entry.dst_mac;
            Held {
                server,
                id: backend.id,
                connections,
                full: entry.max_connections != 0 && connections >= entry.max_connections.into(),
                takes_new: entry.flags & (FLAG_VALID | FLAG_DOWN | FLAG_DRAINING) == FLAG_VALID,
            }
        });
        held.collect()
    }

    /// Asks that a SYN, before which servers had what `held` says, made no connection more for one that is full; other than where the ring
    /// has none near that is not.
    pub(super) fn check_limit(&mut self, service: u8, held: &[Held], sent: Sent) -> Result<()> {
        self.played.met_full += u64::from(held.iter().any(|held| held.full));
        let Sent::To(n) = sent else { return Ok(()) };
        let [_, server] = n.to_be_bytes();
        let Some(own) = held.iter().find(|held| held.server == server && held.full) else { return Ok(()) };
        if self.connections(own.id) <= own.connections {
            return Ok(());
        }
        let engine = self.engine.as_ref().context("an agent runs")?;
        let ring = self.present_of(service).map_or(0, |present| present.entry.ring);
        let slots = engine.memory().ring(Extent::unpack(ring)).unwrap_or_default();
        let fits = |id: u32| held.iter().any(|held| held.id == id && held.takes_new && !held.full);
        let current = |at: usize| slots.get(at % slots.len()).map_or(0, |word| Slot(*word).current());
        let mut its = (0..slots.len()).filter(|at| current(*at) == own.id);
        let nobody = its.any(|at| (1..=RING_TRIES).all(|next| !fits(current(at + next))));
        ensure!(nobody, "server {server} of service {service} is full and was given another connection");
        Ok(())
    }
}
