//! Where a sequence is played: maps that an engine writes, and what decides over them.
//!
//! [`Host`] is lb-core on the heap, with a clock that the test sets; [`super::program::Loaded`] is the program in the kernel. Both
//! answer with the frame as it left, so that what is compared is what a backend would see. Refuses to know flows.

use std::{cell::RefCell, collections::HashSet, rc::Rc};

use anyhow::{Result, ensure};
use bytemuck::Zeroable as _;
use lb_core::{
    abi::{
        backend::{Backend, BackendKey},
        flow::{self, Record, WAYS, Word},
        lookup::Bucket,
        node::Node,
        ring::Line,
        service::Service,
    },
    flow as flows,
    host::{Frame, Snapshot},
    pipeline,
    rewrite::Exit,
};
use lb_userspace::{
    dataplane::{
        apply::{Map, Memory},
        load::LoadError,
        resize::Beside,
    },
    model::Limits,
    plan::MapSizes,
};

use super::{packet::flag, weaken::HalfOpenHidden};

/// Bytes of the shortest frame.
pub const FRAME: usize = 60;
/// First bytes of the MAC of a backend's next hop; its number follows.
const BACKEND_MAC: [u8; 4] = [2, 0xbe, 0, 0];
/// Where the TCP flags are in a frame, by its EtherType.
const FLAGS: [([u8; 2], usize); 2] = [([8, 0], 14 + 20 + 13), ([0x86, 0xdd], 14 + 40 + 13)];

/// The MAC of a backend's next hop; the backend's number is what [`Sent::To`] has.
pub fn mac(backend: u16) -> [u8; 6] {
    let [a, b, c, d] = BACKEND_MAC;
    let [high, low] = backend.to_be_bytes();
    [a, b, c, d, high, low]
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It went to a backend: the number of its service in the high byte, its own in the low one.
    To(u16),
    /// The client was sent a reset.
    Reset,
    /// It went nowhere; the XDP action.
    Nowhere(u32),
}

impl Sent {
    /// Reads the frame that left with an XDP action.
    pub fn read(action: u32, frame: &[u8]) -> Self {
        match (action, frame) {
            (3 | 4, [a, b, c, d, high, low, ..]) if [*a, *b, *c, *d] == BACKEND_MAC => {
                Self::To(u16::from_be_bytes([*high, *low]))
            }
            (3, frame) if resets(frame) => Self::Reset,
            _ => Self::Nowhere(action),
        }
    }
}

fn resets(frame: &[u8]) -> bool {
    let kind = FLAGS.into_iter().find(|(kind, _)| frame.get(12..14) == Some(kind));
    kind.and_then(|(_, at)| frame.get(at)).is_some_and(|flags| flags & flag::RST != 0)
}

/// Maps, and what decides over them.
pub trait Place {
    /// What an engine writes through.
    type Memory: Memory;
    /// A way to the maps.
    fn memory(&self) -> Result<Self::Memory>;
    /// Zeroes the maps, the counters of flows excepted.
    fn clear(&mut self) -> Result<()>;
    /// Sizes of the maps.
    fn sizes(&self) -> MapSizes;
    /// Ticks of its clock in a second.
    fn hz(&self) -> u32;
    /// Sets the time, in milliseconds since [`Self::clear`]; it never goes back.
    fn set_clock(&mut self, now_ms: u64);
    /// Sends a packet.
    fn run(&self, frame: &[u8]) -> Result<Sent>;
    /// Removes expired records.
    fn sweep(&self) -> Result<()>;
    /// Every word of the flow table.
    fn words(&self) -> Vec<u64>;
    /// `ACTIVE` of a backend id.
    fn active(&self, id: u32) -> u64;
    /// Takes a step towards a flow table for so many flows, as an agent does before it adopts the maps; says whether none is left. Other
    /// than as given here where the table is given another size by other ways.
    ///
    /// # Errors
    /// [`LoadError::FlowsDoNotFit`] among others.
    fn resize(&mut self, _flows_max: u32) -> Result<bool> {
        Ok(true)
    }
    /// Whether no packets run but those of the sequence: only then is `ACTIVE` what a recount finds.
    fn is_quiet(&self) -> bool {
        true
    }
}

/// `sizes` with a flow table for so many flows.
pub fn with_flows(sizes: MapSizes, flows_max: u32) -> MapSizes {
    let MapSizes { services_max, backends_max, .. } = sizes;
    let flow_buckets = MapSizes::of(&Limits { services_max, backends_max, ring_slots_max: 1, flows_max }).flow_buckets;
    MapSizes { flows_max, flow_buckets, ..sizes }
}

