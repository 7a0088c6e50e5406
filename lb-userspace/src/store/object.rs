//! What the store holds: objects under keys, the revisions that they went through, and the changes between them.
//!
//! Owns: the forms of keys and texts, their limits, and the digest that chains each revision to the one before. Refuses to
//! know: what a text means; who writes brings a step that does.
//!
//! Invariants: two histories that differ anywhere have different digests from there on, so a number that repeats after a
//! loss is noticed; a change holds what it replaced, so it can be shown and undone without any other source.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Version of what is stored: keys, layout and the digest's input. A store that says another, newer one is not touched.
pub const SCHEMA_VERSION: u32 = 1;
/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// Largest object, in bytes: a service with 4,096 backends takes about 0.5 MiB.
pub const OBJECT_BYTES_MAX: usize = 2 << 20;
/// Most objects in a store.
pub const OBJECTS_MAX: usize = 65_536;
/// All objects together, in bytes: 65,536 backends take about 8 MiB.
pub const STORE_BYTES_MAX: usize = 32 << 20;
/// Longest author of a change, in bytes.
pub const AUTHOR_BYTES_MAX: usize = 256;
/// Longest message of a change, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4_096;
/// Changes that a store keeps unless told otherwise.
pub const HISTORY_MAX: usize = 1_000;
/// Bytes of kept changes; the oldest go first, the newest always stays.
pub const HISTORY_BYTES_MAX: usize = 64 << 20;

/// A text that breaks a rule of the store's forms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormError {
    /// No key.
    #[error(
        "{0:?} is no key of the store: expected KIND/NAME, at most {KEY_BYTES_MAX} bytes, of letters, digits and `-_.:/`"
    )]
    Key(String),
    /// No digest.
    #[error("a digest has 64 hexadecimal digits")]
    Digest,
    /// No revision as a user writes it.
    #[error("{0:?} is no revision: expected a number, or a number and the beginning of its digest as in 42-1a2b3c4d")]
    Revision(String),
    /// More than fits.
    #[error("{what} {found} bytes, at most {max} are stored")]
    TooLarge {
        /// What it is, with its verb.
        what: String,
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// More objects than fit.
    #[error("that would be {found} objects, at most {OBJECTS_MAX} are stored")]
    TooMany {
        /// Objects found.
        found: usize,
    },
    /// Two edits of one object in one change.
    #[error("{0} is edited twice in one change")]
    Twice(Key),
    /// An edit that changes nothing.
    #[error("the edit of {0} neither changes nor removes it")]
    Nothing(Key),
}

/// Name of an object or record: `KIND/NAME`, as `service/web`. 3 to [`KEY_BYTES_MAX`] bytes of letters, digits and `-_.:/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// A key.
    ///
    /// # Errors
    /// [`FormError::Key`].
    pub fn new(text: &str) -> Result<Self, FormError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/');
        let parts = text.split_once('/').is_some_and(|(kind, name)| !kind.is_empty() && !name.is_empty());
        if parts && text.len() <= KEY_BYTES_MAX && text.bytes().all(good) {
            Ok(Self(text.into()))
        } else {
            // A name of any length could be a text put in the wrong place.
            Err(FormError::Key(text.chars().take(KEY_BYTES_MAX).collect()))
        }
    }

    /// The whole key.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands before the first `/`.
    pub fn kind(&self) -> &str {
        self.0.split_once('/').map_or("", |(kind, _)| kind)
    }

    /// What stands behind the first `/`.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Key {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        Self::new(text)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// All objects of one revision.
pub type Objects = BTreeMap<Key, Arc<str>>;

/// SHA-256, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest([u8; 32]);

