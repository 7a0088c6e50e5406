//! Answers as tables: question in, sections out.

use std::{
    net::{IpAddr, Ipv4Addr},
    str::FromStr as _,
    sync::Arc,
};

use domain::{
    base::{
        Message, MessageBuilder, Serial, Ttl,
        iana::{Class, Opcode, OptRcode, Rcode, Rtype, TsigRcode},
    },
    rdata::{AllRecordData, Soa},
    tsig::{ClientSequence, ClientTransaction, Key},
};
use proptest::prelude::*;

use super::{
    answer::{Answer, Facts, Kind, Outcome, Transport, answer, truncated},
    history::Serving,
    key::{KeyRing, Peer},
    sample::*,
    zone::{Name, Zone, ZoneObject},
};

const NOW: u64 = 1_800_000_000;
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 200));
const SECONDARY: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

struct World {
    origin: Name,
    serving: Serving,
    keys: KeyRing,
    peers: Vec<Peer>,
}

impl World {
    fn new(object: ZoneObject) -> Self {
        let zone = Arc::new(Zone::check(object).unwrap());
        let peer = Peer { from: vec!["192.0.2.2/32".parse().unwrap()], key: Some(test_key("transfer.")) };
        Self {
            origin: zone.origin().clone(),
            serving: Serving::default().with(zone),
            keys: KeyRing::new(vec![test_key("transfer."), test_key("other.")]),
            peers: vec![peer],
        }
    }

    fn facts(&self, shuffle: u64) -> Facts<'_> {
        Facts {
            origin: &self.origin,
            serving: &self.serving,
            keys: &self.keys,
            peers: &self.peers,
            payload_max: 1232,
            now_unix_s: NOW,
            shuffle,
        }
    }

    fn ask(&self, request: &[u8], client: IpAddr, transport: Transport) -> Option<Answer> {
        match answer(request, client, transport, &self.facts(1)) {
            Outcome::Silence => None,
            Outcome::Answer(answer) => Some(answer),
        }
    }
}

struct Query {
    name: &'static str,
    rtype: Rtype,
    class: Class,
    edns: Option<(u8, u16)>,
    opcode: Opcode,
}

impl Query {
    fn new(name: &'static str, rtype: Rtype) -> Self {
        Self { name, rtype, class: Class::IN, edns: None, opcode: Opcode::QUERY }
    }

    fn tail(&self, serial: Option<u32>) -> domain::base::message_builder::AdditionalBuilder<Vec<u8>> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(0x1234);
        builder.header_mut().set_rd(true);
        builder.header_mut().set_opcode(self.opcode);
        let mut question = builder.question();
        question.push((Name::from_str(self.name).unwrap(), self.rtype, self.class)).unwrap();
        let mut authority = question.authority();
        if let Some(serial) = serial {
            let ttl = Ttl::from_secs(1);
            let root = Name::root_vec();
            let soa = Soa::new(&root, &root, Serial(serial), ttl, ttl, ttl, ttl);
            authority.push((Name::from_str(self.name).unwrap(), Class::IN, ttl, soa)).unwrap();
        }
        let mut additional = authority.additional();
        if let Some((version, payload)) = self.edns {
            additional
                .opt(|opt| {
                    opt.set_version(version);
                    opt.set_udp_payload_size(payload);
                    opt.set_dnssec_ok(true);
                    Ok(())
                })
                .unwrap();
        }
        additional
    }

    fn bytes(&self) -> Vec<u8> {
        self.tail(None).finish()
    }
}

/// Sections of an answer: one word for each record, sorted, OPT left out.
fn sections(message: &Message<Vec<u8>>) -> [String; 3] {
    let mut out = [String::new(), String::new(), String::new()];
    for item in message.iter() {
        let (record, section) = item.unwrap();
        let record = record.to_any_record::<AllRecordData<_, _>>().unwrap();
        let index = match section {
            domain::base::message::Section::Answer => 0,
            domain::base::message::Section::Authority => 1,
            domain::base::message::Section::Additional => 2,
        };
        let word = match record.data() {
            AllRecordData::Opt(_) => continue,
            AllRecordData::Soa(soa) => format!("SOA{}/{}", soa.serial(), record.ttl().as_secs()),
            AllRecordData::Hinfo(_) => "HINFO".into(),
            data => data.to_string(),
        };
        let mut words: Vec<&str> = out[index].split(' ').filter(|word| !word.is_empty()).collect();
        words.push(&word);
        words.sort_unstable();
        out[index] = words.join(" ");
    }
    out
}

