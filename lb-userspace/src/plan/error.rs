//! Why a change cannot be planned: in words that say which limit it meets and what to do.

use super::lookup::Full;
use crate::model::SERVICE_BACKENDS_MAX;

/// Why there is no plan. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More services than the maps have room for.
    #[error(
        "{wanted} services, but limits.services_max is {limit}: raise it, then run `weir agent --unload` and start again"
    )]
    Services {
        /// Services wanted.
        wanted: usize,
        /// The limit.
        limit: u32,
    },
    /// More backends than the maps have room for.
    #[error(
        "{wanted} backends, but limits.backends_max is {limit}: raise it, then run `weir agent --unload` and start again"
    )]
    Backends {
        /// Backends wanted.
        wanted: usize,
        /// The limit.
        limit: u32,
    },
    /// More backends than a service may have.
    #[error("service {service} has {wanted} backends, the limit is {SERVICE_BACKENDS_MAX}")]
    ServiceBackends {
        /// Name of the service.
        service: String,
        /// Backends wanted.
        wanted: usize,
    },
    /// A ring size that is no prime number: walks would not meet every slot.
    #[error("service {service}: ring size {size} is not a prime number")]
    RingSize {
        /// Name of the service.
        service: String,
        /// The size.
        size: u32,
    },
    /// No room for a ring beside the ones in use.
    #[error(
        "no room for the ring of service {service}: {slots} slots, {free} of {limit} free ({quarantined} more after the \
         grace of the last change); a changed ring needs room beside the old one: raise limits.ring_slots_max, then run \
         `weir agent --unload` and start again"
    )]
    Arena {
        /// Name of the service.
        service: String,
        /// Slots that it asks for.
        slots: u32,
        /// Free slots, perhaps in pieces.
        free: u64,
        /// Slots in quarantine.
        quarantined: u64,
        /// Slots of the arena.
        limit: u64,
    },
    /// All ids are in use or in quarantine.
    #[error("no free {what} id: {used} of {limit} in use or waiting for the grace of the last change")]
    Ids {
        /// `service` or `backend`.
        what: &'static str,
        /// Ids in use or in quarantine.
        used: u32,
        /// Ids in all.
        limit: u32,
    },
    /// The lookup table has no room.
    #[error(
        "{0}; raise limits.services_max or limits.backends_max, which size the table, then run `weir agent --unload`"
    )]
    Lookup(#[from] Full),
    /// Two services with one VIP, port and protocol, or two `nat` backends with one address, port and protocol.
    #[error("{what} {address} port {port} stands twice")]
    Twice {
        /// What stands twice.
        what: &'static str,
        /// Its address.
        address: std::net::IpAddr,
        /// Its port, 0 for all.
        port: u16,
    },
}

impl PlanError {
    /// Whether the same plan can succeed once quarantined ids and lines are released.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Arena { quarantined, .. } => *quarantined > 0,
            Self::Ids { .. } => true,
            _ => false,
        }
    }
}
