//! `algo`: how the backend of a new flow is chosen, with the parameters of each algorithm.
//!
//! Hashed algorithms read the choice off the ring, the same on every node, so that hardly any flow has to be recorded.
//! Chosen ones decide once for each flow and record it; their ring takes the packets that no record speaks for. A node
//! that takes over has no records of another node: chosen flows do not survive a change of node, hashed ones do.
//!
//! Refuses to know: how rings and turns are built.

use std::fmt;

/// The words of `algo`, without parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// See [`Algo::Maglev`].
    Maglev,
    /// See [`Algo::SourceHash`].
    SourceHash,
    /// See [`Algo::RoundRobin`].
    RoundRobin,
    /// See [`Algo::WeightedRoundRobin`].
    WeightedRoundRobin,
    /// See [`Algo::LeastConnections`].
    LeastConnections,
    /// See [`Algo::WeightedLeastConnections`].
    WeightedLeastConnections,
    /// See [`Algo::RandomTwo`].
    RandomTwo,
}

impl Kind {
    /// Every algorithm, in the order in which they are listed for people.
    pub const ALL: [Self; 7] = [
        Self::Maglev,
        Self::SourceHash,
        Self::RoundRobin,
        Self::WeightedRoundRobin,
        Self::LeastConnections,
        Self::WeightedLeastConnections,
        Self::RandomTwo,
    ];

    /// The word that the configuration uses.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Maglev => "maglev",
            Self::SourceHash => "source_hash",
            Self::RoundRobin => "round_robin",
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::LeastConnections => "least_connections",
            Self::WeightedLeastConnections => "weighted_least_connections",
            Self::RandomTwo => "random_two",
        }
    }

    /// Whether the ring decides; the others choose, and record every flow.
    pub const fn is_hashed(self) -> bool {
        matches!(self, Self::Maglev | Self::SourceHash)
    }

    /// Whether shares follow the weights; the others know only weight 0, which takes no new flows.
    pub const fn is_weighted(self) -> bool {
        !matches!(self, Self::RoundRobin | Self::LeastConnections)
    }

    /// The algorithm that differs in heeding weights, for those that do not.
    pub const fn weighted(self) -> Self {
        match self {
            Self::RoundRobin => Self::WeightedRoundRobin,
            Self::LeastConnections => Self::WeightedLeastConnections,
            other => other,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// `algo` with its `algo_config`. Each `ring_size` is a prime number of ring slots, 251 to 655373; default 65537.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algo {
    /// Maglev consistent hashing of addresses, ports and protocol, by weight.
    Maglev {
        /// Slots of the ring.
        ring_size: u32,
    },
    /// The same ring, met by the client's address alone: a client stays with a backend.
    SourceHash {
        /// Slots of the ring.
        ring_size: u32,
    },
    /// In turn; each CPU has a turn of its own.
    RoundRobin {
        /// Slots of the ring that takes packets without a record.
        ring_size: u32,
    },
    /// In turn, as often as weights say.
    WeightedRoundRobin {
        /// Slots of the ring that takes packets without a record.
        ring_size: u32,
    },
    /// The fewest connections.
    LeastConnections {
        /// Slots of the ring that takes packets without a record.
        ring_size: u32,
    },
    /// The fewest connections for its weight.
    WeightedLeastConnections {
        /// Slots of the ring that takes packets without a record.
        ring_size: u32,
    },
    /// Of two that the flow's hash draws, the one with fewer connections for its weight (Mitzenmacher, "The Power of Two
    /// Choices in Randomized Load Balancing", 2001).
    RandomTwo {
        /// Slots of the ring that takes packets without a record.
        ring_size: u32,
    },
}

impl Algo {
    /// Default of `ring_size`.
    pub const RING_SIZE: u32 = 65_537;

    /// An algorithm with the parameter that all have.
    pub const fn new(kind: Kind, ring_size: u32) -> Self {
        match kind {
            Kind::Maglev => Self::Maglev { ring_size },
            Kind::SourceHash => Self::SourceHash { ring_size },
            Kind::RoundRobin => Self::RoundRobin { ring_size },
            Kind::WeightedRoundRobin => Self::WeightedRoundRobin { ring_size },
            Kind::LeastConnections => Self::LeastConnections { ring_size },
            Kind::WeightedLeastConnections => Self::WeightedLeastConnections { ring_size },
            Kind::RandomTwo => Self::RandomTwo { ring_size },
        }
    }

    /// Which algorithm it is.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Maglev { .. } => Kind::Maglev,
            Self::SourceHash { .. } => Kind::SourceHash,
            Self::RoundRobin { .. } => Kind::RoundRobin,
            Self::WeightedRoundRobin { .. } => Kind::WeightedRoundRobin,
            Self::LeastConnections { .. } => Kind::LeastConnections,
            Self::WeightedLeastConnections { .. } => Kind::WeightedLeastConnections,
            Self::RandomTwo { .. } => Kind::RandomTwo,
        }
    }

    /// Slots of the ring.
    pub const fn ring_size(self) -> u32 {
        match self {
            Self::Maglev { ring_size }
            | Self::SourceHash { ring_size }
            | Self::RoundRobin { ring_size }
            | Self::WeightedRoundRobin { ring_size }
            | Self::LeastConnections { ring_size }
            | Self::WeightedLeastConnections { ring_size }
            | Self::RandomTwo { ring_size } => ring_size,
        }
    }

    /// The word that the configuration uses.
    pub const fn word(self) -> &'static str {
        self.kind().word()
    }

    /// See [`Kind::is_hashed`].
    pub const fn is_hashed(self) -> bool {
        self.kind().is_hashed()
    }

    /// See [`Kind::is_weighted`].
    pub const fn is_weighted(self) -> bool {
        self.kind().is_weighted()
    }
}

/// `maglev(65537)`.
impl fmt::Display for Algo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.word(), self.ring_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_algorithms_agree() {
        for kind in Kind::ALL {
            let algo = Algo::new(kind, 251);
            assert_eq!((algo.kind(), algo.ring_size()), (kind, 251));
            assert!(kind.weighted().is_weighted());
            assert_eq!(kind.weighted() == kind, kind.is_weighted(), "{kind}");
            assert_eq!(kind.weighted().is_hashed(), kind.is_hashed(), "{kind}");
        }
        assert_eq!(Algo::WeightedRoundRobin { ring_size: 65_537 }.to_string(), "weighted_round_robin(65537)");
    }
}
