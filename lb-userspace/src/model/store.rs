//! `[store]`: where the services of a node come from, and how a store elsewhere is reached.
//!
//! Owns: the nouns, and the one way to write an address of a store. Refuses to know: how any store is spoken to. Invariant:
//! secrets stand in files of their own, never in the configuration.

use std::{fmt, net::IpAddr, net::SocketAddr, path::PathBuf, str::FromStr};

use ipnet::IpNet;

/// `[store]`, checked: what is not meant for this machine alone is encrypted and asks who is there, unless `insecure` says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreConfig {
    /// `kind = "file"`, the default: `[[service]]` of the file itself.
    #[default]
    File,
    /// `kind = "embedded"`: a database that this node owns, and serves where `listen` is set.
    Embedded(EmbeddedStore),
    /// `kind = "embedded"` with `url`: the database of another process.
    Remote(RemoteStore),
    /// `kind = "redis"`.
    Redis(RedisStore),
}

impl StoreConfig {
    /// The word that `kind` has.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Embedded(_) | Self::Remote(_) => "embedded",
            Self::Redis(_) => "redis",
        }
    }

    /// Whether services stand in the file.
    pub const fn is_file(&self) -> bool {
        matches!(self, Self::File)
    }
}

/// Files for TLS, all in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// `ca_file`: who may vouch for the other side. For Redis the system's authorities unless given.
    pub ca_file: Option<PathBuf>,
    /// `cert_file`: what this side shows.
    pub cert_file: Option<PathBuf>,
    /// `key_file`: its private key. Given exactly where `cert_file` is.
    pub key_file: Option<PathBuf>,
}

/// An embedded database that this node owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedStore {
    /// Its file; default `/var/lib/weir/store.redb`.
    pub path: PathBuf,
    /// Where other nodes and command lines reach it; `None`: only this machine does.
    pub listen: Option<SocketAddr>,
    /// File with the token that clients must send.
    pub token_file: Option<PathBuf>,
    /// Certificate and key of the server; with `ca_file` clients must show one of that authority.
    pub tls: TlsFiles,
    /// Whether `listen` may be open to a network without TLS or without asking who is there.
    pub insecure: bool,
}

/// The embedded database of another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteStore {
    /// Where it is.
    pub url: StoreUrl,
    /// File with the token that is sent.
    pub token_file: Option<PathBuf>,
    /// Whom to trust, and what to show.
    pub tls: TlsFiles,
    /// Whether a network may be crossed without TLS or without saying who asks.
    pub insecure: bool,
}

/// Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisStore {
    /// Where it is.
    pub servers: RedisServers,
    /// User of Redis' access control list; `None` is the default user.
    pub user: Option<String>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// Whom to trust, and what to show.
    pub tls: TlsFiles,
    /// Whether a network may be crossed without TLS or without a password.
    pub insecure: bool,
}

/// Where Redis is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisServers {
    /// One server.
    One(StoreUrl),
    /// Whoever the sentinels say is master.
    Sentinels {
        /// The sentinels, reached with or without TLS as their scheme says; the first one names the master's database.
        urls: Vec<StoreUrl>,
        /// What they call the master.
        master_name: String,
        /// `server_tls`: whether the master is reached with TLS; `None`: as the sentinels are.
        server_tls: Option<bool>,
        /// `sentinel_user`: who logs in at the sentinels.
        user: Option<String>,
        /// `sentinel_password_file`: the password for the sentinels; without it none is sent to them.
        password_file: Option<PathBuf>,
    },
}

/// Address of a store: `redis://10.0.0.5:6379/2`, `https://store.example.com:9653`, `unix:/var/lib/weir/store.sock`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// What is spoken there.
        scheme: Scheme,
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
        /// Redis' database; 0 unless given.
        database: u32,
    },
}

/// What is spoken on a TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// Redis.
    Redis,
    /// Redis over TLS.
    Rediss,
}

impl Scheme {
    /// The words.
    const ALL: [(&'static str, Self); 4] =
        [("http", Self::Http), ("https", Self::Https), ("redis", Self::Redis), ("rediss", Self::Rediss)];

    /// Whether it is encrypted.
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Rediss)
    }

    /// Whether Redis speaks it.
    pub const fn is_redis(self) -> bool {
        matches!(self, Self::Redis | Self::Rediss)
    }
}

/// Why a text is no address of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreUrlError {
    /// No known scheme.
    #[error("it begins with none of `http://`, `https://`, `redis://`, `rediss://` and `unix:/`")]
    Scheme,
    /// A user or a password stands in it.
    #[error("user and password do not stand in it: they would be shown with the configuration")]
    Secret,
    /// No host.
    #[error("it has no host that could be one; IPv6 stands in brackets")]
    Host,
    /// No port, or none that could be one.
    #[error("it has no port from 1 to 65535")]
    Port,
    /// Something follows the port.
    #[error("what follows the port is no number of a database, which only Redis has")]
    Path,
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, StoreUrlError> {
        Self::parse(text, Self::REDIS_PORT)
    }
}

impl StoreUrl {
    /// Where Redis listens unless told otherwise.
    pub const REDIS_PORT: u16 = 6379;

