//! From `[store]` to a store.
//!
//! Owns: reading the files that hold secrets and certificates, and who reaches an embedded database how: its owner serves
//! it on a Unix socket beside the file, and while nobody owns it, whoever comes opens the file.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::TcpListener;

use super::{
    Store, StoreError,
    embedded::EmbeddedStore,
    http::{Access, ClientTls, Door, Endpoint, HttpStore, ServerTls},
    object::HISTORY_MAX,
    redis::{Address, Login, RedisConfig, RedisStore, Servers, Tls},
    secret::Secret,
};
use crate::model::{
    self, StoreConfig,
    store::{RedisServers, StoreUrl, TlsFiles},
};

/// Largest file with a secret or certificates, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A store as `[store]` says. Of those elsewhere nothing is connected yet; an embedded database that nobody serves is
/// opened.
///
/// # Errors
/// [`StoreError::Refused`] for a kind that is none of these, or files that cannot be read; those of
/// [`EmbeddedStore::open`].
pub fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, StoreError> {
    match config {
        StoreConfig::File => Err(StoreError::Refused("the services of this node stand in its file".into())),
        StoreConfig::Embedded(embedded) => {
            let socket = socket_path(&embedded.path);
            // A socket that nobody listens on is left over from an owner that is gone.
            if UnixStream::connect(&socket).is_ok() {
                return Ok(Arc::new(HttpStore::new(Endpoint::Unix(socket), None, false)?));
            }
            Ok(Arc::new(EmbeddedStore::open(&embedded.path, HISTORY_MAX)?))
        }
        StoreConfig::Remote(remote) => {
            let token = remote.token_file.as_deref().map(secret).transpose()?;
            let endpoint = match &remote.url {
                StoreUrl::Unix(path) => Endpoint::Unix(path.clone()),
                StoreUrl::Tcp { scheme, host, port, .. } if scheme.is_tls() => {
                    let ca = remote.tls.ca_file.as_deref().map(read).transpose()?;
                    let identity = identity(&remote.tls)?;
                    let identity = identity.as_ref().map(|(chain, key)| (&**chain, key));
                    Endpoint::Tls(host.clone(), *port, ClientTls::new(ca.as_deref(), identity)?)
                }
                StoreUrl::Tcp { host, port, .. } => Endpoint::Tcp(host.clone(), *port),
            };
            Ok(Arc::new(HttpStore::new(endpoint, token, remote.insecure)?))
        }
        StoreConfig::Redis(redis) => Ok(Arc::new(RedisStore::new(redis_config(redis)?)?)),
    }
}

/// How `[store]` reaches a Redis.
///
/// # Errors
/// [`StoreError::Refused`] for files that cannot be read.
pub fn redis_config(redis: &model::store::RedisStore) -> Result<RedisConfig, StoreError> {
    let login = |user: &Option<String>, file: &Option<PathBuf>| {
        Ok::<_, StoreError>(Login { user: user.clone(), password: file.as_deref().map(secret).transpose()? })
    };
    let tls = |wanted: bool| {
        let of = || {
            let ca = redis.tls.ca_file.as_deref().map(read).transpose()?;
            Ok::<_, StoreError>(Tls { ca, identity: identity(&redis.tls)? })
        };
        wanted.then(of).transpose()
    };
    let spoken = |url: Option<&StoreUrl>| match url {
        Some(StoreUrl::Tcp { scheme, database, .. }) => (scheme.is_tls(), i64::from(*database)),
        _ => (false, 0),
    };
    let (servers, encrypted, database) = match &redis.servers {
        RedisServers::One(url) => {
            let (encrypted, database) = spoken(Some(url));
            (Servers::Standalone(address(url)?), encrypted, database)
        }
        RedisServers::Sentinels { urls, master_name, server_tls, user, password_file } => {
            let sentinels = urls.iter().map(address).collect::<Result<_, _>>()?;
            let (encrypted, database) = spoken(urls.first());
            let (master, login) = (master_name.clone(), login(user, password_file)?);
            let servers = Servers::Sentinel { master, sentinels, login, tls: tls(encrypted)? };
            (servers, server_tls.unwrap_or(encrypted), database)
        }
    };
    let mut config = RedisConfig::new(servers);
    config.login = login(&redis.user, &redis.password_file)?;
    config.insecure = redis.insecure;
    config.database = database;
    config.tls = tls(encrypted)?;
    Ok(config)
}

