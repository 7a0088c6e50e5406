//! `[node]` and the tables in it.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_core::abi::stats::INTERFACES_MAX;

use super::{
    super::{
        Announce, BACKENDS_MAX_RANGE, FLOWS_MAX_RANGE, RING_SLOTS_MAX_RANGE, SERVICES_MAX_RANGE, XdpMode,
        reference::is_name,
    },
    At, Code, Diagnostic, Findings, Limits, Node, Span, Table,
    reader::{Section, shown},
};

/// Longest path of a Unix socket: `sun_path` has 108 bytes, one of them the final zero (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Longest path otherwise (`PATH_MAX` of Linux, less the final zero).
pub(super) const PATH_BYTES_MAX: usize = 4095;
/// Longest name of an interface (`IFNAMSIZ` of Linux, less the final zero).
const INTERFACE_BYTES_MAX: usize = 15;

/// `[node]` as far as it could be read, and where its limits stand for findings about them.
pub(super) struct Draft {
    name: String,
    interfaces: Option<Vec<String>>,
    xdp_mode: XdpMode,
    /// `None` is the default.
    pub announce: Option<At<Announce>>,
    outer_source_v4: Option<Ipv4Net>,
    outer_source_v6: Option<Ipv6Net>,
    /// Limits in force; the default in place of one that was refused.
    pub limits: Limits,
    /// Where each limit is set, if it is: services, backends, ring slots.
    pub limit_spans: [Option<Span>; 3],
    metrics_listen: Option<SocketAddr>,
    api_socket: PathBuf,
    api_group: Option<String>,
    pin_dir: PathBuf,
    state_dir: PathBuf,
    seed_file: Option<PathBuf>,
}

impl Draft {
    /// The node, if nothing in it was refused.
    pub fn into_node(self) -> Option<Node> {
        Some(Node {
            name: self.name,
            interfaces: self.interfaces?,
            xdp_mode: self.xdp_mode,
            announce: self.announce.map_or(Announce::Address, |at| at.value),
            outer_source_v4: self.outer_source_v4?,
            outer_source_v6: self.outer_source_v6?,
            limits: self.limits,
            metrics_listen: self.metrics_listen,
            api_socket: self.api_socket,
            api_group: self.api_group,
            pin_dir: self.pin_dir,
            state_dir: self.state_dir,
            seed_file: self.seed_file,
        })
    }
}

/// Reads `[node]`.
pub(super) fn read(section: &Section<'_>, findings: &mut Findings) -> Option<Draft> {
    let (limits, limit_spans) = match section.table("limits", Table::Limits, findings) {
        Some(section) => limits(&section, findings),
        None => (Limits::default(), [None, None, None]),
    };
    let metrics_listen = match section.table("metrics", Table::Metrics, findings) {
        Some(section) => listen(&section, findings),
        None => Some(METRICS_LISTEN),
    };
    let api = section.table("api", Table::Api, findings);
    let api = api.as_ref();
    Some(Draft {
        name: name(section, findings).map(|name| name.value).unwrap_or_default(),
        interfaces: interfaces(section, findings),
        xdp_mode: section
            .word("xdp_mode", &[("native", XdpMode::Native), ("generic", XdpMode::Generic)], findings)
            .map_or(XdpMode::Native, |mode| mode.value),
        announce: section.word("announce", &[("address", Announce::Address), ("none", Announce::None)], findings),
        outer_source_v4: outer_source(section, "outer_source_v4", 16, "198.18.0.0/16", findings).and_then(|net| {
            match net {
                IpNet::V4(net) => Some(net),
                IpNet::V6(_) => None,
            }
        }),
        outer_source_v6: outer_source(section, "outer_source_v6", 64, "100::/64", findings).and_then(|net| match net {
            IpNet::V6(net) => Some(net),
            IpNet::V4(_) => None,
        }),
        limits,
        limit_spans,
        metrics_listen,
        api_socket: api
            .and_then(|api| path(api, "socket", SOCKET_PATH_BYTES_MAX, findings))
            .unwrap_or_else(|| "/run/weir/api.sock".into()),
        api_group: api.and_then(|api| group(api, findings)),
        pin_dir: path(section, "pin_dir", PATH_BYTES_MAX, findings).unwrap_or_else(|| "/sys/fs/bpf/weir".into()),
        state_dir: path(section, "state_dir", PATH_BYTES_MAX, findings).unwrap_or_else(|| "/var/lib/weir".into()),
        seed_file: path(section, "seed_file", PATH_BYTES_MAX, findings),
    })
}

