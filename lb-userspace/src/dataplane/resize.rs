//! Gives the flow table another size while packets flow.
//!
//! A loaded program cannot be given another map, so every interface is given another program, through its link, twice: first one that
//! also finds what is in the new table, then one that records there and still finds what is in the old one. In between nobody
//! records in a table that somebody else does not look at. When the old table is empty, programs with one table follow.
//!
//! | pinned | programs | what comes next |
//! |---|---|---|
//! | `FLOWS` | one table | `FLOWS_NEXT` is made |
//! | `FLOWS`, `FLOWS_NEXT` | some know both, all record in `FLOWS` | once all know both: `FLOWS` becomes `FLOWS_BEFORE` |
//! | `FLOWS_BEFORE`, `FLOWS_NEXT` | know both | `FLOWS_NEXT` becomes `FLOWS` |
//! | `FLOWS`, `FLOWS_BEFORE` | know both, record in either | once all record in `FLOWS`: records are moved; once none is left: programs with one table, the old table goes |
//!
//! Owns: the order of these steps, and when the next may be taken. Refuses to know: what a record means, and how a program gets onto an
//! interface.
//!
//! Invariants: each line of the table is a data plane that forwards and that any agent can go on from, so that it may die between any
//! two steps; a record is in one of the tables that all programs look at, always; nothing begins for which there is no room.

use std::{fs, io, os::fd::AsFd as _};

use aya::maps::{MapData, MapInfo, MapType};
use lb_core::abi::{
    flow::{self, Record, WAYS},
    node::{self, Node},
};

use super::{
    clock, kernel,
    load::{self, LoadError, failed},
    memory::Mapped,
    pin::{PinnedInterface, Pins},
    sweep::Sweeper,
};
use crate::plan::MapSizes;

/// Pin of the table that is to take the place of `FLOWS`.
pub const NEXT: &str = "FLOWS_NEXT";
/// Pin of the table whose place `FLOWS` took.
pub const BEFORE: &str = "FLOWS_BEFORE";
/// How often all records are moved before what is left is left where it is.
const PASSES: u32 = 4;
/// Word of the node entry that holds the mask, together with the ticks of a second.
const MASK_WORD: usize = core::mem::offset_of!(Node, flow_mask) / 8;
const _: () = assert!(core::mem::offset_of!(Node, hz) == MASK_WORD * 8 + 4);

/// Which table a program knows beside `FLOWS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// None.
    Nothing,
    /// [`NEXT`], in which nobody records yet.
    Next,
    /// [`BEFORE`], in which nobody records any more.
    Before,
}

impl Beside {
    /// What a program needs to know that is loaded when no step is being taken.
    pub fn at_rest(pins: &Pins) -> Self {
        if pins.map(BEFORE).exists() { Self::Before } else { Self::Nothing }
    }

    /// The name of its pin.
    pub const fn pin(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Next => Some(NEXT),
            Self::Before => Some(BEFORE),
        }
    }
}

/// The tables that are pinned, with their buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `FLOWS`.
    pub flows: Option<u32>,
    /// [`NEXT`].
    pub next: Option<u32>,
    /// [`BEFORE`].
    pub before: Option<u32>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the table has the size that is wanted.
    Rest,
    /// Make [`NEXT`].
    Make,
    /// Remove [`NEXT`], in which nothing is: another size is wanted by now.
    Discard,
    /// Let all programs know [`NEXT`], then call `FLOWS` [`BEFORE`].
    Announce,
    /// Call [`NEXT`] `FLOWS`.
    Name,
    /// Let all programs record in `FLOWS`, move what is in [`BEFORE`], and remove that.
    Empty,
    /// No agent leaves that.
    Unknown,
}

/// The next step towards a table of `wanted` buckets.
pub fn next(found: Found, wanted: u32) -> Step {
    match found {
        Found { flows: None, next: None, before: None } => Step::Rest,
        Found { flows: Some(flows), next: None, before: None } if flows == wanted => Step::Rest,
        Found { flows: Some(_), next: None, before: None } => Step::Make,
        Found { flows: Some(flows), next: Some(next), before: None } if next != wanted || flows == wanted => {
            Step::Discard
        }
        Found { flows: Some(_), next: Some(_), before: None } => Step::Announce,
        Found { flows: None, next: Some(_), before: Some(_) } => Step::Name,
        // What was begun is ended first, whatever is wanted by now.
        Found { flows: Some(_), next: None, before: Some(_) } => Step::Empty,
        _ => Step::Unknown,
    }
}

/// How far a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something was done, and there is more to do.
    More,
    /// There is nothing to do.
    Rest,
    /// All but this many records were moved. For those there is no room for the moment: they stay beside, where programs find them.
    Left(u64),
}