/// Where and to whom an embedded database is served beyond this machine; `None` where it is not.
///
/// # Errors
/// [`StoreError::Refused`] for files that cannot be read or are no certificates, and an address that cannot be listened on.
pub async fn outer_door(config: &model::store::EmbeddedStore) -> Result<Option<(Door, Access)>, StoreError> {
    let Some(listen) = config.listen else { return Ok(None) };
    let tokens = config.token_file.as_deref().map(secret).transpose()?.into_iter().collect();
    let access = Access { tokens, insecure: config.insecure };
    let tls = match identity(&config.tls)? {
        None => None,
        Some((chain, key)) => {
            let callers = config.tls.ca_file.as_deref().map(read).transpose()?;
            Some(ServerTls::new(&chain, &key, callers.as_deref())?)
        }
    };
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|e| StoreError::Refused(format!("cannot serve the store on {listen}: {e}")))?;
    let door = match tls {
        Some(tls) => Door::Tls(listener, tls),
        None => Door::Tcp(listener),
    };
    Ok(Some((door, access)))
}

/// Where the owner of an embedded database serves it to this machine.
pub fn socket_path(database: &Path) -> PathBuf {
    database.with_extension("sock")
}

fn address(url: &StoreUrl) -> Result<Address, StoreError> {
    match url {
        StoreUrl::Tcp { host, port, .. } => Ok((host.clone(), *port)),
        StoreUrl::Unix(path) => {
            Err(StoreError::Refused(format!("Redis is reached by TCP, not through {}", path.display())))
        }
    }
}

fn identity(files: &TlsFiles) -> Result<Option<(Vec<u8>, Secret)>, StoreError> {
    let pair = files.cert_file.as_deref().zip(files.key_file.as_deref());
    pair.map(|(chain, key)| Ok((read(chain)?, secret(key)?))).transpose()
}

fn secret(path: &Path) -> Result<Secret, StoreError> {
    let text = String::from_utf8(read(path)?);
    text.map(|text| Secret::new(&text)).map_err(|_| StoreError::Refused(format!("{} is no text", path.display())))
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    let cannot = |why: String| StoreError::Refused(format!("cannot read {}: {why}", path.display()));
    let length = fs::metadata(path).map_err(|e| cannot(e.to_string()))?.len();
    if length > FILE_BYTES_MAX {
        return Err(cannot(format!("it has {length} bytes, at most {FILE_BYTES_MAX} are read")));
    }
    fs::read(path).map_err(|e| cannot(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::store::{EmbeddedStore as EmbeddedConfig, RedisStore as RedisSettings};

    fn embedded(path: PathBuf) -> StoreConfig {
        let tls = TlsFiles::default();
        StoreConfig::Embedded(EmbeddedConfig { path, listen: None, token_file: None, tls, insecure: false })
    }

    #[test]
    fn a_database_that_nobody_serves_is_opened_and_one_that_is_served_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.redb");
        let owner = open(&embedded(path.clone())).unwrap();
        assert!(owner.describe().starts_with("database"), "{}", owner.describe());
        assert!(matches!(open(&embedded(path.clone())), Err(StoreError::Unavailable(_))), "one process at a time");
        let listener = std::os::unix::net::UnixListener::bind(socket_path(&path)).unwrap();
        assert!(open(&embedded(path.clone())).unwrap().describe().starts_with("store at"));
        drop((listener, owner));
        assert!(open(&embedded(path)).unwrap().describe().starts_with("database"), "the socket is left over");
    }

    #[test]
    fn secrets_are_read_from_their_files_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "hunter2\n").unwrap();
        let redis = |password_file: PathBuf, host: &str, insecure| {
            let url = format!("redis://{host}:6379/2").parse().unwrap();
            let (servers, tls) = (RedisServers::One(url), TlsFiles::default());
            let password_file = Some(password_file);
            open(&StoreConfig::Redis(RedisSettings { servers, user: None, password_file, tls, insecure }))
        };
        let store = redis(file.clone(), "192.0.2.1", true).unwrap();
        assert!(!format!("{store:?} {}", store.describe()).contains("hunter2"));
        let told = redis(file, "192.0.2.1", false).unwrap_err().to_string();
        assert!(told.contains("TLS") && !told.contains("hunter2"), "{told}");
        let told = redis(folder.path().join("none"), "127.0.0.1", false).unwrap_err().to_string();
        assert!(told.contains("none"), "{told}");
        assert!(matches!(open(&StoreConfig::File), Err(StoreError::Refused(_))));
    }
}