impl Digest {
    /// From its bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first eight digits, as people see it.
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

impl FromStr for Digest {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(FormError::Digest);
        }
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2).unwrap_or(""), 16).map_err(|_| FormError::Digest)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A state of all objects. Shown as `42-1a2b3c4d`: the number counts the changes, the digest tells histories apart.
///
/// Number 0 is a store without a change; its digest is the store's origin, drawn at random when the store began. So a
/// store that was lost and begun anew never continues the revisions of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Revision {
    /// Changes since the store began.
    pub number: u64,
    /// Digest of the digest before and the change that led here.
    pub digest: Digest,
}

impl Revision {
    /// The revision of a store that began with `origin` and was not changed yet.
    pub const fn origin(origin: Digest) -> Self {
        Self { number: 0, digest: origin }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.number, self.digest.short())
    }
}

/// A revision as a user names it: `42`, or `42-1a2b3c4d` with any number of the digest's digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionName {
    /// The number.
    pub number: u64,
    /// How the digest begins; empty for any.
    pub digest: String,
}

impl RevisionName {
    /// Whether `revision` is the one that is named.
    pub fn names(&self, revision: &Revision) -> bool {
        self.number == revision.number && revision.digest.to_string().starts_with(&self.digest)
    }
}

impl FromStr for RevisionName {
    type Err = FormError;

    fn from_str(text: &str) -> Result<Self, FormError> {
        let wrong = || FormError::Revision(text.chars().take(80).collect());
        let (number, digest) = text.split_once('-').map_or((text, ""), |(number, digest)| (number, digest));
        let digits = digest.len() <= 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        if !digits || (digest.is_empty() && text.contains('-')) || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let number = number.parse().map_err(|_| wrong())?;
        Ok(Self { number, digest: digest.to_ascii_lowercase() })
    }
}

impl fmt::Display for RevisionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)?;
        if self.digest.is_empty() { Ok(()) } else { write!(f, "-{}", self.digest) }
    }
}

/// What happens to one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// The object.
    pub key: Key,
    /// Its text before; `None` where it did not exist.
    pub before: Option<Arc<str>>,
    /// Its text from now on; `None` removes it.
    pub after: Option<Arc<str>>,
}

/// One step from a revision to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where it leads.
    pub revision: Revision,
    /// Where it starts.
    pub previous: Revision,
    /// Who made it: `USER@HOST` or the name of a program.
    pub author: String,
    /// When, by the writer's clock: milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Why, in the writer's words; may be empty.
    pub message: String,
    /// What, in the order of keys; empty where a lost store was put back.
    pub edits: Vec<Edit>,
}

impl Change {
    /// The change that follows `previous`. Edits are sorted; the revision is computed.
    pub fn new(previous: Revision, author: &str, at_unix_ms: u64, message: &str, mut edits: Vec<Edit>) -> Self {
        edits.sort_by(|a, b| a.key.cmp(&b.key));
        let mut change = Self {
            revision: Revision { number: previous.number.saturating_add(1), digest: Digest::default() },
            previous,
            author: author.to_owned(),
            at_unix_ms,
            message: message.to_owned(),
            edits,
        };
        change.revision.digest = change.digest();
        change
    }

