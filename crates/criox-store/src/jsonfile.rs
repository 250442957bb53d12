//! The JSON files: read whole, replaced whole.

use std::io;
use std::path::Path;

use criox_sys::durable;
use criox_sys::durable::PathError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// Reads a list; a missing or empty file is the empty list.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(PathError::new("read", path, e).into()),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    // Go writes `null` for a list that was never made.
    let list: Option<Vec<T>> =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    Ok(list.unwrap_or_default())
}

/// Replaces a list; synced if `sync`.
pub(crate) fn save<T: Serialize>(path: &Path, list: &[T], sync: bool) -> Result<(), Error> {
    let bytes = serde_json::to_vec(list).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    let bytes = escape_like_go(bytes);
    if sync {
        durable::write_durable(path, &bytes, 0o600)?;
    } else {
        durable::write_atomic(path, &bytes, 0o600)?;
    }
    Ok(())
}

/// `<`, `>` and `&` only occur inside JSON strings, where Go writes them as escapes.
fn escape_like_go(bytes: Vec<u8>) -> Vec<u8> {
    if !bytes.iter().any(|b| matches!(b, b'<' | b'>' | b'&')) {
        return bytes;
    }
    let mut out = Vec::with_capacity(bytes.len() + 64);
    for byte in bytes {
        match byte {
            b'<' => out.extend_from_slice(br"\u003c"),
            b'>' => out.extend_from_slice(br"\u003e"),
            b'&' => out.extend_from_slice(br"\u0026"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_survive_and_are_escaped_as_go_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert!(load::<String>(&path).unwrap().is_empty());
        save(&path, &["<a>&\"".to_owned()], true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), br#"["\u003ca\u003e\u0026\""]"#);
        assert_eq!(load::<String>(&path).unwrap(), ["<a>&\""]);
        durable::write_atomic(&path, b"null", 0o600).unwrap();
        assert!(load::<String>(&path).unwrap().is_empty());
        durable::write_atomic(&path, b"[{", 0o600).unwrap();
        assert!(matches!(load::<String>(&path), Err(Error::Json { .. })));
    }
}
