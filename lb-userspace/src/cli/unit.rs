//! Numbers for people. JSON output never passes through here.

/// Three significant digits of `value` with the first suffix under which it is below `step`.
fn scaled(value: f64, step: f64, suffixes: &[&str]) -> String {
    let mut value = value;
    let mut suffix = "";
    for next in suffixes {
        suffix = next;
        // 999.5 would be printed as 1000.
        if value < step - 0.5 {
            break;
        }
        if Some(next) != suffixes.last() {
            value /= step;
        }
    }
    let digits = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{suffix}")
}

/// A number of things: exact below ten thousand, then `12.3k`, `4.56M`.
pub fn count(n: u64) -> String {
    if n < 10_000 { n.to_string() } else { scaled(n as f64, 1000.0, &["", "k", "M", "G", "T", "P", "E"]) }
}

/// A size: `512 B`, `1.50 KiB`.
pub fn bytes(n: u64) -> String {
    if n < 1024 {
        format!("{n} B")
    } else {
        scaled(n as f64, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
    }
}

/// Things per second: `0`, `1.50`, `12.3k`.
pub fn per_second(rate: f64) -> String {
    if rate <= 0.0 { "0".into() } else { scaled(rate, 1000.0, &["", "k", "M", "G", "T"]) }
}

/// Bits per second for a rate of bytes: `800 Mbit/s`.
pub fn bits_per_second(bytes_per_second: f64) -> String {
    if bytes_per_second <= 0.0 {
        return "0".into();
    }
    scaled(bytes_per_second * 8.0, 1000.0, &[" bit/s", " kbit/s", " Mbit/s", " Gbit/s", " Tbit/s"])
}

/// A length of time by its two largest units: `8s`, `5m12s`, `3h04m`, `2d03h`.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// A point in time, in UTC: `2026-11-25 03:04:05Z`. The calendar is that of Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`: eras of 400 years that begin in March.
pub fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, of_day) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day % 3600 / 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// A share of one: `33.4%`.
pub fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// A time that was measured in microseconds: `850 us`, `12.3 ms`, `1.50 s`.
pub fn latency(us: u64) -> String {
    scaled(us as f64, 1000.0, &[" us", " ms", " s"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calendar_knows_leap_years() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (951_868_800, "2000-03-01 00:00:00Z"),
            (1_795_575_845, "2026-11-25 03:04:05Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(seconds * 1000), text);
        }
        assert!(utc(u64::MAX).ends_with('Z'));
    }

    #[test]
    fn counts_keep_three_digits() {
        for (n, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0k"),
            (12_345, "12.3k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn sizes_are_binary_and_rates_decimal() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(64 << 20), "64.0 MiB");
        assert_eq!(per_second(0.5), "0.50");
        assert_eq!(per_second(1_234_567.0), "1.23M");
        assert_eq!(bits_per_second(125_000_000.0), "1.00 Gbit/s");
        assert_eq!(latency(850), "850 us");
        assert_eq!(latency(61_000_000), "61.0 s");
    }

    #[test]
    fn durations_show_two_units() {
        for (s, text) in [(0, "0s"), (59, "59s"), (312, "5m12s"), (3600, "1h00m"), (183_600, "2d03h")] {
            assert_eq!(duration(s), text);
        }
    }
}
