//! The zone's addresses as dynamic updates to a server that others run (RFC 2136).
//!
//! Owns: what an update holds, and the marker that makes several instances of this server safe: a TXT record set under
//! `_weir.ORIGIN` with the serial number and the names that were put there. Invariants: record sets are replaced whole, in one
//! update; an update carries the marker as it was read as its prerequisite, so of two instances one wins and the other reads
//! again; a version that is not newer than the marker is never sent; only names in the marker are ever removed.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use domain::{
    base::{
        Message, Ttl, UnknownRecordData,
        iana::{Class, Opcode, Rcode, Rtype},
        message_builder::{AuthorityBuilder, PushError},
    },
    rdata::{Txt, rfc1035::TxtBuilder},
    tsig::Key,
};

use super::{
    exchange::{ExchangeError, Request},
    message::{self, Tail, Target},
    zone::{Name, Zone, newer},
};

/// First string of a marker.
const MARK: &str = "weir";
/// Label of a marker under the origin.
const LABEL: &str = "_weir";

/// What a server was told last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Serial number of that version.
    pub serial: u32,
    /// Its names.
    pub names: BTreeSet<Name>,
    /// The record as it stands there.
    pub rdata: Vec<u8>,
}

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The server has it now.
    Updated,
    /// The server had it, or a newer one.
    Had,
    /// Another instance was faster: read again.
    Raced,
    /// The server refused.
    Refused(Rcode),
}

/// Why a server could not be told.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The exchange failed.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// Something else stands where the marker would.
    #[error("{0} has TXT records that are not weir's: remove them, or let weir have another zone")]
    Foreign(Name),
    /// The server does not answer for the name.
    #[error("{0} when asked for the marker")]
    Unreadable(Rcode),
}

/// Name of the marker for `zone`.
///
/// # Errors
/// The origin is so long that there is no room for a label.
pub fn marker_name(zone: &Zone) -> Result<Name, PushError> {
    let mut name = domain::base::name::NameBuilder::new_vec();
    name.append_label(LABEL.as_bytes()).map_err(|_| PushError::ShortBuf)?;
    name.append_origin(zone.origin()).map_err(|_| PushError::ShortBuf)
}

/// The marker for `zone`, as TXT data.
///
/// # Errors
/// The names do not fit a record.
pub fn marker(zone: &Zone) -> Result<Txt<Vec<u8>>, PushError> {
    let mut builder = TxtBuilder::<Vec<u8>>::new();
    let mut string = |text: &str| {
        let text = domain::base::CharStr::from_octets(text.as_bytes()).map_err(|_| PushError::ShortBuf)?;
        builder.append_charstr(&text).map_err(|_| PushError::ShortBuf)
    };
    string(MARK)?;
    string(&zone.serial().to_string())?;
    for (name, _) in zone.hosts() {
        string(&name.to_string())?;
    }
    builder.finish().map_err(|_| PushError::ShortBuf)
}

/// Reads a marker from TXT data; `None` if it is none.
pub fn read_marker(txt: &Txt<impl AsRef<[u8]>>) -> Option<Marker> {
    let mut strings = txt.iter();
    if strings.next()? != MARK.as_bytes() {
        return None;
    }
    let mut strings = strings.map(|bytes| std::str::from_utf8(bytes).ok());
    let serial = strings.next()??.parse().ok()?;
    let names = strings.map(|text| crate::model::dns::host_name(text?).ok()).collect::<Option<_>>()?;
    let mut rdata = Vec::new();
    for string in txt.iter() {
        rdata.push(u8::try_from(string.len()).ok()?);
        rdata.extend_from_slice(string);
    }
    Some(Marker { serial, names, rdata })
}

fn push<D: domain::base::rdata::ComposeRecordData>(
    section: &mut AuthorityBuilder<Target>,
    name: &Name,
    class: Class,
    ttl_s: u32,
    data: D,
) -> Result<(), PushError> {
    section.push((name, class, Ttl::from_secs(ttl_s), data))
}

