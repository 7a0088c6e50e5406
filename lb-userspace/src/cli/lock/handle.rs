//! Handles: a held lock as one word for shells, or in a file.
//!
//! Invariants: a word has no character that a shell knows; a file is readable by its owner only, and replaced whole.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use lb_locks::Held;

use crate::cli::exit::{Exit, Failure};

/// What a handle begins with; the number is its form's version.
const PREFIX: &str = "weirlock1-";
/// Longest file that is read.
const BYTES_MAX: u64 = 16 * 1024;

/// Which held lock.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// What `weir lock acquire` printed
    #[arg(value_name = "HANDLE")]
    word: Option<String>,
    /// The file that `weir lock acquire --handle` wrote
    #[arg(long, value_name = "FILE")]
    pub handle: Option<PathBuf>,
}

impl Which {
    /// The lock.
    pub fn read(&self) -> anyhow::Result<Held> {
        let (text, place) = match (&self.handle, &self.word) {
            (Some(path), _) => {
                let mut text = String::new();
                let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                file.take(BYTES_MAX)
                    .read_to_string(&mut text)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                (text, path.display().to_string())
            }
            (None, word) => (word.clone().unwrap_or_default(), "the argument".to_owned()),
        };
        let wrong = || Failure::new(Exit::Usage, format!("{place} is no handle of `weir lock acquire`"));
        Ok(decode(text.trim()).ok_or_else(wrong)?)
    }
}

/// `held` as a word.
pub fn encode(held: &Held) -> anyhow::Result<String> {
    let json = serde_json::to_vec(held).context("cannot write the handle")?;
    let hex: String = json.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{PREFIX}{hex}"))
}

fn decode(word: &str) -> Option<Held> {
    let hex = word.strip_prefix(PREFIX)?;
    let digits: Option<Vec<u8>> =
        hex.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let pairs = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    let json: Vec<u8> = pairs.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    serde_json::from_slice(&json).ok()
}

/// Writes `held` to `path`, whatever was there before.
pub fn write(path: &Path, held: &Held) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let name = path.file_name().with_context(failed)?.to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let whole = || -> anyhow::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        writeln!(file, "{}", encode(held)?)?;
        std::fs::rename(&new, path)?;
        Ok(())
    };
    whole().inspect_err(|_| drop(std::fs::remove_file(&new))).with_context(failed)
}

#[cfg(test)]
mod tests {
    use lb_locks::command::Mode;

    use super::*;

    fn held() -> Held {
        Held {
            name: "a 'b' $(c)".into(),
            value: "ab cd".into(),
            mode: Mode::Shared,
            ttl_ms: 7,
            fence: Some(9),
            valid_until_ms: 11,
            boot: "x".into(),
            extensions: 1,
        }
    }

    #[test]
    fn a_word_is_safe_in_a_shell_and_comes_back() {
        let word = encode(&held()).unwrap();
        assert!(word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{word}");
        assert_eq!(decode(&word), Some(held()));
        let cut = &word[..word.len() - 1];
        for wrong in ["", "weirlock1-", "weirlock1-zz", "weirlock1-\u{fc}", "weirlock2-00", cut] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_is_its_owners_and_is_replaced() {
        use std::os::unix::fs::MetadataExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h");
        std::fs::write(&path, "old").unwrap();
        write(&path, &held()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let which = Which { word: None, handle: Some(path.clone()) };
        assert_eq!(which.read().unwrap(), held());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        std::fs::write(&path, "nonsense").unwrap();
        assert!(which.read().unwrap_err().to_string().contains("is no handle"));
    }
}
