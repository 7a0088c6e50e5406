//! The maps of `weir decap`, which runs on a backend and shares none with the load balancer.
//!
//! `DECAP_LOCAL` (hash), `DECAP_SOURCES` and `DECAP_VIPS` (LPM tries): written once by the command, before the program is
//! attached; read by the program. `DECAP_STATS` (per-CPU array, index = [`Reason`]): written by the program.
//! Addresses are in the 16-byte form of [`super::mapped`], so a prefix of IPv4 is 96 bits longer.

/// Addresses of the interface, at most.
pub const LOCAL_MAX: usize = 1024;
/// Prefixes of outer sources, at most.
pub const SOURCES_MAX: usize = 1024;
/// Prefixes of VIPs, at most.
pub const VIPS_MAX: usize = 16_384;

/// What happened to a packet. The sum over all reasons is the number of packets seen.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not a tunnel packet for this host: passed untouched.
    Passed = 0,
    /// The outer header was removed.
    Decapsulated = 1,
    /// A tunnel packet from a source that is not allowed: passed untouched.
    RefusedSource = 2,
    /// A tunnel packet for an inner destination that is not one of the VIPs: passed untouched.
    RefusedInner = 3,
    /// A header is cut short, contradicts another, or carries options that no load balancer writes: passed untouched.
    Malformed = 4,
    /// A fragment of a tunnel packet, which only the kernel can put together: passed untouched.
    Fragment = 5,
    /// Congestion was signalled to a flow that cannot hear it: dropped (RFC 6040 section 4.2).
    DroppedCongestion = 6,
    /// The kernel refused to shorten the packet: passed untouched.
    Failed = 7,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 8] = [
        Self::Passed,
        Self::Decapsulated,
        Self::RefusedSource,
        Self::RefusedInner,
        Self::Malformed,
        Self::Fragment,
        Self::DroppedCongestion,
        Self::Failed,
    ];

    /// Name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Decapsulated => "decapsulated",
            Self::RefusedSource => "refused_source",
            Self::RefusedInner => "refused_inner",
            Self::Malformed => "malformed",
            Self::Fragment => "fragment",
            Self::DroppedCongestion => "dropped_congestion",
            Self::Failed => "failed",
        }
    }
}