/// Data of no length, for the classes ANY and NONE.
fn nothing(rtype: Rtype) -> Result<UnknownRecordData<&'static [u8]>, PushError> {
    UnknownRecordData::from_octets(rtype, &[][..]).map_err(|_| PushError::ShortBuf)
}

/// The update of the server's zone `apex` from what `before` says to `zone`, with `id`.
///
/// # Errors
/// It does not fit one message: RFC 2136 is atomic only within one.
pub fn message(zone: &Zone, apex: &Name, before: Option<&Marker>, id: u16) -> Result<Tail, PushError> {
    let mut start = message::start(message::STREAM_BYTES_MAX - 512, false, None);
    let header = start.header_mut();
    header.set_id(id);
    header.set_opcode(Opcode::UPDATE);
    let mut zones = start.question();
    zones.push((apex, Rtype::SOA, Class::IN))?;
    let mark = marker_name(zone)?;
    let mut prerequisites = zones.answer();
    match before {
        // Section 2.4.2: the record set exists with this value.
        Some(marker) => {
            let data =
                UnknownRecordData::from_octets(Rtype::TXT, marker.rdata.as_slice()).map_err(|_| PushError::ShortBuf)?;
            prerequisites.push((&mark, Class::IN, Ttl::from_secs(0), data))?;
        }
        // Section 2.4.3: it does not exist.
        None => prerequisites.push((&mark, Class::NONE, Ttl::from_secs(0), nothing(Rtype::TXT)?))?,
    }
    let mut updates = prerequisites.authority();
    let hosts: BTreeSet<&Name> = zone.hosts().map(|(name, _)| name).collect();
    let old = before.iter().flat_map(|marker| &marker.names);
    // A marker that someone edited must not make us touch names outside the zone.
    let gone = old.filter(|name| name.ends_with(zone.origin()) && !hosts.contains(name));
    for name in hosts.iter().copied().chain(gone) {
        // Section 2.5.2: delete a record set; then section 2.5.1: add to it.
        push(&mut updates, name, Class::ANY, 0, nothing(Rtype::A)?)?;
        push(&mut updates, name, Class::ANY, 0, nothing(Rtype::AAAA)?)?;
    }
    for (name, node) in zone.hosts() {
        for data in node.data() {
            message::push(&mut updates, zone, name, zone.ttl_s(), &data)?;
        }
    }
    push(&mut updates, &mark, Class::ANY, 0, nothing(Rtype::TXT)?)?;
    push(&mut updates, &mark, Class::IN, zone.ttl_s(), marker(zone)?)?;
    Ok(updates.additional())
}

/// Brings `zone` to one server.
///
/// # Errors
/// [`UpdateError`].
pub async fn tell(
    zone: &Zone,
    server: SocketAddr,
    apex: &Name,
    key: &Arc<Key>,
    now_unix_s: u64,
) -> Result<Told, UpdateError> {
    let before = ask_marker(zone, server, key, now_unix_s).await?;
    if before.as_ref().is_some_and(|marker| !newer(zone.serial(), marker.serial)) {
        return Ok(Told::Had);
    }
    let update = message(zone, apex, before.as_ref(), rand::random()).map_err(ExchangeError::from)?;
    let answer = Request::new(update, Some(key), now_unix_s)?.over_tcp(server, now_unix_s).await?;
    Ok(match answer.header().rcode() {
        Rcode::NOERROR => Told::Updated,
        Rcode::NXRRSET | Rcode::YXRRSET => Told::Raced,
        rcode => Told::Refused(rcode),
    })
}

async fn ask_marker(
    zone: &Zone,
    server: SocketAddr,
    key: &Arc<Key>,
    now_unix_s: u64,
) -> Result<Option<Marker>, UpdateError> {
    let name = marker_name(zone).map_err(ExchangeError::from)?;
    let mut start = message::start(message::STREAM_BYTES_MAX, false, None);
    start.header_mut().set_id(rand::random());
    let mut question = start.question();
    question.push((&name, Rtype::TXT, Class::IN)).map_err(ExchangeError::from)?;
    let request = Request::new(question.additional(), Some(key), now_unix_s)?;
    let answer = request.over_tcp(server, now_unix_s).await?;
    match answer.header().rcode() {
        Rcode::NOERROR | Rcode::NXDOMAIN => found(&answer, name),
        rcode => Err(UpdateError::Unreadable(rcode)),
    }
}

