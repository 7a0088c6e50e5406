//! A request and the zone -> an answer.
//!
//! Pure. Owns: everything that RFC 1034, 1035, 2308, 6891, 8020 and 8482 ask of an authoritative server for a query, and who
//! gets a refusal, a FORMERR or silence. Refuses to know: sockets, clocks and random sources; time and shuffle seed come in.
//! Invariants: a response is never answered; an answer fits its transport; a record set goes out whole or the answer is
//! truncated; only [`transfer`] hands out more than what was asked for.

use std::{net::IpAddr, sync::Arc};

use domain::{
    base::{
        Message, ParsedName,
        iana::{Class, Opcode, OptRcode, Rcode, Rtype, TsigRcode},
        message_builder::{AnswerBuilder, PushError},
        record::ParsedRecord,
    },
    rdata::{Hinfo, tsig::Time48},
    tsig::{Key, ServerError, ServerSequence},
};
use rand::{SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};

use super::{
    history::Serving,
    key::{KeyRing, Peer},
    message::{self, Edns, STREAM_BYTES_MAX, Signer, Target},
    transfer,
    zone::{Data, Name, Zone},
};

/// Longest datagram that a client without EDNS takes, in bytes (RFC 1035, section 4.2.1).
pub const PLAIN_BYTES_MAX: u16 = 512;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A message of a connection.
    Tcp,
}

/// What an answer depends on besides the request.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Name of the zone that this server is for.
    pub origin: &'a Name,
    /// The zone and its last versions; no zone has come yet if it is empty.
    pub serving: &'a Serving,
    /// Keys that sign requests.
    pub keys: &'a KeyRing,
    /// Who may transfer the zone.
    pub peers: &'a [Peer],
    /// Largest datagram that is sent, and taken, in bytes.
    pub payload_max: u16,
    /// Now, in seconds since 1970.
    pub now_unix_s: u64,
    /// Decides the order of addresses in this answer.
    pub shuffle: u64,
}

/// What to do about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: an answer would feed a loop, or there is nobody to answer.
    Silence,
    /// Send these messages in this order; one, but for transfers.
    Answer(Answer),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The messages.
    pub messages: Vec<Vec<u8>>,
    /// Response code.
    pub rcode: OptRcode,
    /// What the answer says, for limits.
    pub kind: Kind,
    /// What was transferred, if the zone was.
    pub transferred: Option<Transferred>,
}

/// A transfer that is being answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Serial number that the client has afterwards.
    pub serial: u32,
    /// Whether it got differences only.
    pub incremental: bool,
}

impl Transferred {
    /// `axfr` or `ixfr`.
    pub const fn kind(&self) -> &'static str {
        if self.incremental { "ixfr" } else { "axfr" }
    }
}

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Records of a name that exists; by name, as an index into nothing but itself.
    Positive(u64),
    /// The name or type does not exist.
    Negative,
    /// Anything else.
    Error,
    /// The request was signed with a key of ours: no limit applies.
    Signed,
}

/// A request that has been read.
struct Request<'a> {
    message: &'a Message<Vec<u8>>,
    name: ParsedName<&'a [u8]>,
    qtype: Rtype,
    edns: Option<Edns>,
    limit: usize,
}

/// Why a request is not answered in the ordinary way.
enum Refusal {
    Malformed,
    Rcode(OptRcode),
}

impl From<PushError> for Refusal {
    fn from(_: PushError) -> Self {
        Self::Rcode(OptRcode::SERVFAIL)
    }
}

