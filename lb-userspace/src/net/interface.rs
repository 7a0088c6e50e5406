//! Interfaces: name, MAC, MTU, state, counters, and the XDP program that is really attached.
//!
//! Refuses to know how a program is attached. The mode is read back because some drivers fall back to generic mode silently.

use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, Stats64, XdpAttached,
};

use super::netlink::{Connection, Error, errno, first};

/// An interface as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Name, such as `eth0`.
    pub name: String,
    /// Index.
    pub ifindex: u32,
    /// Hardware address; `None` if it is not an Ethernet interface.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes of IP packet.
    pub mtu: u32,
    /// Set up by the administrator.
    pub admin_up: bool,
    /// Set up and with carrier: frames can leave.
    pub up: bool,
    /// Kind of a virtual interface: `veth`, `bridge`, `vlan` ...; `None` for hardware.
    pub kind: Option<String>,
    /// Index of the bridge or bond that it is a port of.
    pub controller: Option<u32>,
    /// Index of the interface that it lies upon, such as a VLAN's; `None` if that is in another network namespace.
    pub lower: Option<u32>,
    /// Receive queues.
    pub rx_queues: u32,
    /// Transmit queues.
    pub tx_queues: u32,
    /// XDP programs attached.
    pub xdp: Attached,
    /// Counters.
    pub counters: Counters,
}

/// XDP programs of an interface, by mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Id of the program in the driver (native mode).
    pub native: Option<u32>,
    /// Id of the program in the network stack (generic mode).
    pub generic: Option<u32>,
    /// Id of the program in the hardware.
    pub offload: Option<u32>,
}

impl Attached {
    /// Mode in which the program `id` runs here: `native`, `generic` or `offload`; `None` if it is not attached.
    pub fn mode_of(&self, id: u32) -> Option<&'static str> {
        [(self.native, "native"), (self.generic, "generic"), (self.offload, "offload")]
            .into_iter()
            .find_map(|(attached, mode)| (attached == Some(id)).then_some(mode))
    }

    /// Whether nothing is attached.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Counters of an interface since it exists (`rtnl_link_stats64`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Bad packets received.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Packets received and dropped, XDP's own drops included where the driver counts them.
    pub rx_dropped: u64,
    /// Packets dropped on the way to transmission.
    pub tx_dropped: u64,
    /// Packets that the hardware had no buffer for.
    pub rx_missed: u64,
}

impl Interface {
    /// Reads what a link message says.
    pub fn from_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut out = Self {
            ifindex: message.header.index,
            admin_up: flags.contains(LinkFlags::Up),
            up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            ..Self::default()
        };
        let foreign = message.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkNetNsId(_)));
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Link(index) if !foreign => out.lower = Some(*index),
                LinkAttribute::IfName(name) => out.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => out.mtu = *mtu,
                LinkAttribute::Controller(index) => out.controller = Some(*index),
                LinkAttribute::NumRxQueues(n) => out.rx_queues = *n,
                LinkAttribute::NumTxQueues(n) => out.tx_queues = *n,
                LinkAttribute::Address(mac) if message.header.link_layer_type == LinkLayerType::Ether => {
                    out.mac = mac.as_slice().try_into().ok();
                }
                LinkAttribute::LinkInfo(info) => {
                    out.kind = info.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind_name(kind)),
                        _ => None,
                    });
                }
                LinkAttribute::Xdp(xdp) => out.xdp = attached(xdp),
                LinkAttribute::Stats64(stats) => out.counters = counters(stats),
                _ => {}
            }
        }
        out
    }
}

fn kind_name(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Other(name) => name.clone(),
        kind => kind.to_string(),
    }
}

/// The kernel gives the mode with the id, and one id for each mode if there are several.
fn attached(xdp: &[LinkXdp]) -> Attached {
    let mut out = Attached::default();
    let (mut mode, mut id) = (XdpAttached::None, None);
    for attribute in xdp {
        match attribute {
            LinkXdp::Attached(attached) => mode = *attached,
            LinkXdp::ProgId(prog) => id = Some(*prog),
            LinkXdp::DrvProgId(prog) => out.native = Some(*prog),
            LinkXdp::SkbProgId(prog) => out.generic = Some(*prog),
            LinkXdp::HwProgId(prog) => out.offload = Some(*prog),
            _ => {}
        }
    }
    // Kernels before 4.19 name only the one id.
    match mode {
        XdpAttached::Driver => out.native = out.native.or(id),
        XdpAttached::SocketBuffer => out.generic = out.generic.or(id),
        XdpAttached::Hardware => out.offload = out.offload.or(id),
        _ => {}
    }
    out
}

