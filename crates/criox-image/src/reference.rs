//! Image references: the grammar of the distribution project, normalised as containers/image does
//! (`docker.io`, `library/`), and short names.

use std::fmt;

use criox_store::Digest;

/// The longest repository name (with its domain) that the grammar allows.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A fully qualified reference: domain, path, and at most one each of tag and digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text that is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {text:?}: {why}")]
pub struct InvalidReference {
    text: String,
    why: &'static str,
}

/// What somebody typed: already qualified with a registry, or a short name to be resolved by `registries.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageName {
    /// The name has a registry.
    Qualified(Reference),
    /// The name has none. `name` is the path without tag and digest.
    Short {
        /// Path components, without tag and digest.
        name: String,
        /// The tag, if one was given.
        tag: Option<String>,
        /// The digest, if one was given.
        digest: Option<Digest>,
    },
}

impl ImageName {
    /// Parses user input. A name has a registry when its first component contains a dot or a colon, or is
    /// `localhost`; everything else is short.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let fail = |why| InvalidReference { text: text.chars().take(300).collect(), why };
        let parts = split(text).map_err(fail)?;
        match parts.name.split_once('/') {
            Some((domain, _)) if is_domain_like(domain) => {
                Reference::from_parts(&parts).map(Self::Qualified).map_err(fail)
            }
            _ => {
                check_path(parts.name).map_err(fail)?;
                if parts.name.len() == 64 && is_lower_hex(parts.name) {
                    return Err(fail("64 hex characters are an image ID, not a name"));
                }
                Ok(Self::Short {
                    name: parts.name.to_owned(),
                    tag: parts.tag.map(str::to_owned),
                    digest: parts.digest,
                })
            }
        }
    }
}