    /// The digest that [`Self::revision`] must have: of the digest before, both numbers and everything else here, each part
    /// behind its length, so that no two changes have the same bytes.
    pub fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        part(b"weir change 1");
        part(&self.previous.digest.0);
        part(&self.previous.number.to_be_bytes());
        part(&self.revision.number.to_be_bytes());
        part(self.author.as_bytes());
        part(&self.at_unix_ms.to_be_bytes());
        part(self.message.as_bytes());
        for edit in &self.edits {
            part(edit.key.as_str().as_bytes());
            for text in [&edit.before, &edit.after] {
                part(text.as_deref().map_or(b"".as_slice(), str::as_bytes));
                part(&[u8::from(text.is_some())]);
            }
        }
        Digest(hash.finalize().into())
    }

    /// Whether it follows `revision` and its own revision is the one computed from its content.
    pub fn follows(&self, revision: &Revision) -> bool {
        self.previous == *revision
            && self.previous.number.checked_add(1) == Some(self.revision.number)
            && self.digest() == self.revision.digest
    }

    /// Makes the change in `objects`.
    pub fn apply(&self, objects: &mut Objects) {
        for edit in &self.edits {
            match &edit.after {
                Some(text) => objects.insert(edit.key.clone(), Arc::clone(text)),
                None => objects.remove(&edit.key),
            };
        }
    }

    /// Takes the change back in `objects`.
    pub fn revert(&self, objects: &mut Objects) {
        for edit in &self.edits {
            match &edit.before {
                Some(text) => objects.insert(edit.key.clone(), Arc::clone(text)),
                None => objects.remove(&edit.key),
            };
        }
    }

    /// Bytes of its texts and words, as history counts them.
    pub fn bytes(&self) -> usize {
        let texts = |edit: &Edit| edit.key.as_str().len() + text_bytes(&edit.before) + text_bytes(&edit.after);
        self.author.len() + self.message.len() + self.edits.iter().map(texts).sum::<usize>()
    }

    /// Checks the limits of one change.
    ///
    /// # Errors
    /// [`FormError::TooLarge`], [`FormError::Twice`], [`FormError::Nothing`].
    pub fn check(&self) -> Result<(), FormError> {
        let limit = |what: &str, found: usize, max: usize| {
            if found > max { Err(FormError::TooLarge { what: what.to_owned(), found, max }) } else { Ok(()) }
        };
        limit("the author has", self.author.len(), AUTHOR_BYTES_MAX)?;
        limit("the message has", self.message.len(), MESSAGE_BYTES_MAX)?;
        let mut total = 0;
        for (at, edit) in self.edits.iter().enumerate() {
            let bytes = text_bytes(&edit.after);
            limit(&format!("{} has", edit.key), bytes, OBJECT_BYTES_MAX)?;
            total += bytes;
            if edit.before == edit.after {
                return Err(FormError::Nothing(edit.key.clone()));
            }
            // Edits are sorted.
            if at > 0 && self.edits.get(at - 1).is_some_and(|before| before.key == edit.key) {
                return Err(FormError::Twice(edit.key.clone()));
            }
        }
        limit("the change has", total, STORE_BYTES_MAX)
    }
}

fn text_bytes(text: &Option<Arc<str>>) -> usize {
    text.as_ref().map_or(0, |text| text.len())
}

/// Checks the limits of all objects together.
///
/// # Errors
/// [`FormError::TooMany`], [`FormError::TooLarge`].
pub fn check_totals(objects: usize, bytes: usize) -> Result<(), FormError> {
    if objects > OBJECTS_MAX {
        return Err(FormError::TooMany { found: objects });
    }
    if bytes > STORE_BYTES_MAX {
        return Err(FormError::TooLarge { what: "all objects have".into(), found: bytes, max: STORE_BYTES_MAX });
    }
    Ok(())
}

