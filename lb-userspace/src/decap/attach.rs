//! The effects: loading, attaching, replacing and reading back.

use std::{collections::BTreeMap, fmt::Display, io, net::IpAddr};

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        HashMap, Map, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{
        LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, LinkError, LinkType, PinnedLink},
        loaded_programs,
        tc::{TcAttachOptions, TcError, qdisc_add_clsact, qdisc_detach_program},
    },
    sys::SyscallError,
    util::KernelVersion,
};
use ipnet::IpNet;
use lb_core::abi::{
    decap::{LOCAL_MAX, Reason, SOURCES_MAX, VIPS_MAX},
    mapped,
};

use super::{
    DecapError, Mode, Request, Status,
    interface::{self, Interface},
    pin::{Pins, in_private_mount_namespace},
};
use crate::object::WEIR_DECAP;

const XDP_PROGRAM: &str = "weir_decap";
const TC_PROGRAM: &str = "weir_decap_tc";
/// Lines of the verifier's log that an error carries.
const LOG_LINES: usize = 12;

/// Attaches the decapsulator, or replaces the one that is there, and reads back what is in force.
pub async fn attach(request: &Request) -> Result<Status, DecapError> {
    let interface = interface::read(&request.interface).await?;
    if !request.vips.is_empty() && interface.addresses.is_empty() {
        return Err(DecapError::NoAddress { interface: request.interface.clone() });
    }
    let pins = Pins::of(interface.index)?;
    pins.create()?;
    let attached = find(&interface, &pins)?;
    let mut ebpf = load(request, &interface)?;

    // The same hook: replaced in place. Another one: taken down first, as a packet must not meet both.
    let keep = attached.as_ref().filter(|a| request.mode.is_none_or(|mode| mode == a.mode) && a.link.is_some());
    let mode = keep.map(|a| a.mode).or(request.mode);
    let old = match (keep.is_some(), attached) {
        (true, Some(attached)) => attached.link,
        (_, attached) => {
            if attached.is_some_and(|a| a.link.is_none()) {
                detach_clsact(&interface.name)?;
            }
            pins.remove()?;
            pins.create()?;
            None
        }
    };
    let mut native_refused = None;
    match mode {
        Some(mode @ (Mode::Native | Mode::Generic)) => attach_xdp(&mut ebpf, &interface, &pins, mode, old)?,
        Some(Mode::Tc) => attach_tc(&mut ebpf, &interface, &pins, old)?,
        None => match attach_xdp(&mut ebpf, &interface, &pins, Mode::Native, None) {
            Ok(()) => {}
            Err(error @ DecapError::Busy { .. }) => return Err(error),
            Err(error) => {
                native_refused = Some(error.to_string());
                attach_tc(&mut ebpf, &interface, &pins, None)?;
            }
        },
    }
    let mut status = status(&request.interface).await?;
    status.native_refused = native_refused;
    status.private_mount = in_private_mount_namespace();
    Ok(status)
}

/// Detaches the decapsulator and removes its pins, also those of one that the kernel has detached already.
pub async fn detach(name: &str) -> Result<(), DecapError> {
    let interface = interface::read(name).await?;
    let pins = Pins::of(interface.index)?;
    let attached = find(&interface, &pins)?;
    if attached.as_ref().is_some_and(|a| a.link.is_none()) {
        detach_clsact(name)?;
    }
    let found = attached.is_some();
    drop(attached);
    pins.remove()?;
    if found { Ok(()) } else { Err(DecapError::NotAttached { interface: name.to_owned() }) }
}

/// Reads mode, rules and counters of the decapsulator back from the kernel.
pub async fn status(name: &str) -> Result<Status, DecapError> {
    let interface = interface::read(name).await?;
    let pins = Pins::of(interface.index)?;
    let attached = find(&interface, &pins)?.ok_or_else(|| DecapError::NotAttached { interface: name.to_owned() })?;
    let mut status = Status {
        interface: name.to_owned(),
        mode: attached.mode,
        program_id: attached.program.id(),
        addresses: Vec::new(),
        sources: Vec::new(),
        vips: Vec::new(),
        packets: BTreeMap::new(),
        native_refused: None,
        private_mount: false,
    };
    for id in attached.program.map_ids()?.unwrap_or_default() {
        let data = MapData::from_id(id)?;
        let name = data.info()?.name_as_str().unwrap_or_default().to_owned();
        let map = Map::from_map_data(data)?;
        match name.as_str() {
            "DECAP_LOCAL" => {
                let map: HashMap<_, [u8; 16], u8> = map.try_into()?;
                status.addresses = map.keys().map(|key| Ok(from_mapped(key?))).collect::<Result<_, MapErr>>()?;
                status.addresses.sort();
            }
            "DECAP_SOURCES" => status.sources = prefixes(map)?,
            "DECAP_VIPS" => status.vips = prefixes(map)?,
            "DECAP_STATS" => {
                let map: PerCpuArray<_, u64> = map.try_into()?;
                for reason in Reason::ALL {
                    status.packets.insert(reason.name(), map.get(&(reason as u32), 0)?.iter().sum());
                }
            }
            _ => {}
        }
    }
    Ok(status)
}

