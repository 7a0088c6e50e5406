//! What a lock's key holds: 160 random bits that only the holder knows, and who the holder is, for people.
//!
//! Invariants: every attempt has a value of its own, so that a late release of one attempt cannot undo the next; nothing
//! of the owner decides anything.

use std::{
    fmt::{self, Write as _},
    sync::LazyLock,
};

use crate::clock;

/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 20;
/// Longest owner label, in bytes; the rest is cut.
const LABEL_MAX: usize = 128;

/// A lock's value: the token in 40 hexadecimal digits, a space, and the owner.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(String);

impl Value {
    /// A new value for `owner`.
    ///
    /// # Errors
    /// The kernel has no randomness to give.
    pub fn random(owner: &Owner) -> Result<Self, getrandom::Error> {
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self::from_token(&bytes, owner))
    }

    /// The value with that token: simulations bring their own randomness.
    pub fn from_token(token: &[u8], owner: &Owner) -> Self {
        let digit = |bits: u8| char::from_digit(u32::from(bits), 16).unwrap_or('0');
        let mut text = String::with_capacity(token.len() * 2 + LABEL_MAX);
        text.extend(token.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
        // Writing to a string cannot fail.
        let _ = write!(text, " {owner}");
        Self(text)
    }

    /// A value as a node gave it.
    pub(crate) fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// The whole text, which is what nodes compare.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The random part.
    pub fn token(&self) -> &str {
        self.0.split_once(' ').map_or(self.0.as_str(), |(token, _)| token)
    }

    /// The owner, if the value was written by this crate.
    pub fn owner(&self) -> Option<Owner> {
        Owner::parse(self.0.split_once(' ')?.1)
    }
}

/// A value is a secret of its holder: logs show the beginning only.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({}…)", self.0.get(..8).unwrap_or(""))
    }
}

/// Who holds a lock: for `inspect`, never for a decision.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Owner {
    /// Name of the machine.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// When the attempt began, in milliseconds since 1970 by the holder's clock.
    pub since_unix_ms: u64,
    /// What the holder wants to say about itself.
    pub label: String,
}

impl Owner {
    /// This process, now.
    pub fn this_process(label: &str) -> Self {
        // Asked once: every attempt has a value, and a file is not free.
        static HOST: LazyLock<String> = LazyLock::new(|| {
            std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
        });
        Self { host: HOST.clone(), pid: std::process::id(), since_unix_ms: clock::unix_ms(), label: label.to_owned() }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ' ');
        let host = parts.next()?.to_owned();
        let pid = parts.next()?.parse().ok()?;
        let since_unix_ms = parts.next()?.parse().ok()?;
        Some(Self { host, pid, since_unix_ms, label: parts.next().unwrap_or_default().to_owned() })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host: String = self.host.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect();
        let host = if host.is_empty() { "-" } else { &host };
        let mut label: String = self.label.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let end = (0..=LABEL_MAX.min(label.len())).rev().find(|&at| label.is_char_boundary(at)).unwrap_or(0);
        label.truncate(end);
        write!(f, "{host} {} {} {label}", self.pid, self.since_unix_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(label: &str) -> Owner {
        Owner { host: "node a".into(), pid: 7, since_unix_ms: 9, label: label.into() }
    }

    #[test]
    fn a_value_tells_its_owner() {
        let value = Value::from_token(&[0xab; 20], &owner("nightly backup"));
        assert_eq!(value.as_str(), format!("{} nodea 7 9 nightly backup", "ab".repeat(20)));
        assert_eq!(value.token(), "ab".repeat(20));
        assert_eq!(value.owner().unwrap(), Owner { host: "nodea".into(), ..owner("nightly backup") });
        assert_eq!(Value::from_stored("foreign".into()).owner(), None);
    }

    #[test]
    fn values_differ_and_hide_in_logs() {
        let (a, b) = (Value::random(&owner("")).unwrap(), Value::random(&owner("")).unwrap());
        assert_ne!(a, b);
        assert!(!format!("{a:?}").contains(a.token()));
    }

    #[test]
    fn a_long_label_is_cut_between_characters() {
        let value = Value::from_token(&[0; 20], &owner(&"ü\n".repeat(200)));
        assert!(value.as_str().len() < 200 && !value.as_str().contains('\n'));
    }
}
