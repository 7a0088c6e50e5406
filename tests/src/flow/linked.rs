//! The program as it is attached: two interfaces with a pinned link each, and whatever program each link has.
//!
//! Owns: the namespace, the pins, an older program to upgrade from. Packets are given to the program of one link and then to that of the
//! other, as where a flow's packets come in by two interfaces. Refuses to know flows, and time, which is the kernel's.

use std::{
    cell::{Cell, OnceCell},
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    programs::{
        TestRun as _, Xdp,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use lb_core::abi::{self, flow::WAYS};
use lb_userspace::{
    dataplane::{
        clock,
        kernel::FlowMaps,
        load::{Attached, PROGRAM, load},
        pin::{LINK, Pins},
        sweep::Sweeper,
    },
    model,
    object::WEIR_LB,
    plan::MapSizes,
};

use super::{
    place::{Place, Sent},
    program::Quiet,
};

/// Interfaces, in slots of their order.
const INTERFACES: [&str; 2] = ["wa0", "wb0"];
/// Room for the frame as it leaves.
const OUT: usize = 128;

/// Numbers the namespaces of this process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The attached program. All of it goes when this does.
pub struct Linked {
    netns: String,
    pins: Pins,
    sizes: MapSizes,
    programs: Vec<Xdp>,
    turn: Cell<usize>,
    /// Others send packets too.
    pub is_busy: bool,
    maps: FlowMaps,
    /// Loaded when it is first asked for, on the tables as they are then.
    sweeper: OnceCell<Sweeper>,
}

fn ip(arguments: &str) -> Result<()> {
    let ran = Command::new("ip").args(arguments.split_whitespace()).stderr(Stdio::null()).status()?;
    ensure!(ran.success(), "ip {arguments}");
    Ok(())
}

/// Runs `body` on a thread within a namespace.
fn within<T: Send>(netns: &str, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let file = fs::File::open(format!("/run/netns/{netns}"))?;
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            body()
        });
        inside.join().map_err(|_| anyhow::anyhow!("the thread within the namespace panicked"))?
    })
}

/// The programs that the links have, which are those that are pinned beside them.
pub fn programs(pins: &Pins) -> Result<Vec<Xdp>> {
    let interfaces = pins.interfaces()?;
    let of = |dir: PathBuf| {
        let link = FdLink::from(PinnedLink::from_pin(dir.join(LINK))?);
        let program = Xdp::from_pin(dir.join("program"), aya_obj::programs::XdpAttachType::Interface)?;
        let (running, pinned) = (link.info()?.program_id(), program.info()?.id());
        ensure!(running == pinned, "{} has program {running}, and {pinned} is pinned", dir.display());
        Ok(program)
    };
    interfaces.iter().map(|interface| of(pins.interface(interface))).collect()
}

/// Loads an object on maps of its own or on pinned ones; gives it, and the tag of its program.
fn loaded(object: &[u8], slot: u32, pins: Option<&Pins>) -> Result<(Ebpf, u64)> {
    let mut loader = EbpfLoader::new();
    loader.override_global("INTERFACE", &slot, true);
    for shape in abi::MAPS.iter().filter(|_| pins.is_some()) {
        loader.map_pin_path(shape.name, pins.context("there are pins")?.map(shape.name));
    }
    let mut ebpf = loader.load(object)?;
    let program: &mut Xdp = ebpf.program_mut(PROGRAM).context("the program is there")?.try_into()?;
    program.load()?;
    let tag = program.info()?.tag();
    Ok((ebpf, tag))
}

/// The object of an older release: one instruction is another one that means the same, a 32-bit move of a constant for a 64-bit one.
pub fn older() -> Result<Vec<u8>> {
    const MOVE_64: u8 = 0xb7;
    const MOVE_32: u8 = 0xb4;
    let (_, tag) = loaded(WEIR_LB, 0, None)?;
    let is_move = |at: &usize| matches!(WEIR_LB.get(*at..*at + 8), Some([MOVE_64, 0..=9, 0, 0, 1..=127, 0, 0, 0]));
    for at in (0..WEIR_LB.len()).step_by(8).filter(is_move) {
        let mut object = WEIR_LB.to_vec();
        object[at] = MOVE_32;
        // Other programs of the object have instructions too.
        if loaded(&object, 0, None).is_ok_and(|(_, other)| other != tag) {
            return Ok(object);
        }
    }
    bail!("no instruction of the program can be another one")
}