type MapErr = aya::maps::MapError;

/// What is attached to an interface.
struct Attached {
    mode: Mode,
    program: ProgramInfo,
    /// `None` where tc has no links.
    link: Option<FdLink>,
}

/// Finds what the pins name, if the interface still runs it.
fn find(interface: &Interface, pins: &Pins) -> Result<Option<Attached>, DecapError> {
    if let Some(link) = absent_is_none(PinnedLink::from_pin(pins.link()))? {
        let link = FdLink::from(link);
        let info = link.info()?;
        let id = info.program_id();
        let mode = match info.link_type()? {
            LinkType::Xdp => interface.xdp.filter(|(_, running)| *running == id).map(|(mode, _)| mode),
            _ => {
                let (_, programs) = SchedClassifier::query_tcx(&interface.name, TcAttachType::Ingress)?;
                programs.iter().any(|program| program.id() == id).then_some(Mode::Tc)
            }
        };
        // The link outlives an interface that was deleted, without effect.
        let Some(mode) = mode else { return Ok(None) };
        // Programs of others come and go while they are listed; those are errors that say nothing about ours.
        let program = loaded_programs().flatten().find(|program| program.id() == id);
        return Ok(program.map(|program| Attached { mode, program, link: Some(link) }));
    }
    if !pins.program().exists() {
        return Ok(None);
    }
    let program = ProgramInfo::from_pin(pins.program())?;
    Ok(Some(Attached { mode: Mode::Tc, program, link: None }))
}

