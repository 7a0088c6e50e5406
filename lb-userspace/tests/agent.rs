//! The agent as an operator starts it: on devices without native XDP, and again with a changed `[node]`.
//!
//! In a namespace of the test, on a bridge (which has no native XDP) and two veths.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use lb_userspace::dataplane::pin::Pins;
use serde_json::Value;

/// Port of the metrics, inside the namespace.
const METRICS: u16 = 9650;
/// Longest wait for anything that must happen.
const SOON: Duration = Duration::from_secs(20);

/// Missing root is a failure in CI and a printed reason on a laptop.
fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "this test needs root, and CI must have it");
    if !root {
        eprintln!("skipped: needs root for network namespaces and BPF");
    }
    root
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A namespace with its agent's folders; all gone when dropped.
struct Place {
    netns: String,
    folder: tempfile::TempDir,
    agent: Option<Child>,
}

impl Place {
    fn new(name: &str) -> Self {
        let netns = format!("wag-{name}-{}", std::process::id());
        ip(&format!("netns add {netns}"));
        let place = Self { netns, folder: tempfile::tempdir().expect("a folder"), agent: None };
        for command in [
            "link set lo up",
            "link add br0 type bridge",
            "link set br0 up",
            "link add va0 type veth peer name va1",
            "link add vb0 type veth peer name vb1",
        ] {
            place.ip(command);
        }
        for interface in ["va0", "va1", "vb0", "vb1"] {
            place.ip(&format!("link set {interface} up"));
        }
        place
    }

    fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.netns))
    }

    fn pins(&self) -> Pins {
        Pins::new(PathBuf::from(format!("/sys/fs/bpf/{}", self.netns)))
    }

    /// `xdp` or `xdpgeneric` where a program is attached, as iproute2 shows it.
    fn attached(&self, interface: &str) -> Option<String> {
        let text = self.ip(&format!("-o link show dev {interface}"));
        text.split_whitespace().find(|word| word.starts_with("xdp")).map(str::to_owned)
    }

    /// Whether the VIP is an address of the interface.
    fn announced(&self, interface: &str) -> bool {
        self.ip(&format!("-o addr show dev {interface}")).contains("192.0.2.1/32")
    }

    fn configure(&self, node: &str) {
        let folder = self.folder.path().display();
        let text = format!(
            "[node]\nname = \"n\"\npin_dir = \"{}\"\nstate_dir = \"{folder}/state\"\n{node}\n\
             [node.limits]\nservices_max = 8\nbackends_max = 32\nring_slots_max = 4096\n\
             [node.metrics]\nlisten = \"127.0.0.1:{METRICS}\"\n[node.api]\nsocket = \"{folder}/api.sock\"\n\
             [[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nport = 80\nforward = \"ipip\"\n\
             algo_config = {{ ring_size = 251 }}\nbackends = [{{ address = \"10.0.0.2\" }}]\n",
            self.pins().dir().display()
        );
        fs::write(self.folder.path().join("weir.toml"), text).expect("the configuration");
    }

    /// Runs `body` on a thread inside the namespace; its children are inside too, with this process's mounts.
    fn within<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = File::open(format!("/run/netns/{}", self.netns)).expect("the namespace");
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("it can be entered");
                body()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn weir(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.arg("--socket").arg(self.folder.path().join("api.sock")).args(arguments);
        command.env_remove("WEIR_SOCKET").env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.within(|| self.weir(arguments).output().expect("weir runs"))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.output(&[arguments, &["-o", "json"]].concat());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Starts the agent on `node` and waits until it answers.
    fn start(&mut self, node: &str) {
        self.configure(node);
        let config = self.folder.path().join("weir.toml").display().to_string();
        let log = File::create(self.folder.path().join("log")).expect("a log");
        let child =
            self.within(|| self.weir(&["agent", "--config", &config]).stdout(Stdio::null()).stderr(log).spawn());
        self.agent = Some(child.expect("the agent starts"));
        let end = Instant::now() + SOON;
        while !self.output(&["status"]).status.success() {
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let ended = self.agent.as_mut().and_then(|agent| agent.try_wait().expect("our child"));
            assert!(ended.is_none() && Instant::now() < end, "{ended:?}\n{}", log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts the agent on `node`, which it must refuse; gives what it says.
    fn refused(&self, node: &str) -> String {
        self.configure(node);
        let config = self.folder.path().join("weir.toml").display().to_string();
        let output = self.output(&["agent", "--config", &config]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        text
    }

    /// Kills the agent; the data plane stays.
    fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().expect("our child");
            agent.wait().expect("our child");
        }
    }

    fn metrics(&self) -> String {
        self.within(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS)).expect("the metrics' listener");
            stream.set_read_timeout(Some(SOON)).expect("a time-out");
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("a request");
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("an answer");
            text
        })
    }

    /// What `weir doctor` says about the program on an interface: level and finding.
    fn doctor(&self, interface: &str) -> (String, String) {
        let config = self.folder.path().join("weir.toml").display().to_string();
        let findings = self.json(&["doctor", "--config", &config]);
        let findings = findings.as_array().expect("a list");
        let finding = findings.iter().find(|f| f["check"] == format!("xdp {interface}")).expect("a finding about XDP");
        let word = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        (word("level"), word("found"))
    }

    fn wait(&self, what: &str, holds: impl Fn() -> bool) {
        let end = Instant::now() + SOON;
        while !holds() {
            assert!(Instant::now() < end, "{what}: not within {SOON:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill();
        self.pins().remove_all().ok();
        Command::new("ip").args(["netns", "del", &self.netns]).output().ok();
    }
}

#[test]
fn generic_mode_is_shown_where_it_is_allowed_and_refused_where_not() {
    if !root() {
        return;
    }
    let generic = "interfaces = [\"br0\"]\nxdp_mode = \"generic\"\nannounce = \"none\"";
    let native = "interfaces = [\"br0\"]\nxdp_mode = \"native\"\nannounce = \"none\"";
    // The second interface is the one that cannot be had: the first, attached by then, is let go again.
    let second = "interfaces = [\"va0\", \"br0\"]\nannounce = \"none\"";
    let mut place = Place::new("gen");
    for node in [native, second] {
        let said = place.refused(node);
        assert!(said.contains("br0: native XDP was refused") && said.contains("xdp_mode = \"generic\""), "{said}");
        assert_eq!((place.attached("br0"), place.attached("va0")), (None, None));
        assert!(!place.pins().dir().exists(), "nothing stays pinned either");
    }

    place.start(generic);
    assert_eq!(place.attached("br0").as_deref(), Some("xdpgeneric"));
    let status = place.json(&["status"]);
    assert_eq!(
        (&status["interfaces"][0]["mode"], &status["interfaces"][0]["name"]),
        (&"generic".into(), &"br0".into())
    );
    let metrics = place.metrics();
    for (mode, value) in [("native", 0), ("generic", 1), ("detached", 0)] {
        let line = metrics.lines().find(|l| l.starts_with("weir_xdp_mode{") && l.contains(&format!("mode=\"{mode}\"")));
        let line = line.unwrap_or_else(|| panic!("no {mode} in {metrics}"));
        assert!(line.contains("br0") && line.ends_with(&format!(" {value}")), "{line}");
    }
    let (level, found) = place.doctor("br0");
    assert!(level == "warn" && found.contains("generic"), "{level}: {found}");

    // What runs in generic mode is not taken over where it is forbidden, and goes on.
    place.kill();
    let said = place.refused(native);
    assert!(said.contains("br0") && said.contains("generic") && said.contains("weir agent --unload"), "{said}");
    assert_eq!(place.attached("br0").as_deref(), Some("xdpgeneric"));
    let (level, found) = place.doctor("br0");
    assert!(level == "fail" && found.contains("generic"), "{level}: {found}");
    place.start(generic);
    assert_eq!(place.json(&["status"])["adopted"], true);
}

/// What `weir config diff` calls a restart is done by one: interfaces come and go, and VIPs with them.
#[test]
fn a_restart_carries_out_what_a_reload_refuses() {
    if !root() {
        return;
    }
    let mut place = Place::new("again");
    place.ip("addr add 198.51.100.7/32 dev va0");
    place.start("interfaces = [\"va0\"]\nannounce = \"address\"");
    assert_eq!((place.attached("va0").as_deref(), place.attached("vb0")), (Some("xdp"), None));
    place.wait("the VIP is announced", || place.announced("va0"));
    let program = |place: &Place| place.json(&["status"])["interfaces"][0]["program_id"].clone();
    let before = program(&place);

    // Native XDP is welcome where generic is allowed, so this alone changes nothing; another interface joins in front.
    place.kill();
    place.start("interfaces = [\"vb0\", \"va0\"]\nxdp_mode = \"generic\"\nannounce = \"address\"");
    assert_eq!((place.attached("va0").as_deref(), place.attached("vb0").as_deref()), (Some("xdp"), Some("xdp")));
    let status = place.json(&["status"]);
    assert_eq!((&status["adopted"], &status["interfaces"][1]["program_id"]), (&true.into(), &before));
    place.wait("the VIP has moved", || place.announced("vb0") && !place.announced("va0"));

    // The first one leaves, and the network announces from now on.
    place.kill();
    place.start("interfaces = [\"vb0\"]\nannounce = \"none\"");
    assert_eq!((place.attached("va0"), place.attached("vb0").as_deref()), (None, Some("xdp")));
    assert!(!place.announced("va0") && !place.announced("vb0"), "nobody answers for the VIP any more");
    assert!(place.ip("-o addr show dev va0").contains("198.51.100.7/32"), "an operator's address stays");
}
