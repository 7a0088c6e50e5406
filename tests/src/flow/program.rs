//! The loaded program on pinned maps, under `BPF_PROG_RUN`.
//!
//! Owns: loading it once for many sequences, emptying its maps between them, and time: the program's clock cannot be moved, so
//! that instead of it going on, every record grows older. Refuses to know flows.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashSet},
    fs,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, TestRunOptions,
    maps::MapData,
    programs::{TestRun as _, Xdp},
};
use lb_core::abi::{
    flow::{self, Record, TIMEOUT_MAX_S, WAYS},
    stats::FlowEvent,
};
use lb_userspace::{
    dataplane::{
        apply::{Map, Memory},
        clock,
        kernel::{Access, KernelCounters, Maps},
        load::{PROGRAM, object},
        memory::Mapped,
        pin::Pins,
        resize::{BEFORE, Beside, NEXT, Progress, Resize},
    },
    plan::MapSizes,
};

use super::place::{FRAME, Place, Sent, with_flows};

/// Bits of a record's expiry.
const EXPIRY: u64 = (1 << 17) - 1;
/// Room for the frame as it leaves.
const OUT: usize = 128;

/// Seconds that live records are made younger while a step towards another flow table is taken.
const LENT_S: i64 = 600;
/// The program that removes expired records.
const SWEEP: &str = "weir_sweep";

/// Numbers the pin folders of this process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The program, its maps and their pins, which go with it.
pub struct Loaded {
    /// At the beginning of a sequence, and now.
    began: MapSizes,
    sizes: MapSizes,
    pins: Pins,
    ebpf: Ebpf,
    /// The flow table, and the one beside it while it is given another size.
    flows: Vec<Mapped<[u64; 8]>>,
    active: Mapped<u64>,
    counters: KernelCounters,
    /// Seconds that have passed for flows, when those began by the program's clock, and by how many records have been made older than that
    /// clock makes them; below 0 where it went on for longer, as on a machine that is busy.
    now_s: u64,
    began_s: u32,
    aged_s: Cell<i64>,
}

/// The pinned maps without the wait for packets in flight: here there are none.
pub struct Quiet(Maps);

impl Quiet {
    /// Opens what is pinned.
    pub fn open(pins: &Pins) -> Result<Self> {
        Ok(Self(Maps::open(pins, Access::Write)?))
    }
}

impl Memory for Quiet {
    fn entries(&self, map: Map) -> u32 {
        self.0.entries(map)
    }

    fn load(&self, map: Map, index: u32, word: usize) -> Option<u64> {
        self.0.load(map, index, word)
    }

    fn store(&mut self, map: Map, index: u32, word: usize, value: u64) -> bool {
        self.0.store(map, index, word, value)
    }

    fn recorded(&self) -> HashSet<u32> {
        self.0.recorded()
    }

    fn synchronize(&self) {}
}

/// Loads the programs, which know the flow table that is `beside`, and has the kernel verify them.
fn programs(pins: &Pins, sizes: &MapSizes, beside: Beside) -> Result<Ebpf> {
    let mut ebpf = object(pins, 0, sizes, beside)?;
    for name in [PROGRAM, SWEEP] {
        let program: &mut Xdp = ebpf.program_mut(name).context("the program is there")?.try_into()?;
        program.load().context("the verifier accepts the program")?;
    }
    Ok(ebpf)
}

/// The program's clock.
fn program_s() -> u32 {
    (clock::jiffies() / u64::from(clock::hz())) as u32
}

fn mapped<T: bytemuck::Pod>(pins: &Pins, name: &str) -> Result<Mapped<T>> {
    let map = MapData::from_pin(pins.map(name)).with_context(|| format!("open {name}"))?;
    let entries = map.info()?.max_entries();
    Ok(Mapped::writable(map.fd().as_fd(), entries)?)
}

