//! The time zone that the configuration gives to containers: a copy of the node's file for each, so that nothing that a
//! container writes there reaches the node.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use criox_sys::durable;

/// Where the zones of a node are.
const ZONES: &str = "/usr/share/zoneinfo";
/// The node's own zone.
const LOCAL: &str = "/etc/localtime";
/// The largest zone has a few kilobytes.
const FILE_MAX: u64 = 1 << 20;

/// Writes the zone's file into the bundle; none when the configuration names no zone.
///
/// # Errors
/// The node has no such zone, or the copy can't be written.
pub(crate) fn copy(zone: &str, bundle: &Path) -> io::Result<Option<PathBuf>> {
    let source = match zone {
        "" => return Ok(None),
        zone if zone.eq_ignore_ascii_case("local") => PathBuf::from(LOCAL),
        zone => Path::new(ZONES).join(zone),
    };
    copy_file(&source, bundle).map(Some)
}

/// The name that the copy has in the bundle.
pub(crate) fn place(bundle: &Path) -> PathBuf {
    bundle.join("localtime")
}

fn copy_file(source: &Path, bundle: &Path) -> io::Result<PathBuf> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("time zone {}: {error}", source.display()));
    let mut bytes = Vec::new();
    std::fs::File::open(source)
        .and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes))
        .map_err(named)?;
    // tzfile(5): everything else is no zone, and a container would be told nonsense.
    if !bytes.starts_with(b"TZif") {
        return Err(named(io::Error::other("not a time zone's file")));
    }
    let place = place(bundle);
    durable::write_atomic(&place, &bytes, 0o644).map_err(io::Error::other)?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_copied_and_what_is_none_is_refused() {
        let bundle = tempfile::tempdir().expect("a directory");
        assert_eq!(copy("", bundle.path()).expect("none"), None);
        let source = bundle.path().join("zone");
        durable::write_atomic(&source, b"TZif2 and the rest", 0o644).expect("a file");
        let copied = copy_file(&source, bundle.path()).expect("copied");
        assert_eq!(copied, place(bundle.path()));
        assert_eq!(std::fs::read(&copied).expect("the copy"), b"TZif2 and the rest");
        for (name, bytes) in [("other", &b"root:x:0:0"[..]), ("empty", b"")] {
            let source = bundle.path().join(name);
            durable::write_atomic(&source, bytes, 0o644).expect("a file");
            let error = copy_file(&source, bundle.path()).expect_err(name);
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(copy("Middle/Earth", bundle.path()).is_err());
    }
}