/// Answers `request`, which `client` sent.
pub fn answer(request: &[u8], client: IpAddr, transport: Transport, facts: &Facts<'_>) -> Outcome {
    let Ok(mut message) = Message::from_octets(request.to_vec()) else { return Outcome::Silence };
    let header = message.header();
    if header.qr() {
        return Outcome::Silence;
    }
    let now = Time48::from_u64(facts.now_unix_s);
    if !matches!(header.opcode(), Opcode::QUERY | Opcode::NOTIFY | Opcode::UPDATE) {
        // The form of what follows is known to those who know the opcode.
        return bare(&message, OptRcode::NOTIMP);
    }
    let edns = match read_records(&message) {
        Ok(edns) => edns,
        Err(()) => return bare(&message, OptRcode::FORMERR),
    };
    let unsigned = message.clone();
    let mut signer = match ServerSequence::request(facts.keys, &mut message, now) {
        Ok(signer) => signer,
        Err(error) => return bad_signature(error, &unsigned),
    };
    let limit = match (transport, edns.as_ref()) {
        (Transport::Tcp, _) => STREAM_BYTES_MAX,
        (Transport::Udp, None) => usize::from(PLAIN_BYTES_MAX),
        (Transport::Udp, Some(theirs)) => {
            usize::from(theirs.payload.clamp(PLAIN_BYTES_MAX, facts.payload_max.max(PLAIN_BYTES_MAX)))
        }
    };
    let ours =
        |rcode| edns.as_ref().map(|edns| Edns { payload_max: facts.payload_max, dnssec_ok: edns.dnssec_ok, rcode });
    let answered = (|| {
        if edns.as_ref().is_some_and(|edns| edns.version > 0) {
            return Err(Refusal::Rcode(OptRcode::BADVERS));
        }
        if header.opcode() != Opcode::QUERY {
            // A primary takes no NOTIFY, and its zone changes only at its source.
            return Err(Refusal::Rcode(OptRcode::REFUSED));
        }
        let question = message.sole_question().map_err(|_| Refusal::Malformed)?;
        let name = question.qname().deref_octets();
        let request =
            Request { message: &message, name, qtype: question.qtype(), edns: ours(OptRcode::NOERROR), limit };
        if question.qclass() != Class::IN || !request.name.ends_with(facts.origin) {
            return Err(Refusal::Rcode(OptRcode::REFUSED));
        }
        let Some(zone) = facts.serving.current() else { return Err(Refusal::Rcode(OptRcode::SERVFAIL)) };
        match request.qtype {
            Rtype::AXFR | Rtype::IXFR => transferred(&request, client, transport, zone, signer.take(), facts, now),
            // Meta types that are questions of nobody (RFC 6895, section 3.1), and those that nobody implements.
            Rtype::OPT => Err(Refusal::Malformed),
            Rtype::TSIG | Rtype::TKEY | Rtype::MAILA | Rtype::MAILB => Err(Refusal::Rcode(OptRcode::NOTIMP)),
            _ => query(&request, zone, &mut signer, facts, now),
        }
    })();
    let (rcode, question) = match answered {
        Ok(outcome) => return outcome,
        Err(Refusal::Malformed) => (OptRcode::FORMERR, false),
        Err(Refusal::Rcode(rcode)) => (rcode, true),
    };
    let start = message::start(limit, edns.is_some(), signer.as_ref());
    let tail = if question {
        start.start_error(&message, rcode.rcode()).additional()
    } else {
        empty(start, &message, rcode).additional()
    };
    let kind = if signer.is_some() { Kind::Signed } else { Kind::Error };
    match message::finish(tail, ours(rcode), signer.as_mut(), now) {
        Ok(bytes) => single(bytes, rcode, kind),
        Err(_) => Outcome::Silence,
    }
}

/// The answer to a request whose signature is wrong (RFC 8945, section 5.2).
fn bad_signature(error: ServerError<Arc<Key>>, request: &Message<Vec<u8>>) -> Outcome {
    // The library says FORMERR where a signature does not match; section 5.2.3 wants BADSIG.
    let mismatch = error.error() == TsigRcode::FORMERR;
    let Ok(tail) = error.build_message(request, message::start(STREAM_BYTES_MAX, false, None)) else {
        return Outcome::Silence;
    };
    let malformed = tail.header().rcode() == Rcode::FORMERR;
    let mut bytes = tail.finish().into_target();
    if malformed {
        return single(bytes, OptRcode::FORMERR, Kind::Error);
    }
    // An error's TSIG ends with the code and the length, zero, of other data.
    let code = bytes.len().saturating_sub(4)..bytes.len().saturating_sub(2);
    if mismatch && let Some(code) = bytes.get_mut(code) {
        code.copy_from_slice(&TsigRcode::BADSIG.to_int().to_be_bytes());
    }
    single(bytes, OptRcode::NOTAUTH, Kind::Error)
}

/// The OPT record of a request.
struct Theirs {
    version: u8,
    payload: u16,
    dnssec_ok: bool,
}

