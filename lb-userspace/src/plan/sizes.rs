//! How large each map is for given limits.
//!
//! Owns: which map has which size. Invariant: the sizes depend on the limits alone, so an
//! adopting agent with the same limits demands the same shapes.

use lb_core::abi::{
    backend, flow, lookup, ring, service,
    stats::{self, INTERFACES_MAX, REASONS_MAX},
    turns,
};

use crate::model::Limits;

/// Entries of each map whose size follows from the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Services that may exist; the configured limit.
    pub services_max: u32,
    /// Backends that may exist; the configured limit.
    pub backends_max: u32,
    /// `SERVICES` and `TURNS`: ids 1 to this minus one.
    pub services: u32,
    /// `BACKENDS` and everything else that is indexed by backend id: ids 1 to this minus one.
    pub backends: u32,
    /// `RINGS` and `OWNERS`, in lines of [`ring::LINE_SLOTS`] slots.
    pub ring_lines: u32,
    /// `LOOKUP`, a power of two.
    pub lookup_buckets: u32,
    /// Flows that may be recorded at the same time; the configured limit.
    pub flows_max: u32,
    /// `FLOWS`, a power of two.
    pub flow_buckets: u32,
}

impl MapSizes {
    /// Sizes for `limits`; [`crate::model::limits`] says how they follow and what they cost.
    pub fn of(limits: &Limits) -> Self {
        Self {
            services_max: limits.services_max,
            backends_max: limits.backends_max,
            services: limits.service_entries(),
            backends: limits.backend_entries(),
            ring_lines: limits.ring_lines(),
            lookup_buckets: limits.lookup_buckets(),
            flows_max: limits.flows_max,
            flow_buckets: limits.flow_buckets(),
        }
    }

    /// `max_entries` of the map called `name`; `None` where the object's own figure holds.
    pub fn entries(&self, name: &str) -> Option<u32> {
        let services = [service::SHAPE.name, turns::SHAPE.name];
        let backends = [
            backend::SHAPE.name,
            backend::KEYS_SHAPE.name,
            stats::BACKENDS_SHAPE.name,
            stats::BACKEND_FLOWS_SHAPE.name,
            flow::ACTIVE_SHAPE.name,
        ];
        let table = [
            (&services[..], self.services),
            (&backends, self.backends),
            (&[ring::SHAPE.name, ring::OWNERS_SHAPE.name], self.ring_lines),
            (&[lookup::SHAPE.name], self.lookup_buckets),
            (&[flow::SHAPE.name], self.flow_buckets),
            (&[stats::REASONS_SHAPE.name], INTERFACES_MAX * REASONS_MAX),
        ];
        table.into_iter().find(|(names, _)| names.contains(&name)).map(|(_, entries)| entries)
    }

    /// `FLOWS`' mask for the node entry.
    pub fn flow_mask(&self) -> u32 {
        self.flow_buckets - 1
    }

    /// `LOOKUP`'s mask for the node entry.
    pub fn lookup_mask(&self) -> u32 {
        self.lookup_buckets - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_limits() {
        let s = MapSizes::of(&Limits::default());
        assert_eq!((s.services, s.backends, s.ring_lines, s.lookup_buckets), (8193, 131_073, 1 << 20, 32_768));
        assert_eq!(s.flow_buckets, 1 << 19);
    }

    #[test]
    fn the_largest_limits_fit_24_bit_ids() {
        let s = MapSizes::of(&Limits {
            services_max: 65_535,
            backends_max: 4 << 20,
            ring_slots_max: u32::MAX,
            flows_max: 64 << 20,
        });
        assert!(s.services <= 1 << 24 && s.backends <= 1 << 24);
        assert!(s.backends > s.backends_max && s.services > s.services_max);
    }

    #[test]
    fn the_smallest_limits_leave_an_id() {
        let s = MapSizes::of(&Limits { services_max: 0, backends_max: 0, ring_slots_max: 0, flows_max: 0 });
        assert_eq!((s.services, s.backends, s.ring_lines, s.lookup_buckets), (2, 2, 1, 64));
    }
}