impl Linked {
    /// Attaches the program to both interfaces, on fresh maps.
    pub fn new(sizes: MapSizes) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let netns = format!("wfl-{}-{number}", std::process::id());
        ip(&format!("netns add {netns}"))?;
        let pins = Pins::new(format!("{}/{netns}", xtask::capability::BPF_FS));
        let made = Self::attach(netns.clone(), pins.clone(), sizes);
        if made.is_err() {
            // What failed first is what is told.
            let _ = (pins.remove_all(), ip(&format!("netns del {netns}")));
        }
        made
    }

    fn attach(netns: String, pins: Pins, sizes: MapSizes) -> Result<Self> {
        for interface in INTERFACES {
            ip(&format!("-n {netns} link add {interface} type veth peer name p{interface}"))?;
        }
        attach(&netns, &pins, &sizes)?;
        Ok(Self {
            programs: programs(&pins)?,
            turn: Cell::new(0),
            is_busy: false,
            maps: FlowMaps::open(&pins)?,
            sweeper: OnceCell::new(),
            netns,
            pins,
            sizes,
        })
    }

    /// The pins.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// What an agent does when it comes: loads what is missing, changes what is other.
    pub fn load(&mut self, sizes: MapSizes) -> Result<Vec<Attached>> {
        let attached = attach(&self.netns, &self.pins, &sizes)?;
        self.sizes = sizes;
        self.look()?;
        Ok(attached)
    }

    /// Takes note of a change of size that was carried through.
    pub fn resized(&mut self, sizes: MapSizes) -> Result<()> {
        self.sizes = sizes;
        self.look()
    }

    /// Looks anew at what is pinned. While a table has no name there is nothing to look at: what was there before still is.
    pub fn look(&mut self) -> Result<()> {
        self.programs = programs(&self.pins)?;
        if self.pins.map(abi::flow::SHAPE.name).exists() {
            self.maps = FlowMaps::open(&self.pins)?;
            self.sweeper = OnceCell::new();
        }
        Ok(())
    }

    /// Gives the links the program of an older release.
    pub fn downgrade(&mut self) -> Result<()> {
        let object = older()?;
        for interface in self.pins.interfaces()? {
            let (mut ebpf, _) = loaded(&object, interface.slot, Some(&self.pins))?;
            let program: &mut Xdp = ebpf.program_mut(PROGRAM).context("the program is there")?.try_into()?;
            let dir = self.pins.interface(&interface);
            let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(dir.join(LINK))?))?;
            let id = program.attach_to_link(link)?;
            program.take_link(id)?;
            fs::remove_file(dir.join("program"))?;
            program.pin(dir.join("program"))?;
        }
        self.look()
    }

    /// Tags of the programs that the links have.
    pub fn tags(&self) -> Result<Vec<u64>> {
        self.programs.iter().map(|program| Ok(program.info()?.tag())).collect()
    }

    /// Gives a packet to the program of the link with this number.
    fn run_at(&self, link: usize, frame: &[u8]) -> Result<Sent> {
        run(self.programs.get(link).context("there is such a link")?, frame)
    }
}

/// Gives a packet to a program.
pub fn run(program: &Xdp, frame: &[u8]) -> Result<Sent> {
    let mut out = [0; OUT];
    let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
    let result = program.test_run(options)?;
    Ok(Sent::read(result.return_value, out.get(..result.data_size_out as usize).context("the frame fits")?))
}

fn attach(netns: &str, pins: &Pins, sizes: &MapSizes) -> Result<Vec<Attached>> {
    let interfaces = INTERFACES.map(str::to_owned);
    within(netns, || Ok(load(pins, &interfaces, model::XdpMode::Native, sizes)?))
}

impl Drop for Linked {
    fn drop(&mut self) {
        if let Err(error) = self.pins.remove_all() {
            eprintln!("cannot remove {}: {error}", self.pins.dir().display());
        }
        ip(&format!("netns del {}", self.netns)).ok();
    }
}

impl Place for Linked {
    type Memory = Quiet;

    fn memory(&self) -> Result<Quiet> {
        Quiet::open(&self.pins)
    }

    /// There is one sequence, on fresh maps.
    fn clear(&mut self) -> Result<()> {
        Ok(())
    }

    fn sizes(&self) -> MapSizes {
        self.sizes
    }

    fn hz(&self) -> u32 {
        clock::hz()
    }

    /// The kernel's time goes on by itself.
    fn set_clock(&mut self, _: u64) {}

    fn run(&self, frame: &[u8]) -> Result<Sent> {
        self.turn.set((self.turn.get() + 1) % INTERFACES.len());
        self.run_at(self.turn.get(), frame)
    }

    fn sweep(&self) -> Result<()> {
        if self.sweeper.get().is_none() {
            self.sweeper.set(Sweeper::load(&self.pins, &self.sizes)?).ok();
        }
        self.sweeper.get().context("it was loaded")?.sweep()?;
        Ok(())
    }

    fn words(&self) -> Vec<u64> {
        let tables = self.maps.before.iter().chain([&self.maps.buckets]);
        let places = tables.flat_map(|table| {
            (0..table.len()).flat_map(move |index| (WAYS..2 * WAYS).filter_map(move |way| table.load_word(index, way)))
        });
        places.collect()
    }

    fn active(&self, id: u32) -> u64 {
        self.maps.active.get(id).unwrap_or(0)
    }

    fn is_quiet(&self) -> bool {
        !self.is_busy
    }
}
