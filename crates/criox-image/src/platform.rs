//! Which entry of a multi-platform index this node runs.

use serde::Deserialize;

/// The platform of an index entry or of this node, in Go's names (`linux`, `amd64`, `arm` with `v7`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Platform {
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Architecture.
    #[serde(default)]
    pub architecture: String,
    /// Variant of the architecture; empty when there is none.
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// A platform from its three names.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// This node's platform. The variant is known for arm only; amd64 levels are never detected, so that the
    /// choice is that of containers/image.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        let variant = match architecture {
            "arm64" => "v8",
            "arm" => "v7",
            _ => "",
        };
        Self::new("linux", architecture, variant)
    }

    /// The platforms that this one can run, best first.
    pub fn wanted(&self) -> Vec<Self> {
        // Each list runs from the most to the least capable; a CPU runs its own entry and all after it.
        let known: &[&str] = match self.architecture.as_str() {
            "arm" => &["v8", "v7", "v6", "v5"],
            "arm64" => &["v8"],
            "amd64" => &["v4", "v3", "v2", "v1"],
            _ => &[],
        };
        let mut variants: Vec<&str> = Vec::with_capacity(known.len() + 1);
        match known.iter().position(|v| *v == self.variant) {
            Some(at) => {
                variants.extend(&known[at..]);
                variants.push("");
            }
            None if self.variant.is_empty() => {
                variants.push("");
                // An unknown amd64 level promises nothing beyond the base line, which is v1.
                variants.extend(if self.architecture == "amd64" { &["v1"] } else { known });
            }
            None => variants.extend([self.variant.as_str(), ""]),
        }
        variants.into_iter().map(|variant| Self::new(&self.os, &self.architecture, variant)).collect()
    }

    /// How good `entry` is for this platform: its place in [`wanted`](Self::wanted), or `None` if it can't run.
    pub fn rank(&self, entry: &Self) -> Option<usize> {
        self.wanted().iter().position(|wanted| wanted == entry)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(node: (&str, &str), entries: &[(&str, &str)], best: Option<usize>) {
        let node = Platform::new("linux", node.0, node.1);
        let ranked = entries
            .iter()
            .enumerate()
            .filter_map(|(i, (a, v))| Some((node.rank(&Platform::new("linux", a, v))?, i)))
            .min();
        assert_eq!(ranked.map(|(_, i)| i), best, "{node} of {entries:?}");
    }

    #[test]
    fn the_best_runnable_entry_is_chosen() {
        check(("amd64", ""), &[("arm64", "v8"), ("amd64", "")], Some(1));
        check(("amd64", ""), &[("amd64", "v3"), ("amd64", "")], Some(1));
        check(("amd64", ""), &[("amd64", "v3"), ("amd64", "v2")], None);
        check(("amd64", ""), &[("amd64", "v1")], Some(0));
        check(("amd64", "v3"), &[("amd64", "v4"), ("amd64", "v2"), ("amd64", "v3")], Some(2));
        check(("amd64", "v3"), &[("amd64", "v4"), ("amd64", "")], Some(1));
        check(("arm", "v7"), &[("arm", "v8"), ("arm", "v5"), ("arm", "v6")], Some(2));
        check(("arm", "v7"), &[("arm", "")], Some(0));
        check(("arm64", "v8"), &[("arm64", ""), ("arm64", "v8")], Some(1));
        check(("arm64", ""), &[("arm64", "v8")], Some(0));
        check(("riscv64", ""), &[("amd64", ""), ("riscv64", "")], Some(1));
        check(("s390x", "z15"), &[("s390x", "")], Some(0));
    }

    #[test]
    fn another_operating_system_never_runs() {
        assert_eq!(Platform::new("linux", "amd64", "").rank(&Platform::new("windows", "amd64", "")), None);
    }
}
