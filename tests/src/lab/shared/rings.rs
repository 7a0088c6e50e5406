//! What a node's maps hold, against what the store's configuration says that they must: slot by slot, ids mapped to backend keys.
//!
//! The expected rings are computed here from the objects alone, with every backend up; nothing is asked of the agent but which address
//! it leases.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_core::abi::{
    backend::BackendKey,
    lookup::{Bucket, Entry, Kind},
    node::Node,
    ring::{Extent, Slot, State},
    service::Service,
};
use lb_userspace::{
    dataplane::{
        apply::{Map, Memory as _},
        kernel::{Access, Maps},
        pin::Pins,
    },
    model::{Incremental, ServiceKey},
    plan::{
        ring::{self, Member},
        wanted::{address, octets, wanted},
    },
    store::{Objects, document::document},
};
use xtask::lab::fleet::{Fleet, topology::Host};

/// How long slots may take to settle once nothing changes: announcement and window of a few seconds, closed flows' records, looks every 5 s.
const SETTLE: Duration = Duration::from_secs(60);

/// The `current` column of a service, as backends, and how many slots are not settled.
#[derive(Debug, PartialEq, Eq)]
pub struct Ring {
    /// Address and port of each slot's backend.
    pub current: Vec<(IpAddr, u16)>,
    /// Slots in a window.
    pub unsettled: usize,
}

/// VIP, port and protocol number.
pub type At = (IpAddr, u16, u8);

fn at(key: &ServiceKey) -> At {
    (key.vip, key.port, key.protocol.number())
}

/// The maps of a node, read only.
pub fn maps(fleet: &Fleet, node: Host) -> Result<Maps> {
    let maps = Maps::open(&Pins::new(fleet.pin_dir(node)), Access::Read);
    maps.with_context(|| format!("the maps of {}", node.name()))
}

/// Every ring that a service of the maps names.
pub fn held(maps: &Maps) -> Result<BTreeMap<At, Ring>> {
    let mut rings = BTreeMap::new();
    // Services are those that the lookup table names; what else lies in the maps is nobody's.
    let buckets = (0..maps.entries(Map::Lookup)).filter_map(|at| maps.read::<Bucket>(Map::Lookup, at));
    let entries = buckets.flat_map(|bucket| bucket.entries).map(Entry::unpack);
    for id in entries.filter(|entry| entry.kind == Kind::Service as u8).map(|entry| entry.id) {
        let service: Service = maps.read(Map::Services, id).context("a service")?;
        let slots = maps.ring(Extent::unpack(service.ring)).context("a ring beyond the arena")?;
        let mut names: BTreeMap<u32, (IpAddr, u16)> = BTreeMap::new();
        let mut ring = Ring { current: Vec::with_capacity(slots.len()), unsettled: 0 };
        for slot in slots.into_iter().map(Slot) {
            let id = slot.current();
            let name = match names.get(&id) {
                Some(name) => *name,
                None => {
                    let key: BackendKey = maps.read(Map::BackendKeys, id).context("a slot without a backend")?;
                    ensure!(key.vip == service.addr && key.vip_port == service.port, "a slot of another service");
                    *names.entry(id).or_insert((address(key.addr), key.port))
                }
            };
            ring.current.push(name);
            ring.unsettled += usize::from(slot.state() != State::Settled);
        }
        rings.insert((address(service.addr), service.port, service.proto), ring);
    }
    Ok(rings)
}