fn message(answer: &Answer) -> Message<Vec<u8>> {
    assert_eq!(answer.messages.len(), 1);
    Message::from_octets(answer.messages[0].clone()).unwrap()
}

#[test]
fn questions_and_their_answers() {
    let world = World::new(object(7));
    let a = "192.0.2.1 192.0.2.2 192.0.2.3";
    let soa = "SOA7/5";
    // Name, type, code, answer, authority, additional.
    for (name, rtype, rcode, answers, authority, additional) in [
        ("www.lb.example", Rtype::A, "NOERROR", a, "", ""),
        ("WWW.Lb.ExAmPlE", Rtype::A, "NOERROR", a, "", ""),
        ("www.lb.example", Rtype::AAAA, "NOERROR", "2001:db8::1 2001:db8::2", "", ""),
        ("www.lb.example", Rtype::TXT, "NOERROR", "", soa, ""),
        ("www.lb.example", Rtype::SOA, "NOERROR", "", soa, ""),
        ("www.lb.example", Rtype::NS, "NOERROR", "", soa, ""),
        ("a.b.deep.lb.example", Rtype::AAAA, "NOERROR", "", soa, ""),
        // Empty non-terminals exist (RFC 8020), and what is below them may not.
        ("deep.lb.example", Rtype::A, "NOERROR", "", soa, ""),
        ("b.deep.lb.example", Rtype::ANY, "NOERROR", "", soa, ""),
        ("c.deep.lb.example", Rtype::A, "NXDOMAIN", "", soa, ""),
        ("x.www.lb.example", Rtype::A, "NXDOMAIN", "", soa, ""),
        ("no.lb.example", Rtype::ANY, "NXDOMAIN", "", soa, ""),
        ("lb.example", Rtype::SOA, "NOERROR", "SOA7/10", "", ""),
        ("lb.example", Rtype::NS, "NOERROR", "ns1.lb.example. ns2.elsewhere.test.", "", "192.0.2.53"),
        ("lb.example", Rtype::A, "NOERROR", "", soa, ""),
        ("lb.example", Rtype::ANY, "NOERROR", "HINFO", "", ""),
        ("www.lb.example", Rtype::ANY, "NOERROR", "HINFO", "", ""),
        ("www.lb.example", Rtype::DS, "NOERROR", "", soa, ""),
        ("example", Rtype::A, "REFUSED", "", "", ""),
        ("lb.example.org", Rtype::A, "REFUSED", "", "", ""),
        ("xlb.example", Rtype::A, "REFUSED", "", "", ""),
        (".", Rtype::NS, "REFUSED", "", "", ""),
        ("www.lb.example", Rtype::TKEY, "NOTIMP", "", "", ""),
        ("www.lb.example", Rtype::MAILA, "NOTIMP", "", "", ""),
        ("www.lb.example", Rtype::OPT, "FORMERR", "", "", ""),
    ] {
        let answered = world.ask(&Query::new(name, rtype).bytes(), CLIENT, Transport::Udp).unwrap();
        let got = message(&answered);
        assert_eq!(got.header().rcode().to_string(), rcode, "{name} {rtype}");
        assert_eq!(sections(&got), [answers, authority, additional], "{name} {rtype}");
        let within = rcode == "NOERROR" || rcode == "NXDOMAIN";
        let header = got.header();
        assert_eq!(
            (header.id(), header.qr(), header.aa(), header.rd(), header.ra()),
            (0x1234, true, within, true, false)
        );
        if rcode != "FORMERR" {
            // The question comes back as it was written, letter by letter.
            assert_eq!(got.sole_question().unwrap().qname().to_string(), name.trim_end_matches('.'), "{name}");
        }
        let kind = match answered.kind {
            Kind::Positive(_) => !answers.is_empty(),
            Kind::Negative => !authority.is_empty(),
            Kind::Error => !within,
            Kind::Signed => false,
        };
        assert!(kind, "{name} {rtype} {:?}", answered.kind);
    }
    let chaos = Query { class: Class::CH, ..Query::new("www.lb.example", Rtype::TXT) };
    assert_eq!(world.ask(&chaos.bytes(), CLIENT, Transport::Udp).unwrap().rcode, OptRcode::REFUSED);
    let mut none = World::new(object(1));
    none.serving = Serving::default();
    let query = Query::new("www.lb.example", Rtype::A).bytes();
    assert_eq!(none.ask(&query, CLIENT, Transport::Udp).unwrap().rcode, OptRcode::SERVFAIL, "no zone yet");
}

