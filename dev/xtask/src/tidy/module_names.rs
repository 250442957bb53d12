//! A module is named after what it is about.

use super::Finding;
use super::repository::Repository;
use super::rust_code::code_only;

/// Names that say nothing about what is inside, so that anything gathers there.
const BANNED: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "manager", "managers", "misc", "inner", "stuff"];

fn banned(name: &str) -> bool {
    name.split(['_', '-']).any(|part| BANNED.contains(&part))
}

/// Files, directories and inline modules with such a name.
pub(crate) fn check(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    let message = |name: &str| format!("a module called `{name}`; name it after what it is about");
    for file in repository.rust() {
        for part in file.path.trim_end_matches(".rs").split('/').filter(|part| banned(part)) {
            findings.push(Finding::new(&file.path, 1, message(part)));
        }
        for (at, line) in code_only(&file.text).lines().enumerate() {
            let mut words = line.split_whitespace().skip_while(|word| *word != "mod").skip(1);
            // `mod name;` is found by its file.
            if let (Some(name), Some("{")) = (words.next(), words.next())
                && banned(name)
            {
                findings.push(Finding::new(&file.path, at + 1, message(name)));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_finds(path: &str, text: &str, want: &[usize]) {
        let found = check(&Repository::of(&[(path, text)]));
        assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), want, "{path}");
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        check_finds("crates/a/src/utils.rs", "", &[1]);
        check_finds("crates/a/src/common/mod.rs", "", &[1]);
        check_finds("crates/a/src/pod_manager.rs", "", &[1]);
        check_finds("crates/a/src/x.rs", "\npub(crate) mod helpers {\n}\n", &[2]);
    }

    #[test]
    fn names_that_say_something_are_not() {
        check_finds("crates/a/src/commonality.rs", "mod overlay {}\n// mod utils {\n", &[]);
        check_finds("crates/a/README.md", "mod utils {\n", &[]);
    }
}
