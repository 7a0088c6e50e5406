//! Putting the zone's records into messages, within a size and with room for what comes last.
//!
//! Pure. Owns: record data as the wire library wants it, and the end of a message (OPT, TSIG). Refuses to know: what is asked.
//! Invariant: no message exceeds the size that it was given; what does not fit is an error here and truncation at the caller.

use std::sync::Arc;

use domain::{
    base::{
        MessageBuilder, Serial, ToName, Ttl,
        iana::{Class, OptRcode},
        message_builder::{AdditionalBuilder, PushError, RecordSectionBuilder, StaticCompressor},
    },
    rdata::{A, Aaaa, Ns, Soa, tsig::Time48},
    tsig::{Key, ServerSequence},
};

use super::zone::{Data, Zone};

/// What messages are built in: names are compressed.
pub type Target = StaticCompressor<Vec<u8>>;
/// The last section of a message under construction.
pub type Tail = AdditionalBuilder<Target>;
/// A verified signature of a request, which signs its answers.
pub type Signer = ServerSequence<Arc<Key>>;

/// Bytes of an OPT record without options.
const OPT_BYTES: usize = 11;
/// Longest message over TCP, in bytes.
pub const STREAM_BYTES_MAX: usize = 65_535;

/// An empty message that can take `limit` bytes, less those that the OPT record and the signature need.
pub fn start(limit: usize, edns: bool, signer: Option<&Signer>) -> MessageBuilder<Target> {
    let reserved = if edns { OPT_BYTES } else { 0 } + signer.map_or(0, |s| usize::from(s.key().compose_len()));
    let mut builder = match MessageBuilder::from_target(StaticCompressor::new(Vec::with_capacity(512))) {
        Ok(builder) => builder,
        Err(never) => match never {},
    };
    builder.set_push_limit(limit.saturating_sub(reserved));
    builder
}

/// Appends one record of `zone`.
pub fn push<S: RecordSectionBuilder<Target>>(
    section: &mut S,
    zone: &Zone,
    owner: &impl ToName,
    ttl_s: u32,
    data: &Data,
) -> Result<(), PushError> {
    let ttl = Ttl::from_secs(ttl_s);
    match data {
        Data::A(address) => section.push((owner, Class::IN, ttl, A::new(*address))),
        Data::Aaaa(address) => section.push((owner, Class::IN, ttl, Aaaa::new(*address))),
        Data::Ns(name) => section.push((owner, Class::IN, ttl, Ns::new(name))),
        Data::Soa(serial) => {
            let soa = zone.soa();
            let [refresh, retry, expire, minimum] = soa.times_s.map(Ttl::from_secs);
            let data = Soa::new(&soa.mname, &soa.rname, Serial(*serial), refresh, retry, expire, minimum);
            section.push((owner, Class::IN, ttl, data))
        }
    }
}

/// The EDNS part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Largest datagram that this server takes, in bytes.
    pub payload_max: u16,
    /// The DO bit of the request, which an answer repeats (RFC 3225, section 3).
    pub dnssec_ok: bool,
    /// Rcode, the part of more than four bits included.
    pub rcode: OptRcode,
}

/// Ends a message: OPT, then TSIG; returns its bytes.
///
/// # Errors
/// There is no room, which [`start`] excludes.
pub fn finish(
    mut tail: Tail,
    edns: Option<Edns>,
    signer: Option<&mut Signer>,
    now: Time48,
) -> Result<Vec<u8>, PushError> {
    tail.clear_push_limit();
    if let Some(edns) = edns {
        tail.opt(|opt| {
            opt.set_udp_payload_size(edns.payload_max);
            opt.set_dnssec_ok(edns.dnssec_ok);
            opt.set_rcode(edns.rcode);
            Ok(())
        })?;
    }
    if let Some(signer) = signer {
        signer.answer(&mut tail, now)?;
    }
    Ok(tail.finish().into_target())
}