#[test]
fn each_answer_is_shuffled_anew_and_the_first_address_is_fair() {
    let world = World::new(object(7));
    let query = Query::new("www.lb.example", Rtype::A).bytes();
    let mut first = std::collections::BTreeMap::<String, u32>::new();
    for shuffle in 0..3000 {
        let Outcome::Answer(answer) = answer(&query, CLIENT, Transport::Udp, &world.facts(shuffle)) else { panic!() };
        let got = message(&answer);
        let record = got.answer().unwrap().next().unwrap().unwrap();
        let record = record.to_any_record::<AllRecordData<_, _>>().unwrap();
        *first.entry(record.data().to_string()).or_default() += 1;
    }
    assert!(first.len() == 3 && first.values().all(|n| (850..1150).contains(n)), "{first:?}");
}

fn crowd(count: u8) -> World {
    let mut object = object(7);
    let many = (1..=count).map(|n| IpAddr::V4(Ipv4Addr::new(198, 51, 100, n))).collect();
    object.records.insert("many".into(), many);
    World::new(object)
}

#[test]
fn what_does_not_fit_is_truncated_whole() {
    let name = "many.lb.example";
    // Header 12, question 21, each record 16, OPT 11.
    for (count, edns, transport, whole) in [
        (29, None, Transport::Udp, true),
        (30, None, Transport::Udp, false),
        (29, Some((0, 100)), Transport::Udp, true),
        (30, Some((0, 512)), Transport::Udp, false),
        (60, Some((0, 1232)), Transport::Udp, true),
        (80, Some((0, 4096)), Transport::Udp, false),
        (250, None, Transport::Tcp, true),
    ] {
        let world = crowd(count);
        let query = Query { edns, ..Query::new(name, Rtype::A) };
        let got = message(&world.ask(&query.bytes(), CLIENT, transport).unwrap());
        let answers = got.header_counts().ancount();
        assert_eq!((got.header().tc(), answers), (!whole, if whole { count.into() } else { 0 }), "{count} {edns:?}");
        let limit = edns.map_or(512, |(_, size)| usize::from(size).clamp(512, 1232));
        assert!(transport == Transport::Tcp || got.as_slice().len() <= limit);
        assert_eq!(got.opt().is_some(), edns.is_some());
    }
}

#[test]
fn edns_is_answered_with_edns() {
    let world = World::new(object(7));
    let query = |version| Query { edns: Some((version, 4096)), ..Query::new("www.lb.example", Rtype::A) }.bytes();
    let got = message(&world.ask(&query(0), CLIENT, Transport::Udp).unwrap());
    let opt = got.opt().unwrap();
    assert_eq!((opt.version(), opt.udp_payload_size(), opt.dnssec_ok()), (0, 1232, true));
    let bad = world.ask(&query(1), CLIENT, Transport::Udp).unwrap();
    let got = message(&bad);
    assert_eq!((bad.rcode, got.opt_rcode()), (OptRcode::BADVERS, OptRcode::BADVERS));
    assert_eq!((got.header_counts().ancount(), got.opt().unwrap().version()), (0, 0));
    let plain = world.ask(&Query::new("no.lb.example", Rtype::A).bytes(), CLIENT, Transport::Udp).unwrap();
    assert!(message(&plain).opt().is_none());
}

