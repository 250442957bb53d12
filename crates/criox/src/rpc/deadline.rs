//! How long the caller of a request waits, as gRPC tells it.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// The header of gRPC over HTTP/2: at most eight digits and a unit.
const HEADER: &str = "grpc-timeout";
/// What is kept of the time for undoing and answering, and the most of a short one: a checkpoint that is called off may take
/// two seconds to end.
const KEPT: Duration = Duration::from_secs(4);
const KEPT_MAX: u32 = 2;

/// How long work for this request may take, so that its answer still arrives; none: the caller waits for ever.
pub(super) fn of(metadata: &MetadataMap) -> Option<Duration> {
    let patience = parse(metadata.get(HEADER)?.to_str().ok()?)?;
    Some(patience - (patience / KEPT_MAX).min(KEPT))
}

fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, expected: Option<Duration>) {
        assert_eq!(parse(value), expected, "{value:?}");
    }

    #[test]
    fn the_header_is_read_as_grpc_defines_it() {
        check("10S", Some(Duration::from_secs(10)));
        check("2H", Some(Duration::from_secs(7200)));
        check("99999999M", Some(Duration::from_secs(99_999_999 * 60)));
        check("1500m", Some(Duration::from_millis(1500)));
        check("7u", Some(Duration::from_micros(7)));
        check("1000000n", Some(Duration::from_millis(1)));
        for bad in ["", "S", "10", "-1S", "1.5S", "123456789S", "10X", "10é", "+1S"] {
            check(bad, None);
        }
    }

    #[test]
    fn some_of_the_time_is_kept_for_the_answer() {
        let mut metadata = MetadataMap::new();
        assert_eq!(of(&metadata), None);
        for (header, left) in [("2S", 1), ("10S", 6), ("100S", 96)] {
            metadata.insert(HEADER, header.parse().unwrap());
            assert_eq!(of(&metadata), Some(Duration::from_secs(left)), "{header}");
        }
    }
}
