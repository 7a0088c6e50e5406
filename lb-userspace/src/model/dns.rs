//! The configuration of `weir dns`: nouns, and the rule for names.
//!
//! Pure. A [`DnsConfig`] exists only as the output of [`super::parse::dns::check`]. Secrets are named by their files and are
//! not read here.

use std::{net::SocketAddr, path::PathBuf, str::FromStr as _, time::Duration};

use domain::{
    base::{Name as DomainName, ToName as _},
    tsig::Algorithm,
};
use ipnet::IpNet;

use super::StoreConfig;

/// An absolute domain name.
pub type Name = DomainName<Vec<u8>>;

/// Addresses to listen on, at most.
pub const LISTEN_MAX: usize = 16;
/// Secondaries, and likewise servers that get updates, at most.
pub const PEERS_MAX: usize = 64;

/// A validated configuration of `weir dns`.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsConfig {
    /// Name of the zone, in lower case.
    pub origin: Name,
    /// Where it listens, UDP and TCP; at least one.
    pub listen: Vec<SocketAddr>,
    /// The zone object, as JSON, watched.
    pub zone_file: PathBuf,
    /// `[store]`: where the orchestrator's master writes the zone; [`StoreConfig::File`]: `zone_file` has it.
    pub store: StoreConfig,
    /// Where the last good zone is kept.
    pub state_dir: PathBuf,
    /// `[limits]`.
    pub limits: DnsLimits,
    /// Where `/metrics` is served; `None` switches it off. Default 127.0.0.1:9652.
    pub metrics_listen: Option<SocketAddr>,
    /// `[[key]]`; names are unique.
    pub keys: Vec<KeyFile>,
    /// `[[secondary]]`.
    pub secondaries: Vec<Secondary>,
    /// `[[update]]`.
    pub updates: Vec<UpdateTarget>,
}

/// `[limits]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsLimits {
    /// Largest datagram sent or taken, in bytes; default 1232, which no path fragments.
    pub udp_payload_max: u16,
    /// Answers over UDP per second, client network and kind of answer; 0 is no limit. Default 200.
    pub responses_per_s: u32,
    /// Open TCP connections; default 256.
    pub tcp_connections_max: u32,
    /// Time after which a connection without a question is closed; default 10 s.
    pub tcp_idle_timeout: Duration,
}

impl Default for DnsLimits {
    fn default() -> Self {
        Self {
            udp_payload_max: 1232,
            responses_per_s: 200,
            tcp_connections_max: 256,
            tcp_idle_timeout: Duration::from_secs(10),
        }
    }
}

/// `[[key]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// Name, the same at the other side.
    pub name: Name,
    /// Hash of its signatures.
    pub algorithm: Algorithm,
    /// File with the secret as base64.
    pub secret_file: PathBuf,
}

/// `[[secondary]]`: a server that transfers the zone and is notified of its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secondary {
    /// Where it is notified.
    pub address: SocketAddr,
    /// Name of the key that signs both ways; without one its addresses alone are trusted.
    pub key: Option<Name>,
    /// Addresses that it transfers from; default the one of `address`.
    pub transfer_from: Vec<IpNet>,
}

/// `[[update]]`: a server that gets the zone's addresses as dynamic updates (RFC 2136).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateTarget {
    /// Where it takes updates.
    pub server: SocketAddr,
    /// Its zone, which holds the origin.
    pub zone: Name,
    /// Name of the key that signs them.
    pub key: Name,
}

/// `text` as an absolute host name in lower case, with or without final dot.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn host_name(text: &str) -> Result<Name, String> {
    let name = Name::from_str(text).map_err(|e| e.to_string())?;
    if name.is_root() {
        return Err("it is empty".to_owned());
    }
    // Underscores start names of services and markers; what else is beyond RFC 1123 is a mistake.
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    match name.iter().flat_map(|label| label.as_slice()).find(|c| !plain(**c)) {
        Some(b'*') => Err("wildcards are not served".to_owned()),
        Some(_) => Err("it may have letters, digits, `-` and `_`".to_owned()),
        None => Ok(name.to_canonical_name()),
    }
}
