//! A key of `crio.conf` that is taken without a word has an effect: somebody outside of `criox-config` reads it.

use std::collections::BTreeSet;

use super::Finding;
use super::repository::Repository;
use super::rust_code::{code_only, words};

const TABLES: [&str; 2] = ["crates/criox-config/src/config.rs", "crates/criox-config/src/handler.rs"];

/// Keys that act in `criox-config` itself, each with how.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("default_transport", "anything but docker:// is warned about"),
    ("plugin_dir", "becomes one of plugin_dirs"),
    ("enable_criu_support", "false sets container_level_enabled to none"),
];

/// Keys declared `Now` whose name stands in no other crate's code, and exceptions that nothing needs any more.
pub(crate) fn check(repository: &Repository) -> Vec<Finding> {
    check_with(repository, EXCEPTIONS)
}

fn check_with(repository: &Repository, exceptions: &[(&str, &str)]) -> Vec<Finding> {
    let sources: Vec<String> = repository
        .rust()
        .filter(|file| file.path.starts_with("crates/") && !file.path.starts_with("crates/criox-config/"))
        .map(|file| code_only(&file.text))
        .collect();
    let read: BTreeSet<&str> = sources.iter().flat_map(|code| fields(code)).collect();
    let mut findings = Vec::new();
    for file in TABLES.iter().filter_map(|path| repository.file(path)) {
        for (line, name) in declared(&file.text) {
            if !read.contains(name) && exceptions.iter().all(|(exception, _)| *exception != name) {
                let message = format!(
                    "the key {name} is declared as being in effect, and nobody reads it; declare it NotYet or WithoutMeaning"
                );
                findings.push(Finding::new(&file.path, line, message));
            }
        }
    }
    findings
}

/// The keys with the effect `Now`, with their lines.
fn declared(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter_map(|(at, line)| {
        let (name, _) = line.trim().strip_prefix("Now ")?.split_once(':')?;
        Some((at + 1, name))
    })
}

/// The words in some code that are accessed as fields.
fn fields(code: &str) -> impl Iterator<Item = &str> {
    words(code).filter(|(at, _)| code[..*at].ends_with('.')).map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_effect_that_nobody_reads_is_found() {
        let table = "section! {\n        Now root: PathBuf = x;\n        NotYet other: bool = false;\n        Now lost: bool = true;\n";
        let user = "fn f(c: &Config) { g(&c.root.root); let lost = 1; } // c.lost\n";
        let repository = Repository::of(&[(TABLES[0], table), ("crates/criox/src/x.rs", user)]);
        let found: Vec<_> = check_with(&repository, &[]).iter().map(|f| f.line).collect();
        assert_eq!(found, [4]);
        assert_eq!(check_with(&repository, &[("lost", "acts at home")]), []);
    }
}
