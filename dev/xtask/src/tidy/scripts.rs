//! Shell scripts stop at the first error and can be called.

use super::Finding;
use super::repository::{Repository, TextFile};

/// Scripts without strict mode, without the executable bit, or without a first line that says who runs them.
pub(crate) fn check(repository: &Repository) -> Vec<Finding> {
    repository.files.iter().flat_map(findings).collect()
}

fn findings(file: &TextFile) -> Vec<Finding> {
    let mut found = Vec::new();
    let first = file.text.lines().next().unwrap_or_default();
    // `#![…]` begins a Rust source.
    let Some(interpreter) = first.strip_prefix("#!").filter(|rest| !rest.starts_with('[')) else {
        if file.executable {
            let message = "executable, but its first line names no interpreter; write one or chmod -x it";
            found.push(Finding::new(&file.path, 1, message));
        }
        return found;
    };
    if !file.executable {
        found.push(Finding::new(&file.path, 1, "a script that is not executable; chmod +x it"));
    }
    let shell = interpreter.rsplit(['/', ' ']).next().unwrap_or_default();
    let strict = match shell {
        "bash" => "set -euo pipefail",
        // POSIX had no pipefail when the shells here were made.
        "sh" => "set -eu",
        _ => return found,
    };
    if !file.text.lines().any(|line| line == strict) {
        found.push(Finding::new(
            &file.path,
            1,
            format!("a {shell} script that goes on after an error; write {strict}"),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_finds(text: &str, executable: bool, want: usize) {
        let file = TextFile { path: "scripts/x".into(), text: text.into(), executable };
        let found = check(&Repository { files: vec![file], ..Repository::default() });
        assert_eq!(found.len(), want, "{text}: {found:?}");
    }

    #[test]
    fn a_script_that_goes_on_after_errors_or_cannot_be_called_is_found() {
        check_finds("#!/usr/bin/env bash\nset -euo pipefail\n", true, 0);
        check_finds("#!/bin/sh\nset -eu\n", true, 0);
        check_finds("#!/usr/bin/env bash\nset -eu\n", true, 1);
        check_finds("#!/bin/sh\n# set -eu\n", true, 1);
        check_finds("#!/bin/bash\nset -euo pipefail\n", false, 1);
        check_finds("true\n", true, 1);
    }

    #[test]
    fn what_is_no_shell_script_is_left_alone() {
        check_finds("#!/usr/bin/env python3\n", true, 0);
        check_finds("#![allow(dead_code)]\n", false, 0);
        check_finds("text\n", false, 0);
    }
}
