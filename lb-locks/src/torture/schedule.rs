//! What is broken when: a list of actions out of a seed. Pure.
//!
//! Owns: the scenes of each kind of fault. Invariants: the same seed and settings give the same list; whatever is broken is
//! mended again before the next scene, except clocks, which stay where they were moved to.

use rand::{RngExt, SeedableRng, rngs::SmallRng, seq::SliceRandom as _};

use super::proxy::Way;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Nodes are stopped (SIGSTOP) and go on with what waited in their sockets.
    Stop,
    /// Nodes are killed and start again with their files.
    Kill,
    /// A node loses everything it knew.
    Empty,
    /// Some clients do not reach some nodes, or do not hear their answers.
    Partition,
    /// A node's wall clock is moved forward: outside of what Redlock bears.
    Clock,
    /// The holder is stopped for longer than its lock lives, and then goes on.
    Pause,
    /// The holder is killed.
    Crash,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 7] =
        [Self::Stop, Self::Kill, Self::Empty, Self::Partition, Self::Clock, Self::Pause, Self::Crash];

    /// Those under which exclusion is promised.
    pub const PROMISED: [Self; 6] = [Self::Stop, Self::Kill, Self::Empty, Self::Partition, Self::Pause, Self::Crash];

    /// The kind's word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Empty => "empty",
            Self::Partition => "partition",
            Self::Clock => "clock",
            Self::Pause => "pause",
            Self::Crash => "crash",
        }
    }
}

/// What is done to whom. Nodes are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A scene begins.
    Begin(Fault),
    /// SIGSTOP.
    Stop(usize),
    /// SIGCONT.
    Go(usize),
    /// SIGKILL.
    Kill(usize),
    /// Start it again with its files.
    Start(usize),
    /// Forget everything: by FLUSHALL, or by SIGKILL and a start without files.
    Empty {
        /// The node.
        node: usize,
        /// FLUSHALL.
        flush: bool,
    },
    /// Change what passes between a node and one half of the clients.
    Way {
        /// The node.
        node: usize,
        /// The half, 0 or 1.
        side: usize,
        /// What passes.
        way: Way,
    },
    /// Wait until a worker gets the lock, but not longer than a lifetime; everything after it comes later by as much.
    AwaitGrant,
    /// Move the wall clock forward by so many milliseconds more.
    Clock {
        /// The node.
        node: usize,
        /// How far.
        by_ms: u64,
    },
    /// SIGSTOP to the holder.
    Pause,
    /// SIGCONT to who was stopped.
    Resume,
    /// SIGKILL to the holder, and another worker in its place.
    Crash,
}

/// What a schedule is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// How long.
    pub duration_ms: u64,
    /// How many nodes.
    pub nodes: usize,
    /// Lifetime of a lock.
    pub ttl_ms: u64,
    /// Kinds to choose from.
    pub faults: Vec<Fault>,
}

/// The actions for `seed`, with their times in milliseconds from the start.
pub fn schedule(seed: u64, setting: &Setting) -> Vec<(u64, Action)> {
    let mut scenes = Scenes { random: SmallRng::seed_from_u64(seed), setting, actions: Vec::new(), now_ms: 0 };
    // Each kind comes once in every round, in another order each time: a short run meets all of them.
    let mut round: Vec<Fault> = Vec::new();
    // Some time without faults at first, so that the lock is in use.
    scenes.now_ms = setting.ttl_ms / 2;
    while !setting.faults.is_empty() {
        let fault = match round.pop() {
            Some(fault) => fault,
            None => {
                round.clone_from(&setting.faults);
                round.shuffle(&mut scenes.random);
                continue;
            }
        };
        let (begun, before) = (scenes.now_ms, scenes.actions.len());
        scenes.add(fault);
        if scenes.now_ms > setting.duration_ms {
            // A scene that does not fit would end unmended.
            scenes.actions.truncate(before);
            break;
        }
        let at_least = begun + setting.ttl_ms / 2;
        scenes.now_ms = scenes.now_ms.max(at_least) + scenes.random.random_range(setting.ttl_ms / 4..=setting.ttl_ms);
    }
    scenes.actions
}

struct Scenes<'a> {
    random: SmallRng,
    setting: &'a Setting,
    actions: Vec<(u64, Action)>,
    now_ms: u64,
}

