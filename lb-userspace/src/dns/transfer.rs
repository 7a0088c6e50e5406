//! Transfers of the zone: AXFR (RFC 5936) and IXFR (RFC 1995) as lists of records, and those lists as signed messages.
//!
//! Pure. Owns: what a transfer holds and how it is cut into messages. Refuses to know: who may have it. Invariants: the first
//! and the last record are the SOA of the current version; every message is signed if the request was (RFC 8945, 5.3.1).

use std::{collections::BTreeSet, sync::Arc};

use domain::{
    base::{
        Message,
        iana::Rcode,
        message_builder::{AnswerBuilder, PushError},
    },
    rdata::{Soa, tsig::Time48},
};

use super::{
    history::Serving,
    message::{self, Edns, Signer, Target},
    zone::{Data, Name, Zone, newer},
};

/// Bytes of one message of a transfer: large enough to be few, small enough for every receiver's buffer.
const MESSAGE_BYTES: usize = 16 << 10;

/// A record of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Version of the zone that an SOA describes.
    pub zone: Arc<Zone>,
    /// Owner.
    pub owner: Name,
    /// What it says.
    pub data: Data,
    /// TTL, in seconds.
    pub ttl_s: u32,
}

/// Everything that is sent for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan(pub Vec<Entry>);

impl Plan {
    /// Whether the client already has the newest version.
    pub fn is_only_soa(&self) -> bool {
        self.0.len() == 1
    }

    /// Whether it holds differences: its second record is an SOA too, that of the client's version.
    pub fn is_incremental(&self) -> bool {
        self.0.len() > 2 && self.0.get(1).is_some_and(|entry| matches!(entry.data, Data::Soa(_)))
    }
}

/// The parts of a request that its answer repeats or heeds.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The request.
    pub message: &'a Message<Vec<u8>>,
    /// EDNS of the answer.
    pub edns: Option<Edns>,
    /// Longest message, in bytes.
    pub limit: usize,
}

/// The serial number that an IXFR request says its client has.
pub fn since(message: &Message<Vec<u8>>) -> Option<u32> {
    let authority = message.authority().ok()?;
    let mut soas = authority.limit_to::<Soa<_>>();
    let soa = soas.next()?.ok()?;
    Some(soa.data().serial().into_int())
}

/// What is sent to a client that has the version `since`, or nothing.
pub fn plan(serving: &Serving, zone: &Arc<Zone>, since: Option<u32>) -> Plan {
    let soa = |of: &Arc<Zone>| Entry {
        zone: Arc::clone(of),
        owner: of.origin().clone(),
        data: Data::Soa(of.serial()),
        ttl_s: of.ttl_s(),
    };
    if since.is_some_and(|since| !newer(zone.serial(), since)) {
        return Plan(vec![soa(zone)]);
    }
    let set = |of: &Arc<Zone>| -> BTreeSet<(Name, Data, u32)> {
        of.records().map(|(owner, data)| (owner.clone(), data, of.ttl_s())).collect()
    };
    let entry = |(owner, data, ttl_s): &(Name, Data, u32)| Entry {
        zone: Arc::clone(zone),
        owner: owner.clone(),
        data: data.clone(),
        ttl_s: *ttl_s,
    };
    let new = set(zone);
    let mut entries = vec![soa(zone)];
    match since.and_then(|since| serving.version(since)) {
        Some(old) => {
            // RFC 1995, section 4: one difference, however many versions lie between.
            let gone = set(old);
            entries.push(soa(old));
            entries.extend(gone.difference(&new).map(entry));
            entries.push(soa(zone));
            entries.extend(new.difference(&gone).map(entry));
        }
        None => entries.extend(new.iter().map(entry)),
    }
    entries.push(soa(zone));
    Plan(entries)
}

