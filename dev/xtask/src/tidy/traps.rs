//! Each trap of the kubelet is shown not to bite by tests that are there.

use std::collections::BTreeSet;

use super::Finding;
use super::repository::Repository;

const TABLE: &str = "dev/conformance/traps.md";
/// How many traps there are; they are numbered from 1.
const TRAPS: u32 = 9;

/// Traps without a row, and rows whose tests are not there.
pub(crate) fn check(repository: &Repository) -> Vec<Finding> {
    let Some(table) = repository.file(TABLE) else {
        return vec![Finding::new(TABLE, 1, "is not there; write what shows that no trap bites")];
    };
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for (at, line) in table.text.lines().enumerate() {
        let Some((trap, proofs)) = row(line) else { continue };
        if !seen.insert(trap) {
            findings.push(Finding::new(TABLE, at + 1, format!("trap {trap} has two rows; make them one")));
        }
        for proof in proofs.split("<br>") {
            if let Some(reason) = mistake(repository, proof) {
                findings.push(Finding::new(TABLE, at + 1, format!("{reason}; name a test that is there")));
            }
        }
    }
    let missing = (1..=TRAPS).filter(|trap| !seen.contains(trap));
    findings.extend(
        missing.map(|trap| Finding::new(TABLE, 1, format!("trap {trap} has no row; name its tests"))),
    );
    findings
}

/// The number and the tests of a row.
fn row(line: &str) -> Option<(u32, &str)> {
    let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.splitn(3, " | ");
    let trap = cells.next()?.parse().ok()?;
    Some((trap, cells.nth(1)?))
}

/// What is wrong with one proof, of the form `place`: text.
fn mistake(repository: &Repository, proof: &str) -> Option<String> {
    let parts = proof.trim().strip_prefix('`').and_then(|rest| rest.split_once("`: "));
    let Some((place, text)) = parts.filter(|(_, text)| !text.is_empty()) else {
        return Some(format!("{proof:?} is not of the form `place`: sentence"));
    };
    let path =
        if place.ends_with(".rs") { place.to_owned() } else { format!("dev/testkit/tests/{place}.rs") };
    match repository.file(&path) {
        None => Some(format!("there is no {path}")),
        Some(file) if file.text.contains(text) => None,
        Some(_) => Some(format!("{path} has no {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(table: &str) -> Vec<String> {
        let tests = ("dev/testkit/tests/cri/a.rs", "(\"a sentence\", || test)");
        let unit = ("crates/x/src/y.rs", "fn it_holds() {}");
        check(&Repository::of(&[(TABLE, table), tests, unit]))
            .into_iter()
            .map(|found| found.message)
            .collect()
    }

    #[test]
    fn a_trap_without_a_test_is_found() {
        let row = |trap: u32, proof: &str| format!("| {trap} | it bites | {proof} |\n");
        let mut table = String::from("| trap | what | tests |\n|---|---|---|\n");
        for trap in 1..=TRAPS {
            table += &row(trap, "`cri/a`: a sentence<br>`crates/x/src/y.rs`: it_holds");
        }
        assert!(found(&table).is_empty(), "{:?}", found(&table));
        let eight = table.lines().take(10).collect::<Vec<_>>().join("\n");
        assert_eq!(found(&eight), ["trap 9 has no row; name its tests"]);
        for bad in ["`cri/b`: a sentence", "`cri/a`: another", "`cri/a`", "a sentence"] {
            let table = table.replacen("`cri/a`: a sentence", bad, 1);
            assert_eq!(found(&table).len(), 1, "{bad}: {:?}", found(&table));
        }
        assert_eq!(found(&format!("{table}{}", row(3, "`cri/a`: a sentence"))).len(), 1);
    }
}