/// A change of size on its way.
pub struct Resize<'a> {
    pins: &'a Pins,
    sizes: &'a MapSizes,
    interfaces: Vec<PinnedInterface>,
    /// Which programs are being given to interfaces, and how many have them.
    giving: (Beside, usize),
    /// Everything beside was moved by this change.
    emptied: bool,
    moved: u64,
}

impl<'a> Resize<'a> {
    /// A change of what is pinned below `pins` to `sizes`, or the rest of one that was stopped.
    ///
    /// # Errors
    /// The pins cannot be listed.
    pub fn new(pins: &'a Pins, sizes: &'a MapSizes) -> Result<Self, LoadError> {
        let interfaces = pins.interfaces()?;
        Ok(Self { pins, sizes, interfaces, giving: (Beside::Nothing, 0), emptied: false, moved: 0 })
    }

    /// Records that were moved so far.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Does the next thing: makes, renames or removes a table, gives one interface another program, or moves records.
    ///
    /// # Errors
    /// [`LoadError`]; what was done stays, and can be gone on from. [`LoadError::FlowsDoNotFit`] comes before a record goes elsewhere.
    pub fn advance(&mut self) -> Result<Progress, LoadError> {
        let found = self.found()?;
        match next(found, self.sizes.flow_buckets) {
            Step::Rest => return Ok(Progress::Rest),
            Step::Make => {
                self.fits()?;
                self.make()?;
            }
            Step::Discard => {
                if !self.give(Beside::Nothing)? {
                    kernel::synchronize();
                    self.remove(NEXT)?;
                }
            }
            Step::Announce => {
                if !self.give(Beside::Next)? {
                    self.fits()?;
                    kernel::synchronize();
                    self.rename(flow::SHAPE.name, BEFORE)?;
                }
            }
            Step::Name => self.rename(NEXT, flow::SHAPE.name)?,
            Step::Empty => return self.empty(found.flows.unwrap_or(0)),
            Step::Unknown => {
                let source = io::Error::other(format!("found buckets: {found:?}"));
                return Err(failed("make out which flow tables are pinned")(source));
            }
        }
        Ok(Progress::More)
    }

    fn empty(&mut self, buckets: u32) -> Result<Progress, LoadError> {
        if !self.emptied {
            if self.give(Beside::Before)? {
                return Ok(Progress::More);
            }
            // From now on nobody records beside, and no program asks for the node entry's mask.
            kernel::synchronize();
            self.store_mask(buckets)?;
            let mover = Sweeper::load(self.pins, self.sizes).map_err(failed("load the mover of flow records"))?;
            for _ in 0..PASSES {
                self.moved += mover.move_records().map_err(failed("move flow records"))?.moved;
                if self.records(BEFORE)? == 0 {
                    break;
                }
            }
            let left = self.records(BEFORE)?;
            if left > 0 {
                return Ok(Progress::Left(left));
            }
            self.emptied = true;
        }
        if !self.give(Beside::Nothing)? {
            self.remove(BEFORE)?;
            self.emptied = false;
        }
        Ok(Progress::More)
    }

    /// Gives the next interface a program that knows `beside`; says whether there was one that needs it.
    fn give(&mut self, beside: Beside) -> Result<bool, LoadError> {
        if self.giving.0 != beside {
            self.giving = (beside, 0);
        }
        let Some(interface) = self.interfaces.get(self.giving.1) else { return Ok(false) };
        load::swap(self.pins, interface, self.sizes, beside)?;
        self.giving.1 += 1;
        Ok(true)
    }

    fn found(&self) -> Result<Found, LoadError> {
        Ok(Found {
            flows: buckets(self.pins, flow::SHAPE.name)?,
            next: buckets(self.pins, NEXT)?,
            before: buckets(self.pins, BEFORE)?,
        })
    }

    /// The records that live now, in a table.
    fn records(&self, name: &str) -> Result<u64, LoadError> {
        let Some(table) = open::<[u64; 8]>(self.pins, name, false)? else { return Ok(0) };
        let hz = self.node()?.and_then(|node| node.get(0)).map_or(0, |node| node.hz).max(1);
        let now_s = (clock::jiffies() / u64::from(hz)) as u32;
        let words = (0..table.len()).flat_map(|index| (WAYS..2 * WAYS).map(move |word| (index, word)));
        let words = words.filter_map(|(index, word)| table.load_word(index, word));
        Ok(words.filter(|word| flow::is_record(*word) && Record::unpack(*word).left_s(now_s) > 0).count() as u64)
    }

    /// Whether the flows that are recorded now are not too many for the table that is wanted.
    fn fits(&self) -> Result<(), LoadError> {
        let (live, flows_max) = (self.records(flow::SHAPE.name)?, self.sizes.flows_max);
        if live > u64::from(flows_max) { Err(LoadError::FlowsDoNotFit { live, flows_max }) } else { Ok(()) }
    }