/// A difference between `ACTIVE` and a recount of the table: backend id, counted, found.
pub fn drift(place: &impl Place, backends: u32) -> Option<(u32, u64, u64)> {
    let mut found = vec![0u64; backends as usize];
    for word in place.words().into_iter().filter(|word| flow::is_record(*word)) {
        let record = Record::unpack(word);
        if let Some(count) = found.get_mut(record.backend as usize) {
            *count += record.state.weight();
        }
    }
    let counted = (0..backends).map(|id| (id, place.active(id)));
    counted.zip(found).map(|((id, counted), found)| (id, counted, found)).find(|(_, counted, found)| counted != found)
}

/// Records in the table, expired ones included.
pub fn records(place: &impl Place) -> usize {
    place.words().into_iter().filter(|word| flow::is_record(*word)).count()
}

/// The maps on the heap.
pub struct Maps {
    /// As packets see them.
    pub snapshot: Snapshot,
    keys: Vec<BackendKey>,
}

/// [`Maps`] as an engine writes them, while packets read them.
#[derive(Clone)]
pub struct HostMemory(Rc<RefCell<Maps>>);

fn words<T: bytemuck::Pod>(values: &[T]) -> &[u64] {
    bytemuck::cast_slice(values)
}

fn words_mut<T: bytemuck::Pod>(values: &mut [T]) -> &mut [u64] {
    bytemuck::cast_slice_mut(values)
}

impl Maps {
    fn new(sizes: &MapSizes) -> Self {
        let buckets = sizes.flow_buckets as usize;
        let lines = vec![Line::zeroed(); sizes.ring_lines as usize];
        let snapshot = Snapshot {
            lookup: vec![Bucket::zeroed(); sizes.lookup_buckets as usize],
            services: vec![Service::zeroed(); sizes.services as usize],
            lines: lines.clone(),
            owners: lines,
            backends: vec![Backend::zeroed(); sizes.backends as usize],
            flows: (0..buckets).map(|_| flow::Bucket::default()).collect(),
            active: (0..sizes.backends).map(|_| Word::default()).collect(),
            ..Snapshot::default()
        };
        Self { snapshot, keys: vec![BackendKey::zeroed(); sizes.backends as usize] }
    }

    /// The words of every record, in both tables where there are two.
    fn flow_words(&self) -> impl Iterator<Item = u64> {
        let buckets = self.snapshot.flows.iter().chain(&self.snapshot.beside);
        buckets.flat_map(|bucket| &bucket.words).map(|word| word.cell().get())
    }

    fn words(&self, map: Map) -> &[u64] {
        let s = &self.snapshot;
        match map {
            Map::Node => words(std::slice::from_ref(&s.node)),
            Map::Lookup => words(&s.lookup),
            Map::Services => words(&s.services),
            Map::Rings => words(&s.lines),
            Map::Owners => words(&s.owners),
            Map::Backends => words(&s.backends),
            Map::BackendKeys => words(&self.keys),
        }
    }

    fn words_mut(&mut self, map: Map) -> &mut [u64] {
        let s = &mut self.snapshot;
        match map {
            Map::Node => words_mut(std::slice::from_mut(&mut s.node)),
            Map::Lookup => words_mut(&mut s.lookup),
            Map::Services => words_mut(&mut s.services),
            Map::Rings => words_mut(&mut s.lines),
            Map::Owners => words_mut(&mut s.owners),
            Map::Backends => words_mut(&mut s.backends),
            Map::BackendKeys => words_mut(&mut self.keys),
        }
    }
}

impl Memory for HostMemory {
    fn entries(&self, map: Map) -> u32 {
        (self.0.borrow().words(map).len() / map.words()) as u32
    }

    fn load(&self, map: Map, index: u32, word: usize) -> Option<u64> {
        let at = index as usize * map.words() + word;
        self.0.borrow().words(map).get(at).copied().filter(|_| word < map.words())
    }

    fn store(&mut self, map: Map, index: u32, word: usize, value: u64) -> bool {
        let at = index as usize * map.words() + word;
        match self.0.borrow_mut().words_mut(map).get_mut(at) {
            Some(held) if word < map.words() => {
                *held = value;
                true
            }
            _ => false,
        }
    }

    fn recorded(&self) -> HashSet<u32> {
        let maps = self.0.borrow();
        maps.flow_words().filter(|word| flow::is_record(*word)).map(|word| Record::unpack(word).backend).collect()
    }

    fn synchronize(&self) {}
}

/// lb-core on the heap.
pub struct Host {
    /// At the beginning of a sequence, and now.
    began: MapSizes,
    sizes: MapSizes,
    maps: Rc<RefCell<Maps>>,
    beside: Beside,
    /// SYNs do not see half-open records: rule a weakened.
    pub hides_half_open: bool,
}

/// Ticks of the host's clock in a second: its milliseconds.
const HOST_HZ: u32 = 1000;
/// Jiffies at the beginning: not zero, and close to where 32 bits of them wrap.
const HOST_JIFFIES: u64 = (1 << 32) - 300_000;

