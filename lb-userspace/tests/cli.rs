//! The `weir` program as scripts meet it: exit codes, what goes to which stream, against an agent that is not there or
//! one that answers from a table.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

/// Runs `weir` with its socket at `socket` and no terminal.
fn weir(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir"))
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .env_remove("WEIR_SOCKET")
        .stdin(Stdio::null())
        .output()
        .expect("weir runs")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// A server that answers `METHOD PATH` from a table, one connection at a time, and remembers requests.
struct FakeAgent {
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Vec<(String, String)>>>,
}

impl FakeAgent {
    /// Answers by request line; whatever is not in the table is 404. The thread ends with the test's process.
    fn start(answers: &[(&str, u16, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join("api.sock")).expect("a socket");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let table: HashMap<String, (u16, String)> =
            answers.iter().map(|(what, status, body)| ((*what).into(), (*status, (*body).into()))).collect();
        let seen = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
                let mut line = String::new();
                reader.read_line(&mut line).expect("a request line");
                let what = line.trim().trim_end_matches(" HTTP/1.1").to_owned();
                let mut length = 0;
                loop {
                    let mut header = String::new();
                    if reader.read_line(&mut header).expect("a header") <= 2 {
                        break;
                    }
                    if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().expect("a length");
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).expect("a body");
                let (status, answer) = table.get(&what).cloned().unwrap_or_else(|| {
                    (404, r#"{"error":"no such service","hint":"`weir service list` shows them"}"#.into())
                });
                seen.lock().expect("no panic").push((what, String::from_utf8(body).expect("UTF-8")));
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n{answer}",
                    answer.len()
                );
            }
        });
        Self { folder, requests }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    fn requests(&self) -> Vec<(String, String)> {
        self.requests.lock().expect("no panic").clone()
    }
}

const BACKEND: &str = r#"{"service":"web","name":"10.0.0.11:80","address":"10.0.0.11","port":80,"id":3,
    "weight_configured":2,"weight_override":null,"weight_effective":0,"admin_state_configured":"ready",
    "admin_state_override":"drain","health":"up","health_reason":"L7OK","health_since_unix_s":1,
    "next_hop":{"resolved":true,"interface":"eth1","mac":"02:00:00:00:00:0b","mtu":1500},
    "share":{"slots":0,"actual":0.0,"expected":0.0},"packets":12345678,"bytes":7}"#;

fn detail() -> String {
    format!(
        r#"{{"service":{{"name":"web","id":1,"vip":"203.0.113.1","port":80,"protocol":"tcp","forward":"ipip",
        "algo":"maglev","ring_size":65537,"backends":1,"backends_up":1,"backends_taking":1,"fail_open":false,
        "health_check":null,"packets":1,"bytes":2}},"backends":[{BACKEND}]}}"#
    )
}

#[test]
fn help_is_success_and_nonsense_is_usage() {
    let nowhere = Path::new("/nonexistent/api.sock");
    let help = weir(nowhere, &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("3  the configuration is invalid"));
    assert_eq!(weir(nowhere, &["--version"]).status.code(), Some(0));
    let wrong = weir(nowhere, &["service", "explode"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.stdout.is_empty() && !wrong.stderr.is_empty());
    assert_eq!(weir(nowhere, &["backend", "drain", "nonsense"]).status.code(), Some(2));
    assert_eq!(weir(nowhere, &["backend", "weight", "web/10.0.0.11:80", "1001"]).status.code(), Some(2));
}

#[test]
fn an_agent_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("none.sock");
    for command in [
        &["status"][..],
        &["service", "list"],
        &["backend", "list"],
        &["health", "list"],
        &["stats", "--watch"],
        &["config", "show"],
        &["plan"],
        &["flow", "list"],
        &["flow", "flush", "--yes"],
        &["service", "set", "web", "algo=maglev"],
        &["service", "reset", "web"],
        &["backend", "drain", "web/10.0.0.11:80"],
        &["backend", "setup-help", "web"],
    ] {
        let out = weir(&socket, command);
        assert_eq!(out.status.code(), Some(4), "{command:?}");
        let error = text(&out.stderr);
        assert!(error.contains("agent not running?") && error.contains("none.sock"), "{error}");
        assert!(error.contains("hint: start it with"), "{error}");
        assert_eq!(error.matches("os error").count(), 1, "said once: {error}");
    }
    let out = weir(&socket, &["-o", "json", "status"]);
    let error: serde_json::Value = serde_json::from_slice(&out.stderr).expect("JSON on standard error");
    assert!(error["error"].as_str().is_some_and(|e| e.contains("none.sock")));
}

