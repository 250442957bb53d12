//! Nothing in the repository knows the machine that it was written on.

use super::Finding;
use super::repository::Repository;

/// Roots of build machines. In two pieces, lest this file be found.
const ROOTS: &[&str] = &[concat!("/", "work/"), concat!("/", "farm/")];

/// Absolute paths below such a root, in any text file.
pub(crate) fn check(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in &repository.files {
        for (at, line) in file.text.lines().enumerate() {
            if let Some(root) = ROOTS.iter().find(|root| holds(line, root)) {
                let message = format!("a path of a build machine, {root}; make it relative or an argument");
                findings.push(Finding::new(&file.path, at + 1, message));
            }
        }
    }
    findings
}

/// True when `root` begins a path in the line, and doesn't merely stand within one (an overlay's work directory).
fn holds(line: &str, root: &str) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || "._-~})>*".contains(c);
    line.match_indices(root).any(|(at, _)| !line[..at].ends_with(goes_on))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_machine_is_found_and_one_like_it_is_not() {
        let (work, farm) = (ROOTS[0], ROOTS[1]);
        let text =
            format!("a\nx = \"{work}main\"\nPATH=a:{farm}bin\noverlay{work}inner $dir{work}\n{{id}}{work}\n");
        let found = check(&Repository::of(&[("README.md", &text)]));
        assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), [2, 3]);
    }
}
