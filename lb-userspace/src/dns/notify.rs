//! Telling secondaries that the zone has a new serial number (RFC 1996).

use std::{net::SocketAddr, sync::Arc};

use domain::{
    base::{
        iana::{Class, Opcode, Rcode, Rtype},
        message_builder::PushError,
    },
    tsig::Key,
};

use super::{
    exchange::{ExchangeError, Request},
    message::{self, Tail},
    zone::{Data, Zone},
};

/// A NOTIFY about `zone`, with its SOA as a hint, and `id`.
///
/// # Errors
/// It does not fit a message, which no checked zone makes happen.
pub fn message(zone: &Zone, id: u16) -> Result<Tail, PushError> {
    let mut start = message::start(message::STREAM_BYTES_MAX, false, None);
    let header = start.header_mut();
    header.set_id(id);
    header.set_opcode(Opcode::NOTIFY);
    header.set_aa(true);
    let mut question = start.question();
    question.push((zone.origin(), Rtype::SOA, Class::IN))?;
    let mut answer = question.answer();
    message::push(&mut answer, zone, zone.origin(), zone.ttl_s(), &Data::Soa(zone.serial()))?;
    Ok(answer.additional())
}

/// Notifies one secondary; how it answered.
///
/// # Errors
/// [`ExchangeError`].
pub async fn send(
    zone: &Zone,
    peer: SocketAddr,
    key: Option<&Arc<Key>>,
    now_unix_s: u64,
) -> Result<Rcode, ExchangeError> {
    let request = Request::new(message(zone, rand::random())?, key, now_unix_s)?;
    Ok(request.over_udp(peer, now_unix_s).await?.header().rcode())
}