impl Scenes<'_> {
    /// Some of the nodes: a minority most of the time, all of them now and then.
    fn some(&mut self) -> Vec<usize> {
        let mut nodes: Vec<usize> = (0..self.setting.nodes).collect();
        nodes.shuffle(&mut self.random);
        let minority = self.setting.nodes.saturating_sub(1) / 2;
        let count =
            if self.random.random_bool(0.2) { nodes.len() } else { self.random.random_range(1..=minority.max(1)) };
        nodes.truncate(count);
        nodes
    }

    fn now(&mut self, action: Action) {
        self.actions.push((self.now_ms, action));
    }

    /// Lets between `from` and `to` tenths of a lifetime pass.
    fn pass(&mut self, from: u64, to: u64) {
        let tenth = (self.setting.ttl_ms / 10).max(1);
        self.now_ms += self.random.random_range(from * tenth..=to * tenth);
    }

    fn add(&mut self, fault: Fault) {
        self.now(Action::Begin(fault));
        match fault {
            Fault::Stop => self.each(Action::Stop, Action::Go, (2, 15)),
            Fault::Kill => self.each(Action::Kill, Action::Start, (0, 5)),
            Fault::Empty => {
                let flush = self.random.random_bool(0.5);
                self.after_a_minority_was_away(|_, node| Action::Empty { node, flush });
            }
            Fault::Clock => self.after_a_minority_was_away(|scenes, node| {
                let ttl_ms = scenes.setting.ttl_ms;
                Action::Clock { node, by_ms: scenes.random.random_range(ttl_ms..=ttl_ms * 20) }
            }),
            Fault::Partition => {
                let ways: Vec<(usize, usize, Way)> = self
                    .some()
                    .into_iter()
                    .flat_map(|node| {
                        let way = if self.random.random_bool(0.5) { Way::Cut } else { Way::NoReplies };
                        let sides = [&[0usize][..], &[1], &[0, 1]][self.random.random_range(0..3)];
                        sides.iter().map(move |side| (node, *side, way))
                    })
                    .collect();
                for (node, side, way) in &ways {
                    self.now(Action::Way { node: *node, side: *side, way: *way });
                }
                self.pass(2, 15);
                for (node, side, _) in ways {
                    self.now(Action::Way { node, side, way: Way::Open });
                }
            }
            Fault::Pause => {
                self.now(Action::Pause);
                self.pass(11, 25);
                self.now(Action::Resume);
            }
            Fault::Crash => self.now(Action::Crash),
        }
    }

    fn each(&mut self, broken: fn(usize) -> Action, mended: fn(usize) -> Action, tenths: (u64, u64)) {
        let nodes = self.some();
        for &node in &nodes {
            self.now(broken(node));
        }
        self.pass(tenths.0, tenths.1);
        for node in nodes {
            self.now(mended(node));
        }
    }

    /// The worst moment for a node to forget a lock: its holder has just got it from the bare majority, and the others are back.
    fn after_a_minority_was_away(&mut self, lapse: impl Fn(&mut Self, usize) -> Action) {
        let mut nodes: Vec<usize> = (0..self.setting.nodes).collect();
        nodes.shuffle(&mut self.random);
        let (away, rest) = nodes.split_at(self.setting.nodes.saturating_sub(1) / 2);
        let both = |node: usize, way: Way| [0, 1].map(|side| Action::Way { node, side, way });
        for action in away.iter().flat_map(|node| both(*node, Way::Closed)) {
            self.now(action);
        }
        // Whoever holds it now has it from the others too.
        self.pass(10, 11);
        self.now(Action::AwaitGrant);
        for action in away.iter().flat_map(|node| both(*node, Way::Open)) {
            self.now(action);
        }
        if let Some(node) = rest.first() {
            let action = lapse(self, *node);
            self.now(action);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(faults: &[Fault]) -> Setting {
        Setting { duration_ms: 60_000, nodes: 5, ttl_ms: 500, faults: faults.to_vec() }
    }

    #[test]
    fn a_seed_is_a_schedule() {
        let of = |seed| schedule(seed, &setting(&Fault::ALL));
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        assert!(schedule(7, &setting(&[])).is_empty());
        for fault in Fault::ALL {
            assert!(of(7).iter().any(|(_, action)| *action == Action::Begin(fault)), "{fault:?}");
            assert!(schedule(1, &setting(&[fault])).len() > 10, "{fault:?}");
        }
    }

    #[test]
    fn what_is_broken_is_mended_in_time() {
        for seed in 0..50 {
            let (mut stopped, mut dead, mut cut, mut paused) = ([false; 5], [false; 5], [[false; 2]; 5], false);
            let mut last_ms = 0;
            for (at_ms, action) in schedule(seed, &setting(&Fault::ALL)) {
                assert!(at_ms >= last_ms && at_ms <= 60_000);
                last_ms = at_ms;
                match action {
                    Action::Begin(_) => {
                        assert!(stopped == [false; 5] && dead == [false; 5] && cut == [[false; 2]; 5] && !paused);
                    }
                    Action::Stop(node) => stopped[node] = true,
                    Action::Go(node) => stopped[node] = false,
                    Action::Kill(node) => dead[node] = true,
                    Action::Start(node) => dead[node] = false,
                    Action::Way { node, side, way } => cut[node][side] = way != Way::Open,
                    Action::Pause => paused = true,
                    Action::Resume => paused = false,
                    Action::Empty { node, .. } | Action::Clock { node, .. } => assert!(node < 5),
                    Action::Crash | Action::AwaitGrant => {}
                }
            }
            assert!(stopped == [false; 5] && dead == [false; 5] && cut == [[false; 2]; 5] && !paused, "{seed}");
        }
    }

    #[test]
    fn one_node_alone_has_no_minority() {
        let one = Setting { nodes: 1, ..setting(&Fault::ALL) };
        assert!(!schedule(3, &one).is_empty());
    }
}
