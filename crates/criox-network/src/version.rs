//! CNI specification versions, and what each of them has.

use std::fmt;

/// A version of the CNI specification, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CniVersion {
    major: u16,
    minor: u16,
    patch: u16,
}

impl CniVersion {
    /// What a configuration without `cniVersion` means.
    pub const V0_1_0: Self = Self::new(0, 1, 0);
    /// The last with `ip4` and `ip6` in results.
    pub const V0_2_0: Self = Self::new(0, 2, 0);
    /// The first with lists of plugins, `interfaces` and `ips`.
    pub const V0_3_0: Self = Self::new(0, 3, 0);
    /// A correction of 0.3.0.
    pub const V0_3_1: Self = Self::new(0, 3, 1);
    /// The first with CHECK, and with `prevResult` at DEL.
    pub const V0_4_0: Self = Self::new(0, 4, 0);
    /// The first whose addresses don't carry their family (`ips[].version`).
    pub const V1_0_0: Self = Self::new(1, 0, 0);
    /// The first with GC, STATUS and `cniVersions`; the newest known here.
    pub const V1_1_0: Self = Self::new(1, 1, 0);

    const KNOWN: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// A version from its text; missing parts are 0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.').map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse::<u16>().ok()).flatten()
        });
        let major = parts.next()??;
        let minor = parts.next().unwrap_or(Some(0))?;
        let patch = parts.next().unwrap_or(Some(0))?;
        Some(Self { major, minor, patch })
    }

    /// Whether this program speaks it.
    #[must_use]
    pub fn is_known(self) -> bool {
        Self::KNOWN.contains(&self)
    }

    /// Whether CHECK exists.
    #[must_use]
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether DEL is given the result of ADD.
    #[must_use]
    pub fn has_prev_result_at_del(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether GC and STATUS exist.
    #[must_use]
    pub fn has_gc_and_status(self) -> bool {
        self >= Self::V1_1_0
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_and_ordered() {
        assert_eq!(CniVersion::parse("0.4.0"), Some(CniVersion::V0_4_0));
        assert_eq!(CniVersion::parse("1.1"), Some(CniVersion::V1_1_0));
        for bad in ["", "v1.0.0", "1..0", "1.0.0-rc1", "1.0.0.0", "+1.0.0", "99999999.0.0"] {
            assert_eq!(CniVersion::parse(bad), None, "{bad}");
        }
        assert!(CniVersion::KNOWN.is_sorted());
    }

    #[test]
    fn verbs_come_with_their_versions() {
        let with = |has: fn(CniVersion) -> bool| {
            CniVersion::KNOWN
                .iter()
                .filter(|v| has(**v))
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(with(CniVersion::has_check), "0.4.0 1.0.0 1.1.0");
        assert_eq!(with(CniVersion::has_prev_result_at_del), "0.4.0 1.0.0 1.1.0");
        assert_eq!(with(CniVersion::has_gc_and_status), "1.1.0");
    }
}
