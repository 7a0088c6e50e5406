//! The node's secrets: where they come from, and how hash key and ring seed derive from one seed.
//!
//! A data plane that runs keeps its secrets, because other ones would send every flow elsewhere. Else the fleet's shared
//! seed counts, else the one that this node drew and kept, else a fresh one.
//!
//! Invariants: the same seed gives the same secrets on every node and in every release of one ABI; no secret is shown.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lb_core::{abi::node::HASH_KEY_WORDS, hash::HashKey};
use sha2::{Digest as _, Sha256};

use crate::{
    model::seed::{SEED_BYTES, Seed, SeedError},
    plan::Secrets,
    store::file::replace_file,
};

/// Name of the kept seed in the state folder.
pub const FILE_NAME: &str = "seed";

/// Why the node has no secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// A seed's file cannot be read.
    #[error("cannot read the seed in {}: {cause}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It holds no seed.
    #[error("{}: {cause}", .path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: SeedError,
    },
    /// A fresh seed cannot be kept.
    #[error("cannot keep the node's seed in {}: {cause}; see `state_dir`", .path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The system has no randomness.
    #[error("cannot draw a seed: {0}")]
    Draw(getrandom::Error),
    /// The data plane was loaded with another seed than `seed_file` holds.
    #[error(
        "the data plane in {} was loaded with another seed than {} holds, and its flows would move: restore the old seed, \
         or run `weir agent --unload` and start again", .pin_dir.display(), .seed_file.display()
    )]
    Conflict {
        /// The pin folder.
        pin_dir: PathBuf,
        /// The configured file.
        seed_file: PathBuf,
    },
}

/// Where the secrets came from; the word for a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `seed_file`.
    Fleet,
    /// The data plane that was taken over.
    Adopted,
    /// The seed that this node kept.
    Kept,
    /// Drawn now.
    Drawn,
}

impl Source {
    /// `seed_file`, `data plane` ...
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fleet => "seed_file",
            Self::Adopted => "data plane",
            Self::Kept => "state_dir",
            Self::Drawn => "freshly drawn",
        }
    }
}

/// Secrets of a seed. Each output is SHA-256 over a label of its own, a block number and the seed.
pub fn derive(seed: &Seed) -> Secrets {
    let block = |label: &str, n: u8| -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(label.as_bytes());
        hash.update([0, n]);
        hash.update(seed.expose());
        hash.finalize().into()
    };
    let word = |bytes: &[u8], i: usize| {
        bytes.get(i * 4..).and_then(|b| b.first_chunk::<4>()).map_or(0, |b| u32::from_le_bytes(*b))
    };
    let key: Vec<u8> = (0..2).flat_map(|n| block("weir flow hash key", n)).collect();
    const { assert!(HASH_KEY_WORDS * 4 <= 2 * 32) };
    let hash_key: HashKey = std::array::from_fn(|i| word(&key, i));
    let ring = block("weir ring seed", 0);
    let ring_seed = ring.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b));
    Secrets { hash_key, ring_seed }
}

/// The secrets for a fresh data plane: the fleet's, else the kept ones, else fresh ones, which are kept.
///
/// # Errors
/// [`SecretError`]; a seed that exists but cannot be read is never replaced.
pub fn resolve(seed_file: Option<&Path>, state_dir: &Path) -> Result<(Secrets, Source), SecretError> {
    if let Some(seed_file) = seed_file {
        return Ok((derive(&read(seed_file)?), Source::Fleet));
    }
    let path = state_dir.join(FILE_NAME);
    match read(&path) {
        Ok(seed) => Ok((derive(&seed), Source::Kept)),
        Err(SecretError::Read { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
            let mut bytes = [0; SEED_BYTES];
            getrandom::fill(&mut bytes).map_err(SecretError::Draw)?;
            let seed = Seed::from_bytes(bytes);
            let keep = |cause| SecretError::Keep { path: path.clone(), cause };
            fs::create_dir_all(state_dir).map_err(keep)?;
            replace_file(&path, seed.to_file_text().as_bytes(), Some(0o600)).map_err(keep)?;
            Ok((derive(&seed), Source::Drawn))
        }
        Err(error) => Err(error),
    }
}

/// Where the secrets of a data plane that was taken over count as coming from, where `resolved` were those for a fresh one.
///
/// # Errors
/// [`SecretError::Conflict`]: the fleet's seed is another one.
pub fn confirm(
    resolved: (Secrets, Source),
    adopted: Secrets,
    seed_file: Option<&Path>,
    pin_dir: &Path,
) -> Result<Source, SecretError> {
    match seed_file.filter(|_| resolved.0 != adopted) {
        None => Ok(Source::Adopted),
        Some(seed_file) => Err(SecretError::Conflict { pin_dir: pin_dir.to_owned(), seed_file: seed_file.to_owned() }),
    }
}

fn read(path: &Path) -> Result<Seed, SecretError> {
    let text = fs::read_to_string(path).map_err(|cause| SecretError::Read { path: path.to_owned(), cause })?;
    Seed::parse(&text).map_err(|cause| SecretError::Form { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn seed(first: u8) -> Seed {
        Seed::from_bytes(std::array::from_fn(|i| first.wrapping_add(i as u8)))
    }

    #[test]
    fn one_seed_one_set_of_secrets() {
        let (a, b) = (derive(&seed(0)), derive(&seed(1)));
        assert_eq!(a, derive(&seed(0)));
        assert_ne!(a.hash_key, b.hash_key);
        assert_ne!(a.ring_seed, b.ring_seed);
        // A release that derives otherwise would part from its fleet: computed once with another SHA-256.
        assert_eq!(a.ring_seed, RING_SEED_OF_ZERO_UP);
        let mut words = a.hash_key.to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), HASH_KEY_WORDS, "no word repeats");
    }

    const RING_SEED_OF_ZERO_UP: u64 = 0x2982_f02d_1fe6_4c4d;

    #[test]
    fn a_running_data_plane_keeps_its_secrets() {
        let (a, b) = (derive(&seed(0)), derive(&seed(1)));
        let pins = Path::new("/pins");
        let file = Some(Path::new("/seed"));
        assert_eq!(confirm((a, Source::Kept), b, None, pins).unwrap(), Source::Adopted);
        assert_eq!(confirm((a, Source::Fleet), a, file, pins).unwrap(), Source::Adopted);
        assert!(matches!(confirm((a, Source::Fleet), b, file, pins), Err(SecretError::Conflict { .. })));
    }

    #[test]
    fn drawn_once_then_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (first, source) = resolve(None, &state).unwrap();
        assert_eq!(source, Source::Drawn);
        let kept = state.join(FILE_NAME);
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(resolve(None, &state).unwrap(), (first, Source::Kept));
        // A fleet's seed comes before it.
        let file = dir.path().join("fleet");
        fs::write(&file, seed(3).to_file_text()).unwrap();
        assert_eq!(resolve(Some(&file), &state).unwrap(), (derive(&seed(3)), Source::Fleet));
        // What is there but broken is an error, never overwritten.
        fs::write(&kept, "short").unwrap();
        assert!(matches!(resolve(None, &state), Err(SecretError::Form { .. })));
        assert_eq!(fs::read_to_string(&kept).unwrap(), "short");
        assert!(matches!(resolve(Some(&dir.path().join("none")), &state), Err(SecretError::Read { .. })));
    }
}
