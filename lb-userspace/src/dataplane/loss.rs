//! What is lost after the verdict: attaches the tracepoints of `weir_loss` and reads their map.
//!
//! The links and the map are pinned, so that losses are counted while no agent runs. Refuses to know: metrics.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt, path::Path};

use aya::{
    EbpfLoader,
    maps::{Map, MapData, PerCpuHashMap},
    programs::{RawTracePoint, links::FdLink},
};
use lb_core::abi::loss::{LossKey, LossKind, SHAPE};

use super::{
    btf::Btf,
    pin::{PinError, Pins, make_dir},
};

/// Tracepoint and program, in the kernel's and in `weir_loss`'s names.
const TRACEPOINTS: [(&str, &str); 4] = [
    ("xdp_exception", "loss_exception"),
    ("xdp_redirect_err", "loss_redirect"),
    ("xdp_devmap_xmit", "loss_transmit"),
    ("xdp_bulk_tx", "loss_bulk_tx"),
];

/// Why losses cannot be counted. Forwarding does not depend on it.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// The kernel does not describe itself.
    #[error("/sys/kernel/btf/vmlinux: {0}; losses after the verdict need a kernel with CONFIG_DEBUG_INFO_BTF")]
    NoBtf(io::Error),
    /// A structure looks different from what is known.
    #[error("the kernel's BTF does not name {0}; losses after the verdict are not counted on this kernel")]
    Field(&'static str),
    /// Pinning failed.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The programs did not load or attach.
    #[error("cannot attach the loss counters ({what}): {source}")]
    Attach {
        /// What was being done.
        what: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn failed<E: std::error::Error + Send + Sync + 'static>(what: impl Into<String>) -> impl FnOnce(E) -> LossError {
    let what = what.into();
    move |source| LossError::Attach { what, source: Box::new(source) }
}

/// The loss counters of this machine.
pub struct Losses {
    map: PerCpuHashMap<MapData, [u32; 3], u64>,
    netns: u32,
}

impl Losses {
    /// Attaches what is not attached yet and opens the map. Pins that belong to another shape are replaced.
    pub fn attach(pins: &Pins) -> Result<Self, LossError> {
        let dir = pins.loss();
        let complete = TRACEPOINTS.iter().all(|(tracepoint, _)| dir.join(tracepoint).exists());
        let fits = MapData::from_pin(dir.join(SHAPE.name))
            .and_then(|map| map.info())
            .is_ok_and(|info| (info.key_size(), info.value_size()) == (SHAPE.key_size, SHAPE.value_size));
        if !(complete && fits) {
            if dir.exists() {
                fs::remove_dir_all(&dir).map_err(|source| PinError::Io { path: dir.clone(), source })?;
            }
            attach(&dir)?;
        }
        let map = MapData::from_pin(dir.join(SHAPE.name)).map_err(failed("open LOSSES"))?;
        let map = PerCpuHashMap::try_from(Map::PerCpuHashMap(map)).map_err(failed("open LOSSES"))?;
        let netns = fs::metadata("/proc/self/ns/net").map_or(0, |file| file.ino() as u32);
        Ok(Self { map, netns })
    }

    /// Frames lost in this network namespace, by interface index and kind, since the counters were first attached.
    pub fn read(&self) -> BTreeMap<(u32, LossKind), u64> {
        let mut found = BTreeMap::new();
        for (key, values) in self.map.iter().flatten() {
            let key: LossKey = bytemuck::cast(key);
            if let Some(kind) = LossKind::ALL.into_iter().find(|kind| *kind as u32 == key.kind)
                && key.netns == self.netns
            {
                found.insert((key.ifindex, kind), values.iter().sum());
            }
        }
        found
    }
}

fn attach(dir: &Path) -> Result<(), LossError> {
    let bytes = fs::read("/sys/kernel/btf/vmlinux").map_err(LossError::NoBtf)?;
    let btf = Btf::parse(&bytes).ok_or(LossError::Field("any type"))?;
    let offset = |name, path: &[&str], text| btf.offset_of(name, path).ok_or(LossError::Field(text));
    let ifindex = offset("net_device", &["ifindex"], "net_device.ifindex")?;
    let nd_net = offset("net_device", &["nd_net"], "net_device.nd_net")?;
    let inum = offset("net", &["ns", "inum"], "net.ns.inum")?;
    make_dir(dir)?;
    let mut object = EbpfLoader::new()
        .override_global("IFINDEX", &ifindex, true)
        .override_global("ND_NET", &nd_net, true)
        .override_global("INUM", &inum, true)
        .map_pin_path(SHAPE.name, dir.join(SHAPE.name))
        .load(crate::object::WEIR_LOSS)
        .map_err(failed("load"))?;
    for (tracepoint, name) in TRACEPOINTS {
        let program: &mut RawTracePoint =
            object.program_mut(name).ok_or(LossError::Field(name))?.try_into().map_err(failed(name))?;
        program.load().map_err(failed(name))?;
        let link = program.attach(tracepoint).map_err(failed(tracepoint))?;
        let link: FdLink = program.take_link(link).map_err(failed(tracepoint))?.into();
        link.pin(dir.join(tracepoint)).map_err(failed(tracepoint))?;
    }
    Ok(())
}
