//! Durations as the configuration writes them: whole numbers with units, the larger unit first, each unit once: `500ms`,
//! `2s`, `1m30s`, `2h4m`.

use std::time::Duration;

/// The units, largest first, in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The duration that `text` says; `None` if it is none.
pub fn parse(text: &str) -> Option<Duration> {
    let (mut rest, mut units, mut sum) = (text, UNITS.as_slice(), 0u64);
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = rest.split_at_checked(rest.bytes().take_while(u8::is_ascii_digit).count())?;
        let (unit, after) = after.split_at_checked(after.bytes().take_while(u8::is_ascii_alphabetic).count())?;
        let at = units.iter().position(|(name, _)| *name == unit)?;
        let (_, milliseconds) = units.get(at)?;
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(*milliseconds)?)?;
        units = units.get(at + 1..)?;
        rest = after;
    }
    Some(Duration::from_millis(sum))
}

/// The form with the largest units that [`parse`] reads back, milliseconds alone where there are any; what is below a
/// millisecond is cut.
pub fn format(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    if !rest.is_multiple_of(1000) {
        return format!("{rest}ms");
    }
    let mut out = String::new();
    for (unit, milliseconds) in UNITS {
        let count = rest / u128::from(milliseconds);
        rest %= u128::from(milliseconds);
        if count > 0 {
            out.push_str(&format!("{count}{unit}"));
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units() {
        let table = [
            ("500ms", 500),
            ("2s", 2000),
            ("1m", 60_000),
            ("1h", 3_600_000),
            ("0s", 0),
            ("90m", 5_400_000),
            ("2h4m", 7_440_000),
            ("1h2m3s4ms", 3_723_004),
            ("1h5ms", 3_600_005),
        ];
        for (text, ms) in table {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "2",
            "s",
            "ms",
            "-1s",
            "1.5s",
            "2 s",
            "2S",
            "2sec",
            "99999999999999999999s",
            "18446744073709551615h",
            "²s",
            "4m2h",
            "1m1m",
            "1h 4m",
            "1h4",
            "18446744073709551615ms1s",
            "1ms1s",
            "1d",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_largest_units_are_shown() {
        let table =
            [(0, "0s"), (500, "500ms"), (1500, "1500ms"), (60_000, "1m"), (7_440_000, "2h4m"), (86_400_000, "24h")];
        for (ms, text) in table {
            assert_eq!(format(Duration::from_millis(ms)), text);
        }
    }

    proptest! {
        #[test]
        fn round_trip(ms: u64) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse(&format(duration)), Some(duration));
        }
    }
}
