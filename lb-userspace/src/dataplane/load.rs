//! Gets the program into the kernel and onto its interfaces, or takes over what is there.
//!
//! The object is loaded once per interface, with the interface's slot as a constant, on maps that are shared through their
//! pins. Attaching happens once, through a pinned link; a newer program is swapped in through that link, so that a NIC's
//! rings are not reset and no packet goes without a program.
//!
//! Owns: shapes before trust, attaching, upgrading. Refuses to know: what the maps contain, and when the flow table changes its size
//! ([`resize`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapError, MapInfo, MapType},
    programs::{
        ProgramError, ProgramInfo, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use lb_core::abi::{self, MapShape, stats::INTERFACES_MAX};

use super::{
    pin::{self, PinError, PinnedInterface, Pins, make_dir},
    resize::{self, Beside},
};
use crate::{model, plan::MapSizes};

/// Name of the program in the object and in the kernel.
pub const PROGRAM: &str = "weir_lb";
/// Global of the object that holds the interface slot.
const SLOT_GLOBAL: &str = "INTERFACE";
/// Name of the second flow table in the object, and the globals that hold the masks of both.
const FLOWS_BESIDE: &str = "FLOWS_BESIDE";
const MASK_GLOBALS: [&str; 2] = ["FLOW_MASK", "BESIDE_MASK"];
/// Lines of the verifier's log that an error carries; the last ones name the refused instruction.
const LOG_LINES: usize = 20;
/// `BPF_F_MMAPABLE`.
pub(super) const MMAPABLE: u32 = 1 << 10;

/// Why the data plane cannot be loaded or taken over. Whatever forwards already goes on.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Folders or the bpf file system.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A pinned map is not what this release needs.
    #[error(
        "the pinned map {map} has {what} {found}, this release with this configuration needs {wanted}; \
         forwarding goes on untouched. To start anew: weir agent --unload (stops forwarding), then start the agent"
    )]
    Shape {
        /// Name of the map.
        map: &'static str,
        /// What differs.
        what: &'static str,
        /// What the kernel has.
        found: String,
        /// What is needed.
        wanted: String,
    },
    /// The pinned maps were written by another ABI version.
    #[error(
        "the pinned data plane has ABI version {found}, this release speaks {wanted}; forwarding goes on untouched. \
         Run a release with ABI {found}, or start anew: weir agent --unload (stops forwarding), then start the agent"
    )]
    Abi {
        /// Version in the pinned node entry.
        found: u32,
        /// [`abi::ABI_VERSION`].
        wanted: u32,
    },
    /// The flows that are recorded now are too many for the table that is wanted.
    #[error(
        "limits.flows_max = {flows_max} has no room for the {live} flows that are recorded now; forwarding goes on untouched. \
         Set it to at least {live}, or wait until flows have ended (`weir flow list` counts them)"
    )]
    FlowsDoNotFit {
        /// Live records.
        live: u64,
        /// The limit that is wanted.
        flows_max: u32,
    },
    /// An earlier change of the flow table's size has to be ended before another begins.
    #[error(
        "limits.flows_max was changed before, and {left} records wait for room in the table that was made then; forwarding goes on \
         untouched. Start the agent with that limit, or wait until flows have ended"
    )]
    ResizeNotEnded {
        /// Live records that have no room.
        left: u64,
    },
    /// No such interface.
    #[error("there is no interface {0}; `ip link` lists them")]
    NoInterface(String),
    /// All slots are taken.
    #[error("{0}: all {INTERFACES_MAX} interface slots are taken")]
    NoSlot(String),
    /// The kernel refused the program.
    #[error("the kernel's verifier refused the program:\n{log}")]
    Verifier {
        /// The end of its log.
        log: String,
    },
    /// Native XDP is not to be had on the interface.
    #[error(
        "{interface}: native XDP was refused: {cause}. Allow the slower generic mode with `xdp_mode = \"generic\"` in [node], \
         or see `weir doctor` for what the driver lacks"
    )]
    NoNative {
        /// The interface.
        interface: String,
        /// What the kernel said.
        cause: String,
    },
    /// Another XDP program holds the interface.
    #[error("{interface}: another XDP program is attached; detach it first: ip link set dev {interface} xdp off")]
    Busy {
        /// The interface.
        interface: String,
    },
    /// Any other failure of a call to the kernel.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// What was being done.
        what: String,
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The error for an action that failed.
pub(super) fn failed<E: std::error::Error + Send + Sync + 'static>(
    what: impl Into<String>,
) -> impl FnOnce(E) -> LoadError {
    let what = what.into();
    move |source| LoadError::Kernel { what, source: Box::new(source) }
}

