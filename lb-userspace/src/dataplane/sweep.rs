//! Removes records from the flow table and moves them to another, by programs of the kernel: the table has one writing side.
//!
//! Owns: loading `weir_sweep`, which removes what expired, `weir_flush`, which removes what an operator names, and `weir_move`, which moves
//! what a change of size left in the table before, on the pinned maps, and running them over whole tables. Refuses to know: what expires.
//! Invariant: a run that is stopped anywhere leaves the table whole, as each removal is one step of the program.

use aya::{
    TestRunOptions,
    maps::MapInfo,
    programs::{TestRun as _, Xdp},
};

use lb_core::abi::flow;

use super::{Error, Flush, load, pin::Pins, resize::Beside};
use crate::plan::MapSizes;

/// Names of the programs in the object.
const SWEEP: &str = "weir_sweep";
const FLUSH: &str = "weir_flush";
const MOVE: &str = "weir_move";
/// Buckets that one run of the program sweeps, see `xdp-ebpf`.
const BUCKETS_A_RUN: u32 = 16;
/// Runs of one system call: a few milliseconds.
const RUNS_A_CALL: u32 = 4096;

/// What became of the records of a table whose place another one took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Records that are in the new table now.
    pub moved: u64,
    /// Records that stay, for the moment, as both places that they could have in the new table are taken by live ones.
    pub no_room: u64,
}

/// The loaded programs.
pub struct Sweeper {
    object: aya::Ebpf,
    /// Buckets of the flow table, and of the one that a change of size left beside it, if any.
    buckets: [u32; 2],
}

fn failed<E: std::error::Error + Send + Sync + 'static>(action: &str) -> impl FnOnce(E) -> Error {
    move |source| Error::Kernel { action: action.into(), source: Box::new(source) }
}

impl Sweeper {
    /// Loads the programs on the maps below `pins`.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel refuses one.
    pub fn load(pins: &Pins, sizes: &MapSizes) -> Result<Self, Error> {
        let beside = Beside::at_rest(pins);
        let mut object = load::object(pins, 0, sizes, beside).map_err(failed("load the sweeper of the flow table"))?;
        let entries = |pin| MapInfo::from_pin(pins.map(pin)).map(|map| map.max_entries());
        let flows = entries(flow::SHAPE.name).map_err(failed("read the size of the flow table"))?;
        let before = beside.pin().map(entries).transpose().map_err(failed("read the size of the flow table before"))?;
        for name in [SWEEP, FLUSH].into_iter().chain(before.map(|_| MOVE)) {
            let program = object.program_mut(name).ok_or_else(missing)?;
            let program: &mut Xdp = program.try_into().map_err(failed("use the sweeper of the flow table"))?;
            program.load().map_err(failed("load the sweeper of the flow table"))?;
        }
        Ok(Self { object, buckets: [flows, before.unwrap_or(0)] })
    }

    /// Removes what expired. Returns how many records that were.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel refuses to run the program.
    pub fn sweep(&self) -> Result<u64, Error> {
        self.run(SWEEP, self.buckets.iter().sum(), Flush::default()).map(|[removed, _]| removed)
    }

    /// Removes what `flush` names. Returns how many records that were.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel refuses to run the program.
    pub fn flush(&self, flush: Flush) -> Result<u64, Error> {
        self.run(FLUSH, self.buckets.iter().sum(), flush).map(|[removed, _]| removed)
    }

    /// Moves what is in the table before, if there is one, to the one that took its place.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel refuses to run the program.
    pub fn move_records(&self) -> Result<Moved, Error> {
        self.run(MOVE, self.buckets[1], Flush::default()).map(|[moved, no_room]| Moved { moved, no_room })
    }

    /// Runs a program over so many buckets; gives the numbers that its frame has at byte 8 and, which only [`MOVE`] counts on, at byte 16.
    fn run(&self, name: &str, buckets: u32, flush: Flush) -> Result<[u64; 2], Error> {
        if buckets == 0 {
            return Ok([0; 2]);
        }
        let program = self.object.program(name).ok_or_else(missing)?;
        let program: &Xdp = program.try_into().map_err(failed("use the sweeper of the flow table"))?;
        // A frame whose first words are the next bucket and the records removed so far; each run continues where the one before ended.
        let mut frame = [0u8; 64];
        frame[16..20].copy_from_slice(&flush.service.to_ne_bytes());
        frame[20..24].copy_from_slice(&flush.backend.to_ne_bytes());
        loop {
            let [next, _, done, _, left, ..]: [u32; 16] = bytemuck::cast(frame);
            if next >= buckets {
                return Ok([done, left].map(u64::from));
            }
            let runs = (buckets - next).div_ceil(BUCKETS_A_RUN).min(RUNS_A_CALL);
            let data = frame;
            let options = TestRunOptions {
                data_in: Some(&data),
                data_out: Some(&mut frame),
                repeat: runs,
                ..TestRunOptions::default()
            };
            program.test_run(options).map_err(failed("sweep the flow table"))?;
            let [reached, ..]: [u32; 16] = bytemuck::cast(frame);
            if reached <= next {
                return Err(failed("sweep the flow table")(std::io::Error::other("the program does not advance")));
            }
        }
    }
}

fn missing() -> Error {
    failed("find the sweeper of the flow table")(std::io::Error::other("it is not in the object"))
}
