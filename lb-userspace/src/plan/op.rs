//! One operation on the maps: what the dataplane carries out in order, without judgement of its own.
//!
//! Owns: the vocabulary between planning and writing, and the layout of entries as 64-bit words. Refuses to know: how
//! memory is reached. Invariant: an entry that packets can reach is changed by single-word operations only; `Put*` writes
//! whole entries and is planned only for ids and lines that nothing names.

use lb_core::abi::{
    backend::{Backend, BackendKey},
    lookup::WAYS,
    ring::Extent,
    service::Service,
};

/// 64-bit words of a [`Backend`].
pub const BACKEND_WORDS: usize = size_of::<Backend>() / 8;
/// Word of a [`Backend`] that holds flags and service id.
pub const BACKEND_WORD_FLAGS: usize = 0;
/// Word of a [`Service`] that holds the packed ring extent.
pub const SERVICE_WORD_RING: usize = 0;
/// Word of a [`Service`] that holds the packed previous ring.
pub const SERVICE_WORD_PREVIOUS: usize = 1;
/// Word of a [`Service`] that holds port, protocol, mode and flags.
pub const SERVICE_WORD_FLAGS: usize = 4;
/// Word of a [`Service`] that holds the packed extent of its members.
pub const SERVICE_WORD_MEMBERS: usize = 6;
/// Word of a [`Service`] that holds its time-out.
pub const SERVICE_WORD_TIMEOUT: usize = 7;
/// 64-bit words of a [`Service`].
pub const SERVICE_WORDS: usize = size_of::<Service>() / 8;
/// Word of a lookup bucket that holds its overflow count.
pub const LOOKUP_WORD_OVERFLOWED: usize = WAYS;
/// Word of the node entry that holds ABI version and flags.
pub const NODE_WORD_FLAGS: usize = 0;
/// Word of the node entry that holds the lookup mask and the IPv4 outer source.
pub const NODE_WORD_OUTER_V4: usize = 8;
/// Word of the node entry that holds the network half of the IPv6 outer source.
pub const NODE_WORD_OUTER_V6: usize = 9;
/// Word of the node entry that holds the host half of the IPv6 outer source.
pub const NODE_WORD_OUTER_V6_HOST: usize = 10;
/// Word of the node entry that holds the revision.
pub const NODE_WORD_REVISION: usize = 11;

const _: () = {
    use core::mem::offset_of;
    use lb_core::abi::node::Node;
    assert!(offset_of!(Backend, flags) == BACKEND_WORD_FLAGS * 8);
    assert!(offset_of!(Service, ring) == SERVICE_WORD_RING * 8);
    assert!(offset_of!(Service, previous_ring) == SERVICE_WORD_PREVIOUS * 8);
    assert!(offset_of!(Service, flags) == SERVICE_WORD_FLAGS * 8 + 4);
    assert!(offset_of!(Service, members) == SERVICE_WORD_MEMBERS * 8);
    assert!(offset_of!(Service, established_s) == SERVICE_WORD_TIMEOUT * 8);
    assert!(offset_of!(lb_core::abi::lookup::Bucket, overflowed) == LOOKUP_WORD_OVERFLOWED * 8);
    assert!(offset_of!(Node, flags) == NODE_WORD_FLAGS * 8 + 4);
    assert!(offset_of!(Node, lookup_mask) == NODE_WORD_OUTER_V4 * 8);
    assert!(offset_of!(Node, outer_source_v6) == NODE_WORD_OUTER_V6 * 8);
    assert!(offset_of!(Node, revision) == NODE_WORD_REVISION * 8);
};

