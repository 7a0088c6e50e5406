//! The bench's own network namespace: a veth pair, the generator behind one end and the program under test on the other.
//!
//! The process itself moves into a nameless namespace, so everything is gone when it ends, however it ends.

use std::{
    fs,
    os::fd::OwnedFd,
    process::Command,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, PerCpuArray, PerCpuValues},
    programs::{
        ProgramInfo, TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode,
        links::FdLink,
        xdp::{XdpLink, XdpLinkId},
    },
    sys::{Stats, enable_stats},
    util::nr_cpus,
};
use lb_userspace::object::WEIR_BENCH;
use nix::{
    libc,
    net::if_::if_nametoindex,
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    unistd::Pid,
};

use crate::{
    scene::{BACKENDS, BALANCER_MAC, CLIENT_MAC, Family, RING_SLOTS, Service, words},
    turns::Turns,
};

/// Interface that packets are sent from and come back to.
pub const CLIENT: &str = "client0";
/// Interface that carries the program under test.
pub const BALANCER: &str = "balancer0";
/// Interface that weir is loaded for; its program then runs on [`BALANCER`] like the others.
pub const SPARE: &str = "spare0";
/// Interfaces for as many instances of weir at a time: [`spare`].
const SPARES: usize = 12;
/// Packets of one batch of the generator.
const BATCH: u32 = 64;

/// `Template` of `xdp-ebpf/src/bench.rs`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Template {
    frame: [u64; 10],
    ifindex: u32,
    flows: u32,
    v6: u32,
    sum: u32,
    first: u32,
    random_mask: u32,
    random_flags: [u32; 2],
    drawn: u32,
    pad: u32,
}

// SAFETY: integers only, in C layout, without padding.
unsafe impl Pod for Template {}

/// What one run of the generator showed.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Time in the program, per packet.
    pub gross_ns: f64,
    /// Forwarded packets per second.
    pub pps: f64,
    /// Share of the packets that did not come back.
    pub lost: f64,
    /// Bytes of a forwarded packet.
    pub bytes: f64,
}

/// The packets of a run.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub service: Service,
    /// The first flow and how many take turns.
    pub first: u32,
    pub flows: u32,
    /// They do not take turns but are drawn: in turn, a table whose entries stand in the order of recording is read like a book.
    pub drawn: bool,
    /// TCP flags of those, instead of ACK.
    pub flags: Option<u8>,
    /// Beside them, fifteen of sixteen packets are of random flows.
    pub flood: Option<Flood>,
}

/// Packets of random flows.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// How many flows there are, a power of two up to 16 Mi.
    pub tuples: u32,
    /// TCP flags of a packet, one or the other by chance.
    pub flags: [u8; 2],
}

impl Traffic {
    /// ACKs of `flows` flows in turn.
    pub fn of(service: Service, flows: u32) -> Self {
        Self { service, first: 0, flows, drawn: false, flags: None, flood: None }
    }
}

/// The laboratory.
pub struct Lab {
    bench: Ebpf,
    client: u32,
    balancer: u32,
    /// The hook of [`BALANCER`], through which programs are exchanged.
    hook: Option<FdLink>,
    turns: Rc<Turns>,
    /// Statistics are on while it is open.
    _stats: OwnedFd,
}

/// Moves this process, which must have one thread, into a namespace of its own, and onto one CPU.
pub fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: the bench needs root")?;
    // Router solicitations would be counted.
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
    let mac = |octets: [u8; 6]| octets.map(|octet| format!("{octet:02x}")).join(":");
    ip("link set lo up")?;
    ip(&format!(
        "link add {CLIENT} address {} type veth peer name {BALANCER} address {}",
        mac(CLIENT_MAC),
        mac(BALANCER_MAC)
    ))?;
    for n in 0..SPARES {
        ip(&format!("link add {} type veth peer name peer{n}", spare(n)))?;
    }
    for name in [CLIENT, BALANCER] {
        ip(&format!("link set {name} up"))?;
    }
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let cpu = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).context("no CPU")?;
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &one).context("cannot choose a CPU")?;
    // Rates are taken by the clock on the wall: whoever shares the CPU must not be counted. Without it they are only noisier.
    // SAFETY: takes three integers and touches no memory.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } != 0 {
        eprintln!("the bench keeps its usual priority: {}", std::io::Error::last_os_error());
    }
    Ok(())
}