/// `bytes` with the byte at `at` replaced.
fn with(mut bytes: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    bytes[at] = byte;
    bytes
}

#[test]
fn malformed_requests_get_formerr_or_silence() {
    let world = World::new(object(7));
    let good = Query::new("www.lb.example", Rtype::A).bytes();
    let edns = Query { edns: Some((0, 1232)), ..Query::new("www.lb.example", Rtype::A) }.bytes();
    let opt = edns[good.len()..].to_vec();
    let two_opts = with([edns.clone(), opt.clone()].concat(), 11, 2);
    let opt_as_answer = with(with(edns.clone(), 11, 0), 7, 1);
    let opt_not_of_root = [&edns[..good.len()], &[1, b'x'], &opt[..]].concat();
    for (what, request, rcode) in [
        ("nothing", vec![], None),
        ("less than a header", good[..11].to_vec(), None),
        ("a response", with(good.clone(), 2, 0x80), None),
        ("no question", with(good[..12].to_vec(), 5, 0), Some(OptRcode::FORMERR)),
        ("two questions", with([&good[..], &good[12..]].concat(), 5, 2), Some(OptRcode::FORMERR)),
        ("a question that is cut off", good[..good.len() - 3].to_vec(), Some(OptRcode::FORMERR)),
        ("a name that points to itself", [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat(), Some(OptRcode::FORMERR)),
        ("a label of a reserved kind", with(good.clone(), 12, 0x83), Some(OptRcode::FORMERR)),
        ("records that are not there", with(good.clone(), 11, 9), Some(OptRcode::FORMERR)),
        ("two OPT records", two_opts, Some(OptRcode::FORMERR)),
        ("OPT in the answer section", opt_as_answer, Some(OptRcode::FORMERR)),
        ("OPT of another name", opt_not_of_root, Some(OptRcode::FORMERR)),
        ("status", with(good.clone(), 2, 2 << 3), Some(OptRcode::NOTIMP)),
        ("an opcode of the future", with(good[..12].to_vec(), 2, 9 << 3), Some(OptRcode::NOTIMP)),
        ("NOTIFY", with(good.clone(), 2, 4 << 3), Some(OptRcode::REFUSED)),
        ("UPDATE", with(good.clone(), 2, 5 << 3), Some(OptRcode::REFUSED)),
        ("bytes after the end", [&good[..], b"trailing"].concat(), Some(OptRcode::NOERROR)),
    ] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let answered = world.ask(&request, CLIENT, transport);
            assert_eq!(answered.as_ref().map(|a| a.rcode), rcode, "{what}");
            let Some(answered) = answered else { continue };
            let got = message(&answered);
            assert_eq!(got.header().rcode(), rcode.unwrap_or(OptRcode::NOERROR).rcode(), "{what}");
            assert!(got.header().qr() && got.header().id() == 0x1234, "{what}");
            assert!(
                got.as_slice().len() <= request.len() || got.header().rcode() == Rcode::NOERROR,
                "{what}: no amplifier"
            );
        }
    }
}

#[test]
fn an_answer_held_back_says_only_come_over_tcp() {
    let world = World::new(object(7));
    let query = Query { edns: Some((0, 1232)), ..Query::new("www.lb.example", Rtype::A) }.bytes();
    let full = world.ask(&query, CLIENT, Transport::Udp).unwrap();
    let got = Message::from_octets(truncated(&full.messages[0]).unwrap()).unwrap();
    assert!(got.header().tc() && got.header().qr() && got.header_counts().ancount() == 0);
    assert_eq!(got.sole_question().unwrap().qname().to_string(), "www.lb.example");
    assert!(got.as_slice().len() <= query.len());
}

/// The request, signed with `key`, and what verifies the answers.
fn signed(query: &Query, serial: Option<u32>, key: &Arc<Key>, now: u64) -> (Vec<u8>, ClientSequence<Arc<Key>>) {
    let mut tail = query.tail(serial);
    let sequence =
        ClientSequence::request(Arc::clone(key), &mut tail, domain::rdata::tsig::Time48::from_u64(now)).unwrap();
    (tail.finish(), sequence)
}