fn absent_is_none(result: Result<PinnedLink, LinkError>) -> Result<Option<PinnedLink>, LinkError> {
    match result {
        Ok(link) => Ok(Some(link)),
        Err(LinkError::SyscallError(SyscallError { io_error, .. })) if io_error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Loads the object and fills its maps; no program is in the kernel yet.
fn load(request: &Request, interface: &Interface) -> Result<Ebpf, DecapError> {
    let within = |what, given, max| {
        if given > max { Err(DecapError::TooMany { what, given, max }) } else { Ok(()) }
    };
    within("addresses of the interface", interface.addresses.len(), LOCAL_MAX)?;
    within("source prefixes", request.sources.len(), SOURCES_MAX)?;
    within("VIP prefixes", request.vips.len(), VIPS_MAX)?;

    let active = u32::from(!request.vips.is_empty());
    let mut ebpf = EbpfLoader::new().override_global("ACTIVE", &active, true).load(WEIR_DECAP)?;
    let mut local: HashMap<_, [u8; 16], u8> = map(&mut ebpf, "DECAP_LOCAL")?.try_into()?;
    for address in &interface.addresses {
        local.insert(to_mapped(*address), 1, 0)?;
    }
    for (name, prefixes) in [("DECAP_SOURCES", &request.sources), ("DECAP_VIPS", &request.vips)] {
        let mut trie: LpmTrie<_, [u8; 16], u8> = map(&mut ebpf, name)?.try_into()?;
        for prefix in prefixes {
            let bits = match prefix {
                IpNet::V4(_) => 96,
                IpNet::V6(_) => 0,
            };
            trie.insert(&Key::new(bits + u32::from(prefix.prefix_len()), to_mapped(prefix.network())), 1, 0)?;
        }
    }
    Ok(ebpf)
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Map, DecapError> {
    ebpf.map_mut(name).ok_or(DecapError::Missing(name))
}

/// Attaches by XDP, or replaces the program of `old`.
fn attach_xdp(
    ebpf: &mut Ebpf,
    interface: &Interface,
    pins: &Pins,
    mode: Mode,
    old: Option<FdLink>,
) -> Result<(), DecapError> {
    let program: &mut Xdp = ebpf.program_mut(XDP_PROGRAM).ok_or(DecapError::Missing(XDP_PROGRAM))?.try_into()?;
    program.load().map_err(rejected)?;
    if let Some(link) = old {
        program.attach_to_link(link.try_into()?)?;
        return Ok(());
    }
    let xdp_mode = if mode == Mode::Generic { XdpMode::Skb } else { XdpMode::Driver };
    let refused = |reason: String| DecapError::Attach { interface: interface.name.clone(), mode, reason };
    let id = program.attach_to_if_index(interface.index, xdp_mode).map_err(|error| match os_error(&error) {
        Some(libc::EBUSY | libc::EEXIST) => DecapError::Busy { interface: interface.name.clone() },
        Some(libc::EOPNOTSUPP) => refused("the driver has no XDP; use --mode tc".to_owned()),
        Some(libc::ERANGE) => refused("the MTU is larger than the driver's XDP takes; use --mode tc".to_owned()),
        _ => refused(describe(&error)),
    })?;
    let link = FdLink::try_from(program.take_link(id)?)
        .map_err(|_| refused("this kernel has no XDP links (Linux 5.9)".to_owned()))?;
    pin(link, pins)
}

/// Attaches to tc ingress, or replaces the program of `old`.
fn attach_tc(ebpf: &mut Ebpf, interface: &Interface, pins: &Pins, old: Option<FdLink>) -> Result<(), DecapError> {
    let program: &mut SchedClassifier =
        ebpf.program_mut(TC_PROGRAM).ok_or(DecapError::Missing(TC_PROGRAM))?.try_into()?;
    program.load().map_err(rejected)?;
    if let Some(link) = old {
        program.attach_to_link(link.try_into()?)?;
        return Ok(());
    }
    let refused = |error: &ProgramError| DecapError::Attach {
        interface: interface.name.clone(),
        mode: Mode::Tc,
        reason: describe(error),
    };
    if KernelVersion::current().is_ok_and(|running| running >= KernelVersion::new(6, 6, 0)) {
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(&interface.name, TcAttachType::Ingress, options)
            .map_err(|error| refused(&error))?;
        return pin(FdLink::try_from(program.take_link(id)?)?, pins);
    }
    match qdisc_add_clsact(&interface.name) {
        Ok(()) => {}
        // A clsact that is there already serves as well; anything else shows when the program is attached.
        Err(TcError::NetlinkError(_)) => {}
        Err(error) => return Err(ProgramError::from(error).into()),
    }
    let id = program.attach(&interface.name, TcAttachType::Ingress).map_err(|error| refused(&error))?;
    let path = pins.program();
    program.pin(&path).map_err(|source| DecapError::PinObject { path, source })?;
    // Dropping the handle would detach the filter.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn detach_clsact(interface: &str) -> Result<(), DecapError> {
    match qdisc_detach_program(interface, TcAttachType::Ingress, TC_PROGRAM) {
        Ok(()) => Ok(()),
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ProgramError::from(error).into()),
    }
}

fn pin(link: FdLink, pins: &Pins) -> Result<(), DecapError> {
    let path = pins.link();
    link.pin(&path).map(drop).map_err(|source| DecapError::PinObject { path, source })
}

/// A refusal by the verifier with the end of its log, which holds the reason.
fn rejected(error: ProgramError) -> DecapError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<_> = log.lines().collect();
            let end = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n");
            DecapError::Rejected { source: io_error, log: end }
        }
        other => other.into(),
    }
}

fn os_error(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error(),
        _ => None,
    }
}

/// An error with its causes.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        append(&mut text, cause);
        source = cause.source();
    }
    text
}

fn append(text: &mut String, cause: &dyn Display) {
    let cause = cause.to_string();
    if !text.contains(&cause) {
        text.push_str(": ");
        text.push_str(&cause);
    }
}

fn prefixes(map: Map) -> Result<Vec<IpNet>, DecapError> {
    let trie: LpmTrie<_, [u8; 16], u8> = map.try_into()?;
    let mut prefixes = Vec::new();
    for key in trie.keys() {
        let key = key?;
        let address = from_mapped(key.data());
        let bits = if address.is_ipv4() { key.prefix_len().saturating_sub(96) } else { key.prefix_len() };
        prefixes.extend(u8::try_from(bits).ok().and_then(|bits| IpNet::new(address, bits).ok()));
    }
    prefixes.sort();
    Ok(prefixes)
}

fn to_mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn from_mapped(octets: [u8; 16]) -> IpAddr {
    IpAddr::from(octets).to_canonical()
}