/// Default of `listen`.
const METRICS_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1)), 9650);

/// The name under `name`, of a node or a service.
pub(super) fn name(section: &Section<'_>, findings: &mut Findings) -> Option<At<String>> {
    let At { value, span } = section.string("name", findings)?;
    if is_name(value) {
        return Some(At { value: value.to_owned(), span });
    }
    let message =
        if value.is_empty() { "a name is empty".to_owned() } else { format!("\"{}\" cannot be a name", shown(value)) };
    let hint = "a name has 1 to 64 letters, digits, `-`, `_` and `.`";
    findings.push(Diagnostic::new(Code::BadName, span, message).hint(hint));
    None
}

fn limits(section: &Section<'_>, findings: &mut Findings) -> (Limits, [Option<Span>; 3]) {
    let services = section.integer("services_max", SERVICES_MAX_RANGE, findings);
    let backends = section.integer("backends_max", BACKENDS_MAX_RANGE, findings);
    let slots = section.integer("ring_slots_max", RING_SLOTS_MAX_RANGE, findings);
    let flows = section.integer("flows_max", FLOWS_MAX_RANGE, findings);
    let default = Limits::default();
    let value = |limit: &Option<At<u32>>, default: u32| limit.as_ref().map_or(default, |at| at.value);
    let limits = Limits {
        services_max: value(&services, default.services_max),
        backends_max: value(&backends, default.backends_max),
        ring_slots_max: value(&slots, default.ring_slots_max),
        flows_max: value(&flows, default.flows_max),
    };
    (limits, [services, backends, slots].map(|limit| limit.map(|at| at.span)))
}

fn listen(section: &Section<'_>, findings: &mut Findings) -> Option<SocketAddr> {
    if section.get("listen").is_none() {
        return Some(METRICS_LISTEN);
    }
    let At { value, span } = section.string("listen", findings)?;
    if value == "none" {
        return None;
    }
    let parsed = value.parse();
    if parsed.is_err() {
        let message = format!("`listen` is not an address with a port: \"{}\"", shown(value));
        let port = value.strip_prefix(':').or_else(|| value.strip_prefix("*:")).unwrap_or(value);
        let hint = match port.parse::<u16>() {
            Ok(port) => format!("write \"127.0.0.1:{port}\" for this machine only, \"[::]:{port}\" for every address"),
            Err(_) => "write \"127.0.0.1:9650\", \"[::1]:9650\", or \"none\" for no metrics".to_owned(),
        };
        findings.push(Diagnostic::new(Code::BadListen, span, message).hint(hint));
    }
    parsed.ok()
}

fn interfaces(section: &Section<'_>, findings: &mut Findings) -> Option<Vec<String>> {
    let (one, many) = (section.key_span("interface"), section.key_span("interfaces"));
    let names = match (one, many) {
        (Some(one), Some(many)) => {
            let finding =
                Diagnostic::new(Code::ConflictingKeys, many, "`interface` and `interfaces` exclude each other")
                    .related(one, "`interface` is set here")
                    .hint("`interface = \"eth0\"` is short for `interfaces = [\"eth0\"]`: keep one");
            findings.push(finding);
            return None;
        }
        (Some(_), None) => {
            let name = section.string("interface", findings)?;
            At { span: name.span.clone(), value: vec![name] }
        }
        _ => {
            section.require(&["interfaces"], findings);
            section.strings("interfaces", findings)?
        }
    };
    if names.value.is_empty() {
        let finding = Diagnostic::new(Code::OutOfRange, names.span, "`interfaces` is empty")
            .hint("name the interface on which packets for the VIPs arrive: `ip -brief link` lists them");
        findings.push(finding);
        return None;
    }
    if names.value.len() > INTERFACES_MAX as usize {
        let message = format!("{} interfaces, a node attaches to at most {INTERFACES_MAX}", names.value.len());
        findings.push(Diagnostic::new(Code::TooManyInterfaces, names.span.clone(), message));
    }
    let mut seen: HashMap<&str, Span> = HashMap::new();
    for At { value: name, span } in &names.value {
        if let Some(reason) = interface_refused(name) {
            let message = format!("no interface can be called \"{}\": {reason}", shown(name));
            let hint = "`ip -brief link` lists the interfaces";
            findings.push(Diagnostic::new(Code::BadInterface, span.clone(), message).hint(hint));
        } else if let Some(first) = seen.get(name) {
            let finding = Diagnostic::new(Code::DuplicateInterface, span.clone(), format!("`{name}` is listed twice"))
                .related(first.clone(), "first here");
            findings.push(finding);
        } else {
            seen.insert(name, span.clone());
        }
    }
    Some(names.value.into_iter().map(|name| name.value.to_owned()).collect())
}

