//! Arrows between crates only point down, and each is in a table: a new one is a design change.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Finding;
use super::repository::{Repository, packages, text};

/// What one crate may depend on.
struct Rule {
    name: &'static str,
    /// Our own crates that it may see, lower ones only.
    may_see: &'static [&'static str],
    /// Foreign crates that neither it nor what it sees may link.
    never: &'static [&'static str],
}

const ASYNC: &[&str] = &["tokio", "hyper", "hyper-util", "tonic", "tower", "http", "axum"];

/// Lowest layer first, as in `ARCHITECTURE.md`.
const RULES: &[Rule] = &[
    Rule { name: "criox-sys", may_see: &[], never: ASYNC },
    Rule { name: "criox-cri", may_see: &[], never: &[] },
    Rule { name: "criox-config", may_see: &[], never: ASYNC },
    Rule { name: "criox-store", may_see: &["criox-sys"], never: ASYNC },
    Rule { name: "criox-network", may_see: &["criox-sys"], never: &["tonic"] },
    // criox-cri brings tonic's types along; what would let the spec act is not to be seen directly or otherwise.
    Rule {
        name: "criox-spec",
        may_see: &["criox-cri"],
        never: &["tokio", "tracing", "rustix", "libc", "hyper"],
    },
    // Who measures is told what: it knows no pod, record or request.
    Rule { name: "criox-stats", may_see: &["criox-sys"], never: &["tonic", "hyper"] },
    Rule { name: "criox-monitor-api", may_see: &["criox-sys"], never: &["tonic", "hyper"] },
    // Nor does it know a container.
    Rule { name: "criox-systemd", may_see: &[], never: &["tonic", "hyper"] },
    Rule { name: "criox-nri", may_see: &["criox-sys"], never: &["tonic", "hyper"] },
    // It knows no container: whoever does implements its backend.
    Rule { name: "criox-streaming", may_see: &[], never: &["tonic"] },
    // Everything in it blocks, and says so.
    Rule {
        name: "criox-confine",
        may_see: &["criox-sys", "criox-cri", "criox-config", "criox-spec"],
        never: &["tokio", "hyper"],
    },
    // What stands in a file waits for nobody and decides nothing.
    Rule {
        name: "criox-records",
        may_see: &["criox-sys", "criox-cri", "criox-confine"],
        never: &["tokio", "hyper"],
    },
    Rule {
        name: "criox-answers",
        may_see: &["criox-sys", "criox-cri", "criox-spec", "criox-stats", "criox-records"],
        never: &["hyper"],
    },
    Rule {
        name: "criox-handlers",
        may_see: &["criox-cri", "criox-config", "criox-spec", "criox-monitor-api"],
        never: &["hyper"],
    },
    Rule {
        name: "criox-nri-spec",
        may_see: &["criox-sys", "criox-cri", "criox-spec", "criox-nri", "criox-records"],
        never: &["hyper"],
    },
    // What came from elsewhere is taken apart without a request, a pod or a network near it.
    Rule { name: "criox-checkpoint", may_see: &["criox-sys", "criox-store"], never: ASYNC },
    // It only compares.
    Rule {
        name: "criox-checkpoint-policy",
        may_see: &[
            "criox-sys",
            "criox-cri",
            "criox-config",
            "criox-spec",
            "criox-records",
            "criox-checkpoint",
        ],
        never: &["tokio", "hyper"],
    },
    Rule { name: "criox-image", may_see: &["criox-sys", "criox-config", "criox-store"], never: &["tonic"] },
    Rule { name: "criox-monitor", may_see: &["criox-sys", "criox-monitor-api"], never: ASYNC },
    Rule {
        name: "criox-lifecycle",
        may_see: &[
            "criox-sys",
            "criox-cri",
            "criox-config",
            "criox-store",
            "criox-network",
            "criox-spec",
            "criox-stats",
            "criox-monitor-api",
            "criox-nri",
            "criox-systemd",
            "criox-streaming",
            "criox-confine",
            "criox-records",
            "criox-answers",
            "criox-handlers",
            "criox-nri-spec",
            "criox-checkpoint",
            "criox-checkpoint-policy",
            "criox-image",
        ],
        never: &[],
    },
    Rule {
        name: "criox",
        may_see: &[
            "criox-sys",
            "criox-cri",
            "criox-config",
            "criox-store",
            "criox-network",
            "criox-spec",
            "criox-streaming",
            "criox-records",
            "criox-answers",
            "criox-image",
            "criox-lifecycle",
        ],
        never: &[],
    },
    // Its tests play NRI plugins by the wire of criox-nri.
    Rule { name: "testkit", may_see: &["criox-cri", "criox-nri", "criox-sys"], never: &[] },
    Rule { name: "node", may_see: &[], never: ASYNC },
    Rule { name: "xtask", may_see: &[], never: ASYNC },
    Rule { name: "bench", may_see: &["criox-cri", "testkit"], never: &[] },
];

