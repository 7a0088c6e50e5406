//! Golden files (`tests/import/*.keepalived`, `*.ipvsadm`, each with the TOML and the notes that it becomes), and what must hold for
//! any text.

use std::{collections::BTreeSet, fs, path::PathBuf};

use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    super::{Config, code::Severity, emit},
    *,
};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/import")
}

/// What the golden file holds.
fn shown(source: Source, name: &str, text: &str) -> String {
    match import(source, name, text, &[]) {
        Err(error) => format!("{error}\nhint: {}\n", error.hint),
        Ok(Imported { text, notes, omitted, checked }) => {
            let notes: String = notes.iter().map(|note| format!("line {}: {}\n", note.line, note.text)).collect();
            assert_eq!(omitted, 0);
            format!("{text}\n--- notes\n{notes}\n--- check\n{}{}\n", checked.render(&text, false), checked.summary())
        }
    }
}

#[test]
fn every_import_is_as_agreed() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut different = Vec::new();
    let mut sources = BTreeSet::new();
    let entries = fs::read_dir(folder()).expect("the folder of golden files");
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source = match path.extension().and_then(|extension| extension.to_str()) {
            Some("keepalived") => Source::Keepalived,
            Some("ipvsadm") => Source::Ipvsadm,
            _ => continue,
        };
        sources.insert(format!("{source:?}"));
        let shown = shown(source, &name, &fs::read_to_string(&path).expect("a golden file"));
        let golden = path.with_file_name(format!("{name}.txt"));
        if update {
            fs::write(&golden, &shown).expect("a golden file can be written");
        } else if fs::read_to_string(&golden).unwrap_or_default() != shown {
            different.push(format!("--- {name}\n{shown}"));
        }
    }
    assert_eq!(sources.len(), 2, "both programs have golden files");
    assert!(different.is_empty(), "differs from tests/import (UPDATE_GOLDEN=1 rewrites):\n{}", different.join("\n"));
}

fn config(source: Source, text: &str) -> Config {
    let imported = import(source, "f", text, &["eth0".to_owned()]).expect("a text of that form");
    let shown = imported.checked.render(&imported.text, false);
    imported.checked.config.unwrap_or_else(|| panic!("{shown}\n{}", imported.text))
}

/// One service says the same in both programs' words.
#[test]
fn both_programs_become_the_same_service() {
    let keepalived = "virtual_server 192.0.2.1 443 {\n lb_algo wrr\n lb_kind NAT\n protocol TCP\n\
                      real_server 10.0.0.1 8443 {\n weight 3\n }\n real_server 10.0.0.2 8443 {\n uthreshold 9\n }\n}\n";
    let ipvsadm = "-A -t 192.0.2.1:443 -s wrr\n-a -t 192.0.2.1:443 -r 10.0.0.1:8443 -m -w 3\n\
                   -a -t 192.0.2.1:443 -r 10.0.0.2:8443 -m -w 1 -x 9 -y 0\n";
    let (a, b) = (config(Source::Keepalived, keepalived), config(Source::Ipvsadm, ipvsadm));
    assert_eq!(emit(&a), emit(&b));
    assert_eq!(a.services[0].backends[1].max_connections, 9);
}

/// keepalived gives a backend up after `retry` attempts more than one, and waits as long as the innermost block says.
#[test]
fn checks_keep_their_counts_and_times() {
    let text = "virtual_server 192.0.2.1 80 {\n lb_algo mh\n lb_kind DR\n delay_loop 10\n connect_timeout 4\n retry 5\n\
                real_server 10.0.0.1 80 {\n connect_timeout 2.5\n HTTP_GET {\n url {\n path /up\n status_code 200\n }\n\
                connect_port 8080\n retry 2\n }\n }\n}\n";
    let config = config(Source::Keepalived, text);
    let check = config.services[0].health_check.clone().expect("a check");
    assert_eq!(check.probe, super::super::Probe::Http { path: "/up".into(), host: None });
    assert_eq!((check.port, check.rise, check.fall), (Some(8080), 1, 3));
    assert_eq!((check.interval.as_millis(), check.timeout.as_millis()), (10_000, 2500));
}

/// Each statement, where it may stand, changes what comes out or is told about.
#[test]
fn nothing_of_keepalived_goes_without_a_word() {
    let told = |server: &str, real: &str, check: &str| {
        let text = format!(
            "virtual_server 192.0.2.1 80 {{\n lb_algo mh\n lb_kind DR\n protocol UDP\n{server}\n real_server 10.0.0.1 80 {{\n{real}\n\
             HTTP_GET {{\n{check}\n url {{\n path /up\n}}\n}}\n}}\n}}\n"
        );
        let imported = import(Source::Keepalived, "f", &text, &["eth0".to_owned()]).expect("a text of that form");
        let notes: Vec<String> = imported.notes.into_iter().map(|note| note.text).collect();
        // Notes stand in the text as comments, with their lines.
        let text: String = imported.text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        (text, notes)
    };
    let timers = "delay_loop 7,delay_loop soon,connect_timeout 3,connect_timeout x,connect_timeout,retry 4,retry many,\
                  nb_get_retry 5,delay_before_retry 2,warmup 9,alpha,virtualhost,virtualhost h";
    let server = "lb_algo rr,lvs_sched rr,lb_kind NAT,lvs_method TUN,lb_kind X,protocol TCP,protocol X,persistence_timeout 5,\
                  persistence_granularity 255.0.0.0,persistence_engine sip,ops,inhibit_on_failure,weight 3,weight heavy,weight,\
                  sorry_server 10.0.0.9 80,quorum 1,hysteresis 1,quorum_up /x,mh-port,mh-fallback,alpha,omega,ha_suspend,\
                  smtp_alert,bind_if eth1";
    let real = "weight 3,weight heavy,uthreshold 5,uthreshold many,lthreshold 5,inhibit_on_failure,lvs_method NAT,lvs_method X,\
                notify_up /x,notify_down /x,omega,TCP_CHECK,MISC_CHECK,DNS_CHECK,smtp_alert";
    let check = "connect_port 81,connect_port http,connect_ip 10.0.0.9,http_protocol 1.0,fast_recovery,log_all_failures,\
                 bindto 10.0.0.8,fwmark 1,url,regex x,ssl";
    let none = told("", "", "");
    let mut silent = Vec::new();
    for (place, list) in [("server", server), ("real", real), ("check", check)] {
        for statement in list.split(',').chain(timers.split(',')).map(str::trim) {
            let block =
                if statement.ends_with("_CHECK") { format!("{statement} {{\n}}") } else { statement.to_owned() };
            let found = match place {
                "server" => told(&block, "", ""),
                "real" => told("", &block, ""),
                _ => told("", "", &block),
            };
            if found == none {
                silent.push(format!("{statement} in {place}"));
            }
        }
    }
    assert_eq!(silent, [""; 0]);
}

