//! How a backend is named on the command line, in metrics and in logs: `SERVICE/ADDRESS:PORT`.
//!
//! `web/10.0.0.11:80`, `web/[2001:db8::11]:80`; for a service on all ports `web/10.0.0.11` and `web/[2001:db8::11]`.
//! Invariant: what is displayed parses back to the same reference.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use super::{Backend, Config, Service, ServiceKey};

/// The name of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendRef {
    /// Name of the service.
    pub service: String,
    /// Address of the backend.
    pub address: IpAddr,
    /// Port; 0 for a backend of a service on all ports.
    pub port: u16,
}

/// Why a text names no backend.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BackendRefError {
    /// There is no `/` with a service before it.
    #[error("`{0}` names no service: a backend is written SERVICE/ADDRESS:PORT, as in web/10.0.0.11:80")]
    Service(String),
    /// What follows the `/` is not an address.
    #[error(
        "`{0}` is not an address: a backend is written SERVICE/ADDRESS:PORT, IPv6 in brackets, as in web/[2001:db8::11]:80"
    )]
    Address(String),
    /// What follows the last `:` is not a port.
    #[error("`{0}` is not a port from 1 to 65535")]
    Port(String),
}

impl fmt::Display for BackendRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.service)?;
        match self.address {
            IpAddr::V4(v4) => write!(f, "{v4}")?,
            IpAddr::V6(v6) => write!(f, "[{v6}]")?,
        }
        if self.port == 0 { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl FromStr for BackendRef {
    type Err = BackendRefError;

    fn from_str(text: &str) -> Result<Self, BackendRefError> {
        let (service, rest) = text
            .split_once('/')
            .filter(|(service, _)| is_name(service))
            .ok_or_else(|| BackendRefError::Service(text.to_owned()))?;
        let no_address = || BackendRefError::Address(rest.to_owned());
        let (address, port): (IpAddr, Option<&str>) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (address, port) = inner.split_once(']').ok_or_else(no_address)?;
                let address: Ipv6Addr = address.parse().map_err(|_| no_address())?;
                let port = match port {
                    "" => None,
                    port => Some(port.strip_prefix(':').ok_or_else(no_address)?),
                };
                (address.into(), port)
            }
            None => match rest.parse::<IpAddr>() {
                // An IPv6 address without brackets can only be meant without a port.
                Ok(address) => (address, None),
                Err(_) => {
                    let (address, port) = rest.rsplit_once(':').ok_or_else(no_address)?;
                    (address.parse::<std::net::Ipv4Addr>().map_err(|_| no_address())?.into(), Some(port))
                }
            },
        };
        let port = match port {
            None => 0,
            Some(port) => port
                .parse::<u16>()
                .ok()
                .filter(|n| *n > 0 && !port.starts_with('+'))
                .ok_or_else(|| BackendRefError::Port(port.to_owned()))?,
        };
        Ok(Self { service: service.to_owned(), address, port })
    }
}

impl Serialize for BackendRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackendRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Service {
    /// The name of one of its backends.
    pub fn backend_ref(&self, backend: &Backend) -> BackendRef {
        BackendRef { service: self.name.clone(), address: backend.address, port: backend.port }
    }
}

impl Config {
    /// The service of that name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The backend of that name with its service.
    pub fn backend(&self, name: &BackendRef) -> Option<(&Service, &Backend)> {
        let service = self.service(&name.service)?;
        let backend = service.backends.iter().find(|b| b.address == name.address && b.port == name.port)?;
        Some((service, backend))
    }
}

/// Longest name of a node or a service, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Whether `text` may name a node or a service: 1 to [`NAME_BYTES_MAX`] letters, digits, `-`, `_` and `.`.
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// `192.0.2.1:80/tcp`, `[2001:db8::1]:53/udp`, `192.0.2.1:all/tcp`.
impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vip {
            IpAddr::V4(v4) => write!(f, "{v4}:")?,
            IpAddr::V6(v6) => write!(f, "[{v6}]:")?,
        }
        match self.port {
            0 => write!(f, "all/{}", self.protocol),
            port => write!(f, "{port}/{}", self.protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shows_and_reads_every_form() {
        for text in ["web/10.0.0.11:80", "web/[2001:db8::11]:80", "a.b-c_1/10.0.0.11", "dns/[2001:db8::11]"] {
            assert_eq!(text.parse::<BackendRef>().map(|r| r.to_string()).as_deref(), Ok(text));
        }
        assert_eq!("x/2001:db8::1".parse::<BackendRef>().map(|r| r.to_string()).as_deref(), Ok("x/[2001:db8::1]"));
    }

    #[test]
    fn refuses_with_the_part_that_is_wrong() {
        use BackendRefError::{Address, Port, Service};
        let cases = [
            ("web", Service("web".into())),
            ("/10.0.0.1:80", Service("/10.0.0.1:80".into())),
            ("a b/10.0.0.1:80", Service("a b/10.0.0.1:80".into())),
            ("web/", Address(String::new())),
            ("web/host:80", Address("host:80".into())),
            ("web/[10.0.0.1]:80", Address("[10.0.0.1]:80".into())),
            ("web/[::2", Address("[::2".into())),
            ("web/[::2]80", Address("[::2]80".into())),
            ("web/10.0.0.1:0", Port("0".into())),
            ("web/10.0.0.1:+8", Port("+8".into())),
            ("web/10.0.0.1:65536", Port("65536".into())),
            ("web/10.0.0.1:", Port(String::new())),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<BackendRef>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(service in "[a-zA-Z0-9._-]{1,64}", address in any::<IpAddr>(), port in any::<u16>()) {
            let name = BackendRef { service, address, port };
            prop_assert_eq!(name.to_string().parse::<BackendRef>(), Ok(name));
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<BackendRef>();
        }
    }
}