/// An interface that carries the program. Only the pin holds the attachment, so removing the pin always detaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Name.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// Slot of its counters in `REASON_STATS`.
    pub slot: u32,
    /// Id of the program in the kernel.
    pub program_id: u32,
    /// What happened to it.
    pub how: How,
}

/// What loading did on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Attached by this call, natively.
    Native,
    /// Attached by this call, in generic mode, as the driver has no native one.
    Generic,
    /// The pinned link carried this very program.
    Kept,
    /// The pinned link carried another program and was given this one.
    Upgraded,
}

/// Loads what is missing, takes over what is there. Every pinned map is compared with what is needed before the first
/// change. A flow table of another size is replaced; the records move. Interfaces that are pinned but not in `interfaces` are detached, once all others are attached.
///
/// # Errors
/// [`LoadError`]; what this call attached is detached again, and what carried the program before still does.
pub fn load(
    pins: &Pins,
    interfaces: &[String],
    mode: model::XdpMode,
    sizes: &MapSizes,
) -> Result<Vec<Attached>, LoadError> {
    let indexes = interfaces
        .iter()
        .map(|name| {
            let index = nix::net::if_::if_nametoindex(name.as_str());
            Ok((name.clone(), index.map_err(|_| LoadError::NoInterface(name.clone()))?))
        })
        .collect::<Result<Vec<_>, LoadError>>()?;
    check_shapes(pins, sizes)?;
    let fresh = !pins.hold_maps();
    pins.create()?;
    resize::run(pins, sizes)?;
    let (kept, stale): (Vec<_>, Vec<_>) =
        pins.interfaces()?.into_iter().partition(|p| indexes.iter().any(|(_, index)| *index == p.ifindex));
    let mut slots: BTreeMap<u32, u32> = kept.iter().map(|p| (p.ifindex, p.slot)).collect();
    let mut attached = Vec::new();
    let each = || {
        for (name, ifindex) in indexes {
            let slot = match slots.get(&ifindex) {
                Some(slot) => *slot,
                None => (0..INTERFACES_MAX)
                    .find(|slot| !slots.values().any(|used| used == slot))
                    .ok_or_else(|| LoadError::NoSlot(name.clone()))?,
            };
            slots.insert(ifindex, slot);
            attached.push(load_one(pins, name, PinnedInterface { slot, ifindex }, mode, sizes)?);
        }
        stale.iter().try_for_each(|stale| pins.remove_interface(stale)).map_err(LoadError::from)
    };
    match each() {
        Ok(()) => Ok(attached),
        Err(error) => {
            undo(pins, &attached, fresh)?;
            Err(error)
        }
    }
}

/// Takes back what [`load`] did: detaches the interfaces that it attached, and where it was `fresh`, which is what
/// [`Pins::hold_maps`] said before, removes the maps too.
///
/// # Errors
/// A pin cannot be removed.
pub fn undo(pins: &Pins, attached: &[Attached], fresh: bool) -> Result<(), PinError> {
    if fresh {
        return pins.remove_all().map(drop);
    }
    let ours = attached.iter().filter(|a| matches!(a.how, How::Native | How::Generic));
    ours.map(|a| PinnedInterface { slot: a.slot, ifindex: a.ifindex }).try_for_each(|i| pins.remove_interface(&i))
}

/// Compares every pinned map and the ABI version of the pinned node entry with what this release needs.
pub fn check_shapes(pins: &Pins, sizes: &MapSizes) -> Result<(), LoadError> {
    // The version first: it is the better answer where both differ.
    if let Some(node) = pinned_node(pins)
        && node.abi_version != 0
        && node.abi_version != abi::ABI_VERSION
    {
        return Err(LoadError::Abi { found: node.abi_version, wanted: abi::ABI_VERSION });
    }
    let beside = [resize::NEXT, resize::BEFORE].map(|pin| (&abi::flow::SHAPE, pin));
    for (shape, pin) in abi::MAPS.iter().map(|shape| (shape, shape.name)).chain(beside) {
        let path = pins.map(pin);
        if path.exists() {
            let info = MapInfo::from_pin(&path).map_err(failed(format!("read the pinned map {pin}")))?;
            check_shape(shape, &info, sizes)?;
        }
    }
    Ok(())
}