#[test]
fn a_large_group_needs_larger_limits_and_gets_them() {
    let text = "virtual_server_group g {\n 192.0.2.0/24 80\n 192.0.3.0/24 80\n}\nvirtual_server group g {\n lb_algo mh\n\
                lb_kind TUN\n real_server 10.0.0.1 80 {\n}\n}\n";
    assert_eq!(config(Source::Keepalived, text).services.len(), 512);
}

/// What must hold for any text at all.
fn total(source: Source, text: &str) {
    let Ok(imported) = import(source, "f", text, &["eth0".to_owned()]) else { return };
    let lines = text.lines().count().max(1);
    assert!(imported.notes.iter().all(|note| (1..=lines).contains(&note.line)), "{:?}", imported.notes);
    // What is left to the user is what only two services together get wrong.
    for found in imported.checked.diagnostics.iter().filter(|found| found.severity() == Severity::Error) {
        assert_eq!(found.code.as_str(), "nat-ambiguous", "{found:?}\n{}\nfrom\n{text}", imported.text);
    }
}

const PIECES: &[&str] = &[
    "\n",
    "\n",
    "\n",
    " ",
    "{",
    "}",
    " {\n",
    "\n}\n",
    "\"",
    "'",
    "#",
    "!",
    "\\",
    "\u{0}",
    "ü",
    "$A=1\n",
    "$A ",
    "${A}",
    "@x ",
    "~SEQ(A, 3) ",
    "\nvirtual_server 192.0.2.1 80 {\n",
    "\nvirtual_server 2001:db8::1 53 {\n",
    "\nvirtual_server fwmark 1 {\n",
    "\nvirtual_server group g {\n",
    "\nvirtual_server_group g {\n 192.0.2.1-20 80\n 2001:db8::1-f 81\n}\n",
    "\nvirtual_server 0.0.0.0 {\n",
    "\nreal_server 10.0.0.1 80 {\n",
    "\nreal_server 10.0.0.2 81 {\n",
    "\nreal_server 192.0.2.1 80 {\n",
    "\nreal_server 2001:db8::2 {\n",
    "\nlb_algo wrr\n",
    "\nlb_algo mh\n",
    "\nlb_kind DR\n",
    "\nlb_kind NAT\n",
    "\nlb_kind TUN\n",
    "\nlvs_method TUN type gue port 1\n",
    "\nprotocol UDP\n",
    "\nprotocol SCTP\n",
    "\nops\n",
    "\nweight 70000\n",
    "\nweight 0\n",
    "\nuthreshold 4000000000\n",
    "\nuthreshold 3\n",
    "\npersistence_timeout\n",
    "\ninhibit_on_failure\n",
    "\nHTTP_GET {\nurl {\npath ü\nvirtualhost a b\n}\n}\n",
    "\nTCP_CHECK {\nconnect_port 1\ndelay_loop 0\n}\n",
    "\nMISC_CHECK {\n}\n",
    "\ndelay_loop 99999999999999999999\n",
    "\nconnect_timeout 1e9\n",
    "\nretry 4294967295\n",
    "\nvrrp_instance v {\ninterface eth0\ninterface a/b\n}\n",
    "\nglobal_defs {\nrouter_id x\n}\n",
    "\n-A -t 192.0.2.1:80 -s wlc\n",
    "\n-A -u [2001:db8::1]:53 -p 300 -o\n",
    "\n-A -f 1\n",
    "\n-a -t 192.0.2.1:80 -r 10.0.0.1:80 -m -w 3\n",
    "\n-a -u [2001:db8::1]:53 -r [2001:db8::2]:53 -i --tun-type gue\n",
    "\n-a -f 1 -r 10.0.0.1:0\n",
    " -t",
    " -w",
    " -r 10.0.0.9",
    " --weight=70000",
    " -x 99999999",
    " -M",
    " -b flag-1",
    "\nipvsadm -C\n",
];

fn pieces() -> impl Strategy<Value = String> {
    vec(prop_oneof![12 => select(PIECES).prop_map(str::to_owned), 1 => "\\PC{0,3}"], 0..60)
        .prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "(\\PC|\n){0,200}") {
        total(Source::Keepalived, &text);
        total(Source::Ipvsadm, &text);
    }

    #[test]
    fn any_heap_of_pieces_is_answered(text in pieces()) {
        total(Source::Keepalived, &text);
        total(Source::Ipvsadm, &text);
    }
}