/// Tests may use these, whatever the crate.
const FOR_TESTS: &[&str] = &["testkit", "criox-cri"];

/// Dependencies of our crates that are not in the table, and crates that have no row.
pub(crate) fn check(repository: &Repository, metadata: &Value) -> Vec<Finding> {
    let arrows = Arrows { repository, packages: packages(metadata) };
    let mut findings = Vec::new();
    for package in arrows.packages {
        let name = text(package, "name");
        let Some(rule) = RULES.iter().find(|rule| rule.name == name) else {
            let message =
                format!("{name} has no row in the table of arrows; add it to arrows.rs and ARCHITECTURE.md");
            findings.push(arrows.finding(package, "name", message));
            continue;
        };
        findings.extend(arrows.own(package, rule));
        findings.extend(arrows.foreign(package, rule));
    }
    findings
}

struct Arrows<'a> {
    repository: &'a Repository,
    packages: &'a [Value],
}

impl Arrows<'_> {
    /// Our own crates that `package` may not see.
    fn own(&self, package: &Value, rule: &Rule) -> Vec<Finding> {
        let mut findings = Vec::new();
        for dependency in dependencies(package).filter(|dependency| dependency["path"].is_string()) {
            let seen = text(dependency, "name");
            let test = text(dependency, "kind") == "dev";
            if rule.may_see.contains(&seen) || (test && FOR_TESTS.contains(&seen)) {
                if rule.name == "criox-monitor" && has_feature(dependency, "client") {
                    let message =
                        "the monitor takes the daemon's half of its protocol; leave the feature out";
                    findings.push(self.finding(package, seen, message.to_owned()));
                }
                continue;
            }
            let why = match seen {
                "criox-monitor" => {
                    "nobody links the monitor: it is a program, and is seen through criox-monitor-api"
                }
                _ => "this arrow is not in the table; turn it round, or make it a design change in arrows.rs",
            };
            findings.push(self.finding(package, seen, format!("{} depends on {seen}; {why}", rule.name)));
        }
        findings
    }

    /// Foreign crates that `package` may not link, through whichever of our crates.
    fn foreign(&self, package: &Value, rule: &Rule) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut waiting = vec![(package, Vec::new())];
        let mut seen = BTreeSet::new();
        while let Some((here, path)) = waiting.pop() {
            for dependency in dependencies(here).filter(|dependency| dependency["kind"].is_null()) {
                // An optional one of another crate belongs to whoever asks for it.
                if !path.is_empty() && dependency["optional"] == true {
                    continue;
                }
                let name = text(dependency, "name");
                if rule.never.contains(&name) {
                    let first = path.first().copied().unwrap_or(name);
                    let by = if path.is_empty() { String::new() } else { format!(" by {}", path.join(", ")) };
                    let message =
                        format!("{} links {name}{by}; it is kept free of it, do without", rule.name);
                    findings.push(self.finding(package, first, message));
                }
                let next = self.packages.iter().find(|other| text(other, "name") == name);
                if let Some(next) = next.filter(|_| dependency["path"].is_string() && seen.insert(name)) {
                    waiting.push((next, [path.as_slice(), &[name]].concat()));
                }
            }
        }
        findings
    }

    /// A finding at the line of the crate's manifest that begins with `key`.
    fn finding(&self, package: &Value, key: &str, message: String) -> Finding {
        let manifest = text(package, "manifest_path");
        let root = format!("{}/", self.repository.root.display());
        let path = manifest.strip_prefix(&root).unwrap_or(manifest);
        let line = self.repository.line_where(path, |line| {
            line.strip_prefix(key).is_some_and(|rest| rest.starts_with([' ', '.', '=']))
        });
        Finding::new(path, line, message)
    }
}