fn check_shape(shape: &MapShape, info: &MapInfo, sizes: &MapSizes) -> Result<(), LoadError> {
    let differs = |what, found: String, wanted: String| {
        if found == wanted { Ok(()) } else { Err(LoadError::Shape { map: shape.name, what, found, wanted }) }
    };
    let kind = if shape.mmapable {
        MapType::Array
    } else if shape.key_size == 4 {
        MapType::PerCpuArray
    } else {
        MapType::LruHash
    };
    differs("the name", info.name_as_str().unwrap_or_default().into(), shape.name.into())?;
    differs("the type", info.map_type().map_or("unknown".into(), |t| format!("{t:?}")), format!("{kind:?}"))?;
    differs("the key size", info.key_size().to_string(), shape.key_size.to_string())?;
    differs("the value size", info.value_size().to_string(), shape.value_size.to_string())?;
    differs("memory mapping", (info.map_flags() & MMAPABLE != 0).to_string(), shape.mmapable.to_string())?;
    // Another size of the flow table is no obstacle.
    match sizes.entries(shape.name).filter(|_| shape.name != abi::flow::SHAPE.name) {
        Some(entries) => differs("size", info.max_entries().to_string(), entries.to_string()),
        None => Ok(()),
    }
}

/// The pinned node entry, if there is one of the right size.
fn pinned_node(pins: &Pins) -> Option<abi::node::Node> {
    let map = MapData::from_pin(pins.map(abi::node::SHAPE.name)).ok()?;
    let fits = map.info().is_ok_and(|info| {
        info.value_size() as usize == size_of::<abi::node::Node>() && info.map_flags() & MMAPABLE != 0
    });
    if !fits {
        return None;
    }
    super::memory::Mapped::read_only(std::os::fd::AsFd::as_fd(map.fd()), 1).ok()?.get(0)
}

/// Loads the object for an interface slot; the shared maps are created and pinned, or taken from their pins. No program is loaded yet.
///
/// # Errors
/// [`LoadError::Kernel`] where a map cannot be made, or the object cannot be loaded.
pub fn object(pins: &Pins, slot: u32, sizes: &MapSizes, beside: Beside) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    loader.override_global(SLOT_GLOBAL, &slot, true);
    let mut masks = [0; MASK_GLOBALS.len()];
    if let Some(name) = beside.pin() {
        for (mask, pin) in masks.iter_mut().zip([abi::flow::SHAPE.name, name]) {
            let info = MapInfo::from_pin(pins.map(pin)).map_err(failed(format!("read the pinned map {pin}")))?;
            *mask = info.max_entries().saturating_sub(1);
        }
        loader.map_pin_path(FLOWS_BESIDE, pins.map(name));
    }
    for (name, mask) in MASK_GLOBALS.iter().zip(&masks) {
        loader.override_global(name, mask, true);
    }
    for shape in &abi::MAPS {
        loader.map_pin_path(shape.name, pins.map(shape.name));
        if let Some(entries) = sizes.entries(shape.name) {
            loader.map_max_entries(shape.name, entries);
        }
    }
    loader.load(crate::object::WEIR_LB).map_err(|error| match error {
        aya::EbpfError::MapError(MapError::CreateError { name, io_error }) => LoadError::Kernel {
            what: format!("create the map {name} (with the sizes of [node.limits])"),
            source: Box::new(io_error),
        },
        other => failed("load the eBPF object")(other),
    })
}

/// Loads the program of an interface slot and has the kernel verify it.
fn verified(object: &mut Ebpf) -> Result<&mut Xdp, LoadError> {
    let program: &mut Xdp = object
        .program_mut(PROGRAM)
        .ok_or_else(|| failed(format!("find the program {PROGRAM} in the object"))(std::io::Error::other("missing")))?
        .try_into()
        .map_err(failed(format!("use {PROGRAM} as an XDP program")))?;
    program.load().map_err(|error| match error {
        ProgramError::LoadError { verifier_log, .. } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            LoadError::Verifier { log: lines[lines.len().saturating_sub(LOG_LINES)..].join("\n") }
        }
        other => failed(format!("load {PROGRAM}"))(other),
    })?;
    Ok(program)
}

/// Gives a pinned interface a program that knows the flow table `beside`. An interface that is gone meanwhile needs none.
pub(super) fn swap(
    pins: &Pins,
    interface: &PinnedInterface,
    sizes: &MapSizes,
    beside: Beside,
) -> Result<(), LoadError> {
    let dir = pins.interface(interface);
    let link_pin = dir.join(pin::LINK);
    if !link_pin.exists() {
        return Ok(());
    }
    let mut object = object(pins, interface.slot, sizes, beside)?;
    let program = verified(&mut object)?;
    let link = PinnedLink::from_pin(&link_pin).map_err(failed(format!("open {}", link_pin.display())))?;
    let link = XdpLink::try_from(FdLink::from(link)).map_err(failed(format!("use {}", link_pin.display())))?;
    match give(program, link) {
        // What the kernel says of a link whose interface is gone.
        Err(error) if errno(&error) == Some(libc::ENOLINK) => Ok(()),
        Err(error) => Err(failed(format!("swap the program of interface {}", interface.ifindex))(error)),
        Ok(()) => repin(program, dir.join("program")),
    }
}