fn counters(stats: &Stats64) -> Counters {
    Counters {
        rx_packets: stats.rx_packets,
        tx_packets: stats.tx_packets,
        rx_bytes: stats.rx_bytes,
        tx_bytes: stats.tx_bytes,
        rx_errors: stats.rx_errors,
        tx_errors: stats.tx_errors,
        rx_dropped: stats.rx_dropped,
        tx_dropped: stats.tx_dropped,
        rx_missed: stats.rx_missed_errors,
    }
}

/// Reads interfaces of the network namespace of the thread that opened it.
pub struct Links(Connection);

impl Links {
    /// Opens the connection; needs a tokio runtime and no capability.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn open() -> Result<Self, Error> {
        Connection::open(&[]).map(Self)
    }

    /// The interface of that name.
    ///
    /// # Errors
    /// [`Error::NoInterface`], or what the kernel said.
    pub async fn by_name(&self, name: &str) -> Result<Interface, Error> {
        by_name(&self.0.handle, name).await
    }

    /// All interfaces, by index.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn all(&self) -> impl Future<Output = Result<Vec<Interface>, Error>> + Send + use<> {
        let handle = self.0.handle.clone();
        async move { all(&handle).await }
    }
}

pub(super) async fn by_name(handle: &rtnetlink::Handle, name: &str) -> Result<Interface, Error> {
    // Longer names are refused by the kernel as a malformed request, which says nothing to a human.
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        return Err(Error::NoInterface(name.into()));
    }
    match first(handle.link().get().match_name(name).execute()).await {
        Some(Ok(message)) => Ok(Interface::from_message(&message)),
        Some(Err(error)) if errno(&error) == Some(libc::ENODEV) => Err(Error::NoInterface(name.into())),
        Some(Err(error)) => Err(Error::from_rtnetlink(format!("read interface `{name}`"), &error)),
        None => Err(Error::NoInterface(name.into())),
    }
}

pub(super) async fn all(handle: &rtnetlink::Handle) -> Result<Vec<Interface>, Error> {
    let messages: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| Error::from_rtnetlink("list the interfaces", &error))?;
    Ok(messages.iter().map(Interface::from_message).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xdp_attributes() {
        for (what, attributes, want) in [
            ("none", vec![LinkXdp::Attached(XdpAttached::None)], Attached::default()),
            (
                "native",
                vec![LinkXdp::Attached(XdpAttached::Driver), LinkXdp::ProgId(7), LinkXdp::DrvProgId(7)],
                Attached { native: Some(7), ..Attached::default() },
            ),
            (
                "generic on an old kernel",
                vec![LinkXdp::Attached(XdpAttached::SocketBuffer), LinkXdp::ProgId(9)],
                Attached { generic: Some(9), ..Attached::default() },
            ),
            (
                "two at once",
                vec![LinkXdp::Attached(XdpAttached::Multiple), LinkXdp::DrvProgId(7), LinkXdp::SkbProgId(9)],
                Attached { native: Some(7), generic: Some(9), offload: None },
            ),
        ] {
            let got = attached(&attributes);
            assert_eq!(got, want, "{what}");
            assert_eq!(got.mode_of(8), None);
        }
        assert_eq!(Attached { generic: Some(9), ..Attached::default() }.mode_of(9), Some("generic"));
    }

    #[tokio::test]
    async fn loopback_is_there_and_nonsense_is_not() {
        let links = Links::open().expect("netlink needs no capability");
        let lo = links.by_name("lo").await.expect("lo");
        assert_eq!((lo.name.as_str(), lo.mac), ("lo", None), "loopback is no Ethernet");
        assert!(links.all().await.expect("list").iter().any(|link| link.ifindex == lo.ifindex));
        for name in ["wnh-none", "", "a-name-that-is-far-too-long"] {
            assert!(matches!(links.by_name(name).await, Err(Error::NoInterface(n)) if n == name));
        }
    }
}
