//! What the reference knows of a service: how it is configured, what the maps were told of it, and what that promises.
//!
//! Pure: it is told the time. Refuses to know packets, flows and agents.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use lb_core::abi::{
    ring::Inputs,
    service::{Algo, OnMarkedDown},
};

use super::super::{
    packet::flag,
    setup::{Server, Setup},
    step::Change,
};

/// By how much a server that leaves is promised to keep its flows for less than its drain: the agent counts whole seconds.
const DRAIN_MARGIN_MS: u64 = 1500;
/// How long the last new flow may come after a drain is no longer announced: the agent looks once a second.
const ANNOUNCED_MARGIN_MS: u64 = 2000;

/// What is promised to the datagrams of a flow that are sent under it. What is sent under another promise counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Nothing: the maps do not hold yet what is configured.
    Nothing,
    /// They go where the second one went. Until every flow is no longer recorded, which begins with this change.
    Sticky(u32),
    /// They go where the one before went, until the service changes again.
    Stateless(u32),
}

impl Promise {
    /// After how many datagrams of a flow it holds for the next one.
    pub const fn holds_after(self) -> u8 {
        match self {
            Self::Nothing => u8::MAX,
            Self::Sticky(_) => 2,
            Self::Stateless(_) => 1,
        }
    }
}

/// A service of a sequence.
pub struct Hosted {
    /// How it is configured.
    pub setup: Setup,
    /// What the maps were last made to hold: which servers were told to be down, under which setting.
    told: Option<Setup>,
    /// How often it changed; as often when the maps were last told of it; and when it last began to record every flow, or ended that.
    changes: u32,
    told_changes: Option<u32>,
    turned: u32,
    /// When each server left the configuration.
    left_ms: Vec<Option<u64>>,
    /// Since when each server takes no new flows, as far as the running agent knows.
    drained_ms: Vec<Option<u64>>,
    /// Where the maps, as they are, send new flows of a client that choose their slot by its address.
    sources: HashMap<[u8; 4], u8>,
}

impl Hosted {
    /// A service of which nobody was told yet.
    pub fn new(setup: Setup) -> Self {
        Self {
            told: None,
            changes: 0,
            told_changes: None,
            turned: 0,
            left_ms: setup.servers.iter().map(|server| (!server.listed).then_some(0)).collect(),
            drained_ms: vec![None; setup.servers.len()],
            sources: HashMap::new(),
            setup,
        }
    }

    /// A server by its number.
    pub fn server(&self, n: u8) -> Option<&Server> {
        self.setup.servers.get(usize::from(n))
    }

    /// Whether what a server has is promised to stay there.
    pub fn lives(&self, n: u8, now_ms: u64) -> bool {
        let (Some(server), Some(left)) = (self.server(n), self.left_ms.get(usize::from(n))) else { return false };
        let drain_ms = self.setup.drain_s * 1000 - DRAIN_MARGIN_MS;
        let there = left.is_none_or(|left_ms| now_ms < left_ms + drain_ms);
        let stays = server.listed && (self.setup.on_marked_down == OnMarkedDown::Keep || self.setup.fails_open());
        there && !server.maint && (server.up || stays)
    }

    /// Whether a server answers. Where all are taken for dead, those that are asked do.
    pub fn answers(&self, n: u8) -> bool {
        self.server(n).is_some_and(|server| server.up || self.setup.takes_new(server))
    }

    /// Whether a server still may be given a flow that nobody knows.
    pub fn may_take(&self, n: u8, now_ms: u64) -> bool {
        let since_ms = self.drained_ms.get(usize::from(n)).copied().flatten();
        since_ms.is_none_or(|since_ms| now_ms < since_ms + self.setup.times.announce_s * 1000 + ANNOUNCED_MARGIN_MS)
    }

    /// Asks that a packet with these flags went to no server of which the maps know that it is dead.
    pub fn check_up(&self, n: u8, flags: u8) -> Result<()> {
        let Some(told) = &self.told else { return Ok(()) };
        let server = told.servers.get(usize::from(n)).with_context(|| format!("there is no server {n}"))?;
        let stays = told.on_marked_down == OnMarkedDown::Keep && flags & flag::SYN == 0;
        ensure!(
            server.up || stays || told.fails_open() || !server.listed,
            "a packet went to server {n}, which is down"
        );
        Ok(())
    }