/// Why the kernel refuses a name for an interface (`dev_valid_name`).
pub(in crate::model) fn interface_refused(name: &str) -> Option<&'static str> {
    match name {
        "" => Some("it is empty"),
        "." | ".." => Some("it means a folder"),
        _ if name.len() > INTERFACE_BYTES_MAX => Some("names have at most 15 bytes"),
        _ if name.contains(['/', ':']) => Some("names have no `/` and no `:`"),
        _ if name.chars().any(|c| c.is_whitespace() || c.is_control()) => Some("names have no white space"),
        _ => None,
    }
}

/// The prefix under `name`: of `length`, host bits zero, of the family of `default`, unicast.
fn outer_source(
    section: &Section<'_>,
    name: &str,
    length: u8,
    default: &str,
    findings: &mut Findings,
) -> Option<IpNet> {
    let text = if section.get(name).is_some() {
        section.string(name, findings)?
    } else {
        return default.parse().ok();
    };
    let v4 = length == 16;
    let wrong = match text.value.parse::<IpNet>() {
        Err(_) => Some("is not a prefix".to_owned()),
        Ok(net) if net.addr().is_ipv4() != v4 => Some("is of the wrong family".to_owned()),
        Ok(net) if net.prefix_len() != length => Some(format!("has length {}", net.prefix_len())),
        Ok(net) if net.trunc() != net => Some(format!("has bits beyond its length, it would be {}", net.trunc())),
        Ok(net) if net.addr().is_multicast() || net.addr().is_loopback() || net.addr().is_unspecified() => {
            Some("is not unicast".to_owned())
        }
        Ok(net) => return Some(net),
    };
    let message = format!("`{name}` {}: \"{}\"", wrong.unwrap_or_default(), shown(text.value));
    let hint =
        format!("outer sources need an unused /{length}, from which the flow hash picks: the default is {default}");
    findings.push(Diagnostic::new(Code::BadPrefix, text.span, message).hint(hint));
    None
}

/// The absolute path under `name`.
pub(super) fn path(section: &Section<'_>, name: &str, bytes_max: usize, findings: &mut Findings) -> Option<PathBuf> {
    let At { value, span } = section.string(name, findings)?;
    let wrong = if !value.starts_with('/') {
        Some(("is relative".to_owned(), "write the whole path, from `/` on: the agent's working folder is not yours"))
    } else if value.len() > bytes_max {
        Some((format!("has {} bytes, at most {bytes_max} are possible", value.len()), "choose a shorter path"))
    } else if value.chars().any(char::is_control) {
        Some(("has control characters".to_owned(), "write TOML paths in single quotes, which keep `\\` as it is"))
    } else {
        None
    };
    match wrong {
        None => Some(value.into()),
        Some((what, hint)) => {
            let message = format!("`{name}` {what}: \"{}\"", shown(value));
            findings.push(Diagnostic::new(Code::BadPath, span, message).hint(hint));
            None
        }
    }
}

fn group(section: &Section<'_>, findings: &mut Findings) -> Option<String> {
    let At { value, span } = section.string("group", findings)?;
    let plain = |c: char| c.is_ascii_graphic() && c != ':' && c != ',';
    if !value.is_empty() && value.len() <= 32 && value.chars().all(plain) {
        return Some(value.to_owned());
    }
    let finding = Diagnostic::new(Code::BadName, span, format!("no group can be called \"{}\"", shown(value)))
        .hint("a group name has 1 to 32 printable characters, without spaces, `:` and `,`: `getent group` lists them");
    findings.push(finding);
    None
}
