//! `criox-spec` is pure: what it needs to know of the node is given to it.

use super::Finding;
use super::repository::Repository;
use super::rust_code::{code_only, words};

const SOURCES: &str = "crates/criox-spec/src/";

/// Modules of the standard library by which a function can see or change the world.
const WORLD: &[&str] = &["env", "fs", "net", "process", "thread"];
/// The same for types that live elsewhere in it.
const WORLDLY: &[&str] = &["SystemTime", "Instant", "File"];
/// And for functions of `io`; CRI has fields of these names.
const STREAMS: &[&str] = &["stdin", "stdout", "stderr"];

/// Uses of them in the sources of `criox-spec`.
pub(crate) fn check(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in repository.rust().filter(|file| file.path.starts_with(SOURCES)) {
        for (name, line) in uses(&code_only(&file.text)) {
            let message =
                format!("criox-spec uses `{name}`, but does no I/O; let the caller give it what it needs");
            findings.push(Finding::new(&file.path, line, message));
        }
    }
    findings
}

/// The worldly names in some code, with their lines; `std::{a, b::c}` counts as `std::a` and `std::b`.
fn uses(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let line_of = |offset: usize| code[..offset].matches('\n').count() + 1;
    for (at, word) in words(code) {
        if WORLDLY.contains(&word) || (STREAMS.contains(&word) && code[..at].ends_with("io::")) {
            found.push((word.to_owned(), line_of(at)));
        }
        if word != "std" {
            continue;
        }
        let Some(path) = code[at + word.len()..].strip_prefix("::") else { continue };
        let start = code.len() - path.len();
        let group = path.strip_prefix('{').map(|group| &group[..group_end(group)]);
        let names = first_names(group.unwrap_or(path), group.is_some());
        let offset = start + usize::from(group.is_some());
        for (within, name) in names.into_iter().filter(|(_, name)| WORLD.contains(name)) {
            found.push((format!("std::{name}"), line_of(offset + within)));
        }
    }
    found
}

/// Where the brace that is already open closes.
fn group_end(group: &str) -> usize {
    let mut depth = 1_usize;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    group.len()
}

/// The first word of a path, or of each path in a group, with its offset.
fn first_names(text: &str, group: bool) -> Vec<(usize, &str)> {
    if !group {
        return words(text).take(1).collect();
    }
    let mut depth = 0_usize;
    let mut fresh = true;
    let mut names = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => fresh = true,
            c if fresh && !c.is_whitespace() => {
                fresh = false;
                names.extend(words(&text[at..]).next().map(|(_, name)| (at, name)));
            }
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_finds(text: &str, want: &[usize]) {
        let found = check(&Repository::of(&[("crates/criox-spec/src/x.rs", text)]));
        assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), want, "{text}");
    }

    #[test]
    fn every_way_to_the_world_is_found() {
        check_finds("use std::fs;\n", &[1]);
        check_finds("\nfn f() { std::process::id(); }\n", &[2]);
        check_finds("use std::{\n    collections::{BTreeMap, env},\n    net::IpAddr,\n};\n", &[3]);
        check_finds("use std::time::SystemTime;\nlet text = io::stdin().lines();\n", &[1, 2]);
    }

    #[test]
    fn pure_code_and_other_crates_are_not() {
        check_finds("use std::fmt;\n// std::fs\nlet fs = \"std::fs\";\nuse std::{fmt, path::Path};\n", &[]);
        check_finds("let open = config.stdin;\n", &[]);
        assert_eq!(check(&Repository::of(&[("crates/criox-store/src/x.rs", "use std::fs;\n")])), []);
    }
}
