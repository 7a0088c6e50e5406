//! Durations as the configuration writes them: a whole number and a unit, `500ms`, `2s`, `1m`, `1h`.

use std::time::Duration;

/// The duration that `text` says; `None` if it is none.
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(milliseconds)?))
}

/// The shortest form in seconds or milliseconds that [`parse`] reads back; what is below a millisecond is cut.
pub fn format(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds.is_multiple_of(1000) { format!("{}s", milliseconds / 1000) } else { format!("{milliseconds}ms") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units() {
        let table = [("500ms", 500), ("2s", 2000), ("1m", 60_000), ("1h", 3_600_000), ("0s", 0)];
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
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(ms in 0u64..10_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse(&format(duration)), Some(duration));
        }
    }
}
