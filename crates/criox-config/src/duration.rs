//! Go's notation of durations.

use std::time::Duration;

const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Parses `1h30m`, `1.5s`, `250ms`, `0` (Go, `time.ParseDuration`). Negative values and values above Go's 292 years are
/// refused.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("\"{text}\" is not a duration such as \"30s\" or \"1h30m\"");
    if text.starts_with('-') {
        return Err(format!("\"{text}\" is negative"));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale).ok_or_else(bad)?;
        total = total.checked_add(scaled(number, scale).ok_or_else(bad)?).ok_or_else(bad)?;
        rest = tail;
    }
    if total > i64::MAX as u128 {
        return Err(format!("\"{text}\" is too long"));
    }
    Ok(nanos(total))
}

fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut total = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? as u128 * scale };
    let mut step = scale;
    for digit in fraction.chars() {
        step /= 10;
        total += u128::from(digit.to_digit(10)?) * step;
    }
    Some(total)
}

fn nanos(total: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    let seconds = u64::try_from(total / SECOND).unwrap_or(u64::MAX);
    let rest = u32::try_from(total % SECOND).unwrap_or(0);
    Duration::new(seconds, rest)
}

/// The same value in Go's notation, as `1h0m0s`, `1.5s`, `250ms`.
pub(crate) fn format(d: Duration) -> String {
    if d.as_secs() == 0 {
        let n = d.subsec_nanos();
        return match n {
            0 => "0s".to_owned(),
            1..1_000 => format!("{n}ns"),
            1_000..1_000_000 => format!("{}µs", decimal(n / 1_000, n % 1_000, 3)),
            _ => format!("{}ms", decimal(n / 1_000_000, n % 1_000_000, 6)),
        };
    }
    let (hours, minutes, seconds) = (d.as_secs() / 3600, d.as_secs() / 60 % 60, d.as_secs() % 60);
    let seconds = decimal(u32::try_from(seconds).unwrap_or(0), d.subsec_nanos(), 9);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, m) => format!("{m}m{seconds}s"),
        (h, m) => format!("{h}h{m}m{seconds}s"),
    }
}

fn decimal(whole: u32, fraction: u32, digits: usize) -> String {
    let fraction = format!("{fraction:0digits$}");
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { whole.to_string() } else { format!("{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_as_in_go() {
        for (text, printed) in [
            ("5s", "5s"),
            ("0", "0s"),
            ("1h", "1h0m0s"),
            ("1h30m", "1h30m0s"),
            ("1.5s", "1.5s"),
            (".5s", "500ms"),
            ("250ms", "250ms"),
            ("90s", "1m30s"),
            ("3us", "3µs"),
            ("1ns", "1ns"),
            ("+2m", "2m0s"),
        ] {
            assert_eq!(format(parse(text).unwrap()), printed, "{text}");
        }
    }

    #[test]
    fn bad_durations_are_refused() {
        for text in ["", "5", "s", "-5s", "5 s", "5x", ".s", "99999999999h", "1..5s", "1.2.3s"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
