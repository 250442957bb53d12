//! Rooms stay small.

use super::Finding;
use super::repository::Repository;

/// Lines of a Rust source, tests in it included.
const LIMIT: usize = 800;

/// Sources that may be longer, each with its reason.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// Sources above the limit, and exceptions that nothing needs any more.
pub(crate) fn check(repository: &Repository) -> Vec<Finding> {
    check_with(repository, EXCEPTIONS)
}

fn check_with(repository: &Repository, exceptions: &[(&str, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = |text: &str| text.lines().count();
    for file in repository.rust().filter(|file| lines(&file.text) > LIMIT) {
        if exceptions.iter().all(|(path, _)| *path != file.path) {
            let message = format!(
                "{} lines, more than {LIMIT}; split it by what the parts are about",
                lines(&file.text)
            );
            findings.push(Finding::new(&file.path, LIMIT + 1, message));
        }
    }
    for (path, _) in exceptions {
        if repository.file(path).is_none_or(|file| lines(&file.text) <= LIMIT) {
            let message = "an exception from the size limit that is not needed; take it out of file_size.rs";
            findings.push(Finding::new(path, 1, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_source_is_found_unless_it_is_an_exception() {
        let long = "\n".repeat(LIMIT + 1);
        let repository = Repository::of(&[("a.rs", &long), ("b.md", &long), ("c.rs", &"\n".repeat(LIMIT))]);
        let found = check_with(&repository, &[]);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].path.as_str(), found[0].line), ("a.rs", LIMIT + 1));
        assert_eq!(check_with(&repository, &[("a.rs", "a table")]), []);
    }

    #[test]
    fn an_exception_that_nothing_needs_is_found() {
        let repository = Repository::of(&[("short.rs", "\n")]);
        let found = check_with(&repository, &[("short.rs", "was long"), ("gone.rs", "was long")]);
        assert_eq!(found.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["short.rs", "gone.rs"]);
    }
}
