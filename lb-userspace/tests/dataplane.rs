//! The kernel's data plane on real maps: filled, adopted, refused, and changed under packets that run through the program.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use aya::{
    EbpfLoader,
    programs::{
        TestRun, TestRunOptions, Xdp,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use aya_obj::programs::XdpAttachType;
use lb_core::{
    abi::{
        flow::{FlowState, Record, is_record},
        mapped,
        service::Algo,
        stats::FlowEvent,
    },
    reason::Reason,
};
use lb_userspace::{
    dataplane::{
        Dataplane, Error, Flush,
        apply::{Map, Memory},
        engine::GRACE,
        kernel::{Access, KernelDataplane, Maps},
        load::{How, LoadError, load},
        pin::{PinnedInterface, Pins},
    },
    model::{Forward, Limits, NextHop, Protocol, ServiceKey, XdpMode},
    object::WEIR_DECAP,
    plan::{MapSizes, Policy, Secrets, Wanted, WantedBackend, WantedService, wanted::backend_key, window::GRACE_S},
};

const SECRETS: Secrets = Secrets { hash_key: [11, 22, 33, 44, 55, 66, 77, 88, 99, 111, 122, 133], ring_seed: 5 };
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

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

/// A namespace with two veth pairs and a pin folder, removed at the end.
struct Place {
    netns: String,
    pins: Pins,
}

impl Place {
    fn new(name: &str) -> Self {
        let netns = format!("wdp-{name}-{}", std::process::id());
        assert!(ip(&format!("netns add {netns}")), "ip netns add {netns}");
        for (a, b) in [("da0", "da1"), ("db0", "db1")] {
            assert!(ip(&format!("-n {netns} link add {a} type veth peer name {b}")));
            assert!(ip(&format!("-n {netns} link set {a} up")) && ip(&format!("-n {netns} link set {b} up")));
        }
        let pins = Pins::new(PathBuf::from(format!("/sys/fs/bpf/{netns}")));
        Self { netns, pins }
    }

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

fn sizes() -> MapSizes {
    MapSizes::of(&Limits { services_max: 8, backends_max: 64, ring_slots_max: 16_384, flows_max: 1024 })
}

/// One `dsr` service with backends of the given numbers, all behind the interface `ifindex`.
fn wanted(backends: impl IntoIterator<Item = u8>, ifindex: u32) -> Wanted {
    let key = ServiceKey { vip: VIP.into(), port: 80, protocol: Protocol::Tcp };
    let next_hop = Some(NextHop { ifindex, mtu: 1500, src_mac: [2, 0, 0, 0, 0, 1], dst_mac: [2, 0, 0, 0, 0, 2] });
    let backend = |n| WantedBackend {
        key: backend_key(&key, IpAddr::from(Ipv4Addr::new(10, 0, 0, n)), 80),
        weight: 1,
        up: true,
        down: false,
        max_connections: 0,
        next_hop,
    };
    let mut backends: Vec<WantedBackend> = backends.into_iter().map(backend).collect();
    backends.sort_by_key(|b| b.key);
    let service = WantedService {
        name: "web".into(),
        key,
        forward: Forward::Dsr,
        ring_size: 1009,
        policy: Policy { windows: false, ..Policy::DEFAULT },
        fail_open: false,
        backends,
        dismissed: Vec::new(),
    };
    Wanted {
        services: vec![service],
        outer_source_v4: [198, 18, 0, 0],
        outer_source_v6: mapped([0; 4]),
        leaving: std::collections::BTreeMap::new(),
    }
}

fn open(pins: &Pins) -> KernelDataplane {
    load(pins, &["da0".to_owned()], XdpMode::Native, &sizes()).expect("load");
    KernelDataplane::open(pins, sizes(), SECRETS).expect("open the data plane")
}

fn apply(plane: &mut KernelDataplane, wanted: &Wanted, revision: u64) -> usize {
    let plan = match plane.plan(wanted, revision) {
        Err(e) if e.is_transient() => {
            plane.settle(Instant::now() + GRACE).expect("settle");
            std::thread::sleep(Duration::from_secs(GRACE_S));
            let look = plane.look()().expect("look");
            plane.looked(look);
            plane.plan(wanted, revision).expect("plan after the grace")
        }
        plan => plan.expect("plan"),
    };
    let applied = plane.apply(plan).expect("apply");
    assert_eq!(applied.revision, revision);
    applied.ops
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN: u8 = 0x11;

/// A TCP segment without payload to the VIP's port 80, with these flags.
fn packet(source_port: u16, flags: u8) -> [u8; 60] {
    let mut p = [0u8; 60];
    p[..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0]);
    p[14..34].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 198, 51, 100, 7, 192, 0, 2, 1]);
    let sum: u32 = p[14..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    p[24..26].copy_from_slice(&checksum.to_be_bytes());
    p[34..36].copy_from_slice(&source_port.to_be_bytes());
    p[36..38].copy_from_slice(&80u16.to_be_bytes());
    (p[46], p[47]) = (0x50, flags);
    p
}

fn program(pins: &Pins) -> Xdp {
    let [interface] = &pins.interfaces().expect("pins")[..] else { panic!("one interface") };
    let PinnedInterface { slot: 0, .. } = interface else { panic!("slot 0") };
    Xdp::from_pin(pins.interface(interface).join("program"), XdpAttachType::Interface).expect("pinned program")
}

fn run(program: &Xdp, source_port: u16) -> u32 {
    send(program, source_port, ACK)
}

fn send(program: &Xdp, source_port: u16, flags: u8) -> u32 {
    let (data, mut out) = (packet(source_port, flags), [0u8; 128]);
    let options = TestRunOptions { data_in: Some(&data), data_out: Some(&mut out), ..TestRunOptions::new() };
    program.test_run(options).expect("BPF_PROG_RUN").return_value
}

#[test]
fn fills_counts_and_is_adopted() {
    if !root() {
        return;
    }
    let place = Place::new("adopt");
    place.within(|pins| {
        let ifindex = nix::net::if_::if_nametoindex("da0").expect("da0");
        let mut plane = open(pins);
        assert!(!plane.adopted());
        assert!(apply(&mut plane, &wanted(1..=4, ifindex), 7) > 4);
        let program = program(pins);
        for port in 0..200 {
            assert!(matches!(run(&program, port), 3 | 4), "forwarded by TX or redirect");
        }
        let ids: Vec<u32> = plane.present().services().flat_map(|(_, s)| s.backends.iter().map(|b| b.id)).collect();
        let counters = plane.backend_counters(&ids).expect("backend counters");
        assert_eq!(counters.len(), 4);
        assert_eq!(
            counters.values().map(|c| (c.packets, c.bytes)).fold((0, 0), |a, c| (a.0 + c.0, a.1 + c.1)),
            (200, 12_000)
        );
        assert!(counters.values().all(|c| c.packets > 0), "{counters:?}");
        let reasons = plane.reason_counters(0).expect("reason counters");
        assert_eq!(reasons.get(&(Reason::ForwardedDsr as u32)).map(|c| c.packets), Some(200));
        assert!(plane.backend_counters(&[u32::MAX]).expect("out of range").is_empty());
        assert!(plane.reason_counters(99).expect("out of range").is_empty());
        drop(plane);

        // No agent: packets go on.
        assert!(matches!(run(&program, 1), 3 | 4));

        let mut plane = open(pins);
        assert!(plane.adopted());
        assert_eq!(plane.present().revision(), 7);
        assert!(plane.present().has_secrets(&SECRETS));
        assert_eq!(plane.present().fill().backends, 4);
        let plan = plane.plan(&wanted(1..=4, ifindex), 8).expect("plan");
        assert_eq!((plan.summary.rings_built, plan.ops.len()), (0, 1), "{:?}", plan.ops);
        plane.apply(plan).expect("apply");
    });
}

#[test]
fn other_versions_and_contradictions_are_refused_and_forwarding_goes_on() {
    if !root() {
        return;
    }
    let place = Place::new("refuse");
    place.within(|pins| {
        let ifindex = nix::net::if_::if_nametoindex("da0").expect("da0");
        let mut plane = open(pins);
        apply(&mut plane, &wanted(1..=4, ifindex), 1);
        drop(plane);
        let mut maps = Maps::open(pins, Access::Write).expect("maps");
        // A ring that reaches into nothing.
        let ring = maps.load(Map::Services, 1, 0).expect("service 1");
        assert!(maps.store(Map::Services, 1, 0, u64::MAX));
        let refused = KernelDataplane::open(pins, sizes(), SECRETS).err().expect("a contradiction");
        assert!(matches!(&refused, Error::Contents(_)) && refused.to_string().contains("--unload"), "{refused}");
        assert!(maps.store(Map::Services, 1, 0, ring));
        KernelDataplane::open(pins, sizes(), SECRETS).expect("as it was");

        let version = maps.load(Map::Node, 0, 0).expect("node");
        assert!(maps.store(Map::Node, 0, 0, version + 1));
        let refused = load(pins, &["da0".to_owned()], XdpMode::Native, &sizes()).expect_err("another version");
        assert!(matches!(refused, LoadError::Abi { .. }), "{refused}");
        assert!(maps.store(Map::Node, 0, 0, version));
        assert!(matches!(run(&program(pins), 1), 3 | 4));

        // Somebody else's store between planning and applying is noticed where it matters.
        let mut plane = open(pins);
        let plan = plane.plan(&wanted(1..=3, ifindex), 2).expect("plan");
        let again = plan.clone();
        plane.apply(plan).expect("apply");
        assert!(matches!(plane.apply(again), Err(Error::Stale { .. })));
    });
}

/// Rings, backends and ids change as fast as they can, graces included, while packets run: each of them finds a backend.
#[test]
fn no_packet_meets_an_invalid_id_while_rings_are_replaced() {
    if !root() {
        return;
    }
    let place = Place::new("churn");
    place.within(|pins| {
        let ifindex = nix::net::if_::if_nametoindex("da0").expect("da0");
        let mut plane = open(pins);
        apply(&mut plane, &wanted(1..=8, ifindex), 1);
        let program = program(pins);
        let (stop, packets) = (AtomicBool::new(false), AtomicU64::new(0));
        let changes = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut port = 0u16;
                while !stop.load(Ordering::Relaxed) {
                    port = port.wrapping_add(1);
                    let action = run(&program, port);
                    assert!(matches!(action, 3 | 4), "packet {port} ended with action {action}");
                    packets.fetch_add(1, Ordering::Relaxed);
                }
            });
            let end = Instant::now() + Duration::from_secs(3);
            let mut changes = 1;
            while Instant::now() < end && !reader.is_finished() {
                changes += 1;
                let first = (changes % 40) as u8 + 1;
                apply(&mut plane, &wanted(first..first + 8, ifindex), changes);
            }
            stop.store(true, Ordering::Relaxed);
            reader.join().expect("the packets");
            changes
        });
        let packets = packets.load(Ordering::Relaxed);
        println!("{changes} changes under {packets} packets");
        assert!(changes > 20 && packets > 1000, "{changes} changes, {packets} packets");
        let reasons = plane.reason_counters(0).expect("reason counters");
        assert_eq!(reasons.get(&(Reason::ForwardedDsr as u32)).map(|c| c.packets), Some(packets));
    });
}

