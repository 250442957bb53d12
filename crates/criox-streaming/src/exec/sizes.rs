//! The sizes of a terminal that a client sends.

use serde::Deserialize;

use crate::backend::TerminalSize;

/// One takes some 30 bytes; what is longer than this is none.
const MOST: usize = 1024;

/// Go's decoder takes names in any case.
#[derive(Deserialize)]
struct Size {
    #[serde(alias = "width", alias = "WIDTH", rename = "Width")]
    width: u16,
    #[serde(alias = "height", alias = "HEIGHT", rename = "Height")]
    height: u16,
}

/// Objects one after another, cut anywhere.
#[derive(Debug, Default)]
pub(crate) struct Sizes(Vec<u8>);

impl Sizes {
    /// The last size that is complete with these bytes. What is no size is skipped.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Option<TerminalSize> {
        let mut last = None;
        for piece in bytes.chunks(MOST) {
            self.0.extend_from_slice(piece);
            let mut objects = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
            let (mut used, mut broken) = (0, false);
            while let Some(object) = objects.next() {
                match object {
                    Ok(Size { width, height }) => {
                        last = Some(TerminalSize { width, height });
                        used = objects.byte_offset();
                    }
                    Err(error) => broken = !error.is_eof(),
                }
            }
            self.0.drain(..used.min(self.0.len()));
            if broken || self.0.len() > MOST {
                self.0.clear();
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u16, height: u16) -> Option<TerminalSize> {
        Some(TerminalSize { width, height })
    }

    #[test]
    fn the_last_of_several_counts() {
        let mut sizes = Sizes::default();
        let sent = b"{\"Width\":80,\"Height\":24}\n{\"Width\":100,\"Height\":30}\n";
        assert_eq!(sizes.read(sent), size(100, 30));
        assert_eq!(sizes.read(b"{\"width\":1,\"height\":2}"), size(1, 2));
    }

    #[test]
    fn one_may_be_cut_anywhere() {
        let sent = b"{\"Width\":80,\"Height\":24}";
        for cut in 1..sent.len() {
            let mut sizes = Sizes::default();
            assert_eq!(sizes.read(&sent[..cut]), None, "{cut}");
            assert_eq!(sizes.read(&sent[cut..]), size(80, 24), "{cut}");
        }
    }

    #[test]
    fn what_is_no_size_is_skipped_and_bounded() {
        let mut sizes = Sizes::default();
        for wrong in [
            &b"nonsense"[..],
            b"{\"Width\":70000,\"Height\":24}",
            b"{\"Width\":-1,\"Height\":1}",
            b"[1]",
            &[b'['; 5000],
            &[b' '; 5000],
            &[0xff; 5000],
        ] {
            assert_eq!(sizes.read(wrong), None);
            assert!(sizes.0.len() <= MOST);
        }
        sizes.0.clear();
        assert_eq!(sizes.read(b"{\"Width\":80,\"Height\":24}"), size(80, 24));
    }
}
