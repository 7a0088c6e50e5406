//! What is measured: the services, the packets that meet them, and the configuration that both come from.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Slots of every ring.
pub const RING_SLOTS: u32 = 65_537;
/// Flows that weir's table and the LRU hash are rated for.
pub const FLOWS_MAX: u32 = 1 << 20;
/// Backends of every service.
pub const BACKENDS: u16 = 100;
/// MAC address of the interface that packets come from, and of every backend's next hop.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC address of the interface that carries the program under test.
pub const BALANCER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Port of every service.
const PORT: u16 = 8000;

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Forwarding mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Dsr,
    Ipip,
    Nat,
}

/// A service, named by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    pub family: Family,
    pub protocol: Protocol,
    pub mode: Mode,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

impl Protocol {
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Dsr, Self::Ipip, Self::Nat];

    pub fn name(self) -> &'static str {
        match self {
            Self::Dsr => "dsr",
            Self::Ipip => "ipip",
            Self::Nat => "nat",
        }
    }
}

impl Service {
    /// Every service of the scene.
    pub fn all() -> impl Iterator<Item = Self> {
        Family::ALL.into_iter().flat_map(|family| {
            Protocol::ALL
                .into_iter()
                .flat_map(move |protocol| Mode::ALL.into_iter().map(move |mode| Self { family, protocol, mode }))
        })
    }

    fn number(self) -> u8 {
        self.family as u8 * 6 + self.protocol as u8 * 3 + self.mode as u8
    }

    pub fn vip(self) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::new(192, 0, 2, 10 + self.number()).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 10 + u16::from(self.number())).into(),
        }
    }

    /// Backend `i`, below [`BACKENDS`]; no two services share one.
    pub fn backend(self, i: u16) -> IpAddr {
        match self.family {
            Family::V4 => Ipv4Addr::new(10, 1, self.number(), 1 + i as u8).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 1, 0, u16::from(self.number()), 0, 0, 0, 1 + i).into(),
        }
    }

    /// (address, port and protocol) in the words of the minimal program's service maps.
    pub fn minimal_key(self) -> Vec<u32> {
        let port = u32::from(PORT.to_be()) | u32::from(self.protocol.number()) << 16;
        words(self.vip()).into_iter().chain([port]).collect()
    }

    /// Where the TCP flags are in [`Self::frame`].
    pub fn tcp_flags_at(self) -> usize {
        14 + 13 + if self.family == Family::V4 { 20 } else { 40 }
    }

    /// A TCP ACK or a datagram with 22 bytes (12 in IPv6), from the Ethernet header on; the generator fills in the flow.
    pub fn frame(self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(1024u16.to_be_bytes());
        transport.extend(PORT.to_be_bytes());
        match self.protocol {
            // Sequence and acknowledgement numbers, five words of header, ACK, window, a checksum that nobody reads.
            Protocol::Tcp => transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x20, 0, 0x12, 0x34, 0, 0]),
            Protocol::Udp => {
                let len: u16 = if self.family == Family::V4 { 30 } else { 20 };
                transport.extend(len.to_be_bytes());
                transport.extend([0x12, 0x34]);
                transport.resize(usize::from(len), b'.');
            }
        }
        let mut frame = Vec::new();
        frame.extend(BALANCER_MAC);
        frame.extend(CLIENT_MAC);
        match self.vip() {
            IpAddr::V4(vip) => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend((20 + transport.len() as u16).to_be_bytes());
                frame.extend([0, 1, 0x40, 0, 64, self.protocol.number(), 0, 0]);
                frame.extend([10, 128, 0, 0]);
                frame.extend(vip.octets());
            }
            IpAddr::V6(vip) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend((transport.len() as u16).to_be_bytes());
                frame.extend([self.protocol.number(), 64]);
                frame.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0).octets());
                frame.extend(vip.octets());
            }
        }
        frame.extend(transport);
        // The shortest frame of an Ethernet, for IPv4's ACK.
        frame.resize(frame.len().max(64), 0);
        frame
    }
}

/// An address as the words of a packet, as this machine reads them.
pub fn words(address: IpAddr) -> Vec<u32> {
    let octets = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    octets.chunks_exact(4).map(|w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]])).collect()
}

/// The configuration file of all services, for `interface`.
pub fn configuration(interface: &str) -> String {
    let mut text = format!("[node]\nname = \"bench\"\ninterfaces = [\"{interface}\"]\nannounce = \"none\"\n");
    for service in Service::all() {
        let (family, protocol, mode) = (service.family.name(), service.protocol.name(), service.mode.name());
        let _ = write!(
            text,
            "\n[[service]]\nname = \"{mode}-{family}-{protocol}\"\nvip = \"{}\"\nport = {PORT}\nprotocol = \"{protocol}\"\n\
             forward = \"{mode}\"\nalgo = \"maglev\"\n",
            service.vip()
        );
        let port = if service.mode == Mode::Nat { PORT + 80 } else { PORT };
        for i in 0..BACKENDS {
            let _ = write!(text, "\n[[service.backends]]\naddress = \"{}\"\nport = {port}\n", service.backend(i));
        }
    }
    text
}

/// A configuration of one service with these `keys`, for `interface`.
pub fn one_service(interface: &str, service: Service, keys: &str) -> String {
    let (protocol, mode) = (service.protocol.name(), service.mode.name());
    let mut text = format!(
        "[node]\nname = \"bench\"\ninterfaces = [\"{interface}\"]\nannounce = \"none\"\n\n\
         [node.limits]\nflows_max = {FLOWS_MAX}\nring_slots_max = {}\n\n\
         [[service]]\nname = \"web\"\nvip = \"{}\"\nport = {PORT}\nprotocol = \"{protocol}\"\nforward = \"{mode}\"\n{keys}\n",
        RING_SLOTS * 6,
        service.vip(),
    );
    for i in 0..BACKENDS {
        let _ = write!(text, "\n[[service.backends]]\naddress = \"{}\"\nport = {PORT}\n", service.backend(i));
    }
    text
}

/// A configuration of `services` services with [`BACKENDS`] backends each.
pub fn large_configuration(interface: &str, services: u16) -> String {
    let mut text = format!(
        "[node]\nname = \"bench\"\ninterfaces = [\"{interface}\"]\nannounce = \"none\"\n\n\
         [node.limits]\nbackends_max = {}\nring_slots_max = {}\n",
        u32::from(services) * u32::from(BACKENDS),
        // A fifth more than all rings need: changed rings stand beside the old ones.
        u64::from(services) * u64::from(RING_SLOTS) * 6 / 5
    );
    for service in 0..services {
        let [high, low] = service.to_be_bytes();
        let _ = write!(
            text,
            "\n[[service]]\nname = \"s{service}\"\nvip = \"10.200.{high}.{low}\"\nport = {PORT}\nprotocol = \"tcp\"\n\
             forward = \"ipip\"\nalgo = \"maglev\"\n"
        );
        for i in 1..=BACKENDS {
            let _ = write!(text, "\n[[service.backends]]\naddress = \"10.{}.{low}.{i}\"\nport = {PORT}\n", 64 + high);
        }
    }
    text
}