/// An operation. Ids, lines and buckets are within the map sizes that the plan was made for; the dataplane checks it.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes key and entry of a backend whose id nothing names.
    PutBackend {
        /// Backend id.
        id: u32,
        /// Stable identity, for `BACKEND_KEYS`.
        key: BackendKey,
        /// The entry.
        entry: Backend,
    },
    /// Stores one word of a backend in use.
    BackendWord {
        /// Backend id.
        id: u32,
        /// Index of the word, below [`BACKEND_WORDS`].
        word: usize,
        /// The word in memory order.
        value: u64,
    },
    /// Writes a ring to lines that no service names.
    PutRing {
        /// Where.
        extent: Extent,
        /// Packed [`lb_core::abi::ring::Slot`]s, `extent.slots` of them.
        slots: Box<[u32]>,
        /// The owners of slots that are announced or moving, `extent.slots` of them; empty where no slot is.
        owners: Box<[u32]>,
    },
    /// Stores the slots of a ring in use anew, each with the backend that it has: owners first, then states.
    RingStates {
        /// Where.
        extent: Extent,
        /// As in [`Op::PutRing`].
        slots: Box<[u32]>,
        /// As in [`Op::PutRing`].
        owners: Box<[u32]>,
    },
    /// Writes a service whose id nothing names.
    PutService {
        /// Service id.
        id: u32,
        /// The entry.
        entry: Service,
    },
    /// Stores the ring word of a service in use: from here on packets meet the new ring.
    ServiceRing {
        /// Service id.
        id: u32,
        /// The packed ring; zero slots for none.
        ring: u64,
    },
    /// Stores another word of a service in use.
    ServiceWord {
        /// Service id.
        id: u32,
        /// Index of the word.
        word: usize,
        /// The word in memory order.
        value: u64,
    },
    /// Stores one word of a lookup bucket: an entry, or its overflow count at [`LOOKUP_WORD_OVERFLOWED`].
    LookupWord {
        /// Index of the bucket.
        bucket: u32,
        /// Index of the word, at most [`LOOKUP_WORD_OVERFLOWED`].
        word: usize,
        /// The word.
        value: u64,
    },
    /// Clears the flags of a backend that was removed and that packets in flight can no longer name.
    ClearBackend {
        /// Backend id.
        id: u32,
    },
    /// Clears the entry of a service that was removed and that packets in flight can no longer name.
    ClearService {
        /// Service id.
        id: u32,
    },
    /// Stores one word of the node entry.
    NodeWord {
        /// Index of the word.
        word: usize,
        /// The word in memory order.
        value: u64,
    },
}

impl core::fmt::Debug for Op {
    /// A ring is shown by its size: a plan that is printed stays readable.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::PutBackend { id, key, .. } => {
                write!(f, "PutBackend({id}, {}:{})", super::wanted::address(key.addr), key.port)
            }
            Self::BackendWord { id, word, value } => write!(f, "BackendWord({id}, {word}, {value:#018x})"),
            Self::PutRing { extent, .. } => write!(f, "PutRing(line {}, {} slots)", extent.line, extent.slots),
            Self::PutService { id, entry } => {
                write!(f, "PutService({id}, {}:{})", super::wanted::address(entry.addr), entry.port)
            }
            Self::RingStates { extent, .. } => write!(f, "RingStates(line {}, {} slots)", extent.line, extent.slots),
            Self::ServiceRing { id, ring } => {
                let extent = Extent::unpack(*ring);
                write!(f, "ServiceRing({id}, line {}, {} slots)", extent.line, extent.slots)
            }
            Self::ServiceWord { id, word, value } => write!(f, "ServiceWord({id}, {word}, {value:#018x})"),
            Self::LookupWord { bucket, word, value } => {
                // The upper half is a tag made with the secret key.
                write!(f, "LookupWord({bucket}, {word}, kind {} id {})", (value >> 24) as u8, value & 0xff_ffff)
            }
            Self::ClearBackend { id } => write!(f, "ClearBackend({id})"),
            Self::ClearService { id } => write!(f, "ClearService({id})"),
            Self::NodeWord { word, value } => write!(f, "NodeWord({word}, {value:#018x})"),
        }
    }
}