impl Loaded {
    /// Loads the program on fresh maps.
    pub fn new(sizes: MapSizes) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("{}/weir-flow-{}-{number}", xtask::capability::BPF_FS, std::process::id()));
        let pins = Pins::new(dir);
        pins.create()?;
        let loaded = Self::load(&pins, sizes);
        if loaded.is_err() {
            pins.remove_all()?;
        }
        loaded
    }

    fn load(pins: &Pins, sizes: MapSizes) -> Result<Self> {
        Ok(Self {
            began: sizes,
            sizes,
            ebpf: programs(pins, &sizes, Beside::Nothing)?,
            flows: vec![mapped(pins, flow::SHAPE.name)?],
            active: mapped(pins, flow::ACTIVE_SHAPE.name)?,
            counters: KernelCounters::open(pins)?,
            pins: pins.clone(),
            now_s: 0,
            began_s: program_s(),
            aged_s: Cell::new(0),
        })
    }

    /// Where its maps are pinned.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// What the flow table did since the program was loaded.
    pub fn events(&self) -> Result<BTreeMap<FlowEvent, u64>> {
        Ok(self.counters.flow_events()?)
    }

    /// Makes records as old as the time says that has passed for flows.
    fn age(&self) {
        let by_itself_s = i64::from(program_s().wrapping_sub(self.began_s));
        let by_us_s = self.now_s as i64 - by_itself_s;
        let older_s = by_us_s - self.aged_s.replace(by_us_s);
        if older_s != 0 {
            self.make_older(older_s, true);
        }
    }

    /// Makes records older, or younger below 0; those that have expired only if they are `all`.
    fn make_older(&self, older_s: i64, all: bool) {
        for (table, index, way) in self.places() {
            let word = table.load_word(index, way).unwrap_or(0);
            let left_s = Record::unpack(word).left_s(program_s());
            if flow::is_record(word) && (all || left_s > 0) {
                // What expired goes no further back than its field can tell.
                let older_s = older_s.min(i64::from(left_s) + 1).min(i64::from(TIMEOUT_MAX_S));
                let expiry = word.wrapping_sub(older_s as u64) & EXPIRY;
                table.store_word(index, way, word & !EXPIRY | expiry);
            }
        }
    }

    /// Where every record has its word: table, bucket and number of the word in it.
    fn places(&self) -> impl Iterator<Item = (&Mapped<[u64; 8]>, u32, usize)> {
        let buckets = self.flows.iter().flat_map(|table| (0..table.len()).map(move |index| (table, index)));
        buckets.flat_map(|(table, index)| (WAYS..2 * WAYS).map(move |way| (table, index, way)))
    }

    /// Loads programs that know the flow table, which is made where it is not pinned, and the one `beside` it.
    fn know(&mut self, beside: Beside) -> Result<()> {
        self.ebpf = programs(&self.pins, &self.sizes, beside)?;
        let tables = [flow::SHAPE.name].into_iter().chain(beside.pin());
        self.flows = tables.map(|pin| mapped(&self.pins, pin)).collect::<Result<_>>()?;
        Ok(())
    }

    fn run_program(&self, name: &str, frame: &[u8], out: &mut [u8]) -> Result<(u32, usize)> {
        let program: &Xdp = self.ebpf.program(name).context("the program is there")?.try_into()?;
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(out), ..TestRunOptions::default() };
        let result = program.test_run(options)?;
        Ok((result.return_value, result.data_size_out as usize))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let Err(error) = self.pins.remove_all() {
            eprintln!("cannot remove {}: {error}", self.pins.dir().display());
        }
    }
}

impl Place for Loaded {
    type Memory = Quiet;

    fn memory(&self) -> Result<Quiet> {
        Quiet::open(&self.pins)
    }

    fn clear(&mut self) -> Result<()> {
        let mut memory = self.memory()?;
        let maps = [Map::Node, Map::Lookup, Map::Services, Map::Rings, Map::Owners, Map::Backends, Map::BackendKeys];
        for map in maps {
            for index in 0..memory.entries(map) {
                let stored = (0..map.words()).all(|word| memory.store(map, index, word, 0));
                ensure!(stored, "{map:?} has no entry {index}");
            }
        }
        self.sizes = self.began;
        if self.flows.iter().map(Mapped::len).ne([self.began.flow_buckets]) {
            // Another sequence left another table, or two.
            let tables = [flow::SHAPE.name, NEXT, BEFORE].map(|pin| self.pins.map(pin));
            tables.into_iter().filter(|pin| pin.exists()).try_for_each(fs::remove_file)?;
            self.know(Beside::Nothing)?;
        }
        let flows = self.flows.iter().all(|table| (0..table.len()).all(|index| table.put(index, &[0; 8])));
        let active = (0..self.active.len()).all(|index| self.active.put(index, &0));
        ensure!(flows && active, "the flow table cannot be emptied");
        (self.now_s, self.began_s) = (0, program_s());
        self.aged_s.set(0);
        Ok(())
    }

    fn sizes(&self) -> MapSizes {
        self.sizes
    }

    fn hz(&self) -> u32 {
        clock::hz()
    }

    fn set_clock(&mut self, now_ms: u64) {
        self.now_s = self.now_s.max(now_ms / 1000);
    }

    fn run(&self, frame: &[u8]) -> Result<Sent> {
        self.age();
        let mut out = [0; OUT];
        let (action, len) = self.run_program(PROGRAM, frame, &mut out)?;
        Ok(Sent::read(action, out.get(..len).context("the frame fits")?))
    }

    fn sweep(&self) -> Result<()> {
        self.age();
        // One run at a time: a repeated one waits for RCU, which takes longer than a small table does.
        let (mut frame, mut next) = ([0u8; FRAME], 0);
        let buckets = self.flows.iter().map(Mapped::len).sum();
        while next < buckets {
            let given = frame;
            self.run_program(SWEEP, &given, &mut frame)?;
            let reached = u32::from_ne_bytes([frame[0], frame[1], frame[2], frame[3]]);
            ensure!(reached > next, "the sweep stands still at bucket {next}");
            next = reached;
        }
        Ok(())
    }

    fn words(&self) -> Vec<u64> {
        self.places().filter_map(|(table, index, way)| table.load_word(index, way)).collect()
    }

    fn active(&self, id: u32) -> u64 {
        self.active.load_word(id, 0).unwrap_or(0)
    }

    fn resize(&mut self, flows_max: u32) -> Result<bool> {
        // What lives shall not expire while the kernel looks at programs, for which no time passes here.
        self.age();
        self.make_older(-LENT_S, false);
        self.aged_s.set(self.aged_s.get() - LENT_S);
        let (pins, sizes) = (self.pins.clone(), with_flows(self.sizes, flows_max));
        match Resize::new(&pins, &sizes)?.advance()? {
            Progress::More => {}
            Progress::Rest => {
                self.sizes = sizes;
                return Ok(true);
            }
            Progress::Left(left) => bail!("{left} records are left where there is room"),
        }
        let exists = |pin| self.pins.map(pin).exists();
        if exists(flow::SHAPE.name) {
            // While it has no name, the programs that run know what they have to.
            self.know(if exists(NEXT) { Beside::Next } else { Beside::at_rest(&self.pins) })?;
        }
        Ok(false)
    }
}
