//! Big data: blobs of an image or layer that lie as files beside the record.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::error::Error;

/// The file name of a key: as it is if it consists of dots, digits and lower-case letters, else `=` and its base64.
///
/// The peers' loop looks at what follows the first unusual character, so a key whose only unusual one is the last
/// stays as it is; such a key may not be a path.
pub(crate) fn file_name(key: &str) -> Result<String, Error> {
    let invalid = || Error::Invalid { what: "big data key", value: key.to_owned() };
    let unusual = key.char_indices().find(|(_, c)| !matches!(c, '.' | '0'..='9' | 'a'..='z'));
    let plain = unusual.is_none_or(|(at, c)| at + c.len_utf8() == key.len());
    let name = if plain { key.to_owned() } else { format!("={}", STANDARD.encode(key)) };
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) || name.len() > 255 {
        return Err(invalid());
    }
    Ok(name)
}

/// The path of a key's file below an object's directory.
pub(crate) fn path(dir: &Path, key: &str) -> Result<PathBuf, Error> {
    Ok(dir.join(file_name(key)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_the_file_names_that_others_use() {
        assert_eq!(file_name("manifest").unwrap(), "manifest");
        assert_eq!(file_name("sha256:ab").unwrap(), "=c2hhMjU2OmFi");
        assert_eq!(file_name("signature-0").unwrap(), "=c2lnbmF0dXJlLTA=");
        assert_eq!(file_name("abC").unwrap(), "abC");
        for bad in ["", ".", "..", "ab/", &"x".repeat(300)] {
            assert!(file_name(bad).is_err(), "{bad}");
        }
    }
}
