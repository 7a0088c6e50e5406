//! The loaded program under `BPF_PROG_RUN`, in a network namespace of its own.
//!
//! Owns: loading, filling maps, running one frame, reading counters, and the namespace whose routes `nat` replies take.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    maps::{Array, MapData, PerCpuArray, PerCpuValues},
    programs::{TestRun as _, Xdp},
};
use bytemuck::Pod;
use lb_core::{
    abi::{self, stats::REASONS_MAX},
    host::Snapshot,
    reason::Reason,
    tables::NextHop,
};
use nix::sched::{CloneFlags, unshare};

use super::world::{CLIENTS_V4, CLIENTS_V6};

/// Room for any frame that the program makes of one of at most 1,800 bytes.
const FRAME_MAX: usize = 2048;
/// The most metadata that BPF_PROG_RUN takes: of 256 bytes of headroom the kernel keeps 40 for `struct xdp_frame`. Kernels
/// that allow no more than 32 bytes of metadata refuse it.
const METADATA_MAX: usize = 216;
/// Slot of the interface that the program under test is told to be on: not the first, so that an index without it shows.
const INTERFACE: u32 = 2;

/// What the program did with a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// XDP action.
    pub action: u32,
    /// The frame as it left.
    pub frame: Vec<u8>,
}

/// Packets and bytes by reason.
pub type Counters = BTreeMap<Reason, (u64, u64)>;

/// The program with its maps.
pub struct Program {
    ebpf: Ebpf,
}

impl Program {
    /// Loads the object and copies `snapshot` into its maps.
    pub fn load(snapshot: &Snapshot) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let interface = INTERFACE;
        loader
            .override_global("INTERFACE", &interface, true)
            .map_max_entries("LOOKUP", snapshot.lookup.len() as u32)
            .map_max_entries("SERVICES", snapshot.services.len() as u32)
            .map_max_entries("RINGS", snapshot.lines.len().max(1) as u32)
            .map_max_entries("OWNERS", snapshot.lines.len().max(1) as u32)
            .map_max_entries("FLOWS", snapshot.flows.len().max(1) as u32)
            .map_max_entries("ACTIVE", snapshot.backends.len() as u32)
            .map_max_entries("BACKEND_FLOWS", snapshot.backends.len() as u32)
            .map_max_entries("TURNS", snapshot.services.len() as u32)
            .map_max_entries("BACKENDS", snapshot.backends.len() as u32)
            .map_max_entries("BACKEND_STATS", snapshot.backends.len() as u32)
            .map_max_entries("FRAGMENTS", 1 << 16);
        let mut ebpf = loader.load(lb_userspace::object::WEIR_LB).context("the object loads")?;
        let program: &mut Xdp = ebpf.program_mut("weir_lb").context("the program is there")?.try_into()?;
        program.load().context("the verifier accepts the program")?;
        let mut this = Self { ebpf };
        this.set::<_, 128>("NODE", &[snapshot.node])?;
        this.set::<_, 64>("LOOKUP", &snapshot.lookup)?;
        this.set::<_, 64>("SERVICES", &snapshot.services)?;
        this.set::<_, 64>("RINGS", &snapshot.lines)?;
        this.set::<_, 64>("OWNERS", &snapshot.owners)?;
        this.set::<_, 64>("BACKENDS", &snapshot.backends)?;
        Ok(this)
    }

    /// Writes an array map from its first entry on; `N` is the size of a value.
    pub fn set<T: Pod, const N: usize>(&mut self, map: &str, values: &[T]) -> Result<()> {
        let mut array: Array<&mut MapData, [u8; N]> = self.ebpf.map_mut(map).context("the map is there")?.try_into()?;
        for (i, value) in values.iter().enumerate() {
            array.set(i as u32, <[u8; N]>::try_from(bytemuck::bytes_of(value))?, 0)?;
        }
        Ok(())
    }

    /// Runs one frame; the kernel refuses less than 14 bytes.
    pub fn run(&self, frame: &[u8]) -> Result<Outcome> {
        self.run_behind(0, frame)
    }

    /// Runs one frame behind a headroom that metadata fills.
    pub fn run_without_headroom(&self, frame: &[u8]) -> Result<Outcome> {
        self.run_behind(METADATA_MAX, frame).context("the kernel takes as much metadata as the headroom has room for")
    }

    /// Runs one frame behind `metadata` bytes of metadata, which the kernel takes out of the headroom.
    fn run_behind(&self, metadata: usize, frame: &[u8]) -> Result<Outcome> {
        let program: &Xdp = self.ebpf.program("weir_lb").context("the program is there")?.try_into()?;
        let mut data = vec![0; metadata];
        data.extend_from_slice(frame);
        // struct xdp_md: data, data_end, data_meta, ingress interface, queue, egress interface.
        let context: [u32; 6] = [metadata as u32, data.len() as u32, 0, 0, 0, 0];
        let mut out = [0; FRAME_MAX];
        let options = TestRunOptions {
            data_in: Some(&data),
            data_out: Some(&mut out),
            ctx_in: (metadata > 0).then(|| bytemuck::cast_slice(&context)),
            ..TestRunOptions::default()
        };
        let result = program.test_run(options)?;
        let frame = out.get(metadata..result.data_size_out as usize).context("the frame fits")?.to_vec();
        Ok(Outcome { action: result.return_value, frame })
    }

    /// Every counter that is not zero, summed over CPUs; an interface slot other than the program's must stay zero.
    pub fn reasons(&self) -> Result<Counters> {
        let map = self.ebpf.map("REASON_STATS").context("the map is there")?;
        let stats: PerCpuArray<_, [u64; 2]> = map.try_into()?;
        let mut counters = Counters::new();
        for index in 0..abi::stats::INTERFACES_MAX * REASONS_MAX {
            let (packets, bytes) = sum(&stats.get(&index, 0)?);
            if packets != 0 {
                ensure!(index / REASONS_MAX == INTERFACE, "counter {index} is another interface's");
                let reason = Reason::from_number(index % REASONS_MAX).context("a counter without a reason")?;
                counters.insert(reason, (packets, bytes));
            }
        }
        Ok(counters)
    }

    /// Packets and bytes of a backend, summed over CPUs.
    pub fn backend(&self, id: u32) -> Result<(u64, u64)> {
        let map = self.ebpf.map("BACKEND_STATS").context("the map is there")?;
        let stats: PerCpuArray<_, [u64; 2]> = map.try_into()?;
        Ok(sum(&stats.get(&id, 0)?))
    }
}