/// Another release's program on the pinned link is replaced through that link, and the maps go on as they are.
#[test]
fn another_program_is_upgraded_through_the_link() {
    if !root() {
        return;
    }
    let place = Place::new("upgrade");
    place.within(|pins| {
        let ifindex = nix::net::if_::if_nametoindex("da0").expect("da0");
        let mut plane = open(pins);
        apply(&mut plane, &wanted(1..=4, ifindex), 3);
        drop(plane);
        let pinned = pins.interfaces().expect("pins");
        let path = pins.interface(&pinned[0]).join("link");
        let link = || FdLink::from(PinnedLink::from_pin(&path).expect("pinned link"));
        let before = link().info().expect("link");

        // Any other XDP program stands for the older release.
        let mut object = EbpfLoader::new().load(WEIR_DECAP).expect("another object");
        let other: &mut Xdp = object.program_mut("weir_decap").expect("program").try_into().expect("XDP");
        other.load().expect("load the other program");
        let id = other.attach_to_link(XdpLink::try_from(link()).expect("XDP link")).expect("swap");
        drop(other.take_link(id).expect("link"));
        assert_ne!(link().info().expect("link").program_id(), before.program_id());

        let attached = load(pins, &["da0".to_owned()], XdpMode::Native, &sizes()).expect("load");
        assert_eq!(attached[0].how, How::Upgraded);
        let after = link().info().expect("link");
        assert_eq!(after.id(), before.id(), "the link is the same one");
        assert_eq!(after.program_id(), attached[0].program_id);
        let plane = KernelDataplane::open(pins, sizes(), SECRETS).expect("adopt");
        assert!(plane.adopted() && plane.present().revision() == 3);
        assert!(matches!(run(&program(pins), 1), 3 | 4));
    });
}

