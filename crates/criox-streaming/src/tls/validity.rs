//! When a certificate is valid (RFC 5280, section 4.1.2.5), which the TLS library leaves to the other side.

use std::time::{SystemTime, UNIX_EPOCH};

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version, which is explicit and optional.
const VERSION: u8 = 0xa0;

/// Says why the certificate (DER) is not valid at `now`.
pub(crate) fn check(certificate: &[u8], now: SystemTime) -> Result<(), &'static str> {
    let (from, until) = validity(certificate).ok_or("its time of validity cannot be read")?;
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    match () {
        () if now < from => Err("its time has not come"),
        () if now > until => Err("it has expired"),
        () => Ok(()),
    }
}

/// Seconds since 1970 of its beginning and its end.
fn validity(certificate: &[u8]) -> Option<(i64, i64)> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(certificate, SEQUENCE)?;
    if let Some((_, rest)) = element(fields, VERSION) {
        fields = rest;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        (_, _, fields) = any(fields)?;
    }
    let (validity, _) = element(fields, SEQUENCE)?;
    let (kind, from, rest) = any(validity)?;
    let (other, until, _) = any(rest)?;
    Some((seconds(kind, from)?, seconds(other, until)?))
}

/// The content of the element that comes first, which has to be of that kind, and what follows it.
fn element(bytes: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (kind, content, rest) = any(bytes)?;
    (kind == wanted).then_some((content, rest))
}

fn any(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, short], rest) = bytes.split_first_chunk()?;
    let (length, rest) = if short < 0x80 {
        (usize::from(short), rest)
    } else {
        // At most four bytes of length: a certificate is no larger.
        let (size, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
        if size.is_empty() || size.len() > 4 {
            return None;
        }
        (size.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((kind, content, rest))
}

fn seconds(kind: u8, text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text.strip_suffix(b"Z")?).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match kind {
        UTC_TIME => text.split_at_checked(2)?,
        GENERALIZED_TIME => text.split_at_checked(4)?,
        _ => return None,
    };
    let year: i64 = year.parse().ok()?;
    let year = match kind {
        UTC_TIME if year >= 50 => 1900 + year,
        UTC_TIME => 2000 + year,
        _ => year,
    };
    if rest.len() != 10 {
        return None;
    }
    let part = |at: usize| rest.get(at..at + 2)?.parse::<i64>().ok();
    let (month, day, hour, minute, second) = (part(0)?, part(2)?, part(4)?, part(6)?, part(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    Some(((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// Days from 1970-01-01 in the Gregorian calendar, counted in years that begin in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let in_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + in_year - 719_468
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::proptest;

    use super::*;

    #[test]
    fn times_of_both_kinds_are_read() {
        assert_eq!(seconds(UTC_TIME, b"700101000000Z"), Some(0));
        assert_eq!(seconds(UTC_TIME, b"491231235959Z"), Some(2_524_607_999));
        assert_eq!(seconds(UTC_TIME, b"500101000000Z"), Some(-631_152_000));
        assert_eq!(seconds(GENERALIZED_TIME, b"20000301000000Z"), Some(951_868_800));
        assert_eq!(seconds(GENERALIZED_TIME, b"20240229120001Z"), Some(1_709_208_001));
        for wrong in [&b"700101000000"[..], b"7001010000Z", b"701301000000Z", b"70010100000xZ", b"Z"] {
            assert_eq!(seconds(UTC_TIME, wrong), None);
        }
    }

    /// What a certificate has up to its validity.
    fn certificate(from: &str, until: &str) -> Vec<u8> {
        let wrap = |kind: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).unwrap();
            [&[kind, length], content].concat()
        };
        let validity =
            wrap(SEQUENCE, &[wrap(UTC_TIME, from.as_bytes()), wrap(UTC_TIME, until.as_bytes())].concat());
        let fields =
            [wrap(VERSION, &[2, 1, 2]), wrap(2, &[7]), wrap(SEQUENCE, &[]), wrap(SEQUENCE, &[]), validity];
        wrap(SEQUENCE, &wrap(SEQUENCE, &fields.concat()))
    }

    #[test]
    fn a_certificate_is_valid_between_its_times() {
        let bytes = certificate("700101000010Z", "700101000020Z");
        let at = |seconds| check(&bytes, UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(9), Err("its time has not come"));
        assert_eq!(at(10), Ok(()));
        assert_eq!(at(20), Ok(()));
        assert_eq!(at(21), Err("it has expired"));
        for end in 0..bytes.len() {
            assert!(check(&bytes[..end], UNIX_EPOCH).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = check(&bytes, UNIX_EPOCH);
        }
    }
}
