//! dig asks: answers, sizes, refusals.

use super::scene::{KEY, ORIGIN, OTHER_SECRET, SECRET, Scene, dig, short, zone};

const CONFIG: &str = r#"
[[key]]
name = "transfer.lb.example"
secret_file = "{secret}"
[[key]]
name = "other.lb.example"
secret_file = "{other}"
[[secondary]]
address = "127.0.0.1:9"
key = "transfer.lb.example"
"#;

#[test]
fn dig_gets_what_it_asks_for() {
    let many: Vec<String> = (1..=100).map(|n| format!("192.0.2.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let zone =
        zone(7, &[("www", &["192.0.2.1", "192.0.2.2", "2001:db8::1"]), ("many", &many), ("a.b", &["192.0.2.9"])]);
    let scene = Scene::start(Some(&zone), CONFIG);
    let ask = |arguments: &[&str]| dig(scene.port, arguments);
    assert_eq!(short(scene.port, &["www.lb.example", "A"]), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(short(scene.port, &["WWW.LB.eXample", "AAAA", "+tcp"]), ["2001:db8::1"]);
    // Status, flags and parts of the output.
    for (arguments, parts) in [
        (&["www.lb.example"][..], &["NOERROR", "qr aa rd;", "ANSWER: 2", "EDNS: version: 0", "udp: 1232"][..]),
        (&["no.lb.example"], &["NXDOMAIN", "AUTHORITY: 1", "hostmaster.example. 7"]),
        (&["b.lb.example"], &["NOERROR", "ANSWER: 0", "AUTHORITY: 1"]),
        (&["www.lb.example", "MX"], &["NOERROR", "ANSWER: 0", "AUTHORITY: 1"]),
        (&["www.lb.example", "ANY"], &["NOERROR", "RFC8482"]),
        (&["lb.example", "NS"], &["ns1.lb.example.", "ADDITIONAL: 2", "127.0.0.1"]),
        (&["elsewhere.org"], &["REFUSED", "ANSWER: 0"]),
        (&["www.lb.example", "CH", "TXT"], &["REFUSED"]),
        (&["www.lb.example", "+edns=1", "+noednsneg"], &["BADVERS", "EDNS: version: 0"]),
        (&["www.lb.example", "+noedns"], &["NOERROR", "ADDITIONAL: 0"]),
        (&["www.lb.example", "+opcode=NOTIFY"], &["REFUSED", "opcode: NOTIFY"]),
        (&["www.lb.example", "+opcode=UPDATE"], &["REFUSED", "opcode: UPDATE"]),
        (&["www.lb.example", "+opcode=STATUS"], &["NOTIMP"]),
        (&["www.lb.example", "+header-only"], &["FORMERR"]),
        (&["www.lb.example", "+dnssec"], &["NOERROR", "flags: do"]),
        // A hundred addresses do not fit a datagram, and fit a connection.
        (&["many.lb.example", "+bufsize=1232", "+ignore"], &["NOERROR", " tc ", "ANSWER: 0"]),
        (&["many.lb.example", "+noedns", "+ignore"], &["NOERROR", " tc ", "ANSWER: 0"]),
        (&["many.lb.example"], &["NOERROR", "ANSWER: 100", "(TCP)"]),
        (&["many.lb.example", "+tcp", "+noedns"], &["NOERROR", "ANSWER: 100"]),
    ] {
        let output = ask(arguments);
        for part in parts {
            assert!(output.contains(part), "{arguments:?} lacks {part}:\n{output}");
        }
    }
    // The answer comes from the address that was asked; dig would not take it from another.
    assert_eq!(short(scene.port, &["@127.0.0.5", "a.b.lb.example"]), ["192.0.2.9"]);
    let orders: std::collections::BTreeSet<String> = (0..30).map(|_| ask(&["www.lb.example", "+short"])).collect();
    assert_eq!(orders.len(), 2, "both orders of two addresses: {orders:?}");
}

#[test]
fn a_transfer_is_refused_to_strangers() {
    let scene = Scene::start(Some(&zone(7, &[("www", &["192.0.2.1"])])), CONFIG);
    let key = |name: &str, secret: &str| format!("hmac-sha256:{name}:{secret}");
    let good = key(KEY, SECRET);
    let axfr = |more: &[&str]| dig(scene.port, &[&[ORIGIN, "AXFR"], more].concat());
    let output = axfr(&["-y", &good]);
    assert!(output.contains("192.0.2.1") && output.contains("TSIG") && !output.contains("could not be validated"));
    assert_eq!(output.matches("hostmaster.example. 7").count(), 2, "{output}");
    let ixfr = dig(scene.port, &[ORIGIN, "IXFR=7", "-y", &good]);
    assert!(ixfr.matches("hostmaster.example. 7").count() == 1 && !ixfr.contains("192.0.2.1"), "{ixfr}");
    for (what, more) in [
        ("no key", vec![]),
        ("a key for something else", vec!["-y".to_owned(), key("other.lb.example", OTHER_SECRET)]),
        ("another secret", vec!["-y".to_owned(), key(KEY, OTHER_SECRET)]),
        ("an unknown key", vec!["-y".to_owned(), key("unknown.example", SECRET)]),
        ("another hash", vec!["-y".to_owned(), good.replace("sha256", "sha512")]),
        ("another address", vec!["-b".to_owned(), "127.0.0.9".to_owned(), "-y".to_owned(), good.clone()]),
    ] {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let output = axfr(&more);
        assert!(output.contains("Transfer failed"), "{what}:\n{output}");
        assert!(!output.contains("192.0.2.1"), "{what}:\n{output}");
    }
    assert_eq!(scene.metric("weir_dns_transfers_total{kind=\"axfr\"}"), 1.0);
}