/// Connections open and close, more of them than the table holds, while a backend leaves and an agent is replaced: what is counted as active
/// is what the records say.
#[test]
fn active_connections_are_those_of_the_records() {
    if !root() {
        return;
    }
    let place = Place::new("drift");
    place.within(|pins| {
        let ifindex = nix::net::if_::if_nametoindex("da0").expect("da0");
        let tracked = |backends| {
            let mut wanted = wanted(backends, ifindex);
            let policy = Policy { track_all: true, algo: Algo::LeastConnections, ..Policy::DEFAULT };
            wanted.services.iter_mut().for_each(|service| service.policy = policy);
            wanted
        };
        let mut plane = open(pins);
        apply(&mut plane, &tracked(1..=4), 1);
        let program = program(pins);
        let settle = |plane: &KernelDataplane, what: &str| {
            let look = plane.look()().expect("look");
            assert_eq!(look.drift, 0, "{what}");
            let ids: Vec<u32> = plane.present().services().flat_map(|(_, s)| s.backends.iter().map(|b| b.id)).collect();
            let active: u64 = ids.iter().map(|id| u64::from(plane.flows(*id).0)).sum();
            assert_eq!(active, look.in_state(FlowState::Established), "{what}");
            look
        };
        for port in 1..=300 {
            for flags in [SYN, ACK] {
                assert!(matches!(send(&program, port, flags), 3 | 4));
            }
        }
        let look = settle(&plane, "connections opened");
        assert_eq!(look.in_state(FlowState::Established), 300);
        assert_eq!((look.in_state(FlowState::HalfOpen), look.in_state(FlowState::Once)), (0, 0));
        for port in 1..=100 {
            send(&program, port, FIN);
        }
        send(&program, 301, SYN);
        let look = settle(&plane, "some of them closed");
        assert_eq!((look.in_state(FlowState::Established), look.in_state(FlowState::Closing)), (200, 100));
        assert_eq!(look.in_state(FlowState::HalfOpen), 1);
        apply(&mut plane, &tracked(1..=3), 2);
        for port in 1000..20_000 {
            send(&program, port, if port % 2 == 0 { SYN } else { ACK });
        }
        settle(&plane, "a flood, and a backend that leaves");
        // What an operator removes is counted down too.
        let ids: Vec<u32> = plane.present().services().flat_map(|(_, s)| s.backends.iter().map(|b| b.id)).collect();
        let of_first = {
            let mut n = 0;
            plane.scan()(&mut |word| n += u64::from(is_record(word) && Record::unpack(word).backend == ids[0]));
            n
        };
        assert!(of_first > 0);
        let flush = |service, backend| plane.flush(Flush { service, backend })().expect("flush");
        assert_eq!((flush(99, 0), flush(99, ids[0]), flush(0, ids[0])), (0, 0, of_first));
        assert_eq!(plane.flows(ids[0]), (0, 0));
        let left = settle(&plane, "records of a backend flushed").records();
        assert_eq!(plane.flow_events().expect("events").get(&FlowEvent::Flushed), Some(&of_first));
        for port in 1..=300 {
            for flags in [SYN, ACK] {
                assert!(matches!(send(&program, port, flags), 3 | 4));
            }
        }
        assert!(settle(&plane, "connections again").records() > left);
        drop(plane);
        let plane = KernelDataplane::open(pins, sizes(), SECRETS).expect("adopt");
        let look = settle(&plane, "another agent");
        assert!(look.in_state(FlowState::Established) >= 200, "nothing live was evicted: {look:?}");
    });
}