/// The messages of a transfer. With `one_datagram` the plan is sent in one message, or only its SOA if it does not fit:
/// then the client asks again over TCP (RFC 1995, section 2).
///
/// # Errors
/// A record does not fit a message by itself.
pub fn messages(
    plan: &Plan,
    asked: &Asked<'_>,
    mut signer: Option<Signer>,
    now: Time48,
    one_datagram: bool,
) -> Result<Vec<Vec<u8>>, PushError> {
    let limit = if one_datagram { asked.limit } else { asked.limit.min(MESSAGE_BYTES) };
    let mut out = Vec::new();
    let mut rest = plan.0.as_slice();
    while let Some((first, _)) = rest.split_first() {
        let mut answer = begin(asked, limit, signer.as_ref(), out.is_empty())?;
        push(&mut answer, first)?;
        let mut taken = 1;
        while let Some(entry) = rest.get(taken)
            && push(&mut answer, entry).is_ok()
        {
            taken += 1;
        }
        if one_datagram && taken < rest.len() {
            answer = begin(asked, limit, signer.as_ref(), true)?;
            push(&mut answer, first)?;
            taken = rest.len();
        }
        let edns = asked.edns.filter(|_| out.is_empty());
        out.push(message::finish(answer.additional(), edns, signer.as_mut(), now)?);
        rest = rest.get(taken..).unwrap_or_default();
    }
    Ok(out)
}

fn begin(
    asked: &Asked<'_>,
    limit: usize,
    signer: Option<&Signer>,
    first: bool,
) -> Result<AnswerBuilder<Target>, PushError> {
    let mut start = message::start(limit, first && asked.edns.is_some(), signer);
    let mut answer = if first {
        start.start_answer(asked.message, Rcode::NOERROR)?
    } else {
        // RFC 5936, section 2.2.1: the question stands in the first message, and need not in the others.
        let header = start.header_mut();
        header.set_id(asked.message.header().id());
        header.set_qr(true);
        start.answer()
    };
    answer.header_mut().set_aa(true);
    Ok(answer)
}

fn push(answer: &mut AnswerBuilder<Target>, entry: &Entry) -> Result<(), PushError> {
    message::push(answer, &entry.zone, &entry.owner, entry.ttl_s, &entry.data)
}

#[cfg(test)]
mod tests {
    use super::{super::sample::*, *};

    fn serving(versions: &[u32]) -> Serving {
        versions.iter().fold(Serving::default(), |serving, serial| {
            let mut object = object(*serial);
            let address = format!("192.0.2.{}", 100 + serial);
            object.records.insert("new".into(), vec![address.parse().unwrap()]);
            serving.with(Arc::new(Zone::check(object).unwrap()))
        })
    }

    fn words(plan: &Plan) -> Vec<String> {
        let word = |e: &Entry| match &e.data {
            Data::Soa(serial) => format!("soa {serial}"),
            Data::Ns(_) => "ns".to_owned(),
            Data::A(address) => address.to_string(),
            Data::Aaaa(address) => address.to_string(),
        };
        plan.0.iter().map(word).collect()
    }

    #[test]
    fn what_a_client_gets_depends_on_what_it_has() {
        let serving = serving(&[1, 2, 3]);
        let zone = Arc::clone(serving.current().unwrap());
        let plan = |since| words(&plan(&serving, &zone, since));
        // Newest, and newer than newest (it has spoken with a primary that is ahead).
        assert_eq!(plan(Some(3)), ["soa 3"]);
        assert_eq!(plan(Some(4)), ["soa 3"]);
        // Differences, one and two versions apart.
        assert_eq!(plan(Some(2)), ["soa 3", "soa 2", "192.0.2.102", "soa 3", "192.0.2.103", "soa 3"]);
        assert_eq!(plan(Some(1)), ["soa 3", "soa 1", "192.0.2.101", "soa 3", "192.0.2.103", "soa 3"]);
        // Unknown version, and none: everything.
        let all = plan(None);
        assert_eq!((all.len(), all[0].as_str(), all[all.len() - 1].as_str()), (2 + 10, "soa 3", "soa 3"));
        assert_eq!(plan(Some(0)), all);
    }
}
