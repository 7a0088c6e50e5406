//! weir itself: its loader, its plan, its data plane and its program, on a real configuration.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramInfo, Xdp, loaded_programs};
use aya_obj::programs::XdpAttachType;
use lb_core::abi::{
    node::HASH_KEY_WORDS,
    ring::{Extent, Line, Slot, State},
    stats::FlowEvent,
};
use lb_userspace::{
    dataplane::{
        Dataplane,
        apply::{Map, Memory as _},
        kernel::{Access, KernelDataplane, Maps},
        load,
        pin::Pins,
    },
    model::{self, Config, NextHop, XdpMode},
    plan::{MapSizes, Secrets, wanted},
};

use crate::scene::{BALANCER_MAC, CLIENT_MAC};

/// Numbers the instances of this process.
static INSTANCES: AtomicU32 = AtomicU32::new(0);

/// weir's data plane, loaded; unloaded when dropped.
pub struct Weir {
    pins: Pins,
    program_id: u32,
    plane: KernelDataplane,
    config: Config,
    egress: u32,
}

impl Weir {
    /// Loads the program for the interface that `text` names, and fills the maps with what `text` says. Packets leave
    /// by the interface with index `egress`.
    pub fn load(text: &str, egress: u32) -> Result<Self> {
        let checked = model::check("bench.toml", text);
        let config = checked.config.clone().with_context(|| checked.render(text, false))?;
        let sizes = MapSizes::of(&config.node.limits);
        let instance = INSTANCES.fetch_add(1, Ordering::Relaxed);
        let pins = Pins::new(PathBuf::from(format!("/sys/fs/bpf/weir-bench-{}-{instance}", std::process::id())));
        let attached = load::load(&pins, &config.node.interfaces, XdpMode::Native, &sizes)?;
        let program_id = attached.first().context("nothing was attached")?.program_id;
        let mut hash_key = [0; HASH_KEY_WORDS];
        for word in &mut hash_key {
            *word = rand::random();
        }
        let plane = KernelDataplane::open(&pins, sizes, Secrets { hash_key, ring_seed: rand::random() })?;
        let mut weir = Self { pins, program_id, plane, config, egress };
        weir.apply()?;
        Ok(weir)
    }

    /// The data plane opened anew, as an agent that was started again takes it over, and the configuration in it.
    pub fn take_over(&self) -> Result<(KernelDataplane, Config)> {
        let unused = Secrets { hash_key: [0; HASH_KEY_WORDS], ring_seed: 0 };
        let plane = KernelDataplane::open(&self.pins, MapSizes::of(&self.config.node.limits), unused)?;
        ensure!(plane.adopted(), "the maps of {} were not taken over", self.pins.dir().display());
        Ok((plane, self.config.clone()))
    }

    /// The way to every backend.
    pub fn next_hop(&self) -> NextHop {
        NextHop { ifindex: self.egress, mtu: 1500, src_mac: BALANCER_MAC, dst_mac: CLIENT_MAC }
    }

    /// Plans and applies the configuration as the agent does; gives how long planning took.
    fn apply(&mut self) -> Result<Duration> {
        let hop = self.next_hop();
        let wanted = wanted(&self.config, &|_, _| Some(true), &|_: IpAddr| Some(hop));
        let start = Instant::now();
        let plan = self.plane.plan(&wanted, self.plane.present().revision() + 1)?;
        let planned = start.elapsed();
        self.plane.apply(plan)?;
        Ok(planned)
    }

    /// Puts every slot of every ring into a state, with its own backend as its owner. Not the agent's way: none brings a whole
    /// ring into a window at once.
    pub fn set_slots(&self, state: State) -> Result<()> {
        let mut maps = Maps::open(&self.pins, Access::Write)?;
        for (_, service) in self.plane.present().services() {
            let ring = Extent::unpack(service.entry.ring);
            for line in ring.line..ring.line + ring.lines() {
                for word in 0..size_of::<Line>() / 8 {
                    let slots = maps.load(Map::Rings, line, word).context("the ring reaches beyond the arena")?;
                    let [low, high] = [slots as u32, (slots >> 32) as u32].map(|slot| match slot {
                        // Behind the last slot.
                        0 => 0,
                        slot => Slot::new(Slot(slot).current(), state, Slot(slot).tracked()).0,
                    });
                    let owners = u64::from(Slot(slots as u32).current()) | slots & 0xff_ffff_u64 << 32;
                    let stored = maps.store(Map::Owners, line, word, owners)
                        && maps.store(Map::Rings, line, word, u64::from(low) | u64::from(high) << 32);
                    ensure!(stored, "the maps end before the ring");
                }
            }
        }
        Ok(())
    }

    /// What the flow table did so far.
    pub fn events(&self) -> Result<BTreeMap<FlowEvent, u64>> {
        Ok(self.plane.flow_events()?)
    }

    /// Waits until what earlier plans took out of use is free.
    pub fn settle(&mut self) -> Result<()> {
        while let Some(until) = self.plane.grace_until() {
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            self.plane.settle(Instant::now())?;
        }
        Ok(())
    }

    /// Changes the weight of the first backend of a service and applies that; gives how long planning took.
    pub fn change_weight(&mut self, service: usize, weight: u16) -> Result<Duration> {
        let services = &mut self.config.services;
        let backend = services.get_mut(service).and_then(|s| s.backends.first_mut()).context("no such service")?;
        ensure!(backend.weight != weight, "nothing would change");
        backend.weight = weight;
        self.apply()
    }

    /// The program in the kernel.
    pub fn program(&self) -> Result<Xdp> {
        // The loader made it as an XDP program for interfaces, which is what is said here.
        Ok(Xdp::from_program_info(self.info()?, load::PROGRAM.into(), XdpAttachType::Interface)?)
    }

    /// What the kernel knows about it.
    pub fn info(&self) -> Result<ProgramInfo> {
        loaded_programs()
            .flatten()
            .find(|program| program.id() == self.program_id)
            .context("weir's program is not in the kernel")
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if let Err(error) = self.pins.remove_all() {
            eprintln!("cannot remove {}: {error}", self.pins.dir().display());
        }
    }
}
