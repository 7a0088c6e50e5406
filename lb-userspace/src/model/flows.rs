//! What becomes of the flows of a service when its backends change: which are recorded, and how long which promise holds.
//!
//! Invariants of a validated [`Flows`]: `track` is `all` wherever something needs it (a chosen algorithm, `max_connections`);
//! `window` is at most `flow_timeout`; `reset` is for TCP. Whether UDP flows are sticky is not stored: they are exactly
//! where `track` is `all` ([`super::Service::udp_flows`]).
//!
//! Refuses to know: slots, records and who keeps them.

use std::{fmt, ops::RangeInclusive, time::Duration};

use lb_core::abi::flow::TIMEOUT_MAX_S;
pub use lb_core::abi::service::OnMarkedDown;
use serde::{Deserialize, Serialize};

use super::{Protocol, algo};

/// `track`: which flows are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Track {
    /// Those that a change of the backends could move; of stateless UDP none.
    Moved,
    /// Every flow.
    All,
}

/// `udp_flows`: what a UDP service promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UdpFlows {
    /// Each datagram goes where the ring says now.
    Stateless,
    /// The datagrams of a flow go where the first one went.
    Sticky,
}

/// The keys of `[[service]]` about flows, as they are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flows {
    /// Which flows are recorded; default moved, all for algorithms that choose and wherever a key needs it.
    pub track: Track,
    /// What becomes of the flows of a backend that health judged down; default rehash, reset for TCP only.
    pub on_marked_down: OnMarkedDown,
    /// Longest silence that a flow survives while its slot moves, 1 s to 18 h, at most `flow_timeout`; default 2 h 4 min,
    /// for UDP 5 min. Nothing reads it where UDP is stateless.
    pub window: Duration,
    /// How long a recorded flow may be silent, 1 s to 18 h; default 2 h 4 min, for UDP 5 min.
    pub flow_timeout: Duration,
    /// How long a planned change is announced before slots move, 0 s to 60 s; default 4 s.
    pub announce_for: Duration,
    /// How long a drained or removed backend keeps its flows, 0 s to 24 h; default 300 s, for UDP 30 s.
    pub drain_timeout: Duration,
}

impl Flows {
    /// Range of `window` and `flow_timeout`: 18 h is the longest whole number of hours that a record can count.
    pub const TIMEOUTS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(18 * 3600);
    /// Range of `announce_for`.
    pub const ANNOUNCE_FOR: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
    /// Range of `drain_timeout`.
    pub const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(24 * 3600);

    /// What is in force where the file says nothing.
    pub const fn defaults(protocol: Protocol, algo: algo::Kind) -> Self {
        let (timeout, drain_timeout) = match protocol {
            // RFC 5382, REQ-5: a TCP connection may be silent for 2 hours 4 minutes, two hours being the keepalive of hosts.
            Protocol::Tcp => (Duration::from_secs(2 * 3600 + 4 * 60), Duration::from_secs(300)),
            // RFC 4787, REQ-5: a mapping is kept for 5 minutes or more.
            Protocol::Udp => (Duration::from_secs(5 * 60), Duration::from_secs(30)),
        };
        Self {
            track: if algo.is_hashed() { Track::Moved } else { Track::All },
            on_marked_down: OnMarkedDown::Rehash,
            window: timeout,
            flow_timeout: timeout,
            announce_for: Duration::from_secs(4),
            drain_timeout,
        }
    }
}

const _: () = assert!(Flows::TIMEOUTS.end().as_secs() <= TIMEOUT_MAX_S as u64);

/// The word that the configuration uses for what becomes of the flows of a backend that is down.
pub const fn on_marked_down_word(on_marked_down: OnMarkedDown) -> &'static str {
    match on_marked_down {
        OnMarkedDown::Rehash => "rehash",
        OnMarkedDown::Keep => "keep",
        OnMarkedDown::Reset => "reset",
    }
}

impl fmt::Display for Track {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Moved => "moved",
            Self::All => "all",
        })
    }
}

impl fmt::Display for UdpFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stateless => "stateless",
            Self::Sticky => "sticky",
        })
    }
}