    /// Whether the maps hold what is configured.
    fn is_told(&self) -> bool {
        self.told_changes == Some(self.changes)
    }

    /// What is promised to datagrams that are sent now.
    pub fn promise(&self) -> Promise {
        match self.told_changes {
            Some(told) if self.setup.tracks_all() && told >= self.turned => Promise::Sticky(self.turned),
            Some(told) if !self.setup.tracks_all() && told == self.changes => Promise::Stateless(told),
            _ => Promise::Nothing,
        }
    }

    /// Asks that new flows of a client go to one server where the source alone chooses the slot. For when slots are settled.
    pub fn check_source(&mut self, client: [u8; 4], n: u8) -> Result<()> {
        let by_source = self.setup.algo == Algo::Hashed && self.setup.inputs == Inputs::Source;
        if by_source && !self.setup.is_limited() && self.is_told() {
            let other = *self.sources.entry(client).or_insert(n);
            ensure!(other == n, "new flows of client {client:?} went to servers {other} and {n}");
        }
        Ok(())
    }

    /// Takes note of what the maps now know. With `anew`, as by an agent that adopted them, drains are announced once more.
    pub fn tell(&mut self, now_ms: u64, anew: bool) {
        for (since, server) in self.drained_ms.iter_mut().zip(&self.setup.servers) {
            *since = match since {
                _ if self.setup.takes_new(server) => None,
                Some(since_ms) if !anew => Some(*since_ms),
                _ => Some(now_ms),
            };
        }
        if !self.is_told() {
            self.sources.clear();
        }
        self.told = Some(self.setup.clone());
        self.told_changes = Some(self.changes);
    }

    /// Changes the configuration, or a server; says whether that changed anything.
    pub fn change(&mut self, change: Change, now_ms: u64) -> bool {
        let before = self.setup.clone();
        let setup = &mut self.setup;
        let servers = setup.servers.len();
        let at = |n: u8| usize::from(n) % servers;
        let server = match change {
            Change::Add(n)
            | Change::Remove(n)
            | Change::Weight(n, _)
            | Change::Maint(n)
            | Change::Die(n)
            | Change::Recover(n)
            | Change::Limit(n, _) => &mut setup.servers[at(n)],
            _ => &mut setup.servers[0],
        };
        match change {
            Change::Add(_) => (server.listed, server.weight) = (true, server.weight.max(1)),
            Change::Remove(_) => (server.listed, server.maint) = (false, false),
            Change::Weight(_, weight) => server.weight = weight.into(),
            Change::DrainAll => setup.servers.iter_mut().for_each(|server| server.weight = 0),
            Change::Maint(_) => server.maint = server.listed && !server.maint,
            Change::Die(_) => server.up = false,
            Change::DieAll => setup.servers.iter_mut().for_each(|server| server.up = false),
            Change::Recover(_) => server.up = true,
            Change::RecoverAll => setup.servers.iter_mut().for_each(|server| server.up = true),
            Change::Limit(_, limit) => server.limit = limit,
            Change::LimitEach(limit) => setup.servers.iter_mut().for_each(|server| server.limit = limit),
            Change::Algo(algo) => setup.algo = algo,
            Change::RingSize(slots) => setup.ring_size = slots,
            Change::Inputs(inputs) => setup.inputs = inputs,
            Change::TrackAll(all) => setup.track_all = all,
            Change::OnMarkedDown(what) => setup.on_marked_down = what,
        }
        for (n, (server, old)) in self.setup.servers.iter().zip(&before.servers).enumerate() {
            match (server.listed, old.listed) {
                (true, _) => self.left_ms[n] = None,
                // A dead server leaves with all that it has.
                (false, true) => self.left_ms[n] = Some(if old.up && !old.maint { now_ms } else { 0 }),
                (false, false) => {}
            }
        }
        let changed = self.setup != before;
        self.changes += u32::from(changed);
        if self.setup.tracks_all() != before.tracks_all() {
            self.turned = self.changes;
        }
        changed
    }
}
