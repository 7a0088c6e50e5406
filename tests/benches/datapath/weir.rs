//! weir itself: its loader, its plan, its data plane and its program, on a real configuration.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramInfo, Xdp, loaded_programs};
use aya_obj::programs::XdpAttachType;
use lb_core::abi::node::HASH_KEY_WORDS;
use lb_userspace::{
    dataplane::{Dataplane, kernel::KernelDataplane, load, pin::Pins},
    model::{self, Config, NextHop, XdpMode},
    plan::{MapSizes, Secrets, wanted},
};

use crate::scene::{BALANCER_MAC, CLIENT_MAC};

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
        let pins = Pins::new(PathBuf::from(format!("/sys/fs/bpf/weir-bench-{}", std::process::id())));
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

    /// Plans and applies the configuration as the agent does.
    fn apply(&mut self) -> Result<()> {
        let hop = self.next_hop();
        let wanted = wanted(&self.config, &|_, _| Some(true), &|_: IpAddr| Some(hop));
        let plan = self.plane.plan(&wanted, self.plane.present().revision() + 1)?;
        self.plane.apply(plan)?;
        Ok(())
    }

    /// Changes the weight of the first backend of a service and applies that.
    pub fn change_weight(&mut self, service: usize, weight: u16) -> Result<()> {
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