/// The rings that a node must hold where the store holds `objects`, with every backend up.
pub fn expected(fleet: &Fleet, node: Host, objects: &Objects, seed: u64) -> Result<BTreeMap<At, Vec<(IpAddr, u16)>>> {
    let local = fs::read_to_string(fleet.config_file(node))?;
    let checked = Incremental::default().document(&document("weir.toml", local, objects));
    let config =
        checked.config.with_context(|| format!("the store holds no configuration: {:?}", checked.diagnostics))?;
    let (config, _) = config.leased(&leases(fleet, node)?);
    let mut rings = BTreeMap::new();
    for service in wanted(&config, &|_, _| Some(true), &|_| None).services {
        let members: Vec<Member> = (0..)
            .zip(&service.backends)
            .map(|(slot, backend)| Member { key: backend.key, weight: backend.weight, slot })
            .collect();
        let name = |slot: &u32| {
            let key = service.backends.get(*slot as usize).map(|backend| backend.key);
            key.map(|key| (address(key.addr), key.port)).context("a slot of nobody")
        };
        let built = ring::build(seed, service.ring_size, &members);
        rings.insert(at(&service.key), built.iter().map(name).collect::<Result<Vec<_>>>()?);
        ensure!(octets(service.key.vip) != [0; 16], "{} has no VIP", service.name);
    }
    Ok(rings)
}

/// The addresses that a node leases, by pool.
pub fn leases(fleet: &Fleet, node: Host) -> Result<BTreeMap<String, IpAddr>> {
    let status = fleet.weir_json(node, &["status"])?;
    let pools = status["store"]["pools"].as_array().context("no pools in the status")?;
    let lease = |pool: &serde_json::Value| {
        let name = pool["pool"].as_str().context("no name")?.to_owned();
        let address = pool["address"].as_str().with_context(|| format!("{} has no address", node.name()))?;
        Ok((name, address.parse()?))
    };
    pools.iter().map(lease).collect()
}

/// Waits until the maps of a node hold the rings of `objects`, every slot settled; how long that took.
pub fn agree(fleet: &Fleet, node: Host, objects: &Objects) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let maps = maps(fleet, node)?;
        let seed = maps.read::<Node>(Map::Node, 0).context("NODE is empty")?.ring_seed;
        let wanted = expected(fleet, node, objects, seed)?;
        // Where the agent writes at this moment, what is read need not fit together.
        let differs = held(&maps).map_or_else(|error| Some(format!("{error:#}")), |held| compare(&wanted, &held));
        match differs {
            None => return Ok(start.elapsed()),
            Some(why) if start.elapsed() > SETTLE => bail!("{}: {why} after {SETTLE:?}", node.name()),
            Some(_) => std::thread::sleep(Duration::from_millis(250)),
        }
    }
}

fn compare(wanted: &BTreeMap<At, Vec<(IpAddr, u16)>>, held: &BTreeMap<At, Ring>) -> Option<String> {
    if !wanted.keys().eq(held.keys()) {
        return Some(format!("services {:?} instead of {:?}", held.keys(), wanted.keys()));
    }
    wanted.iter().zip(held).find_map(|((at, wanted), (_, held))| {
        let wrong = wanted.iter().zip(&held.current).filter(|(wanted, held)| wanted != held).count();
        if wanted.len() != held.current.len() || wrong > 0 {
            return Some(format!("{at:?}: {wrong} of {} slots have another backend", wanted.len()));
        }
        (held.unsettled > 0).then(|| format!("{at:?}: {} of {} slots are not settled", held.unsettled, wanted.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_seen() {
        let (a, b) = (([10, 0, 0, 1].into(), 80), ([10, 0, 0, 2].into(), 80));
        let at: At = ([192, 0, 2, 1].into(), 80, 6);
        let wanted = BTreeMap::from([(at, vec![a, b, a])]);
        let held = |current: Vec<_>, unsettled| BTreeMap::from([(at, Ring { current, unsettled })]);
        assert_eq!(compare(&wanted, &held(vec![a, b, a], 0)), None);
        assert!(compare(&wanted, &held(vec![a, b, a], 1)).is_some_and(|why| why.contains("not settled")));
        assert!(compare(&wanted, &held(vec![a, a, a], 0)).is_some_and(|why| why.contains("1 of 3")));
        assert!(compare(&wanted, &held(vec![a, b], 0)).is_some());
        assert!(compare(&wanted, &BTreeMap::new()).is_some());
    }
}
