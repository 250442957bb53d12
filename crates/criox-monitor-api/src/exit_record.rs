//! Exit records: how a container ended, for a daemon that was away. The monitor writes one file a container in the run
//! directory, `exits/<container>`; the daemon reads it when the monitor has gone.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::proto::ExitFacts;

/// The form that is written, and the newest that is read.
const VERSION: u32 = 1;

/// The form of a record, JSON. Names are never used for another meaning.
#[derive(Debug, Serialize, Deserialize)]
struct ExitRecord<'a> {
    version: u32,
    #[serde(default)]
    container_id: Cow<'a, str>,
    exit_code: i32,
    #[serde(default)]
    signal: i32,
    #[serde(default)]
    oom_killed: bool,
    /// Nanoseconds since the epoch.
    finished_at: i64,
}

/// The bytes of a container's record.
///
/// # Errors
/// None with values of these types; it is the encoder's signature.
pub fn to_bytes(container: &str, exit: &ExitFacts) -> serde_json::Result<Vec<u8>> {
    let record = ExitRecord {
        version: VERSION,
        container_id: container.into(),
        exit_code: exit.exit_code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        finished_at: exit.finished_at,
    };
    serde_json::to_vec(&record)
}

/// What a record says; none of one that is torn, or of a later version.
pub fn parse(bytes: &[u8]) -> Option<ExitFacts> {
    let record: ExitRecord<'_> = serde_json::from_slice(bytes).ok()?;
    (record.version <= VERSION).then_some(ExitFacts {
        exit_code: record.exit_code,
        signal: record.signal,
        oom_killed: record.oom_killed,
        finished_at: record.finished_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] =
        br#"{"version":1,"container_id":"c","exit_code":137,"signal":9,"oom_killed":true,"finished_at":7}"#;

    #[test]
    fn exit_records_of_version_one_are_read_for_ever() {
        let facts = parse(GOLDEN).expect("a golden record");
        assert_eq!((facts.exit_code, facts.signal, facts.oom_killed, facts.finished_at), (137, 9, true, 7));
        let short = parse(br#"{"version":1,"exit_code":3,"finished_at":7}"#).expect("what it must have");
        assert_eq!((short.exit_code, short.signal, short.oom_killed), (3, 0, false));
    }

    #[test]
    fn a_record_is_written_as_ever() {
        let facts = ExitFacts { exit_code: 137, signal: 9, oom_killed: true, finished_at: 7 };
        assert_eq!(to_bytes("c", &facts).expect("JSON"), GOLDEN);
    }

    #[test]
    fn torn_and_later_exit_records_are_none() {
        assert!(parse(b"").is_none());
        assert!(parse(br#"{"version":1,"exit_co"#).is_none());
        assert!(parse(br#"{"version":2,"exit_code":0,"finished_at":7}"#).is_none());
    }
}
