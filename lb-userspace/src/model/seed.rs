//! The fleet's shared secret, as `seed_file` holds it: 32 bytes written as 64 hexadecimal digits.
//!
//! Invariant: neither the seed nor any part of the text that was to be one appears in output, errors included.

use std::fmt;

use thiserror::Error;

/// Bytes of a seed.
pub const SEED_BYTES: usize = 32;

/// 32 secret bytes. Shows nothing of itself in `Debug` and has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed([u8; SEED_BYTES]);

/// Why a text is no seed. Says positions and counts, never content.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SeedError {
    /// Another number of characters than 64.
    #[error(
        "a seed is 64 hexadecimal digits (32 bytes), this has {found} characters; make one with `openssl rand -hex 32`"
    )]
    Length {
        /// Characters without surrounding white space.
        found: usize,
    },
    /// A character that is no hexadecimal digit.
    #[error("character {position} is not a hexadecimal digit (0-9, a-f)")]
    Digit {
        /// Position, from 1.
        position: usize,
    },
    /// All bytes are the same.
    #[error("all bytes of the seed are the same, which anyone can guess; make one with `openssl rand -hex 32`")]
    Guessable,
}

impl Seed {
    /// The seed in the contents of a `seed_file`; surrounding white space is ignored, digits may be of either case.
    ///
    /// # Errors
    /// What [`SeedError`] lists.
    pub fn parse(text: &str) -> Result<Self, SeedError> {
        let text = text.trim();
        let found = text.chars().count();
        if found != 2 * SEED_BYTES {
            return Err(SeedError::Length { found });
        }
        let mut bytes = [0u8; SEED_BYTES];
        for (position, c) in text.chars().enumerate() {
            let digit = c.to_digit(16).ok_or(SeedError::Digit { position: position + 1 })?;
            if let Some(byte) = bytes.get_mut(position / 2) {
                // A digit is below 16, so both halves fit the byte.
                *byte = *byte << 4 | digit as u8;
            }
        }
        if bytes.windows(2).all(|pair| pair.first() == pair.last()) {
            return Err(SeedError::Guessable);
        }
        Ok(Self(bytes))
    }

    /// A seed from bytes that a random source drew.
    pub const fn from_bytes(bytes: [u8; SEED_BYTES]) -> Self {
        Self(bytes)
    }

    /// The secret itself. For derivation of keys only: never log or show it.
    pub const fn expose(&self) -> &[u8; SEED_BYTES] {
        &self.0
    }

    /// The text that [`Seed::parse`] reads back, with a line end: what goes into a file of mode 0600.
    pub fn to_file_text(&self) -> String {
        let mut text: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push('\n');
        text
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(secret)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    #[test]
    fn reads_both_cases_and_white_space() {
        let seed = Seed::parse(&format!("  {TEXT}\r\n")).map(|s| *s.expose());
        assert_eq!(seed, Ok(std::array::from_fn(|i| i as u8)));
    }

    #[test]
    fn refuses_without_saying_the_content() {
        let bad = TEXT.replacen('A', "Z", 1);
        let cases = [
            (String::new(), SeedError::Length { found: 0 }),
            (TEXT[1..].to_owned(), SeedError::Length { found: 63 }),
            (format!("{TEXT}0"), SeedError::Length { found: 65 }),
            (bad, SeedError::Digit { position: 54 }),
            ("7".repeat(64), SeedError::Guessable),
            ("é".repeat(64), SeedError::Digit { position: 1 }),
        ];
        for (text, error) in cases {
            assert_eq!(Seed::parse(&text), Err(error.clone()));
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("0a0b0c") && !shown.contains('Z'), "{shown}");
        }
    }

    #[test]
    fn debug_tells_nothing() {
        assert_eq!(format!("{:?}", Seed::from_bytes([7; 32])), "Seed(secret)");
    }

    proptest! {
        #[test]
        fn file_text_round_trips(bytes in any::<[u8; 32]>()) {
            prop_assume!(bytes.iter().any(|b| *b != bytes[0]));
            let seed = Seed::from_bytes(bytes);
            prop_assert_eq!(Seed::parse(&seed.to_file_text()), Ok(seed));
        }
    }
}
