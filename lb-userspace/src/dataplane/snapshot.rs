//! A copy of the pinned maps for `weir explain`: the decisions of `lb_core` on the host, over what the kernel's program
//! reads.
//!
//! Reads only, and needs no agent. Invariant: the copy holds the secret hash key, so it is never printed or serialized.

use std::{collections::BTreeMap, os::fd::AsFd, path::PathBuf};

use aya::maps::{HashMap, Map, MapData};
use bytemuck::Pod;
use lb_core::{
    abi::{self, ABI_VERSION, MapShape, fragment},
    host::Snapshot,
};

use super::{memory::Mapped, pin::Pins};

/// Why the maps cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No data plane is loaded.
    #[error("no data plane is loaded: {} does not exist", .0.display())]
    Absent(PathBuf),
    /// The pins are there, but not for us.
    #[error("cannot open the pinned map {name}: {source}; root is needed")]
    Open {
        /// Name of the map.
        name: &'static str,
        /// What aya said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map has another layout than this release knows.
    #[error("the pinned map {name} has values of {found} bytes, this release knows {wanted}")]
    Shape {
        /// Name of the map.
        name: &'static str,
        /// Bytes of a value of the pinned map.
        found: u32,
        /// Bytes of a value here.
        wanted: u32,
    },
    /// The maps are of another version.
    #[error("the loaded data plane has ABI version {found}, this release speaks {ABI_VERSION}")]
    Abi {
        /// Version of the pinned maps; 0 if no agent has written them yet.
        found: u32,
    },
}

/// Copies the maps pinned below `pins`; entries that change meanwhile may be mixed.
///
/// # Errors
/// [`SnapshotError`].
pub fn read(pins: &Pins) -> Result<Snapshot, SnapshotError> {
    let node: Vec<abi::node::Node> = array(pins, &abi::node::SHAPE)?;
    let node = node.first().copied().unwrap_or_else(bytemuck::Zeroable::zeroed);
    if node.abi_version != ABI_VERSION {
        return Err(SnapshotError::Abi { found: node.abi_version });
    }
    Ok(Snapshot {
        node,
        lookup: array(pins, &abi::lookup::SHAPE)?,
        services: array(pins, &abi::service::SHAPE)?,
        lines: array(pins, &abi::ring::SHAPE)?,
        backends: array(pins, &abi::backend::SHAPE)?,
        fragments: fragments(pins)?.into(),
        ..Snapshot::default()
    })
}

fn open(pins: &Pins, shape: &MapShape) -> Result<(MapData, u32), SnapshotError> {
    let path = pins.map(shape.name);
    if matches!(path.try_exists(), Ok(false)) {
        return Err(SnapshotError::Absent(path));
    }
    let failed = |source| SnapshotError::Open { name: shape.name, source };
    let map = MapData::from_pin(&path).map_err(|error| failed(error.into()))?;
    let info = map.info().map_err(|error| failed(error.into()))?;
    if info.value_size() != shape.value_size {
        return Err(SnapshotError::Shape { name: shape.name, found: info.value_size(), wanted: shape.value_size });
    }
    Ok((map, info.max_entries()))
}

fn array<T: Pod>(pins: &Pins, shape: &MapShape) -> Result<Vec<T>, SnapshotError> {
    let (map, entries) = open(pins, shape)?;
    let mapped = Mapped::<T>::read_only(map.fd().as_fd(), entries)
        .map_err(|error| SnapshotError::Open { name: shape.name, source: error.into() })?;
    Ok((0..entries).filter_map(|index| mapped.get(index)).collect())
}

fn fragments(pins: &Pins) -> Result<BTreeMap<fragment::FragmentKey, fragment::Fragment>, SnapshotError> {
    const KEY: usize = size_of::<fragment::FragmentKey>();
    const VALUE: usize = size_of::<fragment::Fragment>();
    let shape = &fragment::SHAPE;
    let (map, _) = open(pins, shape)?;
    let failed = |error: aya::maps::MapError| SnapshotError::Open { name: shape.name, source: error.into() };
    let map: HashMap<MapData, [u8; KEY], [u8; VALUE]> = Map::LruHashMap(map).try_into().map_err(failed)?;
    let mut found = BTreeMap::new();
    // An entry that goes while the map is walked is nobody's loss.
    for (key, value) in map.iter().flatten() {
        found.insert(bytemuck::pod_read_unaligned(&key), bytemuck::pod_read_unaligned(&value));
    }
    Ok(found)
}
