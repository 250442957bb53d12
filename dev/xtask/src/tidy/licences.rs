//! Licences of what is linked in, or builds it: permissive ones, and MPL-2.0.

use serde_json::Value;

use super::Finding;
use super::repository::{Repository, lock_line, packages, text};

/// Identifiers of the SPDX list.
const ACCEPTED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages whose licence expression leaves no accepted choice.
pub(crate) fn check(repository: &Repository, metadata: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in packages(metadata) {
        let (name, version) = (text(package, "name"), text(package, "version"));
        let expression = text(package, "license");
        if accepted(expression) {
            continue;
        }
        let message = if expression.is_empty() {
            format!("{name} {version} names no licence; find another crate")
        } else {
            format!(
                "{name} {version} is under {expression}; find another crate, or argue for it in licences.rs"
            )
        };
        findings.push(Finding::new("Cargo.lock", lock_line(repository, name, version), message));
    }
    findings
}

/// Whether an SPDX expression (or the older form with `/` for `OR`) can be met with accepted licences.
fn accepted(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest) == Some(true) && rest.is_empty()
}

fn any_of(words: &mut &[&str]) -> Option<bool> {
    let mut met = all_of(words)?;
    while let Some(rest) = words.strip_prefix(&["OR"]) {
        *words = rest;
        met |= all_of(words)?;
    }
    Some(met)
}

fn all_of(words: &mut &[&str]) -> Option<bool> {
    let mut met = one(words)?;
    while let Some(rest) = words.strip_prefix(&["AND"]) {
        *words = rest;
        met &= one(words)?;
    }
    Some(met)
}

/// A licence, or an expression in parentheses; `None` when the expression is malformed.
fn one(words: &mut &[&str]) -> Option<bool> {
    let (first, rest) = words.split_first()?;
    *words = rest;
    if *first == "(" {
        let met = any_of(words)?;
        *words = words.strip_prefix(&[")"])?;
        return Some(met);
    }
    // An exception only adds permissions.
    if let Some(rest) = words.strip_prefix(&["WITH"]) {
        *words = rest.split_first()?.1;
    }
    Some(ACCEPTED.contains(first))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_are_weighed() {
        for good in [
            "MIT",
            "MIT/GPL-3.0",
            "GPL-2.0 OR Apache-2.0",
            "(MIT OR GPL-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "MPL-2.0",
        ] {
            assert!(accepted(good), "{good}");
        }
        for bad in
            ["", "GPL-3.0", "MIT AND LGPL-2.1", "AGPL-3.0 OR SSPL-1.0", "MIT OR", "(MIT", "MIT MIT", "OR MIT"]
        {
            assert!(!accepted(bad), "{bad}");
        }
    }

    #[test]
    fn a_package_under_another_licence_is_found_where_it_is_pinned() {
        let repository = Repository::of(&[("Cargo.lock", "x\nname = \"a\"\nversion = \"1.0.0\"\n")]);
        let metadata = json!({"packages": [
            {"name": "a", "version": "1.0.0", "license": "GPL-3.0-only"},
            {"name": "b", "version": "1.0.0", "license": "MIT"},
            {"name": "c", "version": "1.0.0", "license": null},
        ]});
        let found: Vec<_> = check(&repository, &metadata).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("Cargo.lock:2: a 1.0.0 is under GPL-3.0-only"), "{found:?}");
        assert!(found[1].contains("c 1.0.0 names no licence"), "{found:?}");
    }
}
