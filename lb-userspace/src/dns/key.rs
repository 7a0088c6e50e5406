//! TSIG keys, and who may use which for what.
//!
//! Owns: keys by name, and the rule that address and key both count. Invariant: a key shows nothing but its name.

use std::{fmt, fs, io, net::IpAddr, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc};

use domain::{
    base::ToName,
    tsig::{Algorithm, Key, KeyName, KeyStore, NewKeyError},
};
use ipnet::IpNet;

use crate::model::dns::KeyFile;

/// Shortest secret that is taken, in bytes (RFC 8945, section 8, asks for as many as the hash has; 16 is what is in use).
pub const SECRET_BYTES_MIN: usize = 16;
/// Longest secret that is taken, in bytes.
pub const SECRET_BYTES_MAX: usize = 512;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is no base64.
    #[error("the secret is no base64 text")]
    Base64,
    /// It is too short or too long.
    #[error("the secret has {0} bytes, between {SECRET_BYTES_MIN} and {SECRET_BYTES_MAX} are wanted")]
    Length(usize),
    /// Its name is too long.
    #[error("the name of the key is too long")]
    Name,
    /// The library refused it.
    #[error("the key cannot be used: {0}")]
    Refused(NewKeyError),
}

/// Why a secret cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Its file cannot be read.
    #[error("cannot read the secret in {}: {cause}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It holds no secret.
    #[error("{}: {cause}; `tsig-keygen` makes good ones", .path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: KeyError,
    },
}

/// A key from its parts; `secret` is base64, as `tsig-keygen` and `keymgr -t` write it.
///
/// # Errors
/// [`KeyError`]; never with a part of the secret in it.
pub fn key(name: KeyName, algorithm: Algorithm, secret: &str) -> Result<Arc<Key>, KeyError> {
    let bytes: Vec<u8> = domain::utils::base64::decode(secret.trim()).map_err(|_| KeyError::Base64)?;
    if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
        return Err(KeyError::Length(bytes.len()));
    }
    Key::new(algorithm, &bytes, name, None, None).map(Arc::new).map_err(KeyError::Refused)
}

/// Reads the secrets of `files`.
///
/// # Errors
/// [`SecretError`] for the first key whose file is no good.
pub fn load(files: &[KeyFile]) -> Result<KeyRing, SecretError> {
    let read = |file: &KeyFile| {
        let path = &file.secret_file;
        let text = fs::read_to_string(path).map_err(|cause| SecretError::Read { path: path.clone(), cause })?;
        if fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o007 != 0) {
            tracing::warn!(file = %path.display(), "everybody on this machine can read the secret: chmod 0640");
        }
        let wrong = |cause| SecretError::Form { path: path.clone(), cause };
        // A host name has at most 255 bytes, which is what a key's name may have.
        let name = file.name.try_to_name().map_err(|_| wrong(KeyError::Name))?;
        key(name, file.algorithm, &text).map_err(wrong)
    };
    files.iter().map(read).collect::<Result<_, _>>().map(KeyRing)
}

/// The keys that this server knows.
#[derive(Clone, Default)]
pub struct KeyRing(Vec<Arc<Key>>);

impl KeyRing {
    /// A ring of `keys`, whose names differ.
    pub fn new(keys: Vec<Arc<Key>>) -> Self {
        Self(keys)
    }

    /// The key called `name`.
    pub fn named(&self, name: &impl ToName) -> Option<&Arc<Key>> {
        self.0.iter().find(|key| key.name().name_eq(name))
    }
}

impl KeyStore for KeyRing {
    type Key = Arc<Key>;

    fn get_key<N: ToName>(&self, name: &N, algorithm: Algorithm) -> Option<Arc<Key>> {
        self.named(name).filter(|key| key.algorithm() == algorithm).cloned()
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| key.name().to_string())).finish()
    }
}

/// A secondary: from where and with which key it may transfer the zone. Without a key its addresses alone decide, for servers
/// that cannot sign (CoreDNS).
#[derive(Clone)]
pub struct Peer {
    /// Addresses that it asks from.
    pub from: Vec<IpNet>,
    /// The key that signs its requests.
    pub key: Option<Arc<Key>>,
}

impl Peer {
    /// Whether a request from `client` that was signed with `key`, or not, is this secondary's.
    pub fn may_transfer(&self, client: IpAddr, key: Option<&Key>) -> bool {
        let client = client.to_canonical();
        let signed = match (&self.key, key) {
            (None, _) => true,
            (Some(own), Some(key)) => own.name() == key.name() && own.algorithm() == key.algorithm(),
            (Some(_), None) => false,
        };
        signed && self.from.iter().any(|net| net.contains(&client))
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("from", &self.from)
            .field("key", &self.key.as_ref().map(|key| key.name().to_string()))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use super::{
        super::sample::{SECRET, test_key},
        *,
    };

    #[test]
    fn secrets_are_checked_and_not_shown() {
        let made = |secret: &str| key(KeyName::from_str("k.").unwrap(), Algorithm::Sha256, secret);
        assert!(matches!(made("no base64!"), Err(KeyError::Base64)));
        assert!(matches!(made("c2hvcnQ="), Err(KeyError::Length(5))));
        assert!(made(&format!("{SECRET}\n")).is_ok());
        let shown = format!("{:?}", KeyRing::new(vec![test_key("k.")]));
        assert_eq!(shown, "[\"k\"]");
    }

    #[test]
    fn address_and_key_both_count() {
        let from = vec!["192.0.2.0/28".parse().unwrap()];
        let keyed = Peer { from: from.clone(), key: Some(test_key("transfer.")) };
        let keyless = Peer { from, key: None };
        for (client, key, may, may_keyless) in [
            ("192.0.2.1", Some("transfer."), true, true),
            ("192.0.2.1", Some("TRANSFER."), true, true),
            ("::ffff:192.0.2.1", Some("transfer."), true, true),
            ("192.0.2.16", Some("transfer."), false, false),
            ("192.0.2.1", Some("other."), false, true),
            ("192.0.2.1", None, false, true),
            ("192.0.2.16", None, false, false),
        ] {
            let (address, key) = (client.parse().unwrap(), key.map(test_key));
            assert_eq!(keyed.may_transfer(address, key.as_deref()), may, "{client} {key:?}");
            assert_eq!(keyless.may_transfer(address, key.as_deref()), may_keyless, "{client} {key:?}");
        }
    }
}