/// Gives a link another program, in one step for packets.
fn give(program: &mut Xdp, link: XdpLink) -> Result<(), ProgramError> {
    let id = program.attach_to_link(link)?;
    // Without this, dropping the program would try to detach what the pin shall keep.
    program.take_link(id).map(drop)
}

fn load_one(
    pins: &Pins,
    name: String,
    pinned: PinnedInterface,
    mode: model::XdpMode,
    sizes: &MapSizes,
) -> Result<Attached, LoadError> {
    let mut object = object(pins, pinned.slot, sizes, Beside::at_rest(pins))?;
    let program = verified(&mut object)?;
    let dir = pins.interface(&pinned);
    make_dir(&dir)?;
    let link_pin = dir.join(pin::LINK);
    let (how, program_id) = match PinnedLink::from_pin(&link_pin) {
        Ok(link) => take_over(program, link, &name)?,
        Err(_) => {
            let (how, link) = match attach(program, &name, pinned.ifindex, mode) {
                Ok(attached) => attached,
                Err(error) => {
                    // A folder says that the interface carries the program, which it does not.
                    pins.remove_interface(&pinned)?;
                    return Err(error);
                }
            };
            link.pin(&link_pin).map_err(failed(format!("pin the link of {name}")))?;
            (how, info(program)?.id())
        }
    };
    if how != How::Kept {
        repin(program, dir.join("program"))?;
    }
    Ok(Attached { name, ifindex: pinned.ifindex, slot: pinned.slot, program_id, how })
}

fn info(program: &Xdp) -> Result<ProgramInfo, LoadError> {
    program.info().map_err(failed("read the loaded program back"))
}

/// Keeps the program of a pinned link where it is this one, else swaps this one in.
fn take_over(program: &mut Xdp, link: PinnedLink, name: &str) -> Result<(How, u32), LoadError> {
    let link = FdLink::from(link);
    let running = link.info().map_err(failed(format!("read the pinned link of {name}")))?.program_id();
    let mine = info(program)?;
    let same = aya::programs::loaded_programs()
        .flatten()
        .find(|program| program.id() == running)
        .is_some_and(|running| running.tag() == mine.tag() && flow_tables(&running) == flow_tables(&mine));
    if same {
        return Ok((How::Kept, running));
    }
    let link = XdpLink::try_from(link).map_err(failed(format!("use the pinned link of {name}")))?;
    give(program, link).map_err(failed(format!("swap the program on {name}")))?;
    Ok((How::Upgraded, mine.id()))
}

/// Ids of the flow tables of a program: its tag does not tell, as that is the same for all maps.
fn flow_tables(program: &ProgramInfo) -> BTreeSet<u32> {
    let maps = program.map_ids().ok().flatten().unwrap_or_default();
    let is_table = |id: &u32| MapInfo::from_id(*id).is_ok_and(|map| map.name_as_str() == Some(abi::flow::SHAPE.name));
    maps.into_iter().filter(is_table).collect()
}

fn attach(program: &mut Xdp, name: &str, ifindex: u32, mode: model::XdpMode) -> Result<(How, FdLink), LoadError> {
    let native = program.attach_to_if_index(ifindex, XdpMode::Driver);
    let (how, id) = match (native, mode) {
        (Ok(id), _) => (How::Native, id),
        (Err(error), _) if errno(&error) == Some(libc::EBUSY) => {
            return Err(LoadError::Busy { interface: name.into() });
        }
        (Err(error), model::XdpMode::Native) => {
            return Err(LoadError::NoNative { interface: name.into(), cause: chain(&error) });
        }
        (Err(_), model::XdpMode::Generic) => {
            let id = program
                .attach_to_if_index(ifindex, XdpMode::Skb)
                .map_err(failed(format!("attach to {name} in generic mode")))?;
            (How::Generic, id)
        }
    };
    let link = program.take_link(id).map_err(failed("take the link"))?;
    Ok((how, FdLink::try_from(link).map_err(failed(format!("attach to {name} by a link (kernel 5.9 or newer)")))?))
}

fn errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// Pins the program in the place of an older one.
fn repin(program: &mut Xdp, path: PathBuf) -> Result<(), LoadError> {
    if path.exists() {
        fs::remove_file(&path).map_err(|source| PinError::Io { path: path.clone(), source })?;
    }
    program.pin(&path).map_err(failed("pin the program"))
}
