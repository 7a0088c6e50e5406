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

    /// Runs one frame.
    pub fn run(&self, frame: &[u8]) -> Result<Outcome> {
        let program: &Xdp = self.ebpf.program("weir_lb").context("the program is there")?.try_into()?;
        let mut out = [0; FRAME_MAX];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = program.test_run(options)?;
        let frame = out.get(..result.data_size_out as usize).context("the frame fits")?.to_vec();
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

/// Moves this thread into a network namespace of its own, which vanishes with it, whose routes know the clients of the
/// world: the first has a neighbour entry, the second a route only, the third nothing. Gives what the routes say.
pub fn enter_namespace() -> Result<BTreeMap<[u8; 16], NextHop>> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
    let (mac, peer_mac) = ([2, 0, 0, 0, 0xc1, 1], [2, 0, 0, 0, 0xc1, 2]);
    let mut commands = vec![
        "ip link set lo up".to_owned(),
        "ip link add wpl0 type veth peer name wpl1".to_owned(),
        "ip link set wpl0 addrgenmode none address 02:00:00:00:c1:01 up".to_owned(),
        "ip link set wpl1 addrgenmode none up".to_owned(),
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1".to_owned(),
    ];
    let v4 = |n: usize| std::net::Ipv4Addr::from(CLIENTS_V4[n]);
    let v6 = |n: usize| std::net::Ipv6Addr::from(CLIENTS_V6[n]);
    for n in 0..2 {
        commands.push(format!("ip route add {}/32 dev wpl0", v4(n)));
        commands.push(format!("ip -6 route add {}/128 dev wpl0", v6(n)));
    }
    for addr in [v4(0).to_string(), v6(0).to_string()] {
        commands.push(format!("ip neigh add {addr} lladdr 02:00:00:00:c1:02 dev wpl0 nud permanent"));
    }
    for command in &commands {
        let status = Command::new("sh").args(["-c", command]).status()?;
        ensure!(status.success(), "{command}: {status}");
    }
    let ifindex = nix::net::if_::if_nametoindex("wpl0")?;
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&peer_mac);
    macs[6..].copy_from_slice(&mac);
    let resolved = NextHop::Resolved { ifindex, macs };
    Ok(BTreeMap::from([
        (abi::mapped(CLIENTS_V4[0]), resolved),
        (abi::mapped(CLIENTS_V4[1]), NextHop::NoNeighbour),
        (CLIENTS_V6[0], resolved),
        (CLIENTS_V6[1], NextHop::NoNeighbour),
    ]))
}