#[test]
fn a_transfer_needs_address_and_key() {
    let world = World::new(object(7));
    let axfr = Query::new("lb.example", Rtype::AXFR);
    let (good, other) = (test_key("transfer."), test_key("other."));
    let unknown = test_key("unknown.");
    let forged =
        super::key::key(good.name().clone(), good.algorithm(), "YW5vdGhlciBzZWNyZXQgb2YgdHdlbnR5IGJ5dGVz").unwrap();
    for (what, client, key, now, rcode) in [
        ("both right", SECONDARY, Some(&good), NOW, OptRcode::NOERROR),
        ("no key", SECONDARY, None, NOW, OptRcode::REFUSED),
        ("a key for something else", SECONDARY, Some(&other), NOW, OptRcode::REFUSED),
        ("another address", CLIENT, Some(&good), NOW, OptRcode::REFUSED),
        ("a key that nobody knows", SECONDARY, Some(&unknown), NOW, OptRcode::NOTAUTH),
        ("another secret", SECONDARY, Some(&forged), NOW, OptRcode::NOTAUTH),
        ("a recording from yesterday", SECONDARY, Some(&good), NOW - 86_400, OptRcode::NOTAUTH),
    ] {
        let request = key.map_or_else(|| axfr.bytes(), |key| signed(&axfr, None, key, now).0);
        let answered = world.ask(&request, client, Transport::Tcp).unwrap();
        assert_eq!(answered.rcode, rcode, "{what}");
        let got = Message::from_octets(answered.messages[0].clone()).unwrap();
        assert_eq!(got.header().rcode(), rcode.rcode(), "{what}");
        if rcode == OptRcode::NOTAUTH {
            let tsig = got.get_last_additional::<domain::rdata::Tsig<_, _>>().unwrap();
            let wanted = match what {
                "another secret" => TsigRcode::BADSIG,
                "a recording from yesterday" => TsigRcode::BADTIME,
                _ => TsigRcode::BADKEY,
            };
            assert_eq!(tsig.data().error(), wanted, "{what}");
        }
        assert_eq!(got.header_counts().ancount() > 1, rcode == OptRcode::NOERROR, "{what}");
        assert_eq!(answered.transferred.is_some(), rcode == OptRcode::NOERROR, "{what}");
    }
    let keyless = Peer { from: vec!["192.0.2.0/24".parse().unwrap()], key: None };
    let world = World { peers: vec![keyless], ..world };
    assert_eq!(world.ask(&axfr.bytes(), CLIENT, Transport::Tcp).unwrap().rcode, OptRcode::NOERROR);
    assert_eq!(world.ask(&axfr.bytes(), CLIENT, Transport::Udp).unwrap().rcode, OptRcode::NOTIMP);
    // A forged source gets the SOA and no more.
    let ixfr = Query::new("lb.example", Rtype::IXFR).tail(Some(1)).finish();
    let got = message(&world.ask(&ixfr, CLIENT, Transport::Udp).unwrap());
    assert_eq!(sections(&got)[0], "SOA7/10");
    let below = Query::new("www.lb.example", Rtype::AXFR).bytes();
    assert_eq!(world.ask(&below, CLIENT, Transport::Tcp).unwrap().rcode, OptRcode::NOTAUTH);
    let no_soa = Query::new("lb.example", Rtype::IXFR).bytes();
    assert_eq!(world.ask(&no_soa, CLIENT, Transport::Tcp).unwrap().rcode, OptRcode::FORMERR);
}