/// Bytes of all objects with their keys.
pub fn total_bytes(objects: &Objects) -> usize {
    objects.iter().map(|(key, text)| key.as_str().len() + text.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn edit(name: &str, before: Option<&str>, after: Option<&str>) -> Edit {
        Edit { key: key(name), before: before.map(Into::into), after: after.map(Into::into) }
    }

    #[test]
    fn keys_have_a_kind_and_a_name() {
        for good in ["service/web", "dns/example.org", "lease/v6/2001:db8::1"] {
            assert_eq!(key(good).to_string(), good);
        }
        assert_eq!((key("a/b/c").kind(), key("a/b/c").name()), ("a", "b/c"));
        let long = format!("service/{}", "x".repeat(KEY_BYTES_MAX));
        for bad in ["", "web", "/web", "service/", "service/a b", "service/\n", "service/é", &long] {
            assert!(matches!(Key::new(bad), Err(FormError::Key(_))), "{bad}");
        }
        assert!(serde_json::from_str::<Key>("\"nothing\"").is_err(), "also when it is read");
    }

    #[test]
    fn digests_and_revisions_are_read_as_they_are_shown() {
        let digest = Digest::new([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("ab".parse::<Digest>().is_err() && "ä".repeat(32).parse::<Digest>().is_err());
        let revision = Revision { number: 42, digest };
        assert_eq!(revision.to_string(), "42-abababab");
        for (name, is) in [("42", true), ("42-abab", true), ("42-ABABABAB", true), ("42-abac", false), ("41", false)] {
            assert_eq!(name.parse::<RevisionName>().unwrap().names(&revision), is, "{name}");
        }
        for bad in ["", "x", "42-", "42-xyz", "+42", "-1", "99999999999999999999", "42-ab-ab"] {
            assert!(bad.parse::<RevisionName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_part_of_a_change_is_in_its_digest() {
        let origin = Revision::origin(Digest::new([1; 32]));
        let edits = || vec![edit("service/a", None, Some("1")), edit("service/b", Some("2"), None)];
        let change = Change::new(origin, "op", 7, "why", edits());
        assert!(change.follows(&origin));
        let others: [fn(&mut Change); 9] = [
            |c| c.previous.digest = Digest::new([2; 32]),
            |c| c.previous.number = 5,
            |c| c.revision.number = 2,
            |c| c.author = "po".into(),
            |c| c.at_unix_ms = 8,
            |c| c.message.clear(),
            |c| c.edits[0].after = Some("".into()),
            |c| c.edits[1].before = None,
            |c| c.edits.truncate(1),
        ];
        for (at, other) in others.into_iter().enumerate() {
            let mut changed = change.clone();
            other(&mut changed);
            assert_ne!(changed.digest(), change.digest(), "{at}");
            assert!(!changed.follows(&origin), "{at}");
        }
        // Nothing can move from one part to its neighbour.
        let one = Change::new(origin, "ab", 7, "c", edits());
        let two = Change::new(origin, "a", 7, "bc", edits());
        assert_ne!(one.revision, two.revision);
        // The order in which edits were given does not count, and the text survives the form in which it is stored.
        let mut turned = edits();
        turned.reverse();
        assert_eq!(Change::new(origin, "op", 7, "why", turned), change);
        let read: Change = serde_json::from_str(&serde_json::to_string(&change).unwrap()).unwrap();
        assert_eq!(read, change);
    }

    #[test]
    fn a_change_can_be_undone() {
        let mut objects = Objects::from([(key("service/b"), "2".into()), (key("service/c"), "3".into())]);
        let before = objects.clone();
        let edits = vec![
            edit("service/a", None, Some("1")),
            edit("service/b", Some("2"), None),
            edit("service/c", Some("3"), Some("4")),
        ];
        let change = Change::new(Revision::origin(Digest::default()), "op", 0, "", edits);
        change.apply(&mut objects);
        assert_eq!(objects, Objects::from([(key("service/a"), "1".into()), (key("service/c"), "4".into())]));
        change.revert(&mut objects);
        assert_eq!(objects, before);
    }

    #[test]
    fn limits_are_told() {
        let change = |author: &str, edits| Change::new(Revision::origin(Digest::default()), author, 0, "", edits);
        let big = "x".repeat(OBJECT_BYTES_MAX + 1);
        let told = |change: Change| change.check().unwrap_err().to_string();
        assert!(told(change(&big, Vec::new())).contains("the author has"));
        assert!(told(change("", vec![edit("service/a", None, Some(&big))])).contains("service/a has 2097153 bytes"));
        let twice = vec![edit("service/a", None, Some("1")), edit("service/a", Some("1"), Some("2"))];
        assert!(told(change("", twice)).contains("twice"));
        assert!(told(change("", vec![edit("service/a", Some("1"), Some("1"))])).contains("neither"));
        assert!(check_totals(OBJECTS_MAX + 1, 0).is_err() && check_totals(1, STORE_BYTES_MAX + 1).is_err());
        assert!(check_totals(OBJECTS_MAX, STORE_BYTES_MAX).is_ok());
    }
}