/// Name of the interface of instance `n`, below [`SPARES`]; instance 0 has [`SPARE`].
pub fn spare(n: usize) -> String {
    format!("spare{n}")
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().context("cannot run ip (iproute2)")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Lab {
    /// Loads the bench's programs and fills the minimal program's maps.
    pub fn new(ring: &[u32], turns: Turns) -> Result<Self> {
        let mut bench = Ebpf::load(WEIR_BENCH).context("cannot load the bench's programs")?;
        for name in ["bench_generate", "bench_sink", "bench_floor", "bench_minimal", "bench_lru"] {
            xdp(&mut bench, name)?.load().with_context(|| format!("the kernel refuses {name}"))?;
        }
        let client = if_nametoindex(CLIENT)?;
        let sink = xdp(&mut bench, "bench_sink")?;
        sink.attach(CLIENT, XdpMode::Driver).context("cannot attach the sink")?;
        let floor = xdp(&mut bench, "bench_floor")?;
        let id = floor.attach(BALANCER, XdpMode::Driver).context("cannot attach the floor")?;
        let hook = FdLink::try_from(floor.take_link(id)?)?;

        let mut map: Array<_, u32> = bench.map_mut("RING").context("no RING")?.try_into()?;
        ensure!(ring.len() == RING_SLOTS as usize, "the ring has {} slots", ring.len());
        for (slot, target) in (0..).zip(ring) {
            map.set(slot, target, 0)?;
        }
        Ok(Self {
            bench,
            client,
            balancer: if_nametoindex(BALANCER)?,
            hook: Some(hook),
            turns: Rc::new(turns),
            _stats: enable_stats(Stats::RunTime)?,
        })
    }

    /// Index of the interface that carries the program under test.
    pub fn egress(&self) -> u32 {
        self.balancer
    }

    /// Gives the minimal program a service and its backends.
    pub fn serve_minimal(&mut self, service: Service) -> Result<()> {
        let key = service.minimal_key();
        let value = [0, RING_SLOTS];
        match service.family {
            Family::V4 => {
                let mut map: HashMap<_, [u32; 2], [u32; 2]> =
                    self.bench.map_mut("SERVICES_V4").context("map")?.try_into()?;
                map.insert(<[u32; 2]>::try_from(&key[..])?, value, 0)?;
            }
            Family::V6 => {
                let mut map: HashMap<_, [u32; 5], [u32; 2]> =
                    self.bench.map_mut("SERVICES_V6").context("map")?.try_into()?;
                map.insert(<[u32; 5]>::try_from(&key[..])?, value, 0)?;
            }
        }
        let mut map: Array<_, [u32; 8]> = self.bench.map_mut("TARGETS").context("no TARGETS")?.try_into()?;
        let macs = [CLIENT_MAC, BALANCER_MAC].concat();
        for i in 0..BACKENDS {
            let mut target = [0; 8];
            for (to, from) in target.iter_mut().zip(words(service.backend(i))) {
                *to = from;
            }
            for (to, from) in target[4..].iter_mut().zip(macs.chunks_exact(4)) {
                *to = u32::from_ne_bytes(from.try_into()?);
            }
            map.set(u32::from(i), target, 0)?;
        }
        Ok(())
    }

    /// Puts one of the bench's programs under test.
    pub fn install(&mut self, name: &str) -> Result<()> {
        let link = self.hook.take().context("the hook is in use")?;
        let program = xdp(&mut self.bench, name)?;
        self.hook = Some(exchange(program, link)?);
        Ok(())
    }

    /// Puts a program from elsewhere under test.
    pub fn install_other(&mut self, program: &mut Xdp) -> Result<()> {
        let link = self.hook.take().context("the hook is in use")?;
        self.hook = Some(exchange(program, link)?);
        Ok(())
    }

    /// What the kernel knows about one of the bench's programs.
    pub fn info(&mut self, name: &str) -> Result<ProgramInfo> {
        Ok(xdp(&mut self.bench, name)?.info()?)
    }

    /// Sends `packets` packets and reads what `info` says about the program under test.
    pub fn run(
        &mut self,
        traffic: Traffic,
        packets: u32,
        info: impl Fn(&mut Self) -> Result<ProgramInfo>,
    ) -> Result<Sample> {
        let turns = Rc::clone(&self.turns);
        turns.take(|| self.run_now(traffic, packets, info))
    }

    fn run_now(
        &mut self,
        traffic: Traffic,
        packets: u32,
        info: impl Fn(&mut Self) -> Result<ProgramInfo>,
    ) -> Result<Sample> {
        let frame = self.set_template(traffic)?;
        // Fills the pool of pages and the caches.
        self.generate(&frame, warm_up(packets))?;
        let (sunk_before, before) = (self.sunk()?, info(self)?);
        let start = Instant::now();
        self.generate(&frame, packets)?;
        let elapsed = start.elapsed();
        // What is left in the rings is handled by now.
        std::thread::sleep(Duration::from_millis(2));
        let (sunk, after) = (self.sunk()?, info(self)?);
        let packets_sunk = (sunk[0] - sunk_before[0]) as f64;
        let runs = after.run_count() - before.run_count();
        ensure!(runs > 0, "the program under test never ran");
        Ok(Sample {
            gross_ns: (after.run_time() - before.run_time()).as_nanos() as f64 / runs as f64,
            pps: packets_sunk / elapsed.as_secs_f64(),
            lost: 1.0 - packets_sunk / f64::from(packets),
            bytes: (sunk[1] - sunk_before[1]) as f64 / packets_sunk,
        })
    }

    /// Sends `packets` packets and measures nothing.
    pub fn send(&mut self, traffic: Traffic, packets: u32) -> Result<()> {
        let frame = self.set_template(traffic)?;
        self.generate(&frame, packets)?;
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    }

    /// Packets of flows that the LRU hash did not know, so far.
    pub fn missed(&self) -> Result<u64> {
        let map: PerCpuArray<_, u64> = self.bench.map("MISSED").context("no MISSED")?.try_into()?;
        Ok(map.get(&0, 0)?.iter().sum())
    }

    fn generate(&mut self, frame: &[u8], packets: u32) -> Result<()> {
        let options = TestRunOptions {
            data_in: Some(frame),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        };
        xdp(&mut self.bench, "bench_generate")?.test_run(options).context("cannot send live frames (Linux 5.18)")?;
        Ok(())
    }

    /// Tells the generator what to send, from the first flow on; gives the frame.
    fn set_template(&mut self, traffic: Traffic) -> Result<Vec<u8>> {
        let Traffic { service, first, flows, drawn, flags, flood } = traffic;
        let mut frame = service.frame();
        if let (Some(flags), Some(byte)) = (flags, frame.get_mut(service.tcp_flags_at())) {
            *byte = flags;
        }
        let mut template = Template {
            frame: [0; 10],
            ifindex: self.client,
            flows,
            v6: u32::from(service.family == Family::V6),
            sum: 0,
            first,
            random_mask: flood.map_or(0, |flood| flood.tuples - 1),
            random_flags: flood.map_or([0; 2], |flood| flood.flags.map(u32::from)),
            drawn: u32::from(drawn),
            pad: 0,
        };
        let mut padded = frame.clone();
        padded.resize(80, 0);
        for (to, from) in template.frame.iter_mut().zip(padded.chunks_exact(8)) {
            *to = u64::from_ne_bytes(from.try_into()?);
        }
        // Without checksum, which is zero in the template, and source.
        template.sum = frame[14..26]
            .chunks_exact(2)
            .chain(frame[30..34].chunks_exact(2))
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        let mut map: Array<_, Template> = self.bench.map_mut("TEMPLATE").context("no TEMPLATE")?.try_into()?;
        map.set(0, template, 0)?;
        let mut next: PerCpuArray<_, u64> = self.bench.map_mut("FLOW").context("no FLOW")?.try_into()?;
        next.set(0, PerCpuValues::try_from(vec![0; nr_cpus().map_err(|(_, error)| error)?])?, 0)?;
        Ok(frame)
    }

    /// Packets and bytes that came back so far.
    fn sunk(&self) -> Result<[u64; 2]> {
        let map: PerCpuArray<_, [u64; 2]> = self.bench.map("SUNK").context("no SUNK")?.try_into()?;
        let values = map.get(&0, 0)?;
        Ok(values.iter().fold([0; 2], |sum, value| [sum[0] + value[0], sum[1] + value[1]]))
    }
}

/// Packets that a run of `packets` begins with, unmeasured.
pub fn warm_up(packets: u32) -> u32 {
    (packets / 10).clamp(BATCH, 100_000)
}

/// Exchanges the program of a link.
fn exchange(program: &mut Xdp, link: FdLink) -> Result<FdLink> {
    let id: XdpLinkId = program.attach_to_link(XdpLink::try_from(link)?).context("cannot exchange the program")?;
    Ok(FdLink::try_from(program.take_link(id)?)?)
}

fn xdp<'a>(bench: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(bench.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}