fn dependencies(package: &Value) -> impl Iterator<Item = &Value> {
    package["dependencies"].as_array().into_iter().flatten()
}

fn has_feature(dependency: &Value, feature: &str) -> bool {
    dependency["features"].as_array().into_iter().flatten().any(|found| found == feature)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn own(name: &str) -> Value {
        json!({"name": name, "path": format!("/repository/crates/{name}"), "kind": null, "features": []})
    }

    fn foreign(name: &str) -> Value {
        json!({"name": name, "path": null, "kind": null, "features": []})
    }

    fn package(name: &str, dependencies: &[Value]) -> Value {
        let manifest = format!("/repository/crates/{name}/Cargo.toml");
        json!({"name": name, "manifest_path": manifest, "dependencies": dependencies})
    }

    fn check_finds(packages: &[Value], want: &[&str]) {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\ncriox-image.workspace = true\n";
        let repository = Repository::of(&[("crates/criox-store/Cargo.toml", manifest)]);
        let found = check(&repository, &json!({ "packages": packages }));
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), want.len(), "{found:#?}");
        for (found, want) in found.iter().zip(want) {
            assert!(found.contains(want), "{found} has no {want}");
        }
    }

    #[test]
    fn every_arrow_of_the_table_points_down() {
        for (at, rule) in RULES.iter().enumerate() {
            for seen in rule.may_see {
                let below = RULES[..at].iter().any(|lower| lower.name == *seen);
                assert!(below, "{} may see {seen}, which is not below it", rule.name);
            }
        }
    }

    #[test]
    fn an_arrow_that_is_not_in_the_table_is_found_with_its_line() {
        check_finds(
            &[package("criox-store", &[own("criox-image"), own("criox-sys")])],
            &["crates/criox-store/Cargo.toml:4: criox-store depends on criox-image"],
        );
        check_finds(
            &[package("criox-monitor", &[own("criox-cri")])],
            &["criox-monitor depends on criox-cri"],
        );
        check_finds(&[package("criox-spec", &[own("criox-sys")])], &["criox-spec depends on criox-sys"]);
    }

    #[test]
    fn nobody_links_the_monitor_not_even_tests() {
        let mut dependency = own("criox-monitor");
        dependency["kind"] = json!("dev");
        check_finds(&[package("criox-lifecycle", &[dependency])], &["nobody links the monitor"]);
    }

    #[test]
    fn tests_may_use_the_testkit_and_programs_may_not() {
        let mut dependency = own("testkit");
        check_finds(&[package("criox-store", std::slice::from_ref(&dependency))], &["depends on testkit"]);
        dependency["kind"] = json!("dev");
        check_finds(&[package("criox-store", &[dependency])], &[]);
    }

    #[test]
    fn a_banned_crate_is_found_also_behind_another_crate_of_ours() {
        check_finds(&[package("criox-store", &[foreign("tokio")])], &["criox-store links tokio;"]);
        let sys = package("criox-sys", &[foreign("tokio")]);
        check_finds(
            &[package("criox-store", &[own("criox-sys")]), sys],
            &["criox-store links tokio by criox-sys", "criox-sys links tokio;"],
        );
    }

    #[test]
    fn the_monitor_takes_only_its_half_of_the_protocol() {
        let mut tokio = foreign("tokio");
        tokio["optional"] = json!(true);
        let api = package("criox-monitor-api", &[tokio]);
        check_finds(&[package("criox-monitor", &[own("criox-monitor-api")]), api.clone()], &[]);
        let mut dependency = own("criox-monitor-api");
        dependency["features"] = json!(["client"]);
        check_finds(&[package("criox-monitor", &[dependency]), api], &["leave the feature out"]);
    }

    #[test]
    fn a_crate_without_a_row_is_found() {
        check_finds(&[package("criox-new", &[])], &["criox-new has no row"]);
    }
}
