//! Loading, adopting, refusing and unloading, on real interfaces in a namespace of this test.

use std::{
    fs::File,
    path::PathBuf,
    process::{Command, Stdio},
};

use lb_userspace::{
    dataplane::{
        load::{How, LoadError, load},
        loss::Losses,
        pin::{Pins, is_bpffs},
    },
    model::{Limits, XdpMode},
    plan::MapSizes,
};

/// Missing root is a failure in CI and a printed reason on a laptop.
fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "this test needs root, and CI must have it");
    if !root {
        eprintln!("skipped: needs root for network namespaces and BPF");
    }
    root
}

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split_whitespace()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// `xdp` or `xdpgeneric` where an interface of this thread's namespace has a program, as iproute2 shows it.
fn attached_by_ip(interface: &str) -> Option<String> {
    let output = Command::new("ip").args(["-o", "link", "show", "dev", interface]).output().expect("iproute2");
    assert!(output.status.success(), "ip link show dev {interface}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().find(|word| word.starts_with("xdp")).map(str::to_owned)
}

/// A namespace with two veth pairs and a pin folder, removed at the end.
struct Place {
    netns: String,
    pins: Pins,
}

impl Place {
    fn new(name: &str) -> Self {
        let netns = format!("wld-{name}-{}", std::process::id());
        ip(&format!("netns del {netns}"));
        assert!(ip(&format!("netns add {netns}")), "ip netns add {netns}");
        for (a, b) in [("wa0", "wa1"), ("wb0.5", "wb1")] {
            assert!(ip(&format!("-n {netns} link add {a} type veth peer name {b}")));
            assert!(ip(&format!("-n {netns} link set {a} up")) && ip(&format!("-n {netns} link set {b} up")));
        }
        let pins = Pins::new(PathBuf::from(format!("/sys/fs/bpf/{netns}")));
        Self { netns, pins }
    }

    /// Runs `body` on a thread within the namespace.
    fn within<T: Send>(&self, body: impl FnOnce(&Pins) -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file = File::open(format!("/run/netns/{}", self.netns)).expect("namespace");
                    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
                    body(&self.pins)
                })
                .join()
                .expect("the thread within the namespace")
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pins.remove_all().ok();
        ip(&format!("netns del {}", self.netns));
    }
}

fn sizes(ring_slots_max: u32) -> MapSizes {
    MapSizes::of(&Limits { services_max: 8, backends_max: 32, ring_slots_max, flows_max: 1024 })
}

#[test]
fn loads_keeps_refuses_other_shapes_and_unloads() {
    if !root() {
        return;
    }
    let place = Place::new("life");
    place.within(|pins| {
        let both = ["wa0".to_owned(), "wb0.5".to_owned()];
        let first = load(pins, &both, XdpMode::Native, &sizes(4096)).expect("load");
        assert_eq!(first.iter().map(|a| (a.slot, a.how)).collect::<Vec<_>>(), [(0, How::Native), (1, How::Native)]);
        assert!(is_bpffs(pins.dir()));
        drop(first);

        let again = load(pins, &both, XdpMode::Native, &sizes(4096)).expect("adopt");
        assert!(again.iter().all(|a| a.how == How::Kept), "{again:?}");

        let refused = load(pins, &both, XdpMode::Native, &sizes(8192)).expect_err("another size");
        assert!(matches!(&refused, LoadError::Shape { map: "RINGS", .. }), "{refused}");
        assert!(refused.to_string().contains("weir agent --unload"), "{refused}");

        // An interface that is no longer wanted is detached, the other keeps its slot.
        let one = load(pins, &both[1..], XdpMode::Native, &sizes(4096)).expect("fewer interfaces");
        assert_eq!(one.iter().map(|a| (a.slot, a.how)).collect::<Vec<_>>(), [(1, How::Kept)]);
        assert_eq!(pins.interfaces().expect("pins").len(), 1);

        let missing = load(pins, &["nope".to_owned()], XdpMode::Native, &sizes(4096)).expect_err("no interface");
        assert!(matches!(missing, LoadError::NoInterface(_)), "{missing}");

        let losses = Losses::attach(pins).expect("loss counters");
        assert!(losses.read().is_empty());
        drop(losses);
        Losses::attach(pins).expect("loss counters are taken over");

        assert_eq!(attached_by_ip("wb0.5").as_deref(), Some("xdp"));
        pins.remove_interface(&pins.interfaces().expect("pins")[0]).expect("detach");
        assert_eq!(attached_by_ip("wb0.5"), None, "no packet meets the program any more");
        assert!(pins.remove_all().expect("unload"));
        assert!(!pins.dir().exists());
        assert!(!pins.remove_all().expect("unload twice"));
        let anew = load(pins, &both, XdpMode::Native, &sizes(8192)).expect("other sizes after unloading");
        assert!(anew.iter().all(|a| a.how == How::Native));
    });
}

#[test]
fn a_foreign_program_is_not_pushed_aside() {
    if !root() {
        return;
    }
    let (mine, theirs) = (Place::new("mine"), Place::new("theirs"));
    mine.within(|pins| {
        let interfaces = ["wa0".to_owned()];
        let _holder = load(&theirs.pins, &interfaces, XdpMode::Native, &sizes(4096)).expect("the other data plane");
        let refused = load(pins, &interfaces, XdpMode::Generic, &sizes(4096)).expect_err("the interface is taken");
        assert!(matches!(refused, LoadError::Busy { .. }), "{refused}");
    });
}