impl Reference {
    /// Parses a reference that must name its registry.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        match ImageName::parse(text)? {
            ImageName::Qualified(reference) => Ok(reference),
            ImageName::Short { .. } => Err(InvalidReference {
                text: text.chars().take(300).collect(),
                why: "the registry is missing",
            }),
        }
    }

    fn from_parts(parts: &Parts<'_>) -> Result<Self, &'static str> {
        let (domain, path) = parts.name.split_once('/').ok_or("the registry is missing")?;
        check_domain(domain)?;
        check_path(path)?;
        let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
        let path = if domain == "docker.io" && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if domain.len() + 1 + path.len() > NAME_MAX {
            return Err("the name is longer than 255 characters");
        }
        Ok(Self {
            domain: domain.to_owned(),
            path,
            tag: parts.tag.map(str::to_owned),
            digest: parts.digest.clone(),
        })
    }

    /// `host[:port]` of the registry.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository below the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// As CRI-O pulls it: a tag beside a digest is dropped, and without either the tag is `latest`.
    #[must_use]
    pub fn for_pull(mut self) -> Self {
        if self.digest.is_some() {
            self.tag = None;
        } else if self.tag.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// The same repository at `digest`.
    #[must_use]
    pub fn at(&self, digest: &Digest) -> Self {
        Self { domain: self.domain.clone(), path: self.path.clone(), tag: None, digest: Some(digest.clone()) }
    }

    /// What the registry protocol calls the reference of a manifest: the digest if there is one, else the tag.
    pub fn manifest_reference(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

struct Parts<'a> {
    name: &'a str,
    tag: Option<&'a str>,
    digest: Option<Digest>,
}

fn split(text: &str) -> Result<Parts<'_>, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| "the digest is malformed")?)),
        None => (text, None),
    };
    // A colon after the last slash separates the tag; before it, the port of the registry.
    let last = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[last..].find(':') {
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    if name.len() > NAME_MAX {
        return Err("the name is longer than 255 characters");
    }
    Ok(Parts { name, tag, digest })
}

pub(crate) fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a first component names a registry (`distribution/reference`, with containers/image's reading).
fn is_domain_like(component: &str) -> bool {
    component.contains(['.', ':']) || component == "localhost"
}

fn check_domain(domain: &str) -> Result<(), &'static str> {
    const WHY: &str = "the registry is not a host name with an optional port";
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or(WHY)?;
            if host.is_empty() || !host.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return Err(WHY);
            }
            match after {
                "" => (None, None),
                _ => (None, Some(after.strip_prefix(':').ok_or(WHY)?)),
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    if let Some(port) = port
        && !(port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
    {
        return Err(WHY);
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host {
        Some(host) if !host.split('.').all(label) => Err(WHY),
        _ => Ok(()),
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository name must be lower case");
    }
    if path.split('/').all(is_path_component) { Ok(()) } else { Err("the repository name is malformed") }
}

/// Alphanumeric runs, joined by one dot, one or two underscores, or any number of dashes.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(alphanumeric) || !bytes.last().copied().is_some_and(alphanumeric) {
        return false;
    }
    bytes.split(|&b| alphanumeric(b)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
    })
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    let first = bytes.first().copied().is_some_and(word);
    if first && bytes.len() <= TAG_MAX && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-') {
        Ok(())
    } else {
        Err("the tag is malformed")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn qualified_names_are_normalised() {
        let digest = format!("sha256:{HEX}");
        for (text, expect) in [
            ("docker.io/busybox", "docker.io/library/busybox".to_owned()),
            ("index.docker.io/busybox:1", "docker.io/library/busybox:1".to_owned()),
            ("docker.io/a/b:t", "docker.io/a/b:t".to_owned()),
            ("localhost/a", "localhost/a".to_owned()),
            ("localhost:5000/a:1.0", "localhost:5000/a:1.0".to_owned()),
            ("127.0.0.1:5000/a/b_c/d__e/f---g", "127.0.0.1:5000/a/b_c/d__e/f---g".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a".to_owned()),
            (&format!("quay.io/a@{digest}"), format!("quay.io/a@{digest}")),
            (&format!("quay.io/a:t@{digest}"), format!("quay.io/a:t@{digest}")),
        ] {
            let parsed = Reference::parse(text).unwrap();
            assert_eq!(parsed.to_string(), expect, "{text}");
            assert_eq!(Reference::parse(&expect).unwrap(), parsed, "{text} read back");
        }
    }

    #[test]
    fn names_without_a_registry_are_short() {
        for (text, name, tag) in [
            ("busybox", "busybox", None),
            ("library/busybox:1.36", "library/busybox", Some("1.36")),
            ("my-registry/a", "my-registry/a", None),
        ] {
            match ImageName::parse(text).unwrap() {
                ImageName::Short { name: n, tag: t, digest: None } => {
                    assert_eq!((&*n, t.as_deref()), (name, tag))
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn malformed_references_are_refused() {
        let long = format!("quay.io/{}", "a".repeat(250));
        for text in [
            "",
            ":",
            "@",
            "/",
            "a:",
            "a@",
            "A",
            "quay.io/A",
            "quay.io/",
            "quay.io//a",
            "quay.io/a/",
            "quay.io/a:b:c",
            "quay.io/a@sha256:00",
            "quay.io/../a",
            "quay.io/a b",
            "quay.io/a.",
            "quay.io/a..b",
            "quay.io/a___b",
            "quay.io/-a",
            "-.io/a",
            "a.io:x/a",
            "a.io:70000/a",
            "a.io:5:6/a",
            "[::1/a",
            "[x]:1/a",
            "quay.io/é",
            "quay.io/a:é",
            "http://quay.io/a",
            HEX,
            &long,
            "quay.io/a?x=1",
            "quay.io/a#x",
            "u:p@quay.io/a",
            "a\0b",
        ] {
            assert!(ImageName::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_pull_drops_the_tag_beside_a_digest_and_defaults_to_latest() {
        let pull = |text: &str| Reference::parse(text).unwrap().for_pull().to_string();
        assert_eq!(pull("quay.io/a"), "quay.io/a:latest");
        assert_eq!(pull("quay.io/a:t"), "quay.io/a:t");
        assert_eq!(pull(&format!("quay.io/a:t@sha256:{HEX}")), format!("quay.io/a@sha256:{HEX}"));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_is_taken_reads_back(text in "\\PC{0,80}") {
            if let Ok(ImageName::Qualified(reference)) = ImageName::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }

        #[test]
        fn generated_references_read_back(
            text in "[a-z]{1,8}\\.io(:[1-9][0-9]{0,3})?(/[a-z0-9]{1,6}([._-][a-z0-9]{1,4})?){1,3}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,9})?"
        ) {
            let reference = Reference::parse(&text).unwrap();
            prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
        }
    }
}