/// Reads every record of a request: whether it is well formed, and its OPT record.
fn read_records(message: &Message<Vec<u8>>) -> Result<Option<Theirs>, ()> {
    let mut questions = message.question();
    for question in questions.by_ref() {
        question.map_err(drop)?;
    }
    let mut opt = None;
    let mut section = Some(questions.answer().map_err(drop)?);
    let mut additional = 2;
    while let Some(mut records) = section {
        for record in records.by_ref() {
            let record: ParsedRecord<'_, Vec<u8>> = record.map_err(drop)?;
            if record.rtype() != Rtype::OPT {
                continue;
            }
            // RFC 6891, section 6.1.1: at most one, of the root, in the additional section.
            if additional > 0 || opt.is_some() || !record.owner().is_root() {
                return Err(());
            }
            let ttl = record.ttl().as_secs();
            let dnssec_ok = ttl & 0x8000 != 0;
            opt = Some(Theirs { version: (ttl >> 16) as u8, payload: record.class().to_int(), dnssec_ok });
        }
        additional -= 1;
        section = records.next_section().map_err(drop)?;
    }
    Ok(opt)
}

/// The start of an answer without a question, for requests whose question cannot be repeated.
fn empty(
    mut start: domain::base::MessageBuilder<Target>,
    message: &Message<Vec<u8>>,
    rcode: OptRcode,
) -> AnswerBuilder<Target> {
    let asked = message.header();
    let header = start.header_mut();
    header.set_id(asked.id());
    header.set_qr(true);
    header.set_opcode(asked.opcode());
    header.set_rd(asked.rd());
    header.set_rcode(rcode.rcode());
    start.answer()
}

/// A header and nothing else.
fn bare(message: &Message<Vec<u8>>, rcode: OptRcode) -> Outcome {
    let answer = empty(message::start(usize::from(PLAIN_BYTES_MAX), false, None), message, rcode);
    single(answer.finish().into_target(), rcode, Kind::Error)
}

fn single(message: Vec<u8>, rcode: OptRcode, kind: Kind) -> Outcome {
    Outcome::Answer(Answer { messages: vec![message], rcode, kind, transferred: None })
}

/// An answer to an ordinary question about a name in the zone.
fn query(
    request: &Request<'_>,
    zone: &Zone,
    signer: &mut Option<Signer>,
    facts: &Facts<'_>,
    now: Time48,
) -> Result<Outcome, Refusal> {
    let node = zone.node(&request.name);
    let apex = request.name == *zone.origin();
    let mut data: Vec<Data> = match (node, request.qtype) {
        (None, _) => Vec::new(),
        (Some(_), Rtype::SOA) if apex => vec![Data::Soa(zone.serial())],
        (Some(_), Rtype::NS) if apex => zone.ns().iter().cloned().map(Data::Ns).collect(),
        (Some(node), Rtype::A) => node.a.iter().copied().map(Data::A).collect(),
        (Some(node), Rtype::AAAA) => node.aaaa.iter().copied().map(Data::Aaaa).collect(),
        (Some(_), _) => Vec::new(),
    };
    // Clients take the first address: each answer spreads them anew.
    data.shuffle(&mut SmallRng::seed_from_u64(facts.shuffle));
    // RFC 8482, section 4.2: a synthesised record instead of everything, of names that have anything.
    let any = request.qtype == Rtype::ANY && (apex || node.is_some_and(|node| !node.is_empty()));
    let rcode = if node.is_some() { OptRcode::NOERROR } else { OptRcode::NXDOMAIN };
    let negative = data.is_empty() && !any;

    let start = || message::start(request.limit, request.edns.is_some(), signer.as_ref());
    let written = (|| -> Result<_, PushError> {
        let mut answer = start().start_answer(request.message, rcode.rcode())?;
        answer.header_mut().set_aa(true);
        for data in &data {
            message::push(&mut answer, zone, &request.name, zone.ttl_s(), data)?;
        }
        if any {
            push_hinfo(&mut answer, request, zone)?;
        }
        let mut authority = answer.authority();
        if negative {
            message::push(&mut authority, zone, zone.origin(), zone.negative_ttl_s(), &Data::Soa(zone.serial()))?;
        }
        let mut additional = authority.additional();
        if request.qtype == Rtype::NS {
            glue(&mut additional, zone, &data);
        }
        Ok(additional)
    })();
    let tail = match written {
        Ok(tail) => tail,
        Err(_) => {
            // RFC 2181, section 9: a record set that does not fit whole is not sent in part.
            let mut answer = start().start_answer(request.message, rcode.rcode())?;
            answer.header_mut().set_aa(true);
            answer.header_mut().set_tc(true);
            answer.additional()
        }
    };
    let kind = match (signer.is_some(), negative) {
        (true, _) => Kind::Signed,
        (_, true) => Kind::Negative,
        (_, false) => Kind::Positive(fold(&request.name)),
    };
    let edns = request.edns.map(|edns| Edns { rcode, ..edns });
    Ok(single(message::finish(tail, edns, signer.as_mut(), now)?, rcode, kind))
}