impl Host {
    /// Empty maps.
    pub fn new(sizes: MapSizes) -> Self {
        let maps = Rc::new(RefCell::new(Maps::new(&sizes)));
        Self { began: sizes, sizes, maps, beside: Beside::Nothing, hides_half_open: false }
    }
}

/// The steps of `dataplane::resize`, for one program, which knows at once of each what it has to.
impl Host {
    fn make(&mut self, wanted: MapSizes) -> Result<()> {
        let snapshot = &mut self.maps.borrow_mut().snapshot;
        let now_s = flows::now_s(snapshot, &snapshot.node);
        let words = snapshot.flows.iter().flat_map(|bucket| &bucket.words).map(|word| word.cell().get());
        let live =
            words.filter(|word| flow::is_record(*word) && Record::unpack(*word).left_s(now_s) > 0).count() as u64;
        let flows_max = wanted.flows_max;
        if live > u64::from(flows_max) {
            return Err(LoadError::FlowsDoNotFit { live, flows_max }.into());
        }
        snapshot.beside = vec![flow::Bucket::default(); wanted.flow_buckets as usize];
        Ok(())
    }

    /// Moves what is beside; says whether nothing is left there.
    fn empty(&mut self) -> bool {
        let snapshot = &mut self.maps.borrow_mut().snapshot;
        snapshot.node.flow_mask = snapshot.flows.len() as u32 - 1;
        let now_s = flows::now_s(snapshot, &snapshot.node);
        let ways = (0..snapshot.beside.len() as u32).flat_map(|index| (0..WAYS).map(move |way| (index, way)));
        let left = ways.filter(|(index, way)| {
            flows::table::move_way(&*snapshot, *index, *way, now_s) == flows::table::Moved::NoRoom
        });
        if left.count() > 0 {
            return false;
        }
        snapshot.beside.clear();
        true
    }
}

impl Place for Host {
    type Memory = HostMemory;

    fn memory(&self) -> Result<HostMemory> {
        Ok(HostMemory(Rc::clone(&self.maps)))
    }

    fn clear(&mut self) -> Result<()> {
        (self.sizes, self.beside) = (self.began, Beside::Nothing);
        *self.maps.borrow_mut() = Maps::new(&self.sizes);
        Ok(())
    }

    fn sizes(&self) -> MapSizes {
        self.sizes
    }

    fn hz(&self) -> u32 {
        HOST_HZ
    }

    fn set_clock(&mut self, now_ms: u64) {
        self.maps.borrow().snapshot.jiffies.set(HOST_JIFFIES + now_ms);
    }

    fn run(&self, frame: &[u8]) -> Result<Sent> {
        let maps = self.maps.borrow();
        let mut frame = Frame::new(frame);
        let exit = if self.hides_half_open {
            pipeline::process(&mut frame, &HalfOpenHidden::new(&maps.snapshot))
        } else {
            pipeline::process(&mut frame, &maps.snapshot)
        };
        let action = match exit {
            Exit::Drop(_) => 1,
            Exit::Pass(_) => 2,
            Exit::Transmit(_) | Exit::Forward { .. } => 3,
        };
        Ok(Sent::read(action, frame.as_bytes()))
    }

    fn sweep(&self) -> Result<()> {
        let maps = self.maps.borrow();
        let tables = &maps.snapshot;
        let Node { flow_mask, .. } = tables.node;
        for index in 0..(tables.flows.len() + tables.beside.len()) as u32 {
            flows::table::sweep(tables, index, flow_mask, flows::now_s(tables, &tables.node));
        }
        Ok(())
    }

    fn words(&self) -> Vec<u64> {
        self.maps.borrow().flow_words().collect()
    }

    fn active(&self, id: u32) -> u64 {
        self.maps.borrow().snapshot.active.get(id as usize).map_or(0, |word| word.cell().get())
    }

    fn resize(&mut self, flows_max: u32) -> Result<bool> {
        let wanted = with_flows(self.sizes, flows_max);
        let buckets = self.maps.borrow().snapshot.beside.len();
        match self.beside {
            Beside::Nothing if wanted.flow_buckets == self.sizes.flow_buckets => {
                self.sizes = wanted;
                return Ok(true);
            }
            Beside::Nothing => {
                self.make(wanted)?;
                self.beside = Beside::Next;
            }
            Beside::Next if buckets != wanted.flow_buckets as usize => {
                self.maps.borrow_mut().snapshot.beside.clear();
                self.beside = Beside::Nothing;
            }
            Beside::Next => {
                let Maps { snapshot, .. } = &mut *self.maps.borrow_mut();
                std::mem::swap(&mut snapshot.flows, &mut snapshot.beside);
                (self.sizes, self.beside) = (wanted, Beside::Before);
            }
            Beside::Before => {
                ensure!(self.empty(), "records are left where there is room");
                self.beside = Beside::Nothing;
            }
        }
        Ok(false)
    }
}
