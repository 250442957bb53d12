//! Times as the records carry them: RFC 3339 with up to nine fractional digits, in UTC.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// An instant. Its text form is what Go writes (`2026-01-02T03:04:05.6Z`); the zero time is year 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970; negative before.
    pub seconds: i64,
    /// Nanoseconds, below a billion.
    pub nanoseconds: u32,
}

/// A text that is no RFC 3339 time.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an RFC 3339 time")]
pub struct TimestampError(String);

impl Timestamp {
    /// Go's zero time, `0001-01-01T00:00:00Z`.
    pub const ZERO: Self = Self { seconds: -62_135_596_800, nanoseconds: 0 };

    /// The clock's time.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        }
    }

    /// Of nanoseconds since 1970, the CRI's form.
    pub fn from_unix_nanos(nanoseconds: i64) -> Self {
        Self {
            seconds: nanoseconds.div_euclid(1_000_000_000),
            nanoseconds: u32::try_from(nanoseconds.rem_euclid(1_000_000_000)).unwrap_or(0),
        }
    }

    /// Nanoseconds since 1970, saturated: the CRI's form.
    pub fn unix_nanos(self) -> i64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(self.nanoseconds.into())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.seconds.div_euclid(86_400), self.seconds.rem_euclid(86_400));
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if self.nanoseconds > 0 {
            let digits = format!("{:09}", self.nanoseconds);
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        parse(text.as_bytes()).ok_or_else(|| TimestampError(text.chars().take(64).collect()))
    }
}

fn parse(text: &[u8]) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        text.get(range)?
            .iter()
            .try_fold(0i64, |n, b| b.is_ascii_digit().then(|| n * 10 + i64::from(b - b'0')))
    };
    let mark = |at: usize, byte: u8| (text.get(at)?.eq_ignore_ascii_case(&byte)).then_some(());
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    mark(4, b'-').and(mark(7, b'-')).and(mark(10, b'T')).and(mark(13, b':')).and(mark(16, b':'))?;
    let days = days_from_civil(year, month, day);
    if civil(days) != (year, month, day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut at = 19;
    let mut nanoseconds = 0u32;
    if text.get(at) == Some(&b'.') {
        let digits = text[at + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if digits == 0 {
            return None;
        }
        for place in 0..9 {
            let digit = if place < digits { text[at + 1 + place] - b'0' } else { 0 };
            nanoseconds = nanoseconds * 10 + u32::from(digit);
        }
        at += 1 + digits;
    }
    let offset = match text.get(at)? {
        b'Z' | b'z' if text.len() == at + 1 => 0,
        sign @ (b'+' | b'-') if text.len() == at + 6 && text[at + 3] == b':' => {
            let (hours, minutes) = (number(at + 1..at + 3)?, number(at + 4..at + 6)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if *sign == b'-' { -60 } else { 60 }
        }
        _ => return None,
    };
    Some(Timestamp { seconds: days * 86_400 + hour * 3600 + minute * 60 + second - offset, nanoseconds })
}

/// Days since 1970 of a date of the proleptic Gregorian calendar; eras of 400 years that start in March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_and_print_as_go_has_them() {
        for (text, shown) in [
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("2024-02-29T23:59:59.120000000Z", "2024-02-29T23:59:59.12Z"),
            ("2026-11-25T14:00:00+02:00", "2026-11-25T12:00:00Z"),
            ("2026-01-01T00:30:00.000000001+01:00", "2025-12-31T23:30:00.000000001Z"),
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), shown);
        }
        assert_eq!("0001-01-01T00:00:00Z".parse::<Timestamp>().unwrap(), Timestamp::ZERO);
        for bad in
            ["", "2024-02-30T00:00:00Z", "2024-01-01", "2024-01-01T24:00:00Z", "2024-01-01T00:00:00", "x"]
        {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn printing_then_reading_gives_the_same_time(seconds in -62_135_596_800i64..253_402_300_799, nanoseconds in 0u32..1_000_000_000) {
            let time = Timestamp { seconds, nanoseconds };
            proptest::prop_assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }
    }

    #[test]
    fn nanoseconds_of_the_cri_are_written_in_utc() {
        let time = Timestamp::from_unix_nanos(1_475_712_429_794_202_000);
        assert_eq!(time.to_string(), "2016-10-06T00:07:09.794202Z");
        assert_eq!(time.unix_nanos(), 1_475_712_429_794_202_000);
        assert_eq!(Timestamp::from_unix_nanos(-1).to_string(), "1969-12-31T23:59:59.999999999Z");
    }
}