#[test]
fn a_large_transfer_is_several_messages_each_signed() {
    let mut object = object(7);
    for n in 0..4000u32 {
        object.records.insert(format!("host-{n}"), vec![Ipv4Addr::from_bits(0x0a00_0000 + n).into()]);
    }
    let world = World::new(object);
    let key = test_key("transfer.");
    let query = Query { edns: Some((0, 1232)), ..Query::new("lb.example", Rtype::AXFR) };
    let (request, mut sequence) = signed(&query, None, &key, NOW);
    let answered = world.ask(&request, SECONDARY, Transport::Tcp).unwrap();
    assert!(answered.messages.len() > 3, "{}", answered.messages.len());
    let mut records = Vec::new();
    for bytes in &answered.messages {
        let mut message = Message::from_octets(bytes.clone()).unwrap();
        sequence.answer(&mut message, domain::rdata::tsig::Time48::from_u64(NOW)).unwrap();
        assert!(message.header().aa() && message.header().id() == 0x1234);
        for record in message.answer().unwrap() {
            records.push(record.unwrap().rtype());
        }
    }
    sequence.done().unwrap();
    assert_eq!(records.len(), 2 + 2 + 7 + 4000);
    assert_eq!((records[0], records[records.len() - 1]), (Rtype::SOA, Rtype::SOA));
    assert_eq!(records.iter().filter(|rtype| **rtype == Rtype::SOA).count(), 2);
}

#[test]
fn an_incremental_transfer_that_fits_no_datagram_is_only_the_soa() {
    let mut world = crowd(200);
    let mut next = object(8);
    next.records.insert("few".into(), vec![CLIENT]);
    let small = Arc::new(Zone::check(next.clone()).unwrap());
    world.serving = world.serving.with(small);
    let key = test_key("transfer.");
    let ixfr = |since, transport| {
        let (request, mut sequence) = signed(&Query::new("lb.example", Rtype::IXFR), Some(since), &key, NOW);
        let answered = world.ask(&request, SECONDARY, transport).unwrap();
        let mut got = message(&answered);
        sequence.answer(&mut got, domain::rdata::tsig::Time48::from_u64(NOW)).unwrap();
        (got.header_counts().ancount(), answered.transferred.map(|t| (t.serial, t.incremental)))
    };
    assert_eq!(ixfr(7, Transport::Tcp), (4 + 200 + 1, Some((8, true))));
    assert_eq!(ixfr(7, Transport::Udp).0, 1);
    assert_eq!(ixfr(8, Transport::Udp), (1, None));
    assert_eq!(ixfr(1, Transport::Tcp), (2 + 2 + 7 + 1, Some((8, false))), "an unknown version gets everything");
}

#[test]
fn signed_questions_get_signed_answers() {
    let world = World::new(object(7));
    let key = test_key("other.");
    for name in ["www.lb.example", "no.lb.example", "elsewhere.example"] {
        let query = Query { edns: Some((0, 1232)), ..Query::new(name, Rtype::A) };
        let mut tail = query.tail(None);
        let now = domain::rdata::tsig::Time48::from_u64(NOW);
        let transaction = ClientTransaction::request(Arc::clone(&key), &mut tail, now).unwrap();
        let answered = world.ask(&tail.finish(), CLIENT, Transport::Udp).unwrap();
        assert_eq!(answered.kind, Kind::Signed);
        transaction.answer(&mut message(&answered), now).unwrap();
    }
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..80), tcp: bool) {
        let world = World::new(object(7));
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        world.ask(&bytes, SECONDARY, transport);
    }

    #[test]
    fn no_damage_is_too_strange(at in 0usize..200, byte: u8, cut in 0usize..200, sign: bool, tcp: bool, which in 0usize..4) {
        let world = World::new(object(7));
        let rtype = [Rtype::A, Rtype::AXFR, Rtype::IXFR, Rtype::NS][which];
        let query = Query { edns: Some((0, 1232)), ..Query::new("lb.example", rtype) };
        let mut request = if sign { signed(&query, Some(3), &test_key("transfer."), NOW).0 } else { query.bytes() };
        if let Some(place) = request.get_mut(at) {
            *place = byte;
        }
        request.truncate(cut);
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        if let Some(answered) = world.ask(&request, SECONDARY, transport) {
            let limit = if tcp { 65_535 } else { 1232 };
            prop_assert!(answered.messages.iter().all(|m| m.len() <= limit && m.len() >= 12));
            prop_assert!(tcp || answered.messages.len() == 1);
        }
    }
}