fn push_hinfo(answer: &mut AnswerBuilder<Target>, request: &Request<'_>, zone: &Zone) -> Result<(), PushError> {
    use domain::base::{CharStr, Ttl};
    // Nine and no bytes: both are character strings.
    let (Ok(cpu), Ok(os)) = (CharStr::from_octets(&b"RFC8482"[..]), CharStr::from_octets(&b""[..])) else {
        return Ok(());
    };
    answer.push((&request.name, Class::IN, Ttl::from_secs(zone.ttl_s()), Hinfo::new(cpu, os)))
}

/// Addresses of the name servers in `ns` that the zone itself has; as many as fit.
fn glue(additional: &mut message::Tail, zone: &Zone, ns: &[Data]) {
    for data in ns {
        let Data::Ns(name) = data else { continue };
        for address in zone.node(name).into_iter().flat_map(|node| node.data()) {
            if message::push(additional, zone, name, zone.ttl_s(), &address).is_err() {
                return;
            }
        }
    }
}

/// A small number for a name, the same in any case.
fn fold(name: &ParsedName<&[u8]>) -> u64 {
    let labels = name.iter().flat_map(|label| label.as_slice().iter().map(u8::to_ascii_lowercase).chain([0]));
    // FNV-1a: the limiter mixes it with its secret, and names that exist are few and ours.
    labels.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A transfer, to those who may have it.
fn transferred(
    request: &Request<'_>,
    client: IpAddr,
    transport: Transport,
    zone: &Arc<Zone>,
    signer: Option<Signer>,
    facts: &Facts<'_>,
    now: Time48,
) -> Result<Outcome, Refusal> {
    let refused = |mut signer: Option<Signer>, rcode: OptRcode| {
        let start = message::start(request.limit, request.edns.is_some(), signer.as_ref());
        let tail = start.start_error(request.message, rcode.rcode()).additional();
        let edns = request.edns.map(|edns| Edns { rcode, ..edns });
        let kind = if signer.is_some() { Kind::Signed } else { Kind::Error };
        Ok(single(message::finish(tail, edns, signer.as_mut(), now)?, rcode, kind))
    };
    let key = signer.as_ref().map(Signer::key);
    if !facts.peers.iter().any(|peer| peer.may_transfer(client, key)) {
        return refused(signer, OptRcode::REFUSED);
    }
    if request.name != *zone.origin() {
        return refused(signer, OptRcode::NOTAUTH);
    }
    let since = match request.qtype {
        Rtype::IXFR => match transfer::since(request.message) {
            Some(serial) => Some(serial),
            None => return Err(Refusal::Malformed),
        },
        // RFC 5936, section 4.2: there is no AXFR over UDP.
        _ if transport == Transport::Udp => return refused(signer, OptRcode::NOTIMP),
        _ => None,
    };
    let mut plan = transfer::plan(facts.serving, zone, since);
    if transport == Transport::Udp && signer.is_none() {
        // The source of a datagram without a signature may be forged: it gets the SOA and has to come over TCP.
        plan.0.truncate(1);
    }
    let asked = transfer::Asked { message: request.message, edns: request.edns, limit: request.limit };
    let one_datagram = transport == Transport::Udp;
    let kind = if signer.is_some() { Kind::Signed } else { Kind::Positive(0) };
    let messages = transfer::messages(&plan, &asked, signer, now, one_datagram)?;
    let transferred =
        (!plan.is_only_soa()).then(|| Transferred { serial: zone.serial(), incremental: plan.is_incremental() });
    Ok(Outcome::Answer(Answer { messages, rcode: OptRcode::NOERROR, kind, transferred }))
}

/// An answer to `request` that says nothing but "ask over TCP", in place of one that a limit held back.
pub fn truncated(answer: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_octets(answer).ok()?;
    let mut start = message::start(usize::from(PLAIN_BYTES_MAX), false, None);
    let header = start.header_mut();
    *header = message.header();
    header.set_tc(true);
    let mut questions = start.question();
    for question in message.question().flatten() {
        questions.push(question).ok()?;
    }
    Some(questions.finish().into_target())
}
