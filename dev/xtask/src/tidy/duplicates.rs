//! One version of a crate is enough: each more costs memory in the daemon and time in the build.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Finding;
use super::repository::{Repository, lock_line, packages, text};

/// Crates of which two incompatible versions are accepted, with the reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("getrandom", "ring has the old one, tempfile and proptest the new one; only tests have both"),
    ("hashbrown", "petgraph of the build script has the old one"),
    ("prettyplease", "only build scripts: prost-build and tonic-build differ"),
    ("syn", "only macros and build scripts, which are halfway between two versions"),
    ("unicode-width", "the protocol compiler of the build scripts has the old one"),
];

/// The part of a version that must be equal for two to be one.
fn compatible(version: &str) -> String {
    let mut parts = version.split('.');
    let major = parts.next().unwrap_or_default();
    if major == "0" { format!("0.{}", parts.next().unwrap_or_default()) } else { major.to_owned() }
}

/// Crates with several incompatible versions, and exceptions that nothing needs any more.
pub(crate) fn check(repository: &Repository, metadata: &Value) -> Vec<Finding> {
    check_with(repository, metadata, EXCEPTIONS)
}

fn check_with(repository: &Repository, metadata: &Value, exceptions: &[(&str, &str)]) -> Vec<Finding> {
    let mut versions: BTreeMap<&str, BTreeSet<(String, &str)>> = BTreeMap::new();
    for package in packages(metadata) {
        let version = text(package, "version");
        versions.entry(text(package, "name")).or_default().insert((compatible(version), version));
    }
    let mut findings = Vec::new();
    for (name, found) in &versions {
        let kinds: BTreeSet<_> = found.iter().map(|(kind, _)| kind).collect();
        if kinds.len() < 2 || exceptions.iter().any(|(exception, _)| exception == name) {
            continue;
        }
        let all: Vec<_> = found.iter().map(|(_, version)| *version).collect();
        let message = format!(
            "{name} is built as {}; see `cargo tree -i {name}@{}` and bring its users to one version",
            all.join(" and "),
            all[0]
        );
        findings.push(Finding::new("Cargo.lock", lock_line(repository, name, all[0]), message));
    }
    for (name, _) in exceptions {
        let kinds = versions
            .get(name)
            .map_or(0, |found| found.iter().map(|(kind, _)| kind).collect::<BTreeSet<_>>().len());
        if kinds < 2 {
            let message = format!("{name} has one version now; take it out of duplicates.rs");
            findings.push(Finding::new("dev/xtask/src/tidy/duplicates.rs", 1, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_finds(versions: &[(&str, &str)], exceptions: &[(&str, &str)], want: &[&str]) {
        let packages: Vec<_> =
            versions.iter().map(|(name, version)| json!({"name": name, "version": version})).collect();
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n";
        let repository = Repository::of(&[("Cargo.lock", lock)]);
        let found = check_with(&repository, &json!({ "packages": packages }), exceptions);
        let found: Vec<_> = found.iter().map(|f| format!("{}:{}", f.path, f.line)).collect();
        assert_eq!(found, want);
    }

    #[test]
    fn two_incompatible_versions_are_found_unless_excepted() {
        check_finds(&[("a", "1.0.0"), ("a", "2.0.0")], &[], &["Cargo.lock:2"]);
        check_finds(&[("a", "0.1.0"), ("a", "0.2.0")], &[], &["Cargo.lock:1"]);
        check_finds(&[("a", "1.0.0"), ("a", "2.0.0")], &[("a", "tests")], &[]);
        check_finds(&[("a", "1.0.0"), ("a", "1.2.0"), ("b", "2.0.0")], &[], &[]);
    }

    #[test]
    fn an_exception_that_nothing_needs_is_found() {
        check_finds(&[("a", "1.0.0")], &[("a", "tests")], &["dev/xtask/src/tidy/duplicates.rs:1"]);
    }
}