#[test]
fn a_drain_sends_the_canonical_name_and_shows_the_answer() {
    let agent = FakeAgent::start(&[
        ("POST /v1/backends/web/10.0.0.11%3A80/admin", 200, BACKEND),
        ("GET /v1/services/web", 200, &detail()),
    ]);
    let out = weir(&agent.socket(), &["backend", "drain", "web/10.0.0.11:80"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("0 (2)  drain*  up"), "{}", text(&out.stdout));
    assert!(text(&out.stdout).contains("12.3M"));
    assert!(!text(&out.stdout).contains('\x1b'), "no colours on a pipe");

    let out = weir(&agent.socket(), &["backend", "weight", "web/10.0.0.11", "7", "-o", "json"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let backend: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(backend["packets"], 12_345_678);

    let requests = agent.requests();
    let bodies: Vec<&str> =
        requests.iter().filter(|(what, _)| what.starts_with("POST")).map(|(_, body)| body.as_str()).collect();
    assert_eq!(bodies, [r#"{"admin_state":"drain","reset":false}"#, r#"{"weight":7,"reset":false}"#]);
}

#[test]
fn waiting_for_a_drain_ends_with_what_was_left() {
    let drained = |phase: &str, left: u32| {
        let drain =
            format!(r#""drain":{{"phase":"{phase}","connections":{left},"announced_for_s":0,"ends_in_s":9}},"share""#);
        BACKEND.replacen("\"share\"", &drain, 1)
    };
    for (phase, left, exit, words) in [
        ("timed_out", 3, 7, "web/10.0.0.11:80: its time is over, 3 connections are left\n"),
        ("ended", 0, 0, "web/10.0.0.11:80: ended: no connection is left\n"),
    ] {
        let agent = FakeAgent::start(&[
            ("POST /v1/backends/web/10.0.0.11%3A80/admin", 200, &drained("draining", 4)),
            ("GET /v1/services/web", 200, &detail().replace(BACKEND, &drained(phase, left))),
        ]);
        let out = weir(&agent.socket(), &["backend", "drain", "--wait", "web/10.0.0.11:80"]);
        assert_eq!(out.status.code(), Some(exit), "{}", text(&out.stderr));
        let said = text(&out.stdout);
        assert!(
            said.contains("no new flows; ends when the last of 4 connections does") && said.ends_with(words),
            "{said}"
        );
        let out = weir(&agent.socket(), &["-o", "json", "backend", "drain", "--wait", "web/10.0.0.11:80"]);
        let backend: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one JSON value");
        assert_eq!((out.status.code(), &backend["drain"]["phase"]), (Some(exit), &phase.into()));
    }
}

#[test]
fn a_flush_asks_or_is_told_not_to() {
    let agent = FakeAgent::start(&[
        ("POST /v1/flows", 200, r#"{"records":9,"matched":5,"left_out":5,"flows":[]}"#),
        ("POST /v1/flows/flush", 200, r#"{"removed":5}"#),
    ]);
    let refused = weir(&agent.socket(), &["flow", "flush", "--backend", "web/10.0.0.11:80"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert!(
        text(&refused.stderr).contains("5 recorded flows would be removed") && text(&refused.stderr).contains("--yes")
    );
    assert!(agent.requests().iter().all(|(what, _)| what == "POST /v1/flows"), "nothing was removed");
    let out = weir(&agent.socket(), &["flow", "flush", "--yes", "--service", "web", "--backend", "10.0.0.11:80"]);
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "5 recorded flows removed\n"));
    let bodies: Vec<String> = agent.requests().into_iter().map(|(_, body)| body).collect();
    assert_eq!(bodies.last().map(String::as_str), Some(r#"{"service":"web","backend":"10.0.0.11:80"}"#));
}

#[test]
fn each_refusal_has_its_exit_code_and_keeps_the_agents_advice() {
    let diagnostics = r#"{"error":"the configuration is invalid: 1 error","diagnostics":[{"severity":"error",
        "message":"unknown key","file":"x.toml","line":1,"column":1,"rendered":"error: unknown key\n --> x.toml:1:1"}]}"#;
    let agent = FakeAgent::start(&[
        ("POST /v1/config/apply", 422, diagnostics),
        ("POST /v1/config/diff", 409, r#"{"error":"limits differ","hint":"run `weir agent --unload` first"}"#),
        ("GET /v1/status", 500, "no JSON at all"),
        ("GET /v1/services", 200, "[{}]"),
    ]);
    let out = weir(&agent.socket(), &["config", "apply"]);
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stderr).contains("error: unknown key\n --> x.toml:1:1\n"), "{}", text(&out.stderr));
    let out = weir(&agent.socket(), &["config", "diff"]);
    assert_eq!(out.status.code(), Some(5));
    assert_eq!(text(&out.stderr), "weir: limits differ\nhint: run `weir agent --unload` first\n");
    let out = weir(&agent.socket(), &["status"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("no JSON at all"));
    let out = weir(&agent.socket(), &["service", "get", "nope"]);
    assert_eq!(out.status.code(), Some(6));
    assert!(text(&out.stderr).contains("no such service"));
    let out = weir(&agent.socket(), &["service", "list"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("different versions?"), "{}", text(&out.stderr));
}

#[test]
fn setup_help_reads_service_and_backends_from_the_agent() {
    let config = serde_json::json!({"revision": 1, "file": "weir.toml", "text": CONFIG}).to_string();
    let agent = FakeAgent::start(&[("GET /v1/services/web", 200, &detail()), ("GET /v1/config", 200, &config)]);
    let out = weir(&agent.socket(), &["backend", "setup-help", "web"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("type ipip local 10.0.0.11"));
    let out = weir(&agent.socket(), &["backend", "setup-help", "web/10.0.0.99:80"]);
    assert_eq!(out.status.code(), Some(6));
}

#[test]
fn completions_and_man_pages_need_no_agent() {
    let nowhere = Path::new("/nonexistent/api.sock");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let out = weir(nowhere, &["completions", shell]);
        assert_eq!(out.status.code(), Some(0));
        assert!(text(&out.stdout).contains("setup-help"), "{shell}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let out = weir(nowhere, &["man", folder.path().to_str().expect("UTF-8")]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let page = fs::read_to_string(folder.path().join("weir-backend-drain.1")).expect("a page per command");
    assert!(page.contains(".TH"), "{page}");
    assert!(
        fs::read_to_string(folder.path().join("weir.1")).expect("the first page").contains("configuration is invalid")
    );
    assert_eq!(weir(nowhere, &["man", "/nonexistent"]).status.code(), Some(1));
}

const CONFIG: &str = r#"
[node]
interfaces = ["eth0"]

[[service]]
name = "web"
vip = "203.0.113.1"
port = 80
protocol = "tcp"
forward = "ipip"

[[service.backends]]
address = "10.0.0.11"
"#;

#[test]
fn config_check_needs_no_agent_and_reports_everything() {
    let nowhere = Path::new("/nonexistent/api.sock");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("weir.toml");
    let path = file.to_str().expect("UTF-8");
    fs::write(&file, CONFIG).expect("a file");
    let out = weir(nowhere, &["config", "check", path]);
    assert_eq!(out.status.code(), Some(0), "{}{}", text(&out.stdout), text(&out.stderr));
    assert!(text(&out.stdout).contains("no errors"), "{}", text(&out.stdout));

    fs::write(&file, CONFIG.replace("port = 80", "port = 80\nbanana = 1").replace("\"ipip\"", "\"ippi\""))
        .expect("a file");
    let out = weir(nowhere, &["config", "check", path]);
    assert_eq!(out.status.code(), Some(3));
    assert!(text(&out.stdout).contains("banana") && text(&out.stdout).contains("ippi"), "{}", text(&out.stdout));
    assert!(text(&out.stdout).ends_with("weir.toml: 2 errors\n"), "{}", text(&out.stdout));

    let out = weir(nowhere, &["config", "check", path, "-o", "json"]);
    assert_eq!(out.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((&report["valid"], &report["errors"]), (&false.into(), &2.into()));
    let lines: Vec<_> = report["diagnostics"].as_array().expect("a list").iter().map(|d| d["line"].as_u64()).collect();
    assert_eq!(lines, [Some(9), Some(11)]);

    let out = weir(nowhere, &["config", "check", "/nonexistent.toml"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("cannot open /nonexistent.toml"), "{}", text(&out.stderr));
}

#[test]
fn setup_help_can_do_without_the_agent() {
    let nowhere = Path::new("/nonexistent/api.sock");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("weir.toml");
    let path = file.to_str().expect("UTF-8");
    fs::write(&file, CONFIG).expect("a file");
    let out = weir(nowhere, &["backend", "setup-help", "web", "--config", path]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("advmss 1440"), "{}", text(&out.stdout));
    assert_eq!(weir(nowhere, &["backend", "setup-help", "nope", "--config", path]).status.code(), Some(6));
    fs::write(&file, CONFIG.replace("\"ipip\"", "\"nat\"")).expect("a file");
    let out = weir(nowhere, &["backend", "setup-help", "web", "--config", path, "--node", "10.0.0.7"]);
    assert!(text(&out.stdout).contains("default via 10.0.0.7 table 1650"), "{}", text(&out.stdout));
    let out = weir(nowhere, &["backend", "setup-help", "web", "--config", path, "--node", "fd00::7"]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stdout));
    fs::write(&file, "[node]\n").expect("a file");
    assert_eq!(weir(nowhere, &["backend", "setup-help", "web", "--config", path]).status.code(), Some(3));
}

#[test]
fn doctor_fails_for_an_interface_that_does_not_exist() {
    let nowhere = Path::new("/nonexistent/api.sock");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("weir.toml");
    let path = file.to_str().expect("UTF-8");
    fs::write(&file, CONFIG.replace("eth0", "wcli-none")).expect("a file");
    let out = weir(nowhere, &["doctor", "--config", path, "-o", "json"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
    let findings: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let findings = findings.as_array().expect("a list");
    let level = |check: &str| findings.iter().find(|f| f["check"] == check).map(|f| f["level"].clone());
    assert_eq!(level("interface wcli-none"), Some("fail".into()));
    assert_eq!(level("agent"), Some("warn".into()));
    assert!(level("kernel").is_some());
    fs::write(&file, "[node]\n").expect("a file");
    assert_eq!(weir(nowhere, &["doctor", "--config", path]).status.code(), Some(3));
}

#[test]
fn explain_says_what_it_needs() {
    let nowhere = Path::new("/nonexistent/api.sock");
    let folder = tempfile::tempdir().expect("a folder");
    let pins = folder.path().to_str().expect("UTF-8");
    let out = weir(nowhere, &["explain", "tcp", "192.0.2.7:40000", "203.0.113.1:80", "--pin-dir", pins]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("no data plane is loaded"), "{}", text(&out.stderr));
    for wrong in [
        &["explain"][..],
        &["explain", "tcp", "192.0.2.7:40000"],
        &["explain", "tcp", "192.0.2.7", "203.0.113.1:80"],
        &["explain", "tcp", "192.0.2.7:1", "[::1]:80"],
        &["explain", "sctp", "192.0.2.7:1", "203.0.113.1:80"],
        &["explain", "tcp", "192.0.2.7:1", "203.0.113.1:80", "--pcap", "x.pcap"],
        &["explain", "--pcap", "x.pcap", "--packet", "0"],
    ] {
        assert_eq!(weir(nowhere, wrong).status.code(), Some(2), "{wrong:?}");
    }
    let out = weir(nowhere, &["explain", "--pcap", "/nonexistent.pcap"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("cannot open /nonexistent.pcap"));
}

#[test]
fn an_import_can_be_used_as_it_is() {
    let nowhere = Path::new("/nonexistent/api.sock");
    let folder = tempfile::tempdir().expect("a folder");
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import");
    let import = |from: &str, file: &str, more: &[&str]| {
        let path = sources.join(file);
        let path = path.to_str().expect("UTF-8");
        weir(nowhere, &[&["config", "import", "--from", from, path], more].concat())
    };
    let out = import("keepalived", "web.keepalived", &[]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(
        text(&out.stderr).contains("web.keepalived:26: `sorry_server` has no counterpart"),
        "{}",
        text(&out.stderr)
    );
    let file = folder.path().join("weir.toml");
    fs::write(&file, &out.stdout).expect("a file");
    assert_eq!(weir(nowhere, &["config", "check", file.to_str().expect("UTF-8")]).status.code(), Some(0));

    let out = import("ipvsadm", "saved.ipvsadm", &[]);
    assert_eq!(out.status.code(), Some(3), "an interface is missing");
    assert!(text(&out.stderr).contains("`[node]` has no `interfaces`"), "{}", text(&out.stderr));
    let out = import("ipvsadm", "saved.ipvsadm", &["--interface", "eth0", "-o", "json"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!((&report["valid"], &report["notes"][0]["line"]), (&true.into(), &3.into()));
    let out = import("ipvsadm", "names.ipvsadm", &[]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("hint: names of hosts and ports are not resolved: `ipvsadm -Sn`"));
}

#[test]
fn what_needs_a_store_says_so_where_there_is_none() {
    let nowhere = Path::new("/nonexistent/api.sock");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("weir.toml");
    let path = file.to_str().expect("UTF-8");
    fs::write(&file, CONFIG).expect("a file");
    for (command, instead) in [
        (&["service", "create", "shop", "vip=192.0.2.1", "port=80", "forward=dsr"][..], "edit the file"),
        (&["service", "delete", "web"], "edit the file"),
        (&["backend", "add", "web/10.0.0.13"], "edit the file"),
        (&["backend", "remove", "web/10.0.0.11:80"], "edit the file"),
        (&["config", "history"], "about the file"),
        (&["config", "show", "42"], "about the file"),
        (&["config", "rollback", "42"], "about the file"),
        (&["config", "restore"], "about the file"),
        (&["node", "list"], "`weir status`"),
    ] {
        let out = weir(nowhere, &[command, &["--config", path]].concat());
        assert_eq!(out.status.code(), Some(5), "{command:?}: {}", text(&out.stderr));
        let error = text(&out.stderr);
        assert!(error.contains("stand in its file") && error.contains(instead), "{command:?}: {error}");
    }
    // The way from a file to a store: its services, without what is about the node.
    let out = weir(nowhere, &["config", "export", "--config", path]);
    let services = text(&out.stdout);
    assert!(
        out.status.success() && services.starts_with("[[service]]\n") && !services.contains("[node]"),
        "{services}"
    );
    for command in [
        &["service", "set", "web", "algo=maglev", "--dry-run"][..],
        &["backend", "drain", "web/10.0.0.11:80", "--expect-rev", "4"],
        &["backend", "weight", "web/10.0.0.11:80", "3", "-m", "why"],
        &["config", "apply", path, "--wait"],
    ] {
        let out = weir(nowhere, &[command, &["--config", path]].concat());
        assert_eq!(out.status.code(), Some(2), "{command:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains("needs a store"), "{}", text(&out.stderr));
    }
    // Without a store the agent is asked, as ever.
    let out = weir(nowhere, &["service", "set", "web", "algo=maglev", "--config", path]);
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));

    let store =
        "[node]\ninterface = \"eth0\"\n[store]\nkind = \"redis\"\nurl = \"redis://op:hunter2@redis.example.com\"\n";
    fs::write(&file, store).expect("a file");
    let out = weir(nowhere, &["node", "list", "--config", path]);
    let error = text(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{error}");
    assert!(error.contains("user and password do not stand in it") && !error.contains("hunter2"), "{error}");
    let out = weir(nowhere, &["node", "list", "--config", "/nonexistent/weir.toml"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("cannot open /nonexistent/weir.toml"));
}

/// Commands against a database of this node that no agent owns: what they write is what they read, and what they refuse changes nothing.
#[test]
fn services_live_in_the_store_from_their_creation_to_a_rollback() {
    let nowhere = Path::new("/nonexistent/api.sock");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("weir.toml");
    let node = format!(
        "[node]\ninterface = \"eth0\"\n[node.api]\nsocket = \"{0}/api.sock\"\n[store]\nkind = \"embedded\"\npath = \"{0}/store.redb\"\n",
        folder.path().display()
    );
    fs::write(&file, &node).expect("a file");
    let path = file.to_str().expect("UTF-8");
    let run = |command: &[&str]| weir(nowhere, &[command, &["--config", path]].concat());
    let done = |command: &[&str]| {
        let out = run(command);
        assert_eq!(out.status.code(), Some(0), "{command:?}: {}{}", text(&out.stdout), text(&out.stderr));
        text(&out.stdout).to_owned()
    };
    let refused = |command: &[&str], code: i32, words: &str| {
        let out = run(command);
        let error = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{command:?}: {error}");
        assert!(error.contains(words), "{command:?}: {error}");
    };
    let export = || done(&["config", "export"]);

    assert!(done(&["config", "history"]).contains("never written"));
    let create = ["service", "create", "web", "vip=192.0.2.1", "port=80", "forward=dsr", "--backend", "10.0.0.11"];
    let out = done(&[&create[..], &["--author", "op@lb1", "-m", "the shop opens"]].concat());
    assert!(
        out.starts_with("stored as revision 1-") && out.contains("- service web: added, 192.0.2.1:80/tcp"),
        "{out}"
    );
    refused(&create, 5, "there is a service `web` already");
    refused(&["service", "set", "wbe", "algo=maglev"], 6, "did you mean `web`?");
    refused(&["service", "set", "web", "algo=meglev"], 3, "service/web:6:8");
    refused(&["service", "set", "web", "name=shop"], 2, "a service keeps its name");

    // A comment that somebody writes survives what commands do.
    let commented = folder.path().join("services.toml");
    let commented = commented.to_str().expect("UTF-8");
    fs::write(commented, format!("# Ask the shop first.\n{}", export())).expect("a file");
    assert!(done(&["config", "apply", commented, "--dry-run"]).contains("+# Ask the shop first."));
    done(&["config", "apply", commented, "--expect-rev", "1"]);
    refused(&["config", "apply", commented, "--expect-rev", "1"], 5, "which is not the expected revision");
    assert!(done(&["config", "apply", commented]).contains("nothing changed: revision 2-"));
    done(&["backend", "add", "web/10.0.0.12", "--weight", "3"]);
    assert!(
        done(&["backend", "drain", "web/10.0.0.11:80"]).contains("backend 10.0.0.11:80 admin_state ready -> drain")
    );
    let drained = export();
    assert!(
        drained.starts_with("# Ask the shop first.\n[[service]]\n") && drained.contains("admin_state = \"drain\""),
        "{drained}"
    );
    done(&["backend", "ready", "web/10.0.0.11"]);
    done(&["backend", "weight", "web/10.0.0.12:80", "5"]);
    refused(&["backend", "weight", "web/10.0.0.13", "5"], 6, "no backend 10.0.0.13");
    refused(&["backend", "add", "web/192.0.2.1"], 3, "is a VIP of this node");
    done(&["backend", "remove", "web/10.0.0.12"]);

    let history = run(&["config", "history", "-o", "json"]);
    let history: serde_json::Value = serde_json::from_slice(&history.stdout).expect("JSON");
    let list = history.as_array().expect("a list");
    assert_eq!(list.len(), 7, "{history}");
    let first = &list[6];
    assert_eq!((&first["author"], &first["message"]), (&"op@lb1".into(), &"the shop opens".into()));
    assert_eq!(first["objects"], serde_json::json!([["service/web", "created"]]));
    assert!(list[0]["author"].as_str().is_some_and(|author| author.contains('@')));
    assert!(done(&["config", "show", "4"]).contains("+admin_state = \"drain\""));
    refused(&["config", "show", "9"], 6, "there is no revision 9");

    // Back to the drain, which is a change like any other and checked like any other.
    assert!(done(&["config", "rollback", "4", "--dry-run"]).contains("+admin_state = \"drain\""));
    assert!(done(&["config", "rollback", "4"]).starts_with("stored as revision 8-"));
    assert_eq!(export(), drained);
    refused(&["config", "rollback", "77"], 6, "there is no revision 77");

    // A node with smaller limits is heeded before anything is written.
    fs::write(&file, format!("{node}[node.limits]\nbackends_max = 1\n")).expect("a file");
    refused(&["backend", "add", "web/10.0.0.14"], 3, "backends, the limit is 1");
    fs::write(&file, &node).expect("a file");

    assert!(done(&["node", "list"]).contains("no node has reported; the store stands at 8-"));
    refused(&["service", "delete", "web", "--wait=0"], 7, "");
    assert_eq!(export(), "", "it was deleted, and nobody has applied that");
    refused(&["config", "restore"], 1, "store.json");
}
