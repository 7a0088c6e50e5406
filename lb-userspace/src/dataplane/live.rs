//! The pinned maps as lb-core's tables: what `weir explain` decides over.
//!
//! Each entry is copied when it is first read and stays as it was, so that one explanation does not contradict itself.
//! Owns: the copies. Refuses to know: packets, and routes (the caller brings the kernel's answer). Writes nothing.

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeMap,
};

use aya::maps::{HashMap, Map as AyaMap, MapData, PerCpuArray};
use bytemuck::Pod;
use lb_core::{
    abi::{
        backend::{Backend, BackendKey},
        flow::{self, Word},
        fragment::{self, Fragment, FragmentKey},
        lookup::Bucket,
        node::Node,
        ring::Line,
        service::Service,
        stats::FlowEvent,
        turns::{self, Turns},
    },
    tables::{NextHop, Pair, Route, Tables},
};

use super::{
    Error,
    apply::{Map, Memory},
    clock,
    kernel::{Access, FlowMaps, Maps},
    memory::Mapped,
    pin::Pins,
};

/// Entries that are copied when they are first read.
struct Copies<T>(Vec<OnceCell<Box<T>>>);

impl<T: Pod> Copies<T> {
    fn get(&self, maps: &Maps, map: Map, index: u32) -> Option<&T> {
        self.get_or(index, || maps.read(map, index))
    }
}

impl<T> Copies<T> {
    fn new(entries: u32) -> Self {
        Self((0..entries).map(|_| OnceCell::new()).collect())
    }

    fn get_or(&self, index: u32, read: impl FnOnce() -> Option<T>) -> Option<&T> {
        let cell = self.0.get(index as usize)?;
        if let Some(value) = cell.get() {
            return Some(value);
        }
        let value = read()?;
        Some(cell.get_or_init(|| Box::new(value)))
    }
}

/// A copy of a bucket of a flow table.
fn bucket(table: &Mapped<[u64; 8]>, index: u32) -> Option<flow::Bucket> {
    let [a, b, c, d, e, f, g, h] = table.get(index)?.map(Word::new);
    Some(flow::Bucket { tags: [a, b, c, d], words: [e, f, g, h] })
}

/// The pinned maps, read only.
pub struct LiveTables<F> {
    maps: Maps,
    node: Copies<Node>,
    lookup: Copies<Bucket>,
    services: Copies<Service>,
    rings: Copies<Line>,
    owners: Copies<Line>,
    flows: Copies<flow::Bucket>,
    before: Copies<flow::Bucket>,
    active: Copies<Word>,
    flow_maps: FlowMaps,
    backends: Copies<Backend>,
    fragments: Option<HashMap<MapData, [u64; 5], [u32; 2]>>,
    turns: Option<PerCpuArray<MapData, [u32; 4]>>,
    /// Turns of the first CPU as an explanation took them on.
    taken: RefCell<BTreeMap<u32, Turns>>,
    route: F,
}

const _: () = assert!(size_of::<Turns>() == size_of::<[u32; 4]>());

impl<F: Fn(&Route) -> NextHop> LiveTables<F> {
    /// The maps below `pins`; `route` answers for the kernel's routes.
    ///
    /// # Errors
    /// [`Error::Kernel`] if a map is missing (no data plane is loaded) or cannot be mapped.
    pub fn open(pins: &Pins, route: F) -> Result<Self, Error> {
        let maps = Maps::open(pins, Access::Read)?;
        let flow_maps = FlowMaps::open(pins)?;
        let fragments = MapData::from_pin(pins.map(fragment::SHAPE.name)).ok();
        let fragments = fragments.and_then(|map| HashMap::try_from(AyaMap::LruHashMap(map)).ok());
        let turns = MapData::from_pin(pins.map(turns::SHAPE.name)).ok();
        let turns = turns.and_then(|map| PerCpuArray::try_from(AyaMap::PerCpuArray(map)).ok());
        Ok(Self {
            node: Copies::new(maps.entries(Map::Node)),
            lookup: Copies::new(maps.entries(Map::Lookup)),
            services: Copies::new(maps.entries(Map::Services)),
            rings: Copies::new(maps.entries(Map::Rings)),
            owners: Copies::new(maps.entries(Map::Owners)),
            flows: Copies::new(flow_maps.buckets.len()),
            before: Copies::new(flow_maps.before.as_ref().map_or(0, Mapped::len)),
            active: Copies::new(flow_maps.active.len()),
            flow_maps,
            backends: Copies::new(maps.entries(Map::Backends)),
            maps,
            fragments,
            turns,
            taken: RefCell::default(),
            route,
        })
    }

    /// Who a backend id is.
    pub fn backend_key(&self, id: u32) -> Option<BackendKey> {
        self.maps.read(Map::BackendKeys, id)
    }
}

impl<F: Fn(&Route) -> NextHop> Tables for LiveTables<F> {
    fn node(&self) -> Option<&Node> {
        self.node.get(&self.maps, Map::Node, 0)
    }

    fn bucket(&self, index: u32) -> Option<&Bucket> {
        self.lookup.get(&self.maps, Map::Lookup, index)
    }

    fn service(&self, id: u32) -> Option<&Service> {
        self.services.get(&self.maps, Map::Services, id)
    }

    fn line(&self, index: u32) -> Option<&Line> {
        self.rings.get(&self.maps, Map::Rings, index)
    }

    fn owners(&self, index: u32) -> Option<&Line> {
        self.owners.get(&self.maps, Map::Owners, index)
    }

    /// What a decision records, it records in the copy: the packets of one capture find each other's records there.
    fn flows(&self, index: u32) -> Option<&flow::Bucket> {
        self.flows.get_or(index, || bucket(&self.flow_maps.buckets, index))
    }

    fn pair(&self) -> Option<Pair> {
        let before = self.flow_maps.before.as_ref()?;
        Some(Pair { mask: self.flow_maps.buckets.len() - 1, beside: before.len() - 1 })
    }

    fn flows_beside(&self, index: u32) -> Option<&flow::Bucket> {
        let before = self.flow_maps.before.as_ref()?;
        self.before.get_or(index, || bucket(before, index))
    }

    fn active(&self, id: u32) -> Option<&Word> {
        self.active.get_or(id, || Some(Word::new(self.flow_maps.active.get(id)?)))
    }

    fn count(&self, _: FlowEvent) {}

    fn count_flows(&self, _: u32, _: [u32; 4]) {}

    /// Whose turn it is belongs to each CPU: an explanation takes the first, and takes its turns on in a copy.
    fn turns(&self, service: u32) -> Turns {
        if let Some(turns) = self.taken.borrow().get(&service) {
            return *turns;
        }
        let of_all = self.turns.as_ref().and_then(|map| map.get(&service, 0).ok());
        of_all.and_then(|values| values.iter().next().map(|words| bytemuck::cast(*words))).unwrap_or_default()
    }

    fn set_turns(&self, service: u32, turns: Turns) {
        self.taken.borrow_mut().insert(service, turns);
    }

    fn jiffies(&self) -> u64 {
        clock::jiffies()
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(&self.maps, Map::Backends, id)
    }

    fn load_u64(&self, word: &u64) -> u64 {
        *word
    }

    fn load_u32(&self, word: &u32) -> u32 {
        *word
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        let [backend, kind] = self.fragments.as_ref()?.get(&bytemuck::cast(*key), 0).ok()?;
        Some(Fragment { backend, kind })
    }

    /// An explanation leaves no trace.
    fn remember_fragment(&self, _: &FragmentKey, _: &Fragment) {}

    fn next_hop(&self, route: &Route) -> NextHop {
        (self.route)(route)
    }
}