/// The marker in an answer; `None` if there is none.
fn found(answer: &Message<Vec<u8>>, name: Name) -> Result<Option<Marker>, UpdateError> {
    let Ok(section) = answer.answer() else { return Err(UpdateError::Unreadable(Rcode::FORMERR)) };
    let mut records = section.limit_to_in::<Txt<_>>();
    let Some(first) = records.next() else { return Ok(None) };
    let Ok(first) = first else { return Err(UpdateError::Unreadable(Rcode::FORMERR)) };
    match (read_marker(first.data()), records.next()) {
        (Some(marker), None) => Ok(Some(marker)),
        _ => Err(UpdateError::Foreign(name)),
    }
}

#[cfg(test)]
mod tests {
    use domain::base::record::ParsedRecord;

    use super::{super::sample::*, *};

    /// Records of one section: owner, class, type and length of data.
    fn section<'a>(
        records: impl Iterator<Item = Result<ParsedRecord<'a, Vec<u8>>, domain::base::wire::ParseError>>,
    ) -> Vec<String> {
        records
            .map(|record| {
                let record = record.unwrap();
                let bytes = if record.rdlen() == 0 { "-" } else { "+" };
                format!("{} {} {} {bytes}", record.owner(), record.class(), record.rtype())
            })
            .collect()
    }

    #[test]
    fn a_marker_reads_back() {
        let zone = sample(77);
        let read = read_marker(&marker(&zone).unwrap()).unwrap();
        assert_eq!((read.serial, read.names.len()), (77, 3));
        for foreign in [&["v=spf1"][..], &["weir"], &["weir", "x"], &["weir", "1", "not a name"]] {
            let mut builder = TxtBuilder::<Vec<u8>>::new();
            for text in foreign {
                builder.append_charstr(&domain::base::CharStr::from_octets(text.as_bytes()).unwrap()).unwrap();
            }
            assert_eq!(read_marker(&builder.finish().unwrap()), None, "{foreign:?}");
        }
    }

    #[test]
    fn sets_are_replaced_whole_and_only_names_of_ours_go() {
        let zone = sample(2);
        let mut before = read_marker(&marker(&sample(1)).unwrap()).unwrap();
        before.names.insert(crate::model::dns::host_name("old.lb.example").unwrap());
        before.names.insert(crate::model::dns::host_name("www.example").unwrap());
        let bytes = message(&zone, zone.origin(), Some(&before), 9).unwrap().finish().into_target();
        let update = Message::from_octets(bytes).unwrap();
        assert_eq!((update.header().opcode(), update.header().id()), (Opcode::UPDATE, 9));
        assert_eq!(section(update.prerequisite().unwrap()), ["_weir.lb.example IN TXT +"]);
        let expected = [
            "a.b.deep.lb.example * A -",
            "a.b.deep.lb.example * AAAA -",
            "ns1.lb.example * A -",
            "ns1.lb.example * AAAA -",
            "www.lb.example * A -",
            "www.lb.example * AAAA -",
            "old.lb.example * A -",
            "old.lb.example * AAAA -",
            "a.b.deep.lb.example IN A +",
            "ns1.lb.example IN A +",
            "www.lb.example IN A +",
            "www.lb.example IN A +",
            "www.lb.example IN A +",
            "www.lb.example IN AAAA +",
            "www.lb.example IN AAAA +",
            "_weir.lb.example * TXT -",
            "_weir.lb.example IN TXT +",
        ];
        assert_eq!(section(update.update().unwrap()), expected);
        let first = message(&zone, zone.origin(), None, 9).unwrap().finish().into_target();
        let first = Message::from_octets(first).unwrap();
        assert_eq!(section(first.prerequisite().unwrap()), ["_weir.lb.example NONE TXT -"]);
    }
}