fn sum(values: &PerCpuValues<[u64; 2]>) -> (u64, u64) {
    values.iter().fold((0, 0), |(packets, bytes), value| (packets + value[0], bytes + value[1]))
}

/// MAC addresses of the way to the clients: this end, the clients' end.
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0xc1, 1], [2, 0, 0, 0, 0xc1, 2]];

/// What the routes of [`enter_namespace`] say about the clients of the world, where `ifindex` leads to them.
pub fn next_hops(ifindex: u32) -> BTreeMap<[u8; 16], NextHop> {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&MACS[1]);
    macs[6..].copy_from_slice(&MACS[0]);
    let known = [(0, NextHop::Resolved { ifindex, macs }), (1, NextHop::NoNeighbour), (3, NextHop::Unsupported)];
    known.into_iter().flat_map(|(n, hop)| [(abi::mapped(CLIENTS_V4[n]), hop), (CLIENTS_V6[n], hop)]).collect()
}

/// Runs commands in this thread's namespace.
pub fn shell(commands: &[String]) -> Result<()> {
    for command in commands {
        let status = Command::new("sh").args(["-c", command]).status()?;
        ensure!(status.success(), "{command}: {status}");
    }
    Ok(())
}

/// Moves this thread into a network namespace of its own, which vanishes with it, whose routes know the clients of the
/// world: the first has a neighbour entry, the second a route only, the third nothing, the fourth a route into a tunnel.
/// Gives what the routes say.
pub fn enter_namespace() -> Result<BTreeMap<[u8; 16], NextHop>> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
    let [mac, peer] = MACS.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
    let mut commands = vec![
        "ip link set lo up".to_owned(),
        "ip link add wpl0 type veth peer name wpl1".to_owned(),
        format!("ip link set wpl0 addrgenmode none address {mac} up"),
        "ip link set wpl1 addrgenmode none up".to_owned(),
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1".to_owned(),
    ];
    let v4 = |n: usize| std::net::Ipv4Addr::from(CLIENTS_V4[n]);
    let v6 = |n: usize| std::net::Ipv6Addr::from(CLIENTS_V6[n]);
    for n in 0..2 {
        commands.push(format!("ip route add {}/32 dev wpl0", v4(n)));
        commands.push(format!("ip -6 route add {}/128 dev wpl0", v6(n)));
    }
    commands.push(format!("ip route add {}/32 encap ip id 1 dst 203.0.113.200 dev wpl0", v4(3)));
    commands.push(format!("ip -6 route add {}/128 encap ip6 id 1 dst 2001:db8:cc::1 dev wpl0", v6(3)));
    for addr in [v4(0).to_string(), v6(0).to_string()] {
        commands.push(format!("ip neigh add {addr} lladdr {peer} dev wpl0 nud permanent"));
    }
    shell(&commands)?;
    Ok(next_hops(nix::net::if_::if_nametoindex("wpl0")?))
}
