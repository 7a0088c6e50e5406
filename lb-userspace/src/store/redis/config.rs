//! How to reach a Redis, and the client for one of its addresses.
//!
//! Invariant: no password is in any message, and none goes unencrypted to another machine unless somebody asked for it.

use std::{net::IpAddr, time::Duration};

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo as _, ProtocolVersion, RedisConnectionInfo,
    TlsCertificates, io::tcp::TcpSettings,
};

use crate::store::{access::StoreError, object::HISTORY_MAX, secret::Secret};

/// A host (name or address, without brackets) and a port.
pub type Address = (String, u16);

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One server.
    Standalone(Address),
    /// Whichever server the Sentinels call the master of this name.
    Sentinel {
        /// Name of the master.
        master: String,
        /// The Sentinels, asked in turn.
        sentinels: Vec<Address>,
        /// Their own user and password.
        login: Login,
        /// TLS towards them, which need not be as towards the servers.
        tls: Option<Tls>,
    },
}

/// An ACL user and its password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Login {
    /// The user; the server's default one without it.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
}

/// TLS as a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates (PEM) of authorities that are trusted; the system's without them.
    pub ca: Option<Vec<u8>>,
    /// Own certificate and key (PEM), for servers that ask for them.
    pub identity: Option<(Vec<u8>, Secret)>,
}

/// A Redis as a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisConfig {
    /// Where it is.
    pub servers: Servers,
    /// Who logs in.
    pub login: Login,
    /// Encrypted, and how.
    pub tls: Option<Tls>,
    /// Number of the database.
    pub database: i64,
    /// All keys and channels begin with this and a colon.
    pub prefix: String,
    /// Time for a new connection, and for each question to a Sentinel.
    pub connect_timeout: Duration,
    /// Time for a small answer. Answers with all objects may take ten times as long.
    pub answer_timeout: Duration,
    /// Time in which a replica has to confirm a write; only with Sentinel.
    pub replica_timeout: Duration,
    /// Changes that are kept.
    pub history_max: usize,
    /// No password, or no encryption, towards other machines is what somebody wants.
    pub insecure: bool,
}

impl RedisConfig {
    /// A server without login or encryption, with default times.
    pub fn new(servers: Servers) -> Self {
        Self {
            servers,
            login: Login::default(),
            tls: None,
            database: 0,
            prefix: "weir".into(),
            connect_timeout: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(2),
            replica_timeout: Duration::from_millis(500),
            history_max: HISTORY_MAX,
            insecure: false,
        }
    }

    /// What stands against using it.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a server on another machine without a password or without TLS, unless
    /// [`Self::insecure`].
    pub fn check(&self) -> Result<(), StoreError> {
        let addresses = match &self.servers {
            Servers::Standalone(address) => std::slice::from_ref(address),
            Servers::Sentinel { sentinels, .. } if sentinels.is_empty() => {
                return Err(StoreError::Refused("no Sentinel is named".into()));
            }
            Servers::Sentinel { sentinels, .. } => sentinels,
        };
        let local = addresses.iter().all(|(host, _)| is_loopback(host));
        let lacks = match (&self.login.password, &self.tls) {
            (None, _) => "a password",
            (_, None) => "TLS",
            _ => return Ok(()),
        };
        if local || self.insecure {
            return Ok(());
        }
        Err(StoreError::Refused(format!(
            "a Redis on another machine is not used without {lacks}: who can write to it configures the load balancers; \
             `insecure = true` if that is what you want"
        )))
    }

    /// The client for the server at an address.
    pub(super) fn server(&self, address: &Address) -> Result<Client, StoreError> {
        client(address, &self.login, self.tls.as_ref(), self.database)
    }
}

/// The client for one address.
pub(super) fn client(address: &Address, login: &Login, tls: Option<&Tls>, database: i64) -> Result<Client, StoreError> {
    let (host, port) = address;
    let wrong = |e: redis::RedisError| StoreError::Refused(format!("the Redis client does not take its settings: {e}"));
    let addr = match tls {
        None => ConnectionAddr::Tcp(host.clone(), *port),
        Some(_) => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
    };
    // Push messages tell at once that a connection broke.
    let mut settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(database);
    if let Some(user) = &login.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &login.password {
        settings = settings.set_password(password.expose());
    }
    let info = addr
        .into_connection_info()
        .map_err(wrong)?
        .set_tcp_settings(TcpSettings::default().set_nodelay(true))
        .set_redis_settings(settings);
    let Some(tls) = tls else { return Client::open(info).map_err(wrong) };
    crate::store::tls::provide();
    let client_tls = tls
        .identity
        .as_ref()
        .map(|(cert, key)| ClientTlsConfig { client_cert: cert.clone(), client_key: key.expose().as_bytes().to_vec() });
    Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: tls.ca.clone() }).map_err(wrong)
}

/// Whether only this machine can be there.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_want_a_password_and_encryption() {
        let at = |host: &str| RedisConfig::new(Servers::Standalone((host.into(), 6379)));
        assert_eq!(at("127.0.0.1").check(), Ok(()));
        assert_eq!(at("localhost").check(), Ok(()));
        let mut other = at("192.0.2.1");
        assert!(other.check().unwrap_err().to_string().contains("a password"));
        other.login.password = Some(Secret::new("hunter2"));
        assert!(other.check().unwrap_err().to_string().contains("TLS"));
        assert!(!format!("{other:?}").contains("hunter2"));
        other.tls = Some(Tls::default());
        assert_eq!(other.check(), Ok(()));
        assert!(at("localhost.example.org").check().is_err());
        assert_eq!(RedisConfig { insecure: true, ..at("192.0.2.1") }.check(), Ok(()));
    }
}