    /// The address that `text` says; `redis_port` is the port where Redis is spoken and none is given.
    ///
    /// # Errors
    /// [`StoreUrlError`].
    pub fn parse(text: &str, redis_port: u16) -> Result<Self, StoreUrlError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let good = path.starts_with('/') && path.len() <= 107 && !path.chars().any(char::is_control);
            return if good { Ok(Self::Unix(path.into())) } else { Err(StoreUrlError::Scheme) };
        }
        let (word, rest) = text.split_once("://").ok_or(StoreUrlError::Scheme)?;
        let known = Scheme::ALL.into_iter().find(|(name, _)| *name == word);
        let (_, scheme) = known.ok_or(StoreUrlError::Scheme)?;
        if rest.contains('@') {
            return Err(StoreUrlError::Secret);
        }
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let database = match path {
            "" => 0,
            path if scheme.is_redis() && path.bytes().all(|b| b.is_ascii_digit()) => {
                path.parse().map_err(|_| StoreUrlError::Path)?
            }
            _ => return Err(StoreUrlError::Path),
        };
        let (host, port) = if let Some(inner) = place.strip_prefix('[') {
            let (host, port) = inner.split_once(']').ok_or(StoreUrlError::Host)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| StoreUrlError::Host)?;
            (host, port)
        } else {
            let at = place.find(':').unwrap_or(place.len());
            let (host, port) = place.split_at_checked(at).ok_or(StoreUrlError::Host)?;
            let named = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
            if host.is_empty() || host.len() > 253 || !named {
                return Err(StoreUrlError::Host);
            }
            (host, port)
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() && scheme.is_redis() => redis_port,
            None if port.is_empty() => return Err(StoreUrlError::Port),
            None => return Err(StoreUrlError::Host),
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
                port.parse().ok().filter(|port| *port > 0).ok_or(StoreUrlError::Port)?
            }
            Some(_) => return Err(StoreUrlError::Port),
        };
        Ok(Self::Tcp { scheme, host: host.to_owned(), port, database })
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { scheme, host, port, database } => {
                let word = Scheme::ALL.into_iter().find(|(_, known)| known == scheme).map_or("", |(word, _)| word);
                if host.contains(':') {
                    write!(f, "{word}://[{host}]:{port}")
                } else {
                    write!(f, "{word}://{host}:{port}")
                }?;
                if *database == 0 { Ok(()) } else { write!(f, "/{database}") }
            }
        }
    }
}

impl StoreUrl {
    /// Whether what is sent there leaves this machine.
    pub fn leaves_machine(&self) -> bool {
        match self {
            Self::Unix(_) => false,
            Self::Tcp { host, .. } => {
                host != "localhost" && !host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }

    /// Whether others on the way can read along.
    pub fn is_readable(&self) -> bool {
        matches!(self, Self::Tcp { scheme, .. } if !scheme.is_tls()) && self.leaves_machine()
    }
}

/// `[[pool]]`: addresses of which each node leases one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Name, unique; a service has it as `vip = "pool:NAME"`.
    pub name: String,
    /// The addresses, at most [`POOL_ADDRESSES_MAX`] of them are leased. No host bits are set.
    pub prefix: IpNet,
}

/// What a VIP from a pool begins with.
pub const POOL_PREFIX: &str = "pool:";
/// Pools of a configuration.
pub const POOLS_MAX: usize = 256;
/// Addresses of one pool that are leased; larger prefixes are used up to here: more than any fleet has nodes.
pub const POOL_ADDRESSES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for text in
            ["redis://10.0.0.5:6379/2", "rediss://r.example.com:7000", "https://[2001:db8::1]:9653", "unix:/run/r.sock"]
        {
            assert_eq!(text.parse::<StoreUrl>().map(|url| url.to_string()).as_deref(), Ok(text));
        }
        assert_eq!("redis://h".parse::<StoreUrl>().map(|url| url.to_string()).as_deref(), Ok("redis://h:6379"));
        assert_eq!("unix:///a".parse::<StoreUrl>().map(|url| url.to_string()).as_deref(), Ok("unix:/a"));
    }

    #[test]
    fn a_wrong_address_is_told_apart() {
        use StoreUrlError::{Host, Path, Port, Scheme, Secret};
        let table = [
            ("10.0.0.5:6379", Scheme),
            ("ftp://h:1", Scheme),
            ("unix:run/r.sock", Scheme),
            ("redis://op:secret@h:1", Secret),
            ("redis://", Host),
            ("redis://:6379", Host),
            ("redis://2001:db8::1", Port),
            ("redis://[10.0.0.1]:1", Host),
            ("redis://[::1]1", Host),
            ("redis://a b:1", Host),
            ("http://h", Port),
            ("redis://h:0", Port),
            ("redis://h:+1", Port),
            ("https://h:1/x", Path),
            ("redis://h:1/x", Path),
        ];
        for (text, error) in table {
            assert_eq!(text.parse::<StoreUrl>(), Err(error), "{text}");
        }
    }

    #[test]
    fn what_leaves_the_machine_is_known() {
        let table = [
            ("redis://127.0.0.1:1", false, false),
            ("redis://[::1]:1", false, false),
            ("redis://localhost:1", false, false),
            ("unix:/a", false, false),
            ("redis://10.0.0.1:1", true, true),
            ("rediss://10.0.0.1:1", true, false),
            ("http://localhost.example.com:1", true, true),
        ];
        for (text, leaves, readable) in table {
            let url: StoreUrl = text.parse().unwrap();
            assert_eq!((url.leaves_machine(), url.is_readable()), (leaves, readable), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "(redis|https|unix)?(:/)?/?\\PC{0,40}") {
            if let Ok(url) = text.parse::<StoreUrl>() {
                prop_assert_eq!(url.to_string().parse(), Ok(url));
            }
        }
    }
}
