//! Unsafe code has one address: `criox-sys`.

use super::Finding;
use super::repository::Repository;
use super::rust_code::{code_only, words};

const ADDRESS: &str = "crates/criox-sys/";

/// The word in any other crate's source, a lint table that would let it through, a table of `criox-sys` that
/// asks for no SAFETY comments.
pub(crate) fn check(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in repository.rust().filter(|file| !file.path.starts_with(ADDRESS)) {
        let code = code_only(&file.text);
        for (at, line) in code.lines().enumerate() {
            if words(line).any(|(_, word)| word == "unsafe") {
                let message = "unsafe code outside of criox-sys; move it there, behind a safe function";
                findings.push(Finding::new(&file.path, at + 1, message));
            }
            let lifted = line.contains("allow(") || line.contains("expect(") || line.contains("warn(");
            if lifted && words(line).any(|(_, word)| word == "unsafe_code") {
                let message = "the lint against unsafe code is lifted; remove that attribute";
                findings.push(Finding::new(&file.path, at + 1, message));
            }
        }
    }
    findings.extend(tables(repository));
    findings
}

fn tables(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in repository.files.iter().filter(|file| file.path.ends_with("Cargo.toml")) {
        let says = |wanted: &str| file.text.lines().any(|line| line.trim() == wanted);
        let (wanted, why) = if file.path == "Cargo.toml" {
            ("unsafe_code = \"forbid\"", "the workspace's lint table must forbid unsafe code")
        } else if file.path.starts_with(ADDRESS) {
            (
                "undocumented_unsafe_blocks = \"deny\"",
                "criox-sys must deny unsafe blocks without SAFETY comments",
            )
        } else if says("[workspace]") {
            continue;
        } else {
            ("[lints]", "the crate must take the workspace's lint table")
        };
        if !says(wanted) {
            findings.push(Finding::new(&file.path, 1, format!("{why}; write {wanted}")));
        } else if wanted == "[lints]" && !file.text.contains("[lints]\nworkspace = true") {
            let line = repository.line_where(&file.path, |line| line == wanted);
            findings.push(Finding::new(
                &file.path,
                line,
                format!("{why}; write workspace = true below [lints]"),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: (&str, &str) = ("Cargo.toml", "[workspace.lints.rust]\nunsafe_code = \"forbid\"\n");

    fn check_finds(files: &[(&str, &str)], want: &[&str]) {
        let found: Vec<_> =
            check(&Repository::of(files)).iter().map(|f| format!("{}:{}", f.path, f.line)).collect();
        assert_eq!(found, want);
    }

    #[test]
    fn unsafe_outside_of_its_address_is_found_and_inside_it_is_not() {
        let source = "// unsafe is a word\nfn f() {\n    let _ = \"unsafe\";\n    unsafe { g() }\n}\n";
        check_finds(&[("crates/criox-spec/src/x.rs", source)], &["crates/criox-spec/src/x.rs:4"]);
        check_finds(&[("crates/criox-sys/src/x.rs", source)], &[]);
        check_finds(&[("bench/src/x.rs", "#![allow(unsafe_code)]\n")], &["bench/src/x.rs:1"]);
    }

    #[test]
    fn a_lint_table_that_lets_it_through_is_found() {
        check_finds(&[ROOT, ("crates/a/Cargo.toml", "[lints]\nworkspace = true\n")], &[]);
        check_finds(&[("Cargo.toml", "unsafe_code = \"warn\"\n")], &["Cargo.toml:1"]);
        check_finds(&[ROOT, ("crates/a/Cargo.toml", "[package]\n")], &["crates/a/Cargo.toml:1"]);
        let own = "[package]\n[lints]\n[lints.rust]\n";
        check_finds(&[ROOT, ("crates/a/Cargo.toml", own)], &["crates/a/Cargo.toml:2"]);
        check_finds(&[("crates/criox-sys/Cargo.toml", "[lints.rust]\n")], &["crates/criox-sys/Cargo.toml:1"]);
    }
}