    fn make(&self) -> Result<(), LoadError> {
        let (shape, buckets) = (&flow::SHAPE, self.sizes.flow_buckets);
        let map = aya_obj::Map::new_from_params(
            MapType::Array as u32,
            shape.key_size,
            shape.value_size,
            buckets,
            load::MMAPABLE,
        );
        let map = MapData::create(map, shape.name, None)
            .map_err(failed(format!("make a flow table for {} flows (limits.flows_max)", self.sizes.flows_max)))?;
        map.pin(self.pins.map(NEXT)).map_err(failed("pin the new flow table"))
    }

    fn node(&self) -> Result<Option<Mapped<Node>>, LoadError> {
        open(self.pins, node::SHAPE.name, true)
    }

    fn store_mask(&self, buckets: u32) -> Result<(), LoadError> {
        let Some(node) = self.node()? else { return Ok(()) };
        let [_, hz]: [u32; 2] = bytemuck::cast(node.load_word(0, MASK_WORD).unwrap_or(0));
        node.store_word(0, MASK_WORD, bytemuck::cast([buckets.saturating_sub(1), hz]));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), LoadError> {
        fs::rename(self.pins.map(from), self.pins.map(to)).map_err(failed(format!("rename the pin {from} to {to}")))
    }

    fn remove(&self, name: &str) -> Result<(), LoadError> {
        fs::remove_file(self.pins.map(name)).map_err(failed(format!("remove the pin {name}")))
    }
}

/// Carries a change through, or the rest of one that was stopped.
///
/// # Errors
/// As [`Resize::advance`]; also where another change was not yet ended and what it left has no room.
pub fn run(pins: &Pins, sizes: &MapSizes) -> Result<(), LoadError> {
    let mut resize = Resize::new(pins, sizes)?;
    let found = resize.found()?;
    if next(found, sizes.flow_buckets) == Step::Rest {
        return Ok(());
    }
    let places = |buckets: Option<u32>| u64::from(buckets.unwrap_or(0)) * WAYS as u64;
    tracing::info!(
        from = places(found.flows),
        to = places(Some(sizes.flow_buckets)),
        "the flow table changes its size"
    );
    loop {
        match resize.advance()? {
            Progress::More => {}
            Progress::Rest => {
                tracing::info!(moved = resize.moved(), "the flow table has its new size");
                return Ok(());
            }
            Progress::Left(left) if resize.found()?.flows == Some(sizes.flow_buckets) => {
                tracing::warn!(
                    moved = resize.moved(),
                    left,
                    "records are left in the flow table before, for which the new one has no room yet; they are found there, and the \
                     next start of the agent ends the change"
                );
                return Ok(());
            }
            Progress::Left(left) => return Err(LoadError::ResizeNotEnded { left }),
        }
    }
}

fn buckets(pins: &Pins, name: &str) -> Result<Option<u32>, LoadError> {
    let path = pins.map(name);
    if !path.exists() {
        return Ok(None);
    }
    let info = MapInfo::from_pin(&path).map_err(failed(format!("read the pinned map {name}")))?;
    Ok(Some(info.max_entries()))
}

fn open<T: bytemuck::Pod>(pins: &Pins, name: &str, writable: bool) -> Result<Option<Mapped<T>>, LoadError> {
    let path = pins.map(name);
    if !path.exists() {
        return Ok(None);
    }
    let map = MapData::from_pin(&path).map_err(failed(format!("open the pinned map {name}")))?;
    let info = map.info().map_err(failed(format!("read the shape of the map {name}")))?;
    let (fd, entries) = (map.fd().as_fd(), info.max_entries());
    let mapped = if writable { Mapped::writable(fd, entries) } else { Mapped::read_only(fd, entries) };
    mapped.map(Some).map_err(failed(format!("map {name} into memory")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(flows: u32, next: u32, before: u32) -> Found {
        let some = |buckets| Some(buckets).filter(|buckets| *buckets > 0);
        Found { flows: some(flows), next: some(next), before: some(before) }
    }

    #[test]
    fn what_comes_next() {
        let table = [
            (found(0, 0, 0), Step::Rest),
            (found(64, 0, 0), Step::Rest),
            (found(128, 0, 0), Step::Make),
            (found(128, 64, 0), Step::Announce),
            (found(128, 32, 0), Step::Discard),
            (found(64, 128, 0), Step::Discard),
            (found(0, 64, 128), Step::Name),
            (found(0, 32, 128), Step::Name),
            (found(64, 0, 128), Step::Empty),
            (found(32, 0, 128), Step::Empty),
            (found(0, 64, 0), Step::Unknown),
            (found(0, 0, 64), Step::Unknown),
            (found(64, 64, 64), Step::Unknown),
        ];
        for (found, step) in table {
            assert_eq!(next(found, 64), step, "{found:?}");
        }
    }
}
