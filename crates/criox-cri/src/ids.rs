//! Identifiers of sandboxes, containers and images: 64 lower-case hexadecimal digits each.
//!
//! They are types so that one kind cannot be passed for another, and so that a string which came from outside
//! (a request, a file, a path) is checked once: an ID is always safe as a file name or a cgroup name.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io::{self, Read};
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

/// Digits in an ID.
pub const ID_LEN: usize = 64;

/// Digits that people and tools show of an ID.
pub const SHORT_ID_LEN: usize = 12;

/// Why a string is no ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The length, in bytes, is not [`ID_LEN`].
    #[error("an ID has {ID_LEN} digits, this has {0} bytes")]
    Length(usize),
    /// A byte at this offset is no lower-case hexadecimal digit.
    #[error("an ID has lower-case hexadecimal digits only, byte {0} is none")]
    Digit(usize),
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// True for a non-empty string that could be the beginning of an ID, or a whole one.
///
/// Command-line tools send abbreviated IDs.
#[must_use]
pub fn is_id_prefix(text: &str) -> bool {
    !text.is_empty() && text.len() <= ID_LEN && text.bytes().all(is_hex)
}

fn parse(text: &str) -> Result<[u8; ID_LEN], IdError> {
    let digits: [u8; ID_LEN] = text.as_bytes().try_into().map_err(|_| IdError::Length(text.len()))?;
    match digits.iter().position(|byte| !is_hex(*byte)) {
        Some(at) => Err(IdError::Digit(at)),
        None => Ok(digits),
    }
}

/// Takes 32 random bytes at a time from `source` until they make an ID whose short form has a letter.
///
/// The short form serves as a host name here and there, and one of digits only would be read as a number.
fn generate_from(mut source: impl Read) -> io::Result<[u8; ID_LEN]> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    loop {
        let mut random = [0; ID_LEN / 2];
        source.read_exact(&mut random)?;
        let mut digits = [0; ID_LEN];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(random) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        if digits[..SHORT_ID_LEN].iter().any(u8::is_ascii_alphabetic) {
            return Ok(digits);
        }
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// 64 bytes, copied freely; ordered, hashed and borrowed like its text, so that a map keyed by it can
        /// be asked with a `&str`.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name([u8; ID_LEN]);

        impl $name {
            /// A new one from the kernel's random source; fails only when `/dev/urandom` can't be read.
            ///
            /// # Errors
            /// Whatever opening or reading `/dev/urandom` gave.
            pub fn generate() -> io::Result<Self> {
                generate_from(std::fs::File::open("/dev/urandom")?).map(Self)
            }

            /// Checks a string that came from outside.
            ///
            /// # Errors
            /// [`IdError`] unless it is 64 lower-case hexadecimal digits.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                parse(text).map(Self)
            }

            /// The 64 digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                str::from_utf8(&self.0).expect("invariant: an ID holds ASCII digits only")
            }

            /// The first twelve digits, as tools show them.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.as_str()[..SHORT_ID_LEN]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.as_str())
            }
        }

        // By hand, because `Borrow<str>` obliges to the hash of the text, and an array hashes otherwise.
        impl Hash for $name {
            fn hash<H: Hasher>(&self, state: &mut H) {
                self.as_str().hash(state);
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                self.as_str()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = IdError;

            fn try_from(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl de::Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an ID of 64 lower-case hexadecimal digits")
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        $name::parse(text).map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }
    };
}

id! {
    /// A pod sandbox.
    SandboxId
}
id! {
    /// A container. It never equals a sandbox's ID, for both name cgroups and storage records side by side.
    ContainerId
}
id! {
    /// An image: the hexadecimal part of the SHA-256 digest of its configuration, without `sha256:`.
    ImageId
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use proptest::prelude::*;

    use super::*;

    fn sample() -> String {
        "0123456789abcdef".repeat(4)
    }

    fn check(text: &str, want: Result<(), IdError>) {
        assert_eq!(SandboxId::parse(text).map(|id| assert_eq!(id.as_str(), text)), want, "{text:?}");
    }

    #[test]
    fn only_64_lower_case_digits_are_an_id() {
        check(&sample(), Ok(()));
        check("", Err(IdError::Length(0)));
        check(&sample()[1..], Err(IdError::Length(63)));
        check(&format!("{}0", sample()), Err(IdError::Length(65)));
        check(&sample().to_uppercase(), Err(IdError::Digit(10)));
        check(&format!("../{}", &sample()[3..]), Err(IdError::Digit(0)));
        check(&format!("{}\n", &sample()[1..]), Err(IdError::Digit(63)));
        check(&format!("é{}", &sample()[2..]), Err(IdError::Digit(0)));
    }

    #[test]
    fn generated_ids_are_valid_and_differ() {
        let one = ContainerId::generate().unwrap();
        let two = ContainerId::generate().unwrap();
        assert_ne!(one, two);
        assert_eq!(ContainerId::parse(one.as_str()), Ok(one));
    }

    #[test]
    fn an_id_whose_short_form_would_be_a_number_is_not_given_out() {
        let mut random = [0x12_u8; 64];
        random[32] = 0xab;
        let digits = generate_from(&random[..]).unwrap();
        assert_eq!(&digits[..4], b"ab12");
    }

    #[test]
    fn an_exhausted_random_source_is_an_error() {
        let error = generate_from(&[0_u8; 31][..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn maps_answer_to_the_text() {
        let id = ImageId::parse(&sample()).unwrap();
        assert_eq!(HashMap::from([(id, 1)]).get(sample().as_str()), Some(&1));
        assert_eq!(BTreeMap::from([(id, 1)]).get(sample().as_str()), Some(&1));
    }

    #[test]
    fn it_is_a_string_in_files_and_checked_when_read() {
        let id = SandboxId::parse(&sample()).unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("{:?}", sample()));
        assert_eq!(serde_json::from_str::<SandboxId>(&json).unwrap(), id);
        let error = serde_json::from_str::<SandboxId>("\"../../etc\"").unwrap_err();
        assert!(error.to_string().contains("has 9 bytes"), "{error}");
    }

    #[test]
    fn it_shows_itself_whole_and_short() {
        let id = SandboxId::parse(&sample()).unwrap();
        assert_eq!(id.to_string(), sample());
        assert_eq!(id.short(), "0123456789ab");
        assert_eq!(format!("{id:?}"), format!("SandboxId({})", sample()));
    }

    #[test]
    fn prefixes_are_told_from_names() {
        assert!(is_id_prefix("a") && is_id_prefix(&sample()));
        for not in ["", "nginx", "A", &format!("{}0", sample())] {
            assert!(!is_id_prefix(not), "{not:?}");
        }
    }

    proptest! {
        #[test]
        fn order_of_ids_is_the_order_of_their_text(a in "[0-9a-f]{64}", b in "[0-9a-f]{64}") {
            let (x, y) = (ImageId::parse(&a).unwrap(), ImageId::parse(&b).unwrap());
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        }

        #[test]
        fn no_string_panics(text in ".*") {
            let _ = ImageId::parse(&text);
            let _ = is_id_prefix(&text);
        }
    }
}
